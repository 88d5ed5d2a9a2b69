//! What to do about a request, by what is stored: serve, refresh, refuse or fill.

use std::sync::Arc;

use tokio::time::Instant;

use super::{ClientRequest, Pages, PagesError, PagesErrorKind, Served};
use crate::{
    cache::{
        CacheStatus, StoredPage, Verdict,
        freshness::{FillReason, refusal_answers},
        judge_page,
        space::Remembered,
        status::{Detail, NotForwarded},
    },
    domain::{PageKey, Refusal},
    upstream::{FailureSource, InvalidAnswer, UpstreamError},
};

/// What to do about a [`ClientRequest`], by what is stored now.
pub(super) enum CacheDecision {
    Serve(Served),
    ServeAndRefresh(Served, Arc<StoredPage>),
    Refuse(PagesError),
    /// Why it is wanted, and what is stored meanwhile.
    Fill {
        reason: FillReason,
        stored: Option<Arc<StoredPage>>,
    },
}

/// How far a [`ClientRequest`] is answered from what is stored under its key.
pub(super) enum StoreAnswer {
    Done(Result<Served, PagesError>),
    /// Its page is to be cut from others, else filled where the client lets it.
    Missing(FillReason),
}

impl CacheDecision {
    /// The name under which a trace shows it.
    fn as_str(&self) -> &'static str {
        match self {
            Self::Serve(_) => "serve",
            Self::ServeAndRefresh(..) => "serve_and_refresh",
            Self::Refuse(_) => "refuse",
            Self::Fill { .. } => "fill",
        }
    }
}

impl Pages {
    /// Answers from what is stored under the key, where it can.
    pub(super) fn answer_from_store(
        self: &Arc<Self>,
        key: &PageKey,
        request: &ClientRequest,
    ) -> StoreAnswer {
        StoreAnswer::Done(match self.look_up(key, request) {
            CacheDecision::Serve(served) => {
                served.page.note_asked(served.at);
                Ok(served)
            }
            CacheDecision::Refuse(error) if matches!(error.kind, PagesErrorKind::NotCached) => {
                return StoreAnswer::Missing(FillReason::UriMiss);
            }
            CacheDecision::Refuse(error) => Err(error),
            CacheDecision::ServeAndRefresh(served, _) => {
                served.page.note_asked(served.at);
                self.refresh(key, request);
                Ok(served)
            }
            CacheDecision::Fill { reason, .. } => {
                return StoreAnswer::Missing(reason);
            }
        })
    }

    fn look_up(&self, key: &PageKey, request: &ClientRequest) -> CacheDecision {
        let mut span = request.trace.begin("lookup");
        let decision = self.decide(key, request, Instant::now());
        span.set("gateway.cache.decision", decision.as_str());
        decision
    }

    /// Answers with a page that another replica filled, as with one of its own; `None` where this client wants another.
    pub(super) fn serve_shared(
        self: &Arc<Self>,
        page: Arc<StoredPage>,
        request: &ClientRequest,
    ) -> Option<Served> {
        let now = Instant::now();
        match judge_page(
            Some(&page),
            request.credential.is_refused(),
            &request.directives,
            now,
        ) {
            Verdict::Hit { ttl, detail } => {
                let is_cut = page.key().query != request.query;
                let detail = detail.or(is_cut.then_some(Detail::Assembled));
                Some(hit(page, ttl, detail, now))
            }
            Verdict::HitWhileRevalidate { ttl } => {
                self.refresh(&request.key(), request);
                Some(hit(page, ttl, Some(Detail::StaleWhileRevalidate), now))
            }
            Verdict::Fill(_) | Verdict::NotCached => None,
        }
    }

    pub(super) fn decide(
        &self,
        key: &PageKey,
        request: &ClientRequest,
        now: Instant,
    ) -> CacheDecision {
        let stored = self.store.get(key);
        let only_fresh = request.credential.is_refused();
        let verdict = judge_page(stored.as_deref(), only_fresh, &request.directives, now);
        let refusal = || {
            self.store.refusal(key, now).filter(|known| {
                refusal_answers(known.age(now), known.until - now, &request.directives)
            })
        };
        match (verdict, stored) {
            (Verdict::Hit { ttl, detail }, Some(page)) => {
                CacheDecision::Serve(hit(page, ttl, detail, now))
            }
            (Verdict::HitWhileRevalidate { ttl }, Some(page)) => {
                let detail = Some(Detail::StaleWhileRevalidate);
                let served = hit(page.clone(), ttl, detail, now);
                match refusal() {
                    None => CacheDecision::ServeAndRefresh(served, page),
                    // The refresh failed a moment ago, and would again.
                    Some(_) => CacheDecision::Serve(served),
                }
            }
            (Verdict::Fill(reason), stored) => match refusal() {
                Some(known) => CacheDecision::Refuse(refused(&known, now)),
                None => CacheDecision::Fill { reason, stored },
            },
            (Verdict::NotCached | Verdict::Hit { .. } | Verdict::HitWhileRevalidate { .. }, _) => {
                match refusal() {
                    Some(known) => CacheDecision::Refuse(refused(&known, now)),
                    None => CacheDecision::Refuse(not_cached()),
                }
            }
        }
    }
}

/// The error for who wants nothing but what is stored.
pub(super) fn not_cached() -> PagesError {
    PagesError::new(PagesErrorKind::NotCached, NotForwarded::OnlyIfCached)
}

/// A page as it is stored.
pub(super) fn hit(page: Arc<StoredPage>, ttl: i64, detail: Option<Detail>, at: Instant) -> Served {
    Served {
        page,
        status: CacheStatus::Hit { ttl, detail },
        at,
        calls: 0,
    }
}

/// The answer by what is remembered of a refusal: the same error again.
fn refused(known: &Remembered, now: Instant) -> PagesError {
    let kind = remembered(known.refusal).into();
    if known.refusal == Refusal::Invalid {
        // Nothing of that answer was kept: its page is only left alone.
        return PagesError::new(kind, NotForwarded::CircuitOpen);
    }
    PagesError {
        kind,
        status: CacheStatus::Hit {
            ttl: i64::try_from((known.until - now).as_secs()).unwrap_or(i64::MAX),
            detail: None,
        },
        age: Some(known.age(now)),
        calls: 0,
    }
}

/// The error that a remembered refusal stands for.
pub(in crate::service) fn remembered(refusal: Refusal) -> UpstreamError {
    match refusal {
        Refusal::SpaceNotFound => UpstreamError::SpaceNotFound { head: None },
        Refusal::SpaceAccessDenied => UpstreamError::SpaceAccessDenied,
        Refusal::Rejected => UpstreamError::Rejected,
        Refusal::Failed => UpstreamError::Failed(FailureSource::Inner { message: None }),
        Refusal::Invalid => UpstreamError::InvalidResponse(InvalidAnswer::AMomentAgo),
    }
}
