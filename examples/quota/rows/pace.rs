//! When calls are made, and who gets them.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Setting;
use crate::{
    figures::{Figure, Sample, Wanted, share},
    model::{Behavior, Name, Throttle},
    readers::{crawl, first_pages, read_at_once, read_in_the_end},
    world::{Read, World},
};

const MINUTE: Duration = Duration::from_secs(60);
/// Where a crawler's lists begin.
const CRAWLED: usize = 10_000;

pub(crate) async fn polite(setting: Setting) -> Vec<Figure> {
    let mut figures = Vec::new();
    for at_once in [1, 20] {
        let world = World::new(60, setting.seed);
        // A crawler leaves many pages behind, which cost time here.
        let until = world.began + 2 * MINUTE + setting.length / 4;
        let cold = async {
            sleep(2 * MINUTE).await;
            let mut reads = Vec::new();
            for page in first_pages() {
                if Instant::now() >= until {
                    break;
                }
                reads.push(world.read("polite", page).await);
                sleep(Duration::from_secs(10)).await;
            }
            reads
        };
        let crawler = crawl(&world, "crawler", CRAWLED, at_once, until);
        let (cold, _) = tokio::join!(cold, crawler);
        let waits = Sample::waits(&cold, world.began);
        let what = |what| format!("{what}, crawler {at_once} at once");
        figures.push(Figure::new(
            what("p50 wait s"),
            waits.percentile(50),
            Wanted::AtMost(1.5),
        ));
        figures.push(Figure::new(
            what("p99 wait s"),
            waits.percentile(99),
            Wanted::Any,
        ));
        figures.push(Figure::quota(&world, 60));
    }
    figures
}

pub(crate) async fn burst(setting: Setting) -> Vec<Figure> {
    let world = World::new(60, setting.seed);
    sleep(2 * MINUTE).await;
    let began = Instant::now();
    let reads = read_at_once(
        &world,
        "reader",
        &first_pages().take(60).collect::<Vec<_>>(),
    )
    .await;
    let served = |within: Duration| {
        let is_served = |read: &&Read| read.outcome.is_ok() && read.waited <= within;
        reads.iter().filter(is_served).count() as f64
    };
    let refused: Vec<_> = reads.iter().filter(|read| read.outcome.is_err()).collect();
    let at_once = |read: &&Read| read.waited <= Duration::from_millis(100);
    let back = refused.iter().map(|read| {
        let wait = read.outcome.err().and_then(|failure| failure.retry_after);
        let (world, at) = (&world, read.asked + wait.unwrap_or(MINUTE));
        async move {
            tokio::time::sleep_until(at).await;
            world.read("reader", read.name).await
        }
    });
    let back = futures_util::future::join_all(back).await;
    let told = refused
        .iter()
        .filter_map(|read| read.outcome.err()?.retry_after);
    let told = Sample::new(told.map(|wait| wait.as_secs_f64()));
    sleep(MINUTE.saturating_sub(began.elapsed())).await;
    vec![
        Figure::new(
            "served within 1 s",
            served(Duration::from_secs(1)),
            Wanted::AtLeast(10.0),
        ),
        Figure::new(
            "served within 7.8 s",
            served(Duration::from_millis(7800)),
            Wanted::AtLeast(17.0),
        ),
        Figure::new(
            "share of the others refused at once",
            share(&refused, at_once),
            Wanted::AtLeast(1.0),
        ),
        Figure::new("longest Retry-After s", told.most(), Wanted::AtMost(51.0)),
        Figure::new(
            "share served who come back then",
            share(&back, |read| read.outcome.is_ok()),
            Wanted::AtLeast(1.0),
        ),
        Figure::new(
            "longest wait s then",
            Sample::waits(&back, began).most(),
            Wanted::AtMost(1.5),
        ),
        Figure::quota(&world, 60),
    ]
}

pub(crate) async fn turns(setting: Setting) -> Vec<Figure> {
    let world = World::new(5, setting.seed);
    let until = world.began + 2 * MINUTE + setting.length;
    let poller = async {
        for page in first_pages() {
            if Instant::now() >= until {
                break;
            }
            read_in_the_end(&world, "poller", page, until).await;
        }
    };
    tokio::join!(poller, crawl(&world, "crawler", CRAWLED, 4, until));
    let calls = world.model.calls_since(world.began + 2 * MINUTE);
    let of_poller = share(&calls, |call| &*call.cause == "poller");
    let a_minute = calls.len() as f64 * 60.0 / setting.length.as_secs_f64();
    vec![
        Figure::new(
            "the poller's share of calls",
            of_poller,
            Wanted::Within(0.4, 0.6),
        ),
        Figure::new("calls a minute", a_minute, Wanted::AtLeast(4.5)),
        Figure::quota(&world, 5),
    ]
}

/// What the first minute of 200 cold pages at once costs.
async fn first_minute(behavior: Behavior, seed: u64) -> (f64, f64) {
    let world = World::behaving(0, behavior, seed);
    let pages = first_pages().take(200).collect::<Vec<_>>();
    let reads = read_at_once(&world, "reader", &pages);
    let _ = tokio::time::timeout(MINUTE, reads).await;
    tokio::time::sleep_until(world.began + MINUTE).await;
    let calls = world.model.calls_since(world.began);
    let refused = calls.iter().filter(|call| call.was_refused).count();
    (calls.len() as f64, refused as f64)
}

pub(crate) async fn learned(setting: Setting) -> Vec<Figure> {
    let behavior = Behavior {
        quota: 60,
        tells_limits: true,
        ..Behavior::default()
    };
    let (calls, refused) = first_minute(behavior, setting.seed).await;
    vec![
        Figure::new("calls in the first minute", calls, Wanted::AtMost(68.0)),
        Figure::new("429s among them", refused, Wanted::AtMost(8.0)),
    ]
}

pub(crate) async fn silent(setting: Setting) -> Vec<Figure> {
    let behavior = Behavior {
        quota: 60,
        ..Behavior::default()
    };
    let (calls, refused) = first_minute(behavior, setting.seed).await;
    vec![
        Figure::new("calls in the first minute", calls, Wanted::Any),
        Figure::new("429s among them", refused, Wanted::Any),
    ]
}

pub(crate) async fn hold(setting: Setting) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (throttle, named) in [
        (Throttle::RetryAfterZero, "Retry-After: 0"),
        (Throttle::PastDate, "a date that has passed"),
        (Throttle::Silent, "nothing"),
    ] {
        for quota in [0, 60] {
            let behavior = Behavior {
                refuses_all: true,
                throttle,
                ..Behavior::default()
            };
            let world = World::behaving(quota, behavior, setting.seed);
            let until = world.began + MINUTE;
            let reading = (0..20)
                .map(|space| read_in_the_end(&world, "reader", Name { space, page: 1 }, until));
            let _ = tokio::time::timeout(MINUTE, futures_util::future::join_all(reading)).await;
            let calls = world.model.calls_since(world.began).len() as f64;
            let what = format!("calls in a minute, {named}, quota_per_minute = {quota}");
            // Those that were under way when the first was refused, and then after 1, 2, 4, 8, 16 and 32 seconds.
            figures.push(Figure::new(what, calls, Wanted::AtMost(14.0)));
        }
    }
    figures
}
