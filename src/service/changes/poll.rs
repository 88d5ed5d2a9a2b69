//! Reads the ranges of one space that nobody else has read, for as long as anybody listens, and a while longer.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until, timeout};

use super::{
    Changes, plan,
    space::{Known, Space},
};
use crate::{
    cache::http_semantics::RequestDirectives, domain::PageQuery, service::ClientRequest,
    telemetry::metrics::PollOutcome, upstream::UpstreamError,
};

/// For what a call is waited without a word to those who listen.
const LONGEST_SILENCE: Duration = Duration::from_secs(30);

enum Step {
    Read(u64, ClientRequest, Duration),
    Wait(Instant),
    /// What is known is of no use to anybody.
    End,
}

/// Watches `space` until nobody has listened for so long that what is known of it is of no use.
pub(super) async fn watch(changes: Arc<Changes>, space: Arc<Space>) {
    loop {
        match next(&changes, &space, Instant::now()) {
            Step::End => {
                if changes.forget(&space) {
                    return;
                }
            }
            Step::Read(range, request, interval) => {
                read(&changes, &space, range, &request, interval).await;
            }
            Step::Wait(until) => {
                tokio::select! {
                    () = space.wake.notified() => {}
                    () = sleep_until(until) => {}
                }
            }
        }
    }
}

/// What is to be done now.
fn next(changes: &Changes, space: &Space, now: Instant) -> Step {
    changes.note_standing(space);
    let others = changes.ranges_of(space.key.credential);
    let settings = changes.settings.load();
    let mut state = space.lock();
    let idle_until = state.idle_since + settings.linger;
    let is_idle = state.listeners == 0 && idle_until <= now;
    if is_idle || state.is_gone() || !state.sharing.judges() {
        state.watching = None;
        changes.metrics.changes.ranges(state.ranges, 0);
        state.ranges = 0;
        // Redis keeps what it holds.
        let kept_until = match state.sharing.is_alone() {
            true => idle_until + settings.bounds.retention,
            false => idle_until,
        };
        return match state.listeners == 0 && kept_until <= now {
            true => Step::End,
            false => Step::Wait(kept_until.max(now + LONGEST_SILENCE)),
        };
    }
    if state.watching.is_none() {
        state.watching = Some(changes.metrics.changes.watched_space());
    }
    state.range_size = changes.pages.range_size(&state.request).into();
    let rules = state.rules(&settings);
    let ranges = state.current().feed.watched.ranges(&rules, now);
    let all = (others + ranges.len()).saturating_sub(state.ranges);
    let all = all.max(state.sharing.all_ranges);
    changes.metrics.changes.ranges(state.ranges, ranges.len());
    state.ranges = ranges.len();
    let quota = state.request.credential.budget().per_minute();
    let interval = plan::interval(all, quota, settings.quota_share);
    if state.current().interval != interval {
        state.current_mut().interval = interval;
    }
    let (range, at) = next_read(&state, &ranges, interval, now);
    let has_begun = state.current().feed.watched.has_begun();
    let at = match has_begun || state.has_restarted {
        true => at.max(state.retry_at.unwrap_or(at)),
        // Who came first reads the first range on its own account.
        false => now + interval,
    };
    state.next_poll = Some(at);
    if at > now {
        let wake_at = match state.listeners {
            0 => at.min(idle_until),
            _ => at,
        };
        return Step::Wait(wake_at);
    }
    state.failed = state.failed.filter(|failed| *failed != range);
    let failed = state.failed;
    (state.tried).retain(|range, _| ranges.contains(range) || failed == Some(*range));
    state.tried.insert(range, now);
    let request = request(&state.request, range, rules.size, interval);
    match request {
        Some(request) => Step::Read(range, request, interval),
        None => Step::Wait(now + interval),
    }
}

/// The range that is read next, and when: one that is wanted now, unless it could not be read a moment ago.
fn next_read(
    state: &Known,
    ranges: &BTreeSet<u64>,
    interval: Duration,
    now: Instant,
) -> (u64, Instant) {
    let watched = &state.current().feed.watched;
    let wanted = watched.wanted_now();
    if let Some(range) = wanted.filter(|range| state.failed != Some(*range)) {
        return (range, now);
    }
    let tried = |range: u64| {
        let read = watched.read_at(range);
        (range, read.max(state.tried.get(&range).copied()))
    };
    let ranges = ranges.iter().copied().chain(wanted).map(tried);
    plan::next_read(ranges, interval, now).unwrap_or((0, now + interval))
}

/// How to ask for a range: for nothing that is as old as what was read last.
fn request(
    like: &ClientRequest,
    range: u64,
    size: u64,
    interval: Duration,
) -> Option<ClientRequest> {
    let page = u32::try_from(range + 1).ok()?;
    let query = PageQuery::new(page, u32::try_from(size).ok()?)?;
    let directives = RequestDirectives {
        max_age: Some(interval / 2),
        ..RequestDirectives::default()
    };
    Some(ClientRequest {
        directives,
        ..like.for_page(query)
    })
}

async fn read(
    changes: &Arc<Changes>,
    space: &Arc<Space>,
    range: u64,
    request: &ClientRequest,
    interval: Duration,
) {
    let due = Instant::now() + interval;
    let fill = changes.pages.renew(request, due);
    tokio::pin!(fill);
    let outcome = match timeout(LONGEST_SILENCE.max(interval), &mut fill).await {
        Ok(outcome) => outcome,
        Err(_) => {
            space.note_waiting();
            fill.await
        }
    };
    let metrics = &changes.metrics.changes;
    match outcome {
        Ok(()) => metrics.polled(PollOutcome::Read),
        Err(error) => {
            metrics.polled(PollOutcome::Failed);
            let wait = error.upstream().and_then(UpstreamError::asks_to_wait);
            let retry_at = Instant::now() + interval.max(wait.unwrap_or_default());
            space.note_failed(range, &error, retry_at);
        }
    }
}
