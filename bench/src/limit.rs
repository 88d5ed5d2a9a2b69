//! The limit server: what hyper can do when it does almost nothing.

use std::{convert::Infallible, io, net::Ipv4Addr, sync::Arc};

use bytes::Bytes;
use clap::Args;
use http_body_util::Full;
use hyper::{
    Response, StatusCode,
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::pages::{self, Key, Pages};

/// The response of a limit server, the same to every request.
#[derive(Args, Clone, Debug)]
pub struct LimitArgs {
    #[arg(long)]
    pub port: u16,
    #[arg(long)]
    pub workers: usize,
    #[arg(long)]
    pub page_size: u32,
    /// Responds with a page compressed by gzip.
    #[arg(long)]
    pub gzip: bool,
    /// Always responds 304.
    #[arg(long)]
    pub not_modified: bool,
}

/// Serves until the process is killed.
///
/// # Errors
///
/// Returns why it cannot listen.
pub fn run(args: &LimitArgs) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(args.workers)
        .enable_all()
        .build()?;
    let fixed = Arc::new(Fixed::new(args));
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, args.port)).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let fixed = fixed.clone();
            let service =
                service_fn(move |_| std::future::ready(Ok::<_, Infallible>(fixed.answer())));
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    })
}

struct Fixed {
    /// `None`: a 304.
    body: Option<Bytes>,
    is_coded: bool,
}

impl Fixed {
    fn new(args: &LimitArgs) -> Self {
        let body = Pages::of(args.page_size).body(Key(0));
        let body = if args.gzip { pages::gzip(&body) } else { body };
        Self {
            body: (!args.not_modified).then_some(body),
            is_coded: args.gzip,
        }
    }

    fn answer(&self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::default());
        match &self.body {
            None => *response.status_mut() = StatusCode::NOT_MODIFIED,
            Some(body) => {
                *response.body_mut() = Full::new(body.clone());
                let json = HeaderValue::from_static("application/json");
                response.headers_mut().insert(header::CONTENT_TYPE, json);
            }
        }
        let headers = response.headers_mut();
        headers.insert(header::ETAG, HeaderValue::from_static("W/\"0\""));
        if self.is_coded {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }
}
