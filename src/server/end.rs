//! When and why the server ends a connection.

use std::time::Duration;

use crate::telemetry::metrics::ConnectionFailure;

/// How long a connection may take for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConnectionTimeouts {
    /// For its first byte, for the rest of a header that has begun, for the rest of a frame.
    pub(super) header: Duration,
    /// Between two requests.
    pub(super) idle: Duration,
    /// For taking a byte of an answer.
    pub(super) send: Duration,
}

impl ConnectionTimeouts {
    /// Whatever a connection does, no timeout expires sooner.
    pub(super) fn shortest(&self) -> Duration {
        self.header.min(self.idle).min(self.send)
    }
}

/// Why the server ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It sent no request.
    Idle,
    /// It did not begin or did not finish a header.
    HeaderTimeout,
    /// A response made no progress.
    SendTimeout,
    /// Too many error responses are unsent.
    Refusals,
    /// It has the most unsent bytes when there are too many.
    UnsentBytes,
    /// A new connection needs its permit.
    GaveWay,
    /// The server ends.
    Shutdown,
}

impl End {
    /// The failure it counts as, if any.
    pub(super) fn failure(self) -> Option<ConnectionFailure> {
        match self {
            Self::Idle | Self::Shutdown => None,
            Self::HeaderTimeout => Some(ConnectionFailure::HeaderTimeout),
            Self::SendTimeout => Some(ConnectionFailure::SendTimeout),
            Self::Refusals => Some(ConnectionFailure::Refusals),
            Self::UnsentBytes => Some(ConnectionFailure::UnsentBytes),
            Self::GaveWay => Some(ConnectionFailure::GaveWay),
        }
    }
}
