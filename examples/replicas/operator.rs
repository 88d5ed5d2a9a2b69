//! What happens all the time and is no fault: purges, revocations, new and changed tasks.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use unpod_gateway::simulator::SplitMix64;

use crate::{
    call::any_space,
    checks::{Change, Invalidation},
    lane::Place,
};

/// Their names for `--only`; readers force fills.
pub(crate) const NAMES: [&str; 6] = ["purge", "purge-all", "revoke", "grow", "change", "force"];

/// How long a space is revoked, and the pauses between what happens, in milliseconds.
const REVOKED: u64 = 3000;
const PAUSE: u64 = 4000;

/// Does one thing after another until it is cancelled.
pub(crate) async fn operate(place: Arc<Place>, mut random: SplitMix64) {
    loop {
        sleep(Duration::from_millis(100 + random.below(PAUSE))).await;
        let space = any_space(&mut random);
        let gateway = random.below(place.gateways.len() as u64) as usize;
        let lasts = Duration::from_millis(500 + random.below(REVOKED));
        let name = match random.below(20) {
            0 => "purge-all",
            1..=7 => "purge",
            8..=10 => "revoke",
            11..=14 => "grow",
            _ => "change",
        };
        if !place.allows(name) {
            continue;
        }
        match name {
            "purge-all" => purge(&place, gateway, None).await,
            "purge" => purge(&place, gateway, Some(space)).await,
            "revoke" => revoke(&place, space, lasts).await,
            "grow" => {
                place.truth.changed(Some(space));
                place.upstream.add_task(space);
            }
            _ => {
                let ids = place.upstream.task_ids(space);
                let changed = &ids[random.below(ids.len() as u64) as usize];
                place.upstream.set_status(space, changed, "completed");
            }
        }
    }
}

/// Drops the pages of a space, or of all, through one gateway.
pub(crate) async fn purge(place: &Place, gateway: usize, space: Option<&'static str>) {
    let cause = Instant::now();
    place.truth.changed(space);
    let path = space.map_or_else(
        || "/cache".to_owned(),
        |space| format!("/cache/spaces/{space}"),
    );
    let Some(answer) = place.gateways[gateway].operate("DELETE", &path).await else {
        return;
    };
    let known = Instant::now();
    place.truth.changed(space);
    let status = match answer {
        Ok(answer) => answer.status,
        Err(error) => {
            let excused = place.truth.with(|truth| {
                let mut outages = truth.outages[gateway].iter();
                outages.any(|outage| outage.excuses_no_answer(cause, known))
            });
            if !excused {
                place.wrong("no answer", format!("purge of gateway {gateway}: {error}"));
            }
            return;
        }
    };
    place.event(format!(
        "purge {} gateway {gateway}: {status}",
        space.unwrap_or("everything")
    ));
    place.count(format!("purge {status}"));
    if !matches!(status, 202 | 204) {
        place.wrong("status", format!("purge of gateway {gateway}: {status}"));
        return;
    }
    let is_pending = status == 202;
    let by = Some(gateway);
    place.truth.with(|truth| {
        truth.invalidations.push(Invalidation {
            space,
            cause,
            known,
            by,
            is_pending,
        });
        truth.changes.push(Change { space, at: known });
    });
}

async fn revoke(place: &Place, space: &'static str, lasts: Duration) {
    place.event(format!("revoke {space}"));
    place.count("revocation");
    place.truth.changed(Some(space));
    place.truth.with(|truth| {
        // Before: a call between the two may still see the space.
        truth
            .revoked
            .entry(space)
            .or_default()
            .push((Instant::now(), None));
        place.upstream.revoke_space(space);
    });
    sleep(lasts).await;
    place.truth.with(|truth| {
        place.upstream.grant_space(space);
        let last = truth
            .revoked
            .get_mut(space)
            .and_then(|times| times.last_mut());
        last.expect("it is revoked").1 = Some(Instant::now());
    });
    place.truth.changed(Some(space));
    place.event(format!("grant {space}"));
}
