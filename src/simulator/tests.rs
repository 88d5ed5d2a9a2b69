//! The simulator over real sockets: every captured answer, the faults on the wire, and the controls.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use std::time::{SystemTime, UNIX_EPOCH};

use super::{
    Control, Fault, FaultKind, Options, Scripted, Simulator,
    world::{
        ACME_NEXT_TOKEN, ACME_TOKEN, ARCHIVE, EMPTY, EXPIRED_TOKEN, GLOBEX_SPACE, LIVE, POISON,
        SUPPORT, TRANSCRIPTS, UNICODE, UNKNOWN_SPACE, UNKNOWN_TOKEN, VIEWER_TOKEN,
    },
};

const SKIP: &str = r#"{"status_code":206,"message":"Tasks Fetch Failed","data":{"errors":"{\"detail\":\"skip must be >= 0\"}"},"errors":"{\"detail\":\"skip must be >= 0\"}"}"#;
const EIGHT_BYTES: &str = r#"{"status_code":206,"message":"Tasks Fetch Failed","data":{"errors":"{\"detail\":\"MongoDB can only handle up to 8-byte ints\"}"},"errors":"{\"detail\":\"MongoDB can only handle up to 8-byte ints\"}"}"#;
const SLOW_DOWN: &str = r#"{"status_code":206,"message":"Tasks Fetch Failed","data":{"errors":"{\"detail\":\"slow down\"}"},"errors":"{\"detail\":\"slow down\"}"}"#;
const INNER: &str = r#"{"status_code":206,"message":"Tasks Fetch Failed","data":{"errors":"Internal Server Error"},"errors":"Internal Server Error"}"#;
const NO_ROLE: &str =
    r#"{"status_code":206,"message":"You Don't have Access to this Space","data":{}}"#;
const VIEWER: &str = r#"{"status_code":206,"message":"You Don't have Access to do operation to this Space","data":{}}"#;
const UNKNOWN: &str = r#"{"status_code":206,"message":"Invalid Space Token","data":{}}"#;
const MISSING: &str =
    r#"{"message":"Authentication credentials were not provided.","status_code":401}"#;
const MISSING_FRENCH: &str =
    r#"{"message":"Informations d'authentification non fournies.","status_code":401}"#;
const INVALID: &str = r#"{"message":"Invalid token.","status_code":401}"#;
const EXPIRED: &str = r#"{"message": "Unauthorized Access", "error": "Expired Auth Token"}"#;
const NOT_ACCEPTABLE: &str =
    r#"{"message":"Could not satisfy the request Accept header.","status_code":406}"#;
const NULL_DATA: &str =
    r#"{"count":null,"status_code":200,"message":"Tasks Fetched Successfully","data":null}"#;

/// An answer as it came over the wire.
#[derive(Debug)]
struct Heard {
    head: String,
    body: Vec<u8>,
}

impl Heard {
    fn status(&self) -> u16 {
        self.head[9..12].parse().unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find_map(|(known, value)| known.eq_ignore_ascii_case(name).then_some(value))
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

async fn start() -> (Simulator, Control) {
    let simulator = Simulator::start(Options::default()).await.unwrap();
    let control = simulator.control();
    (simulator, control)
}

fn tasks(space: &str, query: &str) -> String {
    format!("/api/v2/platform/spaces/{space}/tasks/{query}")
}

/// Sends one request with these header lines and reads until the connection closes.
async fn raw(address: SocketAddr, method: &str, target: &str, headers: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: upstream.test\r\nConnection: close\r\n{headers}\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    bytes
}

async fn send(simulator: &Simulator, method: &str, target: &str, headers: &str) -> Heard {
    let bytes = raw(simulator.address(), method, target, headers).await;
    let end = bytes
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap();
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    Heard {
        head,
        body: bytes[end + 4..].to_vec(),
    }
}

async fn get_as(simulator: &Simulator, token: &str, target: &str) -> Heard {
    send(
        simulator,
        "GET",
        target,
        &format!("Authorization: Token {token}\r\n"),
    )
    .await
}

async fn get(simulator: &Simulator, target: &str) -> Heard {
    get_as(simulator, ACME_TOKEN, target).await
}

#[tokio::test]
async fn a_page_has_the_captured_headers_and_the_expected_bytes() {
    let (simulator, control) = start().await;
    for space in [SUPPORT, TRANSCRIPTS, ARCHIVE, UNICODE, EMPTY, LIVE] {
        let heard = get(&simulator, &tasks(space, "?page=1&page_size=20")).await;
        assert_eq!(heard.body, control.expect_page(space, 1, 20));
        assert!(heard.head.starts_with("HTTP/1.1 200 OK\r\n"));
        let length = heard.body.len().to_string();
        let captured = [
            ("Server", "gunicorn"),
            ("Content-Type", "application/json"),
            ("Allow", "GET, POST, HEAD, OPTIONS"),
            ("X-Frame-Options", "DENY"),
            ("Content-Length", length.as_str()),
            ("Vary", "Accept-Language, origin"),
            ("Content-Language", "en"),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "same-origin"),
            ("Cross-Origin-Opener-Policy", "same-origin"),
        ];
        for (name, value) in captured {
            assert_eq!(heard.header(name), Some(value), "{name}");
        }
        assert!(heard.header("Date").is_some());
        assert_eq!(heard.header("ETag"), None);
    }
}

#[tokio::test]
async fn a_clock_that_is_off_shows_in_date() {
    let (simulator, control) = start().await;
    for skew in [-3600, 3600] {
        control.set_clock_skew(skew);
        let heard = get(&simulator, &tasks(EMPTY, "?page=1&page_size=20")).await;
        let date = httpdate::parse_http_date(heard.header("Date").unwrap()).unwrap();
        let unix = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap().as_secs();
        let off = unix(date).cast_signed() - unix(SystemTime::now()).cast_signed();
        assert!((off - skew).abs() < 60, "{off} for {skew}");
    }
}

#[tokio::test]
async fn an_empty_page_keeps_the_true_count() {
    let (simulator, _) = start().await;
    let beyond = get(&simulator, &tasks(SUPPORT, "?page=4&page_size=20")).await;
    assert_eq!(
        beyond.text(),
        r#"{"count":57,"status_code":200,"message":"Tasks Fetched Successfully","data":[]}"#
    );
    let empty = get(&simulator, &tasks(EMPTY, "?page=1&page_size=20")).await;
    assert_eq!(
        empty.text(),
        r#"{"count":0,"status_code":200,"message":"Tasks Fetched Successfully","data":[]}"#
    );
}

#[tokio::test]
async fn a_walk_over_the_pages_gives_the_whole_list() {
    let (_simulator, control) = start().await;
    let data = |body: &[u8]| {
        let text = std::str::from_utf8(body).unwrap();
        let start = text.find(r#""data":["#).unwrap() + 8;
        text[start..text.len() - 2].to_owned()
    };
    for space in [SUPPORT, TRANSCRIPTS, UNICODE] {
        let walked: Vec<String> = (1..)
            .map(|page| data(&control.expect_page(space, page, 7)))
            .take_while(|data| !data.is_empty())
            .collect();
        assert_eq!(walked.join(","), data(&control.expect_page(space, 1, 0)));
    }
}

#[tokio::test]
async fn business_errors_arrive_as_206() {
    let (simulator, _) = start().await;
    let cases = [
        (ACME_TOKEN, tasks(UNKNOWN_SPACE, ""), UNKNOWN),
        (ACME_TOKEN, tasks(GLOBEX_SPACE, ""), NO_ROLE),
        (VIEWER_TOKEN, tasks(SUPPORT, ""), VIEWER),
        (ACME_TOKEN, tasks(SUPPORT, "?page=0&page_size=20"), SKIP),
        (
            ACME_TOKEN,
            tasks(SUPPORT, "?page=9223372036854775808"),
            EIGHT_BYTES,
        ),
        (ACME_TOKEN, tasks(POISON, "?page=1&page_size=20"), INNER),
    ];
    for (token, target, body) in cases {
        let heard = get_as(&simulator, token, &target).await;
        assert_eq!((heard.status(), heard.text()), (206, body));
    }
}

#[tokio::test]
async fn tokens_are_refused_in_the_caller_s_language() {
    let (simulator, control) = start().await;
    control.revoke_token(ACME_NEXT_TOKEN);
    let token = |token| format!("Authorization: Token {token}\r\n");
    let cases = [
        (String::new(), MISSING, "en"),
        ("Accept-Language: fr\r\n".to_owned(), MISSING_FRENCH, "fr"),
        (token(UNKNOWN_TOKEN), INVALID, "en"),
        (token(ACME_NEXT_TOKEN), INVALID, "en"),
        (token(EXPIRED_TOKEN), EXPIRED, "en"),
    ];
    for (headers, body, language) in cases {
        let heard = send(&simulator, "GET", &tasks(SUPPORT, ""), &headers).await;
        assert_eq!((heard.status(), heard.text()), (401, body));
        assert_eq!(heard.header("WWW-Authenticate"), Some("Token"));
        assert_eq!(heard.header("Content-Language"), Some(language));
    }
    control.allow_token(ACME_NEXT_TOKEN);
    assert_eq!(
        get_as(&simulator, ACME_NEXT_TOKEN, &tasks(SUPPORT, ""))
            .await
            .status(),
        200
    );
}

#[tokio::test]
async fn html_is_not_acceptable() {
    let (simulator, _) = start().await;
    let heard = send(
        &simulator,
        "GET",
        &tasks(SUPPORT, ""),
        "Accept: text/html\r\n",
    )
    .await;
    assert_eq!((heard.status(), heard.text()), (406, NOT_ACCEPTABLE));
}

#[tokio::test]
async fn a_path_without_its_slash_moves() {
    let (simulator, _) = start().await;
    let target = format!("/api/v2/platform/spaces/{SUPPORT}/tasks?page=1&page_size=20");
    let heard = get(&simulator, &target).await;
    assert_eq!(heard.status(), 301);
    let location = tasks(SUPPORT, "?page=1&page_size=20");
    assert_eq!(heard.header("Location"), Some(location.as_str()));
    assert_eq!(heard.header("Transfer-Encoding"), Some("chunked"));
    assert_eq!(
        heard.header("Vary"),
        Some("Accept-Language, Cookie, origin")
    );
    assert_eq!(heard.body, b"0\r\n\r\n");
}

#[tokio::test]
async fn an_unknown_path_is_an_html_404() {
    let (simulator, control) = start().await;
    for target in [
        "/",
        "/api/v2/platform/spaces//tasks/",
        "/api/v2/platform/spaces/A%2FB/tasks/",
    ] {
        let heard = get(&simulator, target).await;
        assert_eq!(heard.status(), 404);
        assert_eq!(
            heard.header("Content-Type"),
            Some("text/html; charset=utf-8")
        );
        assert!(heard.text().contains("Page not found"));
    }
    assert_eq!(control.requests(), 0);
    assert_eq!(control.recorded().len(), 3);
}

#[tokio::test]
async fn a_post_is_told_what_it_lacks_and_counted_apart() {
    let (simulator, control) = start().await;
    let headers = format!("Authorization: Token {ACME_TOKEN}\r\nContent-Length: 0\r\n");
    let heard = send(&simulator, "POST", &tasks(SUPPORT, ""), &headers).await;
    assert_eq!(heard.status(), 206);
    assert_eq!(heard.header("Content-Length"), Some("321"));
    assert!(
        heard.text().starts_with(
            r#"{"status_code":206,"message":"There is some Validation error","data":"#
        )
    );
    assert_eq!((control.posts(), control.requests()), (1, 0));
}

#[tokio::test]
async fn a_head_has_the_length_and_no_body() {
    let (simulator, _) = start().await;
    let headers = format!("Authorization: Token {ACME_TOKEN}\r\n");
    let heard = send(&simulator, "HEAD", &tasks(UNKNOWN_SPACE, ""), &headers).await;
    assert_eq!((heard.status(), heard.body.len()), (206, 0));
    assert_eq!(heard.header("Content-Length"), Some("61"));
}

#[tokio::test]
async fn an_undocumented_parameter_reads_another_organization() {
    let (simulator, control) = start().await;
    let heard = get(
        &simulator,
        &tasks(SUPPORT, "?page=1&page_size=20&space_id=8"),
    )
    .await;
    assert_eq!(heard.body, control.expect_page(GLOBEX_SPACE, 1, 20));
}

#[tokio::test]
async fn faults_that_answer_do_so() {
    let (simulator, control) = start().await;
    let page = control.expect_page(SUPPORT, 1, 1);
    let page = std::str::from_utf8(&page).unwrap();
    let cases = [
        (FaultKind::ServerError, 500, "Server Error"),
        (FaultKind::BadGateway, 502, "502 Bad Gateway"),
        (FaultKind::Unavailable, 503, "503 Service Unavailable"),
        (FaultKind::GatewayTimeout, 504, "504 Gateway Timeout"),
        (FaultKind::InnerFailed, 206, INNER),
        (
            FaultKind::InnerHtml,
            206,
            "tasks-store-1.internal.unpod.test",
        ),
        (FaultKind::InnerSlowDown, 206, SLOW_DOWN),
        (FaultKind::Unauthorized, 401, INVALID),
        (
            FaultKind::TokenExpired,
            403,
            r#"{"status_code":403,"message":"Token has expired."}"#,
        ),
        (FaultKind::RateLimited, 429, r#""status_code":429"#),
        (FaultKind::Html, 200, "<html"),
        (FaultKind::Truncate, 200, &page[..page.len() / 2]),
        (FaultKind::NullData, 200, NULL_DATA),
        (FaultKind::StatusInBody, 200, r#"{"status_code":404,"#),
        (FaultKind::Redirect, 302, "0\r\n\r\n"),
        (FaultKind::Empty, 200, ""),
        (
            FaultKind::Garbage,
            200,
            r#"{"count":57,"status_code":200,"mess"#,
        ),
    ];
    for (kind, status, part) in cases {
        control.set_faults(vec![Fault::always(kind)]);
        let heard = get(&simulator, &tasks(SUPPORT, "?page=1&page_size=1")).await;
        assert_eq!(heard.status(), status, "{kind:?}");
        assert!(heard.text().contains(part), "{kind:?}: {}", heard.text());
        assert_eq!(control.struck()[kind.as_str()], 1);
    }
}

#[tokio::test]
async fn faults_that_break_the_connection_do_so() {
    let (simulator, control) = start().await;
    let target = tasks(SUPPORT, "?page=1&page_size=1");

    control.set_faults(vec![Fault::always(FaultKind::Truncate)]);
    let heard = get(&simulator, &target).await;
    let promised: usize = heard.header("Content-Length").unwrap().parse().unwrap();
    assert_eq!(promised, control.expect_page(SUPPORT, 1, 1).len());
    assert_eq!(heard.body.len(), promised / 2);

    control.set_faults(vec![Fault::always(FaultKind::Reset)]);
    assert!(
        raw(simulator.address(), "GET", &target, "")
            .await
            .is_empty()
    );
}

#[tokio::test]
async fn a_hung_request_ends_with_its_connection() {
    let (simulator, control) = start().await;
    control.set_faults(vec![Fault::always(FaultKind::Hang)]);
    let address = simulator.address();
    let client = tokio::spawn(async move { raw(address, "GET", &tasks(SUPPORT, ""), "").await });
    control.wait_for_requests(1).await;
    assert_eq!(control.in_flight(), 1);
    simulator.stop().await;
    assert_eq!(control.in_flight(), 0);
    assert!(client.await.unwrap().is_empty());
}

#[tokio::test]
async fn a_slow_body_keeps_its_slot() {
    let (simulator, control) = start().await;
    control.set_faults(vec![Fault::always(FaultKind::SlowBody)]);
    let mut stream = TcpStream::connect(simulator.address()).await.unwrap();
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: upstream.test\r\n\r\n",
        tasks(SUPPORT, "")
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut heard = Vec::new();
    while !heard.windows(5).any(|five| five == b"\r\n\r\n{") {
        assert_ne!(stream.read_buf(&mut heard).await.unwrap(), 0);
    }
    assert_eq!(control.in_flight(), 1);
}

#[tokio::test]
async fn the_same_seed_draws_the_same_faults() {
    let mut runs = Vec::new();
    for _ in 0..2 {
        let faults = vec!["503=0.5".parse().unwrap()];
        let simulator = Simulator::start(Options {
            faults,
            ..Options::default()
        })
        .await
        .unwrap();
        let mut statuses = Vec::new();
        for _ in 0..12 {
            statuses.push(get(&simulator, &tasks(EMPTY, "")).await.status());
        }
        runs.push(statuses);
    }
    assert_eq!(runs[0], runs[1]);
    assert!(runs[0].contains(&503) && runs[0].contains(&200));
}

#[tokio::test]
async fn held_requests_are_counted_and_wait() {
    let (simulator, control) = start().await;
    let hold = control.hold();
    let address = simulator.address();
    let headers = format!("Authorization: Token {ACME_TOKEN}\r\n");
    let clients: Vec<_> = (0..12)
        .map(|_| {
            let headers = headers.clone();
            tokio::spawn(async move { raw(address, "GET", &tasks(SUPPORT, ""), &headers).await })
        })
        .collect();
    control.wait_for_requests(12).await;
    assert_eq!(control.in_flight(), 12);
    assert!(clients.iter().all(|client| !client.is_finished()));
    hold.release();
    for client in clients {
        assert!(client.await.unwrap().starts_with(b"HTTP/1.1 200 OK"));
    }
    assert_eq!((control.in_flight(), control.max_in_flight()), (0, 12));
    assert_eq!(control.requests_to(SUPPORT), 12);
}

#[tokio::test]
async fn a_quota_shows_on_every_answer_and_ends_in_429() {
    let (simulator, control) = start().await;
    control.set_quota(Some(2));
    for (status, remaining) in [(200, "1"), (200, "0"), (429, "0")] {
        let heard = get(&simulator, &tasks(EMPTY, "")).await;
        assert_eq!(heard.status(), status);
        assert_eq!(heard.header("X-RateLimit-Limit"), Some("2"));
        assert_eq!(heard.header("X-RateLimit-Remaining"), Some(remaining));
        let reset: u64 = heard.header("X-RateLimit-Reset").unwrap().parse().unwrap();
        assert!(reset > 1_700_000_000);
        let retry_after = heard
            .header("Retry-After")
            .map(|seconds| seconds.parse::<u64>().unwrap());
        assert_eq!(
            retry_after.is_some_and(|seconds| (1..=60).contains(&seconds)),
            status == 429
        );
    }
    assert_eq!(
        get_as(&simulator, ACME_NEXT_TOKEN, &tasks(EMPTY, ""))
            .await
            .status(),
        200
    );
}

#[tokio::test]
async fn a_script_is_followed_and_its_last_answer_repeats() {
    let (simulator, control) = start().await;
    let odd = Scripted::new(418, "short")
        .header("X-Odd", "1")
        .header("X-Odd", "2");
    control.script(SUPPORT, vec![odd, Scripted::json(200, "{}").chunked()]);

    let first = get(&simulator, &tasks(SUPPORT, "")).await;
    assert_eq!((first.status(), first.text()), (418, "short"));
    assert_eq!(first.header("Content-Length"), Some("5"));
    assert_eq!(first.head.matches("X-Odd: ").count(), 2);
    assert_eq!(first.header("Server"), None);
    for _ in 0..2 {
        let last = get(&simulator, &tasks(SUPPORT, "")).await;
        assert_eq!(last.text(), "2\r\n{}\r\n0\r\n\r\n");
    }

    let short = Scripted::new(200, "half").header("Content-Length", "8");
    control.script(SUPPORT, vec![short]);
    let cut = get(&simulator, &tasks(SUPPORT, "")).await;
    assert_eq!(
        (cut.header("Content-Length"), cut.text()),
        (Some("8"), "half")
    );

    control.script(SUPPORT, Vec::new());
    assert_eq!(
        get(&simulator, &tasks(SUPPORT, "")).await.body,
        control.expect_page(SUPPORT, 1, 50)
    );
}

#[tokio::test]
async fn the_world_changes_under_control() {
    let (simulator, control) = start().await;
    let page = tasks(LIVE, "?page=1&page_size=2");
    let before = get(&simulator, &page).await;
    control.add_task(LIVE);
    let after = get(&simulator, &page).await;
    assert_ne!(before.body, after.body);
    assert_eq!(after.body, control.expect_page(LIVE, 1, 2));

    control.set_status(LIVE, &control.task_ids(LIVE)[0], "completed");
    assert!(
        get(&simulator, &page)
            .await
            .text()
            .contains(r#""status":"completed""#)
    );

    control.revoke_space(LIVE);
    assert_eq!(get(&simulator, &page).await.text(), NO_ROLE);
    control.grant_space(LIVE);
    assert_eq!(get(&simulator, &page).await.status(), 200);
}

#[tokio::test]
async fn requests_are_recorded_as_they_came() {
    let (simulator, control) = start().await;
    let target = tasks(SUPPORT, "?page=%202&page_size=20");
    send(
        &simulator,
        "GET",
        &target,
        "Org-Handle: acme.test\r\nX-Twice: a\r\nX-Twice: b\r\n",
    )
    .await;
    let recorded = control.recorded().remove(0);
    assert_eq!((recorded.method.as_str(), recorded.target), ("GET", target));
    let twice = recorded
        .headers
        .iter()
        .filter(|(name, _)| name == "x-twice");
    assert_eq!(twice.count(), 2);
}

#[tokio::test]
async fn stats_tell_the_counts_and_are_not_counted() {
    let (simulator, _) = start().await;
    get(&simulator, &tasks(SUPPORT, "")).await;
    get(&simulator, &tasks(UNKNOWN_SPACE, "")).await;
    let stats: serde_json::Value =
        serde_json::from_slice(&get(&simulator, "/__stats").await.body).unwrap();
    let expected = serde_json::json!({
        "requests": 2,
        "by_space": {SUPPORT: 1, UNKNOWN_SPACE: 1},
        "by_status": {"200": 1, "206": 1},
        "by_fault": {},
        "in_flight": 0,
        "max_in_flight": 1,
        "posts": 0,
        "tokens": {ACME_TOKEN: 2},
    });
    assert_eq!(stats, expected);
}

#[tokio::test]
async fn a_stopped_simulator_no_longer_listens() {
    let (simulator, _) = start().await;
    let address = simulator.address();
    simulator.stop().await;
    assert!(TcpStream::connect(address).await.is_err());
}
