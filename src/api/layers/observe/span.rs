//! A request's span: its name, and what it says of how the request ended.

use std::net::IpAddr;

use http::{HeaderValue, Method, StatusCode};
use opentelemetry::trace::SpanContext;

use super::Outcome;
use crate::{
    api::{layers::request_id::text, routes::template},
    telemetry::{
        metrics::Route,
        traces::{Span, Tracer},
    },
};

/// Begins a request's span, below the caller's where the request names one.
pub(super) fn begin_span(
    tracer: &Tracer,
    method: &Method,
    route: Route,
    caller: Option<SpanContext>,
) -> Span {
    let method = known_method(method);
    let template = template(route);
    let name = match (method, template) {
        (Some(method), Some(template)) => format!("{method} {template}").into(),
        (Some(method), None) => method.into(),
        (None, _) => "HTTP".into(),
    };
    let mut span = tracer.begin(name, caller);
    span.set("http.request.method", method.unwrap_or("_OTHER"));
    if let Some(template) = template {
        span.set("http.route", template);
    }
    span
}

/// A client may make up methods; they name no span.
fn known_method(method: &Method) -> Option<&'static str> {
    const KNOWN: [&str; 9] = [
        "GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE", "CONNECT", "TRACE",
    ];
    KNOWN.into_iter().find(|known| *known == method.as_str())
}

/// Says on the span how its request ended; a refusal is the client's failure, not ours.
pub(super) fn end_span(
    span: &mut Span,
    id: &HeaderValue,
    client_address: Option<IpAddr>,
    status: StatusCode,
    outcome: &Outcome,
) {
    if span.context().is_off() {
        return;
    }
    span.set("http.response.status_code", i64::from(status.as_u16()));
    span.set_with("gateway.request.id", || text(id).to_owned());
    if let Some(address) = client_address {
        span.set("client.address", address.to_string());
    }
    let record = &outcome.record;
    if let Some(account) = &record.account {
        span.set("gateway.client", account.client().to_string());
        span.set("gateway.upstream.calls", i64::from(record.upstream_calls));
    }
    if let Some(space) = &record.space {
        span.set("gateway.space", space.as_str().to_owned());
    }
    if let Some(outcome) = record.cache {
        span.set("gateway.cache.outcome", outcome.as_str());
    }
    match outcome.code {
        Some(code) if status.is_server_error() => span.fail(code),
        Some(code) => span.set("error.type", code),
        None => {}
    }
}
