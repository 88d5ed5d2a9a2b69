//! Chooses which of a credential's two tokens a call goes with, so that one can take the place of the other without a failed request.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt};
use tracing::{error, warn};

use super::{Credential, PageRequest, UpstreamError, credential::TokenSlot};
use crate::telemetry::metrics::Metrics;

/// Tries the other token once where one is refused, and remembers which was taken.
#[derive(Clone, Debug)]
pub struct TokensLayer {
    metrics: Arc<Metrics>,
}

impl TokensLayer {
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics }
    }
}

impl<S> Layer<S> for TokensLayer {
    type Service = Tokens<S>;

    fn layer(&self, inner: S) -> Tokens<S> {
        Tokens {
            inner,
            metrics: self.metrics.clone(),
        }
    }
}

/// Answers [`UpstreamError::AuthFailed`] where all tokens are refused, and for a while after without asking.
#[derive(Clone, Debug)]
pub struct Tokens<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

impl<S> Service<PageRequest> for Tokens<S>
where
    S: Service<PageRequest, Error = UpstreamError> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Response: Send + 'static,
{
    type Response = S::Response;
    type Error = UpstreamError;
    type Future = BoxFuture<'static, Result<S::Response, UpstreamError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UpstreamError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: PageRequest) -> Self::Future {
        let credential = request.credential.clone();
        if credential.is_held(Instant::now()) {
            return Box::pin(std::future::ready(Err(UpstreamError::AuthFailed)));
        }
        let tried = credential.preferred();
        let other = credential.other(tried);
        let first = PageRequest {
            token: tried,
            ..request.clone()
        };
        let call = self.inner.call(first);
        let again = self.inner.clone();
        let metrics = self.metrics.clone();
        Box::pin(async move {
            let outcome = call.await;
            if !matches!(outcome, Err(UpstreamError::AuthFailed)) {
                return outcome;
            }
            let Some(other) = other else {
                refused(&credential);
                return outcome;
            };
            let second = PageRequest {
                token: other,
                ..request
            };
            let outcome = again.oneshot(second).await;
            match &outcome {
                Err(UpstreamError::AuthFailed) => refused(&credential),
                outcome if proves_token(outcome.as_ref().err()) => {
                    switched(&credential, other, &metrics);
                }
                // It did not get as far as the token.
                _ => {}
            }
            outcome
        })
    }
}

/// Whether the upstream looked at the token and took it.
fn proves_token(error: Option<&UpstreamError>) -> bool {
    match error {
        None => true,
        Some(error) => error.is_told_to_a_known_user(),
    }
}

fn refused(credential: &Credential) {
    credential.hold(Instant::now());
    error!(
        credential.name = credential.name,
        "upstream refused the credential: its token is wrong, expired or withdrawn; put a good one in its place"
    );
}

fn switched(credential: &Credential, to: TokenSlot, metrics: &Metrics) {
    if !credential.prefer(to) {
        return;
    }
    metrics.token_switched(&credential.name);
    match to {
        TokenSlot::Next => warn!(
            credential.name = credential.name,
            "upstream refused the current token and takes the next: make it the current one"
        ),
        TokenSlot::Current => warn!(
            credential.name = credential.name,
            "upstream refused the next token and takes the current one"
        ),
    }
}

#[cfg(test)]
mod tests;
