//! What is wrong with a configuration: every problem with its key, never with its value.

use std::fmt;

use figment::{
    Figment,
    error::Kind,
    providers::Serialized,
    value::{Dict, Value},
};
use serde::Deserialize;

/// One thing wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The dotted key, such as `cache.ttl` or `clients[0].spaces`.
    pub key: String,
    /// What is wrong with it; holds no configured value.
    pub text: String,
}

/// Everything wrong with a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Notes a problem of `key`.
    pub fn add(&mut self, key: impl Into<String>, text: impl Into<String>) {
        self.0.push(Problem {
            key: key.into(),
            text: text.into(),
        });
    }

    /// Notes what was found elsewhere.
    pub fn append(&mut self, mut found: Self) {
        self.0.append(&mut found.0);
    }

    /// A single problem.
    #[must_use]
    pub fn one(key: impl Into<String>, text: impl Into<String>) -> Self {
        let mut problems = Self::default();
        problems.add(key, text);
        problems
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn retain(&mut self, keep: impl FnMut(&Problem) -> bool) {
        self.0.retain(keep);
    }

    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, problem) in self.0.iter().enumerate() {
            if place > 0 {
                writeln!(f)?;
            }
            write!(f, "{}: {}", problem.key, problem.text)?;
        }
        Ok(())
    }
}

/// Reads a `T` from `value`, noting each wrong key under `prefix` and going on with its default, or without it, to find the next.
///
/// What is read in spite of problems is good for nothing but looking for more. `None` where it cannot be read without a wrong key.
pub(super) fn extract<T: for<'de> Deserialize<'de>>(
    prefix: &str,
    mut value: Value,
    defaults: Option<&Value>,
    problems: &mut Problems,
) -> Option<T> {
    let before = problems.0.len();
    loop {
        let Some(dict) = value.as_dict() else {
            problems.add(prefix, "expected a table");
            return None;
        };
        let error = match Figment::from(Serialized::defaults(dict)).extract::<T>() {
            Ok(read) => return Some(read),
            Err(error) => error,
        };
        let mut path = error.path.clone();
        let named = match &error.kind {
            Kind::UnknownField(name, _) => Some(name.as_str()),
            Kind::MissingField(name) => Some(name.as_ref()),
            _ => None,
        };
        // Some of figment's errors end their path with the field's name, and some do not.
        if let Some(name) = named.filter(|name| path.last().map(String::as_str) != Some(*name)) {
            path.push(name.to_owned());
        }
        let key = format!("{prefix}{}", shown_path(&path));
        let taken_out = problems.0[before..].iter().any(|known| {
            // A fault within a list took the whole list out.
            let rest = known.key.strip_prefix(&key);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('['))
        });
        if taken_out && matches!(error.kind, Kind::MissingField(_)) {
            // It is missing because its value was wrong, which is told already.
            return None;
        }
        problems.add(key, describe(&error.kind));
        if !restore(&mut value, &path, defaults) {
            return None;
        }
    }
}

fn shown_path(path: &[String]) -> String {
    path.iter().fold(String::new(), |mut shown, part| {
        if part.bytes().all(|byte| byte.is_ascii_digit()) {
            shown.push_str(&format!("[{part}]"));
        } else {
            shown.push('.');
            shown.push_str(part);
        }
        shown
    })
}

/// Figment's own words quote the value that was given; these do not.
fn describe(kind: &Kind) -> String {
    match kind {
        Kind::MissingField(_) => "required".to_owned(),
        Kind::UnknownField(_, known) => format!("unknown key; known here: {}", known.join(", ")),
        Kind::UnknownVariant(_, known) => format!("expected one of: {}", known.join(", ")),
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected) => {
            format!("expected {expected}")
        }
        Kind::InvalidLength(_, expected) => format!("expected {expected}"),
        // Only texts of `value`, which name what is expected and nothing else.
        Kind::Message(text) => text.clone(),
        _ => "not a valid value".to_owned(),
    }
}

/// Puts the default back at `path`, or takes the key out. `false` where nothing changed, so that reading again is no use.
fn restore(value: &mut Value, path: &[String], defaults: Option<&Value>) -> bool {
    // A fault within a list is the whole list's.
    let named: Vec<&str> = path
        .iter()
        .map(String::as_str)
        .take_while(|part| !part.bytes().all(|byte| byte.is_ascii_digit()))
        .collect();
    let default = defaults.and_then(|root| root.find_ref(&named.join(".")));
    let Some((last, parents)) = named.split_last() else {
        return false;
    };
    let mut at = value;
    for part in parents {
        match at {
            Value::Dict(_, dict) if dict.contains_key(*part) => {
                at = dict.get_mut(*part).expect("the guard found it");
            }
            _ => return false,
        }
    }
    let Value::Dict(_, dict) = at else {
        return false;
    };
    replace(dict, last, default)
}

fn replace(dict: &mut Dict, key: &str, default: Option<&Value>) -> bool {
    match default {
        Some(default) if dict.get(key) != Some(default) => {
            dict.insert(key.to_owned(), default.clone());
            true
        }
        Some(_) => false,
        None => dict.remove(key).is_some(),
    }
}
