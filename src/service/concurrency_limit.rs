//! A bounded number of permits, of which no client keeps the others out: for requests under way, and for those that wait for a page.
//!
//! Where all permits are taken, the newest waiting holder of the client with the most gives way to a client that would still have no more.

use std::{
    collections::{BTreeMap, HashMap},
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;

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

/// Those of one client, oldest first.
#[derive(Debug)]
struct Waiters {
    account: Account,
    tickets: BTreeMap<u64, Arc<Ticket>>,
}

/// Tells a waiting holder that its permit is another's.
#[derive(Debug, Default)]
struct Ticket {
    is_given_away: AtomicBool,
    waker: AtomicWaker,
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
        let held = |theirs: &Waiters| theirs.tickets.len() + (self.also_held)(&theirs.account);
        let heaviest = self.by_client.values().max_by_key(|theirs| held(theirs));
        let Some(heaviest) = heaviest.filter(|theirs| held(theirs) > ours + 1) else {
            return false;
        };
        let client = heaviest.account.client().clone();
        let newest = heaviest.tickets.last_key_value();
        let Some((id, ticket)) = newest.map(|(id, ticket)| (*id, ticket.clone())) else {
            return false;
        };
        self.remove(&client, id);
        ticket.is_given_away.store(true, Ordering::Release);
        ticket.waker.wake();
        true
    }

    fn held_by(&self, account: &Account) -> usize {
        let waiters = self.by_client.get(account.client());
        waiters.map_or(0, |waiters| waiters.tickets.len()) + (self.also_held)(account)
    }

    fn add(&mut self, account: &Account) -> (u64, Arc<Ticket>) {
        let id = self.next_id;
        let ticket = Arc::<Ticket>::default();
        let ours = self.by_client.entry(account.client().clone());
        let ours = ours.or_insert_with(|| Waiters {
            account: account.clone(),
            tickets: BTreeMap::new(),
        });
        ours.tickets.insert(id, ticket.clone());
        self.next_id += 1;
        (id, ticket)
    }

    /// Returns whether it was there: what was given away is not.
    fn remove(&mut self, client: &Arc<str>, id: u64) -> bool {
        let Some(ours) = self.by_client.get_mut(client) else {
            return false;
        };
        let was_there = ours.tickets.remove(&id).is_some();
        if ours.tickets.is_empty() {
            self.by_client.remove(client);
        }
        was_there
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
    Waiting(u64, Arc<Ticket>),
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
            let (id, ticket) = self.limit.waiting.lock().add(&self.account);
            self.state = State::Waiting(id, ticket);
        }
        if let State::Waiting(_, ticket) = &self.state {
            ticket.waker.register(cx.waker());
            if !ticket.is_given_away.load(Ordering::Acquire) {
                return Poll::Pending;
            }
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
            let is_ours = self.limit.waiting.lock().remove(self.account.client(), id);
            self.state = if is_ours {
                State::Running
            } else {
                State::GivenAway
            };
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
