//! A fast upstream with Unpod's responses, on a thread of its own; it counts requests and can be slowed down.

use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::pages::{self, Key, Pages};

/// The upstream's token, which the servers add.
pub const TOKEN: &str = "0123456789abcdef0123456789abcdef01234567";

/// How closely it behaves like Unpod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Without validators and without compression.
    Unpod,
    /// With both: the peers cannot create ETags and, nginx and HAProxy, cannot store compressed pages of their own.
    Better,
}

/// The upstream, on two ports.
#[derive(Debug)]
pub struct Upstream {
    pub unpod: SocketAddr,
    pub better: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    small: Pages,
    large: Pages,
    calls: AtomicU64,
    latency_ms: AtomicU64,
    /// How often the tasks of the watched space have changed.
    revision: AtomicU64,
}

impl Upstream {
    /// Starts it; it runs until the process exits.
    ///
    /// # Errors
    ///
    /// Returns why it cannot listen.
    pub fn start() -> io::Result<Self> {
        let shared = Arc::new(Shared {
            small: Pages::of(pages::SMALL),
            large: Pages::of(pages::LARGE),
            calls: AtomicU64::new(0),
            latency_ms: AtomicU64::new(0),
            revision: AtomicU64::new(0),
        });
        let unpod = bind()?;
        let better = bind()?;
        let upstream = Self {
            unpod: unpod.local_addr()?,
            better: better.local_addr()?,
            shared: shared.clone(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        thread::spawn(move || {
            runtime.block_on(async {
                tokio::spawn(accept(unpod, Manner::Unpod, shared.clone()));
                accept(better, Manner::Better, shared).await;
            });
        });
        Ok(upstream)
    }

    /// How many pages were requested.
    pub fn calls(&self) -> u64 {
        self.shared.calls.load(Ordering::SeqCst)
    }

    /// Sets the delay of further responses.
    pub fn set_latency(&self, latency: Duration) {
        let millis = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX);
        self.shared.latency_ms.store(millis, Ordering::SeqCst);
    }

    /// Changes every task of the watched space.
    pub fn change(&self) {
        self.shared.revision.fetch_add(1, Ordering::SeqCst);
    }

    pub fn pages(&self, page_size: u32) -> &Pages {
        self.shared.pages(page_size)
    }
}

impl Shared {
    fn pages(&self, page_size: u32) -> &Pages {
        if page_size == pages::SMALL {
            &self.small
        } else {
            &self.large
        }
    }
}

fn bind() -> io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

async fn accept(listener: std::net::TcpListener, manner: Manner, shared: Arc<Shared>) {
    let listener = TcpListener::from_std(listener).expect("it was bound and does not block");
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let _ = stream.set_nodelay(true);
        let shared = shared.clone();
        let service = service_fn(move |request| {
            let shared = shared.clone();
            async move { Ok::<_, Infallible>(answer(&request, manner, &shared).await) }
        });
        // A server that is stopped closes its connections.
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn answer(
    request: &Request<Incoming>,
    manner: Manner,
    shared: &Shared,
) -> Response<Full<Bytes>> {
    if !has_token(request) {
        return refusal(StatusCode::UNAUTHORIZED, "Invalid token.");
    }
    if request.uri().path().contains(pages::WATCHED) {
        let revision = shared.revision.load(Ordering::SeqCst);
        return Response::new(Full::new(shared.large.watched(revision)));
    }
    let Some((key, page_size)) = wanted(request) else {
        return refusal(StatusCode::NOT_FOUND, "no such page");
    };
    shared.calls.fetch_add(1, Ordering::SeqCst);
    let latency = shared.latency_ms.load(Ordering::SeqCst);
    if latency > 0 {
        tokio::time::sleep(Duration::from_millis(latency)).await;
    }
    let body = shared.pages(page_size).body(key);
    let coded = manner == Manner::Better && takes_gzip(request);
    let mut response = Response::new(Full::new(if coded { pages::gzip(&body) } else { body }));
    let headers = response.headers_mut();
    let fixed = [
        (header::SERVER, "gunicorn"),
        (header::CONTENT_TYPE, "application/json"),
        (header::ALLOW, "GET, POST, HEAD, OPTIONS"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::VARY, "Accept-Language, origin"),
        (header::CONTENT_LANGUAGE, "en"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if coded {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    if manner == Manner::Better {
        let tag = format!("W/\"{:x}-{page_size}\"", key.0);
        let tag = HeaderValue::try_from(tag).expect("digits and quotes are visible ASCII");
        headers.insert(header::ETAG, tag);
    }
    response
}

/// Also detects a server that forwards the client's own key.
fn has_token(request: &Request<Incoming>) -> bool {
    let sent = request.headers().get(header::AUTHORIZATION);
    sent.and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Token "))
        .is_some_and(|token| token == TOKEN)
}

/// The page that path and query name, and its number of tasks.
fn wanted(request: &Request<Incoming>) -> Option<(Key, u32)> {
    let path = request.uri().path();
    let space = path
        .strip_prefix("/api/v2/platform/spaces/")?
        .strip_suffix("/tasks/")?;
    let query = request.uri().query()?.strip_prefix("page=")?;
    let (page, page_size) = query.split_once("&page_size=")?;
    let page_size = page_size.parse().ok()?;
    let is_known = page_size == pages::SMALL || page_size == pages::LARGE;
    is_known.then_some((Key::read(space, page)?, page_size))
}

fn takes_gzip(request: &Request<Incoming>) -> bool {
    let sent = request.headers().get(header::ACCEPT_ENCODING);
    sent.and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.contains("gzip"))
}

fn refusal(status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    let body = format!(
        r#"{{"message":"{message}","status_code":{}}}"#,
        status.as_u16()
    );
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}
