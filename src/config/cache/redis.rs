//! `[cache.redis]`: the Redis or Valkey that replicas share.

use std::{
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::Duration,
};

use redis::{ClientTlsConfig, TlsCertificates};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

pub use self::address::{HostPort, RedisAddress, RedisCredentials, RedisServers};
use crate::config::{Problems, files, tls, value};

mod address;

const CA_FILE: &str = "cache.redis.ca_file";
const CLIENT_CERT_FILE: &str = "cache.redis.client_cert_file";
const CLIENT_KEY_FILE: &str = "cache.redis.client_key_file";
/// A longer timeout would delay requests.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(10);
const SHORTEST_RECHECK: Duration = Duration::from_secs(1);
const LONGEST_RECHECK: Duration = Duration::from_secs(60);
const LONGEST_PREFIX: usize = 128;

/// `[cache.redis]`: its address and use. Without an address there is none.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedisConfig {
    /// A secret: it may hold a password.
    url: Option<SecretString>,
    url_file: Option<PathBuf>,
    /// Whether the URL names servers of a cluster.
    cluster: bool,
    /// The authorities of its certificate, in place of the system's.
    ca_file: Option<PathBuf>,
    /// The certificate that the gateway presents, and its key.
    client_cert_file: Option<PathBuf>,
    client_key_file: Option<PathBuf>,
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

impl RedisConfig {
    /// Whether there is one to use.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        self.url.is_some() || self.url_file.is_some()
    }

    pub(in crate::config) fn ca_file(&self) -> Option<&Path> {
        self.ca_file.as_deref()
    }

    pub(in crate::config) fn client_cert_file(&self) -> Option<&Path> {
        self.client_cert_file.as_deref()
    }

    /// Its address, with what stands in the files that are named.
    ///
    /// # Errors
    ///
    /// Returns every problem of the address and the files, each by its key; never a file's content.
    pub fn read_address(&self) -> Result<RedisAddress, Problems> {
        let mut problems = Problems::default();
        let url = self.url().and_then(|url| {
            let url = url.expose_secret().trim();
            address::parse(url, self.cluster).map_err(str::to_owned)
        });
        let address = url.map_err(|text| problems.add(self.url_key(), text));
        let certificates = self.certificates(&mut problems);
        let Ok(mut address) = address else {
            return Err(problems);
        };
        match &mut address.tls {
            Some(tls) => *tls = certificates,
            None => self.refuse_certificates(&mut problems),
        }
        if problems.is_empty() {
            Ok(address)
        } else {
            Err(problems)
        }
    }

    fn refuse_certificates(&self, problems: &mut Problems) {
        for (key, file) in [
            (CA_FILE, &self.ca_file),
            (CLIENT_CERT_FILE, &self.client_cert_file),
            (CLIENT_KEY_FILE, &self.client_key_file),
        ] {
            if file.is_some() {
                problems.add(key, "needs a rediss:// URL: without TLS nobody looks at it");
            }
        }
    }

    fn url(&self) -> Result<SecretString, String> {
        match (&self.url, &self.url_file) {
            (Some(url), None) => Ok(url.clone()),
            (None, Some(file)) => files::read_text(file)
                .map(Into::into)
                .map_err(|error| format!("cannot be read: {error}")),
            (Some(_), Some(_)) => Err("give `url` or `url_file`, not both".to_owned()),
            (None, None) => Err("required: `url` or `url_file`".to_owned()),
        }
    }

    fn url_key(&self) -> &'static str {
        match (&self.url, &self.url_file) {
            (None, Some(_)) => "cache.redis.url_file",
            _ => "cache.redis.url",
        }
    }

    fn certificates(&self, problems: &mut Problems) -> TlsCertificates {
        let root_cert = self.ca_file.as_deref().and_then(|file| {
            let read = tls::read(file).and_then(|pem| {
                tls::authorities_in(&pem)?;
                Ok(pem)
            });
            read.map_err(|text| problems.add(CA_FILE, text)).ok()
        });
        let pair = [
            (CLIENT_CERT_FILE, self.client_cert_file.as_deref()),
            (CLIENT_KEY_FILE, self.client_key_file.as_deref()),
        ];
        let is_named = pair.iter().any(|(_, file)| file.is_some());
        let pair = is_named.then(|| tls::read_pair(pair, problems)).flatten();
        TlsCertificates {
            root_cert,
            client_tls: pair.map(|pair| {
                let [client_cert, client_key] = pair.pem;
                ClientTlsConfig {
                    client_cert,
                    client_key,
                }
            }),
        }
    }

    pub(super) fn check(&self, problems: &mut Problems) {
        if self.is_configured()
            && let Err(found) = self.read_address()
        {
            problems.append(found);
        }
        if self.timeout.is_zero() || self.timeout > LONGEST_TIMEOUT {
            problems.add(
                "cache.redis.timeout",
                "expected more than 0s and 10s or less",
            );
        }
        if self.recheck < SHORTEST_RECHECK || self.recheck > LONGEST_RECHECK {
            problems.add("cache.redis.recheck", "expected 1s or more and 60s or less");
        }
        // Braces would decide the slots of a cluster.
        let is_plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'{' | b'}');
        if !self.prefix.bytes().all(is_plain) || self.prefix.len() > LONGEST_PREFIX {
            problems.add(
                "cache.redis.prefix",
                "expected at most 128 visible ASCII characters without spaces and braces",
            );
        }
    }
}
