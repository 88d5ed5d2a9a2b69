//! The public documents say what is so. `docs/configuration.md` is `config/default.toml`, to read: `UPDATE_DOCS=1 cargo test documents`
//! writes it.

use std::{
    collections::BTreeSet,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use serde_json::json;
use unpod_gateway::{api::error::CODES, config::DEFAULTS, simulator::world};

use crate::{
    gateway::{READER, digest, setup},
    process::{command, run},
};

const HEADING: &str = "\
# Configuration

Every setting with its default, generated from [`config/default.toml`](../config/default.toml), which is compiled in. Your file overrides it,
and `UNPOD_GATEWAY__SECTION__KEY` in the environment overrides both. `unpod-gateway check --config FILE` reports all problems at once.
Durations are \"250ms\", \"30s\", \"1h\"; sizes \"256MiB\", \"1048576B\". Which settings can change at runtime:
[`operations.md`](operations.md#change-the-configuration).
";

/// A line of the file, as far as the page cares.
enum Line<'a> {
    Section(&'a str),
    Key {
        name: &'a str,
        value: &'a str,
        is_default: bool,
    },
    Comment(&'a str),
    Blank,
}

fn read(line: &str) -> Line<'_> {
    let (text, is_default) = match line.strip_prefix('#') {
        Some(rest) => (rest.trim_start(), false),
        None => (line.trim(), true),
    };
    if text.is_empty() {
        return if is_default {
            Line::Blank
        } else {
            Line::Comment("")
        };
    }
    if text.starts_with('[') && text.trim_end().ends_with(']') {
        return Line::Section(text);
    }
    let named = text.split_once(" = ").filter(|(name, _)| {
        let part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        name.chars().all(part)
    });
    match named {
        Some((name, value)) => Line::Key {
            name,
            value,
            is_default,
        },
        None => Line::Comment(text),
    }
}

/// A value and the remark behind it.
fn split_remark(value: &str) -> (&str, Option<&str>) {
    match value.split_once(" # ") {
        Some((value, remark)) => (value.trim_end(), Some(remark)),
        None => (value, None),
    }
}

fn page() -> String {
    let mut page = HEADING.to_owned();
    let mut said = String::new();
    for line in DEFAULTS.lines() {
        match read(line) {
            Line::Section(section) => {
                write!(page, "\n## `{section}`\n").unwrap();
                flush(&mut page, &mut said);
            }
            Line::Key {
                name,
                value,
                is_default,
            } => {
                let (value, remark) = split_remark(value);
                let kind = if is_default {
                    "default"
                } else {
                    "not set; such as"
                };
                write!(page, "\n**`{name}`** ({kind} `{value}`)").unwrap();
                let text = [said.trim(), remark.unwrap_or_default()].join(" ");
                said.clear();
                let text = text.trim();
                let separator = if text.is_empty() { "" } else { "  \n" };
                writeln!(page, "{separator}{text}").unwrap();
            }
            Line::Comment(text) => {
                said.push_str(text);
                said.push('\n');
            }
            Line::Blank => flush(&mut page, &mut said),
        }
    }
    flush(&mut page, &mut said);
    page
}

/// Puts what was said of no key in particular.
fn flush(page: &mut String, said: &mut String) {
    if !said.trim().is_empty() {
        write!(page, "\n{}\n", said.trim()).unwrap();
    }
    said.clear();
}

#[test]
fn the_page_of_the_configuration_says_what_the_defaults_say() {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let wanted = page();
    #[expect(clippy::disallowed_methods, reason = "asks whether to write the page")]
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&file, &wanted).unwrap();
    }
    let there = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        there == wanted,
        "docs/configuration.md is not what config/default.toml says: UPDATE_DOCS=1 cargo test documents"
    );
    for key in [
        "max_in_flight",
        "stale_if_error",
        "token_file",
        "signing_key_file",
    ] {
        assert!(wanted.contains(&format!("**`{key}`**")), "{key}");
    }
}

/// What stands between the fences of `language` in a page, in order.
pub(crate) fn blocks(page: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    let begun = page.split(&fence).skip(1);
    let ended = begun.map(|rest| rest.split("```").next().unwrap().to_owned());
    ended.collect()
}

pub(crate) fn text_of(path: &str) -> String {
    fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The block of `language` in `page` that holds `part`.
pub(crate) fn block(page: &str, language: &str, part: &str) -> String {
    let found = blocks(&text_of(page), language);
    let mut found = found.into_iter().filter(|block| block.contains(part));
    found
        .next()
        .unwrap_or_else(|| panic!("{page} has no {part}"))
}

const TOKEN_FILE: &str = "/etc/unpod-gateway/unpod-token";

/// The README's first configuration, with the token and the digest that it leaves to the reader.
pub(crate) fn readme_configuration(folder: &Path, base_url: &str) -> String {
    let token = folder.join("token");
    fs::write(&token, world::ACME_TOKEN).unwrap();
    block("README.md", "toml", "[upstream.credentials.default]")
        .replace("https://unpod.dev", base_url)
        .replace(TOKEN_FILE, token.to_str().unwrap())
        .replace("<64 hex digits>", &digest(READER))
}

#[tokio::test]
async fn the_systemd_units_configuration_passes_its_own_check() {
    let folder = tempfile::tempdir().unwrap();
    let config = readme_configuration(folder.path(), "https://unpod.dev");
    let file = folder.path().join("config.toml");
    fs::write(&file, config).unwrap();
    let file = file.to_str().unwrap();
    // As root, before the unit is there.
    let checked = run(&["check", "--config", file]).await;
    assert!(checked.status.success(), "{checked:?}");
    // As the service, with the variables of the unit.
    fs::create_dir(folder.path().join("unpod-gateway")).unwrap();
    fs::write(folder.path().join("unpod-token"), world::ACME_NEXT_TOKEN).unwrap();
    let mut check = command(&["check", "--config", file]);
    let unit = text_of("deploy/systemd/unpod-gateway.service");
    let set = unit
        .lines()
        .filter_map(|line| line.strip_prefix("Environment="));
    for (name, value) in set.map(|set| set.split_once('=').unwrap()) {
        let here = folder.path().to_str().unwrap();
        check.env(name, value.replace("%d", here).replace("%S", here));
    }
    let checked = check.output().await.unwrap();
    assert!(checked.status.success(), "{checked:?}");
    // The steps name what the unit expects.
    let steps = text_of("docs/install.md");
    for part in [TOKEN_FILE, "check --config /etc/unpod-gateway/config.toml"] {
        assert!(steps.contains(part) || unit.contains(part), "{part}");
    }
}

#[tokio::test]
async fn a_new_operators_key_opens_the_listener_with_the_line_that_came_with_it() {
    let output = run(&["key", "new", "--client", "operators", "--admin"]).await;
    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8(output.stdout).unwrap();
    let key = printed
        .lines()
        .find(|line| line.starts_with("ugw_"))
        .unwrap();
    let (_, table) = printed.split_once("\n\n").unwrap();
    assert!(table.starts_with("[admin]\nkey_sha256 = [\""), "{printed}");
    assert!(!printed.contains("[[clients]]"));

    let gateway = setup().with(table).start().await;

    let url = format!("{}/config", gateway.admin_url());
    let ask = |key: &str| gateway.http().get(&url).bearer_auth(key).send();
    assert_eq!(ask(key).await.unwrap().status(), 200);
    assert_eq!(ask(READER).await.unwrap().status(), 401);
}

#[test]
fn the_document_of_the_listener_names_every_code_and_leaves_tasks_open() {
    let document: serde_json::Value = serde_json::from_str(&text_of("docs/openapi.json")).unwrap();
    let schemas = &document["components"]["schemas"];
    let code = &schemas["Code"];
    let named = code["enum"].as_array().unwrap().iter();
    let named: BTreeSet<_> = named.map(|name| name.as_str().unwrap()).collect();
    assert_eq!(named, BTreeSet::from(CODES));
    for name in named {
        let line = format!("\n- `{name}`: ");
        assert!(
            code["description"].as_str().unwrap().contains(&line),
            "{name}"
        );
    }
    let task = &schemas["Task"];
    for open in [task, &schemas["TaskPage"]] {
        assert_eq!(open["additionalProperties"], true);
    }
    for (member, types) in [
        ("task_id", json!("string")),
        ("thread_id", json!(["string", "null"])),
        ("output", json!(["object", "null"])),
        ("input", json!(["object", "null"])),
        ("user_info", json!("object")),
        ("task", json!("object")),
        ("status", json!("string")),
    ] {
        let schema = &task["properties"][member];
        assert_eq!(schema["type"], types, "{member}");
        let is_object = types.to_string().contains("object");
        assert_eq!(
            schema["additionalProperties"] == true,
            is_object,
            "{member}"
        );
    }
    let view = &schemas["BrowserTokenRequest"]["properties"]["view"]["description"];
    assert!(view.as_str().unwrap().contains("configured"));
    assert!(!document.to_string().contains("None can be configured"));
}

/// Every Markdown page of the project, by its path.
pub(crate) fn pages() -> Vec<String> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let in_folder = |folder: &'static str| {
        let entries = fs::read_dir(root.join(folder)).unwrap();
        entries.map(move |entry| format!("{folder}{}", entry.unwrap().file_name().display()))
    };
    let folders = ["", "docs/", "deploy/"].into_iter();
    let files = folders.flat_map(in_folder);
    files.filter(|file| file.ends_with(".md")).collect()
}

/// What a heading is called in a URL.
fn anchor(heading: &str) -> String {
    let heading = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, '-' | '_' | ' ');
    heading
        .chars()
        .filter(kept)
        .collect::<String>()
        .replace(' ', "-")
}

#[test]
fn every_link_between_the_pages_leads_somewhere() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut followed = 0;
    for page in pages() {
        let text = text_of(&page);
        let links = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.starts_with("http")) {
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => root.join(&page),
                path => root.join(&page).parent().unwrap().join(path),
            };
            assert!(target.exists(), "{page} links to {link}");
            if !heading.is_empty() {
                let text = fs::read_to_string(&target).unwrap();
                let mut headings = text.lines().filter(|line| line.starts_with('#'));
                let is_there = headings.any(|line| anchor(line) == heading);
                assert!(is_there, "{page} links to {link}");
            }
            followed += 1;
        }
    }
    assert!(followed > 50, "{followed}");
}
