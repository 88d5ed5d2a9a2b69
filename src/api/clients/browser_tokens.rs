//! Browser tokens: short-lived, for named spaces, signed by the gateway itself for a frontend that must not hold a client's key.
//!
//! They are JWTs with their own type, issuer, audience and keys.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ed25519_dalek::pkcs8::EncodePrivateKey;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    client::{AllowedSpaces, Client},
    proof::Proof,
    signature::{VerifyingKey, unproven_claims},
};
use crate::{
    config::{BrowserTokensConfig, Problems},
    domain::SpaceToken,
    telemetry::metrics::AuthFailure,
};

const TYPE: &str = "ugwb+jwt";
const ISSUER: &str = "unpod-gateway";
const AUDIENCE: &str = "unpod-gateway/browser";

/// Mints browser tokens, and verifies them.
#[derive(Debug)]
pub struct BrowserTokens {
    id: String,
    signing: EncodingKey,
    /// Verifying keys by their ids, its own first.
    verifying: Vec<(String, VerifyingKey)>,
    max_ttl: Duration,
}

/// A token and its expiry.
#[derive(Clone, Debug)]
pub struct Minted {
    pub token: String,
    pub expires_at: SystemTime,
}

/// A token's claims. Unknown ones might narrow it, so they are refused rather than ignored.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Claims {
    iss: String,
    aud: String,
    /// The client that minted it.
    sub: String,
    spaces: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    view: Option<String>,
    /// The minter's own view at that time; it stays in force if the minter's is widened or removed. Required: earlier versions left it
    /// out, and nobody knows what such a token may show.
    #[serde(deserialize_with = "Option::deserialize")]
    minter_view: Option<String>,
    iat: u64,
    exp: u64,
}

impl BrowserTokens {
    /// Reads the keys of `config`.
    ///
    /// # Errors
    ///
    /// Returns what is wrong with their files.
    pub(super) fn new(config: &BrowserTokensConfig) -> Result<Self, Problems> {
        let keys = config.read_keys()?;
        let own = keys.signing.verifying_key();
        let der = keys.signing.to_pkcs8_der();
        let der = der.expect("a key that was read can be written");
        let verifying = std::iter::once(&own).chain(&keys.older).map(|key| {
            let verifying = DecodingKey::from_ed_der(key.as_bytes());
            let verifying = VerifyingKey::new(Algorithm::EdDSA, verifying);
            (
                id(key),
                verifying.expect("the key was read as one of Ed25519"),
            )
        });
        Ok(Self {
            id: id(&own),
            signing: EncodingKey::from_ed_der(der.as_bytes()),
            verifying: verifying.collect(),
            max_ttl: config.max_ttl,
        })
    }

    pub(super) fn judge_like(&self, other: &Self) -> bool {
        // An id is the digest of its key.
        let ids = |tokens: &Self| -> Vec<String> {
            let keys = tokens.verifying.iter();
            keys.map(|(id, _)| id.clone()).collect()
        };
        ids(self) == ids(other) && self.max_ttl == other.max_ttl
    }

    /// A token for `spaces`, which the caller has checked to be `minter`'s. It expires after `ttl`, at most `max_ttl`, and no later than
    /// its minter.
    #[must_use]
    pub fn mint(
        &self,
        minter: &Client,
        spaces: &BTreeSet<SpaceToken>,
        view: Option<String>,
        ttl: Duration,
        now: SystemTime,
    ) -> Minted {
        let ends = now + ttl.min(self.max_ttl);
        let ends = minter.expires.map_or(ends, |expires| expires.min(ends));
        // Whole seconds, so that the claim and the response agree.
        let exp = unix_seconds(ends);
        let claims = Claims {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            sub: minter.name().to_string(),
            spaces: spaces
                .iter()
                .map(|space| space.as_str().to_owned())
                .collect(),
            view,
            minter_view: minter.view_name.as_deref().map(str::to_owned),
            iat: unix_seconds(now),
            exp,
        };
        let header = Header {
            typ: Some(TYPE.to_owned()),
            kid: Some(self.id.clone()),
            ..Header::new(Algorithm::EdDSA)
        };
        let token = jsonwebtoken::encode(&header, &claims, &self.signing);
        Minted {
            token: token.expect("an Ed25519 key signs whatever it is given"),
            expires_at: UNIX_EPOCH + Duration::from_secs(exp),
        }
    }

    /// What `token` proves at `now`.
    ///
    /// # Errors
    ///
    /// Returns why it proves nothing.
    pub(super) fn verify(
        &self,
        token: &[u8],
        header: &Header,
        now: SystemTime,
        may_verify: impl FnOnce(Duration) -> bool,
    ) -> Result<Proof, AuthFailure> {
        let mut known = self.verifying.iter();
        let (_, key) = known
            .find(|(id, _)| header.kid.as_ref() == Some(id))
            .ok_or(AuthFailure::UnknownKey)?;
        let claims: Claims = unproven_claims(token)?;
        if claims.iss != ISSUER {
            return Err(AuthFailure::WrongIssuer);
        }
        if claims.aud != AUDIENCE {
            return Err(AuthFailure::WrongAudience);
        }
        let expires = UNIX_EPOCH.checked_add(Duration::from_secs(claims.exp));
        let expires = expires.ok_or(AuthFailure::BadClaims)?;
        if expires <= now {
            return Err(AuthFailure::Expired);
        }
        if !may_verify(key.cost()) {
            return Err(AuthFailure::RateLimited);
        }
        key.prove(token)?;
        let spaces = claims.spaces.iter();
        let spaces = spaces.filter_map(|space| SpaceToken::new(space).ok());
        Ok(Proof {
            client: claims.sub,
            spaces: AllowedSpaces::Named(spaces.collect()),
            expires,
            leeway: Duration::ZERO,
            views: claims.minter_view.into_iter().chain(claims.view).collect(),
        })
    }
}

/// Whether the header is that of a browser token.
pub(super) fn is_one(header: &Header) -> bool {
    header.typ.as_deref() == Some(TYPE)
}

/// A key's id: a digest of the public key.
fn id(key: &ed25519_dalek::VerifyingKey) -> String {
    let digest = Sha256::digest(key.as_bytes());
    digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
