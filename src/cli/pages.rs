//! Completion scripts and manual pages, made from the same definition as the help.

use std::{fs, io, path::Path};

use clap::CommandFactory;
use clap_complete::generate;

use super::{Cli, Shell, say};

/// The name of the binary.
const NAME: &str = "tls-sessiond";

/// Prints the completion script of a shell.
pub(super) fn completions(shell: Shell) {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), NAME, &mut script);
    say(io::stdout(), &String::from_utf8_lossy(&script));
}

/// Writes `tls-sessiond.1` and a page for each command into a folder, which is made if it is
/// missing.
///
/// # Errors
/// The folder or a page cannot be written.
pub(super) fn manual(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    clap_mangen::generate_to(Cli::command(), folder)
}
