//! Canaries in every secret place: none is found in an answer, a metric or a log line, whatever goes wrong.

use tokio::net::TcpStream;
use unpod_gateway::simulator::{Fault, FaultKind, Options, Scripted, Simulator};

use crate::{
    gateway::{client, setup},
    process::Served,
    raw,
};

/// Each with a number after it, as the spaces.
const UPSTREAM_TOKEN: &str = "canary-upstream-token";
const CLIENT_KEY: &str = "canary-client-key";
const COLLECTOR_KEY: &str = "canary-collector-key";
const WRONG_KEY: &str = "canary-wrong-key";
const SPACE: &str = "canary-space-token";
const INNER_HOST: &str = "canary-inner-host.internal";
const INNER_TEXT: &str = "canary inner text";

fn json(status: u16) -> Scripted {
    Scripted::json(
        status,
        format!(
            r#"{{"status_code":{status},"message":"Tasks Fetch Failed","errors":"{INNER_TEXT} at {INNER_HOST}","data":{{"errors":"{INNER_TEXT}"}}}}"#
        ),
    )
    .header("server", INNER_HOST)
    .header("location", &format!("http://{INNER_HOST}/{SPACE}"))
    .header("set-cookie", INNER_HOST)
}

fn html(status: u16) -> Scripted {
    let page = format!("<html>{INNER_TEXT} at {INNER_HOST}</html>");
    Scripted::new(status, page).header("content-type", "text/html")
}

/// What an upstream may answer, each with an inner text where it should not get out.
fn answers() -> Vec<Scripted> {
    let statuses = [
        206, 301, 307, 400, 401, 403, 404, 410, 422, 429, 500, 502, 503,
    ];
    let mut answers: Vec<_> = statuses.map(json).to_vec();
    answers.extend([200, 206, 404, 500, 503].map(html));
    answers.extend([
        Scripted::json(
            200,
            format!(r#"{{"status_code":500,"message":"{INNER_TEXT}"}}"#),
        ),
        Scripted::json(
            200,
            format!(r#"{{"count":"{INNER_TEXT}","data":[{{"{INNER_HOST}":1}}]}}"#),
        ),
        Scripted::json(200, format!(r#"{{"count":1,"data":["{INNER_TEXT}"#)),
        Scripted::json(200, format!("{INNER_TEXT} {INNER_HOST}")),
        Scripted::json(200, INNER_TEXT).header("content-length", "999"),
        Scripted::json(200, INNER_TEXT).header("content-encoding", "gzip"),
        Scripted::json(200, r#"{"count":0,"data":[]}"#)
            .header("server", INNER_HOST)
            .header("etag", &format!("\"{INNER_HOST}\""))
            .header("link", &format!("<http://{INNER_HOST}/>; rel=next"))
            .header("x-request-id", INNER_HOST),
    ]);
    answers
}

#[track_caller]
fn assert_clean(what: &str, text: &str) {
    let found = text.to_ascii_lowercase().find("canary");
    if let Some(place) = found {
        let from = place.saturating_sub(200);
        let to = (place + 100).min(text.len());
        panic!(
            "{what}: …{}…",
            String::from_utf8_lossy(&text.as_bytes()[from..to])
        );
    }
}

/// Each space has a credential of its own: what befalls one does not keep the next from being asked for.
fn overrides(spaces: usize) -> String {
    let credentials = (0..spaces).map(|number| {
        format!(
            "[upstream.credentials.number{number}]\ntoken = \"{UPSTREAM_TOKEN}-{number}\"\nspaces = [\"{}\"]\n",
            space(number)
        )
    });
    let credentials: String = credentials.collect();
    let canaries = client(
        "caged-bird",
        CLIENT_KEY,
        "spaces = [\"*\"]\nmay_refresh = true",
    );
    format!(
        "[telemetry]\nfilter = \"trace\"\naccess_log = true\n\
         [upstream]\ntimeout = \"300ms\"\nretries = 1\n{credentials}{canaries}"
    )
}

fn space(number: usize) -> String {
    format!("{SPACE}-{number}")
}

fn path(number: usize) -> String {
    format!("/spaces/{}/tasks", space(number))
}

#[tokio::test]
async fn no_secret_is_answered_or_logged_even_at_trace() {
    let simulator = Simulator::start(Options::default()).await.unwrap();
    let control = simulator.control();
    let answers = answers();
    let spaces = answers.len() + FaultKind::ALL.len();
    let headers = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(headers.path(), format!("x-key: {COLLECTOR_KEY}\n")).unwrap();
    // Nothing there takes traces: their failures are logged.
    let collector = format!(
        "[telemetry]\notlp_endpoint = '{}'\notlp_headers_file = '{}'",
        simulator.base_url(),
        headers.path().display()
    );
    let setup = setup().with(&overrides(spaces)).with(&collector);
    let served = Served::start(setup, &simulator.base_url()).await;
    let tasks = |number: usize| served.get(&path(number)).key(CLIENT_KEY);
    let mut seen = Vec::new();

    for (number, answer) in answers.iter().enumerate() {
        control.script(&space(number), vec![answer.clone()]);
        seen.push(tasks(number).await);
        assert!(control.requests_to(&space(number)) > 0, "{answer:?}");
    }
    for (number, (name, fault)) in (answers.len()..).zip(FaultKind::ALL) {
        control.set_faults(vec![Fault::always(fault)]);
        seen.push(tasks(number).await);
        assert!(control.requests_to(&space(number)) > 0, "{name}");
    }
    let path = path(0);
    for lines in [
        format!("Authorization: Token {WRONG_KEY}\r\n"),
        format!("Authorization: Basic {WRONG_KEY}\r\n"),
        format!("Authorization: {WRONG_KEY}\r\n"),
        format!("Cookie: key={WRONG_KEY}\r\nX-Api-Key: {WRONG_KEY}\r\n"),
    ] {
        let address = served.data.parse().unwrap();
        seen.push(raw::send(address, "GET", &path, &lines).await);
    }
    for query in [
        "?page=canary",
        "?page_size=canary",
        "?format=canary",
        "?page=1&page=canary",
    ] {
        let asked = served.get(&format!("{path}{query}"));
        seen.push(asked.key(CLIENT_KEY).await);
    }
    for path in [
        "/canary",
        "/spaces/canary%20/tasks",
        "/spaces/canary%00/tasks?key=canary",
    ] {
        seen.push(served.get(path).key(CLIENT_KEY).await);
    }
    // What HTTP itself refuses is logged nowhere either.
    let mut stream = TcpStream::connect(&served.data).await.unwrap();
    let broken =
        format!("GET {path} HTTP/1.1\r\nAuthorization: {CLIENT_KEY}\r\nBad Name: canary\r\n\r\n");
    let refused = raw::exchange(&mut stream, broken.as_bytes()).await;
    assert_clean("a refusal", &String::from_utf8_lossy(&refused));
    for path in ["/metrics", "/config", "/readyz"] {
        let mut stream = TcpStream::connect(&served.admin).await.unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
        let answer =
            String::from_utf8(raw::exchange(&mut stream, request.as_bytes()).await).unwrap();
        // The configuration says which credential serves which space: names, not keys.
        assert_clean(path, &answer.replace(SPACE, ""));
    }

    for answer in &seen {
        assert_clean("a header", &format!("{:?}", answer.headers));
        assert_clean("a body", &String::from_utf8_lossy(&answer.body));
    }
    served.signal("-TERM").await;
    let (code, log) = served.end().await;
    assert_eq!(code, Some(0));
    assert!(log.iter().any(|line| line.contains("\"TRACE\"")));
    for line in log {
        assert_clean("a log line", &line);
    }
}
