//! The feed of what changed: one answer at a time, and as a stream.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, client::conn::http1::handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpStream, task::JoinHandle};
use unpod_gateway::simulator::world::{EMPTY, GLOBEX_SPACE, SUPPORT, UNKNOWN_SPACE};

use crate::{
    answer::{Answer, Ask},
    gateway::{Gateway, REFRESHER, client, pass, patiently, setup, start, until},
    operators,
};

pub(crate) fn pull(gateway: &Gateway, query: &str) -> Ask {
    gateway.get(&format!("/spaces/{SUPPORT}/changes{query}"))
}

pub(crate) fn events(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    answer.json()["data"].as_array().unwrap().clone()
}

pub(crate) fn cursor(answer: &Answer) -> String {
    answer.json()["cursor"].as_str().unwrap().to_owned()
}

/// Has the first range of the space's tasks read again.
pub(crate) async fn refresh(gateway: &Gateway) {
    refresh_of(gateway, SUPPORT).await;
}

pub(crate) async fn refresh_of(gateway: &Gateway, space: &str) {
    let page = gateway.tasks(space, "?page_size=100").key(REFRESHER);
    assert_eq!(page.cache_control("no-cache").await.status, 200);
}

#[tokio::test]
async fn a_client_pulls_what_changed_since_its_cursor() {
    let gateway = start().await;
    let now = pull(&gateway, "?after=now").await;
    assert_eq!(events(&now), Vec::<Value>::new());
    assert_eq!(now.header("cache-control"), Some("no-store"));
    assert_eq!(now.json()["has_more"], false);
    assert!(now.json()["next_poll_seconds"].as_u64().unwrap() >= 1);
    assert_eq!(gateway.upstream().requests(), 1);

    gateway.upstream().add_task(SUPPORT);
    let ids = gateway.upstream().task_ids(SUPPORT);
    gateway.upstream().set_status(SUPPORT, &ids[3], "hold");
    refresh(&gateway).await;

    let query = format!("?after={}", cursor(&now));
    let next = pull(&gateway, &query).await;
    let told = events(&next);
    assert_eq!(told.len(), 2, "{told:?}");
    let of = |kind: &str| told.iter().find(|event| event["type"] == kind).unwrap();
    assert_eq!(of("task.created")["task_id"], ids[0].as_str());
    let updated = of("task.updated");
    assert_eq!(updated["task_id"], ids[3].as_str());
    assert_eq!(updated["status"], "hold");
    let changed = updated["changed"].as_array().unwrap();
    assert!(changed.contains(&"status".into()), "{changed:?}");
    assert!(updated["was"].is_string() && updated["digest"].is_string());
    let again = pull(&gateway, &query).await;
    assert_eq!(events(&again), told, "a cursor is good for more than once");
    let last = pull(&gateway, &format!("?after={}", cursor(&next))).await;
    assert_eq!(events(&last), Vec::<Value>::new());
    assert_eq!(gateway.upstream().requests(), 2);
}

#[tokio::test]
async fn from_the_start_every_watched_task_is_told_once_whatever_the_limit() {
    let gateway = start().await;
    let (mut seen, mut query) = (
        BTreeSet::new(),
        "?after=start&limit=7&fields=task_id".to_owned(),
    );
    loop {
        let answer = pull(&gateway, &query).await;
        let told = events(&answer);
        assert!(told.len() <= 7);
        for event in &told {
            assert_eq!(event["type"], "task.created");
            assert_eq!(event["task"]["task_id"], event["task_id"]);
            assert!(seen.insert(event["task_id"].as_str().unwrap().to_owned()));
        }
        if answer.json()["has_more"] == false {
            break;
        }
        query = format!("?after={}&limit=7&fields=task_id", cursor(&answer));
    }
    let ids = gateway.upstream().task_ids(SUPPORT);
    assert_eq!(seen, ids.into_iter().take(100).collect());
    assert_eq!(gateway.upstream().requests(), 1);
}

#[tokio::test]
async fn who_waits_is_told_at_once() {
    let gateway = start().await;
    let now = pull(&gateway, "?after=now").await;
    let waiting = pull(&gateway, &format!("?after={}&wait=30", cursor(&now))).spawn();
    until(|| gateway.counts("gateway_changes_streams 1")).await;
    gateway.upstream().add_task(SUPPORT);
    refresh(&gateway).await;
    let answer = patiently("the answer", waiting).await.unwrap();
    assert_eq!(events(&answer)[0]["type"], "task.created");
    until(|| gateway.counts("gateway_changes_streams 0")).await;
}

#[tokio::test]
async fn bad_questions_cost_no_call_and_leave_nothing() {
    let gateway = start().await;
    let now = pull(&gateway, "?after=now").await;
    let good = cursor(&now);
    let other = gateway.get(&format!("/spaces/{EMPTY}/changes?after={good}"));
    let requests = gateway.upstream().requests();
    for bad in [
        &good[..good.len() - 1],
        "AAAA",
        "%00",
        "",
        "2025-12-01T00:00:00Z",
        "1764547200",
        "NOW",
        &"x".repeat(3000),
    ] {
        pull(&gateway, &format!("?after={bad}"))
            .await
            .assert_error("invalid_parameter");
    }
    let refused = other.await;
    refused.assert_error("invalid_parameter");
    assert!(
        refused.json()["detail"]
            .as_str()
            .unwrap()
            .contains("`after`")
    );
    for query in [
        "",
        "?after=now&limit=0",
        "?after=now&limit=501",
        "?after=now&wait=31",
    ] {
        pull(&gateway, query)
            .await
            .assert_error("invalid_parameter");
    }
    pull(&gateway, "?after=now&space_id=2")
        .await
        .assert_error("unknown_parameter");
    let head = gateway
        .ask("HEAD", &format!("/spaces/{SUPPORT}/changes?after=now"))
        .await;
    assert_eq!((head.status, head.header("allow")), (405, Some("GET")));
    gateway
        .get(&format!(
            "/api/v2/platform/spaces/{SUPPORT}/changes/?after=now"
        ))
        .await
        .assert_error("route_not_found");
    pull(&gateway, "/?after=now").await;
    gateway
        .get("/spaces//changes?after=now")
        .await
        .assert_error("invalid_space_token");
    assert_eq!(gateway.upstream().requests(), requests);
    assert!(gateway.counts("gateway_changes_spaces 1"));
}

#[tokio::test]
async fn a_cursor_of_another_process_is_gone_and_a_new_one_comes_with_the_answer() {
    let [first, second] = [start().await, start().await];
    let old = cursor(&pull(&first, "?after=now").await);
    let gone = pull(&second, &format!("?after={old}")).await;
    gone.assert_error("cursor_gone");
    assert_eq!(gone.json()["data"]["reason"], "restart");
    assert_eq!(second.upstream().requests(), 0);
    assert!(second.counts("gateway_changes_spaces 0"));
    let new = gone.json()["data"]["cursor"].as_str().unwrap().to_owned();
    let told = events(&pull(&second, &format!("?after={new}&limit=500")).await);
    let all = second.upstream().task_ids(SUPPORT).len().min(100);
    assert_eq!(told.len(), all, "from the start, so that nothing is missed");
}

#[tokio::test]
async fn a_purge_resets_cursors() {
    let gateway = start().await;
    let old = cursor(&pull(&gateway, "?after=now").await);
    let target = format!("/cache/spaces/{SUPPORT}");
    assert_eq!(operators::ask(&gateway, "DELETE", &target).await.0, 204);
    let gone = pull(&gateway, &format!("?after={old}")).await;
    gone.assert_error("cursor_gone");
    assert_eq!(gone.json()["data"]["reason"], "purged");
}

#[tokio::test]
async fn a_space_that_is_refused_is_an_error_as_for_its_pages() {
    let gateway = start().await;
    let unknown = gateway.get(&format!("/spaces/{UNKNOWN_SPACE}/changes?after=now"));
    unknown.await.assert_error("space_not_found");
    let denied = gateway.get(&format!("/spaces/{GLOBEX_SPACE}/changes?after=now"));
    denied.await.assert_error("space_access_denied");
    let empty = gateway
        .get(&format!("/spaces/{EMPTY}/changes?after=start"))
        .await;
    assert_eq!(events(&empty), Vec::<Value>::new());
}

#[tokio::test]
async fn a_view_hides_changes_of_what_it_hides() {
    let view = "[views.ids]\nfields = ['task_id']\n";
    let ids = client("ids", "ugw_ids_key", "spaces = ['*']\nview = 'ids'");
    let gateway = setup().with(&[view, &ids].concat()).start().await;
    let ask = |query: String| pull(&gateway, &query).key("ugw_ids_key");
    let now = cursor(&ask("?after=now".to_owned()).await);
    let tasks = gateway.upstream().task_ids(SUPPORT);
    gateway.upstream().set_status(SUPPORT, &tasks[3], "hold");
    refresh(&gateway).await;
    let answer = ask(format!("?after={now}")).await;
    assert_eq!(events(&answer), Vec::<Value>::new());
    gateway.upstream().add_task(SUPPORT);
    refresh(&gateway).await;
    let told = events(&ask(format!("?after={}&fields=status,task_id", cursor(&answer))).await);
    assert_eq!(told.len(), 1);
    assert!(told[0].get("status").is_none(), "{told:?}");
    assert_eq!(told[0]["task"].as_object().unwrap().len(), 1);
}

/// A stream that is read event by event.
pub(crate) struct Reader {
    response: Response<Incoming>,
    connection: JoinHandle<hyper::Result<()>>,
    rest: String,
}

/// Leaves by a reset, which the gateway sees at once: who merely closes its side may still read.
impl Drop for Reader {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Reader {
    pub(crate) async fn open(gateway: &Gateway, query: &str, key: &str) -> Self {
        Self::of(gateway, SUPPORT, query, key).await
    }

    pub(crate) async fn of(gateway: &Gateway, space: &str, query: &str, key: &str) -> Self {
        let io = TcpStream::connect(gateway.address()).await.unwrap();
        io.set_zero_linger().unwrap();
        let (mut sender, connection) = handshake(TokioIo::new(io)).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = Request::get(format!("/spaces/{space}/changes{query}"))
            .header("host", "gateway")
            .header("authorization", format!("Bearer {key}"))
            .header("accept", "text/event-stream")
            .body(Empty::<Bytes>::new());
        let sent = sender.send_request(request.unwrap());
        let response = patiently("an answer", sent).await.unwrap();
        assert_eq!(response.status(), 200);
        Self {
            response,
            connection,
            rest: String::new(),
        }
    }

    /// The next block; `None` at the end.
    pub(crate) async fn block(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.rest.split_once("\n\n") {
                let block = block.to_owned();
                self.rest = rest.to_owned();
                return Some(block);
            }
            let frame = patiently("a chunk", self.response.frame()).await?;
            let chunk = frame.unwrap().into_data().unwrap();
            self.rest.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    /// The next event of this type: its id and its data.
    pub(crate) async fn event(&mut self, name: &str) -> (String, Value) {
        loop {
            let block = self
                .block()
                .await
                .unwrap_or_else(|| panic!("ended before {name}"));
            let field = |of: &str| {
                let mut lines = block.lines();
                lines
                    .find_map(|line| line.strip_prefix(of))
                    .map(str::to_owned)
            };
            if field("event: ").as_deref() == Some(name) {
                let data = serde_json::from_str(&field("data: ").unwrap()).unwrap();
                return (field("id: ").unwrap(), data);
            }
        }
    }
}

#[tokio::test]
async fn a_stream_tells_what_changes_and_goes_on_from_any_event() {
    let gateway = start().await;
    let mut reader = Reader::open(&gateway, "", crate::gateway::READER).await;
    let headers = reader.response.headers().clone();
    assert_eq!(headers["content-type"], "text/event-stream");
    assert_eq!(headers["cache-control"], "no-store, no-transform");
    assert_eq!(headers["x-accel-buffering"], "no");
    assert!(headers.get("content-encoding").is_none());
    let first = reader.block().await.unwrap();
    let retry: u32 = first.strip_prefix("retry: ").unwrap().parse().unwrap();
    assert!((3000..=8000).contains(&retry));
    let (_, synced) = reader.event("space.synced").await;
    let all = gateway.upstream().task_ids(SUPPORT).len();
    assert_eq!(synced["count"], all);
    assert_eq!(synced["watched"], all.min(100));

    gateway.upstream().add_task(SUPPORT);
    refresh(&gateway).await;
    let (id, created) = reader.event("task.created").await;
    let ids = gateway.upstream().task_ids(SUPPORT);
    assert_eq!(created["task_id"], ids[0].as_str());
    gateway.upstream().set_status(SUPPORT, &ids[0], "hold");
    refresh(&gateway).await;
    assert_eq!(reader.event("task.updated").await.1["status"], "hold");
    drop(reader);

    let mut again = Reader::open(&gateway, &format!("?after={id}"), crate::gateway::READER).await;
    let (_, updated) = again.event("task.updated").await;
    assert_eq!(updated["task_id"], ids[0].as_str());
    assert_eq!(gateway.upstream().requests(), 3);
}

#[tokio::test]
async fn a_stream_whose_cursor_is_gone_says_so_and_goes_on() {
    let [first, second] = [start().await, start().await];
    let old = cursor(&pull(&first, "?after=now").await);
    let mut reader = Reader::open(&second, &format!("?after={old}"), crate::gateway::READER).await;
    let (id, reset) = reader.event("space.reset").await;
    assert_eq!(
        (&reset["reason"], &reset["cursor"]),
        (&"restart".into(), &id.clone().into())
    );
    second.upstream().add_task(SUPPORT);
    refresh(&second).await;
    reader.event("task.created").await;
    assert_eq!(
        events(&pull(&second, &format!("?after={id}")).await).len(),
        1
    );
}

#[tokio::test]
async fn after_a_purge_a_stream_is_told_that_all_was_read_again() {
    // What is read once more by itself would come minutes later.
    let rarely = "[upstream]\nquota_per_minute = 60\n[changes]\nquota_share = 0.01\n";
    let gateway = setup().with(rarely).start().await;
    let mut reader = Reader::open(&gateway, "", crate::gateway::READER).await;
    reader.event("space.synced").await;
    let target = format!("/cache/spaces/{SUPPORT}");
    assert_eq!(operators::ask(&gateway, "DELETE", &target).await.0, 204);
    assert_eq!(reader.event("space.reset").await.1["reason"], "purged");
    reader.event("space.synced").await;
    assert_eq!(gateway.upstream().requests(), 2);
}

#[tokio::test]
async fn many_streams_of_a_space_cost_one_watch_and_hear_of_a_change_at_once() {
    let gateway = start().await;
    let mut readers = Vec::new();
    for _ in 0..50 {
        readers.push(Reader::open(&gateway, "", crate::gateway::READER).await);
    }
    assert!(gateway.counts("gateway_changes_streams 50"));
    assert!(gateway.counts("gateway_changes_spaces 1"));
    gateway.upstream().add_task(SUPPORT);
    refresh(&gateway).await;
    for reader in &mut readers {
        reader.event("task.created").await;
    }
    assert_eq!(gateway.upstream().requests(), 2);
    drop(readers);
    until(|| gateway.counts("gateway_changes_streams 0")).await;
}

#[tokio::test]
async fn streams_are_limited_and_take_no_permit_of_other_requests() {
    let few = client("few", "ugw_few_key", "spaces = ['*']");
    let limits =
        "[server]\nmax_in_flight = 1\n[changes]\nmax_streams = 4\nmax_streams_per_client = 3\n";
    let gateway = setup().with(&[limits, &few].concat()).start().await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(Reader::open(&gateway, "", crate::gateway::READER).await);
    }
    let stream = || pull(&gateway, "").header("accept", "text/event-stream");
    let refused = stream().await;
    refused.assert_error("rate_limited");
    assert!(refused.header("retry-after").is_some());
    open.push(Reader::open(&gateway, "", "ugw_few_key").await);
    let overloaded = stream().key("ugw_few_key").await;
    overloaded.assert_error("overloaded");
    assert!(overloaded.header("retry-after").is_some());
    assert_eq!(gateway.tasks(SUPPORT, "").await.status, 200);
    assert_eq!(pull(&gateway, "?after=now").await.status, 200);
    open.pop();
    until(|| gateway.counts("gateway_changes_streams 3")).await;
    Reader::open(&gateway, "", "ugw_few_key").await;
}

#[tokio::test]
async fn a_right_that_a_reload_takes_ends_the_stream_before_any_further_event() {
    let leaving = client(
        "leaving",
        "ugw_leaving_key",
        &format!("spaces = ['{SUPPORT}']"),
    );
    let before = setup().with(&leaving);
    let running = before.start_from_file().await;
    let gateway = &running.gateway;
    let mut reader = Reader::open(gateway, "", "ugw_leaving_key").await;
    reader.event("space.synced").await;
    let elsewhere = client(
        "leaving",
        "ugw_leaving_key",
        &format!("spaces = ['{EMPTY}']"),
    );
    running.rewrite(setup().with(&elsewhere));
    assert_eq!(running.reload().await.0, 200);
    gateway.upstream().add_task(SUPPORT);
    refresh(gateway).await;
    let last = reader.block().await.unwrap();
    assert!(last.contains("event: space.gone"), "{last}");
    assert_eq!(reader.block().await, None);
}

#[tokio::test]
async fn a_space_that_the_upstream_refuses_ends_its_streams() {
    let gateway = start().await;
    let mut reader = Reader::open(&gateway, "", crate::gateway::READER).await;
    reader.event("space.synced").await;
    gateway.upstream().revoke_space(SUPPORT);
    let page = gateway.tasks(SUPPORT, "?page_size=100").key(REFRESHER);
    page.cache_control("no-cache")
        .await
        .assert_error("space_access_denied");
    pass(Duration::from_secs(10)).await;
    let (_, gone) = reader.event("space.gone").await;
    assert_eq!(gone["code"], "space_access_denied");
    assert_eq!(reader.block().await, None);
}

#[tokio::test]
async fn a_drain_ends_streams_and_answers_who_waits() {
    let gateway = start().await;
    let now = cursor(&pull(&gateway, "?after=now").await);
    let mut readers = Vec::new();
    for _ in 0..20 {
        readers.push(Reader::open(&gateway, "", crate::gateway::READER).await);
    }
    let waiting = pull(&gateway, &format!("?after={now}&wait=30")).spawn();
    until(|| gateway.counts("gateway_changes_streams 21")).await;
    assert!(
        patiently("the end", gateway.app.drain()).await,
        "nobody was cut off"
    );
    for reader in &mut readers {
        while reader.block().await.is_some() {}
    }
    assert_eq!(events(&waiting.await.unwrap()), Vec::<Value>::new());
}

#[tokio::test]
async fn a_watch_reads_what_nobody_else_does_and_says_when_it_cannot() {
    let gateway = setup().with("[upstream]\ntimeout = '1s'\n").start().await;
    let mut reader = Reader::open(&gateway, "", crate::gateway::READER).await;
    reader.event("space.synced").await;
    gateway.upstream().add_task(SUPPORT);
    // It is read ten seconds after it was read last.
    pass(Duration::from_secs(10)).await;
    reader.event("task.created").await;
    let (_, synced) = reader.event("space.synced").await;
    assert!(
        synced["next_poll_seconds"].as_u64() > Some(5),
        "an interval from this poll, not from the one before: {synced}"
    );
    assert_eq!(gateway.upstream().requests(), 2);
}
