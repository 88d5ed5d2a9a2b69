//! A keep-alive HTTP/1.1 connection to a gateway. `examples/replicas` uses it too.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

/// Longer than `server.request_timeout`: a request without a response by then was forgotten.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A response as received, its body not decoded.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default()
    }
}

/// A connection that is reopened when the gateway has closed it.
pub(crate) struct Connection {
    address: SocketAddr,
    sender: Option<SendRequest<Empty<Bytes>>>,
}

impl Connection {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            sender: None,
        }
    }

    /// Sends a request and reads the whole response; any failure is the gateway's.
    pub(crate) async fn ask(&mut self, request: Request<Empty<Bytes>>) -> Result<Answer, String> {
        match timeout(PATIENCE, self.exchange(request)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("no answer within {PATIENCE:?}")),
        }
    }

    async fn exchange(&mut self, request: Request<Empty<Bytes>>) -> Result<Answer, String> {
        let mut sender = self.ready().await?;
        let sent = sender.send_request(request).await;
        let (parts, body) = sent
            .map_err(|error| format!("no answer: {error}"))?
            .into_parts();
        let body = body
            .collect()
            .await
            .map_err(|error| format!("cut short: {error}"))?;
        self.sender = Some(sender);
        Ok(Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: body.to_bytes(),
        })
    }

    /// The open connection, if the gateway has not closed it, else a new one.
    async fn ready(&mut self) -> Result<SendRequest<Empty<Bytes>>, String> {
        if let Some(mut sender) = self.sender.take()
            && sender.ready().await.is_ok()
        {
            return Ok(sender);
        }
        connect(self.address).await
    }
}

async fn connect(address: SocketAddr) -> Result<SendRequest<Empty<Bytes>>, String> {
    let stream = TcpStream::connect(address).await;
    let stream = stream.map_err(|error| format!("no connection: {error}"))?;
    let shaken = handshake(TokioIo::new(stream)).await;
    let (sender, connection) = shaken.map_err(|error| format!("no handshake: {error}"))?;
    tokio::spawn(connection);
    Ok(sender)
}
