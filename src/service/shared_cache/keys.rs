//! What pages and spaces are called in Redis, and which spaces other replicas may name.

use std::{collections::HashMap, sync::Arc};

use super::SharedCache;
use crate::{
    cache::snapshot::{Owner, Owners},
    domain::{PageKey, SpaceKey, SpaceToken},
    service::snapshot::owners,
    upstream::Credential,
};

/// Spaces whose names are remembered before those are let go that nothing is known of any more.
const FIRST_SWEEP_AT: usize = 1024;

/// The spaces that other replicas may name, by their names in Redis: credentials with one token see the same space.
#[derive(Debug)]
pub(super) struct KnownSpaces {
    known: HashMap<String, Vec<SpaceKey>>,
    sweep_at: usize,
}

impl Default for KnownSpaces {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
            sweep_at: FIRST_SWEEP_AT,
        }
    }
}

/// The names of a value that one replica at a time writes.
#[derive(Clone, Debug)]
pub(in crate::service) struct LockedNames {
    pub(super) value: String,
    /// That of the right to write it.
    pub(super) lock: String,
}

/// What a page, its list and its space are called in Redis.
#[derive(Clone, Debug)]
pub(in crate::service) struct RedisKeys {
    pub(super) owners: Owners,
    pub(in crate::service) space: String,
    pub(super) epoch: String,
    pub(super) list: String,
    pub(in crate::service) page: LockedNames,
}

impl SharedCache {
    /// What `key`, read with `credential`, is called.
    pub(in crate::service) fn keys(
        &self,
        credential: &Arc<Credential>,
        key: &PageKey,
    ) -> Option<RedisKeys> {
        let owners = owners(std::iter::once(credential));
        let space = space_name(&owners, &key.list.space)?;
        let (page, size, list) = (key.query.page, key.query.page_size, &key.list.id);
        let of_page = |kind| self.key(&space, &format!("{kind}:{list}:{page}:{size}"));
        Some(RedisKeys {
            owners,
            epoch: self.epoch_key(&space),
            list: self.key(&space, &format!("list:{list}")),
            page: LockedNames {
                value: of_page("page"),
                lock: of_page("lock"),
            },
            space,
        })
    }

    /// A key of a space. In braces is what decides its slot in a cluster.
    pub(super) fn key(&self, space: &str, rest: &str) -> String {
        self.redis.name(&format!("{{{space}}}:{rest}"))
    }

    pub(super) fn epoch_key(&self, space: &str) -> String {
        self.key(space, "epoch")
    }

    pub(super) fn everything_key(&self) -> String {
        self.redis.name("{log}:epoch")
    }

    /// Remembers what `key` is called; those are let go that the caller does not know.
    pub(super) fn remember(&self, space: &str, key: &SpaceKey, knows: impl Fn(&SpaceKey) -> bool) {
        let mut spaces = self.spaces.lock();
        if spaces
            .known
            .get(space)
            .is_some_and(|keys| keys.contains(key))
        {
            return;
        }
        if spaces.known.len() >= spaces.sweep_at {
            spaces.known.retain(|_, keys| {
                keys.retain(&knows);
                !keys.is_empty()
            });
            spaces.sweep_at = (2 * spaces.known.len()).max(FIRST_SWEEP_AT);
        }
        let keys = spaces.known.entry(space.to_owned()).or_default();
        keys.push(key.clone());
    }

    /// Remembers all that other replicas may call a space, whichever of its credential's tokens they use.
    pub(in crate::service) fn remember_space(
        &self,
        credential: &Arc<Credential>,
        space: &SpaceToken,
        knows: impl Fn(&SpaceKey) -> bool,
    ) {
        let key = SpaceKey {
            credential: credential.id,
            space: space.clone(),
        };
        for name in names_of(credential, space) {
            self.remember(&name, &key, &knows);
        }
    }

    /// The same of all that is known before there is a connection.
    pub(in crate::service) fn remember_restored(&self, spaces: Vec<SpaceKey>) {
        let credentials = self.credentials.load_full();
        for SpaceKey { credential, space } in spaces {
            let known = credentials.all().find(|known| known.id == credential);
            if let Some(credential) = known {
                self.remember_space(credential, &space, |_| true);
            }
        }
    }

    /// What others call the spaces of which anything is known.
    pub(super) fn space_names(&self) -> Vec<String> {
        self.spaces.lock().known.keys().cloned().collect()
    }

    /// The spaces that others call so: one for each credential that sees it with the same token.
    pub(in crate::service) fn spaces(&self, name: &str) -> Vec<SpaceKey> {
        let spaces = self.spaces.lock();
        spaces.known.get(name).cloned().unwrap_or_default()
    }
}

pub(super) fn space_name(owners: &Owners, key: &SpaceKey) -> Option<String> {
    let (owner, seal) = owners.known(key.credential).next()?;
    Some(named(owner, seal, &key.space))
}

/// What a space is called by `credential`, with either of its tokens: another replica may use the other.
pub(super) fn names_of(credential: &Arc<Credential>, space: &SpaceToken) -> Vec<String> {
    let owners = owners(std::iter::once(credential));
    let known = owners.known(credential.id);
    known
        .map(|(owner, seal)| named(owner, seal, space))
        .collect()
}

/// The owner's fingerprint, then the space as only its owner can name it.
fn named(owner: &Owner, seal: &[u8; blake3::KEY_LEN], space: &SpaceToken) -> String {
    let owner = &owner.fingerprint()[..32];
    let space = blake3::keyed_hash(seal, space.as_str().as_bytes());
    format!("{owner}:{}", &space.to_hex()[..32])
}
