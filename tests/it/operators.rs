//! The operators' listener.

use unpod_gateway::simulator::world;

use crate::gateway::{Gateway, setup, start};

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
    gateway.upstream().revoke_token(world::ACME_TOKEN);
    gateway.tasks(world::SUPPORT, "").await;
    let (status, body) = ask(gateway, "GET", "/readyz").await;
    assert_eq!(status, 200);
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
    for (method, path, field) in [
        ("GET", "/config", host),
        ("DELETE", "/cache", host),
        ("DELETE", "/cache", origin),
        ("DELETE", "/cache", ("origin", "null")),
    ] {
        let (status, _) = ask_with(&gateway, method, path, &[field]).await;
        assert_eq!(status, 403, "{method} {path} {field:?}");
    }
}

#[tokio::test]
async fn the_data_listener_serves_nothing_of_the_operators() {
    let gateway = start().await;
    for path in ["/metrics", "/readyz", "/livez", "/config", "/cache"] {
        gateway.get(path).await.assert_error("route_not_found");
    }
}
