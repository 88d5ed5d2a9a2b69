//! Clients that see only some members of a task: what they get, and what it costs.

use unpod_gateway::{
    domain::{FieldPath, View},
    simulator::{Fault, FaultKind, Scripted, world},
};

use crate::{
    answer::Ask,
    gateway::{Gateway, Setup, client, setup},
};

/// Sees what [`FIELDS`] name.
const BROWSER: &str = "ugw_browser_key";
/// Sees the task's id alone.
const COUNTER: &str = "ugw_counter_key";

const FIELDS: [&str; 4] = [
    "task_id",
    "status",
    "output.post_call_data.structured_data",
    "attachments.size",
];
/// What tasks hold that none of [`FIELDS`] leads to.
const HIDDEN: [&str; 5] = ["phone", "transcript", "recording_url", "email", "Lead"];

fn viewed() -> Setup {
    let sections = [
        format!("[views.public]\nfields = {FIELDS:?}\n[views.ids]\nfields = [\"task_id\"]\n"),
        client("browser", BROWSER, "spaces = [\"*\"]\nview = \"public\""),
        client("counter", COUNTER, "spaces = [\"*\"]\nview = \"ids\""),
    ];
    setup().with(&sections.concat())
}

fn shown(page: &[u8], fields: &[&str]) -> Vec<u8> {
    let paths: Vec<_> = fields
        .iter()
        .map(|field| FieldPath::dotted(field).unwrap())
        .collect();
    View::new(&paths).apply(page).unwrap().into()
}

fn browser(gateway: &Gateway, space: &str) -> Ask {
    gateway.tasks(space, "").key(BROWSER)
}

#[tokio::test]
async fn a_viewed_client_gets_the_members_it_may_see_byte_for_byte() {
    let gateway = viewed().start().await;
    for space in [
        world::SUPPORT,
        world::TRANSCRIPTS,
        world::UNICODE,
        world::EMPTY,
    ] {
        let page = gateway.upstream().expect_page(space, 1, 20);
        for _ in ["fill", "hit"] {
            let answer = browser(&gateway, space).await;

            answer.assert_page(&shown(&page, &FIELDS));
            let text = String::from_utf8(answer.body.into()).unwrap();
            for hidden in HIDDEN {
                assert!(!text.contains(hidden), "{hidden} in {space}");
            }
            if space == world::UNICODE {
                for kept in [
                    "1e+22",
                    "-0.0",
                    "9007199254740993",
                    r#""dotted.key":"v","":"#,
                ] {
                    assert!(text.contains(kept), "{kept} is lost");
                }
            }
        }
    }
}

#[tokio::test]
async fn clients_of_any_view_share_one_fill() {
    let gateway = viewed().start().await;
    let page = gateway.upstream().expect_page(world::SUPPORT, 1, 20);
    let whole = || gateway.tasks(world::SUPPORT, "");

    let hold = gateway.upstream().hold();
    let asked = [whole().key(BROWSER), whole(), whole().key(COUNTER)].map(Ask::spawn);
    gateway.wait_until_in_flight(3).await;
    hold.release();

    let [browser, all, counter] = asked;
    browser.await.unwrap().assert_page(&shown(&page, &FIELDS));
    all.await.unwrap().assert_page(&page);
    counter
        .await
        .unwrap()
        .assert_page(&shown(&page, &["task_id"]));
    assert_eq!(gateway.upstream().requests(), 1);
    let hit = whole().key(COUNTER).await;
    assert_eq!(hit.cache_status(), "hit");
    assert_eq!(gateway.upstream().requests(), 1);
}

#[tokio::test]
async fn a_view_has_an_etag_of_its_own_and_the_fields_of_the_page() {
    let gateway = viewed().start().await;
    gateway.tasks(world::SUPPORT, "?page=2").await;
    let asked = |key| gateway.tasks(world::SUPPORT, "?page=2").key(key);
    let whole = gateway.tasks(world::SUPPORT, "?page=2").await;
    let viewed = asked(BROWSER).await;
    let other = asked(COUNTER).await;

    let etags = [&whole, &viewed, &other].map(|answer| answer.header("etag").unwrap());
    assert!(etags.iter().all(|etag| etag.starts_with("W/\"")));
    assert!(etags[0] != etags[1] && etags[1] != etags[2] && etags[0] != etags[2]);
    assert_eq!(viewed.cache_status(), "hit");
    assert!(viewed.header("age").is_some());
    for name in ["link", "x-list-generation", "vary", "date", "cache-control"] {
        assert_eq!(viewed.header(name), whole.header(name), "{name}");
    }

    let head = gateway.ask("HEAD", &format!("/spaces/{}/tasks?page=2", world::SUPPORT));
    let head = head.key(BROWSER).await;
    for name in ["etag", "content-length", "content-type", "link"] {
        assert_eq!(head.header(name), viewed.header(name), "{name}");
    }
}

#[tokio::test]
async fn a_condition_is_judged_by_the_views_own_etag() {
    let gateway = viewed().start().await;
    let whole = gateway.tasks(world::SUPPORT, "").await;
    let viewed = browser(&gateway, world::SUPPORT).await;
    let whole = whole.header("etag").unwrap();
    let own = viewed.header("etag").unwrap();
    for (list, status) in [(own, 304), (whole, 200), ("*", 304)] {
        let answer = browser(&gateway, world::SUPPORT).if_none_match(list).await;
        assert_eq!(answer.status, status, "{list}");
        assert_eq!(answer.header("etag"), Some(own), "{list}");
    }
    let foreign = gateway.tasks(world::SUPPORT, "").if_none_match(own).await;
    assert_eq!(foreign.status, 200);
}

#[tokio::test]
async fn a_view_is_coded_like_the_whole_page() {
    let gateway = viewed().start().await;
    let page = gateway.upstream().expect_page(world::TRANSCRIPTS, 1, 20);
    let whole = gateway.tasks(world::TRANSCRIPTS, "");
    whole.accept_encoding("gzip").await;
    for coding in ["gzip", "br", "zstd"] {
        for _ in ["made", "kept"] {
            let answer = browser(&gateway, world::TRANSCRIPTS);
            let answer = answer.accept_encoding(coding).await;

            assert_eq!(answer.header("content-encoding"), Some(coding));
            assert!(answer.decoded() == shown(&page, &FIELDS), "{coding}");
        }
    }
}

#[tokio::test]
async fn a_page_cut_from_others_is_seen_through_the_view() {
    let assembling = viewed().with("[cache]\nassemble_pages = true");
    let gateway = assembling.start().await;
    gateway.tasks(world::SUPPORT, "").await;

    let cut = gateway.tasks(world::SUPPORT, "?page_size=5").key(BROWSER);
    let cut = cut.await;

    assert_eq!(cut.cache_status(), "hit; detail=assembled");
    let page = gateway.upstream().expect_page(world::SUPPORT, 1, 5);
    cut.assert_page(&shown(&page, &FIELDS));
    assert_eq!(gateway.upstream().requests(), 1);
}

#[tokio::test]
async fn a_page_that_stands_in_is_seen_through_the_view() {
    let stale_at_once = "[cache]\nttl = \"0s\"\nstale_while_revalidate = \"0s\"";
    let gateway = viewed().with(stale_at_once).start().await;
    let page = gateway.upstream().expect_page(world::SUPPORT, 1, 20);
    gateway.tasks(world::SUPPORT, "").await;
    let outage = Fault::always(FaultKind::ServerError);
    gateway.upstream().set_faults(vec![outage]);

    let answer = browser(&gateway, world::SUPPORT).await;

    assert_eq!(answer.cache_status(), "hit; detail=stale-if-error");
    answer.assert_page(&shown(&page, &FIELDS));
}

#[tokio::test]
async fn a_page_that_changed_is_shown_as_it_is_now() {
    let gateway = viewed().with("[cache]\nttl = \"0s\"\nstale_while_revalidate = \"0s\"");
    let gateway = gateway.start().await;
    let before = browser(&gateway, world::SUPPORT).await;
    let newest = gateway.upstream().task_ids(world::SUPPORT).remove(0);
    gateway
        .upstream()
        .set_status(world::SUPPORT, &newest, "changed");

    let after = browser(&gateway, world::SUPPORT).await;

    let page = gateway.upstream().expect_page(world::SUPPORT, 1, 20);
    after.assert_page(&shown(&page, &FIELDS));
    assert_ne!(after.header("etag"), before.header("etag"));
}

#[tokio::test]
async fn what_the_upstream_adds_or_misshapes_is_hidden() {
    let gateway = viewed().start().await;
    for (space, page, expected) in [
        (
            "ADDED",
            r#"{"count":1,"status_code":200,"message":"ok","secret":1,"data":[{"task_id":"T","secret":{"task_id":"S"},"status":"x"}],"errors":"secret"}"#,
            r#"{"count":1,"status_code":200,"message":"ok","data":[{"task_id":"T","status":"x"}]}"#,
        ),
        (
            "MISSHAPEN",
            r#"{"count":4,"data":["secret",7,null,{"output":"secret"},["secret",{"secret":1}],{"output":null,"attachments":[null,"secret",{"size":1,"url":"secret"}]}]}"#,
            r#"{"count":4,"data":[null,{},[{}],{"output":null,"attachments":[null,{"size":1}]}]}"#,
        ),
        (
            "TWICE",
            r#"{"count":1,"data":[{"task_id":"T","secret":1,"task\u005fid":"U","task_id":"V"}]}"#,
            r#"{"count":1,"data":[{"task_id":"T","task\u005fid":"U","task_id":"V"}]}"#,
        ),
    ] {
        let answer = Scripted::json(200, page);
        gateway.upstream().script(space, vec![answer]);

        browser(&gateway, space)
            .await
            .assert_page(expected.as_bytes());
        gateway.tasks(space, "").await.assert_page(page.as_bytes());
    }
}

#[tokio::test]
async fn an_error_is_the_same_through_every_view() {
    let gateway = viewed().start().await;
    let refused = browser(&gateway, world::UNKNOWN_SPACE).await;
    refused.assert_error("space_not_found");
}

#[tokio::test]
async fn a_renewed_page_keeps_what_was_made_of_it() {
    let gateway = viewed().with("[cache]\nttl = \"0s\"\nstale_while_revalidate = \"0s\"");
    let gateway = gateway.start().await;
    let page = r#"{"count":1,"data":[{"task_id":"T","secret":1}]}"#;
    let first = Scripted::json(200, page).header("etag", "\"v1\"");
    let held = Scripted::new(304, "").header("etag", "\"v1\"");
    gateway.upstream().script("HELD", vec![first, held]);
    let before = browser(&gateway, "HELD").await;

    let after = browser(&gateway, "HELD").await;

    assert_eq!(after.cache_status(), "fwd=stale; fwd-status=304; stored");
    after.assert_page(br#"{"count":1,"data":[{"task_id":"T"}]}"#);
    assert_eq!(after.header("etag"), before.header("etag"));
}
