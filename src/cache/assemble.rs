//! One list, any page size: a page cut from stored pages of other sizes, byte for byte what the upstream would have sent.
//!
//! Nothing is guessed: the parts must show one state of one list, leave no gap, hold no row twice, and share one envelope.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashSet},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};

use super::StoredPage;
use crate::domain::{Collection, ListPage, PageQuery, Row, Span};

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
        let mut states = states(parts.iter().filter(|part| usable(&part.page)));
        states.sort_by_key(|parts| Reverse(parts.iter().map(|part| part.page.received()).max()));
        states.into_iter().find_map(|parts| {
            let (cuts, count) = cut(query, &parts)?;
            filled_within(&cuts, within).then_some(Self { query, cuts, count })
        })
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

    pub(super) fn parts(&self) -> Vec<Arc<StoredPage>> {
        self.cuts.iter().map(|cut| cut.page.clone()).collect()
    }

    /// The entry that holds all of it, where one does.
    pub(super) fn single(&self) -> Option<&Arc<StoredPage>> {
        match &self.cuts[..] {
            [cut] => Some(&cut.page),
            _ => None,
        }
    }

    /// The page; `None` where the parts' bytes do not fit together.
    #[must_use]
    pub fn join(&self) -> Option<ListPage> {
        let pieces: Vec<_> = self.cuts.iter().map(Piece::of).collect();
        let first = self.cuts.first()?;
        join(&pieces, self.count, first.page.key().list.id.collection())
    }
}

/// `parts` by the state of the list that they show: those of two states show two lists.
fn states<'a>(parts: impl Iterator<Item = &'a Part>) -> Vec<Vec<&'a Part>> {
    let mut states: BTreeMap<u64, Vec<&Part>> = BTreeMap::new();
    for part in parts {
        states.entry(part.page.generation()).or_default().push(part);
    }
    states.into_values().collect()
}

/// Cuts the page that `query` names from `parts`, which show one state of the list.
fn cut(query: PageQuery, parts: &[&Part]) -> Option<(Vec<Cut>, u64)> {
    let parts: Vec<&Part> = parts
        .iter()
        .copied()
        .filter(|part| is_whole(part))
        .collect();
    let count = parts.first()?.page.content.count;
    let wanted = query.span();
    let agrees = |part: &&Part| part.page.content.count == count;
    if wanted.start >= count || !parts.iter().all(agrees) {
        return None;
    }
    let cuts = cover(&parts, wanted.start..wanted.end.min(count))?;
    Some((cuts, count))
}

/// Whether the page holds as many rows as its place in the list says.
fn is_whole(part: &Part) -> bool {
    let content = &part.page.content;
    let span = part.query.span();
    let expected = content.count.min(span.end).saturating_sub(span.start);
    content.row_count() as u64 == expected && expected > 0
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

/// The envelope around a page's rows.
#[derive(PartialEq, Eq)]
struct Envelope<'a> {
    head: &'a [u8],
    tail: &'a [u8],
}

/// A page's envelope; `None` where anything but a comma stands between two rows, which another cut would have to guess.
fn envelope(page: &ListPage) -> Option<Envelope<'_>> {
    let (first, last) = (page.rows.first()?, page.rows.last()?);
    let tight = page
        .rows
        .windows(2)
        .all(|pair| bytes(page, pair[0].span.end..pair[1].span.start) == b",");
    tight.then(|| Envelope {
        head: bytes(page, 0..first.span.start),
        tail: &page.body[last.span.end as usize..],
    })
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

fn join(pieces: &[Piece], count: u64, collection: Collection) -> Option<ListPage> {
    let frame = envelope(&pieces.first()?.page)?;
    let mut seen = HashSet::new();
    let mut body = BytesMut::with_capacity(size(pieces, &frame));
    let mut rows = Vec::new();
    body.extend_from_slice(frame.head);
    for piece in pieces {
        if envelope(&piece.page)? != frame {
            return None;
        }
        for row in piece.rows() {
            // A row without an id cannot be told from its double.
            if !seen.insert(piece.page.text_of(row, collection.id_member)?) {
                return None;
            }
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
    body.extend_from_slice(frame.tail);
    Some(ListPage {
        body: Bytes::from(body),
        count,
        rows: rows.into(),
    })
}

fn size(pieces: &[Piece], frame: &Envelope<'_>) -> usize {
    let rows = pieces.iter().flat_map(Piece::rows);
    let bytes: usize = rows.map(|row| row.span.len() + 1).sum();
    frame.head.len() + bytes + frame.tail.len()
}

fn bytes(page: &ListPage, span: Range<u32>) -> &[u8] {
    &page.body[span.start as usize..span.end as usize]
}

#[cfg(test)]
mod tests;
