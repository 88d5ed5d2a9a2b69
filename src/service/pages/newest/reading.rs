//! The newest rows of a list as they are read, range by range: what is to be read next, until all of it shows one state.
//!
//! It makes no call and reads no clock. New rows shift the others on, so ranges that were read of different states may leave a gap or hold a
//! row twice. They join only if they are of one generation and count, hold no row twice, and still hold each row that was seen before.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashSet},
};

use tokio::time::Instant;

use crate::{domain::PageQuery, service::Served};

/// What has been read so far.
#[derive(Debug)]
pub(super) struct Reading {
    newest: u64,
    range: u32,
    /// By the page that each is, of `range` rows.
    parts: BTreeMap<u32, Served>,
    /// What is stored of these is known to be wrong.
    wrong: BTreeSet<u32>,
    /// Rows of parts that were given up.
    seen: Vec<Seen>,
    reads_left: u32,
}

/// A row as it was seen once.
#[derive(Debug)]
struct Seen {
    id: Box<str>,
    place: u64,
    count: u64,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Read {
        query: PageQuery,
        source: Source,
    },
    Complete,
    /// It has moved too often.
    GiveUp,
}

/// Where a range is to be read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// As any page.
    Any,
    /// The upstream: what is stored contradicts another range.
    Upstream,
}

/// What became of a range that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offered {
    Taken,
    /// It shows an older state than the others, or is not whole.
    Refused,
}

impl Reading {
    /// Of the `newest` rows, in ranges of `range`.
    pub(super) fn new(newest: u32, range: u32) -> Self {
        Self {
            newest: newest.into(),
            range,
            parts: BTreeMap::new(),
            wrong: BTreeSet::new(),
            seen: Vec::new(),
            // Each range twice, and a few more.
            reads_left: 2 * newest.div_ceil(range) + 4,
        }
    }

    /// Has every range read from the upstream.
    pub(super) fn all_from_upstream(mut self) -> Self {
        let last = u32::try_from(self.newest).unwrap_or(u32::MAX);
        self.wrong = (1..=last.div_ceil(self.range)).collect();
        self
    }

    /// What to read next.
    pub(super) fn next(&mut self) -> Step {
        if self.first_missing().is_none() {
            match self.suspect() {
                None => return Step::Complete,
                Some(page) => self.give_up(page),
            }
        }
        let Some(left) = self.reads_left.checked_sub(1) else {
            return Step::GiveUp;
        };
        self.reads_left = left;
        let page = self.first_missing().unwrap_or(1);
        Step::Read {
            query: self.query(page),
            source: match self.wrong.contains(&page) {
                true => Source::Upstream,
                false => Source::Any,
            },
        }
    }

    /// The same read again, which was not to be had: it does not count as one.
    pub(super) fn retry(&mut self) {
        self.reads_left += 1;
    }

    /// Takes what was read of `query`.
    pub(super) fn offer(&mut self, query: PageQuery, served: Served) -> Offered {
        let is_gone = |part: &Served| part.page.is_invalidated();
        if self.parts.values().any(is_gone) {
            self.parts.clear();
            self.seen.clear();
        }
        if is_gone(&served) || !is_whole(query, &served) || !self.is_of_a_state(&served) {
            return Offered::Refused;
        }
        let (generation, count) = state(&served);
        if let Some(known) = self.parts.values().next().map(state) {
            if generation < known.0 {
                return Offered::Refused;
            }
            // What was read last is newer.
            if (generation, count) != known {
                let displaced: Vec<u32> = self.parts.keys().copied().collect();
                for page in displaced {
                    self.give_up(page);
                    // One of an older generation is stale in any case.
                    if generation > known.0 {
                        self.wrong.remove(&page);
                    }
                }
            }
        }
        self.wrong.remove(&query.page);
        self.parts.insert(query.page, served);
        Offered::Taken
    }

    /// Whether nothing is left to be read.
    pub(super) fn is_complete(&self) -> bool {
        self.first_missing().is_none() && self.suspect().is_none()
    }

    /// How many ranges are still to be read.
    pub(super) fn missing(&self) -> u32 {
        let held = u32::try_from(self.parts.len()).unwrap_or(u32::MAX);
        self.wanted().saturating_sub(held)
    }

    /// The ranges in order, once it is complete.
    pub(super) fn into_parts(self) -> Vec<Served> {
        self.parts.into_values().collect()
    }

    fn query(&self, page: u32) -> PageQuery {
        PageQuery {
            page,
            page_size: self.range,
        }
    }

    /// How many ranges there are, as far as known.
    fn wanted(&self) -> u32 {
        let count = self.parts.values().next().map(|part| state(part).1);
        let rows = self.newest.min(count.unwrap_or(self.newest));
        let ranges = rows.div_ceil(self.range.into()).max(1);
        u32::try_from(ranges).unwrap_or(u32::MAX)
    }

    fn first_missing(&self) -> Option<u32> {
        (1..=self.wanted()).find(|page| !self.parts.contains_key(page))
    }

    /// A page of no known state is a whole by itself, and joins no other.
    fn is_of_a_state(&self, served: &Served) -> bool {
        let (generation, count) = state(served);
        generation > 0 || count.min(self.newest) <= self.range.into()
    }

    /// Where the ranges do not fit together, the one to read again: what was read first is the oldest.
    fn suspect(&self) -> Option<u32> {
        if self.parts.len() < 2 || self.fits() {
            return None;
        }
        let oldest = self.parts.iter().min_by_key(|(page, part)| {
            // Of two that are read at once the latter ranges follow from the former.
            (read_at(part), Reverse(**page))
        });
        oldest.map(|(page, _)| *page)
    }

    fn fits(&self) -> bool {
        let mut ids = HashSet::new();
        let rows = self.parts.values();
        let mut rows = rows.flat_map(|part| part.page.content.table().iter());
        // A row without an id cannot be told from its double.
        if !rows.all(|row| row.id.is_some_and(|id| ids.insert(id))) {
            return false;
        }
        let count = self.parts.values().next().map_or(0, |part| state(part).1);
        let covered = count.min(u64::from(self.wanted()) * u64::from(self.range));
        // Rows are only ever shifted on, by as many as have come; `count` may be behind by one.
        let is_due = |seen: &Seen| seen.place + count.saturating_sub(seen.count) + 1 < covered;
        let is_lost = |seen: &Seen| is_due(seen) && !ids.contains(&*seen.id);
        !self.seen.iter().any(is_lost)
    }

    fn give_up(&mut self, page: u32) {
        let Some(part) = self.parts.remove(&page) else {
            return;
        };
        self.wrong.insert(page);
        let (start, count) = (self.query(page).span().start, state(&part).1);
        let rows = part.page.content.table().iter();
        self.seen
            .extend((start..).zip(rows).filter_map(|(place, row)| {
                let id = row.id?.into();
                Some(Seen { id, place, count })
            }));
    }
}

/// The generation and count that a range shows.
fn state(part: &Served) -> (u64, u64) {
    (part.page.generation(), part.page.content.count)
}

fn read_at(part: &Served) -> Option<Instant> {
    part.at.checked_sub(part.age())
}

/// Whether a range holds as many rows as its place in the list says.
fn is_whole(query: PageQuery, part: &Served) -> bool {
    let span = query.span();
    let expected = part.page.content.count.min(span.end);
    part.page.content.row_count() as u64 == expected.saturating_sub(span.start)
}

#[cfg(test)]
mod tests;
