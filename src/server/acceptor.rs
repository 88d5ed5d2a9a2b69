//! What precedes HTTP on a connection: the PROXY header, where one is required, and the TLS handshake.

use std::{io, sync::Arc, time::Duration};

use super::{
    Connection,
    tls::{Tls, client_certificate},
};
use crate::{
    peer::{
        ConnectionInfo, Peer, TrustedProxies,
        proxy_protocol::{HeaderError, read_header},
    },
    telemetry::metrics::ConnectionFailure,
};

/// Takes connections to where HTTP begins; by default without any steps.
#[derive(Clone, Debug, Default)]
pub struct Acceptor {
    /// The proxies that must send a PROXY header; one from anybody else is an error.
    pub proxies: Option<TrustedProxies>,
    pub tls: Option<Tls>,
}

/// A connection on which HTTP may begin.
pub(super) struct Accepted {
    pub(super) io: Box<dyn Connection>,
    pub(super) info: ConnectionInfo,
}

/// Why a connection never came to HTTP.
#[derive(Debug, thiserror::Error)]
pub(super) enum AcceptError {
    #[error(transparent)]
    Proxy(#[from] HeaderError),
    #[error("the TLS handshake failed")]
    Tls(#[source] io::Error),
    #[error("took longer than {0:?} to begin")]
    TooSlow(Duration),
}

impl AcceptError {
    /// The failure it counts as. A peer that hangs up, as a load balancer's probe does, is none.
    pub(super) fn failure(&self) -> Option<ConnectionFailure> {
        match self {
            Self::Proxy(HeaderError::Io(_)) => None,
            Self::Tls(error) if is_hang_up(error) => None,
            Self::Proxy(HeaderError::Missing | HeaderError::TooLong | HeaderError::Malformed) => {
                Some(ConnectionFailure::ProxyHeader)
            }
            Self::Tls(_) => Some(ConnectionFailure::TlsHandshake),
            Self::TooSlow(_) => Some(ConnectionFailure::TooSlow),
        }
    }
}

fn is_hang_up(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

impl Acceptor {
    /// Reads the PROXY header and shakes hands, where either is asked for, within `limit`.
    pub(super) async fn accept(
        &self,
        io: Box<dyn Connection>,
        peer: Peer,
        limit: Duration,
    ) -> Result<Accepted, AcceptError> {
        tokio::time::timeout(limit, self.pass(io, peer))
            .await
            .unwrap_or(Err(AcceptError::TooSlow(limit)))
    }

    async fn pass(&self, mut io: Box<dyn Connection>, peer: Peer) -> Result<Accepted, AcceptError> {
        let peer = match &self.proxies {
            // If it names nobody, the proxy's own address is not used: the proxy is trusted, so a client's own
            // `X-Forwarded-For` would be believed.
            Some(trusted) if trusted.include(peer) => {
                read_header(&mut io).await?.map_or(Peer::Unnamed, Peer::at)
            }
            _ => peer,
        };
        let Some(tls) = &self.tls else {
            let certificate = None;
            let info = ConnectionInfo { peer, certificate };
            return Ok(Accepted { io, info });
        };
        let stream = tls.accept(io).await.map_err(AcceptError::Tls)?;
        let certificate = client_certificate(&stream).map(Arc::new);
        Ok(Accepted {
            io: Box::new(stream),
            info: ConnectionInfo { peer, certificate },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_hangs_up_has_failed_at_nothing() {
        let io = |kind: io::ErrorKind| io::Error::from(kind);
        let table = [
            (
                AcceptError::Proxy(HeaderError::Missing),
                Some(ConnectionFailure::ProxyHeader),
            ),
            (
                AcceptError::Proxy(HeaderError::Io(io(io::ErrorKind::UnexpectedEof))),
                None,
            ),
            (
                AcceptError::Tls(io(io::ErrorKind::InvalidData)),
                Some(ConnectionFailure::TlsHandshake),
            ),
            (AcceptError::Tls(io(io::ErrorKind::UnexpectedEof)), None),
            (AcceptError::Tls(io(io::ErrorKind::ConnectionReset)), None),
            (
                AcceptError::TooSlow(Duration::from_secs(1)),
                Some(ConnectionFailure::TooSlow),
            ),
        ];
        for (error, expected) in table {
            assert_eq!(error.failure(), expected, "{error:?}");
        }
    }
}
