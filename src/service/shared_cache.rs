//! Pages that replicas share by way of Redis: where they lie there, under which state of their space, and who fills them.
//!
//! It knows Redis and names; what a page is worth is judged by [`super::pages`], which asks here after its memory and before the
//! upstream. A space is named by a digest keyed with the secret of the credential that reads it, so that no key of Redis tells a
//! space's token and none is found by who reads with another.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use arc_swap::ArcSwap;
use compact_str::CompactString;
use parking_lot::Mutex;
use redis::Script;
use tokio::sync::Notify;

use crate::{
    cache::{
        list::{ListHead, Mark},
        snapshot::{SavedPage, SnapshotError, seal, unseal},
        store::Shared,
    },
    domain::{ListPage, PageKey},
    off_runtime::by_size,
    shared::{Nonce, RedisConnection, Unavailable},
    telemetry::metrics::RedisOperation,
    upstream::{Credentials, read_page},
};

mod catch_up;
mod events;
mod invalidations;
mod keys;
mod lease;
mod scripts;

pub(super) use self::{
    events::Event,
    keys::RedisKeys,
    lease::{FillLock, Lease},
};
use self::{
    invalidations::PendingInvalidations,
    keys::{KnownSpaces, mark},
};

const LONGEST_PAGE: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a list is kept of which no page was stored.
const UNSTORED_LIST_FOR: Duration = Duration::from_secs(10 * 60);
/// How long a space's state outlives the last look at it: longer than any page that was written under it.
const STATE_FOR: Duration = Duration::from_secs(2 * 24 * 60 * 60);
/// A larger page would hold up what else goes over the connection for longer than an operation may take.
const LARGEST_PAGE: usize = 4 << 20;

/// What a replica shares with the others.
#[derive(Debug)]
pub struct SharedCache {
    redis: Arc<RedisConnection>,
    /// Whose spaces an operator's purge means. What a request reads is called by the credential that it came with: a reload that changes
    /// the upstream changes both at once.
    credentials: ArcSwap<Credentials>,
    /// The spaces that others may tell something of, by the names they are told by.
    spaces: Mutex<KnownSpaces>,
    /// Who waits for another replica to fill a page.
    waiting: Mutex<HashMap<String, Weak<Notify>>>,
    pending: Mutex<PendingInvalidations>,
}

/// What Redis holds of a page and its space.
#[derive(Debug)]
pub(super) struct SharedState {
    pub mark: Mark,
    pub head: ListHead,
    /// One of the state in force.
    pub page: Option<SharedPage>,
}

/// A page that another replica filled, `age` ago.
#[derive(Debug)]
pub(super) struct SharedPage {
    pub saved: SavedPage,
    /// What its body was read as.
    pub page: ListPage,
    pub age: Duration,
}

impl SharedCache {
    #[must_use]
    pub fn new(redis: Arc<RedisConnection>, credentials: Arc<Credentials>) -> Self {
        Self {
            redis,
            credentials: ArcSwap::new(credentials),
            spaces: Mutex::default(),
            waiting: Mutex::default(),
            pending: Mutex::default(),
        }
    }

    /// Shares the pages of `credentials` from now on.
    pub fn set_credentials(&self, credentials: Arc<Credentials>) {
        self.credentials.store(credentials);
    }

    #[must_use]
    pub fn is_up(&self) -> bool {
        self.redis.is_up()
    }

    /// Waits until Redis is lost: then nobody is waited for.
    pub(super) async fn until_lost(&self) {
        self.redis.until_lost().await;
    }

    pub(super) fn redis(&self) -> &RedisConnection {
        &self.redis
    }

    /// Looks for a page and for the state of its space. Where nobody knows of another, its list begins with the generation called `name`.
    pub(super) async fn look_up(
        &self,
        keys: &RedisKeys,
        key: &PageKey,
        name: Option<u64>,
    ) -> Result<SharedState, Unavailable> {
        let era = self.redis.era().ok_or(Unavailable)?;
        let script = Script::new(scripts::LOOK);
        let mut look_up = script.key(self.redis.era_key());
        look_up
            .key(&keys.state)
            .key(&keys.list)
            .key(&keys.page)
            .arg(Nonce::fresh())
            .arg(name.map_or_else(Nonce::fresh, Nonce))
            .arg(ms(STATE_FOR))
            .arg(ms(UNSTORED_LIST_FOR));
        let answer: LookAnswer = self.redis.ask(RedisOperation::Look, &look_up).await?;
        let (birth, purge, epoch, generation, count, first, value) = answer;
        if birth != Some(era.birth) {
            self.redis.doubt();
            return Err(Unavailable);
        }
        // A purge of which word is on its way.
        if purge != Some(era.purge) {
            return Err(Unavailable);
        }
        let mark = mark(&keys.space, era, epoch, generation);
        let page = match value {
            Some(value) => self.read(value, keys, key, mark).await,
            None => None,
        };
        Ok(SharedState {
            mark,
            head: ListHead {
                count,
                first_row: first.map(CompactString::from),
            },
            page,
        })
    }

    /// The page that `value` holds, if it is this one and of the state in force.
    async fn read(
        &self,
        value: Vec<u8>,
        keys: &RedisKeys,
        key: &PageKey,
        mark: Mark,
    ) -> Option<SharedPage> {
        let (owners, key) = (keys.owners.clone(), key.clone());
        let read = by_size(value.len(), move || {
            let saved = unseal(&value, &owners, &key)?;
            let page = read_page(&saved.body);
            Ok((saved, page))
        });
        let (saved, page) = match read.await {
            Ok((saved, Ok(page))) => (saved, page),
            // That of another version of this program is no damage.
            Err(SnapshotError::Version(_)) => return None,
            Ok((_, Err(_))) | Err(_) => {
                self.redis.unreadable();
                return None;
            }
        };
        let now = self.redis.unix_ms()?;
        let age = Duration::from_millis(now.saturating_sub(saved.born_unix_ms));
        (saved.mark == Some(mark)).then_some(SharedPage { saved, page, age })
    }

    /// Is told when who fills the page has ended.
    pub(super) fn listen(&self, keys: &RedisKeys) -> Arc<Notify> {
        let mut waiting = self.waiting.lock();
        if let Some(known) = waiting.get(&keys.page).and_then(Weak::upgrade) {
            return known;
        }
        // There are as many as fills under way.
        waiting.retain(|_, who| who.strong_count() > 0);
        let told = Arc::new(Notify::new());
        waiting.insert(keys.page.clone(), Arc::downgrade(&told));
        told
    }

    /// Wakes who waits for `page`.
    pub(super) fn filled(&self, page: &str) {
        if let Some(told) = self.waiting.lock().get(page).and_then(Weak::upgrade) {
            told.notify_waiters();
        }
    }

    /// Puts a page where the others find it, and lets `lock` go. Returns the state of the space that is in force.
    pub(super) async fn publish(
        &self,
        keys: &RedisKeys,
        shared: Shared,
        lock: Option<FillLock>,
    ) -> Result<Option<(Mark, ListHead)>, Unavailable> {
        let era = self.redis.era().ok_or(Unavailable)?;
        let (before, at, head) = (shared.before, shared.mark, shared.head);
        let keep_for = shared.useful_for.min(LONGEST_PAGE);
        if at.era != [era.birth.0, era.purge.0] || keep_for.is_zero() {
            return Ok(None);
        }
        let (owners, page) = (keys.owners.clone(), shared.page);
        let list = page.key.list.id.to_string();
        let sealed = by_size(page.body.len(), move || seal(&owners, page)).await;
        let Some(value) = sealed.filter(|value| value.len() <= LARGEST_PAGE) else {
            return Ok(None);
        };
        let moved = Event::Moved {
            space: keys.space.clone(),
            list,
            generation: Nonce(at.generation),
        };
        let script = Script::new(scripts::STORE);
        let mut store = script.key(self.redis.era_key());
        store
            .key(&keys.state)
            .key(&keys.list)
            .key(&keys.page)
            .key(&keys.lock)
            .arg(era.birth)
            .arg(era.purge)
            .arg(Nonce(at.epoch))
            .arg(Nonce(before.generation))
            .arg(Nonce(at.generation))
            .arg(
                head.count
                    .map_or_else(String::new, |count| count.to_string()),
            )
            .arg(head.first_row.as_deref().unwrap_or_default())
            .arg(value)
            .arg(ms(keep_for).max(1))
            .arg(lock.as_ref().map_or(Nonce(0), |lock| lock.token))
            .arg(self.redis.channel())
            .arg(self.message(moved))
            .arg(self.message(Event::Filled {
                page: keys.page.clone(),
            }));
        let answer: StoreAnswer = self.redis.ask(RedisOperation::Store, &store).await?;
        if let Some(lock) = lock {
            lock.released();
        }
        Ok(answer.map(|(epoch, generation, count, first)| {
            let head = ListHead {
                count,
                first_row: first.map(CompactString::from),
            };
            (mark(&keys.space, era, epoch, generation), head)
        }))
    }
}

/// Birth and purge; epoch and generation; how the list begins; the page.
type LookAnswer = (
    Option<Nonce>,
    Option<Nonce>,
    Nonce,
    Nonce,
    Option<u64>,
    Option<String>,
    Option<Vec<u8>>,
);
/// Epoch, generation, and how the list begins.
type StoreAnswer = Option<(Nonce, Nonce, Option<u64>, Option<String>)>;

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
