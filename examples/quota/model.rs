//! A model of Unpod: it counts the calls of a sliding minute, serves eight at once, takes about 300 ms, and fails as it is told.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, StatusCode};
use parking_lot::Mutex;
use tokio::{sync::Semaphore, time::Instant};
use tower::Service;
use unpod_gateway::{
    domain::PageQuery,
    upstream::{ClientError, Head, PageRequest, RawAnswer},
};

const MINUTE: Duration = Duration::from_secs(60);
/// Calls it serves at once.
const AT_ONCE: usize = 8;
/// Rows of a page that clients ask for.
pub(crate) const ROWS: u32 = 20;

/// A page of a list of a space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Name {
    pub(crate) space: usize,
    pub(crate) page: u32,
}

/// In which way a page never works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    NotFound,
    Denied,
    Poisoned,
    UnknownMessage,
    Status500,
    NullData,
    NotJson,
    TooLarge,
}

impl Fault {
    pub(crate) const ALL: [Self; 8] = [
        Self::NotFound,
        Self::Denied,
        Self::Poisoned,
        Self::UnknownMessage,
        Self::Status500,
        Self::NullData,
        Self::NotJson,
        Self::TooLarge,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "404",
            Self::Denied => "403",
            Self::Poisoned => "poison 206",
            Self::UnknownMessage => "unknown 206",
            Self::Status500 => "500",
            Self::NullData => "null data",
            Self::NotJson => "not JSON",
            Self::TooLarge => "too large",
        }
    }

    fn answer(self) -> Result<(u16, &'static str), ClientError> {
        Ok(match self {
            Self::NotFound => (404, r#"{"status_code":404,"message":"Not found"}"#),
            Self::Denied => (403, r#"{"status_code":403,"message":"Forbidden"}"#),
            Self::Poisoned => (
                206,
                r#"{"status_code":206,"message":"Fetch failed","errors":"bad row"}"#,
            ),
            Self::UnknownMessage => (206, r#"{"status_code":206,"message":"No such luck"}"#),
            Self::Status500 => (500, r#"{"status_code":500,"message":"Internal error"}"#),
            Self::NullData => (
                200,
                r#"{"count":400,"status_code":200,"message":"Tasks","data":null}"#,
            ),
            Self::NotJson => (200, "tasks"),
            Self::TooLarge => return Err(ClientError::TooLarge(16 << 20)),
        })
    }
}

/// What a call beyond the quota is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Throttle {
    /// A 429 and nothing else.
    Silent,
    /// `Retry-After: 0`.
    RetryAfterZero,
    /// `Retry-After` with a date that has passed.
    PastDate,
}

/// How it behaves at the moment.
#[derive(Clone, Debug)]
pub(crate) struct Behavior {
    /// Calls a minute; 0: as many as come.
    pub(crate) quota: usize,
    /// Whether its header tells the limit and what is left.
    pub(crate) tells_limits: bool,
    pub(crate) throttle: Throttle,
    pub(crate) refuses_all: bool,
    pub(crate) hangs: bool,
    pub(crate) faults: HashMap<Name, Fault>,
    /// Spaces whose replicas lag: every other call sees a task more.
    pub(crate) flapping: HashSet<usize>,
}

impl Default for Behavior {
    fn default() -> Self {
        Self {
            quota: 0,
            tells_limits: false,
            throttle: Throttle::Silent,
            refuses_all: false,
            hangs: false,
            faults: HashMap::new(),
            flapping: HashSet::new(),
        }
    }
}

impl Behavior {
    /// In which way the rows of `query` never work: as any page fails whose rows are among them.
    fn fault_of(&self, space: usize, query: PageQuery) -> Option<Fault> {
        let asked = query.span();
        let is_among = |name: &Name| {
            let page = PageQuery {
                page: name.page,
                page_size: ROWS,
            };
            let span = page.span();
            name.space == space && span.start < asked.end && asked.start < span.end
        };
        let mut faults = self.faults.iter();
        faults.find_map(|(name, fault)| is_among(name).then_some(*fault))
    }
}

/// A call that arrived.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) at: Instant,
    pub(crate) name: Name,
    /// The client that caused it.
    pub(crate) cause: Arc<str>,
    pub(crate) was_refused: bool,
}

#[derive(Debug)]
struct Seen {
    calls: Vec<Call>,
    /// Calls of the last minute that were not refused.
    minute: VecDeque<Instant>,
    random: fastrand::Rng,
}

/// The upstream; clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    behavior: Arc<Mutex<Behavior>>,
    seen: Arc<Mutex<Seen>>,
    slots: Arc<Semaphore>,
    began: Instant,
}

impl Model {
    pub(crate) fn new(behavior: Behavior, seed: u64) -> Self {
        Self {
            behavior: Arc::new(Mutex::new(behavior)),
            seen: Arc::new(Mutex::new(Seen {
                calls: Vec::new(),
                minute: VecDeque::new(),
                random: fastrand::Rng::with_seed(seed),
            })),
            slots: Arc::new(Semaphore::new(AT_ONCE)),
            began: Instant::now(),
        }
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Behavior)) {
        change(&mut self.behavior.lock());
    }

    /// The calls that arrived at `since` or later.
    pub(crate) fn calls_since(&self, since: Instant) -> Vec<Call> {
        let seen = self.seen.lock();
        let first = seen.calls.partition_point(|call| call.at < since);
        seen.calls[first..].to_vec()
    }

    /// The most calls that arrived within a minute, refused ones too.
    pub(crate) fn most_in_a_minute(&self) -> usize {
        let seen = self.seen.lock();
        let mut first = 0;
        let counts = seen.calls.iter().enumerate().map(|(last, call)| {
            while call.at - seen.calls[first].at >= MINUTE {
                first += 1;
            }
            last - first + 1
        });
        counts.max().unwrap_or(0)
    }

    async fn answer(self, request: PageRequest) -> Result<RawAnswer, ClientError> {
        request.calls.add();
        request.sent.set();
        let sent = Instant::now();
        let (way, work) = {
            let random = &mut self.seen.lock().random;
            (random.u64(5..=150), random.u64(100..=300))
        };
        tokio::time::sleep(Duration::from_millis(way)).await;
        let behavior = self.behavior.lock().clone();
        let arrived = self.arrive(&request, &behavior);
        if behavior.hangs {
            std::future::pending::<()>().await;
        }
        let _slot = self.slots.acquire().await;
        tokio::time::sleep(Duration::from_millis(work)).await;
        let (status, body) = match (&arrived.refusal, arrived.fault) {
            (Some(_), _) => (429, r#"{"status_code":429,"message":"Too many"}"#.into()),
            (None, Some(fault)) => {
                let (status, body) = fault.answer()?;
                (status, body.to_owned())
            }
            (None, None) => (200, page(arrived.name.space, request.query, arrived.count)),
        };
        Ok(RawAnswer {
            gzip: None,
            status: StatusCode::from_u16(status).expect("each of them is a status"),
            head: self.head(sent, &arrived, &behavior),
            body: Bytes::from(body),
        })
    }

    /// Counts a call.
    fn arrive(&self, request: &PageRequest, behavior: &Behavior) -> Arrived {
        let now = Instant::now();
        let space = request.space.as_str().trim_start_matches("SPACE");
        let space = space.parse().expect("a space is named by its number");
        let name = Name {
            space,
            page: request.query.page,
        };
        let mut seen = self.seen.lock();
        while seen
            .minute
            .front()
            .is_some_and(|call| now - *call >= MINUTE)
        {
            seen.minute.pop_front();
        }
        let is_full = behavior.quota > 0 && seen.minute.len() >= behavior.quota;
        let refusal = (is_full || behavior.refuses_all).then_some(behavior.throttle);
        if refusal.is_none() {
            seen.minute.push_back(now);
        }
        seen.calls.push(Call {
            at: now,
            name,
            cause: request.cause.clone(),
            was_refused: refusal.is_some(),
        });
        let lags = behavior.flapping.contains(&name.space) && seen.calls.len().is_multiple_of(2);
        Arrived {
            name,
            refusal,
            fault: behavior.fault_of(space, request.query),
            count: 400 + u32::from(lags),
            left: behavior.quota.saturating_sub(seen.minute.len()),
            reset: (seen.minute.front()).map_or(Duration::ZERO, |first| *first + MINUTE - now),
        }
    }

    fn head(&self, sent: Instant, arrived: &Arrived, behavior: &Behavior) -> Head {
        let received = Instant::now();
        let mut headers = HeaderMap::new();
        if behavior.tells_limits {
            headers.insert("x-ratelimit-limit", number(behavior.quota));
            headers.insert("x-ratelimit-remaining", number(arrived.left));
            let reset = arrived.reset.as_secs() + 1;
            headers.insert(
                "x-ratelimit-reset",
                number(usize::try_from(reset).unwrap_or(60)),
            );
        }
        match arrived.refusal {
            None | Some(Throttle::Silent) => {}
            Some(Throttle::RetryAfterZero) => {
                headers.insert("retry-after", number(0));
            }
            Some(Throttle::PastDate) => {
                let past = HeaderValue::from_static("Thu, 31 Dec 2026 23:59:00 GMT");
                headers.insert("retry-after", past);
            }
        }
        // Its clock starts on Fri, 01 Jan 2027.
        let since = (received - self.began).as_secs();
        Head {
            headers,
            received,
            received_unix: 1_798_761_600 + i64::try_from(since).unwrap_or_default(),
            response_delay: received - sent,
        }
    }
}

/// What was decided about a call when it arrived.
struct Arrived {
    name: Name,
    refusal: Option<Throttle>,
    fault: Option<Fault>,
    count: u32,
    left: usize,
    reset: Duration,
}

fn number(number: usize) -> HeaderValue {
    HeaderValue::from(number)
}

/// A page of a list of `count` tasks, the newest first.
fn page(space: usize, query: PageQuery, count: u32) -> String {
    let first = (query.page - 1) * query.page_size;
    let rows: Vec<_> = (first..(first + query.page_size).min(count))
        .map(|place| {
            let id = format!("{space}-{}", count - place);
            format!(r#"{{"task_id":"{id}","status":"pending"}}"#)
        })
        .collect();
    format!(
        r#"{{"count":{count},"status_code":200,"message":"Tasks Fetched Successfully","data":[{}]}}"#,
        rows.join(",")
    )
}

impl Service<PageRequest> for Model {
    type Response = RawAnswer;
    type Error = ClientError;
    type Future = BoxFuture<'static, Result<RawAnswer, ClientError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: PageRequest) -> Self::Future {
        Box::pin(self.clone().answer(request))
    }
}
