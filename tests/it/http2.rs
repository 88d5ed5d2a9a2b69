//! HTTP/2 by prior knowledge or over TLS: many requests over one connection.

use bytes::Bytes;
use http::{Method, Request, Response, Version};
use http_body_util::{BodyExt, Empty};
use hyper::{
    body::Incoming,
    client::conn::http2::{Builder, SendRequest, handshake},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinHandle,
};

use crate::{
    answer::{Answer, check},
    gateway::patiently,
};

/// A connection; dropping it closes it.
pub(crate) struct Http2 {
    sender: SendRequest<Empty<Bytes>>,
    connection: JoinHandle<()>,
}

impl Http2 {
    pub(crate) async fn connect(address: std::net::SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap()).await
    }

    pub(crate) async fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        let shaken = handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = shaken.await.unwrap();
        let connection = tokio::spawn(async { connection.await.unwrap() });
        Self { sender, connection }
    }

    /// A connection that never lets a byte of a body be sent to it.
    pub(crate) async fn that_reads_nothing(address: std::net::SocketAddr) -> Self {
        Self::of_window(address, 0).await
    }

    /// A connection that lets `window` bytes of each body be sent to it before somebody reads that.
    pub(crate) async fn of_window(address: std::net::SocketAddr, window: u32) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let mut http2 = Builder::new(TokioExecutor::new());
        let shaken = http2.initial_stream_window_size(window);
        let shaken = shaken.handshake(TokioIo::new(stream));
        let (sender, connection) = shaken.await.unwrap();
        // It ends when the gateway has had enough, too.
        let connection = tokio::spawn(async { drop(connection.await) });
        Self { sender, connection }
    }

    /// Asks for `path`, with `key` if one is given; the answer is checked as any other.
    pub(crate) fn get(&self, path: &str, key: Option<&str>) -> JoinHandle<Answer> {
        self.ask(Method::GET, path, key)
    }

    /// Sends `request` as it is.
    pub(crate) fn send(
        &self,
        request: Request<Empty<Bytes>>,
    ) -> impl Future<Output = Response<Incoming>> + use<> {
        let mut sender = self.sender.clone();
        async move {
            let response = patiently("an answer", sender.send_request(request)).await;
            response.unwrap()
        }
    }

    /// The same by any method.
    pub(crate) fn ask(&self, method: Method, path: &str, key: Option<&str>) -> JoinHandle<Answer> {
        let mut request = get(path, key);
        *request.method_mut() = method.clone();
        let sent = self.send(request);
        let path = path.to_owned();
        tokio::spawn(async move { read(&method, &path, sent.await).await })
    }
}

/// The whole answer, checked as any other.
pub(crate) async fn read(method: &Method, path: &str, response: Response<Incoming>) -> Answer {
    let (parts, body) = response.into_parts();
    assert_eq!(parts.version, Version::HTTP_2);
    let answer = Answer {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body: body.collect().await.unwrap().to_bytes(),
    };
    check(method, path, &answer);
    answer
}

/// A `GET` of `path`, with `key` if one is given.
pub(crate) fn get(path: &str, key: Option<&str>) -> Request<Empty<Bytes>> {
    let mut request = Request::get(format!("http://gateway{path}"));
    if let Some(key) = key {
        request = request.header("authorization", format!("Token {key}"));
    }
    request.body(Empty::new()).unwrap()
}

impl Drop for Http2 {
    fn drop(&mut self) {
        self.connection.abort();
    }
}
