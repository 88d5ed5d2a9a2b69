use super::*;
use crate::domain::{CredentialId, ListId, SpaceKey, SpaceToken};

fn list(space: &str) -> ListKey {
    ListKey {
        space: SpaceKey {
            credential: CredentialId(0),
            space: SpaceToken::new(space).unwrap(),
        },
        id: ListId::TASKS,
    }
}

/// What came to a call for `page` of 100 rows.
fn rows(page: u32, rows: u64, count: u64) -> Rows {
    let query = PageQuery {
        page,
        page_size: 100,
    };
    Rows {
        query,
        rows,
        count,
        were_all: false,
    }
}

#[test]
fn fewer_rows_than_there_are_tell_of_a_limit() {
    let were_all = |seen| Rows {
        were_all: true,
        ..seen
    };
    for (seen, limit) in [
        (rows(1, 50, 1000), Some(50)),
        (rows(1, 50, 57), Some(50)),
        (rows(3, 10, 1000), Some(10)),
        (rows(1, 100, 1000), None),
        (rows(1, 57, 57), None),
        (rows(11, 0, 1000), None),
        // Too few to be a limit.
        (rows(1, 9, 1000), None),
        // The list has grown since its rows were read.
        (were_all(rows(1, 57, 58)), None),
    ] {
        assert_eq!(seen.limited_to(), limit, "{seen:?}");
    }
}

#[test]
fn one_short_answer_counts_for_its_list_and_two_for_all() {
    let (now, a, b, c) = (Instant::now(), list("A"), list("B"), list("C"));
    let mut limit = RowLimit::default();
    assert_eq!(limit.note(&a, &rows(1, 50, 1000), now), Some(50));
    assert_eq!((limit.of(&a, now), limit.of(&b, now)), (Some(50), None));
    // The same page again, another number, and the end of a list prove nothing.
    limit.note(&a, &rows(1, 50, 1000), now);
    limit.note(&b, &rows(1, 40, 1000), now);
    limit.note(&b, &rows(1, 50, 57), now);
    assert_eq!(limit.of(&c, now), None);

    limit.note(&a, &rows(2, 50, 1000), now);
    assert_eq!(limit.of(&c, now), Some(50));
    let later = now + REMEMBERED_FOR;
    assert_eq!((limit.of(&a, later), limit.of(&c, later)), (None, None));
}

#[test]
fn an_answer_with_more_rows_refutes_it() {
    let (now, a, b) = (Instant::now(), list("A"), list("B"));
    let mut limit = RowLimit::default();
    for page in [1, 2] {
        limit.note(&a, &rows(page, 50, 1000), now);
    }
    limit.note(&b, &rows(1, 50, 50), now);
    assert_eq!(limit.of(&b, now), Some(50));
    limit.note(&b, &rows(1, 51, 51), now);
    assert_eq!((limit.of(&a, now), limit.of(&b, now)), (None, None));
    assert!(limit.is_empty());
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut limit = RowLimit::default();
    let now = Instant::now();
    for space in 0..1000 {
        let last = rows(1, 50, 57);
        limit.note(&list(&format!("S{space}")), &last, now);
    }
    assert_eq!(limit.short.len(), MOST_LISTS);
    assert_eq!(limit.of(&list("S999"), now), Some(50));
}
