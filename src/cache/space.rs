//! What is known of a space beyond its pages: the state of its list, and what the upstream refuses.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use compact_str::CompactString;
use http::HeaderValue;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{page_set::PageSet, stretch::Demand};
use crate::domain::{ListPage, PageKey, PageQuery, Refusal, SpaceFingerprint, SpaceToken, Span};

/// Most pages of one space whose refusals are remembered at once.
const MAX_REFUSED_PAGES: usize = 256;

/// One space as one credential sees it.
#[derive(Debug)]
pub struct Space {
    fingerprint: SpaceFingerprint,
    demand: Arc<Demand>,
    /// Raised when the space's pages are dropped: a page of an earlier epoch is gone.
    epoch: AtomicU64,
    /// Raised when the list moves: a page of an earlier generation is stale.
    generation: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What all replicas knew the space's state by when this one asked last.
    mark: Option<Mark>,
    count: Option<u64>,
    first_task: Option<CompactString>,
    moved_at: Option<Instant>,
    /// The pages that are stored.
    pages: PageSet,
    refused: Option<Remembered>,
    refused_pages: HashMap<PageQuery, Remembered>,
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

/// By what a list is seen to have moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move<'a> {
    Count(u64),
    FirstTask(&'a str),
}

/// The state of a space when a page was cut from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    pub(super) epoch: u64,
    pub(super) generation: u64,
}

impl Version {
    /// The generation as clients see it.
    pub(super) fn field(self) -> HeaderValue {
        HeaderValue::try_from(format!("{:016x}", self.generation)).expect("hex digits are ASCII")
    }
}

/// A fill that has begun: the state of the space it is measured against when it ends.
#[derive(Clone, Debug)]
pub struct Began {
    pub key: PageKey,
    pub(super) space: Arc<Space>,
    pub(super) version: Version,
    pub(super) coherence: Coherence,
}

/// Whether it is known which state of its list a page shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coherence {
    Watched,
    /// No fill was compared with what was known of the list, or another process did so.
    Unwatched,
}

impl Began {
    /// The generation of the list by then.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.version.generation
    }

    /// The state of the list as others may be told it.
    pub(super) fn known_version(&self) -> Option<Version> {
        match self.coherence {
            Coherence::Watched => Some(self.version),
            Coherence::Unwatched => None,
        }
    }

    /// The same, of another state of the list.
    pub(super) fn at(&self, version: Version) -> Self {
        Self {
            version,
            ..self.clone()
        }
    }
}

/// The state of a space as all replicas name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// What the space is called: another name for another token of its credential, which knows of other states.
    pub name: u64,
    /// What the whole store they share was written under.
    pub era: [u64; 2],
    pub epoch: u64,
    pub generation: u64,
}

/// How a list begins and how long it is, as far as known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListHead {
    pub count: Option<u64>,
    pub first_task: Option<CompactString>,
}

/// What taking up another's state of a space comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adopted {
    /// It is this space's state now.
    Done(Version),
    /// What is stored was dropped elsewhere, or may have been: drop it, and take the state up then.
    MustDrop,
    /// It was dropped or moved on while the other's state was asked for, which may be from before.
    Overtaken,
}

impl Space {
    /// A space of which nothing is known yet. `generation` must not be one that another space of this process had.
    #[must_use]
    pub fn new(token: &SpaceToken, generation: u64, demand: Arc<Demand>) -> Self {
        Self {
            fingerprint: token.fingerprint(),
            demand,
            epoch: AtomicU64::new(0),
            generation: AtomicU64::new(generation),
            state: Mutex::default(),
        }
    }

    /// Made once, since it takes a digest.
    #[must_use]
    pub fn fingerprint(&self) -> &SpaceFingerprint {
        &self.fingerprint
    }

    /// What all pages of the credential need.
    #[must_use]
    pub fn demand(&self) -> &Demand {
        &self.demand
    }

    /// The state in force: what a fill that begins now is measured against.
    #[must_use]
    pub fn version(&self) -> Version {
        Version {
            epoch: self.epoch.load(Ordering::Acquire),
            generation: self.generation.load(Ordering::Acquire),
        }
    }

    /// Whether pages of `version` were dropped since.
    #[must_use]
    pub fn dropped_since(&self, version: Version) -> bool {
        self.epoch.load(Ordering::Acquire) != version.epoch
    }

    /// When the list moved on from `version`, if it did.
    #[must_use]
    pub fn moved_since(&self, version: Version) -> Option<Instant> {
        if self.generation.load(Ordering::Acquire) == version.generation {
            None
        } else {
            self.state.lock().moved_at
        }
    }

    /// Takes note of a page that a fill begun at `began` brought, and says which state of the list it shows.
    ///
    /// The list has moved if its count changed, or the first row of its first page. A fill that began before the last move
    /// cannot tell and moves nothing.
    pub fn observe(
        &self,
        began: Version,
        query: PageQuery,
        page: &ListPage,
        next_generation: impl FnOnce(Move<'_>) -> u64,
        now: Instant,
    ) -> Version {
        let mut state = self.state.lock();
        if self.version() != began {
            return began;
        }
        let first = page.rows.first().filter(|_| query.page == 1);
        let first = first.and_then(|row| page.id_of(row).map(CompactString::from));
        let other_count = state.count.is_some_and(|count| count != page.count);
        let other_first = match (&state.first_task, &first) {
            (Some(known), Some(seen)) => known != seen,
            (None, _) | (_, None) => false,
        };
        if other_count || other_first {
            // Not by both: a page beyond the first sees the count alone, and must name the same state.
            let to = if other_count {
                Move::Count(page.count)
            } else {
                Move::FirstTask(first.as_deref().unwrap_or_default())
            };
            self.advance(&mut state, next_generation(to), now);
        }
        state.count = Some(page.count);
        if first.is_some() {
            state.first_task = first;
        }
        self.version()
    }

    /// Holds the list to have moved, whatever it was: what is stored turns stale, and fills under way will be stored so.
    pub fn move_on(&self, next_generation: impl FnOnce() -> u64, now: Instant) {
        let mut state = self.state.lock();
        self.advance(&mut state, next_generation(), now);
        state.count = None;
    }

    /// Goes by `mark`, which all replicas share, and by what they know of the list; asked for when this was of `seen`.
    ///
    /// A move that this replica saw and the others have not heard of yet stays.
    pub fn adopt(&self, seen: Version, mark: Mark, list: &ListHead, now: Instant) -> Adopted {
        let mut state = self.state.lock();
        if self.version() != seen {
            return Adopted::Overtaken;
        }
        let must_drop = match state.mark {
            None => !state.pages.is_empty(),
            // Invalidations are published under every name of a space, so this one was heard.
            Some(known) if known.name != mark.name => false,
            Some(known) => (known.era, known.epoch) != (mark.era, mark.epoch),
        };
        if must_drop {
            return Adopted::MustDrop;
        }
        let known = state.mark.replace(mark);
        let is_ahead = known
            .is_some_and(|known| (known.name, known.generation) == (mark.name, mark.generation));
        if is_ahead {
            return Adopted::Done(seen);
        }
        if self.generation.load(Ordering::Acquire) != mark.generation {
            self.advance(&mut state, mark.generation, now);
            state.count = None;
        }
        state.count = state.count.or(list.count);
        if state.first_task.is_none() {
            state.first_task.clone_from(&list.first_task);
        }
        Adopted::Done(self.version())
    }

    /// Goes by `generation`, which another replica's list moved on to.
    pub fn move_to(&self, generation: u64, now: Instant) {
        let mut state = self.state.lock();
        if let Some(mark) = &mut state.mark {
            mark.generation = generation;
        }
        if self.generation.load(Ordering::Acquire) != generation {
            self.advance(&mut state, generation, now);
            state.count = None;
        }
    }

    /// What all replicas knew its state by when this one asked last.
    #[must_use]
    pub fn mark(&self) -> Option<Mark> {
        self.state.lock().mark
    }

    /// Goes by `mark`, whose epoch names what is stored here.
    pub fn confirm(&self, mark: Mark, now: Instant) {
        let mut state = self.state.lock();
        let known = state.mark.replace(mark);
        let is_ahead = known.is_some_and(|known| known.generation == mark.generation);
        if !is_ahead && self.generation.load(Ordering::Acquire) != mark.generation {
            self.advance(&mut state, mark.generation, now);
            state.count = None;
        }
    }

    /// What is known of its list.
    #[must_use]
    pub fn list_head(&self) -> ListHead {
        let state = self.state.lock();
        ListHead {
            count: state.count,
            first_task: state.first_task.clone(),
        }
    }

    fn advance(&self, state: &mut State, generation: u64, now: Instant) {
        state.moved_at = Some(now);
        state.first_task = None;
        self.generation.store(generation, Ordering::Release);
    }

    /// Drops what is stored and remembered; pages of fills under way will not be stored. Returns what was stored.
    pub fn drop_pages(&self) -> PageSet {
        let mut state = self.state.lock();
        self.epoch.fetch_add(1, Ordering::AcqRel);
        state.mark = None;
        state.count = None;
        state.first_task = None;
        state.refused = None;
        state.refused_pages.clear();
        std::mem::take(&mut state.pages)
    }

    /// Remembers that the whole space is refused.
    pub fn refuse(&self, refusal: Remembered) {
        self.state.lock().refused = Some(refusal);
    }

    /// Remembers that one page is refused.
    pub fn refuse_page(&self, query: PageQuery, refusal: Remembered) {
        let mut state = self.state.lock();
        if state.refused_pages.len() >= MAX_REFUSED_PAGES {
            let now = refusal.since;
            state.refused_pages.retain(|_, known| known.until > now);
        }
        let known = state.refused_pages.contains_key(&query);
        if known || state.refused_pages.len() < MAX_REFUSED_PAGES {
            state.refused_pages.insert(query, refusal);
        }
    }

    /// What the upstream refuses about the whole space.
    #[must_use]
    pub fn refused(&self, now: Instant) -> Option<Remembered> {
        self.state.lock().refused.filter(|known| known.until > now)
    }

    /// What the upstream refuses about `query`: the space first, then the page.
    #[must_use]
    pub fn refusal(&self, query: PageQuery, now: Instant) -> Option<Remembered> {
        let state = self.state.lock();
        state
            .refused
            .into_iter()
            .chain(state.refused_pages.get(&query).copied())
            .find(|known| known.until > now)
    }

    /// Forgets what was refused about `query`: a fill proved otherwise.
    pub fn allow(&self, query: PageQuery) {
        let mut state = self.state.lock();
        state.refused = None;
        state.refused_pages.remove(&query);
    }

    /// Forgets all that was refused: who asks is another.
    pub fn forget_refusals(&self) {
        let mut state = self.state.lock();
        state.refused = None;
        state.refused_pages.clear();
    }

    /// Whether nothing would be lost by forgetting the space.
    #[must_use]
    pub fn is_idle(&self, now: Instant) -> bool {
        let state = self.state.lock();
        let live = |known: &Remembered| known.until > now;
        state.pages.is_empty()
            && !state.refused.as_ref().is_some_and(live)
            && !state.refused_pages.values().any(live)
    }

    /// Whether no page of it is stored.
    #[must_use]
    pub fn has_no_pages(&self) -> bool {
        self.state.lock().pages.is_empty()
    }

    /// How many pages of it are stored.
    #[must_use]
    pub fn page_count(&self) -> usize {
        self.state.lock().pages.len()
    }

    /// The pages that are stored.
    #[must_use]
    pub fn pages(&self) -> Vec<PageQuery> {
        self.state.lock().pages.iter().collect()
    }

    /// Those of them that cover any place of `wanted`.
    #[must_use]
    pub fn pages_touching(&self, wanted: &Span) -> Vec<PageQuery> {
        self.state.lock().pages.touching(wanted).collect()
    }

    pub(super) fn add_page(&self, query: PageQuery) {
        self.state.lock().pages.insert(query);
    }

    pub(super) fn remove_page(&self, query: PageQuery) {
        self.state.lock().pages.remove(query);
    }
}

#[cfg(test)]
mod tests;
