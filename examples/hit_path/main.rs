//! Serves hits from memory, so that `.ci/hit-path` can count the instructions of one.
//!
//! `cargo run --release --example hit_path -- 200000` prints the time of one, in user space: the real gateway with all its layers and
//! connections, a simulated upstream that is called once per page, and a client that costs almost nothing. Under callgrind each call of
//! [`counted`] is a separate part: for every row one with N requests and one with twice as many, so that the difference does not include
//! the cost of a connection.
#![expect(
    clippy::print_stdout,
    reason = "a program that prints what it measured"
)]
#![expect(
    clippy::disallowed_types,
    reason = "it measures real time, outside any runtime"
)]

mod client;

use std::{
    convert::Infallible,
    net::Ipv4Addr,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use axum::{Router, extract::Path, routing::get};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::runtime::Runtime;
use tower::Service;
use unpod_gateway::{
    app::Gateway,
    config::Config,
    peer::Peer,
    simulator::{Options, Simulator, gateway, world},
    telemetry,
};

use crate::client::Client;

/// The gateway's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const KEY: &str = "ugw_0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
/// Few enough for callgrind to take seconds, enough to average out the store's occasional housekeeping.
const REQUESTS: usize = 2000;
const SMALL: usize = 2000;

type Conversation = Pin<Box<dyn Future<Output = ()> + Send>>;

fn main() {
    let requests = std::env::args()
        .nth(1)
        .and_then(|argument| argument.parse().ok())
        .unwrap_or(REQUESTS);
    // One thread, on which everything happens but the writing of the log.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be built");
    let simulator = runtime
        .block_on(Simulator::start(Options::default()))
        .expect("a port is free");
    let config = config(&simulator.base_url());
    let (log, _writer) = telemetry::init(&config.telemetry);
    let gateway = runtime
        .block_on(Gateway::start_logging(config, log))
        .expect("the configuration is good");
    measure(
        &runtime,
        "bare hyper, one fixed body of 2 KB",
        &[request(world::SUPPORT, 1, 1, "")],
        requests,
        bare,
    );
    measure(
        &runtime,
        "bare axum, one route of the same path",
        &[request(world::SUPPORT, 1, 1, "")],
        requests,
        bare_axum,
    );
    for (name, asked) in rows(&runtime, &gateway) {
        let converse = |client| gateway.converse(Box::new(client), peer());
        measure(&runtime, name, &asked, requests, converse);
    }
}

/// The defaults, except for settings that let pages expire or be assembled.
fn config(upstream: &str) -> Config {
    let settings = "[server]\nlisten = '127.0.0.1:0'\n[admin]\nlisten = '127.0.0.1:0'\n\
                    [cache]\nttl = '2h'\njitter = 0\nassemble_pages = false\nsettled_ttl = '0s'\n";
    let client = gateway::client("dashboard", KEY, "spaces = ['*']");
    let text = [&gateway::upstream(upstream), settings, &client].concat();
    Config::from_toml(&text).expect("the configuration is good")
}

fn peer() -> Peer {
    Peer::at(Ipv4Addr::LOCALHOST.into())
}

/// The requests of each row; all their pages are stored.
fn rows(runtime: &Runtime, gateway: &Gateway) -> Vec<(&'static str, Vec<Bytes>)> {
    let small = request(world::SUPPORT, 1, 1, "");
    let large = request(world::SUPPORT, 1, 20, "");
    let coded = request(world::SUPPORT, 1, 20, "Accept-Encoding: gzip\r\n");
    let head = store(runtime, gateway, &large);
    let etag = head
        .lines()
        .find_map(|line| line.strip_prefix("etag: "))
        .expect("every page has an entity tag");
    let known = format!("If-None-Match: {etag}\r\n");
    let conditional = request(world::SUPPORT, 1, 20, &known);
    let spread = spread();
    let all = || {
        [&small, &large, &coded, &conditional]
            .into_iter()
            .chain(&spread)
    };
    for request in all() {
        store(runtime, gateway, request);
    }
    // Some headers are recomputed each second: how often would depend on how long the counting takes.
    runtime.block_on(async { tokio::time::pause() });
    for request in all() {
        store(runtime, gateway, request);
    }
    vec![
        ("W1 hit, 2 KB", vec![small]),
        ("W2 hit, 40 KB", vec![large]),
        ("W3 hit, 40 KB, the client takes gzip", vec![coded]),
        ("W4 304", vec![conditional]),
        ("W5 hits, spread over many small pages", spread),
    ]
}

/// Pages of one, two and three tasks, of every space with enough tasks.
fn spread() -> Vec<Bytes> {
    let spaces = [
        (world::SUPPORT, 57),
        (world::ARCHIVE, 45),
        (world::UNICODE, 28),
    ];
    let pages = |(space, tasks): (&'static str, u32)| {
        (1..=3).flat_map(move |size| {
            (1..=tasks / size).map(move |page| request(space, page, size, ""))
        })
    };
    spaces.into_iter().flat_map(pages).collect()
}

fn request(space: &str, page: u32, page_size: u32, more: &str) -> Bytes {
    format!(
        "GET /spaces/{space}/tasks?page={page}&page_size={page_size} HTTP/1.1\r\n\
         Host: gateway.internal:8080\r\nUser-Agent: dashboard/1.0\r\nAccept: */*\r\n\
         Authorization: Token {KEY}\r\n{more}\r\n"
    )
    .into()
}

/// Repeats a request until the page and its compressed variant are stored; returns the head of a hit.
fn store(runtime: &Runtime, gateway: &Gateway, request: &Bytes) -> String {
    let mut head = String::new();
    for _ in 0..3 {
        let (client, got) = Client::new([request.clone()].into(), 1);
        runtime.block_on(gateway.converse(Box::new(client), peer()));
        let answer = String::from_utf8_lossy(&got.first()).into_owned();
        head = answer
            .split("\r\n\r\n")
            .next()
            .unwrap_or_default()
            .to_owned();
    }
    assert!(head.contains("cache-status: unpod-gateway; hit"), "{head}");
    head
}

/// Bare hyper's response: the lower limit for any gateway.
fn bare(client: Client) -> Conversation {
    let body = Bytes::from(vec![b'x'; SMALL]);
    let service = service_fn(move |_: Request<Incoming>| {
        let mut response = Response::new(Full::new(body.clone()));
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        async { Ok::<_, Infallible>(response) }
    });
    Box::pin(async move {
        let served = http1::Builder::new()
            .serve_connection(TokioIo::new(client), service)
            .await;
        served.expect("the client says nothing wrong");
    })
}

/// The same by axum's router and one extractor: what the framework costs by itself.
fn bare_axum(client: Client) -> Conversation {
    let body = Bytes::from(vec![b'x'; SMALL]);
    let page = async move |Path(_): Path<String>| {
        let json = HeaderValue::from_static("application/json");
        ([(header::CONTENT_TYPE, json)], body.clone())
    };
    let router = Router::new().route("/spaces/{space}/tasks", get(page));
    let service = service_fn(move |request: Request<Incoming>| router.clone().call(request));
    Box::pin(async move {
        let served = http1::Builder::new()
            .serve_connection(TokioIo::new(client), service)
            .await;
        served.expect("the client says nothing wrong");
    })
}

/// Prints the time per request of `asked`.
fn measure(
    runtime: &Runtime,
    name: &str,
    asked: &[Bytes],
    requests: usize,
    converse: impl Fn(Client) -> Conversation,
) {
    let asked: Arc<[Bytes]> = asked.into();
    let took = [requests, 2 * requests].map(|requests| {
        let (client, got) = Client::new(asked.clone(), requests);
        let conversation = converse(client);
        let began = Instant::now();
        counted(runtime, conversation);
        let took = began.elapsed();
        assert_eq!(got.answers.load(Ordering::Relaxed), requests, "{name}");
        took
    });
    let each = took[1].saturating_sub(took[0]).as_nanos() / requests as u128;
    println!("{name}\t{requests}\t{each} ns");
}

/// Serves a connection in a task of its own, as the server does. Callgrind finds it by its name.
#[inline(never)]
fn counted(runtime: &Runtime, conversation: Conversation) {
    runtime
        .block_on(async { tokio::spawn(conversation).await })
        .expect("no connection ends in a bug");
}
