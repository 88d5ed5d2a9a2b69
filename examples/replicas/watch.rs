//! What replicas say of Redis, and when this machine stands still.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use crate::{
    checks::{Outage, OutageKind},
    gateway::RedisHealth,
    lane::Place,
};

/// How often a state is asked for.
pub(crate) const POLL: Duration = Duration::from_millis(100);
/// A gateway may say for a moment that it is connected to what has just gone.
const BELIEVED_AFTER: Duration = Duration::from_millis(500);
/// Longer than a task should ever wait for its turn.
const STANDS_STILL: Duration = Duration::from_millis(500);
const WATCHES: Duration = Duration::from_millis(250);
/// After that, a gateway that does not connect is given up.
const GIVES_UP: Duration = Duration::from_secs(60);

/// Waits until a gateway says that it is connected.
pub(crate) async fn settle(place: &Place, gateway: usize) {
    let since = Instant::now();
    sleep(BELIEVED_AFTER).await;
    while since.elapsed() < GIVES_UP
        && !place.gateways[gateway]
            .redis()
            .await
            .is_some_and(|redis| redis.is_up)
    {
        sleep(POLL).await;
    }
    place.event(format!(
        "gateway {gateway} is connected after {:.1?}",
        since.elapsed()
    ));
}

/// Notes where operations fail while nothing is broken, until it is cancelled: a busy machine may be too slow for them.
pub(crate) async fn watch_redis(place: Arc<Place>, gateway: usize) {
    let mut last = RedisHealth::default();
    let mut looked = Instant::now();
    loop {
        sleep(WATCHES).await;
        let now = Instant::now();
        let Some(health) = place.gateways[gateway].redis().await else {
            continue;
        };
        let before = std::mem::replace(&mut looked, now);
        let is_known = place.truth.with(|known| {
            known.outages[gateway]
                .iter()
                .any(|outage| outage.to.is_none())
        });
        let is_worse = !health.is_up || health.errors > last.errors;
        last = health;
        if !is_worse || is_known {
            continue;
        }
        place.event(format!(
            "gateway {gateway} lacks Redis by itself: {health:?}"
        ));
        place.count("lacked Redis without a fault");
        // The operation failed at some moment since.
        let number = place
            .truth
            .outage_began_at(before, gateway, OutageKind::Redis);
        settle(&place, gateway).await;
        place.truth.outage_ended(gateway, number);
    }
}

/// Notes where this machine stood still, until it is cancelled: nobody could keep a deadline meanwhile.
pub(crate) async fn watch_machine(place: Arc<Place>) {
    loop {
        let from = Instant::now();
        sleep(POLL).await;
        let to = Some(Instant::now());
        if from.elapsed() < STANDS_STILL {
            continue;
        }
        place.event(format!(
            "the machine stood still for {:.1?}",
            from.elapsed()
        ));
        place.count("the machine stood still");
        place.truth.with(|known| {
            known.failing.push((from, to));
            let kind = OutageKind::Redis;
            known
                .outages
                .iter_mut()
                .for_each(|outages| outages.push(Outage { kind, from, to }));
        });
    }
}
