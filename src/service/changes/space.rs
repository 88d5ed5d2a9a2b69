//! One space that is watched: its feed, who listens, and how it stands with the upstream.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use xxhash_rust::xxh3::xxh3_128;

use super::{
    cursor::{CursorKey, Incarnation},
    feed::{Feed, Terms},
    log::Gone,
    plan,
    reading::{Reading, Row, Rules, State},
    settings::Settings,
};
use crate::{
    cache::StoredPage,
    domain::{Collection, ListPage, PageQuery, Refusal, SpaceKey},
    service::{ClientRequest, PagesErrorKind, pages::CallTimes},
    telemetry::metrics::{ChangesMetrics, GaugeGuard},
    upstream::UpstreamError,
};

/// That all was read, and when.
#[derive(Clone, Debug)]
pub struct Synced {
    /// How often that was so.
    pub number: u64,
    pub verified_at: SystemTime,
    /// How many tasks the space has.
    pub count: u64,
    /// How many of them are watched.
    pub watched: usize,
}

/// That nothing can be read.
#[derive(Clone, Debug)]
pub struct Delayed {
    /// How often that began.
    pub number: u64,
    /// When all was read last.
    pub since: SystemTime,
    pub code: &'static str,
}

/// How a watched space stands.
#[derive(Clone, Debug, Default)]
pub struct Status {
    pub synced: Option<Synced>,
    pub delayed: Option<Delayed>,
    /// Why it is not to be read any more.
    pub gone: Option<&'static str>,
    /// When the next range is read.
    pub next_poll: Duration,
}

/// A space that is watched.
#[derive(Debug)]
pub(super) struct Space {
    pub(super) key: SpaceKey,
    pub(super) cursors: CursorKey,
    state: Mutex<Known>,
    /// Raised with every change of what readers see.
    pub(super) changed: watch::Sender<u64>,
    /// Wakes the task that reads.
    pub(super) wake: Notify,
    metrics: Arc<ChangesMetrics>,
    /// Bytes of all feeds.
    bytes: Arc<AtomicUsize>,
}

#[derive(Debug)]
pub(super) struct Known {
    pub(super) feed: Feed,
    /// How to ask for its pages: as the listener does that came last.
    pub(super) request: ClientRequest,
    pub(super) range_size: u64,
    pub(super) listeners: usize,
    /// Since when nobody listens.
    pub(super) idle_since: Instant,
    /// Of the space's pages; another one says that they were dropped.
    epoch: u64,
    /// When each range was tried last, with or without success.
    pub(super) tried: HashMap<u64, Instant>,
    /// Not before then, after a failure.
    pub(super) retry_at: Option<Instant>,
    pub(super) next_poll: Option<Instant>,
    pub(super) interval: Duration,
    synced: Option<Synced>,
    delayed: Option<Delayed>,
    delays: u64,
    gone: Option<&'static str>,
    weight: usize,
    /// While it is read.
    pub(super) watching: Option<GaugeGuard>,
    pub(super) ranges: usize,
    began: SystemTime,
}

/// What taking in a page needs to know.
pub(super) struct Taking<'a> {
    pub(super) settings: &'a Settings,
    /// How many feeds there are.
    pub(super) feeds: usize,
    pub(super) next_log: &'a dyn Fn() -> Incarnation,
}

impl Space {
    pub(super) fn new(
        key: SpaceKey,
        cursors: CursorKey,
        request: ClientRequest,
        log: Incarnation,
        metrics: Arc<ChangesMetrics>,
        bytes: Arc<AtomicUsize>,
    ) -> Self {
        Self {
            key,
            cursors,
            state: Mutex::new(Known {
                feed: Feed::new(log),
                request,
                range_size: 100,
                listeners: 0,
                idle_since: Instant::now(),
                epoch: 0,
                tried: HashMap::new(),
                retry_at: None,
                next_poll: None,
                interval: plan::SHORTEST_INTERVAL,
                synced: None,
                delayed: None,
                delays: 0,
                gone: None,
                weight: 0,
                watching: None,
                ranges: 0,
                began: SystemTime::now(),
            }),
            changed: watch::Sender::new(0),
            wake: Notify::new(),
            metrics,
            bytes,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Known> {
        self.state.lock()
    }

    pub(super) fn tell(&self) {
        self.changed.send_modify(|version| *version += 1);
    }

    /// Goes by the epoch of the space's pages, and by what the upstream refuses.
    pub(super) fn note_standing(
        &self,
        epoch: u64,
        refused: Option<Refusal>,
        next_log: &dyn Fn() -> Incarnation,
    ) {
        let mut state = self.state.lock();
        let is_other = std::mem::replace(&mut state.epoch, epoch) != epoch;
        let code = refused.and_then(code_of);
        if let Some(code) = code {
            if state.gone.replace(code).is_none() {
                drop(state);
                self.tell();
            }
        } else if is_other && state.feed.watched().has_begun() {
            state.restart(next_log(), Gone::Purged);
            drop(state);
            self.wake.notify_one();
            self.tell();
        }
    }

    /// Takes in a page of the space's tasks.
    pub(super) fn take(
        &self,
        query: PageQuery,
        page: &StoredPage,
        call: CallTimes,
        taking: &Taking<'_>,
    ) {
        let reading = reading(query, &page.content.page(), call);
        let mut state = self.state.lock();
        let rules = state.rules(taking.settings);
        let now = Instant::now();
        let seen_at = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let terms = Terms {
            rules: &rules,
            bounds: taking.settings.bounds,
            most: self.share(&state, taking),
            seen_at: &seen_at,
            now,
            incarnation: (taking.next_log)(),
        };
        let was_begun = state.feed.watched().has_begun();
        let is_range = u64::from(query.page_size) == rules.size;
        let (changes, _) = state.feed.take(reading, &terms);
        self.metrics.changed(changes);
        state.gone = None;
        // The one that is read next is not chosen yet.
        state.next_poll = None;
        let weight = state.feed.weight();
        let before = std::mem::replace(&mut state.weight, weight);
        self.bytes.fetch_add(weight, Ordering::Relaxed);
        self.bytes.fetch_sub(before, Ordering::Relaxed);
        if (is_range || !was_begun) && state.feed.watched().is_caught_up() {
            state.note_synced();
        }
        drop(state);
        self.wake.notify_one();
        self.tell();
    }

    /// Bytes that the feed may take: whatever it needs while all together take no more than they may, then an equal share.
    fn share(&self, state: &Known, taking: &Taking<'_>) -> usize {
        let (all, most) = (
            self.bytes.load(Ordering::Relaxed),
            taking.settings.max_bytes,
        );
        match all.saturating_sub(most) {
            0 => most - (all - state.weight.min(all)),
            _ => most / taking.feeds.max(1),
        }
    }

    /// Notes that a range could not be read.
    pub(super) fn note_failed(&self, range: u64, error: &PagesErrorKind, retry_at: Instant) {
        let mut state = self.state.lock();
        state.retry_at = Some(retry_at);
        if state.feed.watched().wanted_now() == Some(range) {
            state.feed.skip_unread();
        }
        let upstream = match error {
            PagesErrorKind::Upstream(error) => Some(error),
            PagesErrorKind::NotCached
            | PagesErrorKind::Incomplete { .. }
            | PagesErrorKind::Lost => None,
        };
        let code = upstream.map_or("internal", UpstreamError::as_str);
        match upstream {
            Some(UpstreamError::SpaceNotFound { .. } | UpstreamError::SpaceAccessDenied) => {
                state.gone = Some(code);
            }
            Some(_) | None => state.note_delayed(code),
        }
        drop(state);
        self.tell();
    }

    /// Notes that a range waits for its call for too long.
    pub(super) fn note_waiting(&self, code: &'static str) {
        self.state.lock().note_delayed(code);
        self.tell();
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let weight = self.state.get_mut().weight;
        self.bytes.fetch_sub(weight, Ordering::Relaxed);
    }
}

impl Known {
    pub(super) fn rules(&self, settings: &Settings) -> Rules {
        Rules {
            size: self.range_size,
            final_states: settings.final_states.clone(),
            settled_after: settings.settled_after,
        }
    }

    fn restart(&mut self, log: Incarnation, why: Gone) {
        self.feed.restart(log, why);
        self.tried.clear();
        self.retry_at = None;
        self.synced = None;
    }

    /// Begins anew after the space was gone.
    pub(super) fn come_back(&mut self, log: Incarnation) {
        if self.gone.take().is_some() {
            self.restart(log, Gone::Purged);
        }
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.is_some()
    }

    fn note_synced(&mut self) {
        let number = self.synced.as_ref().map_or(0, |synced| synced.number) + 1;
        self.retry_at = None;
        self.delayed = None;
        self.synced = Some(Synced {
            number,
            verified_at: SystemTime::now(),
            count: self.feed.watched().count(),
            watched: self.feed.watched().len(),
        });
    }

    fn note_delayed(&mut self, code: &'static str) {
        if self.delayed.is_some() {
            return;
        }
        self.delays += 1;
        let synced = self.synced.as_ref();
        self.delayed = Some(Delayed {
            number: self.delays,
            since: synced.map_or(self.began, |synced| synced.verified_at),
            code,
        });
    }

    pub(super) fn status(&self, now: Instant) -> Status {
        let next = self.next_poll.map(|at| at.saturating_duration_since(now));
        Status {
            synced: self.synced.clone(),
            delayed: self.delayed.clone(),
            gone: self.gone,
            next_poll: next.unwrap_or(self.interval),
        }
    }
}

fn code_of(refusal: Refusal) -> Option<&'static str> {
    match refusal {
        Refusal::SpaceNotFound => Some("space_not_found"),
        Refusal::SpaceAccessDenied => Some("space_access_denied"),
        Refusal::Rejected | Refusal::Failed | Refusal::Invalid => None,
    }
}

/// What a page shows of the tasks.
fn reading(query: PageQuery, page: &ListPage, call: CallTimes) -> Reading {
    let rows = page.rows.iter().filter_map(|row| {
        let bytes = (page.body).slice(row.span.start as usize..row.span.end as usize);
        let id = page.text_of(row, Collection::TASKS.id_member)?;
        let status = page.text_of(row, Collection::TASKS.state_member);
        Some(Row {
            id: id.into(),
            state: State {
                digest: xxh3_128(&bytes),
                status: status.map(Into::into),
                bytes: Some(bytes),
            },
        })
    });
    Reading::new(
        (query.span().start, query.page_size.into()),
        page.count,
        rows.collect(),
        (call.sent, call.received),
    )
}
