//! How long a page lives where the upstream states nothing: as long as the quota requires.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{PageStore, random};
use crate::{
    cache::refresh_plan::{RefreshPlan, RequestRate},
    domain::{CredentialId, PageKey},
};

/// Beyond so many, work that looks at each is done now and then, and not by the fill of a page.
const MANY_PAGES: u64 = 1000;

/// What [`PageStore::share_out`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedOut {
    /// It is done, or was a moment ago.
    Done,
    /// It is time for it, and [`PageStore::share_out_among_many`] is to be called on a thread for blocking work.
    Due,
}

impl PageStore {
    /// Shares the calls that `credential` may make a minute out among the pages that are asked for, where there are not too many.
    #[must_use]
    pub fn share_out(
        &self,
        credential: CredentialId,
        calls_per_minute: Option<u32>,
        now: Instant,
    ) -> SharedOut {
        if self.rules().stretch_max.is_none() {
            return SharedOut::Done;
        }
        // A fill may end after its credential was forgotten.
        let Some(demand) = self.demands.lock().get(&credential).cloned() else {
            return SharedOut::Done;
        };
        let Some(calls) = calls_per_minute else {
            demand.share_out(std::iter::empty(), None);
            return SharedOut::Done;
        };
        if self.pages.entry_count() <= MANY_PAGES {
            self.share_out_among_many(credential, calls, now);
            return SharedOut::Done;
        }
        if demand.is_due(now) {
            SharedOut::Due
        } else {
            SharedOut::Done
        }
    }

    /// As [`Self::share_out`], however many there are: it looks at every page there is.
    pub fn share_out_among_many(
        &self,
        credential: CredentialId,
        calls_per_minute: u32,
        now: Instant,
    ) {
        let Some(demand) = self.demands.lock().get(&credential).cloned() else {
            return;
        };
        let weights: Vec<f64> = self
            .pages
            .iter()
            .filter(|(key, page)| {
                key.list.space.credential == credential
                    && page.is_active(now)
                    && !page.is_invalidated()
            })
            .map(|(_, page)| page.request_rate.weight(now))
            .collect();
        demand.share_out(weights.into_iter(), Some(calls_per_minute));
    }

    /// How long a page of `credential` lives where the upstream states nothing, fitted to the quota, if it is asked for as
    /// often as the average.
    #[must_use]
    pub fn lifetime(&self, credential: CredentialId) -> Duration {
        let demand = self.demand(credential);
        let lifetimes = &self.rules().lifetimes;
        match demand.is_bounded() {
            true => lifetimes.ttl_min.max(demand.mean_lifetime()),
            false => lifetimes.ttl,
        }
    }

    /// How often the page is asked for, as far as its predecessor knows.
    pub(super) fn request_rate(&self, key: &PageKey, now: Instant) -> RequestRate {
        match self.pages.get(key) {
            Some(before) => before.request_rate.aged(now),
            None => RequestRate::new(now),
        }
    }

    pub(super) fn demand(&self, credential: CredentialId) -> Arc<RefreshPlan> {
        let most = || {
            Arc::new(RefreshPlan::new(
                self.rules().stretch_max.unwrap_or_default(),
            ))
        };
        let mut demands = self.demands.lock();
        demands.entry(credential).or_insert_with(most).clone()
    }

    /// Lets no lifetime be stretched beyond `most` from now on; `None`: none is stretched.
    pub(super) fn limit_stretch(&self, most: Option<Duration>) {
        for demand in self.demands.lock().values() {
            demand.set_most(most.unwrap_or_default());
        }
    }

    pub(super) fn jitter_factor(&self) -> f64 {
        // 53 bits are what a float holds.
        let unit = (random() >> 11) as f64 / (1_u64 << 53) as f64;
        1.0 + self.rules().jitter * (2.0 * unit - 1.0)
    }
}
