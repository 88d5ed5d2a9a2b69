//! `[auth]` and `[[clients]]`: who may call.

use std::{collections::HashMap, num::NonZeroU32};

use figment::value::Dict;
use serde::Deserialize;

use super::{
    AdminConfig, Problems, ServerConfig, UpstreamConfig,
    upstream::check_space_tokens,
    value::{self, CertificateSubject, Sha256Digest, Timestamp},
};

mod browser_tokens;
mod jwt;

pub use self::{
    browser_tokens::{BrowserKeys, BrowserTokensConfig},
    jwt::{JwtAlgorithm, JwtConfig, KeysFrom},
};

/// `[auth]`: the limit on failed attempts, and identities other than keys.
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

/// `[[clients]]`: one client.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    pub name: String,
    /// Digests of the client's key; two during a rotation.
    #[serde(default)]
    pub key_sha256: Vec<Sha256Digest>,
    /// Space tokens, or `["*"]`.
    pub spaces: Vec<String>,
    /// The credential for all of this client's spaces.
    pub credential: Option<String>,
    #[serde(default)]
    pub may_refresh: bool,
    pub expires: Option<Timestamp>,
    /// Its rate limit; absent: unlimited.
    pub rate_limit: Option<RateLimitConfig>,
    /// The `[views.NAME]` through which it sees tasks.
    pub view: Option<String>,
    /// A name in the client's certificate, used without a key.
    pub certificate_subject: Option<CertificateSubject>,
}

/// A rate limit: `burst` requests at once, refilled by `per_second`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimitConfig {
    #[serde(deserialize_with = "value::rate")]
    pub per_second: f64,
    #[serde(deserialize_with = "value::burst")]
    pub burst: NonZeroU32,
}

/// The other sections that clients are checked against, as far as they could be read.
pub(super) struct Others<'a> {
    pub(super) admin: Option<&'a AdminConfig>,
    pub(super) server: Option<&'a ServerConfig>,
    pub(super) auth: Option<&'a AuthConfig>,
    pub(super) upstream: Option<&'a UpstreamConfig>,
    /// As given: an invalid view has been reported already.
    pub(super) views: Option<&'a Dict>,
}

/// Checks all clients, each for itself, against each other and against `others`.
pub(super) fn check_clients(
    clients: &[ClientConfig],
    others: &Others<'_>,
    problems: &mut Problems,
) {
    let mut names = HashMap::new();
    let mut digests = HashMap::new();
    let mut subjects = HashMap::new();
    let asks_for_certificates = others
        .server
        .is_none_or(ServerConfig::asks_for_certificates);
    for (place, client) in clients.iter().enumerate() {
        let key = |name: &str| format!("clients[{place}].{name}");
        check_client(client, others.upstream, &key, problems);
        if let Some(view) = &client.view
            && !others.views.is_some_and(|views| views.contains_key(view))
        {
            problems.add(key("view"), "no such [views.…]");
        }
        check_proof(client, others.auth, &key, problems);
        if let Some(other) = names.insert(client.name.as_str(), place) {
            problems.add(key("name"), format!("the same as clients[{other}].name"));
        }
        for digest in &client.key_sha256 {
            // A shared key would give the client operators' rights.
            if others
                .admin
                .is_some_and(|admin| admin.keys().contains(digest))
            {
                problems.add(key("key_sha256"), "a digest that [admin] has already");
            }
            if let Some(other) = digests.insert(*digest, place) {
                problems.add(
                    key("key_sha256"),
                    format!("a digest that clients[{other}] has already"),
                );
            }
        }
        let Some(subject) = &client.certificate_subject else {
            continue;
        };
        if !asks_for_certificates {
            problems.add_depending(
                key("certificate_subject"),
                "needs server.tls.client_ca_file: nobody is asked for a certificate",
                &["server.tls"],
            );
        }
        if let Some(other) = subjects.insert(subject, place) {
            problems.add(
                key("certificate_subject"),
                format!("the same as clients[{other}].certificate_subject"),
            );
        }
    }
}

/// Whether a client may be called `name`.
///
/// # Errors
///
/// Says what was expected.
pub fn check_client_name(name: &str) -> Result<(), &'static str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if (1..=64).contains(&name.len()) && name.bytes().all(is_plain) {
        Ok(())
    } else {
        Err("expected 1 to 64 of A-Z a-z 0-9 . _ -")
    }
}

fn check_client(
    client: &ClientConfig,
    upstream: Option<&UpstreamConfig>,
    key: &dyn Fn(&str) -> String,
    problems: &mut Problems,
) {
    if let Err(text) = check_client_name(&client.name) {
        problems.add(key("name"), text);
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
        problems.add_depending(
            key("credential"),
            "required: no credential serves all of its spaces and none is named \"default\"",
            &["upstream.credentials", &key("spaces")],
        );
    }
}

/// A client needs at least one way to authenticate.
fn check_proof(
    client: &ClientConfig,
    auth: Option<&AuthConfig>,
    key: &dyn Fn(&str) -> String,
    problems: &mut Problems,
) {
    let named_elsewhere =
        client.certificate_subject.is_some() || auth.is_none_or(|auth| auth.jwt.is_some());
    match client.key_sha256.len() {
        1..=2 => {}
        0 if named_elsewhere => {}
        0 => problems.add_depending(
            key("key_sha256"),
            "required: this, certificate_subject or [auth.jwt]",
            &[&key("certificate_subject"), "auth.jwt"],
        ),
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
    match spaces {
        [one] if one == "*" => {}
        [] => problems.add(key, "expected space tokens, or [\"*\"] alone"),
        many if many.iter().any(|space| space == "*") => {
            problems.add(key, "expected space tokens, or [\"*\"] alone");
        }
        many => check_space_tokens(many, key, problems),
    }
}
