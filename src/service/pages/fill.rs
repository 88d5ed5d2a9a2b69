//! A fill: asks the upstream once for all who wait, takes in what it says, and draws the consequences.

use std::sync::Arc;

use tokio::{task::spawn_blocking, time::Instant};
use tower::ServiceExt;
use tracing::{debug, info, warn};

use super::{CallTimes, ClientRequest, Fill, Filled, Pages, Source, single_flight::FillContext};
use crate::{
    cache::{
        Received, StoredPage,
        http_semantics::is_of_stored,
        single_flight::StoreRequested,
        store::{Began, SharedOut, StoreDecision},
    },
    domain::Refusal,
    off_runtime::by_size,
    telemetry::metrics::Shed,
    upstream::{
        Answer, Call, Content, Evidence, FailureSource, Head, InvalidAnswer, LastError,
        PageRequest, Sent, Upstream, UpstreamError, Validators,
    },
};

impl Pages {
    /// Fetches the page that `request` names with `call`; run in a task of its own.
    pub(super) async fn fill(
        self: Arc<Self>,
        request: ClientRequest,
        context: FillContext,
        call: Result<Call, UpstreamError>,
        stored: Option<Arc<StoredPage>>,
        wanted: StoreRequested,
    ) -> Filled {
        let started = Instant::now();
        let mut span = request.trace.begin("fill");
        span.set_with("gateway.space", || request.space.to_string());
        span.set_with("gateway.credential", || request.credential.name.clone());
        span.set_with("gateway.cause", || context.cause.to_string());
        let began = self.store.begin(request.key(), started);
        // A page dropped in between must not come back by a 304.
        let stored = stored.filter(|page| !page.is_invalidated());
        let asked = |call: Call| PageRequest {
            validators: stored.as_deref().map(validators).unwrap_or_default(),
            request_id: request.request_id.clone(),
            began: started,
            call: call.into(),
            calls: context.calls.clone(),
            trace: span.context().clone(),
            ..PageRequest::new(
                request.credential.clone(),
                request.space.clone(),
                request.list.clone(),
                request.query,
                context.cause,
            )
        };
        let answer = match call.map(asked) {
            Ok(asked) => call_upstream(&request, asked, stored.as_deref()).await,
            Err(error) => Err(error),
        };
        let filled = match answer {
            Ok(answer) => {
                let (pages, began) = (self.clone(), began.clone());
                let (request, wanted) = (request.clone(), wanted.clone());
                by_size(length(&answer, stored.as_deref()), move || {
                    pages.take(&began, answer, stored.as_deref(), keep(&request, &wanted))
                })
                .await
            }
            Err(error) => Err(error),
        };
        if !matches!(
            filled,
            Err(UpstreamError::QuotaExhausted { .. } | UpstreamError::Unavailable { .. })
        ) {
            self.share_out(&request);
        }
        span.set("gateway.fill.outcome", outcome_of(&filled));
        if let Err(error) = &filled {
            span.fail(error.as_str());
        }
        drop(span);
        // One that was refused a call has no duration worth the name.
        if context.calls.count() > 0 {
            self.metrics.cache.fetched(started.elapsed());
        }
        self.note(&request, &began, &filled, keep(&request, &wanted));
        self.note_range(&request, &filled, context.calls.count());
        if let Err(error) = &filled {
            log_failure(&request, error);
        }
        filled
    }

    /// Fits lifetimes to the quota.
    fn share_out(self: &Arc<Self>, request: &ClientRequest) {
        let (id, now) = (request.credential.id, Instant::now());
        let calls = request.credential.budget().per_minute();
        let shared = self.store.share_out(id, calls, now);
        if let (SharedOut::Due, Some(calls)) = (shared, calls) {
            let pages = self.clone();
            // Nobody waits for it.
            spawn_blocking(move || pages.store.share_out_among_many(id, calls, now));
        }
    }

    /// Puts an answer into the store.
    fn take(
        &self,
        began: &Began,
        answer: Answer,
        stored: Option<&StoredPage>,
        keep: StoreDecision,
    ) -> Filled {
        let head = received(&answer.head);
        let (kept, status) = match (answer.content, stored) {
            (Content::Page(page), _) => (self.store.put(began, page, &head, keep), 200),
            (Content::NotModified, Some(stored)) => {
                (self.store.renew(began, stored, &head, keep), 304)
            }
            // Normalize lets no 304 through that was not asked for.
            (Content::NotModified, None) => {
                return Err(UpstreamError::Failed(FailureSource::Status {
                    status: http::StatusCode::NOT_MODIFIED,
                    retry_after: None,
                }));
            }
        };
        if let Some(observer) = self.observer()
            && keep != StoreDecision::Ignore
        {
            let received = head.received;
            let sent = received.checked_sub(head.response_delay);
            let sent = sent.unwrap_or(received);
            observer.filled(&began.key, &kept.page, CallTimes { sent, received });
        }
        Ok(Fill {
            kept,
            status,
            source: Source::Upstream,
        })
    }

    /// Draws the consequences of a fill's end, once for all its waiters.
    fn note(&self, request: &ClientRequest, began: &Began, filled: &Filled, keep: StoreDecision) {
        let now = Instant::now();
        self.metrics.cache.filled(outcome_of(filled));
        match filled {
            Ok(_) => {
                self.store.note_good(began);
                if request.credential.set_refused(false) {
                    info!(
                        credential.name = request.credential.name,
                        "upstream takes the credential again"
                    );
                }
            }
            Err(error) => self.note_failure(request, began, error, keep, now),
        }
    }

    fn note_failure(
        &self,
        request: &ClientRequest,
        began: &Began,
        error: &UpstreamError,
        keep: StoreDecision,
        now: Instant,
    ) {
        let head = match error {
            UpstreamError::SpaceNotFound { head } => head.as_deref().map(received),
            _ => None,
        };
        if let Some(refusal) = refusal(error) {
            self.store.refuse(began, refusal, head.as_ref(), keep, now);
        }
        if error.evidence() != Evidence::Nothing {
            self.store.note_failed(began, error.refuses_space(), now);
        }
        if matches!(error, UpstreamError::Overloaded) {
            self.metrics.http.shed(Shed::Queue);
        }
        if matches!(error, UpstreamError::AuthFailed) {
            request.credential.set_refused(true);
        }
    }
}

/// Tells the log why there is no page, once for all who wait for it.
fn log_failure(request: &ClientRequest, error: &UpstreamError) {
    let (space, credential) = (&request.space, &request.credential.name);
    match error {
        // The layer that tried its tokens has told the log.
        UpstreamError::AuthFailed => {}
        // As often as there are requests; the metrics tell how many.
        UpstreamError::QuotaExhausted { .. } => {
            debug!(%space, upstream.error = %error, "no upstream call is left");
        }
        // The circuit told that it opened.
        UpstreamError::Unavailable { .. } => {
            debug!(%space, upstream.error = %error, "upstream is not asked");
        }
        UpstreamError::SpaceNotFound { .. }
        | UpstreamError::SpaceAccessDenied
        | UpstreamError::Rejected => {
            debug!(%space, upstream.error = %error, "upstream refused a page");
        }
        UpstreamError::Failed(_)
        | UpstreamError::InvalidResponse(_)
        | UpstreamError::Unreachable(_)
        | UpstreamError::Timeout(_)
        | UpstreamError::Overloaded => warn!(
            %space,
            credential.name = credential,
            upstream.error = %error,
            upstream.reason = error.reason(),
            upstream.message = error.inner_message(),
            "upstream gave no page"
        ),
    }
}

/// Asks the upstream; once more without a condition where a 304 speaks of another page than the stored one.
async fn call_upstream(
    request: &ClientRequest,
    call: PageRequest,
    stored: Option<&StoredPage>,
) -> Result<Answer, UpstreamError> {
    let unconditional = PageRequest {
        validators: Validators::default(),
        sent: Sent::default(),
        last_error: LastError::default(),
        ..call.clone()
    };
    let answer = Upstream::clone(&request.upstream).oneshot(call).await?;
    let is_of_another = match (&answer.content, stored) {
        (Content::NotModified, Some(stored)) => {
            let head = &answer.head;
            !is_of_stored(stored.stored_headers(), &head.headers, head.received_unix)
        }
        (Content::NotModified, None) | (Content::Page(_), _) => false,
    };
    if !is_of_another {
        return Ok(answer);
    }
    debug!(space = %request.space, "upstream's 304 names another page than the stored one");
    Upstream::clone(&request.upstream)
        .oneshot(unconditional)
        .await
}

/// How long the page is that `answer` brings or renews.
fn length(answer: &Answer, stored: Option<&StoredPage>) -> usize {
    match &answer.content {
        Content::Page(page) => page.body.len(),
        Content::NotModified => stored.map_or(0, |page| page.content.length()),
    }
}

/// The name under which a fill's end is counted.
fn outcome_of(filled: &Filled) -> &'static str {
    match filled {
        Ok(Fill { status: 304, .. }) => "not_modified",
        Ok(fill) if fill.kept.stored => "stored",
        Ok(_) => "not_stored",
        Err(error) => error.as_str(),
    }
}

/// What those who wait for a fill want: asked when it has ended, since one may still join. What a token that was replaced
/// meanwhile may see is answered to them and no more.
fn keep(request: &ClientRequest, wanted: &StoreRequested) -> StoreDecision {
    match (request.credential.is_in_force(), wanted.is_set()) {
        (false, _) => StoreDecision::Ignore,
        (true, true) => StoreDecision::Store,
        (true, false) => StoreDecision::ObserveOnly,
    }
}

fn validators(page: &StoredPage) -> Validators {
    Validators {
        etag: page.upstream_etag().cloned(),
        last_modified: page.last_modified.clone(),
    }
}

fn received(head: &Head) -> Received<'_> {
    Received {
        headers: &head.headers,
        received: head.received,
        received_unix: head.received_unix,
        response_delay: head.response_delay,
    }
}

/// What of an error is remembered.
pub(super) fn refusal(error: &UpstreamError) -> Option<Refusal> {
    match error {
        UpstreamError::SpaceNotFound { .. } => Some(Refusal::SpaceNotFound),
        UpstreamError::SpaceAccessDenied => Some(Refusal::SpaceAccessDenied),
        UpstreamError::Rejected => Some(Refusal::Rejected),
        UpstreamError::Failed(source) => match source {
            FailureSource::Inner { .. } | FailureSource::InnerSlowDown { .. } => {
                Some(Refusal::Failed)
            }
            FailureSource::Status { .. } | FailureSource::Html => None,
        },
        // What ends a connection says nothing of the page, and is over with it.
        UpstreamError::InvalidResponse(InvalidAnswer::NotHttp | InvalidAnswer::Truncated) => None,
        UpstreamError::InvalidResponse(_) => Some(Refusal::Invalid),
        UpstreamError::AuthFailed
        | UpstreamError::Unreachable(_)
        | UpstreamError::Timeout(_)
        | UpstreamError::QuotaExhausted { .. }
        | UpstreamError::Unavailable { .. }
        | UpstreamError::Overloaded => None,
    }
}
