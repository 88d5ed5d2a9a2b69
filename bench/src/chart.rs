//! The charts: throughput of each server in each row, and the cost of a hit by size.

use std::fmt::Write as _;

use crate::{
    markdown::thousands,
    results::{Point, RowResult, Size, Throughput},
};

const WIDTH: f64 = 760.0;
const LEFT: f64 = 116.0;
const BAR: f64 = 15.0;
const BAR_STEP: f64 = 19.0;
const TITLE: f64 = 26.0;
const GAP: f64 = 14.0;
/// Space after the longest bar for its figure.
const RIGHT: f64 = 170.0;

/// Works in light and dark mode.
const STYLE: &str = "
    text { font: 13px system-ui, sans-serif; fill: #1f2328 }
    .title { font-weight: 600 }
    .quiet { fill: #59636e }
    .peer { fill: #9aa4af }
    .limit { fill: none; stroke: #9aa4af; stroke-dasharray: 3 3 }
    .gateway { fill: #0969da }
    .line { fill: none; stroke: #0969da; stroke-width: 2 }
    .grid { stroke: #d1d9e0 }
    @media (prefers-color-scheme: dark) {
        text { fill: #e6edf3 }
        .quiet { fill: #9198a1 }
        .peer { fill: #656c76 }
        .limit { stroke: #656c76 }
        .gateway { fill: #4493f8 }
        .line { stroke: #4493f8 }
        .grid { stroke: #3d444d }
    }
";

/// Draws the throughput rows.
pub fn throughput(results: &[RowResult]) -> String {
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
    picture(
        "Requests a second of the gateway and its peers",
        top + GAP,
        &body,
    )
}

fn picture(label: &str, height: f64, body: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\" aria-label=\"{label}\">\n<style>{STYLE}</style>\n{body}</svg>\n"
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

/// A growth plot: the origin and length of its axes.
const PLOT_WIDTH: f64 = 300.0;
const PLOT_HEIGHT: f64 = 120.0;
const PLOT_TOP: f64 = 56.0;
const PLOT_LEFT: [f64; 2] = [46.0, 426.0];

/// Draws the cost of a hit by stored pages and by connections, on a logarithmic x axis, from zero up.
pub fn growth(results: &[RowResult]) -> String {
    let mut body = String::new();
    let points = || results.iter().flat_map(|row| &row.points);
    let most = nice(points().map(|point| point.cpu_us).fold(1.0, f64::max));
    for (of, left) in [Size::Stored, Size::Connected].into_iter().zip(PLOT_LEFT) {
        let points: Vec<_> = points().filter(|point| point.of == of).copied().collect();
        draw_plot(&mut body, of, &points, most, left);
    }
    picture(
        "CPU time of a hit by pages stored and by connections",
        PLOT_TOP + PLOT_HEIGHT + 36.0,
        &body,
    )
}

fn draw_plot(body: &mut String, of: Size, points: &[Point], most: f64, left: f64) {
    let bottom = PLOT_TOP + PLOT_HEIGHT;
    let _ = writeln!(
        body,
        r#"<text class="title" x="{left}" y="20">CPU µs a hit of 2 KB, by {}</text>"#,
        of.name()
    );
    for part in 0..=2 {
        let value = most * f64::from(part) / 2.0;
        let y = bottom - PLOT_HEIGHT * f64::from(part) / 2.0;
        let _ = writeln!(
            body,
            r#"<path class="grid" d="M{left} {y:.1}h{PLOT_WIDTH}"/><text class="quiet" x="{:.1}" y="{:.1}" text-anchor="end">{value}</text>"#,
            left - 8.0,
            y + 4.0
        );
    }
    let decades = points.iter().map(|point| decade(point.size));
    let (first, last) = decades.fold((f64::MAX, f64::MIN), |(first, last), at| {
        (first.min(at), last.max(at))
    });
    let x = |point: &Point| {
        let share = (decade(point.size) - first) / (last - first).max(1.0);
        // Space at both ends for the labels of the points.
        left + PLOT_WIDTH * (0.08 + 0.84 * share)
    };
    let y = |point: &Point| bottom - PLOT_HEIGHT * point.cpu_us / most;
    let corners: Vec<_> = points
        .iter()
        .map(|point| format!("{:.1},{:.1}", x(point), y(point)))
        .collect();
    let _ = writeln!(
        body,
        r#"<polyline class="line" points="{}"/>"#,
        corners.join(" ")
    );
    for point in points {
        let (x, y) = (x(point), y(point));
        let _ = writeln!(
            body,
            r#"<circle class="gateway" cx="{x:.1}" cy="{y:.1}" r="3.5"/><text x="{x:.1}" y="{:.1}" text-anchor="middle">{:.1}</text><text class="quiet" x="{x:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
            y - 9.0,
            point.cpu_us,
            bottom + 20.0,
            thousands(point.size as f64)
        );
    }
}

fn decade(size: u64) -> f64 {
    (size.max(1) as f64).log10()
}

/// The next round number, for the end of an axis.
fn nice(most: f64) -> f64 {
    let ten = 10_f64.powf(most.log10().floor());
    let steps = [1.0, 2.0, 4.0, 6.0, 10.0];
    let fits = steps
        .into_iter()
        .map(|step| step * ten)
        .find(|end| *end >= most);
    fits.unwrap_or(10.0 * ten)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_ends_at_a_number_that_reads_well() {
        for (most, end) in [
            (1.0, 1.0),
            (7.3, 10.0),
            (13.0, 20.0),
            (41.0, 60.0),
            (61.0, 100.0),
        ] {
            assert_eq!(nice(most), end, "{most}");
        }
    }

    #[test]
    fn both_plots_have_their_points() {
        let point = |of, size, cpu_us| Point { of, size, cpu_us };
        let row = RowResult {
            points: vec![
                point(Size::Stored, 100, 10.0),
                point(Size::Stored, 1_000_000, 20.0),
                point(Size::Connected, 1, 40.0),
            ],
            ..RowResult::default()
        };
        let drawn = growth(&[row]);
        // The highest value is at the top of its axis, the lowest a quarter up its own.
        assert!(
            drawn.contains(r#"points="70.0,146.0 322.0,116.0""#),
            "{drawn}"
        );
        assert!(drawn.contains(r#"points="450.0,56.0""#), "{drawn}");
        assert_eq!(drawn.matches("<circle").count(), 3);
    }

    #[test]
    fn a_picture_of_nothing_holds_no_number_that_is_none() {
        for drawn in [throughput(&[]), growth(&[])] {
            assert!(!drawn.contains("NaN") && !drawn.contains("inf"), "{drawn}");
        }
    }
}
