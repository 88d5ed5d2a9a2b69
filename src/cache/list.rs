//! One list of a space: which state of it is known, and which of its pages are stored.
//!
//! Two numbers say which state a page shows ([`Version`]); both only grow.
//!
//! - The *epoch* belongs to the space and is raised when its pages are dropped. Pages of an earlier epoch are gone.
//! - The *generation* belongs to the list and is raised when the list moves or is dropped. Pages of an earlier generation are stale.
//! - A page of no known state has the generation 0, which is never in force: it was overtaken, or comes from another process.
//!
//! Clients see a *name* in place of the numbers. The first page of a generation gives it its name, which it keeps. A page that was not cut
//! from the state in force never has its name.
//!
//! Replicas that share a Redis agree on the order of generations by a number of its own ([`SharedList`]): of two, the larger is in force.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use self::{name::Named, state::ListState};
pub use self::{
    name::StateNames,
    state::{ListHead, Observation},
};
use super::{page_set::PageSet, space::Space};
use crate::domain::{ListId, PageKey, PageQuery, Span};

mod name;
mod state;

/// One list of a space, as one credential sees it. It lives as long as a page of it is stored or a fill of one is under way.
#[derive(Debug)]
pub struct List {
    pub(super) space: Arc<Space>,
    id: ListId,
    generation: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// The newest generation that all replicas know of; 0 where none is known.
    shared: u64,
    known: ListState,
    /// What the generation in force is called; `None` until a page of it came.
    name: Option<u64>,
    moved_at: Option<Instant>,
    /// The pages that are stored.
    pub(super) pages: PageSet,
    /// The pages that are being filled.
    filling: Vec<PageQuery>,
}

/// A fill under way, as its list knows of it until this is dropped.
#[derive(Debug)]
pub struct Filling {
    list: Arc<List>,
    query: PageQuery,
}

impl Drop for Filling {
    fn drop(&mut self) {
        let filling = &mut self.list.lock().filling;
        if let Some(place) = filling.iter().position(|query| *query == self.query) {
            filling.swap_remove(place);
        }
    }
}

/// The state of a space and of one of its lists when a page was cut from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    pub(super) epoch: u64,
    pub(super) generation: u64,
}

impl Version {
    /// Of no state that was ever in force.
    pub(super) fn of_no_generation(self) -> Self {
        Self {
            generation: 0,
            ..self
        }
    }
}

/// A fill that has begun: the state of the list it is measured against when it ends.
#[derive(Clone, Debug)]
pub struct Began {
    pub key: PageKey,
    pub(super) list: Arc<List>,
    pub(super) version: Version,
    /// What the state that its page shows is called, where that is known.
    pub(super) name: Option<u64>,
}

impl Began {
    /// What the list's state is called, where it has a name.
    #[must_use]
    pub fn state_name(&self) -> Option<u64> {
        self.list.name_of(self.version)
    }

    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.version.epoch
    }

    /// The same, of another page of the list.
    pub(super) fn of_page(&self, query: PageQuery) -> Self {
        Self {
            key: self.key.at(query),
            ..self.clone()
        }
    }

    /// The same, of another state of the list.
    pub(super) fn at(&self, version: Version, name: Option<u64>) -> Self {
        Self {
            version,
            name,
            ..self.clone()
        }
    }
}

/// The state of a list that all replicas know of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedList {
    /// Larger than that of every state before.
    pub generation: u64,
    /// What the state is called.
    pub name: u64,
    pub head: ListHead,
}

impl List {
    /// A list of which nothing is known yet.
    pub(super) fn new(space: Arc<Space>, id: ListId) -> Self {
        Self {
            space,
            id,
            generation: AtomicU64::new(1),
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
            return None;
        }
        // It was dropped at this moment where it never moved.
        let moved_at = self.lock().moved_at;
        Some(moved_at.unwrap_or_else(Instant::now))
    }

    /// What the state of `version` is called, while it is in force and has a name.
    #[must_use]
    pub(super) fn name_of(&self, version: Version) -> Option<u64> {
        let state = self.lock();
        state.name.filter(|_| self.version() == version)
    }

    /// Takes note of a page that a fill begun at `began` brought. Returns which state of the list it shows, and what that is called; `None`
    /// where nobody can tell.
    ///
    /// `lifetime` is how long pages live: changes that are undone within it are a lagging upstream's.
    pub(super) fn observe(
        &self,
        began: Version,
        page: &Observation<'_>,
        lifetime: Duration,
        now: Instant,
        names: &StateNames,
    ) -> (Version, Option<u64>) {
        let mut state = self.lock();
        let version = self.version();
        if began.epoch != version.epoch {
            return (began.of_no_generation(), None);
        }
        let is_overtaken = began.generation != version.generation;
        let was_unknown = state.known.head.count.is_none();
        let verdict = state.known.observe(page, is_overtaken, lifetime, now);
        // The first state that is known overtakes the fills that were sent before it: an older one of them moves nothing back.
        let is_first = was_unknown && state.known.head.count.is_some();
        if verdict.moved || is_first {
            self.advance(&mut state, now);
        }
        let in_force = self.version();
        let Some(count) = state.known.head.count else {
            return (in_force.of_no_generation(), None);
        };
        let mut named = Named {
            space: self.space.fingerprint(),
            list: &self.id,
            epoch: version.epoch,
            count,
            marker: state.known.marker.as_deref().unwrap_or_default(),
        };
        if verdict.is_current {
            let name = names.name(&named);
            return (in_force, Some(*state.name.get_or_insert(name)));
        }
        // A generation of its own. No row is called so.
        let marker = format!("\0{} {}", page.query, page.first_row.unwrap_or_default());
        (named.count, named.marker) = (page.count, &marker);
        (in_force.of_no_generation(), Some(names.name(&named)))
    }

    /// Holds the list to have moved, whatever it was: what is stored turns stale, and fills under way will be stored so.
    pub fn move_on(&self, now: Instant) {
        let mut state = self.lock();
        self.advance(&mut state, now);
        state.known = ListState::default();
    }

    /// Goes by `told`, unless it is older than what is known. Hearing the same twice, or in another order, comes to the same.
    ///
    /// A move that this replica saw and the others have not heard of yet stays.
    pub fn hear(&self, told: &SharedList, now: Instant) {
        let mut state = self.lock();
        let is_newer = told.generation > state.shared;
        if is_newer {
            state.shared = told.generation;
            if state.name != Some(told.name) {
                self.advance(&mut state, now);
                state.known = ListState::default();
                state.name = Some(told.name);
            }
        }
        if told.generation == state.shared && state.name == Some(told.name) {
            state.known.adopt(&told.head);
        }
    }

    /// The newest generation that all replicas know of; 0 where none is known.
    #[must_use]
    pub fn shared_generation(&self) -> u64 {
        self.lock().shared
    }

    /// The state of `version` to tell the other replicas, and the newest generation that they know of; `None` once it is not in force.
    /// Without coherent pages a state has no name.
    #[must_use]
    pub fn to_share(&self, version: Version) -> Option<SharedList> {
        let state = self.lock();
        (self.version() == version).then(|| SharedList {
            generation: state.shared,
            name: state.name.unwrap_or_default(),
            head: state.known.head.clone(),
        })
    }

    fn advance(&self, state: &mut State, now: Instant) {
        state.moved_at = Some(now);
        state.name = None;
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Forgets what is known of the list, which begins a new generation. Returns what was stored.
    pub(super) fn clear(&self) -> PageSet {
        let mut state = self.lock();
        self.generation.fetch_add(1, Ordering::AcqRel);
        let filling = std::mem::take(&mut state.filling);
        let before = std::mem::replace(
            &mut *state,
            State {
                filling,
                ..State::default()
            },
        );
        before.pages
    }

    /// Notes that a page is being filled, until what it returns is dropped.
    pub(super) fn note_filling(self: Arc<Self>, query: PageQuery) -> Filling {
        self.lock().filling.push(query);
        Filling { list: self, query }
    }

    /// Whether another page than `query` is being filled.
    #[must_use]
    pub fn is_filling_other(&self, query: PageQuery) -> bool {
        self.lock().filling.iter().any(|filling| *filling != query)
    }

    /// Whether it may have had `count` rows a moment ago.
    pub(super) fn may_have_ended(&self, count: u64, lifetime: Duration, now: Instant) -> bool {
        self.lock().known.may_have_ended(count, lifetime, now)
    }

    /// How many rows it has, as far as is known.
    #[must_use]
    pub fn known_count(&self) -> Option<u64> {
        self.lock().known.head.count
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

    /// At most so many of them that are not `query`.
    pub(super) fn other_pages(&self, query: PageQuery, most: usize) -> Vec<PageQuery> {
        let state = self.lock();
        let others = state.pages.iter().filter(|page| *page != query);
        others.take(most).collect()
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
