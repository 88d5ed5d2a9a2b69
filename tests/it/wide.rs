//! Wide fills: a call fetches rows, and the pages that clients ask for are cut from them.

use std::collections::HashSet;

use unpod_gateway::simulator::world::{ARCHIVE, Count, LIVE, SUPPORT};

use crate::{
    answer::Answer,
    gateway::{Gateway, Setup, setup, start},
    operators,
};

/// As it comes, but for what keeps a call from being counted exactly.
fn wide() -> Setup {
    setup().with("[cache]\nassemble_pages = true")
}

async fn of(count: u64) -> Gateway {
    let gateway = wide().start().await;
    gateway.upstream().set_task_count(SUPPORT, count);
    gateway
}

async fn read(gateway: &Gateway, page: u64, size: u64) -> Answer {
    let query = format!("?page={page}&page_size={size}");
    gateway.tasks(SUPPORT, &query).await
}

/// Follows `Link` from the first page, which has `size` rows, to the last. Every page is what the upstream itself would send.
async fn walk(gateway: &Gateway, size: u64) -> Vec<Answer> {
    let upstream = gateway.upstream();
    let mut pages = Vec::new();
    for page in 1.. {
        let answer = read(gateway, page, size).await;
        assert_eq!(answer.status, 200, "page {page} of {size}");
        let has_next = answer.header("link").unwrap().contains(r#"rel="next""#);
        pages.push(answer);
        if !has_next {
            break;
        }
    }
    // By then nothing is limited any more.
    upstream.set_max_page_size(None);
    for (page, answer) in (1..).zip(&pages) {
        answer.assert_page(&upstream.expect_page(SUPPORT, page, size));
    }
    pages
}

fn ids(pages: &[Answer]) -> Vec<String> {
    let task = |task: &serde_json::Value| task["task_id"].as_str().unwrap().to_owned();
    let of_page = |page: &Answer| -> Vec<_> {
        let page = page.json();
        page["data"].as_array().unwrap().iter().map(task).collect()
    };
    pages.iter().flat_map(of_page).collect()
}

#[tokio::test]
async fn a_cold_walk_of_a_thousand_tasks_takes_eleven_calls() {
    let gateway = of(1000).await;
    let pages = walk(&gateway, 20).await;
    assert_eq!(pages.len(), 50);
    assert_eq!(ids(&pages), gateway.upstream().task_ids(SUPPORT));
    assert_eq!(gateway.upstream().requests(), 11);
    let told = |place: usize| pages[place].cache_status();
    assert_eq!(told(0), "fwd=uri-miss; fwd-status=200; stored");
    assert_eq!(told(1), "fwd=uri-miss; fwd-status=200; stored");
    assert!(told(2).ends_with("; detail=assembled"), "{}", told(2));
}

#[tokio::test]
async fn an_operator_is_told_the_range() {
    let gateway = of(100).await;
    let explained = async |page: u64| {
        let path = format!("/cache/explain?space={SUPPORT}&page={page}&page_size=20");
        let (_, told) = operators::ask(&gateway, "GET", &path).await;
        serde_json::from_str::<serde_json::Value>(&told).unwrap()
    };
    assert_eq!(explained(2).await.get("range"), None);
    read(&gateway, 1, 20).await;
    let told = explained(2).await;
    assert_eq!(told["verdict"], "fill", "{told}");
    assert_eq!(
        (&told["range"]["page"], &told["range"]["page_size"]),
        (&1.into(), &100.into())
    );
    assert!(told["range"]["stored"].is_null());
    read(&gateway, 2, 20).await;
    let told = explained(3).await;
    assert_eq!(told["verdict"], "assembled", "{told}");
    assert_eq!(told["range"]["stored"]["page_size"], 100);
}

#[tokio::test]
async fn without_wide_fills_each_page_is_a_call() {
    for off in [
        "[upstream]\nfill_size = 0\n[cache]\nassemble_pages = true",
        "[cache]\nassemble_pages = false",
        "[cache]\nassemble_pages = true\ncoherent_pages = false",
    ] {
        let gateway = setup().with(off).start().await;
        gateway.upstream().set_task_count(SUPPORT, 100);
        for page in 1..=5 {
            read(&gateway, page, 20).await;
        }
        assert_eq!(gateway.upstream().requests(), 5, "{off}");
    }
}

#[tokio::test]
async fn one_bad_task_fails_its_page_and_no_other() {
    let gateway = of(300).await;
    let upstream = gateway.upstream();
    let bad = upstream.task_ids(SUPPORT)[130].clone();
    upstream.poison_task(SUPPORT, &bad);
    for page in 1..=15 {
        let answer = read(&gateway, page, 20).await;
        if page == 7 {
            answer.assert_error("upstream_failed");
        } else {
            answer.assert_page(&upstream.expect_page(SUPPORT, page, 20));
        }
    }
    // Page 1; the first range; the second, and each of its five pages; the third.
    assert_eq!(upstream.requests(), 1 + 1 + (1 + 5) + 1);
}

#[tokio::test]
async fn whatever_the_upstream_gives_at_most_no_page_is_short() {
    for most in [50, 10] {
        for size in [100, 20, 7] {
            let gateway = of(257).await;
            gateway.upstream().set_max_page_size(Some(most));
            let pages = walk(&gateway, size).await;
            let case = format!("at most {most}, {size} asked for");
            assert_eq!(ids(&pages), gateway.upstream().task_ids(SUPPORT), "{case}");
        }
    }
}

#[tokio::test]
async fn a_page_past_the_end_is_empty_whatever_the_upstream_gives_at_most() {
    for (most, size, page) in [
        (10, 20, 4),
        (10, 20, 5),
        (10, 25, 4),
        (50, 60, 2),
        (50, 100, 2),
    ] {
        let gateway = of(57).await;
        let upstream = gateway.upstream();
        upstream.set_max_page_size(Some(most));
        read(&gateway, 1, size).await;
        let pages = [
            read(&gateway, page, size).await,
            read(&gateway, page, size).await,
        ];
        upstream.set_max_page_size(None);
        for answer in pages {
            answer.assert_page(&upstream.expect_page(SUPPORT, page, size));
            assert_eq!(ids(&[answer]).len(), 0, "{most} {size} {page}");
        }
    }
}

#[tokio::test]
async fn what_was_learned_of_two_lists_holds_for_all() {
    let gateway = wide().start().await;
    let upstream = gateway.upstream();
    upstream.set_max_page_size(Some(50));
    // The first call of each list is short; of a third one none is.
    for (space, calls) in [(SUPPORT, 2), (LIVE, 2), (ARCHIVE, 2)] {
        upstream.set_task_count(space, 400);
        let before = upstream.requests();
        let answer = gateway.tasks(space, "?page=1&page_size=100").await;
        assert_eq!(ids(&[answer]), upstream.task_ids(space)[..100]);
        assert_eq!(upstream.requests() - before, calls, "{space}");
    }
    assert!(!upstream.recorded().iter().any(|request| {
        request.target.contains(ARCHIVE) && request.target.contains("page_size=100")
    }));
}

#[tokio::test]
async fn a_newcomer_below_the_head_is_seen_by_the_count() {
    let gateway = setup()
        .with("[cache]\nassemble_pages = true\nttl = '0s'\nstale_while_revalidate = '0s'")
        .start()
        .await;
    let upstream = gateway.upstream();
    upstream.set_task_count(SUPPORT, 100);
    let before = read(&gateway, 1, 20).await;
    upstream.add_task_below(SUPPORT, 30);
    let after = read(&gateway, 1, 20).await;
    assert_eq!(ids(&[before]), ids(&[after]));
    let whole = walk(&gateway, 20).await;
    let seen = ids(&whole);
    assert_eq!(seen, upstream.task_ids(SUPPORT));
    assert_eq!(seen.iter().collect::<HashSet<_>>().len(), 101);
}

/// Reads pages that are always stale, and returns the calls that it took.
async fn calls_of(count: Count) -> u64 {
    let gateway = wide()
        .with("[cache]\nttl = '40ms'\nstale_while_revalidate = '0s'")
        .start()
        .await;
    let upstream = gateway.upstream();
    upstream.set_task_count(SUPPORT, 100);
    upstream.set_count(SUPPORT, count);
    for page in [1, 2, 3, 4, 5].repeat(6) {
        let answer = read(&gateway, page, 20).await;
        assert_eq!(answer.status, 200);
    }
    upstream.requests()
}

#[tokio::test]
async fn rows_of_before_move_the_list_once() {
    let gateway = start().await;
    let upstream = gateway.upstream();
    upstream.set_task_count(SUPPORT, 100);
    let generation = |answer: &Answer| answer.header("x-list-generation").unwrap().to_owned();
    let names = [
        generation(&gateway.tasks(SUPPORT, "?page=1&page_size=20").await),
        {
            upstream.set_count(SUPPORT, Count::Ahead(1));
            let between = gateway.tasks(SUPPORT, "?page=1&page_size=40").await;
            upstream.set_count(SUPPORT, Count::OfTheRows);
            upstream.add_task(SUPPORT);
            generation(&between)
        },
        generation(&gateway.tasks(SUPPORT, "?page=2&page_size=20").await),
        generation(&gateway.tasks(SUPPORT, "?page=1&page_size=40").await),
        generation(&gateway.tasks(SUPPORT, "?page=2&page_size=40").await),
    ];
    // The page of before is of neither state.
    assert_ne!(names[1], names[0]);
    assert_ne!(names[1], names[2]);
    assert_ne!(names[2], names[0]);
    assert_eq!(
        names[2..],
        [names[2].clone(), names[2].clone(), names[2].clone()]
    );
}

#[tokio::test]
async fn a_flapping_count_costs_no_more_than_half_as_much_again() {
    let (steady, flapping) = (
        calls_of(Count::OfTheRows).await,
        calls_of(Count::Flapping).await,
    );
    println!("{steady} calls steady, {flapping} flapping");
    assert!(2 * flapping <= 3 * steady + 2, "{flapping} of {steady}");
}
