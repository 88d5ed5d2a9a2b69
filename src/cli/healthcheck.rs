//! `healthcheck`: checks the health of a gateway.
//!
//! It uses the operators' listener, which speaks plain HTTP: the data listener may require TLS or a PROXY header, and being at its
//! connection limit is no reason for a restart.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    process::ExitCode,
    time::Duration,
};

use super::{EXIT_CONFIG, EXIT_FAILURE};
use crate::config::{Config, value::ListenAddress};

const PATIENCE: Duration = Duration::from_secs(2);
const REQUEST: &[u8] = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

pub(super) fn run(config: Option<&Path>) -> ExitCode {
    let listen = match Config::load_admin(config) {
        Ok(admin) => admin.listen,
        Err(problems) => {
            eprintln!("{problems}");
            return EXIT_CONFIG.into();
        }
    };
    match ask(&listen) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("{listen} answers, but not with 200");
            EXIT_FAILURE.into()
        }
        Err(error) => {
            eprintln!("{listen}: {error}");
            EXIT_FAILURE.into()
        }
    }
}

fn ask(listen: &ListenAddress) -> io::Result<bool> {
    match listen {
        ListenAddress::Tcp(address) => {
            let stream = TcpStream::connect_timeout(&reachable(*address), PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            answers_ok(stream)
        }
        ListenAddress::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            answers_ok(stream)
        }
    }
}

/// A listener on all addresses is reached on loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn answers_ok(mut stream: impl Read + Write) -> io::Result<bool> {
    const EXPECTED: &[u8] = b"HTTP/1.1 200 ";
    stream.write_all(REQUEST)?;
    let mut start = [0; EXPECTED.len()];
    stream.read_exact(&mut start)?;
    Ok(start == EXPECTED)
}
