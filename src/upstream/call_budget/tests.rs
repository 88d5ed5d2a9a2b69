use http::{HeaderMap, HeaderValue};

use super::*;
use crate::upstream::{Head, fixtures};

fn budget(quota: u32) -> Arc<CallBudget> {
    Arc::new(CallBudget::new(quota, 256))
}

async fn acquire(
    budget: &Arc<CallBudget>,
    priority: Priority,
    patience: Duration,
) -> Result<Call, BudgetExhausted> {
    let given_up = Instant::now() + patience;
    let waiters = fixtures::waiters(priority, "crm");
    budget.acquire(&waiters, given_up).await
}

/// A budget whose first, cautious minute is over.
async fn settled_budget(quota: u32) -> Arc<CallBudget> {
    let budget = budget(quota);
    tokio::time::advance(MINUTE).await;
    budget
}

/// What a header says that is received at 1800000000.
fn limits(fields: &[(&'static str, &str)]) -> CallLimits {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.insert(*name, HeaderValue::from_str(value).unwrap());
    }
    CallLimits::read(&Head {
        headers,
        received: Instant::now(),
        received_unix: 1_800_000_000,
        response_delay: Duration::ZERO,
    })
}

/// Spends as fast as the budget allows and returns when each call was made.
async fn calls_within(budget: &Arc<CallBudget>, time: Duration) -> Vec<Instant> {
    let end = Instant::now() + time;
    let mut made = Vec::new();
    while let Ok(call) = acquire(
        budget,
        Priority::Waiting,
        end.saturating_duration_since(Instant::now()),
    )
    .await
    {
        made.push(Instant::now());
        drop(call);
    }
    made
}

fn most_in_a_minute(made: &[Instant]) -> usize {
    made.iter()
        .enumerate()
        .map(|(first, from)| {
            made[first..]
                .iter()
                .take_while(|at| **at - *from < MINUTE)
                .count()
        })
        .max()
        .unwrap_or(0)
}

#[tokio::test(start_paused = true)]
async fn no_minute_sees_more_calls_than_the_quota_and_little_is_wasted() {
    for quota in [1, 2, 5, 60] {
        let budget = budget(quota);
        let made = calls_within(&budget, 20 * MINUTE).await;
        assert!(most_in_a_minute(&made) <= quota as usize, "quota {quota}");
        assert!(
            made.len() >= 17 * quota as usize,
            "quota {quota}: {}",
            made.len()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_minute_gets_half() {
    let budget = budget(60);
    let made = calls_within(&budget, MINUTE - Duration::from_millis(1)).await;
    assert_eq!(made.len(), 30);
}

#[tokio::test(start_paused = true)]
async fn a_call_counts_from_its_end() {
    let budget = settled_budget(1).await;
    let call = acquire(&budget, Priority::Waiting, Duration::ZERO)
        .await
        .unwrap();
    tokio::time::advance(MINUTE).await;
    assert!(
        acquire(&budget, Priority::HasFallback, MINUTE)
            .await
            .is_err()
    );
    drop(call);
    tokio::time::advance(MINUTE - Duration::from_millis(1)).await;
    assert_eq!(
        acquire(&budget, Priority::HasFallback, MINUTE)
            .await
            .unwrap_err(),
        BudgetExhausted::RetryAfter(Duration::from_millis(1))
    );
}

#[tokio::test(start_paused = true)]
async fn the_last_calls_are_kept_for_those_who_wait() {
    let budget = settled_budget(5).await;
    for _ in 0..2 {
        drop(
            acquire(&budget, Priority::Waiting, Duration::ZERO)
                .await
                .unwrap(),
        );
        tokio::time::advance(Duration::from_secs(12)).await;
    }
    drop(
        acquire(&budget, Priority::Waiting, Duration::ZERO)
            .await
            .unwrap(),
    );
    tokio::time::advance(Duration::from_secs(12)).await;
    drop(
        acquire(&budget, Priority::Background, Duration::ZERO)
            .await
            .unwrap(),
    );
    tokio::time::advance(Duration::from_secs(12)).await;
    assert!(
        acquire(&budget, Priority::Background, Duration::ZERO)
            .await
            .is_err()
    );
    assert!(
        acquire(&budget, Priority::HasFallback, Duration::ZERO)
            .await
            .is_ok()
    );
}

#[tokio::test(start_paused = true)]
async fn without_a_quota_nothing_is_held_back() {
    let budget = budget(0);
    for _ in 0..1000 {
        drop(
            acquire(&budget, Priority::Background, Duration::ZERO)
                .await
                .unwrap(),
        );
    }
    assert_eq!(budget.remaining(Instant::now()), None);
}

#[tokio::test(start_paused = true)]
async fn what_the_upstream_says_is_learned_whatever_the_clocks() {
    for skew in [-60, 0, 60] {
        let budget = budget(0);
        let upstream_now = 1_800_000_000 + skew;
        let date = httpdate::fmt_http_date(
            std::time::UNIX_EPOCH + Duration::from_secs(upstream_now.try_into().unwrap()),
        );
        let reset = (upstream_now + 20).to_string();
        budget.learn(
            &limits(&[
                ("date", &date),
                ("x-ratelimit-limit", "5"),
                ("x-ratelimit-remaining", "0"),
                ("x-ratelimit-reset", &reset),
            ]),
            Instant::now(),
        );
        assert_eq!(budget.per_minute(), Some(5));
        assert_eq!(
            acquire(&budget, Priority::HasFallback, MINUTE)
                .await
                .unwrap_err(),
            BudgetExhausted::RetryAfter(Duration::from_secs(20)),
            "skew {skew}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn calls_of_others_count_until_the_reset() {
    let budget = settled_budget(10).await;
    budget.learn(
        &limits(&[
            ("x-ratelimit-limit", "10"),
            ("x-ratelimit-remaining", "3"),
            ("x-ratelimit-reset", "1800000030"),
        ]),
        Instant::now(),
    );
    assert_eq!(budget.remaining(Instant::now()), Some(3));
    tokio::time::advance(Duration::from_secs(30)).await;
    assert_eq!(budget.remaining(Instant::now()), Some(10));
}

#[tokio::test(start_paused = true)]
async fn calls_of_others_are_no_burst() {
    let budget = settled_budget(60).await;
    budget.learn(
        &limits(&[
            ("x-ratelimit-limit", "60"),
            ("x-ratelimit-remaining", "20"),
            ("x-ratelimit-reset", "1800000030"),
        ]),
        Instant::now(),
    );
    for _ in 0..20 {
        drop(
            acquire(&budget, Priority::Waiting, Duration::ZERO)
                .await
                .unwrap(),
        );
    }
    let wait = acquire(&budget, Priority::HasFallback, Duration::ZERO).await;
    assert_eq!(
        wait.unwrap_err(),
        BudgetExhausted::RetryAfter(Duration::from_secs(30))
    );
}

#[tokio::test(start_paused = true)]
async fn who_has_something_to_show_goes_after_those_in_line() {
    let budget = settled_budget(1).await;
    drop(
        acquire(&budget, Priority::Waiting, Duration::ZERO)
            .await
            .unwrap(),
    );
    let in_line = tokio::spawn({
        let budget = budget.clone();
        async move {
            acquire(&budget, Priority::Waiting, 2 * MINUTE)
                .await
                .is_ok()
        }
    });
    tokio::task::yield_now().await;
    tokio::time::advance(MINUTE - Duration::from_millis(1)).await;

    assert!(
        acquire(&budget, Priority::HasFallback, Duration::ZERO)
            .await
            .is_err()
    );
    assert!(
        budget
            .would_take(Priority::Background, Instant::now())
            .is_err()
    );
    assert!(in_line.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_throttle_holds_everything_for_as_long_as_it_says() {
    for (fields, seconds) in [
        (&[("retry-after", "7")][..], 7),
        (&[("x-ratelimit-reset", "7")], 7),
        (&[("x-ratelimit-reset", "1800000007")], 7),
        (&[("x-ratelimit-reset", "1800000007000")], 7),
        (&[("retry-after", "7"), ("x-ratelimit-reset", "50")], 7),
        (&[("retry-after", "0"), ("x-ratelimit-reset", "7")], 7),
        // Longer than a minute, and never longer than is believed.
        (&[("retry-after", "90")], 90),
        (&[("x-ratelimit-reset", "90")], 90),
        (&[("retry-after", "999999")], 3600),
        // The upstream's own count says no more than its pause.
        (
            &[
                ("retry-after", "7"),
                ("x-ratelimit-limit", "5"),
                ("x-ratelimit-remaining", "0"),
                ("x-ratelimit-reset", "50"),
            ],
            7,
        ),
    ] {
        let budget = budget(0);
        let pause = Duration::from_secs(seconds);
        let told = budget.throttled(&limits(fields), Instant::now());
        assert_eq!(told, pause, "{fields:?}");
        for priority in [
            Priority::Waiting,
            Priority::HasFallback,
            Priority::Background,
        ] {
            let next = acquire(&budget, priority, Duration::from_secs(1)).await;
            assert_eq!(
                next.unwrap_err(),
                BudgetExhausted::RetryAfter(pause),
                "{fields:?}"
            );
        }
        let after = Duration::from_millis(1);
        assert!(
            acquire(&budget, Priority::Waiting, pause + after)
                .await
                .is_ok()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_throttle_that_names_no_pause_makes_one_that_doubles() {
    for (quota, seconds) in [
        (0, [1, 2, 4, 8, 16, 32, 60, 60, 60]),
        (60, [1, 2, 4, 8, 16, 32, 60, 60, 60]),
        (5, [12, 24, 48, 60, 60, 60, 60, 60, 60]),
        (1, [60; 9]),
    ] {
        let budget = settled_budget(quota).await;
        for seconds in seconds {
            let told = budget.throttled(&CallLimits::default(), Instant::now());
            assert_eq!(told, Duration::from_secs(seconds), "quota {quota}");
            // Those that were under way are refused with it, and double nothing.
            let half = told / 2;
            tokio::time::advance(half).await;
            let again = budget.throttled(&CallLimits::default(), Instant::now());
            assert_eq!(again, told - half, "quota {quota}");
            tokio::time::advance(half).await;
            assert!(budget.would_take(Priority::Waiting, Instant::now()).is_ok());
        }
        // An answer that is none begins anew.
        budget.learn(&CallLimits::default(), Instant::now());
        let told = budget.throttled(&CallLimits::default(), Instant::now());
        assert_eq!(told, Duration::from_secs(seconds[0]), "quota {quota}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hold_is_never_shortened() {
    let budget = budget(0);
    for (asked, held) in [("60", 60), ("7", 60), ("90", 90), ("soon", 90)] {
        let told = budget.throttled(&limits(&[("retry-after", asked)]), Instant::now());
        assert_eq!(told, Duration::from_secs(held), "{asked}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_stands_in_line_while_calls_are_held_is_told_until_when() {
    let budget = settled_budget(60).await;
    budget.throttled(&limits(&[("retry-after", "30")]), Instant::now());
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let budget = budget.clone();
        let patience = Duration::from_secs(5);
        asking.spawn(async move {
            acquire(&budget, Priority::Waiting, patience)
                .await
                .unwrap_err()
        });
    }
    while let Some(told) = asking.join_next().await {
        assert_eq!(
            told.unwrap(),
            BudgetExhausted::RetryAfter(Duration::from_secs(30))
        );
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_in_vain_is_told_at_once() {
    let budget = settled_budget(1).await;
    drop(
        acquire(&budget, Priority::Waiting, Duration::ZERO)
            .await
            .unwrap(),
    );
    let asked = Instant::now();
    let refused = acquire(&budget, Priority::Waiting, Duration::from_secs(10)).await;
    assert_eq!(refused.unwrap_err(), BudgetExhausted::RetryAfter(MINUTE));
    assert_eq!(Instant::now(), asked);
}

#[tokio::test(start_paused = true)]
async fn one_client_that_asks_for_much_leaves_the_others_their_turns() {
    let budget = settled_budget(60).await;
    let calls: Arc<Mutex<Vec<&str>>> = Arc::default();
    let mut asking = tokio::task::JoinSet::new();
    let mut ask = |client: &'static str, patience| {
        let (budget, calls) = (budget.clone(), calls.clone());
        asking.spawn(async move {
            let waiters = fixtures::waiters(Priority::Waiting, client);
            let given_up = Instant::now() + patience;
            let call = budget.acquire(&waiters, given_up).await;
            if call.is_ok() {
                calls.lock().push(client);
            }
        });
    };
    for _ in 0..200 {
        ask("greedy", 4 * MINUTE);
    }
    tokio::task::yield_now().await;
    tokio::time::advance(Duration::from_secs(1)).await;
    for _ in 0..10 {
        ask("modest", 4 * MINUTE);
    }

    while asking.join_next().await.is_some() {}

    let calls = calls.lock();
    let first = calls.iter().position(|client| *client == "modest").unwrap();
    let last = calls
        .iter()
        .rposition(|client| *client == "modest")
        .unwrap();
    assert!(first >= 30, "the burst was spent before");
    assert_eq!(last - first, 18, "every other call: {calls:?}");
}

#[tokio::test(start_paused = true)]
async fn a_retry_stands_behind_those_who_have_had_no_try_yet() {
    let budget = settled_budget(1).await;
    drop(
        acquire(&budget, Priority::Waiting, Duration::ZERO)
            .await
            .unwrap(),
    );
    let in_line = |priority| {
        let budget = budget.clone();
        tokio::spawn(async move {
            drop(acquire(&budget, priority, 5 * MINUTE).await.unwrap());
            Instant::now()
        })
    };
    let retry = in_line(Priority::Retry);
    tokio::task::yield_now().await;
    let first_try = in_line(Priority::Waiting);
    assert!(first_try.await.unwrap() < retry.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_line_without_places_refuses_only_who_would_have_to_wait() {
    let budget = Arc::new(CallBudget::new(2, 0));
    tokio::time::advance(MINUTE).await;
    drop(acquire(&budget, Priority::Waiting, MINUTE).await.unwrap());
    let refused = acquire(&budget, Priority::Waiting, MINUTE).await;
    assert_eq!(refused.unwrap_err(), BudgetExhausted::QueueFull);
    tokio::time::advance(MINUTE / 2).await;
    assert!(acquire(&budget, Priority::Retry, MINUTE).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn who_waits_goes_on_as_soon_as_more_is_allowed() {
    let budget = settled_budget(1).await;
    drop(acquire(&budget, Priority::Waiting, MINUTE).await.unwrap());
    let began = Instant::now();
    let waiting = tokio::spawn({
        let budget = budget.clone();
        async move { acquire(&budget, Priority::Waiting, MINUTE).await.is_ok() }
    });
    tokio::task::yield_now().await;
    assert_eq!(budget.waiting(), 1);

    budget.set_quota(60);

    assert!(waiting.await.unwrap());
    assert_eq!(Instant::now(), began);
}

#[tokio::test(start_paused = true)]
async fn what_was_given_back_was_not_spent() {
    let budget = settled_budget(2).await;
    for _ in 0..10 {
        let call = acquire(&budget, Priority::Waiting, Duration::ZERO).await;
        call.unwrap().give_back();
    }
    assert_eq!(budget.remaining(Instant::now()), Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_quota_that_is_set_counts_the_minute_before() {
    let budget = settled_budget(0).await;
    for _ in 0..70_000 {
        drop(
            acquire(&budget, Priority::Waiting, Duration::ZERO)
                .await
                .unwrap(),
        );
    }
    assert_eq!(budget.state.lock().ended.len(), MOST_REMEMBERED);
    budget.set_quota(60);
    assert_eq!(budget.remaining(Instant::now()), Some(0));
    tokio::time::advance(MINUTE).await;
    assert_eq!(budget.remaining(Instant::now()), Some(60));
}

#[tokio::test(start_paused = true)]
async fn a_reset_beyond_all_numbers_is_a_minute_at_most() {
    let budget = settled_budget(5).await;
    for reset in [i64::MIN, i64::MAX] {
        let fields = [
            ("x-ratelimit-limit", "5"),
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-reset", &reset.to_string()),
        ];
        budget.learn(&limits(&fields), Instant::now());
        tokio::time::advance(MINUTE).await;
        assert_eq!(budget.remaining(Instant::now()), Some(5), "{reset}");
    }
}
