//! Chooses which of a credential's two tokens a call uses, so that a token can be replaced without a failed request.

use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt};
use tracing::{error, warn};

use super::{
    credential::{Credential, TokenSlot},
    error::UpstreamError,
    request::PageRequest,
};

/// Tries the other token once where one is refused, and remembers which was accepted.
#[derive(Clone, Copy, Debug)]
pub struct TokensLayer;

impl<S> Layer<S> for TokensLayer {
    type Service = Tokens<S>;

    fn layer(&self, inner: S) -> Tokens<S> {
        Tokens { inner }
    }
}

/// Answers [`UpstreamError::AuthFailed`] where all tokens are refused, and for a while after without asking.
#[derive(Clone, Debug)]
pub struct Tokens<S> {
    inner: S,
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
        if credential.is_blocked(Instant::now()) {
            return Box::pin(std::future::ready(Err(UpstreamError::AuthFailed)));
        }
        let tried = credential.preferred();
        let call = self.inner.call(PageRequest {
            token: tried,
            ..request.clone()
        });
        let again = self.inner.clone();
        Box::pin(async move {
            let outcome = call.await;
            if !matches!(outcome, Err(UpstreamError::AuthFailed)) {
                return outcome;
            }
            // Another call may have found meanwhile that all are refused.
            if credential.is_blocked(Instant::now()) {
                return Err(UpstreamError::AuthFailed);
            }
            let Some(other) = credential.other(tried) else {
                refused(&credential);
                return Err(UpstreamError::AuthFailed);
            };
            let outcome = again
                .oneshot(PageRequest {
                    token: other,
                    ..request
                })
                .await;
            match &outcome {
                Err(UpstreamError::AuthFailed) => refused(&credential),
                outcome if proves_token(outcome.as_ref().err()) => {
                    switched(&credential, other);
                }
                // The upstream did not get as far as the token.
                _ => {}
            }
            outcome
        })
    }
}

/// Whether the upstream accepted the token.
fn proves_token(error: Option<&UpstreamError>) -> bool {
    match error {
        None => true,
        Some(error) => error.is_told_to_a_known_user(),
    }
}

fn refused(credential: &Credential) {
    credential.block(Instant::now());
    error!(
        credential.name = credential.name,
        "upstream refused the credential: its token is wrong, expired or withdrawn; put a good one in its place"
    );
}

fn switched(credential: &Credential, to: TokenSlot) {
    if !credential.prefer(to) {
        return;
    }
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
