//! Reads the command line, runs the command, picks the exit code.

use std::process::ExitCode;

use clap::Parser;
use unpod_gateway::cli::Cli;

/// A fifth less time on a miss than the system's, and it gives freed pages back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    Cli::parse().run()
}
