//! `GET /docs/{page}`: the documents for operators, of the running version: an alert links to them, and at night there may be no other way
//! to read them.

use axum::{
    extract::Path,
    response::{IntoResponse, Response},
};
use http::StatusCode;

use super::dashboard;

const PAGES: [(&str, &str); 5] = [
    ("metrics", include_str!("../../../docs/metrics.md")),
    ("operations", include_str!("../../../docs/operations.md")),
    ("resilience", include_str!("../../../docs/resilience.md")),
    ("runbook", include_str!("../../../docs/runbook.md")),
    (
        "troubleshooting",
        include_str!("../../../docs/troubleshooting.md"),
    ),
];

pub(super) async fn docs(Path(page): Path<String>) -> Response {
    match PAGES.iter().find(|(name, _)| *name == page) {
        Some((name, text)) => dashboard::html(html(name, text)),
        None => (StatusCode::NOT_FOUND, "no such page").into_response(),
    }
}

/// The text as it is, with headings that can be linked to.
fn html(name: &str, markdown: &str) -> String {
    let text = markdown
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let lines = text.lines().map(|line| match heading(line) {
        Some((level, text)) => {
            let id = anchor(text);
            format!("<h{level} id=\"{id}\">{text}</h{level}>")
        }
        None => format!("{line}\n"),
    });
    let body: String = lines.collect();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{name} – unpod-gateway</title>\n\
         <link rel=\"stylesheet\" href=\"../dashboard.css\">\n<main class=\"document\">{body}</main>\n</html>\n"
    )
}

/// Of `## Text` the 2 and the text. Comments in code begin with a single `#`, and no document has more than one title.
fn heading(line: &str) -> Option<(usize, &str)> {
    let text = line.trim_start_matches('#');
    let level = line.len() - text.len();
    let is_heading = (2..=4).contains(&level) && text.starts_with(' ');
    is_heading.then(|| (level, text.trim()))
}

/// As git hosts make it of a heading.
fn anchor(heading: &str) -> String {
    let heading = heading.to_lowercase();
    let kept = heading
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heading_can_be_linked_to_and_nothing_is_markup() {
        let page = html("x", "# Title\n\n## Find out why\na <b> & c\n");
        assert!(
            page.contains("<h2 id=\"find-out-why\">Find out why</h2>"),
            "{page}"
        );
        assert!(page.contains("# Title\n\n"), "{page}");
        assert!(page.contains("a &lt;b&gt; &amp; c\n"), "{page}");
    }
}
