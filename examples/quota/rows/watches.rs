//! Spaces whose changes are watched, beside readers.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use unpod_gateway::service::changes::Listener;

use super::Setting;
use crate::{
    figures::{Figure, Sample, Wanted},
    readers::{crawl, first_pages},
    world::World,
};

const MINUTE: Duration = Duration::from_secs(60);
/// Where the watched spaces begin; they are nobody's who reads.
const WATCHED: usize = 20_000;
/// Where a crawler's lists begin.
const CRAWLED: usize = 10_000;

pub(crate) async fn watches(setting: Setting) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (quota, spaces) in [(5, 2), (60, 20)] {
        let alone = cold_reads(quota, 0, setting).await;
        let beside = cold_reads(quota, spaces, setting).await;
        let what = |what| format!("{what}, {spaces} watches at {quota}");
        let turn = 60.0 / f64::from(quota);
        figures.extend([
            Figure::new(
                what("longest wait s of a reader of cold pages"),
                beside.waits.most(),
                // Behind a call that was granted before, and one that the minute has no room for yet.
                Wanted::AtMost(alone.waits.most() + 2.0 * turn),
            ),
            Figure::new(
                what("share of calls for watches"),
                beside.watch_calls / beside.minutes / f64::from(quota),
                // `changes.quota_share`, and one more of each watch within the time that is measured.
                Wanted::Within(0.2, 0.5 + spaces as f64 / beside.minutes / f64::from(quota)),
            ),
            Figure::quota(&beside.world, quota),
        ]);
        let crowded = crowded(quota, spaces, setting).await;
        figures.extend([
            Figure::new(
                what("watch's calls a minute beside a crawler"),
                crowded.watch_calls / crowded.minutes,
                Wanted::AtLeast(0.2),
            ),
            Figure::quota(&crowded.world, quota),
        ]);
    }
    figures
}

struct Measured {
    world: World,
    waits: Sample,
    watch_calls: f64,
    minutes: f64,
}

/// Spaces that have been listened to for a while, and who listens.
async fn listened_to(quota: u32, spaces: usize, setting: Setting) -> (World, Vec<Listener>) {
    let world = World::new(quota, setting.seed);
    let mut listeners = Vec::new();
    for space in 0..spaces {
        listeners.push(world.listen(WATCHED + space).await);
    }
    sleep(5 * MINUTE).await;
    (world, listeners)
}

/// Spaces are listened to while a reader takes a third of the calls, each for a page that nobody has read.
async fn cold_reads(quota: u32, spaces: usize, setting: Setting) -> Measured {
    let (world, _listeners) = listened_to(quota, spaces, setting).await;
    let since = Instant::now();
    let until = since + setting.length / 2;
    let mut reads = Vec::new();
    for page in first_pages() {
        if Instant::now() >= until {
            break;
        }
        reads.push(world.read("reader", page).await);
        sleep(3 * MINUTE / quota).await;
    }
    measured(world, since, Sample::waits(&reads, since))
}

/// Spaces are listened to while a crawler takes all the calls that it is given.
async fn crowded(quota: u32, spaces: usize, setting: Setting) -> Measured {
    let (world, _listeners) = listened_to(quota, spaces, setting).await;
    let since = Instant::now();
    let reads = crawl(&world, "crawler", CRAWLED, 4, since + setting.length / 4).await;
    measured(world, since, Sample::waits(&reads, since))
}

fn measured(world: World, since: Instant, waits: Sample) -> Measured {
    let calls = world.model.calls_since(since);
    let of_watches = calls.iter().filter(|call| call.name.space >= WATCHED);
    Measured {
        watch_calls: of_watches.count() as f64,
        minutes: since.elapsed().as_secs_f64() / 60.0,
        waits,
        world,
    }
}
