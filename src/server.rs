//! Serves a service on a bound listener until told to stop, then drains.

use std::{
    cell::RefCell,
    convert::Infallible,
    error::Error,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::Service;
use tracing::{debug, warn};

use crate::{config::ServerConfig, peer::Peer, telemetry::metrics::Metrics};

mod acceptor;
mod connections;
pub mod descriptors;
mod drive;
mod end;
mod frames;
mod listener;
mod sent;
pub mod tls;
mod watched;

pub use self::{acceptor::Acceptor, listener::Listener, tls::Tls};
use self::{
    acceptor::{AcceptError, Accepted},
    connections::{ConnectionState, Connections},
    drive::Answering,
    end::{ConnectionTimeouts, End},
    listener::concerns_one_connection,
    watched::Watched,
};

/// Pause after `accept` failed because descriptors or memory ran out: an immediate retry would fail too.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How often to look again for an idle connection to close while all are in use.
const PERMIT_PAUSE: Duration = Duration::from_millis(50);

/// A byte stream: TCP, Unix socket, TLS or in memory.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// The limits of a listener's connections.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub header_read_timeout: Duration,
    pub idle_timeout: Duration,
    /// How long a response may make no progress.
    pub send_timeout: Duration,
    pub max_connections: usize,
    /// Unsent bytes allowed on all connections together, not counting what the store holds anyway.
    pub max_unsent_bytes: u64,
    pub max_header_bytes: usize,
    /// How long requests in flight may take once the listener is closed.
    pub drain_timeout: Duration,
}

impl Limits {
    #[must_use]
    pub fn new(config: &ServerConfig) -> Self {
        Self {
            header_read_timeout: config.header_read_timeout,
            idle_timeout: config.idle_timeout,
            send_timeout: config.send_timeout,
            max_connections: config.max_connections,
            max_unsent_bytes: u64::try_from(config.max_unsent_bytes).unwrap_or(u64::MAX),
            max_header_bytes: config.max_header_bytes,
            drain_timeout: config.drain_timeout,
        }
    }

    fn timeouts(&self) -> ConnectionTimeouts {
        ConnectionTimeouts {
            header: self.header_read_timeout,
            idle: self.idle_timeout,
            send: self.send_timeout,
        }
    }

    #[cfg(test)]
    fn for_tests() -> Self {
        Self {
            header_read_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            send_timeout: Duration::from_secs(30),
            max_connections: 10,
            max_unsent_bytes: 64 << 20,
            max_header_bytes: 16 * 1024,
            drain_timeout: Duration::from_secs(20),
        }
    }
}

/// The two steps of a shutdown: responses say `Connection: close`, then nothing more is accepted.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Read for every request: a `CancellationToken` would take a lock each time.
    closing: Arc<AtomicBool>,
    closed: CancellationToken,
}

impl Shutdown {
    /// Takes the first step.
    pub fn begin(&self) {
        self.closing.store(true, Ordering::Release);
    }

    /// Completes when nothing more is accepted.
    #[must_use]
    pub fn closed(&self) -> CancellationToken {
        self.closed.clone()
    }

    /// Takes both.
    pub fn complete(&self) {
        self.begin();
        self.closed.cancel();
    }
}

/// Serves a service over HTTP/1 and HTTP/2. Each request carries a [`ConnectionInfo`] in its extensions. A clone serves the same.
///
/// A handle: each open connection holds one, and a copy of all that would be kilobytes of each.
///
/// [`ConnectionInfo`]: crate::peer::ConnectionInfo
#[derive(Clone)]
pub struct Server<S>(Arc<Shared<S>>);

struct Shared<S> {
    builder: auto::Builder<TokioExecutor>,
    acceptor: Acceptor,
    service: S,
    limits: Limits,
    metrics: Option<Arc<Metrics>>,
    shutdown: Shutdown,
    connections: Arc<Connections>,
}

impl<S, B> Server<S>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + Unpin + 'static,
{
    /// `metrics` count its connections, if given.
    #[must_use]
    pub fn new(
        service: S,
        acceptor: Acceptor,
        limits: Limits,
        metrics: Option<Arc<Metrics>>,
        shutdown: Shutdown,
    ) -> Self {
        Self(Arc::new(Shared {
            builder: drive::builder(&limits),
            acceptor,
            service,
            limits,
            metrics,
            shutdown,
            connections: Arc::new(Connections::new(limits.max_unsent_bytes)),
        }))
    }

    /// Serves the connections of `listener` until the shutdown is complete; then gives requests in flight `drain_timeout`.
    ///
    /// Returns whether every request got its answer.
    pub async fn serve(self, listener: Listener) -> bool {
        let connections = TaskTracker::new();
        let Shared {
            limits, shutdown, ..
        } = &*self.0;
        let permits = Arc::new(Semaphore::new(limits.max_connections));
        loop {
            let accepted = tokio::select! {
                biased;
                () = shutdown.closed.cancelled() => break,
                accepted = self.accept(&listener, &permits) => accepted,
            };
            match accepted {
                Ok((io, peer, permit)) => {
                    let server = self.clone();
                    connections.spawn(async move {
                        let _permit = permit;
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
        self.0.connections.end_all(End::Shutdown);
        connections.close();
        let ended = tokio::time::timeout(limits.drain_timeout, connections.wait()).await;
        ended.is_ok()
    }

    /// Accepts a connection and takes a permit for it. If none is left, the connection that has been idle longest is closed; if none is
    /// idle, the new one waits, and later ones stay in the kernel's backlog.
    async fn accept(
        &self,
        listener: &Listener,
        permits: &Arc<Semaphore>,
    ) -> io::Result<(Box<dyn Connection>, Peer, OwnedSemaphorePermit)> {
        let (io, peer) = listener.accept().await?;
        if let Ok(permit) = permits.clone().try_acquire_owned() {
            return Ok((io, peer, permit));
        }
        loop {
            self.0.connections.give_way();
            let permit = permits.clone().acquire_owned();
            if let Ok(permit) = tokio::time::timeout(PERMIT_PAUSE, permit).await {
                return Ok((io, peer, permit.expect("the semaphore is never closed")));
            }
        }
    }

    /// Serves one connection until it ends.
    pub async fn connection(self, io: Box<dyn Connection>, peer: Peer) {
        let Shared {
            acceptor,
            limits,
            metrics,
            shutdown,
            connections,
            ..
        } = &*self.0;
        let metrics = metrics.as_deref();
        let _counted = metrics.map(|metrics| metrics.http.connection());
        let open = connections.open(shutdown.closing.clone());
        if shutdown.closed.is_cancelled() {
            open.state.request_end(End::Shutdown);
        }
        // Boxed: it is over before the first request, and would be part of the connection to its end.
        let accepting = Box::pin(acceptor.accept(io, peer, limits.header_read_timeout));
        let accepted = tokio::select! {
            // A connection that is ready at once is served even during a shutdown.
            biased;
            accepted = accepting => accepted,
            // No request has begun.
            () = open.state.notified() => {
                return count(metrics, open.state.take_end());
            }
        };
        match accepted {
            Ok(accepted) => {
                open.state.opened();
                let end = self.http(accepted, open.state.clone()).await;
                count(metrics, end);
            }
            Err(error) => self.not_accepted(peer, &error),
        }
    }

    fn not_accepted(&self, peer: Peer, error: &AcceptError) {
        let cause = Error::source(error).map(tracing::field::display);
        debug!(
            peer.address = peer.address().map(tracing::field::display),
            %error,
            error.cause = cause,
            "a connection never came to a request"
        );
        if let (Some(metrics), Some(failure)) = (&self.0.metrics, error.failure()) {
            metrics.http.connection_failed(failure);
        }
    }

    async fn http(&self, accepted: Accepted, state: Arc<ConnectionState>) -> Option<End> {
        let Accepted { io, info } = accepted;
        let io = TokioIo::new(Watched::new(io, state.clone()));
        // One connection's service, called by nobody else.
        let service = RefCell::new(self.0.service.clone());
        let requests = state.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            let in_flight = requests.request(request.version());
            request.extensions_mut().insert(info.clone());
            Answering::new(&mut *service.borrow_mut(), request, in_flight)
        });
        let connection = self.0.builder.serve_connection(io, service);
        drive::drive(connection, state, self.0.limits.timeouts()).await
    }
}

/// Counts a connection that the server ended, unless it was merely idle.
fn count(metrics: Option<&Metrics>, end: Option<End>) {
    let Some(failure) = end.and_then(End::failure) else {
        return;
    };
    debug!(connection.end = failure.as_str(), "a connection was ended");
    if let Some(metrics) = metrics {
        metrics.http.connection_failed(failure);
    }
}

#[cfg(test)]
mod tests;
