//! Holds the arrows of `src/lib.rs`: which floor may name which.

use std::{collections::BTreeSet, fs, path::Path};

/// What each floor may name besides itself. `config` and `telemetry` serve all of them and name what they describe.
const MAY_NAME: [(&str, &[&str]); 15] = [
    ("domain", &[]),
    ("off_runtime", &[]),
    ("outbound", &[]),
    ("config", &["domain"]),
    ("telemetry", &["config", "outbound"]),
    ("cache", &["domain", "config", "telemetry"]),
    ("peer", &["config"]),
    ("shared", &["config", "telemetry"]),
    (
        "upstream",
        &[
            "domain",
            "config",
            "off_runtime",
            "outbound",
            "shared",
            "telemetry",
        ],
    ),
    (
        "service",
        &[
            "cache",
            "upstream",
            "domain",
            "config",
            "off_runtime",
            "shared",
            "telemetry",
        ],
    ),
    (
        "api",
        &[
            "service",
            "cache",
            "upstream",
            "domain",
            "config",
            "off_runtime",
            "outbound",
            "peer",
            "shared",
            "telemetry",
        ],
    ),
    ("server", &["config", "peer", "telemetry"]),
    ("simulator", &[]),
    ("cli", &["app", "config", "simulator", "telemetry"]),
    (
        "app",
        &[
            "api",
            "cache",
            "config",
            "peer",
            "server",
            "service",
            "shared",
            "telemetry",
            "upstream",
        ],
    ),
];

#[test]
fn no_floor_names_another_against_the_arrows() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen = BTreeSet::new();
    for file in sources(&src) {
        let inner = file.strip_prefix(&src).unwrap().with_extension("");
        let floor = inner.iter().next().unwrap().to_str().unwrap();
        // What a test names to make its case is no arrow.
        if ["lib", "main"].contains(&floor) || inner.ends_with("tests") {
            continue;
        }
        let rule = MAY_NAME.iter().find(|(name, _)| *name == floor);
        let (_, allowed) = rule.unwrap_or_else(|| panic!("no rule for {floor}"));
        seen.insert(floor.to_owned());
        let source = fs::read_to_string(&file).unwrap();
        let (code, _tests) = source.split_once("#[cfg(test)]").unwrap_or((&source, ""));
        for named in named_floors(code) {
            assert!(
                named == floor || allowed.contains(&named.as_str()),
                "{} names {named}",
                inner.display()
            );
        }
    }
    assert_eq!(seen, MAY_NAME.map(|(name, _)| name.to_owned()).into());
}

fn sources(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// The first segments after `crate::`, those of a braced list included; comments do not count.
fn named_floors(source: &str) -> BTreeSet<String> {
    let code: Vec<&str> = source
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect();
    let code = code.join("\n");
    let mut named = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            Some(list) => named.extend(heads(list)),
            None => named.extend(head(rest)),
        }
    }
    named
}

/// The first segment of each member of a list, whose opening brace has been read.
fn heads(list: &str) -> Vec<String> {
    let (mut depth, mut members, mut begins) = (0, Vec::new(), true);
    for (place, character) in list.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => begins = true,
            _ if begins && !character.is_whitespace() => {
                members.extend(head(&list[place..]));
                begins = false;
            }
            _ => {}
        }
    }
    members
}

fn head(path: &str) -> Option<String> {
    let end = path.find(|character: char| !character.is_ascii_lowercase() && character != '_');
    let head = &path[..end.unwrap_or(path.len())];
    (!head.is_empty()).then(|| head.to_owned())
}

#[test]
fn what_a_file_names_is_found_in_every_form() {
    let source = "use crate::{\n    api::{Client, peer::Peer},\n    cache,\n};\n\
                  // crate::upstream\nfn f() { crate::domain::g(); }\nuse crate::config;";
    let expected = ["api", "cache", "config", "domain"];
    assert_eq!(named_floors(source), expected.map(str::to_owned).into());
}
