//! Who may code a body now: as many at once as there are cores, since more threads would only hold more memory each; and few may wait for
//! them, since each that waits is a request under way.

use std::{num::NonZero, sync::LazyLock, thread};

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::cache::http_semantics::Coding;

/// So many may be coding or wait for it, for each that may be coding: the last waits as long as coding two bodies takes.
const PLACES_EACH: usize = 3;

/// What to do where too many wait for a coder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenBusy {
    Wait,
    /// Go without a coding.
    Identity,
}

static CODERS: LazyLock<Coders> = LazyLock::new(|| {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    Coders::new(cores)
});

#[derive(Debug)]
pub(super) struct Coders {
    places: Semaphore,
    coding: Semaphore,
    /// Reading a body back takes a fraction of what coding it takes: who needs that for an answer at once waits for no coder.
    reading: Semaphore,
}

/// The right to a thread until it is dropped.
pub(super) struct Turn {
    _place: Option<SemaphorePermit<'static>>,
    _thread: SemaphorePermit<'static>,
}

impl Coders {
    pub(super) fn get() -> &'static Self {
        &CODERS
    }

    fn new(threads: usize) -> Self {
        Self {
            places: Semaphore::new(threads * PLACES_EACH),
            coding: Semaphore::new(threads),
            reading: Semaphore::new(threads),
        }
    }

    /// Waits for a turn to make `coding`; `None` where too many wait and this one need not.
    pub(super) async fn turn(&'static self, coding: Coding, busy: WhenBusy) -> Option<Turn> {
        let (place, threads) = match coding {
            Coding::Identity => (None, &self.reading),
            Coding::Brotli | Coding::Zstd | Coding::Gzip => {
                let place = self.places.try_acquire().ok();
                if place.is_none() && busy == WhenBusy::Identity {
                    return None;
                }
                (place, &self.coding)
            }
        };
        let thread = threads.acquire().await.expect("it is never closed");
        Some(Turn {
            _place: place,
            _thread: thread,
        })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn coders(threads: usize) -> &'static Coders {
        Box::leak(Box::new(Coders::new(threads)))
    }

    #[tokio::test]
    async fn beyond_a_few_who_wait_for_a_coder_nobody_does_who_need_not() {
        let coders = coders(2);
        let turn = |busy| coders.turn(Coding::Gzip, busy);
        let coding = [
            turn(WhenBusy::Identity).await.unwrap(),
            turn(WhenBusy::Identity).await.unwrap(),
        ];
        let mut waiting: Vec<_> = (0..4).map(|_| Box::pin(turn(WhenBusy::Identity))).collect();
        for waits in &mut waiting {
            assert!(waits.as_mut().now_or_never().is_none(), "it has a place");
        }

        assert!(matches!(
            turn(WhenBusy::Identity).now_or_never(),
            Some(None)
        ));
        let mut patient = Box::pin(turn(WhenBusy::Wait));
        assert!(patient.as_mut().now_or_never().is_none());
        let reading = coders.turn(Coding::Identity, WhenBusy::Identity);
        assert!(matches!(reading.now_or_never(), Some(Some(_))));

        drop(coding);
        for waits in waiting {
            assert!(waits.await.is_some());
        }
        assert!(patient.await.is_some());
        assert!(turn(WhenBusy::Identity).await.is_some());
    }
}
