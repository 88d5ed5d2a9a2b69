//! Where a JWKS is read from: a file, or the identity provider over HTTPS.

use std::{
    error::Error,
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header::ACCEPT};
use jsonwebtoken::Algorithm;
use url::Url;

use super::KeySet;
use crate::{
    config::{JwtConfig, Problems, auth::KeysFrom},
    upstream::{self, ClientError},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// From asking to the last byte.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Room for thousands of keys.
const LONGEST: usize = 1024 * 1024;

/// Where the keys are published.
pub(super) enum Source {
    File(PathBuf),
    Url { http: reqwest::Client, url: Url },
}

impl fmt::Debug for Source {
    /// A URL may have a key in its query.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place().fmt(f)
    }
}

/// Why a document could not be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("the file cannot be read")]
    File(#[source] io::Error),
    // Without its URL, as every log line.
    #[error("the document is longer than 1 MiB")]
    TooLong,
    #[error("reading it ended in a bug")]
    Bug,
    #[error("the request failed")]
    Request(#[source] reqwest::Error),
    #[error("the answer was {0}")]
    Status(StatusCode),
    #[error("the answer's body is of no use")]
    Body(#[source] ClientError),
    #[error("the document is no JWKS")]
    NotJwks(#[from] serde_json::Error),
}

impl ReadError {
    /// What lies deepest, such as "connection refused".
    pub(super) fn cause(&self) -> &dyn Error {
        let mut deepest: &dyn Error = self;
        while let Some(source) = deepest.source() {
            deepest = source;
        }
        deepest
    }
}

impl Source {
    /// Prepares to read; reads nothing yet.
    ///
    /// # Errors
    ///
    /// Returns the problem of an HTTP client that cannot be set up.
    pub(super) fn new(config: &JwtConfig) -> Result<Self, Problems> {
        let problem = |text: String| Problems::one("auth.jwt.jwks_url", text);
        match config
            .keys_from()
            .map_err(|text| problem(text.to_owned()))?
        {
            KeysFrom::File(file) => Ok(Self::File(file.to_owned())),
            KeysFrom::Url(url) => Ok(Self::Url {
                http: http_client(url).map_err(|error| problem(error.to_string()))?,
                url: url.clone(),
            }),
        }
    }

    /// Reads the keys for `algorithms`. What takes time but for the network is done on a thread of its own.
    pub(super) async fn read(&self, algorithms: &Arc<[Algorithm]>) -> Result<KeySet, ReadError> {
        let algorithms = algorithms.clone();
        let reading = match self {
            Self::File(file) => {
                let file = file.clone();
                tokio::task::spawn_blocking(move || read_file(&file, &algorithms))
            }
            Self::Url { http, url } => {
                let document = fetch(http, url).await?;
                tokio::task::spawn_blocking(move || Ok(KeySet::parse(document, &algorithms)?))
            }
        };
        reading.await.unwrap_or(Err(ReadError::Bug))
    }

    /// Whether `config` names this very place.
    pub(super) fn is_of(&self, config: &JwtConfig) -> bool {
        config.keys_from() == Ok(self.place())
    }

    fn place(&self) -> KeysFrom<'_> {
        match self {
            Self::File(file) => KeysFrom::File(file),
            Self::Url { url, .. } => KeysFrom::Url(url),
        }
    }
}

/// Reads the keys for `algorithms` from `file`, and blocks on it.
///
/// # Errors
///
/// Returns why the file holds no JWKS.
pub(super) fn read_file(file: &Path, algorithms: &[Algorithm]) -> Result<KeySet, ReadError> {
    let mut document = Vec::new();
    File::open(file)
        .and_then(|file| file.take(LONGEST as u64 + 1).read_to_end(&mut document))
        .map_err(ReadError::File)?;
    if document.len() > LONGEST {
        return Err(ReadError::TooLong);
    }
    Ok(KeySet::parse(document.into(), algorithms)?)
}

async fn fetch(http: &reqwest::Client, url: &Url) -> Result<Bytes, ReadError> {
    let response = http
        .get(url.clone())
        .header(
            ACCEPT,
            HeaderValue::from_static("application/jwk-set+json, application/json"),
        )
        .send()
        .await
        .map_err(|error| ReadError::Request(error.without_url()))?;
    if response.status() != StatusCode::OK {
        return Err(ReadError::Status(response.status()));
    }
    upstream::read_body(response, LONGEST)
        .await
        .map_err(ReadError::Body)
}

/// A client of its own: the upstream's proxy, authority and connections are not the provider's.
fn http_client(url: &Url) -> Result<reqwest::Client, upstream::BuildError> {
    Ok(upstream::other_client(url)?
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(TIMEOUT)
        // Minutes lie between two requests.
        .pool_max_idle_per_host(0)
        .build()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_query_of_the_url() {
        let url: Url = "https://id.example/keys?api_key=s3cret".parse().unwrap();
        let http = http_client(&url).unwrap();
        let source = Source::Url { http, url };
        let shown = format!("{source:?}");
        assert!(!shown.contains("s3cret"), "{shown}");
        assert!(shown.contains("id.example/keys"), "{shown}");
    }
}
