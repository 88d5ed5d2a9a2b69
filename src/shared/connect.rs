//! Connects to Redis: TCP, TLS where the address asks for it, and the handshake.

use std::{io, sync::Arc, time::Duration};

use parking_lot::Mutex;
use redis::{
    AsyncConnectionConfig, ProtocolVersion, PushInfo, RedisConnectionInfo, RedisError,
    aio::{MultiplexedConnection, SendError},
};
use rustls::pki_types::ServerName;
use secrecy::ExposeSecret;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::mpsc,
    task::JoinHandle,
};
use tokio_rustls::TlsConnector;

use crate::config::cache::{Encryption, RedisAddress};

/// Commands queued for writing; further ones wait within their own timeout.
const QUEUED: usize = 1024;

/// Why there is no connection. Its text holds neither the address nor the password.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("the address is wrong: {0}")]
    Address(String),
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    #[error("TLS failed")]
    Tls(#[source] io::Error),
    #[error("the TLS set-up is wrong")]
    TlsSetup(#[from] rustls::Error),
    #[error("refused")]
    Refused(#[source] RedisError),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("cannot catch up with its contents")]
    CatchUp,
}

/// A connection and the task that drives it, which ends with it.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) commands: MultiplexedConnection,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Connects to `address`; published messages go to `pushes`.
pub(super) async fn dial(
    address: &RedisAddress,
    pushes: mpsc::Sender<PushInfo>,
) -> Result<Connection, DialError> {
    let tcp = TcpStream::connect((address.host.as_str(), address.port))
        .await
        .map_err(DialError::Connect)?;
    tcp.set_nodelay(true).map_err(DialError::Connect)?;
    match address.encryption {
        Encryption::None => greet(address, tcp, pushes).await,
        Encryption::Tls => {
            let name = ServerName::try_from(address.host.clone())
                .map_err(|_| DialError::Address("expected a host name".to_owned()))?;
            let tls = tls()?.connect(name, tcp).await.map_err(DialError::Tls)?;
            greet(address, tls, pushes).await
        }
    }
}

/// TLS that trusts the system's authorities.
fn tls() -> Result<TlsConnector, rustls::Error> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn greet(
    address: &RedisAddress,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    pushes: mpsc::Sender<PushInfo>,
) -> Result<Connection, DialError> {
    // RESP3: answers and published messages share one connection, so that neither is lost without the other.
    let mut info = RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP3)
        .set_db(address.database)
        .set_skip_set_lib_name();
    if let Some(username) = &address.username {
        info = info.set_username(username);
    }
    if let Some(password) = &address.password {
        info = info.set_password(password.expose_secret());
    }
    // A message that finds no room is lost and ends the connection: reconnecting finds out what it said.
    let pushes = Mutex::new(Some(pushes));
    let take = move |push: PushInfo| {
        let mut pushes = pushes.lock();
        let sent = pushes.as_ref().map(|pushes| pushes.try_send(push));
        match sent {
            Some(Ok(())) => Ok(()),
            Some(Err(_)) | None => {
                *pushes = None;
                Err(SendError)
            }
        }
    };
    let config = AsyncConnectionConfig::new()
        .set_response_timeout(None)
        .set_pipeline_buffer_size(QUEUED)
        .set_push_sender(take);
    let (commands, driver) = MultiplexedConnection::new_with_config(&info, stream, config)
        .await
        .map_err(DialError::Refused)?;
    Ok(Connection {
        commands,
        driver: tokio::spawn(driver),
    })
}
