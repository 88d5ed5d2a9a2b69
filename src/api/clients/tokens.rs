//! Tokens that name a client: recognised by their form, verified once, and cached until they expire.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use jsonwebtoken::decode_header;
use moka::sync::Cache;

use super::{
    browser_tokens::{self, BrowserTokens},
    client::Client,
    jwks::KeysHealth,
    jwt::IdentityProvider,
    proof::{Proof, ProvenBy},
};
use crate::{
    config::{AuthConfig, Problems},
    telemetry::metrics::AuthFailure,
};

/// Cached tokens, where each named space counts as one more: some 10 MiB.
const MOST_REMEMBERED: u64 = 100_000;
/// How long an unused token stays cached.
const REMEMBERED_FOR: Duration = Duration::from_secs(10 * 60);

/// The issuers of accepted tokens; clones share the keys.
#[derive(Clone, Debug, Default)]
pub struct Issuers {
    provider: Option<Arc<IdentityProvider>>,
    browser_tokens: Option<Arc<BrowserTokens>>,
}

impl Issuers {
    /// The issuers of `config`. An identity provider's keys are taken over from `running`; those of browser tokens are read again.
    ///
    /// # Errors
    ///
    /// Returns what is wrong with a file of keys.
    ///
    /// # Panics
    ///
    /// Panics outside a runtime where an identity provider is configured: its keys are kept fresh by a task.
    pub fn load(config: &AuthConfig, running: Option<&Self>) -> Result<Self, Problems> {
        let running = running.and_then(|running| running.provider.as_deref());
        let provider = match &config.jwt {
            None => None,
            Some(section) => Some(Arc::new(IdentityProvider::new(section, running)?)),
        };
        let browser_tokens = match &config.browser_tokens {
            None => None,
            Some(section) => Some(Arc::new(BrowserTokens::new(section)?)),
        };
        Ok(Self {
            provider,
            browser_tokens,
        })
    }

    /// The issuer of browser tokens, if configured.
    #[must_use]
    pub fn browser_tokens(&self) -> Option<&BrowserTokens> {
        self.browser_tokens.as_deref()
    }

    /// Whether both accept the same tokens, apart from an identity provider's key changes.
    fn judge_like(&self, other: &Self) -> bool {
        let provider = match (&self.provider, &other.provider) {
            (None, None) => true,
            (Some(ours), Some(theirs)) => ours.judges_like(theirs),
            (None, Some(_)) | (Some(_), None) => false,
        };
        let browser_tokens = match (&self.browser_tokens, &other.browser_tokens) {
            (None, None) => true,
            (Some(ours), Some(theirs)) => ours.judge_like(theirs),
            (None, Some(_)) | (Some(_), None) => false,
        };
        provider && browser_tokens
    }

    /// The state of the identity provider's keys, if one is configured.
    #[must_use]
    pub fn keys_health(&self) -> Option<KeysHealth> {
        self.provider
            .as_ref()
            .map(|provider| provider.keys().health())
    }

    /// Reads the identity provider's keys again in the background, after a change of their file.
    pub fn reload_keys(&self) {
        if let Some(provider) = &self.provider {
            provider.keys().reload();
        }
    }
}

/// Verifies tokens, and caches the results.
///
/// Verification is pure CPU time and runs on the request's thread, once for each token. Claims are checked first, so that forged tokens
/// rarely get as far as a signature.
#[derive(Debug)]
pub(super) struct Tokens {
    issuers: Issuers,
    /// By the SHA-256 of the whole token.
    verdicts: Cache<[u8; 32], Verdict>,
    /// Counts the configurations that have shared the cache.
    configuration: u64,
}

/// What a token proves, and the narrowed client of the configuration that last used it.
#[derive(Clone, Debug)]
struct Verdict {
    proof: Arc<Proof>,
    proven_by: ProvenBy,
    client: Arc<Client>,
    configuration: u64,
}

impl Tokens {
    /// Keeps the cache of `previous` if the issuers are the same.
    pub(super) fn new(issuers: Issuers, previous: Option<&Self>) -> Self {
        if let Some(previous) = previous.filter(|previous| previous.issuers.judge_like(&issuers)) {
            return Self {
                issuers,
                verdicts: previous.verdicts.clone(),
                configuration: previous.configuration + 1,
            };
        }
        let verdicts = Cache::builder()
            .max_capacity(MOST_REMEMBERED)
            .weigher(|_, verdict: &Verdict| 1 + verdict.client.spaces.count())
            .time_to_idle(REMEMBERED_FOR)
            .build();
        Self {
            issuers,
            verdicts,
            configuration: 0,
        }
    }

    pub(super) fn issuers(&self) -> &Issuers {
        &self.issuers
    }

    /// The client of `token`, whose digest is `digest`; `admit` makes a client of what it proves.
    ///
    /// # Errors
    ///
    /// Returns the reason, for metrics alone.
    pub(super) fn client(
        &self,
        token: &[u8],
        digest: [u8; 32],
        now: SystemTime,
        may_verify: impl FnOnce(Duration) -> bool,
        admit: impl FnOnce(&Proof, &ProvenBy) -> Result<Client, AuthFailure>,
    ) -> Result<Arc<Client>, AuthFailure> {
        if !is_compact(token) {
            return Err(AuthFailure::Unknown);
        }
        let (proof, proven_by) = match self.remembered(&digest, now) {
            Some(verdict) if verdict.configuration == self.configuration => {
                return Ok(verdict.client);
            }
            // The client is derived again, the signature not verified again.
            Some(verdict) => (verdict.proof, verdict.proven_by),
            None => {
                let (proof, proven_by) = self.verify(token, now, may_verify)?;
                (Arc::new(proof), proven_by)
            }
        };
        let client = Arc::new(admit(&proof, &proven_by)?);
        if proof.expires > now {
            let verdict = Verdict {
                proof,
                proven_by,
                client: client.clone(),
                configuration: self.configuration,
            };
            self.verdicts.insert(digest, verdict);
        }
        Ok(client)
    }

    /// Verifies a token with the issuer that its type names: neither kind can pass for the other.
    fn verify(
        &self,
        token: &[u8],
        now: SystemTime,
        may_verify: impl FnOnce(Duration) -> bool,
    ) -> Result<(Proof, ProvenBy), AuthFailure> {
        let Issuers {
            provider,
            browser_tokens,
        } = &self.issuers;
        if provider.is_none() && browser_tokens.is_none() {
            return Err(AuthFailure::Unknown);
        }
        let header = decode_header(token).map_err(|_| AuthFailure::Malformed)?;
        // `crit` lists extensions that must be understood, and we know none (RFC 7515 section 4.1.11).
        if header.crit.is_some() {
            return Err(AuthFailure::Malformed);
        }
        if browser_tokens::is_one(&header) {
            let issuer = browser_tokens.as_ref().ok_or(AuthFailure::Unknown)?;
            let proof = issuer.verify(token, &header, now, may_verify)?;
            return Ok((proof, ProvenBy::Gateway));
        }
        let issuer = provider.as_ref().ok_or(AuthFailure::Unknown)?;
        let (proof, keys) = issuer.verify(token, &header, now, may_verify)?;
        Ok((proof, ProvenBy::Provider(keys)))
    }

    /// The cached result, while the token has not expired and its key is still in force.
    fn remembered(&self, digest: &[u8; 32], now: SystemTime) -> Option<Verdict> {
        let verdict = self.verdicts.get(digest)?;
        if verdict.proof.expires > now && self.is_in_force(&verdict.proven_by) {
            return Some(verdict);
        }
        self.verdicts.invalidate(digest);
        None
    }

    fn is_in_force(&self, proven_by: &ProvenBy) -> bool {
        match proven_by {
            // A change of its keys clears the cache.
            ProvenBy::Gateway => true,
            ProvenBy::Provider(keys) => {
                let provider = self.issuers.provider.as_ref();
                let current = provider.and_then(|provider| provider.keys().current());
                current.is_some_and(|current| Arc::ptr_eq(&current, keys))
            }
        }
    }
}

/// Whether `token` has the form of a signed JWT: three base64url parts separated by dots.
fn is_compact(token: &[u8]) -> bool {
    let parts = token.split(|byte| *byte == b'.');
    let is_base64url = |part: &[u8]| {
        !part.is_empty()
            && part
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte))
    };
    parts.clone().count() == 3 && parts.clone().all(is_base64url)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{NOW, Provider, asks, at, clients};
    use super::*;

    fn digest(token: &str) -> [u8; 32] {
        use sha2::{Digest, Sha256};
        Sha256::digest(token).into()
    }

    #[tokio::test]
    async fn a_verdict_is_remembered_until_its_token_ends_and_not_a_moment_longer() {
        let provider = Provider::new();
        let clients = clients(&provider.config(), None);
        let token = provider.token(&json!({"exp": NOW + 60}));
        let remembered = |at: SystemTime| clients.tokens.remembered(&digest(&token), at).is_some();

        assert!(!remembered(at(NOW)));
        asks(&clients, &token, NOW).unwrap();
        assert!(remembered(at(NOW)));
        assert!(remembered(at(NOW + 60) - Duration::from_nanos(1)));
        assert!(!remembered(at(NOW + 60)));
        // Taken by the leeway, but not remembered for it.
        asks(&clients, &token, NOW + 60).unwrap();
        assert!(!remembered(at(NOW)));
    }

    #[tokio::test]
    async fn what_is_refused_is_not_remembered() {
        let provider = Provider::new();
        let clients = clients(&provider.config(), None);
        for changes in [json!({"sub": "nobody"}), json!({"exp": NOW - 60})] {
            let token = provider.token(&changes);
            asks(&clients, &token, NOW).unwrap_err();
            assert!(clients.tokens.remembered(&digest(&token), at(0)).is_none());
        }
    }

    #[test]
    fn a_token_is_told_by_its_three_parts() {
        for good in ["a.b.c", "eyJ.e30.AA-_", "0.0.0"] {
            assert!(is_compact(good.as_bytes()), "{good}");
        }
        for other in [
            "", "a", "a.b", "a.b.", ".b.c", "a..c", "a.b.c.d", "a.b.c=", "a.b/c.d", "a.b.ä",
        ] {
            assert!(!is_compact(other.as_bytes()), "{other}");
        }
    }
}
