//! The vendor's own answers while a task comes in: its rows are read before they are counted, and a newcomer may land below the head.

use super::*;

const BEFORE: u64 = 250;
const AFTER: u64 = 251;

/// A captured page of 100 tasks, telling `count`.
fn captured(name: &str, count: u64) -> ListPage {
    let file = format!(
        "{}/tests/captures/tasks-insert-{name}.http",
        env!("CARGO_MANIFEST_DIR")
    );
    let text = std::fs::read_to_string(file).unwrap();
    let (_, body) = text.split_once("\r\n\r\n").unwrap();
    let told = format!(r#"{{"count":{AFTER},"#);
    let body = body.replacen(&told, &format!(r#"{{"count":{count},"#), 1);
    read_page(&body.into()).unwrap()
}

fn sized_key(page: u32, page_size: u32) -> PageKey {
    key(1).at(PageQuery { page, page_size })
}

/// A list, and how often it has moved.
struct Watched {
    store: PageStore,
    moves: u64,
}

impl Watched {
    fn new() -> Self {
        Self {
            store: store(""),
            moves: 0,
        }
    }

    /// Takes in a page; whether it is of the state in force.
    fn put(&mut self, key: PageKey, page: ListPage) -> bool {
        let before = begin(&self.store, key.clone()).version.generation;
        let kept = put(&self.store, key.clone(), page);
        self.moves += begin(&self.store, key).version.generation - before;
        kept.page.moved_at().is_none()
    }

    /// As the list was: of 250 tasks, and rows that the captured pages have in the same places.
    fn known(pages: &[(u32, &str)]) -> Self {
        let mut watched = Self::new();
        for (page, name) in pages {
            watched.put(sized_key(*page, 100), captured(name, BEFORE));
        }
        watched.moves = 0;
        watched
    }
}

#[test]
fn rows_of_before_move_the_list_once() {
    let mut watched = Watched::known(&[(1, "before-page1")]);
    let of_before = watched.put(sized_key(1, 100), captured("before-page1", AFTER));
    assert_eq!((of_before, watched.moves), (false, 1));
    // Its first row was the last of page 1.
    let moved_down = watched.put(sized_key(2, 100), captured("before-page2", AFTER));
    assert_eq!((moved_down, watched.moves), (true, 1));
}

#[test]
fn rows_of_before_are_known_by_a_page_of_another_size() {
    let whole = captured("before-page1", BEFORE);
    let end = whole.rows[19].span.end as usize;
    let small = [&whole.body[..end], b"]}"].concat();
    let mut watched = Watched::new();
    watched.put(sized_key(1, 20), read_page(&small.into()).unwrap());
    watched.moves = 0;
    let of_before = watched.put(sized_key(1, 100), captured("before-page1", AFTER));
    assert_eq!((of_before, watched.moves), (false, 1));
    let moved_down = watched.put(sized_key(2, 100), captured("before-page2", AFTER));
    assert_eq!((moved_down, watched.moves), (true, 1));
}

#[test]
fn rows_of_before_are_known_by_the_page_before_them() {
    // Page 2 begins with b149 as long as there are 250 tasks, and with b150 once there are 251.
    for (name, is_current) in [("middle-page2", false), ("before-page2", true)] {
        let mut watched = Watched::known(&[(1, "before-page1")]);
        let current = watched.put(sized_key(2, 100), captured(name, AFTER));
        assert_eq!((current, watched.moves), (is_current, 1), "{name}");
    }
}

#[test]
fn a_last_page_that_lacks_the_row_that_came_moves_the_list_once() {
    let mut watched = Watched::known(&[(3, "between-size-100-page3")]);
    let between = captured("between-size-100-page3", AFTER);
    assert_eq!(between.rows.len(), 50);
    let of_before = watched.put(sized_key(3, 100), between);
    assert_eq!((of_before, watched.moves), (false, 1));
}

#[test]
fn a_newcomer_below_the_head_is_seen_by_the_count() {
    let mut watched = Watched::known(&[(1, "middle-page1")]);
    watched.put(sized_key(1, 100), captured("middle-page1", AFTER));
    assert_eq!(watched.moves, 1);
    // Page 1 stays as it is, and the next of both are current.
    for (page, name) in [(2, "middle-page2"), (1, "middle-page1")] {
        let is_current = watched.put(sized_key(page, 100), captured(name, AFTER));
        assert_eq!((is_current, watched.moves), (true, 1), "{name}");
    }
}
