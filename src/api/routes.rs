//! The data listener's routes and their handlers.

use crate::{
    domain::{Collection, RUN_ID},
    telemetry::metrics::Route,
};

pub mod browser_tokens;
pub mod documents;
pub mod list;

/// Where the upstream serves what this listener serves at the root, so that its clients need change nothing but the base URL.
const UPSTREAM_PREFIX: &str = "/api/v2/platform";
/// What is left out of a path makes a bad parameter, not another route.
const PARAMETERS: [&str; 2] = ["{space_token}", RUN_ID];

/// The path of `route` as OpenTelemetry's conventions name it.
#[must_use]
pub fn template(route: Route) -> Option<&'static str> {
    match route {
        Route::List(collection) => Some(collection.route),
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
        Route::List(_) | Route::BrowserTokens | Route::Other => false,
    }
}

/// Every path of a list: at the root and where the upstream has it, with and without a trailing slash.
pub(super) fn paths_of(collection: Collection) -> impl Iterator<Item = String> {
    let mut paths = vec![collection.route.to_owned()];
    for parameter in PARAMETERS {
        let named = paths.iter().filter(|path| path.contains(parameter));
        let left_out: Vec<_> = named.map(|path| path.replace(parameter, "")).collect();
        paths.extend(left_out);
    }
    let paths = paths.into_iter();
    let paths = paths.flat_map(|path| [format!("{UPSTREAM_PREFIX}{path}"), path]);
    paths.flat_map(|path| [format!("{path}/"), path])
}
