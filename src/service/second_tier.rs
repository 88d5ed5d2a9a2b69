//! Pages that replicas share by way of Redis: where they lie there, under which state of their space, and who fills them.
//!
//! It knows Redis and names; what a page is worth is judged by [`super::tasks`], which asks here after its memory and before the
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

use super::snapshot::owners;
use crate::{
    cache::{
        snapshot::{Owner, Owners, SavedPage, SnapshotError, seal, unseal},
        space::{ListHead, Mark},
        store::Shared,
    },
    domain::{PageKey, SpaceKey, SpaceToken, TaskPage},
    off_runtime::by_size,
    shared::{Era, Link, Lost, Nonce, Session},
    telemetry::metrics::RedisOperation,
    upstream::{Credential, Credentials, read_page},
};

mod drops;
mod news;
mod scripts;
mod turn;

use self::drops::Unsent;
pub(super) use self::{
    news::News,
    turn::{Lock, Turn},
};

/// How long a space's state outlives the last look at it: longer than any page that was written under it.
const LONGEST_PAGE: Duration = Duration::from_secs(24 * 60 * 60);
const STATE_FOR: Duration = Duration::from_secs(2 * 24 * 60 * 60);
/// A larger page would hold up what else goes over the connection for longer than an operation may take.
const LARGEST_PAGE: usize = 4 << 20;
/// Spaces whose names are remembered before those are let go that nothing is known of any more.
const FIRST_SWEEP_AT: usize = 1024;
/// Spaces asked for at once while catching up.
const AT_ONCE: usize = 200;

/// What a replica shares with the others.
#[derive(Debug)]
pub struct SecondTier {
    link: Arc<Link>,
    /// Whose spaces an operator's purge means. What a request reads is called by the credential that it came with: a reload that changes
    /// the upstream changes both at once.
    credentials: ArcSwap<Credentials>,
    /// The spaces that others may tell something of, by the names they are told by.
    spaces: Mutex<Named>,
    /// Who waits for another replica to fill a page.
    waiting: Mutex<HashMap<String, Weak<Notify>>>,
    unsent: Mutex<Unsent>,
}

#[derive(Debug)]
struct Named {
    known: HashMap<String, SpaceKey>,
    sweep_at: usize,
}

/// What a page and its space are called in Redis.
#[derive(Clone, Debug)]
pub(super) struct Names {
    owners: Owners,
    pub space: String,
    state: String,
    page: String,
    lock: String,
}

/// What Redis holds of a page and its space.
#[derive(Debug)]
pub(super) struct Looked {
    pub mark: Mark,
    pub list: ListHead,
    /// One of the state in force.
    pub page: Option<FoundPage>,
}

/// A page that another replica filled, `age` ago.
#[derive(Debug)]
pub(super) struct FoundPage {
    pub saved: SavedPage,
    /// What its body was read as.
    pub page: TaskPage,
    pub age: Duration,
}

impl SecondTier {
    #[must_use]
    pub fn new(link: Arc<Link>, credentials: Arc<Credentials>) -> Self {
        Self {
            link,
            credentials: ArcSwap::new(credentials),
            spaces: Mutex::new(Named {
                known: HashMap::new(),
                sweep_at: FIRST_SWEEP_AT,
            }),
            waiting: Mutex::default(),
            unsent: Mutex::default(),
        }
    }

    /// Shares the pages of `credentials` from now on.
    pub fn set_credentials(&self, credentials: Arc<Credentials>) {
        self.credentials.store(credentials);
    }

    #[must_use]
    pub fn is_up(&self) -> bool {
        self.link.is_up()
    }

    /// Waits until Redis is lost: then nobody is waited for.
    pub(super) async fn until_lost(&self) {
        self.link.until_lost().await;
    }

    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// What `key`, read with `credential`, is called.
    pub(super) fn names(&self, credential: &Arc<Credential>, key: &PageKey) -> Option<Names> {
        let owners = owners(std::iter::once(credential));
        let space = space_name(&owners, &key.space)?;
        let (page, size) = (key.query.page, key.query.page_size);
        let named = |kind| self.link.name(&format!("{kind}:{space}:{page}:{size}"));
        Some(Names {
            owners,
            state: self.state_key(&space),
            page: named("page"),
            lock: named("lock"),
            space,
        })
    }

    fn state_key(&self, space: &str) -> String {
        self.link.name(&format!("space:{space}"))
    }

    /// Remembers what `key` is called; those are let go that the caller does not know.
    fn remember(&self, space: &str, key: &SpaceKey, knows: impl Fn(&SpaceKey) -> bool) {
        let mut spaces = self.spaces.lock();
        if spaces.known.get(space) == Some(key) {
            return;
        }
        if spaces.known.len() >= spaces.sweep_at {
            spaces.known.retain(|_, key| knows(key));
            spaces.sweep_at = (2 * spaces.known.len()).max(FIRST_SWEEP_AT);
        }
        spaces.known.insert(space.to_owned(), key.clone());
    }

    /// Remembers all that other replicas may call a space, whichever of its credential's tokens they use.
    pub(super) fn remember_space(
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

    /// The space that others call so.
    pub(super) fn space(&self, name: &str) -> Option<SpaceKey> {
        self.spaces.lock().known.get(name).cloned()
    }

    /// Looks for a page and for the state of its space, which begins with `generation` where nobody knows of another.
    pub(super) async fn look(
        &self,
        names: &Names,
        key: &PageKey,
        generation: u64,
    ) -> Result<Looked, Lost> {
        let era = self.link.era().ok_or(Lost)?;
        let script = Script::new(scripts::LOOK);
        let mut look = script.key(self.link.era_key());
        look.key(&names.state)
            .key(&names.page)
            .arg(Nonce::fresh())
            .arg(Nonce(generation))
            .arg(ms(STATE_FOR));
        let answer: LookAnswer = self.link.ask(RedisOperation::Look, &look).await?;
        let (birth, purge, epoch, generation, count, first, value) = answer;
        if birth != Some(era.birth) {
            self.link.doubt();
            return Err(Lost);
        }
        // A purge of which word is on its way.
        if purge != Some(era.purge) {
            return Err(Lost);
        }
        let mark = mark(&names.space, era, epoch, generation);
        let page = match value {
            Some(value) => self.read(value, names, key, mark).await,
            None => None,
        };
        Ok(Looked {
            mark,
            list: ListHead {
                count,
                first_task: first.map(CompactString::from),
            },
            page,
        })
    }

    /// The page that `value` holds, if it is this one and of the state in force.
    async fn read(
        &self,
        value: Vec<u8>,
        names: &Names,
        key: &PageKey,
        mark: Mark,
    ) -> Option<FoundPage> {
        let (owners, key) = (names.owners.clone(), key.clone());
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
                self.link.unreadable();
                return None;
            }
        };
        let now = self.link.unix_ms()?;
        let age = Duration::from_millis(now.saturating_sub(saved.born_unix_ms));
        (saved.mark == Some(mark)).then_some(FoundPage { saved, page, age })
    }

    /// Is told when who fills the page has ended.
    pub(super) fn listen(&self, names: &Names) -> Arc<Notify> {
        let mut waiting = self.waiting.lock();
        if let Some(known) = waiting.get(&names.page).and_then(Weak::upgrade) {
            return known;
        }
        // There are as many as fills under way.
        waiting.retain(|_, who| who.strong_count() > 0);
        let told = Arc::new(Notify::new());
        waiting.insert(names.page.clone(), Arc::downgrade(&told));
        told
    }

    /// Wakes who waits for `page`.
    pub(super) fn filled(&self, page: &str) {
        if let Some(told) = self.waiting.lock().get(page).and_then(Weak::upgrade) {
            told.notify_waiters();
        }
    }

    /// Puts a page where the others find it, and lets `turn` go. Returns the state of the space that is in force.
    pub(super) async fn publish(
        &self,
        names: &Names,
        shared: Shared,
        turn: Option<Lock>,
    ) -> Result<Option<(Mark, ListHead)>, Lost> {
        let era = self.link.era().ok_or(Lost)?;
        let (before, mark, list) = (shared.before, shared.mark, shared.list);
        let keep_for = shared.useful_for.min(LONGEST_PAGE);
        if mark.era != [era.birth.0, era.purge.0] || keep_for.is_zero() {
            return Ok(None);
        }
        let (owners, page) = (names.owners.clone(), shared.page);
        let sealed = by_size(page.body.len(), move || seal(&owners, page)).await;
        let Some(value) = sealed.filter(|value| value.len() <= LARGEST_PAGE) else {
            return Ok(None);
        };
        let moved = News::Moved {
            space: names.space.clone(),
            generation: Nonce(mark.generation),
        };
        let script = Script::new(scripts::STORE);
        let mut store = script.key(self.link.era_key());
        store
            .key(&names.state)
            .key(&names.page)
            .key(&names.lock)
            .arg(era.birth)
            .arg(era.purge)
            .arg(Nonce(mark.epoch))
            .arg(Nonce(before.generation))
            .arg(Nonce(mark.generation))
            .arg(
                list.count
                    .map_or_else(String::new, |count| count.to_string()),
            )
            .arg(list.first_task.as_deref().unwrap_or_default())
            .arg(value)
            .arg(ms(keep_for).max(1))
            .arg(turn.as_ref().map_or(Nonce(0), |turn| turn.token))
            .arg(self.link.channel())
            .arg(self.message(moved))
            .arg(self.message(News::Filled {
                page: names.page.clone(),
            }));
        let answer: StoreAnswer = self.link.ask(RedisOperation::Store, &store).await?;
        if let Some(turn) = turn {
            turn.released();
        }
        Ok(answer.map(|(epoch, generation, count, first)| {
            let list = ListHead {
                count,
                first_task: first.map(CompactString::from),
            };
            (self::mark(&names.space, era, epoch, generation), list)
        }))
    }

    /// Tells Redis of the calls of the upstream that this replica made by itself.
    pub(super) async fn report_calls(&self, session: &Session) -> Result<(), Lost> {
        let credentials = self.credentials.load_full();
        for credential in credentials.all() {
            if let Some(calls) = credential.purse().shared() {
                calls.report(session).await?;
            }
        }
        Ok(())
    }

    /// Finds which of `spaces` are still what this replica knows them as, under the era of `session`: each with its mark there.
    ///
    /// A Redis that has forgotten is told what this replica knows. One that has not is right: a space it knows nothing of may have been
    /// dropped there.
    pub(super) async fn still(
        &self,
        session: &Session,
        spaces: Vec<(SpaceKey, Option<Mark>, u64)>,
    ) -> Result<Vec<(SpaceKey, Option<Mark>)>, Lost> {
        let forgot = session
            .before
            .is_some_and(|before| before.birth != session.era.birth);
        let credentials = self.credentials.load_full();
        let named: Vec<_> = spaces
            .into_iter()
            .map(|(key, mark, generation)| {
                let mut all = credentials.all();
                let name = all
                    .find(|credential| credential.id == key.credential)
                    .map(|credential| owners(std::iter::once(credential)))
                    .and_then(|owners| space_name(&owners, &key));
                (key, mark, generation, name)
            })
            .collect();
        let script = Script::new(scripts::STILL);
        let mut found = Vec::with_capacity(named.len());
        for some in named.chunks(AT_ONCE) {
            let mut still = script.prepare_invoke();
            still.arg(ms(STATE_FOR));
            let mut offered = Vec::with_capacity(some.len());
            for (key, mark, generation, name) in some {
                let Some(name) = name else {
                    found.push((key.clone(), None));
                    continue;
                };
                let known = mark.filter(|_| forgot);
                let epoch = known.map_or_else(Nonce::fresh, |mark| Nonce(mark.epoch));
                let generation = mark.map_or(*generation, |mark| mark.generation);
                still
                    .key(self.state_key(name))
                    .arg(epoch)
                    .arg(Nonce(generation))
                    .arg(u8::from(known.is_some()));
                self.remember(name, key, |_| true);
                offered.push((key, mark, name, epoch));
            }
            let answers: Vec<(Nonce, Nonce)> = session.ask(&still).await?;
            for ((key, known, name, offered), (epoch, generation)) in
                offered.into_iter().zip(answers)
            {
                // What nobody else knew until now is what this replica says.
                let same = match known {
                    Some(known) => known.epoch == epoch.0,
                    None => offered == epoch,
                };
                let mark = mark(name, session.era, epoch, generation);
                found.push((key.clone(), same.then_some(mark)));
            }
        }
        Ok(found)
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

fn space_name(owners: &Owners, key: &SpaceKey) -> Option<String> {
    let (owner, seal) = owners.known(key.credential).next()?;
    Some(named(owner, seal, &key.space))
}

/// What a space is called by `credential`, with either of its tokens: another replica may use the other.
fn names_of(credential: &Arc<Credential>, space: &SpaceToken) -> Vec<String> {
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

fn mark(space: &str, era: Era, epoch: Nonce, generation: Nonce) -> Mark {
    let digest: [u8; blake3::OUT_LEN] = blake3::hash(space.as_bytes()).into();
    let (name, _) = digest.split_first_chunk().expect("a digest is longer");
    Mark {
        name: u64::from_le_bytes(*name),
        era: [era.birth.0, era.purge.0],
        epoch: epoch.0,
        generation: generation.0,
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
