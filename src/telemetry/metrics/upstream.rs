//! Upstream requests.

use http::StatusCode;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::declare::{counter, declare, gauge};

/// The `client` of an upstream request that nobody waits for.
pub const BACKGROUND: &str = "background";

/// Upstream requests and what came of them.
#[derive(Debug)]
pub struct UpstreamMetrics {
    requests: Family<RequestLabels, Counter>,
    retries: Counter,
    unknown_messages: Counter,
    clock_skew: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    status: String,
    client: String,
}

impl UpstreamMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        Self {
            requests: requests(registry),
            retries: counter(
                registry,
                "upstream_retries",
                "Retries after transient failures",
            ),
            unknown_messages: counter(
                registry,
                "upstream_unknown_messages",
                "206 responses whose message matches no rule",
            ),
            clock_skew: gauge(
                registry,
                "upstream_clock_skew_seconds",
                "How far the upstream's clock is ahead of ours, negative if it is behind",
            ),
        }
    }

    /// The upstream answered a request that `client` caused; `None`: it did not.
    pub fn answered(&self, status: Option<StatusCode>, client: &str) {
        let labels = RequestLabels {
            status: status.map_or_else(|| "none".to_owned(), |status| status.as_u16().to_string()),
            client: client.to_owned(),
        };
        self.requests.get_or_create(&labels).inc();
    }

    /// A request is tried again.
    pub fn retried(&self) {
        self.retries.inc();
    }

    pub fn unknown_message(&self) {
        self.unknown_messages.inc();
    }

    /// The upstream's clock is ahead of ours by so many seconds.
    pub fn clock_skew(&self, seconds: i64) {
        self.clock_skew.set(seconds);
    }
}

fn requests(registry: &mut Registry) -> Family<RequestLabels, Counter> {
    let requests = declare(
        registry,
        "upstream_requests",
        "Upstream requests, by status and the client that caused them",
        Family::<RequestLabels, Counter>::default(),
    );
    let _ = requests.get_or_create(&RequestLabels {
        status: "200".to_owned(),
        client: BACKGROUND.to_owned(),
    });
    requests
}
