//! The PROXY protocol, versions 1 and 2: what a proxy that passes bytes on says of whom it passes them on for.

use std::{io, net::IpAddr};

use proxy_header::{ParseConfig, ProxyHeader};
use tokio::io::{AsyncRead, AsyncReadExt};

const V1_SIGNATURE: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The shortest header of all, `PROXY UNKNOWN` and its line end: as much can be read at once of any.
const SHORTEST: usize = 15;
const V1_LONGEST: usize = 107;
/// Signature, command, family and the length of the rest.
const V2_FIXED: usize = 16;
const V2_LOCAL: u8 = 0x20;
/// What nginx accepts too: addresses, and a proxy's notes on its own TLS.
const V2_LONGEST: usize = 4096;

/// Why a connection does not begin with a header.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    #[error("does not begin with a PROXY protocol header")]
    Missing,
    #[error("the PROXY protocol header is too long")]
    TooLong,
    #[error("the PROXY protocol header is malformed")]
    Malformed,
    #[error("the connection ended within the PROXY protocol header")]
    Io(#[from] io::Error),
}

/// Reads the header: the address of the client, if the proxy names one.
///
/// Not a byte beyond it is read, so that what follows needs no buffer for as long as the connection lives.
///
/// # Errors
///
/// Returns why there is no header, or what ended the connection.
pub async fn read_header(io: &mut (impl AsyncRead + Unpin)) -> Result<Option<IpAddr>, HeaderError> {
    let mut header = Vec::with_capacity(V1_LONGEST);
    read_more(io, &mut header, SHORTEST).await?;
    if header.starts_with(V2_SIGNATURE) {
        read_v2(io, &mut header).await?;
    } else if header.starts_with(V1_SIGNATURE) {
        read_v1(io, &mut header).await?;
    } else {
        return Err(HeaderError::Missing);
    }
    source(&header)
}

/// A line. Its end cannot be foreseen, so it is read byte by byte, once a connection.
async fn read_v1(
    io: &mut (impl AsyncRead + Unpin),
    header: &mut Vec<u8>,
) -> Result<(), HeaderError> {
    while !header.ends_with(b"\n") {
        if header.len() == V1_LONGEST {
            return Err(HeaderError::TooLong);
        }
        header.push(io.read_u8().await?);
    }
    Ok(())
}

/// A fixed part that says how much follows.
async fn read_v2(
    io: &mut (impl AsyncRead + Unpin),
    header: &mut Vec<u8>,
) -> Result<(), HeaderError> {
    read_more(io, header, V2_FIXED).await?;
    let rest = u16::from_be_bytes([header[V2_FIXED - 2], header[V2_FIXED - 1]]);
    let whole = V2_FIXED + usize::from(rest);
    if whole > V2_LONGEST {
        return Err(HeaderError::TooLong);
    }
    read_more(io, header, whole).await?;
    Ok(())
}

/// Reads until `header` has `length` bytes.
async fn read_more(
    io: &mut (impl AsyncRead + Unpin),
    header: &mut Vec<u8>,
    length: usize,
) -> io::Result<()> {
    let known = header.len();
    header.resize(length, 0);
    io.read_exact(&mut header[known..]).await?;
    Ok(())
}

fn source(header: &[u8]) -> Result<Option<IpAddr>, HeaderError> {
    // A proxy's own connection, as for a health check: whatever else it says counts for nothing.
    if header.starts_with(V2_SIGNATURE) && header[V2_SIGNATURE.len()] == V2_LOCAL {
        return Ok(None);
    }
    let config = ParseConfig {
        include_tlvs: false,
        ..ParseConfig::default()
    };
    match ProxyHeader::parse(header, config) {
        Ok((parsed, length)) if length == header.len() => {
            Ok(parsed.proxied_address().map(|proxied| proxied.source.ip()))
        }
        Ok(_) | Err(_) => Err(HeaderError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\n\r\n";

    /// A header of version 2.
    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [V2_SIGNATURE, &[command, family], &length, rest].concat()
    }

    fn v2_ipv4(notes: usize) -> Vec<u8> {
        let addresses = [203, 0, 113, 9, 10, 0, 0, 1, 0x12, 0x34, 0x01, 0xbb];
        v2(0x21, 0x11, &[&addresses[..], &vec![4; notes]].concat())
    }

    fn v2_ipv6() -> Vec<u8> {
        let mut addresses = [0; 36];
        addresses[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        addresses[15] = 9;
        v2(0x21, 0x21, &addresses)
    }

    #[tokio::test]
    async fn a_header_names_the_client_and_what_follows_is_left() {
        let longest = format!("PROXY UNKNOWN {}\r\n", "f".repeat(V1_LONGEST - 16));
        let table: &[(&[u8], Option<&str>)] = &[
            (
                b"PROXY TCP4 203.0.113.9 10.0.0.1 4660 443\r\n",
                Some("203.0.113.9"),
            ),
            (
                b"PROXY TCP6 2001:db8::9 ::1 4660 443\r\n",
                Some("2001:db8::9"),
            ),
            (b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1\r\n", Some("1.1.1.1")),
            (b"PROXY UNKNOWN\r\n", None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None),
            (longest.as_bytes(), None),
            (&v2_ipv4(0), Some("203.0.113.9")),
            (&v2_ipv4(50), Some("203.0.113.9")),
            (&v2_ipv4(V2_LONGEST - 28), Some("203.0.113.9")),
            (&v2_ipv6(), Some("2001:db8::9")),
            // LOCAL, whatever it says beside that.
            (&v2(0x20, 0x00, b""), None),
            (&v2(0x20, 0x11, b""), None),
            (&v2(0x20, 0xff, b"abc"), None),
            // Neither IPv4 nor IPv6.
            (&v2(0x21, 0x00, b""), None),
            (&v2(0x21, 0x31, &[b'/'; 216]), None),
        ];
        for (header, expected) in table {
            let bytes = [header, REQUEST].concat();
            let mut rest = &bytes[..];
            let named = read_header(&mut rest).await;
            let shown = header.escape_ascii();
            assert_eq!(
                named.unwrap(),
                expected.map(|address| address.parse().unwrap()),
                "{shown}"
            );
            assert_eq!(rest, REQUEST, "{shown}");
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        use HeaderError::{Io, Malformed, Missing, TooLong};
        type Kind = fn(&HeaderError) -> bool;
        let missing: Kind = |error| matches!(error, Missing);
        let long: Kind = |error| matches!(error, TooLong);
        let malformed: Kind = |error| matches!(error, Malformed);
        let ended: Kind = |error| matches!(error, Io(_));
        let unterminated = [b"PROXY TCP4 ", &[b'1'; 200][..]].concat();
        let too_long = format!("PROXY UNKNOWN {}\r\n", "f".repeat(V1_LONGEST - 15));
        let huge = v2(0x21, 0x11, &[0; V2_LONGEST]);
        let table: &[(&[u8], Kind)] = &[
            (REQUEST, missing),
            (b"proxy tcp4 1.1.1.1 2.2.2.2 1 2\r\n", missing),
            (b"PROXYTCP4 1.1.1.1 2.2.2.2 1 2\r\n", missing),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03abcd", missing),
            (b"\r\n\r\n\0\r\nQUIX\n\x21\x11\0\0", missing),
            (&unterminated, long),
            (too_long.as_bytes(), long),
            (&huge, long),
            (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n", malformed),
            (b"PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n", malformed),
            (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 65536\r\n", malformed),
            (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2 3\r\n", malformed),
            (b"PROXY TCP4 ::1 ::2 1 2\r\n", malformed),
            (b"PROXY TCP6 1.1.1.1 2.2.2.2 1 2\r\n", malformed),
            (b"PROXY TCP4 1.1.1.256 2.2.2.2 1 2\r\n", malformed),
            (b"PROXY UDP4 1.1.1.1 2.2.2.2 1 2\r\n", malformed),
            (b"PROXY UNKNOWN\rGET /\n", malformed),
            (&v2(0x11, 0x11, &[0; 12]), malformed),
            (&v2(0x22, 0x11, &[0; 12]), malformed),
            (&v2(0x21, 0x41, &[0; 12]), malformed),
            (&v2(0x21, 0x11, &[0; 11]), malformed),
            (&v2(0x21, 0x21, &[0; 35]), malformed),
            (b"", ended),
            (b"PROXY", ended),
            (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r", ended),
            (&v2_ipv4(0)[..15], ended),
            (&v2_ipv4(0)[..27], ended),
        ];
        for (bytes, is_expected) in table {
            let refused = read_header(&mut &bytes[..]).await;
            let shown = bytes.escape_ascii();
            let error = refused.expect_err(&shown.to_string());
            assert!(is_expected(&error), "{shown}: {error:?}");
        }
    }
}
