//! Connects to Redis: TCP, TLS where the address asks for it, and the handshake.

use std::{io, sync::Arc, time::Duration};

use redis::{AsyncConnectionConfig, RedisConnectionInfo, RedisError, aio::MultiplexedConnection};
use rustls::pki_types::ServerName;
use secrecy::ExposeSecret;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
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

pub(super) type Commands = MultiplexedConnection;

/// A connection and the task that drives it, which ends with it.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) commands: Commands,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Connects to `address`.
pub(super) async fn dial(address: &RedisAddress) -> Result<Connection, DialError> {
    let tcp = TcpStream::connect((address.host.as_str(), address.port))
        .await
        .map_err(DialError::Connect)?;
    tcp.set_nodelay(true).map_err(DialError::Connect)?;
    match address.encryption {
        Encryption::None => greet(address, tcp).await,
        Encryption::Tls => {
            let name = ServerName::try_from(address.host.clone())
                .map_err(|_| DialError::Address("expected a host name".to_owned()))?;
            let tls = tls()?.connect(name, tcp).await.map_err(DialError::Tls)?;
            greet(address, tls).await
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
) -> Result<Connection, DialError> {
    let mut info = RedisConnectionInfo::default()
        .set_db(address.database)
        .set_skip_set_lib_name();
    if let Some(username) = &address.username {
        info = info.set_username(username);
    }
    if let Some(password) = &address.password {
        info = info.set_password(password.expose_secret());
    }
    let config = AsyncConnectionConfig::new()
        .set_response_timeout(None)
        .set_pipeline_buffer_size(QUEUED);
    let (commands, driver) = MultiplexedConnection::new_with_config(&info, stream, config)
        .await
        .map_err(DialError::Refused)?;
    Ok(Connection {
        commands,
        driver: tokio::spawn(driver),
    })
}
