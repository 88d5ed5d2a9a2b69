//! The upstream stack: a tower `Service` from [`PageRequest`] to [`Answer`], above which no 206 exists.
//!
//! A fill first waits for its call ([`acquire`]). Then, from the outside in: deadline, retry, tokens, circuit, quota, normalize, client. It knows nothing of the cache; the
//! service above joins them.

use std::{sync::Arc, time::Duration};

use http::HeaderMap;
use tokio::time::Instant;
use tower::{Service, ServiceBuilder, util::BoxCloneSyncService};

mod call_budget;
mod call_window;
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
mod normalize;
mod pause;
mod probe;
mod quota;
mod request;
mod retry;
mod tokens;
mod turns;
mod waiters;

use self::retry::RetryLayer;
pub use self::{
    call_budget::{AcquiredCall, BudgetExhausted, BudgetRules, Call, CallBudget},
    call_window::BudgetSnapshot,
    circuit::{Circuit, CircuitState},
    circuit_breaker::CircuitLayer,
    client::{BuildError, Client, RawAnswer},
    credential::{Credential, TokenSlot},
    credentials::{Credentials, Succession},
    deadline::DeadlineLayer,
    envelope::read_page,
    error::{ClientError, Evidence, FailureSource, InvalidAnswer, UpstreamError},
    normalize::{NormalizeLayer, Rules},
    pause::CallLimits,
    probe::{Probe, probe_all},
    quota::{QuotaLayer, acquire, interval_beyond_timeout},
    request::{Calls, LastError, PageRequest, Sent, Validators},
    tokens::TokensLayer,
    waiters::{Attendance, Need, Progress, Waiter, Waiters},
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

/// Builds the stack over `client`.
///
/// The order: the deadline is outermost, since it covers every try; each try has a call and a slot of its own, so that a backoff holds
/// none; the circuit stands under retry, since it counts each try, and above the quota, so that an open one costs no call; normalize
/// stands above the client, so that retry and circuit see kinds and not statuses.
#[must_use]
pub fn stack<C>(
    client: C,
    config: &UpstreamConfig,
    rules: &NormalizeConfig,
    metrics: &Arc<Metrics>,
) -> Upstream
where
    C: Service<PageRequest, Response = RawAnswer, Error = ClientError>
        + Clone
        + Send
        + Sync
        + 'static,
    C::Future: Send + 'static,
{
    let service = ServiceBuilder::new()
        .layer(DeadlineLayer::new(config.timeout))
        .layer(RetryLayer::new(config, metrics.clone()))
        // Each token's try is a call of its own, and is paid for.
        .layer(TokensLayer)
        .layer(CircuitLayer::new(config.timeout / 4))
        .layer(QuotaLayer)
        .layer(NormalizeLayer::new(Rules::new(rules), metrics.clone()))
        .service(client);
    BoxCloneSyncService::new(service)
}

#[cfg(test)]
mod fixtures;
