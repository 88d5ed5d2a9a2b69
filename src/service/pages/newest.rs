//! The newest rows of a list: the ranges that hold them, each read as any page, until they show one state of the list.
//!
//! Where all of them are stored nothing else happens. Else one job a list reads what is missing, in a task of its own, one range after the
//! other; whoever wants them waits for it as long as for a page, and the job goes on.

use std::{future::pending, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use self::reading::{Offered, Reading, Source, Step};
use super::{
    ClientRequest, Pages, PagesError, PagesErrorKind, Scope, Served, StoreAnswer, not_cached,
    single_flight::FlightKey,
};
use crate::{
    cache::{
        CacheStatus, Role,
        single_flight::{Pending, SingleFlight},
        status::{Detail, NotForwarded},
    },
    upstream::Credential,
};

mod job;
mod reading;

/// The least that is told to wait, and is waited for a call.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
/// How long to wait where the list moves too fast, or the upstream fails.
const RETRY_LATER: Duration = Duration::from_secs(5);

/// Jobs under way, one a list.
pub(super) type Jobs =
    SingleFlight<FlightKey, Result<Newest, PagesError>, watch::Receiver<Progress>>;

/// The newest rows of a list, all of one state.
#[derive(Clone, Debug)]
pub(super) struct Newest {
    /// Ranges in order, without a gap.
    pub(super) parts: Arc<[Served]>,
    /// How many rows were looked at: as many as were asked for, or as there are.
    pub(super) looked_at: u64,
    /// How many rows the list has.
    pub(super) count: u64,
    /// Calls of the upstream that were made for it.
    pub(super) calls: u32,
    wanted: u32,
}

/// How far a job is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// Ranges that are still to be read.
    missing: u32,
    /// When there may be a call for the next.
    call_at: Option<Instant>,
}

impl Newest {
    fn new(reading: Reading, wanted: u32, calls: u32) -> Self {
        let parts: Arc<[_]> = reading.into_parts().into();
        let count = parts
            .first()
            .map_or(0, |part: &Served| part.page.content.count);
        Self {
            looked_at: count.min(wanted.into()),
            count,
            parts,
            calls,
            wanted,
        }
    }

    /// The `wanted` newest of them; `None` where these are fewer.
    fn first(mut self, wanted: u32) -> Option<Self> {
        if self.wanted < wanted {
            return None;
        }
        self.looked_at = self.count.min(wanted.into());
        Some(self)
    }

    /// How far the list was looked through.
    pub(super) fn scope(&self) -> Scope {
        Scope {
            looked_at: self.looked_at,
            count: self.count,
        }
    }

    /// What the cache did for it: it is as fresh as the part that is least so.
    pub(super) fn status(&self, now: Instant) -> CacheStatus {
        // What the upstream lets nobody keep is no hit, and no client keeps it.
        let is_unkept = |status: &CacheStatus| {
            matches!(
                status,
                CacheStatus::Forward {
                    stored: false,
                    collapsed: false,
                    ..
                }
            )
        };
        let mut statuses = self.parts.iter().map(|part| part.status);
        if let Some(unkept) = statuses.find(is_unkept) {
            return unkept;
        }
        let stale = self.parts.iter().filter_map(stale_detail);
        if let Some((ttl, detail)) = stale.min_by_key(|(ttl, _)| *ttl) {
            return CacheStatus::Hit {
                ttl,
                detail: Some(detail),
            };
        }
        let ttl = self.parts.iter().map(|part| part.page.fresh_for(now));
        let ttl = ttl.min().unwrap_or_default().as_secs();
        CacheStatus::Hit {
            ttl: i64::try_from(ttl).unwrap_or(i64::MAX),
            detail: Some(Detail::Filtered),
        }
    }

    /// Whether each part is fresh, or was when it was read.
    #[must_use]
    pub(super) fn is_fresh(&self) -> bool {
        self.parts.iter().all(|part| stale_detail(part).is_none())
    }

    /// The parts, and how many rows of each were looked at.
    pub(super) fn rows_looked_at(&self) -> impl Iterator<Item = (usize, &Served)> {
        let mut left = usize::try_from(self.looked_at).unwrap_or(usize::MAX);
        self.parts.iter().map(move |part| {
            let rows = part.page.content.row_count().min(left);
            left -= rows;
            (rows, part)
        })
    }
}

/// Why a part is stale, if it is.
fn stale_detail(part: &Served) -> Option<(i64, Detail)> {
    match part.status {
        CacheStatus::Hit {
            ttl,
            detail: Some(detail),
        } if detail != Detail::Assembled => Some((ttl, detail)),
        CacheStatus::Hit { .. } | CacheStatus::Forward { .. } | CacheStatus::NotForwarded(_) => {
            None
        }
    }
}

impl Pages {
    /// Returns the `wanted` newest rows of the list that `request` names, which names no page.
    ///
    /// Waits for a job where not all of them are stored, as long as for a page.
    ///
    /// # Errors
    ///
    /// Returns the upstream's error where a range failed and nothing stale may stand in, and [`PagesErrorKind::Incomplete`] where the job
    /// takes longer; it goes on.
    pub(super) async fn newest(
        self: &Arc<Self>,
        request: &ClientRequest,
        wanted: u32,
    ) -> Result<Newest, PagesError> {
        let deadline = Instant::now() + self.patience();
        loop {
            if let Some(stored) = self.newest_stored(request, wanted).await {
                return Ok(stored);
            }
            if request.directives.only_if_cached {
                return Err(not_cached());
            }
            let Some(permit) = self.waiter_limit.take(&request.account) else {
                return Err(self.no_permit(NotForwarded::Overloaded));
            };
            let Some(job) = self.begin_job(request, wanted) else {
                continue;
            };
            // For the leader the job waits, with a permit of its own.
            let mut permit = Some(permit).filter(|_| job.role == Role::Follower);
            let given_away = async {
                match &mut permit {
                    Some(permit) => permit.given_away().await,
                    None => pending().await,
                }
            };
            let outcome = tokio::select! {
                biased;
                outcome = wait(job, request, deadline) => outcome,
                () = given_away => Err(self.no_permit(NotForwarded::Overloaded)),
            };
            match outcome?.first(wanted) {
                Some(newest) => return Ok(newest),
                // The job was another's, who wanted fewer.
                None if Instant::now() >= deadline => {
                    return Err(incomplete(&request.credential, Progress::default()));
                }
                None => {}
            }
        }
    }

    /// The rows, where all of them may be served as they are stored and fit together.
    async fn newest_stored(
        self: &Arc<Self>,
        request: &ClientRequest,
        wanted: u32,
    ) -> Option<Newest> {
        let mut reading = Reading::new(wanted, self.rows_of_a_part(request, wanted));
        loop {
            let Step::Read {
                query,
                source: Source::Any,
            } = reading.next()
            else {
                return reading
                    .is_complete()
                    .then(|| Newest::new(reading, wanted, 0));
            };
            let served = self.stored(&request.for_page(query)).await?;
            if reading.offer(query, served) == Offered::Refused {
                return None;
            }
        }
    }

    /// The page that `request` names, if it may be served as it is stored, or cut from what is.
    async fn stored(self: &Arc<Self>, request: &ClientRequest) -> Option<Served> {
        let key = request.key();
        match self.answer_from_store(&key, request) {
            StoreAnswer::Done(outcome) => outcome.ok(),
            StoreAnswer::Missing(reason) => self.assemble(&key, request, reason).await,
        }
    }
}

/// That the rows cannot be had now: the list moves too fast, or the upstream fails.
pub(super) fn incomplete_now(credential: &Credential) -> PagesError {
    let wait = credential.budget().wait_expected(Instant::now());
    let retry_after = wait.unwrap_or_default().max(RETRY_LATER);
    PagesError::new(
        PagesErrorKind::Incomplete { retry_after },
        NotForwarded::Overloaded,
    )
}

/// Waits for a job until `deadline`, or until it is clear that it takes longer.
async fn wait(
    job: Pending<Result<Newest, PagesError>, watch::Receiver<Progress>>,
    request: &ClientRequest,
    deadline: Instant,
) -> Result<Newest, PagesError> {
    let mut progress = job.shared.clone();
    let too_late = async {
        let is_beyond = |progress: &Progress| progress.call_at.is_some_and(|at| at > deadline);
        let is_beyond = async {
            // It tells nothing more once it has ended.
            if progress.wait_for(is_beyond).await.is_err() {
                pending::<()>().await;
            }
        };
        tokio::select! {
            () = is_beyond => {}
            () = sleep_until(deadline) => {}
        }
    };
    let told = job.shared.clone();
    tokio::select! {
        biased;
        outcome = job.outcome() => {
            outcome.unwrap_or_else(|| Err(PagesError::new(PagesErrorKind::Lost, NotForwarded::Overloaded)))
        }
        () = too_late => Err(incomplete(&request.credential, *told.borrow())),
    }
}

/// That the rows cannot be had in time, and after what time they may be.
fn incomplete(credential: &Credential, progress: Progress) -> PagesError {
    let now = Instant::now();
    let next = match progress.call_at {
        Some(at) => at.saturating_duration_since(now),
        None => credential.budget().wait_expected(now).unwrap_or_default(),
    };
    let minute = Duration::from_secs(60);
    let between = credential
        .budget()
        .per_minute()
        .map(|calls| minute / calls.max(1));
    let others = between.unwrap_or_default() * progress.missing.saturating_sub(1);
    let status = match progress.call_at {
        Some(_) => NotForwarded::Quota,
        None => NotForwarded::Overloaded,
    };
    let retry_after = (next + others).max(SHORTEST_WAIT);
    PagesError::new(PagesErrorKind::Incomplete { retry_after }, status)
}
