//! What holds for a whole space, whichever list of it is asked for: its epoch, and what the upstream refuses.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::{
    failing::FailingPages,
    list::{List, Version},
    page_set::PageSet,
    refresh_plan::RefreshPlan,
};
use crate::domain::{ListId, PageQuery, Refusal, SpaceFingerprint, SpaceToken};

/// Most pages of one space whose refusals are remembered at once.
const MAX_REFUSED_PAGES: usize = 256;
/// Lists that are remembered before those are let go of which nothing is left.
const FIRST_SWEEP_AT: usize = 16;

/// One space as one credential sees it.
#[derive(Debug)]
pub struct Space {
    fingerprint: SpaceFingerprint,
    demand: Arc<RefreshPlan>,
    /// Raised when the space's pages are dropped: a page of an earlier epoch is gone.
    epoch: AtomicU64,
    state: Mutex<State>,
    /// Outlives a purge: what is asked for after it fails all the same.
    failing: Mutex<FailingPages>,
}

#[derive(Debug)]
pub(super) struct State {
    /// Each for as long as a page of it is stored or a fill of one is under way.
    lists: HashMap<ListId, Weak<List>>,
    sweep_at: usize,
    refused: Option<Remembered>,
    refused_pages: HashMap<(ListId, PageQuery), Remembered>,
}

/// A refusal and until when it is remembered.
#[derive(Clone, Copy, Debug)]
pub struct Remembered {
    pub refusal: Refusal,
    pub until: Instant,
    pub since: Instant,
    /// How old its answer was by then.
    pub initial_age: Duration,
}

impl Remembered {
    /// The age of the answer that told it (RFC 9111 section 4.2.3).
    #[must_use]
    pub fn age(&self, now: Instant) -> Duration {
        self.initial_age + now.saturating_duration_since(self.since)
    }
}

impl Space {
    /// A space of which nothing is known yet, in its `epoch`.
    #[must_use]
    pub fn new(token: &SpaceToken, epoch: u64, demand: Arc<RefreshPlan>) -> Self {
        Self {
            fingerprint: token.fingerprint(),
            demand,
            epoch: AtomicU64::new(epoch),
            state: Mutex::new(State {
                lists: HashMap::new(),
                sweep_at: FIRST_SWEEP_AT,
                refused: None,
                refused_pages: HashMap::new(),
            }),
            failing: Mutex::default(),
        }
    }

    /// Made once, since it takes a digest.
    #[must_use]
    pub fn fingerprint(&self) -> &SpaceFingerprint {
        &self.fingerprint
    }

    /// What all pages of the credential need.
    #[must_use]
    pub fn demand(&self) -> &RefreshPlan {
        &self.demand
    }

    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Whether pages of `version` were dropped since.
    #[must_use]
    pub fn invalidated_since(&self, version: Version) -> bool {
        self.epoch() != version.epoch
    }

    /// The list of this id.
    pub fn list(self: &Arc<Self>, id: &ListId) -> Arc<List> {
        let mut state = self.lock();
        if let Some(list) = state.list(id) {
            return list;
        }
        if state.lists.len() >= state.sweep_at {
            state.lists.retain(|_, list| list.strong_count() > 0);
            state.sweep_at = (2 * state.lists.len()).max(FIRST_SWEEP_AT);
        }
        let list = Arc::new(List::new(self.clone(), id.clone()));
        state.lists.insert(id.clone(), Arc::downgrade(&list));
        list
    }

    /// The list of this id, where anything of it is stored or being fetched.
    #[must_use]
    pub fn known_list(&self, id: &ListId) -> Option<Arc<List>> {
        self.lock().list(id)
    }

    /// Every list of which anything is stored or being fetched.
    #[must_use]
    pub fn lists(&self) -> Vec<Arc<List>> {
        self.lock().lists().collect()
    }

    /// Drops what is stored and remembered; pages of fills under way will not be stored. The next epoch is `epoch`, unless it is one of
    /// before; 0: any. Returns what was stored of each list.
    pub fn invalidate(&self, epoch: u64) -> Vec<(ListId, PageSet)> {
        let mut state = self.lock();
        // Two may have heard of it at once.
        if epoch > 0 && epoch <= self.epoch() {
            return Vec::new();
        }
        let epoch = epoch.max(self.epoch().saturating_add(1));
        self.epoch.store(epoch, Ordering::Release);
        state.refused = None;
        state.refused_pages.clear();
        let lists = state.lists();
        lists
            .map(|list| (list.id().clone(), list.clear()))
            .collect()
    }

    /// Remembers that the whole space is refused.
    pub fn refuse(&self, refusal: Remembered) {
        self.lock().refused = Some(refusal);
    }

    /// Remembers that one page is refused.
    pub fn refuse_page(&self, list: &ListId, query: PageQuery, refusal: Remembered) {
        let mut state = self.lock();
        if state.refused_pages.len() >= MAX_REFUSED_PAGES {
            let now = refusal.since;
            state.refused_pages.retain(|_, known| known.until > now);
        }
        let page = (list.clone(), query);
        let known = state.refused_pages.contains_key(&page);
        if known || state.refused_pages.len() < MAX_REFUSED_PAGES {
            state.refused_pages.insert(page, refusal);
        }
    }

    /// What the upstream refuses about the whole space.
    #[must_use]
    pub fn refused(&self, now: Instant) -> Option<Remembered> {
        self.lock().refused.filter(|known| known.until > now)
    }

    /// What the upstream refuses about a page: the space first, then the page.
    #[must_use]
    pub fn refusal(&self, list: &ListId, query: PageQuery, now: Instant) -> Option<Remembered> {
        let state = self.lock();
        let of_page = || state.refused_pages.get(&(list.clone(), query)).copied();
        let is_live = |known: &Remembered| known.until > now;
        state
            .refused
            .filter(is_live)
            .or_else(|| of_page().filter(is_live))
    }

    /// Forgets what was refused about a page: a fill proved otherwise.
    pub fn allow(&self, list: &ListId, query: PageQuery) {
        let mut state = self.lock();
        state.refused = None;
        if !state.refused_pages.is_empty() {
            state.refused_pages.remove(&(list.clone(), query));
        }
    }

    /// Forgets all that was refused: who asks is another.
    pub fn forget_refusals(&self) {
        let mut state = self.lock();
        state.refused = None;
        state.refused_pages.clear();
        self.failing().clear();
    }

    /// The pages that failed last.
    pub(super) fn failing(&self) -> MutexGuard<'_, FailingPages> {
        self.failing.lock()
    }

    /// Whether nothing would be lost by forgetting the space.
    #[must_use]
    pub fn is_idle(&self, now: Instant) -> bool {
        let state = self.lock();
        let live = |known: &Remembered| known.until > now;
        state.has_no_pages()
            && !state.refused.as_ref().is_some_and(live)
            && !state.refused_pages.values().any(live)
            && self.failing().is_over(now)
    }

    /// Whether no page of it is stored.
    #[must_use]
    pub fn has_no_pages(&self) -> bool {
        self.lock().has_no_pages()
    }

    /// How many pages of it are stored.
    #[must_use]
    pub fn page_count(&self) -> usize {
        let state = self.lock();
        state.lists().map(|list| list.page_count()).sum()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    fn list(&self, id: &ListId) -> Option<Arc<List>> {
        self.lists.get(id).and_then(Weak::upgrade)
    }

    fn lists(&self) -> impl Iterator<Item = Arc<List>> {
        self.lists.values().filter_map(Weak::upgrade)
    }

    fn has_no_pages(&self) -> bool {
        self.lists().all(|list| list.page_count() == 0)
    }
}

#[cfg(test)]
mod tests;
