//! Runs gateways before upstreams that keep failing, with clients that check every answer.
//!
//! `cargo run --release --example soak -- --minutes 20 [--seed 7]`, or `--seconds 60`. One process holds two lanes, each a simulated
//! upstream, a fault proxy, a gateway, and its clients: one with the limits of the shipped configuration, one with a call quota.
//! Faults of both kinds come and go by a seeded chance, and the upstream's clock is often wrong; an operator purges, clients leave at any
//! point, readers stall, clients half-close, and proxies pass on made-up addresses. In the end the faults stop, every page must be had
//! again, and nothing may be left under way. Exits with 1 after a wrong answer, or where memory grew.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that prints what it saw"
)]

mod ask;
mod client;
mod lane;
mod report;
mod resident;
mod rough;
mod truth;
mod weather;

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use tokio::time::Instant;

use crate::{lane::Lane, report::Report};

/// The gateway's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Resident memory may lie this many percent above its highest in the warm-up: an allocator keeps what it was given back.
const MEMORY_SLACK_PERCENT: usize = 20;
/// The longest warm-up.
const WARM_UP: Duration = Duration::from_secs(60);
/// How often a line tells how far it is.
const PROGRESS: Duration = Duration::from_secs(60);

/// Run gateways before failing upstreams and check every answer.
#[derive(Debug, Parser)]
struct Arguments {
    /// How long to run, in minutes.
    #[arg(long, default_value_t = 0)]
    minutes: u64,
    /// How long to run, in seconds; added to the minutes.
    #[arg(long, default_value_t = 0)]
    seconds: u64,
    /// What chance follows from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let length = Duration::from_secs(arguments.minutes * 60 + arguments.seconds);
    if length.is_zero() {
        eprintln!("soak: give --minutes or --seconds");
        return ExitCode::FAILURE;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime can be built");
    if runtime.block_on(soak(length, arguments.seed)) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Whether all went well.
async fn soak(length: Duration, seed: u64) -> bool {
    println!(
        "soak: {} with seed {seed}",
        humantime::format_duration(length)
    );
    let report = Report::default();
    let mut lanes = [
        Lane::start(lane::FREE, seed, &report).await,
        Lane::start(lane::QUOTA, seed + 1, &report).await,
    ];
    let began = Instant::now();
    report.watch_warm_up(WARM_UP.min(length / 4)).await;
    let mut next_line = began + PROGRESS;
    while began.elapsed() < length {
        tokio::time::sleep_until(next_line.min(began + length)).await;
        report.print_progress(began.elapsed());
        next_line += PROGRESS;
    }
    for lane in &mut lanes {
        lane.calm_down(&report).await;
    }
    report.note_end();
    let mut left = Vec::new();
    for lane in lanes {
        left.push(lane.end().await);
    }
    report.print(left, MEMORY_SLACK_PERCENT)
}
