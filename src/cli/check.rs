//! `check`: whether a configuration would be served, and what would run; with `--online` also what the upstream says of its credentials.

use std::{path::Path, process::ExitCode};

use super::{failed, refused};
use crate::{app::Prepared, config::Config};

mod summary;

/// EX_UNAVAILABLE of sysexits.h: the configuration is valid, but the upstream refuses it or does not answer.
const EXIT_UPSTREAM: u8 = 69;

#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    config: super::ConfigArgs,
    /// Ask the upstream, with one call for each credential; exit 69 where one fails
    #[arg(long)]
    online: bool,
}

/// Does everything that `serve` does before it binds an address.
pub(super) fn run(args: &CheckArgs) -> ExitCode {
    // On this thread: without `--online` nothing is contacted.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(check(args.config.config.as_deref(), args.online)),
        Err(error) => failed(&error),
    }
}

async fn check(file: Option<&Path>, is_online: bool) -> ExitCode {
    let prepared = match Prepared::new(Config::draft(file)) {
        Ok(prepared) => prepared,
        Err(problems) => return refused(&problems),
    };
    println!("{}", prepared.config().effective());
    print!("{}", summary::of(prepared.config()));
    for warning in prepared.warnings() {
        eprintln!("warning: {warning}");
    }
    if is_online && !ask_upstream(&prepared).await {
        return EXIT_UPSTREAM.into();
    }
    println!("OK");
    ExitCode::SUCCESS
}

/// Prints what the upstream says. Returns whether it takes every credential.
async fn ask_upstream(prepared: &Prepared) -> bool {
    let all = prepared.ask_upstream().await;
    let mut is_well = true;
    for asked in &all {
        match &asked.verdict {
            Ok(text) => println!("{:<13} {}: {text}", "online:", asked.key),
            Err(text) => {
                is_well = false;
                eprintln!("{}: {text}", asked.key);
            }
        }
        for warning in &asked.warnings {
            eprintln!("warning: {warning}");
        }
    }
    println!(
        "{:<13} it cost {} of the upstream's calls",
        "online:",
        all.len()
    );
    is_well
}
