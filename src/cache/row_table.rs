//! What is known of the rows of a page without their bytes: what a row is called, its state, and since when it has stayed the same.
//!
//! It is read once, when a page comes, and lies beside the page: bounded with the cache, and gone with it. There is no index besides.

use std::{borrow::Cow, collections::HashMap, ops::Range, str};

use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use crate::domain::{Collection, ListPage, json};

/// The rows of a page, in order.
#[derive(Debug, Default)]
pub struct RowTable {
    entries: Box<[Entry]>,
    /// Every text that the entries point to, each once.
    text: Box<str>,
}

/// What is known of one row. A member is `None` where the row has no such member, has it twice, or it is no string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowFacts<'a> {
    pub id: Option<&'a str>,
    pub status: Option<&'a str>,
    pub assignee: Option<&'a str>,
    pub run_id: Option<&'a str>,
    /// Of its bytes.
    pub digest: u64,
    /// The first time that these bytes were read, with no others between.
    pub unchanged_since: Instant,
}

#[derive(Debug)]
struct Entry {
    digest: u64,
    unchanged_since: Instant,
    id: Text,
    status: Text,
    assignee: Text,
    run_id: Text,
}

/// Where a text lies in [`RowTable::text`].
#[derive(Clone, Copy, Debug)]
struct Text {
    start: u32,
    length: u32,
}

impl Text {
    const NONE: Self = Self {
        start: u32::MAX,
        length: 0,
    };
}

impl RowTable {
    /// Reads the rows of `page`, which is as it was at `born`. Goes once through its bytes.
    #[must_use]
    pub fn read(page: &ListPage, collection: Collection, born: Instant) -> Self {
        let mut table = Builder::default();
        for row in page.rows.iter() {
            let bytes = &page.body[row.span.start as usize..row.span.end as usize];
            let [id, status, assignee, run_id] = members(bytes, collection);
            table.push(RowFacts {
                id: id.as_deref(),
                status: status.as_deref(),
                assignee: assignee.as_deref(),
                run_id: run_id.as_deref(),
                digest: xxh3_64(bytes),
                unchanged_since: born,
            });
        }
        table.build()
    }

    /// The rows of `parts`, one part after the other.
    pub(super) fn joined<'a>(parts: impl Iterator<Item = (&'a Self, Range<usize>)>) -> Self {
        let mut table = Builder::default();
        for (part, rows) in parts {
            rows.filter_map(|place| part.get(place))
                .for_each(|facts| table.push(facts));
        }
        table.build()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The row at this place, from 0.
    #[must_use]
    pub fn get(&self, place: usize) -> Option<RowFacts<'_>> {
        self.entries.get(place).map(|entry| self.facts(entry))
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = RowFacts<'_>> {
        self.entries.iter().map(|entry| self.facts(entry))
    }

    /// Where the row called `id` is.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<usize> {
        self.iter().position(|row| row.id == Some(id))
    }

    /// The same, each row unchanged for as long as `before` shows: tables of the same list, what was read last first. Of a row that several
    /// hold the first tells.
    #[must_use]
    pub(super) fn continuing<'a>(mut self, before: impl Iterator<Item = &'a Self>) -> Self {
        let mut known = HashMap::new();
        for row in before.flat_map(Self::iter) {
            if let Some(id) = row.id {
                known.entry(id).or_insert((row.digest, row.unchanged_since));
            }
        }
        let Self { entries, text } = &mut self;
        for entry in entries.iter_mut() {
            let before = slice(text, entry.id).and_then(|id| known.get(id));
            if let Some((_, since)) = before.filter(|(digest, _)| *digest == entry.digest) {
                entry.unchanged_since = entry.unchanged_since.min(*since);
            }
        }
        self
    }

    /// Bytes it occupies, beside the struct itself.
    pub(super) fn heap_bytes(&self) -> usize {
        size_of_val(&*self.entries) + self.text.len()
    }

    fn facts(&self, entry: &Entry) -> RowFacts<'_> {
        RowFacts {
            id: slice(&self.text, entry.id),
            status: slice(&self.text, entry.status),
            assignee: slice(&self.text, entry.assignee),
            run_id: slice(&self.text, entry.run_id),
            digest: entry.digest,
            unchanged_since: entry.unchanged_since,
        }
    }
}

fn slice(text: &str, at: Text) -> Option<&str> {
    let start = at.start as usize;
    text.get(start..start + at.length as usize)
}

/// The members of a row that are looked at, in one pass: its id, state, assignee and run.
fn members(row: &[u8], collection: Collection) -> [Option<Cow<'_, str>>; 4] {
    let wanted = [
        collection.id_member,
        collection.state_member,
        "assignee",
        "run_id",
    ];
    let mut found = [Member::Absent; 4];
    let members = str::from_utf8(row).ok().map(json::members);
    for (name, value) in members.and_then(Result::ok).unwrap_or_default() {
        let Some(name) = json::text(name) else {
            continue;
        };
        for (found, _) in found.iter_mut().zip(wanted).filter(|(_, it)| *it == name) {
            *found = match found {
                Member::Absent => Member::Once(value),
                Member::Once(_) | Member::Twice => Member::Twice,
            };
        }
    }
    found.map(|member| match member {
        Member::Once(value) => json::text(value),
        // Of two that are called alike nobody knows which is meant.
        Member::Absent | Member::Twice => None,
    })
}

#[derive(Clone, Copy)]
enum Member<'a> {
    Absent,
    Once(&'a str),
    Twice,
}

#[derive(Default)]
struct Builder {
    entries: Vec<Entry>,
    text: String,
    known: HashMap<Box<str>, Text>,
}

impl Builder {
    fn push(&mut self, row: RowFacts<'_>) {
        let entry = Entry {
            digest: row.digest,
            unchanged_since: row.unchanged_since,
            id: self.keep(row.id),
            status: self.keep(row.status),
            assignee: self.keep(row.assignee),
            run_id: self.keep(row.run_id),
        };
        self.entries.push(entry);
    }

    fn keep(&mut self, text: Option<&str>) -> Text {
        let Some(text) = text else {
            return Text::NONE;
        };
        if let Some(known) = self.known.get(text) {
            return *known;
        }
        // The texts are no longer than the page they stand in, whose places are numbered so.
        let place = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let kept = Text {
            start: place(self.text.len()),
            length: place(text.len()),
        };
        self.text.push_str(text);
        self.known.insert(text.into(), kept);
        kept
    }

    fn build(self) -> RowTable {
        RowTable {
            entries: self.entries.into(),
            text: self.text.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::upstream::read_page;

    fn page(rows: &[&str]) -> ListPage {
        let rows = rows.join(",");
        read_page(&format!(r#"{{"count":9,"data":[{rows}]}}"#).into()).unwrap()
    }

    fn table(rows: &[&str], born: Instant) -> RowTable {
        RowTable::read(&page(rows), Collection::TASKS, born)
    }

    #[test]
    fn each_row_is_known_by_its_members() {
        let now = Instant::now();
        let rows = [
            r#"{"task_id":"a","status":"failed","assignee":"x","run_id":"R","n":1e+22}"#,
            r#"{"task\u005fid":"b\u0020c","status":"failed","assignee":null,"run_id":7}"#,
            r#"{"task_id":"d","status":"a","status":"b","task":{"task_id":"no","assignee":"no"}}"#,
            "null",
            r#"["task_id"]"#,
        ];
        let table = table(&rows, now);
        let known: Vec<_> = table
            .iter()
            .map(|row| (row.id, row.status, row.assignee, row.run_id))
            .collect();
        assert_eq!(
            known,
            [
                (Some("a"), Some("failed"), Some("x"), Some("R")),
                (Some("b c"), Some("failed"), None, None),
                (Some("d"), None, None, None),
                (None, None, None, None),
                (None, None, None, None),
            ]
        );
        assert_eq!(table.find("b c"), Some(1));
        assert_eq!(table.find("no"), None);
        assert_eq!(table.text.matches("failed").count(), 1);
    }

    #[test]
    fn a_row_is_unchanged_for_as_long_as_its_bytes_were_read_without_others_between() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let a = r#"{"task_id":"a","status":"completed"}"#;
        let a_with_recording = r#"{"task_id":"a","status":"completed","recording":"url"}"#;
        let b = r#"{"task_id":"b"}"#;
        let nameless = "{}";
        let first = table(&[a, b, nameless], at(0));
        let since = |table: &RowTable| -> Vec<_> {
            let since = table.iter().map(|row| row.unchanged_since - start);
            since.map(|since| since.as_secs()).collect()
        };

        let same = table(&[b, a, nameless], at(10)).continuing([&first].into_iter());
        assert_eq!(since(&same), [0, 0, 10]);
        let changed = table(&[a_with_recording, b], at(20)).continuing([&same, &first].into_iter());
        assert_eq!(since(&changed), [20, 0]);
        // What was read last tells, though an older table holds the same bytes.
        let back = table(&[a, b], at(30)).continuing([&changed, &same, &first].into_iter());
        assert_eq!(since(&back), [30, 0]);
        assert_eq!(since(&table(&[a], at(40))), [40]);
    }

    #[test]
    fn joined_tables_are_their_rows_in_order() {
        let now = Instant::now();
        let (first, second) = (
            table(&[r#"{"task_id":"a"}"#, r#"{"task_id":"b"}"#], now),
            table(&[r#"{"task_id":"c"}"#], now),
        );
        let joined = RowTable::joined([(&first, 1..2), (&second, 0..1)].into_iter());
        let ids: Vec<_> = joined.iter().filter_map(|row| row.id).collect();
        assert_eq!(ids, ["b", "c"]);
    }
}
