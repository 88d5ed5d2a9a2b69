//! The innermost service: one HTTP request to the upstream, one raw answer.
//!
//! What it sends is fixed here and holds nothing of a client's but the request id. It follows no redirect and knows one origin.

use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{
        ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, AUTHORIZATION, IF_MODIFIED_SINCE, IF_NONE_MATCH,
    },
};
use parking_lot::Mutex;
use tokio::time::Instant;
use tower::Service;
use url::Url;

use super::{
    Claims, Credential, Head, Sent, TokenSlot, UpstreamError,
    decode::{self, Coding},
    error::causes,
};
use crate::{
    config::UpstreamConfig,
    domain::{ListId, PageQuery, SpaceToken},
    outbound::{USER_AGENT, add_system_roots, tls_trusting},
    telemetry::traces::{Span, TRACEPARENT, TraceContext},
};

const ORG_HANDLE: HeaderName = HeaderName::from_static("org-handle");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Below the two to five seconds after which common servers close an idle connection, so that few requests meet a closing one.
const POOL_IDLE: Duration = Duration::from_millis(1900);

/// hyper's own bound is 100; in bytes it is 400 KiB.
const MAX_HEADER_LINES: usize = 256;

/// What is asked of the upstream.
#[derive(Clone, Debug)]
pub struct PageRequest {
    pub credential: Arc<Credential>,
    /// Which of its tokens the call goes with.
    pub token: TokenSlot,
    pub space: SpaceToken,
    pub list: ListId,
    pub query: PageQuery,
    pub validators: Validators,
    pub request_id: HeaderValue,
    /// When the fill began that it is asked for: its patience is counted from there, whichever try this is.
    pub began: Instant,
    /// The client on whose account the call goes.
    pub cause: Arc<str>,
    /// Who wants it how much, when few calls are left.
    pub claims: Claims,
    /// Tells the circuit when this try leaves; each try has its own.
    pub sent: Sent,
    /// Counts the tries.
    pub calls: Calls,
    /// What the last of them failed with.
    pub last_error: LastError,
    /// What each try's span stands below.
    pub trace: TraceContext,
}

/// How many calls of the upstream a page has cost. A clone counts on.
#[derive(Clone, Debug, Default)]
pub struct Calls(Arc<AtomicU32>);

impl Calls {
    #[must_use]
    pub fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts one more; returns how many there were before it.
    pub fn add(&self) -> u32 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

/// What the last try that was made failed with. A clone is the same.
#[derive(Clone, Debug, Default)]
pub struct LastError(Arc<Mutex<Option<(UpstreamError, u32)>>>);

impl LastError {
    /// Notes `error`, with which the last of `calls` ended.
    pub(super) fn note(&self, error: &UpstreamError, calls: &Calls) {
        *self.0.lock() = Some((error.clone(), calls.count()));
    }

    /// The noted error where none of `calls` was made since: of a try that was never made there is nothing to tell.
    pub(super) fn of_no_try_since(&self, calls: &Calls) -> Option<UpstreamError> {
        let noted = self.0.lock().clone();
        noted.and_then(|(error, then)| (then == calls.count()).then_some(error))
    }
}

/// What the upstream gave to ask by whether a stored page still holds, verbatim (RFC 9110 section 13.1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Validators {
    pub etag: Option<HeaderValue>,
    pub last_modified: Option<HeaderValue>,
}

impl Validators {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.etag.is_none() && self.last_modified.is_none()
    }
}

/// What came back, whatever it is; the body is decoded and within `upstream.max_body`.
#[derive(Debug)]
pub struct RawAnswer {
    pub status: StatusCode,
    pub head: Head,
    pub body: Bytes,
}

/// Why there is no [`RawAnswer`].
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    // Without the URL, which holds the space token.
    #[error("request failed")]
    Request(#[source] reqwest::Error),
    #[error("answer is not HTTP")]
    NotHttp(#[source] reqwest::Error),
    #[error("connection broke within the body")]
    Broken(#[source] reqwest::Error),
    #[error("header of the answer is longer than {MAX_HEADER_LINES} lines or 400 KiB")]
    HeaderTooLarge(#[source] reqwest::Error),
    #[error("body ended early")]
    Truncated(#[source] reqwest::Error),
    #[error("content coding is not known: {0}")]
    UnknownCoding(String),
    #[error("body does not decode")]
    Undecodable(#[source] std::io::Error),
    #[error("body is larger than {0} bytes")]
    TooLarge(usize),
}

impl ClientError {
    /// The name under which a trace shows it.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Request(_) => "request_failed",
            Self::NotHttp(_) => "not_http",
            Self::Broken(_) => "connection_broken",
            Self::HeaderTooLarge(_) => "header_too_large",
            Self::Truncated(_) => "truncated",
            Self::UnknownCoding(_) => "unknown_coding",
            Self::Undecodable(_) => "undecodable",
            Self::TooLarge(_) => "too_large",
        }
    }
}

/// Why no client could be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("{0}")]
    CaFile(String),
    #[error("the TLS set-up failed")]
    Tls(#[from] rustls::Error),
    #[error("the HTTP client cannot be set up")]
    Client(#[from] reqwest::Error),
}

/// Connections to the upstream, no older than `max_age`: a name that stands for another address is followed.
#[derive(Debug)]
struct Connections {
    tls: rustls::ClientConfig,
    connect_timeout: Duration,
    proxy: Option<Url>,
    max_age: Duration,
    current: Mutex<(reqwest::Client, Instant)>,
}

impl Connections {
    fn new(config: &UpstreamConfig) -> Result<Self, BuildError> {
        let tls = tls_config(config)?;
        let proxy = config.proxy.as_ref().map(|proxy| proxy.0.clone());
        let first = http_client(tls.clone(), config.connect_timeout, proxy.as_ref())?;
        Ok(Self {
            tls,
            connect_timeout: config.connect_timeout,
            proxy,
            max_age: config.connection_max_age,
            current: Mutex::new((first, Instant::now())),
        })
    }

    /// The client to ask with now. A pool knows no age: it goes as a whole, idle connections at once and the others with their calls. TLS sessions
    /// outlive it.
    fn client(&self) -> reqwest::Client {
        let mut current = self.current.lock();
        let now = Instant::now();
        if now - current.1 >= self.max_age
            && let Ok(fresh) =
                http_client(self.tls.clone(), self.connect_timeout, self.proxy.as_ref())
        {
            *current = (fresh, now);
        }
        current.0.clone()
    }
}

fn http_client(
    tls: rustls::ClientConfig,
    connect_timeout: Duration,
    proxy: Option<&Url>,
) -> Result<reqwest::Client, reqwest::Error> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that builds a client"
    )]
    let mut builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(reqwest::redirect::Policy::none())
        // Retries are a layer of ours, which counts them.
        .retry(reqwest::retry::never())
        .no_proxy()
        .referer(false)
        .connect_timeout(connect_timeout)
        .pool_idle_timeout(POOL_IDLE)
        .http1_max_headers(MAX_HEADER_LINES)
        .tcp_nodelay(true)
        .user_agent(USER_AGENT)
        .default_headers(fixed_headers());
    if let Some(proxy) = proxy {
        builder = builder.proxy(reqwest::Proxy::all(proxy.clone())?);
    }
    builder.build()
}

/// Asks the upstream over HTTP.
#[derive(Clone, Debug)]
pub struct Client {
    connections: Arc<Connections>,
    base_url: Arc<str>,
    /// Host and port, as traces show them.
    origin: (Arc<str>, u16),
    max_body: usize,
}

impl Client {
    /// Sets up the connection pool; connects to nothing.
    ///
    /// # Errors
    ///
    /// Returns what is wrong with the TLS roots or the proxy.
    pub fn new(config: &UpstreamConfig) -> Result<Self, BuildError> {
        Ok(Self {
            connections: Arc::new(Connections::new(config)?),
            base_url: prefix(config.base_url()).into(),
            origin: origin(config.base_url()),
            max_body: config.max_body,
        })
    }

    /// A try, with a span of its own where there is a trace.
    async fn ask(self, request: PageRequest) -> Result<RawAnswer, ClientError> {
        let tries_before = request.calls.add();
        let mut span = request.trace.begin_call("GET");
        self.describe(&mut span, &request, tries_before);
        let outcome = self.exchange(request, span.context()).await;
        match &outcome {
            Ok(answer) => note_status(&mut span, answer.status),
            Err(error) => span.fail(error.as_str()),
        }
        outcome
    }

    /// Without `url.full`, which holds the space token.
    fn describe(&self, span: &mut Span, request: &PageRequest, tries_before: u32) {
        span.set("http.request.method", "GET");
        span.set("url.template", request.list.collection().vendor_route);
        span.set_with("server.address", || self.origin.0.to_string());
        span.set("server.port", i64::from(self.origin.1));
        span.set_with("gateway.space", || request.space.to_string());
        if tries_before > 0 {
            span.set("http.request.resend_count", i64::from(tries_before));
        }
    }

    async fn exchange(
        &self,
        request: PageRequest,
        context: &TraceContext,
    ) -> Result<RawAnswer, ClientError> {
        let url = format!(
            "{}/api/v2/platform/spaces/{}/{}/?{}",
            self.base_url,
            request.space.as_str(),
            request.list,
            request.query
        );
        request.sent.set();
        let sent = Instant::now();
        let mut response = self
            .connections
            .client()
            .get(url)
            .headers(request_headers(request, context))
            .send()
            .await
            .map_err(request_error)?;
        let received = Instant::now();
        let status = response.status();
        let codings = decode::codings(response.headers());
        let head = Head {
            headers: mem::take(response.headers_mut()),
            received,
            received_unix: unix_now(),
            response_delay: received - sent,
        };
        let body = match read_coded(response, codings, self.max_body).await {
            Ok(body) => body,
            // Its status and header are an answer by themselves: a throttle is one, whatever breaks after it.
            Err(_) if is_failure(status) => Bytes::new(),
            Err(error) => return Err(error),
        };
        Ok(RawAnswer { status, head, body })
    }
}

impl Service<PageRequest> for Client {
    type Response = RawAnswer;
    type Error = ClientError;
    type Future = BoxFuture<'static, Result<RawAnswer, ClientError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: PageRequest) -> Self::Future {
        Box::pin(self.clone().ask(request))
    }
}

fn is_failure(status: StatusCode) -> bool {
    !status.is_success() && status != StatusCode::NOT_MODIFIED
}

fn prefix(base_url: &Url) -> String {
    base_url.as_str().trim_end_matches('/').to_owned()
}

fn origin(base_url: &Url) -> (Arc<str>, u16) {
    let port = base_url.port_or_known_default().unwrap_or_default();
    (base_url.host_str().unwrap_or_default().into(), port)
}

fn unix_now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs().try_into().unwrap_or(i64::MAX))
}

fn fixed_headers() -> HeaderMap {
    HeaderMap::from_iter([
        (ACCEPT, HeaderValue::from_static("application/json")),
        (ACCEPT_ENCODING, decode::ACCEPTED),
        (ACCEPT_LANGUAGE, HeaderValue::from_static("en")),
    ])
}

fn note_status(span: &mut Span, status: StatusCode) {
    span.set("http.response.status_code", i64::from(status.as_u16()));
    if status.is_client_error() || status.is_server_error() {
        span.fail(status.as_str().to_owned());
    }
}

fn request_headers(request: PageRequest, context: &TraceContext) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(6);
    headers.insert(
        AUTHORIZATION,
        request.credential.authorization(request.token).clone(),
    );
    headers.insert(REQUEST_ID, request.request_id);
    let optional = [
        (ORG_HANDLE, request.credential.org_handle.clone()),
        (IF_NONE_MATCH, request.validators.etag),
        (IF_MODIFIED_SINCE, request.validators.last_modified),
        (TRACEPARENT, context.traceparent()),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            headers.insert(name, value);
        }
    }
    headers
}

/// Reads the decoded body chunk by chunk, so that neither a huge nor a cleverly compressed one fills the memory.
async fn read_coded(
    response: reqwest::Response,
    codings: Result<Vec<Coding>, ClientError>,
    max_body: usize,
) -> Result<Bytes, ClientError> {
    decode::read(response, &codings?, max_body).await
}

/// A body of unknown length grew by doubling; what is kept for long should not hold the spare half.
pub(super) fn compact(body: Vec<u8>) -> Bytes {
    if body.capacity() > body.len() + body.len() / 8 {
        return Bytes::copy_from_slice(&body);
    }
    body.into()
}

/// Something answered, but no HTTP: another port's service, or a middlebox. Asking it again would not help.
fn request_error(error: reqwest::Error) -> ClientError {
    let error = error.without_url();
    let is_too_large = |cause: &hyper::Error| cause.is_parse_too_large();
    if causes(&error).any(|cause| cause.downcast_ref().is_some_and(is_too_large)) {
        return ClientError::HeaderTooLarge(error);
    }
    let is_unreadable = |cause: &hyper::Error| cause.is_parse();
    if causes(&error).any(|cause| cause.downcast_ref().is_some_and(is_unreadable)) {
        return ClientError::NotHttp(error);
    }
    ClientError::Request(error)
}

/// A reset is the connection's fault, everything else the answer's.
pub(super) fn body_error(error: reqwest::Error) -> ClientError {
    use std::io::{Error, ErrorKind};
    let error = error.without_url();
    let is_reset = |cause: &Error| {
        matches!(
            cause.kind(),
            ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted
        )
    };
    if causes(&error).any(|cause| cause.downcast_ref().is_some_and(is_reset)) {
        return ClientError::Broken(error);
    }
    ClientError::Truncated(error)
}

fn tls_config(config: &UpstreamConfig) -> Result<rustls::ClientConfig, BuildError> {
    let mut roots = rustls::RootCertStore::empty();
    // Reading the system's roots takes longer than all else at start-up.
    if config.base_url().scheme() == "https" || config.proxy.is_some() {
        add_system_roots(&mut roots);
    }
    let own = config.read_authorities().map_err(BuildError::CaFile)?;
    roots.roots.extend(own.roots);
    Ok(tls_trusting(roots)?)
}
