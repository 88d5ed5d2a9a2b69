//! Every metric by name, type and labels. Handed to its part; there is no global recorder.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::StatusCode;
use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text},
    metrics::{
        counter::Counter,
        family::{Family, MetricConstructor},
        gauge::Gauge,
    },
    registry::Registry,
};

pub use self::account::Account;
use self::{
    account::count,
    histogram::{Grain, Histogram},
    process::Process,
};
use super::LogLosses;
use crate::cache::CacheStatus;

mod account;
mod histogram;
mod process;

/// What stands for a client where there is none.
pub const NO_CLIENT: &str = "none";
/// What stands for the client of an upstream call that nobody waits for.
pub const BACKGROUND: &str = "background";
/// What stands for the status of a request whose client went away before there was one.
pub const CANCELLED: &str = "cancelled";

/// Bounds in seconds: the configured lifetimes and the stretched ones, up to the last age that may stand in.
const AGE_BOUNDS: [f64; 10] = [
    1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0, 7200.0,
];
/// Bounds in seconds: hits lie in the first four, fills in the rest, the deadline near the end.
const DURATION_BOUNDS: [f64; 13] = [
    0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    status: Ending,
    client: String,
}

/// How a request ended, as it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Ending {
    Answered(StatusCode),
    /// Its client went away before there was an answer.
    Cancelled,
}

impl EncodeLabelValue for Ending {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        match self {
            Self::Answered(status) => EncodeLabelValue::encode(&status.as_u16(), encoder),
            Self::Cancelled => EncodeLabelValue::encode(&CANCELLED, encoder),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LookupLabels {
    outcome: &'static str,
    client: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamLabels {
    status: String,
    client: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabels {
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CredentialLabels {
    credential: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    operation: &'static str,
}

#[derive(Clone, Debug)]
struct Durations;

impl MetricConstructor<Histogram> for Durations {
    fn new_metric(&self) -> Histogram {
        Histogram::new(&DURATION_BOUNDS, Grain::Nanoseconds)
    }
}

/// A route as it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    Tasks,
    BrowserTokens,
    OpenApi,
    Health,
    Other,
}

impl Route {
    pub const ALL: [Self; 5] = [
        Self::Tasks,
        Self::BrowserTokens,
        Self::OpenApi,
        Self::Health,
        Self::Other,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tasks => "tasks",
            Self::BrowserTokens => "browser_tokens",
            Self::OpenApi => "openapi",
            Self::Health => "healthz",
            Self::Other => "other",
        }
    }
}

/// Why an authentication failed, as it is counted; the client is told none of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthFailure {
    Missing,
    Malformed,
    Unknown,
    Expired,
    /// No set of the identity provider's keys was read yet. Nobody failed, and it is counted nowhere.
    KeysNotLoaded,
    /// A token's key is not among those known, or one of several could be meant.
    UnknownKey,
    /// A token's algorithm is not its key's.
    WrongAlgorithm,
    BadSignature,
    WrongIssuer,
    WrongAudience,
    NotYetValid,
    /// A claim is missing, or not of its type.
    BadClaims,
    /// A token's claims name no client.
    UnknownClient,
    RateLimited,
}

impl AuthFailure {
    /// Those that are counted.
    const ALL: [Self; 13] = [
        Self::Missing,
        Self::Malformed,
        Self::Unknown,
        Self::Expired,
        Self::UnknownKey,
        Self::WrongAlgorithm,
        Self::BadSignature,
        Self::WrongIssuer,
        Self::WrongAudience,
        Self::NotYetValid,
        Self::BadClaims,
        Self::UnknownClient,
        Self::RateLimited,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::Unknown => "unknown",
            Self::Expired => "expired",
            Self::KeysNotLoaded => "keys_not_loaded",
            Self::UnknownKey => "unknown_key",
            Self::WrongAlgorithm => "wrong_algorithm",
            Self::BadSignature => "bad_signature",
            Self::WrongIssuer => "wrong_issuer",
            Self::WrongAudience => "wrong_audience",
            Self::NotYetValid => "not_yet_valid",
            Self::BadClaims => "bad_claims",
            Self::UnknownClient => "unknown_client",
            Self::RateLimited => "rate_limited",
        }
    }
}

/// What became of a configuration that was read anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReloadOutcome {
    Applied,
    Refused,
}

impl ReloadOutcome {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Refused => "refused",
        }
    }
}

/// Why a connection was closed that did nothing wrong in HTTP, as it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionFailure {
    /// A trusted proxy sent no PROXY protocol header, or a bad one.
    ProxyHeader,
    TlsHandshake,
    /// A PROXY header or a handshake took too long.
    TooSlow,
    /// A request's header did not begin, or did not end.
    HeaderTimeout,
    /// An answer moved no byte for too long.
    SendTimeout,
    /// Too many refusals waited to be sent.
    Refusals,
    /// Too many bytes waited to be sent.
    UnsentBytes,
    /// It was the longest idle one when a newcomer found no place.
    GaveWay,
}

impl ConnectionFailure {
    const ALL: [Self; 8] = [
        Self::ProxyHeader,
        Self::TlsHandshake,
        Self::TooSlow,
        Self::HeaderTimeout,
        Self::SendTimeout,
        Self::Refusals,
        Self::UnsentBytes,
        Self::GaveWay,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ProxyHeader => "proxy_header",
            Self::TlsHandshake => "tls_handshake",
            Self::TooSlow => "too_slow",
            Self::HeaderTimeout => "header_timeout",
            Self::SendTimeout => "send_timeout",
            Self::Refusals => "refusals",
            Self::UnsentBytes => "unsent_bytes",
            Self::GaveWay => "gave_way",
        }
    }
}

/// Why a request or a fill was turned away for want of room, as it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shed {
    /// `server.max_in_flight` requests are under way.
    MaxInFlight,
    /// Answers on their way out hold too much of `server.max_unsent_bytes`.
    UnsentBytes,
    /// Too many requests wait for fills.
    WaitingPlaces,
    /// Too many fills wait for the upstream (`upstream.max_queue`).
    Queue,
}

impl Shed {
    const ALL: [Self; 4] = [
        Self::MaxInFlight,
        Self::UnsentBytes,
        Self::WaitingPlaces,
        Self::Queue,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MaxInFlight => "max_in_flight",
            Self::UnsentBytes => "unsent_bytes",
            Self::WaitingPlaces => "waiting_places",
            Self::Queue => "queue",
        }
    }
}

/// Why spans were not exported, as it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanLoss {
    /// More spans end than the collector takes.
    QueueFull,
    /// The collector cannot be reached, fails or refuses them.
    ExportFailed,
}

impl SpanLoss {
    const ALL: [Self; 2] = [Self::QueueFull, Self::ExportFailed];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::ExportFailed => "export_failed",
        }
    }
}

/// What Redis was asked for, as its failures are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedisOperation {
    /// Connecting, and taking up what changed meanwhile.
    Connect,
    /// Asking whether it still answers.
    Heartbeat,
    /// Looking for a page.
    Look,
    /// Keeping a page.
    Store,
    /// Being the one who fills a page.
    Lock,
    /// Dropping pages on all replicas.
    Drop,
    /// A client's rate limit.
    Limit,
    /// The upstream's quota.
    Quota,
    /// Reading a value that is damaged or not ours: Redis itself is well.
    Read,
}

impl RedisOperation {
    const ALL: [Self; 9] = [
        Self::Connect,
        Self::Heartbeat,
        Self::Look,
        Self::Store,
        Self::Lock,
        Self::Drop,
        Self::Limit,
        Self::Quota,
        Self::Read,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Heartbeat => "heartbeat",
            Self::Look => "look",
            Self::Store => "store",
            Self::Lock => "lock",
            Self::Drop => "drop",
            Self::Limit => "limit",
            Self::Quota => "quota",
            Self::Read => "read",
        }
    }
}

/// Every metric of one gateway.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Those that have samples.
    credentials: Mutex<BTreeSet<String>>,
    http_requests: Family<RequestLabels, Counter>,
    http_request_duration: Family<RouteLabels, Histogram, Durations>,
    /// The same, in the order of [`Route::ALL`].
    durations: [Histogram; Route::ALL.len()],
    http_errors: Family<CodeLabels, Counter>,
    http_in_flight: Gauge,
    connections: Gauge,
    connection_failures: Family<ReasonLabels, Counter>,
    cache_lookups: Family<LookupLabels, Counter>,
    cache_bytes: Gauge,
    unstored_body_bytes: Gauge,
    cache_entries: Gauge,
    cache_evictions: Counter,
    page_age: Histogram,
    fills: Family<OutcomeLabels, Counter>,
    fill_duration: Histogram,
    fills_under_way: Gauge,
    fill_waiters: Gauge,
    requests_shed: Family<ReasonLabels, Counter>,
    upstream_requests: Family<UpstreamLabels, Counter>,
    upstream_retries: Counter,
    slot_queue: Gauge,
    quota_queue: Family<CredentialLabels, Gauge>,
    credential_state: Family<CredentialLabels, Gauge>,
    unknown_messages: Counter,
    upstream_clock_skew: Gauge,
    token_switches: Family<CredentialLabels, Counter>,
    upstream_quota_remaining: Family<CredentialLabels, Gauge<f64, AtomicU64>>,
    cache_lifetime: Family<CredentialLabels, Gauge<f64, AtomicU64>>,
    circuit_state: Family<CredentialLabels, Gauge>,
    auth_failures: Family<ReasonLabels, Counter>,
    config_reloads: Family<OutcomeLabels, Counter>,
    log_lines_dropped: Counter,
    log_losses: OnceLock<LogLosses>,
    traces_dropped: Family<ReasonLabels, Counter>,
    redis_up: Gauge,
    redis_errors: Family<OperationLabels, Counter>,
    redis_pages: Family<OutcomeLabels, Counter>,
    panics: Counter,
    forwarded_ignored: Counter,
}

impl Metrics {
    /// Registers every metric, each with a sample at 0.
    #[must_use]
    pub fn new<'a>(credentials: impl IntoIterator<Item = &'a str>) -> Arc<Self> {
        let http_request_duration = Family::new_with_constructor(Durations);
        let mut metrics = Self {
            registry: Registry::default(),
            credentials: Mutex::default(),
            http_requests: Family::default(),
            durations: Route::ALL.map(|route| duration_of(&http_request_duration, route)),
            http_request_duration,
            http_errors: Family::default(),
            http_in_flight: Gauge::default(),
            connections: Gauge::default(),
            connection_failures: Family::default(),
            cache_lookups: Family::default(),
            cache_bytes: Gauge::default(),
            unstored_body_bytes: Gauge::default(),
            cache_entries: Gauge::default(),
            cache_evictions: Counter::default(),
            page_age: Histogram::new(&AGE_BOUNDS, Grain::Milliseconds),
            fills: Family::default(),
            fill_duration: Durations.new_metric(),
            fills_under_way: Gauge::default(),
            fill_waiters: Gauge::default(),
            requests_shed: Family::default(),
            upstream_requests: Family::default(),
            upstream_retries: Counter::default(),
            slot_queue: Gauge::default(),
            quota_queue: Family::default(),
            credential_state: Family::default(),
            unknown_messages: Counter::default(),
            upstream_clock_skew: Gauge::default(),
            token_switches: Family::default(),
            upstream_quota_remaining: Family::default(),
            cache_lifetime: Family::default(),
            circuit_state: Family::default(),
            auth_failures: Family::default(),
            config_reloads: Family::default(),
            log_lines_dropped: Counter::default(),
            log_losses: OnceLock::new(),
            traces_dropped: Family::default(),
            redis_up: Gauge::default(),
            redis_errors: Family::default(),
            redis_pages: Family::default(),
            panics: Counter::default(),
            forwarded_ignored: Counter::default(),
        };
        metrics.register();
        metrics.start_at_zero(credentials);
        Arc::new(metrics)
    }

    fn register(&mut self) {
        self.registry.register_collector(Box::new(Process));
        let all = self.registry.sub_registry_with_prefix("gateway");
        all.register("build_info", "Always 1; which version runs", build_info());
        all.register(
            "http_requests",
            "Requests ended, by route, status and client; the status is cancelled where the client went away before there was one",
            self.http_requests.clone(),
        );
        all.register(
            "http_request_duration_seconds",
            "Time from a request's header to its answer's",
            self.http_request_duration.clone(),
        );
        all.register(
            "http_errors",
            "Errors answered, by their code",
            self.http_errors.clone(),
        );
        all.register(
            "http_requests_in_flight",
            "Requests under way, each until its answer has left",
            self.http_in_flight.clone(),
        );
        all.register(
            "connections",
            "Open client connections",
            self.connections.clone(),
        );
        all.register(
            "connection_failures",
            "Connections closed before a request or by a limit, by reason",
            self.connection_failures.clone(),
        );
        all.register(
            "cache_lookups",
            "What the cache did for a request",
            self.cache_lookups.clone(),
        );
        all.register(
            "cache_bytes",
            "Bytes of stored pages, variants and keys",
            self.cache_bytes.clone(),
        );
        all.register("cache_entries", "Pages stored", self.cache_entries.clone());
        all.register(
            "unstored_body_bytes",
            "Bytes of pages that are not stored and that answers on their way out hold",
            self.unstored_body_bytes.clone(),
        );
        all.register(
            "cache_evictions",
            "Pages pushed out for want of room",
            self.cache_evictions.clone(),
        );
        all.register(
            "page_age_seconds",
            "How old pages were when they were served, from the cache or not",
            self.page_age.clone(),
        );
        all.register(
            "fills",
            "Pages fetched from the upstream, by outcome",
            self.fills.clone(),
        );
        all.register(
            "fill_duration_seconds",
            "Time of a fill, waiting and all tries included",
            self.fill_duration.clone(),
        );
        all.register(
            "fills_under_way",
            "Pages being fetched",
            self.fills_under_way.clone(),
        );
        all.register(
            "fill_waiters",
            "Requests that wait for a page being fetched",
            self.fill_waiters.clone(),
        );
        all.register(
            "requests_shed",
            "What was turned away for want of room: requests beyond server.max_in_flight, answers beyond a client's share of server.max_unsent_bytes, requests that found no place to wait for a fill, fills that found none in the queue for the upstream",
            self.requests_shed.clone(),
        );
        all.register(
            "upstream_requests",
            "Calls to the upstream, by its status and the client that caused them",
            self.upstream_requests.clone(),
        );
        all.register(
            "upstream_retries",
            "Further tries of calls that failed for a while",
            self.upstream_retries.clone(),
        );
        all.register(
            "upstream_slot_queue_length",
            "Calls that wait for one of upstream.max_concurrency slots",
            self.slot_queue.clone(),
        );
        all.register(
            "upstream_quota_queue_length",
            "Calls that wait for the quota",
            self.quota_queue.clone(),
        );
        all.register(
            "credential_state",
            "How the upstream takes a credential: 0 it is good, 1 it goes on with its next token, 2 it is refused",
            self.credential_state.clone(),
        );
        all.register(
            "upstream_unknown_messages",
            "206 answers whose message no rule knows",
            self.unknown_messages.clone(),
        );
        all.register(
            "upstream_clock_skew_seconds",
            "By how much the upstream's clock is ahead of ours, negative where it is behind",
            self.upstream_clock_skew.clone(),
        );
        all.register(
            "upstream_token_switches",
            "Times a credential went on with its other token, the one in use being refused",
            self.token_switches.clone(),
        );
        all.register(
            "upstream_quota_remaining",
            "Calls left in this minute; -1 where no quota is known",
            self.upstream_quota_remaining.clone(),
        );
        all.register(
            "cache_lifetime_seconds",
            "How long an average page lives where the upstream states nothing, stretched to the quota",
            self.cache_lifetime.clone(),
        );
        all.register(
            "circuit_state",
            "Whether the upstream is asked with a credential: 0 closed (it is), 1 half open (by one call at a time), 2 open (it is not); where one space alone fails it is open for that space, as the log and `/cache/explain` tell",
            self.circuit_state.clone(),
        );
        all.register(
            "auth_failures",
            "Failed authentications, by reason",
            self.auth_failures.clone(),
        );
        all.register(
            "config_reloads",
            "Configuration reloads, by outcome",
            self.config_reloads.clone(),
        );
        all.register(
            "log_lines_dropped",
            "Lines that the log could not take in time",
            self.log_lines_dropped.clone(),
        );
        all.register(
            "traces_dropped",
            "Spans that were not exported, by reason",
            self.traces_dropped.clone(),
        );
        all.register(
            "redis_up",
            "Whether Redis answers: 1 it does, 0 it does not; -1 where none is configured",
            self.redis_up.clone(),
        );
        all.register(
            "redis_errors",
            "Operations of Redis that failed, by operation; read is a value that was damaged or not ours",
            self.redis_errors.clone(),
        );
        all.register(
            "redis_pages",
            "Pages looked for in Redis before the upstream is asked, by outcome",
            self.redis_pages.clone(),
        );
        all.register(
            "panics",
            "Requests that ended in a bug",
            self.panics.clone(),
        );
        all.register(
            "forwarded_ignored",
            "Requests of trusted proxies that report a client only in the field that server.forwarded_header does not name",
            self.forwarded_ignored.clone(),
        );
    }

    fn start_at_zero<'a>(&self, credentials: impl IntoIterator<Item = &'a str>) {
        for route in Route::ALL {
            let route = route.as_str();
            let _ = self.http_requests.get_or_create(&RequestLabels {
                route,
                status: Ending::Answered(StatusCode::OK),
                client: NO_CLIENT.to_owned(),
            });
        }
        let _ = self
            .http_errors
            .get_or_create(&CodeLabels { code: "internal" });
        for outcome in CacheStatus::OUTCOMES {
            let client = NO_CLIENT.to_owned();
            let _ = self
                .cache_lookups
                .get_or_create(&LookupLabels { outcome, client });
        }
        for outcome in ["stored", "not_stored", "not_modified", "upstream_failed"] {
            let _ = self.fills.get_or_create(&OutcomeLabels { outcome });
        }
        let _ = self.upstream_requests.get_or_create(&UpstreamLabels {
            status: "200".to_owned(),
            client: BACKGROUND.to_owned(),
        });
        self.set_credentials(credentials);
        for reason in ConnectionFailure::ALL {
            let reason = reason.as_str();
            let _ = self
                .connection_failures
                .get_or_create(&ReasonLabels { reason });
        }
        for reason in AuthFailure::ALL {
            let reason = reason.as_str();
            let _ = self.auth_failures.get_or_create(&ReasonLabels { reason });
        }
        for reason in Shed::ALL.map(Shed::as_str) {
            let _ = self.requests_shed.get_or_create(&ReasonLabels { reason });
        }
        for reason in SpanLoss::ALL.map(SpanLoss::as_str) {
            let _ = self.traces_dropped.get_or_create(&ReasonLabels { reason });
        }
        self.redis_up.set(-1);
        for operation in RedisOperation::ALL.map(RedisOperation::as_str) {
            let _ = self
                .redis_errors
                .get_or_create(&OperationLabels { operation });
        }
        for outcome in ["hit", "miss"] {
            let _ = self.redis_pages.get_or_create(&OutcomeLabels { outcome });
        }
        for outcome in [ReloadOutcome::Applied, ReloadOutcome::Refused] {
            let outcome = outcome.as_str();
            let _ = self
                .config_reloads
                .get_or_create(&OutcomeLabels { outcome });
        }
    }

    /// Gives each of `credentials` its samples, and takes away those of all others.
    pub fn set_credentials<'a>(&self, credentials: impl IntoIterator<Item = &'a str>) {
        let now: BTreeSet<String> = credentials.into_iter().map(str::to_owned).collect();
        let mut known = self.credentials.lock();
        for credential in known.difference(&now) {
            self.remove_credential(credential);
        }
        for credential in now.difference(&known) {
            self.add_credential(credential);
        }
        *known = now;
    }

    fn add_credential(&self, credential: &str) {
        let labels = of_credential(credential);
        self.upstream_quota_remaining
            .get_or_create(&labels)
            .set(-1.0);
        let _ = self.token_switches.get_or_create(&labels);
        let _ = self.cache_lifetime.get_or_create(&labels);
        let _ = self.circuit_state.get_or_create(&labels);
        let _ = self.quota_queue.get_or_create(&labels);
        let _ = self.credential_state.get_or_create(&labels);
    }

    fn remove_credential(&self, credential: &str) {
        let labels = of_credential(credential);
        self.upstream_quota_remaining.remove(&labels);
        self.token_switches.remove(&labels);
        self.cache_lifetime.remove(&labels);
        self.circuit_state.remove(&labels);
        self.quota_queue.remove(&labels);
        self.credential_state.remove(&labels);
    }

    // What concerns a credential is noted while it has samples: a late word of one that is gone brings none back.

    /// A credential goes on with its other token.
    pub fn token_switched(&self, credential: &str) {
        if let Some(switches) = self.token_switches.get(&of_credential(credential)) {
            switches.inc();
        }
    }

    /// The configuration was read anew.
    pub fn reloaded(&self, outcome: ReloadOutcome) {
        let outcome = outcome.as_str();
        self.config_reloads
            .get_or_create(&OutcomeLabels { outcome })
            .inc();
    }

    /// A request was answered; `None`: to nobody known.
    pub fn answered(
        &self,
        route: Route,
        status: StatusCode,
        account: Option<&Account>,
        took: Duration,
    ) {
        let kept = account.and_then(|account| account.answered(route, status));
        count(kept, || {
            let client = account.map_or(NO_CLIENT, |account| account.client());
            let labels = RequestLabels {
                route: route.as_str(),
                status: Ending::Answered(status),
                client: client.to_owned(),
            };
            self.http_requests.get_or_create(&labels).clone()
        });
        self.durations[route as usize].observe(took);
    }

    /// A request was answered with the error of this code.
    pub fn answered_error(&self, code: &'static str) {
        self.http_errors.get_or_create(&CodeLabels { code }).inc();
    }

    /// A request's client went away before there was an answer. Who it was is known to the answer alone.
    pub fn cancelled(&self, route: Route, took: Duration) {
        self.http_requests
            .get_or_create(&RequestLabels {
                route: route.as_str(),
                status: Ending::Cancelled,
                client: NO_CLIENT.to_owned(),
            })
            .inc();
        self.durations[route as usize].observe(took);
    }

    /// A page of this age was served.
    pub fn page_served(&self, age: Duration) {
        self.page_age.observe(age);
    }

    /// A request or a fill was turned away for want of room.
    pub fn shed(&self, reason: Shed) {
        let reason = reason.as_str();
        self.requests_shed
            .get_or_create(&ReasonLabels { reason })
            .inc();
    }

    /// A call is tried again.
    pub fn retried(&self) {
        self.upstream_retries.inc();
    }

    /// Spans are lost.
    pub fn spans_lost(&self, reason: SpanLoss, count: u64) {
        let reason = reason.as_str();
        self.traces_dropped
            .get_or_create(&ReasonLabels { reason })
            .inc_by(count);
    }

    /// Whether Redis answers.
    pub fn redis_up(&self, up: bool) {
        self.redis_up.set(up.into());
    }

    /// An operation of Redis failed.
    pub fn redis_failed(&self, operation: RedisOperation) {
        let operation = operation.as_str();
        self.redis_errors
            .get_or_create(&OperationLabels { operation })
            .inc();
    }

    /// A page was looked for in Redis.
    pub fn redis_looked(&self, found: bool) {
        let outcome = if found { "hit" } else { "miss" };
        self.redis_pages
            .get_or_create(&OutcomeLabels { outcome })
            .inc();
    }

    /// The cache did `outcome` for a request on `account`.
    pub fn lookup(&self, outcome: &'static str, account: &Account) {
        count(account.lookup(outcome), || {
            let labels = LookupLabels {
                outcome,
                client: account.client().to_string(),
            };
            self.cache_lookups.get_or_create(&labels).clone()
        });
    }

    /// A fill ended.
    pub fn filled(&self, outcome: &'static str, took: Duration) {
        self.fills.get_or_create(&OutcomeLabels { outcome }).inc();
        self.fill_duration.observe(took);
    }

    /// The upstream answered a call that `client` caused; `None`: it did not.
    pub fn upstream_answered(&self, status: Option<StatusCode>, client: &str) {
        let status = status.map_or_else(|| "none".to_owned(), |status| status.as_u16().to_string());
        let client = client.to_owned();
        self.upstream_requests
            .get_or_create(&UpstreamLabels { status, client })
            .inc();
    }

    pub fn unknown_message(&self) {
        self.unknown_messages.inc();
    }

    /// The upstream's clock is ahead of ours by so many seconds.
    pub fn upstream_clock_skew(&self, seconds: i64) {
        self.upstream_clock_skew.set(seconds);
    }

    pub fn auth_failed(&self, reason: AuthFailure) {
        let reason = reason.as_str();
        self.auth_failures
            .get_or_create(&ReasonLabels { reason })
            .inc();
    }

    pub fn connection_failed(&self, failure: ConnectionFailure) {
        let reason = failure.as_str();
        self.connection_failures
            .get_or_create(&ReasonLabels { reason })
            .inc();
    }

    pub fn panicked(&self) {
        self.panics.inc();
    }

    pub fn forwarded_ignored(&self) {
        self.forwarded_ignored.inc();
    }

    /// Counts up while the guard lives.
    #[must_use]
    pub fn connection(&self) -> GaugeGuard {
        GaugeGuard::new(&self.connections)
    }

    /// Counts up while the guard lives.
    #[must_use]
    pub fn request_in_flight(&self) -> GaugeGuard {
        GaugeGuard::new(&self.http_in_flight)
    }

    /// Counts up while the guard lives.
    #[must_use]
    pub fn fill_waiter(&self) -> GaugeGuard {
        GaugeGuard::new(&self.fill_waiters)
    }

    /// Requests under way.
    #[must_use]
    pub fn in_flight(&self) -> i64 {
        self.http_in_flight.get()
    }

    /// Open client connections.
    #[must_use]
    pub fn connections_open(&self) -> i64 {
        self.connections.get()
    }

    /// Calls that `credential` may still make in this minute; `None`: no limit is known.
    pub fn quota_remaining(&self, credential: &str, remaining: Option<u32>) {
        if let Some(gauge) = self
            .upstream_quota_remaining
            .get(&of_credential(credential))
        {
            gauge.set(remaining.map_or(-1.0, f64::from));
        }
    }

    /// How long an average page of `credential` lives where the upstream states nothing, stretched to its quota.
    pub fn cache_lifetime(&self, credential: &str, lifetime: Duration) {
        if let Some(gauge) = self.cache_lifetime.get(&of_credential(credential)) {
            gauge.set(lifetime.as_secs_f64());
        }
    }

    /// The circuit of `credential`: 0 closed, 1 half open, 2 open.
    pub fn circuit_state(&self, credential: &str, state: i64) {
        if let Some(gauge) = self.circuit_state.get(&of_credential(credential)) {
            gauge.set(state);
        }
    }

    /// How the upstream takes `credential`: 0 good, 1 by its next token, 2 refused.
    pub fn credential_state(&self, credential: &str, state: i64) {
        if let Some(gauge) = self.credential_state.get(&of_credential(credential)) {
            gauge.set(state);
        }
    }

    /// Calls that wait for the quota of `credential`.
    pub fn quota_queue(&self, credential: &str, length: usize) {
        if let Some(gauge) = self.quota_queue.get(&of_credential(credential)) {
            set(&gauge, length as u64);
        }
    }

    /// Calls that wait for a slot.
    pub fn slot_queue(&self, length: usize) {
        set(&self.slot_queue, length as u64);
    }

    /// Pages being fetched.
    pub fn fills_under_way(&self, count: usize) {
        set(&self.fills_under_way, count as u64);
    }

    /// What answers on their way out hold beside the store.
    pub fn unstored_body_bytes(&self, bytes: usize) {
        set(&self.unstored_body_bytes, bytes as u64);
    }

    /// Pages evicted since the start.
    pub fn evicted(&self, total: u64) {
        self.cache_evictions.inner().store(total, Ordering::Relaxed);
    }

    /// Counts what the log loses from now on; the first log that is given stays.
    pub fn watch_log(&self, losses: LogLosses) {
        let _ = self.log_losses.set(losses);
    }

    /// Everything in Prometheus's text form. `cache` is the bytes and entries stored now.
    #[must_use]
    pub fn encode(&self, cache: (u64, u64)) -> String {
        set(&self.cache_bytes, cache.0);
        set(&self.cache_entries, cache.1);
        if let Some(losses) = self.log_losses.get() {
            self.log_lines_dropped
                .inner()
                .store(losses.count(), Ordering::Relaxed);
        }
        let mut out = String::new();
        text::encode(&mut out, &self.registry).expect("writing to a string cannot fail");
        as_prometheus_text(&out)
    }
}

fn duration_of(durations: &Family<RouteLabels, Histogram, Durations>, route: Route) -> Histogram {
    let route = route.as_str();
    durations.get_or_create(&RouteLabels { route }).clone()
}

fn of_credential(name: &str) -> CredentialLabels {
    CredentialLabels {
        credential: name.to_owned(),
    }
}

fn set(gauge: &Gauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

fn build_info() -> Family<BuildLabels, Gauge> {
    let family = Family::<BuildLabels, Gauge>::default();
    let version = env!("CARGO_PKG_VERSION");
    family.get_or_create(&BuildLabels { version }).set(1);
    family
}

/// Prometheus's text form from OpenMetrics, which differ in two things: there a counter is described without its `_total`, and the
/// text ends with a mark.
fn as_prometheus_text(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len() + 512);
    let mut lines = open_metrics.lines().peekable();
    while let Some(line) = lines.next() {
        let help = line
            .strip_prefix("# HELP ")
            .and_then(|rest| rest.split_once(' '));
        let counter = |name: &str, line: &str| line == format!("# TYPE {name} counter");
        match (help, lines.peek()) {
            (Some((name, text)), Some(next)) if counter(name, next) => {
                out.push_str(&format!(
                    "# HELP {name}_total {text}\n# TYPE {name}_total counter\n"
                ));
                lines.next();
            }
            _ if line == "# EOF" => {}
            _ => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_described_by_the_name_of_their_samples() {
        let open_metrics = "# HELP a Some.\n# TYPE a counter\na_total{x=\"1\"} 2\n# HELP b More.\n# TYPE b gauge\nb 1\n# EOF\n";
        assert_eq!(
            as_prometheus_text(open_metrics),
            "# HELP a_total Some.\n# TYPE a_total counter\na_total{x=\"1\"} 2\n# HELP b More.\n# TYPE b gauge\nb 1\n"
        );
    }

    #[test]
    fn a_credential_that_is_gone_takes_its_samples_along() {
        let metrics = Metrics::new(["one", "two"]);
        metrics.token_switched("two");
        metrics.set_credentials(["two", "three"]);
        // Late words of the one that is gone.
        metrics.token_switched("one");
        metrics.circuit_state("one", 2);
        metrics.credential_state("one", 2);
        metrics.quota_queue("one", 1);
        metrics.quota_remaining("one", Some(1));
        metrics.cache_lifetime("one", Duration::from_secs(1));

        let text = metrics.encode((0, 0));

        let named = |name: &str| text.matches(&format!("credential=\"{name}\"")).count();
        assert_eq!(named("one"), 0, "{text}");
        assert!(named("two") > 0);
        assert_eq!(named("two"), named("three"));
        assert!(text.contains("gateway_upstream_token_switches_total{credential=\"two\"} 1"));
    }

    #[test]
    fn every_metric_has_a_sample_from_the_start() {
        let text = Metrics::new(["default"]).encode((0, 0));
        let described: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .filter_map(|rest| rest.split_once(' '))
            .map(|(name, _)| name)
            .collect();
        for name in [
            "gateway_http_requests_total",
            "gateway_http_request_duration_seconds",
            "gateway_cache_lookups_total",
            "gateway_cache_bytes",
            "gateway_cache_entries",
            "gateway_fills_total",
            "gateway_fill_duration_seconds",
            "gateway_upstream_requests_total",
            "gateway_upstream_quota_remaining",
            "gateway_upstream_clock_skew_seconds",
            "gateway_circuit_state",
            "gateway_auth_failures_total",
            "gateway_config_reloads_total",
            "gateway_build_info",
            "gateway_cache_evictions_total",
            "gateway_page_age_seconds",
            "gateway_fills_under_way",
            "gateway_fill_waiters",
            "gateway_requests_shed_total",
            "gateway_upstream_retries_total",
            "gateway_upstream_slot_queue_length",
            "gateway_upstream_quota_queue_length",
            "gateway_credential_state",
            "gateway_log_lines_dropped_total",
            "gateway_traces_dropped_total",
            "gateway_redis_up",
            "gateway_redis_errors_total",
            "gateway_redis_pages_total",
            "gateway_upstream_token_switches_total",
        ] {
            assert!(described.contains(&name), "{name} is missing");
        }
        for name in described {
            let sampled = text.lines().any(|line| line.starts_with(name));
            assert!(sampled, "{name} has no sample");
        }
    }
}

/// Counts one up, and down again when dropped: an end is counted where it surely ends.
#[derive(Debug)]
pub struct GaugeGuard(Gauge);

impl GaugeGuard {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
