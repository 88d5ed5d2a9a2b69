use std::{future::ready, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use tokio::time::sleep;
use tower::{service_fn, util::BoxCloneSyncService};

use super::*;
use crate::{
    cache::{PageStore, http_semantics::RequestDirectives},
    config::Config,
    domain::{PageQuery, SpaceToken},
    telemetry::{metrics::Account, traces::TraceContext},
    upstream::{
        Answer, Content, Credentials, FailureSource, Head, PageRequest, Upstream, UpstreamError,
        read_page,
    },
};

const MINUTE: Duration = Duration::from_secs(60);

struct Task {
    id: usize,
    status: &'static str,
    is_bad: bool,
}

/// What the upstream serves, newest first. A bad task fails every page that holds it.
#[derive(Clone, Default)]
struct List(Arc<Mutex<Vec<Task>>>);

impl List {
    fn add(&self, count: usize) {
        let mut tasks = self.0.lock();
        for _ in 0..count {
            let task = Task {
                id: tasks.len(),
                status: "pending",
                is_bad: false,
            };
            tasks.insert(0, task);
        }
    }

    fn answer(&self, query: PageQuery) -> Result<Answer, UpstreamError> {
        let tasks = self.0.lock();
        let (from, count) = (query.span().start as usize, query.page_size as usize);
        let rows: Vec<_> = tasks.iter().skip(from).take(count).collect();
        if rows.iter().any(|task| task.is_bad) {
            let inner = FailureSource::Inner { message: None };
            return Err(UpstreamError::Failed(inner));
        }
        let row =
            |task: &&Task| format!(r#"{{"task_id":"t{}","status":"{}"}}"#, task.id, task.status);
        let rows: Vec<_> = rows.iter().map(row).collect();
        let body = format!(
            r#"{{"count":{},"status_code":200,"message":"Tasks Fetched Successfully","data":[{}]}}"#,
            tasks.len(),
            rows.join(",")
        );
        let page = read_page(&Bytes::from(body)).unwrap();
        Ok(Answer {
            content: Content::Page(page),
            head: Head {
                headers: HeaderMap::new(),
                received: Instant::now(),
                received_unix: 1_798_761_600,
                response_delay: Duration::ZERO,
            },
        })
    }

    fn upstream(&self) -> Upstream {
        let list = self.clone();
        BoxCloneSyncService::new(service_fn(move |request: PageRequest| {
            drop(request.call.take());
            request.calls.add();
            ready(list.answer(request.query))
        }))
    }
}

/// Ranges of ten tasks of `list`, and how a client asks for them.
fn watching(list: &List) -> (Arc<Changes>, ClientRequest) {
    let text = "[upstream]\nbase_url = 'https://unpod.example'\nfill_size = 10\n\
                [upstream.credentials.default]\ntoken = 'abc'\n";
    let config = Config::from_toml(text).unwrap();
    let credentials = Credentials::load(&config.upstream).unwrap();
    let metrics = Metrics::new();
    let store = PageStore::new(&config.cache);
    let pages = Pages::new(store, metrics.clone(), Duration::from_secs(10), 8);
    let request = ClientRequest {
        credential: credentials.named("default").unwrap().clone(),
        upstream: Arc::new(list.upstream()),
        space: SpaceToken::new("SPACE").unwrap(),
        list: ListId::TASKS,
        query: PageQuery {
            page: 1,
            page_size: 20,
        },
        directives: RequestDirectives::default(),
        account: Account::new("crm".into()),
        request_id: HeaderValue::from_static("test"),
        trace: TraceContext::default(),
    };
    let changes = Changes::new(&pages, &config.changes, &config.cache, metrics);
    (changes, request)
}

/// The types and tasks of what is told behind `position`, which moves on.
fn told(listener: &Listener, position: &mut Position) -> Vec<(TaskEvent, String)> {
    let wanted = Wanted {
        projection: &Projection::default(),
        kinds: TaskEvents::ALL,
        limit: 1000,
    };
    let batch = listener.read(*position, &wanted).unwrap();
    *position = batch.position;
    let told = batch.events.iter().map(|event| {
        let json: serde_json::Value = serde_json::from_slice(&event.json).unwrap();
        (event.kind, json["task_id"].as_str().unwrap().to_owned())
    });
    told.collect()
}

#[tokio::test(start_paused = true)]
async fn a_bad_task_beneath_more_new_ones_than_a_range_delays_no_other_range() {
    let list = List::default();
    list.add(30);
    let (changes, request) = watching(&list);
    let listener = changes.listen(&request);
    listener.ready(&request).await.unwrap();
    sleep(MINUTE).await;
    let mut position = listener.begin(&After::Now).unwrap();
    list.add(15);
    // The range that joins the newest to what is known cannot be read.
    list.0.lock()[12].is_bad = true;
    list.0.lock()[44].status = "completed";
    sleep(MINUTE).await;
    assert_eq!(
        told(&listener, &mut position),
        [(TaskEvent::Updated, "t0".to_owned())]
    );
    assert_eq!(listener.status().delayed.unwrap().code, "upstream_failed");

    list.0.lock()[12].is_bad = false;
    sleep(MINUTE).await;
    let new = (30..45).map(|id| (TaskEvent::Created, format!("t{id}")));
    assert_eq!(told(&listener, &mut position), new.collect::<Vec<_>>());
    assert!(listener.status().delayed.is_none());
}
