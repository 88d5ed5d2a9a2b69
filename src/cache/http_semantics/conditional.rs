//! A caller's conditions, judged against what the gateway would answer (RFC 9110 13.1, RFC 9111 4.3.2).

use http::{
    HeaderMap, HeaderValue,
    header::{ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED},
};

use super::date::parse_http_date;

/// The opaque part of an entity tag. Weak comparison does not ask whether the tag is weak (RFC 9110 8.8.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntityTag<'a>(&'a [u8]);

impl<'a> EntityTag<'a> {
    /// Reads a value that is one entity tag and nothing else.
    pub fn parse(value: &'a [u8]) -> Option<Self> {
        let (tag, rest) = Self::split_from(value)?;
        rest.is_empty().then_some(tag)
    }

    /// Reads the tag that `text` begins with, whatever stands between its quotes, and returns what follows it.
    fn split_from(text: &'a [u8]) -> Option<(Self, &'a [u8])> {
        // RFC 9110 8.8.3: "W/" is case-sensitive.
        let quoted = text
            .strip_prefix(b"W/")
            .unwrap_or(text)
            .strip_prefix(b"\"")?;
        let end = quoted.iter().position(|&byte| byte == b'"')?;
        Some((Self(&quoted[..end]), &quoted[end + 1..]))
    }
}

/// Tells whether `If-None-Match` names `own_etag`; `None` if the request has no such field.
///
/// Members that are no entity tags are passed over, but a field of only such members is still there.
pub fn if_none_match_matches(headers: &HeaderMap, own_etag: &str) -> Option<bool> {
    let lines = headers.get_all(IF_NONE_MATCH);
    lines.iter().next()?;
    let own_tag = EntityTag::parse(own_etag.as_bytes());
    let names_own = |line: &[u8]| tags(line).any(|tag| Some(tag) == own_tag);
    Some(
        lines
            .iter()
            .map(HeaderValue::as_bytes)
            .any(|line| line.trim_ascii() == b"*" || names_own(line)),
    )
}

/// Tells whether the answer to a GET is 304.
///
/// Without a `Last-Modified` that is a date, `If-Modified-Since` is no condition. The clock is read only for one.
pub fn not_modified(
    request: &HeaderMap,
    etag: &str,
    last_modified_unix: Option<i64>,
    now_unix: impl FnOnce() -> i64,
) -> bool {
    // RFC 9110 13.1.3: If-Modified-Since is ignored where there is an If-None-Match.
    if_none_match_matches(request, etag)
        .unwrap_or_else(|| unmodified_since(request, last_modified_unix, now_unix).unwrap_or(false))
}

fn unmodified_since(
    request: &HeaderMap,
    last_modified_unix: Option<i64>,
    now_unix: impl FnOnce() -> i64,
) -> Option<bool> {
    let mut lines = request.get_all(IF_MODIFIED_SINCE).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else {
        return None;
    };
    let since = parse_http_date(line.as_bytes().trim_ascii(), now_unix())?;
    Some(last_modified_unix? <= since)
}

/// Tells whether a 304 with the fields of `answer` speaks of the page that was stored with those of `stored` (RFC 9111 4.3.4).
///
/// One that names another entity tag, or another `Last-Modified` where it names no tag, speaks of a page that is not stored. Tags are
/// compared weakly, as the upstream did with `If-None-Match`: a server that codes its pages calls a 200 `W/"v1"`, and its 304 `"v1"`.
pub fn is_of_stored(stored: &HeaderMap, answer: &HeaderMap, now_unix: i64) -> bool {
    match (stored.get(ETAG), answer.get(ETAG)) {
        (Some(ours), Some(theirs)) => is_same_tag(ours.as_bytes(), theirs.as_bytes()),
        // A tag for what had none: of a page that came later.
        (None, Some(_)) => false,
        (_, None) => match (stored.get(LAST_MODIFIED), answer.get(LAST_MODIFIED)) {
            (Some(ours), Some(theirs)) => is_same_date(ours, theirs, now_unix),
            (_, None) | (None, Some(_)) => true,
        },
    }
}

fn is_same_tag(ours: &[u8], theirs: &[u8]) -> bool {
    let (ours, theirs) = (ours.trim_ascii(), theirs.trim_ascii());
    ours == theirs
        || EntityTag::parse(ours).is_some_and(|tag| Some(tag) == EntityTag::parse(theirs))
}

/// One that is no date dates nothing.
fn is_same_date(ours: &HeaderValue, theirs: &HeaderValue, now_unix: i64) -> bool {
    let unix = |date: &HeaderValue| parse_http_date(date.as_bytes().trim_ascii(), now_unix);
    match (unix(ours), unix(theirs)) {
        (Some(ours), Some(theirs)) => ours == theirs,
        _ => true,
    }
}

/// Returns the entity tags of one line. It is no plain comma list: a tag may hold commas.
fn tags(line: &[u8]) -> impl Iterator<Item = EntityTag<'_>> {
    let mut rest = line;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let Some((tag, after)) = EntityTag::split_from(rest.trim_ascii_start()) else {
                (_, rest) = split_at_comma(rest);
                continue;
            };
            let (trailing, next) = split_at_comma(after);
            rest = next;
            if trailing.trim_ascii().is_empty() {
                return Some(tag);
            }
        }
        None
    })
}

fn split_at_comma(text: &[u8]) -> (&[u8], &[u8]) {
    match text.iter().position(|&byte| byte == b',') {
        Some(comma) => (&text[..comma], &text[comma + 1..]),
        None => (text, &[]),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::tests::{Lines, NOW, any_lines, fields},
        *,
    };

    const OWN: &str = "W/\"a,b\"";
    const NEW_YEAR: &str = "Thu, 01 Jan 2026 00:00:00 GMT";

    // RFC 9110 8.8.3 and 13.1.2.
    #[test]
    fn if_none_match_is_a_list_of_tags() {
        let table: &[(&[&str], Option<bool>)] = &[
            (&[], None),
            (&[""], Some(false)),
            (&["*"], Some(true)),
            (&[" * "], Some(true)),
            (&["W/\"a,b\""], Some(true)),
            (&["\"a,b\""], Some(true)),
            (&["\"x\", \"a,b\" ,\"y\""], Some(true)),
            (&["\"x\",W/\"a,b\""], Some(true)),
            (&["\"x\"", "\"a,b\""], Some(true)),
            (&[",, \"a,b\""], Some(true)),
            (&["junk, \"a,b\""], Some(true)),
            (&["\"x\"junk, \"a,b\""], Some(true)),
            (&["\"a\", \"b\""], Some(false)),
            (&["\"A,B\""], Some(false)),
            (&["a,b"], Some(false)),
            (&["\"a,b"], Some(false)),
            (&["w/\"a,b\""], Some(false)),
            (&["W\"a,b\""], Some(false)),
            (&["\"a,b\"junk"], Some(false)),
            (&["\"*\""], Some(false)),
        ];
        for (lines, expected) in table {
            let lines: Vec<_> = lines.iter().map(|line| ("if-none-match", *line)).collect();
            assert_eq!(
                if_none_match_matches(&fields(&lines), OWN),
                *expected,
                "{lines:?}"
            );
        }
    }

    // RFC 9110 13.1.3 and 13.2.2.
    #[test]
    fn if_modified_since_counts_alone_and_once() {
        let since = |date| ("if-modified-since", date);
        let table: &[(&Lines, bool)] = &[
            (&[], false),
            (&[since(NEW_YEAR)], true),
            (&[since("Thursday, 01-Jan-26 00:00:00 GMT")], true),
            (&[since("Thu Jan  1 00:00:00 2026")], true),
            (&[since("Fri, 02 Jan 2026 00:00:00 GMT")], true),
            (&[since("Wed, 31 Dec 2025 23:59:59 GMT")], false),
            (&[since("2026-01-01")], false),
            (&[since(NEW_YEAR), since(NEW_YEAR)], false),
            (&[("if-none-match", "\"x\""), since(NEW_YEAR)], false),
            (&[("if-none-match", "junk"), since(NEW_YEAR)], false),
            (
                &[
                    ("if-none-match", OWN),
                    since("Wed, 31 Dec 2025 23:59:59 GMT"),
                ],
                true,
            ),
        ];
        for (lines, expected) in table {
            assert_eq!(
                not_modified(&fields(lines), OWN, Some(NOW), || NOW),
                *expected,
                "{lines:?}"
            );
        }
        assert!(!not_modified(
            &fields(&[since(NEW_YEAR)]),
            OWN,
            None,
            || NOW
        ));
    }

    // RFC 9111 4.3.4.
    #[test]
    fn a_304_speaks_of_the_stored_page_unless_it_names_another() {
        let tag = |tag| ("etag", tag);
        let modified = |date| ("last-modified", date);
        const EVE: &str = "Wed, 31 Dec 2025 00:00:00 GMT";
        let table: &[(&Lines, &Lines, bool)] = &[
            (&[tag("\"a\"")], &[tag("\"a\"")], true),
            (&[tag("\"a\"")], &[tag("\"b\"")], false),
            (&[tag("\"a\"")], &[tag("\"A\"")], false),
            (&[tag("\"a\"")], &[tag("\"\"")], false),
            (&[tag("\"a\"")], &[tag("W/\"b\"")], false),
            (&[tag("W/\"a\"")], &[tag("W/\"b\"")], false),
            (&[tag("W/\"a\"")], &[tag("\"b\"")], false),
            (&[tag("W/\"a\"")], &[tag("W/\"a\"")], true),
            (&[tag("W/\"a\"")], &[tag("\"a\"")], true),
            (&[tag("\"a\"")], &[tag("W/\"a\"")], true),
            // Not quoted: no tag, but the same words are the same.
            (&[tag("a")], &[tag("a")], true),
            (&[tag("a")], &[tag("b")], false),
            (&[tag("\"a\"")], &[tag("a")], false),
            // Nothing said is nothing changed.
            (&[tag("\"a\"")], &[], true),
            (&[modified(NEW_YEAR)], &[], true),
            (&[], &[], true),
            (&[modified(NEW_YEAR)], &[modified(NEW_YEAR)], true),
            (
                &[modified(NEW_YEAR)],
                &[modified("Thursday, 01-Jan-26 00:00:00 GMT")],
                true,
            ),
            (&[modified(NEW_YEAR)], &[modified(EVE)], false),
            (&[modified(EVE)], &[modified(NEW_YEAR)], false),
            (&[modified(NEW_YEAR)], &[modified("yesterday")], true),
            (&[tag("\"a\"")], &[modified(NEW_YEAR)], true),
            (&[tag("\"a\""), modified(NEW_YEAR)], &[modified(EVE)], false),
            // A tag decides over a date.
            (
                &[tag("\"a\""), modified(NEW_YEAR)],
                &[tag("\"a\""), modified(EVE)],
                true,
            ),
            (
                &[tag("\"a\""), modified(NEW_YEAR)],
                &[tag("\"b\""), modified(NEW_YEAR)],
                false,
            ),
            (
                &[modified(NEW_YEAR)],
                &[tag("\"b\""), modified(NEW_YEAR)],
                false,
            ),
        ];
        for (stored, answer, expected) in table {
            let is_of_stored = is_of_stored(&fields(stored), &fields(answer), NOW);
            assert_eq!(is_of_stored, *expected, "{stored:?} {answer:?}");
        }
    }

    proptest! {
        #[test]
        fn no_condition_panics(tags in any_lines(&IF_NONE_MATCH), since in any_lines(&IF_MODIFIED_SINCE)) {
            not_modified(&tags, OWN, Some(NOW), || NOW);
            not_modified(&since, OWN, Some(NOW), || NOW);
        }

        #[test]
        fn a_tag_is_found_wherever_it_stands(
            others in prop::collection::vec("(W/)?\"[a-z,]{0,5}\"|[a-z]{1,4}", 0..5),
            place in any::<prop::sample::Index>(),
            separator in prop::sample::select(&[",", ", ", " ,\t", ",, ,"][..]),
        ) {
            let mut members = others;
            members.insert(place.index(members.len() + 1), OWN.to_owned());
            let one_line = fields(&[("if-none-match", &members.join(separator))]);
            let lines: Vec<_> = members.iter().map(|member| ("if-none-match", member.as_str())).collect();
            prop_assert_eq!(if_none_match_matches(&one_line, OWN), Some(true));
            prop_assert_eq!(if_none_match_matches(&fields(&lines), OWN), Some(true));
        }
    }
}
