//! The threads that compress: two, of low priority, so that hits go first; and few bodies wait for them, since each that waits is a request
//! in flight.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, LazyLock},
    thread,
};

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

const THREADS: usize = 2;
/// The last one waits while three bodies per thread are compressed.
const QUEUED: usize = 2 * THREADS;
/// A tenth of the share of a thread that serves requests, where both want the processor: a hit that waits for its encoding still gets it.
const NICENESS: i32 = 10;

type Job = Box<dyn FnOnce() + Send>;

/// What to do where the queue is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenBusy {
    Wait,
    /// Answer uncompressed.
    Identity,
}

static JOBS: LazyLock<mpsc::Sender<Job>> = LazyLock::new(|| {
    let (jobs, waiting) = mpsc::channel::<Job>(QUEUED);
    let waiting = Arc::new(Mutex::new(waiting));
    for _ in 0..THREADS {
        let waiting = waiting.clone();
        let thread = thread::Builder::new().name("compress".to_owned());
        let started = thread.spawn(move || {
            // On Linux it is the thread's own. Without the right to it compression competes with hits, as any other work does.
            let _ = rustix::process::nice(NICENESS);
            loop {
                let job = waiting.lock().blocking_recv();
                let Some(job) = job else {
                    break;
                };
                // Whoever waits for it learns that it is gone.
                let _ = catch_unwind(AssertUnwindSafe(job));
            }
        });
        started.expect("a thread can be started");
    }
    jobs
});

/// Does `work` on one of the threads, to its end even if the caller is gone; `None` where it had a bug, or where the queue is full and `busy`
/// says not to wait.
pub(super) async fn on_its_threads<T: Send + 'static>(
    busy: WhenBusy,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (done, made) = oneshot::channel();
    let job: Job = Box::new(move || {
        let _ = done.send(work());
    });
    match busy {
        WhenBusy::Identity => JOBS.try_send(job).ok()?,
        WhenBusy::Wait => JOBS.send(job).await.ok()?,
    }
    made.await.ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    // One test: the threads are the process's, and other tests of this module would fill the same queue.
    #[tokio::test]
    async fn beyond_a_few_who_wait_nobody_does_who_need_not() {
        let ended = Arc::new(Barrier::new(THREADS + 1));
        let mut jobs = Vec::new();
        let begun = Arc::new(Barrier::new(THREADS + 1));
        for _ in 0..THREADS {
            let (begun, ended) = (begun.clone(), ended.clone());
            jobs.push(tokio::spawn(on_its_threads(WhenBusy::Wait, move || {
                begun.wait();
                ended.wait();
            })));
        }
        tokio::task::spawn_blocking(move || begun.wait())
            .await
            .unwrap();
        for _ in 0..QUEUED {
            jobs.push(tokio::spawn(on_its_threads(WhenBusy::Wait, || ())));
        }
        while JOBS.capacity() > 0 {
            tokio::task::yield_now().await;
        }

        assert_eq!(on_its_threads(WhenBusy::Identity, || ()).await, None);
        jobs.push(tokio::spawn(on_its_threads(WhenBusy::Wait, || ())));
        tokio::task::spawn_blocking(move || ended.wait())
            .await
            .unwrap();
        for job in jobs {
            assert_eq!(job.await.unwrap(), Some(()));
        }

        let bug = on_its_threads::<()>(WhenBusy::Wait, || panic!("of one job"));
        assert_eq!(bug.await, None);
        assert_eq!(on_its_threads(WhenBusy::Wait, || 1).await, Some(1));
    }
}
