//! Every metric by name, type and labels, one file a subject. Handed to its part; there is no global recorder.

use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::{collector::Collector, encoding::text, registry::Registry};

pub use self::{
    account::Account,
    auth::{AuthFailure, AuthMetrics},
    cache::{CacheMetrics, CacheOutcome, LookupKind},
    changes::{ChangesMetrics, PollOutcome},
    declare::GaugeGuard,
    http::{CANCELLED, ConnectionFailure, HttpMetrics, NO_CLIENT, Route, Shed},
    live::{LiveCredential, LiveMetrics},
    process::{ProcessMetrics, ReloadOutcome, SpanLoss},
    shared::{RedisOperation, RedisStore, SharedMetrics},
    upstream::{BACKGROUND, UpstreamMetrics},
};

mod account;
mod auth;
mod cache;
mod changes;
mod declare;
mod histogram;
mod http;
mod live;
mod process;
mod shared;
mod upstream;

const PREFIX: &str = "gateway";

/// Every metric of one gateway.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    pub http: HttpMetrics,
    pub cache: CacheMetrics,
    pub changes: Arc<ChangesMetrics>,
    pub upstream: UpstreamMetrics,
    pub auth: AuthMetrics,
    pub shared: SharedMetrics,
    pub process: ProcessMetrics,
}

impl Metrics {
    /// Registers every metric, each with a sample at 0.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(process::Process));
        let ours = registry.sub_registry_with_prefix(PREFIX);
        Arc::new(Self {
            process: ProcessMetrics::new(ours),
            http: HttpMetrics::new(ours),
            cache: CacheMetrics::new(ours),
            changes: ChangesMetrics::new(ours),
            upstream: UpstreamMetrics::new(ours),
            auth: AuthMetrics::new(ours),
            shared: SharedMetrics::new(ours),
            registry: Mutex::new(registry),
        })
    }

    /// Asks `collector` too at each scrape, for [`LiveMetrics`].
    pub fn collect(&self, collector: Box<dyn Collector>) {
        let mut registry = self.registry.lock();
        registry
            .sub_registry_with_prefix(PREFIX)
            .register_collector(collector);
    }

    /// Everything in Prometheus's text form.
    #[must_use]
    pub fn encode(&self) -> String {
        let registry = self.registry.lock();
        let mut out = String::new();
        text::encode(&mut out, &registry).expect("writing to a string cannot fail");
        as_prometheus_text(&out)
    }
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
    use std::fmt;

    use prometheus_client::encoding::DescriptorEncoder;

    use super::*;

    /// The credentials of a gateway that is asked.
    #[derive(Debug)]
    struct Named(Arc<Mutex<Vec<&'static str>>>);

    impl Collector for Named {
        fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
            let named = |name: &&str| LiveCredential {
                name: (*name).to_owned(),
                ..LiveCredential::default()
            };
            let live = LiveMetrics {
                credentials: self.0.lock().iter().map(named).collect(),
                ..LiveMetrics::default()
            };
            live.encode(encoder)
        }
    }

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
        let credentials = Arc::new(Mutex::new(vec!["one", "two"]));
        let metrics = Metrics::new();
        metrics.collect(Box::new(Named(credentials.clone())));
        assert!(metrics.encode().contains("credential=\"one\""));
        *credentials.lock() = vec!["two", "three"];

        let text = metrics.encode();

        let named = |name: &str| text.matches(&format!("credential=\"{name}\"")).count();
        assert_eq!(named("one"), 0, "{text}");
        assert!(named("two") > 0);
        assert_eq!(named("two"), named("three"));
    }

    #[test]
    fn every_metric_has_a_sample_from_the_start() {
        let metrics = Metrics::new();
        metrics.collect(Box::new(Named(Arc::new(Mutex::new(vec!["default"])))));
        let text = metrics.encode();
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
            "gateway_redis_members",
            "gateway_redis_operation_duration_seconds",
            "gateway_redis_stores_total",
            "gateway_redis_reasserted_total",
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
