//! How many requests of clients may be under way, and that no client keeps the others out; one more is refused at once.
//!
//! A request is under way from authentication until the last byte of its answer has left. A stranger's is none of them: it is answered at
//! once, with a refusal or a fixed document, and what of that waits to be sent is bounded by its connection.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tower::{Layer, Service};

mod permits;

use self::permits::InFlightLimit;
pub use self::permits::Permit;
use crate::{
    api::{
        ApiError,
        exchange::{Answer, Asked, Facts},
    },
    telemetry::metrics::{self, Account, Metrics},
};

/// Lets `most` requests of clients run at once.
#[derive(Clone, Debug)]
pub struct ShedLayer {
    permits: Arc<InFlightLimit>,
    metrics: Arc<Metrics>,
}

impl ShedLayer {
    #[must_use]
    pub fn new(most: usize, metrics: Arc<Metrics>) -> Self {
        Self {
            permits: Arc::new(InFlightLimit::new(most)),
            metrics,
        }
    }

    fn refusal(&self, account: &Account) -> Answer {
        self.metrics.shed(metrics::Shed::MaxInFlight);
        Answer {
            facts: Some(Facts::of(account.clone())),
            ..ApiError::Overloaded.into()
        }
    }
}

impl<S> Layer<S> for ShedLayer {
    type Service = Shed<S>;

    fn layer(&self, inner: S) -> Shed<S> {
        Shed {
            inner,
            layer: self.clone(),
        }
    }
}

/// Answers `overloaded` where no permit is free. Refuses in `call`: an error of `poll_ready` would end the connection.
#[derive(Clone, Debug)]
pub struct Shed<S> {
    inner: S,
    layer: ShedLayer,
}

impl<S, B> Service<Box<Asked<B>>> for Shed<S>
where
    S: Service<Box<Asked<B>>, Response = Answer>,
{
    type Response = Answer;
    type Error = S::Error;
    type Future = ShedFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, asked: Box<Asked<B>>) -> Self::Future {
        let Some(client) = &asked.client else {
            return ShedFuture {
                inner: Some(self.inner.call(asked)),
                held: None,
            };
        };
        let account = client.account.clone();
        let permit = self.layer.permits.take(&account);
        ShedFuture {
            inner: permit.is_some().then(|| self.inner.call(asked)),
            held: Some(Held {
                permit,
                account,
                layer: self.layer.clone(),
            }),
        }
    }
}

/// What a client's request holds while the inner call runs.
#[derive(Debug)]
struct Held {
    /// `None`: there was none.
    permit: Option<Permit>,
    account: Account,
    layer: ShedLayer,
}

impl Held {
    /// The answer with the permit, if it may take that long to leave.
    fn send(self, mut answer: Answer) -> Answer {
        match self.permit.and_then(Permit::sending) {
            Some(permit) => {
                answer.response.body_mut().hold_permit(permit);
                answer
            }
            // Short, and nothing shorter is to be had.
            None if answer.is_error() => answer,
            None => self.layer.refusal(&self.account),
        }
    }
}

pin_project_lite::pin_project! {
    /// Holds a permit while the inner call runs, and until its answer has left.
    #[derive(Debug)]
    pub struct ShedFuture<F> {
        // `None`: there is no permit for it.
        #[pin]
        inner: Option<F>,
        // `None`: nobody's request.
        held: Option<Held>,
    }
}

impl<F, E> Future for ShedFuture<F>
where
    F: Future<Output = Result<Answer, E>>,
{
    type Output = Result<Answer, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Some(inner) = this.inner.as_mut().as_pin_mut()
            && let Poll::Ready(answer) = inner.poll(cx)
        {
            let held = this.held.take();
            let answer = answer.map(|answer| match held {
                Some(held) => held.send(answer),
                None => answer,
            });
            return Poll::Ready(answer);
        }
        let Some(held) = this.held else {
            return Poll::Pending;
        };
        let given_away = held
            .permit
            .as_mut()
            .map(|permit| permit.poll_given_away(cx));
        if given_away.is_some_and(|given_away| given_away.is_pending()) {
            return Poll::Pending;
        }
        // What it did so far ends here.
        this.inner.set(None);
        Poll::Ready(Ok(held.layer.refusal(&held.account)))
    }
}
