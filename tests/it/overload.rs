//! More than can be answered: misses are shed, and pages in memory are served all the while.

use std::future::IntoFuture;

use tokio::task::JoinSet;
use unpod_gateway::simulator::world;

use crate::{
    answer::Answer,
    gateway::{Gateway, patiently, setup},
};

/// Thirty of forty may wait; of the fills six may run or queue. Nobody is given up: the test says when the upstream answers.
const SMALL: &str = "[server]\nmax_in_flight = 40\nrequest_timeout = \"90s\"\n\
                     [upstream]\nmax_concurrency = 2\nmax_queue = 4\ntimeout = \"60s\"";
const MAX_WAITING: usize = 30;
const MAX_FILLS: usize = 6;
const MISSES: usize = 100;
const HITS: usize = 100;

/// Requests for pages that are not stored.
struct Flood(JoinSet<Answer>);

impl Flood {
    fn start(gateway: &Gateway, path: impl Fn(usize) -> String) -> Self {
        let asked = (0..MISSES).map(|number| gateway.get(&path(number)).into_future());
        Self(asked.collect())
    }

    async fn next(&mut self) -> Answer {
        let answer = patiently("an answer to a miss", self.0.join_next()).await;
        answer.expect("more was asked").unwrap()
    }

    /// Takes all but `waiting` answers, each of which must be a refusal.
    async fn assert_shed_but(&mut self, waiting: usize) {
        while self.0.len() > waiting {
            let refused = self.next().await;
            refused.assert_error("overloaded");
            assert_eq!(refused.cache_status(), "detail=overloaded");
            assert_eq!(refused.header("retry-after"), Some("1"));
        }
    }
}

async fn assert_hits(gateway: &Gateway, expected: &[u8]) {
    for _ in 0..HITS {
        let hit = gateway.tasks(world::SUPPORT, "").await;
        hit.assert_page(expected);
        assert_eq!(hit.cache_status(), "hit");
    }
}

/// A gateway with one page in memory before an upstream that hangs, flooded with misses of which `waiting` may wait: the others are
/// shed, every hit is served while that is so, and once the upstream answers again everything is.
async fn assert_misses_are_shed_and_hits_are_not(waiting: usize, path: impl Fn(usize) -> String) {
    let gateway = setup().with(SMALL).start().await;
    let expected = gateway.upstream().expect_page(world::SUPPORT, 1, 20);
    gateway.tasks(world::SUPPORT, "").await;
    let hold = gateway.upstream().hold();
    let mut flood = Flood::start(&gateway, path);

    // While the flood comes in, and once it stands.
    assert_hits(&gateway, &expected).await;
    flood.assert_shed_but(waiting).await;
    assert_hits(&gateway, &expected).await;
    let health = gateway.get("/healthz").without_key().await;
    assert_eq!(health.status, 200);

    hold.release();
    while !flood.0.is_empty() {
        assert_eq!(flood.next().await.status, 200);
    }
    let next = gateway.tasks(world::UNICODE, "").await;
    assert_eq!(next.status, 200);
    gateway.wait_until_in_flight(0).await;
    gateway.wait_until_filled().await;
}

#[tokio::test]
async fn hits_are_served_while_misses_of_many_pages_are_shed_by_the_queue() {
    let path = |number| {
        format!(
            "/spaces/{}/tasks?page={}&page_size=1",
            world::ARCHIVE,
            number + 1
        )
    };
    assert_misses_are_shed_and_hits_are_not(MAX_FILLS, path).await;
}

#[tokio::test]
async fn hits_are_served_while_misses_of_one_page_are_shed_by_the_waiting_places() {
    let path = |_| format!("/spaces/{}/tasks", world::ARCHIVE);
    assert_misses_are_shed_and_hits_are_not(MAX_WAITING, path).await;
}

#[tokio::test]
async fn a_stale_page_stands_in_for_an_overload() {
    let stale_at_once = "[cache]\nttl = \"0s\"\nstale_while_revalidate = \"0s\"";
    let gateway = setup().with(SMALL).with(stale_at_once).start().await;
    let stored = gateway.tasks(world::SUPPORT, "").await;
    let hold = gateway.upstream().hold();
    let path = |_| format!("/spaces/{}/tasks", world::ARCHIVE);
    let mut flood = Flood::start(&gateway, path);
    flood.assert_shed_but(MAX_WAITING).await;

    let stands_in = gateway.tasks(world::SUPPORT, "").await;

    stands_in.assert_page(&stored.body);
    assert_eq!(stands_in.cache_status(), "hit; detail=stale-if-error");
    hold.release();
}
