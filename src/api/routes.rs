//! The data listener's routes and their handlers.

use crate::{
    domain::{Collection, RUN_ID},
    telemetry::metrics::Route,
};

pub mod answer;
pub mod browser_tokens;
pub mod changes;
pub mod documents;
pub mod list;
pub mod task;

/// Where the upstream serves what this listener serves at the root, so that its clients need change nothing but the base URL.
const UPSTREAM_PREFIX: &str = "/api/v2/platform";
/// What changed in a space: in this spelling alone, since the vendor has nothing like it.
const CHANGES: &str = "/spaces/{space_token}/changes";
/// What is left out of a path makes a bad parameter, not another route.
const PARAMETERS: [&str; 2] = ["{space_token}", RUN_ID];
/// Of one task.
const TASK: &str = "/spaces/{space_token}/tasks/{task_id}";

/// The path of `route` as OpenTelemetry's conventions name it.
#[must_use]
pub fn template(route: Route) -> Option<&'static str> {
    match route {
        Route::List(collection) => Some(collection.route),
        Route::Task => Some(TASK),
        Route::Changes => Some(CHANGES),
        Route::BrowserTokens => Some("/browser-tokens"),
        Route::OpenApi => Some("/openapi.json"),
        Route::Health => Some("/healthz"),
        Route::Other => None,
    }
}

/// Whether `route` is served to anybody.
#[must_use]
pub fn is_public(route: Route) -> bool {
    match route {
        Route::OpenApi | Route::Health => true,
        Route::List(_) | Route::Task | Route::Changes | Route::BrowserTokens | Route::Other => {
            false
        }
    }
}

/// Whether `route` serves what is in a space.
#[must_use]
pub fn is_of_a_space(route: Route) -> bool {
    matches!(route, Route::List(_) | Route::Task | Route::Changes)
}

/// How a path of a list is spelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    Gateway,
    /// As the upstream has it.
    Vendor,
}

/// Every path of a list: at the root and where the upstream has it, with and without a trailing slash.
pub(super) fn paths_of(collection: Collection) -> impl Iterator<Item = (Spelling, String)> {
    let paths = with_and_without_parameters(collection.route).into_iter();
    let paths = paths.flat_map(|path| {
        let vendor = (Spelling::Vendor, format!("{UPSTREAM_PREFIX}{path}"));
        [vendor, (Spelling::Gateway, path)]
    });
    paths.flat_map(|(spelling, path)| [(spelling, format!("{path}/")), (spelling, path)])
}

/// Every path of one task. Without its id it is that of the list.
pub(super) fn paths_of_a_task() -> impl Iterator<Item = String> {
    let paths = with_and_without_parameters(TASK).into_iter();
    paths.flat_map(|path| [format!("{path}/"), path])
}

/// Every path of the changes of a space.
pub(super) fn paths_of_changes() -> impl Iterator<Item = String> {
    let paths = with_and_without_parameters(CHANGES).into_iter();
    paths.flat_map(|path| [format!("{path}/"), path])
}

fn with_and_without_parameters(path: &str) -> Vec<String> {
    let mut paths = vec![path.to_owned()];
    for parameter in PARAMETERS {
        let named = paths.iter().filter(|path| path.contains(parameter));
        let left_out: Vec<_> = named.map(|path| path.replace(parameter, "")).collect();
        paths.extend(left_out);
    }
    paths
}
