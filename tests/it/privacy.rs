//! Whatever stands between the gateway and a client keeps no answer for another: on every status there is.

use unpod_gateway::simulator::{Fault, FaultKind, Scripted, world};

use crate::{
    answer::Ask,
    gateway::{client, setup},
};

const CORS: &str = "[cors]\norigins = [\"https://app.example.com\"]\n";

#[tokio::test]
async fn every_answer_is_private_or_not_stored_and_varies_by_who_asks() {
    for cors in ["", CORS] {
        let limited = client(
            "limited",
            "ugw_limited_key",
            "spaces = [\"*\"]\nrate_limit = { per_second = 0.0001, burst = 1 }",
        );
        let narrow = client("narrow", "ugw_narrow_key", "spaces = [\"OTHER\"]");
        let gateway = setup()
            .with(&format!("{cors}{limited}{narrow}"))
            .start()
            .await;
        let path = format!("/spaces/{}/tasks", world::SUPPORT);
        for (space, status) in [("R422", 422), ("R500", 500)] {
            let answer = Scripted::json(status, "{}");
            gateway.upstream().script(space, vec![answer]);
        }
        let page = gateway.get(&path).await;
        gateway.get(&path).key("ugw_limited_key").await;
        let etag = page.header("etag").unwrap();
        let get = |path: &str| gateway.get(path);
        let table: [(u16, Ask); 15] = [
            (200, get(&path)),
            (200, get(&path).accept_encoding("gzip")),
            (200, get(&path).header("origin", "https://app.example.com")),
            (304, get(&path).if_none_match(etag)),
            (400, get(&format!("{path}?page=0"))),
            (401, get(&path).without_key()),
            (401, get("/nowhere").without_key()),
            (403, get(&path).key("ugw_narrow_key")),
            (404, get("/nowhere")),
            (404, get(&format!("/spaces/{}/tasks", world::UNKNOWN_SPACE))),
            (405, gateway.ask("POST", &path)),
            (422, get("/spaces/R422/tasks")),
            (429, get(&path).key("ugw_limited_key")),
            (502, get("/spaces/R500/tasks")),
            (
                504,
                get("/spaces/COLD/tasks").cache_control("only-if-cached"),
            ),
        ];
        for (status, ask) in table {
            assert_private(status, ask, "GET").await;
        }
        for (status, path) in [
            (200, path.as_str()),
            (404, "/nowhere"),
            (400, "/spaces/a%20b/tasks"),
        ] {
            assert_private(status, gateway.ask("HEAD", path), "HEAD").await;
        }
        let spent = Fault::always(FaultKind::RateLimited);
        gateway.upstream().set_faults(vec![spent]);
        assert_private(503, get("/spaces/SPENT/tasks"), "GET").await;
    }
}

async fn assert_private(status: u16, ask: Ask, method: &str) {
    let answer = ask.await;
    assert_eq!(answer.status, status, "{method} {:?}", answer.body);
    let cache_control = answer.header("cache-control").unwrap();
    let expected = if status >= 400 {
        "no-store"
    } else {
        "private, no-cache"
    };
    assert_eq!(cache_control, expected, "{method} {status}");
    let vary = answer.header("vary").unwrap();
    assert!(
        vary.starts_with("Accept-Encoding, Authorization"),
        "{method} {status}: {vary}"
    );
}
