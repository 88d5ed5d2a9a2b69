//! What the upstream says of its clock, its limits and itself: how far it is believed, and what a client sees of it.

use std::time::{Duration, SystemTime};

use unpod_gateway::simulator::Scripted;

use crate::gateway::start;

const PAGE: &str = r#"{"count":0,"status_code":200,"message":"ok","data":[]}"#;

/// The HTTP-date of an upstream whose clock differs by `seconds` from ours.
fn date(seconds: i64) -> String {
    let difference = Duration::from_secs(seconds.unsigned_abs());
    let now = SystemTime::now();
    httpdate::fmt_http_date(if seconds < 0 {
        now - difference
    } else {
        now + difference
    })
}

#[tokio::test]
async fn an_upstream_whose_clock_is_wrong_is_cached_as_any_other() {
    let gateway = start().await;
    for (space, seconds) in [
        ("BEHIND", -120),
        ("FAR_BEHIND", -86_400),
        ("RIGHT", 0),
        ("AHEAD", 120),
    ] {
        let answer = Scripted::json(200, PAGE).header("date", &date(seconds));
        gateway.upstream().script(space, vec![answer]);

        gateway.tasks(space, "").await.assert_page(PAGE.as_bytes());
        let again = gateway.tasks(space, "").await;

        assert_eq!(again.cache_status(), "hit", "{space}");
        let age: u64 = again.header("age").unwrap().parse().unwrap();
        assert!(age < 30, "{space}: {age}");
        assert_eq!(gateway.upstream().requests_to(space), 1, "{space}");
    }
}
