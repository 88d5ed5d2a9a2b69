//! What is asked of [`super::Pages`], and what it answers.

use std::{sync::Arc, time::Duration};

use http::HeaderValue;
use tokio::time::Instant;

use crate::{
    cache::{CacheStatus, StoredPage, http_semantics::RequestDirectives},
    domain::{ListId, ListKey, PageKey, PageQuery, SpaceKey, SpaceToken},
    telemetry::{metrics::Account, traces::TraceContext},
    upstream::{Credential, Upstream, UpstreamError},
};

/// What is asked, and on whose account.
#[derive(Clone, Debug)]
pub struct ClientRequest {
    pub credential: Arc<Credential>,
    /// What it is asked through: of the same configuration, so that a token never goes to another upstream than its own.
    pub upstream: Arc<Upstream>,
    pub space: SpaceToken,
    pub list: ListId,
    pub query: PageQuery,
    /// As far as the client may ask for it: see [`crate::cache::freshness::permitted`].
    pub directives: RequestDirectives,
    pub account: Account,
    pub request_id: HeaderValue,
    /// Where the request's own span is.
    pub trace: TraceContext,
}

impl ClientRequest {
    pub(in crate::service) fn key(&self) -> PageKey {
        PageKey {
            list: ListKey {
                space: SpaceKey {
                    credential: self.credential.id,
                    space: self.space.clone(),
                },
                id: self.list.clone(),
            },
            query: self.query,
        }
    }

    /// The same of another page.
    pub(in crate::service) fn for_page(&self, query: PageQuery) -> Self {
        Self {
            query,
            ..self.clone()
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
pub struct PagesError {
    #[source]
    pub kind: PagesErrorKind,
    pub status: CacheStatus,
    /// How old the upstream's answer is where it was remembered, not asked for.
    pub age: Option<Duration>,
    /// As [`Served::calls`].
    pub calls: u32,
}

impl PagesError {
    /// Of a request that has made no call so far.
    pub(super) fn new(kind: impl Into<PagesErrorKind>, status: impl Into<CacheStatus>) -> Self {
        Self {
            kind: kind.into(),
            status: status.into(),
            age: None,
            calls: 0,
        }
    }
}

/// Why there is no page.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PagesErrorKind {
    #[error("the upstream gave no page")]
    Upstream(#[from] UpstreamError),
    #[error("nothing usable is stored, and the client wants nothing else")]
    NotCached,
    /// More rows are needed than can be had now; they are being fetched.
    #[error("the rows that it takes cannot be had now")]
    Incomplete { retry_after: Duration },
    #[error("the fill ended in a bug")]
    Lost,
}

impl PagesErrorKind {
    /// What the upstream answered, if that is why.
    pub(in crate::service) fn upstream(&self) -> Option<&UpstreamError> {
        match self {
            Self::Upstream(error) => Some(error),
            Self::NotCached | Self::Incomplete { .. } | Self::Lost => None,
        }
    }
}
