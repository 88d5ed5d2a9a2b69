//! A page of those tasks that match a filter, among the newest of a list.

use std::{ops::Range, sync::Arc};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::time::Instant;

use super::{ClientRequest, Pages, PagesError, Served, newest::Newest};
use crate::{
    cache::row_table::RowFacts,
    domain::{Filter, FilterMember, ListPage, PageQuery, Row},
    off_runtime::by_size,
};

/// How far a list was looked through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    /// How many of the newest rows.
    pub looked_at: u64,
    /// Of how many.
    pub count: u64,
}

/// What is looked for among the newest rows.
#[derive(Clone, Debug)]
pub struct FilterRequest {
    /// `None`: nothing matches.
    pub filter: Option<Filter>,
    /// How many rows are looked at.
    pub newest: u32,
}

impl Pages {
    /// Returns the page that `request` names of those of the newest rows that match.
    ///
    /// # Errors
    ///
    /// As [`Pages::page`], and [`super::PagesErrorKind::Incomplete`] where the rows cannot be had in time.
    pub async fn filtered(
        self: &Arc<Self>,
        request: &ClientRequest,
        wanted: FilterRequest,
    ) -> Result<(Served, Scope), PagesError> {
        let newest = self.newest(request, wanted.newest).await;
        let newest = newest.inspect_err(|error| self.note_lookup(error.status, request))?;
        let (served, scope) = self.filter(request, wanted, newest).await;
        self.note_served(&served, request);
        Ok((served, scope))
    }

    async fn filter(
        self: &Arc<Self>,
        request: &ClientRequest,
        wanted: FilterRequest,
        newest: Newest,
    ) -> (Served, Scope) {
        let (pages, query, now) = (self.clone(), request.query, Instant::now());
        let collection = request.list.collection();
        let bytes = newest.parts.iter().map(|part| part.page.content.length());
        by_size(bytes.sum(), move || {
            let matches = matches(&newest, wanted.filter.as_ref());
            let page = page(&newest, &matches, query, collection.success);
            let parts: Vec<_> = newest.parts.iter().map(|part| part.page.clone()).collect();
            let page = pages
                .store
                .derived(query, page, &parts, now)
                .expect("there is a range at least");
            let served = Served {
                status: newest.status(now),
                page: page.into(),
                at: now,
                calls: newest.calls,
            };
            (served, newest.scope())
        })
        .await
    }
}

/// The rows that match: the part of each, and its place there.
fn matches(newest: &Newest, filter: Option<&Filter>) -> Vec<(usize, usize)> {
    let Some(filter) = filter else {
        return Vec::new();
    };
    let is_match = |row: &RowFacts<'_>| {
        filter.matches(|member| match member {
            FilterMember::Status => row.status,
            FilterMember::Assignee => row.assignee,
            FilterMember::RunId => row.run_id,
        })
    };
    let parts = newest.rows_looked_at().enumerate();
    let of_part = |(part, (rows, served)): (usize, (usize, &Served))| {
        let table = served.page.content.table().iter().take(rows).enumerate();
        let matching = table.filter(|(_, row)| is_match(row));
        let places: Vec<_> = matching.map(|(place, _)| (part, place)).collect();
        places
    };
    parts.flat_map(of_part).collect()
}

/// The page of `query` of `matches`, in the upstream's envelope. Touches the bytes of its own rows alone.
fn page(newest: &Newest, matches: &[(usize, usize)], query: PageQuery, success: &str) -> ListPage {
    let count = matches.len();
    let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(count);
    let Range { start, end } = query.span();
    let head = format!(r#"{{"count":{count},"status_code":200,"message":"{success}","data":["#);
    let mut body = BytesMut::from(head.as_bytes());
    let mut rows = Vec::new();
    let mut source: Option<(usize, ListPage)> = None;
    for &(part, row) in &matches[place(start)..place(end)] {
        let page = match source.take() {
            Some((known, page)) if known == part => page,
            Some(_) | None => newest.parts[part].page.content.page(),
        };
        if !rows.is_empty() {
            body.put_u8(b',');
        }
        let span = page.rows[row].span.clone();
        let start = body.len();
        body.extend_from_slice(&page.body[span.start as usize..span.end as usize]);
        rows.push(Row {
            span: offset(start)..offset(body.len()),
        });
        source = Some((part, page));
    }
    body.extend_from_slice(b"]}");
    ListPage {
        gzip: None,
        body: Bytes::from(body),
        count: count as u64,
        rows: rows.into(),
    }
}

/// Bodies of 4 GiB come of no bounded cache.
fn offset(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}
