//! The daemon's binary: parses the arguments, runs the command, returns the exit status.

use std::process::ExitCode;

/// The effect of this allocator is measured in docs/benchmarks-log.md.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    tls_sessiond::cli::run()
}
