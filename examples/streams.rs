//! Measures what a thousand streams of one space cost, how soon all hear of a change, and whether a drain ends them.
//!
//! `cargo run --locked --example streams -- --streams 1000` starts a gateway in a process of its own, whose memory it reads from `/proc`; the
//! clients and the simulator are in this one. Exits with 1 where a stream takes more than 20 KB, where more calls are made than one watch makes,
//! where a stream does not hear of the change, or where the drain does not end them all. What is measured hardly depends on the profile.
#![expect(
    clippy::print_stdout,
    reason = "a program that prints what it measured"
)]

#[path = "replicas/process.rs"]
mod process;
#[path = "soak/resident.rs"]
mod resident;

use std::{fs::File, net::SocketAddr, process::ExitCode, time::Duration};

use clap::Parser;
use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use unpod_gateway::{
    cli::Cli,
    server::descriptors,
    simulator::{Options, Simulator, gateway, world},
};

use crate::{process::Process, resident::resident};

/// The gateway's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const KEY: &str = "ugw_example";
const PATIENCE: Duration = Duration::from_secs(60);
/// The most memory that a stream may take, with its connection.
const MOST_BYTES: usize = 20 << 10;
/// How often a watch reads a range.
const POLL: Duration = Duration::from_secs(10);

/// Measure what streams of changes cost.
#[derive(Clone, Debug, Parser)]
struct Arguments {
    #[arg(long, default_value_t = 1000)]
    streams: usize,
}

fn config(upstream: &str) -> String {
    let settings = r#"
        server.listen = "127.0.0.1:0"
        server.drain_delay = "0s"
        admin.listen = "127.0.0.1:0"
        telemetry.format = "json"
        telemetry.access_log = false
        changes.max_streams_per_client = 100000
        changes.max_streams = 100000
        "#;
    let client = gateway::client("reader", KEY, "spaces = ['*']\nmay_refresh = true");
    [&gateway::upstream(upstream), settings, &client].concat()
}

/// A stream of changes, of which nothing is kept but the end.
struct Reader {
    io: TcpStream,
    tail: Vec<u8>,
}

impl Reader {
    async fn open(address: SocketAddr) -> Self {
        let request = request("changes", "Accept: text/event-stream");
        let io = send(address, &request).await;
        let tail = Vec::new();
        let mut reader = Self { io, tail };
        assert!(reader.reads("space.synced").await, "it begins");
        reader
    }

    /// Reads until `text` has come; `false` where the stream ends before.
    async fn reads(&mut self, text: &str) -> bool {
        loop {
            let mut bytes = [0; 512];
            let read = timeout(PATIENCE, self.io.read(&mut bytes)).await;
            match read.expect("something comes") {
                Ok(0) | Err(_) => return false,
                Ok(read) => self.tail.extend_from_slice(&bytes[..read]),
            }
            if String::from_utf8_lossy(&self.tail).contains(text) {
                self.tail = Vec::new();
                return true;
            }
            let keep = self.tail.len().min(text.len());
            self.tail.drain(..self.tail.len() - keep);
        }
    }
}

/// A request for what a space has under `path`.
fn request(path: &str, line: &str) -> String {
    format!(
        "GET /spaces/{}/{path} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Token {KEY}\r\n{line}\r\n\r\n",
        world::SUPPORT
    )
}

async fn send(address: SocketAddr, request: &str) -> TcpStream {
    let mut io = TcpStream::connect(address).await.expect("it listens");
    io.write_all(request.as_bytes()).await.expect("it reads");
    io
}

/// Has the space's first range read again.
async fn refresh(address: SocketAddr) {
    let line = "Cache-Control: no-cache\r\nConnection: close";
    let mut io = send(address, &request("tasks?page_size=100", line)).await;
    let mut answer = Vec::new();
    io.read_to_end(&mut answer).await.expect("it answers");
}

fn main() -> ExitCode {
    // The gateway is this program again.
    if std::env::args()
        .nth(1)
        .is_some_and(|first| first == "serve")
    {
        return Cli::parse().run();
    }
    let Arguments { streams } = Arguments::parse();
    let _ = descriptors::raise_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = { runtime }.enable_all().build();
    match runtime
        .expect("a runtime can be built")
        .block_on(run(streams.max(2)))
    {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Whether every figure is as it should be.
async fn run(streams: usize) -> bool {
    let simulator = Simulator::start(Options::default()).await.expect("a port");
    let upstream = simulator.control();
    let directory = tempfile::tempdir().expect("a directory of its own");
    let file = directory.path().join("gateway.toml");
    std::fs::write(&file, config(&simulator.base_url())).expect("the directory is ours");
    let log = File::create(directory.path().join("log")).expect("the directory is ours");
    let process = Process::start(&file, log).await.expect("a gateway starts");
    let id = process.child.id().expect("it runs").to_string();
    let address = process.addresses.data;
    println!("its metrics: http://{}/metrics", process.addresses.admin);

    let began = Instant::now();
    // The first costs what all share.
    let mut readers = vec![Reader::open(address).await];
    let before = resident(&id);
    readers.extend(join_all((1..streams).map(|_| Reader::open(address))).await);
    sleep(Duration::from_secs(3)).await;
    let each = resident(&id).saturating_sub(before) / (streams - 1);
    let is_small = each <= MOST_BYTES;
    println!(
        "{streams} streams: {:.1} KB each, at most 20",
        kilobytes(each)
    );
    upstream.add_task(world::SUPPORT);
    refresh(address).await;
    let filled = Instant::now();
    let told = readers
        .iter_mut()
        .map(|reader| reader.reads("task.created"));
    let told = join_all(told)
        .await
        .into_iter()
        .filter(|told| *told)
        .count();
    println!(
        "told of a change: {told}, the last {:?} after the fill",
        filled.elapsed()
    );
    // One to begin with, one to see the change, and one for each interval.
    let calls = upstream.requests();
    let most = 2 + began.elapsed().div_duration_f64(POLL).ceil() as u64;
    println!("calls: {calls}, at most {most}");

    let drained = Instant::now();
    let end = process.end("-TERM").await;
    let ended = join_all(readers.iter_mut().map(|reader| reader.reads("nothing"))).await;
    let ended = ended.iter().filter(|more| !**more).count();
    println!(
        "drained in {:?}: {end:?}, streams ended: {ended}",
        drained.elapsed()
    );
    is_small && told == streams && calls <= most && end.is_ok() && ended == streams
}

fn kilobytes(bytes: usize) -> f64 {
    bytes as f64 / 1024.0
}
