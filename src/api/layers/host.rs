//! Requires exactly one host per request: of two, a proxy in front might have checked the other (RFC 9112 section 3.2).

use std::{
    future::{Ready, ready},
    task::{Context, Poll},
};

use futures_util::future::Either;
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, Version,
    header::{CONNECTION, HOST},
};
use tower::{Layer, Service};

/// Refuses requests without a host, with several, or with a malformed one, as a parser would.
#[derive(Clone, Copy, Debug)]
pub struct HostLayer;

impl<S> Layer<S> for HostLayer {
    type Service = Host<S>;

    fn layer(&self, inner: S) -> Host<S> {
        Host { inner }
    }
}

/// Answers 400 without a body and ends the connection.
#[derive(Clone, Debug)]
pub struct Host<S> {
    inner: S,
}

impl<S, B, R> Service<Request<B>> for Host<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response<R>, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let version = request.version();
        if names_one(version, request.uri(), request.headers()) {
            return Either::Left(self.inner.call(request));
        }
        let mut refusal = Response::new(R::default());
        *refusal.status_mut() = StatusCode::BAD_REQUEST;
        if version <= Version::HTTP_11 {
            let close = HeaderValue::from_static("close");
            refusal.headers_mut().insert(CONNECTION, close);
        }
        Either::Right(ready(Ok(refusal)))
    }
}

/// Whether a request names its host as it must: in one way, whichever fields it names it in.
///
/// HTTP/1.1 has to have the field (RFC 9112 section 3.2); HTTP/2 has to have `:authority` or the field (RFC 9113 section 8.3.1). A target
/// that names a host, as HTTP/2's does and one in absolute form, names the field's.
pub(in crate::api) fn names_one(version: Version, target: &Uri, headers: &HeaderMap) -> bool {
    let mut named = headers.get_all(HOST).iter();
    let host = match (named.next(), named.next()) {
        (host, None) => host.map(HeaderValue::as_bytes),
        (_, Some(_)) => return false,
    };
    let authority = target.authority().map(|name| name.as_str().as_bytes());
    if ![host, authority].into_iter().flatten().all(is_host) {
        return false;
    }
    match (host, authority) {
        (Some(host), Some(authority)) => is_same(host, authority, target.scheme_str()),
        (Some(_), None) => true,
        (None, Some(_)) => version != Version::HTTP_11,
        (None, None) => version < Version::HTTP_11,
    }
}

/// Whether two names with their ports are of one host, for whoever comes by `scheme` (RFC 9110 section 4.2.3).
fn is_same(one: &[u8], other: &[u8], scheme: Option<&str>) -> bool {
    let usual: &[u8] = match scheme {
        Some("http") => b"80",
        Some("https") => b"443",
        Some(_) | None => b"",
    };
    let (one, other) = (parted(one, usual), parted(other, usual));
    one.0.eq_ignore_ascii_case(other.0) && one.1 == other.1
}

/// A host and its port: the usual one where it has none.
fn parted<'a>(name: &'a [u8], usual: &'a [u8]) -> (&'a [u8], &'a [u8]) {
    let colon = name.iter().rposition(|byte| *byte == b':');
    // Those of an IPv6 address stand in brackets.
    let colon = colon.filter(|colon| !name[*colon..].contains(&b']'));
    match colon.map(|colon| (&name[..colon], &name[colon + 1..])) {
        Some((host, b"")) => (host, usual),
        Some(parted) => parted,
        None => (name, usual),
    }
}

fn is_host(name: &[u8]) -> bool {
    name.iter().copied().all(may_be_in_host)
}

/// What a host and a port are made of (RFC 3986 section 3.2).
fn may_be_in_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSIONS: [Version; 3] = [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2];

    fn is_taken(version: Version, target: &str, named: &[&str]) -> bool {
        let fields = named.iter().map(|host| (HOST, host.parse().unwrap()));
        names_one(version, &target.parse().unwrap(), &fields.collect())
    }

    #[test]
    fn a_request_names_one_host() {
        let one_is_needed = [Version::HTTP_11, Version::HTTP_2];
        let table: [(&[&str], &[Version]); 9] = [
            (&[], &one_is_needed),
            (&["gateway.example:8080"], &[]),
            (&["[2001:db8::1]:8080"], &[]),
            (&["caf%C3%A9.example"], &[]),
            // Of a target without an authority.
            (&[""], &[]),
            (&["a", "a"], &VERSIONS),
            (&["a b"], &VERSIONS),
            (&["user@a"], &VERSIONS),
            (&["a/path"], &VERSIONS),
        ];
        for (named, refused) in table {
            for version in VERSIONS {
                let expected = !refused.contains(&version);
                let found = is_taken(version, "/healthz", named);
                assert_eq!(found, expected, "{named:?} {version:?}");
            }
        }
    }

    #[test]
    fn a_target_names_the_same_host_as_the_field() {
        for (target, host, expected) in [
            ("http://gateway/", "gateway", true),
            ("http://GateWay/", "gATEwAY", true),
            ("http://gateway:80/", "gateway", true),
            ("http://gateway/", "gateway:80", true),
            ("http://gateway/", "gateway:", true),
            ("http://gateway:/", "gateway:80", true),
            ("https://gateway/", "gateway:443", true),
            ("https://gateway:443/", "gateway", true),
            ("http://gateway:8080/", "gateway:8080", true),
            ("http://[::1]/", "[::1]:80", true),
            ("http://[2001:DB8::1]:8080/", "[2001:db8::1]:8080", true),
            ("gateway:443", "gateway:443", true),
            ("http://gateway/", "other", false),
            ("http://gateway/", "", false),
            ("http://gateway/", "gateway.", false),
            ("http://gateway/", "gateway.other", false),
            ("http://gateway/", "gateway:81", false),
            ("http://gateway:8080/", "gateway", false),
            ("http://gateway:8080/", "gateway:80", false),
            ("http://gateway/", "gateway:443", false),
            ("https://gateway/", "gateway:80", false),
            ("http://[::1]/", "[::2]", false),
            ("http://[::1]/", "::1", false),
            ("http://user@gateway/", "gateway", false),
            ("http://user@gateway/", "user@gateway", false),
            ("gateway:443", "gateway", false),
        ] {
            for version in VERSIONS {
                let found = is_taken(version, target, &[host]);
                assert_eq!(found, expected, "{target} {host} {version:?}");
            }
        }
    }

    #[test]
    fn a_target_stands_for_the_field_but_in_http_1_1() {
        for (version, expected) in VERSIONS.into_iter().zip([true, false, true]) {
            let found = is_taken(version, "http://gateway/", &[]);
            assert_eq!(found, expected, "{version:?}");
        }
        assert!(!is_taken(Version::HTTP_2, "http://user@gateway/", &[]));
    }
}
