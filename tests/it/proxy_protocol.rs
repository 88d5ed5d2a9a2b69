//! The PROXY protocol: required of trusted proxies, and believed of nobody else.

use std::io::Write;

use tokio::{
    io::AsyncWriteExt,
    net::{TcpStream, UnixStream},
};
use unpod_gateway::{
    app,
    config::Config,
    simulator::{Options, Simulator, world},
};

use crate::{
    answer::Answer,
    gateway::{Gateway, READER, Setup, setup, until},
    pki::{Authority, TlsClient, TlsFiles},
    raw,
};

const V1: &[u8] = b"PROXY TCP4 203.0.113.9 10.0.0.1 4660 443\r\n";
const V1_OTHER: &[u8] = b"PROXY TCP4 203.0.113.10 10.0.0.1 4660 443\r\n";
const V1_IPV6: &[u8] = b"PROXY TCP6 2001:db8::9 2001:db8::1 4660 443\r\n";
const V1_UNKNOWN: &[u8] = b"PROXY UNKNOWN\r\n";
const V2: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xcb\x00\x71\x09\x0a\x00\x00\x01\x12\x34\x01\xbb";
const V2_LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";

fn path() -> String {
    format!("/spaces/{}/tasks", world::SUPPORT)
}

/// Every failure after an address's first is told to wait: it shows for whom a request counts.
fn behind(trusted: &str) -> Setup {
    setup().with(&format!(
        "[auth]\nmax_failures = 1\n[server]\nproxy_protocol = true\ntrusted_proxies = [\"{trusted}\"]"
    ))
}

/// Fails to authenticate over a connection that begins with `header`.
async fn fail(gateway: &Gateway, header: &[u8], lines: &str) -> Answer {
    let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
    stream.write_all(header).await.unwrap();
    raw::send_over(stream, "GET", &path(), lines).await
}

/// What a connection gets that begins with these bytes.
async fn answer_to(gateway: &Gateway, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
    // The peer may hang up before it has read all of it.
    let _ = stream.write_all(bytes).await;
    let answer = raw::until_end(&mut stream).await;
    String::from_utf8(answer).unwrap()
}

const PLAIN: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn a_failure_counts_for_whom_a_trusted_proxy_names() {
    let gateway = behind("127.0.0.0/8").start().await;
    let code = async |header: &[u8]| fail(&gateway, header, "").await.code();
    assert_eq!(code(V1).await, "unauthenticated");
    assert_eq!(code(V1).await, "rate_limited");
    // The same address in the other version.
    assert_eq!(code(V2).await, "rate_limited");
    assert_eq!(code(V1_OTHER).await, "unauthenticated");
    assert_eq!(code(V1_IPV6).await, "unauthenticated");
    assert_eq!(code(V1_IPV6).await, "rate_limited");
}

#[tokio::test]
async fn a_request_in_the_same_segment_is_not_lost() {
    let gateway = behind("127.0.0.0/8").start().await;
    for header in [V1, V1_IPV6, V1_UNKNOWN, V2, V2_LOCAL] {
        let answer = answer_to(&gateway, &[header, PLAIN].concat()).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}

#[tokio::test]
async fn a_header_in_pieces_is_put_together() {
    let gateway = behind("127.0.0.0/8").start().await;
    for header in [V1, V2] {
        let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
        stream.set_nodelay(true).unwrap();
        for byte in header {
            stream.write_all(&[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        let lines = format!("Authorization: Token {READER}\r\n");
        let answer = raw::send_over(stream, "GET", &path(), &lines).await;
        assert_eq!(answer.status, 200);
    }
}

#[tokio::test]
async fn who_is_named_is_believed_about_others_only_if_trusted_too() {
    let gateway = behind("127.0.0.0/8").start().await;
    let forwarded = |address: &str| format!("X-Forwarded-For: {address}\r\n");
    let code = async |header: &[u8], from: &str| {
        let failed = fail(&gateway, header, &forwarded(from)).await;
        failed.code()
    };
    assert_eq!(code(V1, "198.51.100.1").await, "unauthenticated");
    assert_eq!(code(V1, "198.51.100.2").await, "rate_limited");

    let proxy = b"PROXY TCP4 127.0.0.7 127.0.0.1 4660 443\r\n";
    assert_eq!(code(proxy, "198.51.100.3").await, "unauthenticated");
    assert_eq!(code(proxy, "198.51.100.4").await, "unauthenticated");
    assert_eq!(code(proxy, "198.51.100.3").await, "rate_limited");
}

#[tokio::test]
async fn who_is_not_named_is_believed_nothing() {
    for header in [V1_UNKNOWN, V2_LOCAL] {
        let gateway = behind("127.0.0.0/8").start().await;
        let first = fail(&gateway, header, "X-Forwarded-For: 198.51.100.1\r\n").await;
        first.assert_error("unauthenticated");
        let second = fail(&gateway, header, "X-Forwarded-For: 198.51.100.2\r\n").await;
        second.assert_error("rate_limited");
    }
}

#[tokio::test]
async fn a_trusted_proxy_must_send_a_header() {
    let gateway = behind("127.0.0.0/8").start().await;
    let mut huge = V2[..14].to_vec();
    huge.extend([0xff; 2 + 0xffff]);
    let mut endless = b"PROXY TCP4 ".to_vec();
    write!(endless, "{}", "1".repeat(1000)).unwrap();
    let refused: [&[u8]; 5] = [
        PLAIN,
        b"PROXY TCP4 203.0.113.9 10.0.0.1 port 443\r\nGET / HTTP/1.1\r\n\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x31\x11\x00\x00GET / HTTP/1.1\r\n\r\n",
        &huge,
        &endless,
    ];
    for (before, bytes) in refused.into_iter().enumerate() {
        assert_eq!(answer_to(&gateway, bytes).await, "");
        let counted = format!(
            "gateway_connection_failures_total{{reason=\"proxy_header\"}} {}",
            before + 1
        );
        until(|| gateway.counts(&counted)).await;
    }
    assert_eq!(gateway.upstream().requests(), 0);
}

#[tokio::test]
async fn a_header_that_never_ends_is_given_the_time_of_a_requests() {
    let impatient = "[server]\nheader_read_timeout = \"100ms\"";
    let gateway = behind("127.0.0.0/8").with(impatient).start().await;
    for begun in [&b""[..], b"PROXY TCP4 203.0.113.9 ", &V2[..20]] {
        assert_eq!(answer_to(&gateway, begun).await, "");
    }
    let counted = "gateway_connection_failures_total{reason=\"too_slow\"} 3";
    until(|| gateway.counts(counted)).await;
}

#[tokio::test]
async fn a_header_of_anybody_else_is_bad_http() {
    let gateway = behind("10.0.0.0/8").start().await;
    for header in [V1, V2] {
        let answer = answer_to(&gateway, &[header, PLAIN].concat()).await;
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 400 "),
            "{answer}"
        );
    }
    let answer = answer_to(&gateway, PLAIN).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn no_header_is_looked_for_unless_it_is_asked_for() {
    let trusting = "[server]\ntrusted_proxies = [\"127.0.0.0/8\"]";
    let gateway = setup().with(trusting).start().await;
    let answer = answer_to(&gateway, PLAIN).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn the_header_comes_before_the_handshake() {
    let authority = Authority::new();
    let files = TlsFiles::new(&authority.server(), None);
    let gateway = behind("127.0.0.0/8").with(&files.toml()).start().await;
    let client = TlsClient::trusting(&authority);
    let failed = async |header: &[u8]| {
        let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
        stream.write_all(header).await.unwrap();
        let stream = client.shake_hands(stream).await.unwrap();
        let answer = raw::send_over(stream, "GET", &path(), "").await;
        answer.code()
    };
    assert_eq!(failed(V1).await, "unauthenticated");
    assert_eq!(failed(V2).await, "rate_limited");
    assert_eq!(failed(V1_OTHER).await, "unauthenticated");

    // Without one the handshake is none.
    let bare = TcpStream::connect(gateway.address()).await.unwrap();
    assert!(client.shake_hands(bare).await.is_err());
}

#[tokio::test]
async fn on_a_unix_socket_everybody_must_send_one() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("gateway.sock");
    let listen = format!(
        "[server]\nlisten = \"unix:{}\"\nproxy_protocol = true\n[auth]\nmax_failures = 1",
        socket.display()
    );
    let simulator = Simulator::start(Options::default()).await.unwrap();
    let config = setup().with(&listen).toml(&simulator.base_url());
    let gateway = app::Gateway::start(Config::from_toml(&config).unwrap())
        .await
        .unwrap();
    let code = async |header: &[u8]| {
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        stream.write_all(header).await.unwrap();
        let answer = raw::send_over(stream, "GET", &path(), "").await;
        answer.code()
    };
    assert_eq!(code(V1).await, "unauthenticated");
    assert_eq!(code(V1).await, "rate_limited");
    assert_eq!(code(V1_OTHER).await, "unauthenticated");

    let mut bare = UnixStream::connect(&socket).await.unwrap();
    bare.write_all(PLAIN).await.unwrap();
    assert_eq!(raw::until_end(&mut bare).await, b"");
    assert!(gateway.drain().await);
}
