//! The URL of a Redis: which servers it names, and who asks there.

use std::path::PathBuf;

use redis::TlsCertificates;
use secrecy::SecretString;
use url::Url;

const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

const EXPECTED: &str = "expected a URL such as \"redis://HOST:6379\", \"rediss://USER:PASSWORD@HOST:6379/0\", \
    \"redis+unix:///PATH\" or \"redis+sentinel://HOST:26379,HOST:26379/MASTER_NAME\"";
const NOT_ENCODED: &str = "must have its user and password percent-encoded: % is written %25, @ is %40, / is %2F, \
    : is %3A, ? is %3F and # is %23";
const NO_PASSWORD: &str =
    "names a user without a password: a password alone is written \":PASSWORD@HOST\"";
const NOT_A_DATABASE: &str = "expected a database number after the host";
const UNKNOWN_PARAMETER: &str = "has a query parameter that is not known: `db` goes with redis+unix, \
    `sentinel_user` and `sentinel_password` with redis+sentinel";

/// Where a Redis is, who asks there and how.
#[derive(Clone, Debug)]
pub struct RedisAddress {
    pub servers: RedisServers,
    pub credentials: RedisCredentials,
    pub database: i64,
    /// With which certificates; `None`: without TLS.
    pub tls: Option<TlsCertificates>,
}

/// What a URL may name.
#[derive(Clone, Debug)]
pub enum RedisServers {
    One(HostPort),
    UnixSocket(PathBuf),
    /// The master of this name, wherever it is.
    Sentinel {
        sentinels: Vec<HostPort>,
        /// Who asks the sentinels.
        credentials: RedisCredentials,
        master: String,
    },
    /// Some servers of a cluster, which tell the rest.
    Cluster(Vec<HostPort>),
}

/// A host name or IP address, and a port.
pub type HostPort = (String, u16);

/// A user and its password; a password alone is the default user's.
#[derive(Clone, Debug)]
pub struct RedisCredentials {
    pub username: Option<String>,
    pub password: Option<SecretString>,
}

impl RedisCredentials {
    /// Decodes both; empty ones do not count.
    fn of(username: &str, password: &str) -> Result<Self, &'static str> {
        let [username, password] = [decoded(username)?, decoded(password)?];
        let username = Some(username).filter(|name| !name.is_empty());
        let password = Some(password).filter(|word| !word.is_empty());
        if username.is_some() && password.is_none() {
            return Err(NO_PASSWORD);
        }
        Ok(Self {
            username,
            password: password.map(Into::into),
        })
    }
}

/// Reads a URL; its servers form a cluster where `is_cluster`.
///
/// # Errors
///
/// Says what is wrong with it, without quoting it.
pub(super) fn parse(text: &str, is_cluster: bool) -> Result<RedisAddress, &'static str> {
    let (scheme, rest) = text.split_once("://").ok_or(EXPECTED)?;
    let scheme = scheme.to_ascii_lowercase();
    let (name, kind) = scheme.split_once('+').unwrap_or((&scheme, ""));
    let tls = match name {
        "redis" | "valkey" => None,
        "rediss" | "valkeys" => Some(TlsCertificates {
            client_tls: None,
            root_cert: None,
        }),
        _ => return Err(EXPECTED),
    };
    let parts = Parts::of(rest)?;
    let (username, password) = parts.who.split_once(':').unwrap_or((parts.who, ""));
    let credentials = RedisCredentials::of(username, password)?;
    let (servers, database) = parts.servers(kind, tls.is_some(), is_cluster)?;
    let database = match database {
        "" => 0,
        number => number.parse().map_err(|_| NOT_A_DATABASE)?,
    };
    if database < 0 {
        return Err(NOT_A_DATABASE);
    }
    if is_cluster && database != 0 {
        return Err("names a database: a cluster has only database 0");
    }
    Ok(RedisAddress {
        servers,
        credentials,
        database,
        tls,
    })
}

/// What follows the scheme: `USER:PASSWORD@HOST:PORT,HOST:PORT/PATH?NAME=VALUE`.
struct Parts<'a> {
    who: &'a str,
    hosts: &'a str,
    path: &'a str,
    query: &'a str,
}

impl<'a> Parts<'a> {
    fn of(rest: &'a str) -> Result<Self, &'static str> {
        let (who, rest) = rest.rsplit_once('@').unwrap_or(("", rest));
        if who.contains(['@', '/', '?', '#']) || rest.contains('#') {
            return Err(NOT_ENCODED);
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        Ok(Self {
            who,
            hosts,
            path,
            query,
        })
    }

    /// The servers of a URL of this kind, and the text of the database.
    fn servers(
        &self,
        kind: &str,
        has_tls: bool,
        is_cluster: bool,
    ) -> Result<(RedisServers, &'a str), &'static str> {
        match kind {
            "" if is_cluster => {
                self.no_parameters()?;
                Ok((RedisServers::Cluster(self.hosts(PORT)?), self.path))
            }
            "" => {
                self.no_parameters()?;
                let [one] = <[_; 1]>::try_from(self.hosts(PORT)?).map_err(
                    |_| "names several servers: set `cluster = true`, or use redis+sentinel://",
                )?;
                Ok((RedisServers::One(one), self.path))
            }
            "unix" | "sentinel" if is_cluster => {
                Err("`cluster = true` needs a redis:// or rediss:// URL")
            }
            "unix" if !has_tls && self.hosts.is_empty() && !self.path.is_empty() => {
                let path = PathBuf::from(format!("/{}", decoded(self.path)?));
                let [database] = self.parameters(["db"])?;
                Ok((RedisServers::UnixSocket(path), database.unwrap_or_default()))
            }
            "sentinel" => {
                let names = ["sentinel_user", "sentinel_password"];
                let [username, password] = self.parameters(names)?.map(Option::unwrap_or_default);
                let (master, database) = self.path.split_once('/').unwrap_or((self.path, ""));
                let servers = RedisServers::Sentinel {
                    sentinels: self.hosts(SENTINEL_PORT)?,
                    credentials: RedisCredentials::of(username, password)?,
                    master: decoded(master)?,
                };
                if master.is_empty() {
                    return Err(EXPECTED);
                }
                Ok((servers, database))
            }
            _ => Err(EXPECTED),
        }
    }

    fn hosts(&self, port: u16) -> Result<Vec<HostPort>, &'static str> {
        let host = |text: &str| {
            let url = Url::parse(&format!("redis://{text}")).ok()?;
            let host = url.host_str().filter(|host| !host.is_empty())?;
            let host = host.trim_matches(['[', ']']).to_owned();
            Some((host, url.port().unwrap_or(port)))
        };
        self.hosts
            .split(',')
            .map(host)
            .collect::<Option<_>>()
            .ok_or(EXPECTED)
    }

    /// The values of these query parameters, beside which there is none.
    fn parameters<const N: usize>(
        &self,
        names: [&str; N],
    ) -> Result<[Option<&'a str>; N], &'static str> {
        let mut values = [None; N];
        for pair in self.query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let place = names.iter().position(|known| *known == name);
            values[place.ok_or(UNKNOWN_PARAMETER)?] = Some(value);
        }
        Ok(values)
    }

    fn no_parameters(&self) -> Result<(), &'static str> {
        self.parameters([]).map(|[]| ())
    }
}

/// Decodes `%XX`.
fn decoded(text: &str) -> Result<String, &'static str> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let value = digit().zip(digit()).map(|(high, low)| high * 16 + low);
        let value = value.and_then(|value| u8::try_from(value).ok());
        decoded.push(value.ok_or(NOT_ENCODED)?);
    }
    String::from_utf8(decoded).map_err(|_| NOT_ENCODED)
}

#[cfg(test)]
mod tests;
