//! Where pages are stored: bounded in bytes, least valuable out first.
//!
//! moka bounds how much; [`super::freshness`] judges how old, by tokio's clock, which tests can turn.
//!
//! Invariant: while nobody holds `writing`, each space lists exactly its pages that moka holds.
//! Whoever adds a page lists it first, and lets go of `writing` only after moka has evicted what the page displaced.
//! Whatever leaves moka, but for a newer page under its key, is taken off the list by the eviction listener.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, Guard};
use foldhash::quality::RandomState;
use moka::{notification::RemovalCause, sync::Cache};
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use super::{
    entry::{Content, Received, StoredPage},
    freshness::{initial_age, may_store, refusal_lifetime},
    list::{Coherence, List, Move, Version},
    memory::BodyMemory,
    space::{Remembered, Space},
    stretch::Demand,
};
use crate::{
    config::CacheConfig,
    domain::{CredentialId, ListKey, ListPage, PageKey, Refusal, SpaceKey},
};

mod drops;
mod lifetimes;
mod lists;
mod packing;
mod rules;
mod saved;
mod shared;

use self::{drops::Unfreed, rules::Rules};
pub use self::{
    lifetimes::SharedOut,
    packing::{COLD_AFTER, COLD_WHERE_CROWDED},
    shared::Shared,
};
pub use super::list::Began;

/// Spaces of which no page is stored, but a refusal is remembered; beyond it the refusals go.
const MAX_PAGELESS_SPACES: usize = 16_384;
const FIRST_SWEEP_AT: usize = 1024;
/// One part in so many is left for pages that are evicted but not freed yet: moka frees by epochs, a few dozen pages later.
/// Without it a store of 256 MiB grew by 338 MiB with pages of 1 MB.
const EVICTED_SHARE: usize = 10;
/// A page heavier than this share of the whole store would push out too much else: it is answered, not stored.
const LARGEST_SHARE: usize = 4;

/// Every stored page, and what is known of each space.
#[derive(Debug)]
pub struct PageStore {
    pages: Cache<PageKey, Arc<StoredPage>, RandomState>,
    spaces: Mutex<Spaces>,
    /// One change at a time. moka's inserts run ahead of its evictions by 64 entries whatever their size, so each insert is
    /// followed by its evictions (measured: a cap of 10 MB held 75 MB of 1 MB entries without, 10 MB with).
    writing: Mutex<()>,
    rules: ArcSwap<Rules>,
    demands: Mutex<HashMap<CredentialId, Arc<Demand>>>,
    max_bytes: usize,
    dropped: Notify,
    unfreed: Unfreed,
    stirred: Notify,
    next_generation: AtomicU64,
    evictions: Arc<AtomicU64>,
    memory: BodyMemory,
}

#[derive(Debug)]
struct Spaces {
    known: HashMap<SpaceKey, Arc<Space>>,
    sweep_at: usize,
}

/// What became of a page that a fill brought.
#[derive(Clone, Debug)]
pub struct Kept {
    pub page: Arc<StoredPage>,
    pub stored: bool,
    /// Whether it may be kept at all, room or not.
    pub may_be_kept: bool,
}

/// Whether anybody wants a page kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    Yes,
    /// Not the page, but what it tells of what is stored counts.
    No,
    /// Nor that: it was asked for with a token that others have replaced.
    Overtaken,
}

impl PageStore {
    #[must_use]
    pub fn new(config: &CacheConfig) -> Self {
        let evictions = Arc::new(AtomicU64::new(0));
        let evicted = evictions.clone();
        let pages = Cache::builder()
            .max_capacity((config.max_bytes - config.max_bytes / EVICTED_SHARE) as u64)
            .weigher(|_: &PageKey, page: &Arc<StoredPage>| {
                u32::try_from(page.weight()).unwrap_or(u32::MAX)
            })
            .eviction_listener(move |key: Arc<PageKey>, page: Arc<StoredPage>, cause| {
                if cause == RemovalCause::Size {
                    evicted.fetch_add(1, Ordering::Relaxed);
                }
                if cause != RemovalCause::Replaced {
                    page.list.remove_page(key.query);
                }
            })
            .build_with_hasher(RandomState::default());
        Self {
            pages,
            spaces: Mutex::new(Spaces {
                known: HashMap::new(),
                sweep_at: FIRST_SWEEP_AT,
            }),
            writing: Mutex::new(()),
            rules: ArcSwap::from_pointee(Rules::new(config)),
            demands: Mutex::default(),
            max_bytes: config.max_bytes,
            dropped: Notify::new(),
            unfreed: Unfreed::default(),
            stirred: Notify::new(),
            next_generation: AtomicU64::new(random()),
            evictions,
            memory: BodyMemory::default(),
        }
    }

    /// Bytes of bodies that are in memory and not stored: answers on their way out hold them.
    #[must_use]
    pub fn unstored_bytes(&self) -> usize {
        let stored = usize::try_from(self.pages.weighted_size()).unwrap_or(usize::MAX);
        self.memory.bytes().saturating_sub(stored)
    }

    /// Goes by `config` from now on, but for its size. Pages keep the lifetime they were stored with.
    pub fn reconfigure(&self, config: &CacheConfig) {
        let rules = Rules::new(config);
        let stretch_max = rules.stretch_max;
        let watches = rules.coherent;
        let before = self.rules.swap(Arc::new(rules));
        self.limit_stretch(stretch_max);
        if watches && !before.coherent {
            self.distrust_all(Instant::now());
        }
    }

    /// The page under `key`, whatever its age.
    #[must_use]
    pub fn get(&self, key: &PageKey) -> Option<Arc<StoredPage>> {
        self.pages.get(key).filter(|page| !page.is_dropped())
    }

    /// What the upstream refuses about `key`, as far as it is remembered.
    #[must_use]
    pub fn refusal(&self, key: &PageKey, now: Instant) -> Option<Remembered> {
        let space = self.known(&key.list.space)?;
        space.refusal(&key.list.id, key.query, now)
    }

    /// How often the pages of a space were dropped: fills that began before and after are not each other's.
    #[must_use]
    pub fn epoch(&self, key: &SpaceKey) -> u64 {
        self.known(key).map_or(0, |space| space.epoch())
    }

    /// Notes that a fill of `key` begins.
    #[must_use]
    pub fn begin(&self, key: PageKey, now: Instant) -> Began {
        // Before the version: a fill is not watched from its middle on.
        let coherence = match self.is_coherent() {
            true => Coherence::Watched,
            false => Coherence::Unwatched,
        };
        let space = self.space(&key.list.space, now);
        let list = space.list(&key.list.id, || self.generation());
        let version = list.version();
        Began {
            key,
            list,
            version,
            coherence,
        }
    }

    /// Takes in the page that a fill brought.
    pub fn put(&self, began: &Began, page: ListPage, answer: &Received<'_>, keep: Keep) -> Kept {
        let version = self.observe(began, &page, answer.received, keep);
        let lifetimes = self.rules().lifetimes_of(&began.key, &page);
        let page = StoredPage::new(
            Arc::new(Content::new(
                page,
                answer.received,
                self.age_of(answer),
                &self.memory,
            )),
            answer,
            &lifetimes,
            self.jitter_factor(),
            began.at(version),
            self.popularity(&began.key, answer.received),
        );
        self.keep(began, page, answer, keep)
    }

    fn age_of(&self, answer: &Received<'_>) -> Duration {
        initial_age(answer, &self.rules().lifetimes)
    }

    /// Renews `page` as a 304 told.
    pub fn renew(
        &self,
        began: &Began,
        page: &StoredPage,
        answer: &Received<'_>,
        keep: Keep,
    ) -> Kept {
        let shown = page.content.page();
        let version = self.observe(began, &shown, answer.received, keep);
        let lifetimes = self.rules().lifetimes_of(&began.key, &shown);
        let page = page.renewed(answer, &lifetimes, self.jitter_factor(), began.at(version));
        self.keep(began, page, answer, keep)
    }

    /// Takes in that the upstream refused. What holds for the space drops its pages: a revoked right is never hidden.
    pub fn refuse(
        &self,
        began: &Began,
        refusal: Refusal,
        answer: Option<&Received<'_>>,
        keep: Keep,
        now: Instant,
    ) {
        if keep == Keep::Overtaken {
            return;
        }
        let rules = self.rules();
        let (space, key) = (&began.list.space, &began.key);
        // A purge forgets refusals too: one told before it is not remembered after it.
        let overtaken = space.dropped_since(began.version);
        let remembered = |configured| {
            let lifetime = match keep {
                Keep::Yes => refusal_lifetime(answer, &rules.lifetimes, configured),
                // Old pages go all the same: that they no longer hold is no part of the answer.
                Keep::No | Keep::Overtaken => None,
            };
            lifetime.filter(|_| !overtaken).map(|lifetime| Remembered {
                refusal,
                until: now + lifetime,
                since: now,
                initial_age: answer.map_or(Duration::ZERO, |answer| {
                    initial_age(answer, &rules.lifetimes)
                }),
            })
        };
        match refusal {
            Refusal::SpaceNotFound | Refusal::SpaceAccessDenied => {
                // Of several fills that are refused at once the first is remembered, and the others drop it with the pages.
                let known = space.refused(now);
                self.drop_pages(&key.list.space, space);
                if let Some(refusal) = remembered(rules.negative_ttl).or(known) {
                    space.refuse(refusal);
                }
            }
            Refusal::Rejected | Refusal::Failed => {
                if let Some(refusal) = remembered(rules.rejected_ttl) {
                    space.refuse_page(&key.list.id, key.query, refusal);
                }
            }
        }
    }

    /// Weighs the entry of `page` again, after something was made of it or dropped.
    pub fn reweigh(&self, page: &StoredPage) {
        let _writing = self.writing.lock();
        // It may have been renewed meanwhile: what was made is part of the new one too.
        let same = |stored: &Arc<StoredPage>| stored.content.is_source_of(page);
        if let Some(stored) = self.pages.get(&page.key).filter(same) {
            // moka weighs an entry when it is inserted.
            self.insert(&stored);
        }
    }

    /// Turns all pages stale: nobody watched which state of its list each shows.
    fn distrust_all(&self, now: Instant) {
        let known: Vec<_> = self.spaces.lock().known.values().cloned().collect();
        for space in known {
            self.move_on(&space, now);
        }
    }

    /// Turns all pages of `credential` stale, and forgets what was refused: until filled anew they stand in for errors and quota alone.
    pub fn distrust(&self, credential: CredentialId, now: Instant) {
        for space in self.spaces_of(credential).values() {
            self.move_on(space, now);
            space.forget_refusals();
        }
    }

    fn move_on(&self, space: &Space, now: Instant) {
        for list in space.lists() {
            list.move_on(|| self.generation(), now);
        }
    }

    /// Drops all pages of `credential` and forgets it.
    pub fn forget(&self, credential: CredentialId) {
        for (key, space) in self.spaces_of(credential) {
            self.drop_pages(&key, &space);
        }
        self.demands.lock().remove(&credential);
    }

    fn spaces_of(&self, credential: CredentialId) -> HashMap<SpaceKey, Arc<Space>> {
        let spaces = self.spaces.lock();
        let known = spaces.known.iter();
        known
            .filter(|(key, _)| key.credential == credential)
            .map(|(key, space)| (key.clone(), space.clone()))
            .collect()
    }

    /// Bytes and pages stored.
    #[must_use]
    pub fn size(&self) -> (u64, u64) {
        self.pages.run_pending_tasks();
        (self.pages.weighted_size(), self.pages.entry_count())
    }

    /// Pages pushed out for want of room since the start.
    #[must_use]
    pub fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }

    /// Whether pages of a list that moved turn stale.
    fn is_coherent(&self) -> bool {
        self.rules().coherent
    }

    fn observe(&self, began: &Began, page: &ListPage, now: Instant, keep: Keep) -> Version {
        if self.is_coherent() && keep != Keep::Overtaken {
            let next = |to: Move<'_>| next_generation(began.version.generation, to);
            began
                .list
                .observe(began.version, began.key.query, page, next, now)
        } else {
            began.version
        }
    }

    fn keep(&self, began: &Began, page: StoredPage, answer: &Received<'_>, keep: Keep) -> Kept {
        let allowed = may_store(answer.headers, &self.rules().lifetimes)
            && page.is_worth_keeping()
            && page.weight() <= self.max_bytes / LARGEST_SHARE;
        let page = Arc::new(page);
        let mut may_be_kept = false;
        let stored = {
            let _writing = self.writing.lock();
            if keep == Keep::Overtaken || began.list.space.dropped_since(began.version) {
                false
            } else if !allowed {
                // What the upstream forbids to keep takes the place of what it allowed before.
                self.pages.invalidate(&began.key);
                false
            } else if keep == Keep::No {
                false
            } else {
                may_be_kept = true;
                let (list, query) = (&began.list, began.key.query);
                list.space.allow(list.id(), query);
                list.add_page(query);
                self.insert(&page);
                // A full store may turn a page away that is asked for less than those it holds.
                self.pages.contains_key(&began.key)
            }
        };
        Kept {
            page,
            stored,
            may_be_kept,
        }
    }

    /// Only under `writing`.
    fn insert(&self, page: &Arc<StoredPage>) {
        self.pages.insert(page.key.clone(), page.clone());
        self.pages.run_pending_tasks();
        self.stirred.notify_one();
    }

    /// What is known of a space, if anything is.
    fn known(&self, key: &SpaceKey) -> Option<Arc<Space>> {
        self.spaces.lock().known.get(key).cloned()
    }

    /// A list of which something is stored or being fetched.
    fn known_list(&self, key: &ListKey) -> Option<Arc<List>> {
        self.known(&key.space)?.known_list(&key.id)
    }

    fn space(&self, key: &SpaceKey, now: Instant) -> Arc<Space> {
        let mut spaces = self.spaces.lock();
        if let Some(space) = spaces.known.get(key) {
            return space.clone();
        }
        spaces.sweep(now);
        let demand = self.demand(key.credential);
        let space = Arc::new(Space::new(&key.space, demand));
        spaces.known.insert(key.clone(), space.clone());
        space
    }

    fn generation(&self) -> u64 {
        self.next_generation.fetch_add(1, Ordering::Relaxed)
    }

    fn rules(&self) -> Guard<Arc<Rules>> {
        self.rules.load()
    }
}

impl Spaces {
    /// Forgets spaces of which nothing is left, each time their number has doubled since.
    fn sweep(&mut self, now: Instant) {
        if self.known.len() < self.sweep_at {
            return;
        }
        let in_use = |space: &Arc<Space>| Arc::strong_count(space) > 1;
        self.known
            .retain(|_, space| in_use(space) || !space.is_idle(now));
        let pageless = self
            .known
            .values()
            .filter(|space| !in_use(space) && space.has_no_pages())
            .count();
        if pageless > MAX_PAGELESS_SPACES {
            self.known
                .retain(|_, space| in_use(space) || !space.has_no_pages());
        }
        self.sweep_at = (2 * self.known.len()).max(FIRST_SWEEP_AT);
    }
}

/// The generation that follows `before` when the list is seen to have moved: whoever sees the same move names it alike.
fn next_generation(before: u64, to: Move<'_>) -> u64 {
    let mut hasher = blake3::Hasher::new_derive_key("unpod-gateway list generation");
    hasher.update(&before.to_le_bytes());
    match to {
        Move::Count(count) => hasher.update(b"count").update(&count.to_le_bytes()),
        Move::FirstRow(id) => hasher.update(b"first").update(id.as_bytes()),
    };
    let digest: [u8; blake3::OUT_LEN] = hasher.finalize().into();
    let (first, _) = digest.split_first_chunk().expect("a digest is longer");
    u64::from_le_bytes(*first)
}

fn random() -> u64 {
    use std::hash::BuildHasher;
    std::hash::RandomState::new().hash_one(())
}

#[cfg(test)]
mod tests;
