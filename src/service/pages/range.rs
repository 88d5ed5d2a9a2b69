//! Wide fills: where several pages of a list are wanted, one call fetches the range that holds them, and they are cut from it.
//!
//! A range is a page like any other: it has its own fill, and is stored, shared and refreshed as what it is. `docs/lists.md` says when.

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    ClientRequest, Filled, Pages, Served,
    decision::{CacheDecision, hit},
    replicas::is_found,
    single_flight::FillContext,
    wait::asks_for_a_newer_page,
};
use crate::{
    cache::{
        CacheStatus, StoredPage,
        assemble::Cuts,
        freshness::{FillReason, StaleIf},
        status::Detail,
        store::StoreOutcome,
    },
    domain::{PageKey, PageQuery},
    service::{SharedCache, shared_cache::Wanted},
    upstream::{Credential, FailureSource, InvalidAnswer, UpstreamError},
};

/// What is fetched for a request.
pub(super) enum Target {
    /// Its own page.
    Page,
    /// The range that holds it.
    Range(ClientRequest),
    /// A page of fewer rows, from several of which it is put together.
    Part(ClientRequest),
}

impl Pages {
    /// The range that holds the page under `key`, where that is another page.
    pub(super) fn range_around(&self, key: &PageKey, credential: &Credential) -> Option<PageQuery> {
        if credential.fill_size() == 0 || !self.store.assembles() {
            return None;
        }
        let size = self.rows_of_a_call(&key.list, credential);
        let range = key.query.within(size)?;
        (range != key.query).then_some(range)
    }

    /// The range that a plain request for `key` is answered from, or fetches.
    pub(in crate::service) fn range_for(
        &self,
        key: &PageKey,
        credential: &Credential,
        now: Instant,
    ) -> Option<PageQuery> {
        let range = self.range_around(key, credential)?;
        let whole = key.at(range);
        let is_stored = || self.store.get(&whole).is_some();
        let is_wide = || self.store.is_wide(key, now) && !self.store.is_unfit(&whole, now);
        (is_stored() || is_wide()).then_some(range)
    }

    /// What to fetch for `request`, which came at `since`, and whose page is under `key`.
    pub(super) fn target(&self, key: &PageKey, request: &ClientRequest, since: Instant) -> Target {
        match self.range_around(key, &request.credential) {
            Some(range) if self.fetches_wide(key, request, range) => {
                Target::Range(request.for_page(range))
            }
            _ => self.target_alone(key, request, since),
        }
    }

    /// The same where no range is to be had.
    pub(super) fn target_alone(
        &self,
        key: &PageKey,
        request: &ClientRequest,
        since: Instant,
    ) -> Target {
        let part = self.missing_part(key, request, since);
        part.map_or(Target::Page, Target::Part)
    }

    /// The next page of fewer rows to fetch for a page that no single call brings.
    fn missing_part(
        &self,
        key: &PageKey,
        request: &ClientRequest,
        since: Instant,
    ) -> Option<ClientRequest> {
        let now = Instant::now();
        let limit = self.store.row_limit(&key.list, now)?;
        if request.query.page_size <= limit {
            return None;
        }
        let since = Some(since).filter(|_| is_forced(request));
        let mut part = request.for_page(self.store.missing_part(key, limit, since, now)?);
        let lifetime = self.store.part_lifetime();
        let directives = &mut part.directives;
        directives.no_store = false;
        directives.max_age = Some(directives.max_age.unwrap_or(lifetime).min(lifetime));
        Some(part)
    }

    /// The page put together from parts that came at `since` or later, where none is missing.
    pub(super) async fn join_parts(
        self: &Arc<Self>,
        key: &PageKey,
        request: &ClientRequest,
        since: Instant,
    ) -> Option<Served> {
        let now = Instant::now();
        if self.missing_part(key, request, since).is_some() {
            return None;
        }
        let cuts = self.store.cuts(key, now)?;
        cuts.note_asked(now);
        let page = self.cut(cuts, now).await?;
        Some(assembled(page, now))
    }

    /// The page that no single call brings, put together from parts of which some are stale and are refreshed meanwhile.
    pub(super) async fn join_while_revalidated(
        self: &Arc<Self>,
        key: &PageKey,
        request: &ClientRequest,
        now: Instant,
    ) -> Option<Served> {
        let limit = self.store.row_limit(&key.list, now)?;
        if request.query.page_size <= limit {
            return None;
        }
        let cuts = self.store.cuts_to_revalidate(key, now)?;
        let mut stale = Vec::new();
        for part in cuts.parts() {
            let part = request.for_page(part.key().query);
            match self.decide(&part.key(), &part, now) {
                CacheDecision::Serve(_) => {}
                CacheDecision::ServeAndRefresh(..) => stale.push(part),
                CacheDecision::Refuse(_) | CacheDecision::Fill { .. } => return None,
            }
        }
        cuts.note_asked(now);
        let page = Arc::new(self.cut(cuts, now).await?);
        let ttl = page.stale_if(StaleIf::Error, now)?;
        for part in stale {
            self.refresh(&part.key(), &part);
        }
        Some(hit(page, ttl, Some(Detail::StaleWhileRevalidate), now))
    }

    /// Why `target` is fetched, for a page that is wanted for `reason`: what is stored of a range is stale.
    pub(super) fn reason_for(&self, target: &Target, reason: FillReason) -> FillReason {
        match target {
            Target::Range(range) if self.store.get(&range.key()).is_some() => FillReason::Stale,
            Target::Range(_) | Target::Page | Target::Part(_) => reason,
        }
    }

    fn fetches_wide(&self, key: &PageKey, request: &ClientRequest, range: PageQuery) -> bool {
        let now = Instant::now();
        !is_forced(request)
            && self.store.is_wide(key, now)
            && !self.store.is_unfit(&key.at(range), now)
    }

    /// The page cut from the range that holds it, where that is stored and may be shown; a stale range is refreshed meanwhile.
    pub(super) async fn cut_from_range(
        self: &Arc<Self>,
        key: &PageKey,
        request: &ClientRequest,
    ) -> Option<Served> {
        let range = self.range_around(key, &request.credential)?;
        let decision = self.decide(&key.at(range), request, Instant::now());
        let (whole, is_refreshed) = match decision {
            CacheDecision::Serve(whole) => (whole, false),
            CacheDecision::ServeAndRefresh(whole, _) => (whole, true),
            CacheDecision::Refuse(_) | CacheDecision::Fill { .. } => return None,
        };
        let served = self.cut_served(&whole, request.query).await?;
        whole.page.note_asked(whole.at);
        if is_refreshed {
            let range = request.for_page(range);
            self.refresh(&range.key(), &range);
        }
        Some(served)
    }

    /// The page cut from the range that holds it, where another replica has filled that: this one has read too little of the list to fetch
    /// ranges of it.
    pub(super) async fn cut_from_shared_range(
        self: &Arc<Self>,
        shared_cache: &SharedCache,
        request: &ClientRequest,
        context: &FillContext,
    ) -> Option<StoreOutcome> {
        let (key, now) = (request.key(), Instant::now());
        let range = self.range_around(&key, &request.credential)?;
        if self.store.is_wide(&key, now) {
            return None;
        }
        let whole = request.for_page(range);
        let keys = shared_cache.keys(&request.credential, &whole.key())?;
        let looked = self.look_up_shared(shared_cache, &keys, &whole, Wanted::Page);
        let (kept, _) = looked.await.ok()?;
        let now = Instant::now();
        let kept = kept.filter(|kept| is_found(&kept.page, &whole, &context.waiters, now))?;
        let cuts = Cuts::of_one(request.query, &kept.page)?;
        let page = self.cut(cuts, now).await?.into();
        Some(StoreOutcome { page, ..kept })
    }

    /// The page of `query` cut from a range that was served.
    pub(super) async fn cut_served(
        self: &Arc<Self>,
        whole: &Served,
        query: PageQuery,
    ) -> Option<Served> {
        let cuts = Cuts::of_one(query, &whole.page)?;
        let page = self.cut(cuts, whole.at).await?;
        let status = match whole.status {
            CacheStatus::Hit { ttl, detail } => CacheStatus::Hit {
                ttl,
                detail: detail.or(Some(Detail::Assembled)),
            },
            CacheStatus::Forward {
                collapsed: true, ..
            } => return Some(assembled(page, whole.at)),
            status @ (CacheStatus::Forward { .. } | CacheStatus::NotForwarded(_)) => status,
        };
        Some(Served {
            page: page.into(),
            status,
            ..whole.clone()
        })
    }

    /// Draws the consequences of a fill for the pages beside it.
    pub(super) fn note_range(&self, request: &ClientRequest, filled: &Filled, calls: u32) {
        if request.query.page_size != self.range_size(request) {
            return;
        }
        match filled {
            Ok(fill) if fill.kept.stored => self.store.drop_covered(&fill.kept.page),
            Ok(fill) if !fill.kept.is_storable && is_in_force(request, &fill.kept.page) => {
                // Too large for the store, or not to be stored: it would be fetched for each of its pages.
                self.store.note_unfit(&request.key(), Instant::now());
            }
            Ok(_) => {}
            Err(error) if calls > 0 && is_of_some_rows(error) => {
                self.store.note_unfit(&request.key(), Instant::now());
            }
            Err(_) => {}
        }
    }

    /// Whether the fill of a range failed by its rows, so that its pages are to be asked for one by one.
    pub(super) fn is_unfit(&self, target: &Target) -> bool {
        match target {
            Target::Page | Target::Part(_) => false,
            Target::Range(range) => self.store.is_unfit(&range.key(), Instant::now()),
        }
    }
}

/// Whether its client wants another page than what is stored, or nothing stored.
fn is_forced(request: &ClientRequest) -> bool {
    asks_for_a_newer_page(request) || request.directives.no_store
}

impl Target {
    /// The request whose page is fetched.
    pub(super) fn of<'a>(&'a self, request: &'a ClientRequest) -> &'a ClientRequest {
        match self {
            Self::Page => request,
            Self::Range(range) | Self::Part(range) => range,
        }
    }
}

/// Whether nothing has changed since the fill began that would keep any page from being stored.
fn is_in_force(request: &ClientRequest, page: &StoredPage) -> bool {
    request.credential.is_in_force() && !page.is_invalidated()
}

/// A page that was cut from one that another request fetched.
fn assembled(page: StoredPage, now: Instant) -> Served {
    let ttl = page.fresh_for(now).as_secs();
    let ttl = i64::try_from(ttl).unwrap_or(i64::MAX);
    hit(page.into(), ttl, Some(Detail::Assembled), now)
}

/// Whether fewer rows may be had where these failed: one of them is bad, or they are too many.
pub(super) fn is_of_some_rows(error: &UpstreamError) -> bool {
    match error {
        // A 206 that says something else, or a 400 that finds the rows too many.
        UpstreamError::Rejected
        | UpstreamError::Failed(FailureSource::Inner { .. })
        | UpstreamError::Timeout(_) => true,
        // What ends a connection says nothing of the rows.
        UpstreamError::InvalidResponse(answer) => {
            !matches!(answer, InvalidAnswer::NotHttp | InvalidAnswer::Truncated)
        }
        UpstreamError::Failed(
            FailureSource::InnerSlowDown { .. }
            | FailureSource::Status { .. }
            | FailureSource::Html,
        )
        | UpstreamError::SpaceNotFound { .. }
        | UpstreamError::SpaceAccessDenied
        | UpstreamError::AuthFailed
        | UpstreamError::Unreachable(_)
        | UpstreamError::QuotaExhausted { .. }
        | UpstreamError::Unavailable { .. }
        | UpstreamError::Overloaded => false,
    }
}
