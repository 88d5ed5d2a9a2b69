use std::{ops::Range, sync::Arc, time::Duration};

use http::HeaderMap;
use proptest::{prelude::*, sample::Index};

use super::*;
use crate::{
    cache::{
        CacheStatus, PageStore, Received, StoredPage,
        store::{Began, StoreDecision},
    },
    config::Config,
    domain::{CredentialId, ListId, ListKey, PageKey, SpaceKey, SpaceToken},
    upstream::read_page,
};

/// A list whose upstream reads rows first and counts them by a second query, and the store before it.
struct Bench {
    store: PageStore,
    /// Newest first.
    rows: Vec<u32>,
    next_id: u32,
    now: Instant,
}

/// What happens to the list.
#[derive(Clone, Debug)]
enum Event {
    /// A row comes, so far below the head.
    Insert(usize),
    /// Somebody reads a page.
    Read(Index),
}

fn query(page: u32, page_size: u32) -> PageQuery {
    PageQuery { page, page_size }
}

impl Bench {
    fn new(rows: u32) -> Self {
        let config = Config::from_toml(
            "[upstream]\nbase_url = 'https://upstream.test'\n[upstream.credentials.default]\ntoken = 't'\n[cache]\njitter = 0.0",
        );
        Self {
            store: PageStore::new(&config.unwrap().cache),
            rows: (0..rows).rev().collect(),
            next_id: rows,
            now: Instant::now(),
        }
    }

    fn key(query: PageQuery) -> PageKey {
        PageKey {
            list: ListKey {
                space: SpaceKey {
                    credential: CredentialId(0),
                    space: SpaceToken::new("SPACE").unwrap(),
                },
                id: ListId::TASKS,
            },
            query,
        }
    }

    fn insert(&mut self, below: usize) {
        self.rows.insert(below.min(self.rows.len()), self.next_id);
        self.next_id += 1;
    }

    fn begin(&self, query: PageQuery) -> Began {
        self.store.begin(Self::key(query), self.now)
    }

    /// The rows of a page, before they are counted.
    fn rows_of(&self, query: PageQuery) -> Vec<u32> {
        let Range { start, end } = query.span();
        let place = |at: u64| usize::try_from(at).unwrap().min(self.rows.len());
        self.rows[place(start)..place(end)].to_vec()
    }

    /// The end of a read that found `rows`, and counts them now.
    fn end(&mut self, began: &Began, rows: &[u32]) -> Served {
        self.now += Duration::from_millis(1);
        let rows = rows.iter().map(|id| format!(r#"{{"task_id":"T{id}"}}"#));
        let rows = rows.collect::<Vec<_>>().join(",");
        let body = format!(
            r#"{{"count":{},"status_code":200,"message":"Tasks Fetched Successfully","data":[{rows}]}}"#,
            self.rows.len()
        );
        let answer = Received {
            headers: &HeaderMap::new(),
            received: self.now,
            received_unix: 0,
            response_delay: Duration::ZERO,
        };
        let page = read_page(&body.into()).unwrap();
        let kept = self.store.put(began, page, &answer, StoreDecision::Store);
        self.served(kept.page)
    }

    fn served(&self, page: Arc<StoredPage>) -> Served {
        Served {
            page,
            status: CacheStatus::Hit {
                ttl: 0,
                detail: None,
            },
            at: self.now,
            calls: 0,
        }
    }

    fn read(&mut self, query: PageQuery) -> Served {
        let (began, rows) = (self.begin(query), self.rows_of(query));
        self.end(&began, &rows)
    }

    /// What is stored of a page, if it may be served.
    fn stored(&self, query: PageQuery) -> Option<Served> {
        let page = self.store.get(&Self::key(query))?;
        let is_fresh = !page.fresh_for(self.now).is_zero();
        is_fresh.then(|| self.served(page))
    }
}

fn ids(parts: &[Served]) -> Vec<u32> {
    let tables = parts.iter().map(|part| part.page.content.table());
    let ids = tables.flat_map(|table| table.iter().map(|row| row.id.unwrap()[1..].parse()));
    ids.map(Result::unwrap).collect()
}

fn wants(reading: &mut Reading) -> (u32, Source) {
    match reading.next() {
        Step::Read { query, source } => (query.page, source),
        other => panic!("{other:?}"),
    }
}

#[test]
fn ranges_are_read_in_order_as_far_as_the_list_goes() {
    for (rows, newest, pages) in [
        (25, 30, 3),
        (25, 20, 2),
        (25, 21, 3),
        (5, 1000, 1),
        (0, 10, 1),
    ] {
        let mut bench = Bench::new(rows);
        let mut reading = Reading::new(newest, 10);
        for page in 1..=pages {
            assert!(!reading.is_complete());
            assert_eq!(wants(&mut reading), (page, Source::Any));
            let served = bench.read(query(page, 10));
            assert_eq!(reading.offer(query(page, 10), served), Offered::Taken);
        }
        assert_eq!(reading.next(), Step::Complete, "{newest} of {rows}");
        let read = ids(&reading.into_parts());
        assert_eq!(read, bench.rows[..read.len()]);
        assert!(read.len() as u32 >= newest.min(rows));
    }
}

#[test]
fn what_moved_meanwhile_is_read_again() {
    let mut bench = Bench::new(30);
    let mut reading = Reading::new(30, 10);
    for page in 1..=2 {
        assert_eq!(wants(&mut reading).0, page);
        reading.offer(query(page, 10), bench.read(query(page, 10)));
    }
    bench.insert(0);
    assert_eq!(wants(&mut reading).0, 3);
    reading.offer(query(3, 10), bench.read(query(3, 10)));
    for page in 1..=2 {
        // It is stale by itself.
        assert_eq!(wants(&mut reading), (page, Source::Any));
        assert!(bench.stored(query(page, 10)).is_none());
        reading.offer(query(page, 10), bench.read(query(page, 10)));
    }
    assert_eq!(reading.next(), Step::Complete);
    assert_eq!(ids(&reading.into_parts()), bench.rows[..30]);
}

#[test]
fn a_part_of_an_older_state_or_one_that_is_short_is_refused() {
    let mut bench = Bench::new(30);
    let old = bench.read(query(2, 10));
    bench.insert(0);
    let mut reading = Reading::new(20, 10);
    assert_eq!(
        reading.offer(query(1, 10), bench.read(query(1, 10))),
        Offered::Taken
    );
    assert_eq!(reading.offer(query(2, 10), old), Offered::Refused);
    let began = bench.begin(query(2, 10));
    let short = bench.end(&began, &[1, 2, 3]);
    assert_eq!(reading.offer(query(2, 10), short), Offered::Refused);
    assert_eq!(wants(&mut reading).0, 2);
}

#[test]
fn rows_of_before_under_the_new_count_leave_no_gap() {
    let mut bench = Bench::new(30);
    let mut reading = Reading::new(20, 10);
    reading.offer(query(1, 10), bench.read(query(1, 10)));
    // Its rows are read before the newcomer, and counted after it: one that page 1 then loses to page 2 is in neither.
    let (began, rows) = (bench.begin(query(2, 10)), bench.rows_of(query(2, 10)));
    bench.insert(0);
    let second = bench.end(&began, &rows);
    reading.offer(query(2, 10), second);
    while let Step::Read { query, .. } = reading.next() {
        reading.offer(query, bench.read(query));
    }
    assert!(reading.is_complete());
    assert_eq!(ids(&reading.into_parts()), bench.rows[..20]);
}

#[test]
fn a_list_that_never_rests_is_given_up() {
    let mut bench = Bench::new(300);
    let mut reading = Reading::new(100, 10);
    let mut reads = 0;
    while let Step::Read { query, .. } = reading.next() {
        bench.insert(0);
        reading.offer(query, bench.read(query));
        reads += 1;
    }
    assert!(!reading.is_complete());
    assert_eq!(reads, 24);
}

#[test]
fn a_read_that_failed_is_tried_again_without_end() {
    let mut reading = Reading::new(10, 10);
    for _ in 0..100 {
        assert_eq!(wants(&mut reading).0, 1);
        reading.retry();
    }
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        3 => Just(Event::Insert(0)),
        1 => (1..4_usize).prop_map(Event::Insert),
        3 => any::<Index>().prop_map(Event::Read),
    ];
    prop::collection::vec(event, 0..3)
}

proptest! {
    /// Whatever happens between and within the reads: what is complete holds no row twice, has no gap, and has lost no row that was seen.
    #[test]
    fn no_row_is_shown_twice_and_none_is_lost_that_was_seen(
        rows in 0_u32..70,
        newest in 1_u32..60,
        before in events(),
        history in prop::collection::vec((events(), events(), events()), 0..20),
    ) {
        const RANGE: u32 = 12;
        let mut bench = Bench::new(rows);
        let happen = |bench: &mut Bench, events: &[Event]| for event in events {
            match event {
                Event::Insert(below) => bench.insert(*below),
                Event::Read(page) => {
                    let page = query(u32::try_from(page.index(6)).unwrap() + 1, RANGE);
                    bench.read(page);
                }
            }
        };
        happen(&mut bench, &before);
        let (mut reading, mut seen) = (Reading::new(newest, RANGE), HashSet::new());
        let started_with = bench.rows.len();
        let mut history = history.iter();
        let complete = loop {
            let (query, source) = match reading.next() {
                Step::Read { query, source } => (query, source),
                Step::Complete => break true,
                Step::GiveUp => break false,
            };
            let nothing = (Vec::new(), Vec::new(), Vec::new());
            let (between, sent, counted) = history.next().unwrap_or(&nothing);
            happen(&mut bench, between);
            let stored = bench.stored(query).filter(|_| source == Source::Any);
            let served = match stored {
                Some(stored) => stored,
                None => {
                    let began = bench.begin(query);
                    happen(&mut bench, sent);
                    let rows = bench.rows_of(query);
                    happen(&mut bench, counted);
                    bench.end(&began, &rows)
                }
            };
            let read = ids(std::slice::from_ref(&served));
            if reading.offer(query, served) == Offered::Taken {
                seen.extend(read);
            }
        };
        if complete {
            let parts = reading.into_parts();
            let count = parts[0].page.content.count;
            let shown = ids(&parts);
            let covered = shown.len();
            prop_assert!(covered as u64 >= count.min(newest.into()));
            let distinct: HashSet<_> = shown.iter().collect();
            prop_assert!(parts.len() == 1 || distinct.len() == covered, "twice: {shown:?}");
            let came = bench.rows.len() - started_with;
            for (place, id) in bench.rows.iter().enumerate() {
                let is_within = place + came + 1 < covered;
                let is_lost = is_within && seen.contains(id) && !distinct.contains(id);
                prop_assert!(parts.len() == 1 || !is_lost, "{id} is lost of {shown:?}");
            }
        }
    }

    /// A list that rests is read whole, with no more reads than ranges, whatever was stored of it before.
    #[test]
    fn a_list_at_rest_is_read_at_once(
        rows in 0_u32..70,
        newest in 1_u32..60,
        before in prop::collection::vec(events(), 0..6),
    ) {
        const RANGE: u32 = 12;
        let mut bench = Bench::new(rows);
        for event in before.iter().flatten() {
            match event {
                Event::Insert(below) => bench.insert(*below),
                Event::Read(page) => {
                    let page = query(u32::try_from(page.index(6)).unwrap() + 1, RANGE);
                    bench.read(page);
                }
            }
        }
        let mut reading = Reading::new(newest, RANGE).all_from_upstream();
        let mut reads = 0;
        while let Step::Read { query, .. } = reading.next() {
            reads += 1;
            let served = bench.read(query);
            reading.offer(query, served);
        }
        prop_assert!(reading.is_complete());
        let shown = ids(&reading.into_parts());
        prop_assert_eq!(&shown[..], &bench.rows[..shown.len()]);
        prop_assert!(reads <= 2 * shown.len().div_ceil(RANGE as usize).max(1));
    }
}
