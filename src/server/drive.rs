//! Drives HTTP on one connection by hyper, and ends it when its state says so.

use std::{
    convert::Infallible,
    fmt::Display,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, Response, Version, header};
use hyper::body::{Body, Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioTimer},
    server::{conn::auto, graceful::GracefulConnection},
};
use tokio::time::{Instant, sleep};
use tower::Service;
use tracing::debug;

use super::{
    Limits,
    connections::{ConnectionState, InFlight},
    end::{ConnectionTimeouts, End},
    sent::SentBody,
};

/// Streams of one HTTP/2 connection at once.
const MAX_STREAMS: u32 = 100;
/// How much of a request's body an HTTP/2 peer may send unread. Only `POST /browser-tokens` reads one, of 4 KiB.
const STREAM_WINDOW: u32 = 16 * 1024;
/// The minimum of the protocol.
const CONNECTION_WINDOW: u32 = 65_535;
/// How much of a streamed body hyper buffers.
const SEND_BUFFER: usize = 64 * 1024;
/// How long a connection that was asked to end may take to do so.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) fn builder(limits: &Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // `ConnectionState` has its own: hyper's also ends idle keep-alive connections.
        .header_read_timeout(None)
        .max_buf_size(limits.max_header_bytes);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX));
    builder
}

pin_project_lite::pin_project! {
    /// A request in flight, until its response is sent. It tells an HTTP/1 client where its answer is the connection's last.
    ///
    /// Not an `async` block, which would hold the inner future twice: as a capture and as what it awaits.
    pub(super) struct Answering<S, F> {
        // An HTTP/2 request that waits to begin while too many bytes are unsent.
        held: Option<Box<(S, Request<Incoming>)>>,
        #[pin]
        answer: Option<F>,
        in_flight: Option<InFlight>,
    }
}

impl<S: Service<Request<Incoming>> + Clone> Answering<S, S::Future> {
    pub(super) fn new(service: &mut S, request: Request<Incoming>, in_flight: InFlight) -> Self {
        let is_http2 = request.version() == Version::HTTP_2;
        let (held, answer) = if is_http2 {
            // All requests of one read arrive before the first is answered: each checks when its own task runs.
            (Some(Box::new((service.clone(), request))), None)
        } else {
            (None, Some(service.call(request)))
        };
        Self {
            held,
            answer,
            in_flight: Some(in_flight),
        }
    }
}

impl<S, B> Future for Answering<S, S::Future>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    B: Body,
{
    type Output = Result<Response<SentBody<B>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let again = "a future is not polled after it is ready";
        let in_flight = this.in_flight.as_ref().expect(again);
        if this.held.is_some() && !in_flight.state().may_begin(cx.waker()) {
            return Poll::Pending;
        }
        if let Some(held) = this.held.take() {
            let (mut service, request) = *held;
            this.answer.set(Some(service.call(request)));
        }
        let answer = this.answer.as_mut().as_pin_mut().expect(again);
        let mut answer = ready!(answer.poll(cx))?;
        let mut in_flight = this.in_flight.take().expect(again);
        if answer.body().size_hint().exact().is_none() {
            in_flight.streams();
        }
        if in_flight.is_closing() && answer.version() <= Version::HTTP_11 {
            let headers = answer.headers_mut();
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let is_refusal = answer.status().is_client_error() || answer.status().is_server_error();
        Poll::Ready(Ok(
            answer.map(|body| SentBody::new(body, in_flight, is_refusal))
        ))
    }
}

/// Runs a connection until it ends, or until it is to be ended; returns why.
///
/// Boxed: otherwise the compiler cannot prove that the future is `Send`. The connection too: a future holds twice what it is given and pins.
pub(super) fn drive<'a, C>(
    connection: C,
    state: Arc<ConnectionState>,
    timeouts: ConnectionTimeouts,
) -> BoxFuture<'a, Option<End>>
where
    C: GracefulConnection<Error: Display + Send> + Send + 'a,
{
    Box::pin(run(Box::pin(connection), state, timeouts))
}

async fn run<C>(
    mut connection: Pin<Box<C>>,
    state: Arc<ConnectionState>,
    timeouts: ConnectionTimeouts,
) -> Option<End>
where
    C: GracefulConnection<Error: Display>,
{
    let mut timer = pin!(sleep(timeouts.shortest()));
    // Why it was asked to end, once it was.
    let mut asked = None;
    loop {
        let end = tokio::select! {
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    debug!(%error, "a connection ended early");
                }
                return asked;
            }
            () = state.notified() => match state.take_end() {
                Some(end) => end,
                None => match send_refusals(connection.as_mut(), &state).await {
                    Delivery::Sent => continue,
                    Delivery::Stalled => return Some(End::Refusals),
                    Delivery::Ended => return asked,
                },
            },
            () = timer.as_mut() => match next(&state, &timeouts, asked) {
                Next::Wait(left) => {
                    timer.as_mut().reset(Instant::now() + left);
                    continue;
                }
                Next::End(end) => end,
                Next::Leave(end) => return Some(end),
            },
        };
        match end {
            End::SendTimeout | End::Refusals | End::UnsentBytes => return Some(end),
            End::Shutdown => connection.as_mut().graceful_shutdown(),
            End::Idle | End::HeaderTimeout | End::GaveWay => {
                // A partial HTTP/1 header gets its 408 at once; any other connection is asked to end and gets time to do so.
                if !state.refuse_late() {
                    connection.as_mut().graceful_shutdown();
                }
                asked = Some(end);
                timer.as_mut().reset(Instant::now() + CLOSE_TIMEOUT);
            }
        }
    }
}

enum Next {
    Wait(Duration),
    /// It is to be ended.
    End(End),
    /// It was asked to end and its time is up.
    Leave(End),
}

/// What is next when the timer of a connection fires that may have been asked to end.
fn next(state: &ConnectionState, timeouts: &ConnectionTimeouts, asked: Option<End>) -> Next {
    match (state.due(timeouts), asked) {
        (Ok(left), None) => Next::Wait(left),
        (Err(end), None) | (Err(end @ End::SendTimeout), Some(_)) => Next::End(end),
        // A last request arrived meanwhile: it gets its response.
        (_, Some(_)) if state.is_busy() => Next::Wait(CLOSE_TIMEOUT),
        (_, Some(asked)) => Next::Leave(asked),
    }
}

/// What became of the unsent error responses.
enum Delivery {
    Sent,
    /// The peer does not read them.
    Stalled,
    /// The connection has ended.
    Ended,
}

/// Polls a connection with many unsent error responses for as long as that sends any.
async fn send_refusals<C: GracefulConnection>(
    mut connection: Pin<&mut C>,
    state: &Arc<ConnectionState>,
) -> Delivery {
    // Other tasks may make more meanwhile.
    let made = state.refusals().made;
    loop {
        let before = state.refusals();
        // A scheduler turn of its own, so that the I/O budget is full.
        tokio::task::yield_now().await;
        if poll_fn(|cx| Poll::Ready(connection.as_mut().poll(cx)))
            .await
            .is_ready()
        {
            return Delivery::Ended;
        }
        let after = state.refusals();
        if !after.are_too_many(made) {
            return Delivery::Sent;
        }
        if after.left == before.left {
            return Delivery::Stalled;
        }
    }
}
