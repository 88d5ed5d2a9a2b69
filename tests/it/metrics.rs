//! What `/metrics` exports: all of it documented, each name with a sample from the start.

use std::{collections::BTreeMap, fs, path::Path};

use tokio::{io::AsyncWriteExt, net::TcpStream};
use unpod_gateway::simulator::{Scripted, world};

use crate::{
    gateway::{Gateway, READER, client, setup, start, until},
    operators::ask,
    pki::{Authority, TlsFiles},
};

const DOCUMENT: &str = "docs/metrics.md";
const EXPIRES: &str = "spaces = [\"*\"]\nexpires = \"2100-01-01T00:00:00Z\"";

async fn scraped(gateway: &Gateway) -> String {
    let (status, text) = ask(gateway, "GET", "/metrics").await;
    assert_eq!(status, 200);
    text
}

/// The rows of the document's table that would describe what `text` exports.
fn described(text: &str) -> Vec<String> {
    let mut help = BTreeMap::new();
    let mut rows = Vec::new();
    for line in text.lines() {
        if let Some((name, meaning)) = after(line, "# HELP ") {
            help.insert(name, meaning.trim_end_matches('.'));
        } else if let Some((name, kind)) = after(line, "# TYPE ") {
            let meaning = help[name];
            let labels = labels(text, name).join(", ");
            rows.push(format!("| `{name}` | {kind} | {labels} | {meaning} |"));
        }
    }
    rows
}

fn after<'a>(line: &'a str, mark: &str) -> Option<(&'a str, &'a str)> {
    line.strip_prefix(mark)?.split_once(' ')
}

/// The names of the labels of a metric's samples, but for a bucket's bound. At least one sample there is.
fn labels(text: &str, name: &str) -> Vec<String> {
    let of_it = |line: &&str| {
        let rest = line.strip_prefix(name).unwrap_or_default();
        let parts = ["", "_bucket", "_sum", "_count"];
        parts.iter().any(|part| {
            rest.strip_prefix(part)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
        })
    };
    let mut samples = text.lines().filter(of_it).peekable();
    assert!(samples.peek().is_some(), "{name} has no sample");
    let mut names = Vec::new();
    for sample in samples {
        let Some((_, labels)) = sample.split_once('{') else {
            continue;
        };
        // No value of a label holds a quote.
        let parts: Vec<&str> = labels.split('"').collect();
        for key in parts.iter().step_by(2) {
            let key = key.trim_matches([',', '=', '}', ' ']);
            let is_name = key.starts_with(|first: char| first.is_ascii_alphabetic());
            if is_name && key != "le" && !names.contains(&format!("`{key}`")) {
                names.push(format!("`{key}`"));
            }
        }
    }
    names
}

#[tokio::test]
async fn the_document_describes_every_metric_as_it_is_exported() {
    let files = TlsFiles::new(&Authority::new().server(), None);
    let gateway = setup()
        .with(&files.toml())
        .with(&client("guest", "ugw_guest", EXPIRES))
        .start()
        .await;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(DOCUMENT);
    let document = fs::read_to_string(path).unwrap();
    let documented: Vec<&str> = document
        .lines()
        .skip_while(|line| !line.starts_with("| metric |"))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .collect();

    let exported = described(&scraped(&gateway).await);

    let whole = exported.join("\n");
    assert!(
        documented == exported,
        "the table in {DOCUMENT} should be\n{whole}"
    );
}

#[tokio::test]
async fn what_expires_says_when_and_only_that_is_there() {
    let name = "_expiry_timestamp_seconds";
    assert!(!scraped(&start().await).await.contains(name));
    let authority = Authority::new();
    let own = authority.issue(&["localhost"], |params| {
        params.not_after = rcgen::date_time_ymd(2100, 1, 2);
    });
    let files = TlsFiles::new(&own, None);
    let running = setup()
        .with(&files.toml())
        .with(&client("guest", "ugw_guest", EXPIRES))
        .start_from_file()
        .await;
    let expiries = async || {
        let text = scraped(&running.gateway).await;
        let samples = text.lines().filter(|line| line.contains(name));
        let samples = samples.filter(|line| !line.starts_with('#'));
        samples.map(str::to_owned).collect::<Vec<_>>()
    };
    let of_client = "gateway_client_expiry_timestamp_seconds{client=\"guest\"} 4102444800.0";
    let told = expiries().await;
    let [client_key, certificate] = &*told else {
        panic!("{told:?}")
    };
    assert_eq!(client_key, of_client);
    assert!(certificate.starts_with("gateway_certificate_expiry_timestamp_seconds{file=\""));
    assert!(
        certificate.ends_with("/cert.pem\"} 4102531200.0"),
        "{certificate}"
    );

    files.put_pair(&authority.issue(&["localhost"], |params| {
        params.not_after = rcgen::date_time_ymd(2100, 1, 3);
    }));
    running.rewrite(setup().with(&files.toml()));
    running.reload().await;

    let told = expiries().await;
    assert_eq!(told.len(), 1, "the client is gone: {told:?}");
    assert!(told[0].ends_with("/cert.pem\"} 4102617600.0"), "{told:?}");
}

#[tokio::test]
async fn the_process_is_measured_under_the_usual_names() {
    let gateway = start().await;
    let text = scraped(&gateway).await;
    for name in [
        "process_cpu_seconds_total",
        "process_start_time_seconds",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_max_fds",
    ] {
        let prefix = format!("{name} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&prefix));
        let value: f64 = value.unwrap_or_else(|| panic!("{name}")).parse().unwrap();
        assert!(value > 0.0, "{name} {value}");
    }
    let version = env!("CARGO_PKG_VERSION");
    let build = format!("gateway_build_info{{version=\"{version}\"}} 1");
    assert!(text.lines().any(|line| line == build), "{text}");
}

#[tokio::test]
async fn queues_and_waiters_are_as_long_as_they_are() {
    let gateway = setup()
        .with("[upstream]\nmax_concurrency = 1")
        .start()
        .await;
    let hold = gateway.upstream().hold();
    let asked: Vec<_> = [1, 1, 2, 3]
        .into_iter()
        .map(|page| {
            gateway
                .tasks(world::SUPPORT, &format!("?page={page}"))
                .spawn()
        })
        .collect();
    gateway.upstream().wait_for_requests(1).await;
    until(|| gateway.app.pages().fills_under_way() == 3).await;
    until(|| gateway.counts("gateway_fill_waiters 4")).await;

    let text = scraped(&gateway).await;

    for line in [
        "gateway_fill_waiters 4",
        "gateway_fills_under_way 3",
        "gateway_upstream_slot_queue_length 2",
        "gateway_upstream_quota_queue_length{credential=\"default\"} 0",
        "gateway_http_requests_in_flight 4",
    ] {
        assert!(text.lines().any(|told| told == line), "{line}\n{text}");
    }
    hold.release();
    for answer in asked {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    assert!(gateway.counts("gateway_fill_waiters 0"));
    assert!(gateway.counts("gateway_page_age_seconds_count 4"));
}

#[tokio::test]
async fn who_is_turned_away_is_counted_by_what_there_was_no_room_for() {
    let cases = [
        ("[server]\nmax_in_flight = 1", "max_in_flight"),
        ("[upstream]\nmax_concurrency = 1\nmax_queue = 0", "queue"),
    ];
    for (full, reason) in cases {
        let gateway = setup().with(full).start().await;
        let hold = gateway.upstream().hold();
        let first = gateway.tasks(world::SUPPORT, "").spawn();
        gateway.upstream().wait_for_requests(1).await;

        let second = gateway.tasks(world::SUPPORT, "?page=2").await;

        second.assert_error("overloaded");
        let line = format!("gateway_requests_shed_total{{reason=\"{reason}\"}} 1");
        assert!(gateway.counts(&line), "{line}");
        hold.release();
        assert_eq!(first.await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn a_fetch_that_was_refused_a_call_has_no_duration() {
    let gateway = start().await;
    let spent = Scripted::json(429, "{}").header("retry-after", "3600");
    gateway.upstream().script(world::SUPPORT, vec![spent]);

    for _ in 0..2 {
        let answer = gateway.tasks(world::SUPPORT, "").await;
        answer.assert_error("upstream_quota_exhausted");
    }

    assert_eq!(gateway.upstream().requests(), 1);
    for line in [
        "gateway_fills_total{outcome=\"upstream_quota_exhausted\"} 2",
        "gateway_fill_duration_seconds_count 1",
    ] {
        assert!(gateway.counts(line), "{line}");
    }
}

#[tokio::test]
async fn a_credential_shows_how_the_upstream_takes_it() {
    let next = format!(
        "[upstream.credentials.default]\nnext_token = \"{}\"",
        world::ACME_NEXT_TOKEN
    );
    let gateway = setup().with(&next).start().await;
    let state = |number: u8| format!("gateway_credential_state{{credential=\"default\"}} {number}");
    assert!(scraped(&gateway).await.contains(&state(0)));

    gateway.upstream().revoke_token(world::ACME_TOKEN);
    gateway.tasks(world::SUPPORT, "").await;
    assert!(scraped(&gateway).await.contains(&state(1)));

    gateway.upstream().revoke_token(world::ACME_NEXT_TOKEN);
    gateway.tasks(world::SUPPORT, "?page=2").await;
    assert!(scraped(&gateway).await.contains(&state(2)));
}

#[tokio::test]
async fn a_client_that_goes_away_is_counted_as_cancelled() {
    let gateway = start().await;
    let hold = gateway.upstream().hold();
    let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
    let request = format!(
        "GET /spaces/{}/tasks HTTP/1.1\r\nHost: gateway\r\nAuthorization: Token {READER}\r\n\r\n",
        world::SUPPORT
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    gateway.upstream().wait_for_requests(1).await;

    // A reset: who merely closes its side may still wait for the answer.
    stream.set_zero_linger().unwrap();
    drop(stream);

    let line =
        "gateway_http_requests_total{route=\"tasks\",status=\"cancelled\",client=\"none\"} 1";
    until(|| gateway.counts(line)).await;
    until(|| gateway.counts("gateway_http_requests_in_flight 0")).await;
    let timed = "gateway_http_request_duration_seconds_count{route=\"tasks\"} 1";
    until(|| gateway.counts(timed)).await;
    hold.release();
}

#[tokio::test]
async fn whoever_is_known_is_counted_by_name_whatever_is_refused() {
    let gateway = start().await;
    let asked = [
        ("GET", "/spaces/SUPPORT/tasks?x=1", "tasks", 400),
        ("DELETE", "/spaces/SUPPORT/tasks", "tasks", 405),
        ("GET", "/nowhere", "other", 404),
    ];
    for (method, path, route, status) in asked {
        let answer = gateway.ask(method, path).key(READER).await;
        assert_eq!(answer.status, status, "{path}");
        let line = format!(
            "gateway_http_requests_total{{route=\"{route}\",status=\"{status}\",client=\"reader\"}} 1"
        );
        assert!(gateway.counts(&line), "{line}");
    }
}
