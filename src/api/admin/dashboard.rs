//! The dashboard: one page, its style and its script, compiled in. It shows `/status` and `/metrics`.

use axum::{
    Router,
    body::Body,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderName, HeaderValue, header};

const PAGE: &str = include_str!("dashboard/index.html");
const STYLE: &str = include_str!("dashboard/dashboard.css");
const SCRIPT: &str = include_str!("dashboard/dashboard.js");

/// What the page may load and do: its own files, asking its own origin, and an empty icon.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const FIELDS: [(HeaderName, &str); 2] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::REFERRER_POLICY, "no-referrer"),
];

pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route("/", get(|| file("text/html; charset=utf-8", PAGE)))
        .route(
            "/dashboard.css",
            get(|| file("text/css; charset=utf-8", STYLE)),
        )
        .route(
            "/dashboard.js",
            get(|| file("text/javascript; charset=utf-8", SCRIPT)),
        )
}

async fn file(content_type: &'static str, text: &'static str) -> Response {
    let mut response = Body::from(text).into_response();
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
        telemetry::metrics::{CacheOutcome, Route},
        upstream::CircuitState,
    };

    /// Whether the script says in words what `name` means.
    fn explains(name: &str) -> bool {
        SCRIPT.contains(&format!("\n  {name}: '"))
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
    fn the_page_loads_nothing_from_elsewhere() {
        for text in [PAGE, STYLE, SCRIPT] {
            let svg = "http://www.w3.org/2000/svg";
            let user = "http://x:key@host/";
            let rest = text.replace(svg, "").replace(user, "");
            assert!(!rest.contains("http:") && !rest.contains("https:"));
            assert!(!rest.contains("//cdn") && !rest.contains("innerHTML"));
        }
        // `style-src 'self'` and `script-src 'self'` would refuse them.
        for inline in ["style=", "onclick=", "<style", "<script>"] {
            assert!(!PAGE.contains(inline), "{inline}");
        }
    }
}
