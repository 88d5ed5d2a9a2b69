use std::time::Duration;

use http::HeaderMap;
use proptest::prelude::*;
use tokio::time::Instant;

use super::*;
use crate::{
    cache::{
        PageStore, Received, freshness::StaleIf, http_semantics::ContentCoding,
        store::StoreDecision,
    },
    config::Config,
    domain::{CredentialId, ListId, ListKey, PageKey, SpaceKey, SpaceToken},
    upstream::read_page,
};

const TTL: Duration = Duration::from_secs(30);

fn query(page: u32, page_size: u32) -> PageQuery {
    PageQuery { page, page_size }
}

/// A list whose tasks are told apart by their bytes.
struct List {
    tasks: Vec<String>,
}

impl List {
    fn of(length: usize) -> Self {
        let task = |place: usize| {
            let filler = "x".repeat(place % 7);
            format!(r#"{{"task_id":"T{place}","n":1e+22,"text":"{filler}"}}"#)
        };
        Self {
            tasks: (0..length).map(task).collect(),
        }
    }

    /// The same, once a task has come.
    fn with_newcomer(mut self) -> Self {
        self.tasks.insert(0, r#"{"task_id":"N"}"#.to_owned());
        self
    }

    /// What the upstream would send.
    fn body(&self, query: PageQuery) -> String {
        let span = query.span();
        let length = self.tasks.len() as u64;
        let place = |at: u64| usize::try_from(at.min(length)).unwrap();
        let tasks = self.tasks[place(span.start)..place(span.end)].join(",");
        format!(
            r#"{{"count":{length},"status_code":200,"message":"Tasks Fetched Successfully","data":[{tasks}]}}"#
        )
    }
}

struct Kept(PageStore);

impl Kept {
    fn new() -> Self {
        Self::with("")
    }

    fn with(setting: &str) -> Self {
        let config = Config::from_toml(&format!(
            "[upstream]\nbase_url = 'https://upstream.test'\n[upstream.credentials.default]\ntoken = 't'\n[cache]\njitter = 0.0\n{setting}",
        ))
        .unwrap();
        Self(PageStore::new(&config.cache))
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

    fn fill(&self, query: PageQuery, body: String) {
        self.fill_saying(query, body, &HeaderMap::new());
    }

    fn fill_saying(&self, query: PageQuery, body: String, headers: &HeaderMap) {
        let now = Instant::now();
        let answer = Received {
            headers,
            received: now,
            received_unix: 0,
            response_delay: Duration::ZERO,
        };
        let page = read_page(&body.into()).unwrap();
        let began = self.0.begin(Self::key(query), now);
        assert!(
            self.0
                .put(&began, page, &answer, StoreDecision::Store)
                .stored
        );
    }

    fn assemble(&self, query: PageQuery) -> Option<StoredPage> {
        let (key, now) = (Self::key(query), Instant::now());
        let cuts = self.0.cuts(&key, now)?;
        self.0.assemble(&cuts, now)
    }

    /// What is served in place of an error.
    fn cut_stale(&self, query: PageQuery) -> Option<String> {
        let (key, now) = (Self::key(query), Instant::now());
        let cuts = self.0.stale_cuts(&key, StaleIf::Error, now)?;
        let page = self.0.assemble(&cuts, now)?;
        Some(String::from_utf8(page.content.page().body.to_vec()).unwrap())
    }

    fn cut(&self, query: PageQuery) -> Option<String> {
        let page = self.assemble(query)?;
        Some(String::from_utf8(page.content.page().body.to_vec()).unwrap())
    }
}

fn filled_with(list: &List, queries: &[PageQuery]) -> Kept {
    let kept = Kept::new();
    for query in queries {
        kept.fill(*query, list.body(*query));
    }
    kept
}

#[tokio::test(start_paused = true)]
async fn a_page_is_cut_from_larger_and_smaller_ones() {
    let list = List::of(57);
    let kept = filled_with(&list, &[query(1, 20), query(2, 20), query(3, 20)]);
    for wanted in [
        query(1, 10),
        query(4, 10),
        query(6, 10),
        query(1, 57),
        query(1, 100),
        query(2, 50),
    ] {
        assert_eq!(kept.cut(wanted), Some(list.body(wanted)), "{wanted}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_gap_or_a_page_past_the_end_is_asked_for() {
    let list = List::of(57);
    let kept = filled_with(&list, &[query(1, 20), query(3, 20)]);
    assert_eq!(kept.cut(query(1, 30)), None);
    assert_eq!(kept.cut(query(2, 57)), None);
    assert_eq!(kept.cut(query(1, 10)), Some(list.body(query(1, 10))));
}

#[tokio::test(start_paused = true)]
async fn pages_of_two_states_of_the_list_are_never_mixed() {
    let kept = filled_with(&List::of(57), &[query(1, 20), query(2, 20)]);
    let longer = List::of(57).with_newcomer();
    kept.fill(query(2, 20), longer.body(query(2, 20)));
    assert_eq!(kept.cut(query(1, 40)), None);
    kept.fill(query(1, 20), longer.body(query(1, 20)));
    assert_eq!(kept.cut(query(1, 40)), Some(longer.body(query(1, 40))));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_stands_twice_gives_the_seam_away() {
    let mut list = List::of(40);
    let kept = filled_with(&list, &[query(1, 20)]);
    // A task was added and another removed: the count is the same, the second page has moved.
    let last = list.tasks[19].clone();
    list.tasks.insert(20, last);
    list.tasks.truncate(40);
    kept.fill(query(2, 20), list.body(query(2, 20)));
    assert_eq!(kept.cut(query(1, 40)), None);
}

#[tokio::test(start_paused = true)]
async fn stale_parts_and_parts_filled_long_apart_are_not_joined() {
    let list = List::of(40);
    let kept = filled_with(&list, &[query(1, 20)]);
    tokio::time::advance(2 * TTL).await;
    kept.fill(query(2, 20), list.body(query(2, 20)));
    assert_eq!(kept.cut(query(1, 40)), None);
    // But in place of an error.
    assert_eq!(kept.cut_stale(query(1, 40)), Some(list.body(query(1, 40))));
}

#[tokio::test(start_paused = true)]
async fn in_place_of_an_error_the_newest_state_that_holds_all_is_cut() {
    let (old, new) = (List::of(57), List::of(57).with_newcomer());
    let kept = filled_with(&old, &[query(1, 50), query(2, 20), query(3, 20)]);
    tokio::time::advance(TTL).await;
    for query in [query(2, 20), query(3, 20)] {
        kept.fill(query, new.body(query));
    }
    for (wanted, expected) in [
        (query(2, 10), Some(&old)),
        (query(3, 10), Some(&new)),
        (query(1, 30), Some(&old)),
        (query(6, 10), Some(&new)),
        (query(1, 55), None),
    ] {
        let expected = expected.map(|list| list.body(wanted));
        assert_eq!(kept.cut_stale(wanted), expected, "{wanted}");
    }
}

#[tokio::test(start_paused = true)]
async fn parts_are_compared_by_when_they_were_born() {
    let list = List::of(40);
    let fields = |fields: &[(http::HeaderName, &'static str)]| -> HeaderMap {
        let fields = fields.iter().cloned();
        let value = |(name, value)| (name, http::HeaderValue::from_static(value));
        fields.map(value).collect()
    };
    let lasting = |age| {
        fields(&[
            (http::header::CACHE_CONTROL, "max-age=600"),
            (http::header::AGE, age),
        ])
    };
    // Filled at once, and born so many seconds before.
    for (age, is_joined) in [("29", true), ("31", false)] {
        let kept = filled_with(&list, &[query(1, 20)]);
        kept.fill_saying(query(2, 20), list.body(query(2, 20)), &lasting(age));
        assert_eq!(kept.cut(query(1, 40)).is_some(), is_joined, "{age}");
    }
    // What a 304 renews is as old as it was.
    let kept = Kept::new();
    kept.fill_saying(query(1, 20), list.body(query(1, 20)), &lasting("0"));
    tokio::time::advance(TTL + Duration::from_secs(1)).await;
    let now = Instant::now();
    let old = kept.0.get(&Kept::key(query(1, 20))).unwrap();
    let answer = Received {
        headers: &lasting("0"),
        received: now,
        received_unix: 0,
        response_delay: Duration::ZERO,
    };
    let began = kept.0.begin(Kept::key(query(1, 20)), now);
    assert!(
        kept.0
            .renew(&began, &old, &answer, StoreDecision::Store)
            .stored
    );
    kept.fill(query(2, 20), list.body(query(2, 20)));
    assert_eq!(kept.cut(query(1, 40)), None);
}

#[tokio::test(start_paused = true)]
async fn its_age_is_the_oldest_parts_and_its_end_the_first() {
    let list = List::of(40);
    let kept = filled_with(&list, &[query(1, 20)]);
    tokio::time::advance(Duration::from_secs(10)).await;
    kept.fill(query(2, 20), list.body(query(2, 20)));
    tokio::time::advance(Duration::from_secs(5)).await;
    let now = Instant::now();

    let page = kept.assemble(query(1, 40)).unwrap();

    assert_eq!(page.age(now), Duration::from_secs(15));
    assert_eq!(
        page.freshness(now).fresh_for(now),
        Some(Duration::from_secs(15))
    );
}

#[tokio::test(start_paused = true)]
async fn a_cut_is_kept_in_its_entry_counts_in_its_bytes_and_goes_with_it() {
    let list = List::of(57);
    let kept = filled_with(&list, &[query(1, 20)]);
    let (before, _) = kept.0.size();
    let first = kept.assemble(query(1, 10)).unwrap();
    let (with_cut, entries) = kept.0.size();
    assert!(with_cut >= before + list.body(query(1, 10)).len() as u64);
    assert_eq!(entries, 1);
    let again = kept.assemble(query(1, 10)).unwrap();
    assert!(Arc::ptr_eq(&first.content, &again.content));
    let encoded = first
        .content
        .whole()
        .encodings
        .get(ContentCoding::Gzip, Instant::now());
    let encoded = encoded.await.bytes.len() as u64;
    kept.0.reweigh(&again);
    assert_eq!(kept.0.size(), (with_cut + encoded, 1));

    // However many are asked for, a few are kept.
    for size in 1..20 {
        assert!(kept.cut(query(1, size)).is_some(), "{size}");
    }
    let most = 12 * (with_cut - before + 1000);
    assert!(kept.0.size().0 < before + most, "{:?}", kept.0.size());
    assert_eq!(kept.cut(query(1, 10)), Some(list.body(query(1, 10))));

    kept.fill(query(1, 20), list.body(query(1, 20)));
    assert_eq!(kept.0.size(), (before, 1));
}

#[tokio::test(start_paused = true)]
async fn an_entry_keeps_the_cuts_that_it_has_room_for() {
    // Most of the quarter of the cache that one entry may take.
    let list = List::of(1800);
    let kept = Kept::with("max_bytes = '1MiB'");
    kept.fill(query(1, 1800), list.body(query(1, 1800)));
    for (wanted, is_kept) in [(query(1, 20), true), (query(1, 1700), false)] {
        let pages = [(); 2].map(|()| kept.assemble(wanted).unwrap());
        let is_same = Arc::ptr_eq(&pages[0].content, &pages[1].content);
        assert_eq!(is_same, is_kept, "{wanted}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_page_over_several_entries_is_cut_each_time() {
    let list = List::of(57);
    let kept = filled_with(&list, &[query(1, 20), query(2, 20)]);
    let before = kept.0.size();
    let pages = [(); 2].map(|()| kept.assemble(query(1, 40)).unwrap());
    assert!(!Arc::ptr_eq(&pages[0].content, &pages[1].content));
    assert_eq!(kept.0.size(), before);
}

#[tokio::test(start_paused = true)]
async fn tasks_without_an_id_and_loose_commas_are_not_cut() {
    let envelope =
        |tasks: &str| format!(r#"{{"count":2,"status_code":200,"message":"m","data":[{tasks}]}}"#);
    for tasks in [
        r#"{"a":1},{"task_id":"T"}"#,
        r#"{"task_id":"S"} ,{"task_id":"T"}"#,
    ] {
        let kept = Kept::new();
        kept.fill(query(1, 20), envelope(tasks));
        assert_eq!(kept.cut(query(1, 10)), None, "{tasks}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_cut_is_what_the_upstream_would_send(
        length in 1_usize..80,
        stored in prop::collection::vec((1_u32..8, 1_u32..40), 1..6),
        wanted in (1_u32..10, 1_u32..100),
    ) {
        let list = List::of(length);
        let stored: Vec<_> = stored.into_iter().map(|(page, size)| query(page, size)).collect();
        let kept = filled_with(&list, &stored);
        let wanted = query(wanted.0, wanted.1);
        if let Some(cut) = kept.cut(wanted) {
            prop_assert_eq!(cut, list.body(wanted));
        }
    }
}
