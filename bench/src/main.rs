//! Measures the gateway beside nginx, Varnish, HAProxy and bare hyper. `bench/run` builds everything and starts it.
//!
//! One core is for the server, one for the load generator and the upstream. Rounds of the servers are interleaved; ratios are taken within
//! a round, and their median counts. The method: `docs/performance.md`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use serde_json::json;

mod chart;
mod check;
mod client;
mod histogram;
mod limit;
mod load;
mod markdown;
mod measure;
mod pages;
mod reader;
mod request;
mod results;
mod rows;
mod server;
mod upstream;
mod usage;

use crate::{
    limit::LimitArgs,
    measure::{Effort, Measure},
    results::RowResult,
    rows::{ROWS, Row},
    server::{Bench, Cores, Machine},
    upstream::Upstream,
};

/// The gateway's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, Parser)]
#[command(name = "bench/run", about = "Measures the gateway beside its peers")]
struct Cli {
    #[command(subcommand)]
    command: Option<Role>,
    /// Verify every server and run each row briefly; the results mean nothing.
    #[arg(long)]
    check: bool,
    /// Measure only these rows, such as `W1,W4`.
    #[arg(long, value_delimiter = ',', value_parser = row_id)]
    only: Vec<String>,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Write the throughput as an SVG chart.
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,
    /// Write the growth row as an SVG chart.
    #[arg(long, value_name = "FILE")]
    growth: Option<PathBuf>,
    /// Write the results as Markdown tables [default: target/bench/results.md].
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Write the results as JSON [default: target/bench/results.json].
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[arg(long, default_value = "target/release/unpod-gateway")]
    gateway: PathBuf,
    /// Folder for the servers' configurations and logs.
    #[arg(long, default_value = "target/bench/work")]
    work: PathBuf,
    /// The core of the servers.
    #[arg(long)]
    server_cpu: Option<u32>,
    /// The core of the load generator and the upstream.
    #[arg(long)]
    own_cpu: Option<u32>,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Runs a hyper server to compare with.
    #[command(hide = true)]
    Limit(LimitArgs),
}

fn row_id(id: &str) -> Result<String, String> {
    if ROWS.iter().any(|row| row.id == id) {
        return Ok(id.to_owned());
    }
    let known: Vec<_> = ROWS.iter().map(|row| row.id).collect();
    Err(format!("rows are {}", known.join(", ")))
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ran = match &cli.command {
        Some(Role::Limit(args)) => limit::run(args).map_err(|error| error.to_string()),
        None => run(&cli),
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<(), String> {
    let machine = Machine {
        server_cpu: cli.server_cpu,
        own_cpu: cli.own_cpu,
    };
    machine
        .place_own(Cores::One)
        .map_err(|error| error.to_string())?;
    let upstream = Upstream::start().map_err(|error| format!("upstream: {error}"))?;
    let bench = Bench {
        gateway: absolute(&cli.gateway)?,
        work: absolute(&cli.work)?,
        machine,
        keep_logs: cli.check,
    };
    let effort = if cli.check {
        Effort::short()
    } else {
        Effort::full(cli.rounds.max(1))
    };
    let measure = Measure {
        bench: &bench,
        upstream: &upstream,
        effort,
    };
    let is_wanted = |row: &&Row| cli.only.is_empty() || cli.only.iter().any(|id| id == row.id);
    let mut results = Vec::new();
    for row in ROWS.iter().filter(is_wanted) {
        let result = measure.row(row)?;
        if cli.check {
            println!("{}: works", row.id);
        } else {
            print!("{}", result.table());
        }
        results.push(result);
    }
    // A check writes them too, which must work as well, but not in the place of what was measured.
    let folder = if cli.check {
        &cli.work
    } else {
        Path::new("target/bench")
    };
    let place =
        |given: &Option<PathBuf>, name: &str| given.clone().unwrap_or_else(|| folder.join(name));
    let (json, markdown) = (
        place(&cli.json, "results.json"),
        place(&cli.markdown, "results.md"),
    );
    write(&json, &as_json(effort.rounds, &results))?;
    write(&markdown, &markdown::tables(&results, effort.rounds))?;
    if let Some(path) = &cli.chart {
        write(path, &chart::throughput(&results))?;
    }
    if let Some(path) = &cli.growth {
        write(path, &chart::growth(&results))?;
    }
    if cli.check {
        return Ok(());
    }
    let (met, missed) = results
        .iter()
        .map(RowResult::marks)
        .fold((0, 0), |(met, missed), (one_met, one_missed)| {
            (met + one_met, missed + one_missed)
        });
    println!(
        "\nmarks met: {met}, missed: {missed}; {}, {}",
        json.display(),
        markdown.display()
    );
    Ok(())
}

fn as_json(rounds: usize, results: &[RowResult]) -> String {
    let rows: Vec<_> = results.iter().map(RowResult::json).collect();
    let all = json!({ "rounds": rounds, "rows": rows });
    let mut text = serde_json::to_string_pretty(&all).expect("its keys are strings");
    text.push('\n');
    text
}

fn absolute(path: &Path) -> Result<PathBuf, String> {
    std::path::absolute(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    let written = path
        .parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::write(path, text));
    written.map_err(|error| format!("{}: {error}", path.display()))
}
