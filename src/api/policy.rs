//! The part of the configuration that requests are judged by, replaced atomically on reload.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;

use super::{Clients, key::OperatorKeys};
use crate::{
    config::{ChangesConfig, Config, CorsConfig, routes::TasksRouteConfig},
    upstream::Upstream,
};

/// What a reload may change.
#[derive(Debug)]
pub struct Policy {
    pub clients: Clients,
    /// The upstream that the clients' credentials are for.
    pub upstream: Arc<Upstream>,
    pub operators: OperatorKeys,
    pub route: TasksRouteConfig,
    /// Whether responses carry `X-List-Generation`.
    pub coherent_pages: bool,
    /// How long clients may reuse an answer without asking.
    pub client_max_age: Duration,
    pub cors: CorsConfig,
    /// When the certificates in each file end.
    pub certificate_ends: BTreeMap<PathBuf, SystemTime>,
    pub changes: ChangesConfig,
}

impl Policy {
    #[must_use]
    pub fn new(
        config: &Config,
        clients: Clients,
        upstream: Arc<Upstream>,
        certificate_ends: BTreeMap<PathBuf, SystemTime>,
    ) -> Self {
        Self {
            clients,
            upstream,
            operators: OperatorKeys::new(config.admin.keys()),
            route: config.routes.tasks.clone(),
            coherent_pages: config.cache.coherent_pages,
            client_max_age: config.cache.client_max_age,
            cors: config.cors.clone(),
            certificate_ends,
            changes: config.changes.clone(),
        }
    }
}

/// The policy in force, shared by all who judge by it.
pub type LivePolicy = Arc<ArcSwap<Policy>>;
