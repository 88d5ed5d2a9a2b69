//! What is known of the tasks that are watched, and what a page that was read says anew of them. No I/O and no clock: the time comes along.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    moment::Moment,
    order::{Judged, Novelty, Order},
    reading::{Change, Id, News, Pending, Reading, Row, Rules, State},
};

/// Ranges of one space that are watched at most, and that are read at most to join what was read before.
pub(super) const MOST_RANGES: u64 = 10;
/// A task that is missed so often where it stood has gone, and the list is another one.
const MOST_MISSES: u8 = 3;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Task {
    /// Given at first sight, and only grows.
    serial: u64,
    state: State,
    /// When it was read last.
    read: Moment,
    /// Since when it has not changed, as far as it was seen.
    still_since: Moment,
    misses: u8,
}

/// The tasks of one space that are watched.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Watched {
    order: Order,
    tasks: HashMap<Id, Task>,
    next_serial: u64,
    count: u64,
    has_begun: bool,
    pending: Option<Pending>,
    /// Whether so much is new that only the first range can tell where a page stands.
    needs_head: bool,
    /// A range that was never read, behind one that holds a task that is not final.
    unread: Option<u64>,
    /// When what was taken in last was sent and received.
    last_sent: Option<Moment>,
    last_received: Option<Moment>,
    /// When each range of `size` rows was read last.
    size: u64,
    read: BTreeMap<u64, Moment>,
}

impl Watched {
    /// Whether the first range was read.
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// How many tasks the list has.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// How many tasks are watched.
    pub(super) fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether all that is known to be new has been told.
    pub(super) fn is_caught_up(&self) -> bool {
        self.has_begun && self.pending.is_none() && !self.needs_head
    }

    /// Takes in what was read.
    pub(super) fn take(&mut self, reading: Reading, rules: &Rules, now: Instant) -> News {
        if std::mem::replace(&mut self.size, rules.size) != rules.size {
            self.read.clear();
        }
        let is_range = reading.size == rules.size && reading.place.is_multiple_of(rules.size);
        // The upstream gives fewer rows at once than were asked for: this is another part of the list.
        if reading.place > 0 && reading.is_cut_short() {
            return News {
                changes: self.update(&reading),
                ..News::default()
            };
        }
        if !self.has_begun {
            if reading.place == 0 && (is_range || reading.is_end) {
                self.begin(&reading, rules);
            }
            return News::default();
        }
        self.count = reading.count;
        let mut news = News {
            changes: self.update(&reading),
            ..News::default()
        };
        if is_range {
            self.read
                .insert(reading.place / rules.size, reading.received);
        }
        self.take_order(reading, is_range, rules, &mut news);
        if news.is_other_list {
            return news;
        }
        self.prune(rules, now);
        news
    }

    /// The first range: an inventory, of which nothing is news.
    fn begin(&mut self, reading: &Reading, rules: &Rules) {
        self.has_begun = true;
        self.last_sent = Some(reading.sent);
        self.last_received = Some(reading.received);
        self.count = reading.count;
        self.read.insert(0, reading.received);
        for row in reading.rows.iter().rev() {
            self.insert(row, reading.received);
        }
        self.order.merge(reading);
        self.look_behind(reading, 0, rules);
    }

    /// Notes that the range behind this one is to be read too, where this one holds a task that is not final.
    fn look_behind(&mut self, reading: &Reading, range: u64, rules: &Rules) {
        let next = range + 1;
        let is_wanted = reading.is_busy(rules) && !reading.is_end && next < MOST_RANGES;
        self.unread = is_wanted.then_some(next);
    }

    /// What known tasks have become.
    fn update(&mut self, reading: &Reading) -> Vec<Change> {
        let mut changes = Vec::new();
        for row in reading.rows.iter().rev() {
            let Some(task) = self.tasks.get_mut(&row.id) else {
                continue;
            };
            // Both calls were under way at once: this one may show what was before.
            if reading.sent < task.read {
                continue;
            }
            task.read = reading.received;
            task.misses = 0;
            if task.state.digest != row.state.digest {
                task.still_since = reading.received;
                let after = row.state.owned();
                let before = std::mem::replace(&mut task.state, after.clone());
                changes.push(Change {
                    id: row.id.clone(),
                    before: Some(before),
                    after,
                });
            }
        }
        changes
    }

    /// What of the rows is new, and where they stand.
    fn take_order(&mut self, reading: Reading, is_range: bool, rules: &Rules, news: &mut News) {
        // What was asked for later has been seen already.
        if self.last_sent.is_some_and(|last| reading.sent < last) {
            return;
        }
        let is_surely_later = self.last_received.is_none_or(|last| reading.sent >= last);
        self.last_sent = Some(reading.sent);
        self.last_received = self.last_received.max(Some(reading.received));
        let range = reading.place / rules.size;
        let Some((mut reading, next)) = self.join(reading, is_range, rules) else {
            return;
        };
        let Judged::Rows(mut novelty) = self.order.judge(&reading) else {
            news.is_other_list = is_surely_later;
            return;
        };
        let is_open =
            novelty.last() == Some(&Novelty::Unclear) || self.order.goes_on_below(&reading);
        if is_open && reading.is_end && reading.place > 0 {
            // What is known stands above it: only the first range can tell.
            self.needs_head = true;
            self.unread = None;
            return;
        }
        if is_open && let Some(next) = next {
            // More than a range of tasks is new, or one stands where the range ends: the next range tells.
            let first = reading.place / rules.size;
            if next - first >= MOST_RANGES {
                news.is_other_list = first == 0;
                self.needs_head = true;
                self.unread = None;
                return;
            }
            self.pending = Some(Pending {
                place: reading.place,
                rows: reading.rows,
                next,
                count: reading.count,
                received: reading.received,
            });
            return;
        }
        if is_range && self.unread == Some(range) {
            self.look_behind(&reading, range, rules);
        }
        let has_known = novelty.contains(&Novelty::Known) || novelty.contains(&Novelty::New);
        let is_of_use = has_known || reading.place == 0 || (is_range && reading.is_busy(rules));
        if !is_of_use {
            return;
        }
        if !is_range {
            reading.keep_what_joins(&mut novelty);
        }
        let clear = novelty.iter().rposition(|it| *it != Novelty::Unclear);
        reading.truncate(clear.map_or(0, |last| last + 1));
        // Without the range that follows, where the list ended would be forgotten.
        if reading.rows.is_empty() || self.order.goes_on_below(&reading) {
            return;
        }
        self.note_order(&reading, &novelty, news);
    }

    /// What was read before and what is read now, where the two are one; and the range that would follow. `None`: it says nothing.
    fn join(
        &mut self,
        reading: Reading,
        is_range: bool,
        rules: &Rules,
    ) -> Option<(Reading, Option<u64>)> {
        let range = reading.place / rules.size;
        if is_range && range == 0 {
            self.needs_head = false;
            // What was read before is part of it, or is read again.
            self.pending = None;
            return Some((reading, Some(1)));
        }
        if self.pending.is_none() {
            return Some((reading, is_range.then_some(range + 1)));
        }
        let follows = |pending: &mut Pending| {
            is_range && pending.next == range && pending.received <= reading.sent
        };
        let Some(pending) = self.pending.take_if(follows) else {
            return Some((reading, None));
        };
        let Some(rows) = pending.followed_by(&reading) else {
            // So much came meanwhile that nobody knows what is between. The first range is read again, then what follows.
            self.needs_head = true;
            return None;
        };
        let joined = Reading {
            place: pending.place,
            rows,
            ..reading
        };
        Some((joined, Some(range + 1)))
    }

    fn note_order(&mut self, reading: &Reading, novelty: &[Novelty], news: &mut News) {
        for (row, novelty) in reading.rows.iter().zip(novelty).rev() {
            match novelty {
                Novelty::Known | Novelty::Unclear => {}
                Novelty::Inventory => self.insert(row, reading.received),
                Novelty::New => {
                    self.insert(row, reading.received);
                    news.changes.push(Change {
                        id: row.id.clone(),
                        before: None,
                        after: self.tasks[&row.id].state.clone(),
                    });
                }
            }
        }
        for id in self.order.merge(reading) {
            let Some(task) = self.tasks.get_mut(&id) else {
                continue;
            };
            // Who was read since then is not missing.
            if task.read <= reading.sent {
                task.misses += 1;
                news.is_other_list |= task.misses >= MOST_MISSES;
            }
        }
    }

    fn insert(&mut self, row: &Row, received: Moment) {
        let task = Task {
            serial: self.next_serial,
            state: row.state.owned(),
            read: received,
            still_since: received,
            misses: 0,
        };
        self.next_serial += 1;
        self.tasks.insert(row.id.clone(), task);
    }

    /// The ranges that are watched, the newest first.
    pub(super) fn ranges(&self, rules: &Rules, now: Instant) -> BTreeSet<u64> {
        let places = self.order.places(self.count);
        let unsettled = places.filter(|(id, _)| {
            let task = self.tasks.get(*id);
            task.is_some_and(|task| {
                !rules.is_final(&task.state) || task.still_since.age(now) < rules.settled_after
            })
        });
        let ranges: BTreeSet<u64> = unsettled.map(|(_, place)| place / rules.size).collect();
        let ranges = [0].into_iter().chain(ranges).chain(self.unread);
        let ranges: BTreeSet<u64> = ranges.collect();
        ranges.into_iter().take(MOST_RANGES as usize).collect()
    }

    /// When a range was read last.
    pub(super) fn read_at(&self, range: u64) -> Option<Instant> {
        self.read.get(&range).map(|read| read.0)
    }

    /// A range that is to be read now, since what was read does not reach what is known, or was never read.
    pub(super) fn wanted_now(&self) -> Option<u64> {
        if !self.has_begun {
            return Some(0);
        }
        let pending = self.pending.as_ref().map(|pending| pending.next);
        let head = self.needs_head.then_some(0);
        pending.or(head).or(self.unread)
    }

    /// Looks behind no range any more that could not be read.
    pub(super) fn skip_unread(&mut self) {
        self.unread = None;
    }

    fn prune(&mut self, rules: &Rules, now: Instant) {
        let ranges = self.ranges(rules, now);
        self.read.retain(|range, _| ranges.contains(range));
        let is_wanted = |range| ranges.contains(&range);
        for id in self.order.prune(is_wanted, rules.size, self.count) {
            self.tasks.remove(&id);
        }
    }

    /// Each task from `serial` on: its serial, id and state, oldest first.
    pub(super) fn since_serial(&self, serial: u64) -> Vec<(u64, &Id, &State)> {
        let tasks = self.tasks.iter();
        let mut tasks: Vec<_> = tasks
            .filter(|(_, task)| task.serial >= serial)
            .map(|(id, task)| (task.serial, id, &task.state))
            .collect();
        tasks.sort_unstable_by_key(|(serial, ..)| *serial);
        tasks
    }

    /// When what is known was so.
    pub(super) fn moments_mut(&mut self) -> impl Iterator<Item = &mut Moment> {
        let tasks = self.tasks.values_mut();
        let of_tasks = tasks.flat_map(|task| [&mut task.read, &mut task.still_since]);
        let pending = self.pending.as_mut().map(|pending| &mut pending.received);
        let last = [
            self.last_sent.as_mut(),
            self.last_received.as_mut(),
            pending,
        ];
        of_tasks
            .chain(last.into_iter().flatten())
            .chain(self.read.values_mut())
    }

    /// Bytes that it takes.
    pub(super) fn weight(&self) -> usize {
        let tasks = self.tasks.values();
        tasks.map(|task| TASK_WEIGHT + task.state.weight()).sum()
    }

    /// Keeps no more than digests of the largest tasks until it takes no more than `most`.
    pub(super) fn shrink(&mut self, most: usize) {
        let mut weight = self.weight();
        let mut tasks: Vec<_> = self.tasks.values_mut().collect();
        tasks.sort_unstable_by_key(|task| std::cmp::Reverse(task.state.weight()));
        for task in tasks {
            if weight <= most {
                return;
            }
            weight -= task.state.weight();
            task.state.bytes = None;
        }
    }
}

/// What a task takes besides its bytes: twice its id, its numbers, its slots in maps.
const TASK_WEIGHT: usize = 256;

#[cfg(test)]
impl Watched {
    pub(super) fn knows(&self, id: &str) -> bool {
        self.tasks.contains_key(id)
    }
}
