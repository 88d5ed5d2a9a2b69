//! Runs gateways against upstreams that keep failing, with clients that check every response.
//!
//! `cargo run --release --example soak -- --minutes 20 [--seed 7]`, or `--seconds 60`. One process runs two lanes, each with a simulated
//! upstream, a fault proxy, a gateway and its clients: one with the default limits, one with a quota. Faults in responses and on the wire
//! come and go at random, from a seed, and the upstream's clock is often wrong; an operator purges, clients disconnect at any point, readers
//! stall, clients half-close, and proxies pass on spoofed addresses. At the end the faults stop, every page must be available again, and no
//! request may be left in flight. Exits with 1 after a wrong response, or if memory grew.
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

/// By how many percent resident memory may exceed its peak during warm-up: allocators do not return all freed memory.
const MEMORY_SLACK_PERCENT: usize = 20;
/// The longest warm-up.
const WARM_UP: Duration = Duration::from_secs(60);
/// Interval of progress lines.
const PROGRESS: Duration = Duration::from_secs(60);

/// Run gateways against failing upstreams and check every response.
#[derive(Debug, Parser)]
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

/// Whether the run succeeded.
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
