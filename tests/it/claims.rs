//! What the documents claim is shown by a test: the tables that name tests name tests that there are.

use std::{fs, path::Path};

const PAGES: [&str; 2] = ["docs/resilience.md", "docs/security.md"];

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The last cell of every row of every table, headings and rulers apart.
fn last_cells(text: &str) -> Vec<String> {
    let rows = text.lines().filter_map(|line| line.strip_prefix("| "));
    let last = |row: &str| {
        let cells: Vec<_> = row.trim_end().trim_end_matches('|').split('|').collect();
        cells.last().map(|cell| cell.trim().to_owned())
    };
    rows.filter_map(last)
        .filter(|cell| cell != "tests")
        .collect()
}

#[test]
fn every_test_that_a_page_names_is_there() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it");
    let files = fs::read_dir(directory).unwrap();
    let sources: String = files
        .map(|file| fs::read_to_string(file.unwrap().path()).unwrap())
        .collect();
    for page in PAGES {
        let cells = last_cells(&read(page));
        assert!(cells.len() > 20, "{page}");
        for cell in cells {
            for name in cell.split(", ").map(|name| name.trim_matches('`')) {
                let found = sources.contains(&format!("fn {name}()"));
                assert!(found, "{page} names {name:?}");
            }
        }
    }
}
