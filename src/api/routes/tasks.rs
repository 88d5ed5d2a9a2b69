//! `GET /spaces/{space_token}/tasks`: a page of tasks.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Extension, Path, RawQuery, State, rejection::PathRejection},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

use crate::{
    api::{
        ApiError, Caller, Client, Data, Policy,
        layers::observe::{Facts, RequestId, VARY},
        query,
        rate_limit::{self, RateLimit},
    },
    cache::{
        CacheStatus, Rendition, StoredPage,
        forms::Coded,
        freshness::permitted,
        http_semantics::{Coding, RequestDirectives, negotiate, not_modified},
    },
    domain::{PageQuery, SpaceToken},
    service::{Ask, Served},
    upstream::Credential,
};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const LIST_GENERATION: HeaderName = HeaderName::from_static("x-list-generation");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const ASK_EACH_TIME: HeaderValue = HeaderValue::from_static("private, no-cache");
/// What a variant can be made in, best first.
const CODINGS: [Coding; 3] = [Coding::Brotli, Coding::Zstd, Coding::Gzip];

/// Answers with the page that path and query name.
///
/// Checked in the order in which things may be told: path and query, then whether the client may read the space, then how often it
/// may ask, then the cache.
pub async fn page(
    State(data): State<Data>,
    Extension(caller): Extension<Caller>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    path: Result<Path<String>, PathRejection>,
    RawQuery(raw_query): RawQuery,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let read = read_request(&caller.policy, path, raw_query.as_deref());
    let (space, query) = match read {
        Ok(read) => read,
        Err(error) => return error.into_response(),
    };
    let facts = Facts {
        client: caller.client.name.clone(),
        space: Some(space.clone()),
        cache: None,
        age_s: None,
        upstream_calls: 0,
    };
    let (mut response, facts) = match admit(&caller.client, &space).await {
        Ok(Admitted { credential, limits }) => {
            let ask = Ask {
                credential,
                upstream: caller.policy.upstream.clone(),
                space,
                query,
                directives: permitted(
                    RequestDirectives::parse(&headers),
                    caller.client.may_refresh,
                ),
                client: caller.client.name.clone(),
                request_id,
                trace: caller.trace.clone(),
            };
            let (mut response, facts) =
                answer(&data, &caller, &ask, &method, &headers, facts).await;
            rate_limit::write(&limits, response.headers_mut());
            (response, facts)
        }
        Err(error) => (error.into_response(), facts),
    };
    response.extensions_mut().insert(facts);
    response
}

/// What a request may go on with.
struct Admitted {
    credential: Arc<Credential>,
    /// What is left of the client's limits.
    limits: Vec<RateLimit>,
}

/// Whether the client may ask for `space`, and may ask now. A request that may not read the space draws on no limit.
async fn admit(client: &Client, space: &SpaceToken) -> Result<Admitted, ApiError> {
    if !client.may_read(space) {
        return Err(ApiError::SpaceNotAllowed);
    }
    // The configuration admits no client whose spaces have no credential.
    let credential = client.credential(space).ok_or(ApiError::SpaceNotAllowed)?;
    let limits = client.take_request().await;
    let limits = limits.map_err(ApiError::RateLimited)?;
    Ok(Admitted {
        credential: credential.clone(),
        limits,
    })
}

fn read_request(
    policy: &Policy,
    path: Result<Path<String>, PathRejection>,
    raw_query: Option<&str>,
) -> Result<(SpaceToken, PageQuery), ApiError> {
    let Path(token) = path.map_err(|_| ApiError::InvalidSpaceToken)?;
    let space = SpaceToken::new(&token).map_err(|_| ApiError::InvalidSpaceToken)?;
    let query = query::parse(raw_query.unwrap_or_default(), &policy.route)?;
    Ok((space, query))
}

async fn answer(
    data: &Data,
    caller: &Caller,
    ask: &Ask,
    method: &Method,
    headers: &HeaderMap,
    facts: Facts,
) -> (Response, Facts) {
    match data.tasks.page(ask).await {
        Ok(served) => {
            let facts = Facts {
                cache: Some(served.status.outcome()),
                age_s: Some(served.page.age(served.at).as_secs()),
                upstream_calls: served.calls,
                ..facts
            };
            let response = respond(data, caller, ask, &served, method, headers).await;
            (response, facts)
        }
        Err(error) => {
            let facts = Facts {
                cache: Some(error.status.outcome()),
                upstream_calls: error.calls,
                ..facts
            };
            (ApiError::from(error).into_response(), facts)
        }
    }
}

/// The answer for a page that was found: 304 where the client has it already.
async fn respond(
    data: &Data,
    caller: &Caller,
    ask: &Ask,
    served: &Served,
    method: &Method,
    request: &HeaderMap,
) -> Response {
    let page = &served.page;
    let rendition = data
        .tasks
        .rendition(ask, served, caller.client.view.as_deref());
    let mut response = Response::new(Body::empty());
    describe(data, &caller.policy, ask, served, response.headers_mut());
    response
        .headers_mut()
        .insert(header::ETAG, rendition.etag.clone());
    let etag = rendition.etag.to_str().unwrap_or_default();
    let now_unix = unix_now();
    if not_modified(request, etag, page.last_modified_unix, now_unix) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return response;
    }
    let coding = wanted(served, &rendition, negotiate(request, &CODINGS));
    let known = || rendition.forms.length_in(coding);
    let (coding, length) = match (method == Method::HEAD).then(known).flatten() {
        // Nothing is made to be thrown away.
        Some(length) => (coding, length),
        None => {
            let body = body(data, ask, served, &rendition, coding).await;
            let length = body.bytes.len();
            *response.body_mut() = Body::from(body.bytes);
            (body.coding, length)
        }
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, JSON);
    headers.insert(header::CONTENT_LENGTH, length.into());
    if coding != Coding::Identity {
        headers.insert(
            header::CONTENT_ENCODING,
            HeaderValue::from_static(coding.as_str()),
        );
    }
    response
}

/// The coding to answer in. Who waited for the fill gets the identity rather than wait for the coder too.
fn wanted(served: &Served, rendition: &Rendition, accepted: Coding) -> Coding {
    let from_store = matches!(served.status, CacheStatus::Hit { .. });
    if from_store || rendition.forms.is_held(accepted) {
        accepted
    } else {
        Coding::Identity
    }
}

async fn body(
    data: &Data,
    ask: &Ask,
    served: &Served,
    rendition: &Rendition,
    coding: Coding,
) -> Coded {
    if let Some(bytes) = rendition.forms.take(coding, served.at) {
        return Coded { bytes, coding };
    }
    let made = rendition.forms.get(coding, served.at).await;
    data.tasks.reweigh(ask, &served.page);
    made
}

/// Every field that 200 and 304 share, but for the entity tag.
fn describe(data: &Data, policy: &Policy, ask: &Ask, served: &Served, headers: &mut HeaderMap) {
    let page = &served.page;
    headers.insert(CACHE_STATUS, served.status.header_value());
    headers.insert(header::DATE, page.date.clone());
    headers.insert(header::VARY, VARY);
    let rest = client_rest(served);
    headers.insert(
        header::CACHE_CONTROL,
        cache_control(policy.client_max_age, rest),
    );
    if let Some(last_modified) = &page.last_modified {
        headers.insert(header::LAST_MODIFIED, last_modified.clone());
    }
    if let Some(age) = shown_age(served) {
        headers.insert(header::AGE, age.as_secs().into());
    }
    if let Some(link) = link(ask.query, page.content.count) {
        headers.insert(header::LINK, link);
    }
    if data.tasks.store().is_coherent() {
        headers.insert(LIST_GENERATION, generation(page));
    }
}

/// A stored answer tells its age; one that was just filled tells what the upstream told, if anything.
fn shown_age(served: &Served) -> Option<Duration> {
    match served.status {
        CacheStatus::Hit { .. } => Some(served.page.age(served.at)),
        CacheStatus::Forward { .. } | CacheStatus::NotCached => served.page.upstream_age,
    }
}

/// How long a client may reuse the answer: what is left of the page, and nothing of one that the upstream lets nobody keep.
fn client_rest(served: &Served) -> Duration {
    match served.status {
        CacheStatus::Hit { .. } | CacheStatus::Forward { stored: true, .. } => {
            served.page.fresh_for(served.at)
        }
        CacheStatus::Forward { .. } | CacheStatus::NotCached => Duration::ZERO,
    }
}

fn cache_control(client_max_age: Duration, rest: Duration) -> HeaderValue {
    match client_max_age.min(rest).as_secs() {
        0 => ASK_EACH_TIME,
        seconds => HeaderValue::try_from(format!("private, max-age={seconds}"))
            .expect("digits are visible ASCII"),
    }
}

/// RFC 8288 links to the pages around this one, as the list's length allows.
fn link(query: PageQuery, count: u64) -> Option<HeaderValue> {
    let last = query.last_page(count);
    let page = u64::from(query.page);
    let mut text = String::new();
    let targets = [
        ("first", Some(1)),
        // Past the end, the page before is the last there is.
        ("prev", (page > 1).then(|| (page - 1).min(last))),
        ("next", (page < last).then_some(page + 1)),
        ("last", Some(last)),
    ];
    for (relation, target) in targets {
        // A page that could not be asked for is not linked to.
        let Some(target) = target.filter(|target| *target <= u64::from(PageQuery::MAX_PAGE)) else {
            continue;
        };
        let separator = if text.is_empty() { "" } else { ", " };
        let size = query.page_size;
        write!(
            text,
            "{separator}<?page={target}&page_size={size}>; rel=\"{relation}\""
        )
        .ok()?;
    }
    HeaderValue::try_from(text).ok()
}

fn generation(page: &StoredPage) -> HeaderValue {
    HeaderValue::try_from(format!("{:016x}", page.generation()))
        .expect("hex digits are visible ASCII")
}

fn unix_now() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_the_pages_that_there_are() {
        let links = |page, count| {
            let query = PageQuery {
                page,
                page_size: 20,
            };
            let value = link(query, count).unwrap();
            let text = value.to_str().unwrap().to_owned();
            text.replace("<?page=", "")
                .replace("&page_size=20>; rel=", " ")
                .replace('"', "")
        };
        assert_eq!(links(1, 57), "1 first, 2 next, 3 last");
        assert_eq!(links(2, 57), "1 first, 1 prev, 3 next, 3 last");
        assert_eq!(links(3, 57), "1 first, 2 prev, 3 last");
        assert_eq!(links(9, 57), "1 first, 3 prev, 3 last");
        assert_eq!(links(1, 0), "1 first, 1 last");
        assert_eq!(links(1, u64::MAX), "1 first, 2 next");
    }

    #[test]
    fn clients_may_keep_an_answer_for_what_is_left_of_it_at_most() {
        let shown =
            |most, rest| cache_control(Duration::from_secs(most), Duration::from_secs(rest));
        assert_eq!(shown(0, 29), "private, no-cache");
        assert_eq!(shown(10, 29), "private, max-age=10");
        assert_eq!(shown(60, 29), "private, max-age=29");
        assert_eq!(shown(60, 0), "private, no-cache");
    }
}
