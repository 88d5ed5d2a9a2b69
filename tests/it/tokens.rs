//! Two tokens of one credential: how the one takes the place of the other without a failed request.

use unpod_gateway::simulator::world::{self, SUPPORT};

use crate::gateway::{Gateway, Setup, setup, until};

fn with_token(token: &str) -> Setup {
    setup().with(&format!(
        "[upstream.credentials.default]\ntoken = \"{token}\""
    ))
}

fn two_tokens() -> Setup {
    setup().with(&format!(
        "[upstream.credentials.default]\nnext_token = \"{}\"",
        world::ACME_NEXT_TOKEN
    ))
}

/// How many calls went with each of the two tokens.
fn calls(gateway: &Gateway) -> [usize; 2] {
    let recorded = gateway.upstream().recorded();
    [world::ACME_TOKEN, world::ACME_NEXT_TOKEN].map(|token| {
        let value = format!("Token {token}");
        let with_it = |request: &&unpod_gateway::simulator::RecordedRequest| {
            request.header("authorization") == Some(value.as_str())
        };
        recorded.iter().filter(with_it).count()
    })
}

#[tokio::test]
async fn a_withdrawn_token_costs_one_call_and_no_request() {
    let gateway = two_tokens().start().await;
    gateway.tasks(SUPPORT, "?page=1").await;
    gateway.upstream().revoke_token(world::ACME_TOKEN);

    for page in 2..5 {
        let answer = gateway.tasks(SUPPORT, &format!("?page={page}")).await;
        assert_eq!(answer.status, 200);
    }

    assert_eq!(calls(&gateway), [2, 3]);
    let text = gateway.app.metrics().encode();
    let switched = "gateway_upstream_token_switches_total{credential=\"default\"} 1";
    assert!(text.contains(switched), "{text}");
}

#[tokio::test]
async fn after_a_refusal_of_both_a_request_costs_no_call() {
    let gateway = two_tokens().start().await;
    gateway.upstream().revoke_token(world::ACME_TOKEN);
    gateway.upstream().revoke_token(world::ACME_NEXT_TOKEN);

    for status in ["fwd=uri-miss", "detail=circuit-open", "detail=circuit-open"] {
        let answer = gateway.tasks(SUPPORT, "").await;
        answer.assert_error("upstream_auth_failed");
        assert_eq!(answer.cache_status(), status);
    }

    assert_eq!(calls(&gateway), [1, 1]);
}

#[tokio::test]
async fn a_token_file_is_read_again_when_it_changes() {
    let folder = crate::gateway::ConfigFile::new("");
    let file = folder.put("token", world::ACME_TOKEN);
    let mut running = setup().token_file(&file).start_from_file().await;
    let gateway = &mut running.gateway;
    gateway.tasks(SUPPORT, "").await;
    gateway.upstream().revoke_token(world::ACME_TOKEN);
    let refused = gateway.tasks(SUPPORT, "?page=2").await;
    refused.assert_error("upstream_auth_failed");

    folder.put("token", world::ACME_NEXT_TOKEN);
    until(|| {
        let text = gateway.app.metrics().encode();
        text.contains("gateway_config_reloads_total{outcome=\"applied\"} 1")
    })
    .await;

    // Neither held any more, nor shown from what the old token saw.
    let answer = gateway.tasks(SUPPORT, "").await;
    assert_eq!(answer.cache_status(), "fwd=stale; fwd-status=200; stored");
    assert_eq!(calls(gateway), [2, 1]);
}

#[tokio::test]
async fn a_token_that_nobody_knew_turns_pages_into_stand_ins() {
    let running = setup().start_from_file().await;
    let gateway = &running.gateway;
    let old = gateway.tasks(SUPPORT, "").await.body;
    running.rewrite(with_token(world::ACME_NEXT_TOKEN));
    assert_eq!(running.reload().await.0, 200);
    let fault =
        unpod_gateway::simulator::Fault::always(unpod_gateway::simulator::FaultKind::ServerError);
    gateway.upstream().set_faults(vec![fault]);

    let stands_in = gateway.tasks(SUPPORT, "").await;

    stands_in.assert_page(&old);
    let status = stands_in.cache_status();
    assert!(status.contains("detail=stale-if-error"), "{status}");
    gateway.upstream().set_faults(Vec::new());
    let filled = gateway.tasks(SUPPORT, "").await;
    assert_eq!(filled.cache_status(), "fwd=stale; fwd-status=200; stored");
}

#[tokio::test]
async fn a_late_401_of_a_replaced_token_holds_nothing_against_the_new_one() {
    let running = with_token(world::UNKNOWN_TOKEN).start_from_file().await;
    let gateway = &running.gateway;
    let upstream = gateway.upstream();
    let held = upstream.hold();
    let replaced = async {
        upstream.wait_for_requests(1).await;
        running.rewrite(setup());
        assert_eq!(running.reload().await.0, 200);
        held.release();
    };

    let (late, ()) = tokio::join!(gateway.tasks(SUPPORT, ""), replaced);

    late.assert_error("upstream_auth_failed");
    for page in 2..5 {
        let answer = gateway.tasks(SUPPORT, &format!("?page={page}")).await;
        assert_eq!(answer.status, 200);
    }
    let text = gateway.app.metrics().encode();
    let good = "gateway_credential_state{credential=\"default\"} 0";
    assert!(text.contains(good), "{text}");
}

#[tokio::test]
async fn what_a_replaced_token_reads_late_is_neither_shared_nor_kept() {
    let running = setup().start_from_file().await;
    let gateway = &running.gateway;
    let upstream = gateway.upstream();
    let held = upstream.hold();
    let replaced = async {
        upstream.wait_for_requests(2).await;
        running.rewrite(with_token(world::ACME_NEXT_TOKEN));
        assert_eq!(running.reload().await.0, 200);
        let released = async {
            upstream.wait_for_requests(3).await;
            held.release();
        };
        tokio::join!(gateway.tasks(SUPPORT, ""), released).0
    };

    let (shared, alone, after) = tokio::join!(
        gateway.tasks(SUPPORT, ""),
        gateway.tasks(SUPPORT, "?page=2"),
        replaced
    );

    for answer in [&shared, &alone] {
        assert_eq!(answer.cache_status(), "fwd=uri-miss; fwd-status=200");
    }
    let stored = "fwd=uri-miss; fwd-status=200; stored";
    assert_eq!(after.cache_status(), stored, "a call of its own");
    let again = gateway.tasks(SUPPORT, "?page=2").await;
    assert_eq!(again.cache_status(), stored);
    assert_eq!(calls(gateway), [2, 2]);
}
