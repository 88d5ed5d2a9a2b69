//! A list that grows while it is read: pages of one generation fit together, and a reader can tell when they do not.

use std::collections::HashSet;

use serde_json::Value;
use unpod_gateway::simulator::world::{self, SUPPORT};

use crate::{
    answer::Answer,
    gateway::{Gateway, setup, start},
};

const PAGE_SIZE: u64 = 100;
const WALKS: u64 = 1000;

/// What a reader saw on one way through the pages.
struct Walk {
    generations: HashSet<String>,
    task_ids: Vec<String>,
    counts: HashSet<u64>,
}

impl Walk {
    fn is_of_one_generation(&self) -> bool {
        self.generations.len() == 1
    }
}

fn task_ids(page: &Value) -> impl Iterator<Item = String> {
    let tasks = page["data"].as_array().unwrap();
    tasks
        .iter()
        .map(|task| task["task_id"].as_str().unwrap().to_owned())
}

/// Reads page after page; before each, the list may grow.
async fn walk(gateway: &Gateway, mut may_grow: impl FnMut()) -> Walk {
    let mut walk = Walk {
        generations: HashSet::new(),
        task_ids: Vec::new(),
        counts: HashSet::new(),
    };
    for number in 1.. {
        may_grow();
        let query = format!("?page={number}&page_size={PAGE_SIZE}");
        let answer = gateway.tasks(SUPPORT, &query).await;
        let page = answer.json();
        let count = page["count"].as_u64().unwrap();
        walk.generations
            .insert(answer.header("x-list-generation").unwrap().to_owned());
        walk.counts.insert(count);
        walk.task_ids.extend(task_ids(&page));
        if number * PAGE_SIZE >= count {
            break;
        }
    }
    walk
}

#[tokio::test]
async fn a_walk_within_one_generation_sees_every_task_once() {
    // Short enough that a walk meets stored pages and new ones alike.
    let gateway = setup()
        .with("[cache]\nttl = '5ms'\nstale_while_revalidate = '0s'")
        .start()
        .await;
    let upstream = gateway.upstream();
    // The same moments each run: half the walks are crossed by one new task, before one of their first few pages.
    let mut state = 1_u64;
    let mut whole = 0;
    for _ in 0..WALKS {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let mut until_new_task = state >> 61;
        let walk = walk(&gateway, || {
            if until_new_task == 1 {
                upstream.add_task(SUPPORT);
            }
            until_new_task = until_new_task.saturating_sub(1);
        })
        .await;
        if walk.is_of_one_generation() {
            whole += 1;
            let distinct: HashSet<_> = walk.task_ids.iter().collect();
            assert_eq!(distinct.len(), walk.task_ids.len(), "a task stands twice");
            assert_eq!(walk.counts.len(), 1);
            assert_eq!(
                walk.counts,
                HashSet::from([walk.task_ids.len() as u64]),
                "a gap"
            );
        } else {
            assert!(
                walk.counts.len() > 1,
                "the list moved, and the answer said so"
            );
        }
    }
    println!("{whole} of {WALKS} walks saw one generation");
    assert!(whole > 0 && whole < WALKS, "{whole} walks were whole");
}

#[tokio::test]
async fn a_task_that_merely_changed_moves_nothing() {
    let gateway = setup()
        .with("[cache]\nttl = '0s'\nstale_while_revalidate = '0s'")
        .start()
        .await;
    let upstream = gateway.upstream();
    let before = gateway.tasks(SUPPORT, "?page=2").await;
    let first = upstream.task_ids(SUPPORT)[0].clone();

    upstream.set_status(SUPPORT, &first, "completed");
    gateway.tasks(SUPPORT, "?page=1").await;
    let after = gateway.tasks(SUPPORT, "?page=2").await;

    assert_eq!(
        before.header("x-list-generation"),
        after.header("x-list-generation")
    );
}

#[tokio::test]
async fn when_the_list_moves_the_other_pages_are_asked_for_again() {
    let gateway = start().await;
    let upstream = gateway.upstream();
    gateway.tasks(SUPPORT, "?page=1").await;
    gateway.tasks(SUPPORT, "?page=2").await;
    upstream.add_task(SUPPORT);
    gateway.tasks(SUPPORT, "?page=3").await;

    let second = gateway.tasks(SUPPORT, "?page=2").await;

    assert_eq!(second.cache_status(), "fwd=stale; fwd-status=200; stored");
    second.assert_page(&upstream.expect_page(SUPPORT, 2, 20));
}

#[tokio::test]
async fn an_overtaken_page_stands_in_for_an_error() {
    let mut gateway = start().await;
    let old = gateway.tasks(SUPPORT, "?page=2").await;
    gateway.upstream().add_task(SUPPORT);
    gateway.tasks(SUPPORT, "?page=1").await;
    gateway.stop_upstream().await;

    let stale = gateway.tasks(SUPPORT, "?page=2").await;

    assert!(stale.cache_status().contains("detail=stale-if-error"));
    stale.assert_page(&old.body);
}

#[tokio::test]
async fn a_page_whose_tasks_are_all_settled_lives_longer() {
    let gateway = setup().with("[cache]\nsettled_ttl = '10m'").start().await;
    let ttl = |answer: &Answer| {
        let status = answer.header("cache-status").unwrap();
        let (_, ttl) = status.split_once("ttl=").unwrap();
        ttl.parse::<i64>().unwrap()
    };
    for (space, page, settled) in [
        (world::ARCHIVE, 2, true),
        (world::ARCHIVE, 1, false),
        (SUPPORT, 2, false),
    ] {
        let query = format!("?page={page}");
        gateway.tasks(space, &query).await;
        let hit = gateway.tasks(space, &query).await;
        assert_eq!(
            ttl(&hit) > 500,
            settled,
            "page {page}: {}",
            hit.cache_status()
        );
    }
}

#[tokio::test]
async fn another_page_size_is_cut_from_what_is_stored() {
    let gateway = setup().with("[cache]\nassemble_pages = true").start().await;
    let upstream = gateway.upstream();
    for page in 1..=3 {
        gateway
            .tasks(SUPPORT, &format!("?page={page}&page_size=20"))
            .await;
    }
    for (page, size) in [(1, 10), (2, 10), (6, 10), (1, 100), (2, 50), (1, 57)] {
        for _ in 0..2 {
            let cut = gateway
                .tasks(SUPPORT, &format!("?page={page}&page_size={size}"))
                .await;
            cut.assert_page(&upstream.expect_page(SUPPORT, page, size));
            assert!(
                cut.cache_status().ends_with("detail=assembled"),
                "{}",
                cut.cache_status()
            );
            assert!(cut.header("age").is_some());
        }
    }
    assert_eq!(upstream.requests(), 3);

    gateway.tasks(SUPPORT, "?page=4&page_size=20").await;
    assert_eq!(upstream.requests(), 4, "a page past the end is asked for");
}
