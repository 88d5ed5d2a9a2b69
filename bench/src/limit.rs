//! The limit server: what hyper can do when it does almost nothing.

use std::{convert::Infallible, net::Ipv4Addr, sync::Arc};

use bytes::Bytes;
use clap::Args;
use http_body_util::Full;
use hyper::{
    Response, StatusCode,
    header::{self, HeaderValue},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

use crate::{
    load::Result,
    pages::{self, Key, Pages},
    server::{CERTIFICATE, KEY, Tls},
};

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
    /// Speaks this over TLS, with the certificate in the working directory.
    #[arg(long)]
    pub tls: Option<Tls>,
}

/// Serves until the process is killed.
///
/// # Errors
///
/// Returns why it cannot listen, or what is wrong with the certificate.
pub fn run(args: &LimitArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(args.workers)
        .enable_all()
        .build()?;
    let fixed = Arc::new(Fixed::new(args));
    let tls = args.tls.map(acceptor).transpose()?;
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, args.port)).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(serve(stream, tls.clone(), fixed.clone()));
        }
    })
}

/// Serves a connection until its end; a client that goes away is no error.
async fn serve(stream: TcpStream, tls: Option<(TlsAcceptor, Tls)>, fixed: Arc<Fixed>) {
    let service = service_fn(move |_| std::future::ready(Ok::<_, Infallible>(fixed.answer())));
    let http1 = http1::Builder::new();
    let Some((acceptor, protocol)) = tls else {
        let _ = http1.serve_connection(TokioIo::new(stream), service).await;
        return;
    };
    let Ok(stream) = acceptor.accept(stream).await else {
        return;
    };
    let io = TokioIo::new(stream);
    let _ = match protocol {
        Tls::Http1 => http1.serve_connection(io, service).await,
        Tls::Http2 => {
            let http2 = http2::Builder::new(TokioExecutor::new());
            http2.serve_connection(io, service).await
        }
    };
}

fn acceptor(protocol: Tls) -> Result<(TlsAcceptor, Tls)> {
    let certificate = CertificateDer::from_pem_file(CERTIFICATE)?;
    let key = PrivateKeyDer::from_pem_file(KEY)?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    config.alpn_protocols = vec![protocol.name().into()];
    Ok((Arc::new(config).into(), protocol))
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
