//! One list, any page size: a page cut from stored pages of other sizes, byte for byte what the upstream would have sent.
//!
//! Nothing is guessed: the parts must show one state of one list, leave no gap, hold no row twice, and have the vendor's own envelope.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashSet},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::{StoredPage, row_table::RowTable};
use crate::domain::{ListPage, PageQuery, Row, Span};

/// Fewer rows than that may be what a worried upstream gives of a page, wherever they lie.
const LEAST_AT_END: u64 = 10;

/// A stored page and the query it answers.
#[derive(Clone, Debug)]
pub struct Part {
    pub query: PageQuery,
    pub page: Arc<StoredPage>,
}

/// What a page is to be put together from.
#[derive(Debug)]
pub struct Cuts {
    query: PageQuery,
    cuts: Vec<Cut>,
    count: u64,
}

impl Cuts {
    /// Cuts the page that `query` names from `parts`, if they hold all of it.
    ///
    /// They must show one state of the list: the newest that they hold all of it in. `within` is how far apart they may have been filled,
    /// `usable` which of them may be shown.
    #[must_use]
    pub fn new(
        query: PageQuery,
        parts: &[Part],
        within: Duration,
        usable: impl Fn(&StoredPage) -> bool,
    ) -> Option<Self> {
        // An envelope that once says something else may say anything about another page size.
        if !parts.iter().all(|part| part.page.outline.is_plain) {
            return None;
        }
        // Replicas behind the upstream may tell two counts of one generation.
        let mut states: BTreeMap<(u64, u64), Vec<&Part>> = BTreeMap::new();
        let usable_part = |part: &&Part| part.page.is_of_known_state() && usable(&part.page);
        for part in parts.iter().filter(usable_part) {
            let state = (part.page.generation(), part.page.content.count);
            states.entry(state).or_default().push(part);
        }
        let joined = states.into_iter().rev().find_map(|((_, count), parts)| {
            let cuts = cut(query, count, &parts)?;
            filled_within(&cuts, within).then_some(Self { query, cuts, count })
        });
        // A part of no known state is never joined to another, and holds its own rows all the same.
        let alone = || {
            let unknown = parts.iter().filter(|part| !part.page.is_of_known_state());
            let mut usable: Vec<_> = unknown.filter(|part| usable(&part.page)).collect();
            usable.sort_by_key(|part| Reverse(part.page.content.born));
            usable
                .into_iter()
                .find_map(|part| Self::of_one(query, &part.page))
        };
        joined.or_else(alone)
    }

    /// Cuts the page that `query` names from `page` alone, if that holds all of it.
    #[must_use]
    pub fn of_one(query: PageQuery, page: &Arc<StoredPage>) -> Option<Self> {
        let count = page.content.count;
        let part = Part {
            query: page.key.query,
            page: page.clone(),
        };
        let cuts = cut(query, count, &[&part]).filter(|_| page.outline.is_plain)?;
        Some(Self { query, cuts, count })
    }

    /// Cuts the page that `query` names from `part`, which tells that the list ends before it.
    #[must_use]
    pub fn past_the_end(query: PageQuery, part: &Arc<StoredPage>) -> Option<Self> {
        let content = &part.content;
        let (count, end) = (content.count, content.row_count());
        let cut = Cut {
            page: part.clone(),
            rows: end..end,
        };
        (query.span().start >= count && part.outline.is_plain).then(|| Self {
            query,
            cuts: vec![cut],
            count,
        })
    }

    /// When the first of its parts is twice as old as its lifetime.
    #[must_use]
    pub fn overdue_at(&self, now: Instant) -> Instant {
        let parts = self.cuts.iter();
        let overdue = parts.map(|cut| cut.page.freshness(now).overdue_at(now));
        overdue.min().unwrap_or(now)
    }

    /// Notes that it was asked for, which takes each of its parts.
    pub fn note_asked(&self, now: Instant) {
        self.cuts.iter().for_each(|cut| cut.page.note_asked(now));
    }

    /// How much there is to go through.
    #[must_use]
    pub fn bytes(&self) -> usize {
        if self
            .single()
            .is_some_and(|part| part.content.is_cut(self.query))
        {
            return 0;
        }
        let lengths = self.cuts.iter().map(|cut| cut.page.content.length());
        lengths.sum()
    }

    /// How long the page will be; each part counts its envelope.
    pub(super) fn length(&self) -> usize {
        let lengths = self.cuts.iter();
        lengths
            .map(|cut| cut.page.content.length_of(&cut.rows))
            .sum()
    }

    /// The page that was asked for.
    pub(super) fn query(&self) -> PageQuery {
        self.query
    }

    /// The pages that it is put together from.
    #[must_use]
    pub fn parts(&self) -> Vec<Arc<StoredPage>> {
        self.cuts.iter().map(|cut| cut.page.clone()).collect()
    }

    /// The entry that holds all of it, where one does.
    pub(super) fn single(&self) -> Option<&Arc<StoredPage>> {
        match &self.cuts[..] {
            [cut] => Some(&cut.page),
            _ => None,
        }
    }

    /// The page and what is known of its rows; `None` where the parts' bytes do not fit together.
    #[must_use]
    pub fn join(&self) -> Option<(ListPage, RowTable)> {
        let cuts = self.cuts.iter();
        let table = cuts.map(|cut| (cut.page.content.table(), cut.rows.clone()));
        let table = RowTable::joined(table);
        // A row without an id cannot be told from its double.
        let mut seen = HashSet::new();
        if !table
            .iter()
            .all(|row| row.id.is_some_and(|id| seen.insert(id)))
        {
            return None;
        }
        let pieces: Vec<_> = self.cuts.iter().map(Piece::of).collect();
        Some((join(&pieces, self.count)?, table))
    }
}

/// Cuts the page that `query` names from `parts`, which show one state of the list, of `count` rows.
fn cut(query: PageQuery, count: u64, parts: &[&Part]) -> Option<Vec<Cut>> {
    let wanted = query.span();
    if wanted.start >= count {
        return None;
    }
    let parts: Vec<&Part> = parts
        .iter()
        .copied()
        .filter(|part| is_in_place(part))
        .collect();
    cover(&parts, wanted.start..wanted.end.min(count))
}

/// Whether the rows of the page lie where its place in the list says: it has as many as it should, or ends where the list ended when they were
/// read. Of a few rows nobody knows, unless they are the first.
fn is_in_place(part: &Part) -> bool {
    let content = &part.page.content;
    let (span, rows) = (part.query.span(), content.row_count() as u64);
    let expected = content.count.min(span.end).saturating_sub(span.start);
    let is_end = rows < expected && (part.query.page == 1 || rows >= LEAST_AT_END);
    rows > 0 && (rows == expected || is_end)
}

/// Some neighbouring rows of one part, by their places in it.
#[derive(Debug)]
struct Cut {
    page: Arc<StoredPage>,
    rows: Range<usize>,
}

/// Parts that cover `wanted` without a gap, each taken as far as it goes.
fn cover(parts: &[&Part], wanted: Span) -> Option<Vec<Cut>> {
    let mut cuts = Vec::new();
    let mut at = wanted.start;
    while at < wanted.end {
        let (part, end) = parts
            .iter()
            .map(|part| {
                let start = part.query.span().start;
                (part, start, start + part.page.content.row_count() as u64)
            })
            .filter(|(_, start, end)| (*start..*end).contains(&at))
            .map(|(part, _, end)| (part, end))
            .max_by_key(|(_, end)| *end)?;
        let end = end.min(wanted.end);
        let start = part.query.span().start;
        let place = |position: u64| usize::try_from(position - start).ok();
        let rows = place(at)?..place(end)?;
        cuts.push(Cut {
            page: part.page.clone(),
            rows,
        });
        at = end;
    }
    Some(cuts)
}

fn filled_within(cuts: &[Cut], within: Duration) -> bool {
    let born = || cuts.iter().map(|cut| cut.page.content.born);
    match (born().min(), born().max()) {
        (Some(first), Some(last)) => last - first <= within,
        _ => false,
    }
}

/// Some neighbouring rows of a page in hand.
struct Piece {
    page: ListPage,
    rows: Range<usize>,
}

impl Piece {
    fn of(cut: &Cut) -> Self {
        Self {
            page: cut.page.content.page(),
            rows: cut.rows.clone(),
        }
    }

    fn rows(&self) -> &[Row] {
        &self.page.rows[self.rows.clone()]
    }
}

fn join(pieces: &[Piece], count: u64) -> Option<ListPage> {
    // All have the vendor's envelope, and one count.
    let first = &pieces.first()?.page;
    if first.rows.is_empty() {
        return Some(first.clone());
    }
    let (start, end) = (first.rows.first()?.span.start, first.rows.last()?.span.end);
    let (head, tail) = (bytes(first, 0..start), &first.body[end as usize..]);
    let mut body = BytesMut::with_capacity(head.len() + size(pieces) + tail.len());
    let mut rows = Vec::new();
    body.extend_from_slice(head);
    for piece in pieces {
        for row in piece.rows() {
            if !rows.is_empty() {
                body.extend_from_slice(b",");
            }
            let start = u32::try_from(body.len()).ok()?;
            body.extend_from_slice(bytes(&piece.page, row.span.clone()));
            rows.push(Row {
                span: start..u32::try_from(body.len()).ok()?,
            });
        }
    }
    body.extend_from_slice(tail);
    Some(ListPage {
        gzip: None,
        body: Bytes::from(body),
        count,
        rows: rows.into(),
    })
}

fn size(pieces: &[Piece]) -> usize {
    let rows = pieces.iter().flat_map(Piece::rows);
    rows.map(|row| row.span.len() + 1).sum()
}

fn bytes(page: &ListPage, span: Range<u32>) -> &[u8] {
    &page.body[span.start as usize..span.end as usize]
}

#[cfg(test)]
mod tests;
