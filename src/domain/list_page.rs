use std::{borrow::Cow, fmt, ops::Range, str, sync::Arc};

use bytes::Bytes;

use super::json;

/// One page of rows: the upstream's bytes, and where in them each row lies.
///
/// The bytes are never parsed and printed again: numbers past 2^53, key order and escapes stay as they came.
#[derive(Clone)]
pub struct ListPage {
    /// The whole document, as received.
    pub body: Bytes,
    /// The same in gzip, where it came so.
    pub gzip: Option<Bytes>,
    /// How many rows the list has, over all pages.
    pub count: u64,
    /// The rows of this page, in order.
    pub rows: Arc<[Row]>,
}

/// One row of a page: where it lies.
///
/// What it says is read where it is asked for. Most of it never is, and there are dozens to every page that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its JSON within [`ListPage::body`].
    pub span: Range<u32>,
}

/// Without the rows: they hold people's names, numbers and words.
impl fmt::Debug for ListPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListPage")
            .field("bytes", &self.body.len())
            .field("count", &self.count)
            .field("rows", &self.rows.len())
            .finish()
    }
}

impl ListPage {
    /// The member `name` of `row`, one of this page, if that is a string.
    #[must_use]
    pub fn text_of(&self, row: &Row, name: &str) -> Option<Cow<'_, str>> {
        let span = row.span.start as usize..row.span.end as usize;
        let row = str::from_utf8(&self.body[span]).ok()?;
        json::text(json::member(row, name)?)
    }
}
