//! `POST /browser-tokens`: a client mints a short-lived token for a browser.

use std::{
    collections::BTreeSet,
    num::NonZeroU64,
    time::{Duration, SystemTime},
};

use axum::{
    body::Body,
    extract::{RawQuery, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderValue, Method, header};
use http_body_util::{BodyExt, Limited};
use serde::{Deserialize, Deserializer, Serialize};

use crate::{
    api::{
        ApiError,
        clients::{BrowserTokens, Minted},
        extract::Caller,
        layers::observe::VARY,
        query,
        rate_limit::{self, RateLimit},
    },
    domain::SpaceToken,
};

const MAX_BODY: usize = 4 * 1024;
const MAX_SPACES: usize = 32;

/// How long a body may take to come.
#[derive(Clone, Copy, Debug)]
pub struct ReadWithin(pub Duration);

/// What is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    spaces: Vec<String>,
    ttl_seconds: NonZeroU64,
    #[serde(default, deserialize_with = "text")]
    view: Option<String>,
}

/// Text where the member is given: null is no way to leave it out.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    String::deserialize(deserializer).map(Some)
}

/// Answers with a token of the caller's.
///
/// The route is there where the policy has browser tokens. Checked in the order in which things may be told. The client's limit is
/// drawn on before its body is read: a body that is bad or never ends costs as much as a good one.
pub async fn mint(
    State(ReadWithin(limit)): State<ReadWithin>,
    caller: Caller,
    method: Method,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<Response, ApiError> {
    let Some(tokens) = caller.policy.clients.issuers().browser_tokens() else {
        return Err(ApiError::RouteNotFound);
    };
    if method != Method::POST {
        return Err(ApiError::MethodNotAllowed { allow: "POST" });
    }
    let limits = admit(&caller, query.as_deref()).await?;
    let mut response = match answer(tokens, &caller, body, limit).await {
        Ok(minted) => respond(&minted),
        Err(error) => error.into_response(),
    };
    rate_limit::write(&limits, response.headers_mut());
    Ok(response)
}

/// Whether the caller may mint, and may mint now; what is left of its limits.
async fn admit(caller: &Caller, query: Option<&str>) -> Result<Vec<RateLimit>, ApiError> {
    query::none(query.unwrap_or_default())?;
    if !caller.client.may_mint {
        return Err(ApiError::MintingNotAllowed);
    }
    let limits = caller.client.take_request().await;
    limits.map_err(ApiError::RateLimited)
}

async fn answer(
    tokens: &BrowserTokens,
    caller: &Caller,
    body: Body,
    limit: Duration,
) -> Result<Minted, ApiError> {
    let client = &caller.client;
    let body = read(body, limit).await?;
    let wanted = parse(&body).ok_or(ApiError::InvalidBody)?;
    let spaces = named(&wanted.spaces).ok_or(ApiError::InvalidBody)?;
    if wanted
        .view
        .as_deref()
        .is_some_and(|view| caller.policy.clients.view(view).is_none())
    {
        return Err(ApiError::InvalidBody);
    }
    if !spaces.iter().all(|space| client.may_read(space)) {
        return Err(ApiError::SpaceNotAllowed);
    }
    let ttl = Duration::from_secs(wanted.ttl_seconds.get());
    Ok(tokens.mint(client, &spaces, wanted.view, ttl, SystemTime::now()))
}

/// The whole body, if it is short and does not dribble.
async fn read(body: Body, limit: Duration) -> Result<Bytes, ApiError> {
    let whole = Limited::new(body, MAX_BODY).collect();
    match tokio::time::timeout(limit, whole).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(_)) | Err(_) => Err(ApiError::InvalidBody),
    }
}

fn parse(body: &[u8]) -> Option<Wanted> {
    // A struct may be read from a list too.
    let is_object = body.trim_ascii_start().starts_with(b"{");
    serde_json::from_slice(body).ok().filter(|_| is_object)
}

/// One or more spaces, each by its token: `*` is none.
fn named(spaces: &[String]) -> Option<BTreeSet<SpaceToken>> {
    if !(1..=MAX_SPACES).contains(&spaces.len()) {
        return None;
    }
    let spaces = spaces.iter().map(|space| SpaceToken::new(space).ok());
    spaces.collect()
}

fn respond(minted: &Minted) -> Response {
    #[derive(Serialize)]
    struct Answer<'a> {
        token: &'a str,
        expires_at: String,
    }
    let answer = Answer {
        token: &minted.token,
        expires_at: humantime::format_rfc3339_seconds(minted.expires_at).to_string(),
    };
    let body = serde_json::to_vec(&answer).expect("strings serialize");
    let mut response = Response::new(Body::from(body));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::VARY, VARY);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_members_there_are_and_of_their_types_are_taken() {
        for good in [
            r#"{"spaces":["A"],"ttl_seconds":300}"#,
            r#" {"ttl_seconds":1,"view":"public","spaces":[]} "#,
            r#"{"spaces":["A"],"ttl_seconds":18446744073709551615}"#,
        ] {
            assert!(parse(good.as_bytes()).is_some(), "{good}");
        }
        for bad in [
            "",
            "null",
            "{}",
            r#"{"spaces":["A"]}"#,
            r#"{"ttl_seconds":300}"#,
            r#"{"spaces":["A"],"ttl_seconds":0}"#,
            r#"{"spaces":["A"],"ttl_seconds":-1}"#,
            r#"{"spaces":["A"],"ttl_seconds":1.5}"#,
            r#"{"spaces":["A"],"ttl_seconds":1e3}"#,
            r#"{"spaces":["A"],"ttl_seconds":"300"}"#,
            r#"{"spaces":["A"],"ttl_seconds":null}"#,
            r#"{"spaces":["A"],"ttl_seconds":18446744073709551616}"#,
            r#"{"spaces":"A","ttl_seconds":300}"#,
            r#"{"spaces":[5],"ttl_seconds":300}"#,
            r#"{"spaces":null,"ttl_seconds":300}"#,
            r#"{"spaces":["A"],"ttl_seconds":300,"view":null}"#,
            r#"{"spaces":["A"],"ttl_seconds":300,"view":5}"#,
            r#"{"spaces":["A"],"ttl_seconds":300,"may_refresh":true}"#,
            r#"{"spaces":["A"],"ttl_seconds":300,"ttl_seconds":400}"#,
            r#"{"spaces":["A"],"ttl_seconds":300} {}"#,
            r#"[["A"],300]"#,
            r#"{"spaces":["A"],"ttl_seconds":300"#,
        ] {
            assert!(parse(bad.as_bytes()).is_none(), "{bad}");
        }
    }

    #[test]
    fn one_to_thirty_two_spaces_are_named_and_never_all() {
        let count = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            named(&names).map(|spaces| spaces.len())
        };
        let many: Vec<String> = (0..33).map(|number| format!("S{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        for (names, expected) in [
            (&["A"][..], Some(1)),
            (&["A", "B", "A"], Some(2)),
            (&many[..32], Some(32)),
            (&many, None),
            (&[], None),
            (&["*"], None),
            (&["A", "*"], None),
            (&["A", ""], None),
            (&["a/b"], None),
        ] {
            assert_eq!(count(names), expected, "{names:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_dribbles_or_is_long_is_given_up() {
        let limit = Duration::from_secs(10);
        let endless = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
        let dribbling = read(Body::from_stream(endless), limit).await;
        assert!(matches!(dribbling, Err(ApiError::InvalidBody)));

        let of = |length| Body::from(vec![b' '; length]);
        assert_eq!(read(of(MAX_BODY), limit).await.unwrap().len(), MAX_BODY);
        assert!(read(of(MAX_BODY + 1), limit).await.is_err());
    }
}
