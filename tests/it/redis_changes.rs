//! The change feed among replicas that share a real Redis: one watches, all serve, and any of them goes on from any cursor.

use std::time::Duration;

use serde_json::Value;
use unpod_gateway::simulator::world::{ARCHIVE, SUPPORT};

use crate::{
    answer::Answer,
    changes::{Reader, cursor, events, pull, refresh},
    gateway::{Gateway, READER, REFRESHER, pass, patiently, until},
    operators,
    redis_quota::count_from_now,
    redis_server::{Fleet, wait_until_up},
};

/// Pulls from `after` until something is told.
async fn pull_until_told(gateway: &Gateway, after: &str) -> Answer {
    patiently("an event", async {
        loop {
            let answer = pull(gateway, &format!("?after={after}")).await;
            if !events(&answer).is_empty() {
                return answer;
            }
        }
    })
    .await
}

async fn now(gateway: &Gateway) -> String {
    cursor(&pull(gateway, "?after=now").await)
}

async fn wait_until_watching(gateway: &Gateway) {
    until(|| gateway.counts("gateway_changes_spaces 1")).await;
}

async fn purge(gateway: &Gateway) {
    let target = format!("/cache/spaces/{SUPPORT}");
    assert_eq!(operators::ask(gateway, "DELETE", &target).await.0, 204);
}

/// A stream of each, which has told how the space stands.
async fn streams(gateways: &[Gateway]) -> Vec<Reader> {
    let mut readers = Vec::new();
    for gateway in gateways {
        let mut reader = Reader::open(gateway, "", READER).await;
        reader.event("space.synced").await;
        readers.push(reader);
    }
    readers
}

#[tokio::test]
async fn any_replica_goes_on_from_any_cursor_at_the_cost_of_one_watch() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let [first, second] = fleet.pair("").await;
    let third = fleet.gateway("").await;
    wait_until_up(&third, true).await;
    let began = now(&first).await;
    assert_eq!(now(&second).await, began);
    fleet.upstream().add_task(SUPPORT);
    let newest = fleet.upstream().task_ids(SUPPORT)[0].clone();
    refresh(&first).await;

    let told = pull_until_told(&second, &began).await;
    assert_eq!(events(&told)[0]["task_id"], newest.as_str());
    assert_eq!(
        events(&pull_until_told(&third, &began).await),
        events(&told)
    );
    let rest = pull(&third, &format!("?after={}", cursor(&told))).await;
    assert_eq!(events(&rest), Vec::<Value>::new());
    assert_eq!(fleet.upstream().requests(), 2);
    let spaces = |gateway: &Gateway| gateway.counts("gateway_changes_spaces 1");
    assert_eq!([&first, &second, &third].map(spaces), [true, false, false]);
}

#[tokio::test]
async fn streams_of_all_replicas_hear_of_a_change_as_it_is_seen() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let pair = fleet.pair("").await;
    let mut readers = streams(&pair).await;
    fleet.upstream().add_task(SUPPORT);
    refresh(&pair[0]).await;
    let mut told = Vec::new();
    for reader in &mut readers {
        told.push(reader.event("task.created").await);
        reader.event("space.synced").await;
    }
    assert_eq!(told[0], told[1], "the cursor, too");
    assert_eq!(fleet.upstream().requests(), 2);
}

#[tokio::test]
async fn another_replica_goes_on_where_one_that_is_cut_off_ended() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let (mut cable, [first, second]) = fleet.cable_pair().await;
    let task = fleet.upstream().task_ids(SUPPORT)[7].clone();
    let mut at = now(&first).await;
    let mut told = Vec::new();
    let states = ["hold", "pending", "completed", "hold"];
    for (round, state) in states.into_iter().enumerate() {
        let (watcher, other) = match round {
            0 | 1 => (&first, &second),
            _ => (&second, &second),
        };
        if round == 2 {
            cable.cut().await;
            // It keeps one who listens until it watches.
            let _listening = Reader::open(&second, "", READER).await;
            wait_until_watching(&second).await;
        }
        fleet.upstream().set_status(SUPPORT, &task, state);
        refresh(watcher).await;
        let answer = pull_until_told(other, &at).await;
        told.extend(
            events(&answer)
                .into_iter()
                .map(|event| event["status"].clone()),
        );
        at = cursor(&answer);
    }
    assert_eq!(told, states, "each once");
}

#[tokio::test]
async fn a_purge_resets_the_readers_of_every_replica_once() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let [first, second] = fleet.pair("").await;
    let old = now(&first).await;
    let mut reader = Reader::open(&second, "", READER).await;
    reader.event("space.synced").await;
    purge(&first).await;
    let (id, reset) = reader.event("space.reset").await;
    assert_eq!(reset["reason"], "purged");
    for gateway in [&first, &second] {
        let gone = pull(gateway, &format!("?after={old}")).await;
        gone.assert_error("cursor_gone");
        assert_eq!(gone.json()["data"]["reason"], "purged");
    }
    // The watch reads the list again by itself.
    let synced = loop {
        let block = reader.block().await.unwrap();
        assert!(!block.contains("space.reset"), "once: {block}");
        if block.contains("space.synced") {
            break block;
        }
    };
    let all = fleet.upstream().task_ids(SUPPORT).len();
    assert!(synced.contains(&format!("\"watched\":{all}")), "{synced}");
    fleet.upstream().add_task(SUPPORT);
    refresh(&first).await;
    reader.event("task.created").await;
    pull_until_told(&first, &id).await;
}

#[tokio::test]
async fn a_replica_that_starts_goes_on_where_all_before_it_have_ended() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let (mut cable, [before, _]) = fleet.cable_pair().await;
    let old = now(&before).await;
    cable.cut().await;
    fleet.upstream().add_task(SUPPORT);
    let newest = fleet.upstream().task_ids(SUPPORT)[0].clone();
    let after = fleet.gateway("").await;
    wait_until_up(&after, true).await;
    let _listening = Reader::open(&after, "", READER).await;
    wait_until_watching(&after).await;
    refresh(&after).await;
    let told = pull_until_told(&after, &old).await;
    assert_eq!(events(&told)[0]["task_id"], newest.as_str());
}

#[tokio::test]
async fn cursors_outlive_a_redis_that_lost_everything() {
    let Some(mut fleet) = Fleet::start().await else {
        return;
    };
    let pair = fleet.pair("").await;
    let old = now(&pair[0]).await;
    assert_eq!(now(&pair[1]).await, old);
    fleet.redis.kill();
    for gateway in &pair {
        wait_until_up(gateway, false).await;
    }
    fleet.redis.restart();
    for gateway in &pair {
        wait_until_up(gateway, true).await;
    }
    fleet.upstream().add_task(SUPPORT);
    let _reader = Reader::open(&pair[1], "", READER).await;
    until(|| !fleet.redis.keys("}:changes").is_empty()).await;
    for gateway in &pair {
        refresh(gateway).await;
    }
    for gateway in &pair {
        let told = pull_until_told(gateway, &old).await;
        assert_eq!(events(&told)[0]["type"], "task.created");
    }
}

#[tokio::test]
async fn without_redis_each_replica_goes_on_alone_and_with_it_together_again() {
    let Some(mut fleet) = Fleet::start().await else {
        return;
    };
    let [first, second] = fleet.pair("").await;
    let mut reader = Reader::open(&first, "", READER).await;
    reader.event("space.synced").await;
    fleet.redis.kill();
    let (_, delayed) = reader.event("space.delayed").await;
    assert_eq!(delayed["code"], "internal");
    wait_until_up(&second, false).await;
    let alone = now(&second).await;
    fleet.upstream().add_task(SUPPORT);
    refresh(&second).await;
    pull_until_told(&second, &alone).await;
    // After half a minute, the first goes on alone, too.
    pass(Duration::from_secs(30)).await;
    let (_, reset) = reader.event("space.reset").await;
    assert_eq!(reset["reason"], "restart");
    reader.event("task.created").await;

    fleet.redis.restart();
    wait_until_up(&first, true).await;
    wait_until_up(&second, true).await;
    // What is stored first wins.
    until(|| !fleet.redis.keys("}:changes").is_empty()).await;
    let shared = now(&first).await;
    assert_eq!(pull(&second, &format!("?after={shared}")).await.status, 200);
}

#[tokio::test]
async fn a_space_that_the_upstream_refuses_ends_the_streams_of_all_replicas() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let pair = fleet.pair("").await;
    let mut readers = streams(&pair).await;
    fleet.upstream().revoke_space(SUPPORT);
    let page = pair[0].tasks(SUPPORT, "?page_size=100").key(REFRESHER);
    let refused = page.cache_control("no-cache").await;
    refused.assert_error("space_access_denied");
    for reader in &mut readers {
        let (_, gone) = reader.event("space.gone").await;
        assert_eq!(gone["code"], "space_access_denied");
        assert_eq!(reader.block().await, None);
    }
}

#[tokio::test]
async fn what_is_no_feed_is_not_used_and_is_overwritten() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let [first, second] = fleet.pair("").await;
    let began = now(&first).await;
    let [key] = &fleet.redis.keys("}:changes")[..] else {
        panic!("one feed")
    };
    for bad in ["bad", "0123456789abcdef 9999999999999999 bad"] {
        let _: String = fleet.redis.run(&["SET", key, bad]);
        let asked = pull(&second, &format!("?after={began}")).spawn();
        fleet.upstream().add_task(SUPPORT);
        refresh(&first).await;
        let answer = patiently("the answer", asked).await.unwrap();
        assert_eq!(answer.status, 200, "{bad}");
        pull_until_told(&second, &began).await;
    }
}

#[tokio::test]
async fn all_replicas_share_the_interval_of_a_credential() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let quota = "[upstream]\nquota_per_minute = 60\n[changes]\nquota_share = 0.05\n";
    let [first, second] = fleet.pair(quota).await;
    count_from_now(&fleet, &first).await;
    let next = |answer: &Answer| answer.json()["next_poll_seconds"].as_u64().unwrap();
    for (gateway, space) in [(&first, SUPPORT), (&second, ARCHIVE)] {
        let path = format!("/spaces/{space}/changes?after=now");
        let watched = async { while gateway.get(&path).await.status != 200 {} };
        patiently("the first range", watched).await;
    }
    // One range of each of two spaces: every 40 seconds, at three calls a minute.
    until(|| {
        let [key] = &fleet.redis.keys("}:ranges")[..] else {
            return false;
        };
        fleet.redis.run::<usize>(&["ZCARD", key]) == 2
    })
    .await;
    let is_shared = || async {
        let asked = pull(&first, "?after=now&types=space.synced").await;
        next(&asked) > 20
    };
    refresh(&first).await;
    patiently("the interval", async { while !is_shared().await {} }).await;
}
