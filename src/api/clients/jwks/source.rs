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

use http::{HeaderMap, HeaderValue, Method, StatusCode, header::ACCEPT};
use jsonwebtoken::Algorithm;
use url::Url;

use super::KeySet;
use crate::{
    config::{JwtConfig, Problems, auth::KeysFrom},
    outbound::{Bounds, BuildError, Outbound, OutboundError},
};

/// Bytes: enough for thousands of keys.
const LONGEST: usize = 1024 * 1024;
const BOUNDS: Bounds = Bounds {
    connect_timeout: Duration::from_secs(3),
    timeout: Duration::from_secs(10),
    max_body: LONGEST,
    // Requests are minutes apart.
    max_idle: 0,
};
const ACCEPTED: HeaderValue =
    HeaderValue::from_static("application/jwk-set+json, application/json");

/// Where the keys are published.
pub(super) enum Source {
    File(PathBuf),
    Url(Outbound),
}

impl fmt::Debug for Source {
    /// Without the URL's query, which may hold a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place().fmt(f)
    }
}

/// Why a document could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("the file cannot be read")]
    File(#[source] io::Error),
    #[error("the document is longer than 1 MiB")]
    TooLong,
    #[error("reading it ended in a bug")]
    Bug,
    #[error("the provider gave none")]
    Provider(#[from] OutboundError),
    #[error("the document is no JWKS")]
    NotJwks(#[from] serde_json::Error),
}

impl ReadError {
    /// The root cause, such as "connection refused".
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
            KeysFrom::Url(url) => asking(url)
                .map(Self::Url)
                .map_err(|error| problem(error.to_string())),
        }
    }

    /// Reads the keys for `algorithms`; files and parsing are done on a blocking thread.
    pub(super) async fn read(&self, algorithms: &Arc<[Algorithm]>) -> Result<KeySet, ReadError> {
        let algorithms = algorithms.clone();
        let reading = match self {
            Self::File(file) => {
                let file = file.clone();
                tokio::task::spawn_blocking(move || read_file(&file, &algorithms))
            }
            Self::Url(provider) => {
                let accept = HeaderMap::from_iter([(ACCEPT, ACCEPTED)]);
                let (status, document) = provider.ask(Method::GET, accept, Vec::new()).await?;
                if status != StatusCode::OK {
                    return Err(OutboundError::Status(status).into());
                }
                tokio::task::spawn_blocking(move || Ok(KeySet::parse(document, &algorithms)?))
            }
        };
        reading.await.unwrap_or(Err(ReadError::Bug))
    }

    /// Whether `config` names the same source.
    pub(super) fn is_of(&self, config: &JwtConfig) -> bool {
        config.keys_from() == Ok(self.place())
    }

    fn place(&self) -> KeysFrom<'_> {
        match self {
            Self::File(file) => KeysFrom::File(file),
            Self::Url(provider) => KeysFrom::Url(provider.url()),
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

fn asking(url: &Url) -> Result<Outbound, BuildError> {
    Outbound::new(url.clone(), BOUNDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_query_of_the_url() {
        let url: Url = "https://id.example/keys?api_key=s3cret".parse().unwrap();
        let source = Source::Url(asking(&url).unwrap());
        let shown = format!("{source:?}");
        assert!(!shown.contains("s3cret"), "{shown}");
        assert!(shown.contains("id.example/keys"), "{shown}");
    }
}
