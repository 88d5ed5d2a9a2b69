//! A bounded line in which clients take turns, the urgent ones first: one client that asks for much waits for itself, not the others for it.
//!
//! What several clients want stands in the queue of each, and is served when the first of them has its turn.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::ControlFlow,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;

use super::{Claim, Claims, Urgency};

/// Who waits for something that there is not enough of.
#[derive(Debug)]
pub(super) struct Line {
    most: usize,
    state: Mutex<State>,
}

#[derive(Clone, Debug, Default)]
struct State {
    ranks: [Rank; Urgency::ALL.len()],
    tickets: BTreeMap<TicketId, Ticket>,
    next_ticket: TicketId,
}

/// Those who are equally urgent.
#[derive(Clone, Debug, Default)]
struct Rank {
    /// Each client that waits once, whose turn it is first.
    turns: VecDeque<Arc<str>>,
    /// What each of them waits with, oldest claim first.
    queues: HashMap<Arc<str>, VecDeque<TicketId>>,
}

/// The higher the newer.
type TicketId = u64;

#[derive(Clone, Debug)]
struct Ticket {
    /// Told when it is time to look.
    claims: Claims,
    /// Those of the claims that are in a queue.
    entered: Vec<Claim>,
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

    /// Waits in line until `take`, called only while it is the turn of one of `claims`, breaks with what was waited for.
    ///
    /// Where `take` continues, it is called again after the time it names, or at the next [`Line::wake`]. A claim that is added
    /// meanwhile counts from then on. A dropped future leaves the line.
    ///
    /// # Errors
    ///
    /// Returns [`TurnedAway`] where the line is full, at once or when others need the place more.
    pub(super) async fn stand<T, F>(
        &self,
        claims: &Claims,
        mut take: impl FnMut() -> F,
    ) -> Result<T, TurnedAway>
    where
        F: Future<Output = ControlFlow<T, Option<Duration>>>,
    {
        let mut place = self.join(claims)?;
        loop {
            let again_after = match place.turn()? {
                Some(turn) => match take().await {
                    ControlFlow::Break(taken) => {
                        place.served = Some(turn);
                        return Ok(taken);
                    }
                    ControlFlow::Continue(wait) => wait,
                },
                None => None,
            };
            match again_after {
                None => claims.told().await,
                Some(wait) => tokio::select! {
                    () = claims.told() => {}
                    () = tokio::time::sleep(wait) => {}
                },
            }
        }
    }

    /// Has whose turn it is look again.
    pub(super) fn wake(&self) {
        self.state.lock().tell_first();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.state.lock().tickets.len()
    }

    /// How many would be served before `claims` if they came now.
    pub(super) fn ahead_of(&self, claims: &Claims) -> usize {
        // Played through on a copy: what several want leaves several queues at once, which no sum of lengths tells.
        let mut rehearsal = self.state.lock().clone();
        let ours = rehearsal.add(claims, &claims.present());
        rehearsal.count_before(ours)
    }

    fn join(&self, claims: &Claims) -> Result<Place<'_>, TurnedAway> {
        let present = claims.present();
        let mut state = self.state.lock();
        if state.tickets.len() >= self.most {
            state.enter_late_claims();
            let last = state.who_makes_room_for(&present).ok_or(TurnedAway)?;
            state.turn_away(last);
        }
        let id = state.add(claims, &present);
        Ok(Place {
            line: self,
            claims: claims.clone(),
            id,
            served: None,
        })
    }
}

impl State {
    fn rank(&mut self, urgency: Urgency) -> &mut Rank {
        &mut self.ranks[urgency as usize]
    }

    /// What is served next, and whose turn that is.
    fn first(&self) -> Option<(TicketId, Claim)> {
        Urgency::ALL.into_iter().find_map(|urgency| {
            let rank = &self.ranks[urgency as usize];
            let client = rank.turns.front()?;
            let id = rank.queues.get(client)?.front()?;
            let client = client.clone();
            Some((*id, Claim { urgency, client }))
        })
    }

    fn tell_first(&self) {
        let first = self.first().and_then(|(id, _)| self.tickets.get(&id));
        if let Some(ticket) = first {
            ticket.claims.tell();
        }
    }

    fn add(&mut self, claims: &Claims, present: &[Claim]) -> TicketId {
        let id = self.next_ticket;
        self.next_ticket += 1;
        let ticket = Ticket {
            claims: claims.clone(),
            entered: Vec::new(),
        };
        self.tickets.insert(id, ticket);
        self.enter(id, present);
        id
    }

    /// Puts a ticket into the queues of those of its claims that are new.
    fn enter(&mut self, id: TicketId, present: &[Claim]) {
        let Some(ticket) = self.tickets.get_mut(&id) else {
            return;
        };
        for claim in present {
            if ticket.entered.contains(claim) {
                continue;
            }
            let of_client = |held: &Claim| held.client == claim.client;
            if let Some(less_urgent) = ticket.entered.iter().position(of_client) {
                let left = ticket.entered.swap_remove(less_urgent);
                self.ranks[left.urgency as usize].leave(&left.client, id);
            }
            ticket.entered.push(claim.clone());
            self.ranks[claim.urgency as usize].enter(&claim.client, id);
        }
    }

    /// Enters what was claimed meanwhile: nobody should be turned away for what a better claim would have kept.
    fn enter_late_claims(&mut self) {
        let tickets = self.tickets.iter();
        let all: Vec<_> = tickets
            .map(|(id, ticket)| (*id, ticket.claims.present()))
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
        for claim in &ticket.entered {
            self.rank(claim.urgency).leave(&claim.client, id);
        }
    }

    /// Takes a ticket out by the turn of `turn`; the others that wanted it have still to have theirs.
    fn serve(&mut self, id: TicketId, turn: &Claim) {
        self.remove(id);
        self.rank(turn.urgency).end_turn(&turn.client);
    }

    /// Tells a ticket's holder by taking the ticket out.
    fn turn_away(&mut self, id: TicketId) {
        if let Some(ticket) = self.tickets.get(&id) {
            ticket.claims.tell();
        }
        self.remove(id);
        // It may have been the first.
        self.tell_first();
    }

    /// The newest of what matters least, where all who claim it yield to who comes with `newcomers`.
    fn who_makes_room_for(&self, newcomers: &[Claim]) -> Option<TicketId> {
        let yields = |held: &Claim| newcomers.iter().any(|new| self.yields(held, new));
        let rank = |held: &Claim| (held.urgency, self.waiting_of(held));
        let tickets = self.tickets.iter();
        let last = tickets
            .filter(|(_, ticket)| ticket.entered.iter().all(yields))
            // A ticket matters as much as to the one to whom it matters most.
            .max_by_key(|(id, ticket)| (ticket.entered.iter().map(rank).min(), **id));
        last.map(|(id, _)| *id)
    }

    /// Whether who holds a claim is less urgent than a newcomer, or would even with one fewer have no less than it with one more.
    fn yields(&self, held: &Claim, newcomer: &Claim) -> bool {
        held.urgency > newcomer.urgency
            || held.urgency == newcomer.urgency
                && self.waiting_of(held) > self.waiting_of(newcomer) + 1
    }

    /// How much the client of `claim` waits for as urgently.
    fn waiting_of(&self, claim: &Claim) -> usize {
        let rank = &self.ranks[claim.urgency as usize];
        rank.queues.get(&claim.client).map_or(0, VecDeque::len)
    }

    /// Serves the line until `ours` is first; returns how many were before it.
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

    /// Lets the others have their turn first, where `client` waits for more.
    fn end_turn(&mut self, client: &Arc<str>) {
        if let Some(at) = self.turns.iter().position(|waiting| waiting == client) {
            self.turns.remove(at);
            self.turns.push_back(client.clone());
        }
    }
}

/// A place in the line, left when dropped.
struct Place<'a> {
    line: &'a Line,
    claims: Claims,
    id: TicketId,
    /// By whose turn.
    served: Option<Claim>,
}

impl Place<'_> {
    /// Whose turn it is to have this served, if it is one of its own.
    fn turn(&self) -> Result<Option<Claim>, TurnedAway> {
        let present = self.claims.present();
        let mut state = self.line.state.lock();
        if !state.tickets.contains_key(&self.id) {
            return Err(TurnedAway);
        }
        state.enter(self.id, &present);
        let first = state.first().filter(|(id, _)| *id == self.id);
        Ok(first.map(|(_, turn)| turn))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.line.state.lock();
        match &self.served {
            Some(turn) => state.serve(self.id, turn),
            None => state.remove(self.id),
        }
        // Whoever is first now may not know, and what this one was woken for may still be there.
        state.tell_first();
    }
}

#[cfg(test)]
mod tests;
