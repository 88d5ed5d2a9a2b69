//! Parts that are built at start and again when what they are built from is reloaded.

use std::sync::Arc;

use crate::{
    config::Config,
    telemetry::metrics::Metrics,
    upstream::{self, BuildError, Client, LimitLayer, Upstream},
};

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
