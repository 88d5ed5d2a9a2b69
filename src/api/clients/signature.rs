//! Token signatures: each public key is pinned to one algorithm, whatever a token's header says.

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
    /// Pins `key` to `algorithm`; `None` if they do not fit.
    ///
    /// The caller has checked that an Ed25519 key has 32 bytes: the library panics on a shorter one.
    pub(super) fn new(algorithm: Algorithm, key: DecodingKey) -> Option<Self> {
        // Builds the verifier, which rejects a point off its curve; the result for an empty signature does not matter.
        jsonwebtoken::crypto::verify("", b"", &key, algorithm).ok()?;
        Some(Self { algorithm, key })
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The CPU time of a verification, as measured.
    pub(super) fn cost(&self) -> Duration {
        Duration::from_micros(match self.algorithm {
            Algorithm::EdDSA => 45,
            Algorithm::RS256 => 210,
            // ES256, the only other algorithm.
            _ => 275,
        })
    }

    /// Verifies the signature of `token`. The caller checks its claims.
    ///
    /// # Errors
    ///
    /// Returns why the signature proves nothing.
    pub(super) fn prove(&self, token: &[u8]) -> Result<(), AuthFailure> {
        // The library would check times by its own clock, and accept a list of issuers.
        let mut signature_alone = Validation::new(self.algorithm);
        signature_alone.required_spec_claims.clear();
        signature_alone.validate_exp = false;
        signature_alone.validate_aud = false;
        decode::<IgnoredAny>(token, &self.key, &signature_alone)
            .map(drop)
            .map_err(|error| failure(&error))
    }
}

/// The claims of `token`, not to be trusted before its signature is verified.
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
