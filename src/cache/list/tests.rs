use std::{cell::Cell, time::Duration};

use super::*;
use crate::{
    cache::refresh_plan::RefreshPlan,
    domain::{Row, SpaceToken},
};

fn query(page: u32) -> PageQuery {
    PageQuery {
        page,
        page_size: 20,
    }
}

fn page(count: u64, tasks: &[&str]) -> ListPage {
    let mut body = String::new();
    let tasks = tasks.iter().map(|id| {
        let start = u32::try_from(body.len()).unwrap();
        body += &match *id {
            "" => "{}".to_owned(),
            id => format!(r#"{{"task_id":"{id}"}}"#),
        };
        Row {
            span: start..u32::try_from(body.len()).unwrap(),
        }
    });
    ListPage {
        rows: tasks.collect(),
        count,
        body: body.into(),
    }
}

/// A list whose generations count from 1.
struct Watched {
    list: Arc<List>,
    last_generation: Cell<u64>,
    now: Instant,
}

impl Watched {
    fn new() -> Self {
        let token = SpaceToken::new("A").unwrap();
        let space = Arc::new(Space::new(
            &token,
            Arc::new(RefreshPlan::new(Duration::ZERO)),
        ));
        Self {
            list: space.list(&ListId::TASKS, || 1),
            last_generation: Cell::new(1),
            now: Instant::now(),
        }
    }

    fn observe(&self, began: Version, number: u32, page: &ListPage) -> Version {
        let next = |_: Move<'_>| {
            self.last_generation.set(self.last_generation.get() + 1);
            self.last_generation.get()
        };
        self.list
            .observe(began, query(number), page, next, self.now)
    }

    /// Observes a page whose fill nothing overtook.
    fn see(&self, number: u32, page: &ListPage) -> Version {
        self.observe(self.list.version(), number, page)
    }

    fn generation(&self) -> u64 {
        self.list.version().generation
    }
}

#[test]
fn a_list_moves_when_its_count_or_its_first_row_does() {
    let first = |count, tasks: &[&str]| (1, page(count, tasks));
    let second = |count, tasks: &[&str]| (2, page(count, tasks));
    // (what was seen before, what is seen now, whether the list moved)
    let table = [
        (first(5, &["a", "b"]), first(5, &["a", "b"]), false),
        (first(5, &["a", "b"]), first(6, &["a", "b"]), true),
        (first(5, &["a", "b"]), first(4, &["a", "b"]), true),
        (first(5, &["a", "b"]), first(5, &["n", "a"]), true),
        (first(5, &["a", "b"]), second(6, &["c"]), true),
        // A task that merely changed, or one further down.
        (first(5, &["a", "b"]), first(5, &["a", "c"]), false),
        // Only page 1 tells the first row.
        (first(5, &["a", "b"]), second(5, &["c"]), false),
        (second(5, &["c"]), second(5, &["d"]), false),
        (second(5, &["c"]), first(5, &["a"]), false),
        // Rows without an id tell nothing.
        (first(5, &["a"]), first(5, &[""]), false),
        (first(5, &[""]), first(5, &["a"]), false),
        (first(0, &[]), first(0, &[]), false),
        (first(0, &[]), first(1, &["a"]), true),
        (first(1, &["a"]), first(0, &[]), true),
    ];
    for ((number, before), (then, now), moved) in table {
        let watched = Watched::new();
        let old = watched.see(number, &before);
        let new = watched.see(then, &now);
        let what = format!("{number}: {before:?}, {then}: {now:?}");
        assert_eq!(watched.generation(), 1 + u64::from(moved), "{what}");
        assert_eq!(watched.list.moved_since(old).is_some(), moved, "{what}");
        assert_eq!(watched.list.moved_since(new), None, "{what}");
    }
}

#[test]
fn a_first_row_that_vanished_for_a_while_still_counts() {
    let watched = Watched::new();
    watched.see(1, &page(5, &["a"]));
    watched.see(1, &page(5, &[""]));
    watched.see(1, &page(5, &["b"]));
    assert_eq!(watched.generation(), 2);
}

#[test]
fn after_a_move_the_first_page_of_the_new_list_moves_nothing_more() {
    let watched = Watched::new();
    watched.see(1, &page(5, &["a"]));
    watched.see(2, &page(6, &["c"]));
    watched.see(1, &page(6, &["n"]));
    assert_eq!(watched.generation(), 2);
}

#[test]
fn a_fill_begun_before_the_move_moves_nothing_and_is_of_the_old_list() {
    let watched = Watched::new();
    watched.see(1, &page(5, &["a"]));
    let slow = watched.list.version();
    watched.see(1, &page(6, &["n"]));

    let version = watched.observe(slow, 2, &page(5, &["z"]));

    assert_eq!(watched.generation(), 2);
    assert_eq!(version, slow);
    assert_eq!(watched.list.moved_since(version), Some(watched.now));
    // Nor did what it saw become the list's state.
    watched.see(1, &page(6, &["n"]));
    assert_eq!(watched.generation(), 2);
}

#[test]
fn a_fill_begun_before_a_drop_tells_nothing_of_the_list() {
    let watched = Watched::new();
    let slow = watched.list.version();
    watched.list.space.invalidate();

    let version = watched.observe(slow, 1, &page(5, &["a"]));

    assert!(watched.list.space.invalidated_since(version));
    watched.see(1, &page(6, &["n"]));
    assert_eq!(watched.generation(), 1);
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
    // (what was known, what is stored, what another says, whether that drops it, the generation then)
    let table = [
        (None, 0, mark(10, 20), false, 20),
        // Of what nobody said anything before nobody can say that it was not dropped.
        (None, 1, mark(10, 20), true, 1),
        (Some(mark(10, 20)), 1, mark(10, 20), false, 20),
        (Some(mark(10, 20)), 1, mark(10, 21), false, 21),
        (Some(mark(10, 20)), 1, mark(11, 20), true, 20),
        (Some(mark(10, 20)), 0, mark(11, 20), true, 20),
        (Some(mark(10, 20)), 1, of_another_store, true, 20),
        (Some(mark(10, 20)), 1, of_another_token, false, 8),
    ];
    for (known, stored, told, drops, generation) in table {
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
        assert_eq!(
            watched.generation(),
            generation,
            "{known:?} {stored} {told:?}"
        );
    }
}

#[test]
fn a_move_that_the_others_have_not_heard_of_stays() {
    let watched = Watched::new();
    watched.adopt(mark(10, 20), &head(5, "a"));
    watched.see(1, &page(6, &["n"]));
    let ours = watched.generation();
    assert_ne!(ours, 20);

    watched.adopt(mark(10, 20), &head(5, "a"));
    assert_eq!(watched.generation(), ours);

    watched.adopt(mark(10, 21), &head(7, "m"));
    assert_eq!(watched.generation(), 21);
    watched.see(1, &page(7, &["m"]));
    assert_eq!(watched.generation(), 21, "it is the list the others saw");
}

#[test]
fn a_list_that_another_replica_saw_is_the_one_to_compare_with() {
    let watched = Watched::new();
    watched.adopt(mark(10, 20), &head(5, "a"));
    watched.see(1, &page(5, &["a"]));
    assert_eq!(watched.generation(), 20);
    watched.see(2, &page(6, &["b"]));
    assert_ne!(watched.generation(), 20);
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
    assert_eq!(watched.generation(), 21);

    let asked = watched.list.version();
    watched.list.space.invalidate();
    assert_eq!(adopt(asked, mark(10, 21)), Adopted::Overtaken);
    assert_eq!(watched.list.mark(), None);
}
