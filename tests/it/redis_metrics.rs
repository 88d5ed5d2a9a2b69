//! What replicas do through a real Redis, as their metrics tell it.

use unpod_gateway::{simulator::world::SUPPORT, telemetry::metrics::Metrics};

use crate::{
    answer::Answer,
    gateway::{Gateway, patiently, until},
    operators,
    redis_server::{Fleet, wait_until_up},
};

fn stores(outcome: &str) -> String {
    format!("gateway_redis_stores_total{{outcome=\"{outcome}\"}} 1")
}

/// The value of a sample.
fn value(gateway: &Gateway, sample: &str) -> u64 {
    let text = gateway.app.metrics().encode();
    let mut lines = text.lines();
    let found = lines.find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    found.expect(sample).parse().unwrap()
}

/// Has a gateway fill a page, with `meanwhile` done while the upstream is asked, given the fill's lock.
async fn fill(fleet: &Fleet, gateway: &Gateway, meanwhile: impl FnOnce(&str)) -> Answer {
    let hold = fleet.upstream().hold();
    let asked = gateway.tasks(SUPPORT, "").spawn();
    patiently("a call", fleet.upstream().wait_for_requests(1)).await;
    meanwhile(&fleet.redis.keys("lock:").remove(0));
    hold.release();
    asked.await.unwrap()
}

#[tokio::test]
async fn a_page_that_one_replica_stores_and_another_finds_is_counted_by_both() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let [first, second] = fleet.pair("").await;
    first.tasks(SUPPORT, "").await;
    until(|| first.counts(&stores("stored"))).await;

    second.tasks(SUPPORT, "").await;

    assert!(first.counts("gateway_redis_pages_total{outcome=\"miss\"} 1"));
    assert!(second.counts("gateway_redis_pages_total{outcome=\"hit\"} 1"));
    for operation in ["look", "store"] {
        let count = format!(
            "gateway_redis_operation_duration_seconds_count{{operation=\"{operation}\"}} 1"
        );
        assert!(first.counts(&count), "{count}");
    }
    for gateway in [&first, &second] {
        until(|| gateway.counts("gateway_redis_members 2")).await;
        let (_, ready) = operators::ask(gateway, "GET", "/readyz").await;
        let ready: serde_json::Value = serde_json::from_str(&ready).unwrap();
        assert_eq!(ready["parts"]["redis"]["members"], 2, "{ready}");
    }
}

#[tokio::test]
async fn a_page_whose_lock_another_took_is_counted_as_fenced() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let gateway = fleet.gateway("").await;
    wait_until_up(&gateway, true).await;

    let answer = fill(&fleet, &gateway, |lock| {
        let _: String = fleet.redis.run(&["SET", lock, "another"]);
    })
    .await;

    assert_eq!(answer.status, 200);
    until(|| gateway.counts(&stores("fenced"))).await;
    assert_eq!(fleet.redis.keys("page:"), Vec::<String>::new());
}

#[tokio::test]
async fn a_page_of_a_space_that_was_dropped_meanwhile_is_counted_as_dropped() {
    let Some(fleet) = Fleet::start().await else {
        return;
    };
    let gateway = fleet.gateway("").await;
    wait_until_up(&gateway, true).await;

    let answer = fill(&fleet, &gateway, |lock| {
        let (space, _) = lock.split_once(":lock:").unwrap();
        let _: String = fleet.redis.run(&["SET", &format!("{space}:epoch"), "1"]);
    })
    .await;

    assert_eq!(answer.status, 200);
    until(|| gateway.counts(&stores("dropped"))).await;
}

#[tokio::test]
async fn a_drop_that_redis_lost_is_counted_when_it_is_told_again() {
    let Some(mut fleet) = Fleet::start().await else {
        return;
    };
    let gateway = fleet.gateway("").await;
    wait_until_up(&gateway, true).await;
    let purge = format!("/cache/spaces/{SUPPORT}");
    let (status, _) = operators::ask(&gateway, "DELETE", &purge).await;
    assert_eq!(status, 204);
    assert_eq!(value(&gateway, "gateway_redis_reasserted_total"), 0);

    fleet.redis.kill();
    wait_until_up(&gateway, false).await;
    fleet.redis.restart();

    until(|| value(&gateway, "gateway_redis_reasserted_total") > 0).await;
}

#[test]
fn without_redis_there_are_no_members() {
    let text = Metrics::new().encode();
    assert!(text.contains("\ngateway_redis_members -1\n"), "{text}");
}
