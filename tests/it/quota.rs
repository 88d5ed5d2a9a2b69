//! Readers against a small quota, on a paused clock: the quota is never exceeded, and nobody gets an error for a page that is stored.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use parking_lot::Mutex;
use tokio::time::Instant;
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
const REQUESTS_A_SECOND: u32 = 2;

/// An upstream that answers every call and fails the test if a minute sees more than it allows.
#[derive(Clone)]
struct Counting {
    quota: usize,
    last_minute: Arc<Mutex<VecDeque<Instant>>>,
    calls: Arc<Mutex<usize>>,
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
        *self.calls.lock() += 1;
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
    upstream: Counting,
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
            calls: Arc::default(),
        };
        let answering = upstream.clone();
        let stack = ServiceBuilder::new().layer(QuotaLayer).service(service_fn(
            move |request: PageRequest| {
                let upstream = answering.clone();
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
            upstream,
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

/// Draws pages as readers do: the second half as often as the first, the third a third.
struct Zipf {
    cumulated: Vec<f64>,
    state: u64,
}

impl Zipf {
    fn new(pages: usize) -> Self {
        let mut sum = 0.0;
        let cumulated = (1..=pages)
            .map(|rank| {
                sum += 1.0 / rank as f64;
                sum
            })
            .collect();
        Self {
            cumulated,
            state: 7,
        }
    }

    fn next(&mut self) -> usize {
        // Knuth's multiplier: good enough to pick readers, and the same each run.
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let unit = (self.state >> 11) as f64 / (1_u64 << 53) as f64;
        let drawn = unit * self.cumulated.last().unwrap();
        self.cumulated.partition_point(|sum| *sum < drawn)
    }
}

#[derive(Default)]
struct Seen {
    stored: HashSet<usize>,
    ages: Vec<u64>,
    refused_cold: usize,
}

/// Reads for hours; any error for a page that has been stored fails the test.
async fn simulate(quota: u32, pages: usize, cache: &str) -> (Seen, usize) {
    let readers = Arc::new(Readers::new(quota, cache));
    let mut zipf = Zipf::new(pages);
    let seen = Arc::new(Mutex::new(Seen::default()));
    let end = Instant::now() + SIMULATED;
    let mut reading = tokio::task::JoinSet::new();
    while Instant::now() < end {
        let page = zipf.next();
        let (readers, seen) = (readers.clone(), seen.clone());
        reading.spawn(async move {
            let was_stored = seen.lock().stored.contains(&page);
            let outcome = readers.read(page).await;
            let mut seen = seen.lock();
            match outcome {
                Ok(served) => {
                    seen.ages.push(served.page.age(served.at).as_secs());
                    seen.stored.insert(page);
                }
                Err(error) => {
                    assert!(!was_stored, "page {page} was stored, and failed: {error:?}");
                    seen.refused_cold += 1;
                }
            }
        });
        tokio::time::sleep(Duration::from_secs(1) / REQUESTS_A_SECOND).await;
        while let Some(done) = reading.try_join_next() {
            done.unwrap();
        }
    }
    while let Some(done) = reading.join_next().await {
        done.unwrap();
    }
    let calls = *readers.upstream.calls.lock();
    let seen = std::mem::take(&mut *seen.lock());
    (seen, calls)
}

#[tokio::test(start_paused = true)]
async fn the_quota_is_never_exceeded_and_what_is_stored_is_never_an_error() {
    println!("quota/min  pages  calls  p50 age s  p99 age s  refused before first fill");
    for (quota, pages) in [(5, 2), (5, 20), (5, 200), (60, 2), (60, 20), (60, 200)] {
        let (mut seen, calls) = simulate(quota, pages, "").await;
        seen.ages.sort_unstable();
        let at = |share: usize| seen.ages[(seen.ages.len() - 1) * share / 100];
        println!(
            "{quota:>9} {pages:>6} {calls:>6} {:>10} {:>10} {:>10}",
            at(50),
            at(99),
            seen.refused_cold
        );
        assert_eq!(seen.stored.len(), pages, "every page was filled in the end");
    }
}

#[tokio::test(start_paused = true)]
async fn where_calls_are_left_pages_are_younger_than_ttl() {
    let mean = |seen: &Seen| seen.ages.iter().sum::<u64>() as f64 / seen.ages.len() as f64;
    let (plain, _) = simulate(60, 2, "").await;
    let (shortened, _) = simulate(60, 2, "ttl_min = '5s'").await;
    assert!(mean(&plain) > 10.0, "{}", mean(&plain));
    assert!(mean(&shortened) <= 5.0, "{}", mean(&shortened));
}
