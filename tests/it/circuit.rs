//! An upstream that keeps failing is left alone, and tried with one call at a time until it works.

use std::{future::IntoFuture, time::SystemTime};

use tokio::task::JoinSet;
use unpod_gateway::simulator::{Fault, FaultKind, Options, Scripted, Simulator, world};

use crate::{
    gateway::{Gateway, Setup, patiently, setup},
    operators,
    process::Served,
};

/// Opens at the third failure in a row, and stays so for longer than any test.
fn guarded() -> Setup {
    setup().with(
        "[upstream.circuit]\nenabled = true\nmin_calls = 3\nfailure_ratio = 1.0\n\
         window = \"1h\"\nopen_for = \"1h\"",
    )
}

fn half_open_after(time: &str) -> String {
    format!("[upstream.circuit]\nopen_for = \"{time}\"")
}

fn fail(gateway: &Gateway, kind: FaultKind) {
    gateway.upstream().set_faults(vec![Fault::always(kind)]);
}

fn recover(gateway: &Gateway) {
    gateway.upstream().set_faults(Vec::new());
}

/// Pages of their own, so that no answer is a hit.
fn page(number: usize) -> String {
    format!("?page={number}&page_size=1")
}

/// Fails pages 1 to 3.
async fn open_by(gateway: &Gateway, kind: FaultKind) {
    fail(gateway, kind);
    for number in 1..=3 {
        let told = gateway.tasks(world::SUPPORT, &page(number)).await;
        told.assert_error("upstream_failed");
    }
}

async fn open(gateway: &Gateway) {
    open_by(gateway, FaultKind::Unavailable).await;
}

async fn metric(gateway: &Gateway) -> String {
    let (_, text) = operators::ask(gateway, "GET", "/metrics").await;
    let name = "gateway_circuit_state{credential=\"default\"} ";
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    value.unwrap().to_owned()
}

async fn until_half_open(gateway: &Gateway) {
    patiently("a half-open circuit", async {
        while metric(gateway).await != "1" {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_upstream_that_keeps_failing_is_not_asked() {
    let gateway = guarded().start().await;
    open(&gateway).await;
    recover(&gateway);

    let told = gateway.tasks(world::SUPPORT, &page(4)).await;

    told.assert_error("upstream_unavailable");
    assert_eq!(told.cache_status(), "detail=circuit-open");
    let wait: u64 = told.header("retry-after").unwrap().parse().unwrap();
    // What is left of the hour.
    assert!((3000..=3600).contains(&wait), "{wait}");
    assert_eq!(gateway.upstream().requests(), 3);
}

#[tokio::test]
async fn while_it_is_open_stored_pages_stand_in() {
    // The call that fills the page works, so that three of four must fail.
    let stale_at_once = "[cache]\nttl = \"0s\"\nstale_while_revalidate = \"0s\"\n\
                         [upstream.circuit]\nfailure_ratio = 0.75";
    let gateway = guarded().with(stale_at_once).start().await;
    let stored = gateway.tasks(world::SUPPORT, &page(9)).await;
    open(&gateway).await;

    let served = gateway.tasks(world::SUPPORT, &page(9)).await;

    served.assert_page(&stored.body);
    assert_eq!(served.cache_status(), "hit; detail=stale-if-error");
    assert_eq!(gateway.upstream().requests(), 4);
}

#[tokio::test]
async fn an_open_circuit_degrades_readiness_and_shows_in_the_metrics() {
    let gateway = guarded().start().await;
    assert_eq!(metric(&gateway).await, "0");
    let before = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    open(&gateway).await;
    gateway.tasks(world::SUPPORT, &page(4)).await;

    let (status, body) = operators::ask(&gateway, "GET", "/readyz").await;
    let told: serde_json::Value = serde_json::from_str(&body).unwrap();
    // It is open for one space.
    assert_eq!((status, &told["status"]), (200, &"degraded".into()));
    let part = &told["parts"]["circuits"];
    assert_eq!(part["status"], "degraded");
    assert_eq!(part["not_closed"], serde_json::json!({"default": "open"}));
    let since = part["since"].as_str().unwrap();
    assert!(since >= before.as_str(), "{since}, opened after {before}");
    assert_eq!(told["parts"]["credentials"]["status"], "ready");

    for (space, circuit) in [(world::SUPPORT, "open"), (world::ARCHIVE, "closed")] {
        let explain = format!("/cache/explain?space={space}");
        let (_, body) = operators::ask(&gateway, "GET", &explain).await;
        assert!(
            body.contains(&format!("\"circuit\":\"{circuit}\"")),
            "{space}: {body}"
        );
    }

    let (_, text) = operators::ask(&gateway, "GET", "/metrics").await;
    for line in [
        "gateway_circuit_state{credential=\"default\"} 2",
        "gateway_fills_total{outcome=\"upstream_failed\"} 3",
        "gateway_fills_total{outcome=\"upstream_unavailable\"} 1",
        "gateway_upstream_requests_total{status=\"503\",client=\"reader\"} 3",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
}

#[tokio::test]
async fn after_a_while_one_call_at_a_time_is_made_until_one_works() {
    // The probe is held for as long as the test needs.
    let patient = "[server]\nrequest_timeout = \"120s\"\n[upstream]\ntimeout = \"100s\"";
    let setup = guarded().with(patient).with(&half_open_after("50ms"));
    let gateway = setup.start().await;
    open(&gateway).await;
    recover(&gateway);
    until_half_open(&gateway).await;
    let (_, body) = operators::ask(&gateway, "GET", "/readyz").await;
    assert!(body.contains("{\"default\":\"half_open\"}"), "{body}");

    let hold = gateway.upstream().hold();
    let before = gateway.upstream().requests();
    let asks = (1..=5).map(|number| gateway.tasks(world::SUPPORT, &page(number)).into_future());
    let mut asked: JoinSet<_> = asks.collect();
    for _ in 0..4 {
        let told = patiently("an answer", asked.join_next()).await;
        let told = told.unwrap().unwrap();
        told.assert_error("upstream_unavailable");
        assert_eq!(told.header("retry-after"), Some("1"));
    }
    gateway.upstream().wait_for_requests(before + 1).await;
    assert_eq!(gateway.upstream().requests(), before + 1);

    hold.release();

    let probed = patiently("the probe", asked.join_next()).await;
    assert_eq!(probed.unwrap().unwrap().status, 200);
    assert_eq!(metric(&gateway).await, "0");
    let (_, body) = operators::ask(&gateway, "GET", "/readyz").await;
    assert!(!body.contains("degraded"), "{body}");
    for number in 6..=9 {
        let served = gateway.tasks(world::SUPPORT, &page(number)).await;
        assert_eq!(served.status, 200, "{number}");
    }
}

#[tokio::test]
async fn one_bad_page_never_opens_it() {
    let forgetful = "[cache]\nrejected_ttl = \"0s\"";
    let gateway = guarded().with(forgetful).start().await;

    for _ in 0..10 {
        let told = gateway.tasks(world::POISON, "").await;
        told.assert_error("upstream_failed");
    }

    assert_eq!(gateway.upstream().requests_to(world::POISON), 10);
    assert_eq!(gateway.tasks(world::POISON, "?page=2").await.status, 200);
}

#[tokio::test]
async fn one_bad_space_cuts_off_no_other_whatever_form_its_failure_has() {
    let forgetful = "[cache]\nrejected_ttl = \"0s\"\n[upstream]\ntimeout = \"2s\"";
    let failed = |status| Scripted::new(status, "no");
    for failure in [
        failed(500),
        failed(503),
        failed(401),
        failed(403),
        Scripted::new(200, "<html>"),
        Scripted::json(200, "{"),
        Scripted::json(200, "{}").header("content-length", "100"),
        Scripted::json(206, r#"{"message":"Tasks Fetch Failed"}"#),
        failed(302),
    ] {
        let gateway = guarded().with(forgetful).start().await;
        gateway.upstream().script("BAD", vec![failure.clone()]);

        // One page again and again counts once.
        for _ in 0..10 {
            let told = gateway.tasks("BAD", "").await;
            assert_ne!(told.code(), "upstream_unavailable", "{failure:?}");
        }
        assert_eq!(metric(&gateway).await, "0", "{failure:?}");
        // All pages of one space open it for that space.
        for number in 1..=10 {
            gateway.tasks("BAD", &page(number)).await;
        }
        let told = gateway.tasks("BAD", &page(11)).await;
        told.assert_error("upstream_unavailable");
        for number in 1..=5 {
            let served = gateway.tasks(world::SUPPORT, &page(number)).await;
            assert_eq!(served.status, 200, "{failure:?}");
        }
    }
}

#[tokio::test]
async fn an_upstream_that_cannot_be_reached_is_given_up_for_all_spaces() {
    let mut gateway = guarded().start().await;
    gateway.stop_upstream().await;
    let spaces = [world::SUPPORT, world::ARCHIVE, "THIRD"];
    for space in spaces {
        let told = gateway.tasks(space, "").await;
        told.assert_error("upstream_unreachable");
    }

    for space in spaces.into_iter().chain(["FOURTH"]) {
        let told = gateway.tasks(space, "").await;
        told.assert_error("upstream_unavailable");
    }
}

#[tokio::test]
async fn an_inner_outage_told_page_by_page_opens_it() {
    let gateway = guarded().start().await;
    open_by(&gateway, FaultKind::InnerFailed).await;

    let told = gateway.tasks(world::SUPPORT, &page(4)).await;

    told.assert_error("upstream_unavailable");
}

#[tokio::test]
async fn refusals_show_an_upstream_that_works() {
    let forgetful = "[cache]\nnegative_ttl = \"0s\"\nrejected_ttl = \"0s\"";
    let gateway = guarded().with(forgetful).start().await;
    let refused = |status, message: &str| {
        let body = format!(r#"{{"status_code":{status},"message":"{message}"}}"#);
        Scripted::json(status, body)
    };
    for (space, answer, code) in [
        ("GONE", refused(404, "no"), "space_not_found"),
        (
            "UNKNOWN",
            refused(206, "Invalid Space Token"),
            "space_not_found",
        ),
        ("SECRET", refused(403, "no"), "space_access_denied"),
        ("WRONG", refused(422, "no"), "upstream_rejected"),
        ("UNHEARD", refused(206, "unheard of"), "upstream_rejected"),
        ("REFUSED", refused(401, "no"), "upstream_auth_failed"),
    ] {
        gateway.upstream().script(space, vec![answer]);
        for _ in 0..5 {
            gateway.tasks(space, "").await.assert_error(code);
        }
    }
    assert_eq!(metric(&gateway).await, "0");
}

#[tokio::test]
async fn an_upstream_that_hangs_opens_it() {
    let short_deadline = "[upstream]\ntimeout = \"300ms\"";
    let gateway = guarded().with(short_deadline).start().await;
    fail(&gateway, FaultKind::Hang);

    let told = patiently("an open circuit", async {
        loop {
            let told = gateway.tasks(world::SUPPORT, "").await;
            if told.code() != "upstream_timeout" {
                return told;
            }
        }
    })
    .await;

    told.assert_error("upstream_unavailable");
    assert!(gateway.upstream().requests() >= 3);
}

#[tokio::test]
async fn another_credential_is_not_cut_off() {
    let other = format!(
        "[upstream.credentials.other]\ntoken = \"{}\"\norg_handle = \"{}\"\nspaces = [\"{}\"]",
        world::GLOBEX_TOKEN,
        world::GLOBEX,
        world::GLOBEX_SPACE
    );
    let gateway = guarded().with(&other).start().await;
    open(&gateway).await;
    recover(&gateway);

    let cut_off = gateway.tasks(world::SUPPORT, "").await;
    let served = gateway.tasks(world::GLOBEX_SPACE, "").await;

    cut_off.assert_error("upstream_unavailable");
    assert_eq!(served.status, 200);
    let (_, text) = operators::ask(&gateway, "GET", "/metrics").await;
    let line = "gateway_circuit_state{credential=\"other\"} 0";
    assert!(text.contains(line), "{text}");
}

#[tokio::test]
async fn its_opening_and_closing_are_logged_once() {
    let simulator = Simulator::start(Options::default()).await.unwrap();
    let control = simulator.control();
    let quiet = "[telemetry]\nfilter = \"info\"\naccess_log = false";
    let setup = guarded().with(quiet).with(&half_open_after("500ms"));
    let served = Served::start(setup, &simulator.base_url()).await;
    let path = format!("/spaces/{}/tasks", world::SUPPORT);
    control.set_faults(vec![Fault::always(FaultKind::Unavailable)]);
    let mut unavailable = 0;
    for number in 1..=50 {
        let told = served.get(&format!("{path}?page={number}")).await;
        unavailable += usize::from(told.code() == "upstream_unavailable");
    }
    assert!(unavailable > 0);
    let failed = control.requests();
    control.set_faults(Vec::new());
    patiently("a page", async {
        while served.get(&path).await.status != 200 {
            tokio::task::yield_now().await;
        }
    })
    .await;

    served.signal("-TERM").await;

    let (_, log) = served.end().await;
    let lines = |part: &str| log.iter().filter(|line| line.contains(part)).count();
    assert_eq!(lines("the circuit is open"), 1, "{log:#?}");
    assert_eq!(lines("the circuit is closed"), 1, "{log:#?}");
    // One for each call that failed, none for those that were not made.
    assert_eq!(lines("\"WARN\"") as u64, failed + 1, "{log:#?}");
}
