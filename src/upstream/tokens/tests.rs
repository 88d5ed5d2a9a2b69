use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tower::{ServiceBuilder, service_fn};

use super::*;
use crate::upstream::{FailureSource, fixtures};

use TokenSlot::{Current, Next};

/// A credential and an upstream that answers by the token it is asked with.
struct Bench {
    request: PageRequest,
    asked: Arc<Mutex<Vec<TokenSlot>>>,
}

impl Bench {
    fn new(lines: &str) -> Self {
        Self {
            request: fixtures::request(lines),
            asked: Arc::default(),
        }
    }

    fn with_two() -> Self {
        Self::new("credentials.default.next_token = 'next'")
    }

    /// Asks once; `upstream` says what each token is answered.
    async fn ask(
        &self,
        upstream: impl Fn(TokenSlot) -> Result<(), UpstreamError> + Clone + Send + 'static,
    ) -> Result<(), UpstreamError> {
        let asked = self.asked.clone();
        let inner = service_fn(move |request: PageRequest| {
            asked.lock().push(request.token);
            std::future::ready(upstream(request.token))
        });
        let service = ServiceBuilder::new().layer(TokensLayer).service(inner);
        service.oneshot(self.request.clone()).await
    }

    /// The tokens that calls went with since it was asked last.
    fn asked(&self) -> Vec<TokenSlot> {
        std::mem::take(&mut self.asked.lock())
    }

    fn switches(&self) -> bool {
        self.request.credential.token_switches() == 1
    }
}

const REFUSED: Result<(), UpstreamError> = Err(UpstreamError::AuthFailed);

#[tokio::test(start_paused = true)]
async fn the_other_token_is_tried_once_and_remembered() {
    let bench = Bench::with_two();
    let only_next = |token| if token == Next { Ok(()) } else { REFUSED };

    assert!(bench.ask(only_next).await.is_ok());
    assert_eq!(bench.asked(), [Current, Next]);
    assert!(bench.switches());

    assert!(bench.ask(only_next).await.is_ok());
    assert_eq!(bench.asked(), [Next]);
}

#[tokio::test(start_paused = true)]
async fn after_a_refusal_of_both_nothing_is_asked_for_a_while() {
    for (bench, tokens) in [
        (Bench::with_two(), vec![Current, Next]),
        (Bench::new(""), vec![Current]),
    ] {
        assert!(bench.ask(|_| REFUSED).await.is_err());
        assert_eq!(bench.asked(), tokens);

        tokio::time::advance(Duration::from_millis(4999)).await;
        let held = bench.ask(|_| panic!("is held")).await;
        assert!(matches!(held, Err(UpstreamError::AuthFailed)));

        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(bench.ask(|_| Ok(())).await.is_ok());
        assert_eq!(bench.asked(), [Current]);
    }
}

#[tokio::test(start_paused = true)]
async fn only_an_answer_to_a_known_user_proves_a_token() {
    for (answer, proves) in [
        (UpstreamError::SpaceNotFound { head: None }, true),
        (UpstreamError::SpaceAccessDenied, true),
        (UpstreamError::Rejected, true),
        (
            UpstreamError::Failed(FailureSource::Inner { message: None }),
            true,
        ),
        (
            UpstreamError::Failed(FailureSource::InnerSlowDown { message: None }),
            true,
        ),
        (UpstreamError::Failed(FailureSource::Html), false),
        (UpstreamError::QuotaExhausted { retry_after: None }, false),
        (UpstreamError::Overloaded, false),
    ] {
        let bench = Bench::with_two();
        let second = answer.clone();
        let outcome = bench
            .ask(move |token| match token {
                Current => REFUSED,
                Next => Err(second.clone()),
            })
            .await;
        let told = outcome.unwrap_err();
        assert_eq!(told.as_str(), answer.as_str());
        let expected = if proves { Next } else { Current };
        assert_eq!(bench.request.credential.preferred(), expected, "{answer}");
        assert!(
            !bench.request.credential.is_blocked(Instant::now()),
            "{answer}"
        );
    }
}
