//! A configuration that changes while the gateway runs: as a whole or not at all, and no request notices the change itself.

use std::collections::HashSet;

use serde_json::json;
use unpod_gateway::simulator::{
    Control, Options, Simulator,
    world::{self, ARCHIVE, SUPPORT},
};

use crate::gateway::{ConfigFile, FromFile, READER, REFRESHER, Setup, client, setup, until};

fn counted(running: &FromFile, outcome: &str) -> u64 {
    let text = running.gateway.app.metrics().encode();
    let sample = format!("gateway_config_reloads_total{{outcome=\"{outcome}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&sample));
    line.unwrap().parse().unwrap()
}

/// A setup with one more client, which may read `space`.
fn with_newcomer(key: &str, space: &str) -> Setup {
    setup().with(&client("newcomer", key, &format!("spaces = [\"{space}\"]")))
}

#[tokio::test]
async fn clients_come_change_and_go() {
    let running = setup().start_from_file().await;
    let gateway = &running.gateway;
    let ask = |space, key| gateway.tasks(space, "").key(key);
    assert_eq!(ask(SUPPORT, "ugw_new").await.status, 401);

    running.rewrite(with_newcomer("ugw_new", SUPPORT));
    let (status, told) = running.reload().await;
    assert_eq!(
        (status, told),
        (200, json!({"changed": ["clients"], "needs_restart": []}))
    );
    assert_eq!(ask(SUPPORT, "ugw_new").await.status, 200);
    ask(ARCHIVE, "ugw_new")
        .await
        .assert_error("space_not_allowed");

    running.rewrite(with_newcomer("ugw_newer", ARCHIVE));
    running.reload().await;
    assert_eq!(ask(SUPPORT, "ugw_new").await.status, 401);
    assert_eq!(ask(ARCHIVE, "ugw_newer").await.status, 200);
    assert_eq!(ask(SUPPORT, READER).await.cache_status(), "hit", "kept");
}

#[tokio::test]
async fn limits_and_lifetimes_hold_from_the_next_request_on() {
    let running = setup().start_from_file().await;
    let gateway = &running.gateway;
    running.rewrite(setup().with(
        "[routes.tasks]\nmax_page_size = 10\n[cache]\nttl = \"5m\"\nclient_max_age = \"2m\"\n[upstream]\ntimeout = \"3s\"",
    ));

    let (_, told) = running.reload().await;

    assert_eq!(
        told["changed"],
        json!([
            "cache.client_max_age",
            "cache.ttl",
            "routes.tasks.max_page_size",
            "upstream.timeout"
        ])
    );
    let too_large = gateway.tasks(SUPPORT, "?page_size=11").await;
    too_large.assert_error("invalid_parameter");
    let page = gateway.tasks(SUPPORT, "?page_size=10").await;
    assert_eq!(page.header("cache-control"), Some("private, max-age=120"));
}

#[tokio::test]
async fn what_cannot_change_at_run_time_says_so() {
    let running = setup().start_from_file().await;
    running.rewrite(setup().with("[server]\nworkers = 3\n[cache]\nttl = \"1m\""));

    let (status, told) = running.reload().await;

    assert_eq!(status, 200);
    assert_eq!(told["changed"], json!(["cache.ttl", "server.workers"]));
    assert_eq!(told["needs_restart"], json!(["server.workers"]));
    // It is told for as long as it holds.
    let (_, again) = running.reload().await;
    assert_eq!(
        again,
        json!({"changed": [], "needs_restart": ["server.workers"]})
    );
}

#[tokio::test]
async fn the_configuration_that_is_shown_is_the_one_in_force() {
    let running = setup().start_from_file().await;
    let url = format!("{}/config", running.gateway.admin_url());
    let shown = async || -> (String, toml::Table) {
        let answer = running.gateway.http().get(&url).send().await.unwrap();
        let text = answer.text().await.unwrap();
        let table = toml::from_str(&text).unwrap();
        (text, table)
    };
    let (before, _) = shown().await;
    assert!(!before.starts_with('#'));
    running.rewrite(setup().with(
        "[server]\nworkers = 3\nlisten = \"127.0.0.1:9\"\n[cache]\nttl = \"1m\"\nmax_bytes = \"1MiB\"\n\
         [cache.redis]\nurl = \"redis://:secret@127.0.0.1:9\"\n[auth]\nmax_failures = 7",
    ));
    assert_eq!(running.reload().await.0, 200);

    let (text, after) = shown().await;

    for (section, key, value) in [
        ("server", "workers", toml::Value::Integer(0)),
        ("server", "listen", "127.0.0.1:0".into()),
        ("cache", "max_bytes", "256MiB".into()),
        ("cache", "ttl", "1m".into()),
        ("auth", "max_failures", toml::Value::Integer(0)),
    ] {
        assert_eq!(after[section][key], value, "{section}.{key}");
    }
    assert!(after["cache"]["redis"].get("url").is_none());
    let first = text.lines().next().unwrap();
    for key in [
        "auth.max_failures",
        "cache.max_bytes",
        "cache.redis.url",
        "server.listen",
        "server.workers",
    ] {
        assert!(first.starts_with("# ") && first.contains(key), "{first}");
    }
    assert!(!first.contains("cache.ttl") && !text.contains("secret"));
    running.rewrite(setup());
    assert_eq!(running.reload().await.0, 200);
    assert_eq!(shown().await.0, before);
}

#[tokio::test]
async fn a_bad_configuration_is_refused_with_all_its_problems_and_the_old_one_stays() {
    let running = setup().start_from_file().await;
    let gateway = &running.gateway;
    let bad = with_newcomer("ugw_new", SUPPORT)
        .with("[cache]\nttl = \"soon\"\n[server]\nno_such_key = 1");
    running.rewrite(bad);

    let (status, told) = running.reload().await;

    assert_eq!(status, 422);
    let problems = told["problems"].as_array().unwrap();
    let keys: Vec<_> = problems.iter().map(|problem| &problem["key"]).collect();
    assert_eq!(keys, ["server.no_such_key", "cache.ttl"]);
    assert_eq!(gateway.tasks(SUPPORT, "").key("ugw_new").await.status, 401);
    assert_eq!(gateway.tasks(SUPPORT, "").await.status, 200);
    assert!(counted(&running, "refused") >= 1);

    running.file.rewrite("this is no TOML");
    assert_eq!(running.reload().await.0, 422);
    assert_eq!(gateway.tasks(SUPPORT, "").await.status, 200);
}

#[tokio::test]
async fn a_changed_file_is_read_by_itself() {
    let running = setup().start_from_file().await;
    running.rewrite(with_newcomer("ugw_new", SUPPORT));
    until(|| counted(&running, "applied") == 1).await;
    let served = running.gateway.tasks(SUPPORT, "").key("ugw_new").await;
    assert_eq!(served.status, 200);
}

#[tokio::test]
async fn requests_during_many_reloads_are_all_answered_right() {
    let running = with_newcomer("ugw_new", SUPPORT).start_from_file().await;
    let gateway = &running.gateway;
    let expected = gateway.tasks(SUPPORT, "").await.body;
    let ask = |key: &'static str, expected: bytes::Bytes| {
        let gateway = &running.gateway;
        async move {
            for _ in 0..300 {
                let answer = gateway.tasks(SUPPORT, "").key(key).await;
                answer.assert_page(&expected);
            }
        }
    };
    let reload = async {
        for round in 0..30 {
            let lifetime = format!("[cache]\nttl = \"{}m\"", 5 + round % 2);
            running.rewrite(with_newcomer("ugw_new", SUPPORT).with(&lifetime));
            assert_eq!(running.reload().await.0, 200);
        }
    };
    tokio::join!(
        reload,
        ask(READER, expected.clone()),
        ask(REFRESHER, expected.clone()),
        ask("ugw_new", expected.clone()),
    );
}

#[tokio::test]
async fn another_organization_is_shown_nothing_of_the_first() {
    let running = setup().start_from_file().await;
    let gateway = &running.gateway;
    gateway.tasks(SUPPORT, "").await;
    running.rewrite(setup().with("[upstream.credentials.default]\norg_handle = \"globex\""));
    assert_eq!(running.reload().await.0, 200);

    let after = gateway.tasks(SUPPORT, "").await;

    assert_eq!(after.cache_status(), "fwd=uri-miss; fwd-status=200; stored");
}

#[tokio::test]
async fn another_upstream_is_asked_and_nothing_of_the_first_is_shown() {
    let running = setup().start_from_file().await;
    let gateway = &running.gateway;
    gateway.tasks(SUPPORT, "").await;
    let other = Simulator::start(Options::default()).await.unwrap();
    running.file.rewrite(&setup().toml(&other.base_url()));
    assert_eq!(running.reload().await.0, 200);

    let after = gateway.tasks(SUPPORT, "").await;

    assert_eq!(after.cache_status(), "fwd=uri-miss; fwd-status=200; stored");
    assert_eq!(gateway.upstream().requests(), 1);
    assert_eq!(other.control().requests(), 1);
}

/// What `upstream` was sent as `Authorization`, in all requests so far.
fn authorizations(upstream: &Control) -> HashSet<String> {
    let recorded = upstream.recorded();
    let sent = |request: &unpod_gateway::simulator::RecordedRequest| {
        request.header("authorization").map(str::to_owned)
    };
    recorded.iter().filter_map(sent).collect()
}

#[tokio::test]
async fn a_token_goes_to_its_own_upstream_alone_whenever_a_reload_comes() {
    let running = setup().start_from_file().await;
    let gateway = &running.gateway;
    let other = Simulator::start(Options::default()).await.unwrap();
    let there = setup().with(&format!(
        "[upstream.credentials.default]\ntoken = \"{}\"",
        world::ACME_NEXT_TOKEN
    ));
    let there = there.toml(&other.base_url());
    let here = setup().toml(&gateway.upstream_url());
    // Each a miss, so that fills begin at every moment of a reload.
    let ask = |first: u32| async move {
        for page in (first..).step_by(4).take(150) {
            let answer = gateway.tasks(SUPPORT, &format!("?page={page}")).await;
            assert_eq!(answer.status, 200);
        }
    };
    let reload = async {
        for round in 0..40 {
            running
                .file
                .rewrite(if round % 2 == 0 { &there } else { &here });
            assert_eq!(running.reload().await.0, 200);
        }
    };

    tokio::join!(reload, ask(1), ask(2), ask(3), ask(4));

    for (upstream, token) in [
        (gateway.upstream(), world::ACME_TOKEN),
        (&other.control(), world::ACME_NEXT_TOKEN),
    ] {
        assert_eq!(
            authorizations(upstream),
            HashSet::from([format!("Token {token}")])
        );
    }
}

#[tokio::test]
async fn a_file_that_a_refused_configuration_misses_is_read_when_it_comes() {
    let running = setup().start_from_file().await;
    let folder = ConfigFile::new("");
    let missing = folder.path().replace("gateway.toml", "token");
    running.rewrite(setup().token_file(&missing));
    assert_eq!(running.reload().await.0, 422);

    folder.put("token", world::ACME_NEXT_TOKEN);
    until(|| counted(&running, "applied") == 1).await;

    running.gateway.tasks(SUPPORT, "").await;
    let sent = authorizations(running.gateway.upstream());
    assert_eq!(
        sent,
        HashSet::from([format!("Token {}", world::ACME_NEXT_TOKEN)])
    );
}

/// A folder as Kubernetes mounts a map: the file is a link into `..data`, itself a link that is swapped.
struct MountedMap(tempfile::TempDir);

impl MountedMap {
    fn new(text: &str) -> Self {
        let map = Self(tempfile::tempdir().unwrap());
        map.swap("..first", text);
        std::os::unix::fs::symlink("..data/gateway.toml", map.file()).unwrap();
        map
    }

    fn file(&self) -> std::path::PathBuf {
        self.0.path().join("gateway.toml")
    }

    fn swap(&self, version: &str, text: &str) {
        let root = self.0.path();
        std::fs::create_dir(root.join(version)).unwrap();
        std::fs::write(root.join(version).join("gateway.toml"), text).unwrap();
        std::os::unix::fs::symlink(version, root.join("..data_tmp")).unwrap();
        std::fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    }
}

#[tokio::test]
async fn a_map_that_is_swapped_by_its_link_is_read_by_itself() {
    let simulator = Simulator::start(Options::default()).await.unwrap();
    let base_url = simulator.base_url();
    let map = MountedMap::new(&setup().toml(&base_url));
    let config = unpod_gateway::config::Config::load(Some(&map.file())).unwrap();
    let gateway = crate::gateway::start_with(config).await;

    map.swap(
        "..second",
        &with_newcomer("ugw_new", SUPPORT).toml(&base_url),
    );

    let applied = "gateway_config_reloads_total{outcome=\"applied\"} 1";
    until(|| gateway.app.metrics().encode().contains(applied)).await;
    let served = gateway.tasks(SUPPORT, "").key("ugw_new").await;
    assert_eq!(served.status, 200);
}
