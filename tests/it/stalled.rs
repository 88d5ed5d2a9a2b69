//! Peers that hold a connection and do nothing with it, or nothing but keep it.

use std::time::Duration;

use futures_util::future::join_all;
use http::Method;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use unpod_gateway::simulator::world;

use crate::{
    answer::check,
    gateway::{Gateway, READER, client, patiently, setup, start, until},
    http2::Http2,
    pki::{Authority, TlsClient, TlsFiles},
    raw,
};

/// HTTP/2 by hand: what no client library sends.
mod frames {
    pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let stream = stream.to_be_bytes();
        [&length[1..], &[kind, flags], &stream, payload].concat()
    }

    /// The preface, and settings that give each stream so much to send.
    pub(super) fn begin(window: u32) -> Vec<u8> {
        let setting = [&[0, 4], &window.to_be_bytes()[..]].concat();
        [PREFACE, &frame(4, 0, 0, &setting)].concat()
    }

    fn literal(name: u8, value: &str) -> Vec<u8> {
        let length = u8::try_from(value.len()).unwrap();
        [&[name, length], value.as_bytes()].concat()
    }

    /// A request of `path`, with a key if one is given: static names, literal values.
    pub(super) fn get(stream: u32, path: &str, key: Option<&str>) -> Vec<u8> {
        let mut fields = [
            &[0x82, 0x86],
            &literal(0x01, "gateway")[..],
            &literal(0x04, path),
        ]
        .concat();
        if let Some(key) = key {
            let value = format!("Token {key}");
            let length = u8::try_from(value.len()).unwrap();
            // `authorization` is the 23rd: 15 and 8 more.
            fields.extend([0x0f, 0x08, length]);
            fields.extend(value.as_bytes());
        }
        frame(1, 0x5, stream, &fields)
    }

    pub(super) fn ping() -> Vec<u8> {
        frame(6, 0, 0, &[0; 8])
    }
}

use frames::{PREFACE, begin, get, ping};

fn page() -> String {
    format!("/spaces/{}/tasks", world::SUPPORT)
}

/// A connection whose streams have `window` bytes to send, with so many requests.
async fn stalled(
    gateway: &Gateway,
    window: u32,
    count: u32,
    path: &str,
    key: Option<&str>,
) -> TcpStream {
    let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
    let gets = (0..count).flat_map(|number| get(2 * number + 1, path, key));
    let bytes: Vec<u8> = begin(window).into_iter().chain(gets).collect();
    stream.write_all(&bytes).await.unwrap();
    stream
}

/// Sends pings until the gateway hangs up.
async fn ping_until_end(mut stream: TcpStream) {
    let (mut reader, mut writer) = stream.split();
    let pings = async {
        while writer.write_all(&ping()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = raw::until_end(&mut reader) => {}
        () = pings => {}
    }
}

fn ended(reason: &str, count: u32) -> String {
    format!("gateway_connection_failures_total{{reason=\"{reason}\"}} {count}")
}

#[tokio::test]
async fn who_lets_more_than_eight_refusals_wait_is_hung_up_on() {
    let gateway = start().await;
    let unknown = format!("/spaces/{}/tasks", world::UNKNOWN_SPACE);
    let table = [
        (page(), None),
        ("/nowhere".to_owned(), Some(READER)),
        (format!("{}?x=1", page()), Some(READER)),
        (unknown, Some(READER)),
    ];
    for (number, (path, key)) in (1..).zip(table) {
        let mut stream = stalled(&gateway, 0, 9, &path, key).await;
        raw::until_end(&mut stream).await;
        until(|| gateway.counts(&ended("refusals", number))).await;
    }
    gateway.wait_until_in_flight(0).await;
}

#[tokio::test]
async fn who_reads_may_be_refused_as_often_as_it_likes() {
    let gateway = start().await;
    let connection = Http2::connect(gateway.address()).await;
    let refused: Vec<_> = (0..300).map(|_| connection.get(&page(), None)).collect();
    for answer in refused {
        answer.await.unwrap().assert_error("unauthenticated");
    }
    assert!(gateway.counts(&ended("refusals", 0)));
}

#[tokio::test]
async fn a_hundred_streams_are_what_a_connection_may_have() {
    let gateway = start().await;
    let mut stream = stalled(&gateway, 0, 0, "/", None).await;
    let mut settings = [0; 64];
    let read = patiently("settings", stream.read(&mut settings))
        .await
        .unwrap();
    let maximum = [0, 3, 0, 0, 0, 100];
    assert!(
        settings[..read]
            .windows(6)
            .any(|setting| setting == maximum)
    );
}

#[tokio::test]
async fn an_answer_that_nobody_takes_ends_its_connection_despite_pings() {
    let impatient = "[server]\nsend_timeout = \"300ms\"";
    let gateway = setup().with(impatient).start().await;
    gateway.tasks(world::SUPPORT, "").await;
    for (number, window) in (1..).zip([0, 1, 100]) {
        let stream = stalled(&gateway, window, 5, &page(), Some(READER)).await;
        patiently("an end", ping_until_end(stream)).await;
        until(|| gateway.counts(&ended("send_timeout", number))).await;
    }
    gateway.wait_until_in_flight(0).await;
}

#[tokio::test]
async fn a_request_is_under_way_until_its_answer_has_left() {
    let gateway = start().await;
    gateway.tasks(world::SUPPORT, "").await;
    let answered =
        "gateway_http_requests_total{route=\"tasks\",status=\"200\",client=\"reader\"} 4";
    for window in [0, 1] {
        let stream = stalled(&gateway, window, 3, &page(), Some(READER)).await;
        if window == 0 {
            until(|| gateway.counts(answered)).await;
        }
        gateway.wait_until_in_flight(3).await;
        drop(stream);
        gateway.wait_until_in_flight(0).await;
    }
}

#[tokio::test]
async fn a_reader_of_http1_that_takes_nothing_is_ended_too() {
    let impatient = "[server]\nsend_timeout = \"300ms\"";
    let gateway = setup().with(impatient).start().await;
    let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
    let one = format!(
        "GET {}?page_size=100 HTTP/1.1\r\nHost: a\r\nAuthorization: Token {READER}\r\n\r\n",
        page()
    );
    // As many as fill every buffer on the way.
    let writing = async { while stream.write_all(one.as_bytes()).await.is_ok() {} };
    let counted = until(|| gateway.counts(&ended("send_timeout", 1)));
    tokio::select! {
        () = counted => {}
        () = async { writing.await; std::future::pending().await } => {}
    }
}

#[tokio::test]
async fn whatever_is_begun_and_not_ended_has_the_header_timeout() {
    let impatient = "[server]\nheader_read_timeout = \"200ms\"";
    let gateway = setup().with(impatient).start().await;
    let request = get(1, "/healthz", None);
    let mut open_fields = request.clone();
    open_fields[4] = 0x1;
    let begun = begin(65_535);
    let table = [
        Vec::new(),
        PREFACE[..10].to_vec(),
        PREFACE.to_vec(),
        [&begun[..], &request[..6]].concat(),
        [&begun[..], &request[..15]].concat(),
        [&begun[..], &open_fields].concat(),
    ];
    let all_end = table.iter().map(async |sent| {
        let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
        stream.write_all(sent).await.unwrap();
        raw::until_end(&mut stream).await;
    });
    join_all(all_end).await;
    until(|| gateway.counts(&ended("header_timeout", 6))).await;
}

#[tokio::test]
async fn the_longest_idle_connection_gives_way_to_a_newcomer() {
    let few = "[server]\nmax_connections = 4";
    let gateway = setup().with(few).start().await;
    let mut silent = Vec::new();
    for _ in 0..4 {
        silent.push(TcpStream::connect(gateway.address()).await.unwrap());
        let open = i64::try_from(silent.len()).unwrap();
        until(|| gateway.app.metrics().http.connections_open() == open).await;
    }

    let answer = raw::get(gateway.address(), &page()).await;

    assert_eq!(answer.status, 200);
    raw::until_end(&mut silent[0]).await;
    assert!(gateway.counts(&ended("gave_way", 1)));
}

#[tokio::test]
async fn a_connection_in_use_never_gives_way() {
    let few = "[server]\nmax_connections = 1";
    let gateway = setup().with(few).start().await;
    let hold = gateway.upstream().hold();
    let in_use = gateway.tasks(world::SUPPORT, "").spawn();
    gateway.upstream().wait_for_requests(1).await;
    let address = gateway.address();
    let newcomer = tokio::spawn(async move { raw::get(address, "/healthz").await });
    // It is accepted, and finds no place.
    until(|| gateway.app.metrics().http.connections_open() == 1).await;
    assert!(gateway.counts(&ended("gave_way", 0)));

    hold.release();

    assert_eq!(in_use.await.unwrap().status, 200);
    assert_eq!(newcomer.await.unwrap().status, 200);
}

#[tokio::test]
async fn beyond_what_may_wait_the_connection_is_ended_on_which_most_does() {
    const VIEWED: &str = "ugw_viewed_key";
    let small = "[server]\nmax_unsent_bytes = \"200KiB\"";
    let view = "[views.short]\nfields = [\"task_id\", \"status\", \"created\"]";
    let viewed = client("viewed", VIEWED, "spaces = [\"*\"]\nview = \"short\"");
    let gateway = setup().with(small).with(view).with(&viewed).start().await;
    let path = format!("{}?page_size=100", page());
    let whole = raw::send(
        gateway.address(),
        "GET",
        &path,
        &format!("Authorization: Token {VIEWED}\r\n"),
    )
    .await;
    assert_eq!(whole.status, 200);

    // Whether what is cut for a view is kept or made anew, each stream counts.
    let mut stream = stalled(&gateway, 0, 4, &path, Some(VIEWED)).await;
    let mut others = Vec::new();
    for _ in 0..60 {
        others.push(stalled(&gateway, 0, 3, &page(), Some(READER)).await);
    }
    until(|| !gateway.counts(&ended("unsent_bytes", 0))).await;

    let served = raw::get(gateway.address(), &page()).await;
    assert_eq!(served.status, 200);
    drop(others);
    raw::until_end(&mut stream).await;
}

/// Sends a request, closes the sending side, and reads to the end.
async fn half_close(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &[u8]) -> Vec<u8> {
    stream.write_all(request).await.unwrap();
    stream.shutdown().await.unwrap();
    raw::until_end(&mut stream).await
}

#[tokio::test]
async fn a_client_that_closes_its_side_gets_its_answer_in_every_way() {
    let authority = Authority::new();
    let files = TlsFiles::new(&authority.server(), None);
    let (plain, tls) = (start().await, setup().with(&files.toml()).start().await);
    let lines = format!("Host: gateway\r\nAuthorization: Token {READER}\r\n");
    let http1 = format!("GET {} HTTP/1.1\r\n{lines}\r\n", page()).into_bytes();
    let http2 = [begin(1 << 20), get(1, &page(), Some(READER))].concat();

    for gateway in [&plain, &tls] {
        let expected = gateway.upstream().expect_page(world::SUPPORT, 1, 20);
        let contains = |bytes: &[u8]| bytes.windows(64).any(|part| part == &expected[..64]);
        for (protocol, request) in [("http/1.1", &http1), ("h2", &http2)] {
            let hold = gateway.upstream().hold();
            let asked = gateway.upstream().requests();
            let (address, request) = (gateway.address(), request.clone());
            let is_plain = std::ptr::eq(gateway, &raw const plain);
            let client = TlsClient::trusting(&authority).offering(&[protocol]);
            let answer = tokio::spawn(async move {
                if is_plain {
                    half_close(TcpStream::connect(address).await.unwrap(), &request).await
                } else {
                    half_close(client.connect(address).await, &request).await
                }
            });
            gateway.upstream().wait_for_requests(asked + 1).await;
            hold.release();

            let bytes = answer.await.unwrap();

            assert!(contains(&bytes), "{protocol}, plain: {is_plain}");
            let purged = format!("{}/cache", gateway.admin_url());
            gateway.http().delete(purged).send().await.unwrap();
        }
    }
}

#[tokio::test]
async fn an_answer_of_http1_to_a_half_closed_client_is_whole() {
    let gateway = start().await;
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: a\r\nAuthorization: Token {READER}\r\n\r\n",
        page()
    );
    let stream = TcpStream::connect(gateway.address()).await.unwrap();
    let answer = raw::parse(&half_close(stream, request.as_bytes()).await);
    check(&Method::GET, &page(), &answer);
    answer.assert_page(&gateway.upstream().expect_page(world::SUPPORT, 1, 20));
}
