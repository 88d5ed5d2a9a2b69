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
    watched.list.space.invalidate();

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

fn mark(epoch: u64, generation: u64) -> Mark {
    Mark {
        name: 1,
        era: [1, 1],
        epoch,
        generation,
    }
}

impl Watched {
    fn adopt(&self, mark: Mark, head: &ListHead) -> Adopted {
        let now = self.list.version();
        self.list.adopt(now, mark, head, self.now)
    }
}

fn head(count: u64, first: &str) -> ListHead {
    ListHead {
        count: Some(count),
        first_row: Some(first.into()),
    }
}

#[test]
fn anothers_state_is_taken_up_as_far_as_it_is_news() {
    let of_another_token = Mark {
        name: 2,
        ..mark(7, 8)
    };
    let of_another_store = Mark {
        era: [2, 1],
        ..mark(10, 20)
    };
    // (what was known, what is stored, what another says, whether that drops it, what the state is called then)
    let table = [
        (None, 0, mark(10, 20), false, Some(20)),
        // Of what nobody said anything before nobody can say that it was not dropped.
        (None, 1, mark(10, 20), true, None),
        (Some(mark(10, 20)), 1, mark(10, 20), false, Some(20)),
        (Some(mark(10, 20)), 1, mark(10, 21), false, Some(21)),
        (Some(mark(10, 20)), 1, mark(11, 20), true, Some(20)),
        (Some(mark(10, 20)), 0, mark(11, 20), true, Some(20)),
        (Some(mark(10, 20)), 1, of_another_store, true, Some(20)),
        (Some(mark(10, 20)), 1, of_another_token, false, Some(8)),
    ];
    for (known, stored, told, drops, name) in table {
        let watched = Watched::new();
        if let Some(known) = known {
            watched.adopt(known, &ListHead::default());
        }
        if stored > 0 {
            watched.list.add_page(query(1));
        }
        let adopted = watched.adopt(told, &head(5, "a"));
        let must_invalidate = adopted == Adopted::MustInvalidate;
        assert_eq!(must_invalidate, drops, "{known:?} {stored} {told:?}");
        assert_eq!(watched.name(), name, "{known:?} {stored} {told:?}");
    }
}

#[test]
fn a_move_that_the_others_have_not_heard_of_stays() {
    let watched = Watched::new();
    watched.adopt(mark(10, 20), &head(5, "a"));
    watched.see(1, 6, "n");
    let ours = watched.name();
    assert!(ours.is_some() && ours != Some(20));

    watched.adopt(mark(10, 20), &head(5, "a"));
    assert_eq!(watched.name(), ours);

    watched.adopt(mark(10, 21), &head(7, "m"));
    assert_eq!(watched.name(), Some(21));
    watched.see(1, 7, "m");
    assert_eq!(watched.name(), Some(21), "it is the list the others saw");
}

#[test]
fn a_list_that_another_replica_saw_is_the_one_to_compare_with() {
    let watched = Watched::new();
    watched.adopt(mark(10, 20), &head(5, "a"));
    watched.see(1, 5, "a");
    assert_eq!(watched.name(), Some(20));
    watched.see(2, 6, "b");
    assert_ne!(watched.name(), Some(20));
}

#[test]
fn who_shares_a_store_calls_a_move_the_same_whatever_each_dropped_before() {
    let names = [0, 2].map(|drops| {
        let watched = Watched::new();
        (0..drops).for_each(|_| drop(watched.list.space.invalidate()));
        watched.adopt(mark(10, 20), &head(5, "a"));
        watched.see(1, 6, "n").1
    });
    assert_eq!(names[0], names[1]);
}

#[test]
fn what_was_told_while_another_was_asked_is_newer() {
    let watched = Watched::new();
    watched.adopt(mark(10, 20), &head(5, "a"));
    let asked = watched.list.version();
    watched.list.move_to(21, watched.now);
    let adopt = |asked, told| {
        let ours = &watched.list;
        ours.adopt(asked, told, &head(5, "a"), watched.now)
    };
    assert_eq!(adopt(asked, mark(10, 20)), Adopted::Overtaken);
    assert_eq!(watched.name(), Some(21));

    let asked = watched.list.version();
    watched.list.space.invalidate();
    assert_eq!(adopt(asked, mark(10, 21)), Adopted::Overtaken);
    assert_eq!(watched.list.mark(), None);
}
