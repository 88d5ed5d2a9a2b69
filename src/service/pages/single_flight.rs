//! One fill per page at a time: a request joins the one under way, or begins it.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::{Instrument, error_span};

use super::{ClientRequest, Filled, Pages, Sources, decision::CacheDecision, range::Target};
use crate::{
    cache::{
        StoredPage,
        freshness::FillReason,
        single_flight::{Pending, StoreRequested},
    },
    domain::PageKey,
    telemetry::metrics::BACKGROUND,
    upstream::{Attendance, Calls, Waiter, Waiters},
};

/// Who may share a fill.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct FlightKey {
    page: PageKey,
    /// How often its space was dropped: who asks after a purge is not given what was asked before it.
    epoch: u64,
    /// Nor is who asks with a new token given what the old one may still see.
    token_pair: u64,
}

/// On whose account a fill goes, who wants it how much, and how many calls it has made so far: shared with those who wait for it.
#[derive(Clone, Debug)]
pub(super) struct FillContext {
    pub(super) cause: Arc<str>,
    pub(super) waiters: Waiters,
    pub(super) calls: Calls,
}

impl FillContext {
    /// Charged to `cause`.
    pub(super) fn new(cause: Arc<str>, waiter: Waiter) -> Self {
        Self {
            cause,
            waiters: Waiters::new(waiter),
            calls: Calls::default(),
        }
    }
}

impl Pages {
    /// Joins the fill of `target` or begins one; `None` where a fill that ended meanwhile left something to serve.
    ///
    /// A request that joins is a waiter too, and queues by its own need.
    pub(super) fn begin_fill(
        self: &Arc<Self>,
        target: &Target,
        request: &ClientRequest,
        sources: Sources,
        waiter: &Waiter,
    ) -> Option<(Pending<Filled, FillContext>, Attendance)> {
        let request = target.of(request);
        let key = &request.key();
        let keep = !request.directives.no_store;
        let mut attendance = None;
        let waiting = self
            .flights
            .join(&self.flight(key, request), keep, |wanted| {
                match self.decide(key, request, Instant::now()) {
                    CacheDecision::Fill { stored, .. } => {
                        let context = FillContext::new(waiter.client.clone(), waiter.clone());
                        // Before the fill begins, which ends where nobody wants it.
                        attendance = Some(context.waiters.attend());
                        Some(self.begin(request, sources, context, stored, wanted))
                    }
                    CacheDecision::Serve(_)
                    | CacheDecision::ServeAndRefresh(..)
                    | CacheDecision::Refuse(_) => None,
                }
            })?;
        let attendance = attendance.unwrap_or_else(|| {
            let waiters = &waiting.shared.waiters;
            let attendance = waiters.attend();
            waiters.add(waiter.clone());
            let budget = request.credential.budget();
            budget.note_joined(waiters, waiter, Instant::now());
            attendance
        });
        Some((waiting, attendance))
    }

    /// A fill, and what it shares with those who wait for it.
    pub(super) fn begin(
        self: &Arc<Self>,
        request: &ClientRequest,
        sources: Sources,
        context: FillContext,
        stored: Option<Arc<StoredPage>>,
        wanted: StoreRequested,
    ) -> (FillContext, impl Future<Output = Filled> + use<>) {
        let shared = context.clone();
        // Whatever a line of the log is about, it names the request that caused it. At the highest level, or a filter could leave it out.
        let span = error_span!(
            "fill",
            request.id = request.request_id.to_str().unwrap_or_default(),
            page = request.query.page,
            page_size = request.query.page_size
        );
        // From now on, so that a second page of the list joins it.
        let filling = self.store.note_filling(&request.key(), Instant::now());
        let fill = self
            .clone()
            .fetch(request.clone(), sources, context, stored, wanted);
        let fill = async move {
            let filled = fill.await;
            drop(filling);
            filled
        };
        (shared, fill.instrument(span))
    }

    /// Refreshes a page that nobody waits for, or the range that holds it, if the upstream is asked at all.
    pub(super) fn refresh(self: &Arc<Self>, shown: &PageKey, request: &ClientRequest) {
        let now = Instant::now();
        let target = self.target(shown, request, now);
        let (is_other, request) = (!matches!(target, Target::Page), target.of(request));
        let key = &request.key();
        let circuit = request.credential.circuit();
        // Another replica may have fetched it.
        if circuit.refuses(Some(&request.space)).is_some() && !self.shares_pages() {
            return;
        }
        let begun = self
            .flights
            .join(&self.flight(key, request), true, |wanted| {
                let stored = match self.decide(key, request, now) {
                    CacheDecision::ServeAndRefresh(_, stored) => Some(stored),
                    CacheDecision::Fill { stored, .. } if is_other => stored,
                    // It has just been refreshed.
                    CacheDecision::Serve(_)
                    | CacheDecision::Refuse(_)
                    | CacheDecision::Fill { .. } => {
                        return None;
                    }
                };
                let waiter = self.waiter(shown, request, FillReason::Stale);
                let context = FillContext::new(BACKGROUND.into(), waiter);
                Some(self.begin(request, Sources::All, context, stored, wanted))
            });
        drop(begun);
    }

    pub(super) fn flight(&self, key: &PageKey, request: &ClientRequest) -> FlightKey {
        FlightKey {
            page: key.clone(),
            epoch: self.store.epoch(&key.list.space),
            token_pair: request.credential.token_pair(),
        }
    }
}
