//! `[auth]`, `[cors]` and `[[clients]]`: who may call, and from where.

use std::collections::HashMap;

use serde::Deserialize;

use super::{
    Problems, UpstreamConfig,
    value::{self, NotYet, Sha256Digest, Timestamp},
};
use crate::domain::SpaceToken;

mod browser_tokens;
mod jwt;

pub use self::{
    browser_tokens::{BrowserKeys, BrowserTokensConfig},
    jwt::{JwtAlgorithm, JwtConfig, KeysFrom},
};

/// `[auth]`: limits on failed attempts, and where identities come from besides keys.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthConfig {
    /// Failures a minute from one address; 0: no limit.
    pub max_failures: u32,
    pub jwt: Option<JwtConfig>,
    pub browser_tokens: Option<BrowserTokensConfig>,
}

impl AuthConfig {
    pub(super) fn check(&self, problems: &mut Problems) {
        if let Some(jwt) = &self.jwt {
            jwt.check(problems);
        }
        if let Some(browser_tokens) = &self.browser_tokens {
            browser_tokens.check(problems);
        }
    }
}

/// `[cors]`: the browser origins that may read an answer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorsConfig {
    pub origins: Vec<String>,
}

impl CorsConfig {
    pub(super) fn check(&self, problems: &mut Problems) {
        if !self.origins.is_empty() {
            problems.add("cors.origins", value::NOT_SUPPORTED);
        }
    }
}

/// `[[clients]]`: one caller with an identity of its own.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    pub name: String,
    /// Digests of the client's key; two while it rotates.
    #[serde(default)]
    pub key_sha256: Vec<Sha256Digest>,
    /// Space tokens, or `["*"]`.
    pub spaces: Vec<String>,
    /// The credential for all of this client's spaces.
    pub credential: Option<String>,
    #[serde(default)]
    pub may_refresh: bool,
    pub expires: Option<Timestamp>,
    pub rate_limit: Option<NotYet>,
    pub view: Option<NotYet>,
    pub certificate_subject: Option<NotYet>,
}

/// Checks all clients; against `[auth]` and the credentials only where those could be read.
pub(super) fn check_clients(
    clients: &[ClientConfig],
    auth: Option<&AuthConfig>,
    upstream: Option<&UpstreamConfig>,
    problems: &mut Problems,
) {
    let mut names = HashMap::new();
    let mut digests = HashMap::new();
    for (place, client) in clients.iter().enumerate() {
        let key = |name: &str| format!("clients[{place}].{name}");
        check_client(client, upstream, &key, problems);
        check_proof(client, auth, &key, problems);
        if let Some(other) = names.insert(client.name.as_str(), place) {
            problems.add(key("name"), format!("the same as clients[{other}].name"));
        }
        for digest in &client.key_sha256 {
            if let Some(other) = digests.insert(*digest, place) {
                problems.add(
                    key("key_sha256"),
                    format!("a digest that clients[{other}] has already"),
                );
            }
        }
    }
}

fn check_client(
    client: &ClientConfig,
    upstream: Option<&UpstreamConfig>,
    key: &dyn Fn(&str) -> String,
    problems: &mut Problems,
) {
    let named = (1..=64).contains(&client.name.len())
        && client
            .name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if !named {
        problems.add(key("name"), "expected 1 to 64 of A-Z a-z 0-9 . _ -");
    }
    check_spaces(&client.spaces, &key("spaces"), problems);
    let Some(upstream) = upstream else {
        return;
    };
    if let Some(credential) = &client.credential {
        if !upstream.credentials.contains_key(credential) {
            problems.add(key("credential"), "no such [upstream.credentials.…]");
        }
    } else if !upstream.credentials.contains_key("default") && !all_served(client, upstream) {
        problems.add(
            key("credential"),
            "required: no credential serves all of its spaces and none is named \"default\"",
        );
    }
}

/// A client nobody can prove to be is of no use.
fn check_proof(
    client: &ClientConfig,
    auth: Option<&AuthConfig>,
    key: &dyn Fn(&str) -> String,
    problems: &mut Problems,
) {
    let named_elsewhere = auth.is_none_or(|auth| auth.jwt.is_some());
    match client.key_sha256.len() {
        1..=2 => {}
        0 if named_elsewhere => {}
        _ => problems.add(key("key_sha256"), "expected one or two digests"),
    }
}

fn all_served(client: &ClientConfig, upstream: &UpstreamConfig) -> bool {
    client.spaces.iter().all(|space| {
        upstream
            .credentials
            .values()
            .any(|credential| credential.spaces.contains(space))
    })
}

/// A list of space tokens, or `["*"]` alone.
fn check_spaces(spaces: &[String], key: &str, problems: &mut Problems) {
    let valid = match spaces {
        [] => false,
        [one] if one == "*" => true,
        many => many.iter().all(|space| SpaceToken::new(space).is_ok()),
    };
    if !valid {
        problems.add(key, "expected space tokens, or [\"*\"] alone");
    }
}
