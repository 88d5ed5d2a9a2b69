//! The innermost service: one HTTP request to the upstream, one raw answer.
//!
//! What it sends is fixed here and holds nothing of a client's but the request id. It follows no redirect and knows one origin.

use std::{
    mem,
    sync::Arc,
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
    Head,
    decode::{self, Coding, Decoded},
    error::{ClientError, MAX_HEADER_LINES, causes},
    request::PageRequest,
};
use crate::{
    config::UpstreamConfig,
    outbound::{USER_AGENT, add_system_roots, tls_trusting},
    telemetry::traces::{Span, TRACEPARENT, TraceContext},
};

const ORG_HANDLE: HeaderName = HeaderName::from_static("org-handle");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Below the two to five seconds after which common servers close an idle connection, so that few requests meet a closing one.
const POOL_IDLE: Duration = Duration::from_millis(1900);

/// What came back, whatever it is; the body is decoded and within `upstream.max_body`.
#[derive(Debug)]
pub struct RawAnswer {
    pub status: StatusCode,
    pub head: Head,
    pub body: Bytes,
    /// The same as it came, where that was gzip.
    pub gzip: Option<Bytes>,
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
        let Decoded { body, gzip } = match read_coded(response, codings, self.max_body).await {
            Ok(decoded) => decoded,
            // Its status and header are an answer by themselves: a throttle is one, whatever breaks after it.
            Err(_) if is_failure(status) => Decoded::default(),
            Err(error) => return Err(error),
        };
        Ok(RawAnswer {
            status,
            head,
            body,
            gzip,
        })
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
) -> Result<Decoded, ClientError> {
    decode::read(response, &codings?, max_body).await
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
