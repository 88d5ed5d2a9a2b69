//! The picture of the table: requests per second of each server, in each row of throughput, beside the gateway's.

use std::fmt::Write as _;

use crate::results::{RowResult, Throughput};

const WIDTH: f64 = 760.0;
const LEFT: f64 = 116.0;
const BAR: f64 = 15.0;
const BAR_STEP: f64 = 19.0;
const TITLE: f64 = 26.0;
const GAP: f64 = 14.0;
/// Room behind the longest bar for its figure.
const RIGHT: f64 = 170.0;

/// Reads in light and dark: colours are the reader's choice of the two.
const STYLE: &str = "
    text { font: 13px system-ui, sans-serif; fill: #1f2328 }
    .title { font-weight: 600 }
    .quiet { fill: #59636e }
    .peer { fill: #9aa4af }
    .limit { fill: none; stroke: #9aa4af; stroke-dasharray: 3 3 }
    .gateway { fill: #0969da }
    @media (prefers-color-scheme: dark) {
        text { fill: #e6edf3 }
        .quiet { fill: #9198a1 }
        .peer { fill: #656c76 }
        .limit { stroke: #656c76 }
        .gateway { fill: #4493f8 }
    }
";

/// Draws the rows that hold throughput.
pub fn draw(results: &[RowResult]) -> String {
    let rows: Vec<_> = results
        .iter()
        .filter(|row| row.id.starts_with('W') && !row.servers.is_empty())
        .collect();
    let mut body = String::new();
    let mut top = TITLE;
    let _ = writeln!(
        body,
        r#"<text class="quiet" x="8" y="18">Requests a second on one core; each row has a scale of its own. Dashed: a bare hyper, the limit.</text>"#
    );
    for row in rows {
        top = draw_row(&mut body, row, top + GAP);
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\" aria-label=\"Requests a second of the gateway and its peers\">\n<style>{STYLE}</style>\n{body}</svg>\n",
        height = top + GAP
    )
}

/// Draws one row below `top`; returns where it ends.
fn draw_row(body: &mut String, row: &RowResult, top: f64) -> f64 {
    let most = row
        .servers
        .iter()
        .map(|one| one.per_second)
        .fold(1.0, f64::max);
    let title = escaped(row.what);
    let _ = writeln!(
        body,
        r#"<text class="title" x="8" y="{:.1}">{}  {title}</text>"#,
        top + 13.0,
        row.id
    );
    let mut at = top + TITLE - 6.0;
    for server in &row.servers {
        let width = (WIDTH - LEFT - RIGHT) * server.per_second / most;
        let text = at + BAR - 3.0;
        let _ = writeln!(
            body,
            r#"<text class="quiet" x="{:.1}" y="{text:.1}" text-anchor="end">{}</text><rect class="{}" x="{LEFT}" y="{at:.1}" width="{width:.1}" height="{BAR}" rx="2"/><text class="quiet" x="{:.1}" y="{text:.1}">{}</text>"#,
            LEFT - 8.0,
            server.server,
            class(server),
            LEFT + width + 8.0,
            figure(row, server)
        );
        at += BAR_STEP;
    }
    at
}

fn class(server: &Throughput) -> &'static str {
    match server.server {
        "gateway" => "gateway",
        name if name.starts_with("hyper") => "limit",
        _ => "peer",
    }
}

fn figure(row: &RowResult, server: &Throughput) -> String {
    let thousands = server.per_second / 1000.0;
    let found = row
        .comparisons
        .iter()
        .find(|one| one.against == server.server);
    match found {
        None => format!("{thousands:.1} k"),
        Some(found) => format!("{thousands:.1} k, gateway {:.2} ×", found.throughput),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
