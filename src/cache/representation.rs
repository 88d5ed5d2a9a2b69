//! A page as it goes out: whole, or as a view shows it, each with its own entity tag and encodings.

use bytes::Bytes;
use http::HeaderValue;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_128;

use super::{encodings::Encodings, memory::BodyMemory};
use crate::domain::ListPage;

/// Bytes of a page as a client gets them.
#[derive(Debug)]
pub struct Representation {
    /// Weak, always our own: a digest of the plain body, whichever encoding goes out.
    pub etag: HeaderValue,
    pub encodings: Encodings,
}

impl Representation {
    /// What clients get of `page`, which may have come in gzip.
    #[must_use]
    pub fn of(page: ListPage, now: Instant, memory: &BodyMemory) -> Self {
        let plain = Self::new(page.body, now, memory);
        match page.gzip {
            None => plain,
            Some(gzip) => Self {
                encodings: plain.encodings.with_gzip(gzip),
                ..plain
            },
        }
    }

    #[must_use]
    pub fn new(body: Bytes, now: Instant, memory: &BodyMemory) -> Self {
        Self {
            etag: etag(&body),
            encodings: Encodings::new(body, now, memory),
        }
    }
}

/// The same on every replica. 128 bits keep two pages from being called alike by chance; someone who
/// made two such pages on purpose would only have their own text taken for unchanged.
fn etag(body: &[u8]) -> HeaderValue {
    HeaderValue::try_from(format!("W/\"{:032x}\"", xxh3_128(body)))
        .expect("hex digits and quotes are visible ASCII")
}
