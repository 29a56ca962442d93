//! The exit of an example: prints an error as its text and the texts of its causes, not in its
//! Debug form.

use std::{error::Error, process::ExitCode};

/// Prints the error, if there is one, after the example's name. Returns the exit code.
pub(crate) fn ended(example: &str, result: Result<(), Box<dyn Error + Send + Sync>>) -> ExitCode {
    let Err(err) = result else {
        return ExitCode::SUCCESS;
    };
    let mut text = format!("{example}: {err}");
    let mut cause = err.source();
    while let Some(err) = cause {
        text += &format!(": {err}");
        cause = err.source();
    }
    eprintln!("{text}");
    ExitCode::FAILURE
}
