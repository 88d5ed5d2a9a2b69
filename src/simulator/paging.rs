//! How the upstream reads its query string: leniently, and with members it does not document.

/// A number as the upstream's Python reads it, which has no upper bound.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Number {
    Fits(i64),
    TooLarge,
}

/// The parameters of a tasks request that change its answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct TaskQuery {
    pub(super) page: Number,
    pub(super) size: Number,
    /// Undocumented: replaces the space whose access was checked.
    pub(super) space_id: Option<String>,
    pub(super) status: Option<String>,
    pub(super) search: Option<String>,
}

impl TaskQuery {
    pub(super) fn page(page: u64, size: u64) -> Self {
        let number = |value: u64| i64::try_from(value).map_or(Number::TooLarge, Number::Fits);
        Self {
            page: number(page),
            size: number(size),
            ..Self::default()
        }
    }

    /// Reads a raw query string; the last duplicate of a name wins, and what is no number counts as absent.
    pub(super) fn parse(raw: &str) -> Self {
        let mut query = Self::default();
        for pair in raw.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            query.set(&decode(name), decode(value));
        }
        query
    }

    fn set(&mut self, name: &str, value: String) {
        let default = Self::default();
        match name {
            "page" => self.page = number(&value).unwrap_or(default.page),
            "page_size" => self.size = number(&value).unwrap_or(default.size),
            "space_id" => self.space_id = filled(value),
            "status" => self.status = filled(value),
            "search" => self.search = filled(value),
            _ => {}
        }
    }
}

impl Default for TaskQuery {
    fn default() -> Self {
        Self {
            page: Number::Fits(1),
            // The docs say 20, the code does 50.
            size: Number::Fits(50),
            space_id: None,
            status: None,
            search: None,
        }
    }
}

fn filled(value: String) -> Option<String> {
    (!value.is_empty()).then_some(value)
}

/// Undoes `application/x-www-form-urlencoded`; a broken escape stands for itself.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = (bytes[at] == b'%')
            .then(|| escaped(&bytes[at + 1..]))
            .flatten();
        decoded.push(match (escape, bytes[at]) {
            (Some(byte), _) => byte,
            (None, b'+') => b' ',
            (None, byte) => byte,
        });
        at += if escape.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn escaped(rest: &[u8]) -> Option<u8> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let (high, low) = (digit(rest.first()?)?, digit(rest.get(1)?)?);
    u8::try_from(high * 16 + low).ok()
}

/// Reads what Python's `int()` accepts: outer spaces, a sign, single underscores, digits of other scripts.
fn number(text: &str) -> Option<Number> {
    let text = text.trim();
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let mut value = 0i128;
    for group in digits.split('_') {
        if group.is_empty() {
            return None;
        }
        for digit in group.chars() {
            value = value.saturating_mul(10).saturating_add(digit_value(digit)?);
        }
    }
    let value = if negative { -value } else { value };
    Some(i64::try_from(value).map_or(Number::TooLarge, Number::Fits))
}

fn digit_value(digit: char) -> Option<i128> {
    // The zeros of ASCII, Arabic-Indic, Persian, Devanagari and full-width digits.
    let zeros = ['0', '\u{660}', '\u{6f0}', '\u{966}', '\u{ff10}'];
    zeros
        .iter()
        .filter_map(|zero| u32::from(digit).checked_sub(u32::from(*zero)))
        .find(|value| *value < 10)
        .map(i128::from)
}

#[cfg(test)]
mod tests {
    use super::{Number, TaskQuery};

    #[test]
    fn every_spelling_of_two_is_two() {
        for two in [
            "2", "+2+", "%202%20", "%2B2", "002", "0_2", "%D9%A2", "9&page=2",
        ] {
            let query = TaskQuery::parse(&format!("page={two}"));
            assert_eq!(query, TaskQuery::page(2, 50), "{two}");
        }
    }

    #[test]
    fn numbers_have_no_bound_and_may_be_negative() {
        let size = |text: &str| TaskQuery::parse(&format!("page_size={text}")).size;
        assert_eq!(size("-5"), Number::Fits(-5));
        assert_eq!(size("9223372036854775807"), Number::Fits(i64::MAX));
        assert_eq!(size("9223372036854775808"), Number::TooLarge);
        assert_eq!(size(&"9".repeat(200)), Number::TooLarge);
    }

    #[test]
    fn what_is_no_number_counts_as_absent() {
        for junk in ["abc", "", "1__2", "_1", "1.0", "%zz"] {
            let query = TaskQuery::parse(&format!("page={junk}&page_size={junk}"));
            assert_eq!(query, TaskQuery::default(), "{junk}");
        }
    }

    #[test]
    fn undocumented_members_are_read() {
        let query = TaskQuery::parse("space_id=8&status=failed&search=Bob+Test");
        assert_eq!(query.space_id.as_deref(), Some("8"));
        assert_eq!(query.status.as_deref(), Some("failed"));
        assert_eq!(query.search.as_deref(), Some("Bob Test"));
    }
}
