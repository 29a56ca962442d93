//! How an example ends: an error is told by its text, with the causes behind it, and not by its Debug form.

use std::{error::Error, process::ExitCode};

/// Prints the error, if there is one, behind the example's name.
pub(crate) fn ended(example: &str, result: Result<(), Box<dyn Error + Send + Sync>>) -> ExitCode {
    let Err(err) = result else { return ExitCode::SUCCESS };
    let mut text = format!("{example}: {err}");
    let mut cause = err.source();
    while let Some(err) = cause {
        text += &format!(": {err}");
        cause = err.source();
    }
    eprintln!("{text}");
    ExitCode::FAILURE
}
