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
    Changes,
    cursor::CursorKey,
    cursor_key,
    feed::{Feed, Terms},
    feed_state::{Delayed, FeedState, Synced},
    log::Gone,
    reading::{Reading, Row, Rules, State},
    settings::Settings,
    sharing::Sharing,
};
use crate::{
    cache::{StoredPage, store::Began},
    domain::{Collection, ListPage, PageQuery, Refusal, SpaceKey},
    service::{
        ClientRequest, PagesErrorKind,
        pages::{CallTimes, remembered},
    },
    telemetry::metrics::{ChangesMetrics, GaugeGuard},
    upstream::UpstreamError,
};

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
    /// Told of every change of what readers see.
    pub(super) changed: watch::Sender<()>,
    /// Wakes the task that reads.
    pub(super) wake: Notify,
    /// Wakes the task that shares the feed with other replicas.
    pub(super) share: Notify,
    /// Has the store know the space, and so hear of its drops.
    _known: Began,
    metrics: Arc<ChangesMetrics>,
    /// Bytes of all feeds.
    bytes: Arc<AtomicUsize>,
}

#[derive(Debug)]
pub(super) struct Known {
    /// What readers see.
    pub(super) seen: FeedState,
    pub(super) sharing: Sharing,
    /// How to ask for its pages: as the listener does that came last.
    pub(super) request: ClientRequest,
    pub(super) range_size: u64,
    pub(super) listeners: usize,
    /// Since when nobody listens.
    pub(super) idle_since: Instant,
    /// When each range was tried last, with or without success.
    pub(super) tried: HashMap<u64, Instant>,
    /// Not before then, after a failure.
    pub(super) retry_at: Option<Instant>,
    /// The range that was wanted at once and could not be read: it waits for its turn, as any other.
    pub(super) failed: Option<u64>,
    pub(super) next_poll: Option<Instant>,
    gone: Option<&'static str>,
    weight: usize,
    /// While it is read.
    pub(super) watching: Option<GaugeGuard>,
    pub(super) ranges: usize,
    /// Whether its feed began anew, and nobody but the watch reads it from the start.
    pub(super) has_restarted: bool,
}

impl Space {
    pub(super) fn new(changes: &Changes, key: SpaceKey, request: &ClientRequest) -> Self {
        let pages = &changes.pages;
        let known = pages.hold(request);
        let (epoch, _) = pages.standing(&key, Instant::now());
        Self {
            key,
            cursors: cursor_key(request),
            state: Mutex::new(Known {
                seen: FeedState::new(Feed::new(changes.process, epoch)),
                sharing: Sharing::new(pages.shared_cache().is_some()),
                request: request.clone(),
                range_size: 100,
                listeners: 0,
                idle_since: Instant::now(),
                tried: HashMap::new(),
                retry_at: None,
                failed: None,
                next_poll: None,
                gone: None,
                weight: 0,
                watching: None,
                ranges: 0,
                has_restarted: false,
            }),
            changed: watch::Sender::new(()),
            wake: Notify::new(),
            share: Notify::new(),
            _known: known,
            metrics: changes.metrics.changes.clone(),
            bytes: changes.bytes.clone(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Known> {
        self.state.lock()
    }

    pub(super) fn tell(&self) {
        self.changed.send_replace(());
    }

    /// Goes by the epoch of the space's pages, and by what the upstream refuses about all of it.
    pub(super) fn note_standing(&self, epoch: u64, refused: Option<Refusal>) {
        let mut state = self.state.lock();
        if let Some(refusal) = refused {
            let code = remembered(refusal).as_str();
            if state.gone.replace(code).is_none() {
                drop(state);
                self.share.notify_one();
                self.tell();
            }
        } else if epoch > state.seen.feed.log.epoch() {
            state.restart(epoch, Gone::Purged);
            drop(state);
            self.wake.notify_one();
            self.share.notify_one();
            self.tell();
        }
    }

    /// Takes in a page of the space's tasks, whose feed is one of so many `feeds`.
    pub(super) fn take(
        &self,
        query: PageQuery,
        page: &StoredPage,
        call: CallTimes,
        settings: &Settings,
        feeds: usize,
    ) {
        let reading = reading(query, &page.content.page(), call);
        let mut state = self.state.lock();
        if !state.sharing.judges() {
            return;
        }
        let rules = state.rules(settings);
        let now = Instant::now();
        let seen_at = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let terms = Terms {
            rules: &rules,
            bounds: settings.bounds,
            most: self.most_bytes(&state, settings.max_bytes, feeds),
            seen_at: &seen_at,
            now,
        };
        let was_begun = state.current().feed.watched.has_begun();
        let is_range = u64::from(query.page_size) == rules.size;
        let current = state.current_mut();
        let (changes, _) = current.feed.take(reading, &terms);
        if (is_range || !was_begun) && current.feed.watched.is_caught_up() {
            current.note_synced();
            state.retry_at = None;
        }
        self.metrics.changed(changes);
        state.gone = None;
        // The one that is read next is not chosen yet.
        state.next_poll = None;
        self.weigh(&mut state);
        drop(state);
        self.wake.notify_one();
        self.share.notify_one();
        self.tell();
    }

    /// Counts what the feed takes by now.
    pub(super) fn weigh(&self, state: &mut Known) {
        let weight = state.current().feed.weight();
        let before = std::mem::replace(&mut state.weight, weight);
        self.bytes.fetch_add(weight, Ordering::Relaxed);
        self.bytes.fetch_sub(before, Ordering::Relaxed);
    }

    /// Bytes that the feed may take: whatever it needs while all together take no more than `most`, then an equal share.
    fn most_bytes(&self, state: &Known, most: usize, feeds: usize) -> usize {
        let all = self.bytes.load(Ordering::Relaxed);
        match all <= most {
            true => most - all.saturating_sub(state.weight),
            false => most / feeds.max(1),
        }
    }

    /// Notes that a range could not be read.
    pub(super) fn note_failed(&self, range: u64, error: &PagesErrorKind, retry_at: Instant) {
        let upstream = error.upstream();
        let code = upstream.map_or("internal", UpstreamError::as_str);
        let mut state = self.state.lock();
        state.retry_at = Some(retry_at);
        if upstream.is_some_and(UpstreamError::refuses_space) {
            state.gone = Some(code);
        } else if state.sharing.judges() {
            // Else another replica watches by now, and says what is to be shown.
            let current = state.current_mut();
            current.note_delayed(code);
            if current.feed.watched.wanted_now() == Some(range) {
                current.feed.watched.skip_unread();
                state.failed = Some(range);
            }
        }
        drop(state);
        self.share.notify_one();
        self.tell();
    }

    /// Notes that a range waits for its call for too long.
    pub(super) fn note_waiting(&self) {
        let mut state = self.state.lock();
        if !state.sharing.judges() {
            return;
        }
        state.current_mut().note_delayed("upstream_quota_exhausted");
        drop(state);
        self.share.notify_one();
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

    /// What is gone on with: what readers see, or what they are to see once it is stored.
    pub(super) fn current(&self) -> &FeedState {
        self.sharing.working().unwrap_or(&self.seen)
    }

    pub(super) fn current_mut(&mut self) -> &mut FeedState {
        self.sharing.working_mut().unwrap_or(&mut self.seen)
    }

    pub(super) fn restart(&mut self, epoch: u64, why: Gone) {
        self.seen.feed.restart(epoch, why);
        self.seen.synced = None;
        if let Some(working) = self.sharing.working_mut() {
            *working = self.seen.clone();
        }
        self.tried.clear();
        self.failed = None;
        self.has_restarted = true;
        self.retry_at = None;
    }

    /// Begins anew after the space was gone.
    pub(super) fn come_back(&mut self, epoch: u64) {
        if self.gone.take().is_some() {
            self.restart(epoch, Gone::Purged);
        }
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.is_some()
    }

    pub(super) fn status(&self, now: Instant) -> Status {
        let next = self.next_poll.map(|at| at.saturating_duration_since(now));
        Status {
            synced: self.seen.synced.clone(),
            delayed: self.seen.delayed.clone(),
            gone: self.gone,
            next_poll: next.unwrap_or(self.seen.interval),
        }
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
