//! The operators' listener.

use serde_json::{Value, json};
use unpod_gateway::{
    domain::SpaceToken,
    simulator::{Scripted, world},
};

use crate::{
    gateway::{Gateway, client, setup, start, until},
    raw,
};

pub(crate) async fn ask(gateway: &Gateway, method: &str, path: &str) -> (u16, String) {
    ask_with(gateway, method, path, &[]).await
}

async fn ask_with(
    gateway: &Gateway,
    method: &str,
    path: &str,
    fields: &[(&'static str, &str)],
) -> (u16, String) {
    let url = format!("{}{path}", gateway.admin_url());
    let mut request = gateway.http().request(method.parse().unwrap(), url);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

#[tokio::test]
async fn a_gateway_that_serves_is_live_and_ready() {
    let gateway = start().await;
    assert_eq!(ask(&gateway, "GET", "/livez").await, (200, "ok".to_owned()));
    let (status, body) = ask(&gateway, "GET", "/readyz").await;
    assert_eq!(status, 200);
    assert!(body.contains("\"status\":\"ready\""), "{body}");
}

#[tokio::test]
async fn a_refused_credential_degrades_readiness_until_another_is_taken() {
    let running = setup().start_from_file().await;
    let gateway = &running.gateway;
    gateway.tasks(world::ARCHIVE, "").await;
    gateway.upstream().revoke_token(world::ACME_TOKEN);
    gateway.tasks(world::SUPPORT, "").await;
    let (status, body) = ask(gateway, "GET", "/readyz").await;
    assert_eq!(status, 200, "a fresh page is still shown");
    assert!(body.contains("\"degraded\""), "{body}");

    let next = format!(
        "[upstream.credentials.default]\ntoken = \"{}\"",
        world::ACME_NEXT_TOKEN
    );
    running.rewrite(setup().with(&next));
    running.reload().await;
    gateway.tasks(world::SUPPORT, "").await;
    let (_, body) = ask(gateway, "GET", "/readyz").await;
    assert!(!body.contains("\"degraded\""), "{body}");
}

async fn readiness(gateway: &Gateway) -> (u16, Value) {
    let (status, body) = ask(gateway, "GET", "/readyz").await;
    (status, serde_json::from_str(&body).unwrap())
}

#[tokio::test]
async fn where_nothing_could_be_answered_nobody_should_be_sent() {
    let throttled = Scripted::json(429, "{}").header("retry-after", "3600");
    let away = Scripted::new(503, "").header("retry-after", "120");
    let refused = Scripted::json(401, "{\"message\":\"Invalid token.\",\"status_code\":401}");
    for (code, answer) in [
        ("upstream_quota_exhausted", throttled),
        ("upstream_unavailable", away),
        ("upstream_auth_failed", refused),
    ] {
        let gateway = start().await;
        assert_eq!(readiness(&gateway).await.0, 200, "{code}");
        gateway.upstream().script(world::SUPPORT, vec![answer]);
        gateway.tasks(world::SUPPORT, "").await;

        let (status, told) = readiness(&gateway).await;

        assert_eq!(
            (status, &told["status"]),
            (503, &"unavailable".into()),
            "{told}"
        );
        assert_eq!(told["parts"]["answers"]["nothing_with"]["default"], code);
        gateway.tasks(world::SUPPORT, "").await.assert_error(code);
    }
}

#[tokio::test]
async fn one_page_or_one_credential_that_is_left_is_worth_asking_for() {
    let throttled = || Scripted::json(429, "{}").header("retry-after", "3600");
    let stored = start().await;
    stored.tasks(world::ARCHIVE, "").await;
    stored.upstream().script(world::SUPPORT, vec![throttled()]);
    stored.tasks(world::SUPPORT, "").await;
    assert_eq!(readiness(&stored).await.0, 200);
    ask(&stored, "DELETE", "/cache").await;
    assert_eq!(readiness(&stored).await.0, 503);

    let other = format!(
        "[upstream.credentials.other]\ntoken = \"{}\"\nspaces = [\"{}\"]",
        world::ACME_NEXT_TOKEN,
        world::ARCHIVE
    );
    let two = setup().with(&other).start().await;
    two.upstream().script(world::SUPPORT, vec![throttled()]);
    two.tasks(world::SUPPORT, "").await;
    let (status, told) = readiness(&two).await;
    assert_eq!(status, 200);
    assert_eq!(told["parts"]["answers"]["status"], "degraded");
}

#[tokio::test]
async fn what_a_clients_request_would_get_is_explained_by_its_own_credential() {
    let two = format!(
        "[upstream.credentials.other]\ntoken = \"{}\"\norg_handle = \"{}\"\n{}",
        world::ACME_NEXT_TOKEN,
        world::ACME,
        client(
            "narrow",
            "ugw_narrow",
            &format!("spaces = [\"{}\"]\ncredential = \"other\"", world::SUPPORT)
        )
    );
    let gateway = setup().with(&two).start().await;
    gateway.tasks(world::SUPPORT, "").key("ugw_narrow").await;
    let explained = async |space: &str, rest: &str| {
        let path = format!("/cache/explain?space={space}{rest}");
        let (status, body) = ask(&gateway, "GET", &path).await;
        let told: Value = serde_json::from_str(&body).unwrap_or(body.into());
        (status, told)
    };
    for (space, rest, credential, verdict) in [
        (world::SUPPORT, "", "default", "fill"),
        (world::SUPPORT, "&client=reader", "default", "fill"),
        (world::SUPPORT, "&client=narrow", "other", "hit"),
    ] {
        let (status, told) = explained(space, rest).await;
        assert_eq!(status, 200, "{rest}");
        assert_eq!(
            (&told["credential"], &told["verdict"]),
            (&credential.into(), &verdict.into()),
            "{rest}"
        );
    }
    let (_, told) = explained(world::ARCHIVE, "&client=narrow").await;
    assert_eq!(told["verdict"], "space-not-allowed");
    for client in ["nobody", "", "Narrow", "narrow&client=reader"] {
        let (status, told) = explained(world::SUPPORT, &format!("&client={client}")).await;
        assert_eq!(status, 400, "{client}: {told}");
        assert!(
            told.as_str().unwrap().contains("client"),
            "{client}: {told}"
        );
    }
}

#[tokio::test]
async fn an_open_circuit_and_a_refused_credential_are_explained() {
    let stale = "[cache]\nttl = \"0s\"\nstale_while_revalidate = \"0s\"";
    let away = Scripted::new(503, "").header("retry-after", "120");
    let refused = Scripted::json(401, "{\"message\":\"Invalid token.\",\"status_code\":401}");
    for (answer, with_page, without) in [
        (away, "stale-if-error", "circuit-open"),
        (refused, "refused", "refused"),
    ] {
        let gateway = setup().with(stale).start().await;
        gateway.tasks(world::ARCHIVE, "").await;
        gateway.upstream().script(world::SUPPORT, vec![answer]);
        gateway.tasks(world::SUPPORT, "").await;
        for (space, verdict) in [(world::ARCHIVE, with_page), (world::UNICODE, without)] {
            let (_, body) = ask(&gateway, "GET", &format!("/cache/explain?space={space}")).await;
            let told: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(told["verdict"], verdict, "{body}");
            let is_open = told["circuit_wait"].as_u64().is_some_and(|wait| wait > 90);
            assert_eq!(is_open, without == "circuit-open", "{body}");
            assert_eq!(told["credential_held"], without == "refused", "{body}");
            let served = gateway.tasks(space, "").await;
            let is_page = verdict == "stale-if-error";
            assert_eq!(served.status == 200, is_page, "as it said: {body}");
        }
    }
}

#[tokio::test]
async fn a_purge_costs_the_next_request_a_call() {
    let gateway = start().await;
    for purge in [
        "/cache".to_owned(),
        format!("/cache/spaces/{}", world::SUPPORT),
    ] {
        gateway.tasks(world::SUPPORT, "").await;
        let before = gateway.upstream().requests();

        let (status, _) = ask(&gateway, "DELETE", &purge).await;

        assert_eq!(status, 204, "{purge}");
        gateway.tasks(world::SUPPORT, "").await;
        assert_eq!(gateway.upstream().requests(), before + 1, "{purge}");
    }
}

#[tokio::test]
async fn what_a_request_would_get_is_explained() {
    let gateway = start().await;
    let verdict = async |space: &str| {
        let path = format!("/cache/explain?space={space}");
        let (status, body) = ask(&gateway, "GET", &path).await;
        assert_eq!(status, 200);
        let told: Value = serde_json::from_str(&body).unwrap();
        told["verdict"].as_str().unwrap().to_owned()
    };
    for (space, then) in [(world::SUPPORT, "hit"), (world::UNKNOWN_SPACE, "refused")] {
        assert_eq!(verdict(space).await, "fill");
        gateway.tasks(space, "").await;
        assert_eq!(verdict(space).await, then);
        gateway.tasks(space, "").await;
        assert_eq!(gateway.upstream().requests_to(space), 1, "as it said");
    }
}

#[tokio::test]
async fn what_is_explained_is_what_a_request_may_ask_for() {
    let few = "[routes.tasks]\nmax_page_size = 10";
    let gateway = setup().with(few).start().await;
    gateway.tasks(world::SUPPORT, "").await;
    let path = |rest| format!("/cache/explain?space={}{rest}", world::SUPPORT);
    for (rest, expected) in [
        ("", 200),
        ("&page_size=10", 200),
        ("&page_size=11", 400),
        ("&page=0", 400),
        ("&page=1000001", 400),
        ("&page=1&page=2", 400),
        ("&pages=1", 400),
    ] {
        let (status, body) = ask(&gateway, "GET", &path(rest)).await;
        assert_eq!(status, expected, "{rest}");
        if status == 200 {
            let told: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(told["verdict"], "hit", "{rest}");
        }
    }
}

#[tokio::test]
async fn a_spent_quota_is_explained() {
    let stale = "[cache]\nttl = \"0s\"\nstale_while_revalidate = \"0s\"\nassemble_pages = true";
    let gateway = setup().with(stale).start().await;
    let explained = async |space: &str| {
        let (_, body) = ask(&gateway, "GET", &format!("/cache/explain?space={space}")).await;
        let told: Value = serde_json::from_str(&body).unwrap();
        let of = |name: &str| told[name].clone();
        (of("verdict"), of("quota_wait"))
    };
    gateway.tasks(world::SUPPORT, "").await;
    assert_eq!(
        explained(world::SUPPORT).await,
        ("fill".into(), Value::Null)
    );
    let spent = Scripted::json(429, "{}").header("retry-after", "3600");
    gateway.upstream().script(world::ARCHIVE, vec![spent]);
    gateway.tasks(world::ARCHIVE, "").await;

    let (verdict, wait) = explained(world::SUPPORT).await;

    assert_eq!(verdict, "quota");
    assert!(
        wait.as_u64()
            .is_some_and(|wait| (3500..=3600).contains(&wait))
    );
    let shown = gateway.tasks(world::SUPPORT, "").await;
    assert!(shown.cache_status().ends_with("detail=quota"), "as it said");
    let (verdict, wait) = explained(world::ARCHIVE).await;
    assert_eq!(verdict, "fill");
    assert!(wait.is_u64());

    let smaller = "&page_size=3";
    let (verdict, _) = explained(&format!("{}{smaller}", world::SUPPORT)).await;
    assert_eq!(verdict, "quota");
    let shown = gateway.tasks(world::SUPPORT, "?page_size=3").await;
    assert!(shown.cache_status().ends_with("detail=quota"), "as it said");
}

#[tokio::test]
async fn a_purge_of_one_space_leaves_the_others() {
    let gateway = start().await;
    gateway.tasks(world::SUPPORT, "").await;
    let other = format!("/cache/spaces/{}", world::ARCHIVE);

    ask(&gateway, "DELETE", &other).await;

    let kept = gateway.tasks(world::SUPPORT, "").await;
    assert_eq!(kept.cache_status(), "hit");
}

#[tokio::test]
async fn a_fill_that_began_before_a_purge_answers_and_is_not_stored() {
    let gateway = start().await;
    let hold = gateway.upstream().hold();
    let asked = gateway.tasks(world::SUPPORT, "").spawn();
    gateway.upstream().wait_for_requests(1).await;
    ask(&gateway, "DELETE", "/cache").await;

    hold.release();

    let answer = asked.await.unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.cache_status(), "fwd=uri-miss; fwd-status=200");
    let next = gateway.tasks(world::SUPPORT, "").await;
    assert_eq!(next.cache_status(), "fwd=uri-miss; fwd-status=200; stored");
}

#[tokio::test]
async fn who_asks_after_a_purge_is_not_given_what_was_asked_before_it() {
    let gateway = start().await;
    let hold = gateway.upstream().hold();
    let before = gateway.tasks(world::SUPPORT, "").spawn();
    gateway.upstream().wait_for_requests(1).await;
    ask(&gateway, "DELETE", "/cache").await;

    let after = gateway.tasks(world::SUPPORT, "").spawn();
    gateway.upstream().wait_for_requests(2).await;
    hold.release();

    assert_eq!(before.await.unwrap().status, 200);
    let after = after.await.unwrap();
    assert_eq!(after.cache_status(), "fwd=uri-miss; fwd-status=200; stored");
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let gateway = start().await;
    gateway.tasks(world::SUPPORT, "").await;
    gateway.tasks(world::SUPPORT, "").await;
    gateway.get("/nowhere").without_key().await;

    let (status, text) = ask(&gateway, "GET", "/metrics").await;

    assert_eq!(status, 200);
    for line in [
        "gateway_cache_lookups_total{outcome=\"hit\",client=\"reader\"} 1",
        "gateway_cache_lookups_total{outcome=\"miss\",client=\"reader\"} 1",
        "gateway_fills_total{outcome=\"stored\"} 1",
        "gateway_upstream_requests_total{status=\"200\",client=\"reader\"} 1",
        "gateway_auth_failures_total{reason=\"missing\"} 1",
        "gateway_cache_entries 1",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
    assert!(!text.contains(world::SUPPORT));
}

#[tokio::test]
async fn the_status_tells_of_spaces_by_fingerprint_and_of_credentials() {
    let quota = "[upstream]\nquota_per_minute = 90";
    let gateway = setup().with(quota).start().await;
    for (space, page_size) in [
        (world::ARCHIVE, 1),
        (world::SUPPORT, 1),
        (world::SUPPORT, 2),
    ] {
        let query = format!("?page_size={page_size}");
        gateway.tasks(space, &query).await;
    }

    let (_, text) = ask(&gateway, "GET", "/status").await;

    let status: Value = serde_json::from_str(&text).unwrap();
    let support = SpaceToken::new(world::SUPPORT).unwrap().to_string();
    let largest = &status["spaces"][0];
    assert_eq!(largest["space"], support);
    assert_eq!(largest["credential"], "default");
    assert_eq!(
        (&largest["pages"], &largest["fresh"]),
        (&json!(2), &json!(2))
    );
    assert!(largest["bytes"].as_u64().unwrap() > 0);
    assert!(largest["youngest_age"].as_u64() <= largest["oldest_age"].as_u64());
    assert_eq!(status["spaces"].as_array().unwrap().len(), 2);
    let credential = &status["credentials"][0];
    assert_eq!(credential["name"], "default");
    assert_eq!(credential["circuit"], "closed");
    assert_eq!(credential["refused"], false);
    assert_eq!(credential["calls_per_minute"], 90);
    assert_eq!(status["readiness"]["status"], "ready");
    for secret in [world::SUPPORT, world::ARCHIVE, world::ACME_TOKEN] {
        assert!(!text.contains(secret), "{secret}");
    }
}

#[tokio::test]
async fn the_dashboards_numbers_say_what_is_watched_and_what_it_costs() {
    let gateway = start().await;
    let watch = async || {
        let (_, text) = ask(&gateway, "GET", "/status").await;
        assert!(!text.contains(world::SUPPORT));
        serde_json::from_str::<Value>(&text).unwrap()["watches"][0].clone()
    };
    assert_eq!(watch().await, Value::Null);

    let path = format!("/spaces/{}/changes", world::SUPPORT);
    let accept = "Accept: text/event-stream\r\n";
    let mut stream = raw::ask(gateway.address(), &path, accept).await;
    assert!(raw::read_head(&mut stream).await);
    let watched = watch().await;
    let support = SpaceToken::new(world::SUPPORT).unwrap().to_string();
    let expected = json!({
        "space": support, "credential": "default", "state": "watching", "since": null, "code": null,
        "listeners": 1, "tasks": 57, "ranges": 1, "interval": 10, "calls_per_minute": 6.0,
    });
    assert_eq!(watched, expected);

    raw::leave(stream);
    until(|| gateway.counts("gateway_changes_streams 0")).await;
    let left = watch().await;
    assert_eq!(
        (&left["state"], &left["listeners"]),
        (&json!("lingering"), &json!(0))
    );
}

#[tokio::test]
async fn a_space_is_dropped_by_its_fingerprint() {
    let gateway = start().await;
    gateway.tasks(world::SUPPORT, "").await;
    gateway.tasks(world::ARCHIVE, "").await;
    let fingerprint = SpaceToken::new(world::SUPPORT).unwrap();

    let (status, _) = ask(
        &gateway,
        "DELETE",
        &format!("/cache/fingerprints/{fingerprint}"),
    )
    .await;

    assert_eq!(status, 204);
    let dropped = gateway.tasks(world::SUPPORT, "").await;
    assert_eq!(
        dropped.cache_status(),
        "fwd=uri-miss; fwd-status=200; stored"
    );
    assert_eq!(
        gateway.tasks(world::ARCHIVE, "").await.cache_status(),
        "hit"
    );
    let token = format!("/cache/fingerprints/{}", world::ARCHIVE);
    assert_eq!(ask(&gateway, "DELETE", &token).await.0, 404);
}

#[tokio::test]
async fn the_dashboard_may_load_its_own_files_alone() {
    let gateway = start().await;
    for (path, content_type) in [
        ("/", "text/html; charset=utf-8"),
        ("/dashboard.css", "text/css; charset=utf-8"),
        ("/dashboard.js", "text/javascript; charset=utf-8"),
        ("/charts.js", "text/javascript; charset=utf-8"),
        ("/docs/runbook", "text/html; charset=utf-8"),
    ] {
        let url = format!("{}{path}", gateway.admin_url());
        let response = gateway.http().get(url).send().await.unwrap();
        assert_eq!(response.status().as_u16(), 200, "{path}");
        let field = |name: &str| response.headers()[name].to_str().unwrap();
        assert_eq!(field("content-type"), content_type);
        let policy = field("content-security-policy");
        assert!(policy.starts_with("default-src 'none'; "), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(field("x-content-type-options"), "nosniff");
    }
}

#[tokio::test]
async fn the_last_hour_adds_up_to_the_metrics() {
    let gateway = start().await;
    gateway.tasks(world::SUPPORT, "").await;
    gateway.tasks(world::SUPPORT, "").await;
    gateway.tasks(world::SUPPORT, "?page=0").await;
    gateway.tasks(world::UNKNOWN_SPACE, "").await;

    let (status, body) = ask(&gateway, "GET", "/history").await;

    assert_eq!(status, 200);
    let told: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(told["interval_seconds"], 10);
    let windows = told["windows"].as_array().unwrap();
    let sum = |name: &str| -> u64 {
        let counts = windows.iter().map(|window| window[name].as_u64());
        counts.map(Option::unwrap).sum()
    };
    for (name, expected) in [
        ("fresh", 1),
        ("stale", 0),
        ("fetched", 2),
        ("rejected", 0),
        ("client_errors", 2),
        ("server_errors", 0),
        ("upstream_calls", 2),
    ] {
        assert_eq!(sum(name), expected, "{name}: {body}");
    }
    let last = windows.last().unwrap();
    assert!(last["end"].as_f64() > Some(1.7e9), "{body}");
    assert!(last["p50"].as_f64() <= last["p95"].as_f64(), "{body}");
}

#[tokio::test]
async fn the_documents_an_alert_links_to_are_served() {
    let gateway = start().await;
    for (page, part) in [
        ("runbook", "<h2 id=\"unpodgatewaydown\">"),
        ("metrics", "gateway_http_requests_total"),
        ("operations", "<h2 id=\"sizing\">"),
        ("resilience", "upstream_timeout"),
        ("troubleshooting", "overloaded"),
    ] {
        let (status, text) = ask(&gateway, "GET", &format!("/docs/{page}")).await;
        assert_eq!(status, 200, "{page}");
        assert!(text.contains(part), "{page}");
    }
    for page in ["", "nothing", "runbook.md", "..%2Frunbook"] {
        let (status, _) = ask(&gateway, "GET", &format!("/docs/{page}")).await;
        assert_eq!(status, 404, "{page}");
    }
}

#[tokio::test]
async fn the_configuration_is_shown_without_its_secrets() {
    let gateway = start().await;
    let (status, text) = ask(&gateway, "GET", "/config").await;
    assert_eq!(status, 200);
    assert!(text.contains("max_body") && text.contains("<hidden>"));
    assert!(!text.contains(world::ACME_TOKEN), "{text}");
}

#[tokio::test]
async fn a_web_page_is_no_operator() {
    let gateway = start().await;
    let host = ("host", "evil.example");
    let origin = ("origin", "https://evil.example");
    let https = gateway.admin_url().replace("http:", "https:");
    for (method, path, field) in [
        ("GET", "/config", host),
        ("DELETE", "/cache", host),
        ("DELETE", "/cache", origin),
        ("DELETE", "/cache", ("origin", "null")),
        ("GET", "/config", ("host", "[127.0.0.1]evil.test")),
        ("GET", "/config", ("host", "127.0.0.1:evil.test")),
        ("POST", "/reload", ("origin", &https)),
    ] {
        let (status, _) = ask_with(&gateway, method, path, &[field]).await;
        assert_eq!(status, 403, "{method} {path} {field:?}");
    }
}

#[tokio::test]
async fn two_origins_are_nobodys() {
    let gateway = start().await;
    let ours = gateway.admin_url();
    for origins in [
        [&*ours, "http://evil.example"],
        ["http://evil.example", &ours],
        [&ours, &ours],
    ] {
        let request = gateway.http().delete(format!("{ours}/cache"));
        let request = origins
            .iter()
            .fold(request, |request, origin| request.header("origin", *origin));
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 403, "{origins:?}");
    }
}

#[tokio::test]
async fn no_answer_to_operators_is_stored_or_sniffed() {
    let gateway = start().await;
    for (method, path, expected) in [
        ("GET", "/livez", 200),
        ("GET", "/readyz", 200),
        ("GET", "/metrics", 200),
        ("GET", "/status", 200),
        ("GET", "/history", 200),
        ("GET", "/docs/runbook", 200),
        ("GET", "/config", 200),
        ("GET", "/", 200),
        ("GET", "/dashboard.js", 200),
        ("GET", "/cache/spaces/A", 200),
        ("GET", "/cache/explain", 400),
        ("DELETE", "/cache", 204),
        ("GET", "/nowhere", 404),
        ("PUT", "/cache", 405),
    ] {
        let url = format!("{}{path}", gateway.admin_url());
        let request = gateway.http().request(method.parse().unwrap(), url);
        let answer = request.send().await.unwrap();
        let headers = answer.headers();
        assert_eq!(answer.status().as_u16(), expected, "{path}");
        assert_eq!(headers["cache-control"], "no-store", "{path}");
        assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
    }
    let refused = gateway
        .http()
        .get(format!("{}/config", gateway.admin_url()));
    let refused = refused.header("host", "evil.example").send().await.unwrap();
    assert_eq!(refused.status().as_u16(), 403);
    assert_eq!(refused.headers()["cache-control"], "no-store");
}

#[tokio::test]
async fn the_data_listener_serves_nothing_of_the_operators() {
    let gateway = start().await;
    for path in ["/metrics", "/readyz", "/livez", "/config", "/cache"] {
        gateway.get(path).await.assert_error("route_not_found");
    }
}
