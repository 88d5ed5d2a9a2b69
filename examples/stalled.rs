//! Measures the memory that silent clients, and clients that do not read, make the gateway hold.
//!
//! `cargo run --release --example stalled -- --connections 1000` starts a gateway in this process, opens that many connections of each
//! kind at once, and prints resident memory before, at its peak, with and after them. It includes the clients, which have a socket each and
//! no buffer.
#![expect(
    clippy::print_stdout,
    reason = "a program that prints what it measured"
)]

#[path = "soak/resident.rs"]
mod resident;

use std::{net::SocketAddr, pin::pin, time::Duration};

use futures_util::future::join_all;
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    time::{sleep, timeout},
};
use unpod_gateway::{
    app::Gateway,
    config::{Config, value::ListenAddress},
    simulator::{Options, Simulator, gateway, world},
};

use crate::resident::resident;

/// The gateway's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const KEY: &str = "ugw_example";
const VIEWED: &str = "ugw_example_viewed";
const CONNECTIONS: usize = 1000;
/// Within `send_timeout` and `header_read_timeout`.
const SETTLE: Duration = Duration::from_secs(3);

/// What a client does.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Silent,
    HalfAHeader,
    SlowReader,
    /// HTTP/2 with a window of 0, and as many unsent error responses as allowed.
    Refusals,
    /// More than allowed: the connection is closed.
    ManyRefusals,
    /// As many streams as allowed, of a stored page.
    Pages,
    /// The same for a view of a page.
    ViewedPages,
}

impl Kind {
    const ALL: [Self; 7] = [
        Self::Silent,
        Self::HalfAHeader,
        Self::SlowReader,
        Self::Refusals,
        Self::ManyRefusals,
        Self::Pages,
        Self::ViewedPages,
    ];

    fn sends(self) -> Vec<u8> {
        let page = format!("/spaces/{}/tasks?page_size=100", world::SUPPORT);
        match self {
            Self::Silent => Vec::new(),
            Self::HalfAHeader => b"GET /healthz HTTP/1.1\r\nHost: ga".to_vec(),
            Self::SlowReader => format!(
                "GET {page} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Token {KEY}\r\n\r\n"
            )
            // More than both socket buffers hold.
            .repeat(100)
            .into_bytes(),
            Self::Refusals => http2(8, &page, None),
            Self::ManyRefusals => http2(200, &page, None),
            Self::Pages => http2(100, &page, Some(KEY)),
            Self::ViewedPages => http2(100, &page, Some(VIEWED)),
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len())
        .expect("it is short")
        .to_be_bytes();
    let stream = stream.to_be_bytes();
    [&length[1..], &[kind, flags], &stream, payload].concat()
}

/// A connection with a window of 0 and the given number of requests.
fn http2(requests: u32, path: &str, key: Option<&str>) -> Vec<u8> {
    let mut fields = vec![0x82, 0x86, 0x01, 7];
    fields.extend(b"gateway");
    fields.extend([0x04, u8::try_from(path.len()).expect("it is short")]);
    fields.extend(path.as_bytes());
    if let Some(key) = key {
        let value = format!("Token {key}");
        // `authorization` is the 23rd static name: 15 and 8 more.
        fields.extend([0x0f, 0x08, u8::try_from(value.len()).expect("it is short")]);
        fields.extend(value.as_bytes());
    }
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]));
    for number in 0..requests {
        bytes.extend(frame(1, 0x5, 2 * number + 1, &fields));
    }
    bytes
}

fn config(base_url: &str, connections: usize) -> Config {
    let settings = format!(
        r#"
        server.listen = "127.0.0.1:0"
        server.max_connections = {most}
        server.drain_delay = "0s"
        admin.listen = "127.0.0.1:0"
        auth.max_failures = 0
        telemetry.filter = "off"
        views.short.fields = ["task_id", "status", "input", "output"]
        "#,
        most = connections + 10,
    );
    let text = [
        gateway::upstream(base_url),
        settings,
        gateway::client("example", KEY, "spaces = ['*']"),
        gateway::client("viewed", VIEWED, "spaces = ['*']\nview = 'short'"),
    ]
    .concat();
    Config::from_toml(&text).expect("it is a good configuration")
}

async fn open(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address)
        .await
        .expect("the gateway listens");
    // A slow reader reads only this much.
    let _ = timeout(Duration::from_millis(20), stream.write_all(bytes)).await;
    stream
}

/// The result of a future, and the peak of resident memory meanwhile.
async fn watched<F: Future>(what: F) -> (F::Output, usize) {
    let mut what = pin!(what);
    let mut most = resident("self");
    loop {
        if let Ok(output) = timeout(Duration::from_millis(20), what.as_mut()).await {
            return (output, most.max(resident("self")));
        }
        most = most.max(resident("self"));
    }
}

/// How many connections the gateway closed, by reason.
fn ended(gateway: &Gateway) -> String {
    let metrics = gateway.metrics().encode();
    let counted: Vec<&str> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("gateway_connection_failures_total{reason="))
        .filter(|line| !line.ends_with(" 0"))
        .collect();
    counted.join(" ").replace('}', "")
}

async fn measure(gateway: &Gateway, address: SocketAddr, kind: Kind, connections: usize) {
    let before = resident("self");
    let bytes = kind.sends();
    let peers = join_all((0..connections).map(|_| open(address, &bytes)));
    let settled = async {
        let peers = peers.await;
        sleep(SETTLE).await;
        peers
    };
    let (peers, most) = watched(settled).await;
    let with = resident("self");
    let open = gateway.metrics().http.connections_open();
    drop(peers);
    while gateway.metrics().http.connections_open() > 0 {
        sleep(Duration::from_millis(10)).await;
    }
    sleep(SETTLE).await;
    let ended = ended(gateway);
    let kind = format!("{kind:?}");
    let each = with.saturating_sub(before) / connections;
    println!(
        "{kind:<14} {open:>6} {:>10} {:>10} {:>10} {:>10} {each:>12}  {ended}",
        before >> 10,
        most >> 10,
        with >> 10,
        resident("self") >> 10
    );
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let connections = match &arguments[..] {
        [name, count] if name == "--connections" => count.parse().unwrap_or(CONNECTIONS),
        _ => CONNECTIONS,
    };
    let simulator = Simulator::start(Options::default())
        .await
        .expect("it starts");
    let gateway = Gateway::start(config(&simulator.base_url(), connections))
        .await
        .expect("it starts");
    let ListenAddress::Tcp(address) = *gateway.data_address() else {
        unreachable!("it listens on a port");
    };
    // Stores the page and warms up the gateway.
    drop(open(address, &Kind::SlowReader.sends()).await);
    sleep(SETTLE).await;
    println!("{connections} connections of each kind; memory in KiB, per connection in bytes");
    println!(
        "kind             open     before       most       with      after          each  ended so far"
    );
    for kind in Kind::ALL {
        measure(&gateway, address, kind, connections).await;
    }
    gateway.drain().await;
    simulator.stop().await;
}
