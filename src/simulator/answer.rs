//! The upstream's answers, word for word, with its headers.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use super::{
    body::Body,
    bomb::gzip_bomb,
    ledger::Busy,
    listing::Listing,
    quota::Standing,
    world::{Refusal, Unauthorized},
};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const VARY: HeaderValue = HeaderValue::from_static("Accept-Language, origin");
/// Outside the REST framework a cookie may matter too.
const VARY_COOKIE: HeaderValue = HeaderValue::from_static("Accept-Language, Cookie, origin");
const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");

const NOT_A_TASK: &str = r#"{"status_code":206,"message":"There is some Validation error","data":{"errors":{"pilot":["This field is required."],"context":["This field is required."],"documents":["This field is required."]}},"errors":{"pilot":["This field is required."],"context":["This field is required."],"documents":["This field is required."]}}"#;
const INNER_HTML: &str = "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n<center><h1>502 Bad Gateway</h1></center>\r\n<hr><center>nginx at tasks-store-1.internal.unpod.test:8000</center>\r\n</body>\r\n</html>\r\n";

/// The language of the texts that the upstream translates.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Language {
    English,
    French,
}

impl Language {
    /// Reads `Accept-Language`, of which only the first choice counts here.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let accepted = headers
            .get(header::ACCEPT_LANGUAGE)
            .map(HeaderValue::as_bytes);
        match accepted.unwrap_or_default() {
            [b'f' | b'F', b'r' | b'R', ..] => Self::French,
            _ => Self::English,
        }
    }

    fn tag(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::English => "en",
            Self::French => "fr",
        })
    }
}

/// An answer before it is put on the wire.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
}

impl Answer {
    /// Returns an answer of the REST framework.
    pub(super) fn json(status: StatusCode, body: impl Into<Bytes>) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, JSON);
        headers.insert(
            header::ALLOW,
            HeaderValue::from_static("GET, POST, HEAD, OPTIONS"),
        );
        headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
        headers.insert(header::VARY, VARY);
        Self::common(status, headers, Body::whole(body))
    }

    fn html(status: StatusCode, title: &str, text: &str) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HTML);
        headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
        headers.insert(header::VARY, VARY);
        let page = format!(
            "<!DOCTYPE html>\n\n<html lang=\"en\">\n  <head>\n    <meta charset=\"utf-8\">\n    <title>{title}</title>\n  </head>\n\n  <body>\n{text}\n  </body>\n</html>"
        );
        Self::common(status, headers, Body::whole(page))
    }

    fn common(status: StatusCode, mut headers: HeaderMap, body: Body) -> Self {
        headers.insert(header::SERVER, HeaderValue::from_static("gunicorn"));
        headers.insert(header::CONTENT_LANGUAGE, Language::English.tag());
        headers.insert(
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        );
        headers.insert(
            header::REFERRER_POLICY,
            HeaderValue::from_static("same-origin"),
        );
        headers.insert(OPENER_POLICY, HeaderValue::from_static("same-origin"));
        Self {
            status,
            headers,
            body,
        }
    }

    pub(super) fn page(body: Vec<u8>) -> Self {
        Self::json(StatusCode::OK, body)
    }

    pub(super) fn refused(refusal: Refusal, listing: Listing<'_>) -> Self {
        Self::json(StatusCode::PARTIAL_CONTENT, refusal_body(refusal, listing))
    }

    fn fetch_failed(inner: &str, listing: Listing<'_>) -> Self {
        Self::json(
            StatusCode::PARTIAL_CONTENT,
            fetch_failed_body(inner, listing),
        )
    }

    pub(super) fn unauthorized(reason: Unauthorized, language: Language) -> Self {
        let body = match unauthorized_text(reason, language) {
            Some(text) => format!(r#"{{"message":"{text}","status_code":401}}"#),
            None => {
                r#"{"message": "Unauthorized Access", "error": "Expired Auth Token"}"#.to_owned()
            }
        };
        Self::json(StatusCode::UNAUTHORIZED, body)
            .with(header::WWW_AUTHENTICATE, HeaderValue::from_static("Token"))
            .with(header::CONTENT_LANGUAGE, language.tag())
    }

    pub(super) fn not_acceptable() -> Self {
        let body =
            r#"{"message":"Could not satisfy the request Accept header.","status_code":406}"#;
        Self::json(StatusCode::NOT_ACCEPTABLE, body)
    }

    pub(super) fn method_not_allowed(method: &http::Method) -> Self {
        let body = format!(r#"{{"message":"Method \"{method}\" not allowed.","status_code":405}}"#);
        Self::json(StatusCode::METHOD_NOT_ALLOWED, body)
    }

    pub(super) fn not_a_task() -> Self {
        Self::json(StatusCode::PARTIAL_CONTENT, NOT_A_TASK)
    }

    pub(super) fn moved(location: HeaderValue) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HTML);
        headers.insert(header::LOCATION, location);
        headers.insert(header::VARY, VARY_COOKIE);
        Self::common(StatusCode::MOVED_PERMANENTLY, headers, Body::chunked(""))
    }

    pub(super) fn not_found() -> Self {
        let text = "<h1>Page not found</h1>\n\n<p>Resolver404</p>";
        Self::html(StatusCode::NOT_FOUND, "Page not found", text).with(header::VARY, VARY_COOKIE)
    }

    pub(super) fn server_error() -> Self {
        let text = "<h1>Ooops!!! 500</h1>\n\n<h3>Looks like something went wrong!</h3>";
        Self::html(StatusCode::INTERNAL_SERVER_ERROR, "Server Error", text)
    }

    /// Returns what a proxy in front of the upstream says of it.
    pub(super) fn proxy_error(status: StatusCode) -> Self {
        let title = status.to_string();
        Self::html(status, &title, &format!("<h1>{title}</h1>"))
    }

    pub(super) fn inner_failed(listing: Listing<'_>) -> Self {
        Self::refused(Refusal::InnerFailure, listing)
    }

    pub(super) fn inner_html(listing: Listing<'_>) -> Self {
        Self::fetch_failed(INNER_HTML, listing)
    }

    pub(super) fn inner_slow_down(listing: Listing<'_>) -> Self {
        Self::fetch_failed(r#"{"detail":"slow down"}"#, listing)
    }

    pub(super) fn token_expired() -> Self {
        Self::json(
            StatusCode::FORBIDDEN,
            r#"{"status_code":403,"message":"Token has expired."}"#,
        )
    }

    pub(super) fn too_many_requests(retry_after_seconds: u64) -> Self {
        let body =
            r#"{"status_code":429,"message":"Rate limit exceeded. Please try again later."}"#;
        Self::json(StatusCode::TOO_MANY_REQUESTS, body)
            .with(header::RETRY_AFTER, HeaderValue::from(retry_after_seconds))
    }

    pub(super) fn html_page() -> Self {
        Self::html(StatusCode::OK, "Unpod", "<h1>Sign In</h1>")
    }

    pub(super) fn null_data(listing: Listing<'_>) -> Self {
        let success = listing.success();
        let body =
            format!(r#"{{"count":null,"status_code":200,"message":"{success}","data":null}}"#);
        Self::json(StatusCode::OK, body)
    }

    pub(super) fn status_in_body() -> Self {
        Self::json(
            StatusCode::OK,
            r#"{"status_code":404,"message":"Space not found.","data":{}}"#,
        )
    }

    pub(super) fn redirected() -> Self {
        let elsewhere = HeaderValue::from_static("https://elsewhere.test/api/v2/platform/");
        let mut answer = Self::moved(elsewhere);
        answer.status = StatusCode::FOUND;
        answer
    }

    pub(super) fn empty() -> Self {
        Self::json(StatusCode::OK, "")
    }

    pub(super) fn garbage() -> Self {
        Self::json(StatusCode::OK, r#"{"count":57,"status_code":200,"mess"#)
    }

    pub(super) fn gzip_bomb() -> Self {
        Self::json(StatusCode::OK, gzip_bomb())
            .with(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"))
    }

    /// Promises the whole body and sends half of it.
    pub(super) fn truncated(mut self) -> Self {
        let body = self.body.bytes();
        self.body = Body::cut(body.slice(..body.len() / 2));
        self.with(header::CONTENT_LENGTH, HeaderValue::from(body.len().max(1)))
    }

    pub(super) fn dripping(mut self, busy: Busy) -> Self {
        self.body = Body::dripping(self.body.bytes(), busy);
        self
    }

    pub(super) fn with_standing(self, standing: &Standing) -> Self {
        let name = HeaderName::from_static;
        self.with(name("x-ratelimit-limit"), HeaderValue::from(standing.limit))
            .with(
                name("x-ratelimit-remaining"),
                HeaderValue::from(standing.remaining),
            )
            .with(
                name("x-ratelimit-reset"),
                HeaderValue::from(standing.reset()),
            )
    }

    /// Names the methods that the list allows, where any are named.
    pub(super) fn allowing(mut self, listing: Listing<'_>) -> Self {
        if let Some(allowed) = self.headers.get_mut(header::ALLOW) {
            *allowed = HeaderValue::from_static(listing.allowed());
        }
        self
    }

    /// Sets a header.
    pub(super) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    pub(super) fn into_response(self) -> Response<Body> {
        let mut response = Response::new(self.body);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

/// Returns the body of a business error.
pub(super) fn refusal_body(refusal: Refusal, listing: Listing<'_>) -> String {
    let message = match refusal {
        Refusal::UnknownSpace => "Invalid Space Token",
        Refusal::NoRole => listing.no_role(),
        Refusal::ViewerOnly => "You Don't have Access to do operation to this Space",
        Refusal::NegativeSkip => {
            return fetch_failed_body(r#"{"detail":"skip must be >= 0"}"#, listing);
        }
        Refusal::TooLarge => {
            return fetch_failed_body(
                r#"{"detail":"MongoDB can only handle up to 8-byte ints"}"#,
                listing,
            );
        }
        Refusal::InnerFailure => return fetch_failed_body("Internal Server Error", listing),
    };
    format!(r#"{{"status_code":206,"message":"{message}","data":{{}}}}"#)
}

fn fetch_failed_body(inner: &str, listing: Listing<'_>) -> String {
    let (inner, failure) = (serde_json::Value::from(inner), listing.failure());
    format!(
        r#"{{"status_code":206,"message":"{failure}","data":{{"errors":{inner}}},"errors":{inner}}}"#
    )
}

/// Returns the translated text; the body of an expired token has its own form and language.
fn unauthorized_text(reason: Unauthorized, language: Language) -> Option<&'static str> {
    let (english, french) = match reason {
        Unauthorized::Missing => (
            "Authentication credentials were not provided.",
            "Informations d'authentification non fournies.",
        ),
        Unauthorized::NoCredentials => (
            "Invalid token header. No credentials provided.",
            "En-tête « token » non valide. Informations d'identification non fournies.",
        ),
        Unauthorized::Spaces => (
            "Invalid token header. Token string should not contain spaces.",
            "En-tête « token » non valide. Un token ne doit pas contenir d'espaces.",
        ),
        Unauthorized::Invalid => ("Invalid token.", "Token non valide."),
        Unauthorized::Expired => return None,
    };
    Some(match language {
        Language::English => english,
        Language::French => french,
    })
}
