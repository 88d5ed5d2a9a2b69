//! The upstream stack: a tower `Service` from [`PageRequest`] to [`Answer`], above which no 206 exists.
//!
//! From the outside in: deadline, retry, tokens, circuit, quota, limit, normalize, client. It knows nothing of the cache; the
//! service above joins them.

use std::{sync::Arc, time::Duration};

use http::HeaderMap;
use tokio::time::Instant;
use tower::{ServiceBuilder, util::BoxCloneSyncService};

mod call_budget;
mod circuit;
mod circuit_breaker;
mod client;
mod clock;
mod credential;
mod credentials;
mod deadline;
mod decode;
mod envelope;
mod error;
mod fair_queue;
mod limit;
mod normalize;
mod pause;
mod priority;
mod quota;
mod request;
mod retry;
mod tokens;
mod waiters;

use self::retry::RetryLayer;
pub use self::{
    call_budget::{BudgetExhausted, BudgetSnapshot, CallBudget},
    circuit::{Circuit, CircuitState},
    circuit_breaker::CircuitLayer,
    client::{BuildError, Client, RawAnswer},
    credential::{Credential, TokenSlot},
    credentials::{Credentials, Succession},
    deadline::DeadlineLayer,
    envelope::read_page,
    error::{ClientError, Evidence, FailureSource, InvalidAnswer, UpstreamError},
    limit::LimitLayer,
    normalize::{NormalizeLayer, Rules},
    pause::CallLimits,
    priority::Priority,
    quota::QuotaLayer,
    request::{Calls, LastError, PageRequest, Sent, Validators},
    tokens::TokensLayer,
    waiters::{Waiter, Waiters},
};
use crate::{
    config::{NormalizeConfig, UpstreamConfig},
    domain::ListPage,
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
    Page(ListPage),
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

/// Builds the stack over `client`; `limit` outlives it, so that a reload opens no second set of slots.
///
/// The order: the deadline is outermost, since it covers waiting and every try; each try takes a slot of its own, so that
/// a backoff holds none, and pays for itself; the circuit stands under retry, since it counts each try, and above the quota and
/// the slots, so that an open one costs neither; who stands in line for the quota holds no slot that another credential could
/// use; normalize stands above the client, so that retry and circuit see kinds and not statuses.
#[must_use]
pub fn stack(
    client: Client,
    config: &UpstreamConfig,
    rules: &NormalizeConfig,
    limit: LimitLayer,
    metrics: &Arc<Metrics>,
) -> Upstream {
    let service = ServiceBuilder::new()
        .layer(DeadlineLayer::new(config.timeout))
        .layer(RetryLayer::new(config, metrics.clone()))
        // Each token's try is a call of its own, and is paid for.
        .layer(TokensLayer)
        .layer(CircuitLayer::new(config.timeout / 4))
        // Not to the very end: a call that is paid for should have time to be answered.
        .layer(QuotaLayer::new(config.timeout * 3 / 4))
        .layer(limit)
        .layer(NormalizeLayer::new(Rules::new(rules), metrics.clone()))
        .service(client);
    BoxCloneSyncService::new(service)
}

#[cfg(test)]
mod fixtures;
