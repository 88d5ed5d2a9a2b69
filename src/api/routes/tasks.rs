//! `GET /spaces/{space_token}/tasks`: a page of tasks.

use std::{mem, sync::Arc, time::Duration};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header, request::Parts};
use percent_encoding::percent_decode_str;

use crate::{
    api::{
        ApiError, Caller, Client, Data, Policy,
        layers::observe::{Facts, RequestId, VARY, named_space},
        query,
        rate_limit::{self, RateLimit},
    },
    cache::{
        CacheStatus, Rendition,
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
pub async fn page(data: &Data, asked: &mut Parts) -> Response {
    let caller = Caller::take(asked);
    let read = read_request(&caller.policy, &asked.uri);
    let (space, query) = match read {
        Ok(read) => read,
        Err(error) => return error.into_response(),
    };
    let facts = Facts {
        account: caller.client.account.clone(),
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
                    RequestDirectives::parse(&asked.headers),
                    caller.client.may_refresh,
                ),
                account: caller.client.account.clone(),
                request_id: RequestId::of(asked),
                trace: caller.trace.clone(),
            };
            let (mut response, facts) = answer(data, &caller, &ask, asked, facts).await;
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

fn read_request(policy: &Policy, uri: &Uri) -> Result<(SpaceToken, PageQuery), ApiError> {
    let space = named_space(uri.path()).and_then(|space| {
        let space = percent_decode_str(space).decode_utf8().ok()?;
        SpaceToken::new(&space).ok()
    });
    let query = query::parse(uri.query().unwrap_or_default(), &policy.route);
    Ok((space.ok_or(ApiError::InvalidSpaceToken)?, query?))
}

async fn answer(
    data: &Data,
    caller: &Caller,
    ask: &Ask,
    asked: &mut Parts,
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
            let response = respond(data, caller, ask, &served, asked).await;
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
    asked: &mut Parts,
) -> Response {
    let rendition = data
        .tasks
        .rendition(ask, &served.page, caller.client.view.as_deref());
    let coding = wanted_coding(&asked.headers, &rendition, served);
    let mut response = answering(asked);
    let headers = response.headers_mut();
    describe(data, &caller.policy, ask, served, headers);
    headers.insert(header::ETAG, rendition.etag.clone());
    let Some(coding) = coding else {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return response;
    };
    headers.insert(header::CONTENT_TYPE, JSON);
    let body = coded(data, ask, served, &rendition, coding).await;
    if body.is_coded {
        response.headers_mut().insert(
            header::CONTENT_ENCODING,
            HeaderValue::from_static(coding.as_str()),
        );
    }
    *response.body_mut() = Body::from(body.bytes);
    response
}

/// How the client wants the body; `None`: it has it already.
fn wanted_coding(request: &HeaderMap, rendition: &Rendition, served: &Served) -> Option<Coding> {
    let etag = rendition.etag.to_str().unwrap_or_default();
    let has_it = not_modified(request, etag, served.page.last_modified_unix, unix_now);
    (!has_it).then(|| negotiate(request, &CODINGS))
}

/// An answer in the maps that the request came in, emptied: hyper keeps the header's from request to request, so that none is
/// allocated for a hit.
fn answering(asked: &mut Parts) -> Response {
    let mut response = Response::new(Body::empty());
    let mut headers = mem::take(&mut asked.headers);
    headers.clear();
    *response.headers_mut() = headers;
    *response.extensions_mut() = mem::take(&mut asked.extensions);
    response
}

struct CodedBody {
    bytes: bytes::Bytes,
    is_coded: bool,
}

/// The body in `coding`. Who waited for the fill gets the identity rather than wait for the coder too.
async fn coded(
    data: &Data,
    ask: &Ask,
    served: &Served,
    rendition: &Rendition,
    coding: Coding,
) -> CodedBody {
    let identity = || CodedBody {
        bytes: rendition.body.clone(),
        is_coded: false,
    };
    let from_store = matches!(served.status, CacheStatus::Hit { .. });
    let is_new = !rendition.variants.is_made(coding);
    if is_new && !from_store {
        return identity();
    }
    let Some(bytes) = rendition.variants.get(coding, &rendition.body).await else {
        return identity();
    };
    if is_new {
        data.tasks.reweigh(ask, &served.page);
    }
    CodedBody {
        bytes,
        is_coded: true,
    }
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
        headers.insert(header::AGE, number(age.as_secs()));
    }
    if let Some(link) = page.content.link(ask.query) {
        headers.insert(header::LINK, link.clone());
    }
    if data.tasks.store().is_coherent() {
        headers.insert(LIST_GENERATION, page.generation_field.clone());
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

/// Made in one allocation; the crate's own way takes two.
fn number(value: u64) -> HeaderValue {
    HeaderValue::from_str(itoa::Buffer::new().format(value)).expect("digits are visible ASCII")
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
    fn clients_may_keep_an_answer_for_what_is_left_of_it_at_most() {
        let shown =
            |most, rest| cache_control(Duration::from_secs(most), Duration::from_secs(rest));
        assert_eq!(shown(0, 29), "private, no-cache");
        assert_eq!(shown(10, 29), "private, max-age=10");
        assert_eq!(shown(60, 29), "private, max-age=29");
        assert_eq!(shown(60, 0), "private, no-cache");
    }
}
