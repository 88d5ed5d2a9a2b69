//! Misbehaving clients: readers that stall, clients that disconnect at any point or half-close, and clients of proxies that spoof forwarded addresses.

use std::{io, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use unpod_gateway::simulator::{SplitMix64, world};

use crate::{
    ask::READER,
    client::{Answer, PATIENCE},
};

/// Trusts proxies on loopback, as an operator would configure it, with timeouts that end stalled connections.
pub(crate) const CONFIG: &str = r#"
    server.trusted_proxies = ["127.0.0.0/8"]
    server.send_timeout = "2s"
    auth.max_failures = 20
"#;
/// `server.send_timeout`, and what a busy machine may add.
const ENDS_WITHIN: Duration = Duration::from_secs(15);
/// More pages than socket buffers hold.
const PIPELINED: usize = 64;
const STREAMS: usize = 50;

/// Requests megabytes on one HTTP/1.1 connection and reads nothing until the gateway closes it.
///
/// # Errors
///
/// Says that the gateway did not.
pub(crate) async fn stall_http1(address: SocketAddr) -> Result<(), String> {
    let mut stream = slow_stream(address).await.map_err(text)?;
    // Of what is always there: while the upstream is down a purged page is a short error that takes long. Such fill no buffer.
    let requests = "GET /openapi.json HTTP/1.1\r\nhost: gateway\r\n\r\n".repeat(PIPELINED);
    // The close shows as a write error, since nothing is read. While the gateway takes requests it sends more.
    let ended =
        async { while stream.write_all(requests.as_bytes()).await.is_ok() && wait().await {} };
    timeout(ENDS_WITHIN, ended)
        .await
        .map_err(|_| "a reader that stalls over HTTP/1.1 was kept".to_owned())
}

/// How often a stalled reader checks whether it was closed.
async fn wait() -> bool {
    tokio::time::sleep(Duration::from_millis(100)).await;
    true
}

/// Requests pages on one HTTP/2 connection with a window of 0, until the gateway closes it.
///
/// # Errors
///
/// Says that the gateway did not.
pub(crate) async fn stall_http2(address: SocketAddr) -> Result<(), String> {
    let stream = TcpStream::connect(address).await.map_err(text)?;
    let shaken = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(0)
        .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await;
    let (mut sender, connection) = shaken.map_err(text)?;
    let asking = async move {
        let path = format!("/spaces/{}/tasks?page_size=5", world::TRANSCRIPTS);
        let mut answers = Vec::new();
        for _ in 0..STREAMS {
            let request = Request::get(format!("http://gateway{path}"))
                .header("authorization", format!("Token {READER}"))
                .body(Empty::new())
                .expect("a path and a plain field make a request");
            if sender.ready().await.is_err() {
                break;
            }
            answers.push(sender.send_request(request));
        }
        // Keeps the response, its body unread.
        let answers = futures_util::future::join_all(answers).await;
        std::future::pending::<()>().await;
        drop((answers, sender));
    };
    let ended = async {
        tokio::select! {
            _ = connection => {}
            () = asking => {}
        }
    };
    timeout(ENDS_WITHIN, ended)
        .await
        .map_err(|_| "a reader that stalls over HTTP/2 was kept".to_owned())
}

/// Sends a part of `request`, reads a part of the response, and disconnects, by a close or a reset.
pub(crate) async fn leave(
    address: SocketAddr,
    request: &str,
    random: &mut SplitMix64,
) -> io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    let whole = request.as_bytes();
    let sent = match random.below(3) {
        0 => random.below(whole.len() as u64) as usize,
        _ => whole.len(),
    };
    stream.write_all(&whole[..sent]).await?;
    if sent == whole.len() && random.below(2) == 0 {
        let mut part = vec![0; 1 + random.below(2000) as usize];
        // A response may take as long as the upstream: a client that disconnects does not wait for it.
        let _ = timeout(Duration::from_millis(50), stream.read(&mut part)).await;
    }
    match random.below(2) {
        0 => stream.set_zero_linger(),
        _ => stream.shutdown().await,
    }
}

/// Sends all of `request`, closes its sending side, and reads the whole response.
///
/// # Errors
///
/// Says what is missing in the response.
pub(crate) async fn half_close(address: SocketAddr, request: &str) -> Result<Answer, String> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        stream.shutdown().await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        io::Result::Ok(answer)
    };
    let bytes = timeout(PATIENCE, exchange).await;
    let bytes = bytes.map_err(|_| "no answer to half a close".to_owned())?;
    parse(&bytes.map_err(text)?).ok_or_else(|| "half a close cut the answer short".to_owned())
}

/// The response to a GET: the head, and a body of the length it states.
fn parse(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers: HeaderMap = lines
        .map(|line| {
            let (name, value) = line.split_once(": ")?;
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            Some((name, HeaderValue::from_str(value).ok()?))
        })
        .collect::<Option<_>>()?;
    let body = Bytes::copy_from_slice(&bytes[end + 4..]);
    let answer = Answer {
        status,
        headers,
        body,
    };
    let length = answer.header("content-length").parse().ok();
    (length == Some(answer.body.len())).then_some(answer)
}

/// A forwarded header with `address` appended by a proxy to whatever its client wrote.
pub(crate) fn forwarded(random: &mut SplitMix64, address: &str) -> Vec<(&'static str, String)> {
    let written = [
        "8.8.8.8",
        "8.8.8.8:\"",
        "\"8.8.8.8, ",
        "unknown, _hidden",
        "[::1]:80, , ,",
        "for=8.8.8.8",
        "\\\", 127.0.0.1",
    ];
    let made_up = random.below(1 << 32) as u32;
    let made_up = std::net::Ipv4Addr::from_bits(made_up);
    let mine = random.pick(&written);
    vec![
        ("x-forwarded-for", format!("{mine}, {made_up}, {address}")),
        ("forwarded", format!("for={made_up};host=\"{mine}")),
    ]
}

/// A connection with the smallest receive buffer the system allows.
async fn slow_stream(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4096)?;
    socket.connect(address).await
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
