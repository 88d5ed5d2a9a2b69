//! The log as JSON: an object a line.
//!
//! Of our own: tracing-subscriber's formatter passes each piece of a line through four writers, the last of which reads it as UTF-8 again.
//! That was half of what a hit costs.

use std::{
    cell::{Cell, RefCell},
    fmt::{self, Write as _},
    time::{SystemTime, UNIX_EPOCH},
};

use compact_str::CompactString;
use humantime::format_rfc3339_seconds;
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
};
use tracing_log::NormalizeEvent;
use tracing_subscriber::{
    field::RecordFields,
    fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields, format::Writer},
    registry::LookupSpan,
};

/// Most lines are no longer; what longer ones took is given back.
const USUAL_LENGTH: usize = 4096;

/// Our own spans, whose fields each event within them has too. A library's may hold anything.
const OUR_SPANS: &str = "unpod_gateway";

/// Writes the fields of an event beside its time, level and target, and those of our own spans around it.
#[derive(Debug)]
pub(super) struct JsonLines;

/// Writes the fields of a span once, as [`JsonLines`] adds them to each event.
#[derive(Debug)]
pub(super) struct JsonFields;

impl<'writer> FormatFields<'writer> for JsonFields {
    fn format_fields<R: RecordFields>(
        &self,
        mut writer: Writer<'writer>,
        fields: R,
    ) -> fmt::Result {
        let mut members = Line(String::new());
        fields.record(&mut members);
        writer.write_str(&members.0)
    }
}

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        // What came by the `log` crate says where it is from in its fields.
        let of_log = event.normalized_metadata();
        let metadata = of_log.as_ref().unwrap_or_else(|| event.metadata());
        line(
            metadata,
            |line| {
                event.record(line);
                for span in context.event_scope().into_iter().flatten() {
                    if span.metadata().target().starts_with(OUR_SPANS)
                        && let Some(fields) = span.extensions().get::<FormattedFields<N>>()
                    {
                        line.0.push_str(fields);
                    }
                }
            },
            |line| writer.write_str(line),
        )
    }
}

thread_local! {
    /// The line that was written last, whose memory the next one is written into.
    static LAST: Cell<String> = const { Cell::new(String::new()) };
    /// The last second that was written.
    static SECOND: RefCell<Second> = const { RefCell::new(Second::NONE) };
}

/// Has `members` write what a line of `metadata` holds beside time, level and target, and `take` take it.
pub(super) fn line<R>(
    metadata: &Metadata<'_>,
    members: impl FnOnce(&mut Line),
    take: impl FnOnce(&str) -> R,
) -> R {
    // Taken out meanwhile: what is logged may itself log while it is written.
    let mut line = Line(LAST.take());
    line.0.clear();
    line.0.push_str("{\"timestamp\":");
    line.time(SystemTime::now());
    line.name("level");
    line.quoted(metadata.level().as_str());
    members(&mut line);
    line.name("target");
    line.string(metadata.target());
    line.0.push_str("}\n");
    let taken = take(&line.0);
    if line.0.capacity() <= USUAL_LENGTH {
        LAST.set(line.0);
    }
    taken
}

/// A second as RFC 3339 writes it, but for the letter of its zone.
struct Second {
    unix: Option<u64>,
    text: CompactString,
}

impl Second {
    const NONE: Self = Self {
        unix: None,
        text: CompactString::const_new(""),
    };

    fn of(time: SystemTime, unix: u64) -> Self {
        let mut text = CompactString::default();
        // It fails from the year 10000 on.
        let _ = write!(text, "{}", format_rfc3339_seconds(time));
        text.pop();
        Self {
            unix: Some(unix),
            text,
        }
    }
}

/// The members of an object that has one already.
pub(super) struct Line(String);

impl Line {
    /// Begins a member. Names stand in code: none holds what would have to be escaped.
    fn name(&mut self, name: &'static str) {
        debug_assert!(!has_special(name.as_bytes()), "{name}");
        self.0.push_str(",\"");
        self.0.push_str(name);
        self.0.push_str("\":");
    }

    /// Begins the member that `member`, a comma, a quoted name and a colon, begins.
    pub(super) fn begin(&mut self, member: &'static str) {
        self.0.push_str(member);
    }

    pub(super) fn string(&mut self, value: &str) {
        self.0.push('"');
        Escaped(&mut self.0).push(value);
        self.0.push('"');
    }

    /// A string that holds nothing that would have to be escaped.
    pub(super) fn quoted(&mut self, value: &str) {
        debug_assert!(!has_special(value.as_bytes()), "{value}");
        self.0.push('"');
        self.0.push_str(value);
        self.0.push('"');
    }

    pub(super) fn number(&mut self, value: impl itoa::Integer) {
        self.0.push_str(itoa::Buffer::new().format(value));
    }

    /// In microseconds. What stays the same for a second is written once in it: it was half of what a line of the access log cost.
    fn time(&mut self, now: SystemTime) {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.0.push('"');
        SECOND.with_borrow_mut(|second| {
            if second.unix != Some(since.as_secs()) {
                *second = Second::of(now, since.as_secs());
            }
            self.0.push_str(&second.text);
        });
        self.0.push('.');
        let mut digits = itoa::Buffer::new();
        let (_, micros) = digits.format(1_000_000 + since.subsec_micros()).split_at(1);
        self.0.push_str(micros);
        self.0.push_str("Z\"");
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.name(field.name());
        self.string(value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.name(field.name());
        self.number(value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.name(field.name());
        self.number(value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.name(field.name());
        self.0.push_str(if value { "true" } else { "false" });
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.name(field.name());
        // JSON has no word for what is no number.
        match serde_json::Number::from_f64(value) {
            Some(number) => {
                let _ = write!(self.0, "{number}");
            }
            None => self.0.push_str("null"),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.name(field.name());
        self.0.push('"');
        // Writing to a String cannot fail; a value that fails by itself is as long as it got.
        let _ = write!(Escaped(&mut self.0), "{value:?}");
        self.0.push('"');
    }
}

/// Writes the inside of a JSON string (RFC 8259 section 7).
struct Escaped<'a>(&'a mut String);

impl Escaped<'_> {
    fn push(&mut self, mut text: &str) {
        while has_special(text.as_bytes())
            && let Some(place) = text.bytes().position(is_special)
        {
            let (plain, rest) = text.split_at(place);
            self.0.push_str(plain);
            self.escape(rest.as_bytes()[0]);
            text = &rest[1..];
        }
        self.0.push_str(text);
    }

    fn escape(&mut self, byte: u8) {
        match byte {
            b'"' => self.0.push_str("\\\""),
            b'\\' => self.0.push_str("\\\\"),
            b'\n' => self.0.push_str("\\n"),
            b'\r' => self.0.push_str("\\r"),
            b'\t' => self.0.push_str("\\t"),
            other => {
                let _ = write!(self.0, "\\u{other:04x}");
            }
        }
    }
}

fn is_special(byte: u8) -> bool {
    byte < b' ' || byte == b'"' || byte == b'\\'
}

/// Eight bytes at a time: most texts are short and hold none, and looking byte by byte was a tenth of a hit.
fn has_special(text: &[u8]) -> bool {
    let (words, rest) = text.as_chunks();
    let mut last = [b' '; 8];
    last[..rest.len()].copy_from_slice(rest);
    for word in words {
        if is_any_special(u64::from_ne_bytes(*word)) {
            return true;
        }
    }
    is_any_special(u64::from_ne_bytes(last))
}

/// Whether one of the eight bytes is special, by what borrows from the next one as it is subtracted from.
fn is_any_special(word: u64) -> bool {
    const EACH: u64 = u64::from_ne_bytes([1; 8]);
    let below = |word: u64, bound: u8| word.wrapping_sub(EACH * u64::from(bound)) & !word;
    let is = |byte: u8| below(word ^ (EACH * u64::from(byte)), 1);
    (below(word, b' ') | is(b'"') | is(b'\\')) & EACH << 7 != 0
}

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text);
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{
        io::Write,
        sync::{Arc, Mutex},
    };

    use proptest::prelude::*;
    use serde_json::Value;
    use tracing::{error_span, info, subscriber::with_default, warn};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// The lines that `events` log.
    pub(in crate::telemetry) fn logged(events: impl FnOnce()) -> String {
        let sink = Sink::default();
        let written = sink.clone();
        let layer = tracing_subscriber::fmt::layer()
            .event_format(JsonLines)
            .fmt_fields(JsonFields)
            .with_writer(move || sink.clone());
        with_default(tracing_subscriber::registry().with(layer), events);
        let lines = written.0.lock().unwrap().clone();
        String::from_utf8(lines).unwrap()
    }

    #[test]
    fn a_line_holds_the_fields_in_their_order_and_types() {
        let nothing: Option<u64> = None;
        let lines = logged(|| {
            info!(
                a.text = "x",
                b = -5,
                c = 18_446_744_073_709_551_615_u64,
                d = true,
                e = 0.5,
                f = f64::NAN,
                g = ?Some("y"),
                h = %'z',
                nothing,
                "said"
            );
        });
        let (time, rest) = lines.split_once("\",\"level\"").unwrap();
        let time = time.strip_prefix("{\"timestamp\":\"").unwrap();
        assert!(humantime::parse_rfc3339(time).is_ok(), "{time}");
        assert_eq!(
            rest,
            ":\"INFO\",\"message\":\"said\",\"a.text\":\"x\",\"b\":-5,\"c\":18446744073709551615,\"d\":true,\"e\":0.5,\
             \"f\":null,\"g\":\"Some(\\\"y\\\")\",\"h\":\"z\",\"target\":\"unpod_gateway::telemetry::json::tests\"}\n"
        );
    }

    #[test]
    fn an_event_has_the_fields_of_our_spans_around_it_and_of_no_library() {
        let lines = logged(|| {
            let _ours = error_span!("fill", request.id = "a\"b", page = 3_u32).entered();
            let _theirs = error_span!(target: "h2", "codec", secret = "x").entered();
            info!(own = 1, "within");
            drop((_theirs, _ours));
            info!("without");
        });
        let lines: Vec<Value> = lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines[0]["request.id"], "a\"b");
        assert_eq!(
            (&lines[0]["page"], &lines[0]["own"]),
            (&3.into(), &1.into())
        );
        assert_eq!(lines[0].get("secret"), None);
        assert_eq!(lines[1].get("request.id"), None);
    }

    proptest! {
        #[test]
        fn whatever_is_logged_is_one_line_of_json_and_reads_as_it_was(text in any::<String>()) {
            let lines = logged(|| warn!(text = text.as_str(), shown = %text, "said"));
            prop_assert_eq!(lines.matches('\n').count(), 1);
            let line: Value = serde_json::from_str(&lines).unwrap();
            prop_assert_eq!(line["text"].as_str(), Some(text.as_str()));
            prop_assert_eq!(line["shown"].as_str(), Some(text.as_str()));
            prop_assert_eq!(line["level"].as_str(), Some("WARN"));
        }
    }
}
