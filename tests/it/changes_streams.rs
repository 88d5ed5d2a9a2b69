//! Streams of changes at their limits: how many there may be, how long each lasts, and readers that do not read.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::Instant,
};
use unpod_gateway::{
    server::descriptors,
    simulator::{
        Options, Simulator,
        world::{ARCHIVE, EMPTY, SUPPORT, TRANSCRIPTS},
    },
};

use crate::{
    answer::Ask,
    browser_tokens::{for_support, mint, minting, pair, token},
    changes::{Reader, refresh_of},
    gateway::{Gateway, READER, client, patiently, setup, start, until},
    process::Served,
    raw,
};

const HEARTBEAT: Duration = Duration::from_secs(15);

fn stream(gateway: &Gateway, space: &str, key: &str) -> Ask {
    let asked = gateway.get(&format!("/spaces/{space}/changes")).key(key);
    asked.header("accept", "text/event-stream")
}

#[tokio::test]
async fn who_likes_a_stream_better_gets_one() {
    let gateway = start().await;
    for (accept, kind) in [
        (
            "text/event-stream, application/json;q=0.9",
            "text/event-stream",
        ),
        (
            "text/event-stream;q=0.9, application/json",
            "application/json",
        ),
    ] {
        let url = format!(
            "http://{}/spaces/{SUPPORT}/changes?after=now",
            gateway.address()
        );
        let asked = gateway
            .http()
            .get(url)
            .bearer_auth(READER)
            .header("accept", accept);
        let response = patiently("an answer", asked.send()).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], kind, "{accept}");
    }
    assert_eq!(gateway.upstream().requests(), 1);
}

#[tokio::test]
async fn a_browser_token_has_four_streams_and_another_has_four_of_its_own() {
    let gateway = minting(&pair(), "").await;
    let one = token(&mint(&gateway, &for_support(300)).await);
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(Reader::open(&gateway, "", &one).await);
    }
    // Under another scheme, too.
    let fifth = stream(&gateway, SUPPORT, &one).await;
    fifth.assert_error("rate_limited");
    let waiting = gateway.get(&format!("/spaces/{SUPPORT}/changes?after=now&wait=30"));
    waiting.key(&one).await.assert_error("rate_limited");
    // What does not last is no stream.
    let pull = gateway.get(&format!("/spaces/{SUPPORT}/changes?after=now"));
    assert_eq!(pull.key(&one).await.status, 200);
    let other = token(&mint(&gateway, &for_support(200)).await);
    open.push(Reader::open(&gateway, "", &other).await);
    stream(&gateway, ARCHIVE, &one)
        .await
        .assert_error("space_not_allowed");
    assert_eq!(gateway.upstream().requests(), 1);
    assert!(gateway.counts("gateway_changes_streams 5"));
}

/// Reads to the end, on a clock that is paused once nothing is awaited of the network: the last block, and how long it took.
async fn end_of(mut reader: Reader) -> (String, Duration) {
    tokio::time::pause();
    let began = Instant::now();
    let mut last = String::new();
    while let Some(block) = reader.block().await {
        last = block;
    }
    (last, began.elapsed())
}

#[tokio::test]
async fn a_stream_ends_with_its_browser_token() {
    let gateway = minting(&pair(), "").await;
    let token = token(&mint(&gateway, &for_support(60)).await);
    let mut reader = Reader::open(&gateway, "", &token).await;
    reader.event("space.synced").await;
    let (_, lasted) = end_of(reader).await;
    assert!(lasted > 2 * HEARTBEAT, "{lasted:?}");
    assert!(lasted <= Duration::from_secs(60), "{lasted:?}");
}

#[tokio::test]
async fn a_right_that_is_taken_ends_a_quiet_stream_within_a_heartbeat() {
    let key = "ugw_leaving_key";
    let leaving = |space: &str| client("leaving", key, &format!("spaces = ['{space}']"));
    let running = setup().with(&leaving(SUPPORT)).start_from_file().await;
    let mut reader = Reader::open(&running.gateway, "", key).await;
    reader.event("space.synced").await;
    running.rewrite(setup().with(&leaving(EMPTY)));
    assert_eq!(running.reload().await.0, 200);
    let (last, lasted) = end_of(reader).await;
    assert!(last.contains("event: space.gone"), "{last}");
    assert!(lasted <= HEARTBEAT, "{lasted:?}");
}

/// A stream of whole tasks that nobody reads, over a socket that takes little.
async fn unread(gateway: &Gateway, space: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut io = socket.connect(gateway.address()).await.unwrap();
    let request = format!(
        "GET /spaces/{space}/changes?fields=input,output HTTP/1.1\r\nHost: gateway\r\n\
         Authorization: Token {READER}\r\nAccept: text/event-stream\r\n\r\n"
    );
    io.write_all(request.as_bytes()).await.unwrap();
    io
}

/// Changes every task of the space, and has the gateway see it.
async fn change_all(gateway: &Gateway, space: &str, status: &str) {
    for id in gateway.upstream().task_ids(space) {
        gateway.upstream().set_status(space, &id, status);
    }
    refresh_of(gateway, space).await;
}

#[tokio::test]
async fn a_slow_reader_delays_nobody_and_misses_no_state() {
    let gateway = start().await;
    let mut quick = Reader::of(&gateway, TRANSCRIPTS, "", READER).await;
    quick.event("space.synced").await;
    let mut slow = unread(&gateway, TRANSCRIPTS).await;
    until(|| gateway.counts("gateway_changes_streams 2")).await;
    let tasks = gateway.upstream().task_ids(TRANSCRIPTS);
    let mut last = String::new();
    for status in ["hold", "failed", "pending"] {
        change_all(&gateway, TRANSCRIPTS, status).await;
        for _ in &tasks {
            let (id, event) = quick.event("task.updated").await;
            assert_eq!(event["status"], status);
            last = id;
        }
    }
    let (mut read, mut bytes) = (Vec::new(), vec![0; 1 << 16]);
    let (end, shown) = (format!("id: {last}\n"), |text: &[u8], part: &str| {
        text.windows(part.len()).any(|it| it == part.as_bytes())
    });
    while !shown(&read, &end) {
        let more = patiently("what it has not read", slow.read(&mut bytes)).await;
        let more = more.unwrap();
        assert!(more > 0, "it was ended");
        // An id may lie across two reads.
        read.drain(..read.len().saturating_sub(end.len()));
        read.extend_from_slice(&bytes[..more]);
    }
    assert!(gateway.counts("gateway_changes_streams 2"));
}

#[tokio::test]
async fn a_reader_that_takes_no_byte_is_ended() {
    let impatient = "[server]\nsend_timeout = '300ms'";
    let gateway = setup().with(impatient).start().await;
    let _unread = unread(&gateway, TRANSCRIPTS).await;
    until(|| gateway.counts("gateway_changes_streams 1")).await;
    // As much as fills every buffer on the way.
    let changing = async {
        for status in ["hold", "failed"].into_iter().cycle() {
            change_all(&gateway, TRANSCRIPTS, status).await;
        }
    };
    let ended = "gateway_connection_failures_total{reason=\"send_timeout\"} 1";
    tokio::select! {
        () = until(|| gateway.counts(ended)) => {}
        () = changing => {}
    }
    until(|| gateway.counts("gateway_changes_streams 0")).await;
}

/// As a browser does whose page is closed. Here the socket stays open for reading, so without that the stream would last for minutes.
#[tokio::test]
async fn who_closes_its_side_of_a_stream_has_left() {
    let gateway = start().await;
    let path = format!("/spaces/{SUPPORT}/changes");
    let mut stream = raw::ask(gateway.address(), &path, "Accept: text/event-stream\r\n").await;
    let mut begin = [0; 15];
    let began = stream.read_exact(&mut begin);
    patiently("an answer", began).await.unwrap();
    assert_eq!(&begin, b"HTTP/1.1 200 OK");
    stream.shutdown().await.unwrap();

    raw::until_end(&mut stream).await;
}

#[tokio::test]
async fn sigterm_ends_a_thousand_streams_and_the_process_within_the_drains_bounds() {
    const STREAMS: usize = 1000;
    let _ = descriptors::raise_limit();
    let simulator = Simulator::start(Options::default()).await.unwrap();
    // A share of the quota so small that the watch reads once, however long this takes.
    let many = format!(
        "[upstream]\nquota_per_minute = 60\n[server]\ndrain_timeout = '20s'\n[changes]\nquota_share = 0.01\nmax_streams_per_client = {STREAMS}\n[telemetry]\nfilter = 'info'\naccess_log = false"
    );
    let served = Served::start(setup().with(&many), &simulator.base_url()).await;
    let path = format!("/spaces/{SUPPORT}/changes");
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        streams.push(raw::ask(&served.data, &path, "Accept: text/event-stream\r\n").await);
    }
    for io in &mut streams {
        let mut begin = [0; 15];
        patiently("an answer", io.read_exact(&mut begin))
            .await
            .unwrap();
        assert_eq!(&begin, b"HTTP/1.1 200 OK");
    }
    served.signal("-TERM").await;
    for io in &mut streams {
        let text = patiently("the end", raw::until_end(io)).await;
        assert!(text.ends_with(b"0\r\n\r\n"), "cut off");
    }
    let (code, log) = served.end().await;
    assert_eq!(code, Some(0), "{:?}", log.last());
    assert_eq!(simulator.control().requests(), 1);
}
