//! Pages that nobody asks for: packed by and by, in a small share of one core's time.

use std::{ops::ControlFlow, time::Duration};

use tokio::time::Instant;

use super::PageStore;

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
        for (key, page) in &self.pages {
            let packed = page.content.pack(now);
            next = next.into_iter().chain(packed.due).min();
            if packed.changed {
                self.reweigh(&key, &page);
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

    /// Resolves when a page or a form of one was stored since it did last: there may be something to pack one day.
    pub async fn stirred(&self) {
        self.stirred.notified().await;
    }
}
