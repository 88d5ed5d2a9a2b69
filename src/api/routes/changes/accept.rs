//! Whether a client wants a stream or one answer, by `Accept` (RFC 9110 section 12.5.1).

use http::{HeaderMap, header};

/// How changes are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    EventStream,
}

/// How well a media range names a type: `*/*`, `type/*`, the type itself.
type Specificity = u8;

/// The format that the client likes better; JSON where it likes neither, or both alike.
pub(super) fn format(headers: &HeaderMap) -> Format {
    let stream = preference(headers, "text", "event-stream");
    let json = preference(headers, "application", "json");
    match stream {
        Some(stream) if stream.0 > 0 && Some(stream) > json => Format::EventStream,
        Some(_) | None => Format::Json,
    }
}

/// The weight of a media type in thousandths, and how well the range names it that gives the weight.
fn preference(headers: &HeaderMap, kind: &str, subtype: &str) -> Option<(u16, Specificity)> {
    let lines = headers.get_all(header::ACCEPT).into_iter();
    let lines = lines.filter_map(|line| line.to_str().ok());
    let ranges = lines.flat_map(|line| line.split(','));
    let named = ranges.filter_map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let (range_kind, range_subtype) = parts.next()?.split_once('/')?;
        let specificity = match (range_kind, range_subtype) {
            ("*", "*") => 0,
            (name, "*") if name.eq_ignore_ascii_case(kind) => 1,
            (name, sub) if name.eq_ignore_ascii_case(kind) && sub.eq_ignore_ascii_case(subtype) => {
                2
            }
            _ => return None,
        };
        Some((weight(parts)?, specificity))
    });
    named.max_by_key(|(_, specificity)| *specificity)
}

/// The `q` among the parameters of a range; `None` where it cannot be read.
fn weight<'a>(mut parameters: impl Iterator<Item = &'a str>) -> Option<u16> {
    let weight = parameters.find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim()
            .eq_ignore_ascii_case("q")
            .then_some(value.trim())
    });
    let Some(weight) = weight else {
        return Some(1000);
    };
    let weight: f32 = weight.parse().ok()?;
    (0.0..=1.0)
        .contains(&weight)
        .then_some((weight * 1000.0) as u16)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_stream_is_for_who_likes_it_better() {
        for (accept, stream) in [
            ("", false),
            ("text/event-stream", true),
            ("Text/Event-Stream", true),
            ("text/event-stream; charset=utf-8", true),
            ("text/event-stream, application/json;q=0.9", true),
            ("application/json;q=0.9, text/event-stream", true),
            ("text/event-stream;q=0.5, application/json", false),
            ("text/event-stream, application/json", false),
            ("text/event-stream, */*", true),
            ("text/event-stream;q=0.4, */*;q=0.5", false),
            ("text/*", true),
            ("*/*", false),
            ("application/json", false),
            ("text/event-stream;q=0", false),
            ("text/event-stream;q=0, application/json;q=0", false),
            ("text/event-stream;q=2", false),
            ("text/html", false),
            ("nonsense", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            let expected = if stream {
                Format::EventStream
            } else {
                Format::Json
            };
            assert_eq!(format(&headers), expected, "{accept}");
        }
    }
}
