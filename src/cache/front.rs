//! The pages that were asked for within the last few seconds, before the store proper.
//!
//! moka notes each read in a log, a sketch and a list, and what it notes of ten thousand pages no cache of a core holds. Here a page is one
//! place in a table and the page itself. Every few seconds each is asked of the store again, which so learns what is in use.

use std::{
    hash::BuildHasher,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering, fence},
    },
};

use arc_swap::{ArcSwapOption, Guard};
use foldhash::quality::RandomState;
use tokio::time::Instant;

use super::entry::StoredPage;
use crate::domain::PageKey;

/// Places for pages: 128 KiB. Half as many made a hit among 10,000 pages 4 % dearer; twice as many gained nothing.
const PLACES: usize = 16384;

/// A read that the store noted counts for so many seconds. One made a hit among 10,000 pages 2 % dearer; eight gained nothing.
const SECONDS: u32 = 4;

/// Pages of the store, each in the place of its key. Which of two with the same place is there is nobody's concern: the other is asked of
/// the store.
#[derive(Debug)]
pub(super) struct Front {
    places: Box<[ArcSwapOption<StoredPage>]>,
    hasher: RandomState,
    since: Instant,
}

/// What a page itself tells of where it is.
#[derive(Debug, Default)]
pub(super) struct Seat {
    /// Whether the store holds it under its key.
    is_stored: AtomicBool,
    /// The second in which the store was last asked for it.
    read_in: AtomicU32,
}

impl Seat {
    pub(super) fn is_stored(&self) -> bool {
        self.is_stored.load(Ordering::Acquire)
    }

    pub(super) fn set_stored(&self, is_stored: bool) {
        self.is_stored.store(is_stored, Ordering::Release);
    }
}

impl Front {
    pub(super) fn new() -> Self {
        Self {
            places: (0..PLACES).map(|_| ArcSwapOption::empty()).collect(),
            hasher: RandomState::default(),
            since: Instant::now(),
        }
    }

    /// The page of `key`, if the store was asked for it lately and still holds it.
    pub(super) fn get(&self, key: &PageKey, now: Instant) -> Option<Arc<StoredPage>> {
        let there = self.place(key).load();
        let page = there.as_ref()?;
        let counts = page.key == *key && self.is_recent(page, now) && is_good(page);
        counts.then(|| Guard::into_inner(there)).flatten()
    }

    /// Takes in a page that the store was asked for just now.
    pub(super) fn put(&self, page: &Arc<StoredPage>, now: Instant) {
        page.seat.read_in.store(self.second(now), Ordering::Relaxed);
        let place = self.place(&page.key);
        match &*place.load() {
            Some(there) if Arc::ptr_eq(there, page) => return,
            // Who came first stays while that is so: else two pages asked for in turn would push each other out each time.
            Some(there) if self.is_recent(there, now) && is_good(there) => return,
            Some(_) | None => {}
        }
        place.store(Some(page.clone()));
        // The store may have let it go meanwhile. Either this sees that, or who let it go sees it here.
        fence(Ordering::SeqCst);
        if !page.seat.is_stored() {
            self.clear(page);
        }
    }

    /// Lets go of a page that the store has let go of.
    pub(super) fn remove(&self, page: &Arc<StoredPage>) {
        page.seat.set_stored(false);
        fence(Ordering::SeqCst);
        self.clear(page);
    }

    /// How many pages are here.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        let places = self.places.iter();
        places.filter(|place| place.load().is_some()).count()
    }

    fn clear(&self, page: &Arc<StoredPage>) {
        let place = self.place(&page.key);
        let there = place.load();
        if there.as_ref().is_some_and(|there| Arc::ptr_eq(there, page)) {
            place.compare_and_swap(&there, None);
        }
    }

    fn place(&self, key: &PageKey) -> &ArcSwapOption<StoredPage> {
        let hash = self.hasher.hash_one(key);
        // The remainder fits whatever a word is.
        &self.places[(hash % PLACES as u64) as usize]
    }

    fn is_recent(&self, page: &StoredPage, now: Instant) -> bool {
        let read_in = page.seat.read_in.load(Ordering::Relaxed);
        read_in > 0 && self.second(now).saturating_sub(read_in) < SECONDS
    }

    /// 0 is no second: in it the store was asked for no page.
    fn second(&self, now: Instant) -> u32 {
        let since = now.saturating_duration_since(self.since);
        u32::try_from(since.as_secs()).map_or(u32::MAX, |second| second.saturating_add(1))
    }
}

/// Whether the store would give it.
fn is_good(page: &StoredPage) -> bool {
    page.seat.is_stored() && !page.is_dropped()
}
