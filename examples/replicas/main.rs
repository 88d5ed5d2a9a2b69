//! Proves that several gateways with one Redis behave as one, while anything may break.
//!
//! `cargo run --locked --example replicas -- --seconds 60 [--seed 1] [--only purge,failover] [--lane quota] [--verbose]`. Two lanes run side by
//! side, one without a quota and one with; each has a simulated upstream, a `redis-server` with a copy, three gateways in processes of their own,
//! and a proxy between each gateway and Redis. Processes are killed, connections cut, data lost, spaces purged and revoked, from a seed; readers
//! of all gateways check every response. Exits with 1 after a wrong one. The seed fixes the order of the faults, not their timing.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that prints what it saw"
)]

mod call;
mod chaos;
mod checks;
#[path = "../soak/client.rs"]
mod client;
mod gateway;
mod lane;
mod operator;
mod process;
mod proxy;
mod reader;
mod recorder;
mod redis_server;
mod tally;
mod truth;
mod watch;

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use unpod_gateway::cli::Cli;

use crate::{lane::Lane, tally::Tally};

/// The gateway's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Run replicas that share a Redis while everything fails, and check every response.
#[derive(Clone, Debug, Parser)]
struct Arguments {
    /// How long to run, in minutes.
    #[arg(long, default_value_t = 0)]
    minutes: u64,
    /// How long to run, in seconds; added to the minutes.
    #[arg(long, default_value_t = 0)]
    seconds: u64,
    /// The seed of all random choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What may happen, by name; everything where none is named. `none`: readers alone.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// The lane to run; both where none is named.
    #[arg(long)]
    lane: Option<String>,
    /// Print what happens, with the time since the start.
    #[arg(long)]
    verbose: bool,
    /// Keep the logs of all processes in this directory.
    #[arg(long)]
    logs: Option<std::path::PathBuf>,
}

impl Arguments {
    /// Whether something may happen.
    fn allows(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }
}

fn main() -> ExitCode {
    // The gateways are this program again.
    if std::env::args()
        .nth(1)
        .is_some_and(|first| first == "serve")
    {
        return Cli::parse().run();
    }
    let arguments = Arguments::parse();
    let length = Duration::from_secs(arguments.minutes * 60 + arguments.seconds);
    let known = |name: &String| {
        let mut names = chaos::names().chain(operator::NAMES).chain(["none"]);
        names.any(|known| known == *name)
    };
    if length.is_zero() || !arguments.only.iter().all(known) {
        let names: Vec<_> = chaos::names().chain(operator::NAMES).collect();
        eprintln!(
            "replicas: give --minutes or --seconds; --only takes any of {}",
            names.join(",")
        );
        return ExitCode::FAILURE;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime can be built");
    if runtime.block_on(run(&arguments, length)) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Whether every check held.
async fn run(arguments: &Arguments, length: Duration) -> bool {
    println!(
        "replicas: {} with seed {}",
        humantime::format_duration(length),
        arguments.seed
    );
    let tally = Tally::new(arguments.verbose);
    let lanes = [lane::FREE, lane::QUOTA].into_iter().filter(|plan| {
        let only = arguments.lane.as_deref();
        only.is_none_or(|only| only == plan.name)
    });
    let tally = &tally;
    let runs = lanes.map(|plan| async move {
        let lane = Lane::start(plan, arguments, tally).await;
        lane.run(length).await;
    });
    futures_util::future::join_all(runs).await;
    tally.print()
}
