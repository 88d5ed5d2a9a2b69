//! Where pages are kept: bounded in bytes, least valuable out first.
//!
//! moka bounds how much; [`super::freshness`] judges how old, by tokio's clock, which tests can turn.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use moka::{notification::RemovalCause, sync::Cache};
use tokio::{sync::Notify, time::Instant};

use super::{
    assemble::{Part, assemble},
    entry::{Content, Received, StoredPage},
    freshness::{Lifetimes, initial_age, may_store, refusal_lifetime},
    snapshot::SavedPage,
    space::{Remembered, Space, Version},
    stretch::{Demand, Popularity},
};
use crate::{
    config::CacheConfig,
    domain::{CredentialId, PageKey, PageQuery, Refusal, SpaceKey, Task, TaskPage},
};

/// Spaces of which no page is stored, but a refusal is remembered; beyond it the refusals go.
const MAX_PAGELESS_SPACES: usize = 16_384;
/// Beyond so many, what looks at each is done now and then only.
const MANY_PAGES: u64 = 1000;
const FIRST_SWEEP_AT: usize = 1024;
/// A page heavier than this share of the whole store would push out too much else: it is answered, not stored.
const LARGEST_SHARE: usize = 4;

/// Every stored page, and what is known of each space.
#[derive(Debug)]
pub struct PageStore {
    pages: Cache<PageKey, Arc<StoredPage>>,
    spaces: Mutex<Spaces>,
    /// One insertion at a time: moka's inserts run ahead of its evictions by 64 entries whatever their size, so each is
    /// followed by its evictions (measured: a cap of 10 MB held 75 MB of 1 MB entries without, 10 MB with).
    inserting: Mutex<()>,
    lifetimes: Lifetimes,
    negative_ttl: Duration,
    rejected_ttl: Duration,
    jitter: f64,
    coherent: bool,
    settled: Option<Settled>,
    assembles: bool,
    /// How far lifetimes may be stretched to fit a quota; `None`: not at all.
    stretch_max: Option<Duration>,
    demands: Mutex<HashMap<CredentialId, Arc<Demand>>>,
    max_bytes: usize,
    dropped: Notify,
    next_generation: AtomicU64,
}

#[derive(Debug)]
struct Spaces {
    known: HashMap<SpaceKey, Arc<Space>>,
    sweep_at: usize,
}

/// How long a page lives whose tasks will not change.
#[derive(Debug)]
struct Settled {
    ttl: Duration,
    final_states: Vec<String>,
}

impl Settled {
    /// Whether `page` is one: after the first, where new tasks appear, with every task in a final state.
    fn covers(&self, query: PageQuery, page: &TaskPage) -> bool {
        let is_final = |task: &Task| {
            let status = task.status.as_deref();
            status.is_some_and(|status| self.final_states.iter().any(|known| known == status))
        };
        query.page > 1 && !page.tasks.is_empty() && page.tasks.iter().all(is_final)
    }
}

/// A fill that has begun: the state of the space it is measured against when it ends.
#[derive(Clone, Debug)]
pub struct Began {
    pub key: PageKey,
    space: Arc<Space>,
    version: Version,
}

/// What became of a page that a fill brought.
#[derive(Clone, Debug)]
pub struct Kept {
    pub page: Arc<StoredPage>,
    pub stored: bool,
}

/// Whether anybody wants a page kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    Yes,
    No,
}

impl PageStore {
    #[must_use]
    pub fn new(config: &CacheConfig) -> Self {
        let pages = Cache::builder()
            .max_capacity(config.max_bytes as u64)
            .weigher(|_: &PageKey, page: &Arc<StoredPage>| {
                u32::try_from(page.weight()).unwrap_or(u32::MAX)
            })
            .eviction_listener(|key: Arc<PageKey>, page: Arc<StoredPage>, cause| {
                if cause != RemovalCause::Replaced {
                    page.space.remove_page(key.query);
                }
            })
            .build();
        Self {
            pages,
            spaces: Mutex::new(Spaces {
                known: HashMap::new(),
                sweep_at: FIRST_SWEEP_AT,
            }),
            inserting: Mutex::new(()),
            lifetimes: Lifetimes::new(config),
            negative_ttl: config.negative_ttl,
            rejected_ttl: config.rejected_ttl,
            jitter: config.jitter,
            coherent: config.coherent_pages,
            settled: (config.coherent_pages && !config.settled_ttl.is_zero()).then(|| Settled {
                ttl: config.settled_ttl,
                final_states: config.final_states.clone(),
            }),
            assembles: config.coherent_pages && config.assemble_pages,
            stretch_max: config.stretch_to_quota.then_some(config.stretch_max),
            demands: Mutex::default(),
            max_bytes: config.max_bytes,
            dropped: Notify::new(),
            next_generation: AtomicU64::new(random()),
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
        let space = self.spaces().known.get(&key.space).cloned()?;
        space.refusal(key.query, now)
    }

    /// How often the pages of a space were dropped: fills that began before and after are not each other's.
    #[must_use]
    pub fn epoch(&self, key: &SpaceKey) -> u64 {
        let space = self.spaces().known.get(key).cloned();
        space.map_or(0, |space| space.version().epoch)
    }

    /// Notes that a fill of `key` begins.
    #[must_use]
    pub fn begin(&self, key: PageKey, now: Instant) -> Began {
        let space = self.space(&key.space, now);
        let version = space.version();
        Began {
            key,
            space,
            version,
        }
    }

    /// Takes in the page that a fill brought.
    pub fn put(&self, began: &Began, page: TaskPage, answer: &Received<'_>, keep: Keep) -> Kept {
        let content = Arc::new(Content::new(page));
        let version = self.observe(began, &content.page, answer.received);
        let page = StoredPage::new(
            content.clone(),
            answer,
            &self.lifetimes_of(began.key.query, &content.page),
            self.jitter_factor(),
            began.space.clone(),
            version,
            self.popularity(&began.key, answer.received),
        );
        self.keep(began, page, answer, keep)
    }

    /// Renews `page` as a 304 told.
    pub fn renew(
        &self,
        began: &Began,
        page: &StoredPage,
        answer: &Received<'_>,
        keep: Keep,
    ) -> Kept {
        let version = self.observe(began, &page.content.page, answer.received);
        let lifetimes = self.lifetimes_of(began.key.query, &page.content.page);
        let page = page.renewed(answer, &lifetimes, self.jitter_factor(), version);
        self.keep(began, page, answer, keep)
    }

    /// The page under `key`, cut from stored pages of other sizes where they hold all of it.
    ///
    /// It is kept like any other, so that it is cut once.
    #[must_use]
    pub fn assemble(&self, key: &PageKey, now: Instant) -> Option<Arc<StoredPage>> {
        if !self.assembles {
            return None;
        }
        let space = self.spaces().known.get(&key.space).cloned()?;
        let parts = self.parts(key, &space);
        let assembled = assemble(key.query, &parts, self.lifetimes.ttl, now)?;
        let page = StoredPage::assembled(assembled.page, &assembled.parts, now)?;
        let page = Arc::new(page);
        if page.weight() <= self.max_bytes / LARGEST_SHARE {
            let _one_at_a_time = self.inserting();
            if !space.dropped_since(page.version) {
                space.add_page(key.query);
                self.insert(key, page.clone());
            }
        }
        Some(page)
    }

    /// The stored pages of `key`'s space that touch its range.
    fn parts(&self, key: &PageKey, space: &Space) -> Vec<Part> {
        let wanted = key.query.span();
        let touches = |query: &PageQuery| {
            let span = query.span();
            span.start < wanted.end && wanted.start < span.end
        };
        self.stored_of(&key.space, space, touches)
    }

    /// Every stored page of a space.
    #[must_use]
    pub fn pages_of(&self, key: &SpaceKey) -> Vec<Part> {
        let space = self.spaces().known.get(key).cloned();
        space.map_or_else(Vec::new, |space| self.stored_of(key, &space, |_| true))
    }

    fn stored_of(
        &self,
        key: &SpaceKey,
        space: &Space,
        which: impl Fn(&PageQuery) -> bool,
    ) -> Vec<Part> {
        let stored = |query| {
            let key = PageKey {
                space: key.clone(),
                query,
            };
            let page = self.get(&key)?;
            Some(Part { query, page })
        };
        let pages = space.pages().into_iter();
        pages.filter(which).filter_map(stored).collect()
    }

    /// The lifetimes that apply to `page` where the upstream states none.
    fn lifetimes_of(&self, query: PageQuery, page: &TaskPage) -> Lifetimes {
        match &self.settled {
            Some(settled) if settled.covers(query, page) => {
                self.lifetimes.lasting(settled.ttl.max(self.lifetimes.ttl))
            }
            _ => self.lifetimes,
        }
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
        let (space, query) = (&began.space, began.key.query);
        // A purge forgets refusals too: one told before it is not remembered after it.
        let overtaken = space.dropped_since(began.version);
        let remembered = |configured| {
            let lifetime = match keep {
                Keep::Yes => refusal_lifetime(answer, &self.lifetimes, configured),
                // Old pages go all the same: that they no longer hold is no part of the answer.
                Keep::No => None,
            };
            lifetime.filter(|_| !overtaken).map(|lifetime| Remembered {
                refusal,
                until: now + lifetime,
                since: now,
                initial_age: answer.map_or(Duration::ZERO, |answer| {
                    initial_age(answer, &self.lifetimes)
                }),
            })
        };
        match refusal {
            Refusal::SpaceNotFound | Refusal::SpaceAccessDenied => {
                // Of several fills that are refused at once the first is remembered, and the others drop it with the pages.
                let known = space.refused(now);
                self.drop_pages(&began.key.space, space);
                if let Some(refusal) = remembered(self.negative_ttl).or(known) {
                    space.refuse(refusal);
                }
            }
            Refusal::Rejected | Refusal::Failed => {
                if let Some(refusal) = remembered(self.rejected_ttl) {
                    space.refuse_page(query, refusal);
                }
            }
        }
    }

    /// Weighs a page anew, after a variant was made.
    pub fn reweigh(&self, key: &PageKey, page: &Arc<StoredPage>) {
        let _one_at_a_time = self.inserting();
        if self
            .pages
            .get(key)
            .is_some_and(|stored| Arc::ptr_eq(&stored, page))
        {
            self.insert(key, page.clone());
        }
    }

    /// Drops all pages of `space`, of every credential. Fills under way will not be stored.
    pub fn purge_space(&self, space: &crate::domain::SpaceToken) {
        let known: Vec<_> = self
            .spaces()
            .known
            .iter()
            .filter(|(key, _)| key.space == *space)
            .map(|(key, space)| (key.clone(), space.clone()))
            .collect();
        for (key, space) in known {
            self.drop_pages(&key, &space);
        }
    }

    /// Drops everything.
    pub fn purge(&self) {
        let known: Vec<_> = self.spaces().known.clone().into_iter().collect();
        for (key, space) in known {
            self.drop_pages(&key, &space);
        }
    }

    /// Resolves when pages were dropped: a copy of them elsewhere is out of date.
    pub async fn dropped(&self) {
        self.dropped.notified().await;
    }

    /// Every page that was fetched as it is, for a snapshot.
    pub fn saved(&self, now: Instant, now_unix_ms: u64) -> impl Iterator<Item = SavedPage> {
        self.pages.iter().filter_map(move |(key, page)| {
            let current = !page.is_assembled && !page.space.dropped_since(page.version);
            let age = u64::try_from(page.age(now).as_millis()).unwrap_or(u64::MAX);
            current.then(|| SavedPage {
                key: (*key).clone(),
                born_unix_ms: now_unix_ms.saturating_sub(age),
                lifetime: page.freshness(now).lifetime(),
                headers: page.kept().clone(),
                body: page.content.page.body.clone(),
            })
        })
    }

    /// Takes in a page of a snapshot, which `page` was read from.
    pub fn restore(&self, saved: &SavedPage, page: TaskPage, now: Instant, now_unix_ms: u64) {
        let began = self.begin(saved.key.clone(), now);
        let answer = Received {
            headers: &saved.headers,
            received: now,
            received_unix: i64::try_from(now_unix_ms / 1000).unwrap_or(i64::MAX),
            response_delay: Duration::ZERO,
        };
        let age = Duration::from_millis(now_unix_ms.saturating_sub(saved.born_unix_ms));
        let page = StoredPage::new(
            Arc::new(Content::new(page)),
            &answer,
            &self.lifetimes,
            1.0,
            began.space.clone(),
            began.version,
            Popularity::new(now),
        )
        .restored(age, saved.lifetime);
        self.keep(&began, page, &answer, Keep::Yes);
    }

    /// Bytes and pages stored.
    #[must_use]
    pub fn size(&self) -> (u64, u64) {
        self.pages.run_pending_tasks();
        (self.pages.weighted_size(), self.pages.entry_count())
    }

    /// Whether answers tell which state of the list they show.
    #[must_use]
    pub fn is_coherent(&self) -> bool {
        self.coherent
    }

    fn observe(&self, began: &Began, page: &TaskPage, now: Instant) -> Version {
        if self.coherent {
            let next = || self.generation();
            began
                .space
                .observe(began.version, began.key.query, page, next, now)
        } else {
            began.version
        }
    }

    fn keep(&self, began: &Began, page: StoredPage, answer: &Received<'_>, keep: Keep) -> Kept {
        let allowed = may_store(answer.headers, &self.lifetimes)
            && page.is_worth_keeping()
            && page.weight() <= self.max_bytes / LARGEST_SHARE;
        let page = Arc::new(page);
        let stored = {
            let _one_at_a_time = self.inserting();
            if began.space.dropped_since(began.version) {
                false
            } else if !allowed {
                // What the upstream forbids to keep takes the place of what it allowed before.
                self.pages.invalidate(&began.key);
                false
            } else if keep == Keep::No {
                false
            } else {
                began.space.allow(began.key.query);
                began.space.add_page(began.key.query);
                self.insert(&began.key, page.clone());
                // A full store may turn a page away that is asked for less than those it holds.
                self.pages.contains_key(&began.key)
            }
        };
        Kept { page, stored }
    }

    /// Only under `inserting`.
    fn insert(&self, key: &PageKey, page: Arc<StoredPage>) {
        self.pages.insert(key.clone(), page);
        self.pages.run_pending_tasks();
    }

    fn drop_pages(&self, key: &SpaceKey, space: &Space) {
        let _one_at_a_time = self.inserting();
        self.dropped.notify_one();
        for query in space.drop_pages() {
            self.pages.invalidate(&PageKey {
                space: key.clone(),
                query,
            });
        }
    }

    fn space(&self, key: &SpaceKey, now: Instant) -> Arc<Space> {
        let mut spaces = self.spaces();
        if let Some(space) = spaces.known.get(key) {
            return space.clone();
        }
        spaces.sweep(now);
        let demand = self.demand(key.credential);
        let stretch_max = self.stretch_max.unwrap_or_default();
        let space = Arc::new(Space::new(self.generation(), demand, stretch_max));
        spaces.known.insert(key.clone(), space.clone());
        space
    }

    /// Shares the calls that `credential` may make a minute out among the pages that are asked for.
    pub fn share_out(&self, credential: CredentialId, calls_per_minute: Option<u32>, now: Instant) {
        if self.stretch_max.is_none() {
            return;
        }
        let demand = self.demand(credential);
        if calls_per_minute.is_none() {
            demand.share_out(std::iter::empty(), None);
            return;
        }
        // It looks at every page there is.
        if self.pages.entry_count() > MANY_PAGES && !demand.is_due(now) {
            return;
        }
        let weights: Vec<f64> = self
            .pages
            .iter()
            .filter(|(key, page)| key.space.credential == credential && page.is_active(now))
            .map(|(_, page)| page.popularity.weight(now))
            .collect();
        demand.share_out(weights.into_iter(), calls_per_minute);
    }

    /// How long a page of `credential` lives where the upstream states nothing, stretched to the quota, if it is asked for as
    /// often as the average.
    #[must_use]
    pub fn lifetime(&self, credential: CredentialId) -> Duration {
        let stretched = self.demand(credential).mean_lifetime();
        let most = self.stretch_max.unwrap_or_default();
        self.lifetimes.ttl.max(stretched.min(most))
    }

    /// How often the page is asked for, as far as its predecessor knows.
    fn popularity(&self, key: &PageKey, now: Instant) -> Popularity {
        match self.pages.get(key) {
            Some(before) => before.popularity.aged(now),
            None => Popularity::new(now),
        }
    }

    fn demand(&self, credential: CredentialId) -> Arc<Demand> {
        self.demands
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(credential)
            .or_default()
            .clone()
    }

    fn generation(&self) -> u64 {
        self.next_generation.fetch_add(1, Ordering::Relaxed)
    }

    fn jitter_factor(&self) -> f64 {
        // 53 bits are what a float holds.
        let unit = (random() >> 11) as f64 / (1_u64 << 53) as f64;
        1.0 + self.jitter * (2.0 * unit - 1.0)
    }

    fn spaces(&self) -> MutexGuard<'_, Spaces> {
        self.spaces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn inserting(&self) -> MutexGuard<'_, ()> {
        self.inserting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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

fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(())
}

#[cfg(test)]
mod tests;
