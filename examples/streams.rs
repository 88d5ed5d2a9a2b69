//! Measures what a thousand streams of one space cost, how soon all hear of a change, and whether a drain ends them.
//!
//! `cargo run --release --example streams -- --streams 1000` starts a gateway and a simulator in this process, and prints what it measured.
//! The memory includes the clients, which have a socket each and a buffer of 512 bytes.
#![expect(
    clippy::print_stdout,
    reason = "a program that prints what it measured"
)]

#[path = "soak/resident.rs"]
mod resident;

use std::{net::SocketAddr, time::Duration};

use futures_util::future::join_all;
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use unpod_gateway::{
    app::Gateway,
    config::{Config, value::ListenAddress},
    simulator::{Options, Simulator, world},
};

use crate::resident::resident;

/// The gateway's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const KEY: &str = "ugw_example";
const STREAMS: usize = 1000;
const PATIENCE: Duration = Duration::from_secs(60);

fn config(upstream: &str) -> String {
    let digest: String = Sha256::digest(KEY)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!(
        r#"
        [server]
        listen = "127.0.0.1:0"
        drain_delay = "0s"
        [admin]
        listen = "127.0.0.1:0"
        [telemetry]
        filter = "off"
        [upstream]
        base_url = "{upstream}"
        [upstream.credentials.default]
        token = "{token}"
        org_handle = "{organization}"
        [changes]
        max_streams_per_client = 100000
        max_streams = 100000
        [[clients]]
        name = "reader"
        key_sha256 = ["{digest}"]
        spaces = ["*"]
        may_refresh = true
        "#,
        token = world::ACME_TOKEN,
        organization = world::ACME,
    )
}

/// A stream of changes, of which nothing is kept but the end.
struct Reader {
    io: TcpStream,
    tail: Vec<u8>,
}

impl Reader {
    async fn open(address: SocketAddr) -> Self {
        let mut io = TcpStream::connect(address).await.expect("it listens");
        let request = format!(
            "GET /spaces/{}/changes HTTP/1.1\r\nHost: gateway\r\nAuthorization: Token {KEY}\r\n\
             Accept: text/event-stream\r\n\r\n",
            world::SUPPORT
        );
        io.write_all(request.as_bytes()).await.expect("it reads");
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

async fn refresh(address: SocketAddr) {
    let mut io = TcpStream::connect(address).await.expect("it listens");
    let request = format!(
        "GET /spaces/{}/tasks?page_size=100 HTTP/1.1\r\nHost: gateway\r\nAuthorization: Token {KEY}\r\n\
         Cache-Control: no-cache\r\nConnection: close\r\n\r\n",
        world::SUPPORT
    );
    io.write_all(request.as_bytes()).await.expect("it reads");
    let mut answer = Vec::new();
    io.read_to_end(&mut answer).await.expect("it answers");
}

#[tokio::main]
async fn main() {
    let streams = std::env::args().skip_while(|argument| argument != "--streams");
    let streams = streams.skip(1).find_map(|number| number.parse().ok());
    let streams: usize = streams.unwrap_or(STREAMS);
    let simulator = Simulator::start(Options::default()).await.expect("a port");
    let upstream = simulator.control();
    let config = Config::from_toml(&config(&simulator.base_url())).expect("a configuration");
    let gateway = Gateway::start(config).await.expect("it starts");
    let ListenAddress::Tcp(address) = *gateway.data_address() else {
        panic!("it listens on TCP");
    };
    // The first costs what all share.
    let mut readers = vec![Reader::open(address).await];
    let before = resident();
    readers.extend(join_all((1..streams).map(|_| Reader::open(address))).await);
    sleep(Duration::from_secs(3)).await;
    let each = resident().saturating_sub(before) / streams.max(1);
    println!("{streams} streams: {each} bytes each, clients included");
    println!("calls to open them: {}", upstream.requests());

    upstream.add_task(world::SUPPORT);
    refresh(address).await;
    let filled = Instant::now();
    let told = join_all(
        readers
            .iter_mut()
            .map(|reader| reader.reads("task.created")),
    )
    .await;
    let took = filled.elapsed();
    let told = told.iter().filter(|told| **told).count();
    println!("told of a change: {told}, the last {took:?} after the fill");
    println!("calls since: {}", upstream.requests());

    let drained = Instant::now();
    let complete = gateway.drain().await;
    let ended = join_all(readers.iter_mut().map(|reader| reader.reads("nothing"))).await;
    let ended = ended.iter().filter(|more| !**more).count();
    println!(
        "drained in {:?}: complete {complete}, streams ended {ended}",
        drained.elapsed()
    );
}
