//! The gateway's CPU time against nginx's, as an SVG bar chart.

use std::fmt::Write as _;

use crate::{report::Result, server::Kind};

const LEFT: f64 = 70.0;
/// The width of a ratio of one.
const ONE: f64 = 220.0;
const ROW: f64 = 42.0;
const MOST: f64 = 2.5;

/// A bar per build and row that nginx takes part in, with two workers.
pub fn bars(results: &[Result]) -> String {
    let nginx = |result: &Result, of| {
        let against = [Kind::Nginx, Kind::NginxCopy];
        let mut ratios = against
            .into_iter()
            .filter_map(|against| result.ratio(of, against, 2));
        ratios.next()
    };
    let rows: Vec<_> = results
        .iter()
        .filter_map(|result| {
            let shipped = nginx(result, Kind::Gateway)?;
            Some((result.row.id, [Some(shipped), nginx(result, Kind::Release)]))
        })
        .collect();
    let (width, height) = (LEFT + MOST * ONE + 50.0, 50.0 + ROW * rows.len() as f64);
    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">
<rect width="100%" height="100%" fill="white"/>
<text x="{LEFT}" y="20">CPU time of nginx to the gateway's, two workers: right of the line the gateway is ahead</text>
"#
    );
    for (at, (id, ratios)) in rows.iter().enumerate() {
        let top = 35.0 + ROW * at as f64;
        let _ = writeln!(svg, r#"<text x="10" y="{}">{id}</text>"#, top + 20.0);
        for (ratio, (offset, color)) in ratios.iter().zip([(2.0, "#2a6f97"), (18.0, "#a9c9dd")]) {
            let Some(ratio) = ratio else {
                continue;
            };
            let (y, length) = (top + offset, ratio.min(MOST) * ONE);
            let _ = writeln!(
                svg,
                r#"<rect x="{LEFT}" y="{y}" width="{length:.1}" height="14" fill="{color}"/><text x="{:.1}" y="{}">{ratio:.2}</text>"#,
                LEFT + length + 5.0,
                y + 12.0
            );
        }
    }
    let (line, bottom) = (LEFT + ONE, height - 10.0);
    let _ = writeln!(
        svg,
        r##"<line x1="{line}" y1="30" x2="{line}" y2="{bottom}" stroke="#c1121f"/><text x="{LEFT}" y="{}" font-size="11">dark: the shipped program; light: cargo build --release</text>
</svg>"##,
        height - 3.0
    );
    svg
}
