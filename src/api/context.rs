//! What a request's extensions tell its handler, and what its handler tells the edge.

use std::{mem, net::IpAddr, sync::Arc};

use http::{Extensions, HeaderValue};
use parking_lot::Mutex;

use super::{Client, Policy};
use crate::{
    domain::{PageQuery, SpaceFingerprint},
    telemetry::{
        metrics::{Account, CacheOutcome},
        traces::TraceContext,
    },
};

/// What the layers know of a request; one of its extensions.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// The client's own if it is fit, else a new one.
    pub id: HeaderValue,
    /// Where the request's own span is.
    pub trace: TraceContext,
    /// What was in force when it came: it is judged by that from its first check to its answer.
    pub policy: Arc<Policy>,
    /// The peer's, or the one that a trusted proxy reports.
    pub client_address: Option<IpAddr>,
    /// Who asks; `None` before authentication, and where a route is served to anybody.
    pub client: Option<Arc<Client>>,
    pub record: SharedRecord,
}

const OBSERVED: &str = "`observe` is around every other layer";

impl RequestContext {
    /// That of a request, by its extensions.
    ///
    /// # Panics
    ///
    /// Panics where [`super::layers::observe`] is not around the caller.
    #[must_use]
    pub fn of(extensions: &Extensions) -> &Self {
        extensions.get().expect(OBSERVED)
    }

    /// As [`RequestContext::of`], to be changed.
    ///
    /// # Panics
    ///
    /// As [`RequestContext::of`].
    #[must_use]
    pub fn of_mut(extensions: &mut Extensions) -> &mut Self {
        extensions.get_mut().expect(OBSERVED)
    }

    /// As [`RequestContext::of`], taken out: who reads it later panics.
    ///
    /// # Panics
    ///
    /// As [`RequestContext::of`].
    #[must_use]
    pub fn take(extensions: &mut Extensions) -> Self {
        extensions.remove().expect(OBSERVED)
    }
}

/// What became of a request, written as it becomes known: of a request whose client went away too.
#[derive(Clone, Debug, Default)]
pub struct SharedRecord(Arc<Mutex<RequestRecord>>);

impl SharedRecord {
    pub fn note(&self, note: impl FnOnce(&mut RequestRecord)) {
        note(&mut self.0.lock());
    }

    /// What is noted by now; nothing is left.
    #[must_use]
    pub fn take(&self) -> RequestRecord {
        mem::take(&mut self.0.lock())
    }
}

/// What became of a request, for metrics, traces and the access log.
#[derive(Clone, Debug, Default)]
pub struct RequestRecord {
    /// `None` where it is not known who asks.
    pub account: Option<Account>,
    pub space: Option<SpaceFingerprint>,
    /// Which page of it.
    pub query: Option<PageQuery>,
    pub cache: Option<CacheOutcome>,
    pub age_s: Option<u64>,
    /// What the request cost: 0 where the page was stored, or fetched for another.
    pub upstream_calls: u32,
    pub log_at: LogAt,
}

/// When a request's line is written to the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogAt {
    /// When the header of its answer is there.
    #[default]
    Answer,
    /// When its answer has ended: it may go on for long.
    End,
}
