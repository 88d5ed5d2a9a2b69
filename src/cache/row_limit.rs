//! The most rows that the upstream gives in one page, where that is fewer than it is asked for.
//!
//! An answer with fewer rows than its place in the list says is no proof: rows are read first and counted by a second query. So one such answer
//! counts for its own list alone, and two for all lists of the collection. Whatever was learned is forgotten after a while, since a limit may be
//! raised.

use std::time::Duration;

use tokio::time::Instant;

use crate::domain::{ListKey, PageQuery};

/// Nothing below it is taken for a limit.
const LEAST: u32 = 10;
const REMEMBERED_FOR: Duration = Duration::from_secs(600);
/// Lists that are remembered to have answered with fewer rows.
const MOST_LISTS: usize = 64;

/// What is known of one collection, as one credential reads it.
#[derive(Debug, Default)]
pub struct RowLimit {
    /// Believed of every list.
    believed: Option<(u32, Instant)>,
    /// Lists that answered with fewer rows than there are; the newest last.
    short: Vec<Short>,
}

#[derive(Debug)]
struct Short {
    list: ListKey,
    query: PageQuery,
    rows: u32,
    /// Whether the list goes on behind its page.
    is_last: bool,
    until: Instant,
}

/// How many rows an answer has, and what the list should have had there.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    pub query: PageQuery,
    pub rows: u64,
    /// As the answer says.
    pub count: u64,
    /// Whether the list had just so many rows a moment ago: rows of before it grew end where it ended.
    pub were_all: bool,
}

impl Rows {
    /// The number of rows, if only a limit explains that there are no more.
    #[must_use]
    pub fn limited_to(&self) -> Option<u32> {
        let span = self.query.span();
        let expected = self.count.min(span.end).saturating_sub(span.start);
        let rows = u32::try_from(self.rows).ok()?;
        (rows >= LEAST && self.rows < expected && !self.were_all).then_some(rows)
    }
}

impl RowLimit {
    /// The most rows that a call of `list` brings; `None`: as many as it asks for.
    #[must_use]
    pub fn of(&self, list: &ListKey, now: Instant) -> Option<u32> {
        let believed = self.believed.filter(|(_, until)| *until > now);
        let own = || {
            let mut short = self.short.iter().rev();
            let short = short.find(|short| short.list == *list && short.until > now)?;
            Some(short.rows)
        };
        believed.map(|(rows, _)| rows).or_else(own)
    }

    /// Takes note of an answer. Returns the limit that it met.
    pub fn note(&mut self, list: &ListKey, seen: &Rows, now: Instant) -> Option<u32> {
        self.short
            .retain(|short| short.until > now && u64::from(short.rows) >= seen.rows);
        self.believed = self
            .believed
            .filter(|(rows, until)| *until > now && u64::from(*rows) >= seen.rows);
        let rows = seen.limited_to()?;
        let until = now + REMEMBERED_FOR;
        let is_last = seen.query.span().end >= seen.count;
        let confirms = |short: &Short| {
            let is_another = short.list != *list || short.query != seen.query;
            short.rows == rows && is_another && !short.is_last && !is_last
        };
        if self.short.iter().any(confirms) {
            self.believed = Some((rows, until));
        }
        let same = |short: &Short| short.list == *list && short.query == seen.query;
        self.short.retain(|short| !same(short));
        if self.short.len() >= MOST_LISTS {
            self.short.remove(0);
        }
        self.short.push(Short {
            list: list.clone(),
            query: seen.query,
            rows,
            is_last,
            until,
        });
        Some(rows)
    }

    /// Whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.believed.is_none() && self.short.is_empty()
    }
}

#[cfg(test)]
mod tests;
