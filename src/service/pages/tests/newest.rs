//! Filters over several ranges: what is waited for, and what goes on without those who waited.

use super::*;
use crate::domain::{Filter, FilterMember};

const RANGE: u32 = 20;

fn bench(max_waiting: usize) -> Bench {
    Bench::configured("fill_size = 20", max_waiting)
}

/// A range of a list of 40 tasks, every second of which failed.
fn range(page: u32) -> Outcome {
    let task = |number: u32| {
        let status = ["failed", "completed"][number as usize % 2];
        format!(r#"{{"task_id":"T{number}","status":"{status}"}}"#)
    };
    let tasks: Vec<_> = ((page - 1) * RANGE..page * RANGE).map(task).collect();
    let body = format!(
        r#"{{"count":40,"status_code":200,"message":"Tasks Fetched Successfully","data":[{}]}}"#,
        tasks.join(",")
    );
    answer(Content::Page(read_page(&body.into()).unwrap()), &[])
}

type Found = Result<(Served, Scope), PagesError>;

impl Bench {
    async fn failed_of(&self, newest: u32) -> Found {
        failed_of(self.pages.clone(), self.request(PLAIN), newest).await
    }

    /// Asks in a task of its own, and lets it come as far as it can.
    async fn failed_of_meanwhile(&self, newest: u32) -> tokio::task::JoinHandle<Found> {
        let (pages, request) = (self.pages.clone(), self.request(PLAIN));
        let waiting = tokio::spawn(failed_of(pages, request, newest));
        settle().await;
        waiting
    }
}

async fn failed_of(pages: Arc<Pages>, request: ClientRequest, newest: u32) -> Found {
    let filter = Filter::new(vec![(FilterMember::Status, vec!["failed".into()])]);
    let wanted = FilterRequest { filter, newest };
    pages.filtered(&request, wanted).await
}

fn matches(found: Found) -> u64 {
    let (served, scope) = found.unwrap();
    assert_eq!(scope.count, 40);
    served.page.content.count
}

#[tokio::test(start_paused = true)]
async fn who_would_wait_too_long_is_told_and_the_job_goes_on() {
    let bench = bench(PLACES);
    bench.upstream.then_answer(range(1));
    let retry_after = Some(20 * SECOND);
    let spent = UpstreamError::QuotaExhausted { retry_after };
    bench.upstream.then_fail_without_a_call(spent);
    bench.upstream.then_answer(range(2));

    let asked_at = Instant::now();
    let error = bench.failed_of(40).await.unwrap_err();
    let PagesErrorKind::Incomplete { retry_after } = error.kind else {
        panic!("{error}");
    };
    assert_eq!(retry_after, 20 * SECOND);
    assert_eq!(asked_at.elapsed(), Duration::ZERO);

    pass(20 * SECOND).await;
    settle().await;
    assert_eq!(bench.upstream.calls(), 3);
    let (served, scope) = bench.failed_of(40).await.unwrap();
    assert_eq!((scope.looked_at, served.page.content.count), (40, 20));
    assert_eq!(served.status, hit(10, Detail::Filtered));
    assert_eq!(served.age(), 20 * SECOND);
    assert_eq!(bench.upstream.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn who_waits_waits_until_its_deadline_and_no_longer() {
    let bench = bench(PLACES);
    bench.upstream.then_answer(range(1));
    let second = bench.upstream.then_stall();
    let asked_at = Instant::now();
    let error = bench.failed_of(40).await.unwrap_err();
    assert_eq!(code(&error), "incomplete");
    assert_eq!(asked_at.elapsed(), PATIENCE);
    second.send(range(2)).unwrap();
    settle().await;
    assert_eq!(matches(bench.failed_of(40).await), 20);
}

#[tokio::test(start_paused = true)]
async fn who_leaves_cancels_nothing() {
    let bench = bench(PLACES);
    let first = bench.upstream.then_stall();
    bench.upstream.then_answer(range(2));
    let waiting = bench.failed_of_meanwhile(40).await;
    waiting.abort();
    settle().await;
    first.send(range(1)).unwrap();
    settle().await;
    assert_eq!(bench.upstream.calls(), 2);
    assert_eq!(matches(bench.failed_of(40).await), 20);
    assert_eq!(bench.upstream.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn who_wants_more_than_the_job_reads_goes_on_from_there() {
    let bench = bench(PLACES);
    let first = bench.upstream.then_stall();
    bench.upstream.then_answer(range(2));
    let few = bench.failed_of_meanwhile(5).await;
    let many = bench.failed_of_meanwhile(40).await;
    let fewer = bench.failed_of_meanwhile(1).await;
    first.send(range(1)).unwrap();
    for (found, expected) in [(few, 3), (many, 20), (fewer, 1)] {
        assert_eq!(matches(found.await.unwrap()), expected);
    }
    assert_eq!(bench.upstream.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_job_needs_no_more_places_than_one() {
    let bench = bench(1);
    bench.upstream.then_answer(range(1));
    bench.upstream.then_answer(range(2));
    assert_eq!(matches(bench.failed_of(40).await), 20);
}
