use http::StatusCode;

use super::*;
use crate::telemetry::metrics::{Account, Route};

fn crm() -> Account {
    Account::new("crm".into())
}

/// A request for tasks that was answered with `status` after `ms`.
fn answer(metrics: &Metrics, status: u16, ms: u64) {
    let status = StatusCode::from_u16(status).unwrap();
    let route = Route::List(Collection::TASKS);
    let took = Duration::from_millis(ms);
    metrics.http.answered(route, status, Some(&crm()), took);
}

#[tokio::test(start_paused = true)]
async fn each_window_holds_what_happened_within_it() {
    let metrics = Metrics::new();
    for outcome in CacheOutcome::ALL {
        metrics.cache.lookup(outcome, &crm());
    }
    let history = History::new(metrics.clone());
    for (status, ms) in [(200, 3), (304, 3), (404, 3), (503, 600), (429, 3)] {
        answer(&metrics, status, ms);
    }
    for outcome in CacheOutcome::ALL {
        metrics.cache.lookup(outcome, &crm());
    }
    metrics.upstream.answered(Some(StatusCode::OK), "crm");
    metrics.upstream.answered(None, "background");
    // Probes are nobody's requests.
    let second = Duration::from_secs(1);
    metrics
        .http
        .answered(Route::Health, StatusCode::OK, None, second);

    tokio::time::advance(second).await;
    let windows = history.windows();

    let [window] = &*windows else {
        panic!("{windows:?}")
    };
    assert_eq!(window.seconds, 1.0);
    let expected = Counts {
        fresh: 3,
        stale: 6,
        fetched: 3,
        rejected: 4,
        client_errors: 2,
        server_errors: 1,
        upstream_calls: 2,
    };
    assert_eq!(window.counts, expected);
    // Five requests: the third lies between 1 and 5 ms, the last above half a second.
    let within = |value: Option<f64>, low, high| value.is_some_and(|v| low < v && v <= high);
    assert!(within(window.p50, 0.001, 0.005), "{window:?}");
    assert!(within(window.p95, 0.5, 1.0), "{window:?}");
}

#[tokio::test(start_paused = true)]
async fn an_hour_is_kept_and_its_last_window_ends_now() {
    let metrics = Metrics::new();
    let history = History::new(metrics.clone());
    let end = CancellationToken::new();
    let recording = tokio::spawn(history.clone().keep_recording(end.clone()));
    let lengths = || {
        let windows = history.windows();
        windows
            .iter()
            .map(|window| window.seconds)
            .collect::<Vec<_>>()
    };
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(lengths(), [4.0]);
    tokio::time::sleep(EVERY).await;
    assert_eq!(lengths(), [14.0]);
    tokio::time::sleep(EVERY).await;
    assert_eq!(lengths(), [10.0, 14.0]);
    answer(&metrics, 503, 1);
    tokio::time::sleep(EVERY).await;
    let errors: Vec<_> = history
        .windows()
        .iter()
        .map(|w| w.counts.server_errors)
        .collect();
    assert_eq!(errors, [0, 0, 1]);

    tokio::time::sleep(Duration::from_secs(7200)).await;

    let windows = history.windows();
    assert_eq!(windows.len(), MOST);
    assert!(
        windows
            .iter()
            .all(|window| window.counts == Counts::default())
    );
    assert!(windows.is_sorted_by(|a, b| a.end < b.end));
    end.cancel();
    recording.await.unwrap();
}

#[test]
fn a_quantile_lies_on_the_line_through_its_bucket() {
    let buckets = [(0.1, 10), (0.5, 30), (1.0, 30), (f64::INFINITY, 40)];
    for (share, expected) in [
        (0.1, 0.04),
        (0.25, 0.1),
        (0.5, 0.3),
        (0.75, 0.5),
        (0.95, 1.0),
    ] {
        let found = quantile(&buckets, share).unwrap();
        assert!((found - expected).abs() < 1e-9, "{share}: {found}");
    }
    assert_eq!(quantile(&[(0.1, 0), (f64::INFINITY, 0)], 0.5), None);
    assert_eq!(quantile(&[], 0.5), None);
}
