//! Reading a page of tasks: from the store if it may be served, else from the upstream.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use http::HeaderValue;
use tokio::time::Instant;
use tracing::{Instrument, error_span};

use super::{ConcurrencyLimit, SecondTier};
use crate::{
    cache::{
        CacheStatus, Flights, PageStore, Role, Shown, StoredPage, Verdict,
        flight::{Waiting, Wanted},
        freshness::{FillReason, refusal_answers},
        http_semantics::RequestDirectives,
        judge_page,
        rendition::Rendition,
        space::Remembered,
        status::{Detail, NotForwarded},
        store::Kept,
    },
    domain::{PageKey, PageQuery, Refusal, SpaceKey, SpaceToken, View},
    off_runtime::by_size,
    telemetry::{
        metrics::{Account, BACKGROUND, Metrics},
        traces::TraceContext,
    },
    upstream::{Calls, Claim, Claims, Credential, FailureSource, Upstream, UpstreamError, Urgency},
};

mod fill;
mod shared;
mod wait;

/// What is asked, and on whose account.
#[derive(Clone, Debug)]
pub struct Ask {
    pub credential: Arc<Credential>,
    /// What it is asked through: of the same configuration, so that a token never goes to another upstream than its own.
    pub upstream: Arc<Upstream>,
    pub space: SpaceToken,
    pub query: PageQuery,
    /// As far as the client may ask for it: see [`crate::cache::freshness::permitted`].
    pub directives: RequestDirectives,
    pub account: Account,
    pub request_id: HeaderValue,
    /// Where the request's own span is.
    pub trace: TraceContext,
}

impl Ask {
    fn key(&self) -> PageKey {
        PageKey {
            space: SpaceKey {
                credential: self.credential.id,
                space: self.space.clone(),
            },
            query: self.query,
        }
    }

    /// How much the call matters to its client, which waits: by what it has in hand.
    fn claim(&self, stored: Option<&Arc<StoredPage>>) -> Claim {
        let spent = UpstreamError::QuotaExhausted { retry_after: None };
        let urgency = match stand_in(&spent, stored, &self.credential, Instant::now()) {
            Some(_) => Urgency::CanStandIn,
            None => Urgency::Waiting,
        };
        Claim {
            urgency,
            client: self.account.client().clone(),
        }
    }
}

/// A page to answer with.
#[derive(Clone, Debug)]
pub struct Served {
    pub page: Arc<StoredPage>,
    pub status: CacheStatus,
    /// When it was judged.
    pub at: Instant,
    /// Calls of the upstream that were made for it; none where it was stored, or fetched for another.
    pub calls: u32,
}

impl Served {
    /// How old the page was when it was judged.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.page.age(self.at)
    }
}

/// Why there is no page, and what the cache did about it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{kind}")]
pub struct TasksError {
    #[source]
    pub kind: TasksErrorKind,
    pub status: CacheStatus,
    /// How old the upstream's answer is where it was remembered, not asked for.
    pub age: Option<Duration>,
    /// As [`Served::calls`].
    pub calls: u32,
}

/// Why there is no page.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TasksErrorKind {
    #[error("the upstream gave no page")]
    Upstream(#[from] UpstreamError),
    #[error("nothing usable is stored, and the client wants nothing else")]
    NotCached,
    #[error("the fill ended in a bug")]
    Lost,
}

/// What a fill brought: every waiter gets the same.
type Filled = Result<Fill, UpstreamError>;

#[derive(Clone, Debug)]
struct Fill {
    kept: Kept,
    /// The upstream's status: 200, or 304 where the stored page still held.
    status: u16,
    source: Source,
}

/// Where a page came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Upstream,
    /// Another replica filled it: it is as old as it is there, and each waiter judges it.
    SecondTier,
}

/// Where a fill looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// First for what another replica may have filled.
    Anywhere,
    /// What others filled was not what the client wants.
    Upstream,
}

/// On whose account a fill goes, and what it shares with those who wait for it.
struct Errand {
    cause: Arc<str>,
    shared: Shared,
}

/// Who wants a fill how much, and how many calls it has made so far.
#[derive(Clone, Debug)]
struct Shared {
    claims: Claims,
    calls: Calls,
}

impl Errand {
    /// On the account of who claims it first.
    fn new(claim: Claim) -> Self {
        Self {
            cause: claim.client.clone(),
            shared: Shared {
                claims: Claims::new(claim),
                calls: Calls::default(),
            },
        }
    }
}

/// What to do about an [`Ask`], by what is stored now.
enum Decision {
    Serve(Served),
    ServeAndRefresh(Served, Arc<StoredPage>),
    Refuse(TasksError),
    Fill(WantedFill),
}

/// A fill, why it is wanted, and what is stored meanwhile.
struct WantedFill {
    reason: FillReason,
    stored: Option<Arc<StoredPage>>,
}

/// How far an [`Ask`] is answered from what is stored under its key.
enum Settled {
    Now(Result<Served, TasksError>),
    Not(Missing),
}

/// What answers an [`Ask`] unless its page can be cut from others.
enum Missing {
    Fill(WantedFill),
    NotCached(TasksError),
}

impl Missing {
    fn reason(&self) -> FillReason {
        match self {
            Self::Fill(wanted) => wanted.reason,
            Self::NotCached(_) => FillReason::UriMiss,
        }
    }
}

impl Decision {
    /// The name under which a trace shows it.
    fn as_str(&self) -> &'static str {
        match self {
            Self::Serve(_) => "serve",
            Self::ServeAndRefresh(..) => "serve_and_refresh",
            Self::Refuse(_) => "refuse",
            Self::Fill(_) => "fill",
        }
    }
}

/// Who may share a fill.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct FlightKey {
    page: PageKey,
    /// How often its space was dropped: who asks after a purge is not given what was asked before it.
    epoch: u64,
    /// Nor is who asks with a new token given what the old one may still see.
    token_pair: u64,
}

/// The use case: one page of tasks.
#[derive(Debug)]
pub struct Tasks {
    store: PageStore,
    flights: Flights<FlightKey, Filled, Shared>,
    metrics: Arc<Metrics>,
    /// What replicas share, where there is any.
    second_tier: OnceLock<SecondTier>,
    /// How long a waiter waits at most.
    patience: Duration,
    /// Fewer than the requests that may be under way: however many wait for an upstream that hangs, the others are answered.
    waiter_limit: Arc<ConcurrencyLimit>,
}

impl Tasks {
    #[must_use]
    pub fn new(
        store: PageStore,
        metrics: Arc<Metrics>,
        patience: Duration,
        max_waiting: usize,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            flights: Flights::default(),
            metrics,
            second_tier: OnceLock::new(),
            patience,
            waiter_limit: ConcurrencyLimit::new(max_waiting, |_| 0),
        })
    }

    /// How long a request waits for a page at most.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    #[must_use]
    pub fn store(&self) -> &PageStore {
        &self.store
    }

    /// A page as it goes out: all of it, or what `view` shows.
    pub async fn shown<'a>(
        self: &Arc<Self>,
        served: &'a Served,
        view: Option<&Arc<View>>,
    ) -> Shown<'a> {
        let page = &served.page;
        let Some(view) = view else {
            return Shown::Whole(page);
        };
        Shown::Part(match page.content.seen_already(view) {
            Some(rendition) => rendition,
            // Boxed: what it takes to wait would be part of every answer that need not.
            None => Box::pin(self.see_through(served, view.clone())).await,
        })
    }

    /// Makes what `view` shows of a page; of a large one on another thread.
    async fn see_through(self: &Arc<Self>, served: &Served, view: Arc<View>) -> Arc<Rendition> {
        let (tasks, page, at) = (self.clone(), served.page.clone(), served.at);
        by_size(page.content.length(), move || {
            let (rendition, is_new) = page.content.seen_through(&view, at);
            if is_new {
                tasks.store.reweigh(&page);
            }
            rendition
        })
        .await
    }

    /// Fills under way.
    #[must_use]
    pub fn fills_under_way(&self) -> usize {
        self.flights.len()
    }

    /// Returns the page that `ask` names, from the store if it may be served.
    ///
    /// A fetch runs in a task of its own: a caller that goes away neither cancels it for the others nor loses it.
    ///
    /// # Errors
    ///
    /// Returns the upstream's error where it failed and no stored page may stand in.
    pub async fn page(self: &Arc<Self>, ask: &Ask) -> Result<Served, TasksError> {
        let key = ask.key();
        let outcome = match self.settle(&key, ask) {
            Settled::Now(outcome) => outcome,
            // Boxed: what it takes to wait would be part of every answer that need not.
            Settled::Not(missing) => Box::pin(self.page_missing(&key, ask, missing)).await,
        };
        let status = match &outcome {
            Ok(served) => served.status,
            Err(error) => error.status,
        };
        self.metrics.cache.lookup(status.outcome(), &ask.account);
        if let Ok(served) = &outcome {
            self.metrics.cache.served(served.age());
        }
        outcome
    }

    /// Answers from what is stored under the key, where it can.
    fn settle(self: &Arc<Self>, key: &PageKey, ask: &Ask) -> Settled {
        Settled::Now(match self.look_up(key, ask) {
            Decision::Serve(served) => {
                served.page.note_asked(served.at);
                Ok(served)
            }
            Decision::Refuse(error) if matches!(error.kind, TasksErrorKind::NotCached) => {
                return Settled::Not(Missing::NotCached(error));
            }
            Decision::Refuse(error) => Err(error),
            Decision::ServeAndRefresh(served, _) => {
                served.page.note_asked(served.at);
                self.refresh(key, ask);
                Ok(served)
            }
            Decision::Fill(wanted) => return Settled::Not(Missing::Fill(wanted)),
        })
    }

    /// The page cut from others, where the client takes what is stored at all.
    async fn assemble(
        self: &Arc<Self>,
        key: &PageKey,
        ask: &Ask,
        reason: FillReason,
    ) -> Option<Served> {
        match reason {
            FillReason::UriMiss | FillReason::Stale => {}
            FillReason::Request | FillReason::Bypass => return None,
        }
        let now = Instant::now();
        let cuts = self.store.cuts(key, now)?;
        let tasks = self.clone();
        let page = by_size(cuts.bytes(), move || tasks.store.assemble(&cuts, now)).await?;
        match judge_page(Some(&page), false, &ask.directives, now) {
            Verdict::Hit { ttl, detail } => {
                let detail = detail.or(Some(Detail::Assembled));
                Some(hit(page.into(), ttl, detail, now))
            }
            Verdict::HitWhileRevalidate { .. } | Verdict::Fill(_) | Verdict::NotCached => None,
        }
    }

    fn look_up(&self, key: &PageKey, ask: &Ask) -> Decision {
        let mut span = ask.trace.begin("lookup");
        let decision = self.decide(key, ask, Instant::now());
        span.set("gateway.cache.decision", decision.as_str());
        decision
    }

    fn decide(&self, key: &PageKey, ask: &Ask, now: Instant) -> Decision {
        let stored = self.store.get(key);
        let only_fresh = ask.credential.is_refused();
        let verdict = judge_page(stored.as_deref(), only_fresh, &ask.directives, now);
        let refusal = || {
            self.store
                .refusal(key, now)
                .filter(|known| refusal_answers(known.age(now), known.until - now, &ask.directives))
        };
        match (verdict, stored) {
            (Verdict::Hit { ttl, detail }, Some(page)) => {
                Decision::Serve(hit(page, ttl, detail, now))
            }
            (Verdict::HitWhileRevalidate { ttl }, Some(page)) => {
                let served = Served {
                    page: page.clone(),
                    status: CacheStatus::Hit {
                        ttl,
                        detail: Some(Detail::StaleWhileRevalidate),
                    },
                    at: now,
                    calls: 0,
                };
                match refusal() {
                    None => Decision::ServeAndRefresh(served, page),
                    // The refresh failed a moment ago, and would again.
                    Some(_) => Decision::Serve(served),
                }
            }
            (Verdict::Fill(reason), stored) => match refusal() {
                Some(known) => self.refused(&known, stored.as_ref(), ask, now),
                None => Decision::Fill(WantedFill { reason, stored }),
            },
            (
                Verdict::NotCached | Verdict::Hit { .. } | Verdict::HitWhileRevalidate { .. },
                stored,
            ) => match refusal() {
                Some(known) => self.refused(&known, stored.as_ref(), ask, now),
                None => Decision::Refuse(TasksError {
                    kind: TasksErrorKind::NotCached,
                    status: NotForwarded::OnlyIfCached.into(),
                    age: None,
                    calls: 0,
                }),
            },
        }
    }

    /// Answers from what is remembered of a refusal: the old page where one may stand in, else the error again.
    fn refused(
        &self,
        known: &Remembered,
        stored: Option<&Arc<StoredPage>>,
        ask: &Ask,
        now: Instant,
    ) -> Decision {
        let error = remembered(known.refusal);
        match stand_in(&error, stored, &ask.credential, now) {
            Some(served) => Decision::Serve(served),
            None => Decision::Refuse(TasksError {
                kind: error.into(),
                status: CacheStatus::Hit {
                    ttl: i64::try_from((known.until - now).as_secs()).unwrap_or(i64::MAX),
                    detail: None,
                },
                age: Some(known.age(now)),
                calls: 0,
            }),
        }
    }

    /// Joins the fill of `key` or begins one; `None` where a fill that ended meanwhile left something to serve.
    ///
    /// Who joins claims it too, so that it stands in line as well as a fill of its own would.
    fn begin_fill(
        self: &Arc<Self>,
        key: &PageKey,
        ask: &Ask,
        look: Look,
        stored: Option<&Arc<StoredPage>>,
    ) -> Option<Waiting<Filled, Shared>> {
        let keep = !ask.directives.no_store;
        let waiting = self.flights.join(&self.flight(key, ask), keep, |wanted| {
            match self.decide(key, ask, Instant::now()) {
                Decision::Fill(WantedFill { stored, .. }) => {
                    let errand = Errand::new(ask.claim(stored.as_ref()));
                    Some(self.begin(ask, look, errand, stored, wanted))
                }
                Decision::Serve(_) | Decision::ServeAndRefresh(..) | Decision::Refuse(_) => None,
            }
        })?;
        if waiting.role == Role::Joined {
            waiting.shared.claims.add(ask.claim(stored));
        }
        Some(waiting)
    }

    /// A fill, and what it shares with those who wait for it.
    fn begin(
        self: &Arc<Self>,
        ask: &Ask,
        look: Look,
        errand: Errand,
        stored: Option<Arc<StoredPage>>,
        wanted: Wanted,
    ) -> (Shared, impl Future<Output = Filled> + use<>) {
        let shared = errand.shared.clone();
        // Whatever a line of the log is about, it names the request that caused it. At the highest level, or a filter could leave it out.
        let span = error_span!(
            "fill",
            request.id = ask.request_id.to_str().unwrap_or_default(),
            page = ask.query.page,
            page_size = ask.query.page_size
        );
        let fill = self
            .clone()
            .fetch(ask.clone(), look, errand, stored, wanted);
        (shared, fill.instrument(span))
    }

    /// Fetches a page anew that nobody waits for, if there is a call to spare for it and the upstream is asked at all.
    fn refresh(self: &Arc<Self>, key: &PageKey, ask: &Ask) {
        let now = Instant::now();
        // Another replica may have fetched it.
        if !may_refresh(ask, now) && !self.shares_pages() {
            return;
        }
        let begun = self.flights.join(&self.flight(key, ask), true, |wanted| {
            match self.decide(key, ask, now) {
                Decision::ServeAndRefresh(_, stored) => {
                    let claim = Claim {
                        urgency: Urgency::Background,
                        client: BACKGROUND.into(),
                    };
                    let errand = Errand::new(claim);
                    Some(self.begin(ask, Look::Anywhere, errand, Some(stored), wanted))
                }
                // It has just been refreshed.
                Decision::Serve(_) | Decision::Refuse(_) | Decision::Fill(_) => None,
            }
        });
        drop(begun);
    }

    fn flight(&self, key: &PageKey, ask: &Ask) -> FlightKey {
        FlightKey {
            page: key.clone(),
            epoch: self.store.epoch(&key.space),
            token_pair: ask.credential.token_pair(),
        }
    }
}

/// Whether there is a call to spare for a page that nobody waits for, and the upstream is asked at all.
fn may_refresh(ask: &Ask, now: Instant) -> bool {
    let purse = ask.credential.purse();
    purse.would_take(Urgency::Background, now).is_ok()
        && ask.credential.circuit().refuses(Some(&ask.space)).is_none()
}

/// The answer where no fill is to be had: a stored page where one may stand in, else the error.
fn failed(
    error: UpstreamError,
    stored: Option<&Arc<StoredPage>>,
    ask: &Ask,
    status: CacheStatus,
) -> Result<Served, TasksError> {
    stand_in(&error, stored, &ask.credential, Instant::now()).ok_or_else(|| TasksError {
        kind: error.into(),
        status,
        age: None,
        calls: 0,
    })
}

/// A page as it is stored.
fn hit(page: Arc<StoredPage>, ttl: i64, detail: Option<Detail>, at: Instant) -> Served {
    Served {
        page,
        status: CacheStatus::Hit { ttl, detail },
        at,
        calls: 0,
    }
}

/// A stored page in place of `error`, where both allow it.
pub(super) fn stand_in(
    error: &UpstreamError,
    stored: Option<&Arc<StoredPage>>,
    credential: &Credential,
    now: Instant,
) -> Option<Served> {
    if !error.allows_stale() || credential.is_refused() {
        return None;
    }
    // It was looked up before the fill: a right revoked meanwhile must not show.
    let page = stored.filter(|page| !page.is_dropped())?;
    let ttl = page.freshness(now).stand_in(page.moved_at(), now)?;
    let detail = match error {
        UpstreamError::QuotaExhausted { .. } => Detail::Quota,
        _ => Detail::StaleIfError,
    };
    Some(Served {
        page: page.clone(),
        status: CacheStatus::Hit {
            ttl,
            detail: Some(detail),
        },
        at: now,
        calls: 0,
    })
}

/// The error that a remembered refusal stands for.
pub(super) fn remembered(refusal: Refusal) -> UpstreamError {
    match refusal {
        Refusal::SpaceNotFound => UpstreamError::SpaceNotFound { head: None },
        Refusal::SpaceAccessDenied => UpstreamError::SpaceAccessDenied,
        Refusal::Rejected => UpstreamError::Rejected,
        Refusal::Failed => UpstreamError::Failed(FailureSource::Inner { message: None }),
    }
}

#[cfg(test)]
mod tests;
