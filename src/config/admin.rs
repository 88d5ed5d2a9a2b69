//! `[admin]`: the operators' listener.

use serde::Deserialize;

use super::{
    Problems,
    value::{ListenAddress, NotYet},
};

/// `[admin]`: where operators and probes connect.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminConfig {
    pub listen: ListenAddress,
    pub key_sha256: Option<NotYet>,
}

impl AdminConfig {
    pub(super) fn check(&self, problems: &mut Problems) {
        if !self.listen.is_local() {
            problems.add(
                "admin.listen",
                "an address other than loopback requires admin.key_sha256, which is not supported yet",
            );
        }
    }
}
