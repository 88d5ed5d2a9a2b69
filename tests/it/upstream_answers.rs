//! What the upstream says of its clock, its limits and itself: how far it is believed, and what a client sees of it.

use std::time::{Duration, SystemTime};

use unpod_gateway::simulator::Scripted;

use crate::{
    gateway::{setup, start},
    operators,
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
        // More than half of it is left in the first minute.
        let gateway = setup()
            .with("[upstream]\nquota_per_minute = 5")
            .start()
            .await;
        let throttled = fields
            .iter()
            .fold(Scripted::json(429, "{}"), |answer, (name, value)| {
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
        assert!(
            told.iter().all(|wait| about.contains(wait)),
            "{fields:?}: {told:?}"
        );
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
