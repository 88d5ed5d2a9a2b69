//! One connection: a request in, and as much of its answer out as the fault allows.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::TcpStream,
    time::timeout,
};

use super::WireFault;

/// No status line, no line ends, no UTF-8.
const NOISE: &[u8] = b"\x15\x03\x01\x00\x02\x02\x50 not HTTP \xff\xfe\x00\x7f";
/// No request of a gateway's is longer.
const LONGEST_HEAD: usize = 64 * 1024;
const END_OF_HEAD: &[u8] = b"\r\n\r\n";

/// Serves the one request of `client`; ends early when the client goes away.
pub(super) async fn connection(
    mut client: TcpStream,
    fault: Option<WireFault>,
    upstream: SocketAddr,
) -> io::Result<()> {
    client.set_nodelay(true)?;
    let Some(fault) = fault else {
        let mut server = ask(&mut client, upstream).await?;
        return copy_bidirectional(&mut client, &mut server).await.map(drop);
    };
    match fault {
        // Dropped, and with it closed.
        WireFault::CloseAtOnce => Ok(()),
        WireFault::HalfOpen => gone(&mut client).await,
        WireFault::Reset => {
            read_head(&mut client).await?;
            client.set_zero_linger()
        }
        WireFault::Garbage => {
            read_head(&mut client).await?;
            client.write_all(NOISE).await
        }
        WireFault::Delay(time) => {
            let answer = fetch(&mut client, upstream).await?;
            pause(&mut client, time).await?;
            client.write_all(&answer.bytes).await
        }
        WireFault::CloseMidHeader => {
            let answer = fetch(&mut client, upstream).await?;
            client.write_all(answer.half_of_head()).await
        }
        WireFault::Truncate => {
            let answer = fetch(&mut client, upstream).await?;
            client.write_all(answer.up_to_half_of_body()).await
        }
        WireFault::ResetMidBody => {
            let answer = fetch(&mut client, upstream).await?;
            client.write_all(answer.up_to_half_of_body()).await?;
            client.set_zero_linger()
        }
        WireFault::SlowBody(each) => {
            let answer = fetch(&mut client, upstream).await?;
            let (head, body) = answer.bytes.split_at(answer.body_at);
            client.write_all(head).await?;
            for byte in body {
                pause(&mut client, each).await?;
                client.write_all(&[*byte]).await?;
            }
            Ok(())
        }
    }
}

/// A whole answer of the upstream.
struct Answer {
    bytes: Vec<u8>,
    body_at: usize,
}

impl Answer {
    fn half_of_head(&self) -> &[u8] {
        &self.bytes[..self.body_at / 2]
    }

    fn up_to_half_of_body(&self) -> &[u8] {
        let body = self.bytes.len() - self.body_at;
        &self.bytes[..self.body_at + body / 2]
    }
}

async fn fetch(client: &mut TcpStream, upstream: SocketAddr) -> io::Result<Answer> {
    let mut server = ask(client, upstream).await?;
    let mut bytes = Vec::new();
    tokio::select! {
        read = server.read_to_end(&mut bytes) => read?,
        left = gone(client) => return Err(left.err().unwrap_or_else(end_of_stream)),
    };
    let end = bytes
        .windows(END_OF_HEAD.len())
        .position(|four| four == END_OF_HEAD);
    let body_at = end.ok_or_else(end_of_stream)? + END_OF_HEAD.len();
    Ok(Answer { bytes, body_at })
}

/// Sends the client's request on, to be answered over a connection that closes after it.
async fn ask(client: &mut TcpStream, upstream: SocketAddr) -> io::Result<TcpStream> {
    let mut request = read_head(client).await?;
    request.truncate(request.len() - b"\r\n".len());
    request.extend_from_slice(b"Connection: close\r\n\r\n");
    let mut server = TcpStream::connect(upstream).await?;
    server.set_nodelay(true)?;
    server.write_all(&request).await?;
    Ok(server)
}

/// Reads up to the end of a request's header; a gateway's requests have no body.
async fn read_head(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(END_OF_HEAD) {
        if client.read_buf(&mut head).await? == 0 {
            return Err(end_of_stream());
        }
        if head.len() > LONGEST_HEAD {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(head)
}

/// Waits for `time`.
///
/// # Errors
///
/// Fails as soon as the client is gone.
async fn pause(client: &mut TcpStream, time: Duration) -> io::Result<()> {
    match timeout(time, gone(client)).await {
        Err(_) => Ok(()),
        Ok(left) => Err(left.err().unwrap_or_else(end_of_stream)),
    }
}

/// Waits until the client goes away, and reads what it says meanwhile.
async fn gone(client: &mut TcpStream) -> io::Result<()> {
    let mut heard = [0; 1024];
    while client.read(&mut heard).await? > 0 {}
    Ok(())
}

fn end_of_stream() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}
