//! Who may call: the configured clients, found by the digest of their key or by a name in their certificate.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::SystemTime,
};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::{
    api::peer::ClientCertificate,
    config::{ClientConfig, value::CertificateSubject},
    domain::SpaceToken,
    telemetry::metrics::AuthFailure,
    upstream::{Credential, Credentials},
};

/// A caller with an identity of its own.
#[derive(Debug)]
pub struct Client {
    pub name: Arc<str>,
    spaces: AllowedSpaces,
    /// For all of its spaces, where one is named.
    credential: Option<Arc<Credential>>,
    /// Where it names none: all, of the same configuration.
    credentials: Arc<Credentials>,
    /// Whether it may cause upstream calls beyond those that an ordinary miss costs.
    pub may_refresh: bool,
    expires: Option<SystemTime>,
}

/// The spaces a caller may read.
#[derive(Clone, Debug)]
pub enum AllowedSpaces {
    All,
    Named(HashSet<SpaceToken>),
}

impl AllowedSpaces {
    #[must_use]
    pub fn contains(&self, space: &SpaceToken) -> bool {
        match self {
            Self::All => true,
            Self::Named(named) => named.contains(space),
        }
    }

    /// What both allow.
    #[must_use]
    fn narrowed(&self, to: &Self) -> Self {
        match (self, to) {
            (Self::All, other) | (other, Self::All) => other.clone(),
            (Self::Named(ours), Self::Named(theirs)) => {
                Self::Named(ours.intersection(theirs).cloned().collect())
            }
        }
    }
}

impl Client {
    /// Whether it may read `space`.
    #[must_use]
    pub fn may_read(&self, space: &SpaceToken) -> bool {
        self.spaces.contains(space)
    }

    /// The credential its reading of `space` is done with.
    #[must_use]
    pub fn credential(&self, space: &SpaceToken) -> Option<&Arc<Credential>> {
        self.credential
            .as_ref()
            .or_else(|| self.credentials.serving(space))
    }

    /// This client as a token narrows it: under the same name, in no more than `spaces`.
    #[must_use]
    pub fn narrowed(&self, spaces: &AllowedSpaces) -> Self {
        Self {
            name: self.name.clone(),
            spaces: self.spaces.narrowed(spaces),
            credential: self.credential.clone(),
            credentials: self.credentials.clone(),
            ..*self
        }
    }

    fn is_expired(&self, now: SystemTime) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}

/// All clients, and the credentials their spaces are read with.
#[derive(Debug)]
pub struct Clients {
    by_digest: HashMap<[u8; 32], Arc<Client>>,
    by_subject: HashMap<CertificateSubject, Arc<Client>>,
    credentials: Arc<Credentials>,
}

impl Clients {
    #[must_use]
    pub fn new(configured: &[ClientConfig], credentials: Credentials) -> Self {
        let credentials = Arc::new(credentials);
        let mut by_digest = HashMap::new();
        let mut by_subject = HashMap::new();
        for section in configured {
            let client = Arc::new(client(section, &credentials));
            for digest in &section.key_sha256 {
                by_digest.insert(digest.0, client.clone());
            }
            if let Some(subject) = &section.certificate_subject {
                by_subject.insert(subject.clone(), client);
            }
        }
        Self {
            by_digest,
            by_subject,
            credentials,
        }
    }

    /// The client that `authorization`, a field value, proves to be there.
    ///
    /// Every refusal costs the same: one digest, one look-up, one comparison.
    ///
    /// # Errors
    ///
    /// Returns the reason, for metrics alone.
    pub fn authenticate(
        &self,
        authorization: Option<&[u8]>,
        now: SystemTime,
    ) -> Result<&Arc<Client>, AuthFailure> {
        let presented = match authorization {
            None => Err(AuthFailure::Missing),
            Some(value) => key(value).ok_or(AuthFailure::Malformed),
        };
        let digest: [u8; 32] = Sha256::digest(presented.unwrap_or_default()).into();
        let known = self.by_digest.get_key_value(&digest);
        // The look-up ends early on a digest that differs, and tells nothing by it: who could choose digests would have
        // broken SHA-256. The comparison that admits is constant in time all the same.
        let (stored, client) = match known {
            Some((stored, client)) => (*stored, Some(client)),
            None => ([0; 32], None),
        };
        let same: bool = stored.ct_eq(&digest).into();
        presented?;
        let client = client.filter(|_| same).ok_or(AuthFailure::Unknown)?;
        if client.is_expired(now) {
            return Err(AuthFailure::Expired);
        }
        Ok(client)
    }

    /// The client that `certificate` names. None if it names two: the order of its names should decide nothing.
    ///
    /// # Errors
    ///
    /// Returns the reason, for metrics alone.
    pub fn recognize(
        &self,
        certificate: &ClientCertificate,
        now: SystemTime,
    ) -> Result<&Arc<Client>, AuthFailure> {
        let mut named = certificate
            .subjects
            .iter()
            .filter_map(|subject| self.by_subject.get(subject));
        let client = named.next().ok_or(AuthFailure::Unknown)?;
        if !named.all(|other| Arc::ptr_eq(other, client)) {
            return Err(AuthFailure::Unknown);
        }
        // A connection may outlive the certificate it began with.
        if certificate.not_after < now || client.is_expired(now) {
            return Err(AuthFailure::Expired);
        }
        Ok(client)
    }

    #[must_use]
    pub fn credentials(&self) -> &Arc<Credentials> {
        &self.credentials
    }
}

fn client(section: &ClientConfig, credentials: &Arc<Credentials>) -> Client {
    let spaces = if section.spaces.iter().any(|space| space == "*") {
        AllowedSpaces::All
    } else {
        let named = section.spaces.iter();
        AllowedSpaces::Named(
            named
                .filter_map(|space| SpaceToken::new(space).ok())
                .collect(),
        )
    };
    Client {
        name: section.name.as_str().into(),
        spaces,
        credential: section
            .credential
            .as_deref()
            .and_then(|name| credentials.named(name))
            .cloned(),
        credentials: credentials.clone(),
        may_refresh: section.may_refresh,
        expires: section.expires.map(|expires| expires.0),
    }
}

/// The key within `Token <key>` or `Bearer <key>`, the scheme in any case (RFC 9110 section 11.1).
fn key(value: &[u8]) -> Option<&[u8]> {
    let space = value.iter().position(|byte| *byte == b' ')?;
    let (scheme, rest) = value.split_at(space);
    let known = scheme.eq_ignore_ascii_case(b"token") || scheme.eq_ignore_ascii_case(b"bearer");
    let key = rest.trim_ascii();
    (known && !key.is_empty() && !key.contains(&b' ')).then_some(key)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::config::Config;

    /// Seconds since 1970.
    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// Clients known by these names; the last is one until second 50.
    fn certified() -> Clients {
        let upstream = "[upstream]\nbase_url = 'https://unpod.example'\n[upstream.credentials.default]\ntoken = 'abc'";
        let config = Config::from_toml(upstream).unwrap();
        let client = |name: &str, rest: &str| -> ClientConfig {
            let text = format!("name = '{name}'\nspaces = ['*']\n{rest}");
            toml::from_str(&text).unwrap()
        };
        let clients = [
            client("uri", "certificate_subject = 'urn:one'"),
            client("dns", "certificate_subject = 'one.internal'"),
            client(
                "expiring",
                "certificate_subject = 'two.internal'\nexpires = '1970-01-01T00:00:50Z'",
            ),
        ];
        Clients::new(&clients, Credentials::load(&config.upstream).unwrap())
    }

    #[test]
    fn a_certificate_names_one_client_for_as_long_as_both_last() {
        let clients = certified();
        let table: &[(&[&str], u64, Result<&str, AuthFailure>)] = &[
            (&["urn:one"], 10, Ok("uri")),
            (&["urn:other", "CN=x", "urn:one"], 10, Ok("uri")),
            (&["one.internal", "ONE.internal"], 10, Ok("dns")),
            (&["two.internal"], 49, Ok("expiring")),
            (&["two.internal"], 50, Err(AuthFailure::Expired)),
            (&["urn:one"], 100, Ok("uri")),
            (&["urn:one"], 101, Err(AuthFailure::Expired)),
            (&[], 10, Err(AuthFailure::Unknown)),
            (&["one"], 10, Err(AuthFailure::Unknown)),
            (&["CN=one.internal"], 10, Err(AuthFailure::Unknown)),
            (&["urn:one", "one.internal"], 10, Err(AuthFailure::Unknown)),
        ];
        for (subjects, now, expected) in table {
            let certificate = ClientCertificate {
                subjects: subjects.iter().map(|name| name.parse().unwrap()).collect(),
                not_after: at(100),
            };
            let named = clients.recognize(&certificate, at(*now));
            let named = named.map(|client| client.name.as_ref());
            assert_eq!(named, *expected, "{subjects:?} at {now}");
        }
    }

    #[test]
    fn a_key_is_read_from_two_schemes_and_nowhere_else() {
        for (value, expected) in [
            ("Token abc", Some("abc")),
            ("bearer abc", Some("abc")),
            ("TOKEN   abc ", Some("abc")),
            ("Basic abc", None),
            ("Token", None),
            ("Token ", None),
            ("abc", None),
            ("Token a b", None),
            ("Tokenabc", None),
        ] {
            assert_eq!(
                key(value.as_bytes()),
                expected.map(str::as_bytes),
                "{value}"
            );
        }
    }
}
