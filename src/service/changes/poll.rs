//! Reads the ranges of one space that nobody else has read, for as long as anybody listens, and a while longer.

use std::{ops::ControlFlow, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until, timeout};

use super::{Changes, plan, space::Space};
use crate::{
    cache::http_semantics::RequestDirectives,
    domain::PageQuery,
    service::{ClientRequest, PagesErrorKind},
    telemetry::metrics::PollOutcome,
};

/// For what a call is waited without a word to those who listen.
const LONGEST_SILENCE: Duration = Duration::from_secs(30);

enum Step {
    Read(u64, ClientRequest, Duration),
    Wait(Instant),
}

/// Watches `space` until nobody has listened for so long that what is known of it is of no use.
pub(super) async fn watch(changes: Arc<Changes>, space: Arc<Space>) {
    loop {
        let woken = space.wake.notified();
        match next(&changes, &space, Instant::now()) {
            ControlFlow::Break(()) => {
                if changes.forget(&space) {
                    return;
                }
            }
            ControlFlow::Continue(Step::Read(range, request, interval)) => {
                read(&changes, &space, range, &request, interval).await;
            }
            ControlFlow::Continue(Step::Wait(until)) => {
                tokio::select! {
                    () = woken => {}
                    () = sleep_until(until) => {}
                }
            }
        }
    }
}

/// What is to be done now.
fn next(changes: &Changes, space: &Space, now: Instant) -> ControlFlow<(), Step> {
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
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(Step::Wait(kept_until.max(now + LONGEST_SILENCE))),
        };
    }
    if state.watching.is_none() {
        state.watching = Some(changes.metrics.changes.watched_space());
    }
    state.range_size = changes.pages.range_size(&state.request).into();
    let rules = state.rules(&settings);
    let ranges = state.current().feed.watched().ranges(&rules, now);
    let all = (others + ranges.len()).saturating_sub(state.ranges);
    let all = all.max(state.sharing.all_ranges());
    changes.metrics.changes.ranges(state.ranges, ranges.len());
    state.ranges = ranges.len();
    let quota = state.request.credential.budget().per_minute();
    let interval = plan::interval(all, quota, settings.quota_share);
    if state.current().interval != interval {
        state.current_mut().interval = interval;
    }
    let watched = state.current().feed.watched();
    let (range, at) = match watched.wanted_now() {
        Some(range) => (range, now),
        None => {
            let tried = |range: u64| {
                let read = watched.read_at(range);
                (range, read.max(state.tried.get(&range).copied()))
            };
            let next = plan::next_read(ranges.iter().copied().map(tried), interval, now);
            next.unwrap_or((0, now + interval))
        }
    };
    let at = match watched.has_begun() || state.has_restarted {
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
        return ControlFlow::Continue(Step::Wait(wake_at));
    }
    state.tried.retain(|range, _| ranges.contains(range));
    state.tried.insert(range, now);
    let request = request(&state.request, range, rules.size, interval);
    ControlFlow::Continue(match request {
        Some(request) => Step::Read(range, request, interval),
        None => Step::Wait(now + interval),
    })
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
        query,
        directives,
        ..like.clone()
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
            space.note_waiting("upstream_quota_exhausted");
            fill.await
        }
    };
    let metrics = &changes.metrics.changes;
    match outcome {
        Ok(()) => metrics.polled(PollOutcome::Read),
        Err(error) => {
            metrics.polled(PollOutcome::Failed);
            let wait = match &error {
                PagesErrorKind::Upstream(error) => error.asks_to_wait(),
                PagesErrorKind::NotCached
                | PagesErrorKind::Incomplete { .. }
                | PagesErrorKind::Lost => None,
            };
            let retry_at = Instant::now() + interval.max(wait.unwrap_or_default());
            space.note_failed(range, &error, retry_at);
        }
    }
}
