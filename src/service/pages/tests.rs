use std::{collections::VecDeque, future::pending};

use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};
use http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;
use tower::{service_fn, util::BoxCloneSyncService};

use super::{fill::refusal, *};
use crate::{
    cache::{
        CacheStatus,
        http_semantics::{MaxStale, RequestDirectives},
        status::{Detail, NotForwarded},
    },
    config::Config,
    domain::{FieldPath, ListId, ListPage, PageQuery, SpaceToken},
    telemetry::{
        metrics::{Account, BACKGROUND},
        traces::TraceContext,
    },
    upstream::{
        Answer, ClientError, Content, Credential, Credentials, FailureSource, Head, InvalidAnswer,
        Need, PageRequest, Upstream, read_page,
    },
};

mod newest;
mod wide;

const FRESH_FOR: Duration = Duration::from_secs(30);
const REFRESHED_FOR: Duration = Duration::from_secs(60);
const STANDS_IN_FOR: Duration = Duration::from_secs(3600);
const SHOWN_FOR: Duration = Duration::from_secs(24 * 3600);
const PATIENCE: Duration = Duration::from_secs(10);
/// More than most tests let wait.
const PLACES: usize = 64;
const SECOND: Duration = Duration::from_secs(1);

type Outcome = Result<Answer, UpstreamError>;

/// What comes of asking.
enum Step {
    Call(BoxFuture<'static, Outcome>),
    /// It ends before a call is made.
    BudgetExhausted(BoxFuture<'static, Outcome>),
}

/// An upstream that answers as its script says, then with page after page; it keeps what it was asked.
#[derive(Clone, Default)]
struct FakeUpstream {
    script: Arc<Mutex<VecDeque<Step>>>,
    asked: Arc<Mutex<Vec<PageRequest>>>,
}

impl FakeUpstream {
    fn service(&self) -> Upstream {
        let fake = self.clone();
        BoxCloneSyncService::new(service_fn(move |request: PageRequest| {
            let step = fake.script.lock().pop_front();
            let step = step.unwrap_or_else(|| Step::Call(Box::pin(async { page(&[]) })));
            let (step, calls) = match step {
                Step::Call(step) => (step, 1),
                Step::BudgetExhausted(step) => (step, 0),
            };
            let call = request.call.take();
            for _ in 0..calls {
                request.calls.add();
            }
            fake.asked().push(request);
            async move {
                // It occupies its slot until it is answered.
                let _call = call;
                step.await
            }
        }))
    }

    fn asked(&self) -> MutexGuard<'_, Vec<PageRequest>> {
        self.asked.lock()
    }

    fn calls(&self) -> usize {
        self.asked().len()
    }

    fn then(&self, step: impl Future<Output = Outcome> + Send + 'static) {
        self.push(Step::Call(Box::pin(step)));
    }

    fn push(&self, step: Step) {
        self.script.lock().push_back(step);
    }

    fn then_fail_without_a_call(&self, error: UpstreamError) {
        self.push(Step::BudgetExhausted(Box::pin(async { Err(error) })));
    }

    fn then_answer(&self, outcome: Outcome) {
        self.then(async { outcome });
    }

    fn then_fail(&self, error: UpstreamError) {
        self.then_answer(Err(error));
    }

    /// The next call waits for what is sent.
    fn then_stall(&self) -> oneshot::Sender<Outcome> {
        let (answer, stalled) = oneshot::channel();
        self.then(async { stalled.await.expect("the test answers") });
        answer
    }
}

fn answer(content: Content, lines: &[(&'static str, &'static str)]) -> Outcome {
    let headers: HeaderMap = lines
        .iter()
        .map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        })
        .collect();
    Ok(Answer {
        content,
        head: Head {
            headers,
            received: Instant::now(),
            received_unix: 1_798_761_600,
            response_delay: Duration::ZERO,
        },
    })
}

fn page(lines: &[(&'static str, &'static str)]) -> Outcome {
    page_of(5, lines)
}

fn page_of(count: u64, lines: &[(&'static str, &'static str)]) -> Outcome {
    let page = ListPage {
        gzip: None,
        body: Bytes::from(format!(r#"{{"count":{count},"data":[]}}"#)),
        count,
        rows: Arc::default(),
    };
    answer(Content::Page(page), lines)
}

struct Bench {
    upstream: FakeUpstream,
    pages: Arc<Pages>,
    metrics: Arc<Metrics>,
    credential: Arc<Credential>,
}

impl Bench {
    fn new() -> Self {
        Self::with_places(PLACES)
    }

    /// Fetches each page by itself.
    fn with_exact_pages() -> Self {
        Self::configured("fill_size = 0", PLACES)
    }

    /// Lets only so many wait at once.
    fn with_places(max_waiting: usize) -> Self {
        Self::configured("", max_waiting)
    }

    /// With `[upstream]` as `lines` change it.
    fn configured(lines: &str, max_waiting: usize) -> Self {
        let text = format!(
            "[upstream]\nbase_url = 'https://unpod.example'\n{lines}\n\
             [upstream.credentials.default]\ntoken = 'abc'\n[cache]\njitter = 0\n"
        );
        let config = Config::from_toml(&text).unwrap();
        let credentials = Credentials::load(&config.upstream).unwrap();
        let upstream = FakeUpstream::default();
        let metrics = Metrics::new();
        Self {
            pages: Pages::new(
                PageStore::new(&config.cache),
                metrics.clone(),
                PATIENCE,
                max_waiting,
            ),
            upstream,
            metrics,
            credential: credentials.named("default").unwrap().clone(),
        }
    }

    fn request_page(&self, page: u32, directives: RequestDirectives) -> ClientRequest {
        ClientRequest {
            credential: self.credential.clone(),
            upstream: Arc::new(self.upstream.service()),
            space: SpaceToken::new("SPACE").unwrap(),
            list: ListId::TASKS,
            query: PageQuery {
                page,
                page_size: 20,
            },
            directives,
            account: Account::new("crm".into()),
            request_id: HeaderValue::from_static("test"),
            trace: TraceContext::default(),
        }
    }

    fn request(&self, directives: RequestDirectives) -> ClientRequest {
        self.request_page(1, directives)
    }

    async fn get(&self) -> Result<Served, PagesError> {
        self.pages.page(&self.request(PLAIN)).await
    }

    async fn get_with(&self, directives: RequestDirectives) -> Result<Served, PagesError> {
        self.pages.page(&self.request(directives)).await
    }

    async fn get_page(&self, page: u32) -> Result<Served, PagesError> {
        self.pages.page(&self.request_page(page, PLAIN)).await
    }

    /// Asks in a task of its own, and lets it come as far as it can.
    async fn get_meanwhile(
        &self,
        request: ClientRequest,
    ) -> tokio::task::JoinHandle<Result<Served, PagesError>> {
        let pages = self.pages.clone();
        let waiting = tokio::spawn(async move { pages.page(&request).await });
        settle().await;
        waiting
    }
}

impl ClientRequest {
    /// The same, asked by another client.
    fn of(self, client: &str) -> Self {
        Self {
            account: Account::new(client.into()),
            ..self
        }
    }
}

/// Lets every task run as far as it can without time going on.
async fn settle() {
    for _ in 0..32 {
        tokio::task::yield_now().await;
    }
}

async fn pass(time: Duration) {
    tokio::time::advance(time).await;
}

const PLAIN: RequestDirectives = RequestDirectives {
    no_cache: false,
    no_store: false,
    only_if_cached: false,
    max_age: None,
    min_fresh: None,
    max_stale: None,
};
const NO_CACHE: RequestDirectives = RequestDirectives {
    no_cache: true,
    ..PLAIN
};
const NO_STORE: RequestDirectives = RequestDirectives {
    no_store: true,
    ..PLAIN
};
const ONLY_IF_CACHED: RequestDirectives = RequestDirectives {
    only_if_cached: true,
    ..PLAIN
};

fn hit(ttl: i64, detail: impl Into<Option<Detail>>) -> CacheStatus {
    CacheStatus::Hit {
        ttl,
        detail: detail.into(),
    }
}

fn filled(reason: FillReason, status: u16, stored: bool) -> CacheStatus {
    CacheStatus::Forward {
        reason,
        status: Some(status),
        stored,
        collapsed: false,
    }
}

fn failed(reason: FillReason) -> CacheStatus {
    CacheStatus::Forward {
        reason,
        status: None,
        stored: false,
        collapsed: false,
    }
}

fn joined(reason: FillReason) -> CacheStatus {
    CacheStatus::Forward {
        reason,
        status: None,
        stored: false,
        collapsed: true,
    }
}

fn code(error: &PagesError) -> &'static str {
    match &error.kind {
        PagesErrorKind::Upstream(error) => error.as_str(),
        PagesErrorKind::NotCached => "not_cached",
        PagesErrorKind::Incomplete { .. } => "incomplete",
        PagesErrorKind::Lost => "lost",
    }
}

/// One error of every kind, and whether a stored page stands in for it.
fn every_error() -> Vec<(UpstreamError, bool)> {
    let inner = FailureSource::Inner { message: None };
    let status = FailureSource::Status {
        status: http::StatusCode::BAD_GATEWAY,
        retry_after: None,
    };
    vec![
        (UpstreamError::Failed(status), true),
        (UpstreamError::Failed(FailureSource::Html), true),
        (UpstreamError::Failed(inner), true),
        (
            UpstreamError::Failed(FailureSource::InnerSlowDown { message: None }),
            true,
        ),
        (UpstreamError::InvalidResponse(InvalidAnswer::NoData), true),
        (
            UpstreamError::Unreachable(Arc::new(ClientError::TooLarge(1))),
            true,
        ),
        (UpstreamError::Timeout(SECOND), true),
        (UpstreamError::QuotaExhausted { retry_after: None }, true),
        (
            UpstreamError::Unavailable {
                retry_after: SECOND,
            },
            true,
        ),
        (UpstreamError::Overloaded, true),
        (UpstreamError::SpaceNotFound { head: None }, false),
        (UpstreamError::SpaceAccessDenied, false),
        (UpstreamError::Rejected, false),
        (UpstreamError::AuthFailed, false),
    ]
}

#[tokio::test(start_paused = true)]
async fn a_fresh_page_is_served_without_asking_again() {
    let bench = Bench::new();
    let first = bench.get().await.unwrap();
    assert_eq!(first.status, filled(FillReason::UriMiss, 200, true));

    pass(FRESH_FOR - SECOND).await;
    let second = bench.get().await.unwrap();

    assert_eq!(second.status, hit(1, None));
    assert!(Arc::ptr_eq(&first.page, &second.page));
    assert_eq!(bench.upstream.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn many_askers_share_one_call_and_get_the_same_page() {
    let bench = Bench::new();
    let answer = bench.upstream.then_stall();
    let leader = bench.get_meanwhile(bench.request(PLAIN)).await;
    let mut others = Vec::new();
    for _ in 0..50 {
        others.push(bench.get_meanwhile(bench.request(PLAIN)).await);
    }
    assert_eq!(bench.pages.fills_under_way(), 1);

    assert!(answer.send(page(&[])).is_ok());

    let first = leader.await.unwrap().unwrap();
    assert_eq!(first.status, filled(FillReason::UriMiss, 200, true));
    for other in join_all(others).await {
        let other = other.unwrap().unwrap();
        assert_eq!(other.status, joined(FillReason::UriMiss));
        assert!(Arc::ptr_eq(&other.page, &first.page));
    }
    assert_eq!(bench.upstream.calls(), 1);
    assert_eq!(bench.pages.fills_under_way(), 0);
}

#[tokio::test(start_paused = true)]
async fn every_waiter_gets_the_error() {
    let bench = Bench::new();
    let answer = bench.upstream.then_stall();
    let leader = bench.get_meanwhile(bench.request(PLAIN)).await;
    let other = bench.get_meanwhile(bench.request(PLAIN)).await;
    assert!(answer.send(Err(UpstreamError::Overloaded)).is_ok());
    for (waiting, status) in [
        (leader, failed(FillReason::UriMiss)),
        (other, joined(FillReason::UriMiss)),
    ] {
        let error = waiting.await.unwrap().unwrap_err();
        assert_eq!((code(&error), error.status), ("overloaded", status));
    }
}

#[tokio::test(start_paused = true)]
async fn other_pages_have_fills_of_their_own() {
    let bench = Bench::with_exact_pages();
    let first = bench.upstream.then_stall();
    let waiting = bench.get_meanwhile(bench.request(PLAIN)).await;
    bench.get_page(2).await.unwrap();
    assert!(first.send(page(&[])).is_ok());
    waiting.await.unwrap().unwrap();
    assert_eq!(bench.upstream.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn beyond_the_places_a_caller_that_would_wait_is_refused_and_nothing_is_begun() {
    let bench = Bench::with_places(2);
    let stale = bench.request_page(3, PLAIN);
    bench.get_page(3).await.unwrap();
    pass(FRESH_FOR + REFRESHED_FOR + SECOND).await;
    bench.get_page(4).await.unwrap();
    let answer = bench.upstream.then_stall();
    let leader = bench.get_meanwhile(bench.request_page(1, PLAIN)).await;
    let other = bench.get_meanwhile(bench.request_page(1, PLAIN)).await;
    let calls = bench.upstream.calls();

    for page in [1, 2] {
        let error = bench.get_page(page).await.unwrap_err();
        let told = (code(&error), error.status);
        let expected = ("overloaded", NotForwarded::Overloaded.into());
        assert_eq!(told, expected, "{page}");
    }
    assert_eq!(bench.get_page(4).await.unwrap().status, hit(30, None));
    let stands_in = bench.pages.page(&stale).await.unwrap();
    let ttl = -i64::try_from((REFRESHED_FOR + SECOND).as_secs()).unwrap();
    assert_eq!(stands_in.status, hit(ttl, Detail::StaleIfError));
    assert_eq!(bench.upstream.calls(), calls);

    // Who leaves makes room, and so does who is answered.
    leader.abort();
    let next = bench.get_meanwhile(bench.request_page(1, PLAIN)).await;
    assert!(answer.send(page(&[])).is_ok());
    for waiting in [other, next] {
        waiting.await.unwrap().unwrap();
    }
    bench.get_page(2).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_most_makes_room_for_another_and_is_answered_as_if_there_was_none() {
    let bench = Bench::with_places(2);
    let stale = bench.request_page(3, PLAIN);
    bench.get_page(3).await.unwrap();
    pass(FRESH_FOR + REFRESHED_FOR + SECOND).await;
    let answers = [bench.upstream.then_stall(), bench.upstream.then_stall()];
    let first = bench.get_meanwhile(bench.request_page(1, PLAIN)).await;
    let newest = bench.get_meanwhile(stale).await;

    let other = bench.request_page(2, PLAIN).of("other");
    bench.pages.page(&other).await.unwrap();

    let stands_in = newest.await.unwrap().unwrap();
    let ttl = -i64::try_from((REFRESHED_FOR + SECOND).as_secs()).unwrap();
    assert_eq!(stands_in.status, hit(ttl, Detail::StaleIfError));
    assert!(!first.is_finished());
    for answer in answers {
        assert!(answer.send(page(&[])).is_ok(), "its fill goes on");
    }
    first.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_refresh_is_charged_to_nobody_and_may_be_joined() {
    let bench = Bench::new();
    bench.upstream.then_answer(page(&[]));
    bench.get().await.unwrap();
    pass(FRESH_FOR + SECOND).await;
    let answer = bench.upstream.then_stall();
    bench.get().await.unwrap();
    let forced = bench.get_meanwhile(bench.request(NO_CACHE)).await;
    assert_eq!(&*bench.upstream.asked()[1].cause, BACKGROUND);
    assert!(answer.send(page(&[])).is_ok());
    forced.await.unwrap().unwrap();
    assert_eq!(bench.upstream.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_does_not_lose_the_fill() {
    let bench = Bench::new();
    let answer = bench.upstream.then_stall();
    let leader = bench.get_meanwhile(bench.request(PLAIN)).await;
    leader.abort();
    assert!(answer.send(page(&[])).is_ok());
    settle().await;
    assert_eq!(bench.get().await.unwrap().status, hit(30, None));
    assert_eq!(bench.upstream.calls(), 1);
}

// RFC 5861 section 3.
#[tokio::test(start_paused = true)]
async fn a_stale_page_is_served_while_one_fill_refreshes_it() {
    let bench = Bench::new();
    bench.get().await.unwrap();
    pass(FRESH_FOR + SECOND).await;
    let answer = bench.upstream.then_stall();

    for _ in 0..5 {
        let served = bench.get().await.unwrap();
        assert_eq!(served.status, hit(-1, Detail::StaleWhileRevalidate));
        settle().await;
    }
    assert_eq!(bench.upstream.calls(), 2);
    assert_eq!(&*bench.upstream.asked()[1].cause, BACKGROUND);
    assert!(answer.send(page_of(6, &[])).is_ok());
    settle().await;

    let served = bench.get().await.unwrap();
    assert_eq!(served.status, hit(30, None));
    assert_eq!(served.page.content.count, 6);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_fails_leaves_the_old_page_in_place() {
    let bench = Bench::new();
    bench.get().await.unwrap();
    pass(FRESH_FOR).await;
    for _ in 0..3 {
        bench.upstream.then_fail(UpstreamError::Timeout(SECOND));
        let served = bench.get().await.unwrap();
        assert_eq!(served.status, hit(-1, Detail::StaleWhileRevalidate));
        settle().await;
    }
    assert_eq!(bench.upstream.calls(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_was_refused_is_not_tried_again_while_remembered() {
    let bench = Bench::new();
    bench.get().await.unwrap();
    pass(FRESH_FOR).await;
    bench.upstream.then_fail(UpstreamError::Rejected);
    for _ in 0..3 {
        bench.get().await.unwrap();
        settle().await;
    }
    assert_eq!(bench.upstream.calls(), 2);
    pass(5 * SECOND).await;
    bench.get().await.unwrap();
    settle().await;
    assert_eq!(bench.upstream.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_page_past_its_window_is_waited_for() {
    let bench = Bench::new();
    bench.get().await.unwrap();
    pass(FRESH_FOR + REFRESHED_FOR).await;
    let served = bench.get().await.unwrap();
    assert_eq!(served.status, filled(FillReason::Stale, 200, true));
    assert_eq!(bench.upstream.calls(), 2);
}

// RFC 5861 section 4, and the errors that the contract names.
#[tokio::test(start_paused = true)]
async fn a_stale_page_stands_in_for_failures_and_for_no_verdict() {
    for (error, stands_in) in every_error() {
        let bench = Bench::new();
        bench.get().await.unwrap();
        pass(FRESH_FOR + STANDS_IN_FOR - SECOND).await;
        bench.upstream.then_fail(error.clone());
        let detail = match error {
            UpstreamError::QuotaExhausted { .. } => Detail::Quota,
            _ => Detail::StaleIfError,
        };
        match bench.get().await {
            Ok(served) => {
                assert!(stands_in, "{error}");
                assert_eq!(served.status, hit(-3599, detail), "{error}");
            }
            Err(told) => {
                assert!(!stands_in, "{error}");
                assert_eq!(code(&told), error.as_str());
                assert_eq!(told.status, failed(FillReason::Stale), "{error}");
            }
        }
        assert_eq!(bench.upstream.calls(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn beyond_its_window_nothing_stands_in() {
    for (error, _) in every_error() {
        if matches!(error, UpstreamError::QuotaExhausted { .. }) {
            continue;
        }
        let bench = Bench::new();
        bench.get().await.unwrap();
        pass(FRESH_FOR + STANDS_IN_FOR).await;
        bench.upstream.then_fail(error.clone());
        assert_eq!(code(&bench.get().await.unwrap_err()), error.as_str());
    }
}

#[tokio::test(start_paused = true)]
async fn for_want_of_a_call_an_old_page_is_served_and_its_fill_is_first_in_line() {
    let bench = Bench::new();
    bench.get().await.unwrap();
    let spent = UpstreamError::QuotaExhausted { retry_after: None };
    let need = || {
        let (key, request) = (bench.request(PLAIN).key(), bench.request(PLAIN));
        bench.pages.waiter(&key, &request, FillReason::Stale).need
    };
    pass(FRESH_FOR + STANDS_IN_FOR - SECOND).await;
    assert!(matches!(need(), Need::Refresh(_)));
    pass(SECOND).await;
    assert_eq!(need(), Need::Oldest);
    bench.upstream.then_fail_without_a_call(spent.clone());
    let served = bench.get().await.unwrap();
    assert_eq!(served.status, hit(-3600, Detail::Quota));
    assert_eq!(served.age(), FRESH_FOR + STANDS_IN_FOR);

    pass(SHOWN_FOR - STANDS_IN_FOR).await;
    assert_eq!(need(), Need::Nothing);
    bench.upstream.then_fail_without_a_call(spent);
    let told = bench.get().await.unwrap_err();
    assert_eq!(code(&told), "upstream_quota_exhausted");
}

#[tokio::test(start_paused = true)]
async fn without_a_stored_page_every_error_is_told() {
    for (error, _) in every_error() {
        let bench = Bench::new();
        bench.upstream.then_fail(error.clone());
        let told = bench.get().await.unwrap_err();
        assert_eq!(code(&told), error.as_str());
        assert_eq!(told.status, failed(FillReason::UriMiss));
    }
}

// RFC 9111 section 5.2.2.2.
#[tokio::test(start_paused = true)]
async fn what_must_be_revalidated_stands_in_for_nothing() {
    let bench = Bench::new();
    let strict = [("cache-control", "max-age=10, must-revalidate")];
    bench.upstream.then_answer(page(&strict));
    bench.get().await.unwrap();
    pass(10 * SECOND).await;
    bench.upstream.then_fail(UpstreamError::Timeout(SECOND));
    assert_eq!(code(&bench.get().await.unwrap_err()), "upstream_timeout");
}

#[tokio::test(start_paused = true)]
async fn what_the_upstream_refuses_for_a_space_is_remembered_for_the_space() {
    for error in [
        UpstreamError::SpaceNotFound { head: None },
        UpstreamError::SpaceAccessDenied,
    ] {
        let bench = Bench::new();
        bench.get_page(2).await.unwrap();
        bench.upstream.then_fail(error.clone());
        bench.get().await.unwrap_err();

        // The page stored a moment ago is gone too, and nothing is asked.
        for (number, ttl) in [(1, 10), (2, 10), (3, 10)] {
            let told = bench.get_page(number).await.unwrap_err();
            assert_eq!((code(&told), told.status), (error.as_str(), hit(ttl, None)));
        }
        assert_eq!(bench.upstream.calls(), 2);
        pass(10 * SECOND).await;
        bench.get_page(2).await.unwrap();
        assert_eq!(bench.upstream.calls(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_206_told_of_a_page_is_remembered_for_the_page() {
    for error in [
        UpstreamError::Rejected,
        UpstreamError::Failed(FailureSource::Inner { message: None }),
        UpstreamError::Failed(FailureSource::InnerSlowDown { message: None }),
    ] {
        let bench = Bench::new();
        bench.upstream.then_fail(error.clone());
        for _ in 0..3 {
            assert_eq!(code(&bench.get().await.unwrap_err()), error.as_str());
        }
        assert_eq!(bench.upstream.calls(), 1);
        bench.get_page(2).await.unwrap();
        pass(5 * SECOND).await;
        bench.get().await.unwrap();
    }
}

// Contract section 5: neither stored nor negative, and still not asked for at once.
#[tokio::test(start_paused = true)]
async fn a_page_whose_answer_was_no_page_is_left_alone_for_a_while() {
    let bench = Bench::new();
    let no_page = || UpstreamError::InvalidResponse(InvalidAnswer::TooLarge(1));
    bench.upstream.then_fail(no_page());
    let told = bench.get().await.unwrap_err();
    assert_eq!(told.status, failed(FillReason::UriMiss));
    for _ in 0..3 {
        let told = bench.get().await.unwrap_err();
        assert_eq!(code(&told), "upstream_invalid_response");
        assert_eq!(told.status, NotForwarded::CircuitOpen.into());
        assert_eq!(told.age, None);
    }
    assert_eq!(bench.upstream.calls(), 1);
    bench.get_page(2).await.unwrap();
    pass(5 * SECOND).await;
    bench.get().await.unwrap();

    // Where there is an old page, it is served.
    pass(FRESH_FOR + REFRESHED_FOR).await;
    bench.upstream.then_fail(no_page());
    for _ in 0..3 {
        let served = bench.get().await.unwrap();
        assert_eq!(served.status, hit(-60, Detail::StaleIfError));
    }
    assert_eq!(bench.upstream.calls(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_page_that_failed_is_failing_until_a_good_fill() {
    for (error, _) in every_error() {
        let bench = Bench::new();
        let is_failing = |page| {
            let key = bench.request_page(page, PLAIN).key();
            bench.pages.store().is_failing(&key, Instant::now())
        };
        assert!(!is_failing(1));
        bench.upstream.then_fail(error.clone());
        bench.get().await.unwrap_err();
        let says_nothing = matches!(
            error,
            UpstreamError::QuotaExhausted { .. }
                | UpstreamError::Unavailable { .. }
                | UpstreamError::Overloaded
                | UpstreamError::AuthFailed
        );
        assert_eq!(is_failing(1), !says_nothing, "{error}");
        let of_space = matches!(
            error,
            UpstreamError::SpaceNotFound { .. } | UpstreamError::SpaceAccessDenied
        );
        assert_eq!(is_failing(2), of_space, "{error}");
        pass(10 * SECOND).await;
        bench.get().await.unwrap();
        assert!(!is_failing(1) && !is_failing(2));
    }
}

#[tokio::test(start_paused = true)]
async fn what_may_pass_is_never_remembered() {
    for (error, _) in every_error() {
        if refusal(&error).is_some() {
            continue;
        }
        let bench = Bench::new();
        bench.upstream.then_fail(error.clone());
        bench.get().await.unwrap_err();
        bench
            .get()
            .await
            .unwrap_or_else(|told| panic!("{error} is remembered: {told}"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_remembered_failure_lies_behind_the_old_page() {
    let bench = Bench::new();
    bench.get().await.unwrap();
    pass(FRESH_FOR + REFRESHED_FOR).await;
    let inner = FailureSource::Inner { message: None };
    bench.upstream.then_fail(UpstreamError::Failed(inner));
    for _ in 0..3 {
        let served = bench.get().await.unwrap();
        assert_eq!(served.status, hit(-60, Detail::StaleIfError));
    }
    assert_eq!(bench.upstream.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_404_states_how_long_it_is_remembered() {
    let bench = Bench::new();
    let head = answer(Content::NotModified, &[("cache-control", "max-age=90")])
        .unwrap()
        .head;
    let head = Some(Arc::new(head));
    bench
        .upstream
        .then_fail(UpstreamError::SpaceNotFound { head });
    bench.get().await.unwrap_err();
    pass(89 * SECOND).await;
    let told = bench.get().await.unwrap_err();
    assert_eq!((told.status, told.age), (hit(1, None), Some(89 * SECOND)));
    pass(SECOND).await;
    bench.get().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_forced_fill_asks_in_spite_of_a_remembered_refusal() {
    let bench = Bench::new();
    bench
        .upstream
        .then_fail(UpstreamError::SpaceNotFound { head: None });
    bench.get().await.unwrap_err();
    assert!(bench.get_with(NO_CACHE).await.is_ok());
    assert_eq!(bench.get().await.unwrap().status, hit(30, None));
}

#[tokio::test(start_paused = true)]
async fn a_refused_credential_serves_fresh_pages_only_until_a_good_fill() {
    let bench = Bench::new();
    bench.get().await.unwrap();
    pass(10 * SECOND).await;
    bench.upstream.then_fail(UpstreamError::AuthFailed);
    let told = bench.get_page(2).await.unwrap_err();
    assert_eq!(code(&told), "upstream_auth_failed");
    assert!(bench.credential.is_refused());

    assert_eq!(bench.get().await.unwrap().status, hit(20, None), "fresh");
    pass(FRESH_FOR).await;
    // Neither while it is refreshed, nor for an error, nor because the client takes it stale.
    bench.upstream.then_fail(UpstreamError::AuthFailed);
    assert_eq!(
        code(&bench.get().await.unwrap_err()),
        "upstream_auth_failed"
    );
    bench.upstream.then_fail(UpstreamError::Timeout(SECOND));
    assert_eq!(code(&bench.get().await.unwrap_err()), "upstream_timeout");
    bench.upstream.then_fail(UpstreamError::Overloaded);
    let any_age = RequestDirectives {
        max_stale: Some(MaxStale::Any),
        ..PLAIN
    };
    assert_eq!(
        code(&bench.get_with(any_age).await.unwrap_err()),
        "overloaded"
    );

    // A good fill of any page ends it.
    bench.get_page(3).await.unwrap();
    assert!(!bench.credential.is_refused());
    let served = bench.get().await.unwrap();
    assert_eq!(served.status, hit(-10, Detail::StaleWhileRevalidate));
}

#[tokio::test(start_paused = true)]
async fn a_forced_fill_asks_for_a_fresh_page_anew() {
    let bench = Bench::new();
    bench.get().await.unwrap();
    let at_once = RequestDirectives {
        max_age: Some(Duration::ZERO),
        ..PLAIN
    };
    for forced in [NO_CACHE, at_once] {
        let served = bench.get_with(forced).await.unwrap();
        assert_eq!(served.status, filled(FillReason::Request, 200, true));
    }
    assert_eq!(bench.upstream.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_forced_fill_joins_the_one_under_way() {
    let bench = Bench::new();
    let answer = bench.upstream.then_stall();
    let leader = bench.get_meanwhile(bench.request(PLAIN)).await;
    let forced = bench.get_meanwhile(bench.request(NO_CACHE)).await;
    assert!(answer.send(page(&[])).is_ok());
    leader.await.unwrap().unwrap();
    let served = forced.await.unwrap().unwrap();
    assert_eq!(served.status, joined(FillReason::UriMiss));
    assert_eq!(bench.upstream.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_forced_fill_that_fails_is_answered_as_any_failed_fill() {
    let bench = Bench::new();
    bench.get().await.unwrap();
    bench.upstream.then_fail(UpstreamError::Timeout(SECOND));
    let served = bench.get_with(NO_CACHE).await.unwrap();
    assert_eq!(served.status, hit(30, Detail::StaleIfError));
    bench.upstream.then_fail(UpstreamError::Rejected);
    assert_eq!(
        code(&bench.get_with(NO_CACHE).await.unwrap_err()),
        "upstream_rejected"
    );
    // Behind the old page, which is as fresh as before.
    assert_eq!(bench.get().await.unwrap().status, hit(30, None));
}

// RFC 9111 section 5.2.1.5.
#[tokio::test(start_paused = true)]
async fn a_miss_with_no_store_is_filled_and_not_kept() {
    let bench = Bench::new();
    let served = bench.get_with(NO_STORE).await.unwrap();
    assert_eq!(served.status, filled(FillReason::Bypass, 200, false));
    let served = bench.get().await.unwrap();
    assert_eq!(served.status, filled(FillReason::UriMiss, 200, true));
    assert_eq!(
        bench.get_with(NO_STORE).await.unwrap().status,
        hit(30, None)
    );
}

#[tokio::test(start_paused = true)]
async fn a_fill_with_no_store_is_kept_if_another_caller_joined_it() {
    let bench = Bench::new();
    let answer = bench.upstream.then_stall();
    let bypass = bench.get_meanwhile(bench.request(NO_STORE)).await;
    let other = bench.get_meanwhile(bench.request(PLAIN)).await;
    assert!(answer.send(page(&[])).is_ok());
    bypass.await.unwrap().unwrap();
    other.await.unwrap().unwrap();
    assert_eq!(bench.get().await.unwrap().status, hit(30, None));
}

// RFC 9111 section 4.3.4.
#[tokio::test(start_paused = true)]
async fn a_304_for_another_page_is_no_renewal() {
    const V1: (&str, &str) = ("etag", "\"v1\"");
    const V2: (&str, &str) = ("etag", "\"v2\"");
    const ONCE: (&str, &str) = ("cache-control", "max-age=0");
    let spent = || UpstreamError::QuotaExhausted { retry_after: None };
    let stale = |detail| hit(0, detail);
    // (what the upstream answers to the question without a condition, what is shown)
    let table: [(Option<Outcome>, _, u64); 4] = [
        (
            Some(page_of(6, &[V2])),
            filled(FillReason::Stale, 200, true),
            6,
        ),
        (Some(Err(spent())), stale(Detail::Quota), 5),
        (
            Some(Err(UpstreamError::InvalidResponse(InvalidAnswer::NoData))),
            stale(Detail::StaleIfError),
            5,
        ),
        // Nothing may come of it in time.
        (None, stale(Detail::StaleIfSlow), 5),
    ];
    for (second, status, count) in table {
        let bench = Bench::new();
        bench.upstream.then_answer(page(&[V1, ONCE]));
        bench.get().await.unwrap();
        bench
            .upstream
            .then_answer(answer(Content::NotModified, &[V2, ONCE]));
        match second {
            Some(outcome) => bench.upstream.then_answer(outcome),
            None => bench.upstream.then(pending()),
        }
        let served = bench.get().await.unwrap();
        let ttl = match served.status {
            CacheStatus::Hit { detail, .. } => hit(0, detail),
            other => other,
        };
        assert_eq!((ttl, served.page.content.count), (status, count));
        assert_eq!(served.calls, 2);
        let asked = bench.upstream.asked();
        let conditions: Vec<_> = asked.iter().map(|asked| &asked.validators.etag).collect();
        assert_eq!(conditions.len(), 3);
        assert!(conditions[1].is_some() && conditions[2].is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_304_that_names_the_stored_page_or_none_renews_it_by_one_call() {
    for tag in [&[("etag", "\"v1\"")][..], &[("etag", "W/\"v1\"")], &[]] {
        let bench = Bench::new();
        let lines = [("etag", "\"v1\""), ("cache-control", "max-age=0")];
        bench.upstream.then_answer(page(&lines));
        bench.get().await.unwrap();
        bench
            .upstream
            .then_answer(answer(Content::NotModified, tag));
        let served = bench.get().await.unwrap();
        assert_eq!(
            served.status,
            filled(FillReason::Stale, 304, true),
            "{tag:?}"
        );
        assert_eq!(bench.upstream.calls(), 2, "{tag:?}");
    }
}

// RFC 9111 section 5.2.1.7.
#[tokio::test(start_paused = true)]
async fn only_if_cached_never_asks() {
    let bench = Bench::new();
    let told = bench.get_with(ONLY_IF_CACHED).await.unwrap_err();
    assert_eq!(
        (code(&told), told.status),
        ("not_cached", NotForwarded::OnlyIfCached.into())
    );
    assert_eq!(bench.upstream.calls(), 0);

    bench.get().await.unwrap();
    pass(FRESH_FOR + SECOND).await;
    assert_eq!(
        bench.get_with(ONLY_IF_CACHED).await.unwrap().status,
        hit(-1, Detail::OnlyIfCached)
    );
    pass(REFRESHED_FOR).await;
    assert_eq!(
        code(&bench.get_with(ONLY_IF_CACHED).await.unwrap_err()),
        "not_cached"
    );
    settle().await;
    assert_eq!(bench.upstream.calls(), 1);
}

// RFC 9211 section 2.2.
#[tokio::test(start_paused = true)]
async fn a_failed_fill_tells_of_a_call_only_where_one_was_made() {
    let table = [
        (
            UpstreamError::QuotaExhausted { retry_after: None },
            NotForwarded::Quota,
        ),
        (
            UpstreamError::Unavailable {
                retry_after: SECOND,
            },
            NotForwarded::CircuitOpen,
        ),
        (UpstreamError::AuthFailed, NotForwarded::CircuitOpen),
        (UpstreamError::Overloaded, NotForwarded::Overloaded),
        (UpstreamError::Timeout(SECOND), NotForwarded::Overloaded),
    ];
    for (error, expected) in table {
        let bench = Bench::new();
        bench.upstream.then_fail_without_a_call(error.clone());
        let told = bench.get().await.unwrap_err();
        assert_eq!(told.status, expected.into(), "{error}");

        let bench = Bench::new();
        bench.upstream.then_fail(error.clone());
        let told = bench.get().await.unwrap_err();
        assert_eq!(told.status, failed(FillReason::UriMiss), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_joins_a_fill_tells_of_its_call_or_of_none() {
    for (is_sent, of_leader, of_joined) in [
        (
            true,
            failed(FillReason::UriMiss),
            joined(FillReason::UriMiss),
        ),
        (
            false,
            NotForwarded::Quota.into(),
            NotForwarded::Quota.into(),
        ),
    ] {
        let bench = Bench::new();
        let (end, ended) = oneshot::channel();
        let step = Box::pin(async { ended.await.expect("the test ends it") });
        bench.upstream.push(match is_sent {
            true => Step::Call(step),
            false => Step::BudgetExhausted(step),
        });
        let leader = bench.get_meanwhile(bench.request(PLAIN)).await;
        let other = bench.get_meanwhile(bench.request(PLAIN)).await;
        let spent = UpstreamError::QuotaExhausted { retry_after: None };
        assert!(end.send(Err(spent)).is_ok());
        assert_eq!(leader.await.unwrap().unwrap_err().status, of_leader);
        assert_eq!(other.await.unwrap().unwrap_err().status, of_joined);
        assert_eq!(bench.upstream.calls(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn only_if_cached_is_told_a_remembered_refusal() {
    let bench = Bench::new();
    bench.upstream.then_fail(UpstreamError::SpaceAccessDenied);
    bench.get().await.unwrap_err();
    let told = bench.get_with(ONLY_IF_CACHED).await.unwrap_err();
    assert_eq!(
        (code(&told), told.status),
        ("space_access_denied", hit(10, None))
    );
}

#[tokio::test(start_paused = true)]
async fn a_waiter_waits_no_longer_than_its_patience() {
    let bench = Bench::new();
    let late = bench.upstream.then_stall();
    let began = Instant::now();
    let told = bench.get().await.unwrap_err();
    assert_eq!(code(&told), "upstream_timeout");
    assert_eq!(Instant::now() - began, PATIENCE);
    // The fill goes on without it.
    assert_eq!(bench.pages.fills_under_way(), 1);
    assert!(late.send(page(&[("cache-control", "max-age=100")])).is_ok());
    settle().await;
    assert!(matches!(
        bench.get().await.unwrap().status,
        CacheStatus::Hit { .. }
    ));
}

#[tokio::test(start_paused = true)]
async fn a_waiter_out_of_patience_gets_the_stale_page() {
    let bench = Bench::new();
    bench.get().await.unwrap();
    pass(FRESH_FOR + REFRESHED_FOR).await;
    bench.upstream.then(pending());
    let served = bench.get_with(NO_CACHE).await.unwrap();
    assert_eq!(served.status, hit(-70, Detail::StaleIfError));
}

#[tokio::test(start_paused = true)]
async fn while_a_fill_drags_on_the_stale_page_is_served() {
    let bench = Bench::new();
    bench.get().await.unwrap();
    pass(FRESH_FOR + REFRESHED_FOR).await;
    let late = bench.upstream.then_stall();
    let served = bench.get().await.unwrap();
    assert_eq!(served.status, hit(-62, Detail::StaleIfSlow));
    assert_eq!(served.calls, 1, "the call that it caused");
    // Who joins it does not wait at all.
    let served = bench.get().await.unwrap();
    assert_eq!(served.status, hit(-62, Detail::StaleIfSlow));
    assert_eq!(bench.pages.fills_under_way(), 1);
    assert!(late.send(page(&[])).is_ok());
    settle().await;
    assert_eq!(bench.get().await.unwrap().status, hit(30, None));
    assert_eq!(bench.upstream.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn who_wants_a_newer_page_and_who_has_none_wait_to_the_end() {
    let of = |directives: fn(RequestDirectives) -> RequestDirectives| directives(PLAIN);
    for directives in [
        NO_CACHE,
        of(|plain| RequestDirectives {
            max_age: Some(SECOND),
            ..plain
        }),
        of(|plain| RequestDirectives {
            min_fresh: Some(SECOND),
            ..plain
        }),
    ] {
        let bench = Bench::new();
        bench.get().await.unwrap();
        pass(FRESH_FOR + REFRESHED_FOR).await;
        bench.upstream.then(pending());
        let served = bench.get_with(directives).await.unwrap();
        assert_eq!(served.status, hit(-70, Detail::StaleIfError));
    }
    for (said, aged) in [
        ("", FRESH_FOR + STANDS_IN_FOR),
        ("max-age=10, must-revalidate", FRESH_FOR),
    ] {
        let bench = Bench::new();
        bench.upstream.then_answer(page(
            &[("cache-control", said)][..usize::from(!said.is_empty())],
        ));
        bench.get().await.unwrap();
        pass(aged).await;
        bench.upstream.then(pending());
        let told = bench.get().await.unwrap_err();
        assert_eq!(code(&told), "upstream_timeout", "{said}");
    }
    // A page of an old list.
    let bench = Bench::new();
    bench.get_page(2).await.unwrap();
    bench.upstream.then_answer(page_of(6, &[]));
    bench.get().await.unwrap();
    bench.upstream.then(pending());
    let served = bench.get_page(2).await.unwrap();
    assert_eq!(served.status, hit(-10, Detail::StaleIfError));
}

#[tokio::test(start_paused = true)]
async fn a_fill_that_panics_is_lost_for_its_waiters_and_for_no_one_after() {
    let bench = Bench::new();
    bench.upstream.then(async { panic!("the test wants it") });
    let told = bench.get().await.unwrap_err();
    assert_eq!(
        (code(&told), told.status),
        ("lost", failed(FillReason::UriMiss))
    );
    assert_eq!(bench.pages.fills_under_way(), 0);

    // Where it made no call, none is told of.
    let lost = async { panic!("the test wants it") };
    bench.upstream.push(Step::BudgetExhausted(Box::pin(lost)));
    let told = bench.get().await.unwrap_err();
    let expected = ("lost", NotForwarded::Overloaded.into());
    assert_eq!((code(&told), told.status), expected);
    bench.get().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_fill_is_measured_against_the_list_as_it_was_when_its_call_was_sent() {
    // One call at a time: the second waits for its own while the list moves.
    let bench = Bench::configured("max_concurrency = 1", PLACES);
    bench.get_page(3).await.unwrap();
    let answer = bench.upstream.then_stall();
    bench.upstream.then_answer(page_of(7, &[]));
    let first = bench.get_meanwhile(bench.request_page(1, PLAIN)).await;
    let second = bench.get_meanwhile(bench.request_page(2, PLAIN)).await;
    assert_eq!(bench.upstream.calls(), 2);
    assert!(answer.send(page_of(6, &[])).is_ok());
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();

    let again = bench.get_page(2).await.unwrap();

    assert_eq!(again.page.content.count, 7);
    let is_hit = matches!(again.status, CacheStatus::Hit { detail: None, .. });
    assert!(is_hit, "{:?}", again.status);
    assert_eq!(bench.upstream.calls(), 3);
}

// RFC 9111 section 4.3.
#[tokio::test(start_paused = true)]
async fn a_stale_page_is_asked_for_by_its_validators_and_renewed_by_a_304() {
    let bench = Bench::new();
    let validators = [
        ("etag", "W/\"v1\""),
        ("last-modified", "Fri, 01 Jan 2027 00:00:00 GMT"),
    ];
    bench.upstream.then_answer(page(&validators));
    let first = bench.get().await.unwrap();
    pass(FRESH_FOR + REFRESHED_FOR).await;
    let answer = bench.upstream.then_stall();
    let waiting = bench.get_meanwhile(bench.request(PLAIN)).await;
    assert!(answer.send(self::answer(Content::NotModified, &[])).is_ok());

    let served = waiting.await.unwrap().unwrap();
    assert_eq!(served.status, filled(FillReason::Stale, 304, true));
    assert!(Arc::ptr_eq(&served.page.content, &first.page.content));
    assert_eq!(bench.get().await.unwrap().status, hit(30, None));
    let asked = bench.upstream.asked();
    assert!(asked[0].validators.is_empty());
    assert_eq!(asked[1].validators.etag.as_ref().unwrap(), "W/\"v1\"");
    let since = asked[1].validators.last_modified.as_ref().unwrap();
    assert_eq!(since, "Fri, 01 Jan 2027 00:00:00 GMT");
}

#[tokio::test(start_paused = true)]
async fn what_the_upstream_forbids_to_store_is_asked_for_each_time() {
    let bench = Bench::new();
    for _ in 0..2 {
        bench
            .upstream
            .then_answer(page(&[("cache-control", "no-store")]));
        let served = bench.get().await.unwrap();
        assert_eq!(served.status, filled(FillReason::UriMiss, 200, false));
    }
}

#[tokio::test(start_paused = true)]
async fn a_moved_list_makes_its_other_pages_waited_for() {
    let bench = Bench::new();
    bench.get_page(1).await.unwrap();
    bench.get_page(2).await.unwrap();
    bench.upstream.then_answer(page_of(6, &[]));
    bench.get_with(NO_CACHE).await.unwrap();

    bench.upstream.then_fail(UpstreamError::Timeout(SECOND));
    let stale_fallback = bench.get_page(2).await.unwrap();
    assert_eq!(stale_fallback.status, hit(-1, Detail::StaleIfError));
    bench.upstream.then_answer(page_of(6, &[]));
    let served = bench.get_page(2).await.unwrap();
    assert_eq!(served.status, filled(FillReason::Stale, 200, true));
    assert_eq!(bench.get_page(1).await.unwrap().status, hit(30, None));
}

#[tokio::test(start_paused = true)]
async fn a_page_cut_from_another_is_a_stale_fallback_as_long_as_that_is() {
    let bench = Bench::with_exact_pages();
    let rows = r#"{"count":3,"status_code":200,"message":"Tasks Fetched Successfully","data":[{"task_id":"c"},{"task_id":"b"},{"task_id":"a"}]}"#;
    let page = read_page(&Bytes::from_static(rows.as_bytes())).unwrap();
    bench.upstream.then_answer(answer(Content::Page(page), &[]));
    bench.get().await.unwrap();
    let mut request = bench.request(PLAIN);
    request.query.page_size = 2;
    let get = || bench.pages.page(&request);
    let cut = r#"{"count":3,"status_code":200,"message":"Tasks Fetched Successfully","data":[{"task_id":"c"},{"task_id":"b"}]}"#;
    let explained = || {
        let (key, now) = (request.key(), Instant::now());
        bench.pages.explain(&key, &bench.credential, now).verdict
    };
    assert_eq!(explained(), "assembled");
    assert_eq!(get().await.unwrap().status, hit(30, Detail::Assembled));

    pass(FRESH_FOR + SECOND).await;
    assert_eq!(explained(), "fill");
    bench.upstream.then_fail(UpstreamError::Timeout(SECOND));
    let served = get().await.unwrap();
    assert_eq!(served.status, hit(-1, Detail::StaleIfError));
    // Its fill queues as that of the page it is cut from.
    let waiter = bench
        .pages
        .waiter(&request.key(), &request, FillReason::Stale);
    let overdue = Instant::now() + FRESH_FOR - SECOND;
    assert_eq!(waiter.need, Need::Refresh(overdue));
    assert_eq!(served.age(), FRESH_FOR + SECOND);
    assert_eq!(served.page.content.page().body, cut);

    // A right that is gone shows nothing, and neither does a page that is too old.
    bench.upstream.then_fail(UpstreamError::AuthFailed);
    get().await.unwrap_err();
    pass(STANDS_IN_FOR).await;
    bench.upstream.then_fail(UpstreamError::Timeout(SECOND));
    assert_eq!(code(&get().await.unwrap_err()), "upstream_timeout");

    // Unless there is only no call for it.
    bench.credential.set_refused(false);
    let waiter = bench
        .pages
        .waiter(&request.key(), &request, FillReason::Stale);
    assert_eq!(waiter.need, Need::Oldest);
    let spent = UpstreamError::QuotaExhausted { retry_after: None };
    bench.upstream.then_fail_without_a_call(spent);
    let served = get().await.unwrap();
    assert_eq!(served.status, hit(-3601, Detail::Quota));
}

#[tokio::test(start_paused = true)]
async fn in_an_outage_pages_read_long_apart_are_cut_to_any_size() {
    let bench = Bench::with_exact_pages();
    let task = |id: u32| format!(r#"{{"task_id":"{id}"}}"#);
    let body = |ids: std::ops::Range<u32>| {
        let tasks: Vec<_> = ids.map(task).collect();
        format!(
            r#"{{"count":40,"status_code":200,"message":"Tasks Fetched Successfully","data":[{}]}}"#,
            tasks.join(",")
        )
    };
    for (page, ids) in [(1, 0..20), (2, 20..40)] {
        let told = read_page(&body(ids).into()).unwrap();
        bench.upstream.then_answer(answer(Content::Page(told), &[]));
        bench.get_page(page).await.unwrap();
        pass(3 * FRESH_FOR).await;
    }
    let mut request = bench.request(PLAIN);
    request.query.page_size = 40;

    bench.upstream.then_fail(UpstreamError::Timeout(SECOND));
    let served = bench.pages.page(&request).await.unwrap();

    assert_eq!(served.status, hit(-150, Detail::StaleIfError));
    assert_eq!(served.age(), 6 * FRESH_FOR, "that of the oldest");
    assert_eq!(served.page.content.page().body, body(0..40));
}

#[tokio::test(start_paused = true)]
async fn a_page_dropped_while_its_fill_failed_stands_in_for_nothing() {
    let bench = Bench::new();
    bench.get().await.unwrap();
    pass(FRESH_FOR + REFRESHED_FOR).await;
    let answer = bench.upstream.then_stall();
    let waiting = bench.get_meanwhile(bench.request(PLAIN)).await;
    bench.upstream.then_fail(UpstreamError::SpaceAccessDenied);
    bench.get_page(2).await.unwrap_err();

    assert!(answer.send(Err(UpstreamError::Timeout(SECOND))).is_ok());

    let told = waiting.await.unwrap().unwrap_err();
    assert_eq!(code(&told), "upstream_timeout");
}

#[tokio::test(start_paused = true)]
async fn a_fill_overtaken_by_a_purge_is_answered_and_not_stored() {
    let bench = Bench::new();
    let answer = bench.upstream.then_stall();
    let waiting = bench.get_meanwhile(bench.request(PLAIN)).await;
    bench.pages.store().purge();
    assert!(answer.send(page(&[])).is_ok());
    let served = waiting.await.unwrap().unwrap();
    assert_eq!(served.status, filled(FillReason::UriMiss, 200, false));
    assert_eq!(bench.pages.store().size(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_fill_is_counted_once_however_many_wait() {
    let bench = Bench::new();
    let answer = bench.upstream.then_stall();
    let mut waiting = Vec::new();
    for _ in 0..3 {
        waiting.push(bench.get_meanwhile(bench.request(PLAIN)).await);
    }
    assert!(answer.send(page(&[])).is_ok());
    join_all(waiting).await;
    bench.get().await.unwrap();
    let text = bench.metrics.encode();
    for line in [
        r#"gateway_fills_total{outcome="stored"} 1"#,
        r#"gateway_cache_lookups_total{outcome="miss",client="crm"} 1"#,
        r#"gateway_cache_lookups_total{outcome="joined",client="crm"} 2"#,
        r#"gateway_cache_lookups_total{outcome="hit",client="crm"} 1"#,
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[tokio::test]
async fn a_view_of_a_large_page_is_made_by_another_thread() {
    use futures_util::FutureExt;
    for (length, at_once) in [(1 << 10, true), (1 << 20, false)] {
        let bench = Bench::new();
        let text = "x".repeat(length);
        let page = ListPage {
            gzip: None,
            body: Bytes::from(format!(r#"{{"count":1,"data":[{{"a":"{text}","b":1}}]}}"#)),
            count: 1,
            rows: Arc::default(),
        };
        bench.upstream.then_answer(answer(Content::Page(page), &[]));
        let served = bench.get().await.unwrap();
        let view = Arc::new(View::new(&[FieldPath::dotted("b").unwrap()]));
        let show = || bench.pages.representation(&served, &view);

        // Awaited to its end: whoever only comes second may be ahead of its counting.
        let mut first = Box::pin(show());
        let is_made = first.as_mut().now_or_never();
        assert_eq!(is_made.is_some(), at_once, "{length}");

        let shown = match is_made {
            Some(shown) => shown,
            None => first.await,
        };
        assert_eq!(shown.encodings.plain(), r#"{"count":1,"data":[{"b":1}]}"#);
        assert!(show().now_or_never().is_some(), "it is made once");
        let weight = served.page.weight() as u64;
        assert_eq!(bench.pages.store().size().0, weight, "and counted");
    }
}

/// Whether `work` ends only after the one thread for blocking work is free.
async fn needs_a_thread(work: impl Future) -> bool {
    let (free, held) = std::sync::mpsc::channel::<()>();
    let busy = tokio::task::spawn_blocking(move || held.recv());
    let mut work = std::pin::pin!(work);
    let at_once = tokio::select! {
        biased;
        _ = &mut work => true,
        () = settle() => false,
    };
    drop(free);
    let _ = busy.await;
    if !at_once {
        work.await;
    }
    !at_once
}

#[test]
fn a_large_page_is_stored_renewed_and_cut_by_another_thread() {
    for (length, is_large) in [(64, false), (16 << 10, true)] {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .max_blocking_threads(1)
            .build()
            .unwrap();
        runtime.block_on(async {
            let bench = Bench::new();
            let task = |id| format!(r#"{{"task_id":"{id}","text":"{}"}}"#, "x".repeat(length));
            let tasks: Vec<_> = (0..20).map(task).collect();
            let body = format!(
                r#"{{"count":20,"status_code":200,"message":"Tasks Fetched Successfully","data":[{}]}}"#,
                tasks.join(",")
            );
            let page = read_page(&body.into()).unwrap();
            let told = Content::Page(page);
            bench
                .upstream
                .then_answer(answer(told, &[("etag", "\"a\"")]));
            bench
                .upstream
                .then_answer(answer(Content::NotModified, &[("etag", "\"a\"")]));
            let part = ClientRequest {
                query: PageQuery {
                    page: 2,
                    page_size: 5,
                },
                ..bench.request(PLAIN)
            };

            assert_eq!(needs_a_thread(bench.get()).await, is_large, "stored");
            let renewed = needs_a_thread(bench.get_with(NO_CACHE)).await;
            assert_eq!(renewed, is_large, "renewed");
            let cut = needs_a_thread(bench.pages.page(&part)).await;
            assert_eq!(cut, is_large, "cut");

            assert_eq!(bench.upstream.calls(), 2);
            for request in [bench.request(PLAIN), part] {
                let again = bench.pages.page(&request);
                assert!(!needs_a_thread(again).await, "it is a hit from then on");
            }
        });
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_sets_of_fields_leave_nothing_behind() {
    let bench = Bench::new();
    let served = bench.get().await.unwrap();
    let before = bench.pages.store().size();
    for number in 0..10_000 {
        let path = FieldPath::dotted(&format!("f{number}.task_id")).unwrap();
        bench.pages.seen_through(&served, View::new(&[path])).await;
    }
    assert_eq!(bench.pages.store().size(), before);
}
