//! What is read of a page once, when it comes: the ids at its ends, and whether its envelope is the vendor's.

use compact_str::CompactString;

use super::row_table::RowTable;
use crate::domain::{Collection, ListPage, Row};

/// What is known of a page without its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    pub first_row: Option<CompactString>,
    pub last_row: Option<CompactString>,
    pub rows: usize,
    /// Whether the page is nothing but the vendor's envelope and rows with one comma between: only then it can be cut.
    pub is_plain: bool,
}

impl Outline {
    #[must_use]
    pub fn of(page: &ListPage, table: &RowTable, collection: Collection) -> Self {
        let id = |place: usize| table.get(place)?.id.map(CompactString::from);
        Self {
            first_row: id(0),
            last_row: table.len().checked_sub(1).and_then(id),
            rows: page.rows.len(),
            is_plain: is_plain(page, collection),
        }
    }
}

fn is_plain(page: &ListPage, collection: Collection) -> bool {
    let head = format!(
        r#"{{"count":{},"status_code":200,"message":"{}","data":["#,
        page.count, collection.success
    );
    let place = |at: u32| at as usize;
    let start = page.rows.first().map(|row| place(row.span.start));
    let end = page.rows.last().map(|row| place(row.span.end));
    let (start, end) = start.zip(end).unwrap_or((head.len(), head.len()));
    let between = |pair: &[Row]| {
        page.body
            .get(place(pair[0].span.end)..place(pair[1].span.start))
    };
    start == head.len()
        && page.body.starts_with(head.as_bytes())
        && page.body.get(end..) == Some(b"]}")
        && page.rows.windows(2).all(|pair| between(pair) == Some(b","))
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::upstream::read_page;

    fn outline(body: &'static str) -> Outline {
        let page = read_page(&body.into()).unwrap();
        let table = RowTable::read(&page, Collection::TASKS, Instant::now());
        Outline::of(&page, &table, Collection::TASKS)
    }

    #[test]
    fn only_the_vendors_own_envelope_is_plain() {
        let table = [
            (
                r#"{"count":2,"status_code":200,"message":"Tasks Fetched Successfully","data":[{"task_id":"a"},{"task_id":"b"}]}"#,
                true,
            ),
            (
                r#"{"count":2,"status_code":200,"message":"Tasks Fetched Successfully","data":[{"task_id":"a"}]}"#,
                true,
            ),
            (
                r#"{"count":0,"status_code":200,"message":"Tasks Fetched Successfully","data":[]}"#,
                true,
            ),
            // Another order, another member, another status or message, before the rows and behind them.
            (
                r#"{"status_code":200,"count":2,"message":"Tasks Fetched Successfully","data":[{"task_id":"a"}]}"#,
                false,
            ),
            (
                r#"{"count":2,"page":1,"status_code":200,"message":"Tasks Fetched Successfully","data":[{"task_id":"a"}]}"#,
                false,
            ),
            (
                r#"{"count":2,"status_code":200,"message":"Tasks Fetched Successfully","data":[{"task_id":"a"}],"next":2}"#,
                false,
            ),
            (
                r#"{"count":2,"status_code":201,"message":"Tasks Fetched Successfully","data":[{"task_id":"a"}]}"#,
                false,
            ),
            (
                r#"{"count":2,"status_code":200,"message":"20 Tasks Fetched","data":[{"task_id":"a"}]}"#,
                false,
            ),
            (
                r#"{"count":2,"status_code":200,"message":"Runs Fetched Successfully","data":[{"task_id":"a"}]}"#,
                false,
            ),
            (r#"{"count":2,"data":[{"task_id":"a"}]}"#, false),
            // Spaced: of a single row nobody knows what stands between two.
            (
                r#"{"count": 2, "status_code": 200, "message": "Tasks Fetched Successfully", "data": [{"task_id":"a"}]}"#,
                false,
            ),
            (
                r#"{"count":2,"status_code":200,"message":"Tasks Fetched Successfully","data":[{"task_id":"a"}, {"task_id":"b"}]}"#,
                false,
            ),
            (
                r#"{"count":2,"status_code":200,"message":"Tasks Fetched Successfully","data":[ {"task_id":"a"}]}"#,
                false,
            ),
            (
                r#"{"count":2,"status_code":200,"message":"Tasks Fetched Successfully","data":[{"task_id":"a"}]} "#,
                false,
            ),
            (
                r#"{"count":2,"status_code":200,"message":"Tasks Fetched Successfully","data":[ ]}"#,
                false,
            ),
        ];
        for (body, is_plain) in table {
            assert_eq!(outline(body).is_plain, is_plain, "{body}");
        }
    }
}
