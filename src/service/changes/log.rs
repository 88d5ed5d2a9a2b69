//! The last changes of a space: each has a number that only grows, and readers go on from wherever they are.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    cursor::{Incarnation, Position},
    event::Entry,
    order::Id,
    reading::{Change, State},
};

/// Logs of before that are remembered, so that their readers are told why there is another.
const MOST_ENDED: usize = 16;

/// Why a cursor cannot be honoured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// It is older than what is kept.
    Expired,
    /// Another process gave it.
    Restart,
    /// An operator purged the space.
    Purged,
    /// The list is not what it was.
    ListChanged,
}

impl Gone {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Restart => "restart",
            Self::Purged => "purged",
            Self::ListChanged => "list_changed",
        }
    }
}

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) events: usize,
    pub(super) retention: Duration,
}

/// The last changes of a space.
#[derive(Debug)]
pub(super) struct Log {
    incarnation: Incarnation,
    /// The number of the oldest that is kept.
    first: u64,
    entries: VecDeque<Kept>,
    bytes: usize,
    ended: VecDeque<(Incarnation, Gone)>,
}

#[derive(Debug)]
struct Kept {
    entry: Arc<Entry>,
    at: Instant,
}

impl Log {
    pub(super) fn new(incarnation: Incarnation) -> Self {
        Self {
            incarnation,
            first: 0,
            entries: VecDeque::new(),
            bytes: 0,
            ended: VecDeque::new(),
        }
    }

    /// The position behind the last change.
    pub(super) fn end(&self) -> Position {
        Position {
            incarnation: self.incarnation,
            next: self.next(),
            inventory: None,
        }
    }

    fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// Bytes that it takes.
    pub(super) fn weight(&self) -> usize {
        self.bytes
    }

    pub(super) fn push(&mut self, change: Change, seen_at: &str, now: Instant) {
        let entry = Arc::new(Entry::new(change, seen_at));
        self.bytes += entry.weight();
        self.entries.push_back(Kept { entry, at: now });
    }

    /// Drops what is more than `bounds` allow, and the oldest until it takes no more than `most` bytes.
    pub(super) fn trim(&mut self, bounds: Bounds, most: usize, now: Instant) {
        while let Some(oldest) = self.entries.front() {
            let is_old = now.saturating_duration_since(oldest.at) > bounds.retention;
            if self.entries.len() <= bounds.events && !is_old && self.bytes <= most {
                return;
            }
            self.bytes -= oldest.entry.weight();
            self.first += 1;
            self.entries.pop_front();
        }
    }

    /// Begins anew: no cursor of before leads on.
    pub(super) fn restart(&mut self, incarnation: Incarnation, why: Gone) {
        if self.ended.len() == MOST_ENDED {
            self.ended.pop_front();
        }
        self.ended.push_back((self.incarnation, why));
        self.incarnation = incarnation;
        self.first = 0;
        self.entries.clear();
        self.bytes = 0;
    }

    /// Whether the log leads on from `position`.
    ///
    /// # Errors
    ///
    /// Returns why it does not.
    pub(super) fn check(&self, position: &Position) -> Result<(), Gone> {
        if position.incarnation == self.incarnation {
            let is_kept = (self.first..=self.next()).contains(&position.next);
            return is_kept.then_some(()).ok_or(Gone::Expired);
        }
        let mut ended = self.ended.iter();
        let ended = ended.find(|(incarnation, _)| *incarnation == position.incarnation);
        Err(match ended {
            Some((_, why)) => *why,
            None if position.incarnation.is_of_process_of(self.incarnation) => Gone::Expired,
            None => Gone::Restart,
        })
    }

    /// The changes from the one numbered `from` on, which is kept or the next.
    pub(super) fn from(&self, from: u64) -> impl Iterator<Item = &Arc<Entry>> {
        let skipped = usize::try_from(from.saturating_sub(self.first)).unwrap_or(usize::MAX);
        let entries = self.entries.iter().skip(skipped);
        entries.map(|kept| &kept.entry)
    }

    /// What each task that changed since number `from` was by then; `None`: it was not there.
    pub(super) fn states_at(&self, from: u64) -> HashMap<Id, Option<State>> {
        let mut states = HashMap::new();
        for entry in self.from(from) {
            let change = entry.change();
            states
                .entry(change.id.clone())
                .or_insert_with(|| change.before.clone());
        }
        states
    }
}
