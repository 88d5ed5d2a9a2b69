//! Lists besides the tasks of a space: its runs, and the tasks of a run.

use unpod_gateway::simulator::world::{EMPTY, SUPPORT, UNKNOWN_SPACE};

use crate::{
    answer::Ask,
    gateway::{Gateway, REFRESHER, client, setup, start},
    operators,
    redis_server::Fleet,
};

/// The newest run of [`SUPPORT`], which has six.
const RUN: &str = "R0000001000000000000000000000005";
const RUN_TASKS: &str = "runs/R0000001000000000000000000000005/tasks";
/// Every list of [`SUPPORT`] that is asked for here, by its path below the space.
const LISTS: [&str; 3] = ["tasks", "runs", RUN_TASKS];

fn list(gateway: &Gateway, path: &str, query: &str) -> Ask {
    gateway.get(&format!("/spaces/{SUPPORT}/{path}{query}"))
}

/// Asks for page 1 of each list, and makes sure of what comes.
async fn read_all(gateway: &Gateway) {
    for path in LISTS {
        let page = gateway.upstream().expect_list(SUPPORT, path, 1, 5);
        list(gateway, path, "?page_size=5").await.assert_page(&page);
    }
}

#[tokio::test]
async fn a_list_is_one_page_byte_for_byte_however_its_route_is_spelled() {
    for path in LISTS {
        let gateway = start().await;
        let page = gateway.upstream().expect_list(SUPPORT, path, 2, 2);
        let mut tags = Vec::new();
        for spelling in ["/spaces", "/api/v2/platform/spaces"] {
            for slash in ["", "/"] {
                let target = format!("{spelling}/{SUPPORT}/{path}{slash}?page=2&page_size=2");
                let answer = gateway.get(&target).await;
                answer.assert_page(&page);
                let links = answer.header("link").unwrap().to_owned();
                assert!(links.contains("<?page=1&page_size=2>; rel=\"prev\""));
                let head = gateway.ask("HEAD", &target).await;
                assert_eq!((head.status, head.body.len()), (200, 0), "{target}");
                tags.extend([answer, head].map(|it| it.header("etag").unwrap().to_owned()));
            }
        }
        tags.dedup();
        assert_eq!(tags.len(), 1, "{path}");
        assert_eq!(gateway.upstream().requests(), 1, "{path}");
        let asked = &gateway.upstream().recorded()[0];
        let expected = format!("/api/v2/platform/spaces/{SUPPORT}/{path}/?page=2&page_size=2");
        assert_eq!(asked.target, expected);
    }
}

#[tokio::test]
async fn the_lists_of_a_space_never_mix() {
    let gateway = start().await;
    read_all(&gateway).await;
    read_all(&gateway).await;
    assert_eq!(gateway.upstream().requests(), 3);
    for route in ["tasks", "runs", "run_tasks"] {
        let line = format!(
            r#"gateway_http_requests_total{{route="{route}",status="200",client="reader"}} 2"#
        );
        assert!(gateway.counts(&line), "{line}");
    }
}

#[tokio::test]
async fn the_lists_of_a_space_never_mix_among_replicas() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let [first, second] = fleet.pair("").await;
    for path in LISTS {
        let page = fleet.upstream().expect_list(SUPPORT, path, 1, 5);
        list(&first, path, "?page_size=5").await.assert_page(&page);
    }
    fleet.redis.wait_for_pages(3).await;
    for path in LISTS {
        let page = fleet.upstream().expect_list(SUPPORT, path, 1, 5);
        list(&second, path, "?page_size=5").await.assert_page(&page);
    }
    assert_eq!(fleet.upstream().requests(), 3);
}

#[tokio::test]
async fn a_bad_run_id_is_refused_without_a_call() {
    let gateway = start().await;
    let long = "x".repeat(65);
    for run in [
        "a.b",
        "a%20b",
        "%3Fspace_id=2&a=",
        "a%23",
        "R%2FR",
        "%",
        &long,
    ] {
        let answer = list(&gateway, &format!("runs/{run}/tasks"), "").await;
        answer.assert_error("invalid_run_id");
    }
    assert_eq!(gateway.upstream().requests(), 0);
    for path in [
        "runs/",
        "runs/R1",
        "runs/R1/",
        "runs/R1/R2/tasks",
        "runs/R1/runs",
    ] {
        if path != "runs/" {
            list(&gateway, path, "")
                .await
                .assert_error("route_not_found");
        }
    }
    list(&gateway, &format!("runs/{RUN}/tasks"), "?run_id=R1")
        .await
        .assert_error("unknown_parameter");
}

#[tokio::test]
async fn an_unknown_run_is_an_empty_list_as_upstream() {
    let gateway = start().await;
    let answer = list(&gateway, "runs/RDOESNOTEXIST/tasks", "").await;
    answer.assert_page(
        br#"{"count":0,"status_code":200,"message":"Tasks Fetched Successfully","data":[]}"#,
    );
    let runs = gateway.get(&format!("/spaces/{EMPTY}/runs")).await;
    assert_eq!(runs.json()["count"], 0);
    gateway
        .get(&format!("/spaces/{UNKNOWN_SPACE}/runs"))
        .await
        .assert_error("space_not_found");
}

#[tokio::test]
async fn only_reads_go_upstream_whatever_the_list() {
    let gateway = start().await;
    for path in LISTS {
        for method in ["POST", "PUT", "DELETE", "PATCH"] {
            let target = format!("/spaces/{SUPPORT}/{path}");
            let answer = gateway.ask(method, &target).body("{}").await;
            answer.assert_error("method_not_allowed");
            assert_eq!(answer.header("allow"), Some("GET, HEAD"));
        }
    }
    assert_eq!(gateway.upstream().requests(), 0);
}

#[tokio::test]
async fn a_purge_drops_every_list_of_its_space() {
    let gateway = start().await;
    read_all(&gateway).await;
    let other = gateway.get(&format!("/spaces/{EMPTY}/runs"));
    other.await;
    let target = format!("/cache/spaces/{SUPPORT}");

    let (_, pages) = operators::ask(&gateway, "GET", &target).await;
    let pages: serde_json::Value = serde_json::from_str(&pages).unwrap();
    let pages = pages["pages"]["default"].as_array().unwrap();
    let mut shown: Vec<_> = pages
        .iter()
        .map(|page| {
            (
                page["collection"].as_str().unwrap(),
                page["run_id"].as_str(),
            )
        })
        .collect();
    shown.sort_unstable();
    let expected = [("run_tasks", Some(RUN)), ("runs", None), ("tasks", None)];
    assert_eq!(shown, expected);

    assert_eq!(operators::ask(&gateway, "DELETE", &target).await.0, 204);
    assert_eq!(gateway.app.pages().store().size().1, 1);
    read_all(&gateway).await;
    assert_eq!(gateway.upstream().requests(), 3 + 1 + 3);
}

#[tokio::test]
async fn a_revoked_right_seen_on_one_list_drops_the_others() {
    let gateway = start().await;
    read_all(&gateway).await;
    gateway.upstream().revoke_space(SUPPORT);
    let seen = list(&gateway, "runs", "?page=2&page_size=5").await;
    seen.assert_error("space_access_denied");
    for path in LISTS {
        let answer = list(&gateway, path, "?page_size=5").await;
        answer.assert_error("space_access_denied");
    }
    assert_eq!(gateway.upstream().requests(), 3 + 1, "it is remembered");
}

#[tokio::test]
async fn a_list_that_moves_leaves_the_others_where_they_are() {
    let gateway = start().await;
    read_all(&gateway).await;
    list(&gateway, "tasks", "?page=2&page_size=5").await;
    let generation = |path| {
        let asked = list(&gateway, path, "?page_size=5");
        async { asked.await.header("x-list-generation").unwrap().to_owned() }
    };
    let before = generation("runs").await;
    assert_ne!(before, generation("tasks").await);

    gateway.upstream().add_task(SUPPORT);
    let forced = list(&gateway, "tasks", "?page_size=5").key(REFRESHER);
    forced.cache_control("no-cache").await;

    let moved = list(&gateway, "tasks", "?page=2&page_size=5").await;
    assert!(moved.cache_status().starts_with("fwd=stale"));
    let runs = list(&gateway, "runs", "?page_size=5").await;
    assert!(runs.cache_status().starts_with("hit"));
    assert_eq!(before, generation("runs").await);
}

#[tokio::test]
async fn a_view_shows_of_runs_what_it_says_of_them_and_else_none() {
    let views = "[views.both]\nfields = ['task_id']\nruns.fields = ['run_id', 'status']\n\
                 [views.tasks]\nfields = ['task_id']\n";
    let both = client("both", "ugw_both_key", "spaces = ['*']\nview = 'both'");
    let tasks = client("tasks", "ugw_tasks_key", "spaces = ['*']\nview = 'tasks'");
    let gateway = setup().with(&[views, &both, &tasks].concat()).start().await;

    let seen = list(&gateway, "runs", "?page_size=1")
        .key("ugw_both_key")
        .await;
    let expected = format!(
        r#"{{"count":6,"status_code":200,"message":"Runs Fetched Successfully","data":[{{"run_id":"{RUN}","status":"in_progress"}}]}}"#
    );
    seen.assert_page(expected.as_bytes());
    let refused = list(&gateway, "runs", "?page_size=1").key("ugw_tasks_key");
    refused.await.assert_error("space_not_allowed");
    for key in ["ugw_both_key", "ugw_tasks_key"] {
        let of_run = list(&gateway, RUN_TASKS, "?page_size=1").key(key).await;
        let row = &of_run.json()["data"][0];
        assert_eq!(row.as_object().unwrap().len(), 1, "{row}");
        assert!(row["task_id"].is_string());
    }
}

#[tokio::test]
async fn operators_are_told_of_the_list_that_they_ask_about() {
    let gateway = start().await;
    list(&gateway, "runs", "?page_size=5").await;
    let explain = |rest: &str| {
        let target = format!("/cache/explain?space={SUPPORT}&page_size=5{rest}");
        let gateway = &gateway;
        async move { operators::ask(gateway, "GET", &target).await }
    };
    for (rest, verdict) in [
        ("&collection=runs", "hit"),
        ("", "fill"),
        ("&collection=tasks", "fill"),
        (&format!("&collection=run_tasks&run_id={RUN}"), "fill"),
    ] {
        let (status, told) = explain(rest).await;
        assert_eq!(status, 200, "{rest}: {told}");
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert_eq!(told["verdict"], verdict, "{rest}");
    }
    for rest in [
        "&collection=agents",
        "&collection=run_tasks",
        "&collection=runs&run_id=R1",
        "&collection=run_tasks&run_id=a.b",
    ] {
        assert_eq!(explain(rest).await.0, 400, "{rest}");
    }
}

#[tokio::test]
async fn every_list_draws_on_the_clients_one_limit() {
    let rest = "spaces = ['*']\nrate_limit = { per_second = 0.0001, burst = 2 }";
    let limited = client("limited", "ugw_limited_key", rest);
    let gateway = setup().with(&limited).start().await;
    let ask = |path| list(&gateway, path, "").key("ugw_limited_key");
    assert_eq!(ask("tasks").await.status, 200);
    assert_eq!(ask("runs").await.status, 200);
    ask(RUN_TASKS).await.assert_error("rate_limited");
}
