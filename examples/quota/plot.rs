//! How old pages get by how many are read: as a table, and as a plot for `docs/quota.md`.

use std::{fmt::Write, time::Duration};

use crate::{
    figures::Clairvoyant,
    readers::zipf,
    rows::{Setting, pages::ages_after},
    simulate,
    world::World,
};

const QUOTAS: [u32; 2] = [5, 60];
const PAGES: [usize; 8] = [2, 5, 10, 20, 50, 100, 200, 500];

/// The ages in seconds that readers saw of so many pages.
#[derive(Debug)]
pub(crate) struct Point {
    quota: u32,
    pages: usize,
    mean: f64,
    p99: f64,
    clairvoyant: f64,
}

/// Measures every point, and prints each as a row of a Markdown table.
pub(crate) fn measure(setting: Setting) -> Vec<Point> {
    println!("| calls a minute | pages | mean age | 99th percentile | clairvoyant's mean |");
    println!("|---:|---:|---:|---:|---:|");
    let mut points = Vec::new();
    for quota in QUOTAS {
        for pages in PAGES {
            let point = simulate(measure_point(quota, pages, setting));
            let Point {
                mean,
                p99,
                clairvoyant,
                ..
            } = point;
            println!("| {quota} | {pages} | {mean:.0} s | {p99:.0} s | {clairvoyant:.0} s |");
            points.push(point);
        }
    }
    points
}

async fn measure_point(quota: u32, pages: usize, setting: Setting) -> Point {
    // How long the quota takes to fetch each page once.
    let round = Duration::from_secs(60 * pages as u64 / u64::from(quota));
    let setting = Setting {
        length: setting.length.max(round * 5),
        ..setting
    };
    let warm_up = Duration::from_secs(1200).max(round * 3);
    let world = World::new(quota, setting.seed);
    let ages = ages_after(warm_up, world, (quota, pages), setting).await;
    Point {
        quota,
        pages,
        mean: ages.sample.mean(),
        p99: ages.sample.percentile(99),
        clairvoyant: Clairvoyant::new(&zipf(pages), quota).mean(),
    }
}

const STYLE: &str = "
    text { font: 13px system-ui, sans-serif; fill: #1f2328 }
    .title { font-weight: 600 }
    .quiet { fill: #59636e }
    .limit { fill: none; stroke: #9aa4af; stroke-dasharray: 3 3 }
    .gateway { fill: #0969da }
    .line { fill: none; stroke: #0969da; stroke-width: 2 }
    .grid { stroke: #d1d9e0 }
    @media (prefers-color-scheme: dark) {
        text { fill: #e6edf3 }
        .quiet { fill: #9198a1 }
        .limit { stroke: #656c76 }
        .gateway { fill: #4493f8 }
        .line { stroke: #4493f8 }
        .grid { stroke: #3d444d }
    }
";

/// Where a number of pages is drawn.
fn x(pages: usize) -> f64 {
    56.0 + 250.0 * (pages as f64 / 2.0).log10()
}

/// Where an age in seconds is drawn.
fn y(seconds: f64) -> f64 {
    236.0 - 56.0 * (seconds.max(1.0)).log10()
}

/// Draws `points`, both axes logarithmic.
pub(crate) fn svg(points: &[Point]) -> String {
    let label = "Mean age of the pages that readers see, by pages in use";
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 760 290\" width=\"760\" height=\"290\" role=\"img\" \
         aria-label=\"{label}\">\n<style>{STYLE}</style>\n<text class=\"title\" x=\"56\" y=\"20\">{label}</text>\n"
    );
    let mut line = |text: String| {
        svg.push_str(&text);
        svg.push('\n');
    };
    for (seconds, shown) in [
        (1.0, "1 s"),
        (10.0, "10 s"),
        (60.0, "1 min"),
        (600.0, "10 min"),
        (3600.0, "1 h"),
    ] {
        let at = y(seconds);
        line(format!(
            "<path class=\"grid\" d=\"M56 {at:.1}h600\"/><text class=\"quiet\" x=\"48\" y=\"{:.1}\" text-anchor=\"end\">{shown}</text>",
            at + 4.0
        ));
    }
    for pages in PAGES {
        line(format!(
            "<text class=\"quiet\" x=\"{:.1}\" y=\"256\" text-anchor=\"middle\">{pages}</text>",
            x(pages)
        ));
    }
    for quota in QUOTAS {
        let of: Vec<_> = points.iter().filter(|point| point.quota == quota).collect();
        let path = |age: fn(&Point) -> f64| {
            of.iter().fold(String::new(), |mut path, point| {
                let _ = write!(path, "{:.1},{:.1} ", x(point.pages), y(age(point)));
                path
            })
        };
        line(format!(
            "<polyline class=\"limit\" points=\"{}\"/>",
            path(|point| point.clairvoyant)
        ));
        line(format!(
            "<polyline class=\"line\" points=\"{}\"/>",
            path(|point| point.mean)
        ));
        for point in &of {
            let (x, y) = (x(point.pages), y(point.mean));
            line(format!(
                "<circle class=\"gateway\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"/>"
            ));
        }
        if let Some(last) = of.last() {
            let (x, y) = (x(last.pages) + 10.0, y(last.mean) + 4.0);
            line(format!(
                "<text x=\"{x:.1}\" y=\"{y:.1}\">{quota} a minute</text>"
            ));
        }
    }
    line("<text class=\"quiet\" x=\"56\" y=\"280\">pages in use; dashed: the clairvoyant periodic schedule</text>".to_owned());
    svg.push_str("</svg>\n");
    svg
}
