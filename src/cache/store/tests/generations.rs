//! Pages that share a name were cut from one state of their list.

use proptest::prelude::*;

use super::*;

const LAST_PAGE: u32 = 4;
const PAGE_SIZE: u64 = 20;

/// An upstream whose list grows at its head, and the answers under way.
struct Upstream {
    store: PageStore,
    length: u64,
    under_way: Vec<(Began, Option<ListPage>)>,
    /// What was answered: its name, its count and its rows.
    answered: Vec<(HeaderValue, u64, Vec<String>)>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A fill of this page is sent.
    Send(u32),
    /// The upstream reads what one of those under way asks for.
    Read(usize),
    /// Its answer arrives, where it was read.
    Arrive(usize),
    Insert,
    Purge,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1..=LAST_PAGE).prop_map(Step::Send),
        4 => any::<usize>().prop_map(Step::Read),
        4 => any::<usize>().prop_map(Step::Arrive),
        2 => Just(Step::Insert),
        1 => Just(Step::Purge),
    ];
    prop::collection::vec(step, 1..150)
}

impl Upstream {
    fn new() -> Self {
        Self {
            store: store(""),
            length: 70,
            under_way: Vec::new(),
            answered: Vec::new(),
        }
    }

    fn ids(&self, page: u32) -> Vec<String> {
        let start = u64::from(page - 1) * PAGE_SIZE;
        let places = start..(start + PAGE_SIZE).min(self.length);
        places
            .map(|place| format!("T{}", self.length - place))
            .collect()
    }

    fn page(&self, number: u32) -> ListPage {
        let rows: Vec<_> = self.ids(number).iter().map(|id| body(id)).collect();
        let body = format!(
            r#"{{"count":{},"status_code":200,"message":"Tasks Fetched Successfully","data":[{}]}}"#,
            self.length,
            rows.join(",")
        );
        read_page(&body.into()).unwrap()
    }

    fn step(&mut self, step: Step) {
        let count = self.under_way.len().max(1);
        match step {
            Step::Send(page) => self.under_way.push((begin(&self.store, key(page)), None)),
            Step::Read(which) => {
                if let Some((began, answer)) = self.under_way.get(which % count) {
                    let answer = answer.clone();
                    let answer = answer.unwrap_or_else(|| self.page(began.key.query.page));
                    self.under_way[which % count].1 = Some(answer);
                }
            }
            Step::Arrive(which) => {
                if self
                    .under_way
                    .get(which % count)
                    .is_some_and(|(_, answer)| answer.is_some())
                {
                    let (began, answer) = self.under_way.swap_remove(which % count);
                    self.arrive(&began, &answer.unwrap());
                }
            }
            Step::Insert => self.length += 1,
            Step::Purge => self.store.purge_space(&key(1).list.space.space),
        }
    }

    fn arrive(&mut self, began: &Began, answer: &ListPage) {
        let ids = |row: &Row| answer.text_of(row, "task_id").unwrap().into_owned();
        let ids: Vec<_> = answer.rows.iter().map(ids).collect();
        let headers = HeaderMap::new();
        let received = received(&headers);
        let decision = StoreDecision::Store;
        let outcome = self.store.put(began, answer.clone(), &received, decision);
        if let Some(name) = &outcome.page.list_generation {
            self.answered.push((name.clone(), answer.count, ids));
        }
        let is_current = outcome.page.moved_at().is_none() && outcome.stored;
        let has_name = outcome.page.list_generation.is_some();
        assert!(!is_current || has_name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn pages_of_one_name_have_one_count_and_no_row_on_two_pages(steps in steps()) {
        let mut upstream = Upstream::new();
        for step in steps {
            upstream.step(step);
        }
        for (place, (name, count, rows)) in upstream.answered.iter().enumerate() {
            for (other_name, other_count, other_rows) in &upstream.answered[..place] {
                if name == other_name {
                    prop_assert_eq!(count, other_count);
                    let doubled = rows != other_rows && rows.iter().any(|row| other_rows.contains(row));
                    prop_assert!(!doubled, "{:?} {:?}", rows, other_rows);
                }
            }
        }
    }
}

#[test]
fn a_fill_that_brings_what_is_current_is_not_paid_for_twice() {
    let mut upstream = Upstream::new();
    put(&upstream.store, key(1), upstream.page(1));
    put(&upstream.store, key(2), upstream.page(2));
    let [slow, slower] = [2, 3].map(|number| begin(&upstream.store, key(number)));
    let old = upstream.page(3);
    upstream.length += 1;
    put(&upstream.store, key(1), upstream.page(1));

    let new = upstream.page(2);
    upstream.arrive(&slow, &new);
    upstream.arrive(&slower, &old);

    let stored = |number| upstream.store.get(&key(number)).unwrap();
    assert_eq!(stored(2).moved_at(), None);
    assert_eq!(stored(2).list_generation, stored(1).list_generation);
    assert!(stored(3).moved_at().is_some());
    assert_ne!(stored(3).list_generation, stored(1).list_generation);
}

#[test]
fn an_older_answer_to_one_of_the_first_fills_moves_nothing_back() {
    let mut upstream = Upstream::new();
    let [slow, fast] = [2, 1].map(|number| begin(&upstream.store, key(number)));
    let old = upstream.page(2);
    upstream.length += 1;
    let new = upstream.page(1);

    upstream.arrive(&fast, &new);
    upstream.arrive(&slow, &old);

    let stored = |number| upstream.store.get(&key(number)).unwrap();
    assert_eq!(stored(1).moved_at(), None);
    assert!(stored(2).moved_at().is_some());
    assert_ne!(stored(2).list_generation, stored(1).list_generation);
}

#[test]
fn a_row_on_both_sides_of_a_seam_moves_the_list() {
    // Without a word of it in the count: one row came as another went.
    for (first, second) in [(1, 2), (2, 1)] {
        let mut upstream = Upstream::new();
        let put_at = |upstream: &mut Upstream, number, length| {
            upstream.length = length;
            let page = ListPage {
                count: 70,
                ..upstream.page(number)
            };
            put(&upstream.store, key(number), page).page
        };
        // Of page 1 the older, of page 2 the newer state, whichever is read first.
        let length_of = |number| if number == 1 { 70 } else { 71 };

        let before = put_at(&mut upstream, first, length_of(first));
        let after = put_at(&mut upstream, second, length_of(second));

        assert!(before.moved_at().is_some(), "{first} {second}");
        assert_eq!(after.moved_at(), None);
        assert_ne!(after.list_generation, before.list_generation);
    }
}

#[test]
fn a_drop_begins_new_names_and_a_warm_start_goes_on_with_them() {
    let before = store("");
    let names = || HashMap::from([(key(1).list.space.credential, StateNames::new(&[7; 32]))]);
    before.set_names(names());
    let name = |store: &PageStore| {
        put(store, key(1), page(5, "a"))
            .page
            .list_generation
            .clone()
    };
    let first = name(&before);
    assert_eq!(name(&before), first);
    before.purge_space(&key(1).list.space.space);
    let second = name(&before);
    let saved: Vec<_> = before.saved(Instant::now(), 0).collect();

    let after = store("");
    after.set_names(names());
    after.restore(&saved[0], page(5, "a"), Instant::now(), 0);
    assert!(first.is_some() && first != second);
    assert_eq!(name(&after), second);

    // Replicas that were started alike agree.
    let beside = store("");
    beside.set_names(names());
    assert_eq!(name(&beside), first);
}

#[test]
fn a_space_that_was_forgotten_does_not_return_to_an_epoch_that_it_had_left() {
    let store = store("");
    // Not stored, so that nothing holds the space.
    let name = || {
        let (began, headers) = (begin(&store, key(1)), HeaderMap::new());
        let decision = StoreDecision::ObserveOnly;
        let outcome = store.put(&began, page(5, "a"), &received(&headers), decision);
        outcome.page.list_generation.clone()
    };
    let first = name();
    store.purge_space(&key(1).list.space.space);
    for number in 0..2 * FIRST_SWEEP_AT {
        drop(begin(&store, key_of(0, &format!("S{number}"), 1)));
    }
    assert!(!store.knows(&key(1).list.space));
    assert_ne!(name(), first);
}
