//! The job that reads the newest rows of a list, one range after the other, for all who wait for them.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    Newest, Progress, SHORTEST_WAIT, incomplete_now,
    reading::{Offered, Reading, Source, Step},
    stale_detail,
};
use crate::{
    cache::{http_semantics::RequestDirectives, single_flight::Pending, status::Detail},
    domain::PageQuery,
    service::{ClientRequest, Pages, PagesError, PagesErrorKind, pages::range},
    upstream::UpstreamError,
};

/// How long a job goes on: at one call a minute it reads as many ranges.
const LONGEST_JOB: Duration = Duration::from_secs(600);

impl Pages {
    pub(super) fn begin_job(
        self: &Arc<Self>,
        request: &ClientRequest,
        wanted: u32,
    ) -> Option<Pending<Result<Newest, PagesError>, watch::Receiver<Progress>>> {
        // One a list, whatever is wanted of it.
        let whole = PageQuery {
            page: 1,
            page_size: 1,
        };
        let key = request.key().at(whole);
        self.jobs.join(&self.flight(&key, request), true, |_| {
            let (progress, told) = watch::channel(Progress::default());
            let job = self.clone().read_newest(request.clone(), wanted, progress);
            Some((told, job))
        })
    }

    /// The job.
    async fn read_newest(
        self: Arc<Self>,
        request: ClientRequest,
        wanted: u32,
        progress: watch::Sender<Progress>,
    ) -> Result<Newest, PagesError> {
        let mut rows = self.rows_of_a_part(&request, wanted);
        let begin = |rows| match Reading::new(wanted, rows) {
            reading if request.directives.no_cache => reading.all_from_upstream(),
            reading => reading,
        };
        let mut reading = begin(rows);
        let (ends_at, mut calls) = (Instant::now() + LONGEST_JOB, 0);
        let tell = |reading: &Reading, call_at| {
            let missing = reading.missing();
            progress.send_replace(Progress { missing, call_at });
        };
        while let Step::Read { query, source } = reading.next() {
            tell(&reading, None);
            let wait = match self.read(&with_source(&request, query, source)).await {
                Ok(served) => {
                    calls += served.calls;
                    let detail = stale_detail(&served).map(|(_, detail)| detail);
                    match (reading.offer(query, served), detail) {
                        (Offered::Taken, _) | (Offered::Refused, None) => continue,
                        // It stands in for want of a call, and does not fit.
                        (Offered::Refused, Some(Detail::Quota)) => SHORTEST_WAIT,
                        (Offered::Refused, Some(_)) => break,
                    }
                }
                // One task may be bad: it fails whatever page holds it, and its neighbours are read without it.
                Err(error) if error.kind.upstream().is_some_and(range::is_of_some_rows) => {
                    calls += error.calls;
                    let fewer = self.rows_of_a_part(&request, wanted);
                    if fewer >= rows {
                        break;
                    }
                    rows = fewer;
                    reading = begin(rows);
                    continue;
                }
                Err(error) => {
                    calls += error.calls;
                    wait_after(error)?
                }
            };
            let now = Instant::now();
            let expected = request.credential.budget().wait_expected(now);
            let call_at = now + wait.max(expected.unwrap_or_default());
            if call_at > ends_at {
                break;
            }
            reading.retry();
            tell(&reading, Some(call_at));
            sleep_until(call_at).await;
        }
        if reading.is_complete() {
            return Ok(Newest::new(reading, wanted, calls));
        }
        Err(incomplete_now(&request.credential))
    }

    /// How many rows to read at once: a range, or a page as clients ask for it where not all of a range is to be had.
    pub(super) fn rows_of_a_part(&self, request: &ClientRequest, wanted: u32) -> u32 {
        let (size, now) = (self.range_size(request), Instant::now());
        let ranges = (1..=wanted.div_ceil(size)).filter_map(|page| PageQuery::new(page, size));
        let key = request.key();
        let mut keys = ranges.map(|range| key.at(range));
        match keys.any(|key| self.store.is_unfit(&key, now)) {
            true => size.min(PageQuery::DEFAULT_PAGE_SIZE),
            false => size,
        }
    }
}

/// How long to wait before what failed with `error` is read again.
fn wait_after(error: PagesError) -> Result<Duration, PagesError> {
    match error.kind {
        PagesErrorKind::Upstream(UpstreamError::QuotaExhausted { retry_after }) => {
            Ok(retry_after.unwrap_or_default().max(SHORTEST_WAIT))
        }
        // Others wait, for other lists.
        PagesErrorKind::Upstream(UpstreamError::Overloaded) => Ok(SHORTEST_WAIT),
        _ => Err(error),
    }
}

fn with_source(request: &ClientRequest, query: PageQuery, source: Source) -> ClientRequest {
    ClientRequest {
        directives: RequestDirectives {
            no_cache: source == Source::Upstream,
            // A range that was refused a moment ago is read anew, whatever its age.
            only_if_cached: false,
            ..request.directives
        },
        ..request.for_page(query)
    }
}
