//! `docs/configuration.md` is `config/default.toml`, to read: `UPDATE_DOCS=1 cargo test documents` writes it.

use std::{fmt::Write, fs, path::PathBuf};

use unpod_gateway::config::DEFAULTS;

const HEADING: &str = "\
# Configuration

Every key, its default, and what moving it does; made from [`config/default.toml`](../config/default.toml), which is compiled in. Your file
overrides it, and `UNPOD_GATEWAY__SECTION__KEY` in the environment overrides both. `unpod-gateway check --config FILE` names every problem
at once. Durations are \"250ms\", \"30s\", \"1h\"; sizes \"256MiB\", \"1048576B\". Which keys change while the gateway runs:
[`operations.md`](operations.md#change-the-configuration).
";

/// A line of the file, as far as the page cares.
enum Line<'a> {
    Section(&'a str),
    Key {
        name: &'a str,
        value: &'a str,
        is_default: bool,
    },
    Comment(&'a str),
    Blank,
}

fn read(line: &str) -> Line<'_> {
    let (text, is_default) = match line.strip_prefix('#') {
        Some(rest) => (rest.trim_start(), false),
        None => (line.trim(), true),
    };
    if text.is_empty() {
        return if is_default {
            Line::Blank
        } else {
            Line::Comment("")
        };
    }
    if text.starts_with('[') && text.trim_end().ends_with(']') {
        return Line::Section(text);
    }
    let named = text.split_once(" = ").filter(|(name, _)| {
        let part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        name.chars().all(part)
    });
    match named {
        Some((name, value)) => Line::Key {
            name,
            value,
            is_default,
        },
        None => Line::Comment(text),
    }
}

/// A value and the remark behind it.
fn split_remark(value: &str) -> (&str, Option<&str>) {
    match value.split_once(" # ") {
        Some((value, remark)) => (value.trim_end(), Some(remark)),
        None => (value, None),
    }
}

fn page() -> String {
    let mut page = HEADING.to_owned();
    let mut said = String::new();
    for line in DEFAULTS.lines() {
        match read(line) {
            Line::Section(section) => {
                write!(page, "\n## `{section}`\n").unwrap();
                flush(&mut page, &mut said);
            }
            Line::Key {
                name,
                value,
                is_default,
            } => {
                let (value, remark) = split_remark(value);
                let kind = if is_default {
                    "default"
                } else {
                    "not set; such as"
                };
                write!(page, "\n**`{name}`** ({kind} `{value}`)").unwrap();
                let text = [said.trim(), remark.unwrap_or_default()].join(" ");
                said.clear();
                let text = text.trim();
                let separator = if text.is_empty() { "" } else { "  \n" };
                writeln!(page, "{separator}{text}").unwrap();
            }
            Line::Comment(text) => {
                said.push_str(text);
                said.push('\n');
            }
            Line::Blank => flush(&mut page, &mut said),
        }
    }
    flush(&mut page, &mut said);
    page
}

/// Puts what was said of no key in particular.
fn flush(page: &mut String, said: &mut String) {
    if !said.trim().is_empty() {
        write!(page, "\n{}\n", said.trim()).unwrap();
    }
    said.clear();
}

#[test]
fn the_page_of_the_configuration_says_what_the_defaults_say() {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let wanted = page();
    #[expect(clippy::disallowed_methods, reason = "asks whether to write the page")]
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&file, &wanted).unwrap();
    }
    let there = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        there == wanted,
        "docs/configuration.md is not what config/default.toml says: UPDATE_DOCS=1 cargo test documents"
    );
    for key in [
        "max_in_flight",
        "stale_if_error",
        "token_file",
        "signing_key_file",
    ] {
        assert!(wanted.contains(&format!("**`{key}`**")), "{key}");
    }
}
