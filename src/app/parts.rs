//! Parts that are built at start and again when what they are built from is reloaded.

use std::{sync::Arc, time::Duration};

use crate::{
    config::{Config, telemetry::TelemetryConfig},
    telemetry::{
        metrics::Metrics,
        traces::{Export, Tracer},
    },
    upstream::{self, BuildError, Client, LimitLayer, Upstream},
};

const COLLECTOR_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// From sending a batch of spans to the collector's last byte.
const COLLECTOR_TIMEOUT: Duration = Duration::from_secs(5);

/// What begins traces and what sends them, where `config` names a collector.
pub(super) fn traces(
    config: &TelemetryConfig,
    metrics: &Arc<Metrics>,
) -> Result<Option<(Tracer, Export)>, BuildError> {
    let Some(collector) = config.traces_url() else {
        return Ok(None);
    };
    let http = upstream::other_client(&collector)?
        .connect_timeout(COLLECTOR_CONNECT_TIMEOUT)
        .timeout(COLLECTOR_TIMEOUT)
        .build()?;
    Ok(Some(Tracer::exporting_to(collector, http, metrics.clone())))
}

/// The upstream stack as `config` describes it, within the slots of `limit`.
pub(super) fn upstream(
    config: &Config,
    limit: LimitLayer,
    metrics: &Arc<Metrics>,
) -> Result<Upstream, BuildError> {
    let client = Client::new(&config.upstream)?;
    Ok(upstream::stack(
        client,
        &config.upstream,
        &config.normalize,
        limit,
        metrics,
    ))
}
