use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{cache::refresh_plan::RefreshPlan, domain::SpaceToken};

const LIFETIME: Duration = Duration::from_secs(30);

fn query(page: u32) -> PageQuery {
    PageQuery {
        page,
        page_size: 20,
    }
}

struct Watched {
    list: Arc<List>,
    now: Instant,
    names: StateNames,
}

impl Watched {
    fn new() -> Self {
        let token = SpaceToken::new("A").unwrap();
        let space = Space::new(&token, 0, Arc::new(RefreshPlan::new(Duration::ZERO)));
        Self {
            list: Arc::new(space).list(&ListId::TASKS),
            now: Instant::now(),
            names: StateNames::new(&[7; blake3::KEY_LEN]),
        }
    }

    fn observe(
        &self,
        began: Version,
        number: u32,
        count: u64,
        row: &str,
    ) -> (Version, Option<u64>) {
        let page = Observation {
            query: query(number),
            count,
            first_row: Some(row),
            has_rows_of_before: false,
            doubled: None,
        };
        let list = &self.list;
        list.observe(began, &page, LIFETIME, self.now, &self.names)
    }

    /// Observes a page whose fill nothing overtook.
    fn see(&self, number: u32, count: u64, row: &str) -> (Version, Option<u64>) {
        self.observe(self.list.version(), number, count, row)
    }

    fn name(&self) -> Option<u64> {
        self.list.name_of(self.list.version())
    }
}

#[test]
fn a_move_begins_a_generation_and_a_name() {
    let watched = Watched::new();
    assert_eq!(watched.name(), None, "nothing is known yet");
    let (old, old_name) = watched.see(1, 5, "a");
    assert_eq!(watched.see(2, 5, "f"), (old, old_name));
    assert_eq!(watched.list.moved_since(old), None);

    let (new, new_name) = watched.see(1, 6, "n");

    assert!(new.generation > old.generation);
    assert!(old_name.is_some() && new_name.is_some() && old_name != new_name);
    assert_eq!(watched.list.moved_since(old), Some(watched.now));
    assert_eq!(watched.list.moved_since(new), None);
    assert_eq!(watched.list.name_of(old), None, "it is no longer in force");
}

#[test]
fn who_sees_the_same_state_calls_it_the_same_whatever_was_read_before() {
    let [long, late, below] = [(); 3].map(|()| Watched::new());
    long.see(2, 5, "f");
    long.see(3, 6, "g");
    let (_, name) = long.see(1, 7, "n");
    assert_eq!(late.see(1, 7, "n").1, name);
    assert_eq!(below.see(4, 7, "p").1, name);

    // Of one count there may be two states.
    let (_, replaced) = long.see(1, 7, "m");
    assert_ne!(replaced, name);
    assert_eq!(late.see(1, 7, "m").1, replaced);

    let other_key = Watched {
        names: StateNames::new(&[8; blake3::KEY_LEN]),
        ..Watched::new()
    };
    assert_ne!(other_key.see(1, 7, "n").1, name);
}

#[test]
fn a_page_that_was_overtaken_has_the_name_in_force_only_where_it_shows_that_state() {
    let watched = Watched::new();
    let (slow, old_name) = watched.see(1, 5, "a");
    let (new, name) = watched.see(1, 6, "n");

    assert_eq!(watched.observe(slow, 2, 6, "f"), (new, name));
    for (number, count, row) in [(2, 5, "g"), (2, 7, "e"), (1, 6, "m")] {
        let (version, own) = watched.observe(slow, number, count, row);
        assert_eq!(version.generation, 0);
        assert!(watched.list.moved_since(version).is_some(), "it is stale");
        assert!(own.is_some() && own != name && own != old_name);
    }
    assert_eq!(watched.list.version(), new);
}

#[test]
fn a_drop_begins_a_generation_and_a_name() {
    let watched = Watched::new();
    let (before, name) = watched.see(1, 5, "a");
    watched.list.space.invalidate(0);

    let late = watched.observe(before, 1, 5, "a");
    assert!(watched.list.space.invalidated_since(late.0));
    assert_eq!(late.1, None, "nobody can tell");

    let (after, other_name) = watched.see(1, 5, "a");
    assert!(after.epoch > before.epoch && after.generation > before.generation);
    assert!(other_name.is_some() && other_name != name);
}

#[test]
fn what_was_asked_for_before_nothing_was_known_any_more_is_of_no_known_state() {
    let watched = Watched::new();
    let (before, _) = watched.see(1, 5, "a");
    watched.list.move_on(watched.now);
    let (version, name) = watched.observe(before, 1, 5, "a");
    assert_eq!((version.generation, name), (0, None));
}

fn told(generation: u64, name: u64, count: u64, first: &str) -> SharedList {
    SharedList {
        generation,
        name,
        head: ListHead {
            count: Some(count),
            first_row: Some(first.into()),
        },
    }
}

impl Watched {
    fn hear(&self, told: &SharedList) {
        self.list.hear(told, self.now);
    }
}

#[test]
fn anothers_state_is_taken_up_as_far_as_it_is_news() {
    // (what is known, what another tells, what is known then)
    let table = [
        ((0, None), (20, 7), (20, Some(7))),
        ((20, Some(7)), (20, 7), (20, Some(7))),
        ((20, Some(7)), (21, 8), (21, Some(8))),
        ((20, Some(7)), (19, 6), (20, Some(7))),
        // The same state, told by one that saw it after it was lost.
        ((20, Some(7)), (21, 7), (21, Some(7))),
    ];
    for (known, (generation, name), then) in table {
        let watched = Watched::new();
        if let (generation, Some(name)) = known {
            watched.hear(&told(generation, name, 5, "a"));
        }
        let before = watched.list.version();
        watched.hear(&told(generation, name, 5, "a"));
        assert_eq!((watched.list.shared_generation(), watched.name()), then);
        let has_moved = watched.list.moved_since(before).is_some();
        assert_eq!(has_moved, known.1 != then.1, "{known:?} {then:?}");
    }
}

#[test]
fn a_move_that_the_others_have_not_heard_of_stays_until_they_tell_of_another() {
    let watched = Watched::new();
    watched.hear(&told(20, 7, 5, "a"));
    watched.see(1, 6, "n");
    let ours = watched.name();
    assert!(ours.is_some() && ours != Some(7));

    watched.hear(&told(20, 7, 5, "a"));
    assert_eq!(watched.name(), ours);
    let shared = watched.list.to_share(watched.list.version()).unwrap();
    assert_eq!((shared.generation, Some(shared.name)), (20, ours));
    assert_eq!(shared.head.count, Some(6));

    watched.hear(&told(21, 8, 7, "m"));
    assert_eq!(watched.name(), Some(8));
    watched.see(1, 7, "m");
    assert_eq!(watched.name(), Some(8), "it is the list the others saw");
}

#[test]
fn a_list_that_another_replica_saw_is_the_one_to_compare_with() {
    let watched = Watched::new();
    watched.hear(&told(20, 7, 5, "a"));
    watched.see(1, 5, "a");
    assert_eq!(watched.name(), Some(7));
    watched.see(2, 6, "b");
    assert_ne!(watched.name(), Some(7));
}

#[test]
fn a_page_of_a_state_that_is_not_in_force_is_not_shared() {
    let watched = Watched::new();
    let (old, _) = watched.see(1, 5, "a");
    watched.see(1, 6, "n");
    assert_eq!(watched.list.to_share(old), None);
    let now = watched.list.version();
    assert!(watched.list.to_share(now).is_some());
    watched.list.space.invalidate(0);
    assert_eq!(watched.list.to_share(now), None);
}

proptest! {
    /// However often and in whatever order replicas tell of states, all that heard the same come to the same.
    #[test]
    fn what_is_heard_comes_to_the_same_in_any_order(
        states in vec((1_u64..5, 1_u64..5), 1..6),
        order in vec(any::<prop::sample::Index>(), 6..20),
    ) {
        // Redis calls no two states by one number.
        let tell = |(generation, name): &(u64, u64)| told(10 * generation + name, *name, *name, "a");
        let [one, other] = [(); 2].map(|()| Watched::new());
        for state in &states {
            one.hear(&tell(state));
        }
        for place in order {
            other.hear(&tell(place.get(&states)));
        }
        for state in states.iter().rev() {
            other.hear(&tell(state));
        }
        prop_assert_eq!(one.list.shared_generation(), other.list.shared_generation());
        prop_assert_eq!(one.name(), other.name());
    }
}
