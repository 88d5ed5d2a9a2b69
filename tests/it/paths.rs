//! What a client may ask for, and how little of it reaches the upstream.

use http_body_util::BodyExt as _;
use unpod_gateway::simulator::{RecordedRequest, Scripted, world};

use crate::{
    gateway::{Gateway, READER, REFRESHER, client, setup, start},
    http2::{self, Http2},
    raw,
};

const FORMS: [&str; 4] = [
    "/spaces/{}/tasks",
    "/spaces/{}/tasks/",
    "/api/v2/platform/spaces/{}/tasks",
    "/api/v2/platform/spaces/{}/tasks/",
];

fn targets(gateway: &Gateway) -> Vec<String> {
    let recorded = gateway.upstream().recorded();
    recorded.into_iter().map(|request| request.target).collect()
}

fn upstream_target(space: &str, page: u32, size: u32) -> String {
    format!("/api/v2/platform/spaces/{space}/tasks/?page={page}&page_size={size}")
}

#[tokio::test]
async fn four_forms_of_the_path_are_one_page() {
    let gateway = start().await;
    let expected = gateway.upstream().expect_page(world::SUPPORT, 1, 20);
    for form in FORMS {
        let answer = gateway.get(&form.replace("{}", world::SUPPORT)).await;
        answer.assert_page(&expected);
    }
    assert_eq!(targets(&gateway), [upstream_target(world::SUPPORT, 1, 20)]);
}

#[tokio::test]
async fn a_percent_encoded_token_is_the_token_it_stands_for() {
    let gateway = start().await;
    let encoded: String = world::SUPPORT
        .bytes()
        .map(|byte| format!("%{byte:02x}"))
        .collect();
    for form in FORMS {
        let answer = raw::get(gateway.address(), &form.replace("{}", &encoded)).await;
        assert_eq!(answer.status, 200, "{form}");
    }
    assert_eq!(targets(&gateway), [upstream_target(world::SUPPORT, 1, 20)]);
}

#[tokio::test]
async fn what_is_no_token_is_refused_before_the_upstream_hears_of_it() {
    let gateway = start().await;
    let long = "a".repeat(129);
    let tokens = [
        "",
        &long,
        "a%2Fb",
        "a%2fb",
        "%2F",
        "%2e%2e",
        "..%2Fadmin",
        "a%20b",
        "a+b",
        "a%00",
        "%0d%0aX:1",
        "a.b",
        "a~b",
        "%ff",
        "%C3%A4",
        "%zz",
        "a%",
        "a%3Fb",
        "a%23b",
        "*",
        "@",
        "a;b",
        "%2525",
    ];
    for token in tokens {
        for form in FORMS {
            let answer = raw::get(gateway.address(), &form.replace("{}", token)).await;
            assert_eq!(answer.code(), "invalid_space_token", "{form} {token}");
        }
    }
    assert_eq!(gateway.upstream().recorded(), []);
}

#[tokio::test]
async fn the_longest_token_is_asked_for() {
    let gateway = start().await;
    let longest = format!("{}_-", "aZ0".repeat(42));

    gateway
        .tasks(&longest, "")
        .await
        .assert_error("space_not_found");

    assert_eq!(longest.len(), 128);
    assert_eq!(targets(&gateway), [upstream_target(&longest, 1, 20)]);
}

#[tokio::test]
async fn other_paths_are_no_route() {
    let gateway = start().await;
    for path in [
        "/",
        "/spaces",
        "/spaces/",
        "/spaces/A",
        "/spaces/A/",
        "/spaces/A/tasks/1/2",
        "/api/v2/platform/spaces/A/tasks/1/",
        "/api/v2/platform/spaces/A/changes",
        "/spaces/A/B/tasks",
        "/spaces/A/call-logs",
        "/Spaces/A/tasks",
        "//spaces/A/tasks",
        "/spaces/../spaces/A/tasks",
        "/api/v2/platform/spaces/A/",
        "/api/v2/platform/",
        "/api/v1/platform/spaces/A/tasks/",
        "/browser-tokens",
        "/metrics",
        "/readyz",
        "/config",
        "/healthz/",
    ] {
        let answer = raw::get(gateway.address(), path).await;
        assert_eq!(answer.code(), "route_not_found", "{path}");
    }
    assert_eq!(gateway.upstream().recorded(), []);
}

#[tokio::test]
async fn only_two_canonical_numbers_reach_the_upstream() {
    let gateway = start().await;
    for (query, page, size) in [
        ("", 1, 20),
        ("?page=2", 2, 20),
        ("?page_size=3", 1, 3),
        ("?page_size=003&page=0002", 2, 3),
        ("?p%61ge=%33&page_size=100", 3, 100),
        ("?page=1000000&page_size=1", 1_000_000, 1),
    ] {
        let answer = gateway.tasks(world::SUPPORT, query).await;

        assert_eq!(answer.status, 200, "{query}");
        let sent = targets(&gateway).pop();
        assert_eq!(sent, Some(upstream_target(world::SUPPORT, page, size)));
    }
}

#[tokio::test]
async fn spellings_of_one_page_cost_one_call() {
    let gateway = start().await;
    for query in [
        "",
        "?",
        "?&",
        "?page=1",
        "?page=01&page_size=20",
        "?page_size=020&page=1",
        "?p%61ge=%31",
    ] {
        assert_eq!(gateway.tasks(world::SUPPORT, query).await.status, 200);
    }
    assert_eq!(gateway.upstream().requests(), 1);
}

#[tokio::test]
async fn a_bad_query_costs_no_call_and_its_value_is_not_repeated() {
    let gateway = start().await;
    let invalid = [
        "page=0",
        "page=-1",
        "page=%2B1",
        "page=",
        "page",
        "page=1.0",
        "page=1e3",
        "page=0x1",
        "page=0_2",
        "page=1000001",
        "page=999999999999999999999999",
        "page=%D9%A2",
        "page=%201",
        "page=canary",
        "page=1&page=1",
        "page=1&p%61ge=2",
        "page_size=0",
        "page_size=101",
        "page_size=canary",
        "page_size=5&page_size=5",
    ];
    for query in invalid {
        let answer = gateway.tasks(world::SUPPORT, &format!("?{query}")).await;
        assert_eq!(answer.code(), "invalid_parameter", "{query}");
        let name = query.split('=').next().unwrap();
        let detail = answer.json()["detail"].to_string();
        assert!(detail.contains(&format!("`{name}`")), "{query}: {detail}");
        assert!(!detail.contains("canary"), "{detail}");
    }
    for name in [
        "space_id",
        "user_id",
        "thread_id",
        "search",
        "call_type",
        "from_ts",
        "to_ts",
        "format",
        "Page",
        "page_size[]",
        "_",
    ] {
        let query = format!("?page=1&{name}=canary");
        let answer = gateway.tasks(world::SUPPORT, &query).await;
        assert_eq!(answer.code(), "unknown_parameter", "{name}");
        let detail = answer.json()["detail"].to_string();
        assert!(detail.contains(name) && !detail.contains("canary"));
    }
    // Unpod's own `status` means something else than the gateway's filter, so its spelling has none.
    let vendor = FORMS[3].replace("{}", world::SUPPORT);
    let answer = gateway
        .get(&format!("{vendor}?status=canary&newest=9"))
        .await;
    assert_eq!(answer.code(), "unknown_parameter");
    assert_eq!(gateway.upstream().recorded(), []);
}

#[tokio::test]
async fn unknown_parameters_can_be_dropped_but_never_reach_the_upstream() {
    let lenient = "[routes.tasks]\nunknown_parameters = \"ignore\"";
    let gateway = setup().with(lenient).start().await;

    let answer = gateway
        .tasks(world::SUPPORT, "?space_id=8&page=2&search=.*&page_size=5")
        .await;

    let expected = gateway.upstream().expect_page(world::SUPPORT, 2, 5);
    answer.assert_page(&expected);
    assert_eq!(targets(&gateway), [upstream_target(world::SUPPORT, 2, 5)]);
}

#[tokio::test]
async fn the_largest_page_is_the_operators_choice() {
    let small = "[routes.tasks]\nmax_page_size = 10";
    let gateway = setup().with(small).start().await;

    let too_large = gateway.tasks(world::SUPPORT, "?page_size=11").await;
    too_large.assert_error("invalid_parameter");
    assert_eq!(gateway.tasks(world::SUPPORT, "").await.status, 200);

    assert_eq!(targets(&gateway), [upstream_target(world::SUPPORT, 1, 10)]);
}

#[tokio::test]
async fn head_is_get_without_its_body() {
    let gateway = start().await;
    gateway.tasks(world::SUPPORT, "").await;
    for query in ["", "?page=0"] {
        let path = format!("/spaces/{}/tasks{query}", world::SUPPORT);
        let asked = |method| gateway.ask(method, &path).header("x-request-id", "same");

        let (get, head) = (asked("GET").await, asked("HEAD").await);

        assert_eq!(head.status, get.status);
        assert!(head.body.is_empty());
        for name in get.headers.keys() {
            // These count seconds.
            if !["age", "cache-status", "date"].contains(&name.as_str()) {
                assert_eq!(head.headers.get(name), get.headers.get(name), "{name}");
            }
        }
        assert_eq!(head.headers.len(), get.headers.len());
    }
}

/// What a client sends beside its key, by what comes of it.
type Case = (
    u16,
    &'static str,
    Option<&'static str>,
    &'static [(&'static str, &'static str)],
);

// RFC 9110 section 9.3.2.
#[tokio::test]
async fn head_is_get_without_its_body_whatever_comes_of_it() {
    let narrow = client("narrow", "ugw_narrow_key", "spaces = [\"OTHER\"]");
    let gateway = setup().with(&narrow).start().await;
    for (space, status) in [("REJECTED", 422), ("FAILING", 500)] {
        let envelope = format!(r#"{{"status_code":{status},"message":"no"}}"#);
        let answer = Scripted::json(status, envelope);
        gateway.upstream().script(space, vec![answer]);
    }
    gateway.tasks(world::SUPPORT, "").await;
    let page = "/spaces/SUPPORT0000000000000000A/tasks";
    let table: &[Case] = &[
        (200, page, Some(READER), &[]),
        (200, page, Some(READER), &[("accept-encoding", "gzip")]),
        (304, page, Some(READER), &[("if-none-match", "*")]),
        (200, page, Some(READER), &[("if-none-match", "\"x\"")]),
        (200, page, Some(READER), &[("range", "bytes=0-9")]),
        (200, page, Some(READER), &[("if-match", "\"x\"")]),
        (400, "/spaces/a%20b/tasks", Some(READER), &[]),
        (401, page, None, &[]),
        (401, "/nowhere", Some("ugw_wrong"), &[]),
        (403, page, Some("ugw_narrow_key"), &[]),
        (404, "/nowhere", Some(READER), &[]),
        (
            404,
            "/spaces/NOSUCHSPACE000000000000Z/tasks/",
            Some(READER),
            &[],
        ),
        (422, "/spaces/REJECTED/tasks", Some(READER), &[]),
        (502, "/spaces/FAILING/tasks", Some(READER), &[]),
        (
            504,
            "/spaces/COLD/tasks",
            Some(READER),
            &[("cache-control", "only-if-cached")],
        ),
    ];
    let connection = Http2::connect(gateway.address()).await;
    for &(status, path, key, lines) in table {
        // What is remembered of an error is there for both.
        for _ in ["first", "again"] {
            let asked = |method: &str| {
                let ask = gateway.ask(method, path).header("x-request-id", "same");
                let ask = match key {
                    Some(key) => ask.key(key),
                    None => ask.without_key(),
                };
                let lines = lines.iter();
                lines.fold(ask, |ask, (name, value)| ask.header(name, value))
            };
            let (get, head) = (asked("GET").await, asked("HEAD").await);
            assert_eq!((get.status, head.status), (status, status), "{path}");
            assert!(head.body.is_empty());
            let expected = unclocked(&get.headers);
            assert_eq!(unclocked(&head.headers), expected, "{path} {lines:?}");

            let request = |method: &str| {
                let mut request = http2::get(path, key);
                *request.method_mut() = method.parse().unwrap();
                let given = lines.iter().chain(&[("x-request-id", "same")]);
                for (name, value) in given {
                    request.headers_mut().insert(*name, value.parse().unwrap());
                }
                connection.send(request)
            };
            let (get, head) = (request("GET").await, request("HEAD").await);
            assert_eq!((get.status(), head.status()), (get.status(), get.status()));
            let (head, body) = head.into_parts();
            assert!(body.collect().await.unwrap().to_bytes().is_empty());
            let (got, wanted) = (unclocked(&head.headers), unclocked(get.headers()));
            assert_eq!(got, wanted, "{path} {lines:?}");
            assert_eq!(wanted, expected, "{path} {lines:?}");
        }
    }
}

/// Without what counts seconds, or belongs to one version of HTTP.
fn unclocked(headers: &http::HeaderMap) -> http::HeaderMap {
    let mut headers = headers.clone();
    for name in ["age", "cache-status", "date", "connection"] {
        headers.remove(name);
    }
    headers
}

#[tokio::test]
async fn a_head_on_a_cold_page_asks_with_get() {
    let gateway = start().await;
    let path = format!("/spaces/{}/tasks", world::SUPPORT);

    let head = gateway.ask("HEAD", &path).await;

    let expected = gateway.upstream().expect_page(world::SUPPORT, 1, 20);
    assert_eq!(head.status, 200);
    assert_eq!(
        head.header("content-length"),
        Some(expected.len().to_string().as_str())
    );
    let methods: Vec<_> = gateway.upstream().recorded();
    assert_eq!(methods.len(), 1);
    assert_eq!(methods[0].method, "GET");
}

#[tokio::test]
async fn other_methods_are_refused_and_create_nothing() {
    let gateway = start().await;
    for form in FORMS {
        let path = form.replace("{}", world::SUPPORT);
        for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"] {
            let answer = gateway.ask(method, &path).await;
            answer.assert_error("method_not_allowed");
            assert_eq!(answer.header("allow"), Some("GET, HEAD"), "{method}");
        }
        let with_body = gateway.ask("POST", &path).body("{\"pilot\":1}").await;
        with_body.assert_error("method_not_allowed");
    }
    assert_eq!(gateway.upstream().recorded(), []);
    assert_eq!(gateway.upstream().posts(), 0);
}

#[tokio::test]
async fn the_method_is_judged_before_path_and_query() {
    let gateway = start().await;
    for path in ["/spaces/a%20b/tasks", "/spaces/A/tasks?page=0"] {
        let answer = gateway.ask("POST", path).await;
        answer.assert_error("method_not_allowed");
    }
    let nowhere = gateway.ask("POST", "/nowhere").await;
    nowhere.assert_error("route_not_found");
}

#[tokio::test]
async fn a_range_is_ignored() {
    let gateway = start().await;
    let expected = gateway.upstream().expect_page(world::SUPPORT, 1, 20);
    for range in ["bytes=0-1", "bytes=5-", "items=0-1"] {
        let asked = gateway.tasks(world::SUPPORT, "").header("range", range);
        asked.await.assert_page(&expected);
    }
}

fn names(request: &RecordedRequest) -> Vec<&str> {
    let mut names: Vec<&str> = request
        .headers
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn nothing_of_the_clients_header_reaches_the_upstream_but_the_request_id() {
    let gateway = start().await;
    let lines = format!(
        "Authorization: Token {READER}\r\n\
         Connection: authorization, x-evil, org-handle\r\n\
         X-Evil: evil\r\n\
         Cookie: session=evil\r\n\
         Accept: text/html\r\n\
         Accept-Language: fr\r\n\
         Accept-Encoding: identity\r\n\
         User-Agent: evil\r\n\
         Org-Handle: evil.test\r\n\
         Host: evil.test\r\n\
         X-Forwarded-For: 192.0.2.1\r\n\
         X-Forwarded-Host: evil.test\r\n\
         Forwarded: for=192.0.2.1\r\n\
         Via: 1.1 evil\r\n\
         X-Original-URL: /evil\r\n\
         X-HTTP-Method-Override: POST\r\n\
         If-None-Match: \"evil\"\r\n\
         If-Modified-Since: Mon, 23 Nov 2026 20:48:28 GMT\r\n\
         If-Range: \"evil\"\r\n\
         Range: bytes=0-1\r\n\
         Cache-Control: no-cache\r\n\
         Pragma: no-cache\r\n\
         TE: trailers\r\n\
         Referer: https://evil.test/\r\n\
         Origin: https://evil.test\r\n\
         Proxy-Authorization: Basic evil\r\n\
         traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\
         tracestate: evil=1\r\n\
         baggage: evil=1\r\n\
         X-Request-Id: the-clients-own\r\n"
    );
    // The line of `raw::send` is the first `Host`; two make a request that is refused.
    let lines = lines.replace("Host: evil.test\r\n", "X-Host: evil.test\r\n");
    let target = format!("/spaces/{}/tasks", world::SUPPORT);

    let answer = raw::send(gateway.address(), "GET", &target, &lines).await;

    assert_eq!(answer.status, 200);
    let recorded = gateway.upstream().recorded();
    assert_eq!(recorded.len(), 1);
    let expected = [
        "accept",
        "accept-encoding",
        "accept-language",
        "authorization",
        "host",
        "org-handle",
        "user-agent",
        "x-request-id",
    ];
    assert_eq!(names(&recorded[0]), expected);
    let sent = |name| recorded[0].header(name).unwrap();
    assert_eq!(
        sent("authorization"),
        format!("Token {}", world::ACME_TOKEN)
    );
    assert_eq!(sent("org-handle"), world::ACME);
    assert_eq!(sent("accept"), "application/json");
    assert_eq!(sent("accept-language"), "en");
    assert_eq!(sent("x-request-id"), "the-clients-own");
    assert!(sent("user-agent").starts_with("unpod-gateway/"));
    for (name, value) in &recorded[0].headers {
        assert!(!value.contains("evil"), "{name}: {value}");
    }
}

#[tokio::test]
async fn without_an_organization_no_such_header_is_sent() {
    let bare = "[upstream.credentials.bare]\n\
                token = \"a11ce00000000000000000000000000000000002\"\n\
                spaces = [\"ARCHIVE0000000000000000C\"]";
    let gateway = setup().with(bare).start().await;

    gateway.tasks(world::ARCHIVE, "").key(REFRESHER).await;

    let recorded = gateway.upstream().recorded();
    assert_eq!(recorded[0].header("org-handle"), None);
}
