//! The last changes of a space: each has a number that only grows, and readers go on from wherever they are.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    cursor::{Incarnation, Position},
    event::Entry,
    moment::Moment,
    reading::{Change, Id, State},
};

/// Logs of before that are remembered, so that their readers are told why there is another.
const MOST_ENDED: usize = 16;

/// Why a cursor cannot be honoured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Log {
    process: u32,
    /// Another one where the log began anew for another reason than that the space was dropped.
    seed: u32,
    /// Of the space's pages; a later one says that they were dropped.
    epoch: u64,
    /// The number of the oldest that is kept, or of the next.
    first: u64,
    next: u64,
    entries: VecDeque<Kept>,
    bytes: usize,
    ended: VecDeque<(Incarnation, Gone)>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept {
    number: u64,
    #[serde(serialize_with = "entry", deserialize_with = "shared_entry")]
    entry: Arc<Entry>,
    at: Moment,
}

fn entry<S: Serializer>(entry: &Arc<Entry>, serializer: S) -> Result<S::Ok, S::Error> {
    entry.as_ref().serialize(serializer)
}

fn shared_entry<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<Entry>, D::Error> {
    Entry::deserialize(deserializer).map(Arc::new)
}

impl Log {
    pub(super) fn new(process: u32, epoch: u64) -> Self {
        Self {
            process,
            seed: fastrand::u32(..),
            epoch,
            first: 0,
            next: 0,
            entries: VecDeque::new(),
            bytes: 0,
            ended: VecDeque::new(),
        }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What cursors call it. After a drop it follows from the epoch, so that replicas which heard of the same drop call it the same.
    fn incarnation(&self) -> Incarnation {
        let (seed, epoch) = (self.seed.to_le_bytes(), self.epoch.to_le_bytes());
        let hash = xxh3_64(&[&seed[..], &epoch].concat());
        Incarnation {
            process: self.process,
            log: (hash >> 32) as u32,
        }
    }

    /// The position behind the last change.
    pub(super) fn end(&self) -> Position {
        Position {
            incarnation: self.incarnation(),
            next: self.next,
            inventory: None,
        }
    }

    /// Gives no number below `number` to any change from now on.
    pub(super) fn skip_to(&mut self, number: u64) {
        self.next = number.max(self.next);
    }

    /// When its changes were seen.
    pub(super) fn moments_mut(&mut self) -> impl Iterator<Item = &mut Moment> {
        self.entries.iter_mut().map(|kept| &mut kept.at)
    }

    /// Bytes that it takes.
    pub(super) fn weight(&self) -> usize {
        self.bytes
    }

    pub(super) fn push(&mut self, change: Change, seen_at: &str, now: Moment) {
        let entry = Arc::new(Entry::new(change, seen_at));
        self.bytes += entry.weight();
        self.entries.push_back(Kept {
            number: self.next,
            entry,
            at: now,
        });
        self.next += 1;
    }

    /// Drops what is more than `bounds` allow, and the oldest until it takes no more than `most` bytes.
    pub(super) fn trim(&mut self, bounds: Bounds, most: usize, now: Moment) {
        while let Some(oldest) = self.entries.front() {
            let is_old = oldest.at.age(now.0) > bounds.retention;
            if self.entries.len() <= bounds.events && !is_old && self.bytes <= most {
                return;
            }
            self.bytes -= oldest.entry.weight();
            self.first = oldest.number + 1;
            self.entries.pop_front();
        }
    }

    /// Begins anew: no cursor of before leads on. In a later `epoch` where the space was dropped.
    pub(super) fn restart(&mut self, epoch: u64, why: Gone) {
        self.note_ended(self.incarnation(), why);
        match epoch > self.epoch {
            true => self.epoch = epoch,
            false => self.seed = fastrand::u32(..),
        }
        (self.first, self.next) = (0, 0);
        self.entries.clear();
        self.bytes = 0;
    }

    /// Remembers why the cursors of `other` do not lead on here, unless it is this one.
    pub(super) fn note_replaced(&mut self, other: &Self) {
        let (ended, ours) = (other.incarnation(), self.incarnation());
        let is_known = self.ended.iter().any(|(known, _)| *known == ended);
        if ended != ours && !is_known {
            self.note_ended(ended, Gone::Restart);
        }
    }

    fn note_ended(&mut self, incarnation: Incarnation, why: Gone) {
        if self.ended.len() == MOST_ENDED {
            self.ended.pop_front();
        }
        self.ended.push_back((incarnation, why));
    }

    /// Whether its end is before that of `other`, which is the same log.
    pub(super) fn is_behind(&self, other: &Self) -> bool {
        self.incarnation() == other.incarnation() && self.next < other.next
    }

    /// Whether the log leads on from `position`.
    ///
    /// # Errors
    ///
    /// Returns why it does not.
    pub(super) fn check(&self, position: &Position) -> Result<(), Gone> {
        let ours = self.incarnation();
        if position.incarnation == ours {
            // One beyond the end is of a replica that knows more: the log leads on as soon as that is known here.
            let is_kept = self.first <= position.next;
            return is_kept.then_some(()).ok_or(Gone::Expired);
        }
        let mut ended = self.ended.iter();
        let ended = ended.find(|(incarnation, _)| *incarnation == position.incarnation);
        Err(match ended {
            Some((_, why)) => *why,
            None if position.incarnation.process == ours.process => Gone::Expired,
            None => Gone::Restart,
        })
    }

    /// The changes from the one numbered `from` on, which is kept or the next.
    pub(super) fn from(&self, from: u64) -> impl Iterator<Item = (u64, &Arc<Entry>)> {
        let skipped = self.entries.partition_point(|kept| kept.number < from);
        let entries = self.entries.iter().skip(skipped);
        entries.map(|kept| (kept.number, &kept.entry))
    }

    /// What each task that changed since number `from` was by then; `None`: it was not there.
    pub(super) fn states_at(&self, from: u64) -> HashMap<Id, Option<State>> {
        let mut states = HashMap::new();
        for (_, entry) in self.from(from) {
            let state = states.entry(entry.change.id.clone());
            state.or_insert_with(|| entry.change.before.clone());
        }
        states
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn change(digest: u128) -> Change {
        Change {
            id: "a".into(),
            before: None,
            after: State {
                digest,
                status: None,
                bytes: None,
            },
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_cursor_of_a_replica_that_knows_more_waits_and_one_of_what_was_dropped_does_not() {
        let now = Moment(Instant::now());
        let mut ahead = Log::new(1, 0);
        let mut behind = ahead.clone();
        for digest in 0..3 {
            ahead.push(change(digest), "", now);
        }
        behind.push(change(0), "", now);
        let end = ahead.end();
        assert_eq!(behind.check(&end), Ok(()));
        assert_eq!(behind.from(end.next).count(), 0);

        let start = behind.end();
        let bounds = Bounds {
            events: 1,
            retention: Duration::MAX,
        };
        ahead.trim(bounds, usize::MAX, now);
        assert_eq!(ahead.check(&start), Err(Gone::Expired));
        assert_eq!(ahead.check(&end), Ok(()));
    }
}
