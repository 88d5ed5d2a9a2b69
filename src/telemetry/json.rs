//! The log as JSON: an object a line.
//!
//! Of our own: tracing-subscriber's formatter passes each piece of a line through four writers, the last of which reads it as UTF-8 again.
//! That was half of what a hit costs.

use std::{
    fmt::{self, Write as _},
    time::SystemTime,
};

use humantime::format_rfc3339_micros;
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_log::NormalizeEvent;
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

/// Most lines are no longer.
const USUAL_LENGTH: usize = 1024;

/// Writes the fields of an event beside its time, level and target; those of spans are left out.
#[derive(Debug)]
pub(super) struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        // What came by the `log` crate says where it is from in its fields.
        let of_log = event.normalized_metadata();
        let metadata = of_log.as_ref().unwrap_or_else(|| event.metadata());
        let mut line = Line(String::with_capacity(USUAL_LENGTH));
        line.0.push_str("{\"timestamp\":\"");
        write!(line.0, "{}", format_rfc3339_micros(SystemTime::now()))?;
        line.0.push('"');
        line.text("level", metadata.level().as_str());
        event.record(&mut line);
        line.text("target", metadata.target());
        line.0.push_str("}\n");
        writer.write_str(&line.0)
    }
}

/// The members of an object that has one already.
struct Line(String);

impl Line {
    /// Names stand in code: none holds what would have to be escaped.
    fn name(&mut self, name: &'static str) {
        debug_assert!(!has_special(name.as_bytes()), "{name}");
        self.0.push_str(",\"");
        self.0.push_str(name);
        self.0.push_str("\":");
    }

    fn text(&mut self, name: &'static str, value: &str) {
        self.name(name);
        self.0.push('"');
        Escaped(&mut self.0).push(value);
        self.0.push('"');
    }

    fn number(&mut self, name: &'static str, value: impl itoa::Integer) {
        self.name(name);
        self.0.push_str(itoa::Buffer::new().format(value));
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field.name(), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.number(field.name(), value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.number(field.name(), value);
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
mod tests {
    use std::{
        io::Write,
        sync::{Arc, Mutex},
    };

    use proptest::prelude::*;
    use serde_json::Value;
    use tracing::{info, subscriber::with_default, warn};
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
    fn logged(events: impl FnOnce()) -> String {
        let sink = Sink::default();
        let written = sink.clone();
        let layer = tracing_subscriber::fmt::layer()
            .event_format(JsonLines)
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
