use super::*;
use crate::config::routes::UnknownParameters;

fn config(unknown_parameters: UnknownParameters) -> TasksRouteConfig {
    TasksRouteConfig {
        max_page_size: 100,
        newest_max: 1000,
        unknown_parameters,
    }
}

fn parsed(query: &str, parameters: Parameters) -> Result<ListQuery, String> {
    let read = parse(query, parameters, &config(UnknownParameters::Reject));
    read.map_err(|error| match error {
        ApiError::InvalidParameter { name, .. } => format!("invalid {name}"),
        ApiError::UnknownParameter { name, .. } => format!("unknown {name}"),
        other => format!("{other:?}"),
    })
}

fn read(query: &str) -> Result<(u32, u32), String> {
    let read = parsed(query, Parameters::Page);
    read.map(|query| (query.page.page, query.page.page_size))
}

/// The parameters of a selection, made canonical.
fn selected(query: &str, parameters: Parameters) -> Result<String, String> {
    let selection = parsed(query, parameters)?.selection;
    Ok(selection.map_or_else(String::new, |selection| selection.canonical))
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
        let filter = format!("status=failed&newest={value}");
        let filter = selected(&filter, Parameters::Filter);
        assert_eq!(filter, Err("invalid newest".to_owned()), "{value}");
    }
    assert_eq!(read("page"), Err("invalid page".to_owned()));
    assert_eq!(read("page_size=101"), Err("invalid page_size".to_owned()));
    assert_eq!(read("page=1&page=1"), Err("invalid page".to_owned()));
    assert_eq!(read("page=1&p%61ge=2"), Err("invalid page".to_owned()));
}

#[test]
fn other_parameters_are_refused_or_dropped_as_configured() {
    for name in [
        "space_id", "user_id", "search", "Page", "page ", "page[]", "format", "token", "=1",
    ] {
        for parameters in [Parameters::Page, Parameters::Filter, Parameters::Task] {
            let error = parsed(&format!("{name}=2"), parameters).unwrap_err();
            assert!(error.starts_with("unknown"), "{name}");
        }
    }
    let ignoring = config(UnknownParameters::Ignore);
    let dropped = |query, parameters| parse(query, parameters, &ignoring);
    let page = PageQuery {
        page: 3,
        page_size: 20,
    };
    let query = "space_id=2&page=3&x&status=failed";
    let plain = dropped(query, Parameters::Page).unwrap();
    assert!(plain.page == page && plain.selection.is_none());
    // What the route takes still counts.
    assert!(dropped(query, Parameters::Filter).is_err());
    let filtered = dropped("x&status=failed&newest=5&page=3", Parameters::Filter).unwrap();
    assert!(filtered.page == page && filtered.selection.is_some());
}

#[test]
fn each_route_takes_its_own_parameters() {
    for (query, page, filter, task) in [
        ("page=1", true, true, false),
        ("page_size=1", true, true, false),
        ("fields=a", false, true, true),
        ("newest=1", false, false, true),
        ("newest=1&status=a", false, true, false),
        ("newest=1&assignee=a", false, true, false),
        ("newest=1&run_id=a", false, true, false),
        ("task_id=a", false, false, false),
    ] {
        let taken = [Parameters::Page, Parameters::Filter, Parameters::Task]
            .map(|parameters| parsed(query, parameters).is_ok());
        assert_eq!(taken, [page, filter, task], "{query}");
    }
}

#[test]
fn a_filter_is_lists_of_plain_values_and_how_far_to_look() {
    let read = |query: &str| selected(query, Parameters::Filter);
    for (query, canonical) in [
        ("newest=0200&status=failed", "status=failed&newest=200&"),
        (
            "run_id=R_1,b.c-d&st%61tus=a%2Cb&newest=1000",
            "status=a,b&run_id=R_1,b.c-d&newest=1000&",
        ),
        (
            "fields=b,a&newest=1&assignee=A",
            "assignee=A&newest=1&fields=b,a&",
        ),
        (
            "status=1,2,3,4,5,6,7,8&newest=1",
            "status=1,2,3,4,5,6,7,8&newest=1&",
        ),
        ("fields=b%20c", "fields=b+c&"),
        ("", ""),
    ] {
        assert_eq!(read(query).as_deref(), Ok(canonical), "{query}");
    }
    let long = format!("status={}&newest=1", "x".repeat(129));
    for (query, invalid) in [
        ("status=&newest=1", "status"),
        ("status&newest=1", "status"),
        ("status=,&newest=1", "status"),
        ("status=a,&newest=1", "status"),
        ("status=a%20b&newest=1", "status"),
        ("status=%C3%A4&newest=1", "status"),
        ("status=a%00&newest=1", "status"),
        ("assignee=%FF&newest=1", "assignee"),
        ("run_id=a/b&newest=1", "run_id"),
        ("run_id=a@b&newest=1", "run_id"),
        ("status=1,2,3,4,5,6,7,8,9&newest=1", "status"),
        ("status=a&status=a&newest=1", "status"),
        (&long, "status"),
        ("status=a", "newest"),
        ("newest=1", "newest"),
        ("fields=a&newest=1", "newest"),
        ("status=a&newest=1001", "newest"),
        ("status=a&newest=1&newest=1", "newest"),
        ("fields=", "fields"),
        ("fields=a..b", "fields"),
        ("fields=a&fields=a", "fields"),
    ] {
        let expected = Err(format!("invalid {invalid}"));
        assert_eq!(read(query), expected, "{query}");
    }
}
