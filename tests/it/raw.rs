//! Bytes as they are: for requests no client library would send, and for answers no server library would give.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, ToSocketAddrs},
    task::JoinHandle,
};

use crate::{
    answer::{Answer, check},
    gateway::{READER, patiently},
};

/// Sends one request with these header lines over a connection of its own; the answer is checked as any other.
pub(crate) async fn send(
    address: std::net::SocketAddr,
    method: &str,
    target: &str,
    lines: &str,
) -> Answer {
    let stream = TcpStream::connect(address).await.unwrap();
    send_over(stream, method, target, lines).await
}

/// As [`send`], with the reader's key and no other line.
pub(crate) async fn get(address: std::net::SocketAddr, target: &str) -> Answer {
    send(
        address,
        "GET",
        target,
        &format!("Authorization: Token {READER}\r\n"),
    )
    .await
}

/// As [`send`], over any stream.
pub(crate) async fn send_over(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    method: &str,
    target: &str,
    lines: &str,
) -> Answer {
    let request =
        format!("{method} {target} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n{lines}\r\n");
    let answer = parse(&exchange(&mut stream, request.as_bytes()).await);
    let method: Method = method.parse().unwrap();
    check(&method, target, &answer);
    answer
}

/// Asks with the reader's key and these header lines over a connection that stays open, and reads nothing of the answer.
pub(crate) async fn ask(address: impl ToSocketAddrs, target: &str, lines: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET {target} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Token {READER}\r\n{lines}\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// Leaves by a reset: who merely closes its side may still wait for the answer.
pub(crate) fn leave(stream: TcpStream) {
    stream.set_zero_linger().unwrap();
    drop(stream);
}

/// Writes `request` and reads until the peer closes.
pub(crate) async fn exchange(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    request: &[u8],
) -> Vec<u8> {
    stream.write_all(request).await.unwrap();
    let mut bytes = Vec::new();
    let read = stream.read_to_end(&mut bytes);
    patiently("the end of an answer", read).await.unwrap();
    bytes
}

/// Whatever comes before the peer ends or resets the connection.
pub(crate) async fn until_end(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset is an end too.
    let _ = patiently("the end of a connection", stream.read_to_end(&mut bytes)).await;
    bytes
}

/// Reads a whole answer that is framed by its length or by the end of the connection.
pub(crate) fn parse(bytes: &[u8]) -> Answer {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.expect("an answer has a head");
    let head = std::str::from_utf8(&bytes[..end]).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.get(9..12)).unwrap();
    let mut headers = HeaderMap::new();
    for (name, value) in lines.map(|line| line.split_once(": ").unwrap()) {
        headers.append(
            name.parse::<HeaderName>().unwrap(),
            HeaderValue::from_str(value).unwrap(),
        );
    }
    Answer {
        status: status.parse().unwrap(),
        headers,
        body: Bytes::copy_from_slice(&bytes[end + 4..]),
    }
}

/// An upstream that answers every request with the same bytes, then closes.
pub(crate) struct RawUpstream {
    address: std::net::SocketAddr,
    requests: Arc<AtomicU64>,
    answer: Arc<Mutex<Bytes>>,
    serving: JoinHandle<()>,
}

impl RawUpstream {
    pub(crate) async fn answering(bytes: impl Into<Bytes>) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), bytes)
    }

    /// Answers whoever connects to `listener`, those included who wait there already.
    pub(crate) fn on(listener: TcpListener, bytes: impl Into<Bytes>) -> Self {
        let answer = Arc::new(Mutex::new(bytes.into()));
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicU64::new(0));
        let (counted, answered) = (requests.clone(), answer.clone());
        let serving = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                if read_head(&mut stream).await {
                    counted.fetch_add(1, Ordering::Relaxed);
                    let bytes = answered.lock().clone();
                    // The gateway may have hung up.
                    let _ = stream.write_all(&bytes).await;
                    let _ = stream.shutdown().await;
                }
            }
        });
        Self {
            address,
            requests,
            answer,
            serving,
        }
    }

    /// What it answers from now on.
    pub(crate) fn answer(&self, bytes: impl Into<Bytes>) {
        *self.answer.lock() = bytes.into();
    }

    pub(crate) fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn address(&self) -> std::net::SocketAddr {
        self.address
    }

    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for RawUpstream {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Whether a whole request head came before the end of the stream.
pub(crate) async fn read_head(stream: &mut TcpStream) -> bool {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return false,
        }
    }
    true
}
