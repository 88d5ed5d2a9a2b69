//! What is true only at the moment of a scrape, and is read then.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{TypedMetric, counter::ConstCounter, gauge::ConstGauge},
};

/// The values of one moment.
#[derive(Clone, Debug, Default)]
pub struct LiveMetrics {
    /// Of stored pages.
    pub cache_bytes: u64,
    /// Of pages that are not stored and that responses being sent hold.
    pub unstored_body_bytes: usize,
    pub cache_entries: u64,
    pub cache_evictions: u64,
    pub fills_under_way: usize,
    pub slot_queue: usize,
    pub log_lines_dropped: u64,
    /// Those of the configuration in force.
    pub credentials: Vec<LiveCredential>,
    /// When each client's key expires, of those whose key does.
    pub client_expiries: Vec<(String, SystemTime)>,
    /// When the certificates in each file expire.
    pub certificate_expiries: Vec<(String, SystemTime)>,
}

/// How a credential stands with the upstream.
#[derive(Clone, Debug, Default)]
pub struct LiveCredential {
    pub name: String,
    /// 0 accepted, 1 by its next token, 2 refused.
    pub state: i64,
    /// 0 closed, 1 half open, 2 open.
    pub circuit: i64,
    /// Calls left in this minute; `None`: no limit is known.
    pub quota_remaining: Option<u32>,
    pub quota_queue: usize,
    /// What the quota allows an average page to live.
    pub lifetime: Duration,
    pub token_switches: u64,
}

impl Collector for LiveMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let mut put = |name: &str, help: &str, metric: &dyn EncodeMetric| {
            let kind = metric.metric_type();
            metric.encode(encoder.encode_descriptor(name, help, None, kind)?)
        };
        put(
            "cache_bytes",
            "Bytes of stored pages, variants and keys",
            &gauge(self.cache_bytes),
        )?;
        put("cache_entries", "Pages stored", &gauge(self.cache_entries))?;
        put(
            "unstored_body_bytes",
            "Bytes of pages that only unsent responses hold",
            &gauge(self.unstored_body_bytes as u64),
        )?;
        put(
            "cache_evictions",
            "Pages evicted to stay within cache.max_bytes",
            &ConstCounter::new(self.cache_evictions),
        )?;
        put(
            "fills_under_way",
            "Pages being fetched",
            &gauge(self.fills_under_way as u64),
        )?;
        put(
            "upstream_slot_queue_length",
            "Upstream requests waiting for one of upstream.max_concurrency slots",
            &gauge(self.slot_queue as u64),
        )?;
        put(
            "log_lines_dropped",
            "Log lines dropped because they were written faster than read",
            &ConstCounter::new(self.log_lines_dropped),
        )?;
        encode_expiries(
            &mut encoder,
            "client_expiry_timestamp_seconds",
            "When a client's key expires, in Unix seconds",
            "client",
            &self.client_expiries,
        )?;
        encode_expiries(
            &mut encoder,
            "certificate_expiry_timestamp_seconds",
            "When a certificate expires, in Unix seconds: the first of a chain that is presented, the last of the authorities that are trusted",
            "file",
            &self.certificate_expiries,
        )?;
        self.encode_credentials(encoder)
    }
}

impl LiveMetrics {
    fn encode_credentials(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        self.by_credential(
            &mut encoder,
            "credential_state",
            "Whether the upstream accepts a credential: 0 accepted, 1 accepted with its next token, 2 rejected",
            |credential| ConstGauge::new(credential.state),
        )?;
        self.by_credential(
            &mut encoder,
            "circuit_state",
            "A credential's circuit breaker: 0 closed, 1 half open (one probe at a time), 2 open (no upstream requests); if only one space fails, it is open for that space, see the log and `/cache/explain`",
            |credential| ConstGauge::new(credential.circuit),
        )?;
        self.by_credential(
            &mut encoder,
            "upstream_quota_remaining",
            "Calls left in this minute; -1 if no quota is known",
            |credential| ConstGauge::new(credential.quota_remaining.map_or(-1.0, f64::from)),
        )?;
        self.by_credential(
            &mut encoder,
            "upstream_quota_queue_length",
            "Upstream requests waiting for the quota",
            |credential| gauge(credential.quota_queue as u64),
        )?;
        self.by_credential(
            &mut encoder,
            "cache_lifetime_seconds",
            "TTL of an average page without upstream headers, extended to fit the quota",
            |credential| ConstGauge::new(credential.lifetime.as_secs_f64()),
        )?;
        self.by_credential(
            &mut encoder,
            "upstream_token_switches",
            "Times a credential changed to its other token because the one in use was rejected",
            |credential| ConstCounter::new(credential.token_switches),
        )
    }

    fn by_credential<M: EncodeMetric + TypedMetric>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        value: impl Fn(&LiveCredential) -> M,
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(name, help, None, M::TYPE)?;
        for credential in &self.credentials {
            let labels = [("credential", credential.name.as_str())];
            value(credential).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// Nothing at all where nothing expires: what is described has a sample.
fn encode_expiries(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &str,
    expiries: &[(String, SystemTime)],
) -> fmt::Result {
    if expiries.is_empty() {
        return Ok(());
    }
    let mut family = encoder.encode_descriptor(name, help, None, ConstGauge::<f64>::TYPE)?;
    for (of, end) in expiries {
        let end = end.duration_since(UNIX_EPOCH).unwrap_or_default();
        let labels = [(label, of.as_str())];
        ConstGauge::new(end.as_secs_f64()).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn gauge(value: u64) -> ConstGauge {
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX))
}
