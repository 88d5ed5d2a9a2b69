//! What is dropped here is dropped on all replicas. What Redis has not got yet is sent again until it has; what it had and lost, too.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::{
    EPOCH_FOR, Event, SharedCache,
    keys::names_of,
    pending_file::Pending,
    scripts::{self, AssertAnswer},
};
use crate::{
    domain::SpaceToken,
    shared::{Backlog, Session, Unavailable},
    telemetry::metrics::RedisOperation,
    upstream::Credential,
};

/// Drops that are remembered at least, to tell a Redis that lost them.
const REMEMBERED: usize = 1000;
/// Drops that Redis has not got; beyond them everything is dropped there.
const MOST_PENDING: usize = 10_000;
/// Questions that a Redis which is back is asked at once.
const AT_ONCE: usize = 500;

/// The drops that this replica made or heard of.
#[derive(Debug, Default)]
pub(super) struct Drops {
    /// The epoch in which everything was purged last.
    everything: u64,
    /// The newest epoch of each space.
    pub(super) spaces: HashMap<String, SpaceDrop>,
    /// The newest epoch of spaces that operators purged by their fingerprints, which nobody may have known then.
    unwanted: HashMap<String, u64>,
    pub(super) pending: Pending,
}

/// The newest drop of a space.
#[derive(Clone, Copy, Debug)]
pub(super) struct SpaceDrop {
    pub(super) epoch: u64,
    /// The upstream refused it, each time: a client may have invented it.
    refused: bool,
}

impl SpaceDrop {
    /// Of a space that was dropped before this replica knew it, or never.
    const UNKNOWN: Self = Self {
        epoch: 0,
        refused: true,
    };
}

impl Drops {
    pub(super) fn add(&mut self, space: &str, epoch: u64, refused: bool) {
        let added = SpaceDrop { epoch, refused };
        let known = self.spaces.entry(space.to_owned()).or_insert(added);
        known.epoch = epoch.max(known.epoch);
        known.refused &= refused;
        // Half of them go at once, first those that clients may have invented.
        if self.spaces.len() > 2 * REMEMBERED {
            let order = |known: &SpaceDrop| (!known.refused, known.epoch);
            let mut kept: Vec<_> = self.spaces.values().map(order).collect();
            kept.sort_unstable();
            let oldest_kept = kept[REMEMBERED];
            self.spaces.retain(|_, known| order(known) > oldest_kept);
        }
    }

    fn add_unwanted(&mut self, fingerprint: &str, epoch: u64) {
        let known = self.unwanted.entry(fingerprint.to_owned()).or_default();
        *known = epoch.max(*known);
        if self.unwanted.len() > REMEMBERED {
            let oldest = self.unwanted.values().copied().min();
            self.unwanted.retain(|_, epoch| Some(*epoch) != oldest);
        }
    }

    pub(super) fn add_pending(&mut self, space: String, refused: bool) {
        let pending = &mut self.pending;
        let is_full = pending.spaces.len() >= MOST_PENDING && !pending.spaces.contains_key(&space);
        match (is_full, refused) {
            (false, _) => *pending.spaces.entry(space).or_insert(refused) &= refused,
            // What a refusal drops ends with its lifetime, and clients may have invented the spaces.
            (true, true) => {}
            (true, false) => {
                pending.spaces.clear();
                pending.everything = true;
            }
        }
    }

    /// The epoch that a space is at least in.
    fn epoch_of(&self, space: &str) -> u64 {
        let known = self.spaces.get(space).map_or(0, |known| known.epoch);
        known.max(self.everything)
    }
}

impl SharedCache {
    /// Drops a space on all replicas, as each credential that may read it sees it. Returns what Redis has made of it; what it has not got
    /// is sent again.
    pub(in crate::service) async fn drop_space(&self, space: &SpaceToken) -> Vec<Event> {
        let credentials = self.credentials.load_full();
        // Credentials with one token call it the same.
        let names = credentials.all().flat_map(|known| names_of(known, space));
        self.drop_all(names.collect(), false).await
    }

    /// The same, as `credential` alone sees it: the upstream refused it.
    pub(in crate::service) async fn drop_refused(
        &self,
        credential: &Arc<Credential>,
        space: &SpaceToken,
    ) -> Vec<Event> {
        let names = names_of(credential, space);
        self.drop_all(names.into_iter().collect(), true).await
    }

    async fn drop_all(&self, spaces: HashSet<String>, refused: bool) -> Vec<Event> {
        let (mut dropped, count) = (Vec::new(), spaces.len());
        for space in spaces {
            match self.raise_space(&space, refused).await {
                Ok(event) => dropped.push(event),
                Err(Unavailable) => self.drops.lock().add_pending(space, refused),
            }
        }
        if dropped.len() < count {
            self.save_pending().await;
        }
        dropped
    }

    /// Drops everything on all replicas, and returns what Redis has made of it; where Redis has not got it, it is sent again.
    pub(in crate::service) async fn drop_everything(&self) -> Option<Event> {
        let purged = self.raise_everything().await.ok();
        if purged.is_none() {
            self.drops.lock().pending.everything = true;
            self.save_pending().await;
        }
        purged
    }

    /// Has every replica that knows the space of this fingerprint drop it.
    pub(in crate::service) async fn drop_fingerprint(
        &self,
        fingerprint: &str,
    ) -> Result<(), Unavailable> {
        let before = self.redis.unix_ms().ok_or(Unavailable)? * 1000;
        self.heard_unwanted(fingerprint, before);
        let fingerprint = fingerprint.to_owned();
        self.log(&Event::Unwanted {
            fingerprint,
            before,
        })
        .await
    }

    /// Remembers a purge by fingerprint: the space may be in Redis alone.
    pub(in crate::service) fn heard_unwanted(&self, fingerprint: &str, before: u64) {
        self.drops.lock().add_unwanted(fingerprint, before);
    }

    /// The epoch that a space is at least in, which Redis calls `name`, by the drops that this replica knows.
    pub(in crate::service) fn epoch_of(&self, name: &str, space: &SpaceToken) -> u64 {
        let drops = self.drops.lock();
        let of_space = drops.epoch_of(name);
        if drops.unwanted.is_empty() {
            return of_space;
        }
        let unwanted = drops.unwanted.get(&space.to_string());
        of_space.max(unwanted.copied().unwrap_or_default())
    }

    /// Remembers a drop that this replica heard of.
    pub(in crate::service) fn heard_drop(&self, space: &str, epoch: u64, refused: bool) {
        self.drops.lock().add(space, epoch, refused);
    }

    /// Remembers a purge of everything that this replica heard of.
    pub(in crate::service) fn heard_purge(&self, epoch: u64) {
        let mut drops = self.drops.lock();
        drops.everything = epoch.max(drops.everything);
    }

    /// How many drops of this process Redis has not got yet.
    #[must_use]
    pub fn pending_drops(&self) -> usize {
        self.drops.lock().pending.count()
    }

    /// Has Redis know in which epoch everything was purged last: it may have been evicted.
    pub(in crate::service) async fn assert_everything(&self) {
        let everything = self.drops.lock().everything;
        if everything > 0 {
            let assertion = scripts::assert_epoch(&self.everything_key(), everything, None, false);
            let answer: Result<AssertAnswer, Unavailable> =
                self.redis.ask(RedisOperation::Drop, &assertion).await;
            if let Ok((_, _, true)) = answer {
                self.redis.metrics().reasserted();
            }
        }
    }

    /// Sends what Redis has not got yet; returns what it has made of it.
    pub(in crate::service) async fn send_pending(&self) -> Vec<Event> {
        // The one before may still be at it.
        let Ok(_sending) = self.sending.try_lock() else {
            return Vec::new();
        };
        let pending = self.drops.lock().pending.clone();
        let mut sent = Vec::new();
        // Each is taken out before it is sent: a purge meanwhile puts it in again.
        if pending.everything {
            self.drops.lock().pending.everything = false;
            match self.raise_everything().await {
                Ok(purged) => sent.push(purged),
                Err(Unavailable) => self.drops.lock().pending.everything = true,
            }
        }
        for (space, refused) in pending.spaces {
            self.drops.lock().pending.spaces.remove(&space);
            match self.raise_space(&space, refused).await {
                Ok(dropped) => sent.push(dropped),
                Err(Unavailable) => {
                    self.drops.lock().add_pending(space, refused);
                    // Else it is that space's own trouble.
                    if !self.redis.is_up() {
                        break;
                    }
                }
            }
        }
        if !sent.is_empty() {
            self.save_pending().await;
        }
        sent
    }

    /// Tells a Redis that may have lost them of the drops that this replica knows, and returns those that Redis knows later ones of. Where
    /// entries of the log were trimmed it is asked for the epochs of all spaces of which anything is known here.
    pub(in crate::service) async fn assert_drops(
        &self,
        session: &Session,
        backlog: Backlog,
    ) -> Result<Vec<Event>, Unavailable> {
        let (everything, mut spaces) = {
            let drops = self.drops.lock();
            (drops.everything, drops.spaces.clone())
        };
        let assertion = scripts::assert_epoch(&self.everything_key(), everything, None, false);
        let (epoch, is_news, was_lost): AssertAnswer = session.ask(&assertion).await?;
        let purged = Event::Purged { epoch };
        if was_lost {
            self.redis.metrics().reasserted();
        }
        if is_news {
            session.append(&purged.to_bytes()).await?;
        }
        if backlog == Backlog::Trimmed {
            for space in self.space_names() {
                spaces.entry(space).or_insert(SpaceDrop::UNKNOWN);
            }
        }
        let asserted = stream::iter(spaces)
            .map(|(space, known)| self.assert_drop(session, space, known))
            .buffer_unordered(AT_ONCE);
        let later: Vec<_> = asserted.try_collect().await?;
        Ok([Some(purged)].into_iter().chain(later).flatten().collect())
    }

    /// Returns the drop that Redis knows, if it is a later one.
    async fn assert_drop(
        &self,
        session: &Session,
        space: String,
        known: SpaceDrop,
    ) -> Result<Option<Event>, Unavailable> {
        let key = self.epoch_key(&space);
        let assertion = scripts::assert_epoch(&key, known.epoch, Some(EPOCH_FOR), known.refused);
        // One that cannot be told is that space's own trouble.
        let Ok((epoch, is_news, was_lost)) = session.ask::<AssertAnswer>(&assertion).await else {
            return Ok(None);
        };
        if was_lost {
            self.redis.metrics().reasserted();
        }
        let is_later = epoch > known.epoch;
        let dropped = Event::Dropped {
            space,
            epoch,
            // What Redis holds the epoch of was invented by nobody.
            refused: known.refused && !is_later,
        };
        if is_news {
            session.append(&dropped.to_bytes()).await?;
        }
        Ok(is_later.then_some(dropped))
    }

    /// Begins a new epoch of a space in Redis, and tells of it.
    async fn raise_space(&self, space: &str, refused: bool) -> Result<Event, Unavailable> {
        let (key, known) = (self.epoch_key(space), self.drops.lock().epoch_of(space));
        let raise = scripts::raise(&key, known, Some(EPOCH_FOR), refused);
        let (epoch, is_kept): (u64, bool) = self.redis.ask(RedisOperation::Drop, &raise).await?;
        if is_kept {
            self.heard_drop(space, epoch, false);
        }
        let space = space.to_owned();
        let dropped = Event::Dropped {
            space,
            epoch,
            refused,
        };
        self.log(&dropped).await?;
        Ok(dropped)
    }

    async fn raise_everything(&self) -> Result<Event, Unavailable> {
        let known = self.drops.lock().everything;
        let raise = scripts::raise(&self.everything_key(), known, None, false);
        let answer = self.redis.ask(RedisOperation::Drop, &raise).await;
        let (epoch, _): (u64, bool) = answer?;
        let purged = Event::Purged { epoch };
        self.log(&purged).await?;
        Ok(purged)
    }
}
