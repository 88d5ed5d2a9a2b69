//! What requests are judged by: one state of the configuration, replaced as a whole when it is reloaded.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;

use super::{Clients, key::OperatorKeys};
use crate::{
    config::{Config, CorsConfig, routes::TasksRouteConfig},
    upstream::Upstream,
};

/// One state of what may change while the gateway runs.
#[derive(Debug)]
pub struct Policy {
    pub clients: Clients,
    /// What the clients' credentials are good for.
    pub upstream: Arc<Upstream>,
    pub operators: OperatorKeys,
    pub route: TasksRouteConfig,
    /// Whether answers tell which state of the list they show.
    pub coherent_pages: bool,
    /// How long clients may reuse an answer without asking.
    pub client_max_age: Duration,
    pub cors: CorsConfig,
}

impl Policy {
    #[must_use]
    pub fn new(config: &Config, clients: Clients, upstream: Arc<Upstream>) -> Self {
        Self {
            clients,
            upstream,
            operators: OperatorKeys::new(config.admin.keys()),
            route: config.routes.tasks.clone(),
            coherent_pages: config.cache.coherent_pages,
            client_max_age: config.cache.client_max_age,
            cors: config.cors.clone(),
        }
    }
}

/// The policy in force, shared by all who judge by it.
pub type LivePolicy = Arc<ArcSwap<Policy>>;
