//! How long a page lives where the upstream states nothing: longer once it is settled, and as long as the quota requires.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{PageStore, random};
use crate::{
    cache::{
        freshness::Lifetimes,
        stretch::{Demand, Popularity},
    },
    config::CacheConfig,
    domain::{CredentialId, PageKey, PageQuery, Task, TaskPage},
};

/// Beyond so many, what looks at each is done now and then only.
const MANY_PAGES: u64 = 1000;

/// How long a page lives whose tasks will not change.
#[derive(Debug)]
pub(super) struct Settled {
    ttl: Duration,
    final_states: Vec<String>,
}

impl Settled {
    /// `None` where settled pages live like others.
    pub(super) fn new(config: &CacheConfig) -> Option<Self> {
        let wanted = config.coherent_pages && !config.settled_ttl.is_zero();
        wanted.then(|| Self {
            ttl: config.settled_ttl,
            final_states: config.final_states.clone(),
        })
    }

    /// Whether `page` is one: after the first, where new tasks appear, with every task in a final state.
    fn covers(&self, query: PageQuery, page: &TaskPage) -> bool {
        let is_final = |task: &Task| {
            let status = task.status.as_deref();
            status.is_some_and(|status| self.final_states.iter().any(|known| known == status))
        };
        query.page > 1 && !page.tasks.is_empty() && page.tasks.iter().all(is_final)
    }
}

impl PageStore {
    /// The lifetimes that apply to `page` where the upstream states none.
    pub(super) fn lifetimes_of(&self, query: PageQuery, page: &TaskPage) -> Lifetimes {
        match &self.settled {
            Some(settled) if settled.covers(query, page) => {
                self.lifetimes.lasting(settled.ttl.max(self.lifetimes.ttl))
            }
            _ => self.lifetimes,
        }
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
    pub(super) fn popularity(&self, key: &PageKey, now: Instant) -> Popularity {
        match self.pages.get(key) {
            Some(before) => before.popularity.aged(now),
            None => Popularity::new(now),
        }
    }

    pub(super) fn demand(&self, credential: CredentialId) -> Arc<Demand> {
        self.demands
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(credential)
            .or_default()
            .clone()
    }

    pub(super) fn jitter_factor(&self) -> f64 {
        // 53 bits are what a float holds.
        let unit = (random() >> 11) as f64 / (1_u64 << 53) as f64;
        1.0 + self.jitter * (2.0 * unit - 1.0)
    }
}
