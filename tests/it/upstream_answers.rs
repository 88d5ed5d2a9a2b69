//! What the upstream says of its clock, its limits and itself: how far it is believed, and what a client sees of it.

use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::{io::AsyncWriteExt, net::TcpListener};
use unpod_gateway::simulator::{Options, Scripted, Simulator};

use crate::{
    gateway::{setup, start},
    operators,
    process::Served,
    raw,
};

const PAGE: &str = r#"{"count":0,"status_code":200,"message":"ok","data":[]}"#;

/// Every page is stale at once and may only stand in; nothing is remembered.
const STALE_AT_ONCE: &str = "[cache]\nttl = \"0s\"\nstale_while_revalidate = \"0s\"\n\
                             negative_ttl = \"0s\"\nrejected_ttl = \"0s\"";

/// The HTTP-date of an upstream whose clock differs by `seconds` from ours.
fn date(seconds: i64) -> String {
    let difference = Duration::from_secs(seconds.unsigned_abs());
    let now = SystemTime::now();
    httpdate::fmt_http_date(if seconds < 0 {
        now - difference
    } else {
        now + difference
    })
}

#[tokio::test]
async fn an_upstream_whose_clock_is_wrong_is_cached_as_any_other() {
    let gateway = start().await;
    for (space, seconds) in [
        ("BEHIND", -120),
        ("FAR_BEHIND", -86_400),
        ("RIGHT", 0),
        ("AHEAD", 120),
    ] {
        let answer = Scripted::json(200, PAGE).header("date", &date(seconds));
        gateway.upstream().script(space, vec![answer]);

        gateway.tasks(space, "").await.assert_page(PAGE.as_bytes());
        let again = gateway.tasks(space, "").await;

        assert_eq!(again.cache_status(), "hit", "{space}");
        let age: u64 = again.header("age").unwrap().parse().unwrap();
        assert!(age < 30, "{space}: {age}");
        assert_eq!(gateway.upstream().requests_to(space), 1, "{space}");
    }
}

#[tokio::test]
async fn a_429_always_blocks_and_the_next_one_is_told_the_same() {
    let unix = |seconds: u64| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        (now.unwrap().as_secs() + seconds).to_string()
    };
    let millis = format!("{}000", unix(30));
    let (in_30, skewed) = (date(30), date(-60 + 30));
    let reset = "x-ratelimit-reset";
    for (fields, seconds) in [
        (vec![("retry-after", "30")], 30),
        (vec![("retry-after", &in_30)], 30),
        (vec![("date", &date(-60)), ("retry-after", &skewed)], 30),
        (vec![(reset, "30")], 30),
        (vec![(reset, &unix(30))], 30),
        (vec![(reset, &millis)], 30),
        (vec![("retry-after", "0"), (reset, "30")], 30),
        // Nothing usable: a call's share of the minute.
        (vec![], 12),
        (vec![("retry-after", "0")], 12),
        (vec![("retry-after", &date(-60))], 12),
        (vec![("retry-after", "soon"), (reset, "-1")], 12),
        (vec![(reset, &unix(0))], 12),
    ] {
        let gateway = setup().start().await;
        let throttled = Scripted::json(429, "{}").header("x-ratelimit-limit", "5");
        let throttled = fields.iter().fold(throttled, |answer, (name, value)| {
            answer.header(name, value)
        });
        gateway.upstream().script("BUSY", vec![throttled]);
        let mut told = Vec::new();
        for page in 1..=4 {
            let answer = gateway.tasks("BUSY", &format!("?page={page}")).await;
            answer.assert_error("upstream_quota_exhausted");
            let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
            told.push(wait);
        }
        // A second or two may pass meanwhile, and a date has no fractions.
        let about = seconds - 5..=seconds + 1;
        let (next, later) = told.split_at(2);
        assert!(
            next.iter().all(|wait| about.contains(wait)),
            "{fields:?}: {told:?}"
        );
        // Who comes after the next is told of a later turn.
        assert!(later.is_sorted() && next[1] < later[0], "{told:?}");
        assert_eq!(gateway.upstream().requests_to("BUSY"), 1, "{fields:?}");
    }
}

#[tokio::test]
async fn only_the_upstreams_own_word_takes_pages_away() {
    let envelope = r#"{"status_code":403,"message":"no"}"#;
    let blocked = |status| Scripted::new(status, "Blocked").header("content-type", "text/plain");
    let html = |status| Scripted::new(status, "<html>").header("content-type", "text/html");
    let spent = |answer: Scripted| answer.header("x-ratelimit-remaining", "0");
    for (answer, detail) in [
        (blocked(403), "stale-if-error"),
        (html(403), "stale-if-error"),
        (Scripted::new(403, ""), "stale-if-error"),
        (
            Scripted::json(403, r#"{"message":"Forbidden"}"#),
            "stale-if-error",
        ),
        (blocked(403).header("retry-after", "30"), "quota"),
        (
            Scripted::json(403, envelope).header("retry-after", "30"),
            "quota",
        ),
        (spent(Scripted::json(403, envelope)), "quota"),
        (spent(html(503)), "quota"),
        (blocked(206), "stale-if-error"),
        (blocked(422), "stale-if-error"),
        (blocked(400), "stale-if-error"),
        (blocked(404), "stale-if-error"),
        (blocked(410), "stale-if-error"),
        (blocked(401), "stale-if-error"),
        (html(401), "stale-if-error"),
        (Scripted::new(401, ""), "stale-if-error"),
    ] {
        let gateway = setup().with(STALE_AT_ONCE).start().await;
        let page = Scripted::json(200, PAGE);
        gateway
            .upstream()
            .script("SPACE", vec![page, answer.clone()]);
        gateway
            .tasks("SPACE", "")
            .await
            .assert_page(PAGE.as_bytes());

        for _ in 0..2 {
            let stale = gateway.tasks("SPACE", "").await;
            stale.assert_page(PAGE.as_bytes());
            assert_eq!(
                stale.cache_status(),
                format!("hit; detail={detail}"),
                "{answer:?}"
            );
        }
        let (_, ready) = operators::ask(&gateway, "GET", "/readyz").await;
        assert!(!ready.contains("degraded"), "{answer:?}: {ready}");
    }
}

#[tokio::test]
async fn an_upstream_that_asks_to_be_left_alone_is_and_stale_pages_stand_in() {
    for (status, asked, left) in [(503, "120", 120), (502, "120", 120), (500, "9999", 300)] {
        let retrying = "[upstream]\nretries = 2";
        let gateway = setup().with(STALE_AT_ONCE).with(retrying).start().await;
        let page = Scripted::json(200, PAGE);
        gateway.upstream().script("STORED", vec![page]);
        gateway
            .tasks("STORED", "")
            .await
            .assert_page(PAGE.as_bytes());
        let down = Scripted::new(status, "").header("retry-after", asked);
        gateway.upstream().script("DOWN", vec![down]);

        let told = gateway.tasks("DOWN", "").await;
        told.assert_error("upstream_failed");
        let next = gateway.tasks("DOWN", "").await;
        let stored = gateway.tasks("STORED", "").await;

        next.assert_error("upstream_unavailable");
        let wait: u64 = next.header("retry-after").unwrap().parse().unwrap();
        assert!((left - 5..=left).contains(&wait), "{status}: {wait}");
        stored.assert_page(PAGE.as_bytes());
        assert_eq!(stored.cache_status(), "hit; detail=stale-if-error");
        assert_eq!(gateway.upstream().requests(), 2, "{status}: no further try");
        let (_, text) = operators::ask(&gateway, "GET", "/metrics").await;
        let open = "gateway_circuit_state{credential=\"default\"} 2";
        assert!(text.contains(open), "{text}");
    }
}

#[tokio::test]
async fn a_clock_that_differs_is_shown_to_operators() {
    let gateway = start().await;
    let (_, text) = operators::ask(&gateway, "GET", "/metrics").await;
    assert!(
        text.contains("\ngateway_upstream_clock_skew_seconds 0\n"),
        "{text}"
    );
    let answer = Scripted::json(200, PAGE).header("date", &date(-120));
    gateway.upstream().script("BEHIND", vec![answer]);

    gateway
        .tasks("BEHIND", "")
        .await
        .assert_page(PAGE.as_bytes());

    let (_, text) = operators::ask(&gateway, "GET", "/metrics").await;
    let shown = text
        .lines()
        .find_map(|line| line.strip_prefix("gateway_upstream_clock_skew_seconds "));
    let skew: i64 = shown.unwrap().parse().unwrap();
    assert!((-130..=-110).contains(&skew), "{skew}");
}

/// A page of one task with this output.
fn page_of(output: &str) -> String {
    PAGE.replace(
        "[]",
        &format!(r#"[{{"task_id":"T1","output":"{output}"}}]"#),
    )
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn every_coding_of_a_page_is_undone() {
    let gateway = start().await;
    let (once, twice) = (gzip(PAGE.as_bytes()), gzip(&gzip(PAGE.as_bytes())));
    let members = [gzip(&PAGE.as_bytes()[..9]), gzip(&PAGE.as_bytes()[9..])].concat();
    for (place, (codings, body)) in [
        (vec!["gzip"], &once),
        (vec!["GZIP"], &once),
        (vec!["x-gzip"], &once),
        (vec!["gzip, identity"], &once),
        (vec!["identity", "gzip"], &once),
        (vec!["gzip"], &members),
        (vec!["gzip, gzip"], &twice),
    ]
    .into_iter()
    .enumerate()
    {
        for is_chunked in [false, true] {
            let space = format!("SPACE{place}{is_chunked}");
            let answer = Scripted::json(200, body.clone());
            let answer = if is_chunked { answer.chunked() } else { answer };
            let coded = codings.iter().fold(answer, |answer, coding| {
                answer.header("content-encoding", coding)
            });
            gateway.upstream().script(&space, vec![coded]);

            let got = gateway.tasks(&space, "").await;

            assert_eq!(got.status, 200, "{codings:?}");
            got.assert_page(PAGE.as_bytes());
        }
    }
}

/// It is not decoded and coded again: a proxy in front of the upstream has done the work.
#[tokio::test]
async fn the_gzip_that_the_upstream_sent_is_served_as_it_came() {
    let gateway = start().await;
    let page = page_of(&["a row that shrinks"; 200].join(" "));
    let sent = gzip(page.as_bytes());
    let answer = Scripted::json(200, sent.clone()).header("content-encoding", "gzip");
    gateway.upstream().script("SPACE", vec![answer]);
    let tasks = || gateway.tasks("SPACE", "");

    for accepted in ["gzip", "gzip", "gzip, deflate, br, zstd"] {
        let got = tasks().accept_encoding(accepted).await;
        assert_eq!(got.header("content-encoding"), Some("gzip"), "{accepted}");
        assert!(got.body == sent, "{accepted}");
    }
    tasks().await.assert_page(page.as_bytes());
    let brotli = tasks().accept_encoding("br, gzip;q=0.9").await;
    assert_eq!(brotli.header("content-encoding"), Some("br"));
    assert!(brotli.decoded() == page.as_bytes());
    assert_eq!(gateway.upstream().requests(), 1);
}

#[tokio::test]
async fn the_log_names_what_is_wrong_with_an_answer() {
    let simulator = Simulator::start(Options::default()).await.unwrap();
    let control = simulator.control();
    let quiet = setup().with("[telemetry]\nfilter = \"info\"\naccess_log = false");
    let served = Served::start(quiet, &simulator.base_url()).await;
    let page = || Scripted::json(200, PAGE);
    let lines = |count| (0..count).fold(page(), |answer, _| answer.header("x-line", "v"));
    let table = [
        (
            "UNKNOWN",
            page().header("content-encoding", "snappy"),
            "not known: snappy",
        ),
        (
            "PLAIN",
            page().header("content-encoding", "gzip"),
            "does not decode",
        ),
        (
            "SHORT",
            page().header("content-length", "1000"),
            "ended early",
        ),
        ("LONG", lines(300), "longer than 256 lines"),
    ];
    for (space, answer, _) in &table {
        control.script(space, vec![answer.clone()]);
        let told = served.get(&format!("/spaces/{space}/tasks")).await;
        told.assert_error("upstream_invalid_response");
    }

    served.signal("-TERM").await;

    let (_, log) = served.end().await;
    for (_, _, reason) in table {
        let named = log.iter().filter(|line| line.contains(reason)).count();
        assert_eq!(named, 1, "{reason}: {log:#?}");
    }
}

#[tokio::test]
async fn a_page_with_many_header_lines_is_taken_up_to_a_bound() {
    let gateway = start().await;
    for (count, status) in [(101, 200), (240, 200), (300, 502)] {
        let space = format!("LINES{count}");
        let page = Scripted::json(200, PAGE);
        let many = (0..count).fold(page, |answer, _| answer.header("x-line", "v"));
        gateway.upstream().script(&space, vec![many]);

        assert_eq!(gateway.tasks(&space, "").await.status, status, "{count}");
    }
}

/// An upstream that keeps its connections, and counts them.
async fn keeping(listener: TcpListener, connections: Arc<AtomicU32>) {
    let length = PAGE.len();
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{PAGE}");
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        connections.fetch_add(1, Ordering::Relaxed);
        let answer = answer.clone();
        tokio::spawn(async move {
            while raw::read_head(&mut stream).await {
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
    }
}

#[tokio::test]
async fn no_call_goes_over_a_connection_older_than_allowed() {
    for (max_age, calls, connections) in [("60s", 20, 1..=19), ("1ns", 5, 5..=5)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base_url = format!("http://{}", listener.local_addr().unwrap());
        let made = Arc::new(AtomicU32::new(0));
        let upstream = tokio::spawn(keeping(listener, made.clone()));
        let aged = format!("[upstream]\nconnection_max_age = \"{max_age}\"");
        let gateway = setup().with(&aged).start_before(&base_url).await;

        for page in 1..=calls {
            let query = format!("?page={page}");
            let answer = gateway.tasks("SPACE", &query).await;
            assert_eq!(answer.status, 200, "{max_age}");
        }

        let made = made.load(Ordering::Relaxed);
        assert!(connections.contains(&made), "{max_age}: {made}");
        upstream.abort();
    }
}
