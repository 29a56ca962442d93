//! The daemon's binary: parse, dispatch, exit status.

use std::process::ExitCode;

/// What it is worth is in docs/benchmarks.md.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    tls_sessiond::cli::run()
}
