//! Waiting for a fill, as one of those who do: within the limit of waiters, and for so long at most.

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    Ask, Fill, Filled, Look, Missing, Served, Settled, Shared, Source, Tasks, TasksError,
    TasksErrorKind, WantedFill, failed,
};
use crate::{
    cache::{
        CacheStatus, Role, StoredPage, flight::Waiting, freshness::FillReason, status::NotForwarded,
    },
    domain::PageKey,
    telemetry::metrics::Shed,
    upstream::{Calls, UpstreamError},
};

impl Tasks {
    /// The page cut from others, else filled.
    pub(super) async fn page_missing(
        self: &Arc<Self>,
        key: &PageKey,
        ask: &Ask,
        mut missing: Missing,
    ) -> Result<Served, TasksError> {
        let mut look = Look::Anywhere;
        loop {
            if let Some(served) = self.assemble(key, ask, missing.reason()).await {
                return Ok(served);
            }
            let WantedFill { reason, stored } = match missing {
                Missing::Fill(wanted) => wanted,
                Missing::NotCached(error) => return Err(error),
            };
            // Before anything is begun: a fill that nobody may wait for would only add to the load.
            let Some(mut permit) = self.waiter_limit.take(&ask.account) else {
                let status = NotForwarded::Overloaded.into();
                return self.no_permit(ask, stored.as_ref(), status);
            };
            // `None`: another fill ended since the decision, so there is a new one to make.
            if let Some(waiting) = self.begin_fill(key, ask, look, stored.as_ref()) {
                let awaited = Awaited::new(reason, &waiting);
                let outcome = tokio::select! {
                    biased;
                    outcome = self.wait(waiting, ask, &awaited, stored.as_ref()) => outcome,
                    () = permit.given_away() => {
                        let status = awaited.failed(&UpstreamError::Overloaded);
                        Some(self.no_permit(ask, stored.as_ref(), status))
                    }
                };
                match outcome {
                    Some(outcome) => return charged(outcome, awaited.calls_of_its_own()),
                    None => look = Look::Upstream,
                }
            }
            missing = match self.settle(key, ask) {
                Settled::Now(outcome) => return outcome,
                Settled::Not(missing) => missing,
            };
        }
    }

    /// The answer to who may not wait for a fill, or no longer.
    fn no_permit(
        &self,
        ask: &Ask,
        stored: Option<&Arc<StoredPage>>,
        status: CacheStatus,
    ) -> Result<Served, TasksError> {
        self.metrics.http.shed(Shed::WaitingPlaces);
        failed(UpstreamError::Overloaded, stored, ask, status)
    }

    /// Waits for a fill; `None` where it found what another replica filled, and this client wants another.
    async fn wait(
        self: &Arc<Self>,
        waiting: Waiting<Filled, Shared>,
        ask: &Ask,
        awaited: &Awaited,
        stored: Option<&Arc<StoredPage>>,
    ) -> Option<Result<Served, TasksError>> {
        let _counted = self.metrics.cache.fill_waiter();
        let mut span = ask.trace.begin("wait");
        span.set("gateway.fill.joined", awaited.role == Role::Joined);
        let outcome = tokio::time::timeout(self.patience, waiting.outcome())
            .await
            .unwrap_or(Some(Err(UpstreamError::Timeout(self.patience))));
        if let Some(Err(error)) = &outcome {
            span.fail(error.as_str());
        }
        drop(span);
        Some(match outcome {
            Some(Ok(fill)) if fill.source == Source::SecondTier => {
                return self.serve_shared(fill.kept.page, ask).map(Ok);
            }
            Some(Ok(fill)) => Ok(Served {
                status: awaited.filled(&fill),
                page: fill.kept.page,
                at: Instant::now(),
                calls: 0,
            }),
            Some(Err(error)) => {
                // It may have found one that is too old to be shown but in its place.
                let found = stored.cloned().or_else(|| self.found_meanwhile(ask));
                let status = awaited.failed(&error);
                failed(error, found.as_ref(), ask, status)
            }
            None => Err(TasksError {
                kind: TasksErrorKind::Lost,
                status: awaited.forwarded(),
                age: None,
                calls: 0,
            }),
        })
    }
}

/// A fill as one of those who wait for it sees it.
struct Awaited {
    reason: FillReason,
    role: Role,
    calls: Calls,
}

impl Awaited {
    fn new(reason: FillReason, waiting: &Waiting<Filled, Shared>) -> Self {
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
            Role::Joined => 0,
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
            Role::Joined => self.forwarded(),
        }
    }

    /// What to say where the fill ended with `error`: of a call only where there was one.
    fn failed(&self, error: &UpstreamError) -> CacheStatus {
        match self.calls.count() {
            0 => not_forwarded(error).into(),
            _ => self.forwarded(),
        }
    }

    fn forwarded(&self) -> CacheStatus {
        CacheStatus::Forward {
            reason: self.reason,
            status: None,
            stored: false,
            collapsed: self.role == Role::Joined,
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
fn charged(outcome: Result<Served, TasksError>, calls: u32) -> Result<Served, TasksError> {
    match outcome {
        Ok(served) => Ok(Served { calls, ..served }),
        Err(error) => Err(TasksError { calls, ..error }),
    }
}
