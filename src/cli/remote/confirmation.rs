//! Questions to a person on the terminal, before something that cannot be undone.

use std::io::{self, BufRead, IsTerminal, Write};

use super::{failure::Failure, text::escaped};

/// Asks a question on the terminal, and returns the line of the answer. `command` is the word that the
/// error names.
///
/// # Errors
/// There is no terminal, or it cannot be read or written.
pub(super) fn answer_to(question: &str, command: &str) -> Result<String, Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::Usage(format!(
            "stdin is not a terminal, so {command} needs --yes"
        )));
    }
    let mut answer = String::new();
    let mut stderr = io::stderr();
    write!(stderr, "{} ", escaped(question))
        .and_then(|()| stderr.flush())
        .and_then(|()| io::stdin().lock().read_line(&mut answer))
        .map_err(|err| Failure::No(format!("cannot ask for a confirmation: {err}")))?;
    Ok(answer)
}
