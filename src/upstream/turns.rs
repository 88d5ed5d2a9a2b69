//! Whose fill gets the next call: the policy of `docs/quota.md`, as functions of who waits and who was served.
//!
//! Clients take turns by start-time fair queueing (Goyal, Vin and Cheng, 1996): each call that a client gets moves its next turn on by
//! one, also while it is away. A client that comes back is behind by what it had, and never ahead of who kept waiting.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use tokio::time::Instant;

use super::waiters::{Need, Waiter};

/// A fill that waits for a call, as the order sees it.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub waiters: Vec<Waiter>,
    /// Whether a request waits for it right now.
    pub is_attended: bool,
    /// Whether its page or space failed the last time.
    pub is_failing: bool,
}

/// On whose account a fill is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Client(Arc<str>),
    /// The share of the refreshes.
    Refresh,
}

/// Who was served how often, as far as it still matters.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns {
    /// The next turn of each client that is ahead of `current`.
    next: HashMap<Arc<str>, u64>,
    /// The turn that was served last.
    current: u64,
    /// Whether a client was served last, so that a refresh is next.
    owes_refresh: bool,
}

/// The place of a candidate in the order: the least is served first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    kind: Kind,
    /// The turn of a client, or the time by which a refresh is due.
    turn: u64,
    due: Option<Instant>,
    is_unattended: bool,
    /// Whether what is shown meanwhile may be shown for another reason than the missing call.
    is_younger: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Begun,
    First,
    Second,
}

impl Turns {
    /// The candidate that is served next, and on whose account. `candidates` are in the order of their arrival.
    ///
    /// `may_fail` is whether a failing page is served although others wait.
    pub(super) fn choose<'a>(
        &self,
        candidates: impl Iterator<Item = &'a Candidate> + Clone,
        may_fail: bool,
        now: Instant,
    ) -> Option<(usize, Turn)> {
        let works = |candidate: &Candidate| !candidate.is_failing;
        let only_failing = !candidates.clone().any(works);
        candidates
            .enumerate()
            .filter(|(_, candidate)| works(candidate) || may_fail || only_failing)
            .map(|(index, candidate)| {
                let (place, turn) = self.place(candidate, now);
                (place, index, turn)
            })
            .min_by_key(|(place, index, _)| (*place, *index))
            .map(|(_, index, turn)| (index, turn))
    }

    /// On whose account a fill for `waiters` would be served.
    pub(super) fn turn(&self, waiters: &[Waiter], now: Instant) -> Turn {
        self.place_of(waiters, false, now).1
    }

    fn place(&self, candidate: &Candidate, now: Instant) -> (Place, Turn) {
        self.place_of(&candidate.waiters, !candidate.is_attended, now)
    }

    fn place_of(&self, waiters: &[Waiter], is_unattended: bool, now: Instant) -> (Place, Turn) {
        let of_waiter = |waiter: &Waiter| {
            let client = |kind| {
                let place = Place {
                    kind,
                    turn: self.turn_of(&waiter.client),
                    due: None,
                    is_unattended,
                    is_younger: waiter.need != Need::Oldest,
                };
                (place, Turn::Client(waiter.client.clone()))
            };
            let (clients, refreshes) = match self.owes_refresh {
                true => (Kind::Second, Kind::First),
                false => (Kind::First, Kind::Second),
            };
            match waiter.need {
                Need::Begun => client(Kind::Begun),
                Need::Oldest | Need::Nothing | Need::Forced => client(clients),
                // Twice as old as its lifetime: its client waits for it as for any other.
                Need::Refresh(due) if due <= now => client(clients),
                Need::Refresh(due) => {
                    let place = Place {
                        kind: refreshes,
                        turn: 0,
                        due: Some(due),
                        is_unattended: false,
                        is_younger: true,
                    };
                    (place, Turn::Refresh)
                }
            }
        };
        let places = waiters.iter().map(of_waiter);
        places
            .min_by_key(|(place, _)| *place)
            .expect("a fill has a waiter")
    }

    /// The candidate that yields where there is no room for one of `newcomers`: the refresh that is due last, else the newest of the
    /// client with the most, if that is more than the newcomer's would be.
    pub(super) fn displaceable<'a>(
        &self,
        candidates: impl Iterator<Item = &'a Candidate>,
        newcomers: &[Waiter],
        now: Instant,
    ) -> Option<usize> {
        let places: Vec<_> = candidates
            .map(|candidate| self.place(candidate, now))
            .collect();
        let refreshes = places.iter().enumerate();
        let last = refreshes.max_by_key(|(_, (place, _))| place.due)?;
        let (newcomer, turn) = self.place_of(newcomers, true, now);
        let Turn::Client(client) = turn else {
            return (last.1.0.due > newcomer.due).then_some(last.0);
        };
        if last.1.0.due.is_some() {
            return Some(last.0);
        }
        let of = |turn: &Turn| places.iter().filter(|(_, held)| held == turn).count();
        let most = places.iter().max_by_key(|(_, turn)| of(turn))?;
        (of(&most.1) > of(&Turn::Client(client)) + 1)
            .then(|| places.iter().rposition(|(_, turn)| *turn == most.1))?
    }

    fn turn_of(&self, client: &Arc<str>) -> u64 {
        self.next.get(client).copied().unwrap_or(self.current)
    }

    /// Notes that a fill was served on the account of `turn`.
    pub(super) fn served(&mut self, turn: &Turn) {
        let Turn::Client(client) = turn else {
            self.owes_refresh = false;
            return;
        };
        self.owes_refresh = true;
        self.current = self.current.max(self.turn_of(client));
        match self.next.entry(client.clone()) {
            Entry::Occupied(mut next) => *next.get_mut() = self.current + 1,
            Entry::Vacant(free) => {
                free.insert(self.current + 1);
            }
        }
        self.next.retain(|_, next| *next > self.current);
    }

    /// How many of `candidates` are served before one more of `waiter`'s.
    ///
    /// Each client is served as often as this one, and refreshes as often as all clients together.
    pub(super) fn ahead_of<'a>(
        &self,
        waiter: &Waiter,
        candidates: impl Iterator<Item = &'a Candidate>,
        now: Instant,
    ) -> usize {
        let mut clients: HashMap<Arc<str>, usize> = HashMap::new();
        let (mut begun, mut refreshes) = (0, 0);
        for candidate in candidates {
            match self.place(candidate, now) {
                (place, _) if place.kind == Kind::Begun => begun += 1,
                (_, Turn::Refresh) => refreshes += 1,
                (_, Turn::Client(client)) => *clients.entry(client).or_default() += 1,
            }
        }
        if waiter.need == Need::Begun {
            return begun;
        }
        let ours = clients.remove(&waiter.client).unwrap_or(0);
        let first = self.turn_of(&waiter.client);
        let others = clients.iter().map(|(client, waiting)| {
            // Who is behind is served once less.
            let rounds = ours + usize::from(self.turn_of(client) <= first);
            rounds.min(*waiting)
        });
        let ahead = ours + others.sum::<usize>();
        begun + ahead + refreshes.min(ahead + usize::from(self.owes_refresh))
    }
}

#[cfg(test)]
mod tests;
