//! Filters and `fields`: which rows of a list a client gets, and what of them, without a page more from upstream than it takes.

use serde_json::Value;
use unpod_gateway::{
    domain::{FieldPath, View},
    simulator::{
        Fault, FaultKind,
        world::{ARCHIVE, EMPTY, SUPPORT},
    },
};

use crate::{
    answer::{Answer, Ask},
    browser_tokens::{for_support, mint, minting, pair, token},
    gateway::{Gateway, REFRESHER, Setup, client, setup},
};

/// Ranges of so many rows: [`SUPPORT`] has three.
const RANGES: &str = "[cache]\nassemble_pages = true\n[upstream]\nfill_size = 20";
/// Sees ids and states.
const VIEWER: &str = "ugw_viewer_key";
const ASSIGNEE: &str = "space-agent-8qmk42nslp91wrh3dz7btxc4";

fn filtering() -> Setup {
    let viewer = client("viewer", VIEWER, "spaces = [\"*\"]\nview = \"states\"");
    setup().with(RANGES).with(&format!(
        "[views.states]\nfields = [\"task_id\", \"status\", \"output.call_id\"]\n{viewer}"
    ))
}

/// All tasks of a space, as upstream has them.
fn tasks(gateway: &Gateway, space: &str) -> Vec<Value> {
    let page = gateway.upstream().expect_page(space, 1, 1000);
    let page: Value = serde_json::from_slice(&page).unwrap();
    page["data"].as_array().unwrap().clone()
}

/// The ids of those of the `newest` tasks that are in one of these states.
fn expected(gateway: &Gateway, space: &str, newest: usize, states: &[&str]) -> Vec<String> {
    let all = tasks(gateway, space).into_iter().take(newest);
    let matching = all.filter(|task| states.contains(&task["status"].as_str().unwrap()));
    matching
        .map(|task| task["task_id"].as_str().unwrap().to_owned())
        .collect()
}

fn ids(answer: &Answer) -> Vec<String> {
    let body = answer.json();
    let data = body["data"].as_array().unwrap();
    data.iter()
        .map(|task| task["task_id"].as_str().unwrap().to_owned())
        .collect()
}

fn ask(gateway: &Gateway, query: &str) -> Ask {
    gateway.tasks(SUPPORT, query)
}

#[tokio::test]
async fn matches_of_several_ranges_are_a_list_of_their_own() {
    let gateway = filtering().start().await;
    let found = expected(&gateway, SUPPORT, 57, &["failed", "pending"]);
    assert!(found.len() > 4);
    let query = "?status=failed,pending&newest=1000&page_size=3";
    let mut walked = Vec::new();
    let mut page = 1;
    let generation = loop {
        let answer = ask(&gateway, &format!("{query}&page={page}")).await;
        assert_eq!(answer.status, 200, "{:?}", answer.body);
        assert_eq!(answer.cache_status(), "hit; detail=filtered");
        assert_eq!(answer.header("x-list-scope"), Some("newest=57; of=57"));
        assert_eq!(answer.json()["count"], found.len());
        let part = ids(&answer);
        let is_last = walked.len() + 3 >= found.len();
        assert!(is_last || part.len() == 3);
        walked.extend(part);
        let link = answer.header("link").unwrap().to_owned();
        let next = format!(
            "<?status=failed,pending&newest=1000&page={}&page_size=3>; rel=\"next\"",
            page + 1
        );
        assert_eq!(link.contains(&next), !is_last, "{link}");
        page += 1;
        if is_last {
            break answer.header("x-list-generation").unwrap().to_owned();
        }
    };
    assert_eq!(walked, found);
    assert!(!generation.is_empty());
    // One call a range, whatever was asked of it.
    assert_eq!(gateway.upstream().requests(), 3);
    let beyond = ask(&gateway, "?status=failed,pending&newest=57&page=99").await;
    assert!(ids(&beyond).is_empty() && beyond.json()["count"] == found.len());
    assert_eq!(gateway.upstream().requests(), 3);
    for asked in gateway.upstream().recorded() {
        assert!(asked.target.ends_with("&page_size=20"), "{}", asked.target);
    }
}

#[tokio::test]
async fn a_match_keeps_its_bytes_and_the_envelope_is_the_upstreams() {
    let gateway = filtering().start().await;
    for (query, newest) in [
        (format!("?assignee={ASSIGNEE}&newest=20"), 20),
        (
            format!("?assignee=x,{ASSIGNEE}&newest=45&page_size=100"),
            45,
        ),
    ] {
        let answer = ask(&gateway, &query).await;
        // Every task has this assignee: the answer is what upstream would say of so long a list.
        let page = gateway.upstream().expect_page(SUPPORT, 1, newest);
        let page = String::from_utf8(page).unwrap();
        let page = page.replace(r#"{"count":57,"#, &format!(r#"{{"count":{newest},"#));
        assert_eq!(String::from_utf8(answer.body.to_vec()).unwrap(), page);
    }
    let none = ask(&gateway, "?status=nosuch&newest=10").await;
    let body = br#"{"count":0,"status_code":200,"message":"Tasks Fetched Successfully","data":[]}"#;
    none.assert_page(body);
    let empty = gateway.tasks(EMPTY, "?status=failed&newest=10").await;
    empty.assert_page(body);
    assert_eq!(empty.header("x-list-scope"), Some("newest=0; of=0"));
}

#[tokio::test]
async fn only_as_many_ranges_are_read_as_it_takes() {
    let gateway = filtering().start().await;
    for (newest, calls) in [(1, 1), (20, 1), (21, 2), (40, 2), (57, 3), (1000, 3)] {
        let answer = ask(&gateway, &format!("?status=completed&newest={newest}")).await;
        let found = expected(&gateway, SUPPORT, newest, &["completed"]);
        assert_eq!(answer.json()["count"], found.len(), "{newest}");
        let scope = format!("newest={}; of=57", newest.min(57));
        assert_eq!(answer.header("x-list-scope"), Some(&scope[..]));
        assert_eq!(gateway.upstream().requests(), calls, "{newest}");
    }
}

#[tokio::test]
async fn parameters_are_and_ed() {
    let gateway = filtering().start().await;
    let all = tasks(&gateway, SUPPORT);
    let run = all[0]["run_id"].as_str().unwrap();
    let of_run = all.iter().filter(|task| task["run_id"] == run);
    let completed = of_run.clone().filter(|task| task["status"] == "completed");
    for (query, count) in [
        (format!("run_id={run}"), of_run.clone().count()),
        (
            format!("run_id={run}&status=completed&assignee={ASSIGNEE}"),
            completed.count(),
        ),
        (format!("run_id={run}&assignee=nobody"), 0),
    ] {
        let answer = ask(&gateway, &format!("?{query}&newest=57")).await;
        assert_eq!(answer.json()["count"], count, "{query}");
    }
}

#[tokio::test]
async fn a_change_elsewhere_is_still_a_304() {
    let gateway = filtering().with("[cache]\nttl = '0s'\nstale_while_revalidate = '0s'");
    let gateway = gateway.start().await;
    let query = "?status=failed&newest=57";
    let first = ask(&gateway, query).await;
    let etag = first.header("etag").unwrap();
    let all = tasks(&gateway, SUPPORT);
    let other = all.iter().find(|task| task["status"] == "completed");
    let other = other.unwrap()["task_id"].as_str().unwrap();
    gateway.upstream().set_status(SUPPORT, other, "hold");

    let same = ask(&gateway, query).if_none_match(etag).await;
    assert_eq!(same.status, 304);
    assert_eq!(same.header("x-list-scope"), Some("newest=57; of=57"));
    gateway.upstream().set_status(SUPPORT, other, "failed");
    let changed = ask(&gateway, query).if_none_match(etag).await;
    assert_eq!(changed.status, 200);
    assert!(ids(&changed).contains(&other.to_owned()));
}

#[tokio::test]
async fn a_head_is_the_get_without_its_body() {
    let gateway = filtering().start().await;
    let path = format!("/spaces/{SUPPORT}/tasks/?status=failed&newest=57&fields=task_id");
    let get = gateway.get(&path).await;
    let head = gateway.ask("HEAD", &path).await;
    assert_eq!(head.status, 200);
    for name in [
        "etag",
        "content-length",
        "link",
        "x-list-scope",
        "x-list-generation",
    ] {
        assert!(head.header(name).is_some(), "{name}");
        assert_eq!(head.header(name), get.header(name), "{name}");
    }
    for coding in ["br", "gzip", "zstd"] {
        let coded = ask(&gateway, "?status=completed&newest=57").accept_encoding(coding);
        let plain = ask(&gateway, "?status=completed&newest=57").await;
        let coded = coded.await;
        assert_eq!(coded.header("content-encoding"), Some(coding));
        assert!(coded.decoded() == plain.body, "{coding}");
    }
}

#[tokio::test]
async fn a_list_that_moves_meanwhile_is_read_again() {
    let gateway = filtering().start().await;
    ask(&gateway, "?page_size=20&page=1").await;
    ask(&gateway, "?page_size=20&page=2").await;
    gateway.upstream().add_task(SUPPORT);
    let answer = ask(&gateway, "?status=pending&newest=1000").await;
    let found = expected(&gateway, SUPPORT, 58, &["pending"]);
    assert_eq!(ids(&answer), found);
    assert_eq!(answer.header("x-list-scope"), Some("newest=58; of=58"));
    // The third range told of the move, and the other two were read again.
    assert_eq!(gateway.upstream().requests(), 5);
}

#[tokio::test]
async fn however_many_ask_one_job_reads_the_list() {
    let gateway = filtering().start().await;
    let hold = gateway.upstream().hold();
    let queries = ["?status=failed&newest=57", "?status=hold&newest=40"];
    let asked: Vec<_> = (0..8)
        .map(|n| ask(&gateway, queries[n % 2]).spawn())
        .collect();
    gateway.wait_until_in_flight(8).await;
    gateway.upstream().wait_for_requests(1).await;
    hold.release();
    for answer in asked {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    assert_eq!(gateway.upstream().requests(), 3);
}

#[tokio::test]
async fn what_cannot_be_had_in_time_is_told_and_fetched_all_the_same() {
    // The third call is a minute away.
    let gateway = filtering().start().await;
    gateway.upstream().set_quota(Some(2));
    let answer = ask(&gateway, "?status=failed&newest=57").await;
    answer.assert_error("list_incomplete");
    let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=180).contains(&wait), "{wait}");
    let calls = gateway.upstream().requests();
    assert!((1..=2).contains(&calls), "{calls}");
    // What it has fetched answers who wants no more.
    let first = ask(&gateway, "?status=failed&newest=20").await;
    assert_eq!(ids(&first), expected(&gateway, SUPPORT, 20, &["failed"]));
    assert_eq!(gateway.upstream().requests(), calls);
}

#[tokio::test]
async fn without_coherent_pages_ranges_join_by_their_count() {
    let gateway = filtering().with("[cache]\ncoherent_pages = false");
    let gateway = gateway.start().await;
    let found = expected(&gateway, SUPPORT, 57, &["failed"]);
    let answer = ask(&gateway, "?status=failed&newest=57").await;
    assert_eq!(ids(&answer), found);
    assert_eq!(answer.header("x-list-generation"), None);
}

#[tokio::test]
async fn stale_rows_stand_in_where_the_upstream_fails() {
    let gateway = filtering().with("[cache]\nttl = '0s'\nstale_while_revalidate = '0s'");
    let gateway = gateway.start().await;
    let query = "?status=failed&newest=57";
    let before = ask(&gateway, query).await;
    let outage = Fault::always(FaultKind::ServerError);
    gateway.upstream().set_faults(vec![outage]);
    let stale = ask(&gateway, query).await;
    assert_eq!(stale.cache_status(), "hit; detail=stale-if-error");
    assert_eq!(stale.body, before.body);
    let error = gateway.tasks(ARCHIVE, query).await;
    error.assert_error("upstream_failed");
}

#[tokio::test]
async fn fields_are_cut_from_the_page_and_never_kept() {
    let gateway = filtering().start().await;
    let fields = "task_id,output.call_id,user_info.email";
    let paths: Vec<_> = fields
        .split(',')
        .map(|it| FieldPath::dotted(it).unwrap())
        .collect();
    let page = gateway.upstream().expect_page(SUPPORT, 2, 20);
    let cut = View::new(&paths).apply(&page).unwrap();
    let query = format!("?page=2&fields={fields}");
    let fill = ask(&gateway, &query).await;
    assert_eq!(fill.cache_status(), "fwd=uri-miss; fwd-status=200; stored");
    fill.assert_page(&cut);
    let hit = ask(&gateway, &query).await;
    assert_eq!(hit.cache_status(), "hit");
    assert_eq!(hit.header("etag"), fill.header("etag"));
    assert!(hit.header("x-list-scope").is_none());
    let link = hit.header("link").unwrap();
    assert!(link.contains(&format!(
        "<?fields={fields}&page=3&page_size=20>; rel=\"next\""
    )));
    let same = ask(&gateway, &query).if_none_match(hit.header("etag").unwrap());
    assert_eq!(same.await.status, 304);

    let (bytes, pages) = gateway.app.pages().store().size();
    for number in 0..300 {
        let answer = ask(&gateway, &format!("?page=2&fields=task_id,f{number}")).await;
        assert_eq!(answer.status, 200);
        let answer = ask(
            &gateway,
            &format!("?status=hold&newest=20&fields=f{number}"),
        );
        assert_eq!(answer.await.status, 200);
    }
    let (after, pages_after) = gateway.app.pages().store().size();
    // The first range, which the filter took.
    assert_eq!(pages_after, pages + 1);
    assert!(after < bytes + 120_000, "{bytes} became {after}");
}

#[tokio::test]
async fn fields_never_show_what_a_view_hides() {
    let gateway = filtering().start().await;
    let page = gateway.upstream().expect_page(SUPPORT, 1, 20);
    for (fields, shown) in [
        ("task_id,input,user_info.email", &["task_id"][..]),
        ("output", &["output.call_id"]),
        ("status,nosuch", &["status"]),
    ] {
        let answer = ask(&gateway, &format!("?fields={fields}"))
            .key(VIEWER)
            .await;
        let paths: Vec<_> = shown
            .iter()
            .map(|it| FieldPath::dotted(it).unwrap())
            .collect();
        answer.assert_page(&View::new(&paths).apply(&page).unwrap());
    }
}

#[tokio::test]
async fn a_filter_by_what_a_view_hides_matches_nothing() {
    let gateway = filtering().start().await;
    let run = tasks(&gateway, SUPPORT)[0]["run_id"]
        .as_str()
        .unwrap()
        .to_owned();
    for hidden in [
        format!("assignee={ASSIGNEE}"),
        format!("run_id={run}&status=completed"),
    ] {
        for value in [hidden.clone(), hidden.replace(['8', 'R'], "x")] {
            let answer = ask(&gateway, &format!("?{value}&newest=57"))
                .key(VIEWER)
                .await;
            assert_eq!(answer.json()["count"], 0, "{value}");
            assert_eq!(answer.header("x-list-scope"), Some("newest=57; of=57"));
        }
    }
    let seen = ask(&gateway, "?status=failed&newest=57").key(VIEWER).await;
    assert_eq!(ids(&seen), expected(&gateway, SUPPORT, 57, &["failed"]));
    assert!(!String::from_utf8_lossy(&seen.body).contains("assignee"));
}

#[tokio::test]
async fn bad_filters_are_refused_by_name_without_a_call() {
    let gateway = filtering().start().await;
    for (query, name) in [
        ("status=a", "newest"),
        ("newest=5", "newest"),
        ("status=a&newest=0", "newest"),
        ("status=a&newest=1001", "newest"),
        ("status=&newest=5", "status"),
        ("status=secret%20value&newest=5", "status"),
        ("run_id=1,2,3,4,5,6,7,8,9&newest=5", "run_id"),
        ("assignee=a&assignee=a&newest=5", "assignee"),
        ("fields=a..secret", "fields"),
    ] {
        let answer = ask(&gateway, &format!("?{query}")).await;
        answer.assert_error("invalid_parameter");
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(&format!("`{name}`")), "{query}: {detail}");
        assert!(!detail.contains("secret"), "{detail}");
    }
    // Only where the gateway's own spelling names the tasks of a space.
    for path in [
        format!("/api/v2/platform/spaces/{SUPPORT}/tasks/"),
        format!("/spaces/{SUPPORT}/runs"),
        format!("/spaces/{SUPPORT}/runs/R1/tasks"),
    ] {
        for query in ["status=failed&newest=5", "fields=task_id", "newest=5"] {
            let answer = gateway.get(&format!("{path}?{query}")).await;
            answer.assert_error("unknown_parameter");
        }
    }
    assert_eq!(gateway.upstream().requests(), 0);
}

#[tokio::test]
async fn only_if_cached_and_no_cache_hold_for_a_filter() {
    let gateway = filtering().start().await;
    let query = "?status=failed&newest=40";
    let uncached = ask(&gateway, query).cache_control("only-if-cached").await;
    uncached.assert_error("not_cached");
    assert_eq!(gateway.upstream().requests(), 0);
    ask(&gateway, query).await;
    let cached = ask(&gateway, query).cache_control("only-if-cached").await;
    assert_eq!(cached.cache_status(), "hit; detail=filtered");
    ask(&gateway, query).cache_control("no-cache").await;
    assert_eq!(gateway.upstream().requests(), 2);
    ask(&gateway, query)
        .key(REFRESHER)
        .cache_control("no-cache")
        .await;
    assert_eq!(gateway.upstream().requests(), 4);
}

#[tokio::test]
async fn a_browser_token_filters_the_spaces_it_was_minted_for() {
    let gateway = minting(&pair(), RANGES).await;
    let token = token(&mint(&gateway, &for_support(300)).await);
    let bearer = format!("Bearer {token}");
    let query = "?status=failed&newest=57&fields=task_id,status";
    let with_token = |space| {
        let asked = gateway.tasks(space, query).without_key();
        asked.header("authorization", &bearer)
    };
    let answer = with_token(SUPPORT).await;
    let found = expected(&gateway, SUPPORT, 57, &["failed"]);
    assert_eq!(ids(&answer), found);
    assert_eq!(answer.header("x-list-scope"), Some("newest=57; of=57"));
    assert_eq!(answer.json(), gateway.tasks(SUPPORT, query).await.json());
    with_token(ARCHIVE).await.assert_error("space_not_allowed");
    assert_eq!(gateway.upstream().requests(), 3);
}

#[tokio::test]
async fn a_bad_task_keeps_nobody_from_its_neighbours() {
    // The first range fails as a whole, and its pages are read one by one.
    let gateway = filtering().with("[upstream]\nfill_size = 40");
    let gateway = gateway.start().await;
    let upstream = gateway.upstream();
    let (found, ids_of_all) = (
        expected(&gateway, SUPPORT, 20, &["failed"]),
        upstream.task_ids(SUPPORT),
    );
    upstream.poison_task(SUPPORT, &ids_of_all[30]);

    let beside = ask(&gateway, "?status=failed&newest=20").await;
    assert_eq!(ids(&beside), found);
    assert_eq!(beside.header("x-list-scope"), Some("newest=20; of=57"));
    assert_eq!(upstream.requests(), 2);
    let among = ask(&gateway, "?status=failed&newest=40").await;
    among.assert_error("list_incomplete");
    assert_eq!(upstream.requests(), 3);
    // What failed a moment ago is not tried again at once.
    let again = ask(&gateway, "?status=failed&newest=57").await;
    again.assert_error("list_incomplete");
    let neighbour = format!("/spaces/{SUPPORT}/tasks/{}", ids_of_all[3]);
    assert_eq!(gateway.get(&neighbour).await.status, 200);
    assert_eq!(upstream.requests(), 3);
}
