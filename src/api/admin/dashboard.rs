//! The dashboard: one page, its style and its scripts, compiled in. It shows `/status`, `/history` and `/metrics`.

use axum::{
    Router,
    body::Body,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderName, HeaderValue, header};

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Path, type and text of each file.
const FILES: [(&str, &str, &str); 8] = [
    ("/", HTML, include_str!("dashboard/index.html")),
    (
        "/dashboard.css",
        CSS,
        include_str!("dashboard/dashboard.css"),
    ),
    (
        "/dashboard.js",
        SCRIPT,
        include_str!("dashboard/dashboard.js"),
    ),
    ("/charts.js", SCRIPT, include_str!("dashboard/charts.js")),
    ("/rows.js", SCRIPT, include_str!("dashboard/rows.js")),
    ("/samples.js", SCRIPT, include_str!("dashboard/samples.js")),
    (
        "/sections.js",
        SCRIPT,
        include_str!("dashboard/sections.js"),
    ),
    ("/words.js", SCRIPT, WORDS),
];

const WORDS: &str = include_str!("dashboard/words.js");

/// What the page may load and do: its own files, asking its own origin, and an empty icon.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const FIELDS: [(HeaderName, &str); 2] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::REFERRER_POLICY, "no-referrer"),
];

pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES
        .iter()
        .fold(Router::new(), |router, (path, kind, text)| {
            router.route(path, get(async || file(kind, *text)))
        })
}

/// A document in the style of the dashboard, and as restricted.
pub(super) fn html(text: String) -> Response {
    file(HTML, text)
}

fn file(content_type: &'static str, text: impl Into<Body>) -> Response {
    let mut response = text.into().into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    for (name, value) in FIELDS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::error::CODES,
        telemetry::metrics::{CacheOutcome, LookupKind, Route},
        upstream::CircuitState,
    };

    /// Whether the page says in words what `name` means.
    fn explains(name: &str) -> bool {
        WORDS.contains(&format!("\n  {name}: '"))
    }

    #[test]
    fn whatever_the_page_may_show_is_explained_on_it() {
        let routes: Vec<_> = Route::all().map(Route::as_str).collect();
        let circuits = [
            CircuitState::Closed,
            CircuitState::HalfOpen,
            CircuitState::Open,
        ];
        let circuits = circuits.map(CircuitState::as_str);
        let outcomes = CacheOutcome::ALL.map(CacheOutcome::as_str);
        let names = CODES.iter().chain(&outcomes).chain(&routes);
        for name in names.chain(&circuits) {
            assert!(explains(name), "{name}");
        }
    }

    #[test]
    fn a_hit_is_what_is_answered_from_the_store() {
        let list = WORDS
            .lines()
            .find_map(|line| line.strip_prefix("export const FROM_STORE = "));
        let named: Vec<_> = list.unwrap().split('\'').skip(1).step_by(2).collect();
        for outcome in CacheOutcome::ALL {
            let is_hit = matches!(outcome.kind(), LookupKind::Fresh | LookupKind::Stale);
            assert_eq!(named.contains(&outcome.as_str()), is_hit, "{outcome:?}");
        }
    }

    #[test]
    fn the_page_loads_nothing_from_elsewhere() {
        for (path, _, text) in FILES {
            let svg = "http://www.w3.org/2000/svg";
            let user = "http://x:key@host/";
            let rest = text.replace(svg, "").replace(user, "");
            for foreign in ["http:", "https:", "//cdn", "innerHTML"] {
                assert!(!rest.contains(foreign), "{path}: {foreign}");
            }
        }
        // `style-src 'self'` and `script-src 'self'` would refuse them.
        for inline in ["style=", "onclick=", "<style", "<script>"] {
            assert!(!FILES[0].2.contains(inline), "{inline}");
        }
    }
}
