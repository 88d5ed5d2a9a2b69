//! Faults that were found between replicas: what one of them does at a bad moment, loses or writes askew costs the others no coherence.

use std::{collections::HashMap, net::Ipv4Addr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};
use unpod_gateway::simulator::{
    Fault, FaultKind, Scripted,
    world::{ACME, ACME_TOKEN, ARCHIVE, SUPPORT},
};

use crate::{
    answer::Answer,
    gateway::{Gateway, REFRESHER, client, patiently, until},
    operators,
    redis_quota::count_from_now,
    redis_server::{Cable, Fleet, Redis, wait_until_up},
};

const OTHER: &str = "ugw_other_key";

/// Pages a gateway holds in memory.
fn pages(gateway: &Gateway) -> u64 {
    gateway.app.pages().store().size().1
}

async fn purge(gateway: &Gateway, path: &str) {
    let (status, told) = operators::ask(gateway, "DELETE", path).await;
    assert_eq!(status, 204, "{told}");
}

/// Asks until an answer is of this state of its list.
async fn ask_until_of(gateway: &Gateway, query: &str, generation: &str) -> Answer {
    patiently("the state", async {
        loop {
            let answer = gateway.tasks(SUPPORT, query).await;
            if generation_of(&answer) == generation {
                return answer;
            }
        }
    })
    .await
}

fn generation_of(answer: &Answer) -> String {
    answer.header("x-list-generation").unwrap().to_owned()
}

/// Waits until nobody fills a page.
async fn wait_for_locks(redis: &Redis) {
    until(|| redis.keys("lock:").is_empty()).await;
}

/// The upstream's proxy, which can keep its answers.
struct Proxy {
    url: String,
    is_open: watch::Sender<bool>,
    kept: watch::Receiver<usize>,
    _carrying: JoinSet<()>,
}

impl Proxy {
    /// One before the simulator at `origin`.
    async fn start(origin: &str) -> Self {
        let origin = origin.replace("http://", "");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (is_open, open) = watch::channel(true);
        let (keeping, kept) = watch::channel(0);
        let mut carrying = JoinSet::new();
        carrying.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let far = TcpStream::connect(&origin).await.unwrap();
                let ((near_in, near_out), (far_in, far_out)) =
                    (near.into_split(), far.into_split());
                connections.spawn(ask(near_in, far_out));
                connections.spawn(answer(far_in, near_out, open.clone(), keeping.clone()));
            }
        });
        Self {
            url,
            is_open,
            kept,
            _carrying: carrying,
        }
    }

    fn toml(&self) -> String {
        format!("[upstream]\nproxy = '{}'", self.url)
    }

    /// Keeps every answer from now on.
    fn keep(&self) {
        self.is_open.send_replace(false);
    }

    /// Waits until an answer is kept, as it was by then.
    async fn wait_for_answer(&mut self) {
        let kept = self.kept.wait_for(|kept| *kept > 0);
        patiently("an answer", kept).await.unwrap();
    }

    fn open(&self) {
        self.is_open.send_replace(true);
    }
}

async fn ask(mut near: OwnedReadHalf, mut far: OwnedWriteHalf) {
    let _ = tokio::io::copy(&mut near, &mut far).await;
}

async fn answer(
    mut far: OwnedReadHalf,
    mut near: OwnedWriteHalf,
    mut open: watch::Receiver<bool>,
    keeping: watch::Sender<usize>,
) {
    let mut bytes = vec![0; 1 << 16];
    while let Ok(read @ 1..) = far.read(&mut bytes).await {
        keeping.send_modify(|kept| *kept += 1);
        let is_open = open.wait_for(|open| *open).await.is_ok();
        keeping.send_modify(|kept| *kept -= 1);
        if !is_open || near.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn an_older_page_that_comes_late_replaces_no_newer_one() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let mut proxy = Proxy::start(&fleet.upstream_url()).await;
    let slow = fleet.gateway(&proxy.toml()).await;
    let quick = fleet.gateway("").await;
    for gateway in [&slow, &quick] {
        wait_until_up(gateway, true).await;
    }
    proxy.keep();
    let late = slow.tasks(SUPPORT, "").spawn();
    proxy.wait_for_answer().await;
    let older = fleet.upstream().expect_page(SUPPORT, 1, 20);
    fleet.upstream().add_task(SUPPORT);
    let newer = quick
        .tasks(SUPPORT, "")
        .key(REFRESHER)
        .cache_control("no-cache")
        .await;
    newer.assert_page(&fleet.upstream().expect_page(SUPPORT, 1, 20));
    fleet.redis.wait_for_pages(1).await;

    proxy.open();
    let late = late.await.unwrap();
    late.assert_page(&older);
    wait_for_locks(&fleet.redis).await;

    let third = fleet.gateway("").await;
    wait_until_up(&third, true).await;
    let shared = third.tasks(SUPPORT, "").await;
    shared.assert_page(&newer.body);
    assert_eq!(shared.cache_status(), "hit");
    let mut answers = vec![late, newer, shared];
    for gateway in [&slow, &quick, &third] {
        for query in ["", "?page=2", "?page=3"] {
            answers.push(gateway.tasks(SUPPORT, query).await);
        }
    }
    let mut counts = HashMap::new();
    for answer in answers {
        let count = answer.json()["count"].as_u64().unwrap();
        let first = *counts.entry(generation_of(&answer)).or_insert(count);
        assert_eq!(first, count, "one name for two states");
    }
}

#[tokio::test]
async fn who_heard_of_a_move_notices_the_next_one() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let [first, second] = fleet.pair("").await;
    for query in ["", "?page=2"] {
        first.tasks(SUPPORT, query).await;
        wait_for_locks(&fleet.redis).await;
        second.tasks(SUPPORT, query).await;
    }
    fleet.upstream().add_task(SUPPORT);
    let moved = generation_of(&first.tasks(SUPPORT, "?page=3").await);
    for query in ["", "?page=2"] {
        ask_until_of(&second, query, &moved).await;
    }
    wait_for_locks(&fleet.redis).await;

    fleet.upstream().add_task(SUPPORT);
    let again = second.tasks(SUPPORT, "?page=2&page_size=10").await;

    let generation = generation_of(&again);
    assert_ne!(generation, moved);
    for page in 1..=2 {
        let answer = second.tasks(SUPPORT, &format!("?page={page}")).await;
        answer.assert_page(&fleet.upstream().expect_page(SUPPORT, page, 20));
        assert_eq!(generation_of(&answer), generation);
    }
}

#[tokio::test]
async fn what_a_restored_redis_has_forgotten_to_be_dropped_is_dropped_again() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let mut cable = Cable::lay(&fleet.redis).await;
    let first = fleet.gateway_at(&cable.url, "").await;
    let second = fleet.gateway_at(&cable.url, "").await;
    for gateway in [&first, &second] {
        wait_until_up(gateway, true).await;
    }
    for (filled, space) in [SUPPORT, ARCHIVE].into_iter().enumerate() {
        first.tasks(space, "").await;
        fleet.redis.wait_for_pages(filled + 1).await;
        assert_eq!(second.tasks(space, "").await.cache_status(), "hit");
    }
    wait_for_locks(&fleet.redis).await;
    let purged = fleet.upstream().expect_page(SUPPORT, 1, 20);
    let before = fleet.redis.dump();
    fleet.upstream().add_task(SUPPORT);
    fleet.upstream().revoke_space(ARCHIVE);
    purge(&first, &format!("/cache/spaces/{SUPPORT}")).await;
    let refused = first
        .tasks(ARCHIVE, "")
        .key(REFRESHER)
        .cache_control("no-cache")
        .await;
    refused.assert_error("space_access_denied");
    until(|| pages(&first) == 0 && pages(&second) == 0).await;

    cable.cut().await;
    for gateway in [&first, &second] {
        wait_until_up(gateway, false).await;
    }
    fleet.redis.restore(&before);
    // It cannot know better, until somebody tells it.
    let third = fleet.gateway("").await;
    wait_until_up(&third, true).await;
    third.tasks(SUPPORT, "").await.assert_page(&purged);
    assert_eq!(third.tasks(ARCHIVE, "").await.status, 200);
    cable.mend().await;
    for gateway in [&first, &second] {
        wait_until_up(gateway, true).await;
    }
    until(|| pages(&third) == 0).await;

    let now = fleet.upstream().expect_page(SUPPORT, 1, 20);
    for gateway in [&third, &first, &second, &fleet.gateway("").await] {
        gateway.tasks(SUPPORT, "").await.assert_page(&now);
        let refused = gateway.tasks(ARCHIVE, "").await;
        refused.assert_error("space_access_denied");
    }
}

#[tokio::test]
async fn an_empty_redis_that_a_fresh_process_found_first_costs_the_others_nothing() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let mut cable = Cable::lay(&fleet.redis).await;
    let brief = "[cache]\nttl = '0s'\nstale_while_revalidate = '0s'\nstale_if_error = '1h'";
    let fresh = fleet.gateway_at(&cable.url, "[cache]\nttl = '1h'").await;
    let stale = fleet.gateway_at(&cable.url, brief).await;
    for gateway in [&fresh, &stale] {
        wait_until_up(gateway, true).await;
    }
    // From here on there is an epoch to forget.
    purge(&fresh, "/cache").await;
    let kept = fresh.tasks(SUPPORT, "").await;
    stale.tasks(ARCHIVE, "").await;
    fleet.redis.wait_for_pages(2).await;
    wait_for_locks(&fleet.redis).await;
    cable.cut().await;
    for gateway in [&fresh, &stale] {
        wait_until_up(gateway, false).await;
    }
    let _: String = fleet.redis.run(&["FLUSHALL"]);
    let third = fleet.gateway("").await;
    wait_until_up(&third, true).await;
    for space in [SUPPORT, ARCHIVE] {
        assert_eq!(third.tasks(space, "?page=2").await.status, 200);
    }
    wait_for_locks(&fleet.redis).await;
    cable.mend().await;
    for gateway in [&fresh, &stale] {
        wait_until_up(gateway, true).await;
    }
    until(|| pages(&third) == 0).await;

    let down = Fault::always(FaultKind::ServerError);
    fleet.upstream().set_faults(vec![down]);
    let hit = fresh.tasks(SUPPORT, "").await;
    hit.assert_page(&kept.body);
    assert_eq!(hit.cache_status(), "hit");
    let fallback = stale.tasks(ARCHIVE, "").await;
    assert_eq!(fallback.status, 200);
    let status = fallback.cache_status();
    assert!(status.contains("detail=stale-if-error"), "{status}");
}

#[tokio::test]
async fn a_page_that_was_purged_while_its_replica_was_cut_off_is_used_by_nobody() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let (mut cable, [cut, other]) = fleet.cable_pair().await;
    cable.cut().await;
    wait_until_up(&cut, false).await;
    let hold = fleet.upstream().hold();
    let under_way = cut.tasks(SUPPORT, "").spawn();
    patiently("a call", fleet.upstream().wait_for_requests(1)).await;
    purge(&other, &format!("/cache/spaces/{SUPPORT}")).await;
    cable.mend().await;
    wait_until_up(&cut, true).await;
    hold.release();
    assert_eq!(under_way.await.unwrap().status, 200);
    cut.wait_until_filled().await;

    assert_eq!(pages(&cut), 0);
    for (calls, gateway) in [(2, &cut), (2, &other)] {
        assert_eq!(gateway.tasks(SUPPORT, "").await.status, 200);
        assert_eq!(fleet.upstream().requests(), calls);
        wait_for_locks(&fleet.redis).await;
    }
}

#[tokio::test]
async fn a_purge_whose_entry_was_trimmed_meanwhile_is_taken_up_on_connecting() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let (mut cable, [cut, other]) = fleet.cable_pair().await;
    cut.tasks(SUPPORT, "").await;
    cut.tasks(ARCHIVE, "").await;
    wait_for_locks(&fleet.redis).await;
    cable.cut().await;
    wait_until_up(&cut, false).await;
    purge(&other, &format!("/cache/spaces/{SUPPORT}")).await;
    let overflow =
        "for i = 1, 10500 do redis.call('XADD', KEYS[1], 'MAXLEN', '~', 10000, '*', 'e', '') end";
    let log = "unpod-gateway:v3:{log}";
    let _: Option<String> = fleet.redis.run(&["EVAL", overflow, "1", log]);
    assert_eq!(pages(&cut), 2);

    cable.mend().await;
    wait_until_up(&cut, true).await;

    until(|| pages(&cut) == 1).await;
}

#[tokio::test]
async fn what_a_server_was_told_whose_clock_is_behind_is_heard() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let (mut cable, [cut, _other]) = fleet.cable_pair().await;
    cut.tasks(SUPPORT, "").await;
    let log = "unpod-gateway:v3:{log}";
    // That the list is in this state, and that the fill has ended.
    until(|| fleet.redis.run::<u64>(&["XLEN", log]) == 2).await;
    type Entries = Vec<(String, Vec<String>)>;
    let newest: Entries = fleet.redis.run(&["XREVRANGE", log, "+", "-", "COUNT", "1"]);
    let (time, _) = newest[0].0.split_once('-').unwrap();
    let time: u64 = time.parse().unwrap();
    let epochs = fleet.redis.keys("}:epoch");
    let space = epochs.iter().find_map(|key| {
        let (_, space) = key.split_once('{')?;
        space
            .strip_suffix("}:epoch")
            .filter(|space| *space != "log")
    });
    cable.cut().await;
    wait_until_up(&cut, false).await;

    // It lacks the last entries, and was told of a drop at its own time.
    let dropped = format!(
        r#"{{"dropped":{{"space":"{}","epoch":{},"refused":false}}}}"#,
        space.unwrap(),
        time * 1000
    );
    let _: i64 = fleet.redis.run(&["DEL", log]);
    for (at, entry) in [(time - 30_000, dropped.as_str()), (time + 1, "")] {
        let id = format!("{at}-0");
        let _: String = fleet.redis.run(&["XADD", log, &id, "e", entry]);
    }
    assert_eq!(pages(&cut), 1);
    cable.mend().await;
    wait_until_up(&cut, true).await;

    until(|| pages(&cut) == 0).await;
}

#[tokio::test]
async fn no_purge_is_answered_that_the_last_snapshot_does_not_know_of() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pages");
    let snapshot = format!("[cache]\nsnapshot_file = '{}'", file.display());
    let gateway = fleet.gateway(&snapshot).await;
    wait_until_up(&gateway, true).await;
    gateway.tasks(SUPPORT, "").await;
    wait_for_locks(&fleet.redis).await;
    let operators = gateway.admin_url().replace("http://", "");
    // Redis is told goodbye after the snapshot is written, and hangs.
    fleet.redis.signal("-STOP");
    let draining = tokio::spawn(gateway.app.drain());

    until(|| file.exists()).await;

    assert!(TcpStream::connect(&operators).await.is_err());
    fleet.redis.signal("-CONT");
    assert!(draining.await.unwrap());
}

#[tokio::test]
async fn a_snapshot_brings_back_nothing_that_was_dropped_meanwhile() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pages");
    let snapshot = format!("[cache]\nsnapshot_file = '{}'", file.display());
    let mut cable = Cable::lay(&fleet.redis).await;
    let first = fleet.gateway("").await;
    let second = fleet.gateway_at(&cable.url, &snapshot).await;
    for gateway in [&first, &second] {
        wait_until_up(gateway, true).await;
    }
    for space in [SUPPORT, ARCHIVE] {
        second.tasks(space, "").await;
    }
    wait_for_locks(&fleet.redis).await;
    assert!(second.app.drain().await);
    purge(&first, &format!("/cache/spaces/{SUPPORT}")).await;
    fleet.upstream().revoke_space(ARCHIVE);
    let refused = first
        .tasks(ARCHIVE, "")
        .key(REFRESHER)
        .cache_control("no-cache")
        .await;
    refused.assert_error("space_access_denied");
    until(|| fleet.redis.run::<u64>(&["XLEN", "unpod-gateway:v3:{log}"]) >= 6).await;

    let again = fleet.gateway_at(&cable.url, &snapshot).await;
    wait_until_up(&again, true).await;
    cable.cut().await;
    wait_until_up(&again, false).await;
    let down = Fault::always(FaultKind::ServerError);
    fleet.upstream().set_faults(vec![down]);

    for space in [SUPPORT, ARCHIVE] {
        let failed = again.tasks(space, "").await;
        failed.assert_error("upstream_failed");
    }
}

#[tokio::test]
async fn a_key_of_another_type_costs_what_it_holds_and_no_more() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let limited = client(
        "other",
        OTHER,
        "spaces = [\"*\"]\nrate_limit = { per_second = 100, burst = 100 }",
    );
    let pair = fleet.pair(&limited).await;
    for (number, kind) in ["epoch", "list:", "page:", "lock:", "limit"]
        .into_iter()
        .enumerate()
    {
        let query = format!("?page_size={}", number + 1);
        let ask = |gateway: &Gateway, query: &str| gateway.tasks(SUPPORT, query).key(OTHER);
        assert_eq!(ask(&pair[0], &query).await.status, 200);
        wait_for_locks(&fleet.redis).await;
        let page = fleet.redis.keys(&format!("page:tasks:1:{}", number + 1));
        let key = match kind {
            "lock:" => page[0].replacen(":page:", ":lock:", 1),
            "page:" => page[0].clone(),
            // That of the space, not of everything.
            "epoch" => fleet
                .redis
                .keys("}:epoch")
                .into_iter()
                .find(|key| !key.contains("{log}"))
                .unwrap(),
            kind => fleet.redis.keys(kind).remove(0),
        };
        // Bytes are no list.
        let _: i64 = fleet.redis.run(&["DEL", &key]);
        let _: i64 = fleet.redis.run(&["LPUSH", &key, "askew"]);

        for (gateway, page) in [(&pair[1], 1), (&pair[0], 2), (&pair[1], 2)] {
            let query = format!("{query}&page={page}");
            let answer = ask(gateway, &query).await;
            let size = number as u64 + 1;
            answer.assert_page(&fleet.upstream().expect_page(SUPPORT, page, size));
            wait_for_locks_but(&fleet.redis, &key).await;
        }
        for gateway in &pair {
            assert!(gateway.counts("gateway_redis_up 1"), "{kind}");
        }

        let _: i64 = fleet.redis.run(&["DEL", &key]);
        let query = format!("{query}&page=3");
        let filled = ask(&pair[0], &query).await;
        wait_for_locks(&fleet.redis).await;
        let served = ask(&pair[1], &query).await;
        served.assert_page(&filled.body);
        assert_eq!(served.cache_status(), "hit", "{kind}");
    }
}

/// Nobody knows what the others spent.
#[tokio::test]
async fn calls_of_another_type_are_made_by_nobody_until_they_are_counted_again() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let pair = fleet.pair("[upstream]\nquota_per_minute = 6000").await;
    let calls = count_from_now(&fleet, &pair[0]).await;
    let filled = pair[0].tasks(SUPPORT, "").await;
    wait_for_locks(&fleet.redis).await;
    let _: i64 = fleet.redis.run(&["DEL", &calls]);
    let _: String = fleet.redis.run(&["SET", &calls, "askew"]);

    for gateway in &pair {
        gateway.tasks(SUPPORT, "").await.assert_page(&filled.body);
        let cold = gateway.tasks(SUPPORT, "?page=2").await;
        cold.assert_error("upstream_quota_exhausted");
        assert!(gateway.counts("gateway_redis_up 1"));
    }
    assert_eq!(fleet.upstream().requests(), 1);

    let _: i64 = fleet.redis.run(&["DEL", &calls]);
    count_from_now(&fleet, &pair[0]).await;
    for gateway in &pair {
        patiently("a call", async {
            while gateway.tasks(SUPPORT, "?page=2").await.status != 200 {}
        })
        .await;
    }
    assert_eq!(fleet.upstream().requests(), 2);
}

/// Waits until nobody fills a page, whatever `key` may be.
async fn wait_for_locks_but(redis: &Redis, key: &str) {
    until(|| redis.keys("lock:").iter().all(|lock| lock == key)).await;
}

#[tokio::test]
async fn a_count_that_is_no_number_is_learnt_anew() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let [first, second] = fleet.pair("").await;
    let filled = first.tasks(SUPPORT, "").await;
    wait_for_locks(&fleet.redis).await;
    let list = fleet.redis.keys("list:").remove(0);
    let _: i64 = fleet.redis.run(&["HSET", &list, "count", "many"]);

    let served = second.tasks(SUPPORT, "").await;
    served.assert_page(&filled.body);
    let next = second.tasks(SUPPORT, "?page=2").await;
    assert_eq!(generation_of(&next), generation_of(&served));
    wait_for_locks(&fleet.redis).await;

    let count: String = fleet.redis.run(&["HGET", &list, "count"]);
    assert_eq!(count, served.json()["count"].to_string());
    for gateway in [&first, &second] {
        assert!(gateway.counts("gateway_redis_up 1"));
    }
}

/// Without them a replica would hear of no drop, or not know its share of the quota: it goes on alone.
#[tokio::test]
async fn without_the_members_or_the_log_replicas_go_on_alone_until_they_are_mended() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let pair = fleet.pair("[cache.redis]\nrecheck = '1s'").await;
    pair[0].tasks(SUPPORT, "").await;
    wait_for_locks(&fleet.redis).await;
    for kind in ["members", "{log}"] {
        let key = format!("unpod-gateway:v3:{kind}");
        let _: String = fleet.redis.run(&["SET", &key, "askew"]);
        for gateway in &pair {
            wait_until_up(gateway, false).await;
            assert_eq!(gateway.tasks(SUPPORT, "").await.status, 200);
            assert_eq!(gateway.tasks(ARCHIVE, "").await.status, 200);
        }

        let _: i64 = fleet.redis.run(&["DEL", &key]);
        for gateway in &pair {
            wait_until_up(gateway, true).await;
        }
    }
    purge(&pair[0], "/cache").await;
    until(|| pages(&pair[1]) == 0).await;
}

#[tokio::test]
async fn a_move_is_told_by_a_page_that_is_not_kept() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let [first, second] = fleet.pair("").await;
    let upstream = fleet.upstream();
    let page_2 = || String::from_utf8(upstream.expect_page(SUPPORT, 2, 20)).unwrap();
    let digests = (0_u64..160_000).map(|number| blake3::hash(&number.to_le_bytes()).to_string());
    let large: String = digests.collect();
    for case in ["client", "upstream", "large"] {
        first.tasks(SUPPORT, "").await;
        wait_for_locks(&fleet.redis).await;
        second.tasks(SUPPORT, "").await;
        upstream.add_task(SUPPORT);
        let ask = first.tasks(SUPPORT, "?page=2").key(REFRESHER);
        let ask = match case {
            "client" => ask.cache_control("no-cache, no-store"),
            "upstream" => {
                let answer = Scripted::json(200, page_2()).header("cache-control", "no-store");
                upstream.script(SUPPORT, vec![answer]);
                ask.cache_control("no-cache")
            }
            _ => {
                let row = format!("\"data\":[{{\"filler\":\"{large}\",");
                let body = page_2().replacen("\"data\":[{", &row, 1);
                assert!(body.len() > large.len());
                upstream.script(SUPPORT, vec![Scripted::json(200, body)]);
                ask.cache_control("no-cache")
            }
        };

        let moved = ask.await;

        assert_eq!(moved.status, 200, "{case}");
        upstream.script(SUPPORT, Vec::new());
        let told = ask_until_of(&second, "", &generation_of(&moved)).await;
        told.assert_page(&upstream.expect_page(SUPPORT, 1, 20));
        let kept = fleet.redis.keys("page:tasks:2:20");
        assert_eq!(kept, Vec::<String>::new(), "{case}");
        wait_for_locks(&fleet.redis).await;
    }
}

#[tokio::test]
async fn invented_spaces_leave_nothing_in_redis_for_more_than_a_minute() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let (mut cable, [first, _second]) = fleet.cable_pair().await;
    let invent = async |kind: &str| {
        for number in 0..50 {
            let refused = first.tasks(&format!("{kind}{number}"), "").await;
            refused.assert_error("space_not_found");
        }
    };
    let leaves_nothing = || {
        let keys: Vec<String> = fleet.redis.run(&["KEYS", "*"]);
        keys.iter().all(|key| {
            let left: i64 = fleet.redis.run(&["PTTL", key]);
            let lasts = ["{log}", "{log}:epoch", "members"];
            let is_brief = left == -2 || (0..=60_000).contains(&left);
            is_brief
                || lasts
                    .iter()
                    .any(|kind| key.ends_with(&format!("v3:{kind}")))
        })
    };
    invent("INVENTED").await;
    until(leaves_nothing).await;

    // Neither what was refused while Redis was lost, nor what was before.
    cable.cut().await;
    wait_until_up(&first, false).await;
    invent("ALONE").await;
    cable.mend().await;
    wait_until_up(&first, true).await;
    until(|| first.counts("gateway_redis_pending_purges 0")).await;
    assert!(leaves_nothing());
}

#[tokio::test]
async fn who_asks_after_a_purge_waits_for_nobody_that_has_ended() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let gateway = fleet.gateway("[server]\nrequest_timeout = '8s'").await;
    wait_until_up(&gateway, true).await;
    let hold = fleet.upstream().hold();
    let before = gateway.tasks(SUPPORT, "").spawn();
    patiently("a call", fleet.upstream().wait_for_requests(1)).await;
    purge(&gateway, &format!("/cache/spaces/{SUPPORT}")).await;
    // Who does not hear of its end would wait for longer than for an answer.
    let lock = fleet.redis.keys("lock:").remove(0);
    let _: i64 = fleet.redis.run(&["PEXPIRE", &lock, "60000"]);
    let after = gateway.tasks(SUPPORT, "").spawn();
    until(|| gateway.counts("gateway_redis_pages_total{outcome=\"miss\"} 2")).await;
    assert_eq!(fleet.upstream().requests(), 1);

    hold.release();

    assert_eq!(before.await.unwrap().status, 200);
    let after = after.await.unwrap();
    assert_eq!(after.cache_status(), "fwd=uri-miss; fwd-status=200; stored");
    assert_eq!(fleet.upstream().requests(), 2);
}

#[tokio::test]
async fn sections_with_one_token_share_pages_moves_and_drops_whatever_they_are_called() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let section = format!(
        "[upstream.credentials.other]\ntoken = '{ACME_TOKEN}'\norg_handle = '{ACME}'\n{}",
        client("other", OTHER, "spaces = [\"*\"]\ncredential = \"other\"")
    );
    let first = fleet.gateway("").await;
    let second = fleet.gateway(&section).await;
    for gateway in [&first, &second] {
        wait_until_up(gateway, true).await;
    }
    let by_other = |query: &str| second.tasks(SUPPORT, query).key(OTHER);
    let filled = first.tasks(SUPPORT, "").await;
    wait_for_locks(&fleet.redis).await;
    for ask in [by_other(""), second.tasks(SUPPORT, "")] {
        let served = ask.await;
        served.assert_page(&filled.body);
        assert_eq!(served.cache_status(), "hit");
    }
    assert_eq!(fleet.upstream().requests(), 1);

    fleet.upstream().add_task(SUPPORT);
    let moved = generation_of(&first.tasks(SUPPORT, "?page=2").await);
    ask_until_of(&second, "", &moved).await;
    patiently("the move", async {
        while generation_of(&by_other("").await) != moved {}
    })
    .await;

    assert_eq!(pages(&second), 2);
    purge(&first, &format!("/cache/spaces/{SUPPORT}")).await;
    until(|| pages(&second) == 0).await;
    // What the other section fills is the first one's, too.
    wait_for_locks(&fleet.redis).await;
    let calls = fleet.upstream().requests();
    let filled = by_other("?page=3").await;
    wait_for_locks(&fleet.redis).await;
    let served = first.tasks(SUPPORT, "?page=3").await;
    served.assert_page(&filled.body);
    assert_eq!(served.cache_status(), "hit");
    assert_eq!(fleet.upstream().requests(), calls + 1);
}

#[tokio::test]
async fn a_miss_costs_one_round_trip_before_its_call_and_two_or_three_after() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let gateway = fleet.gateway("").await;
    wait_until_up(&gateway, true).await;
    let redis = &fleet.redis;
    for (name, value) in [("max-len", "10000"), ("log-slower-than", "0")] {
        let _: String = redis.run(&["CONFIG", "SET", &format!("slowlog-{name}"), value]);
    }
    let hold = fleet.upstream().hold();
    let asked = gateway.tasks(SUPPORT, "").spawn();
    patiently("a call", fleet.upstream().wait_for_requests(1)).await;
    assert_eq!(round_trips(redis), ["EVALSHA"]);

    hold.release();
    assert_eq!(asked.await.unwrap().status, 200);
    // Of the fill, that the list is in this state, and that it has ended.
    until(|| round_trips(redis).len() >= 4).await;
    assert_eq!(round_trips(redis), ["EVALSHA", "EVALSHA", "XADD", "XADD"]);
}

/// The commands for pages, and for the log, that Redis noted as slow, oldest first.
fn round_trips(redis: &Redis) -> Vec<String> {
    type Noted = (i64, i64, i64, Vec<Vec<u8>>, String, String);
    let noted: Vec<Noted> = redis.run(&["SLOWLOG", "GET", "-1"]);
    let commands = noted.into_iter().rev().filter_map(|(_, _, _, words, ..)| {
        let mut words = words.iter().map(|word| String::from_utf8_lossy(word));
        let name = words.next()?.to_uppercase();
        let is_of_page = words.any(|word| word.contains(":page:"));
        (name == "XADD" || name == "EVALSHA" && is_of_page).then_some(name)
    });
    commands.collect()
}
