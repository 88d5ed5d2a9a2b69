//! A request for a page on its way down the stack, and what is known of its tries.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU32, Ordering},
};

use http::HeaderValue;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    call_budget::AcquiredCall,
    credential::{Credential, TokenSlot},
    error::UpstreamError,
};
use crate::{
    domain::{ListId, PageQuery, SpaceToken},
    telemetry::traces::TraceContext,
};

/// What is asked of the upstream.
#[derive(Clone, Debug)]
pub struct PageRequest {
    pub credential: Arc<Credential>,
    /// Which of its tokens the call goes with.
    pub token: TokenSlot,
    pub space: SpaceToken,
    pub list: ListId,
    pub query: PageQuery,
    pub validators: Validators,
    pub request_id: HeaderValue,
    /// When its fill got its call: deadlines count from there, whichever try this is.
    pub began: Instant,
    /// The client that the call is charged to.
    pub cause: Arc<str>,
    /// The call that its first try is made with.
    pub call: AcquiredCall,
    /// Whether it was tried before and failed for a while.
    pub is_retry: bool,
    /// Set when this try is sent; each try has its own.
    pub sent: Sent,
    /// Counts the tries.
    pub calls: Calls,
    /// What the last of them failed with.
    pub last_error: LastError,
    /// The parent of each try's span.
    pub trace: TraceContext,
}

impl PageRequest {
    /// Asks for a page as it is, whatever is stored of it: a first try that begins now, is paid for by no call, and charged to `cause`.
    #[must_use]
    pub fn new(
        credential: Arc<Credential>,
        space: SpaceToken,
        list: ListId,
        query: PageQuery,
        cause: Arc<str>,
    ) -> Self {
        Self {
            token: credential.preferred(),
            credential,
            space,
            list,
            query,
            validators: Validators::default(),
            request_id: HeaderValue::from_static("unpod-gateway"),
            began: Instant::now(),
            cause,
            call: AcquiredCall::default(),
            is_retry: false,
            sent: Sent::default(),
            calls: Calls::default(),
            last_error: LastError::default(),
            trace: TraceContext::default(),
        }
    }
}

/// The number of upstream calls that a page has cost. Clones share the count.
#[derive(Clone, Debug, Default)]
pub struct Calls(Arc<AtomicU32>);

impl Calls {
    #[must_use]
    pub fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts one more; returns how many there were before it.
    pub fn add(&self) -> u32 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

/// The error of the last try that was sent. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct LastError(Arc<Mutex<Option<(UpstreamError, u32)>>>);

impl LastError {
    /// Notes `error`, with which the last of `calls` ended.
    pub(super) fn note(&self, error: &UpstreamError, calls: &Calls) {
        *self.0.lock() = Some((error.clone(), calls.count()));
    }

    /// The noted error if none of `calls` was made since: a retry that was never sent has no error of its own.
    pub(super) fn of_no_try_since(&self, calls: &Calls) -> Option<UpstreamError> {
        let noted = self.0.lock().clone();
        noted.and_then(|(error, then)| (then == calls.count()).then_some(error))
    }
}

/// The validators of a stored page as the upstream gave them (RFC 9110 section 13.1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Validators {
    pub etag: Option<HeaderValue>,
    pub last_modified: Option<HeaderValue>,
}

impl Validators {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.etag.is_none() && self.last_modified.is_none()
    }
}

/// When a try was sent to the upstream; set by the client.
///
/// The circuit breaker must know when the deadline drops a try: the upstream failed only if it had the request for long enough.
#[derive(Clone, Debug, Default)]
pub struct Sent(Arc<OnceLock<Instant>>);

impl Sent {
    pub fn set(&self) {
        self.0.get_or_init(Instant::now);
    }

    #[must_use]
    pub fn is_set(&self) -> bool {
        self.at().is_some()
    }

    pub(super) fn at(&self) -> Option<Instant> {
        self.0.get().copied()
    }
}
