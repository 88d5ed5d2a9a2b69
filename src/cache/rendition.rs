//! A page as it goes out: whole, or as a view shows it, each with an entity tag and coded variants of its own.

use bytes::Bytes;
use http::HeaderValue;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_128;

use super::{forms::Forms, memory::BodyMemory};

/// Bytes of a page as a client gets them.
#[derive(Debug)]
pub struct Rendition {
    /// Weak, always our own: a digest of the identity bytes, whichever coding goes out.
    pub etag: HeaderValue,
    pub forms: Forms,
}

impl Rendition {
    #[must_use]
    pub fn new(body: Bytes, now: Instant, memory: &BodyMemory) -> Self {
        Self {
            etag: etag(&body),
            forms: Forms::new(body, now, memory),
        }
    }
}

/// The same on every replica. 128 bits keep two pages from being called alike by chance; nothing is kept from who would make two
/// such pages on purpose, and could have what he wrote himself taken for unchanged.
fn etag(body: &[u8]) -> HeaderValue {
    HeaderValue::try_from(format!("W/\"{:032x}\"", xxh3_128(body)))
        .expect("hex digits and quotes are visible ASCII")
}
