//! The clients, found by the digest of their key, by a name in their certificate, or by a token.

use std::{
    cell::LazyCell,
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use foldhash::quality::RandomState;

use super::{
    key::{digest, is_same, scheme_and_word},
    rate_limit::Limiter,
};
use crate::{
    config::{ClientConfig, Field, ViewConfig, ViewsConfig, value::CertificateSubject},
    domain::{View, ViewSet},
    peer::ClientCertificate,
    shared::{RedisConnection, SharedLimit},
    telemetry::metrics::AuthFailure,
    upstream::Credentials,
};

mod browser_tokens;
mod client;
mod jwks;
mod jwt;
mod proof;
mod signature;
mod tokens;

pub use self::{
    browser_tokens::{BrowserTokens, Minted},
    client::{AllowedSpaces, Client, Right},
    jwks::{KeysHealth, KeysState},
    tokens::Issuers,
};
use self::{
    proof::{Proof, ProvenBy},
    tokens::Tokens,
};

/// The name of a client's own limit in `RateLimit`.
const CLIENT_LIMIT: &str = "default";

/// All clients, and the credentials used for their spaces.
#[derive(Debug)]
pub struct Clients {
    by_digest: HashMap<[u8; 32], Arc<Client>, RandomState>,
    by_subject: HashMap<CertificateSubject, Arc<Client>>,
    by_name: HashMap<Arc<str>, Arc<Client>>,
    credentials: Arc<Credentials>,
    views: HashMap<String, ViewSet>,
    /// By the name of the client that each belongs to.
    limiters: HashMap<Arc<str>, Arc<Limiter>>,
    tokens: Tokens,
}

impl Clients {
    /// The configured clients, also found by tokens of `issuers`. An unchanged rate limit keeps its state of `previous`, and while the
    /// issuers are unchanged so do verified tokens.
    #[must_use]
    pub fn new(
        configured: &[ClientConfig],
        views: &ViewsConfig,
        credentials: Credentials,
        issuers: Issuers,
        previous: Option<&Self>,
    ) -> Self {
        let credentials = Arc::new(credentials);
        let views: HashMap<_, _> = views
            .iter()
            .map(|(name, view)| (name.clone(), view_set(view)))
            .collect();
        let mut by_digest = HashMap::default();
        let mut by_subject = HashMap::new();
        let mut by_name = HashMap::new();
        let mut limiters = HashMap::new();
        for section in configured {
            let mut client = Client::new(section, &views, &credentials);
            // Its requests under way still count.
            if let Some(before) = previous.and_then(|clients| clients.by_name.get(client.name())) {
                client.account = before.account.clone();
            }
            if let Some(limit) = &section.rate_limit {
                let before = previous.and_then(|clients| clients.limiters.get(client.name()));
                let limiter = before
                    .filter(|limiter| limiter.config() == limit)
                    .cloned()
                    .unwrap_or_else(|| Arc::new(Limiter::new(CLIENT_LIMIT, limit)));
                limiters.insert(client.name().clone(), limiter.clone());
                client = client.limited_by(limiter);
            }
            let client = Arc::new(client);
            for digest in &section.key_sha256 {
                by_digest.insert(digest.0, client.clone());
            }
            if let Some(subject) = &section.certificate_subject {
                by_subject.insert(subject.clone(), client.clone());
            }
            by_name.insert(client.name().clone(), client);
        }
        Self {
            by_digest,
            by_subject,
            by_name,
            credentials,
            views,
            limiters,
            tokens: Tokens::new(issuers, previous.map(|previous| &previous.tokens)),
        }
    }

    /// The client that the value of `Authorization` authenticates.
    ///
    /// Every refused key costs the same: one digest, one look-up, one comparison. A token that is not known yet is verified if its claims
    /// are right and `may_verify` allows the time.
    ///
    /// # Errors
    ///
    /// Returns the reason, for metrics alone.
    pub fn authenticate(
        &self,
        authorization: Option<&[u8]>,
        now: impl FnOnce() -> SystemTime,
        may_verify: impl FnOnce(Duration) -> bool,
    ) -> Result<Arc<Client>, AuthFailure> {
        // Read at most once: most keys never expire, and reading the clock is 0.5 % of a hit.
        let now = LazyCell::new(now);
        let presented = match authorization {
            None => Err(AuthFailure::Missing),
            Some(value) => key(value).ok_or(AuthFailure::Malformed),
        };
        let digest = digest(presented.unwrap_or_default());
        let known = self.by_digest.get_key_value(&digest);
        // The look-up's timing reveals nothing useful: nobody can choose SHA-256 digests. The comparison is constant-time all the same.
        let (stored, client) = match known {
            Some((stored, client)) => (*stored, Some(client)),
            None => ([0; 32], None),
        };
        let same = is_same(&stored, &digest);
        let presented = presented?;
        let known = client.filter(|_| same);
        if let Some(client) = known.filter(|client| !client.is_expired(|| *now)) {
            return Ok(client.clone());
        }
        let admit = |proof: &Proof, by: &ProvenBy| self.admit(proof, by);
        let by_token = self
            .tokens
            .client(presented, digest, *now, may_verify, admit);
        // Only here, so that an expired key costs as much as an unknown one.
        if known.is_some() {
            return Err(AuthFailure::Expired);
        }
        by_token.and_then(|client| {
            let is_expired = client.is_expired(|| *now);
            (!is_expired).then_some(client).ok_or(AuthFailure::Expired)
        })
    }

    /// The client that `certificate` names. None if it names two: the order of its names must not decide.
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
        // A connection may outlive its certificate.
        if certificate.not_after < now || client.is_expired(|| now) {
            return Err(AuthFailure::Expired);
        }
        Ok(client)
    }

    /// The client that a token names, narrowed to what the token allows.
    fn admit(&self, proof: &Proof, proven_by: &ProvenBy) -> Result<Client, AuthFailure> {
        let client = self.by_name.get(proof.client.as_str());
        let client = client.ok_or(AuthFailure::UnknownClient)?;
        let until = proof.expires + proof.leeway;
        let admitted = match proven_by {
            ProvenBy::Provider(_) => client.narrowed(&proof.spaces, until),
            ProvenBy::Gateway => client.in_browser(&proof.spaces, until),
        };
        proof.views.iter().try_fold(admitted, |admitted, name| {
            // A removed view must not show more.
            let view = self.view(name).ok_or(AuthFailure::BadClaims)?;
            Ok(admitted.seeing(view))
        })
    }

    #[must_use]
    pub fn credentials(&self) -> &Arc<Credentials> {
        &self.credentials
    }

    /// The configured client of this name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Arc<Client>> {
        self.by_name.get(name)
    }

    /// When each client's key expires, of those whose key does.
    pub fn expiries(&self) -> impl Iterator<Item = (&Arc<str>, SystemTime)> {
        let clients = self.by_name.values();
        clients.filter_map(|client| Some((client.name(), client.expires?)))
    }

    /// The view of this name.
    #[must_use]
    pub fn view(&self, name: &str) -> Option<&ViewSet> {
        self.views.get(name)
    }

    /// Shares the rate limits with all replicas behind `redis`.
    pub fn share_limits(&self, redis: &Arc<RedisConnection>) {
        for (client, limiter) in &self.limiters {
            limiter.share(|| SharedLimit::new(redis.clone(), client));
        }
    }

    /// For the next configuration's clients, which may keep the keys.
    #[must_use]
    pub fn issuers(&self) -> &Issuers {
        self.tokens.issuers()
    }
}

/// The key within `Token <key>` or `Bearer <key>`, the scheme in any case (RFC 9110 section 11.1).
fn key(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = scheme_and_word(value)?;
    let known = scheme.eq_ignore_ascii_case(b"token") || scheme.eq_ignore_ascii_case(b"bearer");
    known.then_some(key)
}

fn view_set(config: &ViewConfig) -> ViewSet {
    let view = |fields: &[Field]| View::new(fields.iter().map(|field| &field.0));
    let runs = config.runs.as_ref().map(|runs| view(&runs.fields));
    ViewSet::new(view(&config.fields), runs)
}

#[cfg(test)]
mod tests;
