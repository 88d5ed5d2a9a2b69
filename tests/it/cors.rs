//! What browsers may read: for the tasks routes alone, told by the configuration alone, on errors too.

use unpod_gateway::simulator::{Scripted, world};

use crate::{
    answer::{Answer, Ask},
    gateway::{Gateway, READER, Setup, client, setup},
    raw,
};

const APP: &str = "https://app.example.com";
const PARTNER: &str = "https://north.partner.example:8443";
const EVIL: &str = "https://evil.test";

fn with_cors() -> Setup {
    setup()
        .with("[cors]\norigins = [\"https://app.example.com\", \"https://*.partner.example:8443\"]")
}

/// Every spelling of the tasks route.
fn paths() -> [String; 4] {
    let space = world::SUPPORT;
    [
        format!("/spaces/{space}/tasks"),
        format!("/spaces/{space}/tasks/"),
        format!("/api/v2/platform/spaces/{space}/tasks"),
        format!("/api/v2/platform/spaces/{space}/tasks/"),
    ]
}

fn path() -> String {
    let [short, ..] = paths();
    short
}

/// As a browser asks before it sends the key.
fn preflight(gateway: &Gateway, path: &str, origin: &str) -> Ask {
    gateway
        .ask("OPTIONS", path)
        .without_key()
        .header("origin", origin)
        .header("access-control-request-method", "GET")
        .header("access-control-request-headers", "authorization")
}

fn access_control(answer: &Answer) -> Vec<(&str, &str)> {
    let mut fields: Vec<_> = answer
        .headers
        .keys()
        .map(http::HeaderName::as_str)
        .filter(|name| name.starts_with("access-control-"))
        .map(|name| (name, answer.header(name).unwrap()))
        .collect();
    fields.sort_unstable();
    fields
}

/// Asserts that a page at `origin` may read `answer` and the fields that matter to it.
#[track_caller]
fn assert_readable(answer: &Answer, origin: &str) {
    let exposed = "ETag, Link, Cache-Status, X-Request-Id, RateLimit, RateLimit-Policy, \
                   X-List-Generation, X-List-Scope, Age, Retry-After, Date";
    let expected = [
        ("access-control-allow-origin", origin),
        ("access-control-expose-headers", exposed),
    ];
    assert_eq!(access_control(answer), expected, "{}", answer.status);
    assert_varies(answer);
}

#[track_caller]
fn assert_varies(answer: &Answer) {
    let vary = "Accept-Encoding, Authorization, Origin";
    assert_eq!(answer.header("vary"), Some(vary), "{}", answer.status);
}

#[tokio::test]
async fn a_preflight_is_answered_before_anybody_is_asked_for_a_key() {
    let gateway = with_cors().start().await;
    for path in paths() {
        for origin in [APP, PARTNER] {
            let answer = preflight(&gateway, &path, origin).await;

            assert_eq!(answer.status, 204, "{path}");
            let expected = [
                (
                    "access-control-allow-headers",
                    "authorization, if-none-match, cache-control, last-event-id, x-request-id, \
                     traceparent, tracestate, baggage",
                ),
                ("access-control-allow-methods", "GET, HEAD"),
                ("access-control-allow-origin", origin),
                ("access-control-max-age", "600"),
            ];
            assert_eq!(access_control(&answer), expected, "{path}");
            assert_varies(&answer);
        }
    }
    assert_eq!(gateway.upstream().requests(), 0);
}

#[tokio::test]
async fn a_preflight_is_told_the_same_whatever_it_asks_about() {
    let gateway = with_cors()
        .with("[cors]\nallow_headers = [\"X-My-Trace\", \"b3\", \"Baggage\"]")
        .start()
        .await;
    let own = "authorization, if-none-match, cache-control, last-event-id, x-request-id, traceparent, tracestate, baggage";
    let many = "x-my-trace,".repeat(200);
    for asked in [
        "authorization",
        "authorization,traceparent,tracestate,baggage,x-my-trace,b3",
        "AUTHORIZATION , X-My-TRACE",
        "b3,b3,b3",
        "",
        ",",
        "x-other",
        "*",
        many.as_str(),
    ] {
        let answer = gateway
            .ask("OPTIONS", &path())
            .without_key()
            .header("origin", APP)
            .header("access-control-request-method", "GET")
            .header("access-control-request-headers", asked)
            .await;
        assert_eq!(answer.status, 204, "{asked}");
        let allowed = answer.header("access-control-allow-headers");
        assert_eq!(allowed, Some(&*format!("{own}, x-my-trace, b3")), "{asked}");
    }
    // Lists of names on lines of their own, and none at all.
    let twice =
        "Access-Control-Request-Headers: b3\r\nAccess-Control-Request-Headers: x-my-trace\r\n";
    for lines in ["", twice] {
        let lines = format!("Origin: {APP}\r\nAccess-Control-Request-Method: GET\r\n{lines}");
        let answer = raw::send(gateway.address(), "OPTIONS", &path(), &lines).await;
        assert_eq!(answer.status, 204);
        let allowed = answer.header("access-control-allow-headers");
        assert_eq!(allowed, Some(&*format!("{own}, x-my-trace, b3")));
    }
}

#[tokio::test]
async fn a_preflight_from_another_origin_is_told_nothing() {
    let gateway = with_cors().start().await;
    for origin in [
        EVIL,
        "null",
        "*",
        "http://app.example.com",
        "https://app.example.com:8443",
        "https://app.example.com.evil.test",
        "https://partner.example:8443",
        "https://a.b.partner.example:8443",
        "https://north.partner.example",
    ] {
        let answer = preflight(&gateway, &path(), origin).await;

        assert_eq!(answer.status, 204, "{origin}");
        assert_eq!(access_control(&answer), [], "{origin}");
        assert_varies(&answer);
    }
}

#[tokio::test]
async fn a_page_is_readable_by_the_origins_that_are_named_and_varies_by_all() {
    let gateway = with_cors().start().await;
    for path in paths() {
        for origin in [APP, PARTNER] {
            let answer = gateway.get(&path).header("origin", origin).await;
            assert_eq!(answer.status, 200);
            assert_readable(&answer, origin);
        }
        let head = gateway.ask("HEAD", &path).header("origin", APP).await;
        assert_readable(&head, APP);
        let etag = head.header("etag").unwrap();
        let known = gateway.get(&path).header("origin", APP);
        let known = known.if_none_match(etag).await;
        assert_eq!(known.status, 304);
        assert_readable(&known, APP);

        // Another origin's request is served: it is the browser that hides it.
        for asked in [
            gateway.get(&path).header("origin", EVIL),
            gateway.get(&path),
        ] {
            let answer = asked.await;
            assert_eq!(answer.status, 200);
            assert_eq!(access_control(&answer), []);
            assert_varies(&answer);
        }
    }
}

#[tokio::test]
async fn two_origins_are_none() {
    let gateway = with_cors().start().await;
    let lines = format!("Authorization: Token {READER}\r\nOrigin: {APP}\r\nOrigin: {APP}\r\n");

    let answer = raw::send(gateway.address(), "GET", &path(), &lines).await;

    assert_eq!(answer.status, 200);
    assert_eq!(access_control(&answer), []);
}

#[tokio::test]
async fn a_browser_may_read_why_it_was_refused() {
    let limited = client(
        "limited",
        "ugw_limited_key",
        "spaces = [\"*\"]\nrate_limit = { per_second = 0.0001, burst = 1 }",
    );
    let narrow = client("narrow", "ugw_narrow_key", "spaces = [\"OTHER\"]");
    let gateway = with_cors().with(&(limited + &narrow)).start().await;
    gateway
        .upstream()
        .script("FAILING", vec![Scripted::new(500, "")]);
    let get = |path: &str| gateway.get(path).header("origin", APP);
    let rejected = Scripted::json(422, r#"{"status_code":422,"message":"no"}"#);
    gateway.upstream().script("REJECTED", vec![rejected]);
    let spent = Scripted::json(429, "{}");
    for (code, ask) in [
        ("unauthenticated", get(&path()).without_key()),
        ("unauthenticated", get(&path()).key("ugw_wrong")),
        ("invalid_parameter", get(&format!("{}?page=0", path()))),
        ("invalid_space_token", get("/spaces/a%20b/tasks")),
        ("invalid_space_token", get("/spaces//tasks")),
        ("space_not_allowed", get(&path()).key("ugw_narrow_key")),
        (
            "method_not_allowed",
            gateway.ask("POST", &path()).header("origin", APP),
        ),
        ("not_cached", get(&path()).cache_control("only-if-cached")),
        (
            "space_not_found",
            get(&format!("/spaces/{}/tasks", world::UNKNOWN_SPACE)),
        ),
        ("upstream_failed", get("/spaces/FAILING/tasks")),
        ("upstream_rejected", get("/spaces/REJECTED/tasks")),
    ] {
        let answer = ask.await;
        answer.assert_error(code);
        assert_readable(&answer, APP);
    }
    get(&path()).key("ugw_limited_key").await;
    let refused = get(&path()).key("ugw_limited_key").await;
    refused.assert_error("rate_limited");
    assert_readable(&refused, APP);

    gateway.upstream().script("SPENT", vec![spent]);
    let exhausted = get("/spaces/SPENT/tasks").await;
    exhausted.assert_error("upstream_quota_exhausted");
    assert_readable(&exhausted, APP);
}

#[tokio::test]
async fn a_browser_may_read_that_there_is_too_much_to_do_and_a_preflight_is_none_of_it() {
    let gateway = with_cors()
        .with("[server]\nmax_in_flight = 1")
        .start()
        .await;
    let hold = gateway.upstream().hold();
    let first = gateway.get(&path()).spawn();
    gateway.upstream().wait_for_requests(1).await;

    let refused = gateway.get(&path()).header("origin", APP).await;
    let asked = preflight(&gateway, &path(), APP).await;

    refused.assert_error("overloaded");
    assert_readable(&refused, APP);
    assert_eq!(asked.status, 204);
    hold.release();
    assert_eq!(first.await.unwrap().status, 200);
}

#[tokio::test]
async fn other_routes_have_no_cors() {
    let gateway = with_cors().start().await;
    for (path, code) in [
        ("/browser-tokens", "unauthenticated"),
        ("/nowhere", "unauthenticated"),
        ("/openapi.json", "method_not_allowed"),
        ("/healthz", "method_not_allowed"),
    ] {
        let answer = preflight(&gateway, path, APP).await;
        answer.assert_error(code);
        assert_eq!(access_control(&answer), [], "{path}");
        assert_eq!(
            answer.header("vary"),
            Some("Accept-Encoding, Authorization")
        );
    }
    let document = gateway.get("/openapi.json").header("origin", APP).await;
    assert_eq!(access_control(&document), []);
}

#[tokio::test]
async fn an_options_that_is_no_preflight_is_a_request_like_any_other() {
    let gateway = with_cors().start().await;
    let options = || gateway.ask("OPTIONS", &path()).header("origin", APP);

    let stranger = options().without_key().await;
    stranger.assert_error("unauthenticated");
    assert_readable(&stranger, APP);
    let known = options().await;
    known.assert_error("method_not_allowed");
    assert_eq!(known.header("allow"), Some("GET, HEAD"));
    assert_readable(&known, APP);
}

#[tokio::test]
async fn without_a_configured_origin_there_is_no_cors() {
    let gateway = setup().start().await;
    let asked = preflight(&gateway, &path(), APP).await;
    asked.assert_error("unauthenticated");
    let with_key = preflight(&gateway, &path(), APP).key(READER).await;
    with_key.assert_error("method_not_allowed");
    let page = gateway.get(&path()).header("origin", APP).await;
    assert_eq!(page.status, 200);
    for answer in [asked, with_key, page] {
        assert_eq!(access_control(&answer), []);
        assert_eq!(
            answer.header("vary"),
            Some("Accept-Encoding, Authorization")
        );
    }
}

#[tokio::test]
async fn foreign_preflights_count_as_nobodys_failed_key() {
    let gateway = with_cors().with("[auth]\nmax_failures = 1").start().await;
    for _ in 0..5 {
        let answer = preflight(&gateway, &path(), EVIL).await;
        assert_eq!(answer.status, 204);
    }
    let first = gateway.get(&path()).key("ugw_wrong").await;
    first.assert_error("unauthenticated");
}
