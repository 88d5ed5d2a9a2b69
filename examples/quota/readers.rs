//! Clients as small loops: each asks, waits as it is told, and notes what it got.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use unpod_gateway::cache::http_semantics::RequestDirectives;

use crate::{
    model::Name,
    world::{Read, World},
};

/// How long a client waits that is refused without a `Retry-After`.
const PAUSE: Duration = Duration::from_secs(1);
/// Pages of each list.
const PAGES: usize = 20;

/// First pages, each of another list.
pub(crate) fn first_pages() -> impl Iterator<Item = Name> {
    (0..).map(|space| Name { space, page: 1 })
}

/// How often each of `count` pages is read: the second half as often as the first, the third a third.
pub(crate) fn zipf(count: usize) -> Vec<f64> {
    (1..=count).map(|rank| 1.0 / rank as f64).collect()
}

/// Reads `names` until then at random moments, `per_second` on average, each as often as [`zipf`] says.
pub(crate) async fn read_by_zipf(
    world: &World,
    client: &'static str,
    names: &[Name],
    per_second: f64,
    until: Instant,
    seed: u64,
) -> Vec<Read> {
    let mut random = fastrand::Rng::with_seed(seed);
    let cumulated: Vec<f64> = zipf(names.len())
        .into_iter()
        .scan(0.0, |sum, rate| {
            *sum += rate;
            Some(*sum)
        })
        .collect();
    let total = cumulated.last().copied().unwrap_or_default();
    let mut reading = JoinSet::new();
    loop {
        let pause = -(1.0 - random.f64()).ln() / per_second;
        sleep(Duration::from_secs_f64(pause)).await;
        if Instant::now() >= until {
            return reading.join_all().await;
        }
        let drawn = random.f64() * total;
        let name = names[cumulated.partition_point(|sum| *sum < drawn)];
        let world = world.clone();
        reading.spawn(async move { world.read(client, name).await });
    }
}

/// Reads one page at `every` interval until then, whether or not the read before has ended.
pub(crate) async fn poll(
    world: &World,
    client: &'static str,
    name: Name,
    directives: RequestDirectives,
    every: Duration,
    until: Instant,
) -> Vec<Read> {
    let mut reading = JoinSet::new();
    let mut next = Instant::now();
    while next < until {
        let world = world.clone();
        reading.spawn(async move { world.read_with(client, name, directives).await });
        next += every;
        sleep_until(next).await;
    }
    reading.join_all().await
}

/// Reads all pages from the list of `first_space` on, each once, `at_once` at a time, until then. A page that is refused is asked for
/// again when it may be.
pub(crate) async fn crawl(
    world: &World,
    client: &'static str,
    first_space: usize,
    at_once: usize,
    until: Instant,
) -> Vec<Read> {
    let next = Arc::new(Mutex::new(0));
    let mut crawling = JoinSet::new();
    for _ in 0..at_once {
        let (world, next) = (world.clone(), next.clone());
        crawling.spawn(async move {
            let mut reads = Vec::new();
            while Instant::now() < until {
                let index = {
                    let mut next = next.lock();
                    *next += 1;
                    *next - 1
                };
                let page = u32::try_from(index % PAGES + 1).unwrap_or(1);
                let space = first_space + index / PAGES;
                reads.extend(read_in_the_end(&world, client, Name { space, page }, until).await);
            }
            reads
        });
    }
    crawling.join_all().await.into_iter().flatten().collect()
}

/// Asks for a page until it is there.
pub(crate) async fn read_in_the_end(
    world: &World,
    client: &str,
    name: Name,
    until: Instant,
) -> Vec<Read> {
    let mut reads = Vec::new();
    while Instant::now() < until {
        let read = world.read(client, name).await;
        let outcome = read.outcome;
        reads.push(read);
        let Err(failure) = outcome else {
            break;
        };
        sleep(failure.retry_after.unwrap_or(PAUSE)).await;
    }
    reads
}

/// Reads all of `names` at the same moment.
pub(crate) async fn read_at_once(world: &World, client: &'static str, names: &[Name]) -> Vec<Read> {
    let reading = names.iter().map(|name| world.read(client, *name));
    futures_util::future::join_all(reading).await
}
