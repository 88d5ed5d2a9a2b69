//! What a query asks of a list: which page, and, where its route takes that, which rows and members.

use super::{Fields, invalid, number, set, unknown};
use crate::{
    api::{ApiError, error::Expected},
    config::routes::TasksRouteConfig,
    domain::{Filter, FilterMember, PageQuery, is_row_value},
};

/// Which parameters a route takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameters {
    /// `page` and `page_size`.
    Page,
    /// These, those of a filter, and `fields`.
    Filter,
    /// Of a single task: `fields` and `newest`.
    Task,
}

/// What is asked of a list.
#[derive(Clone, Debug)]
pub struct ListQuery {
    pub page: PageQuery,
    /// Kept apart, since few ask for it: what makes the answer another one than the page.
    pub selection: Option<Box<Selection>>,
}

/// Which rows are asked for, and what of them.
#[derive(Clone, Debug)]
pub struct Selection {
    pub filter: Option<Filter>,
    /// How many of the newest rows are looked at; given with every filter.
    pub newest: Option<u32>,
    pub fields: Option<Fields>,
    /// These parameters as they stand in a URL, each with an `&` behind it.
    pub canonical: String,
}

const MOST_VALUES: usize = 8;

impl Parameters {
    fn known(self) -> &'static str {
        match self {
            Self::Page => "`page` and `page_size` are",
            Self::Filter => {
                "`page`, `page_size`, `status`, `assignee`, `run_id`, `newest` and `fields` are"
            }
            Self::Task => "`fields` and `newest` are",
        }
    }
}

#[derive(Default)]
struct Given {
    page: Option<u32>,
    page_size: Option<u32>,
    values: [Option<Vec<Box<str>>>; FilterMember::ALL.len()],
    newest: Option<u32>,
    fields: Option<Fields>,
}

/// Reads what `parameters` are.
///
/// # Errors
///
/// Names the parameter that is not as it must be, stands twice, or is unknown. Never repeats a value.
pub fn parse(
    query: &str,
    parameters: Parameters,
    config: &TasksRouteConfig,
) -> Result<ListQuery, ApiError> {
    let mut given = Given::default();
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        if !given.take(&name, &value, parameters, config)? {
            unknown(&name, parameters.known(), config)?;
        }
    }
    Ok(ListQuery {
        page: PageQuery {
            page: given.page.unwrap_or(PageQuery::DEFAULT_PAGE),
            page_size: given
                .page_size
                .unwrap_or_else(|| PageQuery::DEFAULT_PAGE_SIZE.min(config.max_page_size)),
        },
        selection: given.selection(parameters)?,
    })
}

impl Given {
    /// Takes a parameter, if the route has it.
    fn take(
        &mut self,
        name: &str,
        value: &str,
        parameters: Parameters,
        config: &TasksRouteConfig,
    ) -> Result<bool, ApiError> {
        let is_page = parameters != Parameters::Task;
        let is_selection = parameters != Parameters::Page;
        let most = match name {
            "page" => PageQuery::MAX_PAGE,
            "page_size" => config.max_page_size,
            _ => config.newest_max,
        };
        let read_number = || number(value, most);
        match name {
            "page" if is_page => {
                set(
                    &mut self.page,
                    read_number(),
                    "page",
                    Expected::Number { most },
                )?;
            }
            "page_size" if is_page => {
                set(
                    &mut self.page_size,
                    read_number(),
                    "page_size",
                    Expected::Number { most },
                )?;
            }
            "newest" if is_selection => {
                set(
                    &mut self.newest,
                    read_number(),
                    "newest",
                    Expected::Number { most },
                )?;
            }
            "fields" if is_selection => {
                set(
                    &mut self.fields,
                    Fields::read(value),
                    "fields",
                    Expected::Fields,
                )?;
            }
            _ => {
                let mut members = FilterMember::ALL.into_iter();
                let place = members.position(|member| member.as_str() == name);
                let Some(place) = place.filter(|_| parameters == Parameters::Filter) else {
                    return Ok(false);
                };
                let name = FilterMember::ALL[place].as_str();
                set(
                    &mut self.values[place],
                    values(value),
                    name,
                    Expected::Values,
                )?;
            }
        }
        Ok(true)
    }

    fn selection(self, parameters: Parameters) -> Result<Option<Box<Selection>>, ApiError> {
        let mut canonical = String::new();
        let mut wanted = Vec::new();
        for (member, values) in FilterMember::ALL.into_iter().zip(self.values) {
            if let Some(values) = values {
                canonical.extend([member.as_str(), "=", &values.join(","), "&"]);
                wanted.push((member, values));
            }
        }
        let filter = Filter::new(wanted);
        if parameters == Parameters::Filter && filter.is_some() != self.newest.is_some() {
            return Err(invalid("newest", Expected::WithFilter));
        }
        if let Some(newest) = self.newest {
            canonical.extend(["newest=", &newest.to_string(), "&"]);
        }
        if let Some(fields) = &self.fields {
            canonical.extend(["fields=", &fields.canonical, "&"]);
        }
        let is_asked = filter.is_some() || self.newest.is_some() || self.fields.is_some();
        Ok(is_asked.then(|| {
            Box::new(Selection {
                filter,
                newest: self.newest,
                fields: self.fields,
                canonical,
            })
        }))
    }
}

/// 1 to 8 values that are joined by commas; `None` for anything else.
fn values(text: &str) -> Option<Vec<Box<str>>> {
    if text.split(',').count() > MOST_VALUES || !text.split(',').all(is_row_value) {
        return None;
    }
    Some(text.split(',').map(Box::from).collect())
}

#[cfg(test)]
mod tests;
