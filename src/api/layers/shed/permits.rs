//! Permits for requests under way: a bounded number, of which no client keeps the others out.
//!
//! Two rules. Where all permits are taken, the newest waiting request of the client with the most gives way to a client that would still
//! have no more. An answer that is being sent cannot give way, so that those of one client take no more than half of the permits.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;

use crate::telemetry::metrics::Account;

/// How many requests may be under way.
#[derive(Debug)]
pub(super) struct InFlightLimit {
    most: usize,
    /// A count, since most requests never wait: a semaphore takes a lock to give a permit back.
    taken: AtomicUsize,
    waiting: Mutex<Waiting>,
}

/// The requests that wait for something while they hold a permit.
#[derive(Debug, Default)]
struct Waiting {
    by_client: HashMap<Arc<str>, Waiters>,
    next_id: u64,
}

/// Those of one client, oldest first.
#[derive(Debug)]
struct Waiters {
    account: Account,
    tickets: BTreeMap<u64, Arc<Ticket>>,
}

/// Tells a waiting request that its permit is another's.
#[derive(Debug, Default)]
struct Ticket {
    is_given_away: AtomicBool,
    waker: AtomicWaker,
}

impl InFlightLimit {
    /// Room for `most` at once.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            taken: AtomicUsize::new(0),
            waiting: Mutex::default(),
        }
    }

    /// Takes a permit for a request of `account`; `None` where there is none for it.
    pub(super) fn take(self: &Arc<Self>, account: &Account) -> Option<Permit> {
        let next = |taken| (taken < self.most).then_some(taken + 1);
        let is_free = (self.taken)
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, next)
            .is_ok();
        // One that is given away stays taken.
        let is_ours = is_free || self.waiting().give_way_to(account);
        is_ours.then(|| Permit {
            permits: self.clone(),
            account: account.clone(),
            state: State::Running,
        })
    }

    /// How many answers of one client may be on their way out.
    fn most_sent(&self) -> usize {
        (self.most / 2).max(1)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Has the newest request of the client with the most give way, where that is more than `account` would have with one more: any less,
    /// and the two would take the same permit from each other by turns.
    fn give_way_to(&mut self, account: &Account) -> bool {
        let ours = self.held_by(account);
        let heaviest = self.by_client.values().max_by_key(|theirs| theirs.held());
        let Some(heaviest) = heaviest.filter(|theirs| theirs.held() > ours + 1) else {
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
        let known = self.by_client.get(account.client());
        known.map_or_else(|| account.answers().count(), Waiters::held)
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

impl Waiters {
    /// What their client holds, but for requests that are being worked on this moment.
    fn held(&self) -> usize {
        self.tickets.len() + self.account.answers().count()
    }
}

/// One request under way; it is not any more when this is dropped.
#[derive(Debug)]
pub struct Permit {
    permits: Arc<InFlightLimit>,
    account: Account,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Not waiting for anything yet.
    Running,
    Waiting(u64, Arc<Ticket>),
    /// An answer of so many bytes is on its way out.
    Sending(usize),
    /// The permit is another's.
    GivenAway,
}

impl Permit {
    /// Notes that the request waits: the permit may be given away from now on. Ready once it is.
    pub(super) fn poll_given_away(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if matches!(self.state, State::Running) {
            let (id, ticket) = self.permits.waiting().add(&self.account);
            self.state = State::Waiting(id, ticket);
        }
        let State::Waiting(_, ticket) = &self.state else {
            return Poll::Pending;
        };
        ticket.waker.register(cx.waker());
        if !ticket.is_given_away.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        self.state = State::GivenAway;
        Poll::Ready(())
    }

    /// The permit for as long as the answer takes to leave; `None` where it was given away, or half of all permits are held by answers of
    /// this client.
    pub(super) fn sending(mut self, bytes: usize) -> Option<Self> {
        self.stop_waiting();
        if matches!(self.state, State::GivenAway)
            || !(self.account.answers()).begin(bytes, self.permits.most_sent())
        {
            return None;
        }
        self.state = State::Sending(bytes);
        Some(self)
    }

    fn stop_waiting(&mut self) {
        if let State::Waiting(id, _) = self.state {
            let is_ours = self.permits.waiting().remove(self.account.client(), id);
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
        match self.state {
            State::GivenAway => return,
            State::Sending(bytes) => self.account.answers().end(bytes),
            State::Running | State::Waiting(..) => {}
        }
        self.permits.taken.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests;
