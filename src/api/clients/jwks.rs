//! An identity provider's public keys: the usable ones of its JWKS (RFC 7517).

use bytes::Bytes;
use jsonwebtoken::{
    Algorithm, DecodingKey, DecodingKeyKind, Header,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::Value;
use tracing::debug;

use super::signature::VerifyingKey;
use crate::telemetry::metrics::AuthFailure;

mod live;
mod source;

pub(super) use self::live::LiveKeys;
pub use self::live::{KeysHealth, KeysState};

/// RFC 7518 section 3.3 requires 2048; the library supports 4096 at most.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// The keys of one document.
#[derive(Debug)]
pub(super) struct KeySet {
    keys: Vec<ProviderKey>,
    /// The parsed JWKs, to see whether a document has changed.
    published: Vec<Jwk>,
    /// The whole document: a reload may allow other algorithms.
    document: Bytes,
}

#[derive(Debug)]
struct ProviderKey {
    id: Option<String>,
    key: VerifyingKey,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

impl KeySet {
    /// Parses a document. Keys that are not for signatures, or for other algorithms, are skipped.
    ///
    /// # Errors
    ///
    /// Returns the error of what is no JWKS at all.
    pub(super) fn parse(
        document: Bytes,
        algorithms: &[Algorithm],
    ) -> Result<Self, serde_json::Error> {
        let Document { keys } = serde_json::from_slice(&document)?;
        let mut set = Self {
            keys: Vec::new(),
            published: Vec::new(),
            document,
        };
        for (place, published) in keys.into_iter().enumerate() {
            let Some((jwk, key)) = usable(published, algorithms) else {
                debug!(
                    jwks.place = place,
                    "skipped an unusable key of the identity provider"
                );
                continue;
            };
            set.keys.push(ProviderKey {
                id: jwk.common.key_id.clone(),
                key,
            });
            set.published.push(jwk);
        }
        Ok(set)
    }

    /// The keys of the same document for other `algorithms`; `None` where it has none.
    fn for_algorithms(&self, algorithms: &[Algorithm]) -> Option<Self> {
        let keys = Self::parse(self.document.clone(), algorithms).ok();
        keys.filter(|keys| keys.len() > 0)
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The key that a token with this header claims to be signed by.
    ///
    /// # Errors
    ///
    /// Returns [`AuthFailure::UnknownKey`] where there is none, or where a header names none and several could be meant.
    pub(super) fn find(&self, header: &Header) -> Result<&VerifyingKey, AuthFailure> {
        let of_algorithm = |key: &&ProviderKey| key.key.algorithm() == header.alg;
        let Some(id) = &header.kid else {
            let mut candidates = self.keys.iter().filter(of_algorithm);
            return match (candidates.next(), candidates.next()) {
                (Some(only), None) => Ok(&only.key),
                _ => Err(AuthFailure::UnknownKey),
            };
        };
        let mut named = self.keys.iter().filter(|key| key.id.as_ref() == Some(id));
        // Keys of different kinds may share an id (RFC 7517 section 4.5).
        match named.clone().find(of_algorithm) {
            Some(key) => Ok(&key.key),
            None if named.next().is_some() => Err(AuthFailure::WrongAlgorithm),
            None => Err(AuthFailure::UnknownKey),
        }
    }
}

/// Equal if the published keys are.
impl PartialEq for KeySet {
    fn eq(&self, other: &Self) -> bool {
        self.published == other.published
    }
}

fn usable(published: Value, algorithms: &[Algorithm]) -> Option<(Jwk, VerifyingKey)> {
    let jwk: Jwk = serde_json::from_value(published).ok()?;
    let algorithm = pinned(&jwk).filter(|algorithm| algorithms.contains(algorithm))?;
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    if !is_for_signatures(&jwk) || !is_whole(&key, algorithm) {
        return None;
    }
    let key = VerifyingKey::new(algorithm, key)?;
    Some((jwk, key))
}

/// The only algorithm of a key, which follows from its type; `alg` may repeat it but not change it.
fn pinned(jwk: &Jwk) -> Option<Algorithm> {
    let of_kind = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
            Algorithm::ES256
        }
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            Algorithm::EdDSA
        }
        _ => return None,
    };
    let named = jwk.common.key_algorithm;
    named
        .is_none_or(|named| named == KeyAlgorithm::from(of_kind))
        .then_some(of_kind)
}

fn is_for_signatures(jwk: &Jwk) -> bool {
    let use_fits = jwk
        .common
        .public_key_use
        .as_ref()
        .is_none_or(|named| *named == PublicKeyUse::Signature);
    let operations_fit = jwk
        .common
        .key_operations
        .as_ref()
        .is_none_or(|named| named.contains(&KeyOperations::Verify));
    use_fits && operations_fit
}

/// Whether a key is of the length that its algorithm needs.
fn is_whole(key: &DecodingKey, algorithm: Algorithm) -> bool {
    match key.kind() {
        DecodingKeyKind::SecretOrDer(bytes) if algorithm == Algorithm::EdDSA => bytes.len() == 32,
        // The verifier checks whether it is a point on the curve.
        DecodingKeyKind::SecretOrDer(_) => true,
        DecodingKeyKind::RsaModulusExponent { n, .. } => RSA_BITS.contains(&bits(n)),
    }
}

fn bits(number: &[u8]) -> usize {
    let leading = number.iter().take_while(|byte| **byte == 0).count();
    let first = number.get(leading).map_or(0, |byte| byte.leading_zeros());
    8 * (number.len() - leading) - first as usize
}

#[cfg(test)]
mod tests;
