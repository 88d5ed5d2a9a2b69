//! The samples of Prometheus's text form, for those who would rather have them as JSON.

use std::{borrow::Cow, collections::BTreeMap};

use serde::Serialize;

/// One value and what it belongs to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sample<'a> {
    pub labels: BTreeMap<&'a str, Cow<'a, str>>,
    pub value: f64,
}

/// Every sample of `text`, by the name it stands under there. What is no sample is passed over.
#[must_use]
pub fn samples(text: &str) -> BTreeMap<&str, Vec<Sample<'_>>> {
    let mut by_name: BTreeMap<&str, Vec<Sample<'_>>> = BTreeMap::new();
    for (name, sample) in text.lines().filter_map(sample) {
        by_name.entry(name).or_default().push(sample);
    }
    by_name
}

fn sample(line: &str) -> Option<(&str, Sample<'_>)> {
    if line.starts_with('#') {
        return None;
    }
    let (name, mut rest) = line.split_at(line.find(['{', ' '])?);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, quoted) = rest.split_once("=\"")?;
            let (value, after) = quoted.split_at(end_of_value(quoted)?);
            labels.insert(label, unescaped(value));
            rest = after[1..].trim_start_matches(',');
        }
        rest = &rest[1..];
    }
    let value = rest.trim().parse().ok()?;
    Some((name, Sample { labels, value }))
}

/// Where the quote is that ends a label's value.
fn end_of_value(quoted: &str) -> Option<usize> {
    let mut escaped = false;
    quoted.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

/// Without the three escapes there are: of the backslash, the quote and the line feed.
fn unescaped(value: &str) -> Cow<'_, str> {
    if !value.contains('\\') {
        return Cow::Borrowed(value);
    }
    let mut characters = value.chars();
    let mut plain = String::with_capacity(value.len());
    while let Some(character) = characters.next() {
        plain.push(match character {
            '\\' => match characters.next() {
                Some('n') => '\n',
                Some(other) => other,
                None => '\\',
            },
            other => other,
        });
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels<'a, const N: usize>(
        pairs: [(&'a str, &'a str); N],
    ) -> BTreeMap<&'a str, Cow<'a, str>> {
        pairs.map(|(name, value)| (name, Cow::from(value))).into()
    }

    #[test]
    fn samples_are_read_with_their_labels() {
        for (line, name, expected, value) in [
            ("a 1", "a", labels([]), 1.0),
            ("a_sum 0.25", "a_sum", labels([]), 0.25),
            ("a -1.0", "a", labels([]), -1.0),
            ("a{x=\"y\"} 2", "a", labels([("x", "y")]), 2.0),
            (
                "a{x=\"\",z=\"}, \"} 3",
                "a",
                labels([("x", ""), ("z", "}, ")]),
                3.0,
            ),
            ("a{le=\"+Inf\"} 4", "a", labels([("le", "+Inf")]), 4.0),
            (
                r#"a{x="1\"2",y="\\",z="\n"} 5"#,
                "a",
                labels([("x", "1\"2"), ("y", "\\"), ("z", "\n")]),
                5.0,
            ),
        ] {
            let sample = Sample {
                labels: expected,
                value,
            };
            assert_eq!(samples(line), [(name, vec![sample])].into(), "{line}");
        }
    }

    #[test]
    fn what_is_no_sample_is_passed_over() {
        for line in [
            "",
            "# HELP a Some.",
            "a",
            "a{",
            "a{x=\"y} 1",
            "a{x} 1",
            "a one",
        ] {
            assert_eq!(samples(line), BTreeMap::new(), "{line}");
        }
    }
}
