//! One task of a space: where it is found, what it costs, and what is said where it is not.

use serde_json::Value;
use unpod_gateway::simulator::{
    Fault, FaultKind,
    world::{SUPPORT, UNICODE, UNKNOWN_SPACE},
};

use crate::{
    answer::Ask,
    gateway::{Gateway, Setup, client, setup},
};

const RANGES: &str = "[cache]\nassemble_pages = true\n[upstream]\nfill_size = 20";
const VIEWER: &str = "ugw_viewer_key";
const NAMELESS: &str = "ugw_nameless_key";
const ELSEWHERE: &str = "ugw_elsewhere_key";

fn looking() -> Setup {
    let clients = [
        client("viewer", VIEWER, "spaces = [\"*\"]\nview = \"states\""),
        client(
            "nameless",
            NAMELESS,
            "spaces = [\"*\"]\nview = \"nameless\"",
        ),
        client("elsewhere", ELSEWHERE, &format!("spaces = [\"{UNICODE}\"]")),
    ];
    setup().with(RANGES).with(&format!(
        "[views.states]\nfields = [\"task_id\", \"status\"]\n[views.nameless]\nfields = [\"status\"]\n{}",
        clients.concat()
    ))
}

fn one(gateway: &Gateway, space: &str, id: &str, query: &str) -> Ask {
    gateway.get(&format!("/spaces/{space}/tasks/{id}{query}"))
}

/// The task at this place, as upstream prints it alone on a page, in the envelope of one.
fn expected(gateway: &Gateway, space: &str, place: usize) -> Vec<u8> {
    let page = gateway.upstream().expect_page(space, place as u64 + 1, 1);
    let page = String::from_utf8(page).unwrap();
    let (_, task) = page.split_once(r#""data":["#).unwrap();
    let task = task.strip_suffix("]}").unwrap();
    format!(r#"{{"status_code":200,"message":"Task Fetched Successfully","data":{task}}}"#).into()
}

#[tokio::test]
async fn a_task_is_found_among_the_newest_byte_for_byte() {
    let gateway = looking().start().await;
    for space in [SUPPORT, UNICODE] {
        let ids = gateway.upstream().task_ids(space);
        for place in [0, 7, 19] {
            for slash in ["", "/"] {
                let answer = one(&gateway, space, &ids[place], slash).await;
                answer.assert_page(&expected(&gateway, space, place));
                assert_eq!(answer.header("link"), None);
                assert_eq!(answer.header("x-list-generation"), None);
            }
        }
    }
    assert_eq!(gateway.upstream().requests(), 2);
}

#[tokio::test]
async fn a_task_has_the_age_and_the_status_of_its_page() {
    let gateway = looking().start().await;
    let ids = gateway.upstream().task_ids(SUPPORT);
    let fill = one(&gateway, SUPPORT, &ids[3], "").await;
    assert_eq!(fill.cache_status(), "fwd=uri-miss; fwd-status=200; stored");
    let hit = one(&gateway, SUPPORT, &ids[3], "").await;
    assert_eq!(hit.cache_status(), "hit");
    assert!(hit.header("age").is_some());
    let etag = hit.header("etag").unwrap();
    assert_eq!(fill.header("etag"), Some(etag));
    let same = one(&gateway, SUPPORT, &ids[3], "").if_none_match(etag);
    assert_eq!(same.await.status, 304);
    let head = gateway.ask("HEAD", &format!("/spaces/{SUPPORT}/tasks/{}", ids[3]));
    let head = head.await;
    for name in ["etag", "content-length", "content-type"] {
        assert_eq!(head.header(name), hit.header(name), "{name}");
    }
    let line = r#"gateway_http_requests_total{route="task",status="200",client="reader"} 3"#;
    assert!(gateway.counts(line));
}

#[tokio::test]
async fn a_task_is_found_on_any_stored_page_of_tasks() {
    let gateway = looking().start().await;
    let ids = gateway.upstream().task_ids(SUPPORT);
    // An old one, on a page of its own size, and on one of its run.
    gateway.tasks(SUPPORT, "?page=19&page_size=3").await;
    let old = one(&gateway, SUPPORT, &ids[55], "").await;
    old.assert_page(&expected(&gateway, SUPPORT, 55));
    let page = gateway.upstream().expect_page(SUPPORT, 31, 1);
    let page: Value = serde_json::from_slice(&page).unwrap();
    let run = page["data"][0]["run_id"].as_str().unwrap();
    gateway
        .get(&format!("/spaces/{SUPPORT}/runs/{run}/tasks"))
        .await;
    let of_run = one(&gateway, SUPPORT, &ids[30], "").await;
    of_run.assert_page(&expected(&gateway, SUPPORT, 30));
    assert_eq!(gateway.upstream().requests(), 2);
}

#[tokio::test]
async fn what_was_read_last_is_shown() {
    let gateway = looking().start().await;
    let ids = gateway.upstream().task_ids(SUPPORT);
    gateway.tasks(SUPPORT, "?page=1&page_size=20").await;
    gateway.upstream().set_status(SUPPORT, &ids[30], "hold");
    gateway.tasks(SUPPORT, "?page=2&page_size=20").await;
    gateway.upstream().set_status(SUPPORT, &ids[30], "failed");
    gateway.tasks(SUPPORT, "?page=3&page_size=15").await;
    let answer = one(&gateway, SUPPORT, &ids[30], "").await;
    assert_eq!(answer.json()["data"]["status"], "failed");
    assert_eq!(gateway.upstream().requests(), 3);
}

#[tokio::test]
async fn a_task_that_is_not_there_is_told_with_how_far_was_looked() {
    let gateway = looking().start().await;
    for (query, scope, calls) in [
        ("", "newest=20; of=57", 1),
        ("?newest=40", "newest=40; of=57", 2),
        ("?newest=1000&fields=task_id", "newest=57; of=57", 3),
    ] {
        let answer = one(&gateway, SUPPORT, "T.no_such-1", query).await;
        answer.assert_error("task_not_found");
        assert_eq!(answer.header("x-list-scope"), Some(scope), "{query}");
        assert_eq!(gateway.upstream().requests(), calls, "{query}");
    }
    // The last of them lies beyond the first range, and is known by now.
    let last = gateway.upstream().task_ids(SUPPORT).pop().unwrap();
    assert_eq!(one(&gateway, SUPPORT, &last, "").await.status, 200);
    assert_eq!(gateway.upstream().requests(), 3);
    let unknown = one(&gateway, UNKNOWN_SPACE, "T1", "").await;
    unknown.assert_error("space_not_found");
}

#[tokio::test]
async fn where_nothing_fresh_is_to_be_had_no_task_is_said_to_be_missing() {
    let gateway = looking().with("[cache]\nttl = '0s'\nstale_while_revalidate = '0s'");
    let gateway = gateway.start().await;
    let ids = gateway.upstream().task_ids(SUPPORT);
    one(&gateway, SUPPORT, &ids[0], "").await;
    gateway
        .upstream()
        .set_faults(vec![Fault::always(FaultKind::ServerError)]);
    let stale = one(&gateway, SUPPORT, &ids[0], "").await;
    assert_eq!(stale.cache_status(), "hit; detail=stale-if-error");
    let missing = one(&gateway, SUPPORT, "T1", "").await;
    missing.assert_error("list_incomplete");
    let nothing = one(&gateway, UNICODE, "T1", "").await;
    nothing.assert_error("upstream_failed");
}

#[tokio::test]
async fn a_stale_page_that_lacks_a_task_is_read_again() {
    let gateway = looking().with("[cache]\nttl = '0s'\nstale_while_revalidate = '1h'");
    let gateway = gateway.start().await;
    one(&gateway, SUPPORT, "T1", "").await;
    gateway.upstream().add_task(SUPPORT);
    let newest = gateway.upstream().task_ids(SUPPORT).remove(0);
    let found = one(&gateway, SUPPORT, &newest, "").await;
    found.assert_page(&expected(&gateway, SUPPORT, 0));
}

#[tokio::test]
async fn an_odd_id_is_refused_without_a_call() {
    let gateway = looking().start().await;
    for byte in 0..=255_u8 {
        let is_good = byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if is_good {
            continue;
        }
        let answer = one(&gateway, SUPPORT, &format!("T%{byte:02X}1"), "").await;
        assert_eq!(answer.code(), "invalid_task_id", "{byte:02x}");
        assert!(!answer.json()["detail"].as_str().unwrap().contains("T1"));
    }
    let long = "x".repeat(129);
    let answer = one(&gateway, SUPPORT, &long, "").await;
    answer.assert_error("invalid_task_id");
    for query in [
        "?newest=0",
        "?newest=1001",
        "?fields=",
        "?newest=1&newest=1",
    ] {
        let answer = one(&gateway, SUPPORT, "T1", query).await;
        answer.assert_error("invalid_parameter");
    }
    for query in ["?page=1", "?status=failed&newest=5", "?space_id=2"] {
        let answer = one(&gateway, SUPPORT, "T1", query).await;
        answer.assert_error("unknown_parameter");
    }
    for path in [
        format!("/api/v2/platform/spaces/{SUPPORT}/tasks/T1"),
        format!("/spaces/{SUPPORT}/tasks/T1/T2"),
        format!("/spaces/{SUPPORT}/runs/R1/tasks/T1"),
    ] {
        gateway.get(&path).await.assert_error("route_not_found");
    }
    let bad_space = one(&gateway, "a%20b", "T1", "").await;
    bad_space.assert_error("invalid_space_token");
    gateway
        .get("/spaces//tasks/T1")
        .await
        .assert_error("invalid_space_token");
    let post = gateway.ask("POST", &format!("/spaces/{SUPPORT}/tasks/a%20b"));
    post.await.assert_error("method_not_allowed");
    assert_eq!(gateway.upstream().requests(), 0);
    assert_eq!(gateway.upstream().posts(), 0);
}

#[tokio::test]
async fn a_client_sees_of_a_task_what_its_view_and_its_fields_show() {
    let gateway = looking().start().await;
    let id = gateway.upstream().task_ids(SUPPORT).remove(2);
    let ask = |query, key| one(&gateway, SUPPORT, &id, query).key(key);
    let members = |answer: crate::answer::Answer| -> Vec<String> {
        let body = answer.json();
        let names = body["data"].as_object().unwrap().keys();
        names.cloned().collect()
    };
    assert_eq!(members(ask("", VIEWER).await), ["status", "task_id"]);
    assert_eq!(
        members(ask("?fields=status,input", VIEWER).await),
        ["status"]
    );
    let envelope = ask("?fields=input", VIEWER).await;
    envelope.assert_page(br#"{"status_code":200,"message":"Task Fetched Successfully","data":{}}"#);
    // For who does not see what tasks are called, none is called so.
    for id in [&id[..], "T1"] {
        let answer = one(&gateway, SUPPORT, id, "").key(NAMELESS).await;
        answer.assert_error("task_not_found");
        assert_eq!(answer.header("x-list-scope"), Some("newest=20; of=57"));
    }
    ask("", ELSEWHERE).await.assert_error("space_not_allowed");
    one(&gateway, SUPPORT, &id, "")
        .without_key()
        .await
        .assert_error("unauthenticated");
    assert_eq!(gateway.upstream().requests(), 1);
}
