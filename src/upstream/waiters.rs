//! The clients that wait for one fill: the one that caused it, and those that joined it since.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

/// A client that wants a fill, and what it has meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiter {
    pub client: Arc<str>,
    pub need: Need,
}

/// How much a client needs a fill: the greatest need first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Its fill has had its turn, and needs one more call.
    Begun,
    /// It is shown a page that is too old for any other reason than a missing call.
    Oldest,
    /// It has nothing to show.
    Nothing,
    /// It wants another page than the one that is stored. Nobody else does: without it the fill is not made.
    Forced,
    /// It is shown a stale page, which should be refreshed by then.
    Refresh(Instant),
}

/// How far a fill has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It looks for the page elsewhere, or asks for a call.
    Started,
    /// It waits for a call, which it should get at that time.
    Queued(Instant),
    /// It got its call then.
    Sent(Instant),
}

/// The waiters on one fill: at least one, and at most one a client. A clone sees waiters that join later.
#[derive(Clone, Debug)]
pub struct Waiters(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    list: Mutex<Vec<Waiter>>,
    /// Requests that wait for the outcome right now.
    present: AtomicUsize,
    progress: watch::Sender<Progress>,
}

impl Waiters {
    #[must_use]
    pub fn new(first: Waiter) -> Self {
        Self(Arc::new(Shared {
            list: Mutex::new(vec![first]),
            present: AtomicUsize::new(0),
            progress: watch::Sender::new(Progress::Started),
        }))
    }

    /// Whether these are the waiters on the same fill.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Adds a waiter; a client keeps its greatest need.
    pub fn add(&self, waiter: Waiter) {
        let mut list = self.0.list.lock();
        match list.iter_mut().find(|held| held.client == waiter.client) {
            Some(held) => held.need = held.need.min(waiter.need),
            None => list.push(waiter),
        }
    }

    /// The waiters so far.
    #[must_use]
    pub fn all(&self) -> Vec<Waiter> {
        self.0.list.lock().clone()
    }

    /// Whether each of them is shown a stale page meanwhile.
    #[must_use]
    pub fn have_stale_pages(&self) -> bool {
        let list = self.0.list.lock();
        list.iter()
            .all(|waiter| matches!(waiter.need, Need::Refresh(_) | Need::Oldest))
    }

    /// Whether the fill is still of use: somebody waits for it, or will come back for what it brings.
    pub(super) fn want_it(&self) -> bool {
        let list = self.0.list.lock();
        self.are_present() || list.iter().any(|waiter| waiter.need != Need::Forced)
    }

    /// Counts a request that waits, until the guard is dropped.
    #[must_use]
    pub fn attend(&self) -> Attendance {
        self.0.present.fetch_add(1, Ordering::AcqRel);
        Attendance(self.0.clone())
    }

    /// Whether a request waits right now.
    pub(super) fn are_present(&self) -> bool {
        self.0.present.load(Ordering::Acquire) > 0
    }

    /// How far their fill has come, and every change of it.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.0.progress.subscribe()
    }

    pub(super) fn note_progress(&self, progress: Progress) {
        self.0.progress.send_replace(progress);
    }

    /// There is no call before `at`.
    pub(super) fn note_delay(&self, at: Instant) {
        self.requeue(|expected| expected.is_none_or(|expected| expected < at), at);
    }

    /// One who joined has a turn at `at`.
    pub(super) fn note_sooner(&self, at: Instant) {
        self.requeue(
            |expected| expected.is_some_and(|expected| expected > at),
            at,
        );
    }

    /// Expects the call at `at` where that is other than `expected` so far.
    fn requeue(&self, is_other: impl Fn(Option<Instant>) -> bool, at: Instant) {
        self.0.progress.send_if_modified(|progress| {
            let is_other = match progress {
                Progress::Started => is_other(None),
                Progress::Queued(expected) => is_other(Some(*expected)),
                Progress::Sent(_) => false,
            };
            if is_other {
                *progress = Progress::Queued(at);
            }
            is_other
        });
    }
}

/// A request that waits for a fill, for as long as this lives.
#[derive(Debug)]
pub struct Attendance(Arc<Shared>);

impl Drop for Attendance {
    fn drop(&mut self) {
        self.0.present.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_waits_once_with_its_greatest_need() {
        let now = Instant::now();
        let (soon, late) = (
            Need::Refresh(now),
            Need::Refresh(now + Duration::from_secs(1)),
        );
        for (needs, expected) in [
            (vec![Need::Nothing, Need::Nothing], Need::Nothing),
            (vec![soon, Need::Nothing], Need::Nothing),
            (vec![Need::Nothing, Need::Forced, late], Need::Nothing),
            (vec![Need::Forced, soon], Need::Forced),
            (vec![late, soon], soon),
            (vec![Need::Nothing, Need::Oldest], Need::Oldest),
        ] {
            let waiter = |need| Waiter {
                client: "a".into(),
                need,
            };
            let mut needs = needs.into_iter();
            let waiters = Waiters::new(waiter(needs.next().unwrap()));
            needs.for_each(|need| waiters.add(waiter(need)));
            assert_eq!(waiters.all(), [waiter(expected)]);
        }
    }

    #[test]
    fn a_forced_fill_is_wanted_while_somebody_waits_for_it() {
        let waiter = |client: &str, need| Waiter {
            client: client.into(),
            need,
        };
        let waiters = Waiters::new(waiter("a", Need::Forced));
        assert!(!waiters.want_it());
        let waiting = waiters.attend();
        assert!(waiters.want_it());
        drop(waiting);
        assert!(!waiters.want_it());
        waiters.add(waiter("b", Need::Nothing));
        assert!(waiters.want_it());
    }
}
