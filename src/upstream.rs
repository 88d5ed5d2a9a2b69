//! The upstream stack: a tower `Service` from [`PageRequest`] to [`Answer`], above which no 206 exists.
//!
//! From the outside in: deadline, retry, limit, normalize, client. It knows nothing of the cache; the service above joins them.

use std::{sync::Arc, time::Duration};

use http::HeaderMap;
use tokio::time::Instant;
use tower::{ServiceBuilder, util::BoxCloneSyncService};

mod client;
mod credential;
mod deadline;
mod error;
mod limit;
mod normalize;
mod retry;
mod tasks;

pub use self::{
    client::{BuildError, Client, ClientError, PageRequest, RawAnswer, Validators},
    credential::{Credential, Credentials},
    deadline::DeadlineLayer,
    error::{FailureSource, InvalidAnswer, UpstreamError},
    limit::LimitLayer,
    normalize::{NormalizeLayer, Rules},
    tasks::read_page,
};
use crate::{
    config::{NormalizeConfig, UpstreamConfig},
    domain::TaskPage,
    telemetry::metrics::Metrics,
};

/// The whole stack, ready to be cloned into fills.
pub type Upstream = BoxCloneSyncService<PageRequest, Answer, UpstreamError>;

/// What the upstream gave: a page, or word that the stored one still holds.
#[derive(Clone, Debug)]
pub struct Answer {
    pub content: Content,
    pub head: Head,
}

/// The content of an [`Answer`].
#[derive(Clone, Debug)]
pub enum Content {
    Page(TaskPage),
    /// A 304 to the validators that were sent.
    NotModified,
}

/// The header of an answer and when it came: what freshness is judged from.
#[derive(Clone, Debug)]
pub struct Head {
    pub headers: HeaderMap,
    pub received: Instant,
    /// The same moment on the wall clock, in Unix seconds.
    pub received_unix: i64,
    /// From sending the request to having its header.
    pub response_delay: Duration,
}

/// Builds the stack over `client`.
///
/// The order: the deadline is outermost, since it covers waiting and every try; each try takes a slot of its own, so that
/// a backoff holds none; normalize stands right above the client, so that retry sees kinds and not statuses.
#[must_use]
pub fn stack(
    client: Client,
    config: &UpstreamConfig,
    rules: &NormalizeConfig,
    metrics: &Arc<Metrics>,
) -> Upstream {
    let service = ServiceBuilder::new()
        .layer(DeadlineLayer::new(config.timeout))
        .layer(retry::layer(config))
        .layer(LimitLayer::new(config.max_concurrency, config.max_queue))
        .layer(NormalizeLayer::new(Rules::new(rules), metrics.clone()))
        .service(client);
    BoxCloneSyncService::new(service)
}
