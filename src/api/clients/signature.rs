//! Signatures of tokens: a public key is pinned to the one algorithm it verifies, whatever a token's header says.

use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, errors::ErrorKind};
use serde::de::DeserializeOwned;

use crate::telemetry::metrics::AuthFailure;

/// A public key and its algorithm.
#[derive(Debug)]
pub(super) struct VerifyingKey {
    algorithm: Algorithm,
    key: DecodingKey,
}

impl VerifyingKey {
    /// Pins `key` to `algorithm`; `None` where it cannot be used with it.
    ///
    /// An Ed25519 key must have been seen to have 32 bytes: the library takes them from a shorter one by a panic.
    pub(super) fn new(algorithm: Algorithm, key: DecodingKey) -> Option<Self> {
        // Builds the verifier, which is where a point off its curve shows; no signature is empty, so the outcome is not.
        jsonwebtoken::crypto::verify("", b"", &key, algorithm).ok()?;
        Some(Self { algorithm, key })
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// What `token` claims, once its signature is proven. Whether the claims hold is the caller's to judge.
    ///
    /// # Errors
    ///
    /// Returns why the signature proves nothing, or that what it signs is no such set of claims.
    pub(super) fn claims<T: DeserializeOwned>(&self, token: &[u8]) -> Result<T, AuthFailure> {
        // The library would judge the times by a clock of its own, and take a list of issuers.
        let mut signature_alone = Validation::new(self.algorithm);
        signature_alone.required_spec_claims.clear();
        signature_alone.validate_exp = false;
        signature_alone.validate_aud = false;
        match decode(token, &self.key, &signature_alone) {
            Ok(token) => Ok(token.claims),
            Err(error) => Err(match error.kind() {
                ErrorKind::InvalidAlgorithm => AuthFailure::WrongAlgorithm,
                ErrorKind::InvalidSignature => AuthFailure::BadSignature,
                ErrorKind::Json(_) => AuthFailure::BadClaims,
                _ => AuthFailure::Malformed,
            }),
        }
    }
}
