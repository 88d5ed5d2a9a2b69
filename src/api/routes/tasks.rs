//! `GET /spaces/{space_token}/tasks`: a page of tasks.

use std::{convert::Infallible, mem, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri, header, request::Parts,
};
use http_body::Body as _;
use percent_encoding::percent_decode_str;

use crate::{
    api::{
        ApiError, Client, Data, Policy,
        error::method_not_allowed,
        exchange::{Answer, Asked, Body, Facts, whole},
        layers::observe::{VARY, named_space},
        query,
        rate_limit::{self, RateLimit},
    },
    cache::{
        CacheStatus, Shown,
        forms::{Coded, Forms, WhenBusy},
        freshness::permitted,
        http_semantics::{Coding, RequestDirectives, accepts_identity, negotiate, not_modified},
    },
    domain::{ListId, PageQuery, SpaceFingerprint, SpaceToken},
    service::{ClientRequest, Served},
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
/// # Panics
///
/// Panics where [`crate::api::layers::internal_auth`] has not let the request through.
pub async fn answer(data: Data, asked: Box<Asked>) -> Result<Answer, Infallible> {
    let is_head = asked.head.method == Method::HEAD;
    if !is_head && asked.head.method != Method::GET {
        let refusal = method_not_allowed(&[Method::GET, Method::HEAD]);
        return Ok(refused(refusal, known(asked.client.as_ref()), None));
    }
    let mut answer = page(&data, asked).await;
    if is_head {
        leave_body_out(&mut answer.response);
    }
    Ok(answer)
}

/// hyper does it for HTTP/1 alone (RFC 9110 section 9.3.2), and tells the length only of a body that there is.
fn leave_body_out(response: &mut Response<Body>) {
    let body = mem::replace(response.body_mut(), whole(Bytes::new()));
    if let Some(length @ 1..) = body.size_hint().exact() {
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
}

/// Checked in the order in which things may be told: path and query, then whether the client may read the space, then how often it
/// may ask, then the cache.
async fn page(data: &Data, mut asked: Box<Asked>) -> Answer {
    // Nothing to wait for, and it would keep its connection's window.
    drop(asked.body);
    let policy = &asked.policy;
    let client = known(asked.client.as_ref());
    let (space, query) = match read(policy, &asked.head.uri) {
        Ok(read) => read,
        Err(error) => return refused(error, client, None),
    };
    let Admitted { credential, limits } = match admit(client, &space).await {
        Ok(admitted) => admitted,
        Err(error) => return refused(error, client, Some((space.fingerprint(), query))),
    };
    let asks_for = RequestDirectives::parse(&asked.head.headers);
    let ask = ClientRequest {
        credential,
        upstream: policy.upstream.clone(),
        space,
        list: ListId::TASKS,
        query,
        directives: permitted(asks_for, client.may_refresh),
        account: client.account.clone(),
        request_id: asked.id,
        trace: asked.trace,
    };
    let mut answer = serve(data, client, policy, &ask, &mut asked.head).await;
    rate_limit::write(&limits, answer.response.headers_mut());
    answer
}

fn known(client: Option<&Arc<Client>>) -> &Client {
    client.expect("authentication lets nobody through without a name")
}

/// A refusal before the cache is asked.
fn refused(
    refusal: impl Into<Answer>,
    client: &Client,
    page: Option<(SpaceFingerprint, PageQuery)>,
) -> Answer {
    Answer {
        facts: Some(facts_of(client, page)),
        ..refusal.into()
    }
}

/// What is known of a request before the cache is asked.
fn facts_of(client: &Client, page: Option<(SpaceFingerprint, PageQuery)>) -> Facts {
    let (space, query) = page.unzip();
    Facts {
        space,
        query,
        ..Facts::of(client.account.clone())
    }
}

async fn serve(
    data: &Data,
    client: &Client,
    policy: &Policy,
    ask: &ClientRequest,
    request: &mut Parts,
) -> Answer {
    match data.pages.page(ask).await {
        Ok(served) => {
            let facts = Facts {
                cache: Some(served.status.outcome().as_str()),
                age_s: Some(served.age().as_secs()),
                upstream_calls: served.calls,
                ..facts_of(
                    client,
                    Some((served.page.space_fingerprint().clone(), ask.query)),
                )
            };
            Answer {
                response: respond(data, client, policy, &served, request).await,
                facts: Some(facts),
            }
        }
        Err(error) => {
            let facts = Facts {
                cache: Some(error.status.outcome().as_str()),
                upstream_calls: error.calls,
                ..facts_of(client, Some((ask.space.fingerprint(), ask.query)))
            };
            Answer {
                facts: Some(facts),
                ..Answer::from(ApiError::from(error))
            }
        }
    }
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

fn read(policy: &Policy, uri: &Uri) -> Result<(SpaceToken, PageQuery), ApiError> {
    let space = named_space(uri.path()).and_then(|space| {
        // No token has a percent sign.
        SpaceToken::new(space).ok().or_else(|| {
            let space = percent_decode_str(space).decode_utf8().ok()?;
            SpaceToken::new(&space).ok()
        })
    });
    let query = query::parse(uri.query().unwrap_or_default(), &policy.route);
    Ok((space.ok_or(ApiError::InvalidSpaceToken)?, query?))
}

/// The answer for a page that was found: 304 where the client has it already.
async fn respond(
    data: &Data,
    client: &Client,
    policy: &Policy,
    served: &Served,
    request: &mut Parts,
) -> Response<Body> {
    let shown = data.pages.shown(served, client.view.as_ref()).await;
    let coding = coding(&request.headers, served, &shown);
    let mut response = answering(&mut request.headers);
    let headers = response.headers_mut();
    describe(policy, served, headers);
    headers.insert(header::ETAG, shown.etag().clone());
    let Some((coding, busy)) = coding else {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return response;
    };
    headers.insert(header::CONTENT_TYPE, JSON);
    let known = || shown.forms().length_in(coding);
    let coding = match (request.method == Method::HEAD).then(known).flatten() {
        // Nothing is made to be thrown away.
        Some(length) => {
            headers.insert(header::CONTENT_LENGTH, length.into());
            coding
        }
        // The length is left to hyper, which writes it without an allocation.
        None => {
            let body = body(data, served, shown.forms(), (coding, busy)).await;
            let coding = body.coding;
            *response.body_mut() = Body::of_page(body);
            coding
        }
    };
    if coding != Coding::Identity {
        response.headers_mut().insert(
            header::CONTENT_ENCODING,
            HeaderValue::from_static(coding.as_str()),
        );
    }
    response
}

/// The coding to answer in, and whether its coder is waited for whatever others wait; `None` where the client has the page already.
///
/// Who waited for the fill gets the identity rather than wait for the coder too, and so does who would wait behind many others: where
/// it is taken at all.
fn coding(request: &HeaderMap, served: &Served, shown: &Shown<'_>) -> Option<(Coding, WhenBusy)> {
    let etag = shown.etag().to_str().unwrap_or_default();
    if not_modified(request, etag, served.page.last_modified_unix, unix_now) {
        return None;
    }
    let accepted = negotiate(request, &CODINGS);
    if shown.forms().is_held(accepted) {
        return Some((accepted, WhenBusy::Identity));
    }
    let from_store = matches!(served.status, CacheStatus::Hit { .. });
    Some(match (from_store, accepts_identity(request)) {
        (_, false) => (accepted, WhenBusy::Wait),
        (true, true) => (accepted, WhenBusy::Identity),
        (false, true) => (Coding::Identity, WhenBusy::Identity),
    })
}

/// An answer in the map that the request's header came in, emptied: hyper keeps it from request to request, so that none is
/// allocated for a hit.
fn answering(of_request: &mut HeaderMap) -> Response<Body> {
    let mut headers = mem::take(of_request);
    headers.clear();
    let mut response = Response::new(whole(Bytes::new()));
    *response.headers_mut() = headers;
    response
}

async fn body(
    data: &Data,
    served: &Served,
    forms: &Forms,
    (coding, busy): (Coding, WhenBusy),
) -> Coded {
    if let Some(coded) = forms.take(coding, served.at) {
        return coded;
    }
    let made = forms.get_unless(busy, coding, served.at).await;
    data.pages.store().reweigh(&served.page);
    made
}

/// Every field that 200 and 304 share, but for the entity tag.
fn describe(policy: &Policy, served: &Served, headers: &mut HeaderMap) {
    let page = &served.page;
    headers.insert(header::DATE, page.date.clone());
    headers.insert(header::VARY, VARY);
    if let Some(last_modified) = &page.last_modified {
        headers.insert(header::LAST_MODIFIED, last_modified.clone());
    }
    headers.insert(CACHE_STATUS, served.status.header_value());
    let age = match served.status {
        // A stored answer tells its age.
        CacheStatus::Hit { .. } => Some(served.age()),
        // One that was just filled tells what the upstream told, if anything.
        CacheStatus::Forward { .. } | CacheStatus::NotForwarded(_) => page.upstream_age,
    };
    if let Some(age) = age {
        headers.insert(header::AGE, HeaderValue::from(age.as_secs()));
    }
    let may_keep = cache_control(policy.client_max_age, age, || client_rest(served));
    headers.insert(header::CACHE_CONTROL, may_keep);
    headers.insert(header::LINK, page.link.clone());
    if let Some(generation) = &page.list_generation
        && policy.coherent_pages
    {
        headers.insert(LIST_GENERATION, generation.clone());
    }
}

/// How long a client may reuse the answer: what is left of the page, and nothing of one that the upstream lets nobody keep.
fn client_rest(served: &Served) -> Duration {
    match served.status {
        CacheStatus::Hit { .. } | CacheStatus::Forward { stored: true, .. } => {
            served.page.fresh_for(served.at)
        }
        CacheStatus::Forward { .. } | CacheStatus::NotForwarded(_) => Duration::ZERO,
    }
}

/// `age` is what the answer's `Age` says: a client subtracts it from `max-age` (RFC 9111 section 4.2).
fn cache_control(
    client_max_age: Duration,
    age: Option<Duration>,
    rest: impl FnOnce() -> Duration,
) -> HeaderValue {
    if client_max_age.is_zero() {
        return ASK_EACH_TIME;
    }
    match client_max_age.min(rest()).as_secs() {
        0 => ASK_EACH_TIME,
        rest => {
            let max_age = age.unwrap_or_default().as_secs().saturating_add(rest);
            HeaderValue::try_from(format!("private, max-age={max_age}"))
                .expect("words and digits are visible ASCII")
        }
    }
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

    // RFC 9111 section 4.2: fresh while max-age is greater than Age.
    #[test]
    fn clients_may_keep_an_answer_for_what_is_left_of_it_at_most() {
        let seconds = Duration::from_secs;
        for (most, age, rest, expected) in [
            (0, Some(0), 29, "private, no-cache"),
            (10, None, 29, "private, max-age=10"),
            (10, Some(0), 29, "private, max-age=10"),
            (10, Some(20), 10, "private, max-age=30"),
            (10, Some(20), 9, "private, max-age=29"),
            (10, Some(29), 1, "private, max-age=30"),
            (60, Some(1), 29, "private, max-age=30"),
            (60, Some(90_000), 29, "private, max-age=90029"),
            (
                10,
                Some(u64::MAX),
                29,
                "private, max-age=18446744073709551615",
            ),
            (60, None, 0, "private, no-cache"),
            (60, Some(30), 0, "private, no-cache"),
            (60, Some(3600), 0, "private, no-cache"),
        ] {
            let shown = cache_control(seconds(most), age.map(seconds), || seconds(rest));
            assert_eq!(shown, expected, "{most} {age:?} {rest}");
        }
        let less_than_a_second = || Duration::from_millis(999);
        let shown = cache_control(seconds(10), None, less_than_a_second);
        assert_eq!(shown, "private, no-cache");
    }
}
