use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::task::{JoinHandle, yield_now};

use super::*;
use crate::upstream::{Need, fixtures};

const SECOND: Duration = Duration::from_secs(1);

fn budget_of(quota: u32, max_queue: usize, slots: usize) -> Arc<CallBudget> {
    let rules = BudgetRules {
        per_minute: quota,
        max_queue,
        patience: SECOND,
    };
    Arc::new(CallBudget::new(rules, Arc::new(Semaphore::new(slots))))
}

/// A budget whose first, cautious minute is over.
async fn settled(quota: u32) -> Arc<CallBudget> {
    let budget = budget_of(quota, 256, 8);
    tokio::time::advance(2 * MINUTE).await;
    budget
}

fn want(client: &str, need: Need) -> Waiters {
    fixtures::waiters(client, need)
}

/// Makes a call that ends at once.
async fn make(budget: &Arc<CallBudget>, waiters: &Waiters) -> Result<Instant, BudgetExhausted> {
    let mut call = budget.acquire(waiters, false).await?;
    call.note_sent(true);
    Ok(Instant::now())
}

fn in_background(
    budget: &Arc<CallBudget>,
    waiters: &Waiters,
) -> JoinHandle<Result<Instant, BudgetExhausted>> {
    let (budget, waiters) = (budget.clone(), waiters.clone());
    tokio::spawn(async move { make(&budget, &waiters).await })
}

/// Lets every task come as far as it can.
async fn settle() {
    for _ in 0..20 {
        yield_now().await;
    }
}

fn progress(waiters: &Waiters) -> Progress {
    *waiters.progress().borrow()
}

#[tokio::test(start_paused = true)]
async fn calls_are_handed_out_at_the_pace_and_everybody_is_told_when() {
    let budget = settled(60).await;
    let began = Instant::now();
    let all: Vec<_> = (0..20).map(|_| want("a", Need::Nothing)).collect();
    let mut made = Vec::new();
    for waiters in &all {
        made.push(in_background(&budget, waiters));
        settle().await;
    }
    assert_eq!(progress(&all[9]), Progress::Sent(began));
    assert_eq!(progress(&all[10]), Progress::Queued(began + SECOND));
    assert_eq!(progress(&all[19]), Progress::Queued(began + 10 * SECOND));
    assert_eq!(budget.waiting_for_quota(), 10);
    for (place, made) in made.into_iter().enumerate() {
        let after = made.await.unwrap().unwrap() - began;
        assert_eq!(after.as_secs(), place.saturating_sub(9) as u64);
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_further_away_than_a_minute_is_told_and_does_not_wait() {
    let budget = settled(5).await;
    for _ in 0..3 {
        make(&budget, &want("a", Need::Nothing)).await.unwrap();
    }
    // Two in this minute, three at its end.
    let waiting: Vec<_> = (0..3)
        .map(|_| in_background(&budget, &want("a", Need::Nothing)))
        .collect();
    settle().await;
    let refused = make(&budget, &want("a", Need::Nothing)).await;
    assert!(matches!(refused, Err(BudgetExhausted::RetryAfter(wait)) if wait > MINUTE));
    // Another client's turn is next, and a refresh waits however long.
    let other = in_background(&budget, &want("b", Need::Nothing));
    let refresh = want("c", Need::Refresh(Instant::now() + 9 * MINUTE));
    let refresh = in_background(&budget, &refresh);
    settle().await;
    assert_eq!(budget.waiting_for_quota(), 5);
    for waiting in waiting.into_iter().chain([other, refresh]) {
        waiting.await.unwrap().unwrap();
    }
}

/// Fills of `client` that wait, or were made, in this order.
async fn queue(budget: &Arc<CallBudget>, client: &str, count: usize) -> Vec<Waiters> {
    let all: Vec<_> = (0..count).map(|_| want(client, Need::Nothing)).collect();
    for waiters in &all {
        in_background(budget, waiters);
        settle().await;
    }
    all
}

#[tokio::test(start_paused = true)]
async fn who_joins_a_fill_brings_its_own_turn() {
    let budget = settled(60).await;
    let waiting = queue(&budget, "a", 30).await;
    let now = Instant::now();
    assert_eq!(progress(&waiting[29]), Progress::Queued(now + 20 * SECOND));

    let forced = Waiter {
        client: "c".into(),
        need: Need::Forced,
    };
    waiting[29].add(forced.clone());
    budget.note_joined(&waiting[29], &forced, now);

    assert_eq!(progress(&waiting[29]), Progress::Queued(now + 3 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn who_waits_hears_of_a_hold() {
    let budget = settled(60).await;
    let waiting = queue(&budget, "a", 13).await;
    let now = Instant::now();
    assert_eq!(progress(&waiting[12]), Progress::Queued(now + 3 * SECOND));

    let limits = CallLimits {
        retry_after: Some(40 * SECOND),
        ..CallLimits::default()
    };
    let held = budget.throttled(&limits, now, now);

    assert!(held >= 40 * SECOND);
    assert_eq!(progress(&waiting[12]), Progress::Queued(now + 40 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn what_nobody_wants_any_more_is_not_asked_for() {
    let budget = settled(2).await;
    make(&budget, &want("a", Need::Nothing)).await.unwrap();
    let forced = want("b", Need::Forced);
    let waits = forced.attend();
    let left = in_background(&budget, &forced);
    let cancelled = in_background(&budget, &want("c", Need::Nothing));
    settle().await;
    drop(waits);
    cancelled.abort();
    assert!(cancelled.await.is_err());
    let (began, lasting) = (Instant::now(), want("d", Need::Nothing));
    let made = make(&budget, &lasting).await.unwrap();
    assert_eq!(made - began, MINUTE / 2);
    assert_eq!(left.await.unwrap(), Err(BudgetExhausted::QueueFull));
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_only_who_would_have_to_wait() {
    let budget = budget_of(2, 1, 8);
    tokio::time::advance(2 * MINUTE).await;
    make(&budget, &want("a", Need::Nothing)).await.unwrap();
    let refresh = want("a", Need::Refresh(Instant::now() + MINUTE));
    let refresh = in_background(&budget, &refresh);
    settle().await;
    let waiting = in_background(&budget, &want("b", Need::Nothing));
    settle().await;
    assert_eq!(
        refresh.await.unwrap(),
        Err(BudgetExhausted::QueueFull),
        "it yields"
    );
    let refused = make(&budget, &want("c", Need::Nothing)).await;
    assert_eq!(refused, Err(BudgetExhausted::QueueFull));
    waiting.await.unwrap().unwrap();
    tokio::time::advance(MINUTE).await;
    make(&budget, &want("c", Need::Nothing)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn one_client_that_asks_for_much_leaves_the_others_their_turns() {
    let budget = settled(60).await;
    let order: Arc<Mutex<Vec<&str>>> = Arc::default();
    let mut asking = tokio::task::JoinSet::new();
    for (client, count) in [("greedy", 40), ("modest", 10)] {
        for _ in 0..count {
            let (budget, order) = (budget.clone(), order.clone());
            asking.spawn(async move {
                make(&budget, &want(client, Need::Nothing)).await.unwrap();
                order.lock().push(client);
            });
        }
        settle().await;
    }
    while asking.join_next().await.is_some() {}
    let order = order.lock();
    let modest: Vec<_> = (0..50).filter(|place| order[*place] == "modest").collect();
    assert_eq!(modest[0], 10, "after the burst");
    assert_eq!(modest[9] - modest[0], 18, "every other call: {order:?}");
}

#[tokio::test(start_paused = true)]
async fn no_more_than_the_slots_are_under_way_and_an_answer_is_heard_by_the_rest() {
    let budget = budget_of(0, 256, 8);
    let (under_way, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut asking = tokio::task::JoinSet::new();
    let began = Instant::now();
    for _ in 0..200 {
        let (budget, under_way, most) = (budget.clone(), under_way.clone(), most.clone());
        asking.spawn(async move {
            let mut call = budget
                .acquire(&want("a", Need::Nothing), false)
                .await
                .ok()?;
            call.note_sent(true);
            let now = under_way.fetch_add(1, Ordering::Relaxed) + 1;
            most.fetch_max(now, Ordering::Relaxed);
            tokio::time::sleep(SECOND / 10).await;
            let sent = Instant::now();
            let headers = http::HeaderMap::from_iter([(
                http::HeaderName::from_static("x-ratelimit-limit"),
                http::HeaderValue::from_static("60"),
            )]);
            let limits = CallLimits::read(&crate::upstream::Head {
                headers,
                received: sent,
                received_unix: 0,
                response_delay: Duration::ZERO,
            });
            budget.learn(&limits, sent, sent);
            under_way.fetch_sub(1, Ordering::Relaxed);
            Some(Instant::now())
        });
    }
    let mut within_a_minute = 0;
    while let Some(ended) = asking.join_next().await {
        let ended = ended.unwrap();
        within_a_minute += usize::from(ended.is_some_and(|ended| ended - began < MINUTE));
    }
    assert_eq!(most.load(Ordering::Relaxed), 8);
    assert!(within_a_minute <= 60, "{within_a_minute}");
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_slot_goes_by_turns_too() {
    let budget = budget_of(0, 256, 1);
    let held = budget
        .acquire(&want("a", Need::Nothing), false)
        .await
        .unwrap();
    let refresh = in_background(&budget, &want("a", Need::Refresh(Instant::now() + MINUTE)));
    let second = in_background(&budget, &want("a", Need::Nothing));
    let other = in_background(&budget, &want("b", Need::Nothing));
    settle().await;
    assert_eq!(
        (budget.waiting_for_slots(), budget.waiting_for_quota()),
        (3, 0)
    );
    assert!(budget.acquire_now().await.is_err());
    drop(held);
    for made in [refresh, second, other] {
        made.await.unwrap().unwrap();
    }
    assert!(budget.acquire_now().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_throttle_is_told_to_the_next_and_one_call_tries() {
    let budget = settled(0).await;
    let limits = CallLimits {
        retry_after: Some(7 * SECOND),
        ..CallLimits::default()
    };
    let began = Instant::now();
    assert_eq!(budget.throttled(&limits, began, began), 7 * SECOND);
    assert_eq!(budget.acquire_now().await.unwrap_err(), 7 * SECOND);
    let all: Vec<_> = (0..20).map(|_| want("a", Need::Nothing)).collect();
    let waiting: Vec<_> = all
        .iter()
        .map(|waiters| in_background(&budget, waiters))
        .collect();
    settle().await;
    assert_eq!(progress(&all[19]), Progress::Queued(began + 7 * SECOND));
    let first = budget
        .acquire(&want("b", Need::Oldest), false)
        .await
        .unwrap();
    assert_eq!(Instant::now(), began + 7 * SECOND);
    settle().await;
    assert_eq!(
        budget.state.lock().queue.len(),
        20,
        "the others wait for its end"
    );
    budget.learn(&CallLimits::default(), Instant::now(), Instant::now());
    drop(first);
    for waiting in waiting {
        waiting.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_goes_on_as_soon_as_more_is_allowed() {
    let budget = settled(1).await;
    make(&budget, &want("a", Need::Nothing)).await.unwrap();
    let began = Instant::now();
    let waiting = in_background(&budget, &want("a", Need::Nothing));
    settle().await;
    assert_eq!(budget.waiting_for_quota(), 1);
    budget.configure(BudgetRules {
        per_minute: 60,
        max_queue: 256,
        patience: SECOND,
    });
    assert!(waiting.await.unwrap().unwrap() - began <= SECOND);
}

#[tokio::test(start_paused = true)]
async fn what_was_never_sent_is_not_spent() {
    let budget = settled(2).await;
    for _ in 0..10 {
        drop(
            budget
                .acquire(&want("a", Need::Nothing), false)
                .await
                .unwrap(),
        );
    }
    assert_eq!(budget.remaining(Instant::now()), Some(2));
}

#[tokio::test(start_paused = true)]
async fn a_closed_budget_makes_no_call_and_tells_what_it_made() {
    let budget = settled(60).await;
    make(&budget, &want("a", Need::Nothing)).await.unwrap();
    let spent = budget.close(Instant::now());
    assert_eq!(spent.ago, [Duration::ZERO]);
    assert!(make(&budget, &want("a", Need::Nothing)).await.is_err());
    assert!(budget.acquire_now().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_failing_page_is_told_of_its_share_while_others_wait() {
    let budget = settled(60).await;
    let failing = want("a", Need::Nothing);
    let mut call = budget.acquire(&failing, true).await.unwrap();
    call.note_sent(true);
    drop(call);
    let failed = Instant::now();
    queue(&budget, "b", 12).await;
    let again = want("a", Need::Nothing);
    let (asked, waiters) = (budget.clone(), again.clone());
    tokio::spawn(async move { asked.acquire(&waiters, true).await });
    settle().await;

    assert_eq!(progress(&again), Progress::Queued(failed + MINUTE));
    let other = Waiter {
        client: "c".into(),
        need: Need::Nothing,
    };
    again.add(other.clone());
    budget.note_joined(&again, &other, failed);
    assert_eq!(progress(&again), Progress::Queued(failed + MINUTE));
}

#[tokio::test(start_paused = true)]
async fn a_bug_while_calls_are_handed_out_holds_up_nobody_who_asks_later() {
    let budget = settled(60).await;
    queue(&budget, "a", 11).await;
    // As where the task panics.
    assert!(budget.state.lock().is_dispatching);
    let dispatching = dispatch::Dispatching(budget.clone());
    let bug = std::panic::AssertUnwindSafe(move || {
        let _dispatching = dispatching;
        std::panic::resume_unwind(Box::new("a bug"));
    });
    assert!(std::panic::catch_unwind(bug).is_err());
    assert!(!budget.state.lock().is_dispatching);
}
