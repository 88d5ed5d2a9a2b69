//! Pages that replicas share by way of Redis: where they lie there, under which state of their space, and who fills them.
//!
//! `docs/replicas.md` is the protocol. This knows Redis and names; what a page is worth is judged by [`super::pages`], which asks here after
//! its memory and before the upstream. A space is named by a digest keyed with the secret of the credential that reads it, so that no key of
//! Redis tells a space's token and none is found by who reads with another.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use arc_swap::ArcSwap;
use compact_str::CompactString;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{
    cache::{
        list::{ListHead, SharedList},
        snapshot::{SavedPage, SnapshotError, seal, unseal},
        store::Shared,
    },
    domain::{ListPage, PageKey},
    off_runtime::by_size,
    service::snapshot::CLOCK_SKEW_MS,
    shared::{Nonce, RedisConnection, Session, Unavailable, ms},
    telemetry::metrics::{RedisOperation, RedisStore},
    upstream::{Credentials, read_page},
};

mod drops;
mod events;
mod feed;
mod keys;
mod lease;
mod pending_file;
mod scripts;

use self::{
    drops::Drops,
    keys::KnownSpaces,
    scripts::{LookAnswer, StoreAnswer, Stored},
};
pub(super) use self::{
    events::Event,
    feed::{FeedKeys, LookedFeed},
    keys::{LockedNames, RedisKeys},
    lease::{FillLock, Lease},
};

const LONGEST_PAGE: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a list is kept of which no page was stored: clients choose the ids of runs.
const UNSTORED_LIST_FOR: Duration = Duration::from_secs(10 * 60);
/// How long an epoch outlives the last page of its space: longer than any page that was stored under one before.
const EPOCH_FOR: Duration = Duration::from_secs(2 * 24 * 60 * 60);
/// How long an epoch is kept of a space of which nothing is known but that the upstream refused it: longer than a fill that began before
/// may take.
const REFUSED_FOR: Duration = Duration::from_secs(60);
/// The largest number that Redis' scripts can add one to.
const LARGEST_NUMBER: u64 = (1 << 53) - 2;
/// How much longer a page is than what Redis holds of it, at most as a rule.
const PACKED: usize = 8;
/// A larger value would hold up what else goes over the connection for longer than an operation may take.
const LARGEST_PAGE: usize = 4 << 20;

/// What a replica shares with the others.
#[derive(Debug)]
pub struct SharedCache {
    pub(super) redis: Arc<RedisConnection>,
    /// Whose spaces an operator's purge means. What a request reads is called by the credential that it came with: a reload that changes
    /// the upstream changes both at once.
    credentials: ArcSwap<Credentials>,
    /// The spaces that others may tell something of, by the names they are told by.
    spaces: Mutex<KnownSpaces>,
    /// Who waits for another replica to fill a page.
    waiting: Mutex<HashMap<String, Weak<Notify>>>,
    drops: Mutex<Drops>,
    pending_file: Option<PathBuf>,
    saving: tokio::sync::Mutex<()>,
    sending: tokio::sync::Mutex<()>,
}

/// The newest epoch of a space and generation of a list that a replica knows of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub epoch: u64,
    pub generation: u64,
}

/// When who looks for a page wants to fill it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Not now.
    Page = 3,
    /// If it is not there, or not fresh.
    Missing = 0,
    /// In any case, unless another replica does.
    Other = 1,
    /// In any case, also while another replica does.
    Newest = 2,
}

/// What Redis holds of a page and its space.
#[derive(Debug)]
pub(super) struct Looked {
    pub epoch: u64,
    /// Where any replica has told of it in this epoch.
    pub list: Option<SharedList>,
    /// One of the state in force.
    pub page: Option<SharedPage>,
    pub lease: Lease,
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
            drops: Mutex::default(),
            pending_file: None,
            saving: tokio::sync::Mutex::default(),
            sending: tokio::sync::Mutex::default(),
        }
    }

    /// Shares the pages of `credentials` from now on.
    pub fn set_credentials(&self, credentials: Arc<Credentials>) {
        self.credentials.store(credentials);
    }

    /// Looks for a page and for the state of its space, and takes the right to fill it where it is `wanted`.
    pub(super) async fn look_up(
        &self,
        keys: &RedisKeys,
        key: &PageKey,
        known: Known,
        wanted: Wanted,
    ) -> Result<Looked, Unavailable> {
        let token = Nonce::fresh();
        let look_up = scripts::look(keys, known, token, wanted);
        let answer = self.redis.ask(RedisOperation::Look, &look_up).await;
        let answer = answer.and_then(|answer: LookAnswer| {
            let is_sound = answer.0 <= LARGEST_NUMBER && answer.1 <= Some(LARGEST_NUMBER);
            is_sound.then_some(answer).ok_or(Unavailable)
        });
        let Ok((epoch, generation, name, count, first, value, held_for)) = answer else {
            // It may have been taken all the same.
            drop(FillLock::new(self.redis.clone(), &keys.page, token));
            return Err(Unavailable);
        };
        let lease = self.lease(&keys.page, token, held_for);
        let page = match value {
            Some(value) => self.read(value, keys, key).await,
            None => None,
        };
        Ok(Looked {
            epoch,
            list: shared_list(generation, name, count, first),
            page,
            lease,
        })
    }

    /// What a look said of a lock: `held_for` so many milliseconds by another, 0 where it was taken for `token`, less where it is not wanted.
    fn lease(&self, names: &LockedNames, token: Nonce, held_for: i64) -> Lease {
        match held_for {
            0 => Lease::Acquired(FillLock::new(self.redis.clone(), names, token)),
            held @ 1.. => Lease::HeldElsewhere(Duration::from_millis(held.unsigned_abs())),
            ..0 => Lease::NotWanted,
        }
    }

    /// The page that `value` holds, if it is this one.
    async fn read(&self, value: Vec<u8>, keys: &RedisKeys, key: &PageKey) -> Option<SharedPage> {
        let (owners, key) = (keys.owners.clone(), key.clone());
        let read = by_size(PACKED * value.len(), move || {
            let saved = unseal(&value, &owners, &key)?;
            let page = read_page(&saved.body);
            Ok((saved, page))
        });
        let (saved, page) = match read.await {
            Ok((saved, Ok(page))) => (saved, page),
            // That of another version of this program is no damage.
            Err(SnapshotError::Version(_)) => return None,
            Ok((_, Err(_))) | Err(_) => {
                self.redis.metrics().failed(RedisOperation::Read);
                return None;
            }
        };
        let now = self.redis.unix_ms()?;
        // Redis' clock was set back: nobody knows how old it is.
        if saved.born_unix_ms > now + CLOCK_SKEW_MS {
            return None;
        }
        let age = Duration::from_millis(now.saturating_sub(saved.born_unix_ms));
        Some(SharedPage { saved, page, age })
    }

    /// Is told when who writes the value has ended.
    pub(super) fn listen(&self, names: &LockedNames) -> Arc<Notify> {
        let mut waiting = self.waiting.lock();
        if let Some(known) = waiting.get(&names.value).and_then(Weak::upgrade) {
            return known;
        }
        // There are as many as fills under way.
        waiting.retain(|_, who| who.strong_count() > 0);
        let told = Arc::new(Notify::new());
        waiting.insert(names.value.clone(), Arc::downgrade(&told));
        told
    }

    /// Wakes who waits for `page`.
    pub(super) fn filled(&self, page: &str) {
        if let Some(told) = self.waiting.lock().get(page).and_then(Weak::upgrade) {
            told.notify_waiters();
        }
    }

    /// Tells the others what a fill saw of its list, puts its page where they find it if it may be `kept` and `lock` is still held, and
    /// lets that go. Returns the epoch, and the state of the list in force.
    pub(super) async fn publish(
        &self,
        keys: &RedisKeys,
        shared: Shared,
        kept: bool,
        lock: Option<FillLock>,
    ) -> Result<(u64, Option<SharedList>), Unavailable> {
        let (epoch, known) = (shared.page.epoch, shared.list);
        let keep_for = shared.useful_for.min(LONGEST_PAGE);
        let list = shared.page.key.list.id.to_string();
        let value = match kept && lock.is_some() && !keep_for.is_zero() {
            true => self.sealed(keys, shared.page).await,
            false => None,
        };
        let list_for = match value {
            Some(_) => keep_for.max(UNSTORED_LIST_FOR),
            None => UNSTORED_LIST_FOR,
        };
        let store = scripts::store(
            keys,
            &Stored {
                epoch,
                list: &known,
                list_for,
                token: lock.as_ref().map(|lock| lock.token),
                value: value.as_deref().unwrap_or_default(),
                fresh_until: shared.fresh_until_ms,
                keep_for,
            },
        );
        let answer: StoreAnswer = self.redis.ask(RedisOperation::Store, &store).await?;
        let (in_force, was_behind, is_kept, generation, name, count, first) = answer;
        let state = shared_list(generation, name, count, first);
        self.redis.metrics().stored(match value {
            Some(_) => store_outcome(is_kept, in_force > epoch, state.as_ref(), &known),
            None => RedisStore::NotStorable,
        });
        if was_behind {
            self.reassert(keys, epoch).await?;
        }
        if let Some(state) = state.clone().filter(|state| {
            in_force == epoch && state.name == known.name && state.generation > known.generation
        }) {
            let moved = Event::Moved {
                space: keys.space.clone(),
                epoch,
                list,
                state,
            };
            self.log(&moved).await?;
        }
        if let Some(lock) = lock {
            lock.released();
            let page = keys.page.value.clone();
            self.log(&Event::Filled { page }).await?;
        }
        Ok((in_force, state))
    }

    /// Tells the others of a drop that Redis had lost.
    async fn reassert(&self, keys: &RedisKeys, epoch: u64) -> Result<(), Unavailable> {
        self.redis.metrics().reasserted();
        let dropped = Event::Dropped {
            space: keys.space.clone(),
            epoch,
            refused: false,
        };
        self.log(&dropped).await
    }

    async fn sealed(&self, keys: &RedisKeys, page: SavedPage) -> Option<Vec<u8>> {
        let owners = keys.owners.clone();
        let sealed = by_size(page.body.len(), move || seal(&owners, page)).await;
        sealed.filter(|value| value.len() <= LARGEST_PAGE)
    }

    /// Has Redis know the scripts before they are needed.
    pub(super) async fn load_scripts(&self, session: &Session) -> Result<(), Unavailable> {
        for script in scripts::all() {
            session.load(script).await?;
        }
        Ok(())
    }

    /// Tells Redis of the calls of the upstream that this replica made by itself.
    pub(super) async fn report_calls(&self, session: &Session) -> Result<(), Unavailable> {
        let credentials = self.credentials.load_full();
        for credential in credentials.all() {
            if let Some(calls) = credential.budget().shared() {
                calls.report(session).await?;
            }
        }
        Ok(())
    }
}

/// What became of a page whose fill saw its list as `seen`; `in_force` is the list's state afterwards.
fn store_outcome(
    is_kept: bool,
    was_dropped: bool,
    in_force: Option<&SharedList>,
    seen: &SharedList,
) -> RedisStore {
    if is_kept {
        RedisStore::Stored
    } else if was_dropped {
        RedisStore::Dropped
    } else if in_force.is_some_and(|list| list.name != seen.name) {
        RedisStore::Overtaken
    } else {
        RedisStore::Fenced
    }
}

fn shared_list(
    generation: Option<u64>,
    name: Option<Nonce>,
    count: Option<String>,
    first: Option<String>,
) -> Option<SharedList> {
    let (generation, Nonce(name)) = generation.zip(name)?;
    let head = ListHead {
        count: count.and_then(|count| count.parse().ok()),
        first_row: first.map(CompactString::from),
    };
    Some(SharedList {
        generation,
        name,
        head,
    })
}

#[cfg(test)]
mod tests;
