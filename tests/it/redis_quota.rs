//! What replicas may spend together: the upstream's quota and the clients' limits, shared by way of a real Redis.

use std::time::Duration;

use unpod_gateway::simulator::{
    Scripted,
    world::{ACME, ACME_NEXT_TOKEN, ACME_TOKEN, ARCHIVE, SUPPORT},
};
use url::Url;

use crate::{
    answer::Answer,
    gateway::{Gateway, client, pass, patiently, until},
    operators,
    redis_server::{Cable, Fleet, Redis, sharing, wait_until_up},
};

const LIMITED: &str = "ugw_limited_key";

/// The name of the calls with `token`, in Redis.
async fn calls_key(redis: &Redis, gateway: &Gateway, token: &str) -> String {
    wait_until_up(gateway, true).await;
    let (_, config) = operators::ask(gateway, "GET", "/config").await;
    let config: toml::Value = toml::from_str(&config).unwrap();
    let base_url = Url::parse(config["upstream"]["base_url"].as_str().unwrap()).unwrap();
    let mut hasher = blake3::Hasher::new_derive_key("unpod-gateway shared quota");
    for part in [base_url.as_str(), &format!("Token {token}")] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let members: Vec<String> = redis.run(&["KEYS", "*members"]);
    let prefix = members[0].strip_suffix("members").unwrap();
    format!("{prefix}{{{}}}:calls", &hasher.finalize().to_hex()[..32])
}

/// Has Redis know that nothing was spent. A counter that it does not know begins with nothing to spend.
pub(crate) async fn count_from_now(fleet: &Fleet, gateway: &Gateway) -> String {
    let key = calls_key(&fleet.redis, gateway, ACME_TOKEN).await;
    let _: i64 = fleet.redis.run(&["ZADD", &key, "-1", "pace"]);
    key
}

fn quota(per_minute: u32, replicas: u32) -> String {
    format!(
        "[upstream]\nquota_per_minute = {per_minute}\ntimeout = '1s'\n[cache.redis]\nreplicas = {replicas}"
    )
}

/// Asks for so many cold pages of `space`; returns how many were had. The others were refused for the quota.
async fn ask_cold(gateway: &Gateway, space: &str, pages: std::ops::Range<u32>) -> usize {
    let mut had = 0;
    for page in pages {
        let answer = gateway.tasks(space, &format!("?page_size={page}")).await;
        match answer.status {
            200 => had += 1,
            _ => answer.assert_error("upstream_quota_exhausted"),
        }
    }
    had
}

/// Waits until this replica has so many calls left in this minute.
async fn until_left(gateway: &Gateway, calls: u32) {
    let line = format!("gateway_upstream_quota_remaining{{credential=\"default\"}} {calls}.0");
    until(|| gateway.counts(&line)).await;
}

#[tokio::test]
async fn replicas_that_never_came_cost_nothing() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let gateway = fleet.gateway(&quota(5, 10)).await;
    count_from_now(&fleet, &gateway).await;

    assert_eq!(ask_cold(&gateway, SUPPORT, 1..6).await, 3, "the burst");
    assert_eq!(fleet.upstream().requests(), 3);
    until_left(&gateway, 2).await;
}

#[tokio::test]
async fn replicas_together_have_the_burst_of_one() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let pair = fleet.pair(&quota(6, 2)).await;
    count_from_now(&fleet, &pair[0]).await;
    let mut had = 0;
    for page in 1..5 {
        for gateway in &pair {
            had += ask_cold(gateway, ARCHIVE, page * 10..page * 10 + 1).await;
        }
    }
    assert_eq!(fleet.upstream().requests(), 3);
    assert!(had >= 3, "{had}");
}

#[tokio::test]
async fn who_vanishes_keeps_its_share_and_who_leaves_gives_it_up() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let mut cable = Cable::lay(&fleet.redis).await;
    let first = fleet.gateway(&quota(60, 2)).await;
    let second = fleet.gateway_at(&cable.url, &quota(60, 2)).await;
    until_left(&first, 60).await;

    cable.cut().await;
    wait_until_up(&second, false).await;
    age_members(&fleet.redis);
    until_left(&first, 30).await;
    until_left(&second, 30).await;

    cable.mend().await;
    until_left(&first, 60).await;
    assert!(second.app.drain().await);
    // Long after a heartbeat would have been missed.
    let aged = age_members(&fleet.redis);
    until(|| members(&fleet.redis) != aged).await;
    assert_eq!(members(&fleet.redis).len(), 1);
    until_left(&first, 60).await;
}

const MEMBERS: &str = "unpod-gateway:v3:members";

/// Those who have a place, and when each had its last heartbeat.
fn members(redis: &Redis) -> Vec<(String, i64)> {
    redis.run(&["ZRANGE", MEMBERS, "0", "-1", "WITHSCORES"])
}

/// Has Redis believe that every member's last heartbeat was an hour earlier.
fn age_members(redis: &Redis) -> Vec<(String, i64)> {
    for (member, _) in members(redis) {
        let _: f64 = redis.run(&["ZINCRBY", MEMBERS, "-3600000", &member]);
    }
    members(redis)
}

#[tokio::test]
async fn a_replica_that_loses_redis_spends_nothing_for_a_minute() {
    let Some(mut fleet) = Fleet::start().await else {
        return;
    };
    let pair = fleet.pair(&quota(60, 2)).await;
    count_from_now(&fleet, &pair[0]).await;
    assert_eq!(ask_cold(&pair[0], SUPPORT, 1..2).await, 1);
    fleet.redis.kill();
    for gateway in &pair {
        wait_until_up(gateway, false).await;
        let refused = gateway.tasks(SUPPORT, "?page_size=2").await;
        refused.assert_error("upstream_quota_exhausted");
        let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
        assert!((30..=70).contains(&wait), "{wait}");
    }
    assert_eq!(fleet.upstream().requests(), 1);
    let hit = pair[0].tasks(SUPPORT, "?page_size=1").await;
    assert_eq!(hit.cache_status(), "hit");

    // What was spent before nobody knows: a burst and the pace since.
    fleet.redis.restart();
    for gateway in &pair {
        wait_until_up(gateway, true).await;
    }
    assert_eq!(ask_cold(&pair[1], SUPPORT, 3..5).await, 0);
    count_from_now(&fleet, &pair[1]).await;
    until(|| fleet.upstream().requests() > 1).await;
}

#[tokio::test]
async fn a_token_has_one_quota_whatever_its_section_is_called() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let renamed = format!(
        "[upstream.credentials.default]\ntoken = '{ACME_NEXT_TOKEN}'\n\
         [upstream.credentials.other]\ntoken = '{ACME_TOKEN}'\norg_handle = '{ACME}'\nspaces = ['{ARCHIVE}']\n{}",
        quota(6, 2)
    );
    let first = fleet.gateway(&quota(6, 2)).await;
    let second = fleet.gateway(&renamed).await;
    wait_until_up(&second, true).await;
    count_from_now(&fleet, &first).await;

    assert_eq!(ask_cold(&second, ARCHIVE, 1..4).await, 3);
    assert_eq!(ask_cold(&first, SUPPORT, 4..6).await, 0);
    assert_eq!(fleet.upstream().requests(), 3);
    assert_eq!(fleet.redis.keys(":calls").len(), 1);
}

#[tokio::test]
async fn what_was_spent_with_a_replaced_token_is_told_to_who_counts_by_the_next() {
    let Some(redis) = Redis::start(None) else {
        return;
    };
    let setup = || sharing(&redis.url()).with(&quota(60, 2));
    let running = setup().start_from_file().await;
    let gateway = &running.gateway;
    let [before, after] = [
        calls_key(&redis, gateway, ACME_TOKEN).await,
        calls_key(&redis, gateway, ACME_NEXT_TOKEN).await,
    ];
    let _: i64 = redis.run(&["ZADD", &before, "-1", "pace"]);
    assert_eq!(ask_cold(gateway, SUPPORT, 1..4).await, 3);
    let next = format!("[upstream.credentials.default]\ntoken = '{ACME_NEXT_TOKEN}'");

    running.rewrite(setup().with(&next));
    assert_eq!(running.reload().await.0, 200);

    until(|| redis.run::<usize>(&["ZCOUNT", &after, "0", "+inf"]) == 3).await;
}

#[tokio::test]
async fn a_counter_that_redis_lost_grants_nothing_at_once() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let [first, second] = fleet.pair(&quota(6, 2)).await;
    let key = count_from_now(&fleet, &first).await;
    assert_eq!(ask_cold(&first, SUPPORT, 1..4).await, 3);

    let _: i64 = fleet.redis.run(&["DEL", &key]);

    assert_eq!(ask_cold(&second, SUPPORT, 4..6).await, 0);
    assert_eq!(fleet.upstream().requests(), 3);
}

#[tokio::test]
async fn a_counter_of_another_kind_hangs_nobody_and_spends_nothing() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let gateway = fleet.gateway(&quota(60, 2)).await;
    let key = calls_key(&fleet.redis, &gateway, ACME_TOKEN).await;
    let _: String = fleet.redis.run(&["SET", &key, "spoilt"]);

    assert_eq!(ask_cold(&gateway, SUPPORT, 1..4).await, 0);
    assert_eq!(fleet.upstream().requests(), 0);

    let _: i64 = fleet.redis.run(&["DEL", &key]);
    count_from_now(&fleet, &gateway).await;
    until(|| fleet.upstream().requests() > 0).await;
}

#[tokio::test]
async fn what_the_upstream_asked_to_wait_is_told_to_a_redis_that_lost_it() {
    let Some(mut fleet) = Fleet::start().await else {
        return;
    };
    let [first, second] = fleet.pair(&quota(60, 2)).await;
    let key = count_from_now(&fleet, &first).await;
    let spent = Scripted::new(429, "no").header("retry-after", "1000");
    fleet.upstream().script("SPENT", vec![spent]);
    let told = first.tasks("SPENT", "").await;
    told.assert_error("upstream_quota_exhausted");
    let held = |fleet: &Fleet| -> Option<f64> { fleet.redis.run(&["ZSCORE", &key, "hold"]) };
    until(|| held(&fleet).is_some()).await;

    fleet.redis.kill();
    fleet.redis.restart();

    until(|| held(&fleet).is_some()).await;
    wait_until_up(&second, true).await;
    // The first refused call tells it, once all have had the time to report theirs.
    pass(Duration::from_secs(3)).await;
    let wait = patiently("the hold", async {
        loop {
            let refused = second.tasks(ARCHIVE, "").await;
            refused.assert_error("upstream_quota_exhausted");
            let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
            if wait > 3 {
                return wait;
            }
        }
    })
    .await;
    assert!((900..=1000).contains(&wait), "{wait}");
    assert_eq!(fleet.upstream().requests(), 1);
}

/// A client that may ask `burst` times, and is given nothing back while a test runs.
fn limited(burst: u32) -> String {
    let limit = format!("rate_limit = {{ per_second = 0.0001, burst = {burst} }}");
    client("limited", LIMITED, &format!("spaces = [\"*\"]\n{limit}"))
}

async fn ask_limited(gateway: &Gateway) -> Answer {
    gateway.tasks(SUPPORT, "").key(LIMITED).await
}

#[tokio::test]
async fn replicas_share_a_clients_limit_but_for_what_is_under_way() {
    const BURST: usize = 20;
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let pair = fleet.pair(&limited(BURST as u32)).await;
    let mut allowed = 0;
    for _ in 0..BURST {
        for gateway in &pair {
            allowed += usize::from(ask_limited(gateway).await.status == 200);
        }
    }
    // Each may let one pass before it knows of the other's.
    assert!((BURST..=BURST + 2).contains(&allowed), "{allowed}");
    for gateway in &pair {
        let refused = ask_limited(gateway).await;
        refused.assert_error("rate_limited");
        let told = refused.header("ratelimit").unwrap();
        assert!(told.starts_with("\"default\";r=0;"), "{told}");
        // What was overdrawn is paid back, as far as this one knows of it.
        let wait: usize = refused.header("retry-after").unwrap().parse().unwrap();
        let owed = allowed - BURST + 1;
        assert!((9_900..=owed * 10_000).contains(&wait), "{wait}");
    }
}

#[tokio::test]
async fn a_limited_clients_hit_is_answered_although_redis_does_not_answer() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let gateway = fleet.gateway(&limited(40)).await;
    wait_until_up(&gateway, true).await;
    assert_eq!(ask_limited(&gateway).await.status, 200);
    fleet.redis.signal("-STOP");

    for left in [38, 37] {
        let hit = ask_limited(&gateway).await;
        assert_eq!(hit.cache_status(), "hit");
        let told = hit.header("ratelimit").unwrap();
        assert!(
            told.starts_with(&format!("\"default\";r={left};")),
            "{told}"
        );
        assert!(gateway.counts("gateway_redis_up 1"));
    }
    // Two are unanswered: the third waits until Redis goes on, or is lost.
    let third = gateway.tasks(SUPPORT, "").key(LIMITED).spawn();
    fleet.redis.signal("-CONT");
    assert_eq!(third.await.unwrap().status, 200);
}

#[tokio::test]
async fn without_redis_each_replica_limits_by_itself() {
    let Some(mut fleet) = Fleet::start().await else {
        return;
    };
    let [first, second] = fleet.pair(&limited(3)).await;
    for _ in 0..2 {
        ask_limited(&first).await;
    }
    fleet.redis.kill();
    for gateway in [&first, &second] {
        wait_until_up(gateway, false).await;
    }
    // What was spent here is spent; what was spent elsewhere nobody knows of.
    for (gateway, allowed) in [(&first, 1), (&second, 3)] {
        for _ in 0..allowed {
            assert_eq!(ask_limited(gateway).await.status, 200);
        }
        ask_limited(gateway).await.assert_error("rate_limited");
    }
}
