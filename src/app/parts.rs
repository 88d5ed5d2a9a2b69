//! Parts that are built at start and again when what they are built from is reloaded.

use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    config::{Config, telemetry::TelemetryConfig},
    service::{SecondTier, Tasks, packing::keep_packing},
    shared::{Calls, Link},
    telemetry::{
        metrics::Metrics,
        traces::{Export, Tracer},
    },
    upstream::{self, BuildError, Client, Credentials, LimitLayer, Upstream},
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

/// Shares pages and calls with the replicas behind `link`, until the guard is dropped.
///
/// Waits for the first attempt to connect, so that a replica that starts begins with what the others have.
pub(super) async fn share(
    link: Arc<Link>,
    tasks: &Arc<Tasks>,
    credentials: Arc<Credentials>,
) -> DropGuard {
    share_calls(&link, &credentials);
    tasks.share_pages(SecondTier::new(link.clone(), credentials));
    let end = CancellationToken::new();
    let first = Arc::new(Notify::new());
    let follower = Arc::new(tasks.clone());
    tokio::spawn(link.keep(follower, first.clone(), end.clone()));
    first.notified().await;
    end.drop_guard()
}

/// Packs the cold pages of `tasks` until the guard is dropped.
pub(super) fn pack(tasks: &Arc<Tasks>) -> DropGuard {
    let end = CancellationToken::new();
    tokio::spawn(keep_packing(tasks.clone(), end.clone()));
    end.drop_guard()
}

/// Counts the calls of `credentials` among all replicas.
pub(super) fn share_calls(link: &Arc<Link>, credentials: &Credentials) {
    for credential in credentials.all() {
        let origin = credentials.origin().as_str();
        let calls = Calls::new(link.clone(), origin, &credential.name);
        credential.purse().share(calls);
    }
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
