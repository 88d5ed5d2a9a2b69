//! What a client sees of the cache: hits, joined fills, refusals that are remembered, and old pages that stand in.

use std::collections::HashMap;

use http::{HeaderValue, Method, header::ACCEPT_ENCODING};
use tokio::net::TcpStream;
use unpod_gateway::simulator::{Fault, FaultKind, Scripted, world};

use crate::{
    answer::Answer,
    gateway::{Gateway, READER, REFRESHER, setup, start},
    http2::{self, Http2, get},
    raw,
};

/// Every page is stale at once and may only stand in for a failed fill.
const STALE_AT_ONCE: &str = "[cache]\nttl = \"0s\"\nstale_while_revalidate = \"0s\"";

async fn page(gateway: &Gateway, query: &str) -> Answer {
    gateway.tasks(world::SUPPORT, query).await
}

async fn refresh(gateway: &Gateway, query: &str) -> Answer {
    let asked = gateway.tasks(world::SUPPORT, query).key(REFRESHER);
    asked.cache_control("no-cache").await
}

fn generation(answer: &Answer) -> &str {
    answer.header("x-list-generation").unwrap()
}

#[tokio::test]
async fn a_second_request_is_a_hit_with_an_age_and_no_call() {
    let gateway = start().await;

    let first = page(&gateway, "").await;
    let second = page(&gateway, "").await;

    assert_eq!(first.cache_status(), "fwd=uri-miss; fwd-status=200; stored");
    assert_eq!(first.header("age"), None);
    assert_eq!(second.cache_status(), "hit");
    assert!(second.header("cache-status").unwrap().contains("ttl="));
    assert!(second.header("age").unwrap().parse::<u32>().is_ok());
    assert_eq!(first.body, second.body);
    assert_eq!(first.header("etag"), second.header("etag"));
    assert_eq!(gateway.upstream().requests(), 1);
}

#[tokio::test]
async fn a_page_carries_the_fields_of_the_contract() {
    let gateway = start().await;
    for _ in ["fill", "hit"] {
        let answer = page(&gateway, "?page=2").await;
        let etag = answer.header("etag").unwrap();
        assert!(etag.starts_with("W/\"") && etag.ends_with('"'), "{etag}");
        for (name, value) in [
            ("content-type", "application/json"),
            ("cache-control", "private, no-cache"),
            ("vary", "Accept-Encoding, Authorization"),
            (
                "link",
                "<?page=1&page_size=20>; rel=\"first\", <?page=1&page_size=20>; rel=\"prev\", \
                 <?page=3&page_size=20>; rel=\"next\", <?page=3&page_size=20>; rel=\"last\"",
            ),
        ] {
            assert_eq!(answer.header(name), Some(value), "{name}");
        }
        assert!(!generation(&answer).is_empty());
        assert!(answer.header("date").is_some());
        assert_eq!(answer.header("last-modified"), None);
    }
}

#[tokio::test]
async fn every_space_comes_out_byte_for_byte() {
    let gateway = start().await;
    for space in [
        world::SUPPORT,
        world::TRANSCRIPTS,
        world::ARCHIVE,
        world::UNICODE,
        world::EMPTY,
    ] {
        for (page, size) in [(1, 20), (2, 20), (3, 7), (99, 100)] {
            let query = format!("?page={page}&page_size={size}");
            let expected = gateway.upstream().expect_page(space, page, size);

            gateway.tasks(space, &query).await.assert_page(&expected);
            gateway.tasks(space, &query).await.assert_page(&expected);
        }
    }
}

#[tokio::test]
async fn five_hundred_clients_at_once_cost_one_call() {
    let gateway = start().await;
    let expected = gateway.upstream().expect_page(world::SUPPORT, 1, 20);
    let hold = gateway.upstream().hold();
    let path = format!("/spaces/{}/tasks", world::SUPPORT);
    let mut connections = Vec::new();
    let mut asked = Vec::new();
    // Five connections rather than 500: a usual limit on open files is 1024.
    for _ in 0..5 {
        let connection = Http2::connect(gateway.address()).await;
        asked.extend((0..100).map(|_| connection.get(&path, Some(READER))));
        connections.push(connection);
    }
    gateway.wait_until_in_flight(500).await;

    hold.release();

    let mut leaders = 0;
    for answer in asked {
        let answer = answer.await.unwrap();
        answer.assert_page(&expected);
        match answer.cache_status().as_str() {
            "fwd=uri-miss; fwd-status=200; stored" => leaders += 1,
            "fwd=uri-miss; collapsed" => {}
            other => panic!("{other}"),
        }
    }
    assert_eq!(leaders, 1);
    assert_eq!(gateway.upstream().requests(), 1);
}

#[tokio::test]
async fn a_cold_burst_costs_each_page_one_call_and_one_compression() {
    const PAGES: u64 = 4;
    const CLIENTS: usize = 50;
    let gateway = start().await;
    let hold = gateway.upstream().hold();
    let path = |page: u64| format!("/spaces/{}/tasks?page={page}", world::ARCHIVE);
    let (mut connections, mut asked) = (Vec::new(), Vec::new());
    for page in 1..=PAGES {
        // Too small for the body, which stays in memory until it is read.
        let connection = Http2::of_window(gateway.address(), 1024).await;
        for _ in 0..CLIENTS {
            let mut request = get(&path(page), Some(READER));
            // Who takes the plain page, too, gets that from a fill.
            let only_gzip = HeaderValue::from_static("gzip, identity;q=0");
            request.headers_mut().insert(ACCEPT_ENCODING, only_gzip);
            asked.push((page, tokio::spawn(connection.send(request))));
        }
        connections.push(connection);
    }
    gateway
        .wait_until_in_flight(PAGES as i64 * CLIENTS as i64)
        .await;

    hold.release();

    let mut unread = Vec::new();
    for (page, answer) in asked {
        unread.push((page, answer.await.unwrap()));
    }
    let beside_the_store = gateway.app.pages().store().unstored_bytes();
    let mut compressed = HashMap::new();
    for (page, answer) in unread {
        let answer = http2::read(&Method::GET, &path(page), answer).await;
        assert_eq!(answer.header("content-encoding"), Some("gzip"));
        let expected = gateway.upstream().expect_page(world::ARCHIVE, page, 20);
        assert!(answer.decoded() == expected, "{page}");
        compressed.insert(page, answer.body.len());
    }
    assert_eq!(gateway.upstream().requests(), PAGES);
    // What one client had for itself would be one more copy.
    let copies: usize = compressed.values().sum();
    assert!(
        beside_the_store <= copies,
        "{beside_the_store} bytes for {copies}"
    );
}

#[tokio::test]
async fn everybody_who_waits_gets_the_error_of_the_one_call() {
    let gateway = start().await;
    let failing = Fault::always(FaultKind::ServerError);
    gateway.upstream().set_faults(vec![failing]);
    let hold = gateway.upstream().hold();
    let asked: Vec<_> = (0..20)
        .map(|_| gateway.tasks(world::SUPPORT, "").spawn())
        .collect();
    gateway.wait_until_in_flight(20).await;

    hold.release();

    for answer in asked {
        answer.await.unwrap().assert_error("upstream_failed");
    }
    assert_eq!(gateway.upstream().requests(), 1);
}

/// Asks for a page over a connection of its own.
async fn ask(gateway: &Gateway) -> TcpStream {
    let path = format!("/spaces/{}/tasks", world::SUPPORT);
    raw::ask(gateway.address(), &path, "").await
}

#[tokio::test]
async fn a_client_that_leaves_costs_nobody_the_answer() {
    let gateway = start().await;
    let expected = gateway.upstream().expect_page(world::SUPPORT, 1, 20);
    let hold = gateway.upstream().hold();
    let first = ask(&gateway).await;
    gateway.upstream().wait_for_requests(1).await;
    let second = gateway.tasks(world::SUPPORT, "").spawn();
    gateway.wait_until_in_flight(2).await;

    raw::leave(first);
    gateway.wait_until_in_flight(1).await;
    hold.release();

    second.await.unwrap().assert_page(&expected);
    let third = page(&gateway, "").await;
    assert_eq!(third.cache_status(), "hit");
    assert_eq!(gateway.upstream().requests(), 1);
}

#[tokio::test]
async fn a_page_that_everybody_left_is_stored_all_the_same() {
    let gateway = start().await;
    let hold = gateway.upstream().hold();
    let only = ask(&gateway).await;
    gateway.upstream().wait_for_requests(1).await;

    raw::leave(only);
    gateway.wait_until_in_flight(0).await;
    hold.release();
    gateway.wait_until_filled().await;

    assert_eq!(page(&gateway, "").await.cache_status(), "hit");
    assert_eq!(gateway.upstream().requests(), 1);
}

#[tokio::test]
async fn a_space_that_is_refused_is_asked_for_once_whatever_the_page() {
    let gateway = start().await;
    for (space, code) in [
        (world::UNKNOWN_SPACE, "space_not_found"),
        (world::GLOBEX_SPACE, "space_access_denied"),
    ] {
        for query in ["", "?page=2", "?page=2&page_size=5", ""] {
            gateway.tasks(space, query).await.assert_error(code);
        }
        assert_eq!(gateway.upstream().requests_to(space), 1, "{space}");
    }
}

#[tokio::test]
async fn a_page_that_is_refused_is_asked_for_once_and_others_on_their_own() {
    let gateway = start().await;
    let rejected = r#"{"status_code":206,"message":"unheard of","data":{}}"#;
    let failed = r#"{"status_code":206,"message":"Tasks Fetch Failed","data":{}}"#;
    for (space, body, code) in [
        ("REJECTED", rejected, "upstream_rejected"),
        ("FAILED", failed, "upstream_failed"),
    ] {
        let answer = Scripted::json(206, body);
        gateway.upstream().script(space, vec![answer]);
        for query in ["", "", "?page=2", "?page=2", ""] {
            gateway.tasks(space, query).await.assert_error(code);
        }
        assert_eq!(gateway.upstream().requests_to(space), 2, "{space}");
    }
}

#[tokio::test]
async fn one_badly_stored_task_costs_its_page_alone() {
    let gateway = start().await;
    let poisoned = gateway.tasks(world::POISON, "").await;
    let healthy = gateway.tasks(world::POISON, "?page=2").await;

    poisoned.assert_error("upstream_failed");
    assert_eq!(healthy.status, 200);
}

#[tokio::test]
async fn what_may_pass_is_not_remembered() {
    for fault in [
        FaultKind::ServerError,
        FaultKind::Unavailable,
        FaultKind::Html,
        FaultKind::Truncate,
        FaultKind::Reset,
    ] {
        let gateway = start().await;
        let space = format!("FAULT{fault:?}");
        gateway.upstream().set_faults(vec![Fault::always(fault)]);
        assert!(gateway.tasks(&space, "").await.status >= 500, "{fault:?}");
        gateway.upstream().set_faults(Vec::new());

        let next = gateway.tasks(&space, "").await;

        // No such space: but the upstream was asked again.
        next.assert_error("space_not_found");
        assert_eq!(gateway.upstream().requests_to(&space), 2, "{fault:?}");
    }
}

#[tokio::test]
async fn a_page_that_came_malformed_is_left_alone_for_a_while() {
    for fault in [FaultKind::Garbage, FaultKind::NullData] {
        let gateway = start().await;
        gateway.upstream().set_faults(vec![Fault::always(fault)]);
        let first = page(&gateway, "").await;
        first.assert_error("upstream_invalid_response");
        assert_eq!(first.cache_status(), "fwd=uri-miss");
        gateway.upstream().set_faults(Vec::new());

        let next = page(&gateway, "").await;

        next.assert_error("upstream_invalid_response");
        assert_eq!(next.cache_status(), "detail=circuit-open");
        assert_eq!(gateway.upstream().requests(), 1);
        assert_eq!(page(&gateway, "?page=2").await.status, 200);
    }
}

#[tokio::test]
async fn a_revoked_space_takes_its_cached_pages_along() {
    let gateway = start().await;
    for query in ["", "?page=2"] {
        assert_eq!(page(&gateway, query).await.status, 200);
    }
    gateway.upstream().revoke_space(world::SUPPORT);

    let seen = refresh(&gateway, "").await;
    seen.assert_error("space_access_denied");

    for query in ["", "?page=2"] {
        let answer = page(&gateway, query).await;
        answer.assert_error("space_access_denied");
    }
    assert_eq!(gateway.upstream().requests(), 3);

    gateway.upstream().grant_space(world::SUPPORT);
    assert_eq!(refresh(&gateway, "").await.status, 200);
    assert_eq!(page(&gateway, "?page=2").await.status, 200);
}

#[tokio::test]
async fn a_fill_that_began_before_its_space_was_revoked_is_not_stored() {
    let gateway = start().await;
    let good = gateway.upstream().expect_page(world::SUPPORT, 2, 20);
    let refused = r#"{"status_code":206,"message":"Invalid Space Token","data":{}}"#;
    gateway.upstream().script(
        world::SUPPORT,
        vec![Scripted::json(206, refused), Scripted::json(200, good)],
    );
    let hold = gateway.upstream().hold();
    let both = ["", "?page=2"].map(|query| gateway.tasks(world::SUPPORT, query).spawn());
    gateway.upstream().wait_for_requests(2).await;

    hold.release();
    for answer in both {
        answer.await.unwrap();
    }

    // Which of the two was refused, and which came first, is chance; nothing of the space is served either way.
    for query in ["", "?page=2"] {
        let asked = gateway.tasks(world::SUPPORT, query);
        let answer = asked.cache_control("only-if-cached").await;
        answer.assert_error("space_not_found");
    }
}

#[tokio::test]
async fn a_stale_page_stands_in_for_a_failed_fill() {
    let forgetful = "[upstream]\ntimeout = \"300ms\"\n[cache]\nrejected_ttl = \"0s\"";
    let gateway = setup().with(STALE_AT_ONCE).with(forgetful).start().await;
    let expected = gateway.upstream().expect_page(world::SUPPORT, 1, 20);
    page(&gateway, "").await.assert_page(&expected);
    for (fault, detail) in [
        (FaultKind::ServerError, "stale-if-error"),
        (FaultKind::BadGateway, "stale-if-error"),
        (FaultKind::Unavailable, "stale-if-error"),
        (FaultKind::GatewayTimeout, "stale-if-error"),
        (FaultKind::Html, "stale-if-error"),
        (FaultKind::Redirect, "stale-if-error"),
        (FaultKind::Reset, "stale-if-error"),
        (FaultKind::Hang, "stale-if-error"),
        (FaultKind::Truncate, "stale-if-error"),
        (FaultKind::Garbage, "stale-if-error"),
        (FaultKind::Empty, "stale-if-error"),
        (FaultKind::NullData, "stale-if-error"),
        (FaultKind::InnerHtml, "stale-if-error"),
        // The last: it holds the credential for a while.
        (FaultKind::RateLimited, "quota"),
    ] {
        gateway.upstream().set_faults(vec![Fault::always(fault)]);

        let answer = page(&gateway, "").await;

        answer.assert_page(&expected);
        assert_eq!(answer.cache_status(), format!("hit; detail={detail}"));
        assert!(answer.header("age").is_some(), "{fault:?}");
    }
}

#[tokio::test]
async fn a_stale_page_stands_in_for_an_upstream_that_is_gone() {
    let mut gateway = setup().with(STALE_AT_ONCE).start().await;
    let expected = gateway.upstream().expect_page(world::SUPPORT, 1, 20);
    page(&gateway, "").await.assert_page(&expected);

    gateway.stop_upstream().await;

    page(&gateway, "").await.assert_page(&expected);
    let cold = page(&gateway, "?page=2").await;
    cold.assert_error("upstream_unreachable");
}

#[tokio::test]
async fn no_stale_page_stands_in_for_a_refusal() {
    for refusal in [FaultKind::Unauthorized, FaultKind::TokenExpired] {
        let gateway = setup().with(STALE_AT_ONCE).start().await;
        page(&gateway, "").await;
        gateway.upstream().set_faults(vec![Fault::always(refusal)]);
        let answer = page(&gateway, "").await;
        answer.assert_error("upstream_auth_failed");

        // As long as the credential is refused, not even an outage brings the old page back.
        let outage = Fault::always(FaultKind::ServerError);
        gateway.upstream().set_faults(vec![outage]);
        let answer = page(&gateway, "").await;
        answer.assert_error("upstream_auth_failed");
    }
}

#[tokio::test]
async fn a_fresh_page_is_served_while_the_credential_is_refused() {
    let gateway = start().await;
    page(&gateway, "").await;
    gateway.upstream().revoke_token(world::ACME_TOKEN);
    let cold = page(&gateway, "?page=2").await;
    cold.assert_error("upstream_auth_failed");

    assert_eq!(page(&gateway, "").await.cache_status(), "hit");
}

#[tokio::test]
async fn beyond_stale_if_error_nothing_stands_in() {
    let short = "[cache]\nstale_if_error = \"0s\"";
    let gateway = setup().with(STALE_AT_ONCE).with(short).start().await;
    page(&gateway, "").await;
    let outage = Fault::always(FaultKind::ServerError);
    gateway.upstream().set_faults(vec![outage]);

    page(&gateway, "").await.assert_error("upstream_failed");
}

#[tokio::test]
async fn stale_while_revalidate_answers_at_once_and_refreshes_behind() {
    let gateway = setup().with("[cache]\nttl = \"0s\"").start().await;
    let old = gateway.upstream().expect_page(world::SUPPORT, 1, 20);
    page(&gateway, "").await;
    let newest = gateway.upstream().task_ids(world::SUPPORT).remove(0);
    gateway
        .upstream()
        .set_status(world::SUPPORT, &newest, "changed");
    let new = gateway.upstream().expect_page(world::SUPPORT, 1, 20);
    assert_ne!(old, new);

    let hold = gateway.upstream().hold();
    for _ in 0..3 {
        let stale = page(&gateway, "").await;
        stale.assert_page(&old);
        assert_eq!(stale.cache_status(), "hit; detail=stale-while-revalidate");
    }
    gateway.upstream().wait_for_requests(2).await;
    hold.release();
    gateway.wait_until_filled().await;

    let asked = gateway.tasks(world::SUPPORT, "");
    let stored = asked.cache_control("only-if-cached").await;
    stored.assert_page(&new);
    assert_eq!(gateway.upstream().requests(), 2);
}

#[tokio::test]
async fn a_matching_etag_is_answered_304_without_a_call() {
    let gateway = start().await;
    let first = page(&gateway, "").await;
    let etag = first.header("etag").unwrap();
    let strong = etag.trim_start_matches("W/");
    for list in [
        etag,
        strong,
        "*",
        &format!("\"other\", {etag}"),
        &format!("W/\"a,b\",{strong} , \"c\""),
    ] {
        let asked = gateway.tasks(world::SUPPORT, "").if_none_match(list);

        let answer = asked.await;

        assert_eq!(answer.status, 304, "{list}");
        assert_eq!(answer.header("etag"), Some(etag));
        for name in ["cache-control", "vary", "date", "link", "x-list-generation"] {
            assert!(answer.header(name).is_some(), "{name}");
        }
        assert_eq!(answer.cache_status(), "hit");
    }
    for list in ["\"other\"", "W/\"other\"", "other", ""] {
        let asked = gateway.tasks(world::SUPPORT, "").if_none_match(list);
        asked.await.assert_page(&first.body);
    }
    assert_eq!(gateway.upstream().requests(), 1);
}

#[tokio::test]
async fn a_304_may_come_of_a_fill_too() {
    let gateway = start().await;
    let etag = page(&gateway, "").await;
    let etag = etag.header("etag").unwrap();

    let asked = gateway.tasks(world::SUPPORT, "").key(REFRESHER);
    let answer = asked.cache_control("no-cache").if_none_match(etag).await;

    assert_eq!(answer.status, 304);
    assert_eq!(gateway.upstream().requests(), 2);
}

#[tokio::test]
async fn two_pages_have_two_etags_and_one_page_one_whatever_its_coding() {
    let gateway = start().await;
    let first = page(&gateway, "").await;
    let second = page(&gateway, "?page=2").await;
    let coded = gateway.tasks(world::SUPPORT, "");
    let coded = coded.accept_encoding("gzip").await;

    assert_ne!(first.header("etag"), second.header("etag"));
    assert_eq!(first.header("etag"), coded.header("etag"));
}

#[tokio::test]
async fn a_hit_has_the_coding_that_was_negotiated() {
    let gateway = start().await;
    let identity = page(&gateway, "").await;
    for (accepted, coding) in [
        ("gzip", Some("gzip")),
        ("br", Some("br")),
        ("zstd", Some("zstd")),
        ("gzip, br, zstd", Some("br")),
        ("gzip, deflate", Some("gzip")),
        ("br;q=0.5, gzip;q=0.9", Some("gzip")),
        ("br;q=0, gzip;q=0.001", Some("gzip")),
        ("*", Some("br")),
        ("*;q=0.5, br;q=0", Some("zstd")),
        ("GZIP", Some("gzip")),
        ("gzip;q=0", None),
        ("*;q=0", None),
        ("identity", None),
        ("identity, gzip;q=0.5", None),
        ("deflate, compress", None),
        ("", None),
        ("gzip;q=bad", None),
    ] {
        let asked = gateway.tasks(world::SUPPORT, "");

        let answer = asked.accept_encoding(accepted).await;

        assert_eq!(answer.header("content-encoding"), coding, "{accepted}");
        assert!(answer.decoded() == identity.body, "{accepted}");
        assert!(coding.is_none() || answer.body.len() < identity.body.len());
        let length = answer.body.len().to_string();
        assert_eq!(answer.header("content-length"), Some(length.as_str()));
    }
    assert_eq!(gateway.upstream().requests(), 1);
}

#[tokio::test]
async fn a_fill_is_answered_whole_whatever_coding_was_asked_for() {
    let gateway = start().await;
    let expected = gateway.upstream().expect_page(world::SUPPORT, 1, 20);

    let asked = gateway.tasks(world::SUPPORT, "");
    let answer = asked.accept_encoding("gzip").await;

    assert!(answer.decoded() == expected);
}

#[tokio::test]
async fn no_hit_is_refused_however_many_variants_are_asked_for_at_once() {
    let gateway = start().await;
    let pages = 1..=25;
    for number in pages.clone() {
        let query = format!("?page={number}");
        gateway.tasks(world::ARCHIVE, &query).await;
    }
    let mut asked = Vec::new();
    for number in pages {
        for accepted in ["br", "zstd", "gzip", "gzip, identity;q=0"] {
            let query = format!("?page={number}");
            let ask = gateway.tasks(world::ARCHIVE, &query);
            let answer = ask.accept_encoding(accepted).spawn();
            asked.push((number, accepted, answer));
        }
    }
    for (number, accepted, answer) in asked {
        let answer = answer.await.unwrap();
        assert_eq!(answer.status, 200);
        let expected = gateway.upstream().expect_page(world::ARCHIVE, number, 20);
        assert!(answer.decoded() == expected, "{number} {accepted}");
        match answer.header("content-encoding") {
            None => assert!(!accepted.contains("identity"), "{number} {accepted}"),
            Some(coding) => assert!(accepted.starts_with(coding), "{number} {accepted}"),
        }
    }
}

#[tokio::test]
async fn a_client_that_takes_no_identity_gets_none_of_a_fill_either() {
    for refuses in ["gzip, identity;q=0", "gzip, *;q=0"] {
        let gateway = start().await;
        for how in ["fill", "hit"] {
            let asked = gateway.tasks(world::SUPPORT, "");
            let answer = asked.accept_encoding(refuses).await;
            let coding = answer.header("content-encoding");
            assert_eq!(coding, Some("gzip"), "{how}, {refuses}");
        }
    }
}

#[tokio::test]
async fn an_error_is_never_coded() {
    let gateway = start().await;
    let asked = gateway.tasks(world::UNKNOWN_SPACE, "");

    let answer = asked.accept_encoding("br, gzip, zstd").await;

    answer.assert_error("space_not_found");
}

#[tokio::test]
async fn pages_of_one_state_of_the_list_share_a_generation() {
    let gateway = start().await;
    let first = page(&gateway, "").await;
    let second = page(&gateway, "?page=2").await;
    assert_eq!(generation(&first), generation(&second));

    gateway.upstream().add_task(world::SUPPORT);
    let moved = refresh(&gateway, "").await;
    assert_ne!(generation(&moved), generation(&first));

    // The move turned the other page stale: it is fetched anew, as it stands now.
    let second = page(&gateway, "?page=2").await;
    let expected = gateway.upstream().expect_page(world::SUPPORT, 2, 20);
    second.assert_page(&expected);
    assert_eq!(generation(&second), generation(&moved));
    assert_eq!(second.cache_status(), "fwd=stale; fwd-status=200; stored");
}

#[tokio::test]
async fn a_task_that_merely_changed_moves_nothing() {
    let gateway = start().await;
    let first = page(&gateway, "").await;
    page(&gateway, "?page=2").await;
    let newest = gateway.upstream().task_ids(world::SUPPORT).remove(0);
    gateway
        .upstream()
        .set_status(world::SUPPORT, &newest, "changed");

    let changed = refresh(&gateway, "").await;

    assert_ne!(changed.body, first.body);
    assert_eq!(generation(&changed), generation(&first));
    assert_eq!(page(&gateway, "?page=2").await.cache_status(), "hit");
}

#[tokio::test]
async fn a_page_from_before_the_move_stands_in_for_errors() {
    let gateway = start().await;
    let old = page(&gateway, "?page=2").await;
    page(&gateway, "").await;
    gateway.upstream().add_task(world::SUPPORT);
    refresh(&gateway, "").await;
    let outage = Fault::always(FaultKind::ServerError);
    gateway.upstream().set_faults(vec![outage]);

    let answer = page(&gateway, "?page=2").await;

    answer.assert_page(&old.body);
    assert_eq!(answer.cache_status(), "hit; detail=stale-if-error");
    assert_eq!(generation(&answer), generation(&old));
}

#[tokio::test]
async fn without_coherent_pages_there_is_no_generation_and_no_move() {
    let apart = "[cache]\ncoherent_pages = false";
    let gateway = setup().with(apart).start().await;
    page(&gateway, "?page=2").await;
    gateway.upstream().add_task(world::SUPPORT);

    let first = page(&gateway, "").await;

    assert_eq!(first.header("x-list-generation"), None);
    assert_eq!(page(&gateway, "?page=2").await.cache_status(), "hit");
}

#[tokio::test]
async fn only_a_client_that_may_refresh_causes_a_call() {
    let gateway = start().await;
    page(&gateway, "").await;
    let forcing = ["no-cache", "max-age=0", "min-fresh=86400", "no-store"];
    for directives in forcing {
        let asked = gateway.tasks(world::SUPPORT, "");
        let answer = asked.cache_control(directives).await;
        assert_eq!(answer.cache_status(), "hit", "{directives}");
    }
    assert_eq!(gateway.upstream().requests(), 1);

    for (calls, directives) in (2..).zip(&forcing[..3]) {
        let asked = gateway.tasks(world::SUPPORT, "").key(REFRESHER);
        let answer = asked.cache_control(directives).await;
        assert_eq!(
            answer.cache_status(),
            "fwd=request; fwd-status=200; stored",
            "{directives}"
        );
        assert_eq!(gateway.upstream().requests(), calls);
    }
    // It never forbids reuse.
    let asked = gateway.tasks(world::SUPPORT, "").key(REFRESHER);
    let answer = asked.cache_control("no-store").await;
    assert_eq!(answer.cache_status(), "hit");
}

#[tokio::test]
async fn a_forced_fill_that_fails_leaves_the_page_standing_in() {
    let gateway = start().await;
    let stored = page(&gateway, "").await;
    let outage = Fault::always(FaultKind::ServerError);
    gateway.upstream().set_faults(vec![outage]);

    let forced = refresh(&gateway, "").await;

    forced.assert_page(&stored.body);
    assert_eq!(forced.cache_status(), "hit; detail=stale-if-error");
    assert_eq!(page(&gateway, "").await.cache_status(), "hit");
}

#[tokio::test]
async fn a_miss_with_no_store_is_not_stored_for_who_may_say_so() {
    let gateway = start().await;
    let asked = gateway.tasks(world::SUPPORT, "").key(REFRESHER);
    let bypassed = asked.cache_control("no-store").await;
    assert_eq!(bypassed.cache_status(), "fwd=bypass; fwd-status=200");

    let asked = gateway.tasks(world::SUPPORT, "");
    let stored = asked.cache_control("no-store").await;
    assert_eq!(
        stored.cache_status(),
        "fwd=uri-miss; fwd-status=200; stored"
    );
    assert_eq!(page(&gateway, "").await.cache_status(), "hit");
    assert_eq!(gateway.upstream().requests(), 2);
}

#[tokio::test]
async fn only_if_cached_takes_what_is_stored() {
    let gateway = setup().with("[cache]\nttl = \"0s\"").start().await;
    page(&gateway, "").await;

    let asked = gateway.tasks(world::SUPPORT, "");
    let answer = asked.cache_control("only-if-cached").await;

    assert_eq!(answer.status, 200);
    assert_eq!(answer.cache_status(), "hit; detail=only-if-cached");
    gateway.wait_until_filled().await;
    assert_eq!(gateway.upstream().requests(), 1);
}

#[tokio::test]
async fn a_client_that_takes_stale_pages_gets_one_without_a_call() {
    let gateway = setup().with(STALE_AT_ONCE).start().await;
    page(&gateway, "").await;

    let asked = gateway.tasks(world::SUPPORT, "");
    let answer = asked.cache_control("max-stale=60").await;

    assert_eq!(answer.cache_status(), "hit; detail=max-stale");
    assert_eq!(answer.header("cache-control"), Some("private, no-cache"));
    assert_eq!(gateway.upstream().requests(), 1);
}

#[tokio::test]
async fn nobody_gets_a_page_by_max_stale_that_could_stand_in_for_no_error() {
    for (configured, said) in [
        ("stale_if_error = \"0s\"", ""),
        ("stale_if_error = \"0s\"", "stale-if-error=600"),
        ("", "stale-if-error=0"),
        ("", "must-revalidate"),
    ] {
        let config = format!("{STALE_AT_ONCE}\n{configured}");
        let gateway = setup().with(&config).start().await;
        let page = || fillable().header("cache-control", said);
        gateway
            .upstream()
            .script("STALE", vec![page(), page(), page()]);
        for asked in ["max-stale", "max-stale=600", "max-age=600, max-stale"] {
            let asked = gateway.tasks("STALE", "").cache_control(asked).await;
            assert_eq!(asked.status, 200);
        }
        let calls = gateway.upstream().requests_to("STALE");
        assert_eq!(calls, 3, "{configured} {said}");
    }
}

// RFC 9111 section 4.2: the client counts from `Age` on.
#[tokio::test]
async fn clients_may_keep_a_page_for_so_long_from_now_whatever_its_age() {
    let gateway = setup()
        .with("[cache]\nclient_max_age = \"7s\"\nttl = \"90s\"\njitter = 0.0")
        .start()
        .await;
    let aged = |age: &str, control: &str| {
        let answer = fillable().header("age", age);
        answer.header("cache-control", control)
    };
    for (space, script, least, most) in [
        ("NEW", fillable(), 7, 7),
        ("AGED", aged("40", "max-age=90"), 7, 7),
        ("AGED_WITHIN_TTL", fillable().header("age", "40"), 7, 7),
        ("ENDS_SOON", aged("85", "max-age=90"), 1, 5),
    ] {
        gateway.upstream().script(space, vec![script]);
        for how in ["fill", "hit"] {
            let answer = gateway.tasks(space, "").await;
            let age: u64 = answer.header("age").unwrap_or("0").parse().unwrap();
            let told = answer.header("cache-control").unwrap();
            let told = told.strip_prefix("private, max-age=").unwrap();
            let left = told.parse::<u64>().unwrap() - age;
            assert!((least..=most).contains(&left), "{space} {how}: {left} left");
        }
    }
    for control in ["max-age=0", "no-cache", "no-store", "max-age=40"] {
        let answer = aged("40", control);
        gateway.upstream().script("NOT_FRESH", vec![answer]);
        let answer = gateway.tasks("NOT_FRESH", "").await;
        let told = answer.header("cache-control");
        assert_eq!(told, Some("private, no-cache"), "{control}");
    }
}

fn fillable() -> Scripted {
    Scripted::json(200, r#"{"count":1,"data":[{"task_id":"T"}]}"#)
}

#[tokio::test]
async fn an_upstream_that_validates_is_asked_whether_the_page_still_holds() {
    let gateway = setup().with(STALE_AT_ONCE).start().await;
    let modified = "Mon, 23 Nov 2020 20:48:28 GMT";
    let full = fillable()
        .header("etag", "\"v1\"")
        .header("last-modified", modified);
    let held = Scripted::new(304, "").header("etag", "\"v1\"");
    gateway.upstream().script("VALID", vec![full, held]);

    let first = gateway.tasks("VALID", "").await;
    let second = gateway.tasks("VALID", "").await;

    assert_eq!(first.header("last-modified"), Some(modified));
    assert_ne!(first.header("etag"), Some("\"v1\""));
    second.assert_page(&first.body);
    assert_eq!(second.cache_status(), "fwd=stale; fwd-status=304; stored");
    let recorded = gateway.upstream().recorded();
    assert_eq!(recorded[0].header("if-none-match"), None);
    assert_eq!(recorded[1].header("if-none-match"), Some("\"v1\""));
    assert_eq!(recorded[1].header("if-modified-since"), Some(modified));
}

// RFC 9111 section 4.3.4.
#[tokio::test]
async fn a_304_with_another_tag_shows_nobody_the_old_page() {
    let gateway = setup().with(STALE_AT_ONCE).start().await;
    let new = r#"{"count":1,"data":[{"task_id":"NEW"}]}"#;
    let script = vec![
        fillable().header("etag", "\"v1\""),
        Scripted::new(304, "").header("etag", "\"v2\""),
        Scripted::json(200, new).header("etag", "\"v2\""),
        Scripted::new(304, "").header("etag", "W/\"v2\""),
    ];
    gateway.upstream().script("CHANGED", script);

    gateway.tasks("CHANGED", "").await;
    let changed = gateway.tasks("CHANGED", "").await;
    let held = gateway.tasks("CHANGED", "").await;

    changed.assert_page(new.as_bytes());
    assert_eq!(changed.cache_status(), "fwd=stale; fwd-status=200; stored");
    held.assert_page(new.as_bytes());
    assert_eq!(held.cache_status(), "fwd=stale; fwd-status=304; stored");
    let recorded = gateway.upstream().recorded();
    let conditions: Vec<_> = recorded
        .iter()
        .map(|request| request.header("if-none-match"))
        .collect();
    assert_eq!(conditions, [None, Some("\"v1\""), None, Some("\"v2\"")]);
}

#[tokio::test]
async fn what_the_upstream_says_of_caching_rules() {
    let gateway = start().await;
    for (space, directives, calls) in [
        ("NOSTORE", "no-store", 2),
        ("PRIVATE", "private", 2),
        ("OVER", "max-age=0", 2),
        ("LONG", "max-age=3600", 1),
        ("SHARED", "max-age=0, s-maxage=3600", 1),
    ] {
        let answer = fillable().header("cache-control", directives);
        gateway.upstream().script(space, vec![answer]);
        for _ in 0..2 {
            let answer = gateway.tasks(space, "").await;
            assert_eq!(answer.header("cache-control"), Some("private, no-cache"));
        }
        assert_eq!(gateway.upstream().requests_to(space), calls, "{space}");
    }
}

#[tokio::test]
async fn nothing_of_the_upstreams_header_gets_out_but_what_is_named() {
    let gateway = start().await;
    let names = [
        "server",
        "set-cookie",
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-powered-by",
        "content-language",
        "allow",
        "etag",
        "link",
        "location",
        "retry-after",
        "via",
        "x-request-id",
        "cache-status",
        "www-authenticate",
        "access-control-allow-origin",
        "content-disposition",
        "x-list-generation",
    ];
    let answer = names
        .iter()
        .fold(fillable(), |answer, name| answer.header(name, "canary"));
    gateway.upstream().script("NOISY", vec![answer]);
    for _ in ["fill", "hit"] {
        let answer = gateway.tasks("NOISY", "").await;
        for (name, value) in &answer.headers {
            assert!(!value.to_str().unwrap().contains("canary"), "{name}");
        }
    }
}

#[tokio::test]
async fn the_store_keeps_within_its_bytes() {
    let small = "[cache]\nmax_bytes = \"300KiB\"";
    let gateway = setup().with(small).start().await;
    for number in 1..=57 {
        let query = format!("?page={number}&page_size=8");
        assert_eq!(page(&gateway, &query).await.status, 200);
        let (bytes, _) = gateway.app.pages().store().size();
        assert!(bytes <= 300 * 1024, "{bytes}");
    }
}
