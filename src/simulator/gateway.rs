//! What a gateway in front of the simulator is configured with, as TOML: the demo, the tests and the examples put their own settings beside it.

use sha2::{Digest, Sha256};

use super::world::{ACME, ACME_TOKEN};

/// The upstream at `base_url`, asked as Acme. For the top of a configuration, before its first section.
#[must_use]
pub fn upstream(base_url: &str) -> String {
    format!(
        "upstream.base_url = \"{base_url}\"\n\
         upstream.credentials.default.token = \"{ACME_TOKEN}\"\n\
         upstream.credentials.default.org_handle = \"{ACME}\"\n"
    )
}

/// A `[[clients]]` table, with `rest` among its lines.
#[must_use]
pub fn client(name: &str, key: &str, rest: &str) -> String {
    let digest = digest(key);
    format!("[[clients]]\nname = \"{name}\"\nkey_sha256 = [\"{digest}\"]\n{rest}\n")
}

/// The digest of a client's key, as a configuration holds it.
#[must_use]
pub fn digest(key: &str) -> String {
    let digest = Sha256::digest(key);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
