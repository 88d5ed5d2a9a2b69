//! The data listener's routes and their handlers.

use crate::telemetry::metrics::Route;

pub mod browser_tokens;
pub mod documents;
pub mod tasks;

/// Where the upstream serves what this listener serves at the root, so that its clients need change nothing but the base URL.
const UPSTREAM_PREFIX: &str = "/api/v2/platform";
const SPACE: &str = "{space_token}";

/// The path of `route` as OpenTelemetry's conventions name it.
#[must_use]
pub fn template(route: Route) -> Option<&'static str> {
    match route {
        Route::Tasks => Some("/spaces/{space_token}/tasks"),
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
        Route::Tasks | Route::BrowserTokens | Route::Other => false,
    }
}

/// Every path of a `route` that names a space: at the root and where the upstream has it, with and without a trailing slash. A space that
/// is left out makes a bad token, not another route.
pub(super) fn paths_of_space(route: Route) -> impl Iterator<Item = String> {
    let template = template(route).unwrap_or_default();
    let paths = [template.to_owned(), template.replace(SPACE, "")].into_iter();
    let paths = paths.flat_map(|path| [format!("{UPSTREAM_PREFIX}{path}"), path]);
    paths.flat_map(|path| [format!("{path}/"), path])
}
