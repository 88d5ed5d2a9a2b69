//! What is dropped here is dropped on all replicas; what Redis could not be told it is told when it is back.

use std::{collections::HashSet, sync::Arc};

use redis::{Script, ScriptInvocation};

use super::{Event, STATE_FOR, SharedCache, keys::names_of, ms, scripts};
use crate::{
    domain::SpaceToken,
    shared::{Nonce, Session, Unavailable},
    telemetry::metrics::RedisOperation,
    upstream::Credential,
};

/// Drops that Redis has not been told of; beyond them all is dropped there.
const MOST_PENDING: usize = 10_000;

/// What was dropped here while Redis was lost.
#[derive(Debug, Default)]
pub(super) struct PendingInvalidations {
    everything: bool,
    spaces: HashSet<String>,
}

impl SharedCache {
    /// Drops a space on all replicas, as each credential that may read it sees it; where Redis is lost, when it is back.
    pub(in crate::service) async fn purge_space(&self, space: &SpaceToken) {
        let credentials = self.credentials.load_full();
        for name in credentials.all().flat_map(|known| names_of(known, space)) {
            self.invalidate(name, false).await;
        }
    }

    /// The same, as `credential` alone sees it: Unpod refused it.
    pub(in crate::service) async fn invalidate_refused(
        &self,
        credential: &Arc<Credential>,
        space: &SpaceToken,
    ) {
        for name in names_of(credential, space) {
            self.invalidate(name, true).await;
        }
    }

    async fn invalidate(&self, space: String, refused: bool) {
        let script = Script::new(scripts::DROP);
        let state = self.state_key(&space);
        let told = self.dropping(&script, &state, &space, refused);
        let dropped: Result<u8, Unavailable> = self.redis.ask(RedisOperation::Drop, &told).await;
        if dropped.is_err() {
            self.pending.lock().add(space);
        }
    }

    /// Drops everything on all replicas; where Redis is lost, when it is back.
    pub(in crate::service) async fn purge(&self) {
        let script = Script::new(scripts::PURGE);
        let purge = Nonce::fresh();
        let told = self.purging(&script, purge);
        let dropped: Result<u8, Unavailable> = self.redis.ask(RedisOperation::Drop, &told).await;
        match dropped {
            Ok(_) => self.redis.purged(purge),
            Err(Unavailable) => self.pending.lock().everything = true,
        }
    }

    /// Has every replica that knows the space of this fingerprint drop it. Whether any other was told.
    pub(in crate::service) async fn purge_fingerprint(&self, fingerprint: &str) -> bool {
        let script = Script::new(scripts::TELL);
        let channel = self.redis.channel();
        let mut tell = script.key(channel);
        tell.arg(self.message(Event::Unwanted {
            fingerprint: fingerprint.to_owned(),
        }));
        let told: Result<u32, Unavailable> = self.redis.ask(RedisOperation::Drop, &tell).await;
        told.is_ok_and(|told| told > 1)
    }

    fn dropping<'a>(
        &self,
        script: &'a Script,
        state: &str,
        space: &str,
        refused: bool,
    ) -> ScriptInvocation<'a> {
        let epoch = Nonce::fresh();
        let mut drop = script.key(state);
        drop.arg(epoch)
            .arg(ms(STATE_FOR))
            .arg(self.redis.channel())
            .arg(self.message(Event::Dropped {
                space: space.to_owned(),
                epoch,
                refused,
            }));
        drop
    }

    fn purging<'a>(&self, script: &'a Script, purge: Nonce) -> ScriptInvocation<'a> {
        let mut told = script.key(self.redis.era_key());
        told.arg(purge)
            .arg(self.redis.channel())
            .arg(self.message(Event::Purged { purge }));
        told
    }

    /// Whether Redis is to be told of drops yet.
    pub(in crate::service) fn has_pending(&self) -> bool {
        let pending = self.pending.lock();
        pending.everything || !pending.spaces.is_empty()
    }

    /// Tells Redis of what was dropped while this replica was catching up.
    pub(in crate::service) async fn send_pending_late(&self) {
        let pending = std::mem::take(&mut *self.pending.lock());
        if pending.everything {
            self.purge().await;
        }
        for space in pending.spaces {
            self.invalidate(space, false).await;
        }
    }

    /// Tells Redis what was dropped while it was lost. Returns the purge in force where that was everything.
    pub(in crate::service) async fn send_pending(
        &self,
        session: &Session,
    ) -> Result<Option<Nonce>, Unavailable> {
        let pending = std::mem::take(&mut *self.pending.lock());
        let sent = self.send(session, &pending).await;
        if sent.is_err() {
            self.pending.lock().merge(pending);
        }
        sent
    }

    async fn send(
        &self,
        session: &Session,
        pending: &PendingInvalidations,
    ) -> Result<Option<Nonce>, Unavailable> {
        let purge = pending.everything.then(Nonce::fresh);
        if let Some(purge) = purge {
            let script = Script::new(scripts::PURGE);
            let told = self.purging(&script, purge);
            let _: u8 = session.ask(&told).await?;
        }
        let script = Script::new(scripts::DROP);
        for space in &pending.spaces {
            let state = self.state_key(space);
            let drop = self.dropping(&script, &state, space, false);
            let _: u8 = session.ask(&drop).await?;
        }
        Ok(purge)
    }
}

impl PendingInvalidations {
    fn add(&mut self, space: String) {
        self.spaces.insert(space);
        if self.spaces.len() > MOST_PENDING {
            self.spaces.clear();
            self.everything = true;
        }
    }

    fn merge(&mut self, other: Self) {
        self.everything |= other.everything;
        for space in other.spaces {
            self.add(space);
        }
    }
}
