//! Stands before the simulated upstream: records every call, and writes its number into each row of the page.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{Empty, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::{net::TcpListener, task::JoinSet};

use crate::{
    call::{self, Key, Page},
    client::Connection,
    truth::Truth,
};

/// A page as the upstream sends it.
#[derive(Deserialize)]
pub(crate) struct Body<'a> {
    pub(crate) count: u64,
    #[serde(borrow)]
    pub(crate) data: Vec<&'a RawValue>,
}

/// Serves until it is dropped.
pub(crate) async fn serve(listener: TcpListener, simulator: SocketAddr, truth: Arc<Truth>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((stream, _)) = accepted else { continue };
        let truth = truth.clone();
        connections.spawn(async move {
            let service = service_fn(|request| respond(simulator, &truth, request));
            // A connection that breaks is the gateway's to notice.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn respond(
    simulator: SocketAddr,
    truth: &Truth,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, String> {
    let key = key_of(request.uri()).ok_or("no page of ours is asked for")?;
    let number = truth.call_started(key);
    let (parts, _) = request.into_parts();
    let asked = Request::from_parts(parts, Empty::new());
    let answer = Connection::new(simulator).ask(asked).await?;
    let page = (answer.status == 200)
        .then(|| stamp(&answer.body, number))
        .flatten();
    let (body, page) = page.unzip();
    truth.call_ended(number, answer.status, page);
    let mut response = Response::new(Full::new(body.unwrap_or(answer.body)));
    *response.status_mut() =
        http::StatusCode::from_u16(answer.status).map_err(|error| error.to_string())?;
    for name in [header::CONTENT_TYPE, header::RETRY_AFTER] {
        if let Some(value) = answer.headers.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    Ok(response)
}

fn key_of(uri: &http::Uri) -> Option<Key> {
    #[derive(Deserialize)]
    struct Paging {
        page: u64,
        page_size: u64,
    }
    let space = uri.path().split('/').rev().nth(2)?;
    let paging: Paging = serde_urlencoded::from_str(uri.query()?).ok()?;
    Some(Key {
        space: call::space(space)?,
        page: paging.page,
        size: paging.page_size,
    })
}

/// Writes the number of the call into each row.
fn stamp(body: &[u8], number: usize) -> Option<(Bytes, Page)> {
    let page: Body = serde_json::from_slice(body).ok()?;
    let stamped = |row: &&RawValue| row.get().replacen('{', &format!("{{\"call\":{number},"), 1);
    let rows: Vec<_> = page.data.iter().map(stamped).collect();
    let text = std::str::from_utf8(body).ok()?;
    let (head, _) = text.split_once("\"data\":[")?;
    let body = Bytes::from(format!("{head}\"data\":[{}]}}", rows.join(",")));
    let page = Page {
        body: blake3::hash(&body),
        rows: rows
            .iter()
            .map(|row| blake3::hash(row.as_bytes()))
            .collect(),
        count: page.count,
    };
    Some((body, page))
}
