//! The daemon's binary: parse, dispatch, exit status.

use std::process::ExitCode;

fn main() -> ExitCode {
    tls_sessiond::cli::run()
}
