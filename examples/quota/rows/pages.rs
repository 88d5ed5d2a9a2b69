//! How old what readers see is, and what a page costs the others.

use std::{collections::HashMap, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};
use unpod_gateway::cache::http_semantics::RequestDirectives;

use super::Setting;
use crate::{
    figures::{Clairvoyant, Figure, Sample, Wanted, share},
    model::{Behavior, Fault, Name},
    readers::{crawl, first_pages, poll, read_at_once, read_by_zipf, zipf},
    world::{Read, World},
};

const MINUTE: Duration = Duration::from_secs(60);
const EVERY: Duration = Duration::from_secs(2);
/// Until the first fills are over, and what readers ask for is known.
const WARM_UP: Duration = Duration::from_secs(20 * 60);
/// Where a crawler's lists begin.
const CRAWLED: usize = 10_000;
/// A page that is not among the first.
const OTHER: Name = Name { space: 0, page: 2 };

/// How old readers see pages that they read by Zipf.
pub(crate) struct Ages {
    pub(crate) world: World,
    pub(crate) sample: Sample,
    /// The share of the quota that was used.
    pub(crate) used: f64,
}

/// Reads `pages` pages by Zipf, measured after `warm_up`.
pub(crate) async fn ages_after(
    warm_up: Duration,
    world: World,
    (quota, pages): (u32, usize),
    setting: Setting,
) -> Ages {
    let measured = world.began + warm_up;
    let until = measured + setting.length;
    let names: Vec<_> = first_pages().take(pages).collect();
    let reads = read_by_zipf(&world, "reader", &names, 2.0, until, setting.seed).await;
    let calls = world.model.calls_since(measured).len() as f64;
    let allowed = f64::from(quota) * setting.length.as_secs_f64() / 60.0;
    Ages {
        world,
        sample: Sample::ages(&reads, measured),
        used: calls / allowed,
    }
}

async fn ages(world: World, of: (u32, usize), setting: Setting) -> Ages {
    ages_after(WARM_UP, world, of, setting).await
}

pub(crate) async fn age(setting: Setting) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (quota, pages) in [(5, 20), (60, 200)] {
        let world = World::new(quota, setting.seed);
        let Ages {
            world,
            sample,
            used,
        } = ages(world, (quota, pages), setting).await;
        let ideal = Clairvoyant::new(&zipf(pages), quota);
        let what = |what| format!("{what}, {pages} pages at {quota}");
        let most = |of: f64| Wanted::AtMost(of * 1.1);
        figures.extend([
            Figure::new(what("mean age s"), sample.mean(), most(ideal.mean())).beside(ideal.mean()),
            Figure::new(what("p99 age s"), sample.percentile(99), Wanted::Any)
                .beside(ideal.percentile(99)),
            Figure::new(what("share of calls used"), used, Wanted::AtLeast(0.85)),
            Figure::quota(&world, quota),
        ]);
    }
    figures
}

pub(crate) async fn floor(setting: Setting) -> Vec<Figure> {
    let behavior = Behavior {
        quota: 60,
        ..Behavior::default()
    };
    let world = World::with_cache(60, "ttl_min = '5s'", behavior, setting.seed);
    let Ages { world, sample, .. } = ages(world, (60, 2), setting).await;
    let ideal = Clairvoyant::new(&zipf(2), 60).mean();
    vec![
        Figure::new("mean age s", sample.mean(), Wanted::AtMost(5.0)).beside(ideal),
        Figure::quota(&world, 60),
    ]
}

pub(crate) async fn stale(setting: Setting) -> Vec<Figure> {
    let mut figures = Vec::new();
    for quota in [5, 60] {
        let world = World::new(quota, setting.seed);
        // A crawler at 60 leaves many pages behind, which all take part.
        let until = world.began + 2 * MINUTE + setting.length * 5 / quota.max(20);
        let poller = poll(
            &world,
            "poller",
            OTHER,
            RequestDirectives::default(),
            EVERY,
            until,
        );
        let crawler = crawl(&world, "crawler", CRAWLED, 1, until);
        let (reads, _) = tokio::join!(poller, crawler);
        let by_lifetime = |read: &Read| {
            let page = read.outcome.ok()?;
            Some(page.age.as_secs_f64() / page.lifetime.as_secs_f64())
        };
        let ratios = Sample::new(reads.iter().filter_map(by_lifetime));
        figures.extend([
            Figure::new(
                format!("oldest age over lifetime at {quota}"),
                ratios.most(),
                Wanted::AtMost(2.0),
            ),
            Figure::new(
                format!("oldest age s at {quota}"),
                Sample::ages(&reads, world.began).most(),
                Wanted::Any,
            ),
            Figure::quota(&world, quota),
        ]);
    }
    figures
}

/// The p99 age of 19 pages, and the calls of all and for `bad`, which is polled beside them.
async fn beside_a_bad_page(
    bad: Name,
    fault: Option<Fault>,
    setting: Setting,
) -> (World, f64, f64, f64) {
    let behavior = Behavior {
        quota: 5,
        faults: fault
            .map(|fault| (bad, fault))
            .into_iter()
            .collect::<HashMap<_, _>>(),
        ..Behavior::default()
    };
    let world = World::behaving(5, behavior, setting.seed);
    let measured = world.began + WARM_UP / 2;
    let until = measured + setting.length * 2;
    let names = first_pages().take(19).collect::<Vec<_>>();
    let (reads, _) = tokio::join!(
        read_by_zipf(&world, "reader", &names, 1.0, until, setting.seed),
        poll(
            &world,
            "unlucky",
            bad,
            RequestDirectives::default(),
            EVERY,
            until
        ),
    );
    let calls = world.model.calls_since(measured);
    let for_bad = calls.iter().filter(|call| call.name == bad).count();
    let p99 = Sample::ages(&reads, measured).percentile(99);
    (world, p99, calls.len() as f64, for_bad as f64)
}

pub(crate) async fn failing(setting: Setting) -> Vec<Figure> {
    let alone = Name { space: 99, page: 1 };
    let (_, control, ..) = beside_a_bad_page(OTHER, None, setting).await;
    let mut figures = vec![Figure::new("p99 age s if it works", control, Wanted::Any)];
    for fault in Fault::ALL {
        // What is refused for a space drops all its pages, and a 500 fails the pages that are fetched with its own.
        let bad = match fault {
            Fault::NotFound | Fault::Denied | Fault::Status500 => alone,
            _ => OTHER,
        };
        let (world, p99, calls, for_bad) = beside_a_bad_page(bad, Some(fault), setting).await;
        let what = |what| format!("{what}, {}", fault.as_str());
        let minutes = setting.length.as_secs_f64() / 30.0;
        figures.extend([
            Figure::new(
                what("p99 age s of the others"),
                p99,
                Wanted::AtMost(control * 1.2),
            ),
            Figure::new(
                what("calls a minute for it"),
                for_bad / minutes,
                // A little more: where nobody else waits it is asked for more often.
                Wanted::AtMost((calls / minutes / 10.0).max(1.0) * 1.1),
            ),
            Figure::quota(&world, 5),
        ]);
    }
    figures
}

pub(crate) async fn forced(setting: Setting) -> Vec<Figure> {
    let control = ages(World::new(5, setting.seed), (5, 20), setting).await;
    let without = control.sample.mean();
    let world = World::new(5, setting.seed);
    let measured = world.began + WARM_UP;
    let until = measured + setting.length;
    let no_cache = RequestDirectives {
        no_cache: true,
        ..RequestDirectives::default()
    };
    let (_, others) = tokio::join!(
        poll(&world, "forcer", OTHER, no_cache, EVERY, until),
        ages(world.clone(), (5, 20), setting)
    );
    let calls = world.model.calls_since(measured);
    let share_of_calls = share(&calls, |call| &*call.cause == "forcer");
    // The refreshes of all others are guaranteed the other half.
    let most = Wanted::AtMost(without * 2.0);
    vec![
        Figure::new("its share of calls", share_of_calls, Wanted::AtMost(0.5)),
        Figure::new("mean age s of the others", others.sample.mean(), most),
        Figure::quota(&world, 5),
    ]
}

pub(crate) async fn idle(setting: Setting) -> Vec<Figure> {
    let world = World::new(5, setting.seed);
    let names = first_pages().take(20).collect::<Vec<_>>();
    read_by_zipf(
        &world,
        "reader",
        &names,
        2.0,
        world.began + WARM_UP,
        setting.seed,
    )
    .await;
    sleep(Duration::from_secs(90 * 60)).await;
    let back = Instant::now();
    let reads = read_at_once(&world, "reader", &names).await;
    let errors = reads.iter().filter(|read| read.outcome.is_err()).count();
    sleep_until(back + MINUTE).await;
    vec![
        Figure::new(
            "errors among 20 first answers",
            errors as f64,
            Wanted::AtMost(0.0),
        ),
        Figure::quota(&world, 5),
    ]
}

pub(crate) async fn hanging(setting: Setting) -> Vec<Figure> {
    let world = World::new(5, setting.seed);
    let until = world.began + WARM_UP + 30 * MINUTE;
    let names = first_pages().take(20).collect::<Vec<_>>();
    let (reads, _) = tokio::join!(
        read_by_zipf(&world, "reader", &names, 2.0, until, setting.seed),
        async {
            sleep(WARM_UP).await;
            world.model.change(|behavior| behavior.hangs = true);
        }
    );
    let reads: Vec<_> = reads
        .into_iter()
        .filter(|read| read.asked >= world.began + WARM_UP)
        .collect();
    let calls = world.model.calls_since(world.began + WARM_UP).len() as f64;
    let slow = |read: &Read| read.waited > Duration::from_secs(5);
    vec![
        Figure::new(
            "share of requests over 5 s",
            share(&reads, slow),
            Wanted::AtMost(0.0),
        ),
        Figure::new(
            "errors",
            share(&reads, |read| read.outcome.is_err()),
            Wanted::AtMost(0.0),
        ),
        Figure::new("calls a minute", calls / 30.0, Wanted::Any),
        Figure::quota(&world, 5),
    ]
}

/// Calls a minute for the list that may flap, and the mean age of the others.
async fn beside_a_list(flaps: bool, setting: Setting) -> (f64, f64) {
    let behavior = Behavior {
        quota: 60,
        flapping: flaps.then_some(99).into_iter().collect(),
        ..Behavior::default()
    };
    let world = World::behaving(60, behavior, setting.seed);
    let measured = world.began + 5 * MINUTE;
    let until = measured + setting.length / 2;
    let list: Vec<_> = [1, 2, 3].map(|page| Name { space: 99, page }).into();
    let others = first_pages().take(10).collect::<Vec<_>>();
    let (_, reads) = tokio::join!(
        read_by_zipf(&world, "of the list", &list, 2.0, until, setting.seed),
        read_by_zipf(&world, "reader", &others, 2.0, until, setting.seed + 1),
    );
    let calls = world.model.calls_since(measured);
    let of_list = calls.iter().filter(|call| call.name.space == 99).count();
    let a_minute = of_list as f64 * 120.0 / setting.length.as_secs_f64();
    (a_minute, Sample::ages(&reads, measured).mean())
}

pub(crate) async fn flapping(setting: Setting) -> Vec<Figure> {
    let (steady_calls, steady_age) = beside_a_list(false, setting).await;
    let (calls, age) = beside_a_list(true, setting).await;
    vec![
        Figure::new(
            "calls a minute for it if it does not",
            steady_calls,
            Wanted::Any,
        ),
        Figure::new(
            "calls a minute for it",
            calls,
            Wanted::AtMost(steady_calls * 1.5),
        ),
        Figure::new(
            "mean age s of the others",
            age,
            Wanted::AtMost(steady_age * 1.1),
        ),
    ]
}
