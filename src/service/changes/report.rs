//! What is watched, for operators.

use std::{borrow::Cow, sync::Arc, time::SystemTime};

use serde::Serialize;
use tokio::time::Instant;

use super::{Changes, space::Space};

/// How a watch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WatchState {
    Watching,
    /// Another replica reads, and this one shows what it learned.
    Following,
    /// Reads fail, or wait for the quota.
    Delayed,
    /// Nobody listens; ranges are still read for `changes.linger`.
    Lingering,
    /// Nobody listens and nothing is read; what is known is kept for `changes.retention`.
    Kept,
    /// The space or the right to it is gone.
    Gone,
}

/// A watched space, by its fingerprint. Times in seconds.
#[derive(Debug, Serialize)]
pub struct WatchReport {
    pub space: String,
    pub credential: String,
    pub state: WatchState,
    /// Of a delayed one: when all was read last.
    pub since: Option<String>,
    /// Why it is delayed or gone.
    pub code: Option<Cow<'static, str>>,
    pub listeners: usize,
    /// Tasks that are known.
    pub tasks: usize,
    /// Ranges that are read, each once in this time.
    pub ranges: usize,
    pub interval: u64,
    /// Upstream calls a minute at most: what clients read meanwhile is not read again.
    pub calls_per_minute: f64,
}

impl Changes {
    /// The `most` watches that cost most.
    #[must_use]
    pub fn watches(&self, most: usize, now: Instant) -> Vec<WatchReport> {
        let spaces = self.all_spaces();
        let mut watches: Vec<_> = spaces.iter().map(|space| report(space, now)).collect();
        watches.sort_by(|a, b| {
            let cost = b.calls_per_minute.total_cmp(&a.calls_per_minute);
            let listeners = || b.listeners.cmp(&a.listeners);
            cost.then_with(listeners)
                .then_with(|| a.space.cmp(&b.space))
        });
        watches.truncate(most);
        watches
    }
}

fn report(space: &Arc<Space>, now: Instant) -> WatchReport {
    let state = space.lock();
    let status = state.status(now);
    let interval = state.current().interval;
    let (standing, since, code) = match (status.gone, status.delayed) {
        (Some(code), _) => (WatchState::Gone, None, Some(code.into())),
        _ if state.listeners == 0 && state.watching.is_none() => (WatchState::Kept, None, None),
        _ if !state.sharing.judges() => (WatchState::Following, None, None),
        (None, Some(delayed)) => (WatchState::Delayed, Some(delayed.since), Some(delayed.code)),
        (None, None) if state.listeners == 0 => (WatchState::Lingering, None, None),
        (None, None) => (WatchState::Watching, None, None),
    };
    WatchReport {
        space: space.key.space.to_string(),
        credential: state.request.credential.name.clone(),
        state: standing,
        since: since.map(rfc3339),
        code,
        listeners: state.listeners,
        tasks: state.current().feed.watched.len(),
        ranges: state.ranges,
        interval: interval.as_secs(),
        calls_per_minute: calls_per_minute(state.ranges, interval.as_secs_f64()),
    }
}

fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()
}

fn calls_per_minute(ranges: usize, interval: f64) -> f64 {
    let ranges = f64::from(u32::try_from(ranges).unwrap_or(u32::MAX));
    60.0 * ranges / interval
}
