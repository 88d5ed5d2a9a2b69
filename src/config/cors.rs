//! `[cors]`: the browser origins that may read an answer.

use std::fmt;

use http::HeaderName;
use serde::{
    Deserialize, Deserializer,
    de::{self, Visitor},
};
use url::{Host, Url};

/// `[cors]`: the browser origins that may read an answer; none: there is no CORS.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorsConfig {
    pub origins: Vec<OriginPattern>,
    /// What a page may send beside the request headers that are always allowed.
    #[serde(default)]
    pub allow_headers: Vec<RequestHeader>,
}

/// The name of a request header that a page can set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHeader(pub HeaderName);

/// One origin as a browser sends it, or all that differ from it in one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginPattern {
    /// `https://app.example.com`
    One(Box<str>),
    /// `https://*.example.com`: the scheme, and what follows the label.
    AnyLabel {
        scheme: &'static str,
        parent: Box<str>,
    },
}

const ANYBODY: &str =
    "never everybody: name each origin, or \"https://*.example.com\" for one label";
const SCHEME: &str = "expected an origin such as \"https://app.example.com\"";
const PATH: &str = "expected an origin alone, without a path or a slash at its end";
const CASE: &str = "expected an origin in lower case, as browsers send it";
const FORM: &str = "expected an origin as browsers send it: the scheme, the host, and a port where it is not the scheme's own";
const WILDCARD: &str = "expected * as the whole first label, and two labels or more after it";

impl OriginPattern {
    fn parse(text: &str) -> Result<Self, &'static str> {
        if text == "*" {
            return Err(ANYBODY);
        }
        let with_scheme = |scheme| Some((scheme, text.strip_prefix(scheme)?));
        let (scheme, authority) = with_scheme("https://")
            .or_else(|| with_scheme("http://"))
            .ok_or(SCHEME)?;
        if authority.contains(['/', '?', '#', '\\']) {
            return Err(PATH);
        }
        if authority.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(CASE);
        }
        match authority.strip_prefix("*.") {
            Some(parent) => {
                check_parent(scheme, parent)?;
                let parent = format!(".{parent}").into();
                Ok(Self::AnyLabel { scheme, parent })
            }
            None if authority.contains('*') => Err(WILDCARD),
            None => {
                origin(text)?;
                Ok(Self::One(text.into()))
            }
        }
    }

    /// Whether `origin`, as a browser sent it, is one of these.
    #[must_use]
    pub fn matches(&self, origin: &[u8]) -> bool {
        match self {
            Self::One(one) => origin == one.as_bytes(),
            Self::AnyLabel { scheme, parent } => origin
                .strip_prefix(scheme.as_bytes())
                .and_then(|rest| rest.strip_suffix(parent.as_bytes()))
                .is_some_and(is_label),
        }
    }
}

/// Reads an origin that is written exactly as a browser would.
fn origin(text: &str) -> Result<Url, &'static str> {
    let url = Url::parse(text).map_err(|_| FORM)?;
    if url.origin().ascii_serialization() == text {
        Ok(url)
    } else {
        Err(FORM)
    }
}

/// What follows the label: a name of two labels or more. Of a single one anybody could register the label before it.
fn check_parent(scheme: &str, parent: &str) -> Result<(), &'static str> {
    if parent.contains('*') {
        return Err(WILDCARD);
    }
    let url = origin(&format!("{scheme}{parent}"))?;
    let Some(Host::Domain(name)) = url.host() else {
        return Err(WILDCARD);
    };
    let labels = name.split('.');
    if labels.clone().count() >= 2 && labels.clone().all(|label| !label.is_empty()) {
        Ok(())
    } else {
        Err(WILDCARD)
    }
}

fn is_label(text: &[u8]) -> bool {
    let belongs = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    !text.is_empty()
        && text
            .iter()
            .all(|byte| belongs(byte) || b"-_".contains(byte))
}

impl<'de> Deserialize<'de> for OriginPattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(PatternVisitor)
    }
}

struct PatternVisitor;

impl Visitor<'_> for PatternVisitor {
    type Value = OriginPattern;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an origin such as \"https://app.example.com\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<OriginPattern, E> {
        OriginPattern::parse(text).map_err(E::custom)
    }
}

const ANY_HEADER: &str = "never everything: name each header";
const NO_NAME: &str = "expected the name of a request header such as \"x-my-trace\"";
const NOT_A_PAGES: &str = "no page can send it: browsers keep it to themselves";

/// What a browser lets no page set (Fetch standard, "forbidden request-header").
const BROWSERS_OWN: [&str; 22] = [
    "accept-charset",
    "accept-encoding",
    "access-control-request-headers",
    "access-control-request-method",
    "access-control-request-private-network",
    "connection",
    "content-length",
    "cookie",
    "cookie2",
    "date",
    "dnt",
    "expect",
    "host",
    "keep-alive",
    "origin",
    "referer",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
];

impl RequestHeader {
    fn parse(text: &str) -> Result<Self, &'static str> {
        if text == "*" {
            return Err(ANY_HEADER);
        }
        let name = HeaderName::try_from(text).map_err(|_| NO_NAME)?;
        let known = name.as_str();
        let is_browsers_own = BROWSERS_OWN.contains(&known)
            || known.starts_with("sec-")
            || known.starts_with("proxy-");
        match is_browsers_own {
            true => Err(NOT_A_PAGES),
            false => Ok(Self(name)),
        }
    }
}

impl<'de> Deserialize<'de> for RequestHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl Visitor<'_> for HeaderVisitor {
    type Value = RequestHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a request header such as \"x-my-trace\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<RequestHeader, E> {
        RequestHeader::parse(text).map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_header_is_a_name_that_a_page_can_set() {
        for good in ["x-my-trace", "X-B3-TraceId", "authorization", "dnt2", "b3"] {
            let read = RequestHeader::parse(good).unwrap();
            assert_eq!(read.0.as_str(), good.to_ascii_lowercase());
        }
        for (bad, text) in [
            ("*", ANY_HEADER),
            ("", NO_NAME),
            (" x-my-trace", NO_NAME),
            ("x-my-trace ", NO_NAME),
            ("x my trace", NO_NAME),
            ("x-my-trace:", NO_NAME),
            ("x-my-trace, x-other", NO_NAME),
            ("x-my-trace\r\nx-other", NO_NAME),
            ("x-mÿ-trace", NO_NAME),
            (":path", NO_NAME),
            ("Cookie", NOT_A_PAGES),
            ("HOST", NOT_A_PAGES),
            ("origin", NOT_A_PAGES),
            ("Content-Length", NOT_A_PAGES),
            ("Via", NOT_A_PAGES),
            ("sec-fetch-site", NOT_A_PAGES),
            ("Proxy-Authorization", NOT_A_PAGES),
            ("Access-Control-Request-Headers", NOT_A_PAGES),
        ] {
            assert_eq!(RequestHeader::parse(bad), Err(text), "{bad}");
        }
    }

    #[test]
    fn an_origin_is_taken_as_browsers_write_it_and_in_no_other_form() {
        for good in [
            "https://app.example.com",
            "http://localhost:3000",
            "http://127.0.0.1:8000",
            "http://[::1]:8000",
            "https://example.com:8443",
            "https://xn--bcher-kva.example",
            "https://*.example.com",
            "https://*.app.example.com:8443",
        ] {
            assert!(OriginPattern::parse(good).is_ok(), "{good}");
        }
        for (bad, text) in [
            ("*", ANYBODY),
            ("", SCHEME),
            ("null", SCHEME),
            ("app.example.com", SCHEME),
            ("*.example.com", SCHEME),
            ("ftp://app.example.com", SCHEME),
            ("HTTPS://app.example.com", SCHEME),
            ("file://", SCHEME),
            ("https://app.example.com/", PATH),
            ("https://app.example.com/path", PATH),
            ("https://*.example.com/", PATH),
            ("https://app.example.com?a", PATH),
            ("https://app.example.com#a", PATH),
            ("https://app.example.com\\", PATH),
            ("https://App.example.com", CASE),
            ("https://*.Example.com", CASE),
            ("https://", FORM),
            ("https://app.example.com:443", FORM),
            ("http://app.example.com:80", FORM),
            ("https://app.example.com:99999", FORM),
            ("https://app.example.com:", FORM),
            ("https://user@app.example.com", FORM),
            ("https://bücher.example", FORM),
            ("https://app example.com", FORM),
            (" https://app.example.com", SCHEME),
            ("https://app.example.com ", FORM),
            ("http://127.1", FORM),
            ("https://*.example.com:443", FORM),
            ("https://*.", FORM),
            ("https://*", WILDCARD),
            ("https://*.com", WILDCARD),
            ("https://*.localhost:3000", WILDCARD),
            ("https://*.com.", WILDCARD),
            ("https://*.127.0.0.1", WILDCARD),
            ("https://*.*.example.com", WILDCARD),
            ("https://app.*.example.com", WILDCARD),
            ("https://app*.example.com", WILDCARD),
            ("https://*app.example.com", WILDCARD),
            ("https://app.example.com:*", WILDCARD),
        ] {
            assert_eq!(OriginPattern::parse(bad), Err(text), "{bad}");
        }
    }

    #[test]
    fn an_origin_matches_exactly_or_in_all_but_one_label() {
        let matches = |pattern: &str, origin: &str| {
            let pattern = OriginPattern::parse(pattern).unwrap();
            pattern.matches(origin.as_bytes())
        };
        let one = "https://app.example.com";
        let any = "https://*.example.com";
        let port = "http://*.example.com:8080";
        for (pattern, origin) in [
            (one, "https://app.example.com"),
            (any, "https://app.example.com"),
            (any, "https://a-1_b.example.com"),
            (port, "http://app.example.com:8080"),
        ] {
            assert!(matches(pattern, origin), "{pattern} {origin}");
        }
        for (pattern, origin) in [
            (one, "http://app.example.com"),
            (one, "https://app.example.com:8443"),
            (one, "https://app.example.com."),
            (one, "https://app.example.com/"),
            (one, "https://APP.example.com"),
            (one, "https://app.example.com.evil.test"),
            (one, "https://evilapp.example.com"),
            (one, "null"),
            (one, ""),
            (any, "https://example.com"),
            (any, "https://.example.com"),
            (any, "https://a.b.example.com"),
            (any, "https://evilexample.com"),
            (any, "http://app.example.com"),
            (any, "https://app.example.com:443"),
            (any, "https://app.example.com.evil.test"),
            (any, "https://evil.test#.example.com"),
            (any, "https://evil.test/.example.com"),
            (any, "https://evil@.example.com"),
            (any, "https://evil:1.example.com"),
            (any, "https://*.example.com"),
            (any, "https:// .example.com"),
            (any, "null"),
            (port, "http://app.example.com"),
            (port, "http://app.example.com:80801"),
            (port, "https://app.example.com:8080"),
        ] {
            assert!(!matches(pattern, origin), "{pattern} {origin}");
        }
    }
}
