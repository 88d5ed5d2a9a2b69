//! Whose request it is behind proxies: the one field that is named counts, and nothing a client wrote into it.

use tokio::net::UnixStream;
use unpod_gateway::{
    app,
    config::Config,
    simulator::{Options, Simulator, world},
};

use crate::{
    gateway::{Gateway, READER, Setup, setup},
    raw,
};

fn path() -> String {
    format!("/spaces/{}/tasks", world::SUPPORT)
}

/// Every failure after an address's first is told to wait: it shows for whom a request counts.
fn behind_a_proxy() -> Setup {
    setup().with("[auth]\nmax_failures = 1\n[server]\ntrusted_proxies = [\"127.0.0.0/8\"]")
}

/// Fails to authenticate with these lines, and says how it was told.
async fn fail(gateway: &Gateway, lines: &str) -> String {
    let answer = raw::send(gateway.address(), "GET", &path(), lines).await;
    answer.code()
}

#[tokio::test]
async fn what_a_client_sends_through_nginx_or_haproxy_evades_no_limit() {
    let gateway = behind_a_proxy().start().await;
    let first = fail(&gateway, "X-Forwarded-For: 203.0.113.9\r\n").await;
    assert_eq!(first, "unauthenticated");
    for lines in [
        // Passed on as it came.
        "Forwarded: for=8.8.8.8\r\nX-Forwarded-For: 203.0.113.9\r\n",
        // nginx appends to the line.
        "X-Forwarded-For: 8.8.8.8, 203.0.113.9\r\n",
        "X-Forwarded-For: 8.8.8.8:\", 203.0.113.9\r\n",
        "X-Forwarded-For: \"8.8.8.8\\, 203.0.113.9\r\n",
        "X-Forwarded-For: ,,8.8.8.8\t,\t203.0.113.9\r\n",
        "X-Forwarded-For: ::ffff:203.0.113.9\r\n",
        // HAProxy adds one.
        "X-Forwarded-For: 8.8.8.8\r\nX-Forwarded-For: 203.0.113.9\r\n",
        "X-Forwarded-For: \"\r\nX-Forwarded-For: 203.0.113.9\r\n",
    ] {
        assert_eq!(fail(&gateway, lines).await, "rate_limited", "{lines}");
    }
    let other = fail(&gateway, "X-Forwarded-For: 203.0.113.10\r\n").await;
    assert_eq!(other, "unauthenticated");
}

#[tokio::test]
async fn forwarded_counts_where_it_is_named_and_then_alone() {
    let named = behind_a_proxy().with("[server]\nforwarded_header = \"forwarded\"");
    let gateway = named.start().await;
    let lines = "X-Forwarded-For: 8.8.8.8\r\nForwarded: for=\"[2001:db8::1]:80\"\r\n";
    assert_eq!(fail(&gateway, lines).await, "unauthenticated");
    // Of the same network.
    let lines = "Forwarded: for=\"8.8.8.8\r\nForwarded: for=\"[2001:db8::2]\"\r\n";
    assert_eq!(fail(&gateway, lines).await, "rate_limited");
    let lines = "Forwarded: for=8.8.8.8\r\n";
    assert_eq!(fail(&gateway, lines).await, "unauthenticated");
}

#[tokio::test]
async fn a_trusted_proxy_that_writes_the_other_field_is_counted() {
    let gateway = behind_a_proxy().start().await;
    let lines = "Forwarded: for=203.0.113.9\r\n";
    assert_eq!(fail(&gateway, lines).await, "unauthenticated");
    // The proxy's own address.
    assert_eq!(fail(&gateway, "").await, "rate_limited");
    assert_eq!(fail(&gateway, lines).await, "rate_limited");
    assert!(gateway.counts("gateway_forwarded_ignored_total 2"));
}

#[tokio::test]
async fn a_proxy_on_a_unix_socket_is_believed_and_who_has_no_address_shares_one_limit() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("gateway.sock");
    let listen = format!(
        "[server]\nlisten = \"unix:{}\"\n[auth]\nmax_failures = 1",
        socket.display()
    );
    let simulator = Simulator::start(Options::default()).await.unwrap();
    let config = setup().with(&listen).toml(&simulator.base_url());
    let gateway = app::Gateway::start(Config::from_toml(&config).unwrap())
        .await
        .unwrap();
    let send = async |lines: &str| {
        let stream = UnixStream::connect(&socket).await.unwrap();
        raw::send_over(stream, "GET", &path(), lines).await
    };
    for (lines, code) in [
        ("X-Forwarded-For: 203.0.113.9\r\n", "unauthenticated"),
        ("X-Forwarded-For: 8.8.8.8, 203.0.113.9\r\n", "rate_limited"),
        ("X-Forwarded-For: 203.0.113.10\r\n", "unauthenticated"),
        ("", "unauthenticated"),
        ("X-Forwarded-For: unix:\r\n", "rate_limited"),
    ] {
        assert_eq!(send(lines).await.code(), code, "{lines}");
    }
    let good = format!("Authorization: Token {READER}\r\n");
    assert_eq!(send(&good).await.status, 200);
    assert!(gateway.drain().await);
}
