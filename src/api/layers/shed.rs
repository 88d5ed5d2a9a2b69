//! How many requests of clients may be under way, and that no client keeps the others out; one more is refused at once.
//!
//! A request is under way from authentication until the last byte of its answer has left. A stranger's is none of them: it is answered at
//! once, with a refusal or a fixed document, and what of that waits to be sent is bounded by its connection.
//!
//! Bounded are the bytes too that only answers on their way out hold: pages that were put together for one answer, or that the store has
//! let go of meanwhile. What is stored costs nothing more, however many read it.
//!
//! An answer on its way out gives its permit up for nobody, so those of one client take no more than half of the permits.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderMap, Request, Response};
use http_body::Body;
use tower::{Layer, Service};

use crate::{
    api::{ApiError, body::Guarded, context::RequestContext},
    config::ServerConfig,
    service::{ConcurrencyLimit, Pages, Permit},
    telemetry::metrics::{Account, Metrics, Shed as Reason},
};

/// A client that holds no more than one part in so many of `server.max_unsent_bytes` is served whatever the others hold.
const ALWAYS_SERVED_SHARE: usize = 64;

/// Lets `server.max_in_flight` requests of clients run at once, and their answers hold `server.max_unsent_bytes` beside the store.
#[derive(Clone, Debug)]
pub struct ShedLayer {
    shared: Arc<Shared>,
    has_own_limit: Option<HasOwnLimit>,
}

#[derive(Debug)]
struct Shared {
    in_flight: Arc<ConcurrencyLimit>,
    max_unsent_bytes: usize,
    pages: Arc<Pages>,
    metrics: Arc<Metrics>,
}

/// Whether a request with this query and these fields has a limit of its own.
type HasOwnLimit = fn(&str, &HeaderMap) -> bool;

impl ShedLayer {
    /// The same, but for requests that have a limit of their own.
    #[must_use]
    pub fn except(&self, has_own_limit: HasOwnLimit) -> Self {
        let has_own_limit = Some(has_own_limit);
        Self {
            has_own_limit,
            ..self.clone()
        }
    }

    #[must_use]
    pub fn new(config: &ServerConfig, pages: Arc<Pages>, metrics: Arc<Metrics>) -> Self {
        Self {
            has_own_limit: None,
            shared: Arc::new(Shared {
                in_flight: limit(config.max_in_flight),
                max_unsent_bytes: config.max_unsent_bytes,
                pages,
                metrics,
            }),
        }
    }
}

impl Shared {
    /// Whether the answer, which counts already, may go out beside what its client has on the way.
    fn has_memory_for(&self, account: &Account, bytes: usize) -> bool {
        let own = account.answers().bytes();
        let unstored = || self.pages.store().unstored_bytes();
        may_hold(own, bytes, unstored, self.max_unsent_bytes)
    }

    fn refusal<R: Default>(&self, reason: Reason) -> Response<R> {
        self.metrics.http.shed(reason);
        ApiError::Overloaded.into_answer()
    }
}

/// Permits for requests, where a client's answers on their way out count as its own.
fn limit(max_in_flight: usize) -> Arc<ConcurrencyLimit> {
    ConcurrencyLimit::new(max_in_flight, |account| account.answers().count())
}

/// How many answers of one client may be on their way out.
fn most_sent(max_in_flight: usize) -> usize {
    (max_in_flight / 2).max(1)
}

/// Whether a client's answers on their way out may be `own` bytes, of which the newest is `newest`, where `unstored` bytes are held by
/// answers of all clients alone and should be no more than `most`.
///
/// A client's share is half. Until that much is held nobody is refused; beyond it those are who would have more than their share, and beyond
/// `most` everybody but who has next to nothing: one answer, however long, or a small part of all.
fn may_hold(own: usize, newest: usize, unstored: impl FnOnce() -> usize, most: usize) -> bool {
    if own <= newest.max(most / ALWAYS_SERVED_SHARE) {
        return true;
    }
    let (unstored, share) = (unstored(), most / 2);
    unstored <= share || (unstored <= most && own <= share)
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

/// A body that holds a client's permit.
type Permitted<R> = Guarded<R, Option<Sending>>;

impl<S, B, R> Service<Request<B>> for Shed<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Body + Default,
{
    type Response = Response<Permitted<R>>;
    type Error = S::Error;
    type Future = ShedFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let ShedLayer {
            shared,
            has_own_limit,
        } = &self.layer;
        let has_own_limit = has_own_limit.is_some_and(|has_own_limit| {
            let query = request.uri().query().unwrap_or_default();
            has_own_limit(query, request.headers())
        });
        let client = RequestContext::of(request.extensions()).client.as_ref();
        let Some(client) = client.filter(|_| !has_own_limit) else {
            return ShedFuture {
                inner: Some(self.inner.call(request)),
                held: None,
            };
        };
        let account = client.account.clone();
        let permit = shared.in_flight.take(&account);
        ShedFuture {
            inner: permit.is_some().then(|| self.inner.call(request)),
            held: Some(Held {
                permit,
                account,
                shared: shared.clone(),
            }),
        }
    }
}

/// The permit of an answer on its way out, which counts as its client's until this is dropped.
#[derive(Debug)]
pub struct Sending {
    _permit: Permit,
    account: Account,
    bytes: usize,
}

impl Sending {
    /// `None` where the permit was given away, or this client has `most` answers on their way already.
    fn new(permit: Permit, account: &Account, bytes: usize, most: usize) -> Option<Self> {
        let permit = permit.keep()?;
        account.answers().begin(bytes, most).then(|| Self {
            _permit: permit,
            account: account.clone(),
            bytes,
        })
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.account.answers().end(self.bytes);
    }
}

/// What a client's request holds while the inner call runs.
#[derive(Debug)]
struct Held {
    /// `None`: there was none.
    permit: Option<Permit>,
    account: Account,
    shared: Arc<Shared>,
}

impl Held {
    /// The answer with the permit, if it may take that long to leave.
    fn send<R: Body + Default>(self, answer: Response<R>) -> Response<Permitted<R>> {
        let bytes = answer.body().size_hint().exact().unwrap_or(0);
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let permit = self.permit.and_then(|permit| {
            let most = most_sent(self.shared.in_flight.max());
            Sending::new(permit, &self.account, bytes, most)
        });
        // An error is short, and nothing shorter is to be had.
        let is_error = answer.extensions().get::<ApiError>().is_some();
        match permit {
            Some(_) if !is_error && !self.shared.has_memory_for(&self.account, bytes) => {
                self.shared.refusal(Reason::UnsentBytes)
            }
            None if !is_error => self.shared.refusal(Reason::MaxInFlight),
            permit => answer.map(|body| Guarded::new(body, permit)),
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

impl<F, R, E> Future for ShedFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: Body + Default,
{
    type Output = Result<Response<Permitted<R>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Some(inner) = this.inner.as_mut().as_pin_mut()
            && let Poll::Ready(answer) = inner.poll(cx)
        {
            let held = this.held.take();
            let answer = answer.map(|answer| match held {
                Some(held) => held.send(answer),
                None => answer.map(|body| Guarded::new(body, None)),
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
        let refusal = held.shared.refusal(Reason::MaxInFlight);
        Poll::Ready(Ok(refusal))
    }
}

#[cfg(test)]
mod tests {
    use std::{iter, task::Waker};

    use super::*;

    fn sending(permit: Permit, account: &Account, max: usize) -> Option<Sending> {
        Sending::new(permit, account, 7, most_sent(max))
    }

    #[test]
    fn half_of_the_permits_is_the_most_that_one_clients_answers_take_on_their_way_out() {
        for (max, expected) in [(1, 1), (2, 1), (3, 1), (4, 2), (9, 4)] {
            let [a, b] = ["a", "b"].map(|name| Account::new(name.into()));
            let limit = limit(max);
            let taken: Vec<_> = (0..max).map(|_| limit.take(&a).unwrap()).collect();
            let sent: Vec<_> = taken
                .into_iter()
                .filter_map(|permit| sending(permit, &a, max))
                .collect();
            assert_eq!(sent.len(), expected, "{max}");
            // The others' permits are free again.
            let others: Vec<_> = iter::from_fn(|| limit.take(&b)).collect();
            assert_eq!(others.len(), max - expected, "{max}");
            drop(sent);
            assert_eq!((a.answers().count(), a.answers().bytes()), (0, 0));
            let next = limit.take(&a).unwrap();
            assert!(sending(next, &a, max).is_some());
        }
    }

    #[test]
    fn what_is_sent_counts_and_gives_way_to_nobody() {
        let mut cx = Context::from_waker(Waker::noop());
        let [a, b] = ["a", "b"].map(|name| Account::new(name.into()));
        let limit = limit(4);
        let [sent, more] = [(); 2].map(|()| sending(limit.take(&a).unwrap(), &a, 4));
        assert!(sent.is_some() && more.is_some());
        let mut waits = limit.take(&a).unwrap();
        let mut own = limit.take(&b).unwrap();
        assert!(waits.poll_given_away(&mut cx).is_pending());
        assert!(own.poll_given_away(&mut cx).is_pending());

        // Three of four are a's; the one that waits is b's now.
        let mut second = limit.take(&b).unwrap();
        assert!(second.poll_given_away(&mut cx).is_pending());
        assert!(waits.poll_given_away(&mut cx).is_ready());
        assert!(limit.take(&b).is_none(), "two each");
    }

    #[test]
    fn a_clients_share_of_what_only_answers_hold_is_half() {
        const MOST: usize = 6400;
        for (own, newest, unstored, expected, why) in [
            (100_000, 100, 0, true, "stored pages cost nothing more"),
            (100_000, 100, 3200, true, "nobody is short of memory"),
            (3200, 100, 3201, true, "within its share"),
            (3201, 100, 3201, false, "beyond its share"),
            (3200, 100, 6400, true, "another has the other half"),
            (3200, 100, 6401, false, "there is no more"),
            (101, 50, 6401, false, "two answers"),
            (100, 50, 6401, true, "next to nothing"),
            (9000, 9000, 100_000, true, "one answer, however long"),
            (9001, 9000, 100_000, false, "one too many"),
        ] {
            assert_eq!(may_hold(own, newest, || unstored, MOST), expected, "{why}");
        }
    }
}
