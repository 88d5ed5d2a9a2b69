//! Reads the command line, runs the command, picks the exit code.

use std::process::ExitCode;

use clap::Parser;
use unpod_gateway::cli::Cli;

fn main() -> ExitCode {
    Cli::parse().run()
}
