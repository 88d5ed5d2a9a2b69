//! A request for a page on its way down the stack, and what is known of its tries.

use std::{
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use http::HeaderValue;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    claims::Claims,
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
    /// When the fill began that it is asked for: its patience is counted from there, whichever try this is.
    pub began: Instant,
    /// The client on whose account the call goes.
    pub cause: Arc<str>,
    /// Who wants it how much, when few calls are left.
    pub claims: Claims,
    /// Tells the circuit when this try leaves; each try has its own.
    pub sent: Sent,
    /// Counts the tries.
    pub calls: Calls,
    /// What the last of them failed with.
    pub last_error: LastError,
    /// What each try's span stands below.
    pub trace: TraceContext,
}

/// How many calls of the upstream a page has cost. A clone counts on.
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

/// What the last try that was made failed with. A clone is the same.
#[derive(Clone, Debug, Default)]
pub struct LastError(Arc<Mutex<Option<(UpstreamError, u32)>>>);

impl LastError {
    /// Notes `error`, with which the last of `calls` ended.
    pub(super) fn note(&self, error: &UpstreamError, calls: &Calls) {
        *self.0.lock() = Some((error.clone(), calls.count()));
    }

    /// The noted error where none of `calls` was made since: of a try that was never made there is nothing to tell.
    pub(super) fn of_no_try_since(&self, calls: &Calls) -> Option<UpstreamError> {
        let noted = self.0.lock().clone();
        noted.and_then(|(error, then)| (then == calls.count()).then_some(error))
    }
}

/// What the upstream gave to ask by whether a stored page still holds, verbatim (RFC 9110 section 13.1).
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

/// When a try left for the upstream; set by the client.
///
/// The circuit stands above the quota and the slots, so that an open one costs neither, and cannot see from there where a
/// try is. It matters where the deadline drops a try: the upstream failed if it had the request long enough, and had no part
/// in it if the try was still waiting its turn.
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

/// What `call` gives; `None` where it was not sent yet when `news` came: who still stands in line would only find out, one after
/// another, what is known already.
pub(super) async fn abandon_if_unsent<T>(
    call: impl Future<Output = T>,
    news: impl Future<Output = ()>,
    is_sent: impl Fn() -> bool,
) -> Option<T> {
    let mut call = pin!(call);
    tokio::select! {
        biased;
        outcome = &mut call => Some(outcome),
        () = news => if is_sent() {
            Some(call.await)
        } else {
            None
        },
    }
}
