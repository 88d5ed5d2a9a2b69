//! The command line: what each command prints, and the exit code it ends with.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what a command has to say goes to its terminal"
)]

use std::{
    error::Error,
    future::Future,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use clap_complete::Shell;
use tracing::Level;

use self::{
    key::Holder,
    notify::{Progress, ServiceManager},
    signals::Signals,
};
use crate::{
    app::{Gateway, Prepared, StartError},
    config::{Config, Problems},
    simulator::SimulateArgs,
    telemetry,
};

mod check;
mod completions;
mod demo;
mod healthcheck;
mod key;
mod notify;
mod signals;

/// EX_CONFIG of sysexits.h.
const EXIT_CONFIG: u8 = 78;
const EXIT_FAILURE: u8 = 1;
/// Threads for blocking work: compressing pages (at most one a core at once), DNS look-ups and files. With tokio's default of 512, a burst
/// of compressions started them all, and the allocator kept 800 MB for them.
const BLOCKING_THREADS: usize = 64;

/// A caching gateway in front of Unpod's tasks endpoint.
#[derive(Debug, Parser)]
#[command(name = "unpod-gateway", version = env!("UNPOD_GATEWAY_VERSION"))]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway
    Serve(ConfigArgs),
    /// Run a simulated upstream, a gateway and a ready client key on loopback
    Demo(demo::DemoArgs),
    /// Run a simulated upstream alone
    SimulateUpstream(SimulateArgs),
    /// Check a configuration and print the effective one, secrets redacted
    Check(check::CheckArgs),
    /// Create keys
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Check the health of the gateway with this configuration; for containers
    Healthcheck(ConfigArgs),
    /// Print a script by which a shell completes the command line
    Completions { shell: Shell },
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Print a new key once, and the TOML to paste
    New {
        /// The client's name in the configuration
        #[arg(long)]
        client: String,
        /// Create the operators' key, for `[admin]`
        #[arg(long)]
        admin: bool,
    },
    /// Print a new key for auth.browser_tokens.signing_key_file (Ed25519, PEM)
    BrowserSigning,
}

#[derive(Debug, clap::Args)]
struct ConfigArgs {
    /// A TOML file; default: only the defaults and UNPOD_GATEWAY__SECTION__KEY
    #[arg(
        long,
        value_name = "FILE",
        env = "UNPOD_GATEWAY_CONFIG",
        hide_env_values = true
    )]
    config: Option<PathBuf>,
}

impl Cli {
    /// Runs the command to its end.
    #[must_use]
    pub fn run(self) -> ExitCode {
        match self.command {
            Command::Serve(args) => serve(args.config.as_deref()),
            Command::Demo(args) => demo::run(&args),
            Command::SimulateUpstream(args) => simulate(args),
            Command::Check(args) => check::run(&args),
            Command::Key {
                command: KeyCommand::New { client, admin },
            } => key::new(if admin {
                Holder::Operator(&client)
            } else {
                Holder::Client(&client)
            }),
            Command::Key {
                command: KeyCommand::BrowserSigning,
            } => key::browser_signing(),
            Command::Healthcheck(args) => healthcheck::run(args.config.as_deref()),
            Command::Completions { shell } => completions::run(shell),
        }
    }
}

fn serve(file: Option<&Path>) -> ExitCode {
    let draft = Config::draft(file);
    run(draft.workers(), async {
        let mut signals = match Signals::catch() {
            Ok(signals) => signals,
            Err(error) => return failed(&error),
        };
        let prepared = match Prepared::new(draft) {
            Ok(prepared) => prepared,
            Err(problems) => return refused(&problems),
        };
        // To the very end, so that the last lines are written.
        let (log, _writer) = telemetry::init(&prepared.config().telemetry);
        let gateway = match Gateway::start_prepared(prepared, log).await {
            Ok(gateway) => gateway,
            Err(StartError::Config(problems)) => return refused(&problems),
            Err(error @ StartError::Listen { .. }) => return failed(&error),
        };
        let manager = ServiceManager::of_environment();
        manager.tell(Progress::Ready);
        until_told_to_end(&gateway, &mut signals, &manager).await;
        manager.tell(Progress::Stopping);
        tokio::select! {
            complete = gateway.drain() => if complete { ExitCode::SUCCESS } else { EXIT_FAILURE.into() },
            () = signals.next() => EXIT_FAILURE.into(),
        }
    })
}

/// Reloads on each signal. A reload that hangs does not delay the shutdown.
async fn until_told_to_end(gateway: &Gateway, signals: &mut Signals, manager: &ServiceManager) {
    while let Some(()) = signals.reload_or_end().await {
        manager.tell(Progress::Reloading);
        // A failure is logged there, and changes nothing.
        let reloaded = tokio::select! {
            reloaded = gateway.reload("SIGHUP") => reloaded,
            () = signals.next() => return,
        };
        manager.tell(match reloaded {
            Ok(_) => Progress::Ready,
            Err(_) => Progress::ReloadRefused,
        });
    }
}

/// Prints every problem of a configuration.
fn refused(problems: &Problems) -> ExitCode {
    complain(&problems.to_string());
    EXIT_CONFIG.into()
}

fn simulate(args: SimulateArgs) -> ExitCode {
    run(0, async {
        let mut signals = match Signals::catch() {
            Ok(signals) => signals,
            Err(error) => return failed(&error),
        };
        match crate::simulator::Simulator::start(args.options()).await {
            Ok(simulator) => {
                println!("simulated upstream: {}", simulator.base_url());
                println!("what it was asked:  {}/__stats", simulator.base_url());
                signals.next().await;
                simulator.stop().await;
                ExitCode::SUCCESS
            }
            Err(error) => failed(&error),
        }
    })
}

/// Runs `command` on a runtime of `workers` threads; 0 is one per core.
fn run(workers: usize, command: impl Future<Output = ExitCode>) -> ExitCode {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if workers > 0 {
        builder.worker_threads(workers);
    }
    match builder
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()
    {
        Ok(runtime) => {
            let code = runtime.block_on(command);
            // A blocked thread must not delay the exit.
            runtime.shutdown_background();
            code
        }
        Err(error) => failed(&error),
    }
}

/// Prints an error with all its causes.
fn failed(error: &dyn Error) -> ExitCode {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    complain(&format!("unpod-gateway: {text}"));
    EXIT_FAILURE.into()
}

/// Prints why the command fails, as errors where standard error leads to systemd's journal.
fn complain(text: &str) {
    let prefix = telemetry::Priorities::of_stderr().prefix(Level::ERROR);
    for line in text.lines() {
        eprintln!("{prefix}{line}");
    }
}
