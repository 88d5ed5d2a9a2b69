//! What wide fills are worth to readers who page on.

use std::time::Duration;

use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::Setting;
use crate::{
    figures::{Figure, Sample, Wanted},
    model::Name,
    readers::zipf,
    world::{Read, World},
};

const WARM_UP: Duration = Duration::from_secs(20 * 60);
/// How long a reader looks at a page before it asks for the next.
const LOOKS: Duration = Duration::from_secs(2);
const PAGES_OF_A_LIST: u32 = 5;
/// Readers that come in a second; each reads two pages on average.
const READERS_A_SECOND: f64 = 1.0;

/// What came of it.
struct Walked {
    world: World,
    ages: Sample,
    /// Calls for each 1,000 requests.
    calls: f64,
}

/// Reads a list from its first page on; every other reader leaves after each page.
async fn walk(world: World, space: usize, pages: u32, mut random: fastrand::Rng) -> Vec<Read> {
    let mut reads = Vec::new();
    for page in 1..=pages {
        reads.push(world.read("reader", Name { space, page }).await);
        if random.bool() {
            break;
        }
        sleep(LOOKS).await;
    }
    reads
}

/// Readers come at random moments, to each list as often as [`zipf`] says.
async fn walked(world: World, pages: u32, setting: Setting) -> Walked {
    let each = PAGES_OF_A_LIST.min(pages);
    let lists = zipf((pages / each) as usize);
    let total: f64 = lists.iter().sum();
    let mut random = fastrand::Rng::with_seed(setting.seed);
    let measured = world.began + WARM_UP;
    let until = measured + setting.length;
    let mut walking = JoinSet::new();
    while Instant::now() < until {
        let pause = -(1.0 - random.f64()).ln() / READERS_A_SECOND;
        sleep(Duration::from_secs_f64(pause)).await;
        let mut drawn = random.f64() * total;
        let list = lists.iter().position(|rate| {
            drawn -= rate;
            drawn < 0.0
        });
        let reader = walk(world.clone(), list.unwrap_or(0), each, random.fork());
        walking.spawn(reader);
    }
    let reads: Vec<_> = walking.join_all().await.into_iter().flatten().collect();
    let requests = reads.iter().filter(|read| read.asked >= measured).count();
    let calls = world.model.calls_since(measured).len();
    Walked {
        ages: Sample::ages(&reads, measured),
        calls: calls as f64 * 1000.0 / requests as f64,
        world,
    }
}

pub(crate) async fn walks(setting: Setting) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (quota, pages) in [(5, 2), (5, 20), (5, 200), (60, 2), (60, 20), (60, 200)] {
        let exact = walked(World::filling(0, quota, setting.seed), pages, setting).await;
        let wide = walked(World::filling(100, quota, setting.seed), pages, setting).await;
        let what = |what| format!("{what}, {pages} pages at {quota}");
        let any = |name, measured| Figure::new(what(name), measured, Wanted::Any);
        let p99 = wide.ages.percentile(99);
        let wanted = match (quota, pages) {
            (5, 200) => Wanted::AtMost(exact.ages.percentile(99) / 2.0),
            _ => Wanted::Any,
        };
        figures.extend([
            any("calls per 1000 requests, page by page", exact.calls),
            any("calls per 1000 requests", wide.calls),
            any("p50 age s, page by page", exact.ages.percentile(50)),
            any("p50 age s", wide.ages.percentile(50)),
            any("p99 age s, page by page", exact.ages.percentile(99)),
            Figure::new(what("p99 age s"), p99, wanted),
            Figure::quota(&exact.world, quota),
            Figure::quota(&wide.world, quota),
        ]);
    }
    figures
}
