//! A bounded number of permits, of which no client keeps the others out: for requests under way, and for those that wait for a page.
//!
//! Where all permits are taken, the newest waiting holder of the client with the most gives way to a client that would still have no more.

use std::{
    collections::{BTreeMap, HashMap},
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::telemetry::metrics::Account;

/// How many may be at something at once. Unlike tower's limit of this name it refuses, and is fair between clients.
#[derive(Debug)]
pub struct ConcurrencyLimit {
    max: usize,
    /// A count, since most holders never wait: a semaphore takes a lock to give a permit back.
    taken: AtomicUsize,
    waiting: Mutex<Waiting>,
}

/// Those that wait for something while they hold a permit.
#[derive(Debug)]
struct Waiting {
    also_held: AlsoHeld,
    by_client: HashMap<Arc<str>, Waiters>,
    next_id: u64,
}

/// What a client holds besides the permits with which it waits.
type AlsoHeld = fn(&Account) -> usize;

/// Those of one client.
#[derive(Debug)]
struct Waiters {
    account: Account,
    /// Oldest first, each to be told when its permit is another's.
    holders: BTreeMap<u64, oneshot::Sender<()>>,
}

impl ConcurrencyLimit {
    /// `max` permits; a client's share is what it waits with and what `also_held` says.
    #[must_use]
    pub fn new(max: usize, also_held: AlsoHeld) -> Arc<Self> {
        Arc::new(Self {
            max,
            taken: AtomicUsize::new(0),
            waiting: Mutex::new(Waiting {
                also_held,
                by_client: HashMap::new(),
                next_id: 0,
            }),
        })
    }

    /// How many permits there are.
    #[must_use]
    pub fn max(&self) -> usize {
        self.max
    }

    /// Takes a permit for `account`; `None` where there is none for it.
    #[must_use]
    pub fn take(self: &Arc<Self>, account: &Account) -> Option<Permit> {
        let next = |taken| (taken < self.max).then_some(taken + 1);
        let is_free = (self.taken)
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, next)
            .is_ok();
        // One that is given away stays taken.
        let is_ours = is_free || self.waiting.lock().give_way_to(account);
        is_ours.then(|| Permit {
            limit: self.clone(),
            account: account.clone(),
            state: State::Running,
        })
    }
}

impl Waiting {
    /// Has the newest holder of the client with the most give way, where that is more than `account` would have with one more: any less,
    /// and the two would take the same permit from each other by turns.
    fn give_way_to(&mut self, account: &Account) -> bool {
        let ours = self.held_by(account);
        let held = |theirs: &Waiters| theirs.holders.len() + (self.also_held)(&theirs.account);
        let heaviest = self.by_client.values().max_by_key(|theirs| held(theirs));
        let Some(heaviest) = heaviest.filter(|theirs| held(theirs) > ours + 1) else {
            return false;
        };
        let client = heaviest.account.client().clone();
        let newest = heaviest.holders.keys().next_back().copied();
        let newest = newest.and_then(|id| self.remove(&client, id));
        newest.is_some_and(|holder| holder.send(()).is_ok())
    }

    fn held_by(&self, account: &Account) -> usize {
        let waiters = self.by_client.get(account.client());
        waiters.map_or(0, |waiters| waiters.holders.len()) + (self.also_held)(account)
    }

    fn add(&mut self, account: &Account) -> (u64, oneshot::Receiver<()>) {
        let id = self.next_id;
        let (holder, given_away) = oneshot::channel();
        let ours = self.by_client.entry(account.client().clone());
        let ours = ours.or_insert_with(|| Waiters {
            account: account.clone(),
            holders: BTreeMap::new(),
        });
        ours.holders.insert(id, holder);
        self.next_id += 1;
        (id, given_away)
    }

    /// `None` where its permit was given away.
    fn remove(&mut self, client: &Arc<str>, id: u64) -> Option<oneshot::Sender<()>> {
        let ours = self.by_client.get_mut(client)?;
        let holder = ours.holders.remove(&id);
        if ours.holders.is_empty() {
            self.by_client.remove(client);
        }
        holder
    }
}

/// Leave to go on, given back when this is dropped.
#[derive(Debug)]
pub struct Permit {
    limit: Arc<ConcurrencyLimit>,
    account: Account,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Not waiting for anything.
    Running,
    Waiting(u64, oneshot::Receiver<()>),
    /// The permit is another's.
    GivenAway,
}

impl Permit {
    /// Waits until the permit is another's, which it may become from now on.
    pub async fn given_away(&mut self) {
        poll_fn(|cx| self.poll_given_away(cx)).await;
    }

    /// As [`Permit::given_away`].
    pub fn poll_given_away(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if matches!(self.state, State::Running) {
            let (id, given_away) = self.limit.waiting.lock().add(&self.account);
            self.state = State::Waiting(id, given_away);
        }
        if let State::Waiting(_, given_away) = &mut self.state {
            let _ = ready!(Pin::new(given_away).poll(cx));
            self.state = State::GivenAway;
        }
        Poll::Ready(())
    }

    /// The permit without the waiting: it gives way no more. `None` where it has given way.
    #[must_use]
    pub fn keep(mut self) -> Option<Self> {
        self.stop_waiting();
        matches!(self.state, State::Running).then_some(self)
    }

    fn stop_waiting(&mut self) {
        if let State::Waiting(id, _) = self.state {
            let ours = self.limit.waiting.lock().remove(self.account.client(), id);
            self.state = ours.map_or(State::GivenAway, |_| State::Running);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.stop_waiting();
        if matches!(self.state, State::Running) {
            self.limit.taken.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests;
