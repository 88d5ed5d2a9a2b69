//! What clients ask for and are answered, and their connections.

use std::{fmt, time::Duration};

use http::StatusCode;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{
    Account,
    account::count,
    declare::{CounterBy, GaugeGuard, counter, declare, gauge, label_values},
    histogram::Histogram,
};
use crate::domain::Collection;

/// The `client` of a request whose client is not known.
pub const NO_CLIENT: &str = "none";
/// The `status` of a request whose client went away before there was one.
pub const CANCELLED: &str = "cancelled";

/// Requests, connections and what is refused for want of capacity.
#[derive(Debug)]
pub struct HttpMetrics {
    requests: Family<RequestLabels, Counter>,
    /// In the order of [`Route::all`].
    durations: Vec<Histogram>,
    errors: CounterBy,
    in_flight: Gauge,
    connections: Gauge,
    connection_failures: CounterBy,
    shed: CounterBy,
    panics: Counter,
    forwarded_ignored: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    status: Ending,
    client: String,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Ending {
    Answered(StatusCode),
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

impl HttpMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        Self {
            requests: requests(registry),
            durations: durations(registry),
            errors: CounterBy::new(
                registry,
                "http_errors",
                "Error responses, by code",
                "code",
                ["internal"],
            ),
            in_flight: gauge(
                registry,
                "http_requests_in_flight",
                "Requests in flight, each until its response has been sent",
            ),
            connections: gauge(registry, "connections", "Open client connections"),
            connection_failures: CounterBy::new(
                registry,
                "connection_failures",
                "Connections closed before a request or by a limit, by reason",
                "reason",
                ConnectionFailure::ALL.map(ConnectionFailure::as_str),
            ),
            shed: CounterBy::new(
                registry,
                "requests_shed",
                "Rejected because of overload, by reason: requests above server.max_in_flight, responses above a client's share of server.max_unsent_bytes, requests above the limit of waiters, upstream requests above upstream.max_queue",
                "reason",
                Shed::ALL.map(Shed::as_str),
            ),
            panics: counter(registry, "panics", "Requests that panicked"),
            forwarded_ignored: counter(
                registry,
                "forwarded_ignored",
                "Requests of trusted proxies with only the header that server.forwarded_header does not name",
            ),
        }
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
            self.requests_of(route, Ending::Answered(status), client)
        });
        self.durations[route.place()].observe(took);
    }

    /// A request's client went away before there was an answer. Who it was is known to the answer alone.
    pub fn cancelled(&self, route: Route, took: Duration) {
        self.requests_of(route, Ending::Cancelled, NO_CLIENT).inc();
        self.durations[route.place()].observe(took);
    }

    fn requests_of(&self, route: Route, status: Ending, client: &str) -> Counter {
        let labels = RequestLabels {
            route: route.as_str(),
            status,
            client: client.to_owned(),
        };
        self.requests.get_or_create(&labels).clone()
    }

    /// A request was answered with the error of this code.
    pub fn error(&self, code: &'static str) {
        self.errors.inc(code);
    }

    /// Counts up while the guard lives.
    #[must_use]
    pub fn request_in_flight(&self) -> GaugeGuard {
        GaugeGuard::new(&self.in_flight)
    }

    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> i64 {
        self.in_flight.get()
    }

    /// Counts up while the guard lives.
    #[must_use]
    pub fn connection(&self) -> GaugeGuard {
        GaugeGuard::new(&self.connections)
    }

    /// Open client connections.
    #[must_use]
    pub fn connections_open(&self) -> i64 {
        self.connections.get()
    }

    pub fn connection_failed(&self, failure: ConnectionFailure) {
        self.connection_failures.inc(failure.as_str());
    }

    /// A request or a fill was refused for want of capacity.
    pub fn shed(&self, reason: Shed) {
        self.shed.inc(reason.as_str());
    }

    pub fn panicked(&self) {
        self.panics.inc();
    }

    pub fn forwarded_ignored(&self) {
        self.forwarded_ignored.inc();
    }
}

fn requests(registry: &mut Registry) -> Family<RequestLabels, Counter> {
    let requests = declare(
        registry,
        "http_requests",
        "Requests completed, by route, status and client; the status is cancelled if the client disconnected before there was one",
        Family::<RequestLabels, Counter>::default(),
    );
    for route in Route::all().map(Route::as_str) {
        let _ = requests.get_or_create(&RequestLabels {
            route,
            status: Ending::Answered(StatusCode::OK),
            client: NO_CLIENT.to_owned(),
        });
    }
    requests
}

fn durations(registry: &mut Registry) -> Vec<Histogram> {
    let durations = declare(
        registry,
        "http_request_duration_seconds",
        "Time from a request's header to its response's",
        Family::<_, _, fn() -> Histogram>::new_with_constructor(Histogram::of_durations),
    );
    let of_route = |route: Route| {
        let labels = [("route", route.as_str())];
        durations.get_or_create(&labels).clone()
    };
    Route::all().map(of_route).collect()
}

/// The `route` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// A page of such a list.
    List(Collection),
    /// One task.
    Task,
    /// What changed in a space.
    Changes,
    BrowserTokens,
    OpenApi,
    Health,
    Other,
}

impl Route {
    const OTHERS: [Self; 6] = [
        Self::Task,
        Self::Changes,
        Self::BrowserTokens,
        Self::OpenApi,
        Self::Health,
        Self::Other,
    ];

    pub fn all() -> impl Iterator<Item = Self> {
        Collection::all().map(Self::List).chain(Self::OTHERS)
    }

    /// Its place among [`Self::all`], from 0.
    fn place(self) -> usize {
        let other = match self {
            Self::List(collection) => return collection.place(),
            Self::Task => 0,
            Self::Changes => 1,
            Self::BrowserTokens => 2,
            Self::OpenApi => 3,
            Self::Health => 4,
            Self::Other => 5,
        };
        Collection::COUNT + other
    }

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::List(collection) => collection.name,
            Self::Task => "task",
            Self::Changes => "changes",
            Self::BrowserTokens => "browser_tokens",
            Self::OpenApi => "openapi",
            Self::Health => "healthz",
            Self::Other => "other",
        }
    }
}

label_values! {
    /// Why a connection was closed other than by HTTP, as it is counted.
    pub enum ConnectionFailure {
        /// A trusted proxy sent no PROXY protocol header, or a bad one.
        ProxyHeader = "proxy_header",
        TlsHandshake = "tls_handshake",
        /// A PROXY header or a handshake took too long.
        TooSlow = "too_slow",
        /// A request's header did not begin or end in time.
        HeaderTimeout = "header_timeout",
        /// A response made no progress for too long.
        SendTimeout = "send_timeout",
        /// Too many error responses waited to be sent.
        Refusals = "refusals",
        /// Too many bytes waited to be sent.
        UnsentBytes = "unsent_bytes",
        /// It was idle the longest when a new connection needed its place.
        GaveWay = "gave_way",
    }
}

label_values! {
    /// Why a request or a fill was refused for want of capacity, as it is counted.
    pub enum Shed {
        /// `server.max_in_flight` requests are in flight.
        MaxInFlight = "max_in_flight",
        /// Responses being sent hold too much of `server.max_unsent_bytes`.
        UnsentBytes = "unsent_bytes",
        /// Too many requests wait for fills.
        WaitingPlaces = "waiting_places",
        /// Too many fills wait for the upstream (`upstream.max_queue`).
        Queue = "queue",
    }
}
