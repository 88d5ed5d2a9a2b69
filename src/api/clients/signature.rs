//! Signatures of tokens: a public key is pinned to the one algorithm it verifies, whatever a token's header says.

use std::time::Duration;

use jsonwebtoken::{
    Algorithm, DecodingKey, Validation, dangerous::insecure_decode_claims, decode,
    errors::ErrorKind,
};
use serde::de::{DeserializeOwned, IgnoredAny};

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

    /// What a verification takes of a core (measured).
    pub(super) fn cost(&self) -> Duration {
        Duration::from_micros(match self.algorithm {
            Algorithm::EdDSA => 45,
            Algorithm::RS256 => 210,
            // ES256; no key is pinned to any other.
            _ => 275,
        })
    }

    /// Proves that this key's holder signed `token`. Whether its claims hold is the caller's to judge.
    ///
    /// # Errors
    ///
    /// Returns why the signature proves nothing.
    pub(super) fn prove(&self, token: &[u8]) -> Result<(), AuthFailure> {
        // The library would judge the times by a clock of its own, and take a list of issuers.
        let mut signature_alone = Validation::new(self.algorithm);
        signature_alone.required_spec_claims.clear();
        signature_alone.validate_exp = false;
        signature_alone.validate_aud = false;
        decode::<IgnoredAny>(token, &self.key, &signature_alone)
            .map(drop)
            .map_err(|error| failure(&error))
    }
}

/// What `token` claims. Nothing of it may be believed before its signature is proven.
///
/// # Errors
///
/// Returns that it is no such set of claims.
pub(super) fn unproven_claims<T: DeserializeOwned>(token: &[u8]) -> Result<T, AuthFailure> {
    insecure_decode_claims(token).map_err(|error| failure(&error))
}

fn failure(error: &jsonwebtoken::errors::Error) -> AuthFailure {
    match error.kind() {
        ErrorKind::InvalidAlgorithm => AuthFailure::WrongAlgorithm,
        ErrorKind::InvalidSignature => AuthFailure::BadSignature,
        ErrorKind::Json(_) => AuthFailure::BadClaims,
        _ => AuthFailure::Malformed,
    }
}
