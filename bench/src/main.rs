//! Measures the gateway beside nginx, Varnish, HAProxy and bare hyper. `bench/run` builds everything and starts it.
//!
//! Rounds of the servers are interleaved; ratios are taken within a round, and their median counts. The method: `docs/performance.md`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

mod chart;
mod check;
mod limit;
mod load;
mod measure;
mod pages;
mod report;
mod request;
mod rows;
mod server;
mod upstream;
mod usage;

use crate::{
    limit::LimitArgs,
    load::Result,
    measure::{Effort, Measure},
    rows::ROWS,
    server::{Bench, Certificate, Machine},
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
    /// Measure only these rows, such as `W1,T2`.
    #[arg(long, value_delimiter = ',', value_parser = row_id)]
    only: Vec<String>,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Write the ratios to nginx as an SVG chart.
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,
    /// The gateway as shipped.
    #[arg(long, default_value = "target/guided/unpod-gateway")]
    gateway: PathBuf,
    /// The gateway as `cargo build --release` makes it.
    #[arg(long, default_value = "target/release/unpod-gateway")]
    release: PathBuf,
    /// Folder for the servers' configurations.
    #[arg(long, default_value = "target/bench/work")]
    work: PathBuf,
    /// The core of servers with one worker; those with two share both.
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

fn row_id(id: &str) -> std::result::Result<String, String> {
    if ROWS.iter().any(|row| row.id == id) {
        return Ok(id.to_owned());
    }
    let known: Vec<_> = ROWS.iter().map(|row| row.id).collect();
    Err(format!("rows are {}", known.join(", ")))
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ran = match &cli.command {
        Some(Role::Limit(args)) => limit::run(args),
        None => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Into::into)
            .and_then(|runtime| runtime.block_on(run(&cli))),
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: &Cli) -> Result<()> {
    let bench = Bench {
        gateway: std::path::absolute(&cli.gateway)?,
        release: std::path::absolute(&cli.release)?,
        work: std::path::absolute(&cli.work)?,
        machine: Machine {
            server_cpu: cli.server_cpu,
            own_cpu: cli.own_cpu,
        },
        certificate: Certificate::new()?,
    };
    let effort = if cli.check {
        Effort::short()
    } else {
        Effort::full(cli.rounds.max(1))
    };
    let measure = Measure {
        bench: &bench,
        upstream: &Upstream::start()?,
        effort,
    };
    let mut results = Vec::new();
    for row in &ROWS {
        if !cli.only.is_empty() && !cli.only.iter().any(|id| id == row.id) {
            continue;
        }
        let measured = measure.row(row).await;
        results.push(measured.map_err(|error| format!("{}: {error}", row.id))?);
        eprintln!("{}: done", row.id);
    }
    let markdown = report::markdown(&results, effort.rounds);
    let chart = chart::bars(&results);
    // A check makes them too, which must work as well, but keeps nothing.
    if cli.check {
        return Ok(());
    }
    print!("{markdown}");
    write(Path::new("target/bench/results.md"), &markdown)?;
    match &cli.chart {
        Some(path) => write(path, &chart),
        None => Ok(()),
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    Ok(fs::write(path, text)?)
}
