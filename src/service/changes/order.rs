//! In which order the tasks of a list are known to stand, as far as it was read without a gap.
//!
//! The list only grows: two tasks that were seen next to each other keep their order, and whatever stands between them later is new. So is
//! whatever stands above the head segment. Of all else nobody knows whether it is new or was merely never read.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::reading::{Id, Reading, Row};

/// Tasks that follow each other without a gap.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Segment {
    ids: Vec<Id>,
    /// The place of its first task in the list, when that had `count` tasks.
    place: u64,
    count: u64,
    kind: Kind,
    /// Whether nothing stood below it.
    is_whole: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    /// It began at the head of the list: whatever stands above it is new.
    Head,
    #[default]
    Floating,
}

/// What a row of a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Novelty {
    Known,
    /// It was not in the list when what is around it was read.
    New,
    /// It is seen for the first time, and may have been there for long.
    Inventory,
    /// What stands below it decides.
    Unclear,
}

/// What a page shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Judged {
    Rows(Vec<Novelty>),
    /// It is not the list that was read before.
    OtherList,
}

/// What is known of the order.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Order {
    segments: Vec<Segment>,
}

/// The segment that an id is of, and its place in that.
type Position = (usize, usize);

impl Order {
    fn positions(&self) -> HashMap<&Id, Position> {
        let segments = self.segments.iter().enumerate();
        let ids = segments.flat_map(|(at, segment)| {
            let ids = segment.ids.iter().enumerate();
            ids.map(move |(place, id)| (id, (at, place)))
        });
        ids.collect()
    }

    /// Where each row of `reading` stands; `None`: it is not known.
    fn known(&self, reading: &Reading) -> Vec<Option<Position>> {
        let positions = self.positions();
        let rows = reading.rows.iter();
        rows.map(|row| positions.get(&row.id).copied()).collect()
    }

    /// What each row of `reading` is.
    pub(super) fn judge(&self, reading: &Reading) -> Judged {
        let known = self.known(reading);
        let Some(((first, top), (last, bottom))) = ends(&known) else {
            return self.judge_unknown(reading);
        };
        if !are_in_order(&known) {
            return Judged::OtherList;
        }
        let Some(above) = self.above(top, reading) else {
            return Judged::OtherList;
        };
        let below = self.below(bottom, reading);
        let mut rows = Vec::with_capacity(known.len());
        for (row, at) in known.iter().enumerate() {
            rows.push(match at {
                Some(_) => Novelty::Known,
                None if row < first => above,
                None if row > last => below,
                None => between(&known, row),
            });
        }
        Judged::Rows(rows)
    }

    /// The same where none of them is known.
    fn judge_unknown(&self, reading: &Reading) -> Judged {
        let head = self.head();
        let of_all = |novelty| Judged::Rows(vec![novelty; reading.rows.len()]);
        if reading.place > 0 {
            // One more may be counted than there was: then the last would be the first of this page.
            let is_below = head.is_some_and(|head| reading.place + 1 >= head.end(reading.count));
            // Above the last task of the head segment, they may be new.
            return of_all(if is_below {
                Novelty::Inventory
            } else {
                Novelty::Unclear
            });
        }
        match head {
            // The list was empty.
            Some(head) if head.ids.is_empty() && reading.is_end => of_all(Novelty::New),
            Some(_) if reading.is_end => Judged::OtherList,
            Some(_) => of_all(Novelty::Unclear),
            None => of_all(Novelty::Inventory),
        }
    }

    /// What stands above the first known task of a page; `None` where that is no page of this list.
    fn above(&self, (segment, place): Position, reading: &Reading) -> Option<Novelty> {
        match self.segments[segment].kind {
            Kind::Head => Some(Novelty::New),
            // The head of the list is gone.
            Kind::Floating if reading.place == 0 => None,
            // It stood right below another, which is not on this page.
            Kind::Floating if place > 0 => Some(Novelty::New),
            Kind::Floating => Some(Novelty::Inventory),
        }
    }

    /// Whether the list goes on below the rows, where it ended at their last before.
    pub(super) fn goes_on_below(&self, reading: &Reading) -> bool {
        let Some(last) = reading.rows.last() else {
            return false;
        };
        let ended_with =
            |segment: &Segment| segment.is_whole && segment.ids.last() == Some(&last.id);
        !reading.is_end && self.segments.iter().any(ended_with)
    }

    /// What stands right below the task at a position that is the last known of a page.
    fn below(&self, (segment, place): Position, reading: &Reading) -> Novelty {
        let segment = &self.segments[segment];
        let is_last = place + 1 == segment.ids.len();
        match is_last {
            true if segment.is_whole && reading.is_end => Novelty::New,
            // The list ended here, and now goes on beyond the page.
            true if segment.is_whole => Novelty::Unclear,
            true => Novelty::Inventory,
            // At the head the next range is asked, since the head moves most.
            false if reading.is_end || reading.place > 0 => Novelty::New,
            false => Novelty::Unclear,
        }
    }

    fn head(&self) -> Option<&Segment> {
        let mut segments = self.segments.iter();
        segments.find(|segment| segment.kind == Kind::Head)
    }

    /// Takes in rows without a gap, of which none is [`Novelty::Unclear`]. Returns the known tasks that should have been among them.
    pub(super) fn merge(&mut self, reading: &Reading) -> Vec<Id> {
        let known = self.known(reading);
        let involved: HashSet<usize> = known
            .iter()
            .flatten()
            .map(|(segment, _)| *segment)
            .collect();
        let mut merged = Segment {
            ids: Vec::with_capacity(reading.rows.len()),
            place: reading.place,
            count: reading.count,
            kind: Kind::Floating,
            is_whole: reading.is_end,
        };
        let last_known = known.iter().rposition(Option::is_some);
        let mut passed_over = Vec::new();
        let mut met = HashSet::new();
        // What follows the page was read before.
        let mut rest: &[Id] = &[];
        if let Some((segment, place)) = known.iter().flatten().next() {
            let above = &self.segments[*segment].ids[..*place];
            if reading.place == 0 {
                passed_over.extend_from_slice(above);
            }
            merged.place = reading.place.saturating_sub(above.len() as u64);
            merged.ids.extend_from_slice(above);
            met.insert(*segment);
        }
        for (row, (Row { id, .. }, at)) in reading.rows.iter().zip(&known).enumerate() {
            let Some((segment, place)) = *at else {
                merged.ids.push(id.clone());
                continue;
            };
            let ids = &self.segments[segment].ids;
            if met.insert(segment) {
                passed_over.extend_from_slice(&ids[..place]);
                merged.ids.extend_from_slice(&ids[..place]);
            }
            merged.ids.push(id.clone());
            let until = next_of(&known, row, segment).unwrap_or(ids.len());
            let missing = &ids[place + 1..until];
            if Some(row) == last_known {
                rest = missing;
            } else {
                passed_over.extend_from_slice(missing);
                merged.ids.extend_from_slice(missing);
            }
        }
        let has_rest = !rest.is_empty();
        merged.is_whole &= !has_rest;
        merged.ids.extend_from_slice(rest);
        let of = |segment: &usize| &self.segments[*segment];
        let joins_head = involved
            .iter()
            .any(|segment| of(segment).kind == Kind::Head);
        let is_first = reading.place == 0;
        if joins_head || is_first {
            merged.kind = Kind::Head;
        }
        let last = last_known.and_then(|row| known[row]);
        // What followed the page before still does.
        merged.is_whole |=
            has_rest && last.is_some_and(|(segment, _)| self.segments[segment].is_whole);
        let mut at = 0;
        self.segments.retain(|segment| {
            let is_replaced = involved.contains(&at) || (is_first && segment.kind == Kind::Head);
            at += 1;
            !is_replaced
        });
        self.segments.push(merged);
        passed_over
    }

    /// Each task, and where it stands by now in a list of `count`.
    pub(super) fn places(&self, count: u64) -> impl Iterator<Item = (&Id, u64)> {
        self.segments.iter().flat_map(move |segment| {
            let first = segment.first_place(count);
            (first..).zip(&segment.ids).map(|(place, id)| (id, place))
        })
    }

    /// Forgets what lies beyond the last of `wanted` ranges of `size`, and what floats before the first; returns what that was.
    ///
    /// What lies between stays: there, what is new is told by what is around it.
    pub(super) fn prune(&mut self, wanted: impl Fn(u64) -> bool, size: u64, count: u64) -> Vec<Id> {
        let mut gone = Vec::new();
        for segment in &mut self.segments {
            let first = segment.first_place(count);
            let is_head = segment.kind == Kind::Head;
            let is_wanted = |place: usize| {
                // What is new is told by these, wherever they stand by now.
                let is_anchor = is_head && (place as u64) < size;
                is_anchor || wanted((first + place as u64) / size)
            };
            let end = (0..segment.ids.len()).rfind(|place| is_wanted(*place));
            let end = end.map_or(0, |last| last + 1);
            if end < segment.ids.len() {
                gone.extend(segment.ids.drain(end..));
                segment.is_whole = false;
            }
            let start = (0..segment.ids.len()).find(|place| is_wanted(*place));
            if !is_head && let Some(start) = start {
                gone.extend(segment.ids.drain(..start));
                segment.place += start as u64;
            }
        }
        self.segments
            .retain(|segment| segment.kind == Kind::Head || !segment.ids.is_empty());
        gone
    }
}

impl Reading {
    /// Leaves only the rows that what is known goes on to, above and below.
    pub(super) fn keep_what_joins(&mut self, novelty: &mut Vec<Novelty>) {
        let joins = |it: &Novelty| matches!(it, Novelty::Known | Novelty::New);
        let end = novelty.iter().rposition(joins).map_or(0, |last| last + 1);
        let start = novelty[..end].iter().position(joins).unwrap_or(end);
        self.truncate(end);
        self.rows.drain(..start);
        novelty.truncate(end);
        novelty.drain(..start);
        self.place += start as u64;
    }
}

impl Segment {
    /// The place behind its last task.
    fn end(&self, count: u64) -> u64 {
        self.first_place(count) + self.ids.len() as u64
    }

    fn first_place(&self, count: u64) -> u64 {
        self.place + count.saturating_sub(self.count)
    }
}

/// The first and the last row that is known, and where they stand.
fn ends(known: &[Option<Position>]) -> Option<((usize, Position), (usize, Position))> {
    let rows = known.iter().enumerate();
    let mut rows = rows.filter_map(|(row, at)| Some((row, (*at)?)));
    let first = rows.next()?;
    Some((first, rows.next_back().unwrap_or(first)))
}

/// Whether the tasks of each segment are in its order.
fn are_in_order(known: &[Option<Position>]) -> bool {
    let mut last = HashMap::new();
    let mut known = known.iter().flatten();
    known.all(|(segment, place)| last.insert(segment, place).is_none_or(|last| last < place))
}

/// What an unknown row between known ones is: new where those stood next to each other.
fn between(known: &[Option<Position>], row: usize) -> Novelty {
    let above = known[..row].iter().rev().flatten().next();
    let below = known[row..].iter().flatten().next();
    match (above, below) {
        (Some((above, _)), Some((below, _))) if above == below => Novelty::New,
        _ => Novelty::Inventory,
    }
}

/// The place of the next task of `segment` after `row`.
fn next_of(known: &[Option<Position>], row: usize, segment: usize) -> Option<usize> {
    let mut rest = known[row + 1..].iter().flatten();
    rest.find(|(of, _)| *of == segment).map(|(_, place)| *place)
}
