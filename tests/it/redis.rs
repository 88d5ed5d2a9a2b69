//! Replicas that share a real Redis: one fill for all of them, what one drops none shows, and each goes on alone when it is gone.

use std::time::Duration;

use tokio::{io::AsyncWriteExt, net::TcpStream};
use unpod_gateway::{
    domain::SpaceToken,
    simulator::{
        Options, Simulator,
        world::{
            ACME_NEXT_TOKEN, ACME_TOKEN, ARCHIVE, GLOBEX, GLOBEX_SPACE, GLOBEX_TOKEN, SUPPORT,
        },
    },
};

use crate::{
    gateway::{Gateway, REFRESHER, client, patiently, setup, until},
    operators,
    redis_server::{Cable, Fleet, Redis, wait_until_up},
};

const LIMITED: &str = "ugw_limited_key";

/// Pages a gateway holds in memory.
fn pages(gateway: &Gateway) -> u64 {
    gateway.app.pages().store().size().1
}

async fn readiness(gateway: &Gateway) -> (u16, serde_json::Value) {
    let (status, body) = operators::ask(gateway, "GET", "/readyz").await;
    (status, serde_json::from_str(&body).unwrap())
}

/// Asks until an answer is as wanted.
async fn ask_until(
    gateway: &Gateway,
    space: &str,
    query: &str,
    wanted: impl Fn(&crate::answer::Answer) -> bool,
) -> crate::answer::Answer {
    patiently("the answer", async {
        loop {
            let answer = gateway.tasks(space, query).await;
            if wanted(&answer) {
                return answer;
            }
        }
    })
    .await
}

#[tokio::test]
async fn what_one_replica_filled_another_serves() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let [first, second] = fleet.pair("").await;
    let filled = first.tasks(SUPPORT, "?page=2").await;
    assert_eq!(
        filled.cache_status(),
        "fwd=uri-miss; fwd-status=200; stored"
    );
    fleet.redis.wait_for_pages(1).await;

    let served = second.tasks(SUPPORT, "?page=2").await;

    served.assert_page(&filled.body);
    assert_eq!(served.cache_status(), "hit");
    assert!(served.header("age").is_some());
    for field in ["etag", "x-list-generation", "link"] {
        assert_eq!(served.header(field), filled.header(field), "{field}");
    }
    assert_eq!(fleet.upstream().requests(), 1);
    assert!(second.counts("gateway_redis_pages_total{outcome=\"hit\"} 1"));
    second.tasks(SUPPORT, "?page=2").await;
    assert!(second.counts("gateway_redis_pages_total{outcome=\"hit\"} 1"));
}

#[tokio::test]
async fn a_range_that_one_replica_filled_is_cut_by_another() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let [first, second] = fleet.pair("[cache]\nassemble_pages = true").await;
    first.tasks(SUPPORT, "?page=1").await;
    let filled = first.tasks(SUPPORT, "?page=2").await;
    fleet.redis.wait_for_pages(2).await;

    // It finds page 1 as the first filled it, and then the range.
    second.tasks(SUPPORT, "?page=1").await;
    let cut = second.tasks(SUPPORT, "?page=2").await;

    cut.assert_page(&filled.body);
    assert_eq!(cut.cache_status(), "hit; detail=assembled");
    assert_eq!(fleet.upstream().requests(), 2);
}

#[tokio::test]
async fn a_replica_that_has_read_nothing_of_a_list_finds_the_range_of_another() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let [first, second] = fleet.pair("[cache]\nassemble_pages = true").await;
    first.tasks(SUPPORT, "?page=1").await;
    first.tasks(SUPPORT, "?page=2").await;
    fleet.redis.wait_for_pages(2).await;

    // Nobody has fetched this page as such.
    let cut = second.tasks(SUPPORT, "?page=3").await;

    cut.assert_page(&fleet.upstream().expect_page(SUPPORT, 3, 20));
    assert_eq!(cut.cache_status(), "hit; detail=assembled");
    assert_eq!(fleet.upstream().requests(), 2);
}

#[tokio::test]
async fn replicas_filter_the_same_ranges_alike() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let ranges = "[cache]\nassemble_pages = true\n[upstream]\nfill_size = 20";
    let [first, second] = fleet.pair(ranges).await;
    let query = "?status=failed,pending&newest=57&page_size=5&fields=task_id,status";
    let one = first.tasks(SUPPORT, query).await;
    fleet.redis.wait_for_pages(3).await;
    let other = second.tasks(SUPPORT, query).await;

    assert!(one.json()["count"].as_u64() > Some(0));
    assert_eq!(other.body, one.body);
    for name in ["etag", "x-list-generation", "x-list-scope"] {
        assert_eq!(other.header(name), one.header(name), "{name}");
        assert!(one.header(name).is_some(), "{name}");
    }
    assert_eq!(fleet.upstream().requests(), 3);
}

#[tokio::test]
async fn many_clients_of_two_replicas_cost_one_call() {
    const EACH: usize = 20;
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let pair = fleet.pair("").await;
    let hold = fleet.upstream().hold();
    let asked: Vec<_> = pair
        .iter()
        .flat_map(|gateway| (0..EACH).map(|_| gateway.tasks(SUPPORT, "").spawn()))
        .collect();
    for gateway in &pair {
        gateway.wait_until_in_flight(EACH as i64).await;
    }
    patiently("a call", fleet.upstream().wait_for_requests(1)).await;
    hold.release();

    let expected = fleet.upstream().expect_page(SUPPORT, 1, 20);
    for answer in asked {
        answer.await.unwrap().assert_page(&expected);
    }
    assert_eq!(fleet.upstream().requests(), 1);
    assert_eq!(fleet.redis.keys("lock:"), Vec::<String>::new());
}

#[tokio::test]
async fn who_waits_for_a_replica_that_died_fills_in_the_end() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let [first, second] = fleet.pair("").await;
    first.tasks(SUPPORT, "").await;
    fleet.redis.wait_for_pages(1).await;
    // As one would leave them that died while it filled the page anew.
    let page = fleet.redis.keys("page:").remove(0);
    let lock = page.replacen(":page:", ":lock:", 1);
    let _: String = fleet.redis.run(&["SET", &lock, "another", "PX", "300"]);
    let _: i64 = fleet.redis.run(&["DEL", &page]);

    let answer = second.tasks(SUPPORT, "").await;

    assert_eq!(
        answer.cache_status(),
        "fwd=uri-miss; fwd-status=200; stored"
    );
    assert_eq!(fleet.upstream().requests(), 2);
}

#[tokio::test]
async fn a_purge_reaches_every_replica() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let [first, second] = fleet.pair("").await;
    let fingerprint = SpaceToken::new(SUPPORT).unwrap();
    for purge in [
        format!("/cache/spaces/{SUPPORT}"),
        format!("/cache/fingerprints/{fingerprint}"),
        "/cache".to_owned(),
    ] {
        let before = fleet.upstream().requests();
        second.tasks(SUPPORT, "").await;
        first.tasks(ARCHIVE, "").await;
        until(|| fleet.redis.keys("lock:").is_empty()).await;

        // Of this space it may never have heard.
        let (status, _) = operators::ask(&first, "DELETE", &purge).await;
        assert_eq!(status, 204, "{purge}");

        until(|| pages(&second) == 0).await;
        second.tasks(SUPPORT, "").await;
        let calls = fleet.upstream().requests_to(SUPPORT);
        assert!(fleet.upstream().requests() > before, "{purge}");
        first.tasks(SUPPORT, "").await;
        assert!(
            fleet.upstream().requests_to(SUPPORT) <= calls + 1,
            "{purge}"
        );
        // Back to where the round began.
        operators::ask(&first, "DELETE", "/cache").await;
        until(|| pages(&second) == 0 && pages(&first) == 0).await;
    }
}

#[tokio::test]
async fn a_purge_goes_on_though_the_operator_hangs_up() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    // What a space is called goes by the token: a purge is told under one name after the other.
    let other_token = format!("[upstream.credentials.default]\ntoken = '{ACME_NEXT_TOKEN}'");
    let both = format!("[upstream.credentials.default]\nnext_token = '{ACME_NEXT_TOKEN}'");
    let [first, second] = [
        fleet.gateway(&both).await,
        fleet.gateway(&other_token).await,
    ];
    for gateway in [&first, &second] {
        wait_until_up(gateway, true).await;
        gateway.tasks(SUPPORT, "").await;
        until(|| pages(gateway) == 1).await;
    }
    until(|| fleet.redis.keys("lock:").is_empty()).await;

    fleet.redis.signal("-STOP");
    let admin = first.admin_url().replace("http://", "");
    let mut operator = TcpStream::connect(&admin).await.unwrap();
    let purge = format!("DELETE /cache/spaces/{SUPPORT} HTTP/1.1\r\nHost: {admin}\r\n\r\n");
    operator.write_all(purge.as_bytes()).await.unwrap();
    until(|| pages(&first) == 0).await;
    drop(operator);
    let (status, _) = operators::ask(&first, "GET", "/livez").await;
    assert_eq!(status, 200);
    fleet.redis.signal("-CONT");

    until(|| pages(&second) == 0).await;
}

#[tokio::test]
async fn a_list_that_one_replica_saw_move_is_stale_on_all() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let [first, second] = fleet.pair("").await;
    for page in 1..=2 {
        let query = format!("?page={page}");
        first.tasks(SUPPORT, &query).await;
        fleet.redis.wait_for_pages(page).await;
        assert_eq!(second.tasks(SUPPORT, &query).await.cache_status(), "hit");
    }
    fleet.upstream().add_task(SUPPORT);
    let moved = first.tasks(SUPPORT, "?page=3").await;
    let generation = moved.header("x-list-generation").unwrap().to_owned();

    let now = ask_until(&second, SUPPORT, "?page=2", |answer| {
        answer.header("x-list-generation") == Some(&generation)
    })
    .await;

    now.assert_page(&fleet.upstream().expect_page(SUPPORT, 2, 20));
    let also = first.tasks(SUPPORT, "?page=2").await;
    assert_eq!(also.header("x-list-generation"), Some(generation.as_str()));
}

#[tokio::test]
async fn a_right_that_one_replica_saw_revoked_is_gone_on_all() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let [first, second] = fleet.pair("").await;
    first.tasks(SUPPORT, "").await;
    fleet.redis.wait_for_pages(1).await;
    second.tasks(SUPPORT, "").await;
    fleet.upstream().revoke_space(SUPPORT);

    let refused = first
        .tasks(SUPPORT, "")
        .key(REFRESHER)
        .cache_control("no-cache")
        .await;
    refused.assert_error("space_access_denied");

    until(|| pages(&second) == 0).await;
    let refused = second.tasks(SUPPORT, "").await;
    refused.assert_error("space_access_denied");

    // Each remembers it, whatever the other tells.
    let calls = fleet.upstream().requests();
    for gateway in [&first, &second, &first, &second] {
        let refused = gateway.tasks(SUPPORT, "").await;
        refused.assert_error("space_access_denied");
    }
    assert_eq!(fleet.upstream().requests(), calls);
}

#[tokio::test]
async fn a_purge_that_a_replica_did_not_hear_of_is_taken_up_when_it_is_back() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let mut cable = Cable::lay(&fleet.redis).await;
    let first = fleet.gateway("").await;
    let second = fleet.gateway_at(&cable.url, "").await;
    wait_until_up(&second, true).await;
    for space in [SUPPORT, ARCHIVE] {
        first.tasks(space, "").await;
    }
    fleet.redis.wait_for_pages(2).await;
    for space in [SUPPORT, ARCHIVE] {
        assert_eq!(second.tasks(space, "").await.cache_status(), "hit");
    }
    cable.cut().await;
    wait_until_up(&second, false).await;
    operators::ask(&first, "DELETE", &format!("/cache/spaces/{SUPPORT}")).await;
    assert_eq!(second.tasks(SUPPORT, "").await.cache_status(), "hit");

    cable.mend().await;
    wait_until_up(&second, true).await;

    // What was not purged is still there.
    assert_eq!(pages(&second), 1);
    let asked = second.tasks(SUPPORT, "").await;
    assert_eq!(asked.cache_status(), "fwd=uri-miss; fwd-status=200; stored");
    assert_eq!(second.tasks(ARCHIVE, "").await.cache_status(), "hit");
}

#[tokio::test]
async fn a_purge_while_redis_is_lost_reaches_the_others_when_it_is_back() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    for purge in [format!("/cache/spaces/{SUPPORT}"), "/cache".to_owned()] {
        let mut cable = Cable::lay(&fleet.redis).await;
        let first = fleet.gateway_at(&cable.url, "").await;
        let second = fleet.gateway("").await;
        wait_until_up(&second, true).await;
        wait_until_up(&first, true).await;
        second.tasks(SUPPORT, "").await;
        cable.cut().await;
        wait_until_up(&first, false).await;

        let (status, told) = operators::ask(&first, "DELETE", &purge).await;
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert_eq!((status, &told["data"]["pending"]), (202, &1.into()));
        assert_eq!(told["status_code"], 202);
        assert_eq!(pages(&second), 1);
        let (_, ready) = readiness(&first).await;
        assert_eq!(ready["parts"]["redis"]["pending_purges"], 1, "{ready}");
        assert!(first.counts("gateway_redis_pending_purges 1"));
        cable.mend().await;

        until(|| pages(&second) == 0).await;
        wait_until_up(&first, true).await;
        until(|| first.counts("gateway_redis_pending_purges 0")).await;
    }
}

#[tokio::test]
async fn a_purge_while_redis_is_lost_outlives_a_restart_where_there_is_a_snapshot() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pages");
    let keeps = format!("[cache]\nsnapshot_file = '{}'", file.display());
    for purge in [format!("/cache/spaces/{SUPPORT}"), "/cache".to_owned()] {
        let mut cable = Cable::lay(&fleet.redis).await;
        let first = fleet.gateway_at(&cable.url, &keeps).await;
        let second = fleet.gateway("").await;
        for gateway in [&first, &second] {
            wait_until_up(gateway, true).await;
        }
        second.tasks(SUPPORT, "").await;
        cable.cut().await;
        wait_until_up(&first, false).await;
        let (status, _) = operators::ask(&first, "DELETE", &purge).await;
        assert_eq!(status, 202);
        assert!(first.app.drain().await);

        let again = fleet.gateway_at(&cable.url, &keeps).await;
        assert!(again.counts("gateway_redis_pending_purges 1"));
        assert_eq!(pages(&second), 1);
        cable.mend().await;

        until(|| pages(&second) == 0).await;
        until(|| again.counts("gateway_redis_pending_purges 0")).await;
        until(|| !folder.path().join("pages.purges").exists()).await;
        assert!(again.app.drain().await);
    }
}

#[tokio::test]
async fn a_page_is_found_by_the_same_token_alone() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let first = fleet.gateway("").await;
    let other = "[upstream.credentials.default]\ntoken = ";
    let second = fleet
        .gateway(&format!("{other}'{GLOBEX_TOKEN}'\norg_handle = '{GLOBEX}'"))
        .await;
    first.tasks(SUPPORT, "").await;
    fleet.redis.wait_for_pages(1).await;

    let refused = second.tasks(SUPPORT, "").await;

    refused.assert_error("space_access_denied");
    // Nor does its refusal drop what the first may see.
    assert_eq!(second.tasks(GLOBEX_SPACE, "").await.status, 200);
    fleet.redis.wait_for_pages(2).await;
    assert_eq!(first.tasks(SUPPORT, "").await.cache_status(), "hit");
    let third = fleet.gateway("").await;
    assert_eq!(third.tasks(SUPPORT, "").await.cache_status(), "hit");
}

#[tokio::test]
async fn a_damaged_page_is_asked_for_anew() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let [first, second] = fleet.pair("").await;
    first.tasks(SUPPORT, "").await;
    fleet.redis.wait_for_pages(1).await;
    let page = fleet.redis.keys("page:").remove(0);
    let _: i64 = fleet.redis.run(&["HSET", &page, "page", "damaged"]);

    let answer = second.tasks(SUPPORT, "").await;

    answer.assert_page(&fleet.upstream().expect_page(SUPPORT, 1, 20));
    assert_eq!(
        answer.cache_status(),
        "fwd=uri-miss; fwd-status=200; stored"
    );
    let text = second.app.metrics().encode();
    let counted = "gateway_redis_errors_total{operation=\"read\"} ";
    let line = text.lines().find_map(|line| line.strip_prefix(counted));
    assert_ne!(line, Some("0"));
    wait_until_up(&second, true).await;
}

#[tokio::test]
async fn no_name_in_redis_holds_a_token_and_no_value_the_upstreams() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let quota = "[upstream]\nquota_per_minute = 60\n";
    let limited = client(
        "limited",
        LIMITED,
        "spaces = [\"*\"]\nrate_limit = { per_second = 0.0001, burst = 5 }",
    );
    let gateway = fleet.gateway(&format!("{quota}{limited}")).await;
    gateway.tasks(SUPPORT, "").key(LIMITED).await;
    fleet.redis.wait_for_pages(1).await;
    until(|| fleet.redis.keys("{log}").len() == 1).await;
    let keys: Vec<String> = fleet.redis.run(&["KEYS", "*"]);
    let kinds = [
        "calls", "epoch", "limit", "list:", "members", "page:", "{log}",
    ];
    for kind in kinds {
        let is_kind = |key: &String| key.starts_with("unpod-gateway:v3:") && key.contains(kind);
        assert!(keys.iter().any(is_kind), "{kind}");
    }
    for key in keys {
        assert!(!key.contains(SUPPORT), "{key}");
        assert!(!key.contains(ACME_TOKEN), "{key}");
        let value: Vec<u8> = fleet.redis.run(&["DUMP", &key]);
        let holds = |token: &str| {
            value
                .windows(token.len())
                .any(|part| part == token.as_bytes())
        };
        assert!(!holds(ACME_TOKEN), "{key}");
        assert!(!holds(LIMITED), "{key}");
        let expires: i64 = fleet.redis.run(&["PTTL", &key]);
        let lasts = ["{log}", "members"].iter().any(|kind| key.ends_with(kind));
        assert!(expires > 0 || lasts, "{key} stays for ever");
    }
}

#[tokio::test]
async fn a_redis_that_is_killed_under_load_costs_nobody_an_answer() {
    let Some(mut fleet) = Fleet::start().await else {
        return;
    };
    let [first, second] = fleet.pair("").await;
    let kept = first.tasks(SUPPORT, "").await;
    let load = |gateway: &Gateway| -> Vec<_> {
        (1..=10)
            .map(|size| {
                gateway
                    .tasks(SUPPORT, &format!("?page_size={size}"))
                    .spawn()
            })
            .collect()
    };
    let under_way = [load(&first), load(&second)];
    fleet.redis.kill();
    let later = [load(&first), load(&second)];
    for answer in under_way.into_iter().chain(later).flatten() {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    wait_until_up(&first, false).await;
    let (status, told) = readiness(&first).await;
    assert_eq!((status, &told["status"]), (200, &"degraded".into()));
    assert_eq!(told["parts"]["redis"]["answers"], false);

    fleet.redis.restart();
    for gateway in [&first, &second] {
        wait_until_up(gateway, true).await;
    }
    let (status, told) = readiness(&first).await;
    assert_eq!((status, &told["status"]), (200, &"ready".into()));
    // It came back empty: what is in memory stays, and what is new is shared again.
    let hit = first.tasks(SUPPORT, "").await;
    hit.assert_page(&kept.body);
    assert_eq!(hit.cache_status(), "hit");
    let filled = first.tasks(ARCHIVE, "").await;
    assert_eq!(filled.status, 200);
    fleet.redis.wait_for_pages(1).await;
    assert_eq!(second.tasks(ARCHIVE, "").await.cache_status(), "hit");
}

#[tokio::test]
async fn a_redis_that_hangs_is_done_without_until_it_goes_on() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let gateway = fleet.gateway("[cache.redis]\ntimeout = '1s'").await;
    wait_until_up(&gateway, true).await;
    gateway.tasks(SUPPORT, "").await;
    fleet.redis.wait_for_pages(1).await;
    let failed_before = failed_operations(&gateway);
    fleet.redis.signal("-STOP");
    for _ in 0..20 {
        assert_eq!(gateway.tasks(SUPPORT, "").await.cache_status(), "hit");
    }
    for page in 1..=5 {
        let answer = gateway.tasks(ARCHIVE, &format!("?page={page}")).await;
        assert_eq!(
            answer.cache_status(),
            "fwd=uri-miss; fwd-status=200; stored"
        );
    }
    wait_until_up(&gateway, false).await;
    // Of the five that missed, those after the third timeout did not wait for it, but for what was under way by then.
    let failed = failed_operations(&gateway) - failed_before;
    assert!(failed <= 5, "{failed}");

    fleet.redis.signal("-CONT");
    wait_until_up(&gateway, true).await;
    assert_eq!(gateway.tasks(SUPPORT, "").await.cache_status(), "hit");
}

/// The one page that Redis holds.
fn page_in(redis: &Redis) -> Vec<u8> {
    redis.run(&["HGET", &redis.keys("page:")[0], "page"])
}

/// Operations for pages that failed so far.
fn failed_operations(gateway: &Gateway) -> u32 {
    let text = gateway.app.metrics().encode();
    let counted = ["look", "lock", "store"].map(|operation| {
        let name = format!("gateway_redis_errors_total{{operation=\"{operation}\"}} ");
        let count = text.lines().find_map(|line| line.strip_prefix(&name));
        count.unwrap().parse::<u32>().unwrap()
    });
    counted.into_iter().sum()
}

#[tokio::test]
async fn a_gateway_starts_and_serves_where_redis_refuses_it() {
    let Some(redis) = Redis::start(Some("c4n4ry")) else {
        return;
    };
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let wrong = format!("redis://:wrong@127.0.0.1:{}", redis.port());
    let refused = fleet.gateway_at(&wrong, "").await;
    assert_eq!(refused.tasks(SUPPORT, "").await.status, 200);
    let (status, told) = readiness(&refused).await;
    assert_eq!((status, &told["status"]), (200, &"degraded".into()));

    let right = fleet.gateway_at(&redis.url(), "").await;
    let (_, told) = readiness(&right).await;
    assert_eq!(told["status"], "ready");
    let (_, shown) = operators::ask(&right, "GET", "/config").await;
    assert!(!shown.contains("c4n4ry"), "{shown}");
}

#[tokio::test]
async fn what_redis_knows_is_kept_by_its_own_clock_and_only_while_it_is_of_use() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let lives = "[cache]\nttl = '30s'\nstale_while_revalidate = '60s'\nstale_if_quota = '90s'\nstale_if_error = '90s'";
    let gateway = fleet.gateway(lives).await;
    gateway.tasks(SUPPORT, "").await;
    fleet.redis.wait_for_pages(1).await;
    let page = fleet.redis.keys("page:").remove(0);
    let left: u64 = fleet.redis.run(&["PTTL", &page]);
    let left = Duration::from_millis(left);
    // It counts down from then on.
    assert!(
        left <= Duration::from_secs(120) && left > Duration::from_secs(60),
        "{left:?}"
    );
}

#[tokio::test]
async fn a_stale_page_is_taken_from_who_refreshed_it() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    // Stale as soon as it has filled one, and the other's are fresh for long.
    let brief = "[cache]\nttl = '0s'\nstale_while_revalidate = '0s'\nstale_if_error = '1h'";
    let first = fleet.gateway("[cache]\nttl = '1h'").await;
    let second = fleet.gateway(brief).await;
    second.tasks(SUPPORT, "").await;
    fleet.redis.wait_for_pages(1).await;
    let old: Vec<u8> = page_in(&fleet.redis);
    // At once or in the background: it may show a stale one meanwhile.
    assert_eq!(first.tasks(SUPPORT, "").await.status, 200);
    patiently("a call", fleet.upstream().wait_for_requests(2)).await;
    until(|| page_in(&fleet.redis) != old).await;

    let answer = second.tasks(SUPPORT, "").await;

    assert_eq!(answer.cache_status(), "hit");
    assert_eq!(fleet.upstream().requests(), 2);
}

#[tokio::test]
async fn another_upstream_shows_nothing_of_the_first_that_replicas_share() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let sharing = || {
        let url = fleet.redis.url();
        setup().with(&format!("[cache.redis]\nurl = '{url}'\ntimeout = '5s'"))
    };
    let running = sharing().start_from_file().await;
    let gateway = &running.gateway;
    wait_until_up(gateway, true).await;
    let other = Simulator::start(Options::default()).await.unwrap();
    other.control().add_task(SUPPORT);
    let upstreams = [
        (gateway.upstream_url(), gateway.upstream().clone()),
        (other.base_url(), other.control()),
    ];
    // Each page is asked for at every moment of a reload.
    let ask = |page: u32| async move {
        for _ in 0..200 {
            let answer = gateway.tasks(SUPPORT, &format!("?page={page}")).await;
            assert_eq!(answer.status, 200);
        }
    };
    let reload = async {
        for round in 1..=20 {
            let (base_url, upstream) = &upstreams[round % 2];
            running.file.rewrite(&sharing().toml(base_url));
            assert_eq!(running.reload().await.0, 200);
            for page in 1..=3 {
                let expected = upstream.expect_page(SUPPORT, page, 20);
                let answer = gateway.tasks(SUPPORT, &format!("?page={page}")).await;
                answer.assert_page(&expected);
            }
        }
    };

    tokio::join!(reload, ask(1), ask(2), ask(3));
}
