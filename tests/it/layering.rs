//! Holds the arrows of `src/lib.rs`: which floor may name which.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// What each floor may name besides itself. `config` and `telemetry` serve all of them and name what they describe.
const MAY_NAME: [(&str, &[&str]); 15] = [
    ("domain", &[]),
    ("off_runtime", &[]),
    ("outbound", &[]),
    ("config", &["domain"]),
    ("telemetry", &["domain", "config", "outbound"]),
    ("cache", &["domain", "config", "off_runtime", "telemetry"]),
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
    (
        "cli",
        &["app", "config", "domain", "simulator", "telemetry"],
    ),
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
        for named in named_floors(&code(&file)) {
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

/// Floors none of whose child modules name each other in a circle.
const WITHOUT_CIRCLES: [&str; 13] = [
    "api",
    "api/clients",
    "app",
    "cli",
    "config",
    "domain",
    "peer",
    "server",
    "service",
    "shared",
    "simulator",
    "telemetry",
    "upstream",
];

#[test]
fn no_modules_of_a_floor_name_each_other_in_a_circle() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for floor in WITHOUT_CIRCLES {
        let mut named = names_among_children(&src, floor);
        // What names only modules that are in no circle is in none.
        while let Some(free) = free_of_circles(&named) {
            named.remove(&free);
        }
        assert_eq!(named, BTreeMap::new(), "{floor}");
    }
}

fn free_of_circles(named: &BTreeMap<String, BTreeSet<String>>) -> Option<String> {
    let mut all = named.iter();
    let is_free = |names: &BTreeSet<String>| !names.iter().any(|name| named.contains_key(name));
    let free = all.find(|(_, names)| is_free(names))?;
    Some(free.0.clone())
}

/// Which of the others each direct child module of `floor` names, its own children included.
fn names_among_children(src: &Path, floor: &str) -> BTreeMap<String, BTreeSet<String>> {
    let parent = code(&src.join(floor).with_extension("rs"));
    // A name that the floor re-exports is its module's.
    let exported = paths(&parent, "self::").into_iter().filter_map(|path| {
        let [child, .., name] = &path[..] else {
            return None;
        };
        Some((name.clone(), child.clone()))
    });
    let exported: BTreeMap<_, _> = exported.collect();
    let mut named = BTreeMap::<String, BTreeSet<String>>::new();
    for file in sources(&src.join(floor)) {
        let inner = file
            .strip_prefix(src.join(floor))
            .unwrap()
            .with_extension("");
        if inner.iter().any(|part| part == "tests") {
            continue;
        }
        let child = inner.iter().next().unwrap().to_str().unwrap().to_owned();
        let (code, depth) = (code(&file), inner.iter().count());
        let from_root = paths(&code, &format!("crate::{}::", floor.replace('/', "::")));
        let from_here = paths(&code, &"super::".repeat(depth));
        let heads = [from_root, from_here].concat().into_iter();
        let heads = heads.filter_map(|path| path.into_iter().next());
        let others = heads
            .map(|head| exported.get(&head).cloned().unwrap_or(head))
            .filter(|other| *other != child);
        named.entry(child.clone()).or_default().extend(others);
    }
    named
}

/// The file without its comments and its tests.
fn code(file: &Path) -> String {
    let source = fs::read_to_string(file).unwrap();
    let (code, _tests) = source
        .split_once("#[cfg(test)]\nmod tests")
        .unwrap_or((&source, ""));
    without_comments(code)
}

fn without_comments(source: &str) -> String {
    let lines = source.lines();
    let code: Vec<&str> = lines
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect();
    code.join("\n")
}

/// The first segments after `crate::`, those of a braced list included.
fn named_floors(code: &str) -> BTreeSet<String> {
    let paths = paths(code, "crate::").into_iter();
    paths.filter_map(|path| path.into_iter().next()).collect()
}

/// The segments of each path that follows `prefix`, those of a braced list one by one.
fn paths(code: &str, prefix: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let is_name = |character: char| character.is_ascii_alphanumeric() || character == '_';
    for (place, _) in code.match_indices(prefix) {
        if !code[..place].ends_with(|before| is_name(before) || before == ':') {
            tree(&code[place + prefix.len()..], &[], &mut found);
        }
    }
    found
}

/// Reads a tree of paths as `use` has them; returns what follows it.
fn tree<'a>(text: &'a str, above: &[String], found: &mut Vec<Vec<String>>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut list) = text.strip_prefix('{') {
        loop {
            list = tree(list, above, found).trim_start();
            match list.strip_prefix(',') {
                Some(rest) => list = rest,
                None => return list.strip_prefix('}').unwrap_or(list),
            }
        }
    }
    let is_name = |character: char| character.is_ascii_alphanumeric() || character == '_';
    let (name, rest) = text.split_at(text.find(|c| !is_name(c)).unwrap_or(text.len()));
    if name.is_empty() {
        return rest;
    }
    let path = [above, &[name.to_owned()]].concat();
    match rest.strip_prefix("::") {
        Some(below) => tree(below, &path, found),
        None => {
            found.push(path);
            rest
        }
    }
}

#[test]
fn what_a_file_names_is_found_in_every_form() {
    let source = "use crate::{\n    api::{Client, peer::Peer},\n    cache,\n};\n\
                  // crate::upstream\nfn f() { crate::domain::g(); }\nuse crate::config;";
    let code = without_comments(source);
    let expected = ["api", "cache", "config", "domain"];
    assert_eq!(named_floors(&code), expected.map(str::to_owned).into());
    let written = |found: Vec<Vec<String>>| -> Vec<String> {
        found.iter().map(|path| path.join("::")).collect()
    };
    let below = paths("use crate::api::{Client, peer::{Peer}};", "crate::api::");
    assert_eq!(written(below), ["Client", "peer::Peer"]);
    let above = paths("super::super::a; super::b::C", "super::");
    assert_eq!(written(above), ["super::a", "b::C"]);
}
