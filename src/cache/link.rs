//! The pages around a page (RFC 8288).

use std::fmt::Write as _;

use http::HeaderValue;

use crate::domain::PageQuery;

/// Relative links from the page of `query` to the others of a list of `count` tasks. `parameters` stand before those of the page, each with an
/// `&` behind it.
#[must_use]
pub(super) fn link(parameters: &str, query: PageQuery, count: u64) -> HeaderValue {
    let last = query.last_page(count);
    let page = u64::from(query.page);
    let mut text = String::new();
    let targets = [
        ("first", Some(1)),
        // Past the end, the page before is the last there is.
        ("prev", (page > 1).then(|| (page - 1).min(last))),
        ("next", (page < last).then_some(page + 1)),
        ("last", Some(last)),
    ];
    for (relation, target) in targets {
        // Beyond the last page number that a client may ask for.
        let Some(target) = target.filter(|target| *target <= u64::from(PageQuery::MAX_PAGE)) else {
            continue;
        };
        let separator = if text.is_empty() { "" } else { ", " };
        let size = query.page_size;
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "{separator}<?{parameters}page={target}&page_size={size}>; rel=\"{relation}\""
        );
    }
    HeaderValue::try_from(text).expect("our words and digits are visible ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_the_pages_that_there_are() {
        let links = |page, count| {
            let query = PageQuery {
                page,
                page_size: 20,
            };
            let links = link("", query, count);
            let links = links.to_str().unwrap();
            links
                .replace("<?page=", "")
                .replace("&page_size=20>; rel=", " ")
                .replace('"', "")
        };
        assert_eq!(links(1, 57), "1 first, 2 next, 3 last");
        assert_eq!(links(2, 57), "1 first, 1 prev, 3 next, 3 last");
        assert_eq!(links(3, 57), "1 first, 2 prev, 3 last");
        assert_eq!(links(9, 57), "1 first, 3 prev, 3 last");
        assert_eq!(links(1, 0), "1 first, 1 last");
        assert_eq!(links(1, u64::MAX), "1 first, 2 next");
    }
}
