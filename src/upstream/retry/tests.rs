use std::collections::HashSet;

use http::StatusCode;
use parking_lot::Mutex;
use tower::{ServiceBuilder, ServiceExt, service_fn};

use super::*;
use crate::upstream::{CircuitLayer, FailureSource, QuotaLayer, fixtures};

const SECOND: Duration = Duration::from_secs(1);

/// Stands before an upstream that fails the first calls with a 503, and notes when it is asked.
struct Bench {
    layer: RetryLayer,
    metrics: Arc<Metrics>,
    request: PageRequest,
    asked: Arc<Mutex<Vec<Instant>>>,
    began: Instant,
}

impl Bench {
    fn new(lines: &str) -> Self {
        let metrics = Metrics::new();
        Self {
            layer: RetryLayer::new(&fixtures::config(lines), metrics.clone()),
            metrics,
            request: fixtures::request(lines),
            asked: Arc::default(),
            began: Instant::now(),
        }
    }

    async fn ask(
        &self,
        failures: usize,
        retry_after: Option<Duration>,
    ) -> Result<(), UpstreamError> {
        let asked = self.asked.clone();
        let before = asked.lock().len();
        ServiceBuilder::new()
            .layer(self.layer.clone())
            .layer(CircuitLayer::new(SECOND))
            .service(service_fn(move |request: PageRequest| {
                request.calls.add();
                let mut asked = asked.lock();
                asked.push(Instant::now());
                let fails = asked.len() - before <= failures;
                let status = StatusCode::SERVICE_UNAVAILABLE;
                std::future::ready(if fails {
                    Err(UpstreamError::Failed(FailureSource::Status {
                        status,
                        retry_after,
                    }))
                } else {
                    Ok(())
                })
            }))
            .oneshot(self.request.clone())
            .await
    }

    fn calls(&self) -> usize {
        self.asked.lock().len()
    }
}

#[tokio::test(start_paused = true)]
async fn a_further_try_that_cannot_be_made_leaves_the_error_of_the_one_before() {
    // A call in half a minute.
    let bench = Bench::new("quota_per_minute = 2\ntimeout = '60s'");
    tokio::time::advance(60 * SECOND).await;
    let request = PageRequest {
        began: Instant::now(),
        ..bench.request.clone()
    };
    let outcome: Result<(), _> = ServiceBuilder::new()
        .layer(bench.layer.clone())
        .layer(QuotaLayer)
        .service(service_fn(|request: PageRequest| async move {
            request.calls.add();
            request.sent.set();
            sleep(5 * SECOND).await;
            Err(UpstreamError::Failed(FailureSource::Inner {
                message: None,
            }))
        }))
        .oneshot(request.clone())
        .await;
    assert_eq!(outcome.unwrap_err().as_str(), "upstream_failed");
    assert_eq!(request.calls.count(), 1);
    assert!(request.began.elapsed() < 6 * SECOND, "told at once");
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_asks_to_be_left_alone_gets_no_further_try() {
    for asked in [SECOND, 120 * SECOND, Duration::from_secs(u64::MAX)] {
        let bench = Bench::new("");
        let error = bench.ask(9, Some(asked)).await.unwrap_err();
        assert_eq!(error.as_str(), "upstream_failed");
        assert_eq!(bench.calls(), 1, "{asked:?}");
        assert_eq!(Instant::now(), bench.began, "told at once");
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_word_of_the_upstreams_pauses_are_short() {
    let bench = Bench::new("");
    bench.ask(2, None).await.unwrap();
    assert!(bench.began.elapsed() <= FIRST_PAUSE * 3);
    assert_eq!(bench.calls(), 3);
    let metrics = bench.metrics.encode();
    assert!(metrics.contains("gateway_upstream_retries_total 2\n"));
}

#[tokio::test(start_paused = true)]
async fn no_further_try_is_made_once_the_circuit_is_open() {
    let bench = Bench::new("circuit.min_calls = 1");
    let error = bench.ask(9, None).await.unwrap_err();
    // The upstream's own word, not the circuit's.
    assert_eq!(error.as_str(), "upstream_failed");
    assert_eq!(bench.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn further_tries_keep_to_their_budget() {
    let bench = Bench::new("retries = 1\nretry_budget = 0.0\ncircuit.enabled = false");
    for _ in 0..100 {
        bench.ask(9, None).await.unwrap_err();
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    let free = BUDGET_TTL.as_secs() * u64::from(FREE_PER_SECOND);
    // Pauses are time too, in which a few more come free.
    let tries = u64::try_from(bench.calls()).unwrap() - 100;
    let seconds = bench.began.elapsed().as_secs() + 1;
    assert!((free..=free + seconds).contains(&tries), "{tries}");
}

#[test]
fn pauses_are_drawn_from_zero_to_a_bound_that_doubles() {
    let mut lowest = [Duration::MAX; 8];
    let mut highest = [Duration::ZERO; 8];
    for _ in 0..1000 {
        let mut pauses = FullJitter::new();
        for place in 0..8 {
            let pause = pauses.draw();
            lowest[place] = lowest[place].min(pause);
            highest[place] = highest[place].max(pause);
        }
    }
    let bounds = [50, 100, 200, 400, 800, 1000, 1000, 1000].map(Duration::from_millis);
    for ((lowest, highest), bound) in lowest.into_iter().zip(highest).zip(bounds) {
        assert!(lowest < bound / 10, "{lowest:?} of {bound:?}");
        assert!(
            highest <= bound && highest > bound * 9 / 10,
            "{highest:?} of {bound:?}"
        );
    }
}

#[test]
fn calls_that_fail_together_do_not_come_back_together() {
    let layer = RetryLayer::new(&fixtures::config(""), Metrics::new());
    let first: HashSet<Duration> = (0..100).map(|_| layer.begin().pauses.draw()).collect();
    assert!(first.len() > 90, "{}", first.len());
}
