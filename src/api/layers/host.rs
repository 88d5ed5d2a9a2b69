//! One host a request: of two, whoever stands before the gateway might have judged the other (RFC 9112 section 3.2).

use std::task::{Context, Poll};

use futures_util::future::Either;
use http::{
    HeaderMap, HeaderValue, Response, StatusCode, Version,
    header::{CONNECTION, HOST},
};
use tower::{Layer, Service};

use crate::api::exchange::{Answer, Asked, AtOnce, at_once};

/// Refuses, as a parser would, what names no host, several, or none that could be one.
#[derive(Clone, Copy, Debug)]
pub struct HostLayer;

impl<S> Layer<S> for HostLayer {
    type Service = Host<S>;

    fn layer(&self, inner: S) -> Host<S> {
        Host { inner }
    }
}

/// Answers 400, bare, and ends the connection.
#[derive(Clone, Debug)]
pub struct Host<S> {
    inner: S,
}

impl<S, B> Service<Box<Asked<B>>> for Host<S>
where
    S: Service<Box<Asked<B>>, Response = Answer>,
{
    type Response = Answer;
    type Error = S::Error;
    type Future = Either<S::Future, AtOnce<S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, asked: Box<Asked<B>>) -> Self::Future {
        if names_one(asked.head.version, &asked.head.headers) {
            return Either::Left(self.inner.call(asked));
        }
        let mut refusal = Response::new(());
        *refusal.status_mut() = StatusCode::BAD_REQUEST;
        if asked.head.version <= Version::HTTP_11 {
            let close = HeaderValue::from_static("close");
            refusal.headers_mut().insert(CONNECTION, close);
        }
        Either::Right(at_once(refusal))
    }
}

/// Whether a request names its host as it must: once in HTTP/1.1; before it, and where HTTP/2 has a field of its own, at most once.
pub(in crate::api) fn names_one(version: Version, headers: &HeaderMap) -> bool {
    let mut named = headers.get_all(HOST).iter();
    match (named.next(), named.next()) {
        (Some(host), None) => host.as_bytes().iter().copied().all(may_be_in_host),
        (None, None) => version != Version::HTTP_11,
        (_, Some(_)) => false,
    }
}

/// What a host and a port are made of (RFC 3986 section 3.2).
fn may_be_in_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_one_host() {
        let one_is_needed = [Version::HTTP_11];
        let more_is_too_much = [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2];
        let table: [(&[&str], &[Version]); 9] = [
            (&[], &one_is_needed),
            (&["gateway.example:8080"], &[]),
            (&["[2001:db8::1]:8080"], &[]),
            (&["caf%C3%A9.example"], &[]),
            // Of a target without an authority.
            (&[""], &[]),
            (&["a", "a"], &more_is_too_much),
            (&["a b"], &more_is_too_much),
            (&["user@a"], &more_is_too_much),
            (&["a/path"], &more_is_too_much),
        ];
        for (named, refused) in table {
            let fields = named.iter().map(|host| (HOST, host.parse().unwrap()));
            let headers = HeaderMap::from_iter(fields);
            let versions = [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2];
            for version in versions {
                let expected = !refused.contains(&version);
                let found = names_one(version, &headers);
                assert_eq!(found, expected, "{named:?} {version:?}");
            }
        }
    }
}
