//! The operators' key: who needs it, how it comes, what is told without it, and how it changes.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;
use unpod_gateway::simulator::world;

use crate::{
    gateway::{ConfigFile, Gateway, Setup, digest, setup},
    process::{Served, run},
};

const KEY: &str = "ugw_operators_key";
const NEXT_KEY: &str = "ugw_next_operators_key";

fn with_keys(keys: &[&str]) -> Setup {
    let digests: Vec<String> = keys.iter().map(|key| digest(key)).collect();
    setup().with(&format!("[admin]\nkey_sha256 = {digests:?}"))
}

fn bearer(key: &str) -> String {
    format!("Bearer {key}")
}

fn basic(key: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("operator:{key}")))
}

struct Answer {
    status: u16,
    headers: http::HeaderMap,
    body: String,
}

/// Asks with an `Authorization`, unless it is empty.
async fn ask(gateway: &Gateway, method: &str, path: &str, authorization: &str) -> Answer {
    let url = format!("{}{path}", gateway.admin_url());
    let mut request = gateway.http().request(method.parse().unwrap(), url);
    if !authorization.is_empty() {
        request = request.header("authorization", authorization);
    }
    let response = request.send().await.unwrap();
    Answer {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        body: response.text().await.unwrap(),
    }
}

#[tokio::test]
async fn without_the_key_an_operator_is_told_nothing() {
    let gateway = with_keys(&[KEY]).start().await;
    let space = format!("/cache/spaces/{}", world::SUPPORT);
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/status"),
        ("GET", "/metrics"),
        ("GET", "/config"),
        ("GET", "/nowhere"),
        ("POST", "/reload"),
        ("DELETE", "/cache"),
        ("GET", &space),
        ("DELETE", &space),
        ("GET", "/cache/explain?space=A"),
    ] {
        for authorization in [
            "",
            &bearer("wrong"),
            &basic("wrong"),
            &format!("Token {KEY}"),
        ] {
            let refused = ask(&gateway, method, path, authorization).await;
            let what = format!("{method} {path} {authorization}");
            assert_eq!(refused.status, 401, "{what}");
            let challenges: Vec<_> = refused.headers.get_all("www-authenticate").iter().collect();
            assert_eq!(
                challenges,
                ["Bearer", "Basic realm=\"unpod-gateway\""],
                "{what}"
            );
            assert!(!refused.body.contains("gateway_"), "{what}");
        }
    }
}

#[tokio::test]
async fn the_key_comes_as_bearer_or_as_a_password() {
    let gateway = with_keys(&[KEY, NEXT_KEY]).start().await;
    for authorization in [bearer(KEY), basic(KEY), bearer(NEXT_KEY), basic(NEXT_KEY)] {
        let served = ask(&gateway, "GET", "/metrics", &authorization).await;
        assert_eq!(served.status, 200, "{authorization}");
        assert!(served.body.contains("gateway_cache_entries"));
        let dropped = ask(&gateway, "DELETE", "/cache", &authorization).await;
        assert_eq!(dropped.status, 204, "{authorization}");
    }
}

#[tokio::test]
async fn probes_need_no_key_and_are_told_the_status_alone() {
    let gateway = with_keys(&[KEY]).start().await;
    let live = ask(&gateway, "GET", "/livez", "").await;
    assert_eq!((live.status, live.body.as_str()), (200, "ok"));
    let ready = ask(&gateway, "GET", "/readyz", "").await;
    assert_eq!(
        (ready.status, ready.body.as_str()),
        (200, r#"{"status":"ready"}"#)
    );

    let whole = ask(&gateway, "GET", "/readyz", &bearer(KEY)).await;
    assert!(whole.body.contains("\"parts\""), "{}", whole.body);
    for path in ["/livez", "/readyz"] {
        assert_eq!(
            ask(&gateway, "GET", path, &bearer("wrong")).await.status,
            401
        );
    }
}

#[tokio::test]
async fn a_clients_key_is_no_operators_key_and_the_other_way_round() {
    let gateway = with_keys(&[KEY]).start().await;
    let reader = bearer(crate::gateway::READER);
    assert_eq!(ask(&gateway, "GET", "/metrics", &reader).await.status, 401);
    let tasks = gateway.tasks(world::SUPPORT, "").key(KEY).await;
    tasks.assert_error("unauthenticated");
}

#[tokio::test]
async fn a_foreign_page_changes_nothing_though_its_browser_sends_the_key() {
    let gateway = with_keys(&[KEY]).start().await;
    for (origin, expected) in [
        ("https://evil.example", 403),
        ("null", 403),
        (gateway.admin_url().as_str(), 204),
    ] {
        let url = format!("{}/cache", gateway.admin_url());
        let request = gateway.http().delete(url).header("origin", origin);
        let response = request.header("authorization", basic(KEY)).send().await;
        assert_eq!(response.unwrap().status().as_u16(), expected, "{origin}");
    }
}

#[tokio::test]
async fn wrong_keys_are_limited_by_address_and_a_good_one_is_served() {
    let limited = "[auth]\nmax_failures = 3";
    let gateway = with_keys(&[KEY]).with(limited).start().await;
    for _ in 0..3 {
        assert_eq!(
            ask(&gateway, "GET", "/metrics", &bearer("wrong"))
                .await
                .status,
            401
        );
    }

    let refused = ask(&gateway, "GET", "/metrics", &bearer("wrong")).await;

    assert_eq!(refused.status, 429);
    let wait = refused.headers["retry-after"].to_str().unwrap();
    assert!((1..=60).contains(&wait.parse::<u64>().unwrap()), "{wait}");
    assert_eq!(
        ask(&gateway, "GET", "/metrics", &bearer(KEY)).await.status,
        200
    );
    // It guesses nothing.
    assert_eq!(ask(&gateway, "GET", "/metrics", "").await.status, 401);
    assert_eq!(ask(&gateway, "GET", "/livez", "").await.status, 200);
}

#[tokio::test]
async fn the_key_changes_with_a_reload() {
    let running = with_keys(&[KEY]).start_from_file().await;
    let gateway = &running.gateway;
    let status = async |key| ask(gateway, "GET", "/metrics", &bearer(key)).await.status;
    let reload = async |key| ask(gateway, "POST", "/reload", &bearer(key)).await;

    running.rewrite(with_keys(&[KEY, NEXT_KEY]));
    let told = reload(KEY).await;
    let expected = json!({"changed": ["admin.key_sha256"], "needs_restart": []});
    assert_eq!(told.body, expected.to_string());
    assert_eq!((status(KEY).await, status(NEXT_KEY).await), (200, 200));

    running.rewrite(with_keys(&[NEXT_KEY]));
    assert_eq!(reload(NEXT_KEY).await.status, 200);
    assert_eq!((status(KEY).await, status(NEXT_KEY).await), (401, 200));

    running.rewrite(setup());
    assert_eq!(reload(NEXT_KEY).await.status, 200);
    assert_eq!(ask(gateway, "GET", "/metrics", "").await.status, 200);
}

#[tokio::test]
async fn the_key_of_a_listener_that_others_reach_cannot_go() {
    let open = "[admin]\nlisten = \"0.0.0.0:0\"";
    let running = with_keys(&[KEY]).with(open).start_from_file().await;
    let gateway = &running.gateway;
    // Fine for a gateway that starts with it: this one still listens where others reach it.
    running.rewrite(setup());

    let refused = ask(gateway, "POST", "/reload", &bearer(KEY)).await;

    assert_eq!(refused.status, 422);
    assert!(
        refused.body.contains("admin.key_sha256"),
        "{}",
        refused.body
    );
    assert_eq!(ask(gateway, "GET", "/metrics", "").await.status, 401);
    assert_eq!(
        ask(gateway, "GET", "/metrics", &bearer(KEY)).await.status,
        200
    );
}

#[tokio::test]
async fn healthcheck_needs_no_key() {
    let log = "[telemetry]\nfilter = \"info\"";
    let open = "[admin]\nlisten = \"0.0.0.0:0\"";
    let served = Served::start(with_keys(&[KEY]).with(log).with(open), "http://127.0.0.1:9").await;
    let listen = format!("[admin]\nlisten = \"{}\"", served.admin);
    let file = ConfigFile::new(&with_keys(&[KEY]).with(&listen).toml("http://127.0.0.1:9"));

    let healthy = run(&["healthcheck", "--config", &file.path()]).await;

    assert_eq!(healthy.status.code(), Some(0));
}

#[tokio::test]
async fn a_change_is_logged_with_who_asked_for_it() {
    let log = "[telemetry]\nfilter = \"info\"";
    let simulator = "http://127.0.0.1:9";
    let served = Served::start(with_keys(&[KEY]).with(log), simulator).await;
    let http = crate::answer::http_client();
    let space = format!("/cache/spaces/{}", world::SUPPORT);
    for (method, path) in [
        ("DELETE", "/cache"),
        ("DELETE", &space),
        ("POST", "/reload"),
    ] {
        let url = format!("http://{}{path}", served.admin);
        let request = http.request(method.parse().unwrap(), url);
        let answer = request.bearer_auth(KEY).send().await.unwrap();
        assert!(answer.status().is_success(), "{path}");
    }
    let url = format!("http://{}/metrics", served.admin);
    let answer = http.get(url).bearer_auth("wrong").send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 401);

    served.signal("-TERM").await;
    let (_, lines) = served.end().await;

    let logged = |message: &str| {
        let line = lines.iter().find(|line| line.contains(message));
        line.unwrap_or_else(|| panic!("no \"{message}\" in {lines:#?}"))
            .clone()
    };
    for message in ["operator purged the whole cache", "operator purged a space"] {
        let line = logged(message);
        assert!(line.contains(r#""operator":"127.0.0.1 by key""#), "{line}");
    }
    let line = logged("configuration is reloaded");
    assert!(
        line.contains("POST /reload from 127.0.0.1 by key"),
        "{line}"
    );
    let line = logged("a wrong operators' key is refused");
    assert!(line.contains(r#""peer.address":"127.0.0.1""#), "{line}");
    for secret in [KEY, world::SUPPORT, "wrong\""] {
        assert!(!lines.iter().any(|line| line.contains(secret)), "{secret}");
    }
}
