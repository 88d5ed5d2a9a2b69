//! What a call brought of a list, by which rules it is judged, and what it says anew.

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use compact_str::CompactString;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{event::TaskEvent, moment::Moment};

/// A task's id.
pub(super) type Id = CompactString;

/// A task as a page shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) id: Id,
    pub(super) state: State,
}

/// A task's bytes at one moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) digest: u128,
    pub(super) status: Option<CompactString>,
    /// `None` where they take too much memory.
    #[serde(with = "json")]
    pub(super) bytes: Option<Bytes>,
}

/// What a call brought.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    /// The place of its first row in the list.
    pub(super) place: u64,
    /// How many rows it was asked for.
    pub(super) size: u64,
    pub(super) count: u64,
    pub(super) rows: Vec<Row>,
    pub(super) sent: Moment,
    pub(super) received: Moment,
    /// Whether the list ends with it.
    pub(super) is_end: bool,
}

/// By which rules tasks are watched.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    /// Rows of a range.
    pub(super) size: u64,
    pub(super) final_states: Arc<[CompactString]>,
    /// How long a task in a final state must have kept still to be watched no longer.
    pub(super) settled_after: Duration,
}

impl Rules {
    pub(super) fn is_final(&self, state: &State) -> bool {
        let status = state.status.as_ref();
        status.is_some_and(|status| self.final_states.contains(status))
    }
}

/// That a task is new, or another than it was.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Change {
    pub(super) id: Id,
    /// What it was; `None`: it is new.
    pub(super) before: Option<State>,
    pub(super) after: State,
}

impl Change {
    pub(super) fn kind(&self) -> TaskEvent {
        match self.before {
            None => TaskEvent::Created,
            Some(_) => TaskEvent::Updated,
        }
    }
}

/// What a page says anew.
#[derive(Clone, Debug, Default)]
pub(super) struct News {
    /// Oldest first.
    pub(super) changes: Vec<Change>,
    /// Whether the list is not what it was, so that nobody can tell what changed.
    pub(super) is_other_list: bool,
}

/// Pages in a row that do not reach what is known yet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Pending {
    pub(super) place: u64,
    pub(super) rows: Vec<Row>,
    /// The range that is read next.
    pub(super) next: u64,
    /// How many tasks the list had.
    pub(super) count: u64,
    pub(super) received: Moment,
}

impl Pending {
    /// Its rows and those of the next range, in a row: tasks that came meanwhile have moved some of it there. `None`: there may be a gap.
    pub(super) fn followed_by(&self, reading: &Reading) -> Option<Vec<Row>> {
        let place_of = |id: &Id| self.rows.iter().position(|row| row.id == *id);
        let overlap = reading.rows.iter().find_map(|row| place_of(&row.id));
        let came = reading.count.saturating_sub(self.count);
        let until = match overlap {
            Some(place) => place,
            // Rows are read before they are counted.
            None if came <= 1 => self.rows.len(),
            None => return None,
        };
        let rows = self.rows[..until].iter().chain(&reading.rows);
        Some(rows.cloned().collect())
    }
}

impl State {
    /// With bytes of its own: those of a page would keep all of the page.
    pub(super) fn owned(&self) -> Self {
        let bytes = self.bytes.as_ref();
        Self {
            bytes: bytes.map(|bytes| Bytes::copy_from_slice(bytes)),
            ..self.clone()
        }
    }

    pub(super) fn weight(&self) -> usize {
        self.bytes.as_ref().map_or(0, Bytes::len)
    }
}

impl Reading {
    /// `rows` from `place` on, of which `size` were asked for, of a list of `count`.
    pub(super) fn new(
        (place, size): (u64, u64),
        count: u64,
        mut rows: Vec<Row>,
        (sent, received): (Instant, Instant),
    ) -> Self {
        let length = rows.len() as u64;
        // Rows are read before they are counted, so one more may be counted than was read.
        let is_end = count <= place + length + u64::from(length < size);
        // Where pages shift while the upstream reads them, a task may stand twice.
        let mut seen = HashSet::new();
        rows.retain(|row| seen.insert(row.id.clone()));
        Self {
            place,
            size,
            count,
            rows,
            sent: Moment(sent),
            received: Moment(received),
            is_end,
        }
    }

    /// Whether a task of it is not final.
    pub(super) fn is_busy(&self, rules: &Rules) -> bool {
        self.rows.iter().any(|row| !rules.is_final(&row.state))
    }

    /// Whether it has fewer rows than were asked for, and not because the list ends.
    pub(super) fn is_cut_short(&self) -> bool {
        (self.rows.len() as u64) < self.size && !self.is_end
    }

    /// Leaves its first `length` rows.
    pub(super) fn truncate(&mut self, length: usize) {
        self.is_end &= length == self.rows.len();
        self.rows.truncate(length);
    }
}

/// A task's bytes as they stand: they are JSON themselves.
mod json {
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::Error};
    use serde_json::value::RawValue;

    pub(super) fn serialize<S: Serializer>(
        bytes: &Option<Bytes>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let raw = |bytes: &Bytes| serde_json::from_slice::<&RawValue>(bytes).map(ToOwned::to_owned);
        let raw = bytes.as_ref().map(raw).transpose();
        raw.map_err(S::Error::custom)?.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Bytes>, D::Error> {
        let raw = Option::<Box<RawValue>>::deserialize(deserializer)?;
        Ok(raw.map(|raw| Bytes::from(Box::<str>::from(raw).into_string())))
    }
}
