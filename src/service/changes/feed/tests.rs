use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use proptest::{
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use xxhash_rust::xxh3::xxh3_128;

use super::{
    super::{
        feed_state::FeedState,
        moment::Clock,
        reading::{Row, State},
        watched::MOST_RANGES,
    },
    *,
};

const SIZE: u64 = 6;

/// A task upstream.
#[derive(Clone, Debug)]
struct Task {
    id: u32,
    version: u32,
}

/// What happens.
#[derive(Clone, Debug)]
enum Step {
    /// So many tasks are added, so many places below the head.
    Insert {
        count: u32,
        below: usize,
    },
    /// The task at this place changes.
    Change(prop::sample::Index),
    /// The watch reads what it wants, or the next range in turn.
    Read {
        counts_one_more: bool,
    },
    /// Some page is read, by whoever, and comes after what is read next.
    ReadLate(prop::sample::Index),
    /// Somebody reads a page of another size.
    Glimpse {
        page: u64,
        size: u64,
    },
    /// A reader reads on.
    Pull {
        limit: usize,
    },
    /// A new reader begins.
    Join {
        from_start: bool,
    },
    Purge,
    Restart,
    /// What is known by now is stored, and readers see it.
    Store,
    /// Another replica goes on from what was stored last; its clock is so many milliseconds ahead, or behind.
    HandOver {
        ahead: i64,
    },
    /// The log loses all it can.
    Evict,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1..4_u32, 0..3_usize).prop_map(|(count, below)| Step::Insert { count, below }),
        1 => (5..40_u32).prop_map(|count| Step::Insert { count, below: 0 }),
        6 => any::<prop::sample::Index>().prop_map(Step::Change),
        8 => any::<bool>().prop_map(|counts_one_more| Step::Read { counts_one_more }),
        2 => any::<prop::sample::Index>().prop_map(Step::ReadLate),
        2 => (0..4_u64, 2..9_u64).prop_map(|(page, size)| Step::Glimpse { page, size }),
        5 => (1..9_usize).prop_map(|limit| Step::Pull { limit }),
        1 => any::<bool>().prop_map(|from_start| Step::Join { from_start }),
        8 => Just(Step::Store),
        3 => (-2..=2_i64).prop_map(|ahead| Step::HandOver { ahead }),
        1 => prop_oneof![Just(Step::Purge), Just(Step::Restart), Just(Step::Evict)],
    ];
    prop::collection::vec(step, 1..50)
}

struct Reader {
    position: Position,
    /// The last version of each task that it was told.
    told: HashMap<u32, u32>,
    /// The next task to be added when it began.
    since: u32,
}

struct World {
    /// What readers see: the feed as it was stored last, and what held then.
    seen: (Feed, Stored),
    /// Newest first.
    list: Vec<Task>,
    next_id: u32,
    feed: Feed,
    now: Instant,
    process: u32,
    turn: u64,
    late: Option<(Reading, u32)>,
    /// When what was taken in last was asked for.
    last_sent: Instant,
    readers: Vec<Reader>,
    known: Stored,
    /// Whether a reader may be told that its cursor is gone.
    may_reset: bool,
}

/// Of a feed, in ids of tasks.
#[derive(Clone, Copy)]
struct Stored {
    /// The next task to be added when the watch began.
    watched_since: u32,
    /// The same when all that was new had been told.
    caught_up: u32,
}

fn rules() -> Rules {
    Rules {
        size: SIZE,
        final_states: Arc::new(["completed".into()]),
        settled_after: Duration::from_secs(1 << 30),
    }
}

fn row(task: &Task) -> Row {
    let json = format!(
        r#"{{"task_id":"t{}","status":"v{}"}}"#,
        task.id, task.version
    );
    Row {
        id: format!("t{}", task.id).into(),
        state: State {
            digest: xxh3_128(json.as_bytes()),
            status: Some(format!("v{}", task.version).into()),
            bytes: Some(Bytes::from(json)),
        },
    }
}

impl World {
    fn new(tasks: u32, now: Instant) -> Self {
        let list = (0..tasks).rev().map(|id| Task { id, version: 0 });
        let feed = Feed::new(1, 0);
        let known = Stored {
            watched_since: tasks,
            caught_up: tasks,
        };
        Self {
            seen: (feed.clone(), known),
            list: list.collect(),
            next_id: tasks,
            feed,
            now,
            process: 1,
            turn: 0,
            late: None,
            last_sent: now,
            readers: Vec::new(),
            known,
            may_reset: false,
        }
    }

    fn tick(&mut self) -> Instant {
        self.now += Duration::from_millis(10);
        self.now
    }

    fn read(&mut self, page: u64, size: u64) -> Reading {
        let sent = self.tick();
        let place = page * size;
        let rows = self.list.iter().skip(place as usize).take(size as usize);
        let rows = rows.map(row).collect();
        let received = self.tick();
        Reading::new(
            (place, size),
            self.list.len() as u64,
            rows,
            (sent, received),
        )
    }

    fn take(&mut self, reading: Reading) {
        self.take_as_of(reading, self.next_id);
    }

    /// Takes in what was read before task `as_of` was added.
    fn take_as_of(&mut self, reading: Reading, as_of: u32) {
        let had_begun = self.feed.watched.has_begun();
        // More than the ranges that are read to join what was read before, some of which move meanwhile.
        let unseen = u64::from(self.next_id - self.known.caught_up);
        self.may_reset |= unseen >= (MOST_RANGES - 3) * SIZE;
        let terms = Terms {
            rules: &rules(),
            bounds: Bounds {
                events: 1000,
                retention: Duration::from_secs(3600),
            },
            most: usize::MAX,
            seen_at: "",
            now: self.now,
        };
        // One that was asked for before another tells nothing of what is new.
        let is_latest = reading.sent.0 >= self.last_sent;
        self.last_sent = self.last_sent.max(reading.sent.0);
        let is_head = reading.place == 0 && reading.size == SIZE && is_latest;
        let was_pending = !self.feed.watched.is_caught_up();
        let (_, reset) = self.feed.take(reading, &terms);
        assert!(reset.is_none() || self.may_reset, "the list is what it was");
        if self.feed.watched.is_caught_up() && (is_head || was_pending) {
            self.known.caught_up = self.known.caught_up.max(as_of);
        }
        if !had_begun || reset.is_some() {
            self.known.watched_since = self.next_id;
        }
    }

    /// Reads as the watch does.
    fn poll(&mut self) -> Reading {
        let ranges: Vec<_> = self
            .feed
            .watched
            .ranges(&rules(), self.now)
            .into_iter()
            .collect();
        let range = self.feed.watched.wanted_now().unwrap_or_else(|| {
            let next = ranges.iter().find(|range| **range > self.turn);
            self.turn = *next.unwrap_or(&0);
            self.turn
        });
        self.read(range, SIZE)
    }

    fn insert(&mut self, count: u32, below: usize) {
        for _ in 0..count {
            let task = Task {
                id: self.next_id,
                version: 0,
            };
            self.next_id += 1;
            let below = below.min(self.list.len());
            self.list.insert(below, task);
        }
    }

    fn store(&mut self) {
        self.seen = (self.feed.clone(), self.known);
    }

    fn begin_anew(&mut self) {
        self.late = None;
        self.may_reset = true;
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Insert { count, below } => self.insert(*count, *below),
            Step::Change(at) => {
                if !self.list.is_empty() {
                    let at = at.index(self.list.len());
                    self.list[at].version += 1;
                }
            }
            Step::Read { counts_one_more } => {
                let mut reading = self.poll();
                if *counts_one_more {
                    self.insert(1, 0);
                    reading.count += 1;
                }
                self.take(reading);
                if let Some((mut late, as_of)) = self.late.take() {
                    late.received = Moment(self.tick());
                    self.take_as_of(late, as_of);
                }
            }
            Step::ReadLate(page) => {
                let pages = self.list.len() / SIZE as usize + 1;
                let reading = self.read(page.index(pages) as u64, SIZE);
                self.late = Some((reading, self.next_id));
            }
            Step::Glimpse { page, size } => {
                let reading = self.read(*page, *size);
                self.take(reading);
            }
            Step::Pull { limit } => {
                for at in 0..self.readers.len() {
                    self.pull(at, *limit);
                }
            }
            Step::Join { from_start } => self.join(*from_start),
            Step::Purge => {
                self.begin_anew();
                let epoch = self.feed.log.epoch() + 1;
                for feed in [&mut self.feed, &mut self.seen.0] {
                    feed.restart(epoch, Gone::Purged);
                }
            }
            Step::Restart => {
                self.begin_anew();
                self.process += 1;
                self.feed = Feed::new(self.process, 0);
                self.store();
            }
            Step::Store => self.store(),
            Step::HandOver { ahead } => self.hand_over(*ahead),
            Step::Evict => {
                let bounds = Bounds {
                    events: 0,
                    retention: Duration::ZERO,
                };
                for feed in [&mut self.feed, &mut self.seen.0] {
                    feed.trim(bounds, usize::MAX, Moment(self.now));
                }
                self.may_reset = true;
            }
        }
    }

    /// What another replica reads is what this one wrote, and tells every reader the same.
    fn hand_over(&mut self, ahead: i64) {
        let clock = |unix_us| Clock {
            now: self.now,
            unix_us,
        };
        let (stored, known) = self.seen.clone();
        let written = FeedState::new(stored.clone());
        let bytes = written.encode(&clock(1 << 50)).unwrap();
        let same = FeedState::decode(&bytes, &clock(1 << 50)).unwrap();
        let again = same.encode(&clock(1 << 50)).unwrap();
        let json = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
        assert_eq!(json(&again), json(&bytes));
        let unix_us = (1 << 50) + ahead * 1000;
        let mut successor = FeedState::decode(&bytes, &clock(unix_us)).unwrap().feed;
        for reader in &self.readers {
            let read = |feed: &Feed| {
                let projection = Projection::default();
                let wanted = Wanted {
                    projection: &projection,
                    kinds: TaskEvents::ALL,
                    limit: 1000,
                };
                let batch = feed.read(reader.position, &wanted, "");
                batch.map(|batch| {
                    let events = batch.events.iter().map(|event| event.json.clone());
                    (events.collect::<Vec<_>>(), batch.position)
                })
            };
            assert_eq!(read(&successor), read(&stored));
        }
        successor
            .log
            .skip_to(stored.log.end().next.max(self.feed.log.end().next) + 1000);
        // What the last watcher knew besides is lost, and what it asked for.
        (self.feed, self.known, self.late) = (successor, known, None);
    }

    fn join(&mut self, from_start: bool) {
        if !self.seen.0.watched.is_caught_up() {
            return;
        }
        let position = match from_start {
            true => self.seen.0.start(),
            false => self.seen.0.log.end(),
        };
        self.readers.push(Reader {
            position,
            told: HashMap::new(),
            since: self.next_id,
        });
    }

    fn pull(&mut self, at: usize, limit: usize) -> bool {
        let projection = Projection::default();
        let wanted = Wanted {
            projection: &projection,
            kinds: TaskEvents::ALL,
            limit,
        };
        let reader = &mut self.readers[at];
        let Ok(batch) = self.seen.0.read(reader.position, &wanted, "") else {
            assert!(self.may_reset, "a cursor that holds");
            reader.position = self.seen.0.log.end();
            reader.told.clear();
            reader.since = u32::MAX;
            return false;
        };
        assert!(batch.events.len() <= limit);
        reader.position = batch.position;
        for event in &batch.events {
            let json: serde_json::Value = serde_json::from_slice(&event.json).unwrap();
            let id: u32 = json["task_id"].as_str().unwrap()[1..].parse().unwrap();
            let version: u32 = json["status"].as_str().unwrap()[1..].parse().unwrap();
            let before = reader.told.insert(id, version);
            assert!(
                before.is_none_or(|before| before < version),
                "in order and once"
            );
        }
        batch.has_more
    }

    /// Reads until all is known, then compares.
    fn settle(&mut self) {
        self.late = None;
        // Until all ranges in turn tell nothing new.
        let mut quiet = 0;
        for _ in 0..200 {
            let log = self.feed.log.end();
            let reading = self.poll();
            self.take(reading);
            self.store();
            let is_quiet = self.feed.log.end() == log && self.feed.watched.is_caught_up();
            quiet = if is_quiet { quiet + 1 } else { 0 };
            if quiet > 2 * MOST_RANGES {
                break;
            }
        }
        assert!(self.feed.watched.is_caught_up());
        for at in 0..self.readers.len() {
            while self.pull(at, 3) {}
            while self.pull(at, 1000) {}
        }
        let ranges = self.feed.watched.ranges(&rules(), self.now);
        assert!(ranges.len() <= MOST_RANGES as usize);
        let current: HashMap<u32, u32> = (self.list.iter())
            .map(|task| (task.id, task.version))
            .collect();
        for reader in &self.readers {
            for (id, version) in &reader.told {
                let place = self.list.iter().position(|task| task.id == *id);
                let is_within = place.is_some_and(|place| (place as u64) < SIZE * MOST_RANGES);
                let is_watched = is_within && self.feed.watched.knows(&format!("t{id}"));
                assert!(
                    !is_watched || current[id] == *version,
                    "the last state of t{id} is told"
                );
            }
            // Those within reach: the oldest of many fall out of the ten ranges.
            let reach = self.list.iter().take((SIZE * (MOST_RANGES - 1)) as usize);
            for task in reach.filter(|task| task.id >= reader.since.max(self.known.watched_since)) {
                assert!(reader.told.contains_key(&task.id), "t{} is told", task.id);
            }
        }
    }
}

/// Histories in which nothing is lost for good are told without a reset, and each reader is told the last state of all.
fn readers_miss_nothing_of(cases: u32) {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, rng);
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let _entered = runtime.enter();
    runner
        .run(&(0..70_u32, steps()), |(tasks, steps)| {
            let mut world = World::new(tasks, Instant::now());
            let reading = world.read(0, SIZE);
            world.take(reading);
            world.store();
            world.join(true);
            world.join(false);
            for step in &steps {
                world.step(step);
            }
            world.settle();
            Ok(())
        })
        .unwrap();
}

#[test]
fn readers_of_five_hundred_histories_miss_nothing() {
    readers_miss_nothing_of(500);
}

#[test]
#[ignore = "takes minutes where it is not optimized"]
fn readers_of_ten_thousand_histories_miss_nothing() {
    readers_miss_nothing_of(10_000);
}

#[test]
fn after_a_drop_every_replica_names_the_log_alike() {
    let feed = Feed::new(1, 0);
    let old = feed.log.end();
    let (mut all, mut last) = (feed.clone(), feed);
    for epoch in [5, 7, 9] {
        all.restart(epoch, Gone::Purged);
    }
    last.restart(9, Gone::Purged);
    assert_eq!(all.log.end(), last.log.end());
    for feed in [&all, &last] {
        assert_eq!(feed.log.check(&old), Err(Gone::Purged));
        assert_eq!(feed.log.check(&all.log.end()), Ok(()));
    }
    last.restart(9, Gone::ListChanged);
    assert_eq!(last.log.check(&all.log.end()), Err(Gone::ListChanged));
}
