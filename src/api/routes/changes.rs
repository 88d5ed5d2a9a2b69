//! The changes of a space: `GET /spaces/{space_token}/changes`, one answer at a time or as a stream.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, header, request::Parts};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

mod accept;
mod limits;
mod query;
mod space_events;
mod standing;
mod stream;

pub use self::limits::Streams;
pub(in crate::api) use self::query::is_held;
use self::{
    accept::Format,
    limits::Slot,
    query::{Asked, bad_cursor},
    standing::Standing,
    stream::Stream,
};
use crate::{
    api::{
        ApiError, Client, LivePolicy,
        context::LogAt,
        extract::{Caller, Getting, InSpace},
        layers::observe::VARY,
        rate_limit::{self, RateLimit},
    },
    cache::http_semantics::RequestDirectives,
    domain::{Collection, ListId, PageQuery, SpaceToken},
    peer::ConnectionInfo,
    service::{
        Changes, ClientRequest,
        changes::{After, Gone, Listener, Lost, Position, Projection, Status, Wanted},
    },
    telemetry::metrics::ChangesMetrics,
};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
const AS_IT_IS: HeaderValue = HeaderValue::from_static("no-store, no-transform");
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
const OFF: HeaderValue = HeaderValue::from_static("no");

/// What the route needs.
#[derive(Clone, Debug)]
pub struct ChangesState {
    pub changes: Arc<Changes>,
    pub policy: LivePolicy,
    pub streams: Arc<Streams>,
    pub metrics: Arc<ChangesMetrics>,
    /// Completes when the listener is closed.
    pub closing: CancellationToken,
}

/// Tells what changed since the client asked last, or goes on telling.
pub async fn changes(
    State(state): State<ChangesState>,
    _: Getting,
    InSpace(space): InSpace,
    asked: Asked,
    caller: Caller,
    request: Request,
) -> Response {
    let (request, _) = request.into_parts();
    caller.record.note(|record| {
        record.space = Some(space.fingerprint());
        if asked.format == Format::EventStream {
            record.log_at = LogAt::End;
        }
    });
    let client = caller.client.clone();
    let ask = match admit(space, caller) {
        Ok(ask) => ask,
        Err(error) => return error.into_response(),
    };
    let after = match after(&state, &ask, &asked) {
        Ok(after) => after,
        Err(error) => return error.into_response(),
    };
    let limits = match client.take_request().await {
        Ok(limits) => limits,
        Err(limit) => return ApiError::RateLimited(limit).into_response(),
    };
    // Boxed: what it takes to wait would be part of every answer.
    let answer = Box::pin(answer(state, &client, ask, after, asked, &request));
    limited(answer.await.into_response(), &limits)
}

fn limited(mut response: Response, limits: &[RateLimit]) -> Response {
    if !response.headers().contains_key("ratelimit") {
        rate_limit::write(limits, response.headers_mut());
    }
    response
}

/// How to read the space as this client may.
fn admit(space: SpaceToken, caller: Caller) -> Result<ClientRequest, ApiError> {
    let right = caller.client.right(&space, Collection::TASKS.rows);
    let right = right.ok_or(ApiError::SpaceNotAllowed)?;
    let query = PageQuery {
        page: PageQuery::DEFAULT_PAGE,
        page_size: PageQuery::DEFAULT_PAGE_SIZE,
    };
    let directives = RequestDirectives::default();
    let (request, _) =
        caller.into_request(right.credential, space, ListId::TASKS, query, directives);
    Ok(request)
}

fn after(state: &ChangesState, ask: &ClientRequest, asked: &Asked) -> Result<After, ApiError> {
    match asked.after.as_deref() {
        None | Some("now") => Ok(After::Now),
        Some("start") => Ok(After::Start),
        Some(text) => {
            let cursor = state.changes.read_cursor(ask, text);
            cursor.map_err(|_| bad_cursor())
        }
    }
}

async fn answer(
    state: ChangesState,
    client: &Client,
    ask: ClientRequest,
    after: After,
    asked: Asked,
    request: &Parts,
) -> Result<Response, ApiError> {
    let connection = request.extensions.get::<ConnectionInfo>();
    let certificate = connection.and_then(|connection| connection.certificate.clone());
    let space = ask.space.clone();
    let standing = Standing::new(state.policy.clone(), space, &request.headers, certificate);
    let is_json = asked.format == Format::Json;
    if let (After::Cursor(position), true) = (&after, is_json) {
        let checked = state.changes.check_cursor(&ask, position);
        checked.map_err(cursor_gone)?;
    }
    let slot = match is_json && asked.wait.is_zero() {
        true => None,
        false => Some(slot(&state, client, &standing)?),
    };
    let listener = state.changes.listen(&ask);
    listener.ready(&ask).await?;
    match slot {
        Some(slot) if !is_json => stream(state, standing, listener, ask, &after, asked, slot),
        slot => {
            let answer = pull(&state, &standing, listener, after, &asked).await;
            drop(slot);
            answer
        }
    }
}

fn slot(state: &ChangesState, client: &Client, standing: &Standing) -> Result<Slot, ApiError> {
    let policy = state.policy.load();
    // Only a browser token may not mint another.
    let token = (!client.may_mint).then(|| standing.digest());
    let limits = &policy.changes;
    state.streams.take(client, token, limits, &state.metrics)
}

fn cursor_gone(lost: Lost) -> ApiError {
    ApiError::CursorGone {
        cursor: lost.cursor,
        reason: lost.reason.as_str(),
    }
}

fn stream(
    state: ChangesState,
    standing: Standing,
    listener: Listener,
    ask: ClientRequest,
    after: &After,
    asked: Asked,
    slot: Slot,
) -> Result<Response, ApiError> {
    let right = standing.right().ok_or(ApiError::SpaceNotAllowed)?;
    let (position, reset) = match listener.begin(after) {
        Ok(position) => (position, None),
        Err((reason, position)) => (position, Some(reason)),
    };
    let lasts = match right.expires_in {
        Some(left) => left.min(stream::lasts()),
        None => stream::lasts(),
    };
    let body = stream::body(Stream {
        listener,
        request: ask,
        standing,
        policy: right.policy,
        projection: Projection::new(right.view, asked.fields.clone()),
        fields: asked.fields,
        types: asked.types,
        position,
        reset,
        ends_at: Instant::now() + lasts,
        closing: state.closing,
        _slot: slot,
    });
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, EVENT_STREAM);
    headers.insert(header::CACHE_CONTROL, AS_IT_IS);
    headers.insert(header::VARY, VARY);
    headers.insert(ACCEL_BUFFERING, OFF);
    Ok(response)
}

/// One answer, held until there is something to tell or its time is over.
async fn pull(
    state: &ChangesState,
    standing: &Standing,
    mut listener: Listener,
    after: After,
    asked: &Asked,
) -> Result<Response, ApiError> {
    let lost = |listener: &Listener, (reason, position): (Gone, Position)| ApiError::CursorGone {
        cursor: listener.cursor(position),
        reason: reason.as_str(),
    };
    let until = Instant::now() + asked.wait;
    let first = listener.status();
    let mut position = listener.begin(&after).map_err(|it| lost(&listener, it))?;
    loop {
        let right = standing.right().ok_or(ApiError::SpaceNotAllowed)?;
        let wanted = Wanted {
            projection: &Projection::new(right.view, asked.fields.clone()),
            kinds: asked.types.tasks,
            limit: asked.limit,
        };
        let status = listener.status();
        let read = listener.read(position, &wanted);
        let read = read.map_err(|it| lost(&listener, it))?;
        position = read.position;
        let mut events: Vec<Bytes> = read.events.iter().map(|event| event.json.clone()).collect();
        let is_over = Instant::now() >= until || state.closing.is_cancelled();
        let is_news = is_news(asked, &first, &status);
        if !events.is_empty() || read.has_more || is_over || is_news {
            if !read.has_more && !state.closing.is_cancelled() {
                events.extend(of_space(asked, &status).map(Bytes::from));
            }
            return Ok(json(&listener, position, &events, read.has_more, &status));
        }
        tokio::select! {
            biased;
            () = state.closing.cancelled() => {}
            () = listener.changed() => {}
            () = sleep_until(until) => {}
        }
    }
}

/// Whether something of the space happened that the client waits for.
fn is_news(asked: &Asked, before: &Status, now: &Status) -> bool {
    let synced = |status: &Status| status.synced.as_ref().map(|synced| synced.number);
    let delayed = |status: &Status| status.delayed.as_ref().map(|delayed| delayed.number);
    let is_delayed = delayed(now).is_some() && delayed(now) != delayed(before);
    now.gone.is_some()
        || (asked.types.delayed && is_delayed)
        || (asked.types.synced && synced(now) != synced(before))
}

/// What is told of the space behind the events of its tasks.
fn of_space(asked: &Asked, status: &Status) -> impl Iterator<Item = String> {
    let delayed = status.delayed.as_ref().filter(|_| asked.types.delayed);
    let synced = status.synced.as_ref();
    // Nothing has been read since then.
    let synced = synced.filter(|_| asked.types.synced && status.delayed.is_none());
    let events = [
        status.gone.map(space_events::gone),
        delayed.map(space_events::delayed),
        synced.map(|synced| space_events::synced(synced, status)),
    ];
    events.into_iter().flatten()
}

fn json(
    listener: &Listener,
    position: Position,
    events: &[Bytes],
    has_more: bool,
    status: &Status,
) -> Response {
    let mut body =
        Vec::with_capacity(256 + events.iter().map(|event| event.len() + 1).sum::<usize>());
    body.extend_from_slice(
        br#"{"status_code":200,"message":"Changes Fetched Successfully","data":["#,
    );
    body.extend_from_slice(&events.join(&b","[..]));
    let rest = format!(
        r#"],"cursor":"{}","has_more":{has_more},"next_poll_seconds":{}}}"#,
        listener.cursor(position),
        space_events::seconds(status.next_poll)
    );
    body.extend_from_slice(rest.as_bytes());
    let mut response = Response::new(Body::from(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, JSON);
    headers.insert(header::CACHE_CONTROL, NO_STORE);
    headers.insert(header::VARY, VARY);
    response
}
