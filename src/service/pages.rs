//! Reading a page of tasks: from the store if it may be served, else from the upstream.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::time::Instant;

use super::{ConcurrencyLimit, SharedCache};
use crate::{
    cache::{
        CacheStatus, PageStore, SingleFlight, StoredPage, Verdict, assemble::Cuts,
        freshness::FillReason, judge_page, representation::Representation, status::Detail,
        store::StoreOutcome,
    },
    domain::{ListKey, PageKey, View},
    off_runtime::by_size,
    telemetry::metrics::Metrics,
    upstream::{Credential, UpstreamError},
};

mod decision;
mod events;
mod fallback;
mod fill;
mod filtered;
mod newest;
mod observer;
mod purge;
mod range;
mod replicas;
mod request;
mod single_flight;
mod task;
mod wait;

pub(super) use self::decision::remembered;
pub(super) use self::fallback::stale_fallback;
pub use self::filtered::{FilterRequest, Scope};
pub use self::observer::{CallTimes, FillObserver};
pub use self::request::{ClientRequest, PagesError, PagesErrorKind, Served};
pub use self::task::FoundTask;
use self::{
    decision::{StoreAnswer, hit, not_cached},
    single_flight::{FillContext, FlightKey},
};

/// How many rows to fetch at once where no setting says.
const DEFAULT_RANGE: u32 = 100;

/// What a fill brought: every waiter gets the same.
type Filled = Result<Fill, UpstreamError>;

#[derive(Clone, Debug)]
struct Fill {
    kept: StoreOutcome,
    /// The upstream's status: 200, or 304 where the stored page still held.
    status: u16,
    source: Source,
}

/// Where a page came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Upstream,
    /// Another replica filled it: it is as old as it is there, and each waiter judges it.
    SharedCache,
}

/// Where a fill looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sources {
    /// First for what another replica may have filled.
    All,
    /// What others filled was not what the client wants.
    UpstreamAlone,
}

/// The use case: one page of tasks.
#[derive(Debug)]
pub struct Pages {
    store: PageStore,
    flights: SingleFlight<FlightKey, Filled, FillContext>,
    /// Those that read the newest rows of lists.
    jobs: newest::Jobs,
    metrics: Arc<Metrics>,
    /// What replicas share, where there is any.
    shared_cache: OnceLock<SharedCache>,
    /// How long a waiter waits at most.
    patience: Duration,
    /// Fewer than the requests that may be under way: however many wait for an upstream that hangs, the others are answered.
    waiter_limit: Arc<ConcurrencyLimit>,
    observer: OnceLock<Arc<dyn FillObserver>>,
}

impl Pages {
    #[must_use]
    pub fn new(
        store: PageStore,
        metrics: Arc<Metrics>,
        patience: Duration,
        max_waiting: usize,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            flights: SingleFlight::default(),
            jobs: SingleFlight::default(),
            metrics,
            shared_cache: OnceLock::new(),
            patience,
            waiter_limit: ConcurrencyLimit::new(max_waiting, |_| 0),
            observer: OnceLock::new(),
        })
    }

    /// How long a request waits for a page at most.
    pub(in crate::service) fn patience(&self) -> Duration {
        self.patience
    }

    #[must_use]
    pub fn store(&self) -> &PageStore {
        &self.store
    }

    /// How many rows a call of the list fetches that `request` names, where more than one page of it is wanted.
    #[must_use]
    pub fn range_size(&self, request: &ClientRequest) -> u32 {
        self.rows_of_a_call(&request.key().list, &request.credential)
    }

    fn rows_of_a_call(&self, list: &ListKey, credential: &Credential) -> u32 {
        let size = match credential.fill_size() {
            0 => DEFAULT_RANGE,
            _ if !self.store.assembles() => DEFAULT_RANGE,
            size => size,
        };
        let limit = self.store.row_limit(list, Instant::now());
        limit.map_or(size, |limit| limit.min(size))
    }

    /// What `view` shows of a page: made once, and kept with the page.
    pub async fn representation(
        self: &Arc<Self>,
        served: &Served,
        view: &Arc<View>,
    ) -> Arc<Representation> {
        match served.page.content.made_view(view) {
            Some(representation) => representation,
            // Boxed: an inline wait would enlarge the future of every answer.
            None => Box::pin(self.make_view(served, view.clone())).await,
        }
    }

    /// Makes what `view` shows of a page; of a large one on another thread.
    async fn make_view(self: &Arc<Self>, served: &Served, view: Arc<View>) -> Arc<Representation> {
        let (pages, page, at) = (self.clone(), served.page.clone(), served.at);
        by_size(page.content.length(), move || {
            let (representation, is_new) = page.content.make_view(&view, at);
            if is_new {
                pages.store.reweigh(&page);
            }
            representation
        })
        .await
    }

    /// What `view` shows of a page, made for one request and not kept: of views that clients make up there is no end.
    pub async fn seen_through(
        self: &Arc<Self>,
        served: &Served,
        view: View,
    ) -> Arc<Representation> {
        let (page, at) = (served.page.clone(), served.at);
        by_size(page.content.length(), move || {
            Arc::new(page.content.seen_through(&view, at))
        })
        .await
    }

    /// Fills under way.
    #[must_use]
    pub fn fills_under_way(&self) -> usize {
        self.flights.len()
    }

    /// Returns the page that `request` names, from the store if it may be served.
    ///
    /// A fetch runs in a task of its own: a caller that goes away neither cancels it for the others nor loses it.
    ///
    /// # Errors
    ///
    /// Returns the upstream's error where it failed and no stored page may be served as a stale fallback.
    pub async fn page(self: &Arc<Self>, request: &ClientRequest) -> Result<Served, PagesError> {
        let outcome = self.read(request).await;
        match &outcome {
            Ok(served) => self.note_served(served, request),
            Err(error) => self.note_lookup(error.status, request),
        }
        outcome
    }

    /// Counts a request that is answered from the cache.
    fn note_served(&self, served: &Served, request: &ClientRequest) {
        self.note_lookup(served.status, request);
        self.metrics.cache.served(served.age());
    }

    /// Counts what the cache did for a request.
    fn note_lookup(&self, status: CacheStatus, request: &ClientRequest) {
        let cache = &self.metrics.cache;
        cache.lookup(status.outcome(), &request.account);
    }

    /// As [`Pages::page`], for a request that is counted by another name.
    async fn read(self: &Arc<Self>, request: &ClientRequest) -> Result<Served, PagesError> {
        let key = request.key();
        let outcome = match self.answer_from_store(&key, request) {
            StoreAnswer::Done(outcome) => outcome,
            // Boxed: what it takes to wait would be part of every answer that need not.
            StoreAnswer::Missing(reason) => {
                Box::pin(self.page_missing(&key, request, reason)).await
            }
        };
        match outcome {
            Ok(served) => Ok(served),
            Err(error) => Box::pin(self.in_place_of(error, &key, request)).await,
        }
    }

    /// The page that `cuts` make; a large one is made on another thread.
    async fn cut(self: &Arc<Self>, cuts: Cuts, now: Instant) -> Option<StoredPage> {
        let pages = self.clone();
        by_size(cuts.bytes(), move || pages.store.assemble(&cuts, now)).await
    }

    /// The page cut from others, where the client takes what is stored at all.
    async fn assemble(
        self: &Arc<Self>,
        key: &PageKey,
        request: &ClientRequest,
        reason: FillReason,
    ) -> Option<Served> {
        match reason {
            FillReason::UriMiss | FillReason::Stale => {
                if let Some(served) = self.cut_from_range(key, request).await {
                    return Some(served);
                }
            }
            FillReason::Bypass => return self.cut_from_range(key, request).await,
            FillReason::Request => return None,
        }
        let now = Instant::now();
        let Some(cuts) = self.store.cuts(key, now) else {
            return self.join_while_revalidated(key, request, now).await;
        };
        cuts.note_asked(now);
        let page = self.cut(cuts, now).await?;
        match judge_page(Some(&page), false, &request.directives, now) {
            Verdict::Hit { ttl, detail } => {
                let detail = detail.or(Some(Detail::Assembled));
                Some(hit(page.into(), ttl, detail, now))
            }
            Verdict::HitWhileRevalidate { .. } | Verdict::Fill(_) | Verdict::NotCached => None,
        }
    }
}

#[cfg(test)]
mod tests;
