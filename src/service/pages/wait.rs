//! Waiting for a fill, as one of those who do: within the limit of waiters, and for so long at most.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    ClientRequest, Fill, Filled, Pages, PagesError, PagesErrorKind, Served, Source, Sources,
    StoreAnswer, not_cached, range::Target, single_flight::FillContext,
};
use crate::{
    cache::{
        CacheStatus, Role, freshness::FillReason, single_flight::Pending, status::NotForwarded,
        store::Extent,
    },
    domain::PageKey,
    telemetry::metrics::Shed,
    upstream::{Calls, InvalidAnswer, Need, Progress, UpstreamError},
};

/// The least that a client is told to wait for a call: its turn was near, and is yet to come.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);

/// Fills of parts that one request waits for at most: three times what a page of 100 rows takes of ten rows each, since the list may move.
const MOST_ROUNDS: u32 = 32;

impl Pages {
    /// The page cut from others, else filled.
    pub(super) async fn page_missing(
        self: &Arc<Self>,
        key: &PageKey,
        request: &ClientRequest,
        mut missing: FillReason,
    ) -> Result<Served, PagesError> {
        let (mut sources, mut is_exact, mut calls) = (Sources::All, false, 0);
        let since = Instant::now();
        let until = since + self.patience;
        let (mut parts, mut rounds) = (None, 0);
        loop {
            if let Some(by) = parts
                && let Some(served) = self.join_parts(key, request, since).await
            {
                let status = Option::unwrap_or(by, served.status);
                return charged(Ok(Served { status, ..served }), calls);
            }
            if let Some(served) = self.assemble(key, request, missing).await {
                return charged(Ok(served), calls);
            }
            if request.directives.only_if_cached {
                return Err(not_cached());
            }
            let target = match is_exact {
                true => self.target_alone(key, request, since),
                false => self.target(key, request, since),
            };
            let reason = self.reason_for(&target, missing);
            // Before anything is begun: a fill that nobody may wait for would only add to the load.
            let Some(mut permit) = self.waiter_limit.take(&request.account) else {
                return Err(self.no_permit(NotForwarded::Overloaded));
            };
            let waiter = self.waiter(key, request, reason);
            // `None`: another fill ended since the decision, so there is a new one to make.
            if let Some((waiting, _attendance)) =
                self.begin_fill(&target, request, sources, &waiter)
            {
                let awaited = Awaited::new(reason, until, &waiting);
                let need = waiter.need;
                let waited = tokio::select! {
                    biased;
                    waited = self.wait(waiting, key, request, &target, &awaited, need) => waited,
                    () = permit.given_away() => {
                        let status = awaited.failed(NotForwarded::Overloaded);
                        Waited::Done(Err(self.no_permit(status)))
                    }
                };
                calls += awaited.calls_of_its_own();
                match waited {
                    Waited::Done(outcome) => return charged(outcome, calls),
                    Waited::WantsAnother => sources = Sources::UpstreamAlone,
                    Waited::WantsPageAlone => is_exact = true,
                    Waited::WantsParts(by) => {
                        parts = Some(parts.flatten().or(by));
                        rounds += 1;
                        // Of a list that moves faster than it is read nothing fits together.
                        if rounds > MOST_ROUNDS {
                            let error = UpstreamError::InvalidResponse(InvalidAnswer::Inconsistent);
                            let status = awaited.failed(NotForwarded::Overloaded);
                            return charged(Err(PagesError::new(error, status)), calls);
                        }
                    }
                }
            } else {
                // The range may be there by now; if it does not hold the page, that is asked for.
                is_exact = matches!(target, Target::Range(_));
            }
            missing = match self.answer_from_store(key, request) {
                StoreAnswer::Done(outcome) => return charged(outcome, calls),
                StoreAnswer::Missing(reason) => reason,
            };
        }
    }

    /// The error for who may not wait for a fill, or no longer.
    pub(super) fn no_permit(&self, status: impl Into<CacheStatus>) -> PagesError {
        self.metrics.http.shed(Shed::WaitingPlaces);
        PagesError::new(UpstreamError::Overloaded, status)
    }

    /// Waits for a fill of `target`.
    async fn wait(
        self: &Arc<Self>,
        waiting: Pending<Filled, FillContext>,
        key: &PageKey,
        request: &ClientRequest,
        target: &Target,
        awaited: &Awaited,
        need: Need,
    ) -> Waited {
        let _counted = self.metrics.cache.fill_waiter();
        let mut span = request.trace.begin("wait");
        span.set("gateway.fill.joined", awaited.role == Role::Follower);
        let progress = waiting.shared.waiters.progress();
        let patience = self.out_of_patience(key, request, need, awaited.until, progress);
        let outcome = tokio::select! {
            biased;
            outcome = waiting.outcome() => outcome,
            instead = patience => match instead {
                Ok(served) => return Waited::Done(Ok(served)),
                Err(error) => Some(Err(error)),
            },
        };
        if let Some(Err(error)) = &outcome {
            span.fail(error.as_str());
        }
        drop(span);
        let served = match outcome {
            Some(Ok(fill)) if fill.source == Source::SharedCache => {
                match self.serve_shared(fill.kept.page, target.of(request)) {
                    Some(served) => served,
                    None => return Waited::WantsAnother,
                }
            }
            Some(Ok(fill)) if fill.kept.extent == Extent::Limited => {
                return Waited::WantsParts(awaited.own_status(&fill));
            }
            Some(Ok(fill)) => Served {
                status: awaited.filled(&fill),
                page: fill.kept.page,
                at: Instant::now(),
                calls: 0,
            },
            Some(Err(_)) if self.is_unfit(target) => return Waited::WantsPageAlone,
            Some(Err(error)) => {
                let status = awaited.failed(not_forwarded(&error));
                return Waited::Done(Err(PagesError::new(error, status)));
            }
            None => {
                let status = awaited.failed(NotForwarded::Overloaded);
                return Waited::Done(Err(PagesError::new(PagesErrorKind::Lost, status)));
            }
        };
        match target {
            Target::Page => Waited::Done(Ok(served)),
            Target::Range(_) => match self.cut_served(&served, request.query).await {
                Some(served) => Waited::Done(Ok(served)),
                None => Waited::WantsPageAlone,
            },
            Target::Part(_) => Waited::WantsParts(match served.status {
                CacheStatus::Forward {
                    collapsed: false, ..
                } => Some(served.status),
                CacheStatus::Forward { .. }
                | CacheStatus::Hit { .. }
                | CacheStatus::NotForwarded(_) => None,
            }),
        }
    }
}

/// What waiting for a fill came to.
enum Waited {
    Done(Result<Served, PagesError>),
    /// It found what another replica filled, and this client wants another.
    WantsAnother,
    /// The range could not be had, or does not hold the page.
    WantsPageAlone,
    /// The upstream gives fewer rows at once: there are more to fetch. With the status of a call that this request caused.
    WantsParts(Option<CacheStatus>),
}

impl Pages {
    /// Completes with what a request gets which waits for a fill no longer: a stale page while the fill drags on, or an error.
    async fn out_of_patience(
        self: &Arc<Self>,
        key: &PageKey,
        request: &ClientRequest,
        need: Need,
        at_most: Instant,
        mut progress: watch::Receiver<Progress>,
    ) -> Result<Served, UpstreamError> {
        let now = Instant::now();
        let for_a_call = now + request.credential.budget().patience();
        let mut slow_after = self.store.stale_if_slow();
        if asks_for_a_newer_page(request) {
            slow_after = None;
        }
        loop {
            let seen = *progress.borrow_and_update();
            let (until, error) = match seen {
                Progress::Started | Progress::Sent(_) => {
                    (at_most, UpstreamError::Timeout(self.patience))
                }
                Progress::Queued(call_at) => {
                    let until = match need {
                        // It has a page to show.
                        Need::Refresh(_) | Need::Oldest => now,
                        Need::Nothing | Need::Forced if call_at > for_a_call => now,
                        Need::Begun | Need::Nothing | Need::Forced => for_a_call,
                    };
                    let wait = call_at.saturating_duration_since(until.max(Instant::now()));
                    let retry_after = Some(wait.max(SHORTEST_WAIT));
                    (until, UpstreamError::QuotaExhausted { retry_after })
                }
            };
            let slow_at = match seen {
                Progress::Started => slow_after.map(|after| now + after),
                Progress::Sent(at) => slow_after.map(|after| at + after),
                Progress::Queued(_) => None,
            };
            tokio::select! {
                biased;
                Ok(()) = progress.changed() => {}
                () = sleep_until(slow_at.unwrap_or(until)), if slow_at.is_some() => {
                    match self.while_slow(key, request, Instant::now()).await {
                        Some(served) => return Ok(served),
                        None => slow_after = None,
                    }
                }
                () = sleep_until(until) => return Err(error),
            }
        }
    }
}

/// Whether its client wants another page than what is stored.
pub(super) fn asks_for_a_newer_page(request: &ClientRequest) -> bool {
    let asked = &request.directives;
    asked.no_cache || asked.max_age.is_some() || asked.min_fresh.is_some()
}

/// A fill as one of those who wait for it sees it.
struct Awaited {
    reason: FillReason,
    /// When its waiter leaves at last.
    until: Instant,
    role: Role,
    calls: Calls,
}

impl Awaited {
    fn new(reason: FillReason, until: Instant, waiting: &Pending<Filled, FillContext>) -> Self {
        Self {
            reason,
            until,
            role: waiting.role,
            calls: waiting.shared.calls.clone(),
        }
    }

    /// The calls that count on this waiter's account: those of a fill that another began are the other's.
    fn calls_of_its_own(&self) -> u32 {
        match self.role {
            Role::Leader => self.calls.count(),
            Role::Follower => 0,
        }
    }

    /// What to say of the call that this waiter caused.
    fn own_status(&self, fill: &Fill) -> Option<CacheStatus> {
        (self.role == Role::Leader).then(|| self.filled(fill))
    }

    fn filled(&self, fill: &Fill) -> CacheStatus {
        match self.role {
            Role::Leader => CacheStatus::Forward {
                reason: self.reason,
                status: Some(fill.status),
                stored: fill.kept.stored,
                collapsed: false,
            },
            Role::Follower => self.forwarded(),
        }
    }

    /// What to say of a fill that gave no page: of a call only where there was one, else why there was none.
    fn failed(&self, not_forwarded: NotForwarded) -> CacheStatus {
        match self.calls.count() {
            0 => not_forwarded.into(),
            _ => self.forwarded(),
        }
    }

    fn forwarded(&self) -> CacheStatus {
        CacheStatus::Forward {
            reason: self.reason,
            status: None,
            stored: false,
            collapsed: self.role == Role::Follower,
        }
    }
}

/// Why a fill that ended with `error` made no call.
fn not_forwarded(error: &UpstreamError) -> NotForwarded {
    match error {
        UpstreamError::QuotaExhausted { .. } => NotForwarded::Quota,
        UpstreamError::Unavailable { .. } | UpstreamError::AuthFailed => NotForwarded::CircuitOpen,
        // It waited for its turn until its deadline.
        UpstreamError::Timeout(_) | UpstreamError::Overloaded => NotForwarded::Overloaded,
        // Only a call can end so.
        UpstreamError::SpaceNotFound { .. }
        | UpstreamError::SpaceAccessDenied
        | UpstreamError::Rejected
        | UpstreamError::Failed(_)
        | UpstreamError::InvalidResponse(_)
        | UpstreamError::Unreachable(_) => NotForwarded::Overloaded,
    }
}

/// The same, with what it cost.
fn charged(outcome: Result<Served, PagesError>, calls: u32) -> Result<Served, PagesError> {
    match outcome {
        Ok(served) => Ok(Served { calls, ..served }),
        Err(error) => Err(PagesError { calls, ..error }),
    }
}
