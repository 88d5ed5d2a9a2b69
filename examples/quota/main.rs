//! Simulates how the calls of a quota are spent, on a paused clock: hours of readers in seconds.
//!
//! `cargo run --locked --example quota -- [ROW…] [--seed 1] [--hours 2] [--plot FILE]`. The real cache, queue and upstream stack run over a
//! model of Unpod. Prints what `docs/quota.md` promises beside what was measured, and what a clairvoyant would reach who knows beforehand
//! how often each page is read. Exits with 1 where a figure is missed.
#![expect(
    clippy::print_stdout,
    reason = "a program that prints what it measured"
)]

mod figures;
mod model;
mod plot;
mod readers;
mod rows;
mod world;

use std::{future::Future, path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;

use crate::{
    figures::{Figure, Wanted},
    rows::{Row, Setting},
};

/// Simulate how the calls of a quota are spent.
#[derive(Debug, Parser)]
struct Arguments {
    /// The rows to run; all of them where none is named.
    rows: Vec<String>,
    /// The seed of all random choices of readers and upstream.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Simulated hours that a row is measured for.
    #[arg(long, default_value_t = 2.0)]
    hours: f64,
    /// Measure the mean age by the number of pages instead, print it as a table and write it there as an SVG plot.
    #[arg(long)]
    plot: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let setting = Setting {
        seed: arguments.seed,
        length: Duration::from_secs_f64(arguments.hours * 3600.0),
    };
    if let Some(file) = arguments.plot {
        std::fs::write(&file, plot::svg(&plot::measure(setting))).expect("the plot can be written");
        return ExitCode::SUCCESS;
    }
    let is_meant = |row: &&Row| {
        arguments.rows.is_empty() || arguments.rows.iter().any(|name| name == row.name)
    };
    println!("seed {}, {} h a row", arguments.seed, arguments.hours);
    println!(
        "{:58} {:>10} {:>10} {:>11}",
        "", "wanted", "measured", "clairvoyant"
    );
    let mut missed = 0;
    for row in rows::ALL.iter().filter(is_meant) {
        println!("{}: {}", row.name, row.about);
        let figures = simulate((row.run)(setting));
        for figure in &figures {
            print_figure(figure);
            missed += usize::from(!figure.is_met());
        }
    }
    println!("{missed} figures missed");
    match missed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Runs on a clock that jumps to the next moment when something happens.
fn simulate<T>(run: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime can be built");
    runtime.block_on(run)
}

fn print_figure(figure: &Figure) {
    let wanted = match figure.wanted {
        Wanted::AtMost(most) => format!("<= {}", short(most)),
        Wanted::AtLeast(least) => format!(">= {}", short(least)),
        Wanted::Within(least, most) => format!("{}..{}", short(least), short(most)),
        Wanted::Any => String::new(),
    };
    let clairvoyant = figure.clairvoyant.map(short).unwrap_or_default();
    let missed = match figure.is_met() {
        true => "",
        false => "  missed",
    };
    let measured = short(figure.measured);
    println!(
        "  {:56} {wanted:>10} {measured:>10} {clairvoyant:>11}{missed}",
        figure.what
    );
}

fn short(number: f64) -> String {
    match number.abs() {
        0.0..10.0 => format!("{number:.2}"),
        10.0..100.0 => format!("{number:.1}"),
        _ => format!("{number:.0}"),
    }
}
