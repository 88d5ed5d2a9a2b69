//! `[cache.redis]`: the Redis or Valkey that replicas share.

use std::{num::NonZeroU32, path::PathBuf, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use url::Url;

use crate::config::{Problems, files, value};

/// A longer timeout would delay requests.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(10);
const LONGEST_PREFIX: usize = 128;

/// `[cache.redis]`: its address and use. Without an address there is none.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedisConfig {
    /// A secret: it may hold a password.
    url: Option<SecretString>,
    url_file: Option<PathBuf>,
    /// The number of gateways that share it.
    pub replicas: NonZeroU32,
    /// How long one operation may take.
    #[serde(deserialize_with = "value::duration")]
    pub timeout: Duration,
    /// How long a replica waits for an entry in the log before it asks again.
    #[serde(deserialize_with = "value::duration")]
    pub recheck: Duration,
    /// What every key begins with.
    pub prefix: String,
}

/// Where a Redis is and who asks there.
#[derive(Clone, Debug)]
pub struct RedisAddress {
    pub host: String,
    pub port: u16,
    pub encryption: Encryption,
    pub username: Option<String>,
    pub password: Option<SecretString>,
    pub database: i64,
}

/// Whether a connection is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    Tls,
    None,
}

impl RedisConfig {
    /// Whether there is one to use.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        self.url.is_some() || self.url_file.is_some()
    }

    /// Its address, read from its file where one is named.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the address or its file.
    pub fn read_address(&self) -> Result<RedisAddress, String> {
        let text = match (&self.url, &self.url_file) {
            (Some(url), None) => url.clone(),
            (None, Some(file)) => files::read_text(file)
                .map_err(|error| format!("cannot be read: {error}"))?
                .into(),
            (Some(_), Some(_)) => return Err("give `url` or `url_file`, not both".to_owned()),
            (None, None) => return Err("required: `url` or `url_file`".to_owned()),
        };
        parse(text.expose_secret().trim()).ok_or_else(|| {
            "expected a URL such as \"redis://HOST:6379\" or \"rediss://USER:PASSWORD@HOST:6379/0\""
                .to_owned()
        })
    }

    pub(super) fn check(&self, problems: &mut Problems) {
        if self.is_configured()
            && let Err(text) = self.read_address()
        {
            let key = match (&self.url, &self.url_file) {
                (None, Some(_)) => "cache.redis.url_file",
                _ => "cache.redis.url",
            };
            problems.add(key, text);
        }
        if self.timeout.is_zero() || self.timeout > LONGEST_TIMEOUT {
            problems.add(
                "cache.redis.timeout",
                "expected more than 0s and 10s or less",
            );
        }
        let visible = self.prefix.bytes().all(|byte| byte.is_ascii_graphic());
        if !visible || self.prefix.len() > LONGEST_PREFIX {
            problems.add(
                "cache.redis.prefix",
                "expected at most 128 visible ASCII characters without spaces",
            );
        }
    }
}

fn parse(text: &str) -> Option<RedisAddress> {
    let url = Url::parse(text).ok()?;
    let encryption = match url.scheme() {
        "redis" => Encryption::None,
        "rediss" => Encryption::Tls,
        _ => return None,
    };
    if url.query().is_some() || url.fragment().is_some() {
        return None;
    }
    let host = url.host_str().filter(|host| !host.is_empty())?;
    let database = match url.path().trim_start_matches('/') {
        "" => 0,
        number => number.parse().ok().filter(|number| *number >= 0)?,
    };
    let decoded = |text: &str| percent_decoded(text).filter(|text| !text.is_empty());
    Some(RedisAddress {
        host: host.trim_matches(['[', ']']).to_owned(),
        port: url.port().unwrap_or(6379),
        encryption,
        username: decoded(url.username()),
        password: match url.password() {
            Some(password) => Some(decoded(password)?.into()),
            None => None,
        },
        database,
    })
}

/// Decodes `%XX` in a URL's password.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let value = digit(bytes.next())? * 16 + digit(bytes.next())?;
        decoded.push(u8::try_from(value).ok()?);
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_from_its_url() {
        let read = |text| {
            let address = parse(text)?;
            let password = address.password.map(|word| word.expose_secret().to_owned());
            let tls = address.encryption == Encryption::Tls;
            let who = (address.username, password);
            Some((address.host, address.port, tls, who, address.database))
        };
        let text = |text: &str| text.to_owned();
        assert_eq!(
            read("redis://r"),
            Some((text("r"), 6379, false, (None, None), 0))
        );
        assert_eq!(
            read("rediss://u:p%40%2Fs@r.internal:6380/3"),
            Some((
                text("r.internal"),
                6380,
                true,
                (Some(text("u")), Some(text("p@/s"))),
                3
            ))
        );
        assert_eq!(
            read("redis://:word@[::1]/"),
            Some((text("::1"), 6379, false, (None, Some(text("word"))), 0))
        );
        for bad in [
            "",
            "r:6379",
            "http://r",
            "redis://",
            "redis://r/x",
            "redis://r/-1",
            "redis://r?protocol=resp2",
            "redis://r#0",
            "redis://u:%zz@r",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
