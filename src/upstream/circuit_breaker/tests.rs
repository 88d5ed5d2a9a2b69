use std::future::pending;

use bytes::Bytes;
use http::StatusCode;
use tower::{ServiceBuilder, ServiceExt, service_fn, util::BoxCloneSyncService};

use super::*;
use crate::upstream::{
    CircuitState, ClientError, DeadlineLayer, FailureSource, InvalidAnswer, fixtures,
};

type Outcome = Result<Bytes, UpstreamError>;
type Stack = BoxCloneSyncService<PageRequest, Bytes, UpstreamError>;

const OPEN_FOR: Duration = Duration::from_secs(5);
const DEADLINE: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(2);
const SECOND: Duration = Duration::from_secs(1);
/// Opens at the second failure in a row.
const AT_THE_SECOND: &str =
    "circuit = { min_calls = 2, failure_ratio = 1.0, window = '1h', open_for = '5s' }";

fn any_request() -> PageRequest {
    fixtures::request(AT_THE_SECOND)
}

fn works() -> Outcome {
    Ok(Bytes::new())
}

/// Without an answer: what answers and fails counts once for a page.
fn fails() -> Outcome {
    Err(UpstreamError::Unreachable(Arc::new(ClientError::TooLarge(
        1,
    ))))
}

/// A circuit over an upstream that answers like this.
fn answering(answer: fn() -> Outcome) -> Stack {
    over(service_fn(move |request: PageRequest| async move {
        request.sent.set();
        answer()
    }))
}

fn over<S>(inner: S) -> Stack
where
    S: Service<PageRequest, Response = Bytes, Error = UpstreamError>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send,
{
    let layer = CircuitLayer::new(PATIENCE);
    BoxCloneSyncService::new(ServiceBuilder::new().layer(layer).service(inner))
}

/// An upstream that must not be reached.
fn unreachable() -> Stack {
    over(service_fn(|_: PageRequest| async {
        panic!("the circuit is open")
    }))
}

fn state(request: &PageRequest) -> CircuitState {
    request.credential.circuit().state()
}

async fn open(request: &PageRequest) {
    for _ in 0..2 {
        let _ = answering(fails).oneshot(request.clone()).await;
    }
    assert_eq!(state(request), CircuitState::Open);
}

fn code(outcome: Outcome) -> &'static str {
    outcome.unwrap_err().as_str()
}

#[track_caller]
fn assert_unavailable(outcome: Outcome, expected: Duration) {
    match outcome {
        Err(UpstreamError::Unavailable { retry_after }) => assert_eq!(retry_after, expected),
        other => panic!("{other:?}"),
    }
}

/// A future that is polled by hand.
struct Polled<F>(std::pin::Pin<Box<F>>);

impl<F: Future> Polled<F> {
    fn new(future: F) -> Self {
        Self(Box::pin(future))
    }

    fn is_under_way(&mut self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        self.0.as_mut().poll(&mut cx).is_pending()
    }
}

#[test]
fn every_kind_tells_something_else_about_the_upstream() {
    use Evidence::{Fails, Nothing, PageFails, Works};
    let failed = UpstreamError::Failed;
    let status = |status| {
        failed(FailureSource::Status {
            status,
            retry_after: None,
        })
    };
    let invalid = UpstreamError::InvalidResponse;
    let json = InvalidAnswer::Json { line: 1, column: 1 };
    let unreachable = UpstreamError::Unreachable(Arc::new(ClientError::TooLarge(1)));
    let unavailable = UpstreamError::Unavailable {
        retry_after: SECOND,
    };
    for (error, evidence) in [
        (UpstreamError::SpaceNotFound { head: None }, Works),
        (UpstreamError::SpaceAccessDenied, Works),
        (UpstreamError::Rejected, Works),
        (status(StatusCode::INTERNAL_SERVER_ERROR), PageFails),
        (status(StatusCode::SERVICE_UNAVAILABLE), PageFails),
        (status(StatusCode::FORBIDDEN), PageFails),
        (failed(FailureSource::Html), PageFails),
        (failed(FailureSource::Inner { message: None }), PageFails),
        (
            failed(FailureSource::InnerSlowDown { message: None }),
            PageFails,
        ),
        (invalid(json), PageFails),
        (invalid(InvalidAnswer::NoData), PageFails),
        (invalid(InvalidAnswer::NoCount), PageFails),
        (invalid(InvalidAnswer::Truncated), PageFails),
        (invalid(InvalidAnswer::TooLarge(1)), PageFails),
        (invalid(InvalidAnswer::NotHttp), Fails),
        (unreachable, Fails),
        (UpstreamError::Timeout(SECOND), Fails),
        (UpstreamError::AuthFailed, Nothing),
        (UpstreamError::QuotaExhausted { retry_after: None }, Nothing),
        (unavailable, Nothing),
        (UpstreamError::Overloaded, Nothing),
    ] {
        assert_eq!(error.evidence(), evidence, "{error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn while_open_nothing_is_asked_and_the_rest_is_told() {
    let request = any_request();
    open(&request).await;
    assert_unavailable(unreachable().oneshot(request.clone()).await, OPEN_FOR);
    tokio::time::advance(OPEN_FOR / 5).await;
    assert_unavailable(unreachable().oneshot(request).await, OPEN_FOR * 4 / 5);
}

#[tokio::test(start_paused = true)]
async fn another_credential_goes_on() {
    open(&any_request()).await;
    assert!(answering(works).oneshot(any_request()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn switched_off_it_never_opens() {
    let request = fixtures::request("circuit = { enabled = false, min_calls = 1 }");
    for _ in 0..100 {
        let outcome = answering(fails).oneshot(request.clone()).await;
        assert_eq!(code(outcome), "upstream_unreachable");
    }
    assert_eq!(state(&request), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn after_a_while_one_call_probes_and_closes_it() {
    let request = any_request();
    open(&request).await;
    tokio::time::advance(OPEN_FOR).await;
    assert_eq!(state(&request), CircuitState::HalfOpen);
    assert!(answering(works).oneshot(request.clone()).await.is_ok());
    assert_eq!(state(&request), CircuitState::Closed);
}

#[tokio::test(start_paused = true)]
async fn while_a_probe_is_under_way_nobody_else_is_let_through() {
    let request = any_request();
    open(&request).await;
    tokio::time::advance(OPEN_FOR).await;
    let stuck = over(service_fn(|_: PageRequest| pending()));
    let mut probe = Polled::new(stuck.oneshot(request.clone()));
    assert!(probe.is_under_way());

    let told = unreachable().oneshot(request.clone()).await;
    assert_unavailable(told, SECOND);

    // It was never sent: it says nothing, and the next one probes.
    drop(probe);
    assert!(answering(works).oneshot(request).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_deadline_counts_where_the_upstream_had_the_call_long_enough() {
    let just_too_late = DEADLINE - PATIENCE + Duration::from_millis(1);
    for (sent_after, expected) in [
        (Some(Duration::ZERO), CircuitState::Open),
        (Some(DEADLINE - PATIENCE), CircuitState::Open),
        (Some(just_too_late), CircuitState::Closed),
        (None, CircuitState::Closed),
    ] {
        let request = any_request();
        let service = ServiceBuilder::new()
            .layer(DeadlineLayer::new(DEADLINE))
            .layer(CircuitLayer::new(PATIENCE))
            .service(service_fn(move |request: PageRequest| async move {
                if let Some(wait) = sent_after {
                    tokio::time::sleep(wait).await;
                    request.sent.set();
                }
                pending::<Outcome>().await
            }));
        for _ in 0..2 {
            let asked = PageRequest {
                began: Instant::now(),
                ..request.clone()
            };
            let outcome = service.clone().oneshot(asked).await;
            assert_eq!(code(outcome), "upstream_timeout");
        }
        assert_eq!(state(&request), expected, "{sent_after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_was_sent_when_it_opens_is_waited_for() {
    let request = any_request();
    let slow = over(service_fn(|request: PageRequest| async move {
        request.sent.set();
        tokio::time::sleep(SECOND).await;
        works()
    }));
    let mut under_way = Polled::new(slow.oneshot(request.clone()));
    assert!(under_way.is_under_way());
    open(&request).await;
    assert!(under_way.0.await.is_ok());
    assert_eq!(state(&request), CircuitState::Open);
}

fn asks_to_be_left_alone(seconds: u64) -> Outcome {
    Err(UpstreamError::Failed(FailureSource::Status {
        status: StatusCode::SERVICE_UNAVAILABLE,
        retry_after: Some(Duration::from_secs(seconds)),
    }))
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_asks_to_be_left_alone_is_not_asked_for_as_long() {
    for (asked, seconds) in [(1, 1), (120, 120), (300, 300), (301, 300), (u64::MAX, 300)] {
        for lines in ["", "circuit.enabled = false"] {
            let request = fixtures::request(lines);
            let upstream = over(service_fn(move |_: PageRequest| async move {
                asks_to_be_left_alone(asked)
            }));
            let told = upstream.oneshot(request.clone()).await;
            assert_eq!(code(told), "upstream_failed");
            assert_eq!(state(&request), CircuitState::Open);

            let left = Duration::from_secs(seconds);
            assert_unavailable(unreachable().oneshot(request.clone()).await, left);
            tokio::time::advance(left - SECOND / 2).await;
            assert_unavailable(unreachable().oneshot(request.clone()).await, SECOND / 2);
            tokio::time::advance(SECOND / 2).await;
            assert_eq!(state(&request), CircuitState::Closed);
            assert!(answering(works).oneshot(request).await.is_ok());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_longest_of_several_requests_to_be_left_alone_counts() {
    let request = any_request();
    let began = Instant::now();
    let slow = over(service_fn(|request: PageRequest| async move {
        request.sent.set();
        tokio::time::sleep(SECOND).await;
        asks_to_be_left_alone(10)
    }));
    let mut under_way = Polled::new(slow.oneshot(request.clone()));
    assert!(under_way.is_under_way());
    let upstream = over(service_fn(|_: PageRequest| async {
        asks_to_be_left_alone(60)
    }));
    let _ = upstream.oneshot(request.clone()).await;
    let _ = under_way.0.await;
    let told = unreachable().oneshot(request.clone()).await;
    assert_unavailable(told, 59 * SECOND);
    assert_eq!(
        request.credential.circuit().closed_or_not_since(),
        Some(began)
    );
}
