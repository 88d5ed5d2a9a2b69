//! Where pages are stored: bounded in bytes, least valuable out first.
//!
//! moka bounds how much; [`super::freshness`] judges how old, by tokio's clock, which tests can turn.
//!
//! Invariant: while nobody holds `writing`, each list names exactly its pages that moka holds, invalidated ones aside.
//! Whoever adds a page names it first, and lets go of `writing` only after moka has evicted what the page displaced.
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
    entry::StoredPage, list::StateNames, memory::BodyMemory, refresh_plan::RefreshPlan,
    space::Remembered,
};
use crate::{
    config::CacheConfig,
    domain::{CredentialId, PageKey, SpaceKey},
};

mod fills;
mod idle_compression;
mod invalidation;
mod lifetimes;
mod lists;
mod observed;
mod ranges;
mod row_limits;
mod rules;
mod saved;
mod shared;
mod spaces;

pub use self::{
    fills::{Extent, StoreDecision, StoreOutcome},
    idle_compression::{IDLE_AFTER, IDLE_AFTER_IF_CROWDED},
    lifetimes::SharedOut,
    shared::Shared,
};
use self::{invalidation::Unfreed, row_limits::RowLimits, rules::Rules, spaces::Spaces};
pub use super::list::Began;

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
    demands: Mutex<HashMap<CredentialId, Arc<RefreshPlan>>>,
    max_bytes: usize,
    invalidated: Notify,
    unfreed: Unfreed,
    changed: Notify,
    /// What each credential's states of lists are called.
    names: Mutex<HashMap<CredentialId, StateNames>>,
    evictions: Arc<AtomicU64>,
    memory: BodyMemory,
    row_limits: RowLimits,
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
            spaces: Mutex::default(),
            writing: Mutex::new(()),
            rules: ArcSwap::from_pointee(Rules::new(config)),
            demands: Mutex::default(),
            max_bytes: config.max_bytes,
            invalidated: Notify::new(),
            unfreed: Unfreed::default(),
            changed: Notify::new(),
            names: Mutex::default(),
            evictions,
            memory: BodyMemory::default(),
            row_limits: RowLimits::default(),
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
        self.pages.get(key).filter(|page| !page.is_invalidated())
    }

    /// How long a fill may take before a stale page is shown to who waits for it; `None`: as long as it takes.
    #[must_use]
    pub fn stale_if_slow(&self) -> Option<Duration> {
        self.rules().stale_if_slow
    }

    /// What the upstream refuses about `key`, as far as it is remembered.
    #[must_use]
    pub fn refusal(&self, key: &PageKey, now: Instant) -> Option<Remembered> {
        let space = self.known(&key.list.space)?;
        space.refusal(&key.list.id, key.query, now)
    }

    /// What the upstream refuses about a whole space, as far as it is remembered.
    #[must_use]
    pub fn space_refusal(&self, key: &SpaceKey, now: Instant) -> Option<Remembered> {
        self.known(key)?.refused(now)
    }

    /// How often the pages of a space were invalidated: a fill begun before does not answer requests made after.
    #[must_use]
    pub fn epoch(&self, key: &SpaceKey) -> u64 {
        self.spaces.lock().epoch(key)
    }

    /// Notes that a fill of `key` begins.
    #[must_use]
    pub fn begin(&self, key: PageKey, now: Instant) -> Began {
        let space = self.space(&key.list.space, 0, now);
        let list = space.list(&key.list.id);
        let version = list.version();
        Began {
            key,
            list,
            version,
            name: None,
        }
    }

    /// Weighs the entry of `page` again, after something was made of it or dropped.
    pub fn reweigh(&self, page: &StoredPage) {
        let _writing = self.writing.lock();
        // It may have been renewed meanwhile: what was made is part of the new one too.
        let same = |stored: &Arc<StoredPage>| stored.content.is_source_of(&page.content);
        if let Some(stored) = self.pages.get(&page.key).filter(same) {
            // moka weighs an entry when it is inserted.
            self.insert(&stored);
        }
    }

    /// Bytes and pages stored.
    #[must_use]
    pub fn size(&self) -> (u64, u64) {
        self.pages.run_pending_tasks();
        (self.pages.weighted_size(), self.pages.entry_count())
    }

    /// Pages evicted since the start.
    #[must_use]
    pub fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }

    /// Names the states of lists by `names` from now on; those of a credential that is not among them by a secret of this process.
    pub fn set_names(&self, names: HashMap<CredentialId, StateNames>) {
        *self.names.lock() = names;
    }

    fn names(&self, credential: CredentialId) -> StateNames {
        let own = || StateNames::new(&blake3::hash(&random().to_le_bytes()).into());
        let mut names = self.names.lock();
        names.entry(credential).or_insert_with(own).clone()
    }

    /// Whether pages are cut from pages of other sizes.
    #[must_use]
    pub fn assembles(&self) -> bool {
        self.rules().assembles
    }

    /// Whether pages of a list that moved turn stale.
    fn is_coherent(&self) -> bool {
        self.rules().coherent
    }

    /// Only under `writing`.
    fn insert(&self, page: &Arc<StoredPage>) {
        self.pages.insert(page.key.clone(), page.clone());
        self.pages.run_pending_tasks();
        self.changed.notify_one();
    }

    fn rules(&self) -> Guard<Arc<Rules>> {
        self.rules.load()
    }
}

fn random() -> u64 {
    use std::hash::BuildHasher;
    std::hash::RandomState::new().hash_one(())
}

#[cfg(test)]
mod tests;
