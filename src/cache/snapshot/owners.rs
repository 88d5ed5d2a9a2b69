//! Who may read and write a page outside the process: whoever holds the credential's token.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::domain::CredentialId;

/// Whose pages: a credential's name, and a digest of what it reads with and where. Another token may see other pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owners(HashMap<CredentialId, Vec<Known>>);

/// A way to know a credential by, and what only those know who have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) owner: Owner,
    pub(super) key: [u8; blake3::KEY_LEN],
}

/// Who read a page, as a file tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    name: String,
    fingerprint: String,
}

impl Owner {
    /// What tells it from others, of its secret nothing.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

impl Owners {
    /// Adds a way to know a credential by; `secret` is all that decides what it sees. The first added is what is written.
    pub fn add(&mut self, id: CredentialId, name: &str, secret: &[&[u8]]) {
        let derived = |context| {
            let mut hasher = blake3::Hasher::new_derive_key(context);
            for part in secret {
                hasher.update(&(part.len() as u64).to_le_bytes());
                hasher.update(part);
            }
            hasher.finalize()
        };
        let owner = Owner {
            name: name.to_owned(),
            fingerprint: derived("unpod-gateway snapshot owner").to_hex().to_string(),
        };
        let key = derived("unpod-gateway shared pages").into();
        self.0.entry(id).or_default().push(Known { owner, key });
    }

    /// Under whom to write what belongs to a credential.
    #[must_use]
    pub fn owner(&self, id: CredentialId) -> Option<&Owner> {
        Some(&self.writer(id)?.owner)
    }

    /// Whose it is that `owner` wrote.
    #[must_use]
    pub fn id(&self, owner: &Owner) -> Option<CredentialId> {
        self.called(owner).map(|(id, _)| id)
    }

    /// Every owner a credential is known by, each with the key that only those have who have its secret.
    pub fn known(
        &self,
        id: CredentialId,
    ) -> impl Iterator<Item = (&Owner, &[u8; blake3::KEY_LEN])> {
        let known = self.0.get(&id).into_iter().flatten();
        known.map(|known| (&known.owner, &known.key))
    }

    /// The one under which what belongs to a credential is written.
    pub(super) fn writer(&self, id: CredentialId) -> Option<&Known> {
        self.0.get(&id)?.first()
    }

    /// The one that `owner` names, and whose it is.
    pub(super) fn called(&self, owner: &Owner) -> Option<(CredentialId, &Known)> {
        self.0.iter().find_map(|(id, known)| {
            let known = known.iter().find(|known| known.owner == *owner)?;
            Some((*id, known))
        })
    }
}
