//! Waiting for a fill, as one of those who do: within the limit of waiters, and for so long at most.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    ClientRequest, Fill, Filled, Missing, Pages, PagesError, PagesErrorKind, Served, Source,
    Sources, StoreAnswer, single_flight::FillContext,
};
use crate::{
    cache::{
        CacheStatus, Role, freshness::FillReason, single_flight::Pending, status::NotForwarded,
    },
    domain::PageKey,
    telemetry::metrics::Shed,
    upstream::{Calls, Need, Progress, UpstreamError},
};

/// The least that a client is told to wait for a call: its turn was near, and is yet to come.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);

impl Pages {
    /// The page cut from others, else filled.
    pub(super) async fn page_missing(
        self: &Arc<Self>,
        key: &PageKey,
        request: &ClientRequest,
        mut missing: Missing,
    ) -> Result<Served, PagesError> {
        let mut sources = Sources::All;
        loop {
            if let Some(served) = self.assemble(key, request, missing.reason()).await {
                return Ok(served);
            }
            let reason = match missing {
                Missing::Fill(reason) => reason,
                Missing::NotCached(error) => return Err(error),
            };
            // Before anything is begun: a fill that nobody may wait for would only add to the load.
            let Some(mut permit) = self.waiter_limit.take(&request.account) else {
                let status = NotForwarded::Overloaded.into();
                return Err(self.no_permit(status));
            };
            let waiter = self.waiter(key, request, reason);
            // `None`: another fill ended since the decision, so there is a new one to make.
            if let Some((waiting, _attendance)) = self.begin_fill(key, request, sources, &waiter) {
                let awaited = Awaited::new(reason, &waiting);
                let outcome = tokio::select! {
                    biased;
                    outcome = self.wait(waiting, key, request, &awaited, waiter.need) => outcome,
                    () = permit.given_away() => {
                        let status = awaited.failed(NotForwarded::Overloaded);
                        Some(Err(self.no_permit(status)))
                    }
                };
                match outcome {
                    Some(outcome) => return charged(outcome, awaited.calls_of_its_own()),
                    None => sources = Sources::UpstreamAlone,
                }
            }
            missing = match self.answer_from_store(key, request) {
                StoreAnswer::Done(outcome) => return outcome,
                StoreAnswer::Missing(missing) => missing,
            };
        }
    }

    /// The error for who may not wait for a fill, or no longer.
    fn no_permit(&self, status: CacheStatus) -> PagesError {
        self.metrics.http.shed(Shed::WaitingPlaces);
        failed(UpstreamError::Overloaded, status)
    }

    /// Waits for a fill; `None` where it found what another replica filled, and this client wants another.
    async fn wait(
        self: &Arc<Self>,
        waiting: Pending<Filled, FillContext>,
        key: &PageKey,
        request: &ClientRequest,
        awaited: &Awaited,
        need: Need,
    ) -> Option<Result<Served, PagesError>> {
        let _counted = self.metrics.cache.fill_waiter();
        let mut span = request.trace.begin("wait");
        span.set("gateway.fill.joined", awaited.role == Role::Follower);
        let progress = waiting.shared.waiters.progress();
        let patience = self.out_of_patience(key, request, need, progress);
        let outcome = tokio::select! {
            biased;
            outcome = waiting.outcome() => outcome,
            instead = patience => match instead {
                Ok(served) => return Some(Ok(served)),
                Err(error) => Some(Err(error)),
            },
        };
        if let Some(Err(error)) = &outcome {
            span.fail(error.as_str());
        }
        drop(span);
        Some(match outcome {
            Some(Ok(fill)) if fill.source == Source::SharedCache => {
                return self.serve_shared(fill.kept.page, request).map(Ok);
            }
            Some(Ok(fill)) => Ok(Served {
                status: awaited.filled(&fill),
                page: fill.kept.page,
                at: Instant::now(),
                calls: 0,
            }),
            Some(Err(error)) => {
                let status = awaited.failed(not_forwarded(&error));
                Err(failed(error, status))
            }
            None => {
                let status = awaited.failed(NotForwarded::Overloaded);
                Err(failed(PagesErrorKind::Lost, status))
            }
        })
    }
}

fn failed(kind: impl Into<PagesErrorKind>, status: CacheStatus) -> PagesError {
    PagesError {
        kind: kind.into(),
        status,
        age: None,
        calls: 0,
    }
}

impl Pages {
    /// Completes with what a request gets which waits for a fill no longer: a stale page while the fill drags on, or an error.
    async fn out_of_patience(
        &self,
        key: &PageKey,
        request: &ClientRequest,
        need: Need,
        mut progress: watch::Receiver<Progress>,
    ) -> Result<Served, UpstreamError> {
        let now = Instant::now();
        let for_a_call = now + request.credential.budget().patience();
        let at_most = now + self.patience;
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
                    match self.while_slow(key, request, Instant::now()) {
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
fn asks_for_a_newer_page(request: &ClientRequest) -> bool {
    let asked = &request.directives;
    asked.no_cache || asked.max_age.is_some() || asked.min_fresh.is_some()
}

/// A fill as one of those who wait for it sees it.
struct Awaited {
    reason: FillReason,
    role: Role,
    calls: Calls,
}

impl Awaited {
    fn new(reason: FillReason, waiting: &Pending<Filled, FillContext>) -> Self {
        Self {
            reason,
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
