//! A bounded line in which clients take turns, the urgent ones first: one client that asks for much waits for itself, not the others for it.

use std::{
    collections::{HashMap, VecDeque},
    ops::ControlFlow,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

use super::Urgency;

/// Who waits for something that there is not enough of.
#[derive(Debug)]
pub(super) struct Line {
    most: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    ranks: [Rank; Urgency::ALL.len()],
    waiting: usize,
    next_ticket: u64,
}

/// Those who are equally urgent.
#[derive(Debug, Default)]
struct Rank {
    /// Each client that waits once, whose turn it is first.
    turns: VecDeque<Arc<str>>,
    /// What each of them waits with, oldest first.
    tickets: HashMap<Arc<str>, VecDeque<Ticket>>,
}

#[derive(Clone, Debug)]
struct Ticket {
    id: u64,
    told: Arc<Told>,
}

#[derive(Debug, Default)]
struct Told {
    news: Notify,
    turned_away: AtomicBool,
}

/// What `call` gives; `None` where it was not sent yet when `news` came: who still stands in line would only find out, one after
/// another, what is known already.
pub(super) async fn unless_in_line<T>(
    call: impl Future<Output = T>,
    news: impl Future<Output = ()>,
    is_sent: impl Fn() -> bool,
) -> Option<T> {
    let mut call = pin!(call);
    tokio::select! {
        biased;
        outcome = &mut call => Some(outcome),
        () = news => if is_sent() {
            Some(call.await)
        } else {
            None
        },
    }
}

/// There is no place in the line, or it went to somebody who had fewer or a better claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TurnedAway;

impl Line {
    /// A line for `most` at once.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            state: Mutex::default(),
        }
    }

    /// Waits in line until `take`, called only while it is this one's turn, breaks with what was waited for.
    ///
    /// Where `take` continues, it is called again after the time it names, or at the next [`Line::wake`]. A dropped future leaves
    /// the line.
    ///
    /// # Errors
    ///
    /// Returns [`TurnedAway`] where the line is full, at once or when others need the place more.
    pub(super) async fn stand<T, F>(
        &self,
        urgency: Urgency,
        client: &Arc<str>,
        mut take: impl FnMut() -> F,
    ) -> Result<T, TurnedAway>
    where
        F: Future<Output = ControlFlow<T, Option<Duration>>>,
    {
        let mut place = self.join(urgency, client)?;
        loop {
            if place.told.turned_away.load(Ordering::Acquire) {
                return Err(TurnedAway);
            }
            let again_after = if place.is_first() {
                match take().await {
                    ControlFlow::Break(taken) => {
                        place.is_served = true;
                        return Ok(taken);
                    }
                    ControlFlow::Continue(wait) => wait,
                }
            } else {
                None
            };
            let news = place.told.news.notified();
            match again_after {
                None => news.await,
                Some(wait) => tokio::select! {
                    () = news => {}
                    () = tokio::time::sleep(wait) => {}
                },
            }
        }
    }

    /// Has whose turn it is look again.
    pub(super) fn wake(&self) {
        self.lock().tell_first();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.lock().waiting
    }

    /// How many would be served before `client` if it came now.
    pub(super) fn ahead_of(&self, urgency: Urgency, client: &str) -> usize {
        self.lock().ahead_of(urgency, client)
    }

    fn join(&self, urgency: Urgency, client: &Arc<str>) -> Result<Place<'_>, TurnedAway> {
        let mut state = self.lock();
        if state.waiting >= self.most && !state.make_room(urgency, client) {
            return Err(TurnedAway);
        }
        let first = state.first().map(|ticket| ticket.id);
        let ticket = state.add(urgency, client);
        if state.first().map(|ticket| ticket.id) != first {
            state.tell_first();
        }
        Ok(Place {
            line: self,
            urgency,
            client: client.clone(),
            id: ticket.id,
            told: ticket.told,
            is_served: false,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn rank(&mut self, urgency: Urgency) -> &mut Rank {
        &mut self.ranks[urgency as usize]
    }

    /// Whose turn it is.
    fn first(&self) -> Option<&Ticket> {
        let rank = self.ranks.iter().find(|rank| !rank.turns.is_empty())?;
        rank.tickets.get(rank.turns.front()?)?.front()
    }

    fn tell_first(&self) {
        if let Some(ticket) = self.first() {
            ticket.told.news.notify_one();
        }
    }

    fn add(&mut self, urgency: Urgency, client: &Arc<str>) -> Ticket {
        let ticket = Ticket {
            id: self.next_ticket,
            told: Arc::default(),
        };
        self.next_ticket += 1;
        self.waiting += 1;
        let rank = self.rank(urgency);
        let tickets = rank.tickets.entry(client.clone()).or_default();
        if tickets.is_empty() {
            rank.turns.push_back(client.clone());
        }
        tickets.push_back(ticket.clone());
        ticket
    }

    /// Takes a ticket out; a client that was served has had its turn.
    fn remove(&mut self, urgency: Urgency, client: &Arc<str>, id: u64, is_served: bool) {
        let rank = self.rank(urgency);
        let Some(tickets) = rank.tickets.get_mut(client) else {
            return;
        };
        let before = tickets.len();
        tickets.retain(|ticket| ticket.id != id);
        let removed = before - tickets.len();
        let has_more = !tickets.is_empty();
        if !has_more {
            rank.tickets.remove(client);
        }
        if !has_more || is_served {
            rank.turns.retain(|waiting| waiting != client);
        }
        if has_more && is_served {
            rank.turns.push_back(client.clone());
        }
        self.waiting -= removed;
    }

    /// Turns away the last one who is less urgent, or else of a client that would still have more waiting than `client` has.
    fn make_room(&mut self, urgency: Urgency, client: &Arc<str>) -> bool {
        let of = |rank: &Rank, client: &str| rank.tickets.get(client).map_or(0, VecDeque::len);
        let ours = of(&self.ranks[urgency as usize], client);
        let found = Urgency::ALL.into_iter().rev().find_map(|other| {
            let rank = &self.ranks[other as usize];
            let longest = rank.turns.iter().max_by_key(|client| of(rank, client))?;
            let less = other > urgency || other == urgency && of(rank, longest) > ours + 1;
            less.then(|| (other, longest.clone()))
        });
        let Some((other, longest)) = found else {
            return false;
        };
        let rank = &self.ranks[other as usize];
        let Some(last) = rank.tickets[&longest].back().cloned() else {
            return false;
        };
        last.told.turned_away.store(true, Ordering::Release);
        last.told.news.notify_one();
        self.remove(other, &longest, last.id, false);
        true
    }

    fn ahead_of(&self, urgency: Urgency, client: &str) -> usize {
        let more_urgent = self.ranks[..urgency as usize].iter();
        let before: usize = more_urgent
            .flat_map(|rank| rank.tickets.values())
            .map(VecDeque::len)
            .sum();
        let tickets = &self.ranks[urgency as usize].tickets;
        let ours = tickets.get(client).map_or(0, VecDeque::len);
        // Clients take turns: until it is our next one's, each other has had as many as we will have.
        let others = tickets.iter().filter(|(other, _)| ***other != *client);
        before
            + ours
            + others
                .map(|(_, theirs)| theirs.len().min(ours + 1))
                .sum::<usize>()
    }
}

/// A place in the line, left when dropped.
struct Place<'a> {
    line: &'a Line,
    urgency: Urgency,
    client: Arc<str>,
    id: u64,
    told: Arc<Told>,
    is_served: bool,
}

impl Place<'_> {
    fn is_first(&self) -> bool {
        let state = self.line.lock();
        state.first().is_some_and(|ticket| ticket.id == self.id)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.line.lock();
        state.remove(self.urgency, &self.client, self.id, self.is_served);
        // Whoever is first now may not know, and what this one was woken for may still be there.
        state.tell_first();
    }
}

#[cfg(test)]
mod tests;
