//! W3C Trace Context, level 1: the `traceparent` header, in and out. `tracestate` is the caller's and is not passed on. Of our own: the SDK's
//! propagator accepts malformed ones (an id of another length, `+1` as flags, a trailing hyphen) and the first of two.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Version, trace, parent and flags with their hyphens.
const LENGTH: usize = 55;
/// The version that must not be.
const INVALID_VERSION: u8 = 0xff;

/// The caller's span, if there is exactly one `traceparent` and it is well formed.
#[must_use]
pub fn read(headers: &HeaderMap) -> Option<SpanContext> {
    let mut values = headers.get_all(TRACEPARENT).into_iter();
    let first = values.next()?;
    if values.next().is_some() {
        return None;
    }
    parse(first.as_bytes())
}

/// A later version may go on after what this one knows, and only with another hyphen.
fn parse(text: &[u8]) -> Option<SpanContext> {
    let (known, rest) = text.split_at_checked(LENGTH)?;
    let parts: Vec<&[u8]> = known.split(|byte| *byte == b'-').collect();
    let [version, trace, parent, flags] = parts[..] else {
        return None;
    };
    let version = u8::try_from(hex(version, 2)?).ok()?;
    if version == INVALID_VERSION || !rest.is_empty() && (version == 0 || rest[0] != b'-') {
        return None;
    }
    let trace = TraceId::from(hex(trace, 32)?);
    let parent = SpanId::from(u64::try_from(hex(parent, 16)?).ok()?);
    let flags = TraceFlags::new(u8::try_from(hex(flags, 2)?).ok()?) & TraceFlags::SAMPLED;
    let context = SpanContext::new(trace, parent, flags, true, TraceState::NONE);
    context.is_valid().then_some(context)
}

/// Exactly `digits` hex digits, none of them in upper case.
fn hex(text: &[u8], digits: usize) -> Option<u128> {
    if text.len() != digits {
        return None;
    }
    text.iter().try_fold(0, |value: u128, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u128::from(digit))
    })
}

/// The field that makes `context` the parent.
pub(super) fn write(context: &SpanContext) -> HeaderValue {
    let text = format!(
        "00-{}-{}-{:02x}",
        context.trace_id(),
        context.span_id(),
        context.trace_flags() & TraceFlags::SAMPLED
    );
    HeaderValue::try_from(text).expect("hex digits and hyphens are visible ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const PARENT: &str = "00f067aa0ba902b7";

    fn written(text: &str) -> Option<String> {
        let context = parse(text.as_bytes())?;
        Some(write(&context).to_str().unwrap().to_owned())
    }

    #[test]
    fn what_is_well_formed_comes_out_as_version_0() {
        for (version, rest, flags) in [
            ("00", "01", "01"),
            ("00", "00", "00"),
            // Flags that this version does not know are not passed on.
            ("00", "03", "01"),
            ("00", "02", "00"),
            ("cc", "01", "01"),
            ("cc", "01-what-comes-later", "01"),
        ] {
            let given = format!("{version}-{TRACE}-{PARENT}-{rest}");
            let expected = format!("00-{TRACE}-{PARENT}-{flags}");
            assert_eq!(written(&given), Some(expected), "{given}");
        }
    }

    #[test]
    fn what_is_malformed_is_none() {
        let zeros = "0".repeat(32);
        for bad in [
            String::new(),
            "00".to_owned(),
            format!("ff-{TRACE}-{PARENT}-01"),
            format!("0-{TRACE}-{PARENT}-01"),
            format!("00-{TRACE}-{PARENT}-1"),
            format!("00-{TRACE}-{PARENT}-01-"),
            format!("00-{TRACE}-{PARENT}-01-more"),
            format!("00-{TRACE}-{PARENT}-011"),
            format!("cc-{TRACE}-{PARENT}-01more"),
            format!("00-{zeros}-{PARENT}-01"),
            format!("00-{TRACE}-{}-01", &zeros[..16]),
            format!("00-{}-{PARENT}-01", TRACE.to_uppercase()),
            format!("00-{TRACE}-{PARENT}-0g"),
            format!("00-{TRACE}-{PARENT}-+1"),
            format!("00_{TRACE}_{PARENT}_01"),
            format!("00-{}-{PARENT}0-01", &TRACE[1..]),
            format!(" 00-{TRACE}-{PARENT}-01"),
        ] {
            assert_eq!(written(&bad), None, "{bad}");
        }
    }

    #[test]
    fn two_of_them_are_none() {
        let value = format!("00-{TRACE}-{PARENT}-01");
        let mut headers = HeaderMap::new();
        assert!(read(&headers).is_none());
        headers.append(TRACEPARENT, value.parse().unwrap());
        assert!(read(&headers).is_some());
        headers.append(TRACEPARENT, value.parse().unwrap());
        assert!(read(&headers).is_none());
    }
}
