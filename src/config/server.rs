//! `[server]`: the data listener and its limits.

use std::time::Duration;

use serde::Deserialize;

use super::{
    Problems, TlsConfig,
    value::{self, ListenAddress, Network},
};

/// `[server]`: where clients connect, how long they may take, and how many at once.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    pub listen: ListenAddress,
    /// Threads that serve requests; 0 is one per core.
    pub workers: usize,
    #[serde(deserialize_with = "value::duration")]
    pub header_read_timeout: Duration,
    #[serde(deserialize_with = "value::duration")]
    pub idle_timeout: Duration,
    #[serde(deserialize_with = "value::duration")]
    pub request_timeout: Duration,
    #[serde(deserialize_with = "value::duration")]
    pub send_timeout: Duration,
    pub max_connections: usize,
    pub max_in_flight: usize,
    #[serde(deserialize_with = "value::bytes")]
    pub max_header_bytes: usize,
    #[serde(deserialize_with = "value::bytes")]
    pub max_unsent_bytes: usize,
    #[serde(deserialize_with = "value::duration")]
    pub drain_delay: Duration,
    #[serde(deserialize_with = "value::duration")]
    pub drain_timeout: Duration,
    pub proxy_protocol: bool,
    pub trusted_proxies: Vec<Network>,
    pub forwarded_header: ForwardedHeader,
    pub tls: Option<TlsConfig>,
}

/// The header in which trusted proxies report the client. Only one is read: a proxy passes the other one on as the client sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum ForwardedHeader {
    #[serde(rename = "x-forwarded-for")]
    XForwardedFor,
    #[serde(rename = "forwarded")]
    Forwarded,
}

/// One request in this many is reserved for those that need not wait for the upstream.
const ROOM_FOR_HITS: usize = 4;

impl ServerConfig {
    /// Whether clients may authenticate with a certificate.
    #[must_use]
    pub fn asks_for_certificates(&self) -> bool {
        self.tls
            .as_ref()
            .is_some_and(|tls| tls.client_ca_file.is_some())
    }

    /// How many of `max_in_flight` may wait for the upstream: three in four, but one at least.
    #[must_use]
    pub fn max_waiting(&self) -> usize {
        let room = self.max_in_flight.div_ceil(ROOM_FOR_HITS);
        (self.max_in_flight - room).max(1)
    }

    pub(super) fn check(&self, problems: &mut Problems) {
        if let Err(text) = self.listen.check() {
            problems.add("server.listen", text);
        }
        for (key, timeout) in [
            ("server.header_read_timeout", self.header_read_timeout),
            ("server.idle_timeout", self.idle_timeout),
            ("server.request_timeout", self.request_timeout),
            ("server.send_timeout", self.send_timeout),
        ] {
            if timeout.is_zero() {
                problems.add(key, "must be longer than 0s");
            }
        }
        for (key, count) in [
            ("server.max_connections", self.max_connections),
            ("server.max_in_flight", self.max_in_flight),
        ] {
            if count == 0 || count > tokio::sync::Semaphore::MAX_PERMITS {
                problems.add(key, "expected 1 or more");
            }
        }
        // hyper's minimum.
        if self.max_header_bytes < 8192 {
            problems.add("server.max_header_bytes", "expected 8KiB or more");
        }
        if self.max_unsent_bytes == 0 {
            problems.add("server.max_unsent_bytes", "expected 1B or more");
        }
        if self.workers > 1024 {
            problems.add("server.workers", "expected 1024 or fewer");
        }
        // A Unix socket's file permissions decide who may connect.
        let anybody = matches!(self.listen, ListenAddress::Tcp(_));
        if self.proxy_protocol && anybody && self.trusted_proxies.is_empty() {
            problems.add_depending(
                "server.proxy_protocol",
                "needs server.trusted_proxies: nobody else is believed",
                &["server.listen", "server.trusted_proxies"],
            );
        }
        if let Some(Err(found)) = self.tls.as_ref().map(TlsConfig::read) {
            problems.append(found);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    #[test]
    fn one_request_in_four_need_not_wait_and_one_at_least_may() {
        let max_waiting = |max_in_flight: usize| {
            let text = format!(
                "server.max_in_flight = {max_in_flight}\n\
                 upstream.base_url = 'https://unpod.example'\n\
                 upstream.credentials.default.token = 'abc'"
            );
            Config::from_toml(&text).unwrap().server.max_waiting()
        };
        for (max_in_flight, expected) in [(1, 1), (2, 1), (3, 2), (4, 3), (5, 3), (5000, 3750)] {
            assert_eq!(max_waiting(max_in_flight), expected, "{max_in_flight}");
        }
    }
}
