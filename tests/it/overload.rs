//! More than can be answered: misses are shed, and pages in memory are served all the while.

use std::future::IntoFuture;

use tokio::task::JoinSet;
use unpod_gateway::simulator::{Scripted, world};

use crate::{
    answer::Answer,
    gateway::{Gateway, READER, REFRESHER, Setup, patiently, setup},
    http2::{Http2, get},
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

/// Eight may be under way; nobody is given up while a test runs.
const EIGHT: &str = "[server]\nmax_in_flight = 8";

/// Another client is served as if there were nobody else: it gets hits, and half of all may be under way for it at once.
async fn assert_another_client_is_served(gateway: &Gateway) {
    for _ in 0..20 {
        let hit = gateway.tasks(world::SUPPORT, "").key(REFRESHER).await;
        assert_eq!(hit.status, 200);
    }
    let hold = gateway.upstream().hold();
    let misses: Vec<_> = (1..=4)
        .map(|page| {
            let query = format!("?page={page}&page_size=1");
            gateway.tasks(world::ARCHIVE, &query).key(REFRESHER).spawn()
        })
        .collect();
    gateway.upstream().wait_for_requests(4).await;
    hold.release();
    for miss in misses {
        assert_eq!(patiently("a miss", miss).await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn answers_that_nobody_reads_take_half_of_what_may_be_under_way() {
    let gateway = setup().with(EIGHT).start().await;
    gateway.tasks(world::SUPPORT, "").await;
    gateway.wait_until_in_flight(0).await;
    let stalled = Http2::that_reads_nothing(gateway.address()).await;
    let path = format!("/spaces/{}/tasks", world::SUPPORT);

    let mut unread = Vec::new();
    for _ in 0..10 {
        unread.push(stalled.send(get(&path, Some(READER))).await);
    }

    let statuses: Vec<_> = unread
        .iter()
        .map(|answer| answer.status().as_u16())
        .collect();
    assert_eq!(statuses[..4], [200; 4]);
    assert_eq!(statuses[4..], [503; 6]);
    assert_eq!(
        gateway.app.metrics().http.in_flight(),
        10,
        "until they have left"
    );
    assert_another_client_is_served(&gateway).await;
    drop((stalled, unread));
    gateway.wait_until_in_flight(0).await;
    assert_eq!(gateway.tasks(world::SUPPORT, "").await.status, 200);
}

#[tokio::test]
async fn what_is_said_to_strangers_takes_no_clients_place() {
    let gateway = setup().with(EIGHT).start().await;
    let mut strangers = Vec::new();
    for _ in 0..4 {
        let stalled = Http2::that_reads_nothing(gateway.address()).await;
        let refused = stalled.send(get("/nowhere", None)).await;
        let document = stalled.send(get("/openapi.json", None)).await;
        assert_eq!(
            (refused.status().as_u16(), document.status().as_u16()),
            (401, 200)
        );
        strangers.push((stalled, refused, document));
    }

    assert_eq!(gateway.app.metrics().http.in_flight(), 8);
    assert_another_client_is_served(&gateway).await;
    drop(strangers);
    gateway.wait_until_in_flight(0).await;
}

#[tokio::test]
async fn a_client_alone_may_have_more_than_half_and_gives_way_to_another() {
    // All but two of them may wait for the upstream.
    let gateway = setup().with(EIGHT).start().await;
    let hold = gateway.upstream().hold();
    let mut waiting = Flood(JoinSet::new());
    for page in 1..=6 {
        let path = format!("/spaces/{}/tasks?page={page}&page_size=1", world::ARCHIVE);
        waiting.0.spawn(gateway.get(&path).into_future());
    }
    gateway.wait_until_in_flight(6).await;

    let others: Vec<_> = (7..=9)
        .map(|page| {
            let query = format!("?page={page}&page_size=1");
            gateway.tasks(world::ARCHIVE, &query).key(REFRESHER).spawn()
        })
        .collect();

    for _ in 0..3 {
        waiting.next().await.assert_error("overloaded");
    }
    hold.release();
    for other in others {
        assert_eq!(patiently("a miss", other).await.unwrap().status, 200);
    }
    while !waiting.0.is_empty() {
        assert_eq!(waiting.next().await.status, 200);
    }
}

/// What answers that nobody reads may hold beside the store, in all and as one client's share.
const MAX_UNSENT: usize = 256 << 10;
const SHARE: usize = MAX_UNSENT / 2;

fn unsent() -> Setup {
    setup().with("[server]\nmax_unsent_bytes = \"256KiB\"")
}

/// Asks for each of `paths` over connections that read no body; how many of the answers are pages, and what is to be dropped to end it.
async fn stall(gateway: &Gateway, paths: &[String]) -> (usize, impl Sized) {
    let (mut connections, mut unread) = (Vec::new(), Vec::new());
    let mut pages = 0;
    // On one connection no more than eight refusals may wait.
    for paths in paths.chunks(8) {
        let stalled = Http2::that_reads_nothing(gateway.address()).await;
        for path in paths {
            let answer = stalled.send(get(path, Some(READER))).await;
            let status = answer.status().as_u16();
            assert!(matches!(status, 200 | 503), "{status}");
            pages += usize::from(status == 200);
            unread.push(answer);
        }
        connections.push(stalled);
    }
    (pages, (connections, unread))
}

fn unstored(gateway: &Gateway) -> usize {
    gateway.app.pages().store().unstored_bytes()
}

#[tokio::test]
async fn pages_put_together_for_answers_that_nobody_reads_are_a_clients_share_at_most() {
    let gateway = unsent();
    // Of which no page may be more than a quarter.
    let cache = "[cache]\nassemble_pages = true\nmax_bytes = \"220KiB\"\n[upstream]\nfill_size = 0";
    let gateway = gateway.with(cache).start().await;
    for page in 1..=3 {
        let stored = gateway.tasks(world::ARCHIVE, &format!("?page={page}"));
        assert_eq!(stored.await.status, 200);
    }
    let path = |size| format!("/spaces/{}/tasks?page_size={size}", world::ARCHIVE);
    let one = gateway.get(&path(30)).await;
    assert_eq!(one.cache_status(), "hit; detail=assembled");
    let paths: Vec<_> = (30..45).map(path).collect();

    let (pages, stalled) = stall(&gateway, &paths).await;

    // The one that goes beyond it is served yet, being the first to.
    let longest = one.body.len() * 3 / 2;
    assert!((2..paths.len()).contains(&pages), "{pages}");
    assert!(
        unstored(&gateway) <= SHARE + longest,
        "{}",
        unstored(&gateway)
    );
    // Others have theirs.
    for size in 30..45 {
        let other = gateway.get(&path(size)).key(REFRESHER).await;
        assert_eq!(other.status, 200);
    }
    drop(stalled);
    gateway.wait_until_in_flight(0).await;
    assert_eq!(unstored(&gateway), 0);
    assert_eq!(gateway.get(&path(30)).await.status, 200);
}

#[tokio::test]
async fn pages_that_the_store_let_go_of_count_for_as_long_as_nobody_reads_them() {
    const LENGTH: usize = 50 << 10;
    const STORE: usize = 512 << 10;
    let gateway = unsent()
        .with("[cache]\nmax_bytes = \"512KiB\"")
        .start()
        .await;
    let paths: Vec<_> = (0..60)
        .map(|number| format!("/spaces/S{number}/tasks"))
        .collect();
    for number in 0..paths.len() {
        let page = format!(
            "{{\"status_code\":200,\"message\":\"{}\",\"count\":0,\"data\":[]}}",
            number.to_string().repeat(LENGTH / number.to_string().len())
        );
        let space = format!("S{number}");
        gateway
            .upstream()
            .script(&space, vec![Scripted::json(200, page)]);
    }

    let (pages, stalled) = stall(&gateway, &paths).await;

    // The store frees what it evicts a few dozen pages later.
    let most = (STORE + SHARE) / LENGTH;
    assert!(
        (SHARE / LENGTH..=2 * most).contains(&pages),
        "{pages} {most}"
    );
    assert!(unstored(&gateway) > SHARE);
    let other = gateway.get(&paths[0]).key(REFRESHER).await;
    assert_eq!(other.status, 200);
    drop((stalled, other));
    gateway.wait_until_in_flight(0).await;
    assert_eq!(gateway.get(&paths[0]).await.status, 200);
}

#[tokio::test]
async fn a_stored_page_costs_nothing_more_however_many_read_it_slowly() {
    let gateway = unsent().start().await;
    let path = format!("/spaces/{}/tasks", world::SUPPORT);
    gateway.get(&path).await;
    let paths = vec![path; 50];

    let (pages, _stalled) = stall(&gateway, &paths).await;

    assert_eq!(pages, paths.len());
    assert_eq!(unstored(&gateway), 0);
}
