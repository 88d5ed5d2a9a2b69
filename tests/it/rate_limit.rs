//! A client's own limit: what draws on it, what it is told, and what it costs nobody else.
//!
//! Every limit here takes hours to fill up, so that no clock has a part in what is asserted.

use sfv::{List, ListEntry, Parser};
use unpod_gateway::simulator::{Scripted, world};

use crate::{
    answer::{Answer, Ask},
    gateway::{Gateway, client, digest, setup},
};

const LIMITED: &str = "ugw_limited_key";
const LIMITED_NEXT: &str = "ugw_limited_next_key";
/// 10 000 s until one more request is allowed.
const SLOW: &str = "per_second = 0.0001";

/// A gateway with a client that may ask `burst` times.
async fn start_limited(burst: u32) -> Gateway {
    let spaces = [world::SUPPORT, world::UNKNOWN_SPACE, "FAILING"];
    let rest = format!("spaces = {spaces:?}\nrate_limit = {{ {SLOW}, burst = {burst} }}");
    let limited = client("limited", LIMITED, &rest);
    setup().with(&limited).start().await
}

fn limited(gateway: &Gateway, space: &str) -> Ask {
    gateway.tasks(space, "").key(LIMITED)
}

fn parsed(answer: &Answer, name: &str) -> List {
    let value = answer.header(name).expect("the answer has the field");
    Parser::new(value).parse().unwrap()
}

/// An integer parameter of the field's only member, which is called `default`.
fn parameter(answer: &Answer, name: &str, parameter: &str) -> i64 {
    let list = parsed(answer, name);
    let [ListEntry::Item(only)] = &list[..] else {
        panic!("{name} has not one member: {list:?}");
    };
    let policy = only.bare_item.as_string().unwrap();
    assert_eq!(policy.as_str(), "default");
    let value = only.params.get(parameter).unwrap();
    value.as_integer().unwrap().into()
}

fn remaining(answer: &Answer) -> i64 {
    parameter(answer, "ratelimit", "r")
}

#[tokio::test]
async fn beyond_the_burst_a_client_is_refused_and_told_when_to_come_back() {
    let gateway = start_limited(2).await;
    for left in [1, 0] {
        let answer = limited(&gateway, world::SUPPORT).await;
        assert_eq!(answer.status, 200);
        assert_eq!(remaining(&answer), left);
        assert_eq!(parameter(&answer, "ratelimit-policy", "q"), 2);
        assert_eq!(parameter(&answer, "ratelimit-policy", "w"), 20_000);
    }

    let refused = limited(&gateway, world::SUPPORT).await;

    refused.assert_error("rate_limited");
    assert_eq!(remaining(&refused), 0);
    let wait: i64 = refused.header("retry-after").unwrap().parse().unwrap();
    // The rest of 10 000 s, of which the test has used up some.
    assert!((9_000..=10_000).contains(&wait), "{wait}");
    assert_eq!(parameter(&refused, "ratelimit", "t"), wait);
    assert_eq!(parameter(&refused, "ratelimit-policy", "q"), 2);
    assert_eq!(refused.header("cache-status"), None);
    assert_eq!(gateway.upstream().requests(), 1);
}

#[tokio::test]
async fn every_answer_behind_the_limit_tells_what_is_left() {
    let gateway = start_limited(6).await;
    let failed = Scripted::new(500, "");
    gateway.upstream().script("FAILING", vec![failed]);

    let page = limited(&gateway, world::SUPPORT).await;
    let etag = page.header("etag").unwrap();
    let head = gateway.ask("HEAD", &format!("/spaces/{}/tasks/", world::SUPPORT));
    let platform = format!("/api/v2/platform/spaces/{}/tasks/", world::SUPPORT);
    let answers = [
        (limited(&gateway, world::SUPPORT).if_none_match(etag), 304),
        (head.key(LIMITED), 200),
        (gateway.get(&platform).key(LIMITED), 200),
        (limited(&gateway, world::UNKNOWN_SPACE), 404),
        (limited(&gateway, "FAILING"), 502),
    ];
    for (left, (ask, status)) in (0..5).rev().zip(answers) {
        let answer = ask.await;
        assert_eq!(answer.status, status);
        assert_eq!(remaining(&answer), left, "{status}");
    }
}

#[tokio::test]
async fn what_is_refused_before_the_limit_draws_on_nothing() {
    let gateway = start_limited(2).await;
    assert_eq!(remaining(&limited(&gateway, world::SUPPORT).await), 1);
    let path = format!("/spaces/{}/tasks", world::SUPPORT);
    for (ask, code) in [
        (gateway.get(&format!("{path}?page=0")), "invalid_parameter"),
        (gateway.get(&format!("{path}?other=1")), "unknown_parameter"),
        (gateway.get("/spaces/a%20b/tasks"), "invalid_space_token"),
        (gateway.tasks(world::ARCHIVE, ""), "space_not_allowed"),
        (gateway.ask("POST", &path), "method_not_allowed"),
        (gateway.get("/nowhere"), "route_not_found"),
    ] {
        for _ in 0..3 {
            let answer = ask.clone().key(LIMITED).await;
            answer.assert_error(code);
            assert_eq!(answer.header("ratelimit"), None, "{code}");
        }
    }

    assert_eq!(remaining(&limited(&gateway, world::SUPPORT).await), 0);
}

#[tokio::test]
async fn a_limit_is_its_clients_alone_and_one_for_both_keys() {
    let limit = format!("spaces = [\"*\"]\nrate_limit = {{ {SLOW}, burst = 1 }}");
    let other = client("other", "ugw_other_key", &limit);
    let two_keys = format!(
        "[[clients]]\nname = \"limited\"\nspaces = [\"*\"]\nkey_sha256 = [\"{}\", \"{}\"]\n\
         rate_limit = {{ {SLOW}, burst = 2 }}\n",
        digest(LIMITED),
        digest(LIMITED_NEXT)
    );
    let gateway = setup().with(&(other + &two_keys)).start().await;
    let asked = |key| gateway.tasks(world::SUPPORT, "").key(key);

    assert_eq!(remaining(&asked(LIMITED).await), 1);
    assert_eq!(remaining(&asked(LIMITED_NEXT).await), 0);
    for key in [LIMITED, LIMITED_NEXT] {
        asked(key).await.assert_error("rate_limited");
    }
    assert_eq!(remaining(&asked("ugw_other_key").await), 0);
    let unlimited = gateway.tasks(world::SUPPORT, "").await;
    assert_eq!(unlimited.status, 200);
    assert_eq!(unlimited.header("ratelimit"), None);
    assert_eq!(unlimited.header("ratelimit-policy"), None);
}

#[tokio::test]
async fn requests_at_once_get_no_more_than_there_is() {
    let gateway = start_limited(5).await;
    let asked: Vec<_> = (0..20)
        .map(|_| limited(&gateway, world::SUPPORT).spawn())
        .collect();
    let mut served = 0;
    for answer in asked {
        let answer = answer.await.unwrap();
        match answer.status {
            200 => served += 1,
            _ => answer.assert_error("rate_limited"),
        }
    }
    assert_eq!(served, 5);
}

#[tokio::test]
async fn refusals_are_counted_as_the_clients() {
    let gateway = start_limited(1).await;
    for _ in 0..3 {
        limited(&gateway, world::SUPPORT).await;
    }

    let metrics = gateway
        .http()
        .get(format!("{}/metrics", gateway.admin_url()));
    let metrics = metrics.send().await.unwrap().text().await.unwrap();

    let counted = r#"gateway_http_requests_total{route="tasks",status="429",client="limited"} 2"#;
    assert!(metrics.contains(counted), "{metrics}");
}
