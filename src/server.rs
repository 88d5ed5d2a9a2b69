//! Serves a service on a bound listener until told to stop, then drains.

use std::{
    cell::RefCell,
    convert::Infallible,
    error::Error,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use http::{HeaderValue, Request, Response, Version, header};
use http_body::Body;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::Service;
use tracing::{debug, warn};

use crate::{
    api::{exchange::Arrived, peer::Peer},
    config::ServerConfig,
    telemetry::metrics::Metrics,
};

mod activity;
pub mod descriptors;
mod entrance;
mod listener;
mod proxy_protocol;
mod sent;
pub mod tls;

use self::{
    activity::{Activity, InFlight, Watched},
    entrance::{OpenError, Opened},
    listener::concerns_one_connection,
    sent::SentBody,
};
pub use self::{entrance::Entrance, listener::Listener, tls::Tls};

/// How long to wait after `accept` failed for want of descriptors or memory: at once it would fail again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

pin_project_lite::pin_project! {
    /// A request under way, until its answer has left. It tells an HTTP/1 client where its answer is the connection's last.
    ///
    /// No `async` block: that would hold the call twice, as what it captured and as what it waits for, and be copied with both.
    struct Answering<F> {
        #[pin]
        answer: F,
        in_flight: Option<InFlight>,
    }
}

impl<F, B> Future for Answering<F>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
{
    type Output = Result<Response<SentBody<B>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut answer = ready!(this.answer.poll(cx))?;
        let in_flight = this.in_flight.take();
        let is_last = in_flight.as_ref().is_some_and(InFlight::is_closing);
        if is_last && answer.version() <= Version::HTTP_11 {
            let headers = answer.headers_mut();
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Poll::Ready(Ok(answer.map(|body| SentBody::new(body, in_flight))))
    }
}

/// How long a connection that outstayed its welcome may take to say goodbye.
const LAST_WORD: Duration = Duration::from_millis(100);

/// A connection of whatever kind.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// How connections are treated.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub header_read_timeout: Duration,
    pub idle_timeout: Duration,
    pub max_connections: usize,
    pub max_header_bytes: usize,
    /// How long requests in flight get once the listener is closed.
    pub drain_timeout: Duration,
}

impl Limits {
    #[must_use]
    pub fn new(config: &ServerConfig) -> Self {
        Self {
            header_read_timeout: config.header_read_timeout,
            idle_timeout: config.idle_timeout,
            max_connections: config.max_connections,
            max_header_bytes: config.max_header_bytes,
            drain_timeout: config.drain_timeout,
        }
    }

    #[cfg(test)]
    fn for_tests() -> Self {
        Self {
            header_read_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            max_connections: 10,
            max_header_bytes: 16 * 1024,
            drain_timeout: Duration::from_secs(20),
        }
    }
}

/// The two steps of an end: answers say `Connection: close`, then nothing more is accepted.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Looked at for every request: a token's look takes a lock.
    closing: Arc<AtomicBool>,
    closed: CancellationToken,
}

impl Shutdown {
    /// Takes the first step.
    pub fn begin(&self) {
        self.closing.store(true, Ordering::Release);
    }

    /// Takes both.
    pub fn complete(&self) {
        self.begin();
        self.closed.cancel();
    }
}

fn builder(limits: &Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // Ours, in `activity`: hyper's also ends connections that merely keep alive.
        .header_read_timeout(None)
        .max_buf_size(limits.max_header_bytes);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX));
    builder
}

/// Serves a service to whoever connects and passes the entrance. A clone serves the same.
#[derive(Clone)]
pub struct Server<S> {
    builder: auto::Builder<TokioExecutor>,
    entrance: Arc<Entrance>,
    service: S,
    limits: Limits,
    metrics: Option<Arc<Metrics>>,
    shutdown: Shutdown,
}

impl<S, B> Server<S>
where
    S: Service<Arrived, Response = Response<B>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static,
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + Unpin + 'static,
{
    /// `metrics`, where there are any, count its connections.
    #[must_use]
    pub fn new(
        service: S,
        entrance: Entrance,
        limits: Limits,
        metrics: Option<Arc<Metrics>>,
        shutdown: Shutdown,
    ) -> Self {
        Self {
            builder: builder(&limits),
            entrance: Arc::new(entrance),
            service,
            limits,
            metrics,
            shutdown,
        }
    }

    /// Serves what comes by `listener` until the shutdown's `closed`; then gives requests in flight `drain_timeout`.
    ///
    /// Returns whether every request got its answer.
    pub async fn serve(self, listener: Listener) -> bool {
        let connections = TaskTracker::new();
        let places = Arc::new(Semaphore::new(self.limits.max_connections));
        loop {
            // A place first: a connection that finds none waits in the kernel's backlog, not in our memory.
            let accepted = async {
                let place = places.clone().acquire_owned().await;
                let place = place.expect("the semaphore is never closed");
                (listener.accept().await, place)
            };
            let (accepted, place) = tokio::select! {
                biased;
                () = self.shutdown.closed.cancelled() => break,
                accepted = accepted => accepted,
            };
            match accepted {
                Ok((io, peer)) => {
                    let server = self.clone();
                    connections.spawn(async move {
                        let _place = place;
                        server.connection(io, peer).await;
                    });
                }
                Err(error) if concerns_one_connection(&error) => {
                    debug!(%error, "a connection ended before it was accepted");
                }
                Err(error) => {
                    warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        connections.close();
        let ended = tokio::time::timeout(self.limits.drain_timeout, connections.wait()).await;
        ended.is_ok()
    }

    /// Serves one connection until it ends.
    pub async fn connection(self, io: Box<dyn Connection>, peer: Peer) {
        let _counted = self.metrics.as_ref().map(|metrics| metrics.connection());
        let patience = self.limits.header_read_timeout;
        let opened = tokio::select! {
            // One that needs no more than this is served though the end has begun.
            biased;
            opened = self.entrance.open(io, peer, patience) => opened,
            // It has asked for nothing yet.
            () = self.shutdown.closed.cancelled() => return,
        };
        match opened {
            Ok(opened) => self.http(opened).await,
            Err(error) => self.not_opened(peer, &error),
        }
    }

    fn not_opened(&self, peer: Peer, error: &OpenError) {
        let cause = Error::source(error).map(tracing::field::display);
        debug!(
            peer.address = peer.address().map(tracing::field::display),
            %error,
            error.cause = cause,
            "a connection never came to a request"
        );
        if let (Some(metrics), Some(failure)) = (&self.metrics, error.failure()) {
            metrics.connection_failed(failure);
        }
    }

    async fn http(self, opened: Opened) {
        let Opened {
            io,
            peer,
            certificate,
        } = opened;
        let activity = Arc::new(Activity::new(self.shutdown.closing.clone()));
        let io = TokioIo::new(Watched::new(io, activity.clone()));
        let requests = activity.clone();
        // The connection's own: nobody else calls it meanwhile.
        let service = RefCell::new(self.service);
        let service = service_fn(move |request: Request<Incoming>| {
            let in_flight = requests.request(request.version());
            let answer = service.borrow_mut().call(Arrived {
                request,
                peer,
                certificate: certificate.clone(),
            });
            Answering {
                answer,
                in_flight: Some(in_flight),
            }
        });
        let mut connection = pin!(self.builder.serve_connection(io, service));
        let limits = self.limits;
        // Apart from the connection, which wakes for every request: these are polled when they wake, not when it does. One of them takes
        // a lock that all connections share.
        let mut ends = FuturesUnordered::from_iter([
            async {
                activity
                    .overstayed(limits.header_read_timeout, limits.idle_timeout)
                    .await;
                End::Overstayed
            }
            .boxed(),
            async {
                self.shutdown.closed.cancelled().await;
                End::Closed
            }
            .boxed(),
        ]);
        loop {
            tokio::select! {
                biased;
                ended = poll_fn(|cx| activity.polling(|| connection.as_mut().poll(cx))) => {
                    if let Err(error) = ended {
                        debug!(error, "a connection ended early");
                    }
                    return;
                }
                Some(end) = ends.next() => match end {
                    End::Overstayed => {
                        // An idle HTTP/2 peer is told, and one that dribbles a header.
                        if !activity.refuse_late() {
                            connection.as_mut().graceful_shutdown();
                        }
                        ends.push(tokio::time::sleep(LAST_WORD).map(|()| End::LastWord).boxed());
                    }
                    End::Closed => connection.as_mut().graceful_shutdown(),
                    End::LastWord => return,
                },
            }
        }
    }
}

/// Why a connection is to end.
enum End {
    /// It has said nothing for too long.
    Overstayed,
    /// It had time to say goodbye.
    LastWord,
    /// The server ends.
    Closed,
}
