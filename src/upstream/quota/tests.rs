use std::{convert::Infallible, future::pending, time::Duration};

use tower::{ServiceBuilder, ServiceExt, service_fn};

use super::*;
use crate::upstream::{CallBudget, UpstreamError, fixtures};

#[tokio::test(start_paused = true)]
async fn only_what_was_sent_is_spent() {
    let request = fixtures::request("quota_per_minute = 60");
    tokio::time::advance(2 * CallBudget::MEMORY).await;
    for (is_sent, left) in [(false, 60), (true, 59)] {
        let service = ServiceBuilder::new().layer(QuotaLayer).service(service_fn(
            move |request: PageRequest| async move {
                if is_sent {
                    request.sent.set();
                }
                pending::<Result<Infallible, UpstreamError>>().await
            },
        ));
        let waiters = fixtures::waiters("test", Need::Nothing);
        let call = acquire(&request.credential, &request.space, &waiters, false);
        let request = PageRequest {
            call: call.await.unwrap().into(),
            sent: Sent::default(),
            ..request.clone()
        };
        let budget = request.credential.budget().clone();
        assert_eq!(
            budget.remaining(Instant::now()),
            Some(59),
            "it is under way"
        );
        let asked = tokio::spawn(service.oneshot(request));
        tokio::task::yield_now().await;
        asked.abort();
        assert!(asked.await.is_err());
        assert_eq!(budget.remaining(Instant::now()), Some(left));
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_no_try_took_is_given_back() {
    let request = fixtures::request("quota_per_minute = 60");
    tokio::time::advance(2 * CallBudget::MEMORY).await;
    let waiters = fixtures::waiters("test", Need::Nothing);
    let call = acquire(&request.credential, &request.space, &waiters, false).await;
    let refused = PageRequest {
        call: call.unwrap().into(),
        ..request.clone()
    };
    drop(refused);
    let left = request.credential.budget().remaining(Instant::now());
    assert_eq!(left, Some(60));
}

#[tokio::test(start_paused = true)]
async fn while_the_quota_is_short_nothing_is_tried_again_but_the_other_token() {
    let request = fixtures::request("quota_per_minute = 1");
    tokio::time::advance(2 * CallBudget::MEMORY).await;
    let service = ServiceBuilder::new().layer(QuotaLayer).service(service_fn(
        |request: PageRequest| async move {
            request.sent.set();
            Ok::<_, UpstreamError>(Instant::now())
        },
    ));
    let ask = |is_retry| {
        let request = PageRequest {
            is_retry,
            sent: Sent::default(),
            ..request.clone()
        };
        service.clone().oneshot(request)
    };
    let began = ask(false).await.unwrap();
    let retry = ask(true).await.unwrap_err();
    assert_eq!(retry.as_str(), "upstream_quota_exhausted");
    assert_eq!(Instant::now(), began);
    assert_eq!(ask(false).await.unwrap() - began, Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_call_is_told_at_once_that_the_upstream_is_not_asked() {
    let request = fixtures::request("quota_per_minute = 1");
    tokio::time::advance(2 * CallBudget::MEMORY).await;
    let credential = request.credential.clone();
    let waiters = fixtures::waiters("test", Need::Nothing);
    let acquire = || acquire(&credential, &request.space, &waiters, false);
    let mut spent = acquire().await.unwrap();
    spent.note_sent(true);
    let began = Instant::now();
    let (waited, ()) = tokio::join!(acquire(), async {
        tokio::task::yield_now().await;
        credential.block(Instant::now());
    });
    assert_eq!(waited.unwrap_err().as_str(), "upstream_auth_failed");
    tokio::time::advance(Duration::from_secs(5)).await;
    let (waited, ()) = tokio::join!(acquire(), async {
        tokio::task::yield_now().await;
        credential.circuit().pause(Duration::from_secs(9));
    });
    assert_eq!(waited.unwrap_err().as_str(), "upstream_unavailable");
    assert_eq!(began.elapsed(), Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn a_token_that_was_replaced_is_asked_with_for_those_alone_who_still_wait() {
    for waits in [false, true] {
        let request = fixtures::request("quota_per_minute = 2");
        tokio::time::advance(2 * CallBudget::MEMORY).await;
        let credential = request.credential.clone();
        let waiters = fixtures::waiters("test", Need::Nothing);
        let acquire = || acquire(&credential, &request.space, &waiters, false);
        let mut spent = acquire().await.unwrap();
        spent.note_sent(true);
        drop(spent);
        let _attendance = waits.then(|| waiters.attend());
        let (acquired, ()) = tokio::join!(acquire(), async {
            tokio::task::yield_now().await;
            credential
                .standing
                .put_in_force(credential.token_pair() + 1);
        });
        assert_eq!(acquired.is_ok(), waits);
    }
}
