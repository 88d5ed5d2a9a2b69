//! From a connection to an answer: routes, waits, faults, and only then the world.

use std::{convert::Infallible, fmt, future::pending, sync::Arc, time::Duration};

use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header, request::Parts,
};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::net::{TcpListener, TcpStream};

use super::{
    FaultKind, Running, Shared,
    answer::{Answer, Language},
    body::Body,
    ledger::{Busy, Flight},
    listing::Listing,
    paging::TaskQuery,
    world::Unauthorized,
};

const SPACES: &str = "/api/v2/platform/spaces/";
/// How long to wait when the system has no more sockets.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(10);
/// What the `429` fault asks for.
const RETRY_AFTER_SECONDS: u64 = 2;

/// The connection is to close with no answer.
#[derive(Debug)]
pub(super) struct Dropped;

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("closed without an answer")
    }
}

impl std::error::Error for Dropped {}

/// Accepts connections for ever; the caller drops this to stop.
pub(super) async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    running: Running,
) -> Infallible {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => running.spawn(connection(stream, Arc::clone(&shared))),
            Err(_) => tokio::time::sleep(ACCEPT_AGAIN_AFTER).await,
        }
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    // A failed setsockopt only costs speed, a broken connection is the client's to notice.
    let _ = stream.set_nodelay(true);
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().title_case_headers(true);
    let service = service_fn(|request| respond(Arc::clone(&shared), request));
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}

async fn respond(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Dropped> {
    let (parts, _) = request.into_parts();
    if parts.uri.path() == "/__stats" {
        return Ok(stats(&shared).into_response());
    }
    shared.ledger.lock().record(&parts, shared.recorded);
    let answer = match list_route(parts.uri.path()) {
        Some(route) => list(&shared, &route, &parts).await,
        None => Ok(Answer::not_found()),
    };
    let outcome = answer.as_ref().map_or("dropped".to_owned(), |answer| {
        answer.status.as_u16().to_string()
    });
    shared.ledger.lock().answered(outcome);
    let mut response = answer?.into_response();
    let skewed = shared.settings.lock().skewed_date();
    if let Some(date) = skewed.and_then(|date| HeaderValue::try_from(date).ok()) {
        response.headers_mut().insert(header::DATE, date);
    }
    if keeps_alive(&parts) {
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("keep-alive"));
    }
    Ok(response)
}

fn stats(shared: &Shared) -> Answer {
    match serde_json::to_vec(&*shared.ledger.lock()) {
        Ok(body) => Answer::json(StatusCode::OK, body),
        Err(_) => Answer::server_error(),
    }
}

fn keeps_alive(parts: &Parts) -> bool {
    let closing = parts
        .headers
        .get(header::CONNECTION)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"));
    parts.version == Version::HTTP_11 && !closing
}

struct ListRoute<'a> {
    space: &'a str,
    listing: Listing<'a>,
    slash: bool,
}

/// Reads the path; a slash within the token, even an encoded one, leaves no route.
fn list_route(path: &str) -> Option<ListRoute<'_>> {
    let (space, rest) = path.strip_prefix(SPACES)?.split_once('/')?;
    let path = rest.strip_suffix('/');
    let listing = Listing::at(path.unwrap_or(rest))?;
    let one_segment = !space.is_empty() && !space.to_ascii_lowercase().contains("%2f");
    one_segment.then_some(ListRoute {
        space,
        listing,
        slash: path.is_some(),
    })
}

/// Counts, waits, limits, and answers within a slot.
async fn list(
    shared: &Arc<Shared>,
    route: &ListRoute<'_>,
    parts: &Parts,
) -> Result<Answer, Dropped> {
    let token = api_token(&parts.headers);
    let flight = Flight::begin(shared, &parts.method, route.space, token);
    shared.released().await;
    let standing = shared.quota.lock().spend(token);
    let answer = match standing {
        Some(standing) if standing.exceeded => {
            Answer::too_many_requests(standing.renewed_in.as_secs().max(1))
        }
        Some(_) | None => in_slot(shared, route, parts, flight).await?,
    };
    let answer = answer.allowing(route.listing);
    Ok(match standing {
        Some(standing) => answer.with_standing(&standing),
        None => answer,
    })
}

fn api_token(headers: &HeaderMap) -> &str {
    let authorization = authorization(headers).unwrap_or_default();
    authorization
        .split_whitespace()
        .next_back()
        .unwrap_or_default()
}

fn authorization(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()
}

async fn in_slot(
    shared: &Arc<Shared>,
    route: &ListRoute<'_>,
    parts: &Parts,
    flight: Flight,
) -> Result<Answer, Dropped> {
    let slot = Arc::clone(&shared.slots)
        .acquire_owned()
        .await
        .map_err(|_| Dropped)?;
    let busy = Busy {
        _slot: slot,
        _flight: flight,
    };
    let delay = shared.settings.lock().delay();
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let scripted = shared.scripts.lock().next(route.space);
    if let Some(scripted) = scripted {
        return Ok(scripted.into_answer());
    }
    let fault = match parts.method {
        Method::GET | Method::HEAD => shared.settings.lock().strike(),
        _ => None,
    };
    match fault {
        Some(kind) => {
            shared.ledger.lock().struck(kind);
            faulty(kind, shared, route, parts, busy).await
        }
        None => Ok(truthful(shared, route, parts)),
    }
}

async fn faulty(
    kind: FaultKind,
    shared: &Shared,
    route: &ListRoute<'_>,
    parts: &Parts,
    busy: Busy,
) -> Result<Answer, Dropped> {
    Ok(match kind {
        FaultKind::ServerError => Answer::server_error(),
        FaultKind::BadGateway => Answer::proxy_error(StatusCode::BAD_GATEWAY),
        FaultKind::Unavailable => Answer::proxy_error(StatusCode::SERVICE_UNAVAILABLE),
        FaultKind::GatewayTimeout => Answer::proxy_error(StatusCode::GATEWAY_TIMEOUT),
        FaultKind::InnerFailed => Answer::inner_failed(route.listing),
        FaultKind::InnerHtml => Answer::inner_html(route.listing),
        FaultKind::InnerSlowDown => Answer::inner_slow_down(route.listing),
        FaultKind::Unauthorized => {
            Answer::unauthorized(Unauthorized::Invalid, Language::of(&parts.headers))
        }
        FaultKind::TokenExpired => Answer::token_expired(),
        FaultKind::RateLimited => Answer::too_many_requests(RETRY_AFTER_SECONDS),
        FaultKind::Html => Answer::html_page(),
        FaultKind::Truncate => truthful(shared, route, parts).truncated(),
        FaultKind::Reset => return Err(Dropped),
        FaultKind::Hang => pending().await,
        FaultKind::SlowBody => truthful(shared, route, parts).dripping(busy),
        FaultKind::NullData => Answer::null_data(route.listing),
        FaultKind::StatusInBody => Answer::status_in_body(),
        FaultKind::Redirect => Answer::redirected(),
        FaultKind::Empty => Answer::empty(),
        FaultKind::Garbage => Answer::garbage(),
        FaultKind::GzipBomb => Answer::gzip_bomb(),
    })
}

/// Answers as the upstream would, checking in its order: path, `Accept`, token, space, paging.
fn truthful(shared: &Shared, route: &ListRoute<'_>, parts: &Parts) -> Answer {
    let language = Language::of(&parts.headers);
    if !route.slash {
        return with_slash(parts);
    }
    if !accepts_json(&parts.headers) {
        return Answer::not_acceptable();
    }
    let world = shared.world.lock();
    let holder = match world.authenticate(authorization(&parts.headers)) {
        Ok(holder) => holder,
        Err(reason) => return Answer::unauthorized(reason, language),
    };
    let space = match world.admit(holder, route.space) {
        Ok(space) => space,
        Err(refusal) => return Answer::refused(refusal, route.listing),
    };
    match parts.method {
        Method::GET | Method::HEAD => {
            let query = TaskQuery::parse(parts.uri.query().unwrap_or_default());
            world.page(space, route.listing, &query).map_or_else(
                |refusal| Answer::refused(refusal, route.listing),
                Answer::page,
            )
        }
        Method::POST if route.listing == Listing::Tasks => Answer::not_a_task(),
        _ => Answer::method_not_allowed(&parts.method),
    }
}

fn with_slash(parts: &Parts) -> Answer {
    let query = parts
        .uri
        .query()
        .map(|query| format!("?{query}"))
        .unwrap_or_default();
    let location = format!("{}/{query}", parts.uri.path());
    HeaderValue::try_from(location).map_or_else(|_| Answer::not_found(), Answer::moved)
}

/// Ignores quality values, as the framework does.
fn accepts_json(headers: &HeaderMap) -> bool {
    let Some(accept) = headers.get(header::ACCEPT) else {
        return true;
    };
    let accept = String::from_utf8_lossy(accept.as_bytes());
    let admits = |range: &str| {
        let media = range.split(';').next().unwrap_or_default().trim();
        ["*/*", "application/*", "application/json"]
            .iter()
            .any(|json| media.eq_ignore_ascii_case(json))
    };
    accept.split(',').any(admits)
}

#[cfg(test)]
mod tests {
    use super::{accepts_json, list_route};
    use http::{HeaderMap, HeaderValue, header};

    #[test]
    fn a_route_has_one_filled_segment() {
        let route =
            |path: &str| list_route(path).map(|route| (route.space.to_owned(), route.slash));
        assert_eq!(
            route("/api/v2/platform/spaces/A/tasks/"),
            Some(("A".to_owned(), true))
        );
        assert_eq!(
            route("/api/v2/platform/spaces/A/tasks"),
            Some(("A".to_owned(), false))
        );
        for path in ["/A/runs/", "/A/runs/R1/tasks/"] {
            let path = format!("/api/v2/platform/spaces{path}");
            assert_eq!(route(&path), Some(("A".to_owned(), true)), "{path}");
        }
        for path in [
            "//tasks/",
            "/A%2FB/tasks/",
            "/A%2f/tasks/",
            "/A/tasks//",
            "/A/runs//tasks/",
            "/A/runs/R1/",
            "/A/runs/R1/R2/tasks/",
            "/A/B/tasks/",
        ] {
            assert_eq!(
                route(&format!("/api/v2/platform/spaces{path}")),
                None,
                "{path}"
            );
        }
    }

    #[test]
    fn any_range_that_covers_json_will_do() {
        let accepts = |value| {
            accepts_json(&HeaderMap::from_iter([(
                header::ACCEPT,
                HeaderValue::from_static(value),
            )]))
        };
        assert!(accepts_json(&HeaderMap::new()));
        assert!(accepts("text/html, application/json;q=0.1"));
        assert!(accepts("*/*"));
        assert!(!accepts("text/html"));
    }
}
