//! Whole connections in memory, with the clock in hand.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use http::StatusCode;
use http_body_util::{BodyExt, Empty, Full};
use hyper::client::conn::http2;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tower::service_fn as tower_service_fn;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const PAGE: &[u8] = &[b'x'; 4000];
const OWN: usize = 100 * 1024;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Beyond a timeout: a timer's grain, and the time that a peer has to close.
const GRAIN: Duration = Duration::from_secs(2);

/// A peer of a server of its own.
struct Peered {
    io: DuplexStream,
    server: JoinHandle<()>,
    calls: Arc<AtomicUsize>,
    gate: Arc<Semaphore>,
}

async fn answer(request: Request<Incoming>, gate: Arc<Semaphore>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let (status, bytes) = match head.uri.path() {
        "/page" => (StatusCode::OK, Bytes::from_static(PAGE)),
        "/own" => (StatusCode::OK, Bytes::from(vec![b'x'; OWN])),
        "/body" => (StatusCode::OK, body.collect().await.unwrap().to_bytes()),
        "/wait" => {
            gate.acquire().await.unwrap().forget();
            (StatusCode::OK, Bytes::from_static(b"waited"))
        }
        _ => (StatusCode::UNAUTHORIZED, Bytes::from(vec![b'x'; 400])),
    };
    let mut response = Response::new(Full::new(bytes));
    *response.status_mut() = status;
    response
}

/// A connection through which `buffered` bytes pass before somebody reads.
fn connect(buffered: usize) -> Peered {
    let calls = Arc::new(AtomicUsize::new(0));
    let gate = Arc::new(Semaphore::new(0));
    let (counted, opened) = (calls.clone(), gate.clone());
    let service = tower_service_fn(move |request: Request<Incoming>| {
        counted.fetch_add(1, Ordering::Relaxed);
        let answer = answer(request, opened.clone());
        async { Ok::<_, Infallible>(answer.await) }
    });
    let server = Server::new(
        service,
        Acceptor::default(),
        Limits::for_tests(),
        None,
        Shutdown::default(),
    );
    let (io, theirs) = tokio::io::duplex(buffered);
    let server = tokio::spawn(server.connection(Box::new(theirs), Peer::UnixSocket));
    Peered {
        io,
        server,
        calls,
        gate,
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let stream = stream.to_be_bytes();
    [&length[1..], &[kind, flags], &stream, payload].concat()
}

/// The preface, and settings that give each stream so much to send.
fn begin(window: u32) -> Vec<u8> {
    let setting = [&[0, 4], &window.to_be_bytes()[..]].concat();
    [PREFACE, &frame(4, 0, 0, &setting)].concat()
}

fn get(stream: u32, path: &str) -> Vec<u8> {
    let authority = b"\x41\x01a";
    let length = u8::try_from(path.len()).unwrap();
    let fields = [
        &[0x82, 0x86],
        &authority[..],
        &[0x04, length],
        path.as_bytes(),
    ]
    .concat();
    frame(1, 0x5, stream, &fields)
}

/// Requests of `path` on so many streams.
fn gets(count: u32, path: &str) -> Vec<u8> {
    (0..count)
        .flat_map(|number| get(2 * number + 1, path))
        .collect()
}

fn ping() -> Vec<u8> {
    frame(6, 0, 0, &[0; 8])
}

fn window_update(stream: u32, bytes: u32) -> Vec<u8> {
    frame(8, 0, stream, &bytes.to_be_bytes())
}

impl Peered {
    async fn send(&mut self, bytes: &[u8]) {
        self.io.write_all(bytes).await.unwrap();
    }

    /// Reads whatever there is now.
    async fn drain(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Ok(Ok(1..)) =
            timeout(Duration::from_millis(1), self.io.read_buf(&mut bytes)).await
        {}
        bytes
    }

    /// Sends `word` every `pause` and reads what comes, until the server ends the connection or `most` is over.
    async fn ends_within(
        &mut self,
        most: Duration,
        pause: Duration,
        word: &[u8],
    ) -> Option<Duration> {
        let began = Instant::now();
        while began.elapsed() < most {
            if timeout(pause, &mut self.server).await.is_ok() {
                return Some(began.elapsed());
            }
            // It may be gone.
            let _ = self.io.write_all(word).await;
            self.drain().await;
        }
        None
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }
}

#[track_caller]
fn assert_about(took: Option<Duration>, expected: Duration, what: &str) {
    let took = took.unwrap_or_else(|| panic!("{what} went on"));
    assert!(
        took >= expected && took <= expected + GRAIN,
        "{what}: {took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn whoever_does_not_finish_what_it_began_is_ended_after_the_header_timeout() {
    let limits = Limits::for_tests();
    let request = get(1, "/page");
    let mut open_block = get(1, "/page");
    open_block[4] = 0x1;
    let begun = begin(65_535);
    let table: &[(&str, &[&[u8]], Duration)] = &[
        ("nothing", &[], limits.header_read_timeout),
        ("half a header", &[b"GET / HTT"], limits.header_read_timeout),
        (
            "half a preface",
            &[&PREFACE[..10]],
            limits.header_read_timeout,
        ),
        ("no settings", &[PREFACE], limits.header_read_timeout),
        ("no request", &[&begun], limits.idle_timeout),
        (
            "half a frame",
            &[&begun, &request[..5]],
            limits.header_read_timeout,
        ),
        (
            "half the fields",
            &[&begun, &request[..12]],
            limits.header_read_timeout,
        ),
        (
            "open fields",
            &[&begun, &open_block],
            limits.header_read_timeout,
        ),
        (
            "half a ping",
            &[&begun, &ping()[..10]],
            limits.header_read_timeout,
        ),
        ("an answer", &[&begun, &request], limits.idle_timeout),
        (
            "half a second request",
            &[&begun, &request, &get(3, "/page")[..20]],
            limits.header_read_timeout,
        ),
    ];
    for (what, reads, expected) in table {
        let mut peer = connect(1 << 16);
        for read in *reads {
            peer.send(read).await;
            // Each comes in a read of its own.
            sleep(Duration::from_millis(1)).await;
        }
        let took = peer.ends_within(200 * SECOND, 500 * SECOND, b"").await;
        assert_about(took, *expected - GRAIN / 100, what);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_moves_no_byte_ends_its_connection_whatever_the_peer_sends() {
    let send_timeout = Limits::for_tests().send_timeout;
    let other_stream = [window_update(0, 1), window_update(3, 1)].concat();
    let table: &[(&str, u32, &[u8])] = &[
        ("no window", 0, b""),
        ("pings", 0, &ping()),
        ("a window of one byte, and pings", 1, &ping()),
        ("a window for the other answer", 0, &other_stream),
        ("settings", 0, &frame(4, 0, 0, &[])),
    ];
    for (what, window, word) in table {
        let mut peer = connect(1 << 16);
        peer.send(&begin(*window)).await;
        peer.send(&gets(2, "/page")).await;
        let took = peer.ends_within(200 * SECOND, SECOND, word).await;
        assert_about(took, send_timeout, what);
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_of_http1_that_takes_no_byte_is_ended_and_a_slow_one_is_not() {
    let request = b"GET /page HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut peer = connect(1000);
    peer.send(request).await;
    let took = timeout(200 * SECOND, &mut peer.server).await;
    assert!(took.is_ok(), "it reads nothing");

    let mut peer = connect(1000);
    peer.send(request).await;
    let mut bytes = Vec::new();
    while !bytes.ends_with(PAGE) {
        sleep(20 * SECOND).await;
        let mut some = [0; 400];
        let read = peer.io.read(&mut some).await.unwrap();
        assert!(read > 0, "it was cut off");
        bytes.extend_from_slice(&some[..read]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_of_http2_is_served() {
    let mut peer = connect(1 << 16);
    peer.send(&begin(0)).await;
    peer.send(&get(1, "/page")).await;
    let took = peer
        .ends_within(400 * SECOND, 20 * SECOND, &window_update(1, 100))
        .await;
    assert_eq!(took, None);
}

#[tokio::test(start_paused = true)]
async fn a_connection_ends_on_which_more_than_eight_refusals_wait() {
    let at_once = |took: Option<Duration>| took.is_some_and(|took| took < SECOND);
    for (count, window, path, ends) in [
        (9, 0, "/refused", true),
        (9, 1, "/refused", true),
        (100, 0, "/refused", true),
        (8, 0, "/refused", false),
        (100, 65_535, "/refused", false),
        (100, 0, "/page", false),
    ] {
        let mut peer = connect(1 << 16);
        peer.send(&begin(window)).await;
        peer.send(&gets(count, path)).await;
        let took = peer.ends_within(20 * SECOND, SECOND, &ping()).await;
        assert_eq!(at_once(took), ends, "{count} {window} {path}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_behind_a_slow_download_does_not_end_it() {
    let mut peer = connect(1000);
    peer.send(b"GET /page HTTP/1.1\r\nHost: a\r\n\r\n").await;
    sleep(SECOND).await;
    peer.send(b"GET /page HTTP/1.1\r\nHo").await;
    let mut bytes = Vec::new();
    while !bytes.ends_with(PAGE) {
        sleep(15 * SECOND).await;
        peer.io.read_buf(&mut bytes).await.unwrap();
    }
    peer.send(b"st: a\r\nConnection: close\r\n\r\n").await;
    peer.io.read_to_end(&mut bytes).await.unwrap();
    let text = String::from_utf8(bytes).unwrap();
    assert_eq!(text.matches("HTTP/1.1 200").count(), 2);
    assert!(!text.contains("408"));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_closes_its_side_after_a_request_gets_the_answer() {
    let half = b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n".to_vec();
    let post = b"POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nwaited".to_vec();
    let http2 = [begin(65_535), get(1, "/wait")].concat();
    for request in [half, post, http2] {
        let mut peer = connect(1 << 16);
        peer.send(&request).await;
        peer.io.shutdown().await.unwrap();
        sleep(20 * SECOND).await;
        peer.gate.add_permits(1);

        let mut bytes = Vec::new();
        peer.io.read_to_end(&mut bytes).await.unwrap();

        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("waited"), "{text}");
        let ended = timeout(5 * SECOND, &mut peer.server).await;
        assert!(ended.is_ok(), "nothing more can come");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_comes_while_the_connection_says_goodbye_is_answered() {
    let goaway = |bytes: &[u8]| bytes.windows(2).any(|two| two == [7, 0]);
    let mut peer = connect(1 << 16);
    peer.send(&begin(65_535)).await;
    while !goaway(&peer.drain().await) {
        sleep(SECOND / 2).await;
    }
    peer.send(&get(1, "/wait")).await;
    sleep(20 * SECOND).await;
    assert_eq!(peer.calls(), 1);
    peer.gate.add_permits(1);

    let mut bytes = Vec::new();
    peer.io.read_to_end(&mut bytes).await.unwrap();

    assert!(String::from_utf8_lossy(&bytes).contains("waited"));
}

#[tokio::test(start_paused = true)]
async fn requests_wait_while_too_much_waits_to_be_sent() {
    let mut peer = connect(1 << 16);
    peer.send(&begin(0)).await;
    peer.send(&gets(100, "/own")).await;
    sleep(SECOND).await;

    // All of them are here, and so count.
    assert_eq!(peer.calls(), ((1 << 20) - 100 * 2048) / OWN + 1);

    let (all, calls) = (window_update(0, 1 << 30), peer.calls());
    peer.send(&all).await;
    for stream in 0..u32::try_from(calls).unwrap() {
        peer.send(&window_update(2 * stream + 1, 1 << 20)).await;
    }
    sleep(SECOND).await;
    peer.drain().await;
    assert!(peer.calls() > calls, "they left, and others were begun");
}

#[tokio::test]
async fn who_reads_gets_however_much_it_asks_for_at_once() {
    let peer = connect(1 << 16);
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .handshake::<_, Empty<Bytes>>(TokioIo::new(peer.io))
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let answers = (0..100).map(|number| {
        let mut sender = sender.clone();
        tokio::spawn(async move {
            let path = ["own", "page", "refused"][number % 3];
            let request = Request::get(format!("http://gateway/{path}"));
            poll_fn(|cx| sender.poll_ready(cx)).await.unwrap();
            let answer = sender.send_request(request.body(Empty::new()).unwrap());
            let body = answer.await.unwrap().into_body().collect().await.unwrap();
            assert_eq!(body.to_bytes().len(), [OWN, PAGE.len(), 400][number % 3]);
        })
    });
    for answer in answers.collect::<Vec<_>>() {
        answer.await.unwrap();
    }
    connection.abort();
}

/// However many connections bring a hundred requests each, in one read: what comes beyond the room is not read before the first of them
/// have ended.
#[tokio::test]
async fn requests_are_not_read_while_more_are_under_way_than_there_is_room_for() {
    const ROOM: usize = 20;
    for path in ["/wait", "/page", "/refused"] {
        // Each request that is not begun yet, and each connection, holds a clone of the service.
        let clones = Arc::new(());
        let (counted, gate) = (clones.clone(), Arc::new(Semaphore::new(0)));
        let service = tower_service_fn(move |request: Request<Incoming>| {
            let answer = answer(request, gate.clone());
            let clone = counted.clone();
            async move {
                let answer = answer.await;
                drop(clone);
                Ok::<_, Infallible>(answer)
            }
        });
        let limits = Limits {
            max_unsent_bytes: ROOM as u64 * 2048,
            ..Limits::for_tests()
        };
        let server = Server::new(
            service,
            Acceptor::default(),
            limits,
            None,
            Shutdown::default(),
        );
        let mut peers = Vec::new();
        for _ in 0..50 {
            let (mut io, theirs) = tokio::io::duplex(1 << 16);
            io.write_all(&[begin(0), gets(100, path)].concat())
                .await
                .unwrap();
            let server = server
                .clone()
                .connection(Box::new(theirs), Peer::UnixSocket);
            peers.push((io, tokio::spawn(server)));
        }
        // Each connection will have a service of its own.
        let idle = Arc::strong_count(&clones) + peers.len();
        let mut most = 0;
        while peers.iter().any(|(_, server)| !server.is_finished()) {
            tokio::task::yield_now().await;
            most = most.max(Arc::strong_count(&clones).saturating_sub(idle));
        }
        assert!(most <= ROOM + 100, "{path}: {most}");

        let (mut io, theirs) = tokio::io::duplex(1 << 16);
        tokio::spawn(server.connection(Box::new(theirs), Peer::UnixSocket));
        io.write_all(&[begin(1 << 16), get(1, "/page")].concat())
            .await
            .unwrap();
        let mut bytes = Vec::new();
        while !bytes.ends_with(&PAGE[..100]) {
            assert!(io.read_buf(&mut bytes).await.unwrap() > 0, "{path}");
        }
    }
}
