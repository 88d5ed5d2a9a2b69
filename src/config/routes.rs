//! `[routes]`: what each route accepts.

use serde::Deserialize;

use super::Problems;

/// `[routes]`, a table a route.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoutesConfig {
    pub tasks: TasksRouteConfig,
}

/// `[routes.tasks]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TasksRouteConfig {
    pub max_page_size: u32,
    /// How many of the newest tasks a filter may look at.
    pub newest_max: u32,
    pub unknown_parameters: UnknownParameters,
}

/// What to do with an unknown query parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownParameters {
    Reject,
    Ignore,
}

impl RoutesConfig {
    pub(super) fn check(&self, problems: &mut Problems) {
        if self.tasks.max_page_size == 0 {
            problems.add("routes.tasks.max_page_size", "expected 1 or more");
        }
        if !(1..=10_000).contains(&self.tasks.newest_max) {
            problems.add("routes.tasks.newest_max", "expected 1 to 10000");
        }
    }
}
