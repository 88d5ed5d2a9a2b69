//! Readers against a small quota, on a paused clock: the quota is never exceeded, and nobody gets an error for a page that is stored.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use parking_lot::Mutex;
use tokio::{task::JoinSet, time::Instant};
use tower::{ServiceBuilder, service_fn, util::BoxCloneSyncService};
use unpod_gateway::{
    cache::{PageStore, http_semantics::RequestDirectives},
    config::Config,
    domain::{ListId, PageQuery, SpaceToken},
    service::{ClientRequest, Pages, PagesError, Served},
    telemetry::{
        metrics::{Account, Metrics},
        traces::TraceContext,
    },
    upstream::{
        Answer, Content, Credential, Credentials, Head, PageRequest, QuotaLayer, Upstream,
        UpstreamError, read_page,
    },
};

const MINUTE: Duration = Duration::from_secs(60);
const SIMULATED: Duration = Duration::from_secs(2 * 3600);
const BETWEEN_REQUESTS: Duration = Duration::from_millis(500);

/// An upstream that answers every call and fails the test if a minute sees more than it allows.
#[derive(Clone)]
struct Counting {
    quota: usize,
    last_minute: Arc<Mutex<VecDeque<Instant>>>,
}

impl Counting {
    fn answer(&self, request: &PageRequest) -> Answer {
        let now = Instant::now();
        let mut minute = self.last_minute.lock();
        minute.push_back(now);
        while minute.front().is_some_and(|call| now - *call >= MINUTE) {
            minute.pop_front();
        }
        assert!(
            minute.len() <= self.quota,
            "{} calls within a minute",
            minute.len()
        );
        let body = format!(
            r#"{{"count":1,"status_code":200,"message":"m","data":[{{"task_id":"{}","status":"pending"}}]}}"#,
            request.space.as_str()
        );
        Answer {
            content: Content::Page(read_page(&Bytes::from(body)).unwrap()),
            head: Head {
                headers: HeaderMap::new(),
                received: now,
                received_unix: 0,
                response_delay: Duration::ZERO,
            },
        }
    }
}

struct Readers {
    pages: Arc<Pages>,
    credential: Arc<Credential>,
    stack: Arc<Upstream>,
}

impl Readers {
    fn new(quota: u32, cache: &str) -> Self {
        let config = Config::from_toml(&format!(
            "[upstream]\nbase_url = 'https://upstream.test'\nquota_per_minute = {quota}\n\
             [upstream.credentials.default]\ntoken = 't'\n[cache]\n{cache}\n"
        ))
        .unwrap();
        let upstream = Counting {
            quota: quota as usize,
            last_minute: Arc::default(),
        };
        let stack = ServiceBuilder::new().layer(QuotaLayer).service(service_fn(
            move |request: PageRequest| {
                let upstream = upstream.clone();
                request.sent.set();
                async move {
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    Ok::<_, UpstreamError>(upstream.answer(&request))
                }
            },
        ));
        Self {
            pages: Pages::new(
                PageStore::new(&config.cache),
                Metrics::new(),
                config.server.request_timeout,
                config.server.max_waiting(),
            ),
            credential: Credentials::load(&config.upstream)
                .unwrap()
                .named("default")
                .unwrap()
                .clone(),
            stack: Arc::new(BoxCloneSyncService::new(stack)),
        }
    }

    async fn read(&self, page: usize) -> Result<Served, PagesError> {
        let ask = ClientRequest {
            credential: self.credential.clone(),
            upstream: self.stack.clone(),
            space: SpaceToken::new(&format!("SPACE{page}")).unwrap(),
            list: ListId::TASKS,
            query: PageQuery {
                page: 1,
                page_size: 20,
            },
            directives: RequestDirectives::default(),
            account: Account::new("reader".into()),
            request_id: HeaderValue::from_static("id"),
            trace: TraceContext::default(),
        };
        self.pages.page(&ask).await
    }
}

#[derive(Default)]
struct Seen {
    stored: HashSet<usize>,
    ages: Vec<f64>,
}

impl Seen {
    fn mean_age(&self) -> f64 {
        self.ages.iter().sum::<f64>() / self.ages.len() as f64
    }
}

/// Reads for hours, some pages far more often than others; any error for a page that has been stored fails the test.
async fn simulate(quota: u32, pages: usize, cache: &str) -> Seen {
    let readers = Arc::new(Readers::new(quota, cache));
    let mut random = fastrand::Rng::with_seed(7);
    let seen = Arc::new(Mutex::new(Seen::default()));
    let end = Instant::now() + SIMULATED;
    let mut reading = JoinSet::new();
    while Instant::now() < end {
        let page = (random.f64().powi(2) * pages as f64) as usize;
        let (readers, seen) = (readers.clone(), seen.clone());
        reading.spawn(async move {
            let was_stored = seen.lock().stored.contains(&page);
            match readers.read(page).await {
                Ok(served) => {
                    let mut seen = seen.lock();
                    seen.ages.push(served.age().as_secs_f64());
                    seen.stored.insert(page);
                }
                Err(error) => assert!(!was_stored, "page {page} was stored, and failed: {error:?}"),
            }
        });
        tokio::time::sleep(BETWEEN_REQUESTS).await;
        while let Some(done) = reading.try_join_next() {
            done.unwrap();
        }
    }
    reading.join_all().await;
    std::mem::take(&mut seen.lock())
}

// `examples/quota` measures how old pages get.
#[tokio::test(start_paused = true)]
async fn the_quota_is_never_exceeded_and_what_is_stored_is_never_an_error() {
    for (quota, pages) in [(5, 2), (5, 20), (5, 200), (60, 2), (60, 20), (60, 200)] {
        let seen = simulate(quota, pages, "").await;
        assert_eq!(seen.stored.len(), pages, "every page was filled in the end");
    }
}

#[tokio::test(start_paused = true)]
async fn where_calls_are_left_pages_are_younger_than_ttl() {
    let plain = simulate(60, 2, "").await.mean_age();
    let shortened = simulate(60, 2, "ttl_min = '5s'").await.mean_age();
    assert!(plain > 10.0, "{plain}");
    assert!(shortened <= 5.0, "{shortened}");
}
