//! `[auth.jwt]`: which identity provider's tokens are accepted, and what they must say.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use jsonwebtoken::Algorithm;
use serde::Deserialize;
use url::Url;

use crate::config::{
    Problems, files,
    upstream::is_loopback,
    value::{self, Address},
};

/// `[auth.jwt]`: one identity provider.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtConfig {
    /// What `iss` must be.
    pub issuer: String,
    /// What `aud` must be or hold.
    pub audience: String,
    pub jwks_file: Option<PathBuf>,
    pub jwks_url: Option<Address>,
    #[serde(default = "every_algorithm")]
    pub algorithms: Vec<JwtAlgorithm>,
    /// The claim that names one of `[[clients]]`.
    #[serde(default = "subject")]
    pub client_claim: String,
    /// The claim that narrows the client's spaces.
    pub spaces_claim: Option<String>,
}

/// The signature algorithms that can be configured, all asymmetric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum JwtAlgorithm {
    #[serde(rename = "RS256")]
    Rs256,
    #[serde(rename = "ES256")]
    Es256,
    #[serde(rename = "EdDSA")]
    EdDsa,
}

impl From<JwtAlgorithm> for Algorithm {
    fn from(algorithm: JwtAlgorithm) -> Self {
        match algorithm {
            JwtAlgorithm::Rs256 => Self::RS256,
            JwtAlgorithm::Es256 => Self::ES256,
            JwtAlgorithm::EdDsa => Self::EdDSA,
        }
    }
}

fn every_algorithm() -> Vec<JwtAlgorithm> {
    vec![
        JwtAlgorithm::Rs256,
        JwtAlgorithm::Es256,
        JwtAlgorithm::EdDsa,
    ]
}

fn subject() -> String {
    "sub".to_owned()
}

/// Where a provider's keys are published.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum KeysFrom<'a> {
    File(&'a Path),
    Url(&'a Url),
}

/// Without the query of a URL, which may hold a key.
impl fmt::Debug for KeysFrom<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => file.fmt(f),
            Self::Url(url) => f.write_str(&value::without_secrets(url)),
        }
    }
}

impl JwtConfig {
    /// The one place that is named.
    ///
    /// # Errors
    ///
    /// Says that there is none, or more than one.
    pub fn keys_from(&self) -> Result<KeysFrom<'_>, &'static str> {
        match (&self.jwks_file, &self.jwks_url) {
            (Some(file), None) => Ok(KeysFrom::File(file)),
            (None, Some(Address(url))) => Ok(KeysFrom::Url(url)),
            (Some(_), Some(_)) => Err("give `jwks_file` or `jwks_url`, not both"),
            (None, None) => Err("required: `jwks_file` or `jwks_url`"),
        }
    }

    pub(super) fn check(&self, problems: &mut Problems) {
        for (key, text) in [
            ("auth.jwt.issuer", Some(&self.issuer)),
            ("auth.jwt.audience", Some(&self.audience)),
            ("auth.jwt.client_claim", Some(&self.client_claim)),
            ("auth.jwt.spaces_claim", self.spaces_claim.as_ref()),
        ] {
            if text.is_some_and(String::is_empty) {
                problems.add(key, "must not be empty");
            }
        }
        if self.algorithms.is_empty() {
            problems.add("auth.jwt.algorithms", "expected one or more");
        }
        match self.keys_from() {
            Err(text) => {
                problems.add_depending("auth.jwt.jwks_url", text, &["auth.jwt.jwks_file"]);
            }
            Ok(KeysFrom::File(file)) => {
                if let Err(error) = files::read(file) {
                    problems.add("auth.jwt.jwks_file", format!("cannot be read: {error}"));
                }
            }
            Ok(KeysFrom::Url(url)) => {
                if let Err(text) = check_jwks_url(url) {
                    problems.add("auth.jwt.jwks_url", text);
                }
            }
        }
    }
}

/// Only https or loopback: keys changed in transit would allow any token to be forged.
fn check_jwks_url(url: &Url) -> Result<(), &'static str> {
    let bare = url.username().is_empty()
        && url.password().is_none()
        && url.fragment().is_none()
        && url.has_host();
    match url.scheme() {
        _ if !bare => Err("expected scheme, host, and at most a port, a path and a query"),
        "https" => Ok(()),
        "http" if is_loopback(url) => Ok(()),
        "http" => Err("expected https: over plain http anybody on the way could make tokens"),
        _ => Err("expected https"),
    }
}
