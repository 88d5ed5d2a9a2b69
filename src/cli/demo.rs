//! `demo`: a simulated upstream, a gateway before it and a ready client key, all on loopback.

use std::{num::NonZeroU64, process::ExitCode, time::Duration};

use tokio::sync::mpsc;

use super::{failed, signals::Signals};
use crate::{
    app::{Gateway, StartError},
    config::{Config, value::ListenAddress},
    simulator::{Options, Simulator, gateway, world},
    telemetry::{self, Log, LogWriter},
};

mod requests;

use self::requests::Lines;

/// Only for the demo: it is printed, documented, and valid on loopback only.
const DEMO_KEY: &str = "ugw_demo_key_for_loopback_only";
const DATA_PORT: u16 = 8080;
const ADMIN_PORT: u16 = 9090;
/// How many ports after the usual one are tried.
const PORTS_TRIED: u16 = 20;
const NEW_TASK_EVERY: Duration = Duration::from_secs(10);

/// The spaces of the simulated upstream, and what is in them.
const SPACES: [(&str, &str); 9] = [
    (world::SUPPORT, "57 tasks"),
    (world::TRANSCRIPTS, "big pages"),
    (world::ARCHIVE, "every task settled"),
    (world::UNICODE, "text and numbers that break careless code"),
    (world::LIVE, "a new task every ten seconds"),
    (world::EMPTY, "no task at all"),
    (world::POISON, "its first page fails"),
    (world::GLOBEX_SPACE, "somebody else's"),
    (world::UNKNOWN_SPACE, "does not exist"),
];

#[derive(Debug, clap::Args)]
pub(super) struct DemoArgs {
    /// The gateway's port, 0 for any free one; default: 8080, or the next free one
    #[arg(long)]
    port: Option<u16>,
    /// End after this many requests
    #[arg(long, value_name = "COUNT")]
    exit_after: Option<NonZeroU64>,
}

pub(super) fn run(args: &DemoArgs) -> ExitCode {
    super::run(0, async {
        let mut signals = match Signals::catch() {
            Ok(signals) => signals,
            Err(error) => return failed(&error),
        };
        let options = Options {
            new_task_every: Some(NEW_TASK_EVERY),
            latency: Duration::from_millis(80),
            ..Options::default()
        };
        let simulator = match Simulator::start(options).await {
            Ok(simulator) => simulator,
            Err(error) => return failed(&error),
        };
        let (tell, requests) = mpsc::unbounded_channel();
        let mut log = None;
        let gateway = match start_gateway(&simulator.base_url(), args.port, &tell, &mut log).await {
            Ok(gateway) => gateway,
            Err(error) => return failed(&error),
        };
        describe(&simulator, &gateway);
        tokio::select! {
            () = signals.next() => {}
            () = print_requests(requests, args.exit_after) => {}
        }
        println!("\nending");
        gateway.drain().await;
        simulator.stop().await;
        ExitCode::SUCCESS
    })
}

/// Prints each line as it comes; ends after `most` of them.
async fn print_requests(mut lines: mpsc::UnboundedReceiver<String>, most: Option<NonZeroU64>) {
    let mut printed = 0;
    while most.is_none_or(|most| printed < most.get())
        && let Some(line) = lines.recv().await
    {
        println!("{line}");
        printed += 1;
    }
}

/// Starts on `port`, or on the usual ports, or the next free ones; logs for as long as `log` lives, and tells each request to `tell`.
async fn start_gateway(
    upstream: &str,
    port: Option<u16>,
    tell: &mpsc::UnboundedSender<String>,
    log: &mut Option<LogWriter>,
) -> Result<Gateway, StartError> {
    let mut refused = None;
    for offset in 0..PORTS_TRIED {
        let (data, admin) = match port {
            Some(0) => (0, 0),
            Some(port) => (port, ADMIN_PORT + offset),
            None => (DATA_PORT + offset, ADMIN_PORT + offset),
        };
        let config = demo_config(upstream, data, admin)?;
        // The demo has no file to reload.
        log.get_or_insert_with(|| telemetry::init(&config.telemetry).1);
        let lines = Lines::of_spaces(SPACES.iter().map(|(space, _)| *space));
        let tell = tell.clone();
        let requests = Log::default().telling(move |request| {
            // Nobody listens any more once the demo ends.
            let _ = tell.send(lines.line(request));
        });
        let wanted = config.server.listen.clone();
        match Gateway::start_logging(config, requests).await {
            Err(StartError::Listen { address, source })
                if source.kind() == std::io::ErrorKind::AddrInUse
                    && (port.is_none() || address != wanted) =>
            {
                refused = Some(StartError::Listen { address, source });
            }
            other => return other,
        }
    }
    Err(refused.expect("each try that did not return was refused an address"))
}

fn demo_config(upstream: &str, data: u16, admin: u16) -> Result<Config, StartError> {
    let settings = format!(
        r#"
        [server]
        listen = "127.0.0.1:{data}"
        drain_delay = "0s"
        drain_timeout = "2s"
        [admin]
        listen = "127.0.0.1:{admin}"
        [telemetry]
        format = "pretty"
        filter = "warn"
        "#
    );
    let client = gateway::client("demo", DEMO_KEY, "spaces = ['*']\nmay_refresh = true");
    let text = [gateway::upstream(upstream), settings, client].concat();
    Ok(Config::from_toml(&text)?)
}

fn describe(simulator: &Simulator, gateway: &Gateway) {
    let ListenAddress::Tcp(data) = gateway.data_address() else {
        return;
    };
    println!("gateway:    http://{data}");
    println!("dashboard:  http://{}/", gateway.admin_address());
    println!(
        "upstream:   {} (simulated; /__stats counts its calls)",
        simulator.base_url()
    );
    println!("client key: {DEMO_KEY}");
    println!("\nspaces to try:");
    for (space, what) in SPACES {
        println!("  {space}  {what}");
    }
    println!("\ntry, twice:");
    println!(
        "  curl -i -H 'Authorization: Token {DEMO_KEY}' 'http://{data}/spaces/{}/tasks?page=1&page_size=2'",
        world::SUPPORT
    );
    println!("\nCtrl-C ends it. Requests: status, cache or error, upstream calls, time\n");
}
