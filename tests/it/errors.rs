//! Every error of the contract that the wire can bring about: its code, its status, and what it costs upstream.

use std::time::Duration;

use unpod_gateway::simulator::{Fault, FaultKind, Scripted, world};

use crate::{
    gateway::{Setup, setup, start},
    raw::RawUpstream,
};

/// Long enough for a loaded machine to answer, short enough to wait for in a test.
const SHORT_DEADLINE: &str = "[upstream]\ntimeout = \"300ms\"";
/// The error of another of the upstream's dialects.
const RATE_LIMIT_EXCEEDED: &str =
    r#"{"error":{"code":"rate_limit_exceeded","message":"Too many requests"}}"#;
const SMALL_BODIES: &str = "[upstream]\nmax_body = \"4KiB\"";

fn envelope(status_code: u16, message: &str) -> String {
    format!(r#"{{"status_code":{status_code},"message":"{message}","data":{{}}}}"#)
}

fn inner_failure(inner: &str) -> String {
    let inner = serde_json::Value::from(inner);
    format!(
        r#"{{"status_code":206,"message":"Tasks Fetch Failed","data":{{"errors":{inner}}},"errors":{inner}}}"#
    )
}

fn html(status: u16) -> Scripted {
    Scripted::new(status, "<!DOCTYPE html><html>no</html>").header("content-type", "text/html")
}

fn text(status: u16) -> Scripted {
    Scripted::new(status, "Request blocked").header("content-type", "text/plain")
}

fn said(status: u16, message: &str) -> Scripted {
    Scripted::json(status, envelope(status, message))
}

/// Asks once for each answer and compares the codes; each costs one call.
///
/// Each row has a gateway of its own: some answers have consequences for the whole credential.
async fn assert_codes(setup: Setup, table: Vec<(&str, Scripted)>) {
    for (code, answer) in table {
        let gateway = setup.clone().start().await;
        gateway.upstream().script("ROW", vec![answer.clone()]);

        let got = gateway.tasks("ROW", "").await;

        assert_eq!(got.code(), code, "{answer:?}");
        assert_eq!(gateway.upstream().requests(), 1, "{answer:?}");
    }
}

#[tokio::test]
async fn a_206_means_what_its_message_says() {
    let inner = |text| Scripted::json(206, inner_failure(text));
    let table = vec![
        ("space_not_found", said(206, "Invalid Space Token")),
        ("space_not_found", said(206, "invalid space token")),
        (
            "space_access_denied",
            said(206, "You Don't have Access to this Space"),
        ),
        (
            "space_access_denied",
            said(206, "You Don't have Access to do operation to this Space"),
        ),
        ("upstream_failed", said(206, "Invalid Role Code")),
        ("upstream_failed", said(206, "Tasks Fetch Failed")),
        ("upstream_failed", said(206, "Runs Fetch Failed")),
        ("upstream_failed", inner("<html>502 at inner-host</html>")),
        ("upstream_failed", inner("")),
        ("upstream_failed", inner(r#"{"detail":"slow down"}"#)),
        (
            "upstream_rejected",
            inner(r#"{"detail":"skip must be >= 0"}"#),
        ),
        (
            "upstream_rejected",
            inner(r#"{"detail":"MongoDB can only handle up to 8-byte ints"}"#),
        ),
        ("upstream_rejected", said(206, "A message nobody has seen")),
        ("upstream_rejected", Scripted::json(206, "{}")),
        // What is no JSON is not the upstream's own word.
        ("upstream_failed", Scripted::new(206, "")),
        ("upstream_failed", Scripted::new(206, "partial content")),
        ("upstream_failed", Scripted::json(206, "[]")),
        ("upstream_failed", html(206)),
        (
            "upstream_rejected",
            Scripted::json(206, r#"{"count":1,"status_code":200,"data":[]}"#),
        ),
    ];
    assert_codes(setup(), table).await;
}

#[tokio::test]
async fn an_operators_rule_goes_before_the_built_in_ones() {
    let rules = "[[normalize.rules]]\ncontains = \"fetch FAILED\"\ncode = \"upstream_rejected\"\n\
                 [[normalize.rules]]\ncontains = \"Plan used up\"\ncode = \"upstream_quota_exhausted\"";
    let table = vec![
        ("upstream_rejected", said(206, "Tasks Fetch Failed")),
        ("upstream_quota_exhausted", said(206, "Your plan used up.")),
        ("space_not_found", said(206, "Invalid Space Token")),
    ];
    assert_codes(setup().with(rules), table).await;
}

#[tokio::test]
async fn a_status_means_what_the_contract_says() {
    let expired = said(403, "Token has expired.");
    let without_status_code =
        r#"{"message": "Unauthorized Access", "error": "Expired Auth Token"}"#;
    let table = vec![
        (
            "upstream_rejected",
            said(400, "Org-Handle header is required."),
        ),
        ("upstream_rejected", said(422, "no")),
        ("upstream_auth_failed", said(401, "Invalid token.")),
        (
            "upstream_auth_failed",
            Scripted::json(401, without_status_code),
        ),
        (
            "upstream_auth_failed",
            Scripted::json(401, r#"{"error":{"code":"unauthorized","message":"no"}}"#),
        ),
        ("upstream_failed", html(401)),
        ("upstream_failed", Scripted::new(401, "")),
        ("upstream_failed", text(401)),
        ("upstream_failed", text(403)),
        ("upstream_failed", Scripted::new(403, "")),
        (
            "upstream_failed",
            Scripted::json(403, r#"{"message":"Forbidden"}"#),
        ),
        ("upstream_failed", text(422)),
        ("upstream_failed", text(400)),
        ("upstream_failed", text(404)),
        ("upstream_failed", text(410)),
        (
            "upstream_quota_exhausted",
            said(403, "no").header("retry-after", "30"),
        ),
        (
            "upstream_quota_exhausted",
            text(403).header("x-ratelimit-remaining", "0"),
        ),
        (
            "upstream_quota_exhausted",
            Scripted::json(429, RATE_LIMIT_EXCEEDED),
        ),
        (
            "upstream_quota_exhausted",
            Scripted::json(403, RATE_LIMIT_EXCEEDED),
        ),
        // The header is enough: what follows it may break.
        (
            "upstream_quota_exhausted",
            said(429, "no").header("content-length", "1000"),
        ),
        (
            "upstream_failed",
            said(403, "no").header("content-length", "1000"),
        ),
        ("upstream_failed", said(408, "no")),
        ("upstream_failed", said(425, "no")),
        ("upstream_failed", said(451, "no")),
        ("upstream_failed", said(302, "no")),
        ("upstream_failed", Scripted::new(205, "")),
        ("upstream_auth_failed", expired),
        (
            "space_access_denied",
            said(403, "You do not have permission."),
        ),
        ("space_not_found", said(404, "Space not found.")),
        ("space_not_found", said(410, "gone")),
        ("upstream_failed", html(404)),
        ("upstream_failed", html(403)),
        ("upstream_quota_exhausted", said(429, "slow down")),
        ("upstream_quota_exhausted", html(429)),
        ("upstream_failed", html(500)),
        ("upstream_failed", said(500, "no")),
        ("upstream_failed", html(502)),
        ("upstream_failed", html(503)),
        ("upstream_failed", html(504)),
        ("upstream_failed", said(406, "no")),
        ("upstream_failed", said(418, "no")),
        ("upstream_failed", Scripted::new(204, "")),
        (
            "upstream_failed",
            Scripted::json(201, r#"{"count":0,"data":[]}"#),
        ),
        ("upstream_failed", Scripted::new(599, "")),
        ("upstream_failed", Scripted::new(304, "")),
        (
            "upstream_failed",
            Scripted::new(304, "").header("etag", "\"x\""),
        ),
    ];
    assert_codes(setup(), table).await;
}

#[tokio::test]
async fn a_failure_told_in_the_body_of_a_200_counts_as_that_status() {
    let under_200 = |status_code, message| Scripted::json(200, envelope(status_code, message));
    let with_page = |status_code: u32| {
        Scripted::json(
            200,
            format!(r#"{{"count":0,"status_code":{status_code},"message":"no","data":[]}}"#),
        )
    };
    let table = vec![
        ("space_not_found", under_200(404, "Space not found.")),
        ("upstream_failed", under_200(500, "no")),
        ("space_not_found", under_200(206, "Invalid Space Token")),
        ("upstream_rejected", under_200(206, "unheard of")),
        ("upstream_auth_failed", under_200(401, "Invalid token.")),
        ("upstream_auth_failed", under_200(403, "Token has expired.")),
        ("space_access_denied", under_200(403, "no")),
        ("upstream_rejected", under_200(422, "no")),
        ("upstream_quota_exhausted", under_200(429, "no")),
        ("space_not_found", with_page(404)),
        ("upstream_failed", with_page(70_000)),
    ];
    assert_codes(setup(), table).await;
}

#[tokio::test]
async fn a_200_that_is_no_page_is_an_invalid_response() {
    let json = |body: &'static str| Scripted::json(200, body);
    let page = r#"{"count":1,"status_code":200,"message":"ok","data":[{"task_id":"T"}]}"#;
    let padded = format!(
        r#"{{"count":1,"status_code":200,"message":"ok","data":["{}"]}}"#,
        "x".repeat(5000)
    );
    let table = vec![
        ("upstream_invalid_response", json("")),
        ("upstream_invalid_response", json(&page[..page.len() - 1])),
        ("upstream_invalid_response", json(&page[..20])),
        ("upstream_invalid_response", json("null")),
        ("upstream_invalid_response", json("[]")),
        ("upstream_invalid_response", json("\"a page\"")),
        (
            "upstream_invalid_response",
            json(r#"{"count":1,"data":[]}x"#),
        ),
        ("upstream_invalid_response", json(r#"{"count":1}"#)),
        ("upstream_invalid_response", json(r#"{"data":[]}"#)),
        (
            "upstream_invalid_response",
            json(r#"{"count":null,"data":null}"#),
        ),
        (
            "upstream_invalid_response",
            json(r#"{"count":1,"data":{"0":1}}"#),
        ),
        (
            "upstream_invalid_response",
            json(r#"{"count":"1","data":[]}"#),
        ),
        (
            "upstream_invalid_response",
            json(r#"{"count":1.5,"data":[]}"#),
        ),
        (
            "upstream_invalid_response",
            json(r#"{"count":-1,"data":[]}"#),
        ),
        (
            "upstream_invalid_response",
            Scripted::json(200, padded.clone()),
        ),
        (
            "upstream_invalid_response",
            Scripted::json(200, padded).chunked(),
        ),
        (
            "upstream_invalid_response",
            json(page).header("content-length", "1000"),
        ),
        (
            "upstream_invalid_response",
            json(page).header("content-encoding", "gzip"),
        ),
        (
            "upstream_invalid_response",
            Scripted::new(200, &b"{\"count\":1,\"data\":[\"\xff\"]}"[..]),
        ),
        ("upstream_failed", html(200)),
        ("upstream_failed", json(" \n<html></html>")),
    ];
    assert_codes(setup().with(SMALL_BODIES), table).await;
}

#[tokio::test]
async fn a_page_is_taken_however_it_is_labelled_and_framed() {
    let page = r#"{"count":1,"status_code":200,"message":"ok","data":[{"task_id":"T"}]}"#;
    let gateway = start().await;
    for (space, answer) in [
        ("PLAIN", Scripted::new(200, page)),
        ("CHUNKED", Scripted::json(200, page).chunked()),
        (
            "TEXT",
            Scripted::new(200, page).header("content-type", "text/plain"),
        ),
        ("TEXTUAL", Scripted::json(200, r#"{"data":[],"count":0}"#)),
        (
            "STRINGLY",
            Scripted::json(200, r#"{"status_code":"404","count":0,"data":[]}"#),
        ),
    ] {
        gateway.upstream().script(space, vec![answer]);

        let got = gateway.tasks(space, "").await;

        assert_eq!(got.status, 200, "{space}");
        assert_eq!(got.header("content-type"), Some("application/json"));
    }
}

#[tokio::test]
async fn a_gzip_bomb_is_an_invalid_response() {
    let gateway = start().await;
    let bomb = Fault::always(FaultKind::GzipBomb);
    gateway.upstream().set_faults(vec![bomb]);

    let answer = gateway.tasks(world::SUPPORT, "").await;

    answer.assert_error("upstream_invalid_response");
}

#[tokio::test]
async fn a_connection_that_breaks_is_unreachable() {
    let gateway = start().await;
    let reset = Fault::always(FaultKind::Reset);
    gateway.upstream().set_faults(vec![reset]);

    let answer = gateway.tasks(world::SUPPORT, "").await;

    answer.assert_error("upstream_unreachable");
}

#[tokio::test]
async fn a_refused_connection_is_unreachable() {
    let mut gateway = start().await;
    gateway.stop_upstream().await;

    let answer = gateway.tasks(world::SUPPORT, "").await;

    answer.assert_error("upstream_unreachable");
}

#[tokio::test]
async fn an_upstream_that_speaks_no_tls_is_unreachable() {
    let plain = RawUpstream::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let https = format!("https://{}", plain.address());
    // Its handshake never makes a whole HTTP head, so it is the deadline of the connection that ends it.
    let impatient = "[upstream]\nconnect_timeout = \"200ms\"";
    let gateway = setup().with(impatient).start_before(&https).await;

    let answer = gateway.tasks(world::SUPPORT, "").await;

    answer.assert_error("upstream_unreachable");
    assert_eq!(plain.requests(), 0);
}

#[tokio::test]
async fn an_upstream_that_hangs_is_given_up_at_the_deadline() {
    let gateway = setup().with(SHORT_DEADLINE).start().await;
    for fault in [FaultKind::Hang, FaultKind::SlowBody] {
        gateway.upstream().set_faults(vec![Fault::always(fault)]);

        let answer = gateway.tasks(world::SUPPORT, "").await;

        answer.assert_error("upstream_timeout");
    }
}

#[tokio::test]
async fn a_spent_quota_says_when_to_come_back() {
    let gateway = start().await;
    let spent = said(429, "no").header("retry-after", "70");
    gateway.upstream().script("SPENT", vec![spent]);

    let told = gateway.tasks("SPENT", "").await;

    told.assert_error("upstream_quota_exhausted");
    assert_eq!(told.header("retry-after"), Some("70"));
    assert_eq!(told.cache_status(), "fwd=uri-miss");
    let again = gateway.tasks("SPENT", "").await;
    again.assert_error("upstream_quota_exhausted");
    assert_eq!(again.cache_status(), "detail=quota");
    assert_eq!(gateway.upstream().requests_to("SPENT"), 1);
}

#[tokio::test]
async fn only_if_cached_asks_nobody() {
    let gateway = start().await;

    let answer = gateway
        .tasks(world::SUPPORT, "")
        .cache_control("only-if-cached")
        .await;

    answer.assert_error("not_cached");
    assert_eq!(answer.cache_status(), "detail=only-if-cached");
    assert_eq!(gateway.upstream().requests(), 0);
}

#[tokio::test]
async fn beyond_max_in_flight_a_request_is_refused_and_the_process_still_serves() {
    let gateway = setup().with("[server]\nmax_in_flight = 1").start().await;
    let hold = gateway.upstream().hold();
    let first = gateway.tasks(world::SUPPORT, "").spawn();
    gateway.upstream().wait_for_requests(1).await;

    let second = gateway.tasks(world::ARCHIVE, "").await;
    let health = gateway.get("/healthz").without_key().await;

    second.assert_error("overloaded");
    assert_eq!((health.status, &health.body[..]), (200, &b"ok"[..]));
    hold.release();
    assert_eq!(first.await.unwrap().status, 200);
    assert_eq!(gateway.upstream().requests(), 1);
}

#[tokio::test]
async fn beyond_the_upstream_queue_a_fill_is_refused() {
    let narrow = "[upstream]\nmax_concurrency = 1\nmax_queue = 0";
    let gateway = setup().with(narrow).start().await;
    let hold = gateway.upstream().hold();
    let first = gateway.tasks(world::SUPPORT, "").spawn();
    gateway.upstream().wait_for_requests(1).await;

    let second = gateway.tasks(world::ARCHIVE, "").await;

    second.assert_error("overloaded");
    hold.release();
    assert_eq!(first.await.unwrap().status, 200);
}

#[tokio::test]
async fn the_upstream_never_has_more_than_its_slots_full() {
    let narrow = "[upstream]\nmax_concurrency = 3";
    let gateway = setup().with(narrow).start().await;
    let hold = gateway.upstream().hold();
    let asked: Vec<_> = (1..=12)
        .map(|page| {
            let query = format!("?page={page}&page_size=1");
            gateway.tasks(world::SUPPORT, &query).spawn()
        })
        .collect();
    gateway.wait_until_in_flight(12).await;
    gateway.upstream().wait_for_requests(3).await;

    hold.release();

    for answer in asked {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    assert_eq!(gateway.upstream().max_in_flight(), 3);
}

#[tokio::test]
async fn only_what_may_pass_is_tried_again() {
    let page = || Scripted::json(200, r#"{"count":0,"data":[]}"#);
    let good_at_last = |bad: Scripted| vec![bad.clone(), bad, page()];
    let table = [
        ("A502", good_at_last(html(502)), "", 3),
        ("A503", good_at_last(html(503)), "", 3),
        ("A504", good_at_last(html(504)), "", 3),
        (
            "INNER",
            good_at_last(said(206, "Tasks Fetch Failed")),
            "",
            3,
        ),
        ("LASTING", vec![html(503)], "upstream_failed", 3),
        ("A500", good_at_last(html(500)), "upstream_failed", 1),
        (
            "SLOW",
            good_at_last(Scripted::json(206, inner_failure("slow down"))),
            "upstream_failed",
            1,
        ),
        (
            "A401",
            good_at_last(said(401, "")),
            "upstream_auth_failed",
            1,
        ),
        ("A404", good_at_last(said(404, "")), "space_not_found", 1),
        (
            "A429",
            good_at_last(said(429, "")),
            "upstream_quota_exhausted",
            1,
        ),
        (
            "BROKEN",
            good_at_last(Scripted::json(200, "{")),
            "upstream_invalid_response",
            1,
        ),
        (
            "UNHEARD",
            good_at_last(said(206, "unheard of")),
            "upstream_rejected",
            1,
        ),
    ];
    for (space, answers, code, calls) in table {
        let gateway = setup().with("[upstream]\nretries = 2").start().await;
        gateway.upstream().script(space, answers);

        let answer = gateway.tasks(space, "").await;

        assert_eq!(answer.code(), code, "{space}");
        assert_eq!(gateway.upstream().requests_to(space), calls, "{space}");
    }
}

#[tokio::test]
async fn an_upstream_that_asks_for_more_patience_than_there_is_gets_no_further_try() {
    // Were it waited for, the test would hang.
    let patient = "[server]\nrequest_timeout = \"2h\"\n[upstream]\ntimeout = \"1h\"\nretries = 2";
    let gateway = setup().with(patient).start().await;
    let busy = Scripted::new(503, "").header("retry-after", "3600");
    gateway.upstream().script("BUSY", vec![busy]);

    let told = gateway.tasks("BUSY", "").await;

    told.assert_error("upstream_failed");
    assert_eq!(gateway.upstream().requests_to("BUSY"), 1);
}

#[tokio::test]
async fn an_error_names_what_the_cache_did() {
    let gateway = start().await;
    let asked = gateway.tasks(world::UNKNOWN_SPACE, "").await;
    let remembered = gateway.tasks(world::UNKNOWN_SPACE, "").await;
    let unasked = gateway.tasks(world::SUPPORT, "?page=0").await;

    assert_eq!(asked.cache_status(), "fwd=uri-miss");
    assert_eq!(remembered.cache_status(), "hit");
    assert_eq!(unasked.header("cache-status"), None);
}

#[tokio::test]
async fn a_request_id_is_kept_where_it_is_fit() {
    let gateway = start().await;
    let asked = |id| gateway.get("/nowhere").header("x-request-id", id);
    let longest = "a".repeat(64);
    for id in ["req-1.A_z", longest.as_str()] {
        assert_eq!(asked(id).await.header("x-request-id"), Some(id));
    }
    let too_long = "a".repeat(65);
    for id in ["has space", "<script>", too_long.as_str()] {
        let answer = asked(id).await;
        assert_ne!(answer.header("x-request-id"), Some(id));
        assert!(!String::from_utf8_lossy(&answer.body).contains(id));
    }
}

#[tokio::test]
async fn a_deadline_covers_waiting_for_a_slot() {
    let narrow = "[upstream]\nmax_concurrency = 1\ntimeout = \"300ms\"";
    let gateway = setup().with(narrow).start().await;
    let _hold = gateway.upstream().hold();
    let first = gateway.tasks(world::SUPPORT, "").spawn();
    gateway.upstream().wait_for_requests(1).await;

    let waiting = gateway.tasks(world::ARCHIVE, "").await;

    waiting.assert_error("upstream_timeout");
    first.await.unwrap().assert_error("upstream_timeout");
}

#[tokio::test]
async fn the_gateways_own_credential_is_never_the_clients_401() {
    let gateway = start().await;
    gateway.upstream().revoke_token(world::ACME_TOKEN);

    let refused = gateway.tasks(world::SUPPORT, "").await;
    refused.assert_error("upstream_auth_failed");
    assert_eq!(refused.header("www-authenticate"), None);
}

#[tokio::test]
async fn a_slow_upstream_within_the_deadline_is_waited_for() {
    let gateway = start().await;
    gateway.upstream().set_latency(Duration::from_millis(30));

    let answer = gateway.tasks(world::SUPPORT, "").await;

    let expected = gateway.upstream().expect_page(world::SUPPORT, 1, 20);
    answer.assert_page(&expected);
}
