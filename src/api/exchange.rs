//! A request on its way in and its answer on its way out, as the data listener's layers hand them to each other.
//!
//! Typed, where `http` would have a map of extensions: what a layer needs is there, and a hit allocates nothing for it.

use std::{
    error::Error,
    future::{Ready, ready},
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderValue, Response, request::Parts};
use http_body::{Frame, SizeHint};
use http_body_util::{Either, Full};
use hyper::body::Incoming;

use super::{ApiError, Client, Policy, layers::shed::Sending};
use crate::{
    cache::{forms::Coded, memory::Counted},
    domain::{PageQuery, SpaceFingerprint},
    peer::ClientCertificate,
    telemetry::{
        metrics::{Account, GaugeGuard, Route},
        traces,
    },
};

/// A request that the edge has seen. Layers hand it down in a box: it would be copied from one to the next.
#[derive(Debug)]
pub struct Asked<B = Incoming> {
    pub head: Parts,
    pub body: B,
    pub certificate: Option<Arc<ClientCertificate>>,
    /// The peer's, or the one that a trusted proxy reports.
    pub client_address: Option<IpAddr>,
    pub route: Route,
    /// The client's own if it is fit, else a new one.
    pub id: HeaderValue,
    /// Where the request's own span is.
    pub trace: traces::TraceContext,
    /// What was in force when it came: it is judged by that from its first check to its answer.
    pub policy: Arc<Policy>,
    /// Who asks; `None` before authentication, and where a path is served to anybody.
    pub client: Option<Arc<Client>>,
}

/// What goes out, and what the request holds until that has left.
#[derive(Debug)]
pub struct Body {
    /// Bytes that are there, or whatever axum made.
    content: Either<Full<Bytes>, axum::body::Body>,
    in_flight: Option<GaugeGuard>,
    permit: Option<Sending>,
    /// Where the bytes are a page's.
    _counted: Option<Counted>,
}

impl Body {
    /// A page, which counts as memory until it has left.
    #[must_use]
    pub fn of_page(page: Coded) -> Self {
        Self {
            _counted: Some(page.counted),
            ..whole(page.bytes)
        }
    }

    /// How many bytes are to go out, where that is known.
    #[must_use]
    pub fn length(&self) -> usize {
        let exact = http_body::Body::size_hint(self).exact().unwrap_or(0);
        usize::try_from(exact).unwrap_or(usize::MAX)
    }

    /// Puts these bytes in the place of what there was to go out.
    pub fn set(&mut self, bytes: Bytes) {
        self.content = Either::Left(Full::new(bytes));
    }

    /// Keeps the request counted until the body is dropped.
    pub fn hold_in_flight(&mut self, in_flight: GaugeGuard) {
        self.in_flight = Some(in_flight);
    }

    /// Keeps the request's permit until the body is dropped.
    pub fn hold_permit(&mut self, permit: Sending) {
        self.permit = Some(permit);
    }
}

impl From<Either<Full<Bytes>, axum::body::Body>> for Body {
    fn from(content: Either<Full<Bytes>, axum::body::Body>) -> Self {
        Self {
            content,
            in_flight: None,
            permit: None,
            _counted: None,
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.content).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.content.size_hint()
    }
}

/// An answer, and what the edge tells of it.
#[derive(Debug)]
pub struct Answer {
    /// One that is an [`ApiError`] has it among its extensions, and no body yet.
    pub response: Response<Body>,
    pub facts: Option<Facts>,
}

/// What a handler tells the edge for metrics, traces and the access log.
#[derive(Clone, Debug)]
pub struct Facts {
    pub account: Account,
    pub space: Option<SpaceFingerprint>,
    /// Which page of it.
    pub query: Option<PageQuery>,
    pub cache: Option<&'static str>,
    pub age_s: Option<u64>,
    /// What the request cost: 0 where the page was stored, or fetched for another.
    pub upstream_calls: u32,
}

/// The future of a call that is answered at once. Boxed: an inline answer would enlarge every request's future.
pub type AtOnce<E> = Pin<Box<Ready<Result<Answer, E>>>>;

/// Answers a call at once.
#[must_use]
pub fn at_once<E>(answer: impl Into<Answer>) -> AtOnce<E> {
    Box::pin(ready(Ok(answer.into())))
}

impl Facts {
    /// What is known once it is known who asks.
    #[must_use]
    pub fn of(account: Account) -> Self {
        Self {
            account,
            space: None,
            query: None,
            cache: None,
            age_s: None,
            upstream_calls: 0,
        }
    }
}

impl Answer {
    /// Whether it is a refusal or a failure.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.response.extensions().get::<ApiError>().is_some()
    }
}

impl From<Response<Body>> for Answer {
    fn from(response: Response<Body>) -> Self {
        Self {
            response,
            facts: None,
        }
    }
}

impl From<Response<()>> for Answer {
    fn from(response: Response<()>) -> Self {
        response.map(|()| whole(Bytes::new())).into()
    }
}

impl From<axum::response::Response> for Answer {
    fn from(response: axum::response::Response) -> Self {
        response.map(|body| Body::from(Either::Right(body))).into()
    }
}

impl From<ApiError> for Answer {
    fn from(error: ApiError) -> Self {
        error.into_bare_response().into()
    }
}

/// The body of these bytes.
#[must_use]
pub fn whole(bytes: impl Into<Bytes>) -> Body {
    Either::Left(Full::new(bytes.into())).into()
}
