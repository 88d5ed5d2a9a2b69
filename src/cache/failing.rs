//! The pages of a space that failed when they were asked for the last time: while others wait for a call, these get few.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use crate::domain::{ListId, PageQuery};

const REMEMBERED_FOR: Duration = Duration::from_secs(600);
/// Most pages of one space that are remembered at once.
const MOST_PAGES: usize = 256;

/// What failed last, and until when that is remembered.
#[derive(Debug, Default)]
pub(super) struct FailingPages {
    space: Option<Instant>,
    pages: RecentPages,
    /// Ranges that one call does not bring: their pages are asked for one by one.
    unfit: RecentPages,
}

/// Pages, each for ten minutes, and not too many.
#[derive(Debug, Default)]
struct RecentPages(HashMap<(ListId, PageQuery), Instant>);

impl RecentPages {
    fn note(&mut self, list: &ListId, query: PageQuery, now: Instant) {
        if self.0.len() >= MOST_PAGES {
            self.0.retain(|_, until| *until > now);
        }
        let page = (list.clone(), query);
        if self.0.len() < MOST_PAGES || self.0.contains_key(&page) {
            self.0.insert(page, now + REMEMBERED_FOR);
        }
    }

    fn holds(&self, list: &ListId, query: PageQuery, now: Instant) -> bool {
        let until = || self.0.get(&(list.clone(), query));
        !self.0.is_empty() && until().is_some_and(|until| *until > now)
    }
}

impl FailingPages {
    /// Notes that the whole space was refused.
    pub(super) fn note_space(&mut self, now: Instant) {
        self.space = Some(now + REMEMBERED_FOR);
    }

    /// Notes that a page failed.
    pub(super) fn note_page(&mut self, list: &ListId, query: PageQuery, now: Instant) {
        self.pages.note(list, query, now);
    }

    /// Notes that a range is not to be had by one call.
    pub(super) fn note_unfit(&mut self, list: &ListId, query: PageQuery, now: Instant) {
        self.unfit.note(list, query, now);
    }

    /// Whether a range was not to be had by one call a while ago.
    pub(super) fn is_unfit(&self, list: &ListId, query: PageQuery, now: Instant) -> bool {
        self.unfit.holds(list, query, now)
    }

    /// Notes that a page was filled: neither it nor its space fails.
    pub(super) fn note_good(&mut self, list: &ListId, query: PageQuery) {
        self.space = None;
        if !self.pages.0.is_empty() {
            self.pages.0.remove(&(list.clone(), query));
        }
    }

    /// Whether the page, or its space, failed last.
    pub(super) fn holds(&self, list: &ListId, query: PageQuery, now: Instant) -> bool {
        self.space.is_some_and(|until| until > now) || self.pages.holds(list, query, now)
    }

    /// Whether nothing is remembered any more.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        let pages = [&self.pages, &self.unfit].into_iter();
        let mut all = pages.flat_map(|pages| pages.0.values()).chain(&self.space);
        all.all(|until| *until <= now)
    }

    /// Forgets it all: who asks is another.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASKS: ListId = ListId::TASKS;

    fn query(page: u32) -> PageQuery {
        PageQuery {
            page,
            page_size: 20,
        }
    }

    #[test]
    fn what_failed_is_remembered_until_a_good_fill_or_for_ten_minutes() {
        let now = Instant::now();
        let mut failing = FailingPages::default();
        assert!(failing.is_over(now));
        failing.note_page(&TASKS, query(1), now);
        assert!(failing.holds(&TASKS, query(1), now));
        assert!(!failing.holds(&TASKS, query(2), now));
        failing.note_space(now);
        assert!(failing.holds(&TASKS, query(2), now));
        failing.note_good(&TASKS, query(2));
        assert!(!failing.holds(&TASKS, query(2), now));
        assert!(failing.holds(&TASKS, query(1), now) && !failing.is_over(now));
        let later = now + REMEMBERED_FOR;
        assert!(!failing.holds(&TASKS, query(1), later) && failing.is_over(later));
    }

    #[test]
    fn it_is_bounded() {
        let now = Instant::now();
        let mut failing = FailingPages::default();
        for page in 0..1000 {
            failing.note_page(&TASKS, query(page), now);
        }
        assert_eq!(failing.pages.0.len(), MOST_PAGES);
        let later = now + REMEMBERED_FOR;
        failing.note_page(&TASKS, query(1000), later);
        assert!(failing.holds(&TASKS, query(1000), later));
        assert_eq!(failing.pages.0.len(), 1);
    }
}
