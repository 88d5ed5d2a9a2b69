//! Undoes the content codings of an answer while it comes, within a bound (RFC 9110 section 8.4.1).

use std::{io, pin::Pin};

use async_compression::{
    tokio::bufread::{BrotliDecoder, GzipDecoder, ZlibDecoder, ZstdDecoder},
    zstd::DParameter,
};
use bytes::Bytes;
use futures_util::TryStreamExt;
use http::{HeaderMap, HeaderValue, header::CONTENT_ENCODING};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio_util::io::{InspectReader, StreamReader};

use super::error::{ClientError, causes};

/// What is asked for, best first.
pub(super) const ACCEPTED: HeaderValue = HeaderValue::from_static("br, gzip, zstd");
/// More of them one upon another are no answer but an attack.
const MOST: usize = 3;
/// RFC 9659: no window larger than 8 MiB, or a short body could make us hold much more.
const ZSTD_WINDOW_LOG: u32 = 23;
/// As much of an unknown name as is told.
const SHOWN: usize = 32;

type Reader<'a> = Pin<Box<dyn AsyncBufRead + Send + 'a>>;

/// A body with its codings undone.
#[derive(Debug, Default)]
pub(super) struct Decoded {
    pub(super) body: Bytes,
    /// The body as it came, where that was gzip alone: clients can have it as it is.
    pub(super) gzip: Option<Bytes>,
}

/// A coding that can be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Brotli,
    Deflate,
    Gzip,
    Zstd,
}

impl Coding {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "br" => Self::Brotli,
            "deflate" => Self::Deflate,
            // RFC 9110 section 8.4.1.3: the two are one.
            "gzip" | "x-gzip" => Self::Gzip,
            "zstd" => Self::Zstd,
            _ => return None,
        })
    }

    fn undone<'a>(self, coded: Reader<'a>) -> Reader<'a> {
        match self {
            Self::Brotli => Box::pin(BufReader::new(BrotliDecoder::new(coded))),
            Self::Deflate => Box::pin(BufReader::new(ZlibDecoder::new(coded))),
            Self::Gzip => {
                let mut decoder = GzipDecoder::new(coded);
                // RFC 1952 section 2.2: a file is a series of members.
                decoder.multiple_members(true);
                Box::pin(BufReader::new(decoder))
            }
            Self::Zstd => {
                let window = [DParameter::window_log_max(ZSTD_WINDOW_LOG)];
                Box::pin(BufReader::new(ZstdDecoder::with_params(coded, &window)))
            }
        }
    }
}

/// The codings of a body, in the order in which they were applied.
///
/// # Errors
///
/// Returns the name of one that is not known, or that there are more than [`MOST`].
pub(super) fn codings(headers: &HeaderMap) -> Result<Vec<Coding>, ClientError> {
    let unknown = |name: &str| ClientError::UnknownCoding(name.chars().take(SHOWN).collect());
    let mut codings = Vec::new();
    for line in headers.get_all(CONTENT_ENCODING) {
        let line = String::from_utf8_lossy(line.as_bytes()).to_lowercase();
        for name in line.split(',').map(str::trim) {
            if name.is_empty() || name == "identity" {
                continue;
            }
            codings.push(Coding::named(name).ok_or_else(|| unknown(name))?);
        }
    }
    if codings.len() > MOST {
        return Err(ClientError::TooManyCodings);
    }
    Ok(codings)
}

/// Reads the body of `response` with its codings undone, at most `max_body` bytes of it.
///
/// # Errors
///
/// Returns why there is no whole body.
pub(super) async fn read(
    response: reqwest::Response,
    codings: &[Coding],
    max_body: usize,
) -> Result<Decoded, ClientError> {
    let length = response.content_length().unwrap_or(0);
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if codings.is_empty() && length > max_body {
        return Err(ClientError::TooLarge(max_body));
    }
    let body = Vec::with_capacity(length.min(max_body));
    let chunks = response.bytes_stream().map_err(io::Error::other);
    let coded = Box::pin(StreamReader::new(chunks));
    decoded(coded, codings, body, max_body).await
}

async fn decoded(
    mut coded: Reader<'_>,
    codings: &[Coding],
    mut body: Vec<u8>,
    max_body: usize,
) -> Result<Decoded, ClientError> {
    // No body at all is coded in no way, whatever its header says.
    if coded.fill_buf().await.map_err(failure)?.is_empty() {
        return Ok(Decoded::default());
    }
    let (mut gzip, mut is_whole) = (Vec::new(), true);
    let coded: Reader<'_> = if *codings == [Coding::Gzip] {
        let keep = |bytes: &[u8]| {
            // What decodes to less than it is, such as a row of empty members, must not fill the memory either.
            is_whole &= gzip.len() + bytes.len() <= max_body;
            if is_whole {
                gzip.extend_from_slice(bytes);
            }
        };
        Box::pin(BufReader::new(InspectReader::new(coded, keep)))
    } else {
        coded
    };
    let reader = codings
        .iter()
        .rev()
        .fold(coded, |coded, coding| coding.undone(coded));
    let bound = u64::try_from(max_body).unwrap_or(u64::MAX);
    let mut bounded = reader.take(bound.saturating_add(1));
    bounded.read_to_end(&mut body).await.map_err(failure)?;
    drop(bounded);
    if body.len() > max_body {
        return Err(ClientError::TooLarge(max_body));
    }
    Ok(Decoded {
        gzip: (is_whole && is_worth_keeping(&gzip, body.len()))
            .then(|| gzip.into_boxed_slice().into()),
        body: compact(body),
    })
}

/// Whether `gzip` is shorter than the `length` bytes that it holds, and holds them in one member (RFC 1952 section 2.3.1: the last four bytes
/// are a member's length): not every client reads a second one.
fn is_worth_keeping(gzip: &[u8], length: usize) -> bool {
    let told = gzip.last_chunk().map(|last| u32::from_le_bytes(*last));
    gzip.len() < length && told.is_some_and(|told| u32::try_from(length) == Ok(told))
}

/// The connection's fault where it told of one, else the coding's.
fn failure(error: io::Error) -> ClientError {
    match error.downcast() {
        Ok(error) => body_error(error),
        Err(error) => ClientError::Undecodable(error),
    }
}

/// A reset is the connection's fault, everything else the answer's.
fn body_error(error: reqwest::Error) -> ClientError {
    let error = error.without_url();
    let is_reset = |cause: &io::Error| {
        matches!(
            cause.kind(),
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted
        )
    };
    if causes(&error).any(|cause| cause.downcast_ref().is_some_and(is_reset)) {
        return ClientError::Broken(error);
    }
    ClientError::Truncated(error)
}

/// A body of unknown length grew by doubling; what is kept for long should not hold the spare half.
fn compact(body: Vec<u8>) -> Bytes {
    if body.capacity() > body.len() + body.len() / 8 {
        return Bytes::copy_from_slice(&body);
    }
    body.into()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write};

    use super::*;

    const TEXT: &[u8] = b"{\"count\":0,\"data\":[]}";

    fn named(lines: &[&str]) -> Result<Vec<Coding>, String> {
        let field = |line: &&str| (CONTENT_ENCODING, HeaderValue::from_str(line).unwrap());
        let mut headers = HeaderMap::new();
        for (name, value) in lines.iter().map(field) {
            headers.append(name, value);
        }
        codings(&headers).map_err(|error| error.to_string())
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = write::GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zlib(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = write::ZlibEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::bulk::compress(bytes, 1).unwrap()
    }

    fn brotli(bytes: &[u8]) -> Vec<u8> {
        let mut coded = Vec::new();
        let params = brotli::enc::BrotliEncoderParams::default();
        brotli::BrotliCompress(&mut &bytes[..], &mut coded, &params).unwrap();
        coded
    }

    async fn read(coded: &[u8], lines: &[&str], max_body: usize) -> Result<Bytes, ClientError> {
        let decoded = read_both(coded, lines, max_body).await?;
        Ok(decoded.body)
    }

    async fn read_both(
        coded: &[u8],
        lines: &[&str],
        max_body: usize,
    ) -> Result<Decoded, ClientError> {
        let coded = Bytes::copy_from_slice(coded);
        let codings = named(lines).unwrap();
        decoded(
            Box::pin(io::Cursor::new(coded)),
            &codings,
            Vec::new(),
            max_body,
        )
        .await
    }

    // RFC 9110 sections 8.4 and 8.4.1, and 5.6.1 on lists.
    #[test]
    fn codings_are_named_in_any_case_and_one_upon_another() {
        use Coding::{Brotli, Deflate, Gzip, Zstd};
        for (lines, expected) in [
            (&[][..], &[][..]),
            (&["identity"], &[]),
            (&["", " , "], &[]),
            (&["gzip"], &[Gzip]),
            (&["GZIP"], &[Gzip]),
            (&["x-gzip"], &[Gzip]),
            (&["X-GZip"], &[Gzip]),
            (&["gzip, identity"], &[Gzip]),
            (&["identity,gzip"], &[Gzip]),
            (&["deflate"], &[Deflate]),
            (&["Br", "zstd"], &[Brotli, Zstd]),
            (&["gzip,\tbr"], &[Gzip, Brotli]),
        ] {
            assert_eq!(named(lines).unwrap(), expected, "{lines:?}");
        }
        for (lines, told) in [
            (&["compress"][..], "compress"),
            (&["gzip, Snappy"], "snappy"),
            (&["gzip;q=1"], "gzip;q=1"),
            (&["gzip, gzip, gzip, gzip"], "more than three"),
        ] {
            let error = named(lines).unwrap_err();
            assert!(error.contains(told), "{error}");
        }
    }

    #[tokio::test]
    async fn every_coding_is_undone() {
        let two_members = [gzip(&TEXT[..5]), gzip(&TEXT[5..])].concat();
        for (lines, coded) in [
            (&["gzip"][..], gzip(TEXT)),
            (&["x-gzip"], gzip(TEXT)),
            (&["gzip"], two_members),
            (&["deflate"], zlib(TEXT)),
            (&["br"], brotli(TEXT)),
            (&["zstd"], zstd(TEXT)),
            (&["gzip, br"], brotli(&gzip(TEXT))),
            (&["gzip", "identity", "gzip"], gzip(&gzip(TEXT))),
            (&["identity"], TEXT.to_vec()),
        ] {
            let body = read(&coded, lines, 1000).await;
            assert_eq!(body.unwrap(), TEXT, "{lines:?}");
            let empty = read(&[], lines, 1000).await;
            assert_eq!(empty.unwrap(), "", "{lines:?}");
        }
    }

    #[tokio::test]
    async fn gzip_is_kept_as_it_came_where_a_client_can_have_it_so() {
        let long = [TEXT; 20].concat();
        let of_two_members = [gzip(&long[..5]), gzip(&long[5..])].concat();
        for (lines, coded, is_kept) in [
            (&["gzip"][..], gzip(&long), true),
            (&["x-gzip"], gzip(&long), true),
            (&["gzip"], of_two_members, false),
            (&["gzip"], gzip(b"[]"), false),
            (&["deflate"], zlib(&long), false),
            (&["gzip, gzip"], gzip(&gzip(&long)), false),
            (&["gzip, br"], brotli(&gzip(&long)), false),
            (&[], long.clone(), false),
        ] {
            let kept = read_both(&coded, lines, 1000).await.unwrap().gzip;
            assert_eq!(kept, is_kept.then(|| coded.into()), "{lines:?}");
        }
    }

    #[tokio::test]
    async fn what_is_kept_of_a_body_is_bounded_as_the_body_is() {
        let empty_members = gzip(b"").repeat(100);
        let coded = [empty_members, gzip(TEXT)].concat();
        let decoded = read_both(&coded, &["gzip"], 1000).await.unwrap();
        assert_eq!((&decoded.body[..], decoded.gzip), (TEXT, None));
    }

    #[tokio::test]
    async fn what_does_not_decode_and_what_is_too_large_are_told_apart() {
        let bomb = vec![b' '; 1 << 20];
        for (lines, code) in [
            (&["gzip"][..], gzip as fn(&[u8]) -> Vec<u8>),
            (&["deflate"], zlib),
            (&["br"], brotli),
            (&["zstd"], zstd),
        ] {
            let coded = code(TEXT);
            let exact = read(&coded, lines, TEXT.len()).await;
            assert_eq!(exact.unwrap(), TEXT, "{lines:?}");
            for (coded, max_body) in [(&coded, TEXT.len() - 1), (&code(&bomb), 1 << 16)] {
                let error = read(coded, lines, max_body).await.unwrap_err();
                assert!(matches!(error, ClientError::TooLarge(_)), "{error}");
            }
            for broken in [&coded[..coded.len() - 3], TEXT, b"\x1f"] {
                let error = read(broken, lines, 1000).await.unwrap_err();
                assert!(matches!(error, ClientError::Undecodable(_)), "{error}");
            }
        }
        let nested = gzip(&gzip(&bomb));
        let error = read(&nested, &["gzip, gzip"], 1 << 16).await.unwrap_err();
        assert!(matches!(error, ClientError::TooLarge(_)), "{error}");
    }
}
