use std::{ops::ControlFlow, sync::Barrier, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{
    spaces::{FIRST_SWEEP_AT, MAX_PAGELESS_SPACES},
    *,
};
use crate::{
    cache::{Received, http_semantics::ContentCoding},
    config::Config,
    domain::{
        CredentialId, FieldPath, ListId, ListKey, ListPage, PageQuery, Refusal, Row, SpaceToken,
        View,
    },
    upstream::read_page,
};

mod generations;
mod observed;

/// A store with `[cache]` as `lines` change it.
fn store(lines: &str) -> PageStore {
    let text = format!(
        "[upstream]\nbase_url = 'https://unpod.example'\n\
         [upstream.credentials.default]\ntoken = 'abc'\n[cache]\n{lines}"
    );
    PageStore::new(&Config::from_toml(&text).unwrap().cache)
}

fn key_of(credential: u32, space: &str, page: u32) -> PageKey {
    PageKey {
        list: ListKey {
            space: SpaceKey {
                credential: CredentialId(credential),
                space: SpaceToken::new(space).unwrap(),
            },
            id: ListId::TASKS,
        },
        query: PageQuery {
            page,
            page_size: 20,
        },
    }
}

fn key(page: u32) -> PageKey {
    key_of(0, "SPACE", page)
}

fn sized(bytes: usize) -> ListPage {
    ListPage {
        gzip: None,
        body: vec![b'x'; bytes].into(),
        count: 5,
        rows: Arc::default(),
    }
}

/// What a page is whose first task is called so.
fn body(first: &str) -> String {
    format!(r#"{{"task_id":"{first}"}}"#)
}

fn page(count: u64, first: &str) -> ListPage {
    let body = body(first);
    ListPage {
        gzip: None,
        count,
        rows: [Row {
            span: 0..u32::try_from(body.len()).unwrap(),
        }]
        .into(),
        body: body.into(),
    }
}

fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
    lines
        .iter()
        .map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        })
        .collect()
}

fn received(headers: &HeaderMap) -> Received<'_> {
    Received {
        headers,
        received: Instant::now(),
        received_unix: 1_798_761_600,
        response_delay: Duration::ZERO,
    }
}

fn begin(store: &PageStore, key: PageKey) -> Began {
    store.begin(key, Instant::now())
}

/// Puts `page` under `key`, as a fill that nothing overtook.
fn put(store: &PageStore, key: PageKey, page: ListPage) -> StoreOutcome {
    store.put(
        &begin(store, key),
        page,
        &received(&HeaderMap::new()),
        StoreDecision::Store,
    )
}

fn put_saying(store: &PageStore, lines: &[(&'static str, &'static str)]) -> StoreOutcome {
    let headers = headers(lines);
    store.put(
        &begin(store, key(1)),
        page(5, "a"),
        &received(&headers),
        StoreDecision::Store,
    )
}

#[test]
fn a_page_is_kept_under_its_key_and_no_other() {
    let store = store("");
    assert!(put(&store, key(1), page(5, "a")).stored);
    assert_eq!(store.get(&key(1)).unwrap().content.page().body, body("a"));
    for other in [key(2), key_of(1, "SPACE", 1), key_of(0, "OTHER", 1)] {
        assert!(store.get(&other).is_none(), "{other:?}");
    }
    assert_eq!(store.size().1, 1);
}

#[test]
fn who_asks_gets_what_the_store_holds_and_nothing_else() {
    let store = store("");
    assert!(store.get(&key(1)).is_none());
    let old = put(&store, key(1), page(5, "a")).page;
    assert!(Arc::ptr_eq(&store.get(&key(1)).unwrap(), &old));
    assert!(store.get(&key(2)).is_none());
    store.reweigh(&old);
    assert!(Arc::ptr_eq(&store.get(&key(1)).unwrap(), &old));

    let new = put(&store, key(1), page(5, "b")).page;
    assert!(Arc::ptr_eq(&store.get(&key(1)).unwrap(), &new));

    let ends: [fn(&PageStore); 4] = [
        |store| store.purge(),
        |store| store.purge_space(&key(1).list.space.space),
        |store| store.invalidate_credential(key(1).list.space.credential),
        |store| {
            let forbidding = headers(&[("cache-control", "no-store")]);
            let began = begin(store, key(1));
            store.put(
                &began,
                page(5, "c"),
                &received(&forbidding),
                StoreDecision::Store,
            );
        },
    ];
    for end in ends {
        put(&store, key(1), page(5, "a"));
        assert!(store.get(&key(1)).is_some());
        end(&store);
        assert!(store.get(&key(1)).is_none());
    }
}

#[test]
fn readers_never_go_back_behind_a_page_that_was_put() {
    let store = store("");
    let latest = AtomicU64::new(0);
    let counting = |count| page(count, "a");
    put(&store, key(1), counting(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while latest.load(Ordering::SeqCst) < 1000 {
                    let least = latest.load(Ordering::SeqCst);
                    let page = store.get(&key(1)).unwrap();
                    assert!(page.content.count >= least);
                }
            });
        }
        for count in 1..=1000 {
            put(&store, key(1), counting(count));
            latest.store(count, Ordering::SeqCst);
        }
    });
}

// RFC 9111 section 3.
#[test]
fn what_the_upstream_forbids_to_keep_takes_the_place_of_what_it_allowed() {
    for forbidding in ["no-store", "private", "no-cache"] {
        let store = store("");
        assert!(put_saying(&store, &[]).stored);
        let kept = put_saying(&store, &[("cache-control", forbidding)]);
        assert!(!kept.stored, "{forbidding}");
        assert_eq!(kept.page.content.page().body, body("a"));
        assert!(store.get(&key(1)).is_none(), "{forbidding}");
        assert_eq!(store.size(), (0, 0), "{forbidding}");
    }
}

// RFC 9111 section 3: with a validator even what must be asked for each time is worth keeping.
#[test]
fn a_validator_makes_no_cache_worth_keeping() {
    for validator in [
        ("etag", "\"v\""),
        ("last-modified", "Fri, 01 Jan 2027 00:00:00 GMT"),
    ] {
        let kept = put_saying(&store(""), &[("cache-control", "no-cache"), validator]);
        assert!(kept.stored, "{validator:?}");
    }
}

#[test]
fn what_nobody_wants_kept_is_answered_and_leaves_the_old_page_in_place() {
    let store = store("");
    put(&store, key(1), page(5, "old"));
    let began = begin(&store, key(1));
    let kept = store.put(
        &began,
        page(5, "new"),
        &received(&HeaderMap::new()),
        StoreDecision::ObserveOnly,
    );
    assert!(!kept.stored);
    assert_eq!(kept.page.content.page().body, body("new"));
    assert_eq!(store.get(&key(1)).unwrap().content.page().body, body("old"));
}

/// Page `number` of a list of finished tasks, those `first` to `last`, of which the last says `note`.
fn finished(first: u32, last: u32, note: &str) -> ListPage {
    let task = |number| {
        let note = if number == last { note } else { "" };
        format!(r#"{{"task_id":"T{number}","status":"completed","note":"{note}"}}"#)
    };
    let tasks: Vec<_> = (first..=last).map(task).collect();
    read_page(&format!(r#"{{"count":60,"data":[{}]}}"#, tasks.join(",")).into()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_page_of_finished_tasks_lives_longer_once_they_have_not_changed_for_long() {
    let store = store("jitter = 0.0\nsettled_after = '2h'");
    let hours = |hours: u64| tokio::time::advance(Duration::from_secs(hours * 3600));
    let lifetime = |page, first, last, note: &str| {
        let stored = put(&store, key(page), finished(first, last, note)).page;
        stored.stated_lifetime().as_secs()
    };
    assert_eq!(lifetime(2, 20, 39, ""), 30);
    hours(1).await;
    assert_eq!(lifetime(2, 20, 39, ""), 30);
    hours(1).await;
    assert_eq!(lifetime(2, 20, 39, ""), 600);
    // Page 1 is where new tasks appear.
    assert_eq!(lifetime(1, 0, 19, ""), 30);
    // Two tasks have come: rows of the page before are known as long.
    hours(2).await;
    assert_eq!(lifetime(2, 18, 37, ""), 600);
    // A recording was added.
    assert_eq!(lifetime(2, 18, 37, "url"), 30);
    hours(1).await;
    assert_eq!(lifetime(2, 18, 37, "url"), 30);
    hours(1).await;
    assert_eq!(lifetime(2, 18, 37, "url"), 600);
}

#[test]
fn a_moved_list_turns_the_spaces_other_pages_stale_and_no_others() {
    let store = store("");
    put(&store, key(1), page(5, "a"));
    put(&store, key(2), page(5, "b"));
    put(&store, key_of(1, "SPACE", 2), page(5, "b"));
    put(&store, key_of(0, "OTHER", 2), page(5, "b"));

    let moved = put(&store, key(1), page(6, "n")).page;

    let generation = |key| store.get(&key).unwrap().generation();
    assert!(store.get(&key(2)).unwrap().moved_at().is_some());
    assert_ne!(generation(key(2)), moved.generation());
    assert_eq!(generation(key(1)), moved.generation());
    for untouched in [key(1), key_of(1, "SPACE", 2), key_of(0, "OTHER", 2)] {
        let stored = store.get(&untouched).unwrap();
        assert_eq!(stored.moved_at(), None, "{untouched:?}");
    }
}

#[test]
fn a_task_that_merely_changed_moves_nothing() {
    let store = store("");
    put(&store, key(2), page(5, "b"));
    let before = put(&store, key(1), page(5, "a")).page;
    let after = put(&store, key(1), page(5, "a")).page;
    assert_eq!(before.generation(), after.generation());
    assert_eq!(store.get(&key(2)).unwrap().moved_at(), None);
}

#[test]
fn a_fill_begun_before_the_move_is_stored_stale() {
    let store = store("");
    put(&store, key(1), page(5, "a"));
    let slow = begin(&store, key(2));
    let moved = put(&store, key(1), page(6, "n")).page;

    let kept = store.put(
        &slow,
        page(5, "b"),
        &received(&HeaderMap::new()),
        StoreDecision::Store,
    );

    assert!(kept.stored);
    assert!(store.get(&key(2)).unwrap().moved_at().is_some());
    assert_eq!(store.get(&key(1)).unwrap().generation(), moved.generation());
    assert_eq!(moved.moved_at(), None);
}

#[test]
fn without_coherent_pages_no_list_moves() {
    let store = store("coherent_pages = false");
    put(&store, key(2), page(5, "b"));
    put(&store, key(1), page(6, "a"));
    assert!(!store.is_coherent());
    assert_eq!(store.get(&key(2)).unwrap().moved_at(), None);
}

#[test]
fn no_two_states_share_a_name() {
    let store = store("");
    let mut seen = std::collections::BTreeSet::new();
    for space in ["A", "B", "C"] {
        for count in 1..4 {
            let kept = put(&store, key_of(0, space, 1), page(count, "a"));
            let name = kept.page.list_generation.clone().unwrap();
            assert!(seen.insert(name), "{space} {count}");
        }
    }
}

// RFC 9111 sections 4.3.3 and 4.3.4.
#[test]
fn a_304_keeps_the_content_and_takes_the_new_fields() {
    let store = store("");
    let old = put_saying(
        &store,
        &[
            ("etag", "\"v1\""),
            ("cache-control", "max-age=1"),
            ("date", "Thu, 31 Dec 2026 23:59:59 GMT"),
        ],
    );
    let headers = headers(&[("cache-control", "max-age=100"), ("content-length", "0")]);
    let kept = store.renew(
        &begin(&store, key(1)),
        &old.page,
        &received(&headers),
        StoreDecision::Store,
    );

    let stored = store.get(&key(1)).unwrap();
    assert!(kept.stored && Arc::ptr_eq(&kept.page, &stored));
    assert!(Arc::ptr_eq(&stored.content, &old.page.content));
    assert_eq!(stored.upstream_etag().unwrap(), "\"v1\"");
    assert_eq!(stored.date, "Fri, 01 Jan 2027 00:00:00 GMT");
    let now = Instant::now();
    let verdict = crate::cache::judge(
        Some(stored.candidate(&stored.freshness(now), false)),
        &crate::cache::http_semantics::RequestDirectives::default(),
        now,
    );
    assert!(matches!(
        verdict,
        crate::cache::Verdict::Hit { ttl: 98..=100, .. }
    ));
}

#[test]
fn a_304_that_forbids_storing_ends_what_was_stored() {
    let store = store("");
    let old = put_saying(&store, &[("etag", "\"v1\"")]);
    let headers = headers(&[("cache-control", "no-store")]);
    let kept = store.renew(
        &begin(&store, key(1)),
        &old.page,
        &received(&headers),
        StoreDecision::Store,
    );
    assert!(!kept.stored);
    assert!(store.get(&key(1)).is_none());
}

#[test]
fn a_refused_space_drops_all_its_pages_at_once() {
    for refusal in [Refusal::SpaceNotFound, Refusal::SpaceAccessDenied] {
        let store = store("");
        for key in [key(1), key(2), key_of(1, "SPACE", 1), key_of(0, "OTHER", 1)] {
            put(&store, key, page(5, "a"));
        }
        let now = Instant::now();
        let began = begin(&store, key(7));
        store.refuse(&began, refusal, None, StoreDecision::Store, now);

        assert!(store.get(&key(1)).is_none() && store.get(&key(2)).is_none());
        assert_eq!(store.size().1, 2, "other credentials and spaces stay");
        let known = store.refusal(&key(3), now).unwrap();
        assert_eq!(
            (known.refusal, known.until),
            (refusal, now + Duration::from_secs(10))
        );
        assert!(store.refusal(&key_of(1, "SPACE", 3), now).is_none());
    }
}

#[test]
fn a_space_refused_by_several_fills_at_once_stays_refused() {
    let store = store("");
    let now = Instant::now();
    let (first, second) = (begin(&store, key(1)), begin(&store, key(2)));
    store.refuse(
        &first,
        Refusal::SpaceNotFound,
        None,
        StoreDecision::Store,
        now,
    );
    store.refuse(
        &second,
        Refusal::SpaceNotFound,
        None,
        StoreDecision::Store,
        now,
    );
    assert!(store.refusal(&key(3), now).is_some());
}

#[test]
fn a_refused_page_leaves_every_page_in_place() {
    for refusal in [Refusal::Rejected, Refusal::Failed] {
        let store = store("");
        put(&store, key(1), page(5, "a"));
        let now = Instant::now();
        let began = begin(&store, key(1));
        store.refuse(&began, refusal, None, StoreDecision::Store, now);

        assert!(store.get(&key(1)).is_some());
        let known = store.refusal(&key(1), now).unwrap();
        assert_eq!(
            (known.refusal, known.until),
            (refusal, now + Duration::from_secs(5))
        );
        assert!(store.refusal(&key(2), now).is_none());
    }
}

#[test]
fn a_refusal_is_not_remembered_where_its_time_is_zero() {
    let store = store("negative_ttl = '0s'\nrejected_ttl = '0s'");
    let now = Instant::now();
    put(&store, key(1), page(5, "a"));
    for refusal in [Refusal::Rejected, Refusal::SpaceNotFound] {
        let began = begin(&store, key(1));
        store.refuse(&began, refusal, None, StoreDecision::Store, now);
        assert!(store.refusal(&key(1), now).is_none());
    }
    assert!(store.get(&key(1)).is_none(), "dropped all the same");
}

#[test]
fn what_nobody_wants_kept_is_refused_and_not_remembered() {
    let store = store("");
    let now = Instant::now();
    put(&store, key(1), page(5, "a"));
    let began = begin(&store, key(2));
    store.refuse(
        &began,
        Refusal::SpaceAccessDenied,
        None,
        StoreDecision::ObserveOnly,
        now,
    );
    assert!(store.refusal(&key(2), now).is_none());
    assert!(store.get(&key(1)).is_none(), "dropped all the same");
}

#[test]
fn what_a_replaced_token_learns_late_changes_nothing() {
    let store = store("");
    let now = Instant::now();
    let late = begin(&store, key(2));
    put(&store, key(1), page(5, "a"));
    let fresh = begin(&store, key(3));
    let no_store = HeaderMap::from_iter([(
        http::header::CACHE_CONTROL,
        HeaderValue::from_static("no-store"),
    )]);

    for refusal in [Refusal::SpaceAccessDenied, Refusal::Failed] {
        store.refuse(&late, refusal, None, StoreDecision::Ignore, now);
    }
    let answer = received(&no_store);
    let again = Began {
        key: key(1),
        ..late.clone()
    };
    assert!(
        !store
            .put(&again, page(9, "z"), &answer, StoreDecision::Ignore)
            .stored
    );

    assert!(store.refusal(&key(2), now).is_none());
    let kept = store.get(&key(1)).expect("it stays");
    assert!(kept.moved_at().is_none(), "and its list has not moved");
    let no_headers = HeaderMap::new();
    let answer = received(&no_headers);
    assert!(
        store
            .put(&fresh, page(5, "a"), &answer, StoreDecision::Store)
            .stored
    );
}

#[test]
fn a_new_token_is_not_refused_what_the_old_one_was() {
    let store = store("");
    let now = Instant::now();
    for (number, refusal) in [(1, Refusal::SpaceNotFound), (2, Refusal::Failed)] {
        let began = begin(&store, key(number));
        store.refuse(&began, refusal, None, StoreDecision::Store, now);
        assert!(store.refusal(&key(number), now).is_some());
    }
    store.distrust(key(1).list.space.credential, now);
    for number in [1, 2] {
        assert!(store.refusal(&key(number), now).is_none());
    }
}

#[test]
fn a_good_page_ends_a_refusal() {
    let store = store("");
    let now = Instant::now();
    let began = begin(&store, key(1));
    store.refuse(&began, Refusal::Failed, None, StoreDecision::Store, now);
    put(&store, key(1), page(5, "a"));
    assert!(store.refusal(&key(1), now).is_none());
}

/// What ends all fills under way of key 1's space.
const DROPS: [fn(&PageStore); 3] = [
    |store| store.purge(),
    |store| store.purge_space(&key(1).list.space.space),
    |store| {
        let began = begin(store, key(9));
        store.refuse(
            &began,
            Refusal::SpaceAccessDenied,
            None,
            StoreDecision::Store,
            Instant::now(),
        );
    },
];

#[test]
fn a_fill_begun_before_a_drop_is_answered_and_not_stored() {
    for drop_all in DROPS {
        let store = store("");
        put(&store, key(2), page(5, "b"));
        let began = begin(&store, key(1));
        drop_all(&store);

        let kept = store.put(
            &began,
            page(5, "a"),
            &received(&HeaderMap::new()),
            StoreDecision::Store,
        );

        assert!(!kept.stored);
        assert_eq!(kept.page.content.page().body, body("a"));
        store.free_invalidated();
        assert_eq!(store.size(), (0, 0));
        assert!(put(&store, key(1), page(5, "c")).stored, "the next fill is");
    }
}

#[test]
fn a_fill_begun_before_a_drop_does_not_end_the_refusal() {
    let store = store("");
    let now = Instant::now();
    let slow = begin(&store, key(1));
    let denied = begin(&store, key(2));
    store.refuse(
        &denied,
        Refusal::SpaceAccessDenied,
        None,
        StoreDecision::Store,
        now,
    );
    store.put(
        &slow,
        page(5, "a"),
        &received(&HeaderMap::new()),
        StoreDecision::Store,
    );
    assert!(store.refusal(&key(1), now).is_some());
}

#[test]
fn a_refusal_from_before_a_purge_is_not_remembered() {
    for refusal in [Refusal::SpaceNotFound, Refusal::Rejected] {
        let store = store("");
        let now = Instant::now();
        let slow = begin(&store, key(1));
        store.purge();
        store.refuse(&slow, refusal, None, StoreDecision::Store, now);
        assert!(store.refusal(&key(1), now).is_none(), "{refusal:?}");
    }
}

#[test]
fn a_refusal_of_the_space_from_before_a_purge_drops_what_came_since() {
    let store = store("");
    let slow = begin(&store, key(1));
    store.purge();
    put(&store, key(2), page(5, "b"));
    store.refuse(
        &slow,
        Refusal::SpaceAccessDenied,
        None,
        StoreDecision::Store,
        Instant::now(),
    );
    assert!(store.get(&key(2)).is_none());
}

#[test]
fn purging_a_space_reaches_every_credential_and_no_other_space() {
    let store = store("");
    for key in [key(1), key_of(1, "SPACE", 1), key_of(0, "OTHER", 1)] {
        put(&store, key, page(5, "a"));
    }
    store.purge_space(&SpaceToken::new("SPACE").unwrap());
    assert!(store.get(&key(1)).is_none());
    assert!(store.get(&key_of(1, "SPACE", 1)).is_none());
    assert!(store.get(&key_of(0, "OTHER", 1)).is_some());
    store.purge();
    store.free_invalidated();
    assert_eq!(store.size(), (0, 0));
}

#[test]
fn spaces_without_pages_are_bounded() {
    let store = store("");
    let now = Instant::now();
    for number in 0..5 * MAX_PAGELESS_SPACES / 2 {
        let began = store.begin(key_of(0, &format!("S{number}"), 1), now);
        store.refuse(
            &began,
            Refusal::SpaceNotFound,
            None,
            StoreDecision::Store,
            now,
        );
    }
    let known = store.spaces.lock().known.len();
    assert!(known <= 2 * MAX_PAGELESS_SPACES, "{known}");
}

#[test]
fn spaces_of_which_nothing_is_left_are_forgotten() {
    let store = store("");
    let now = Instant::now();
    put(&store, key_of(0, "KEPT", 1), page(5, "a"));
    let under_way = store.begin(key_of(0, "UNDERWAY", 1), now);
    for number in 0..4 * FIRST_SWEEP_AT {
        drop(store.begin(key_of(0, &format!("S{number}"), 1), now));
    }
    let known = store.spaces.lock().known.len();
    assert!(known <= FIRST_SWEEP_AT, "{known}");
    let space = |name| {
        store
            .spaces
            .lock()
            .known
            .get(&key_of(0, name, 1).list.space)
            .cloned()
    };
    assert!(space("KEPT").is_some());
    assert!(Arc::ptr_eq(
        &space("UNDERWAY").unwrap(),
        &under_way.list.space
    ));
}

#[test]
fn the_stored_bytes_never_exceed_the_bound() {
    const MAX: u64 = 8 << 20;
    let store = store("max_bytes = '8MiB'");
    let start = Barrier::new(4);
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            let (store, start) = (&store, &start);
            scope.spawn(move || {
                start.wait();
                for turn in 0..60_u32 {
                    let bytes = 1024 << ((turn + thread) % 11);
                    let space = format!("S{}", turn % 7);
                    put(
                        store,
                        key_of(0, &space, 1 + thread * 1000 + turn),
                        sized(bytes),
                    );
                    let held = store.pages.weighted_size();
                    assert!(held <= MAX, "{held}");
                }
            });
        }
    });
    let (bytes, entries) = store.size();
    assert!(bytes <= MAX && entries > 0, "{bytes} {entries}");
    let weighed: usize = store.pages.iter().map(|(_, page)| page.weight()).sum();
    assert_eq!(weighed as u64, bytes);
}

#[test]
fn a_page_too_large_for_the_store_is_answered_and_not_stored() {
    let store = store("max_bytes = '1MiB'");
    put(&store, key(1), page(5, "a"));
    let kept = put(&store, key(1), sized((1 << 20) / LARGEST_SHARE));
    assert!(!kept.stored);
    assert_eq!(
        kept.page.content.page().body.len(),
        (1 << 20) / LARGEST_SHARE
    );
    assert!(store.get(&key(1)).is_none(), "nor is the page it outdates");
    assert!(put(&store, key(2), sized((1 << 20) / LARGEST_SHARE - 4096)).stored);
}

#[test]
fn an_evicted_page_leaves_its_spaces_set() {
    let store = store("max_bytes = '1MiB'");
    for number in 1..=100 {
        put(&store, key(number), sized(100 << 10));
    }
    let held = (1..=100).filter(|number| store.get(&key(*number)).is_some());
    let held: Vec<_> = held.map(|number| key(number).query).collect();
    assert!((1..=10).contains(&held.len()), "{}", held.len());
    let space = store.space(&key(1).list.space, 0, Instant::now());
    let listed = space.invalidate(0);
    let listed: Vec<_> = listed.iter().flat_map(|(_, pages)| pages.iter()).collect();
    assert_eq!(listed, held);
}

#[test]
fn each_list_names_what_is_stored_whoever_writes_and_reads_at_once() {
    let store = store("max_bytes = '1MiB'");
    let numbers = || 1..=40_u32;
    std::thread::scope(|scope| {
        for writer in 0..2 {
            let store = &store;
            scope.spawn(move || {
                for round in 0..300 {
                    let number = (7 * round + 13 * writer) % 40 + 1;
                    put(store, key(number), sized(60 << 10));
                    if round % 50 == 49 {
                        store.purge_space(&key(1).list.space.space);
                    }
                }
            });
            scope.spawn(move || {
                for round in 0..3000 {
                    let _ = store.get(&key(round % 40 + 1));
                }
            });
        }
    });
    let stored = numbers().filter(|number| store.get(&key(*number)).is_some());
    let stored: Vec<_> = stored.map(|number| key(number).query).collect();
    let named = store
        .space(&key(1).list.space, 0, Instant::now())
        .invalidate(0);
    let named: Vec<_> = named.iter().flat_map(|(_, pages)| pages.iter()).collect();
    assert_eq!(named, stored);
}

#[test]
fn stored_is_said_only_of_what_is_in_the_store() {
    let store = store("max_bytes = '1MiB'");
    for number in 1..=100 {
        let kept = put(&store, key(number), sized(100 << 10));
        assert_eq!(kept.stored, store.get(&key(number)).is_some(), "{number}");
    }
}

#[tokio::test]
async fn a_variant_is_weighed_with_its_page() {
    let store = store("");
    let kept = put(&store, key(1), sized(100 << 10));
    let before = store.size().0;
    let whole = kept.page.content.whole();
    let made = whole
        .encodings
        .get(ContentCoding::Gzip, Instant::now())
        .await;

    store.reweigh(&kept.page);

    assert_eq!(store.size(), (before + made.bytes.len() as u64, 1));
    assert_eq!(store.size().0, kept.page.weight() as u64);
}

#[tokio::test]
async fn a_view_and_its_variants_are_weighed_with_their_page_even_once_it_is_renewed() {
    let store = store("");
    let text = format!(r#"{{"count":1,"data":[{{"a":"{}"}}]}}"#, "x".repeat(10_000));
    let page = ListPage {
        body: text.clone().into(),
        ..page(1, "T")
    };
    let old = put(&store, key(1), page);
    let plain = store.size().0;
    let view = View::new(&[FieldPath::dotted("a").unwrap()]);

    let (shown, _) = old.page.content.make_view(&view, Instant::now());
    store.reweigh(&old.page);
    let with_view = store.size().0;
    assert!(with_view >= plain + text.len() as u64);

    let again = begin(&store, key(1));
    store.renew(
        &again,
        &old.page,
        &received(&HeaderMap::new()),
        StoreDecision::Store,
    );
    let coded = shown
        .encodings
        .get(ContentCoding::Brotli, Instant::now())
        .await;
    store.reweigh(&old.page);
    let coded = coded.bytes.len() as u64;
    assert_eq!(store.size(), (with_view + coded, 1));
}

#[tokio::test]
async fn a_page_that_was_replaced_is_not_brought_back_by_its_variant() {
    let store = store("");
    let old = put(&store, key(1), page(5, "old"));
    put(&store, key(1), page(5, "new"));
    store.reweigh(&old.page);
    assert_eq!(store.get(&key(1)).unwrap().content.page().body, body("new"));

    store.purge();
    store.reweigh(&old.page);
    assert!(store.get(&key(1)).is_none());
}

/// Packs at `now`, without rest.
fn pack(store: &PageStore, now: Instant) -> Option<Instant> {
    store.compress_idle(now, |_| ControlFlow::Continue(()))
}

#[test]
fn a_cold_page_is_weighed_as_what_is_left_of_it() {
    let store = store("");
    let now = Instant::now();
    let kept = put(&store, key(1), sized(100 << 10));
    let before = store.size().0;
    let due = pack(&store, now).unwrap();
    assert!(due >= now + IDLE_AFTER);
    assert_eq!(store.size().0, before);

    assert_eq!(pack(&store, due), None);

    assert!(kept.page.content.is_compressed());
    assert!(store.size().0 < before - (90 << 10), "{}", store.size().0);
    assert_eq!(store.size().0, kept.page.weight() as u64);
    assert_eq!(
        store.get(&key(1)).unwrap().content.page().body,
        sized(100 << 10).body
    );
}

#[test]
fn where_room_is_scarce_pages_turn_cold_sooner_until_it_is_not() {
    let store = store("max_bytes = '1MiB'");
    let packed = |most: u32| {
        let stored = (1..=most).filter_map(|number| store.get(&key(number)));
        stored.filter(|page| page.content.is_compressed()).count()
    };
    for number in 1..=4 {
        put(&store, key(number), sized(100 << 10));
    }
    assert!(!store.is_crowded());
    pack(&store, Instant::now() + IDLE_AFTER_IF_CROWDED);
    assert_eq!(packed(4), 0);
    for number in 5..=7 {
        put(&store, key(number), sized(100 << 10));
    }
    assert!(store.is_crowded());
    let now = Instant::now() + IDLE_AFTER_IF_CROWDED;

    let due = pack(&store, now);

    assert!(!store.is_crowded());
    assert_eq!(packed(7), 3, "no more than it takes");
    assert!(due.is_some_and(|due| due > now + IDLE_AFTER_IF_CROWDED));
    pack(&store, Instant::now() + IDLE_AFTER);
    assert_eq!(packed(7), 7);
}

#[tokio::test]
async fn a_page_that_is_asked_for_is_left_as_it_is() {
    let store = store("");
    let hot = put(&store, key(1), sized(100 << 10));
    let cold = put(&store, key(2), sized(100 << 10));
    let now = Instant::now() + IDLE_AFTER;
    let taken = hot
        .page
        .content
        .whole()
        .encodings
        .get(ContentCoding::Identity, now);
    assert_eq!(taken.await.bytes.len(), 100 << 10);

    let due = pack(&store, now);

    assert!(!hot.page.content.is_compressed() && cold.page.content.is_compressed());
    assert!(due.is_some_and(|due| due > now + IDLE_AFTER / 2), "{due:?}");
}

#[test]
fn a_page_that_a_304_renews_stays_packed() {
    let store = store("");
    let old = put(&store, key(1), sized(100 << 10));
    pack(&store, Instant::now() + 2 * IDLE_AFTER);

    let again = begin(&store, key(1));
    store.renew(
        &again,
        &old.page,
        &received(&HeaderMap::new()),
        StoreDecision::Store,
    );

    let renewed = store.get(&key(1)).unwrap();
    assert!(renewed.content.is_compressed());
    assert_eq!(store.size().0, renewed.weight() as u64);
}

#[test]
fn what_a_view_shows_is_packed_by_itself() {
    let store = store("");
    let text = format!(r#"{{"count":1,"data":[{{"a":"{}"}}]}}"#, "x".repeat(10_000));
    let page = ListPage {
        body: text.into(),
        ..page(1, "T")
    };
    let kept = put(&store, key(1), page);
    let view = View::new(&[FieldPath::dotted("a").unwrap()]);
    let later = Instant::now() + 2 * IDLE_AFTER;
    let (shown, _) = kept.page.content.make_view(&view, later);

    pack(&store, later);
    assert!(kept.page.content.is_compressed());
    assert!(shown.encodings.is_available(ContentCoding::Identity));
    pack(&store, later + IDLE_AFTER);
    assert!(!shown.encodings.is_available(ContentCoding::Identity));
}

#[test]
fn packing_ends_when_it_is_told_to_and_goes_on_where_it_must() {
    let store = store("max_bytes = '1GiB'");
    for number in 1..=2 {
        // Long enough to take a stint each.
        put(&store, key(number), sized(16 << 20));
    }
    let now = Instant::now() + 2 * IDLE_AFTER;
    let packed = || {
        let numbers = (1..=2).filter_map(|number| store.get(&key(number)));
        numbers.filter(|page| page.content.is_compressed()).count()
    };
    let mut rests = Vec::new();
    let _ = store.compress_idle(now, |rest| {
        rests.push(rest);
        ControlFlow::Break(())
    });
    assert_eq!((rests.len(), packed()), (1, 1));
    pack(&store, now);
    assert_eq!(packed(), 2);
}

#[test]
fn jitter_stays_within_its_share() {
    let store = store("jitter = 0.1");
    let factors: Vec<_> = (0..1000).map(|_| store.jitter_factor()).collect();
    assert!(factors.iter().all(|factor| (0.9..=1.1).contains(factor)));
    let spread = |low, high| factors.iter().any(|factor| (low..high).contains(factor));
    assert!(spread(0.9, 0.95) && spread(1.05, 1.1), "it does vary");
}

#[test]
fn no_jitter_is_none() {
    let store = store("jitter = 0");
    assert!((0..100).all(|_| (store.jitter_factor() - 1.0).abs() < f64::EPSILON));
}

#[test]
fn the_etag_is_weak_our_own_and_of_the_bytes_alone() {
    let store = store("");
    let etag = |kept: StoreOutcome| kept.page.content.whole().etag.to_str().unwrap().to_owned();
    let first = etag(put_saying(&store, &[("etag", "\"theirs\"")]));
    assert!(
        first.starts_with("W/\"") && !first.contains("theirs"),
        "{first}"
    );
    assert_eq!(first, etag(put_saying(&store, &[])));
    assert_ne!(first, etag(put(&store, key(1), page(5, "b"))));
}

#[test]
fn the_spaces_with_most_pages_come_first_and_no_more_than_asked_for() {
    let store = store("");
    for (space, pages) in [("A", 1), ("B", 3), ("C", 2), ("D", 2)] {
        for page_number in 1..=pages {
            put(&store, key_of(0, space, page_number), page(5, "a"));
        }
    }
    put(&store, key_of(1, "C", 1), page(5, "a"));
    // Known, but nothing of it is stored.
    let _ = begin(&store, key_of(0, "E", 1));
    let largest = |most| -> Vec<_> {
        let spaces = store.largest_spaces(most).into_iter();
        spaces
            .map(|key| (key.space.as_str().to_owned(), key.credential.0))
            .collect()
    };

    let named = |expected: &[(&str, u32)]| -> Vec<_> {
        let expected = expected.iter();
        expected
            .map(|(space, credential)| ((*space).to_owned(), *credential))
            .collect()
    };
    assert_eq!(
        largest(9),
        named(&[("B", 0), ("C", 0), ("D", 0), ("A", 0), ("C", 1)])
    );
    assert_eq!(largest(2), named(&[("B", 0), ("C", 0)]));
    assert_eq!(largest(0), named(&[]));
}

#[test]
fn spaces_are_found_by_description_once_whoever_reads_them() {
    let store = store("");
    put(&store, key_of(0, "A", 1), page(5, "a"));
    put(&store, key_of(1, "A", 1), page(5, "a"));
    put(&store, key_of(0, "B", 1), page(5, "a"));

    let named = |name| store.spaces_where(|space, _| space.as_str() == name);
    assert_eq!(named("A"), [SpaceToken::new("A").unwrap()]);
    assert!(named("C").is_empty());
}

#[test]
fn a_snapshot_holds_no_more_than_the_store_may_hold_unpacked() {
    const LENGTH: usize = 64 << 10;
    let store = store("max_bytes = '1MiB'");
    for number in 1..=40 {
        assert!(put(&store, key(number), sized(LENGTH)).stored);
        let cold = Instant::now() + IDLE_AFTER;
        store.compress_idle(cold, |_| ControlFlow::Continue(()));
    }
    assert!(put(&store, key(41), sized(LENGTH)).stored);
    assert_eq!(store.size().1, 41, "packed, they all have room");

    let saved: Vec<_> = store.saved(Instant::now(), 0).collect();

    // Each with what else is written of it.
    assert_eq!(saved.len(), (1 << 20) / (LENGTH + 1024));
    assert_eq!(saved[0].key, key(41), "the one in use comes first");
}

/// More than who drops them frees.
const MANY: u32 = 1000;

fn with_many_pages() -> PageStore {
    let store = store("");
    for number in 1..=MANY {
        put(&store, key(number), page(5, "a"));
    }
    store
}

#[test]
fn many_dropped_pages_are_gone_at_once_and_freed_later() {
    let drops: [fn(&PageStore); 4] = [
        PageStore::purge,
        |store| store.purge_space(&key(1).list.space.space),
        |store| store.invalidate_credential(key(1).list.space.credential),
        |store| {
            let began = begin(store, key(1));
            let refusal = Refusal::SpaceAccessDenied;
            store.refuse(&began, refusal, None, StoreDecision::Store, Instant::now());
        },
    ];
    for drop_all in drops {
        let store = with_many_pages();

        drop_all(&store);

        assert!((1..=MANY).all(|number| store.get(&key(number)).is_none()));
        assert!(store.pages_of(&key(1).list.space).is_empty());
        assert_eq!(store.size().1, u64::from(MANY), "nobody waits for that");
        assert!(put(&store, key(7), page(5, "b")).stored);
        store.free_invalidated();
        assert_eq!(store.size().1, 1);
        assert!(store.get(&key(7)).is_some(), "it was filled since");
        assert_eq!(store.pages_of(&key(1).list.space).len(), 1);
    }
}

#[test]
fn who_fills_a_page_looks_at_no_more_than_a_thousand_for_the_quota() {
    let now = Instant::now();
    let credential = key(1).list.space.credential;
    let store = with_many_pages();
    assert_eq!(store.share_out(credential, Some(60), now), SharedOut::Done);
    let before = store.lifetime(credential);
    for number in 1..=MANY {
        put(&store, key(MANY + number), page(5, "a"));
    }
    assert_eq!(store.size().1, 2 * u64::from(MANY));

    // Once a second, and on another thread.
    let [first, second] = [0, 1].map(|_| store.share_out(credential, Some(60), now));

    assert_eq!([first, second], [SharedOut::Due, SharedOut::Done]);
    assert_eq!(store.lifetime(credential), before);
    store.share_out_among_many(credential, 60, now);
    assert_eq!(store.lifetime(credential), 2 * before);
}

fn configured(lines: &str) -> CacheConfig {
    let text = format!(
        "[upstream]\nbase_url = 'https://unpod.example'\n\
         [upstream.credentials.default]\ntoken = 'abc'\n[cache]\n{lines}"
    );
    Config::from_toml(&text).unwrap().cache
}

#[test]
fn what_was_stored_before_lists_were_watched_is_not_trusted() {
    let store = store("coherent_pages = false");
    let under_way = begin(&store, key(3));
    let before = put(&store, key(1), page(5, "a")).page;
    assert!(!before.fresh_for(Instant::now()).is_zero());
    assert!(before.list_generation.is_none());

    store.reconfigure(&configured("coherent_pages = true"));

    let headers = HeaderMap::new();
    let late = store.put(
        &under_way,
        page(5, "a"),
        &received(&headers),
        StoreDecision::Store,
    );
    for old in [&before, &late.page] {
        assert!(old.moved_at().is_some(), "it is no longer fresh");
        assert!(!old.can_be_cut(Instant::now()));
        assert!(old.list_generation.is_none());
    }
    let new = put(&store, key(1), page(5, "a")).page;
    assert!(new.can_be_cut(Instant::now()) && new.list_generation.is_some());

    // What is watched already goes on.
    store.reconfigure(&configured("ttl = '1s'"));
    assert!(new.moved_at().is_none());
}

#[test]
fn a_page_of_another_process_names_no_state_of_the_list() {
    let before = store("");
    put(&before, key(1), page(5, "a"));
    let saved: Vec<_> = before.saved(Instant::now(), 1_000_000).collect();
    let after = store("");
    after.restore(&saved[0], page(5, "a"), Instant::now(), 1_000_000);
    let restored = after.get(&key(1)).unwrap();
    assert!(restored.list_generation.is_none());
    assert!(!restored.can_be_cut(Instant::now()));
}
