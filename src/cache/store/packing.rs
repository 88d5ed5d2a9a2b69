//! Pages that nobody asks for: packed by and by, in a small share of one core's time.

use std::{ops::ControlFlow, time::Duration};

use tokio::time::Instant;

use super::PageStore;

/// A form that nobody took for so long is cold. Packing a page of 40 KB and reading it back cost 0.1 ms together: ten thousand pages that
/// are asked for just seldom enough to pay both each time cost a sixtieth of a core.
pub const COLD_AFTER: Duration = Duration::from_secs(60);
/// The same where room is scarce: the ten thousand cost a tenth of a core, but a page that is evicted costs a call.
pub const COLD_WHERE_CROWDED: Duration = Duration::from_secs(10);
/// Room is scarce once one part in so many is taken.
const CROWDED_FROM: u64 = 2;

/// How long it packs in one go: what a request may have to wait for the core where there is but one.
const STINT: Duration = Duration::from_millis(1);
/// And how many times as long it rests: packing takes a tenth of a core at most.
const REST: u32 = 9;

impl PageStore {
    /// Packs what has been cold by `now`, and says when more may be; `None` where that takes a page that is not there yet.
    ///
    /// For a thread for blocking work: it looks at every page, and after each stint `rest` is told how long to rest, and may end it.
    pub fn pack_cold(
        &self,
        now: Instant,
        mut rest: impl FnMut(Duration) -> ControlFlow<()>,
    ) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        let mut began = Instant::now();
        for (_, page) in &self.pages {
            let packed = page.content.pack(now, self.cold_after());
            next = next.into_iter().chain(packed.due).min();
            if packed.changed {
                self.reweigh(&page);
            }
            drop(page);
            let worked = began.elapsed();
            if worked >= STINT {
                if rest(worked * REST).is_break() {
                    break;
                }
                began = Instant::now();
            }
        }
        next
    }

    /// Whether what is stored leaves so little room that cold pages should make some.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        let room = self.pages.policy().max_capacity();
        room.is_some_and(|room| self.pages.weighted_size() >= room / CROWDED_FROM)
    }

    fn cold_after(&self) -> Duration {
        if self.is_crowded() {
            COLD_WHERE_CROWDED
        } else {
            COLD_AFTER
        }
    }

    /// Resolves when a page or a form of one was stored since it did last: there may be something to pack one day.
    pub async fn stirred(&self) {
        self.stirred.notified().await;
    }
}
