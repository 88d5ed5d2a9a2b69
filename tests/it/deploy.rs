//! What `deploy/` and the operators' pages refer to is there: metrics, and a section for each alert.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::Value;
use unpod_gateway::{domain::Collection, simulator::world::SUPPORT, telemetry::metrics::Metrics};

use crate::{
    gateway::{client, setup},
    pki::Authority,
};

fn read(path: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every `gateway_…` name in `text`.
fn metric_names(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    text.split(|c| !is_part(c))
        .filter(|word| word.starts_with("gateway_") && !word.ends_with('_'))
        .map(str::to_owned)
        .collect()
}

fn samples(metrics: &Metrics) -> BTreeSet<String> {
    let text = metrics.encode();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let name = |line: &str| line.split(['{', ' ']).next().unwrap().to_owned();
    lines.map(name).collect()
}

#[tokio::test]
async fn every_metric_that_is_drawn_or_alerted_on_is_there() {
    // Nothing expires without these.
    let files = tempfile::tempdir().unwrap();
    let authority = files.path().join("ca.pem");
    fs::write(&authority, Authority::new().pem()).unwrap();
    let upstream = format!("[upstream]\nca_file = '{}'", authority.display());
    let expires = "spaces = [\"*\"]\nexpires = \"2100-01-01T00:00:00Z\"";
    let gateway = setup()
        .with(&upstream)
        .with(&client("guest", "ugw_guest", expires))
        .start()
        .await;
    gateway.tasks(SUPPORT, "").await;
    let there = samples(gateway.app.metrics());
    for path in [
        "deploy/grafana/dashboard.json",
        "deploy/prometheus/alerts.yml",
        "deploy/prometheus/alerts.test.yml",
        "docs/runbook.md",
        "docs/operations.md",
        "docs/resilience.md",
    ] {
        let named = metric_names(&read(path));
        assert!(!named.is_empty(), "{path}");
        for name in named {
            // A family may be named by itself, without its samples' suffix.
            let is_there = there.contains(&name) || there.contains(&format!("{name}_count"));
            assert!(is_there, "{path} names {name}");
        }
    }
}

#[test]
fn every_list_is_drawn_and_alerted_on() {
    let names: Vec<_> = Collection::all()
        .map(|collection| collection.name)
        .collect();
    let lists = names.join("|");
    for path in [
        "deploy/grafana/dashboard.json",
        "deploy/prometheus/alerts.yml",
    ] {
        let text = read(path).replace('\\', "");
        let routes: Vec<_> = text.split("route=").skip(1).collect();
        assert!(!routes.is_empty(), "{path}");
        for route in routes {
            let all = format!("~\"{lists}\"");
            assert!(
                route.starts_with(&all),
                "{path} names {lists} where it names a route"
            );
        }
    }
}

#[test]
fn every_alert_has_its_section_in_the_runbook() {
    let alerts = read("deploy/prometheus/alerts.yml");
    let runbook = read("docs/runbook.md");
    let named: Vec<_> = alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(named.len() >= 8);
    for alert in named {
        assert!(runbook.contains(&format!("\n## {alert}\n")), "{alert}");
        let link = format!(
            "runbook_url: '{{{{ or $externalLabels.unpod_gateway_runbook \"docs/runbook.md\" }}}}#{}'\n",
            alert.to_lowercase()
        );
        assert!(alerts.contains(&link), "{alert} links to its section");
    }
}

fn dashboard() -> Value {
    serde_json::from_str(&read("deploy/grafana/dashboard.json")).unwrap()
}

/// The expressions of a panel.
fn queries(panel: &Value) -> Vec<&str> {
    let targets = panel["targets"].as_array().into_iter().flatten();
    targets
        .map(|query| query["expr"].as_str().unwrap())
        .collect()
}

#[test]
fn each_panel_of_the_dashboard_asks_for_the_chosen_instances_and_clients() {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap();
    assert_eq!(panels[0]["type"], "row");
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let queries = queries(panel);
        assert!(!queries.is_empty(), "{}", panel["title"]);
        for query in queries {
            // Each selector, from its brace on.
            for selector in query.split('{').skip(1) {
                let chosen = "job=\"$job\",instance=~\"$instance\"";
                assert!(selector.starts_with(chosen), "{query}");
            }
            for metric in ["http_requests_total{", "cache_lookups_total{"] {
                for selector in query.split(metric).skip(1) {
                    let labels = selector.split('}').next().unwrap();
                    assert!(labels.contains("client=~\"$client\""), "{query}");
                }
            }
        }
    }
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<_> = variables.iter().map(|variable| &variable["name"]).collect();
    assert_eq!(names, ["datasource", "job", "instance", "client"]);
}

#[test]
fn a_state_is_shown_by_its_name() {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap();
    for (metric, first, last) in [
        ("gateway_circuit_state", 0, 2),
        ("gateway_credential_state", 0, 2),
        ("gateway_redis_up", -1, 1),
    ] {
        let shows = |panel: &&Value| queries(panel).iter().any(|query| query.contains(metric));
        let showing: Vec<_> = panels.iter().filter(shows).collect();
        assert!(showing.len() > 1, "{metric} has a stat and a history");
        for panel in showing {
            let names = &panel["fieldConfig"]["defaults"]["mappings"][0]["options"];
            for state in first..=last {
                let name = &names[state.to_string()]["text"];
                assert!(name.is_string(), "{} {state}", panel["title"]);
            }
        }
    }
}
