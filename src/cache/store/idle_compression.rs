//! Compresses idle pages in the background, in a small share of one core's time.

use std::{ops::ControlFlow, time::Duration};

use tokio::time::Instant;

use super::PageStore;

/// An encoding that nobody used for so long is idle. Compressing and decompressing a page of 40 KB take 0.1 ms together: ten thousand pages
/// asked for just seldom enough to pay both each time cost a sixtieth of a core.
pub const IDLE_AFTER: Duration = Duration::from_secs(60);
/// The same where the store is crowded: the ten thousand cost a tenth of a core, but an evicted page costs a call.
pub const IDLE_AFTER_IF_CROWDED: Duration = Duration::from_secs(10);
/// The store is crowded once one part in so many is taken.
const CROWDED_FROM: u64 = 2;

/// How long it works in one go: what a request may wait for the core where there is only one.
const STINT: Duration = Duration::from_millis(1);
/// And how many times as long it rests: compression takes a tenth of a core at most.
const REST: u32 = 9;

impl PageStore {
    /// Compresses what is idle at `now`, and returns when more may be; `None`: not before another page is stored or used.
    ///
    /// For a thread for blocking work: it looks at every page, and after each stint it calls `rest` with how long to rest, which may end it.
    pub fn compress_idle(
        &self,
        now: Instant,
        mut rest: impl FnMut(Duration) -> ControlFlow<()>,
    ) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        let mut began = Instant::now();
        for (_, page) in &self.pages {
            let compressed = page.content.compress_idle(now, self.idle_after());
            next = next.into_iter().chain(compressed.due).min();
            if compressed.changed {
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

    /// Whether the store is so full that pages turn idle sooner.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        let room = self.pages.policy().max_capacity();
        room.is_some_and(|room| self.pages.weighted_size() >= room / CROWDED_FROM)
    }

    fn idle_after(&self) -> Duration {
        if self.is_crowded() {
            IDLE_AFTER_IF_CROWDED
        } else {
            IDLE_AFTER
        }
    }

    /// Resolves when a page or an encoding was stored since it last did: it may turn idle one day.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}
