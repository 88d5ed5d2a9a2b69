use super::*;

const TASKS: ListId = ListId::TASKS;

fn query(page: u32) -> PageQuery {
    PageQuery {
        page,
        page_size: 20,
    }
}

fn space() -> Arc<Space> {
    let token = SpaceToken::new("A").unwrap();
    Arc::new(Space::new(
        &token,
        0,
        Arc::new(RefreshPlan::new(Duration::ZERO)),
    ))
}

fn remembered(refusal: Refusal, lifetime: Duration, now: Instant) -> Remembered {
    Remembered {
        refusal,
        until: now + lifetime,
        since: now,
        initial_age: Duration::ZERO,
    }
}

#[test]
fn a_refusal_ends_with_its_time() {
    let (space, now) = (space(), Instant::now());
    let second = Duration::from_secs(1);
    space.refuse_page(
        &TASKS,
        query(1),
        remembered(Refusal::Rejected, 2 * second, now),
    );
    space.refuse(remembered(Refusal::SpaceAccessDenied, second, now));

    let refusal = |number, at| {
        space
            .refusal(&TASKS, query(number), at)
            .map(|known| known.refusal)
    };
    // The space's comes first.
    assert_eq!(refusal(1, now), Some(Refusal::SpaceAccessDenied));
    assert_eq!(refusal(2, now), Some(Refusal::SpaceAccessDenied));
    assert_eq!(refusal(1, now + second), Some(Refusal::Rejected));
    assert_eq!(refusal(2, now + second), None);
    assert_eq!(refusal(1, now + 2 * second), None);
    assert!(!space.is_idle(now + second));
    assert!(space.is_idle(now + 2 * second));
}

#[test]
fn a_good_fill_ends_the_refusals_that_it_disproves() {
    let (space, now) = (space(), Instant::now());
    let second = Duration::from_secs(1);
    space.refuse(remembered(Refusal::SpaceNotFound, second, now));
    space.refuse_page(&TASKS, query(1), remembered(Refusal::Failed, second, now));
    space.refuse_page(&TASKS, query(2), remembered(Refusal::Failed, second, now));

    space.allow(&TASKS, query(1));

    assert!(space.refusal(&TASKS, query(1), now).is_none());
    assert!(space.refusal(&TASKS, query(2), now).is_some());
}

#[test]
fn refused_pages_are_bounded_and_make_room_when_they_end() {
    let (space, now) = (space(), Instant::now());
    let second = Duration::from_secs(1);
    for number in 0..10 * MAX_REFUSED_PAGES as u32 {
        space.refuse_page(
            &TASKS,
            query(number),
            remembered(Refusal::Rejected, second, now),
        );
    }
    assert_eq!(space.lock().refused_pages.len(), MAX_REFUSED_PAGES);

    let later = now + second;
    space.refuse_page(
        &TASKS,
        query(1_000_000),
        remembered(Refusal::Rejected, second, later),
    );

    assert!(space.refusal(&TASKS, query(1_000_000), later).is_some());
    assert_eq!(space.lock().refused_pages.len(), 1);
}

#[test]
fn a_page_that_is_refused_again_is_remembered_anew_even_when_full() {
    let (space, now) = (space(), Instant::now());
    let second = Duration::from_secs(1);
    for number in 0..MAX_REFUSED_PAGES as u32 {
        space.refuse_page(
            &TASKS,
            query(number),
            remembered(Refusal::Rejected, second, now),
        );
    }
    space.refuse_page(
        &TASKS,
        query(0),
        remembered(Refusal::Failed, 2 * second, now),
    );
    let known = space.refusal(&TASKS, query(0), now).unwrap();
    assert_eq!(
        (known.refusal, known.until),
        (Refusal::Failed, now + 2 * second)
    );
}

#[test]
fn a_space_with_a_page_is_not_idle() {
    let space = space();
    let list = space.list(&TASKS);
    list.add_page(query(1));
    assert!(!space.is_idle(Instant::now()) && !space.has_no_pages());
    list.remove_page(query(1));
    assert!(space.is_idle(Instant::now()) && space.has_no_pages());
}

#[test]
fn dropping_forgets_everything_and_returns_what_was_stored() {
    let (space, now) = (space(), Instant::now());
    let second = Duration::from_secs(1);
    let list = space.list(&TASKS);
    list.add_page(query(2));
    list.add_page(query(1));
    list.add_page(query(2));
    space.refuse(remembered(Refusal::SpaceNotFound, second, now));
    space.refuse_page(&TASKS, query(3), remembered(Refusal::Rejected, second, now));
    let before = list.version();

    let dropped = space.invalidate(0).into_iter();
    let dropped: Vec<_> = dropped
        .map(|(list, pages)| (list, pages.iter().collect::<Vec<_>>()))
        .collect();
    assert_eq!(dropped, [(TASKS, vec![query(1), query(2)])]);

    assert!(space.invalidated_since(before));
    assert!(!space.invalidated_since(list.version()));
    assert!(space.has_no_pages() && space.is_idle(now));
    assert!(space.refusal(&TASKS, query(3), now).is_none());
}

#[test]
fn a_list_is_known_as_long_as_anybody_holds_it() {
    let space = space();
    let first = space.list(&TASKS);
    assert!(Arc::ptr_eq(&first, &space.list(&TASKS)));
    drop(first);
    assert!(space.known_list(&TASKS).is_none());
}
