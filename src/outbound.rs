//! HTTP requests to other services than the upstream: an identity provider, a trace collector.
//!
//! They follow no redirect, take no proxy from the environment, end by a deadline and read no body beyond a bound. The upstream has a client
//! of its own and shares only who is trusted.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode};
use rustls::RootCertStore;
use url::Url;

/// How the gateway names itself to whoever it asks.
pub const USER_AGENT: &str = concat!("unpod-gateway/", env!("CARGO_PKG_VERSION"));

/// How long a request may take, and its response be.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub connect_timeout: Duration,
    /// From asking to the last byte.
    pub timeout: Duration,
    /// Bytes of a body.
    pub max_body: usize,
    /// Idle connections that are kept.
    pub max_idle: usize,
}

/// Asks one service. A clone shares its connections.
#[derive(Clone, Debug)]
pub struct Outbound {
    http: reqwest::Client,
    url: Url,
    max_body: usize,
}

/// Why no client could be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("the TLS set-up failed")]
    Tls(#[from] rustls::Error),
    #[error("the HTTP client cannot be set up")]
    Client(#[from] reqwest::Error),
}

/// Why there is no body. None of them holds the URL, which may hold a key.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    #[error("the request failed")]
    Request(#[source] reqwest::Error),
    #[error("the answer was {0}")]
    Status(StatusCode),
    #[error("the answer's body broke off")]
    Body(#[source] reqwest::Error),
    #[error("the answer's body is longer than {0} bytes")]
    TooLong(usize),
}

impl Outbound {
    /// # Errors
    ///
    /// Returns what is wrong with the TLS set-up.
    pub fn new(url: Url, bounds: Bounds) -> Result<Self, BuildError> {
        let mut roots = RootCertStore::empty();
        if url.scheme() == "https" {
            add_system_roots(&mut roots);
        }
        #[expect(clippy::disallowed_methods, reason = "the upstream's is another")]
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls_trusting(roots)?)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .referer(false)
            .user_agent(USER_AGENT)
            .connect_timeout(bounds.connect_timeout)
            .timeout(bounds.timeout)
            .pool_max_idle_per_host(bounds.max_idle)
            .build()?;
        Ok(Self {
            http,
            url,
            max_body: bounds.max_body,
        })
    }

    #[must_use]
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Sends a request and returns the status and the body of a successful response.
    ///
    /// # Errors
    ///
    /// Returns why there is none.
    pub async fn ask(
        &self,
        method: Method,
        headers: HeaderMap,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Bytes), OutboundError> {
        let request = self.http.request(method, self.url.clone());
        let response = request.headers(headers).body(body).send().await;
        let mut response = response.map_err(|error| OutboundError::Request(error.without_url()))?;
        let status = response.status();
        if !status.is_success() {
            return Err(OutboundError::Status(status));
        }
        let mut whole = BytesMut::new();
        loop {
            match response.chunk().await {
                Ok(Some(part)) if whole.len() + part.len() > self.max_body => {
                    return Err(OutboundError::TooLong(self.max_body));
                }
                Ok(Some(part)) => whole.extend_from_slice(&part),
                Ok(None) => return Ok((status, whole.freeze())),
                Err(error) => return Err(OutboundError::Body(error.without_url())),
            }
        }
    }
}

/// TLS towards a server that one of `roots` vouches for.
///
/// # Errors
///
/// Returns the error of a provider that lacks the protocol versions we ask for.
pub fn tls_trusting(roots: RootCertStore) -> Result<rustls::ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// Adds the authorities that this system trusts; those that cannot be read are left out.
pub fn add_system_roots(roots: &mut RootCertStore) {
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
}
