//! The process's environment, and its variables as settings.

use std::ffi::OsString;

use figment::value::{Dict, Value};

use crate::config::{
    Problems,
    known::{PREFIX, variable_meant},
};

/// Set by systemd for a service of `Type=notify`.
const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
/// Set by systemd where standard output or error is connected to its journal.
const JOURNAL_STREAM: &str = "JOURNAL_STREAM";

/// Environment variables, which need not be UTF-8.
pub(in crate::config) type Variables = Vec<(OsString, OsString)>;

/// The process's variables that are settings, or were meant to be.
pub(in crate::config) fn environment() -> Variables {
    let is_ours = |name: &OsString| {
        let is_prefixed = name.as_encoded_bytes().starts_with(PREFIX.as_bytes());
        is_prefixed
            || name
                .to_str()
                .is_some_and(|name| variable_meant(name).is_some())
    };
    variables().filter(|(name, _)| is_ours(name)).collect()
}

/// The service manager's notification socket. Not a setting, but the environment is read only here.
#[must_use]
pub fn notify_socket() -> Option<OsString> {
    variable(NOTIFY_SOCKET)
}

/// The device and inode of the stream to systemd's journal, as `device:inode`. Not a setting either.
#[must_use]
pub fn journal_stream() -> Option<OsString> {
    variable(JOURNAL_STREAM)
}

fn variable(wanted: &str) -> Option<OsString> {
    variables()
        .find(|(name, value)| name == wanted && !value.is_empty())
        .map(|(_, value)| value)
}

fn variables() -> std::env::VarsOs {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the environment"
    )]
    std::env::vars_os()
}

/// The dotted key and the value of a variable, of the type of the key's default among `defaults`. A problem is reported, and gives none.
pub(super) fn setting(
    (name, value): (OsString, OsString),
    defaults: &Value,
    problems: &mut Problems,
) -> Option<(String, Value)> {
    let name = name
        .into_string()
        .map_err(|name| {
            let shown = name.to_string_lossy();
            problems.add(shown, "the variable's name is not UTF-8");
        })
        .ok()?;
    if let Some(meant) = variable_meant(&name) {
        let text = format!("no setting has this name; did you mean {meant}?");
        problems.add(name, text);
        return None;
    }
    let key = name.strip_prefix(PREFIX).unwrap_or_default();
    let key = key.to_ascii_lowercase().replace("__", ".");
    if key.is_empty() || key.split('.').any(str::is_empty) {
        problems.add(name, "expected UNPOD_GATEWAY__SECTION__KEY");
        return None;
    }
    let Some(value) = value.to_str() else {
        problems.add(key, "the variable's value is not UTF-8");
        return None;
    };
    match typed(value, defaults.find_ref(&key)) {
        Ok(value) => Some((key, value)),
        Err(expected) => {
            problems.add(key, format!("expected {expected} in {name}"));
            None
        }
    }
}

/// A variable's text as the type of the key's default, or what was expected; without a default it stays text, so that a token of digits is
/// not a number.
fn typed(text: &str, default: Option<&Value>) -> Result<Value, &'static str> {
    match default {
        Some(Value::Bool(..)) => {
            let read = text.parse::<bool>();
            read.map(Value::from).map_err(|_| "true or false")
        }
        Some(Value::Num(_, number)) if number.to_f64().is_some() && number.to_u128().is_none() => {
            let read = text.parse::<f64>();
            read.map(Value::from).map_err(|_| "a number")
        }
        Some(Value::Num(..)) => {
            let read = text.parse::<i64>();
            read.map(Value::from).map_err(|_| "a whole number")
        }
        Some(Value::Array(..)) => list(text),
        _ if text.starts_with('[') => list(text),
        _ => Ok(Value::from(text)),
    }
}

fn list(text: &str) -> Result<Value, &'static str> {
    let table: Result<Dict, _> = toml::from_str(&format!("value = {text}"));
    let value = table.ok().and_then(|mut table| table.remove("value"));
    value.ok_or("a list as TOML writes it, such as [\"a\", \"b\"],")
}
