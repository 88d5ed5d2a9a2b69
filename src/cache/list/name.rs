//! What clients call the state of a list: a digest that nobody can make who has not the credential's secret.

use std::fmt;

use crate::domain::{ListId, SpaceFingerprint};

/// Names the states of the lists that one credential reads.
#[derive(Clone, PartialEq, Eq)]
pub struct StateNames([u8; blake3::KEY_LEN]);

/// What a state of a list is named by. Replicas that see the same state give it the same name, whichever pages each has read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Named<'a> {
    pub(super) space: &'a SpaceFingerprint,
    pub(super) list: &'a ListId,
    pub(super) epoch: u64,
    pub(super) count: u64,
    /// What tells it from other states of this count, where there are any.
    pub(super) marker: &'a str,
}

impl StateNames {
    /// The names that all replicas give which know `secret`.
    #[must_use]
    pub fn new(secret: &[u8; blake3::KEY_LEN]) -> Self {
        Self(blake3::derive_key("unpod-gateway list generation", secret))
    }

    pub(super) fn name(&self, named: &Named<'_>) -> u64 {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        let list = named.list.to_string();
        for text in [named.space.as_str(), &list, named.marker] {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        for number in [named.epoch, named.count] {
            hasher.update(&number.to_le_bytes());
        }
        let digest: [u8; blake3::OUT_LEN] = hasher.finalize().into();
        let (first, _) = digest.split_first_chunk().expect("a digest is longer");
        u64::from_le_bytes(*first)
    }
}

impl fmt::Debug for StateNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StateNames")
    }
}
