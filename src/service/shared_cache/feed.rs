//! The feed of a space's changes in Redis: one value, which the replica that watches the space writes whole.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use super::{
    Event, FillLock, LARGEST_NUMBER, LARGEST_PAGE, Lease, LockedNames, PACKED, SharedCache,
    keys::space_name,
    scripts::{self, FollowAnswer},
};
use crate::{
    cache::snapshot::{Owners, SnapshotError, pack, unpack},
    domain::{CredentialId, SpaceKey},
    off_runtime::by_size,
    service::snapshot::owners,
    shared::{Nonce, Unavailable},
    telemetry::metrics::RedisOperation,
    upstream::Credential,
};

/// What a feed and its space are called in Redis.
#[derive(Clone, Debug)]
pub(in crate::service) struct FeedKeys {
    owners: Owners,
    pub(in crate::service) space: String,
    pub(super) epoch: String,
    pub(in crate::service) feed: LockedNames,
    /// How many ranges are watched with its credential.
    pub(super) ranges: String,
}

/// What Redis holds of a feed.
#[derive(Debug)]
pub(in crate::service) struct LookedFeed {
    pub epoch: u64,
    /// Of what it holds, where that is another than the caller knows.
    pub version: Option<Nonce>,
    /// The same, where it was written by one who reads with the same token.
    pub value: Option<Bytes>,
    /// The right to write it.
    pub lease: Lease,
}

impl FeedKeys {
    /// A feed for other replicas: a proof that its owner wrote it, and `feed`, compressed.
    pub(in crate::service) fn seal_feed(
        &self,
        credential: CredentialId,
        feed: &[u8],
    ) -> Option<Vec<u8>> {
        let packed = pack(feed)?;
        let proof = self.proof(credential, &packed)?;
        Some([&proof.as_bytes()[..], &packed].concat())
    }

    fn unseal_feed(&self, credential: CredentialId, value: &[u8]) -> Result<Bytes, SnapshotError> {
        let (proof, packed) = value.split_first_chunk().ok_or(SnapshotError::Foreign)?;
        // Compared as digests, which takes the same time wherever they differ.
        match self.proof(credential, packed) {
            Some(expected) if expected == blake3::Hash::from_bytes(*proof) => unpack(packed),
            Some(_) | None => Err(SnapshotError::Foreign),
        }
    }

    /// Of this feed and no other, and of no page.
    fn proof(&self, credential: CredentialId, packed: &[u8]) -> Option<blake3::Hash> {
        let (_, key) = self.owners.known(credential).next()?;
        let mut hasher = blake3::Hasher::new_keyed(key);
        for part in [b"feed of changes", self.space.as_bytes(), packed] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Some(hasher.finalize())
    }
}

impl SharedCache {
    /// What the feed of `space`, read with `credential`, is called.
    pub(in crate::service) fn feed_keys(
        &self,
        credential: &Arc<Credential>,
        space: &SpaceKey,
    ) -> Option<FeedKeys> {
        let owners = owners(std::iter::once(credential));
        let space = space_name(&owners, space)?;
        Some(FeedKeys {
            owners,
            epoch: self.epoch_key(&space),
            feed: LockedNames {
                value: self.key(&space, "changes"),
                lock: self.key(&space, "lock:changes"),
            },
            ranges: self.ranges_key(&space),
            space,
        })
    }

    /// In another slot than the space: a credential may read many.
    fn ranges_key(&self, space: &str) -> String {
        let (owner, _) = space.split_once(':').unwrap_or_default();
        self.redis.name(&format!("{{{owner}}}:ranges"))
    }

    /// Whether a value is no larger than Redis should hold.
    pub(in crate::service) fn may_store(length: usize) -> bool {
        length <= LARGEST_PAGE
    }

    /// Looks at the feed, and takes the right to write it where nobody has it. `known`: the version that is not to be read again.
    pub(in crate::service) async fn look_feed(
        &self,
        keys: &FeedKeys,
        credential: CredentialId,
        epoch: u64,
        known: Option<Nonce>,
    ) -> Result<LookedFeed, Unavailable> {
        let token = Nonce::fresh();
        let follow = scripts::follow(keys, epoch, known, token);
        let answer = self.redis.ask(RedisOperation::Look, &follow).await;
        let answer = answer.and_then(|answer: FollowAnswer| {
            let is_sound = answer.0 <= LARGEST_NUMBER;
            is_sound.then_some(answer).ok_or(Unavailable)
        });
        let Ok((epoch, version, value, held_for)) = answer else {
            // It may have been taken all the same.
            drop(FillLock::new(self.redis.clone(), &keys.feed, token));
            return Err(Unavailable);
        };
        let lease = self.lease(&keys.feed, token, held_for);
        let value = match value {
            Some(value) => {
                let (of, length) = (keys.clone(), PACKED * value.len());
                let unsealed = by_size(length, move || of.unseal_feed(credential, &value)).await;
                if unsealed.is_err() {
                    self.redis.metrics().failed(RedisOperation::Read);
                }
                unsealed.ok()
            }
            None => None,
        };
        Ok(LookedFeed {
            epoch,
            version,
            value,
            lease,
        })
    }

    /// Puts `value` in place of what Redis holds if `token` is still that of the lock, and the space was not dropped since `epoch`. Returns
    /// its version; `None`: it is not for this replica to write.
    pub(in crate::service) async fn store_feed(
        &self,
        keys: &FeedKeys,
        epoch: u64,
        token: Nonce,
        value: &[u8],
        keep_for: Duration,
    ) -> Result<Option<Nonce>, Unavailable> {
        let version = Nonce::fresh();
        let write = scripts::write(keys, epoch, token, version, value, keep_for);
        let is_stored: bool = self.redis.ask(RedisOperation::Store, &write).await?;
        Ok(is_stored.then_some(version))
    }

    /// Tells who follows a feed that there is more.
    pub(in crate::service) async fn tell_stored(&self, keys: &FeedKeys) -> Result<(), Unavailable> {
        let page = keys.feed.value.clone();
        self.log(&Event::Filled { page }).await
    }

    /// Notes that so many ranges of a space are watched, for a while; returns how many are of all spaces of its credential.
    pub(in crate::service) async fn watched_ranges(
        &self,
        keys: &FeedKeys,
        count: usize,
        keep_for: Duration,
    ) -> Result<usize, Unavailable> {
        let count = scripts::count_ranges(keys, count, keep_for);
        self.redis.ask(RedisOperation::Quota, &count).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(space: &str, token: &[u8]) -> FeedKeys {
        let mut owners = Owners::default();
        owners.add(CredentialId(0), "default", &[token]);
        let key = String::new;
        FeedKeys {
            owners,
            space: space.to_owned(),
            epoch: key(),
            feed: LockedNames {
                value: key(),
                lock: key(),
            },
            ranges: key(),
        }
    }

    #[test]
    fn a_feed_is_read_by_the_same_token_for_the_same_space_alone() {
        let (id, ours) = (CredentialId(0), keys("owner:space", b"token"));
        let sealed = ours.seal_feed(id, b"feed").unwrap();
        assert_eq!(ours.unseal_feed(id, &sealed).unwrap(), "feed");
        for other in [keys("owner:space", b"other"), keys("owner:other", b"token")] {
            assert!(other.unseal_feed(id, &sealed).is_err());
        }
        for at in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            assert!(ours.unseal_feed(id, &damaged).is_err(), "byte {at}");
            assert!(ours.unseal_feed(id, &sealed[..at]).is_err(), "{at} bytes");
        }
    }
}
