//! Connects to Redis: to one server, to the primary that Sentinel names, or to the servers of a cluster.

use std::{error::Error, fmt, time::Duration};

use futures_util::future::select_ok;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo,
    Pipeline, ProtocolVersion, RedisConnectionInfo, RedisError, RedisFuture, RedisResult, Role,
    Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster::ClusterClientBuilder,
    cluster_async::ClusterConnection,
    io::tcp::TcpSettings,
};
use secrecy::ExposeSecret;

use crate::config::cache::{HostPort, RedisAddress, RedisCredentials, RedisServers};

/// Commands queued for writing; further ones wait within their own timeout.
const QUEUED: usize = 1024;
/// For connecting to one server of a cluster: the others must have their chance before the caller gives up.
const CLUSTER_CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// How often a command follows a slot that moved, or is sent again while a server is being replaced. The caller's timeout ends it earlier.
const CLUSTER_RETRIES: u32 = 3;
/// Milliseconds before a retry.
const CLUSTER_RETRY_WAIT: [u64; 2] = [5, 50];

/// Why there is no connection. Its text holds neither the address nor the password.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("the address is wrong: {0}")]
    Address(String),
    #[error("cannot connect")]
    Connect(#[source] RedisError),
    #[error("refused")]
    Refused(#[source] RedisError),
    #[error("Sentinel knows no primary of this name")]
    UnknownPrimary,
    #[error("the server that Sentinel names is not a primary")]
    NotPrimary,
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("cannot catch up with its contents")]
    CatchUp,
}

impl From<RedisError> for DialError {
    fn from(error: RedisError) -> Self {
        if error.is_io_error() {
            Self::Connect(error)
        } else {
            Self::Refused(error)
        }
    }
}

/// What the log may say of an error: the code of a refusal such as `WRONGPASS`, what failed on this side, or its kind. Never the server's
/// text, which may repeat what was sent.
pub(super) fn reason(error: &RedisError) -> String {
    if error.is_io_error() {
        let cause = error.source().map(ToString::to_string);
        return cause.unwrap_or_else(|| "disconnected".to_owned());
    }
    let code = error.code().unwrap_or_else(|| error.category());
    code.to_owned()
}

/// For commands: to one server, or to the servers of a cluster.
#[derive(Clone)]
pub(super) enum Commands {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Commands {
    pub(super) fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }
}

impl fmt::Debug for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Single(_) => "Single",
            Self::Cluster(_) => "Cluster",
        })
    }
}

impl ConnectionLike for Commands {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Single(connection) => connection.req_packed_command(command),
            Self::Cluster(connection) => connection.req_packed_command(command),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Single(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Single(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}

/// Connects to `address`. The connection ends with the last clone of its commands.
pub(super) async fn dial(address: &RedisAddress) -> Result<Commands, DialError> {
    let info = info(&address.credentials, address.database);
    Ok(match &address.servers {
        RedisServers::One(server) => {
            let client = client(address, server, info)?;
            Commands::Single(connect(&client).await?)
        }
        RedisServers::UnixSocket(path) => {
            let socket = ConnectionAddr::Unix(path.clone()).into_connection_info()?;
            let client = Client::open(socket.set_redis_settings(info))?;
            Commands::Single(connect(&client).await?)
        }
        RedisServers::Sentinel {
            sentinels,
            credentials,
            master,
        } => {
            let ask = self::info(credentials, 0);
            // All at once: one that hangs, or names a server that is gone, holds nobody up.
            let asked = sentinels.iter().map(|sentinel| {
                let asked = client(address, sentinel, ask.clone());
                Box::pin(primary(address, asked, master, &info))
            });
            Commands::Single(select_ok(asked).await?.0)
        }
        RedisServers::Cluster(servers) => {
            Commands::Cluster(cluster(address, servers, &info).await?)
        }
    })
}

/// RESP3, since with RESP2 the error of a refused password lacks the server's code.
fn info(credentials: &RedisCredentials, database: i64) -> RedisConnectionInfo {
    let mut info = RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP3)
        .set_db(database)
        .set_skip_set_lib_name();
    if let Some(username) = &credentials.username {
        info = info.set_username(username);
    }
    if let Some(password) = &credentials.password {
        info = info.set_password(password.expose_secret());
    }
    info
}

fn server_info(
    address: &RedisAddress,
    (host, port): &HostPort,
    info: RedisConnectionInfo,
) -> RedisResult<ConnectionInfo> {
    let (host, port) = (host.clone(), *port);
    let server = match address.tls {
        None => ConnectionAddr::Tcp(host, port),
        Some(_) => ConnectionAddr::TcpTls {
            host,
            port,
            insecure: false,
            tls_params: None,
        },
    };
    let tcp = TcpSettings::default().set_nodelay(true);
    let server = server.into_connection_info()?;
    Ok(server.set_redis_settings(info).set_tcp_settings(tcp))
}

fn client(
    address: &RedisAddress,
    server: &HostPort,
    info: RedisConnectionInfo,
) -> RedisResult<Client> {
    let server = server_info(address, server, info)?;
    match &address.tls {
        None => Client::open(server),
        Some(certificates) => Client::build_with_tls(server, certificates.clone()),
    }
}

async fn connect(client: &Client) -> RedisResult<MultiplexedConnection> {
    // Callers have timeouts of their own.
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None)
        .set_pipeline_buffer_size(QUEUED);
    client
        .get_multiplexed_async_connection_with_config(&config)
        .await
}

/// Connects to the primary that `sentinel` names.
async fn primary(
    address: &RedisAddress,
    sentinel: RedisResult<Client>,
    master: &str,
    info: &RedisConnectionInfo,
) -> Result<MultiplexedConnection, DialError> {
    let mut sentinel = connect(&sentinel?).await?;
    let named: Option<HostPort> = redis::cmd("SENTINEL")
        .arg("GET-MASTER-ADDR-BY-NAME")
        .arg(master)
        .query_async(&mut sentinel)
        .await?;
    let server = named.ok_or(DialError::UnknownPrimary)?;
    let client = client(address, &server, info.clone())?;
    let mut primary = connect(&client).await?;
    // During a failover a sentinel may still name the server that was replaced.
    let role: Role = redis::cmd("ROLE").query_async(&mut primary).await?;
    if !matches!(role, Role::Primary { .. }) {
        return Err(DialError::NotPrimary);
    }
    Ok(primary)
}

async fn cluster(
    address: &RedisAddress,
    servers: &[HostPort],
    info: &RedisConnectionInfo,
) -> Result<ClusterConnection, DialError> {
    let infos: Vec<_> = servers
        .iter()
        .map(|server| server_info(address, server, info.clone()))
        .collect::<RedisResult<_>>()?;
    let [shortest, longest] = CLUSTER_RETRY_WAIT;
    let mut builder = ClusterClientBuilder::new(infos)
        .connection_timeout(CLUSTER_CONNECT_TIMEOUT)
        .overall_response_timeout(None)
        .retries(CLUSTER_RETRIES)
        .min_retry_wait(shortest)
        .max_retry_wait(longest)
        .tcp_settings(TcpSettings::default().set_nodelay(true));
    if let Some(certificates) = &address.tls {
        builder = builder.certs(certificates.clone());
    }
    let connected = builder.build()?.get_async_connection().await;
    match (connected, servers) {
        // The error says of the servers only that none could be used; one of them says why.
        (Err(error), [server, ..]) if error.is_io_error() => {
            connect(&client(address, server, info.clone())?).await?;
            Err(error.into())
        }
        (connected, _) => Ok(connected?),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_refusal_is_told_by_its_code_and_what_failed_here_by_its_text() {
        for (refusal, code) in [
            ("WRONGPASS invalid username c4n4ry", "WRONGPASS"),
            ("NOPERM this user has no permissions", "NOPERM"),
            ("NOAUTH Authentication required.", "NOAUTH"),
            ("MISCONF Redis is configured to save", "MISCONF"),
            ("LOADING Redis is loading the dataset", "LOADING"),
            ("READONLY You can't write against a replica", "READONLY"),
            ("OOM command not allowed", "OOM"),
            ("ERR unknown command 'c4n4ry'", "ERR"),
        ] {
            let answer = redis::parse_redis_value(format!("-{refusal}\r\n").as_bytes());
            let error = answer.unwrap().extract_error().unwrap_err();
            assert_eq!(reason(&error), code);
            assert!(matches!(error.into(), DialError::Refused(_)));
        }
        let refused = io::Error::new(io::ErrorKind::ConnectionRefused, "connection refused");
        let error = RedisError::from(refused);
        assert_eq!(reason(&error), "connection refused");
        assert!(matches!(error.into(), DialError::Connect(_)));
        let closed = RedisError::from((redis::ErrorKind::Io, "the end", "c4n4ry".to_owned()));
        assert_eq!(reason(&closed), "disconnected");
    }
}
