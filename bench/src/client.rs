//! A client for the checks: one request per connection, the whole response.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use flate2::read::GzDecoder;

/// Longer than any server takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    head: String,
    pub body: Vec<u8>,
}

impl Reply {
    /// The first value of a header.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The body, decompressed.
    ///
    /// # Errors
    ///
    /// Returns why it cannot be decompressed.
    pub fn decoded(&self) -> io::Result<Vec<u8>> {
        match self.field("content-encoding") {
            Some("gzip") => {
                let mut plain = Vec::new();
                GzDecoder::new(&self.body[..]).read_to_end(&mut plain)?;
                Ok(plain)
            }
            Some(other) => Err(io::Error::other(format!("coded as {other}"))),
            None => Ok(self.body.clone()),
        }
    }
}

/// Requests `path`, with the headers `fields` in addition to `Host`.
///
/// # Errors
///
/// Returns why there is no complete response.
pub fn get(server: SocketAddr, path: &str, fields: &[(&str, &str)]) -> io::Result<Reply> {
    let mut request = format!("GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n");
    for (name, value) in fields {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    split(&answer)
}

fn split(answer: &[u8]) -> io::Result<Reply> {
    let broken = || io::Error::other("not an HTTP answer");
    let end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .ok_or_else(broken)?;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let status = head.get(9..12).and_then(|code| code.parse().ok());
    let mut reply = Reply {
        status: status.ok_or_else(broken)?,
        head,
        body: answer[end + 4..].to_vec(),
    };
    if reply.field("transfer-encoding").is_some() {
        reply.body = without_chunks(&reply.body).ok_or_else(broken)?;
    } else if let Some(length) = reply.field("content-length") {
        let is_whole = length.parse() == Ok(reply.body.len());
        if !is_whole && reply.status != 304 {
            return Err(broken());
        }
    }
    Ok(reply)
}

fn without_chunks(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::new();
    loop {
        let end = body.windows(2).position(|window| window == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&body[..end]).ok()?, 16).ok()?;
        body = &body[end + 2..];
        if size == 0 {
            return Some(plain);
        }
        plain.extend_from_slice(body.get(..size)?);
        body = body.get(size + 2..)?;
    }
}
