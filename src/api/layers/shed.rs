//! How many requests may be under way; one more is refused at once.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use tower::{Layer, Service};

use crate::{
    api::{
        ApiError,
        exchange::{Answer, Asked},
    },
    telemetry::metrics::{self, Metrics, Route},
};

/// Lets `most` requests run at once.
#[derive(Clone, Debug)]
pub struct ShedLayer {
    places: Arc<Places>,
    exempt: Route,
    metrics: Arc<Metrics>,
}

impl ShedLayer {
    /// `exempt` is the route that is never refused: a busy process is a live one, and must not be restarted for it.
    #[must_use]
    pub fn new(most: usize, exempt: Route, metrics: Arc<Metrics>) -> Self {
        Self {
            places: Arc::new(Places {
                taken: AtomicUsize::new(0),
                most,
            }),
            exempt,
            metrics,
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

/// Answers `overloaded` where no place is free. Refuses in `call`: an error of `poll_ready` would end the connection.
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
        if asked.route == self.layer.exempt {
            return ShedFuture {
                inner: Some(self.inner.call(asked)),
                _place: None,
            };
        }
        match Place::take(&self.layer.places) {
            Some(place) => ShedFuture {
                inner: Some(self.inner.call(asked)),
                _place: Some(place),
            },
            None => {
                self.layer.metrics.shed(metrics::Shed::MaxInFlight);
                ShedFuture {
                    inner: None,
                    _place: None,
                }
            }
        }
    }
}

/// Nobody waits for a place, so that a count is enough: a semaphore takes a lock to give one back.
#[derive(Debug)]
struct Places {
    taken: AtomicUsize,
    most: usize,
}

/// Taken until it is dropped.
#[derive(Debug)]
struct Place(Arc<Places>);

impl Place {
    fn take(places: &Arc<Places>) -> Option<Self> {
        let next = |taken| (taken < places.most).then_some(taken + 1);
        let taken = (places.taken).fetch_update(Ordering::AcqRel, Ordering::Acquire, next);
        taken.is_ok().then(|| Self(places.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::AcqRel);
    }
}

pin_project_lite::pin_project! {
    /// Holds a place while the inner call runs.
    #[derive(Debug)]
    pub struct ShedFuture<F> {
        #[pin]
        inner: Option<F>,
        _place: Option<Place>,
    }
}

impl<F, E> Future for ShedFuture<F>
where
    F: Future<Output = Result<Answer, E>>,
{
    type Output = Result<Answer, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().inner.as_pin_mut() {
            Some(inner) => Poll::Ready(ready!(inner.poll(cx))),
            None => Poll::Ready(Ok(ApiError::Overloaded.into())),
        }
    }
}
