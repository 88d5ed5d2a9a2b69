//! What is short is shared: between clients in turn, and first among those who wait.

use tokio::task::JoinHandle;
use unpod_gateway::simulator::world::{ARCHIVE, LIVE, SUPPORT, TRANSCRIPTS, UNICODE};

use crate::{
    answer::Answer,
    gateway::{Gateway, READER, REFRESHER, setup, until},
};

/// One call at a time, and thirty places for those who wait. Nobody is given up: the test says when the upstream answers.
const NARROW: &str = "[server]\nmax_in_flight = 40\nrequest_timeout = \"90s\"\n\
                      [upstream]\nmax_concurrency = 1\ntimeout = \"60s\"";
const PLACES: usize = 30;

/// The spaces in the order in which the upstream was asked for them.
fn asked(gateway: &Gateway) -> Vec<String> {
    let space = |target: &str| target.split('/').nth(5).map(str::to_owned);
    targets(gateway)
        .iter()
        .filter_map(|target| space(target))
        .collect()
}

/// What the upstream was asked for, in order.
fn targets(gateway: &Gateway) -> Vec<String> {
    let recorded = gateway.upstream().recorded();
    recorded.into_iter().map(|request| request.target).collect()
}

fn page(number: usize) -> String {
    format!("?page={number}&page_size=1")
}

/// Waits until so many requests wait for a fill: with their claims in line.
async fn wait_until_waiting(gateway: &Gateway, count: usize) {
    let line = format!("gateway_fill_waiters {count}");
    until(|| gateway.counts(&line)).await;
}

/// The reader asks for the pages of a space one after the other, and none is answered while the upstream is held.
async fn walk(gateway: &Gateway, pages: usize) -> Vec<JoinHandle<Answer>> {
    let mut asking = Vec::new();
    for number in 1..=pages {
        asking.push(gateway.tasks(ARCHIVE, &page(number)).key(READER).spawn());
        wait_until_waiting(gateway, number).await;
    }
    gateway.upstream().wait_for_requests(1).await;
    asking
}

#[tokio::test]
async fn a_client_that_walks_many_spaces_leaves_the_others_their_turn() {
    let narrow = "[upstream]\nmax_concurrency = 1";
    let gateway = setup().with(narrow).start().await;
    let hold = gateway.upstream().hold();
    let mut asking = Vec::new();
    for (count, space) in [SUPPORT, ARCHIVE, UNICODE, TRANSCRIPTS]
        .into_iter()
        .enumerate()
    {
        asking.push(gateway.tasks(space, "").key(READER).spawn());
        gateway.wait_until_in_flight(count as i64 + 1).await;
    }
    gateway.upstream().wait_for_requests(1).await;
    asking.push(gateway.tasks(LIVE, "").key(REFRESHER).spawn());
    gateway.wait_until_in_flight(5).await;
    until(|| gateway.app.pages().fills_under_way() == 5).await;

    hold.release();
    for answer in asking {
        assert_eq!(answer.await.unwrap().status, 200);
    }

    let order = asked(&gateway);
    let place = order.iter().position(|space| space == LIVE).unwrap();
    assert!(place <= 2, "{order:?}");
}

#[tokio::test]
async fn who_joins_a_fill_has_its_own_turn_for_it() {
    let gateway = setup().with(NARROW).start().await;
    let hold = gateway.upstream().hold();
    let mut asking = walk(&gateway, 8).await;
    asking.push(gateway.tasks(ARCHIVE, &page(8)).key(REFRESHER).spawn());
    wait_until_waiting(&gateway, 9).await;

    hold.release();
    for answer in asking {
        assert_eq!(answer.await.unwrap().status, 200);
    }

    let order = targets(&gateway);
    assert_eq!(order.len(), 8, "one fill a page: {order:?}");
    let place = order.iter().position(|target| target.ends_with(&page(8)));
    assert!(place.unwrap() <= 2, "{order:?}");
}

#[tokio::test]
async fn a_client_that_waits_for_many_pages_leaves_the_others_a_place() {
    let gateway = setup().with(NARROW).start().await;
    let hold = gateway.upstream().hold();
    let mut asking = walk(&gateway, PLACES).await;

    let modest = gateway.tasks(SUPPORT, "").key(REFRESHER).spawn();

    let newest = asking.pop().unwrap().await.unwrap();
    newest.assert_error("overloaded");
    wait_until_waiting(&gateway, PLACES).await;
    assert!(gateway.counts("gateway_requests_shed_total{reason=\"waiting_places\"} 1"));
    hold.release();
    assert_eq!(modest.await.unwrap().status, 200);
    for answer in asking {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    let order = asked(&gateway);
    let place = order.iter().position(|space| space == SUPPORT).unwrap();
    assert!(place <= 2, "{order:?}");
}
