//! Work that must not block the runtime's threads, and work that must outlive its caller.

use std::{num::NonZero, panic::resume_unwind, sync::LazyLock, thread};

use tokio::{
    sync::Semaphore,
    task::{JoinError, spawn, spawn_blocking},
};

/// This many bytes take some 200 µs, an acceptable delay for other requests.
const QUICK: usize = 128 << 10;

static CORES: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new(thread::available_parallelism().map_or(1, NonZero::get)));

/// Runs `work` on a blocking thread, to its end even if the caller is gone.
pub async fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    spawn_blocking(work).await.unwrap_or_else(bug)
}

/// Runs CPU-bound `work` on so many `bytes` of a page: inline if that is quick, else as [`on_a_thread`], at most one per core at once.
pub async fn by_size<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    if bytes <= QUICK {
        return work();
    }
    let turn = CORES.acquire().await.expect("it is never closed");
    on_a_thread(move || {
        // It continues if the caller is gone.
        let _turn = turn;
        work()
    })
    .await
}

/// Runs `work` in a task of its own, so that a client that hangs up does not cancel it.
pub async fn to_its_end<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    spawn(work).await.unwrap_or_else(bug)
}

/// Propagates a panic to the caller, where it is caught and counted.
fn bug<T>(ended: JoinError) -> T {
    match ended.try_into_panic() {
        Ok(panic) => resume_unwind(panic),
        Err(ended) => panic!("nobody cancels it, nor does the runtime before its end: {ended}"),
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn what_is_begun_ends_though_its_caller_goes_away() {
        let (begin, begun) = oneshot::channel::<()>();
        let (end, ended) = oneshot::channel();
        let caller = spawn(to_its_end(async move {
            let _ = begun.await;
            let _ = end.send("done");
        }));
        tokio::task::yield_now().await;
        caller.abort();
        assert!(caller.await.unwrap_err().is_cancelled());
        begin.send(()).unwrap();
        assert_eq!(ended.await, Ok("done"));
    }

    #[tokio::test]
    async fn a_bug_there_is_a_bug_here() {
        let task = to_its_end::<()>(async { panic!("in a task") });
        let task = spawn(task).await.unwrap_err().into_panic();
        assert_eq!(task.downcast_ref(), Some(&"in a task"));
        let thread = on_a_thread::<()>(|| panic!("on a thread"));
        let thread = spawn(thread).await.unwrap_err().into_panic();
        assert_eq!(thread.downcast_ref(), Some(&"on a thread"));
    }
}
