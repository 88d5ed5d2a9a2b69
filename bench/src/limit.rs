//! The limit servers: what hyper can do on one core when it does almost nothing.

use std::{
    collections::HashMap,
    convert::Infallible,
    hash::{BuildHasherDefault, Hasher},
    io,
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use clap::Args;
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

use crate::{
    pages::{self, Key, Pages},
    request::CLIENT_KEY,
};

/// The responses of a limit server.
#[derive(Args, Clone, Debug)]
pub struct LimitArgs {
    #[arg(long)]
    pub port: u16,
    #[arg(long)]
    pub page_size: u32,
    /// Responds with a page compressed by gzip.
    #[arg(long)]
    pub gzip: bool,
    /// Always responds 304.
    #[arg(long)]
    pub not_modified: bool,
    /// Checks the key and looks the page up among this many; without it, every response is the first page.
    #[arg(long)]
    pub keys: Option<u64>,
}

/// Serves until the process is killed.
///
/// # Errors
///
/// Returns why it cannot listen.
pub fn run(args: &LimitArgs) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, args.port)).await?;
        match args.keys {
            None => serve(listener, Fixed::new(args)).await,
            Some(keys) => serve(listener, Map::new(args, keys)).await,
        }
    })
}

trait Answers: Send + Sync + 'static {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>>;
}

async fn serve(listener: TcpListener, answers: impl Answers) -> io::Result<()> {
    let answers = Arc::new(answers);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let answers = answers.clone();
        let service = service_fn(move |request| {
            std::future::ready(Ok::<_, Infallible>(answers.answer(&request)))
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

/// The same response to every request.
struct Fixed {
    page: Page,
    not_modified: bool,
}

impl Fixed {
    fn new(args: &LimitArgs) -> Self {
        Self {
            page: Page::new(&Pages::of(args.page_size), Key(0), args.gzip),
            not_modified: args.not_modified,
        }
    }
}

impl Answers for Fixed {
    fn answer(&self, _: &Request<Incoming>) -> Response<Full<Bytes>> {
        if self.not_modified {
            return self.page.not_modified();
        }
        self.page.answer()
    }
}

/// Pages by a digest of path and query, in a plain sharded map.
struct Map {
    shards: Vec<Mutex<Shard>>,
    authorization: String,
}

type Shard = HashMap<u64, Page, BuildHasherDefault<Digested>>;

const SHARDS: usize = 16;

impl Map {
    fn new(args: &LimitArgs, keys: u64) -> Self {
        let pages = Pages::of(args.page_size);
        let map = Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            authorization: format!("Token {CLIENT_KEY}"),
        };
        for key in (0..keys).map(Key) {
            let (space, page, page_size) = (key.space(), key.page(), args.page_size);
            let target = format!("/spaces/{space}/tasks?page={page}&page_size={page_size}");
            let digest = digest(&target);
            let page = Page::new(&pages, key, args.gzip);
            map.shard(digest).insert(digest, page);
        }
        map
    }

    fn shard(&self, digest: u64) -> std::sync::MutexGuard<'_, Shard> {
        let shard = &self.shards[(digest >> 32) as usize % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Answers for Map {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let sent = request.headers().get(header::AUTHORIZATION);
        if sent.is_none_or(|sent| sent.as_bytes() != self.authorization.as_bytes()) {
            return bare(StatusCode::UNAUTHORIZED);
        }
        let target = request
            .uri()
            .path_and_query()
            .map_or("", |target| target.as_str());
        let digest = digest(target);
        let shard = self.shard(digest);
        shard
            .get(&digest)
            .map_or_else(|| bare(StatusCode::NOT_FOUND), Page::answer)
    }
}

/// A page and its headers.
struct Page {
    body: Bytes,
    tag: HeaderValue,
    is_coded: bool,
}

impl Page {
    fn new(pages: &Pages, key: Key, is_coded: bool) -> Self {
        let body = pages.body(key);
        let tag = format!("W/\"{:032x}\"", key.0);
        Self {
            body: if is_coded { pages::gzip(&body) } else { body },
            tag: HeaderValue::try_from(tag).expect("digits and quotes are visible ASCII"),
            is_coded,
        }
    }

    fn answer(&self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body.clone()));
        let headers = response.headers_mut();
        let json = HeaderValue::from_static("application/json");
        headers.insert(header::CONTENT_TYPE, json);
        headers.insert(header::ETAG, self.tag.clone());
        if self.is_coded {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }

    fn not_modified(&self) -> Response<Full<Bytes>> {
        let mut response = bare(StatusCode::NOT_MODIFIED);
        response
            .headers_mut()
            .insert(header::ETAG, self.tag.clone());
        response
    }
}

fn bare(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

/// FNV-1a over eight bytes at a time: good enough for keys that no attacker chooses.
fn digest(target: &str) -> u64 {
    let mut digest = 0xcbf2_9ce4_8422_2325_u64;
    for chunk in target.as_bytes().chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        digest = (digest ^ u64::from_le_bytes(word)).wrapping_mul(0x0000_0100_0000_01b3);
        digest ^= digest >> 29;
    }
    digest
}

/// A digest is its own hash.
#[derive(Default)]
struct Digested(u64);

impl Hasher for Digested {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only u64 is hashed");
    }

    fn write_u64(&mut self, digest: u64) {
        self.0 = digest;
    }
}
