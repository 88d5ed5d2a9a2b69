//! Authentication.

use prometheus_client::registry::Registry;

use super::declare::CounterBy;

/// Failed authentications.
#[derive(Debug)]
pub struct AuthMetrics {
    failures: CounterBy,
}

impl AuthMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        Self {
            failures: CounterBy::new(
                registry,
                "auth_failures",
                "Failed authentications, by reason",
                "reason",
                AuthFailure::ALL.map(AuthFailure::as_str),
            ),
        }
    }

    pub fn failed(&self, reason: AuthFailure) {
        self.failures.inc(reason.as_str());
    }
}

/// Why an authentication failed, as it is counted; clients do not learn it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthFailure {
    Missing,
    Malformed,
    Unknown,
    Expired,
    /// The identity provider's keys were not read yet. No failure of the client's, and not counted.
    KeysNotLoaded,
    /// A token's key is not among those known, or one of several could be meant.
    UnknownKey,
    /// A token's algorithm is not its key's.
    WrongAlgorithm,
    BadSignature,
    WrongIssuer,
    WrongAudience,
    NotYetValid,
    /// A claim is missing, or not of its type.
    BadClaims,
    /// A token's claims name no client.
    UnknownClient,
    RateLimited,
}

impl AuthFailure {
    /// Those that are counted.
    const ALL: [Self; 13] = [
        Self::Missing,
        Self::Malformed,
        Self::Unknown,
        Self::Expired,
        Self::UnknownKey,
        Self::WrongAlgorithm,
        Self::BadSignature,
        Self::WrongIssuer,
        Self::WrongAudience,
        Self::NotYetValid,
        Self::BadClaims,
        Self::UnknownClient,
        Self::RateLimited,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::Unknown => "unknown",
            Self::Expired => "expired",
            Self::KeysNotLoaded => "keys_not_loaded",
            Self::UnknownKey => "unknown_key",
            Self::WrongAlgorithm => "wrong_algorithm",
            Self::BadSignature => "bad_signature",
            Self::WrongIssuer => "wrong_issuer",
            Self::WrongAudience => "wrong_audience",
            Self::NotYetValid => "not_yet_valid",
            Self::BadClaims => "bad_claims",
            Self::UnknownClient => "unknown_client",
            Self::RateLimited => "rate_limited",
        }
    }
}
