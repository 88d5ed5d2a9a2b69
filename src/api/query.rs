//! The query string of the tasks route, made canonical: nothing of it goes on but two numbers.

use url::form_urlencoded;

use super::ApiError;
use crate::{
    config::routes::{TasksRouteConfig, UnknownParameters},
    domain::PageQuery,
};

/// Reads `page` and `page_size`.
///
/// # Errors
///
/// Names the parameter that is no number in range, stands twice, or is unknown. Never repeats a value.
pub fn parse(query: &str, config: &TasksRouteConfig) -> Result<PageQuery, ApiError> {
    let mut page = None;
    let mut page_size = None;
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let (name, most, place) = match name.as_ref() {
            "page" => ("page", PageQuery::MAX_PAGE, &mut page),
            "page_size" => ("page_size", config.max_page_size, &mut page_size),
            unknown => match config.unknown_parameters {
                UnknownParameters::Ignore => continue,
                UnknownParameters::Reject => {
                    return Err(ApiError::UnknownParameter {
                        name: shown(unknown),
                        known: "`page` and `page_size` are",
                    });
                }
            },
        };
        let number = number(&value, most).filter(|_| place.is_none());
        *place = Some(number.ok_or(ApiError::InvalidParameter { name, most })?);
    }
    Ok(PageQuery {
        page: page.unwrap_or(PageQuery::DEFAULT_PAGE),
        page_size: page_size
            .unwrap_or_else(|| PageQuery::DEFAULT_PAGE_SIZE.min(config.max_page_size)),
    })
}

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
fn shown(name: &str) -> String {
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

    fn config(unknown_parameters: UnknownParameters) -> TasksRouteConfig {
        TasksRouteConfig {
            max_page_size: 100,
            unknown_parameters,
        }
    }

    fn read(query: &str) -> Result<(u32, u32), String> {
        parse(query, &config(UnknownParameters::Reject))
            .map(|query| (query.page, query.page_size))
            .map_err(|error| match error {
                ApiError::InvalidParameter { name, .. } => format!("invalid {name}"),
                ApiError::UnknownParameter { name, .. } => format!("unknown {name}"),
                other => format!("{other:?}"),
            })
    }

    #[test]
    fn spellings_of_one_page_are_one_query() {
        for query in [
            "",
            "&",
            "page=1",
            "page=01&page_size=020",
            "page_size=20&page=1",
            "p%61ge=%31",
            "page=00000000000000000000001",
        ] {
            assert_eq!(read(query), Ok((1, 20)), "{query}");
        }
        assert_eq!(read("page=1000000&page_size=100"), Ok((1_000_000, 100)));
    }

    #[test]
    fn what_is_no_plain_number_in_range_is_refused_by_name() {
        for value in [
            "",
            "0",
            "000",
            "-1",
            "%2B1",
            "+1",
            "1+",
            "%201",
            "1.0",
            "1e3",
            "0x1",
            "0_2",
            "1000001",
            "a",
            "%D9%A2",
            "%EF%BC%92",
            "99999999999999999999",
            "1%00",
            "1;page_size=5",
            "%",
        ] {
            assert_eq!(
                read(&format!("page={value}")),
                Err("invalid page".to_owned()),
                "{value}"
            );
        }
        assert_eq!(read("page"), Err("invalid page".to_owned()));
        assert_eq!(read("page_size=101"), Err("invalid page_size".to_owned()));
        assert_eq!(read("page=1&page=1"), Err("invalid page".to_owned()));
        assert_eq!(read("page=1&p%61ge=2"), Err("invalid page".to_owned()));
    }

    #[test]
    fn a_route_without_parameters_takes_none() {
        for query in ["", "&", "&&"] {
            assert!(none(query).is_ok(), "{query}");
        }
        for query in ["page=1", "x", "=", "&view=public"] {
            assert!(none(query).is_err(), "{query}");
        }
    }

    #[test]
    fn other_parameters_are_refused_or_dropped_as_configured() {
        for name in [
            "space_id", "user_id", "search", "Page", "page ", "page[]", "format", "token", "=1",
        ] {
            assert!(
                read(&format!("{name}=2")).is_err_and(|e| e.starts_with("unknown")),
                "{name}"
            );
        }
        let dropped = parse("space_id=2&page=3&x", &config(UnknownParameters::Ignore));
        assert_eq!(
            dropped.unwrap(),
            PageQuery {
                page: 3,
                page_size: 20
            }
        );
    }
}
