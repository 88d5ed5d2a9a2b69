//! A bounded queue that serves higher priorities first and, within a priority, the clients in turn: a client with many requests delays
//! only itself.
//!
//! A request of several clients waits in the queue of each, and is served at the first turn of any of them.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::ControlFlow,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;

use super::{Priority, Waiter, Waiters};

/// Requests that wait for something scarce, such as a slot or a call.
#[derive(Debug)]
pub(super) struct FairQueue {
    most: usize,
    state: Mutex<State>,
}

#[derive(Clone, Debug, Default)]
struct State {
    ranks: [Rank; Priority::ALL.len()],
    tickets: BTreeMap<TicketId, Ticket>,
    next_ticket: TicketId,
}

/// The queues of one priority.
#[derive(Clone, Debug, Default)]
struct Rank {
    /// Each waiting client once, in the order of their turns.
    turns: VecDeque<Arc<str>>,
    /// The tickets of each client, oldest first.
    queues: HashMap<Arc<str>, VecDeque<TicketId>>,
}

/// Newer tickets have higher numbers.
type TicketId = u64;

#[derive(Clone, Debug)]
struct Ticket {
    /// Notified when it may be their turn.
    waiters: Waiters,
    /// The waiters that have entered a queue.
    entered: Vec<Waiter>,
}

/// The queue is full, or a client with fewer requests or a higher priority took the position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QueueFull;

impl FairQueue {
    /// A queue for `most` requests at once.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            state: Mutex::default(),
        }
    }

    /// Waits until `take`, which is called only while it is the turn of one of `waiters`, breaks with a value.
    ///
    /// Where `take` continues, it is called again after the time it names, or at the next [`FairQueue::wake`]. A waiter that joins
    /// meanwhile counts from then on. Dropping the future leaves the queue.
    ///
    /// # Errors
    ///
    /// Returns [`QueueFull`] at once where the queue is full, or later when the position is given to another request.
    pub(super) async fn wait<T, F>(
        &self,
        waiters: &Waiters,
        mut take: impl FnMut() -> F,
    ) -> Result<T, QueueFull>
    where
        F: Future<Output = ControlFlow<T, Option<Duration>>>,
    {
        let mut position = self.join(waiters)?;
        loop {
            let again_after = match position.turn()? {
                Some(turn) => match take().await {
                    ControlFlow::Break(taken) => {
                        position.served = Some(turn);
                        return Ok(taken);
                    }
                    ControlFlow::Continue(wait) => wait,
                },
                None => None,
            };
            match again_after {
                None => waiters.notified().await,
                Some(wait) => tokio::select! {
                    () = waiters.notified() => {}
                    () = tokio::time::sleep(wait) => {}
                },
            }
        }
    }

    /// Wakes the request whose turn it is.
    pub(super) fn wake(&self) {
        self.state.lock().notify_first();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of waiting requests.
    pub(super) fn len(&self) -> usize {
        self.state.lock().tickets.len()
    }

    /// How many requests would be served before one of `waiters` that joined now.
    pub(super) fn ahead_of(&self, waiters: &Waiters) -> usize {
        // Simulated on a copy: a request of several clients leaves several queues at once, so their lengths do not add up.
        let mut rehearsal = self.state.lock().clone();
        let ours = rehearsal.add(waiters, &waiters.present());
        rehearsal.count_before(ours)
    }

    fn join(&self, waiters: &Waiters) -> Result<Position<'_>, QueueFull> {
        let present = waiters.present();
        let mut state = self.state.lock();
        if state.tickets.len() >= self.most {
            state.enter_late_waiters();
            let last = state.displaceable_by(&present).ok_or(QueueFull)?;
            state.displace(last);
        }
        let id = state.add(waiters, &present);
        Ok(Position {
            queue: self,
            waiters: waiters.clone(),
            id,
            served: None,
        })
    }
}

impl State {
    fn rank(&mut self, priority: Priority) -> &mut Rank {
        &mut self.ranks[priority as usize]
    }

    /// The next ticket to serve, and the waiter whose turn it is.
    fn first(&self) -> Option<(TicketId, Waiter)> {
        Priority::ALL.into_iter().find_map(|priority| {
            let rank = &self.ranks[priority as usize];
            let client = rank.turns.front()?;
            let id = rank.queues.get(client)?.front()?;
            let client = client.clone();
            Some((*id, Waiter { priority, client }))
        })
    }

    fn notify_first(&self) {
        let first = self.first().and_then(|(id, _)| self.tickets.get(&id));
        if let Some(ticket) = first {
            ticket.waiters.notify();
        }
    }

    fn add(&mut self, waiters: &Waiters, present: &[Waiter]) -> TicketId {
        let id = self.next_ticket;
        self.next_ticket += 1;
        let ticket = Ticket {
            waiters: waiters.clone(),
            entered: Vec::new(),
        };
        self.tickets.insert(id, ticket);
        self.enter(id, present);
        id
    }

    /// Puts a ticket into the queues of its new waiters.
    fn enter(&mut self, id: TicketId, present: &[Waiter]) {
        let Some(ticket) = self.tickets.get_mut(&id) else {
            return;
        };
        for waiter in present {
            if ticket.entered.contains(waiter) {
                continue;
            }
            let of_client = |held: &Waiter| held.client == waiter.client;
            if let Some(less_important) = ticket.entered.iter().position(of_client) {
                let left = ticket.entered.swap_remove(less_important);
                self.ranks[left.priority as usize].leave(&left.client, id);
            }
            ticket.entered.push(waiter.clone());
            self.ranks[waiter.priority as usize].enter(&waiter.client, id);
        }
    }

    /// Enters waiters that joined meanwhile: one of a higher priority may save a ticket from being displaced.
    fn enter_late_waiters(&mut self) {
        let tickets = self.tickets.iter();
        let all: Vec<_> = tickets
            .map(|(id, ticket)| (*id, ticket.waiters.present()))
            .collect();
        for (id, present) in all {
            self.enter(id, &present);
        }
    }

    /// Takes a ticket out of all its queues.
    fn remove(&mut self, id: TicketId) {
        let Some(ticket) = self.tickets.remove(&id) else {
            return;
        };
        for waiter in &ticket.entered {
            self.rank(waiter.priority).leave(&waiter.client, id);
        }
    }

    /// Takes a ticket out and ends the turn of `turn`; its other waiters keep theirs.
    fn serve(&mut self, id: TicketId, turn: &Waiter) {
        self.remove(id);
        self.rank(turn.priority).end_turn(&turn.client);
    }

    /// Takes a ticket out, which its owner finds missing when it looks.
    fn displace(&mut self, id: TicketId) {
        if let Some(ticket) = self.tickets.get(&id) {
            ticket.waiters.notify();
        }
        self.remove(id);
        // It may have been first.
        self.notify_first();
    }

    /// The newest ticket of the lowest priority, if all its waiters yield to one of `newcomers`.
    fn displaceable_by(&self, newcomers: &[Waiter]) -> Option<TicketId> {
        let yields = |held: &Waiter| newcomers.iter().any(|new| self.yields(held, new));
        let rank = |held: &Waiter| (held.priority, self.waiting_of(held));
        let tickets = self.tickets.iter();
        let last = tickets
            .filter(|(_, ticket)| ticket.entered.iter().all(yields))
            // A ticket has the highest priority of its waiters.
            .max_by_key(|(id, ticket)| (ticket.entered.iter().map(rank).min(), **id));
        last.map(|(id, _)| *id)
    }

    /// Whether `held` has a lower priority than `newcomer`, or its client would still have no fewer tickets after the exchange.
    fn yields(&self, held: &Waiter, newcomer: &Waiter) -> bool {
        held.priority > newcomer.priority
            || held.priority == newcomer.priority
                && self.waiting_of(held) > self.waiting_of(newcomer) + 1
    }

    /// How many tickets of the same priority the waiter's client has.
    fn waiting_of(&self, waiter: &Waiter) -> usize {
        let rank = &self.ranks[waiter.priority as usize];
        rank.queues.get(&waiter.client).map_or(0, VecDeque::len)
    }

    /// Serves the queue until `ours` is first; returns how many were served before it.
    fn count_before(&mut self, ours: TicketId) -> usize {
        let mut before = 0;
        while let Some((id, turn)) = self.first().filter(|(id, _)| *id != ours) {
            self.serve(id, &turn);
            before += 1;
        }
        before
    }
}

impl Rank {
    fn enter(&mut self, client: &Arc<str>, id: TicketId) {
        let queue = self.queues.entry(client.clone()).or_default();
        if queue.is_empty() {
            self.turns.push_back(client.clone());
        }
        queue.push_back(id);
    }

    fn leave(&mut self, client: &Arc<str>, id: TicketId) {
        let Some(queue) = self.queues.get_mut(client) else {
            return;
        };
        queue.retain(|waiting| *waiting != id);
        if queue.is_empty() {
            self.queues.remove(client);
            self.turns.retain(|waiting| waiting != client);
        }
    }

    /// Moves `client`, if it has more tickets, behind the others.
    fn end_turn(&mut self, client: &Arc<str>) {
        if let Some(at) = self.turns.iter().position(|waiting| waiting == client) {
            self.turns.remove(at);
            self.turns.push_back(client.clone());
        }
    }
}

/// A position in the queue, given up when dropped.
struct Position<'a> {
    queue: &'a FairQueue,
    waiters: Waiters,
    id: TicketId,
    /// The waiter whose turn it was.
    served: Option<Waiter>,
}

impl Position<'_> {
    /// The waiter of this ticket whose turn it is, if any.
    fn turn(&self) -> Result<Option<Waiter>, QueueFull> {
        let present = self.waiters.present();
        let mut state = self.queue.state.lock();
        if !state.tickets.contains_key(&self.id) {
            return Err(QueueFull);
        }
        state.enter(self.id, &present);
        let first = state.first().filter(|(id, _)| *id == self.id);
        Ok(first.map(|(_, turn)| turn))
    }
}

impl Drop for Position<'_> {
    fn drop(&mut self) {
        let mut state = self.queue.state.lock();
        match &self.served {
            Some(turn) => state.serve(self.id, turn),
            None => state.remove(self.id),
        }
        // The next one may not know that it is first now, and what this one was woken for may still be there.
        state.notify_first();
    }
}

#[cfg(test)]
mod tests;
