//! `[admin]`: the operators' listener.

use serde::Deserialize;

use super::{
    Problems,
    value::{ListenAddress, Sha256Digest},
};

/// `[admin]`: where operators and probes connect, and the key they need.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminConfig {
    pub listen: ListenAddress,
    /// Digests of the operators' key; two during a rotation. Absent: everybody who reaches the listener is an operator.
    pub key_sha256: Option<Vec<Sha256Digest>>,
}

impl AdminConfig {
    /// Digests of the accepted keys; empty if no key is required.
    #[must_use]
    pub fn keys(&self) -> &[Sha256Digest] {
        self.key_sha256.as_deref().unwrap_or_default()
    }

    pub(super) fn check(&self, problems: &mut Problems) {
        if let Err(text) = self.listen.check() {
            problems.add("admin.listen", text);
        }
        match self.key_sha256.as_ref().map(Vec::len) {
            None => self.check_reachable_at(&self.listen, problems),
            Some(1..=2) => {}
            // An empty list is an error, not "no key".
            Some(_) => problems.add("admin.key_sha256", "expected one or two digests"),
        }
    }

    /// Reports a listener that others can reach without a key.
    pub fn check_reachable_at(&self, listen: &ListenAddress, problems: &mut Problems) {
        if self.keys().is_empty() && !listen.is_local() {
            problems.add(
                "admin.key_sha256",
                "required: admin.listen is an address other than loopback",
            );
        }
    }
}
