//! A list that grows while it is read: pages of one generation fit together, and a reader can tell when they do not.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};
use unpod_gateway::simulator::{
    Scripted,
    world::{self, SUPPORT},
};

use crate::{
    answer::Answer,
    gateway::{Gateway, REFRESHER, setup, start},
};

const PAGE_SIZE: u64 = 20;
const WALKS: u64 = 250;

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
    let settled = "[cache]\nsettled_ttl = '10m'\nsettled_after = '0s'";
    let gateway = setup().with(settled).start().await;
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
    // From several pages: none is fetched with the rows around it.
    let exact = "[upstream]\nfill_size = 0\n[cache]\nassemble_pages = true";
    let gateway = setup().with(exact).start().await;
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

/// What was seen of one state: its count, and the tasks by their places.
type Seen = HashMap<String, (u64, HashMap<u64, String>)>;

/// Notes which task stands where, and that nothing contradicts what was seen of the same state.
fn note(seen: &mut Seen, answer: &Answer, page: u64, size: u64) {
    let name = answer.header("x-list-generation").unwrap().to_owned();
    let body = answer.json();
    let count = body["count"].as_u64().unwrap();
    let (known_count, places) = seen.entry(name).or_insert((count, HashMap::new()));
    assert_eq!(*known_count, count);
    for (place, id) in ((page - 1) * size..).zip(task_ids(&body)) {
        let known = places.entry(place).or_insert_with(|| id.clone());
        assert_eq!(*known, id, "place {place} of {count}");
    }
}

#[tokio::test]
async fn whoever_reads_while_the_list_grows_sees_one_state_under_each_name() {
    const READERS: u64 = 6;
    const READS: u64 = 60;
    let gateway = setup()
        .with("[cache]\nttl = '5ms'\nstale_while_revalidate = '0s'\nassemble_pages = true")
        .start()
        .await;
    let read = |reader: u64| {
        let gateway = &gateway;
        async move {
            let mut answers = Vec::new();
            for number in 0..READS {
                // Other pages and sizes for each, in an order of its own; together they meet fills under way and moves.
                let mixed = (reader * READS + number).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
                let (size, page) = [(20, mixed % 3 + 1), (10, mixed % 6 + 1)]
                    [usize::from(mixed.is_multiple_of(5))];
                if reader == 0 && number.is_multiple_of(3) {
                    gateway.upstream().add_task(SUPPORT);
                }
                let query = format!("?page={page}&page_size={size}");
                answers.push((gateway.tasks(SUPPORT, &query).await, page, size));
            }
            answers
        }
    };

    let answers = futures_util::future::join_all((0..READERS).map(read)).await;

    let mut seen = Seen::new();
    for (answer, page, size) in answers.iter().flatten() {
        note(&mut seen, answer, *page, *size);
    }
    assert!(seen.len() > 1, "the list moved");
}

fn scripted(count: u64, ids: impl Iterator<Item = u64>) -> Scripted {
    let data: Vec<_> = ids.map(|id| json!({"task_id": id.to_string()})).collect();
    let page = json!({"count": count, "status_code": 200, "message": "Tasks Fetched Successfully", "data": data});
    Scripted::json(200, page.to_string())
}

async fn refresh(gateway: &Gateway, query: &str) -> Answer {
    let asked = gateway.tasks(SUPPORT, query).key(REFRESHER);
    asked.cache_control("no-cache").await
}

#[tokio::test]
async fn a_count_that_alternates_moves_the_list_once_and_costs_no_more_calls() {
    const PAGES: u64 = 10;
    const ROUNDS: u64 = 10;
    let gateway = start().await;
    let upstream = gateway.upstream();
    // Two servers behind the upstream, of which one lags by a task.
    let answers = (0..100).map(|call| {
        let newest = 200 + call % 2;
        scripted(newest, (newest - 20..newest).rev())
    });
    upstream.script(SUPPORT, answers.collect());
    let mut names = HashSet::new();
    for round in 0..ROUNDS {
        for page in 1..=PAGES {
            let query = format!("?page={page}");
            // Page 1 is asked for again and again, and each answer contradicts the one before.
            let answer = match page {
                1 => refresh(&gateway, &query).await,
                _ => gateway.tasks(SUPPORT, &query).await,
            };
            if round > 0 {
                names.insert(answer.header("x-list-generation").unwrap().to_owned());
            }
        }
    }
    let calls = upstream.requests() - ROUNDS;
    assert!(
        calls <= PAGES + PAGES / 2,
        "{calls} calls for {PAGES} pages"
    );
    assert_eq!(names.len(), 1, "{names:?}");
}

#[tokio::test]
async fn rows_of_before_with_a_count_one_higher_move_the_list_once() {
    let gateway = start().await;
    let upstream = gateway.upstream();
    let (before, after) = (|| (181..=200).rev(), || (182..=201).rev());
    upstream.script(
        SUPPORT,
        vec![
            scripted(200, before()),
            scripted(200, (161..=180).rev()),
            scripted(201, before()),
            scripted(201, (162..=181).rev()),
            scripted(201, after()),
        ],
    );
    gateway.tasks(SUPPORT, "?page=1").await;
    gateway.tasks(SUPPORT, "?page=2").await;
    let between = refresh(&gateway, "?page=1").await;
    let second = gateway.tasks(SUPPORT, "?page=2").await;
    let first = gateway.tasks(SUPPORT, "?page=1").await;
    assert_eq!(
        upstream.requests(),
        5,
        "what was read too early is read again"
    );

    for (query, stored) in [("?page=1", &first), ("?page=2", &second)] {
        let again = gateway.tasks(SUPPORT, query).await;
        assert_eq!(again.cache_status(), "hit");
        let name = |answer: &Answer| answer.header("x-list-generation").unwrap().to_owned();
        assert_eq!(name(&again), name(stored));
        assert_eq!(name(&again), name(&first));
        assert_ne!(name(&again), name(&between));
    }
}

#[tokio::test]
async fn gateways_before_one_upstream_agree_on_names_until_one_is_purged() {
    let first = start().await;
    let url = first.upstream_url();
    let second = setup().start_before(&url).await;
    let name = async |gateway: &Gateway, query: &str| {
        let answer = refresh(gateway, query).await;
        answer.header("x-list-generation").unwrap().to_owned()
    };
    let before = name(&first, "?page=1").await;
    assert_eq!(name(&second, "?page=2").await, before);
    first.upstream().add_task(SUPPORT);
    let after = name(&first, "?page=2").await;
    assert_ne!(after, before);
    assert_eq!(name(&second, "?page=1").await, after);

    let purge = format!("{}/cache/spaces/{SUPPORT}", first.admin_url());
    first.http().delete(purge).send().await.unwrap();
    let purged = name(&first, "?page=1").await;
    assert!(purged != after && purged != before);
    assert_eq!(name(&second, "?page=1").await, after);
}
