//! Words for what is wrong with a value: they hold neither the value nor a type of Rust's.

use figment::error::Kind;

/// How much alike two names are, from 0 to 1, before one is taken for a slip of the other.
const ALIKE: f64 = 0.75;

/// What is wrong. figment's own texts quote the value; these do not.
pub(super) fn describe(kind: &Kind) -> String {
    match kind {
        Kind::MissingField(_) => "required".to_owned(),
        Kind::UnknownField(name, known) => unknown("key", name, known),
        Kind::UnknownVariant(_, known) => format!("expected one of: {}", known.join(", ")),
        Kind::InvalidType(_, expected)
        | Kind::InvalidValue(_, expected)
        | Kind::InvalidLength(_, expected) => format!("expected {}", in_words(expected)),
        // These are the texts of `value`, which say only what is expected.
        Kind::Message(text) => text.clone(),
        _ => "not a valid value".to_owned(),
    }
}

/// That there is no `what` of this `name`, and which of the `known` ones may have been meant.
pub(super) fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    match nearest(name, known) {
        Some(near) => format!("unknown {what}; did you mean `{near}`?"),
        None => format!("unknown {what}; known here: {}", known.join(", ")),
    }
}

fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let name = name.to_ascii_lowercase();
    let alike = known
        .iter()
        .map(|known| (strsim::jaro(&name, known), *known));
    alike
        .filter(|(alike, _)| *alike > ALIKE)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, near)| near)
}

/// serde expects types; our own types say themselves what they expect.
fn in_words(expected: &str) -> &str {
    match expected {
        "a boolean" => "true or false",
        "a string" | "path string" | "string or map" | "enum" => "text in quotes",
        "a sequence" => "a list",
        "a map" => "a table",
        "u8" | "u16" | "u64" | "usize" => "a whole number, 0 or more",
        "u32" => "a whole number from 0 to 4294967295",
        "a nonzero u32" => "a whole number from 1 to 4294967295",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        other if other.starts_with("struct ") => "a table",
        other if other.starts_with("enum ") => "text in quotes",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_that_was_meant_is_told_where_one_is_near() {
        const KNOWN: [&str; 6] = [
            "ttl",
            "max_bytes",
            "jitter",
            "listen",
            "settled_ttl",
            "redis",
        ];
        for (name, expected) in [
            ("tll", Some("ttl")),
            ("TTL", Some("ttl")),
            ("max_byte", Some("max_bytes")),
            ("maxbytes", Some("max_bytes")),
            ("jiter", Some("jitter")),
            ("lisen", Some("listen")),
            ("reddis", Some("redis")),
            ("settled", Some("settled_ttl")),
            ("quota", None),
            ("x", None),
            ("", None),
        ] {
            let told = unknown("key", name, &KNOWN);
            match expected {
                Some(near) => assert_eq!(told, format!("unknown key; did you mean `{near}`?")),
                None => assert!(told.starts_with("unknown key; known here: ttl, "), "{told}"),
            }
        }
    }
}
