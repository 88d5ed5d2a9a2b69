//! `GET /openapi.json` and `GET /healthz`: what is served to anybody.

use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};

use crate::api::extract::Reading;

const OPENAPI: &str = include_str!("../../../docs/openapi.json");

/// Answers with the description of this listener.
pub async fn openapi(_: Reading) -> Response {
    plain("application/json", OPENAPI)
}

/// Answers `ok` while the process serves.
pub async fn healthz(_: Reading) -> Response {
    plain("text/plain; charset=utf-8", "ok")
}

fn plain(content_type: &'static str, text: &'static str) -> Response {
    let fields = [(CONTENT_TYPE, content_type), (CACHE_CONTROL, "no-cache")];
    (fields, text).into_response()
}
