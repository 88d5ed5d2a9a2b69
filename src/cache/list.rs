//! One list of a space: which state of it is known, and which of its pages are stored.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use compact_str::CompactString;
use http::HeaderValue;
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{page_set::PageSet, space::Space};
use crate::domain::{ListId, ListPage, PageKey, PageQuery, Span};

/// One list of a space, as one credential sees it. It lives as long as a page of it is stored or a fill of one is under way.
#[derive(Debug)]
pub struct List {
    pub(super) space: Arc<Space>,
    id: ListId,
    /// Another when the list moves: a page of an earlier generation is stale.
    generation: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// What all replicas knew its state by when this one asked last.
    pub(super) mark: Option<Mark>,
    count: Option<u64>,
    first_row: Option<CompactString>,
    moved_at: Option<Instant>,
    /// The pages that are stored.
    pub(super) pages: PageSet,
}

/// By what a list is seen to have moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move<'a> {
    Count(u64),
    FirstRow(&'a str),
}

/// The state of a space and of one of its lists when a page was cut from it.
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

/// A fill that has begun: the state of the list it is measured against when it ends.
#[derive(Clone, Debug)]
pub struct Began {
    pub key: PageKey,
    pub(super) list: Arc<List>,
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

/// The state of a list as all replicas name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// What its space is called: another name for another token of its credential, which knows of other states.
    pub name: u64,
    /// What the whole store they share was written under.
    pub era: [u64; 2],
    /// That of the space.
    pub epoch: u64,
    pub generation: u64,
}

/// How a list begins and how long it is, as far as known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListHead {
    pub count: Option<u64>,
    pub first_row: Option<CompactString>,
}

/// What taking up another's state of a list comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adopted {
    /// It is this list's state now.
    Done(Version),
    /// What is stored of the space was dropped elsewhere, or may have been: drop it, and take the state up then.
    MustInvalidate,
    /// It was dropped or moved on while the other's state was asked for, which may be from before.
    Overtaken,
}

impl List {
    /// A list of which nothing is known yet. `generation` must not be one that another list of this process had.
    pub(super) fn new(space: Arc<Space>, id: ListId, generation: u64) -> Self {
        Self {
            space,
            id,
            generation: AtomicU64::new(generation),
            state: Mutex::default(),
        }
    }

    #[must_use]
    pub fn id(&self) -> &ListId {
        &self.id
    }

    /// The state in force: what a fill that begins now is measured against.
    #[must_use]
    pub fn version(&self) -> Version {
        Version {
            epoch: self.space.epoch(),
            generation: self.generation(),
        }
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// When the list moved on from `version`, if it did.
    #[must_use]
    pub fn moved_since(&self, version: Version) -> Option<Instant> {
        if self.generation() == version.generation {
            None
        } else {
            self.lock().moved_at
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
        let mut state = self.lock();
        if self.version() != began {
            return began;
        }
        let id_member = self.id.collection().id_member;
        let first = page.rows.first().filter(|_| query.page == 1);
        let first = first.and_then(|row| page.text_of(row, id_member).map(CompactString::from));
        let other_count = state.count.is_some_and(|count| count != page.count);
        let other_first = match (&state.first_row, &first) {
            (Some(known), Some(seen)) => known != seen,
            (None, _) | (_, None) => false,
        };
        if other_count || other_first {
            // Not by both: a page beyond the first sees the count alone, and must name the same state.
            let to = if other_count {
                Move::Count(page.count)
            } else {
                Move::FirstRow(first.as_deref().unwrap_or_default())
            };
            self.advance(&mut state, next_generation(to), now);
        }
        state.count = Some(page.count);
        if first.is_some() {
            state.first_row = first;
        }
        self.version()
    }

    /// Holds the list to have moved, whatever it was: what is stored turns stale, and fills under way will be stored so.
    pub fn move_on(&self, next_generation: impl FnOnce() -> u64, now: Instant) {
        let mut state = self.lock();
        self.advance(&mut state, next_generation(), now);
        state.count = None;
    }

    /// Goes by `mark`, which all replicas share, and by what they know of the list; asked for when this was of `seen`.
    ///
    /// A move that this replica saw and the others have not heard of yet stays.
    pub fn adopt(&self, seen: Version, mark: Mark, head: &ListHead, now: Instant) -> Adopted {
        let mut of_space = self.space.lock();
        if of_space.must_drop_for(mark) {
            return match self.version() == seen {
                true => Adopted::MustInvalidate,
                false => Adopted::Overtaken,
            };
        }
        let mut state = self.lock();
        if self.version() != seen {
            return Adopted::Overtaken;
        }
        of_space.mark = Some(mark);
        let known = state.mark.replace(mark);
        let is_ahead = known
            .is_some_and(|known| (known.name, known.generation) == (mark.name, mark.generation));
        if is_ahead {
            return Adopted::Done(seen);
        }
        self.go_to(&mut state, mark.generation, now);
        state.count = state.count.or(head.count);
        if state.first_row.is_none() {
            state.first_row.clone_from(&head.first_row);
        }
        Adopted::Done(self.version())
    }

    /// Goes by `generation`, which another replica's list moved on to.
    pub fn move_to(&self, generation: u64, now: Instant) {
        let mut state = self.lock();
        if let Some(mark) = &mut state.mark {
            mark.generation = generation;
        }
        self.go_to(&mut state, generation, now);
    }

    /// What all replicas knew its state by when this one asked last.
    #[must_use]
    pub fn mark(&self) -> Option<Mark> {
        let of_space = self.space.lock().mark;
        self.lock().mark.or_else(|| {
            // One that was filled for the first time while nobody could be asked is still of the space's epoch.
            of_space.map(|mark| Mark {
                generation: self.generation(),
                ..mark
            })
        })
    }

    /// Goes by `mark`, whose epoch names what is stored here.
    pub fn confirm(&self, mark: Mark, now: Instant) {
        self.space.lock().mark = Some(mark);
        let mut state = self.lock();
        let known = state.mark.replace(mark);
        let is_ahead = known.is_some_and(|known| known.generation == mark.generation);
        if !is_ahead {
            self.go_to(&mut state, mark.generation, now);
        }
    }

    /// How it begins and how long it is, as far as known.
    #[must_use]
    pub fn head(&self) -> ListHead {
        let state = self.lock();
        ListHead {
            count: state.count,
            first_row: state.first_row.clone(),
        }
    }

    /// Turns what is of another generation stale.
    fn go_to(&self, state: &mut State, generation: u64, now: Instant) {
        if self.generation() != generation {
            self.advance(state, generation, now);
            state.count = None;
        }
    }

    fn advance(&self, state: &mut State, generation: u64, now: Instant) {
        state.moved_at = Some(now);
        state.first_row = None;
        self.generation.store(generation, Ordering::Release);
    }

    /// Forgets what is known of the list. Returns what was stored.
    pub(super) fn clear(&self) -> PageSet {
        let mut state = self.lock();
        state.mark = None;
        state.count = None;
        state.first_row = None;
        std::mem::take(&mut state.pages)
    }

    /// How many pages of it are stored.
    #[must_use]
    pub fn page_count(&self) -> usize {
        self.lock().pages.len()
    }

    /// The pages that are stored.
    #[must_use]
    pub fn pages(&self) -> Vec<PageQuery> {
        self.lock().pages.iter().collect()
    }

    /// Those of them that cover any place of `wanted`.
    #[must_use]
    pub fn pages_touching(&self, wanted: &Span) -> Vec<PageQuery> {
        self.lock().pages.touching(wanted).collect()
    }

    pub(super) fn add_page(&self, query: PageQuery) {
        self.lock().pages.insert(query);
    }

    pub(super) fn remove_page(&self, query: PageQuery) {
        self.lock().pages.remove(query);
    }

    /// Only ever after the space's own lock, where both are held.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

#[cfg(test)]
mod tests;
