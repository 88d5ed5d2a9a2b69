//! The query string, made canonical: nothing of it goes on upstream but the two numbers of a page.

use url::form_urlencoded;

use super::{ApiError, error::Expected};
use crate::config::routes::{TasksRouteConfig, UnknownParameters};

mod fields;
mod list;

pub use self::{
    fields::Fields,
    list::{ListQuery, Parameters, Selection, parse},
};

/// Refuses every parameter, for a route that takes none.
///
/// # Errors
///
/// Names the first.
pub fn none(query: &str) -> Result<(), ApiError> {
    match form_urlencoded::parse(query.as_bytes()).next() {
        None => Ok(()),
        Some((name, _)) => Err(ApiError::UnknownParameter {
            name: shown(&name),
            known: "none is",
        }),
    }
}

/// What becomes of a parameter that its route does not take; `known` says which are.
fn unknown(name: &str, known: &'static str, config: &TasksRouteConfig) -> Result<(), ApiError> {
    match config.unknown_parameters {
        UnknownParameters::Ignore => Ok(()),
        UnknownParameters::Reject => Err(ApiError::UnknownParameter {
            name: shown(name),
            known,
        }),
    }
}

/// Takes the value of a parameter, which stands once.
fn set<T>(
    place: &mut Option<T>,
    value: Option<T>,
    name: &'static str,
    expected: Expected,
) -> Result<(), ApiError> {
    let value = value.filter(|_| place.is_none());
    *place = Some(value.ok_or_else(|| invalid(name, expected))?);
    Ok(())
}

fn invalid(name: &'static str, expected: Expected) -> ApiError {
    ApiError::InvalidParameter { name, expected }
}

/// A decimal number from 1 to `most`: digits alone, leading zeros allowed.
fn number(text: &str, most: u32) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = match text.trim_start_matches('0') {
        "" => 0,
        digits => digits.parse().ok()?,
    };
    (1..=most).contains(&number).then_some(number)
}

/// A name fit to be shown: short and printable.
pub(super) fn shown(name: &str) -> String {
    name.chars()
        .take(64)
        .map(|character| {
            if character.is_control() {
                '?'
            } else {
                character
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_without_parameters_takes_none() {
        for query in ["", "&", "&&"] {
            assert!(none(query).is_ok(), "{query}");
        }
        for query in ["page=1", "x", "=", "&view=public"] {
            assert!(none(query).is_err(), "{query}");
        }
    }
}
