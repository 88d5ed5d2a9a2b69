//! What is known of one space and what changed there of late: pages go in, events come out. No I/O and no clock.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    cursor::Position,
    event::{self, Projection, TaskEvent},
    log::{Bounds, Gone, Log},
    moment::Moment,
    reading::{Change, Reading, Rules},
    watched::Watched,
};

/// Which events of tasks a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskEvents {
    pub created: bool,
    pub updated: bool,
}

impl TaskEvents {
    pub const ALL: Self = Self {
        created: true,
        updated: true,
    };

    fn contain(self, kind: TaskEvent) -> bool {
        match kind {
            TaskEvent::Created => self.created,
            TaskEvent::Updated => self.updated,
        }
    }
}

/// An event of a task, ready to be sent.
#[derive(Clone, Debug)]
pub struct Event {
    pub kind: TaskEvent,
    pub json: Bytes,
    /// Where the reader is behind it.
    pub position: Position,
}

/// What a reader gets at once.
#[derive(Clone, Debug)]
pub struct Batch {
    pub events: Vec<Event>,
    /// Where the reader goes on.
    pub position: Position,
    pub has_more: bool,
}

/// What a reader wants.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub projection: &'a Projection,
    pub kinds: TaskEvents,
    /// Events at most.
    pub limit: usize,
}

/// Under which circumstances a page is taken in.
#[derive(Clone, Debug)]
pub(super) struct Terms<'a> {
    pub(super) rules: &'a Rules,
    pub(super) bounds: Bounds,
    /// Bytes that the feed may take.
    pub(super) most: usize,
    /// As events tell it.
    pub(super) seen_at: &'a str,
    pub(super) now: Instant,
}

/// One space: its watched tasks and the log of their changes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Feed {
    pub(super) watched: Watched,
    pub(super) log: Log,
}

impl Feed {
    pub(super) fn new(process: u32, epoch: u64) -> Self {
        Self {
            watched: Watched::default(),
            log: Log::new(process, epoch),
        }
    }

    /// When what it knows was so.
    pub(super) fn moments_mut(&mut self) -> impl Iterator<Item = &mut Moment> {
        self.watched.moments_mut().chain(self.log.moments_mut())
    }

    /// Takes in a page; returns how many changes it told, and whether the log began anew.
    pub(super) fn take(&mut self, reading: Reading, terms: &Terms<'_>) -> (usize, Option<Gone>) {
        let (rules, now) = (terms.rules, terms.now);
        let again = (reading.place == 0).then(|| reading.clone());
        let news = self.watched.take(reading, rules, now);
        if news.is_other_list {
            self.restart(self.log.epoch(), Gone::ListChanged);
            if let Some(reading) = again {
                self.watched.take(reading, rules, now);
            }
            return (0, Some(Gone::ListChanged));
        }
        let count = news.changes.len();
        for change in news.changes {
            self.log.push(change, terms.seen_at, Moment(now));
        }
        self.trim(terms.bounds, terms.most, Moment(now));
        (count, None)
    }

    /// Keeps no more than it may.
    pub(super) fn trim(&mut self, bounds: Bounds, most: usize, now: Moment) {
        self.log.trim(bounds, usize::MAX, now);
        if self.weight() <= most {
            return;
        }
        // What is watched gets half: without it nobody could tell what changed.
        let of_log = most.saturating_sub(self.watched.weight()).max(most / 2);
        self.log.trim(bounds, of_log, now);
        self.watched.shrink(most.saturating_sub(self.log.weight()));
    }

    /// Forgets everything: no cursor of before leads on.
    pub(super) fn restart(&mut self, epoch: u64, why: Gone) {
        self.watched = Watched::default();
        self.log.restart(epoch, why);
    }

    /// Bytes that it takes.
    pub(super) fn weight(&self) -> usize {
        self.watched.weight() + self.log.weight()
    }

    /// The position before everything that is watched.
    pub(super) fn start(&self) -> Position {
        Position {
            inventory: Some(0),
            ..self.log.end()
        }
    }

    /// Where a reader goes on who has to read the list again: what is read first of it, after a while maybe, is news to them.
    pub(super) fn anew(&self) -> Position {
        match self.watched.has_begun() {
            true => self.log.end(),
            false => self.start(),
        }
    }

    /// What comes behind `position`.
    ///
    /// # Errors
    ///
    /// Returns why nobody can tell.
    pub(super) fn read(
        &self,
        position: Position,
        wanted: &Wanted<'_>,
        seen_at: &str,
    ) -> Result<Batch, Gone> {
        self.log.check(&position)?;
        let mut batch = Batch {
            events: Vec::new(),
            position,
            has_more: false,
        };
        if !self.watched.has_begun() {
            return Ok(batch);
        }
        if let Some(serial) = position.inventory {
            self.read_inventory(serial, &mut batch, wanted, seen_at);
        }
        for (number, entry) in self.log.from(position.next) {
            if batch.has_more {
                break;
            }
            if batch.events.len() == wanted.limit {
                batch.has_more = true;
                break;
            }
            batch.position.next = number + 1;
            let kind = entry.change.kind();
            if wanted.kinds.contain(kind)
                && let Some(json) = entry.event(wanted.projection)
            {
                batch.events.push(Event {
                    kind,
                    json,
                    position: batch.position,
                });
            }
        }
        Ok(batch)
    }

    /// The watched tasks as they were at the batch's position, as if they were new.
    fn read_inventory(&self, from: u64, batch: &mut Batch, wanted: &Wanted<'_>, seen_at: &str) {
        let changed = self.log.states_at(batch.position.next);
        for (serial, id, state) in self.watched.since_serial(from) {
            if batch.events.len() == wanted.limit {
                batch.has_more = true;
                return;
            }
            batch.position.inventory = Some(serial + 1);
            let after = match changed.get(id) {
                None => state,
                Some(Some(before)) => before,
                // It came later: the log tells it.
                Some(None) => continue,
            };
            let change = Change {
                id: id.clone(),
                before: None,
                after: after.clone(),
            };
            if wanted.kinds.created
                && let Some(json) = event::event(&change, seen_at, wanted.projection)
            {
                batch.events.push(Event {
                    kind: TaskEvent::Created,
                    json,
                    position: batch.position,
                });
            }
        }
        batch.position.inventory = None;
        if let Some(last) = batch.events.last_mut() {
            last.position.inventory = None;
        }
    }
}

#[cfg(test)]
mod tests;
