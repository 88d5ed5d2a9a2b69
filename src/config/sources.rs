//! The three sources of settings and how they merge.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use figment::{
    Figment,
    providers::Serialized,
    value::{Dict, Value},
};

use super::{DEFAULTS, Problems, files, value};

const PREFIX: &str = "UNPOD_GATEWAY__";
/// Set by systemd for a service of `Type=notify`.
const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
const SECRET_KEYS: [&str; 2] = ["token", "next_token"];
/// Shown without the parts that may be secret.
const URL_KEYS: [&str; 5] = ["base_url", "jwks_url", "otlp_endpoint", "proxy", "url"];

/// Parsed once: each parse cost a megabyte of memory that the allocator kept for its thread.
pub(super) fn defaults() -> &'static Dict {
    static READ: LazyLock<Dict> = LazyLock::new(|| {
        toml::from_str(DEFAULTS).expect("the compiled-in defaults are TOML: a test reads them")
    });
    &READ
}

/// Placeholders for required values that are missing or invalid, so that reading can continue and find more problems.
const PLACEHOLDERS: &str = r#"
[auth.jwt]
issuer = "-"
audience = "-"
[auth.browser_tokens]
signing_key_file = "-"
[clients]
name = "-"
spaces = ["*"]
rate_limit = { per_second = 1.0, burst = 1 }
[views]
fields = ["-"]
[normalize.rules]
contains = "-"
code = "upstream_failed"
"#;

/// For each dotted key, the value to continue with if the given one is invalid.
pub(super) fn fallbacks() -> &'static Value {
    static READ: LazyLock<Value> = LazyLock::new(|| {
        let placeholders: Dict = toml::from_str(PLACEHOLDERS).expect("a test reads it");
        Figment::from(Serialized::defaults(defaults()))
            .merge(Serialized::defaults(placeholders))
            .extract::<Dict>()
            .expect("both are tables")
            .into()
    });
    &READ
}

pub(super) fn read_file(path: &Path) -> Result<String, Problems> {
    files::read_text(path)
        .map_err(|error| Problems::one("--config", format!("{}: {error}", path.display())))
}

/// Environment variables, which need not be UTF-8.
pub(super) type Variables = Vec<(OsString, OsString)>;

/// The process's variables with our prefix.
pub(super) fn environment() -> Variables {
    variables()
        .filter(|(name, _)| name.as_encoded_bytes().starts_with(PREFIX.as_bytes()))
        .collect()
}

/// The service manager's notification socket. Not a setting, but the environment is read only here.
#[must_use]
pub fn notify_socket() -> Option<OsString> {
    variables()
        .find(|(name, value)| name == NOTIFY_SOCKET && !value.is_empty())
        .map(|(_, value)| value)
}

fn variables() -> std::env::VarsOs {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the environment"
    )]
    std::env::vars_os()
}

/// Merges the defaults, `text` and `environment`, later ones over earlier ones. An invalid variable is reported and left out. `None` if
/// `text` is not TOML.
pub(super) fn merge(
    text: Option<&str>,
    environment: Variables,
    problems: &mut Problems,
) -> Option<Dict> {
    let mut figment = Figment::from(Serialized::defaults(defaults()));
    let table: Result<Dict, _> = text.map_or(Ok(Dict::new()), toml::from_str);
    match &table {
        Ok(table) => figment = figment.merge(Serialized::defaults(table)),
        Err(error) => problems.append(not_toml(text.unwrap_or_default(), error)),
    }
    let known = Value::from(defaults().clone());
    for (name, value) in environment {
        let Ok(name) = name.into_string().map_err(|name| {
            let shown = name.to_string_lossy();
            problems.add(shown, "the variable's name is not UTF-8");
        }) else {
            continue;
        };
        let key = name[PREFIX.len()..].to_ascii_lowercase().replace("__", ".");
        if key.is_empty() || key.split('.').any(str::is_empty) {
            problems.add(name, "expected UNPOD_GATEWAY__SECTION__KEY");
            continue;
        }
        let Some(value) = value.to_str() else {
            problems.add(key, "the variable's value is not UTF-8");
            continue;
        };
        match typed(value, known.find_ref(&key)) {
            Some(value) => figment = figment.merge(Serialized::default(&key, value)),
            None => problems.add(key, "the variable's value is not of the key's type"),
        }
    }
    let merged = figment.extract().expect("each source is a table");
    table.ok().map(|_| merged)
}

/// Reports the line of the error without quoting it: it may hold a token.
fn not_toml(text: &str, error: &toml::de::Error) -> Problems {
    let place = error.span().map_or(0, |span| span.start).min(text.len());
    let line = text.as_bytes()[..place]
        .iter()
        .filter(|byte| **byte == b'\n')
        .count()
        + 1;
    Problems::one("--config", format!("line {line}: not valid TOML"))
}

/// A variable's text as the type of the key's default; without a default it stays text, so that a token of digits is not a number.
fn typed(text: &str, known: Option<&Value>) -> Option<Value> {
    match known {
        Some(Value::Bool(..)) => text.parse::<bool>().ok().map(Value::from),
        Some(Value::Num(_, number)) if number.to_f64().is_some() && number.to_u128().is_none() => {
            text.parse::<f64>().ok().map(Value::from)
        }
        Some(Value::Num(..)) => text.parse::<i64>().ok().map(Value::from),
        Some(Value::Array(..)) => list(text),
        _ if text.starts_with('[') => list(text),
        _ => Some(Value::from(text)),
    }
}

fn list(text: &str) -> Option<Value> {
    let mut table: Dict = toml::from_str(&format!("value = {text}")).ok()?;
    table.remove("value")
}

/// Replaces every secret by `<hidden>`.
pub(super) fn hide_secrets(dict: &mut Dict) {
    for (key, value) in dict.iter_mut() {
        match value {
            Value::Dict(_, inner) => hide_secrets(inner),
            Value::Array(_, items) => {
                for item in items {
                    if let Value::Dict(_, inner) = item {
                        hide_secrets(inner);
                    }
                }
            }
            other if SECRET_KEYS.contains(&key.as_str()) => *other = Value::from("<hidden>"),
            other if URL_KEYS.contains(&key.as_str()) => *other = shown_url(other).into(),
            _ => {}
        }
    }
}

/// The URL as given, without the parts that may be secret.
fn shown_url(value: &Value) -> String {
    let given = value.as_str().unwrap_or_default().trim();
    let Ok(url) = given.parse::<url::Url>() else {
        return "<hidden>".to_owned();
    };
    let without = value::without_secrets(&url);
    if without == url.as_str() {
        given.to_owned()
    } else {
        without
    }
}

/// Copies the value of the dotted `key` from `from` to `to`, or removes it.
pub(super) fn copy(key: &str, from: &Dict, to: &mut Dict) {
    let Some((section, rest)) = key.split_once('.') else {
        match from.get(key) {
            Some(value) => to.insert(key.to_owned(), value.clone()),
            None => to.remove(key),
        };
        return;
    };
    if let (Some(Value::Dict(_, from)), Some(Value::Dict(_, to))) =
        (from.get(section), to.get_mut(section))
    {
        copy(rest, from, to);
    }
}

/// All files that `dict` names to be read.
pub(super) fn named_files(dict: &Dict) -> Vec<PathBuf> {
    let paths = |value: &Value| match value {
        Value::String(_, path) => Some(PathBuf::from(path)),
        _ => None,
    };
    let in_value = |(key, value): (&String, &Value)| match value {
        Value::Dict(_, inner) => named_files(inner),
        Value::Array(_, items) if key.ends_with("_files") => {
            items.iter().filter_map(paths).collect()
        }
        // The snapshot is written, not read.
        other if key.ends_with("_file") && key != "snapshot_file" => {
            paths(other).into_iter().collect()
        }
        _ => Vec::new(),
    };
    dict.iter().flat_map(in_value).collect()
}

/// The dotted keys whose values differ, sorted.
pub(super) fn changed_keys(before: &Dict, after: &Dict) -> Vec<String> {
    let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let mut changed = Vec::new();
    for name in names {
        match (before.get(name), after.get(name)) {
            (Some(Value::Dict(_, before)), Some(Value::Dict(_, after))) => {
                let inner = changed_keys(before, after);
                changed.extend(inner.into_iter().map(|key| format!("{name}.{key}")));
            }
            (before, after) if before == after => {}
            _ => changed.push(name.clone()),
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_to_read_are_found_wherever_they_are_named() {
        let text = "
            [server.tls]
            cert_file = 'a'
            key_file = 1
            [upstream]
            ca_file = 'b'
            credentials.other.token_file = 'c'
            [auth.browser_tokens]
            verify_key_files = ['d', 'e']
            [cache]
            snapshot_file = 'written'
            no_such_file = { inner_file = 'f' }
        ";
        let mut named = named_files(&toml::from_str(text).unwrap());
        named.sort();
        assert_eq!(named, ["a", "b", "c", "d", "e", "f"].map(PathBuf::from));
    }
}
