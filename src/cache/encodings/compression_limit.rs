//! Limits how many bodies are compressed at once: one for each core, since more threads would only hold more memory; and few wait in the
//! queue, since each that waits is a request in flight.

use std::{num::NonZero, sync::LazyLock, thread};

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::cache::http_semantics::ContentCoding;

/// Per thread, the one that compresses included: the last in the queue waits while two bodies are compressed.
const QUEUED_PER_THREAD: usize = 3;

/// What to do where the queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenBusy {
    Wait,
    /// Answer uncompressed.
    Identity,
}

static LIMIT: LazyLock<CompressionLimit> = LazyLock::new(|| {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    CompressionLimit::new(cores)
});

#[derive(Debug)]
pub(super) struct CompressionLimit {
    queue: Semaphore,
    compressing: Semaphore,
    /// Decompressing takes a fraction of the time: an answer that needs it does not wait behind compressions.
    decompressing: Semaphore,
}

/// Holds a thread until it is dropped.
pub(super) struct CompressionPermit {
    _queued: Option<SemaphorePermit<'static>>,
    _thread: SemaphorePermit<'static>,
}

impl CompressionLimit {
    pub(super) fn get() -> &'static Self {
        &LIMIT
    }

    fn new(threads: usize) -> Self {
        Self {
            queue: Semaphore::new(threads * QUEUED_PER_THREAD),
            compressing: Semaphore::new(threads),
            decompressing: Semaphore::new(threads),
        }
    }

    /// Waits for a permit to make `coding`; `None` where the queue is full and `busy` says not to wait.
    pub(super) async fn acquire(
        &'static self,
        coding: ContentCoding,
        busy: WhenBusy,
    ) -> Option<CompressionPermit> {
        let (queued, threads) = match coding {
            ContentCoding::Identity => (None, &self.decompressing),
            ContentCoding::Brotli | ContentCoding::Zstd | ContentCoding::Gzip => {
                let queued = self.queue.try_acquire().ok();
                if queued.is_none() && busy == WhenBusy::Identity {
                    return None;
                }
                (queued, &self.compressing)
            }
        };
        let thread = threads.acquire().await.expect("it is never closed");
        Some(CompressionPermit {
            _queued: queued,
            _thread: thread,
        })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn limit(threads: usize) -> &'static CompressionLimit {
        Box::leak(Box::new(CompressionLimit::new(threads)))
    }

    #[tokio::test]
    async fn beyond_a_few_who_wait_for_a_coder_nobody_does_who_need_not() {
        let limit = limit(2);
        let acquire = |busy| limit.acquire(ContentCoding::Gzip, busy);
        let coding = [
            acquire(WhenBusy::Identity).await.unwrap(),
            acquire(WhenBusy::Identity).await.unwrap(),
        ];
        let mut waiting: Vec<_> = (0..4)
            .map(|_| Box::pin(acquire(WhenBusy::Identity)))
            .collect();
        for waits in &mut waiting {
            assert!(waits.as_mut().now_or_never().is_none(), "it has a queued");
        }

        assert!(matches!(
            acquire(WhenBusy::Identity).now_or_never(),
            Some(None)
        ));
        let mut patient = Box::pin(acquire(WhenBusy::Wait));
        assert!(patient.as_mut().now_or_never().is_none());
        let reading = limit.acquire(ContentCoding::Identity, WhenBusy::Identity);
        assert!(matches!(reading.now_or_never(), Some(Some(_))));

        drop(coding);
        for waits in waiting {
            assert!(waits.await.is_some());
        }
        assert!(patient.await.is_some());
        assert!(acquire(WhenBusy::Identity).await.is_some());
    }
}
