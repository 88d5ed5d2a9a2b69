//! What is short is shared: between clients in turn, and first among those who wait.

use unpod_gateway::simulator::world::{ARCHIVE, LIVE, SUPPORT, TRANSCRIPTS, UNICODE};

use crate::gateway::{Gateway, READER, REFRESHER, setup};

/// The spaces in the order in which the upstream was asked for them.
fn asked(gateway: &Gateway) -> Vec<String> {
    let space = |target: &str| target.split('/').nth(5).map(str::to_owned);
    let recorded = gateway.upstream().recorded();
    recorded
        .iter()
        .filter_map(|request| space(&request.target))
        .collect()
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
    crate::gateway::until(|| gateway.app.tasks().fills_under_way() == 5).await;

    hold.release();
    for answer in asking {
        assert_eq!(answer.await.unwrap().status, 200);
    }

    let order = asked(&gateway);
    let place = order.iter().position(|space| space == LIVE).unwrap();
    assert!(place <= 2, "{order:?}");
}
