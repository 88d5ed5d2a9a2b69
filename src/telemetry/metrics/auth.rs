//! Authentication.

use prometheus_client::registry::Registry;

use super::declare::{CounterBy, label_values};

/// Failed authentications.
#[derive(Debug)]
pub struct AuthMetrics {
    failures: CounterBy,
}

impl AuthMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let counted = AuthFailure::ALL.into_iter();
        let counted = counted.filter(|reason| *reason != AuthFailure::KeysNotLoaded);
        Self {
            failures: CounterBy::new(
                registry,
                "auth_failures",
                "Failed authentications, by reason",
                "reason",
                counted.map(AuthFailure::as_str),
            ),
        }
    }

    pub fn failed(&self, reason: AuthFailure) {
        self.failures.inc(reason.as_str());
    }
}

label_values! {
    /// Why an authentication failed, as it is counted; clients do not learn it.
    pub enum AuthFailure {
        Missing = "missing",
        Malformed = "malformed",
        Unknown = "unknown",
        Expired = "expired",
        /// The identity provider's keys were not read yet. No failure of the client's, and not counted.
        KeysNotLoaded = "keys_not_loaded",
        /// A token's key is not among those known, or one of several could be meant.
        UnknownKey = "unknown_key",
        /// A token's algorithm is not its key's.
        WrongAlgorithm = "wrong_algorithm",
        BadSignature = "bad_signature",
        WrongIssuer = "wrong_issuer",
        WrongAudience = "wrong_audience",
        NotYetValid = "not_yet_valid",
        /// A claim is missing, or not of its type.
        BadClaims = "bad_claims",
        /// A token's claims name no client.
        UnknownClient = "unknown_client",
        RateLimited = "rate_limited",
    }
}
