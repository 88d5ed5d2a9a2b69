//! The fields that answers with a stored page have in common.

use bytes::Bytes;
use http::HeaderValue;

use super::{link::link, space::Version};
use crate::domain::PageQuery;

/// One piece of memory: in three, a hit among many pages waited for four lines of it more. The entity tag lies here once more for the
/// same reason.
#[derive(Debug)]
pub struct Fields {
    /// When the page was generated: the upstream's own word, or the time of receipt.
    pub date: HeaderValue,
    /// The state of the list it was cut from, where that was watched.
    pub generation: Option<HeaderValue>,
    /// Of the whole page.
    pub etag: HeaderValue,
    /// Where the pages around it are.
    pub link: HeaderValue,
}

impl Fields {
    /// Those of the page of `query`, of a list of `count` in the state `version`, if that is known.
    pub(super) fn new(
        date: &HeaderValue,
        etag: &HeaderValue,
        version: Option<Version>,
        query: PageQuery,
        count: u64,
    ) -> Self {
        let (generation, link) = (version.map(Version::field), link(query, count));
        let texts = [
            date.as_bytes(),
            generation.as_deref().unwrap_or_default().as_bytes(),
            etag.as_bytes(),
            link.as_bytes(),
        ];
        let mut together = Bytes::from(texts.concat());
        let [date, generation, etag, link] = texts.map(|text| {
            let value = HeaderValue::from_maybe_shared(together.split_to(text.len()));
            value.expect("a field value, or visible ASCII of ours")
        });
        Self {
            date,
            generation: version.map(|_| generation),
            etag,
            link,
        }
    }
}
