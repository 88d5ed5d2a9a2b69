//! How a client may connect, and what the HTTP parser itself refuses.

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Empty;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};
use unpod_gateway::{
    app,
    config::Config,
    simulator::{Options, Simulator, world},
};

use crate::{
    gateway::{READER, patiently, setup, start},
    http2::Http2,
    raw,
};

#[tokio::test]
async fn http_2_is_spoken_by_prior_knowledge() {
    let gateway = start().await;
    let connection = Http2::connect(gateway.address()).await;
    let path = format!("/spaces/{}/tasks", world::SUPPORT);

    let page = connection.get(&path, Some(READER)).await.unwrap();
    let refused = connection.get(&path, None).await.unwrap();

    let expected = gateway.upstream().expect_page(world::SUPPORT, 1, 20);
    page.assert_page(&expected);
    refused.assert_error("unauthenticated");
}

// RFC 9110 section 9.3.2; hyper sees to it in HTTP/1 alone.
#[tokio::test]
async fn an_answer_to_head_has_no_body_in_http_2_either() {
    let gateway = start().await;
    let connection = Http2::connect(gateway.address()).await;
    for space in [world::SUPPORT, world::UNKNOWN_SPACE] {
        let path = format!("/spaces/{space}/tasks");
        let whole = connection.get(&path, Some(READER)).await.unwrap();
        let head = connection
            .ask(Method::HEAD, &path, Some(READER))
            .await
            .unwrap();
        assert_eq!(head.status, whole.status);
        assert_eq!(
            head.header("content-length"),
            whole.header("content-length")
        );
        assert!(head.body.is_empty(), "{space}");
    }
}

#[tokio::test]
async fn a_unix_socket_is_served_and_its_file_goes_with_the_gateway() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("gateway.sock");
    let listen = format!("[server]\nlisten = \"unix:{}\"", socket.display());
    let simulator = Simulator::start(Options::default()).await.unwrap();
    let config = setup().with(&listen).toml(&simulator.base_url());
    let gateway = app::Gateway::start(Config::from_toml(&config).unwrap())
        .await
        .unwrap();

    let stream = UnixStream::connect(&socket).await.unwrap();
    let target = format!("/spaces/{}/tasks", world::SUPPORT);
    let lines = format!("Authorization: Token {READER}\r\n");
    let answer = raw::send_over(stream, "GET", &target, &lines).await;

    assert_eq!(answer.status, 200);
    assert!(gateway.drain().await);
    assert!(!socket.exists());
}

#[tokio::test]
async fn a_socket_file_that_nobody_listens_on_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("gateway.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let listen = format!("[server]\nlisten = \"unix:{}\"", socket.display());
    let config = setup().with(&listen).toml("http://127.0.0.1:9");

    let gateway = app::Gateway::start(Config::from_toml(&config).unwrap()).await;

    assert!(gateway.unwrap().drain().await);
}

#[tokio::test]
async fn what_is_no_http_is_refused_bare_and_the_connection_closed() {
    let gateway = start().await;
    let long_header = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nX-Long: {}\r\n\r\n",
        "a".repeat(64 * 1024)
    );
    for request in [
        "hello\r\n\r\n",
        "GET /\u{0} HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nBad Name: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
        "GET /healthz HTTP/1.1\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET http://a/healthz HTTP/1.1\r\nHost: b\r\n\r\n",
        "GET http://a:8080/healthz HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://a/healthz HTTP/1.1\r\n\r\n",
        "GET http://user@a/healthz HTTP/1.1\r\nHost: a\r\n\r\n",
        "CONNECT a:443 HTTP/1.1\r\nHost: b:443\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        long_header.as_str(),
    ] {
        let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
        // The peer may hang up before it has read all of it.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut bytes = Vec::new();
        let _ = patiently("the end", stream.read_to_end(&mut bytes)).await;

        let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
        let shown: String = request.chars().take(60).collect();
        assert!(
            text.is_empty() || text.starts_with("http/1.1 4"),
            "{shown}: {text}"
        );
        assert!(!text.contains("content-type"), "{shown}: {text}");
    }
    let still_serves = raw::get(gateway.address(), "/healthz").await;
    assert_eq!(still_serves.status, 200);
}

#[tokio::test]
async fn a_target_in_absolute_form_is_served_where_it_names_the_host() {
    let gateway = start().await;
    for (target, host) in [
        ("http://a/healthz", "a"),
        ("http://A:80/healthz", "a"),
        ("http://[::1]:8080/healthz", "[::1]:8080"),
    ] {
        let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
        let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = raw::parse(&raw::exchange(&mut stream, request.as_bytes()).await);
        assert_eq!(answer.status, 200, "{target} {host}");
    }
}

#[tokio::test]
async fn over_http2_the_authority_and_a_host_are_one_or_the_request_is_refused() {
    let gateway = start().await;
    let http2 = Http2::connect(gateway.address()).await;
    for (authority, host, expected) in [
        ("gateway", None, 200),
        ("gateway", Some("GATEWAY:80"), 200),
        ("gateway:8080", Some("gateway:8080"), 200),
        ("gateway", Some("evil.test"), 400),
        ("gateway", Some("gateway:8080"), 400),
        ("gateway", Some(""), 400),
    ] {
        let request = Request::get(format!("http://{authority}/healthz"));
        let request = host
            .into_iter()
            .fold(request, |request, host| request.header("host", host));
        let answer = http2
            .send(request.body(Empty::<Bytes>::new()).unwrap())
            .await;
        assert_eq!(answer.status(), expected, "{authority} {host:?}");
    }
}

#[tokio::test]
async fn who_begins_a_header_and_does_not_end_it_is_told() {
    let impatient = "[server]\nheader_read_timeout = \"100ms\"\nidle_timeout = \"300ms\"";
    let gateway = setup().with(impatient).start().await;
    let whole = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";
    let table: [(&[&str], &[&str]); 4] = [
        (&["GET /healthz HTTP/1.1\r\nHos"], &["408"]),
        (&["G"], &["408"]),
        (&[whole, "GET "], &["200", "408"]),
        // It has asked for nothing.
        (&[], &[]),
    ];
    for (sent, expected) in table {
        let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
        let mut text = String::new();
        for part in sent {
            stream.write_all(part.as_bytes()).await.unwrap();
            if *part == whole {
                let mut first = [0; 12];
                stream.read_exact(&mut first).await.unwrap();
                text.push_str(std::str::from_utf8(&first).unwrap());
            }
        }
        let rest = raw::until_end(&mut stream).await;
        text.push_str(&String::from_utf8(rest).unwrap());
        let statuses: Vec<&str> = text
            .match_indices("HTTP/1.1 ")
            .map(|(place, _)| &text[place + 9..place + 12])
            .collect();
        assert_eq!(statuses, expected, "{sent:?}");
    }
}

#[tokio::test]
async fn an_http2_peer_that_asks_for_nothing_is_told_in_its_own_words() {
    let impatient = "[server]\nheader_read_timeout = \"100ms\"\nidle_timeout = \"200ms\"";
    let gateway = setup().with(impatient).start().await;
    let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
    let empty_settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let begun = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &empty_settings].concat();
    stream.write_all(&begun).await.unwrap();

    let bytes = raw::until_end(&mut stream).await;

    let mut rest = bytes.as_slice();
    let mut kinds = Vec::new();
    while let [high, middle, low, kind, ..] = rest {
        let length = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
        kinds.push(*kind);
        rest = &rest[9 + length..];
    }
    let goaway = 7;
    assert!(rest.is_empty() && kinds.contains(&goaway), "{kinds:?}");
}

#[tokio::test]
async fn one_connection_carries_many_requests_in_order() {
    let gateway = start().await;
    let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
    let one = |path: &str, last: bool| {
        let close = if last { "Connection: close\r\n" } else { "" };
        format!("GET {path} HTTP/1.1\r\nHost: a\r\n{close}\r\n")
    };
    let pipelined = one("/healthz", false) + &one("/nowhere", false) + &one("/healthz", true);

    let bytes = raw::exchange(&mut stream, pipelined.as_bytes()).await;

    let text = String::from_utf8(bytes).unwrap();
    let statuses: Vec<&str> = text
        .match_indices("HTTP/1.1 ")
        .map(|(place, _)| &text[place + 9..place + 12])
        .collect();
    assert_eq!(statuses, ["200", "401", "200"]);
}

#[tokio::test]
async fn a_request_body_is_never_taken_for_the_next_request() {
    let gateway = start().await;
    let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
    let smuggled = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";
    let request = format!(
        "GET /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{smuggled}",
        smuggled.len()
    );

    let bytes = raw::exchange(&mut stream, request.as_bytes()).await;

    let text = String::from_utf8(bytes).unwrap();
    assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{text}");
    assert!(text.starts_with("HTTP/1.1 401 "), "{text}");
}

#[tokio::test]
async fn a_drain_lets_a_request_in_flight_end() {
    let simulator = Simulator::start(Options::default()).await.unwrap();
    let control = simulator.control();
    let gateway = setup().start_before(&simulator.base_url()).await;
    let hold = control.hold();
    let in_flight = gateway.tasks(world::SUPPORT, "").spawn();
    control.wait_for_requests(1).await;
    let address = gateway.address();

    let drained = tokio::spawn(gateway.app.drain());
    // The listener is closed at once: `drain_delay` is 0.
    let closed = async { while TcpStream::connect(address).await.is_ok() {} };
    patiently("the listener's end", closed).await;
    hold.release();

    assert_eq!(in_flight.await.unwrap().status, 200);
    assert!(drained.await.unwrap());
}

#[tokio::test]
async fn a_drain_cuts_off_who_outstays_it_and_says_so() {
    let simulator = Simulator::start(Options::default()).await.unwrap();
    let control = simulator.control();
    let impatient = "[server]\ndrain_timeout = \"50ms\"";
    let gateway = setup()
        .with(impatient)
        .start_before(&simulator.base_url())
        .await;
    let _hold = control.hold();
    let asked = gateway.http().get(format!(
        "http://{}/spaces/{}/tasks",
        gateway.address(),
        world::SUPPORT
    ));
    let in_flight = tokio::spawn(
        asked
            .header("authorization", format!("Token {READER}"))
            .send(),
    );
    control.wait_for_requests(1).await;

    assert!(!gateway.app.drain().await);
    in_flight.abort();
}
