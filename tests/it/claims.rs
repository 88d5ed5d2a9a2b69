//! What the documents claim is shown by a test: the tables that name tests name tests that there are.

use std::{
    fs,
    path::{Path, PathBuf},
};

const PAGES: [&str; 2] = ["docs/resilience.md", "docs/security.md"];

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Everything that the Rust files below `directory` hold.
fn texts_below(directory: &Path) -> String {
    let entries = fs::read_dir(directory).unwrap();
    let text = |path: PathBuf| match path.extension() {
        _ if path.is_dir() => texts_below(&path),
        Some(extension) if extension == "rs" => fs::read_to_string(path).unwrap(),
        _ => String::new(),
    };
    entries.map(|entry| text(entry.unwrap().path())).collect()
}

/// The last cell of every row of the tables whose last column is headed "tests".
fn last_cells(text: &str) -> Vec<String> {
    let tables = text.split("\n\n");
    let rows = tables.flat_map(|table| {
        let cells = table.lines().filter_map(last_cell);
        let of_tests: Vec<_> = cells.skip_while(|cell| cell != "tests").skip(1).collect();
        of_tests
    });
    rows.collect()
}

/// The last cell of a table's row; rulers have none.
fn last_cell(line: &str) -> Option<String> {
    let row = line.strip_prefix("| ")?.trim_end().trim_end_matches('|');
    row.split('|')
        .next_back()
        .map(|cell| cell.trim().to_owned())
}

#[test]
fn every_test_that_a_page_names_is_there() {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = texts_below(&project.join("tests/it")) + &texts_below(&project.join("src"));
    for page in PAGES {
        let cells = last_cells(&read(page));
        assert!(cells.len() > 20, "{page}");
        for cell in cells {
            for name in cell.split(", ").map(|name| name.trim_matches('`')) {
                let found = sources.contains(&format!("fn {name}("));
                assert!(found, "{page} names {name:?}");
            }
        }
    }
}
