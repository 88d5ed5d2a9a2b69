//! The results as Markdown tables, the source of those in `docs/performance.md`.

use std::fmt::Write as _;

use crate::{
    results::{Comparison, Fact, Mark, RowResult, Size, Throughput},
    usage,
};

/// All rows: throughput, single figures, growth.
pub fn tables(results: &[RowResult], rounds: usize) -> String {
    let mut text = format!(
        "One run of {rounds} rounds on {}. Bold: the mark is missed.\n",
        usage::processor()
    );
    compared(&mut text, results);
    facts(&mut text, results);
    growth(&mut text, results);
    text
}

/// A line per server.
fn compared(text: &mut String, results: &[RowResult]) {
    let rows: Vec<_> = results
        .iter()
        .filter(|row| !row.comparisons.is_empty())
        .collect();
    if rows.is_empty() {
        return;
    }
    text.push_str(
        "\n| row | server | requests/s | CPU µs | core | gateway is | by CPU | mark |\n|---|---|--:|--:|--:|--:|--:|--:|\n",
    );
    for row in rows {
        let mut name = row.id;
        for server in &row.servers {
            let against = |one: &&Comparison| one.against == server.server;
            let compared = row.comparisons.iter().find(against);
            let _ = writeln!(text, "{}", line(name, server, compared));
            name = "";
        }
    }
}

fn line(name: &str, server: &Throughput, compared: Option<&Comparison>) -> String {
    let mut line = format!(
        "| {name} | {} | {} | {:.1} | {:.0} % |",
        server.server,
        thousands(server.per_second),
        server.cpu_us,
        server.busy * 100.0
    );
    let Some(found) = compared else {
        line.push_str(" | | |");
        return line;
    };
    let _ = write!(line, " {:.2} × | {:.2} × |", found.throughput, found.cpu);
    if let Some(mark) = found.mark {
        let mark = judged(&format!("{mark:.2} ×"), found.is_met());
        let _ = write!(line, " {mark}");
    }
    line.push_str(" |");
    line
}

fn facts(text: &mut String, results: &[RowResult]) {
    let rows: Vec<_> = results.iter().filter(|row| !row.facts.is_empty()).collect();
    if rows.is_empty() {
        return;
    }
    text.push_str("\n| row | what | found | mark |\n|---|---|--:|---|\n");
    for row in rows {
        let mut name = row.id;
        for fact in &row.facts {
            let found = format!("{} {}", figure(fact.value), fact.unit);
            let (what, found, mark) = (&fact.what, found.trim_end(), mark(fact));
            let _ = writeln!(text, "| {name} | {what} | {found} | {mark} |");
            name = "";
        }
    }
}

fn mark(fact: &Fact) -> String {
    let judge = |mark: Mark| judged(&mark.to_string(), fact.is_met());
    fact.mark.map_or_else(String::new, judge)
}

fn growth(text: &mut String, results: &[RowResult]) {
    for of in [Size::Stored, Size::Connected] {
        let mut points = results
            .iter()
            .flat_map(|row| &row.points)
            .filter(|point| point.of == of)
            .peekable();
        if points.peek().is_none() {
            continue;
        }
        let (mut sizes, mut rule, mut costs) = (
            format!("\n| {} |", of.name()),
            "|---|".to_owned(),
            "| CPU µs a hit |".to_owned(),
        );
        for point in points {
            let _ = write!(sizes, " {} |", thousands(point.size as f64));
            rule.push_str("--:|");
            let _ = write!(costs, " {:.1} |", point.cpu_us);
        }
        let _ = writeln!(text, "{sizes}\n{rule}\n{costs}");
    }
}

fn judged(mark: &str, met: Option<bool>) -> String {
    match met {
        Some(false) => format!("**{mark}, missed**"),
        Some(true) | None => format!("{mark}, met"),
    }
}

/// Three significant digits.
fn figure(value: f64) -> String {
    match value.abs() {
        large if large >= 1000.0 => thousands(value),
        large if large >= 100.0 => format!("{value:.0}"),
        large if large >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A whole number with thousands separators.
pub fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Point;

    fn server(server: &'static str) -> Throughput {
        Throughput {
            server,
            per_second: 64_321.4,
            cpu_us: 13.26,
            busy: 0.954,
        }
    }

    #[test]
    fn a_row_is_a_line_for_each_server() {
        let row = RowResult {
            id: "W1",
            what: "hit",
            servers: vec![server("gateway"), server("nginx"), server("varnish")],
            comparisons: vec![
                Comparison {
                    against: "nginx",
                    throughput: 1.2,
                    cpu: 1.6,
                    mark: Some(1.5),
                },
                Comparison {
                    against: "varnish",
                    throughput: 2.0,
                    cpu: 2.25,
                    mark: None,
                },
            ],
            ..RowResult::default()
        };
        let mut text = String::new();
        compared(&mut text, &[row]);
        let lines: Vec<_> = text.lines().skip(3).collect();
        assert_eq!(
            lines,
            [
                "| W1 | gateway | 64,321 | 13.3 | 95 % | | | |",
                "|  | nginx | 64,321 | 13.3 | 95 % | 1.20 × | 1.60 × | **1.50 ×, missed** |",
                "|  | varnish | 64,321 | 13.3 | 95 % | 2.00 × | 2.25 × | |",
            ]
        );
    }

    #[test]
    fn a_fact_shows_its_mark() {
        let row = RowResult {
            id: "start",
            what: "start",
            facts: vec![
                Fact::new("memory", 25.04, "MiB").at_most(20.0),
                Fact::new("gain", 1.85, "×").at_least(1.8),
                Fact::new("rate", 12_345.6, ""),
            ],
            ..RowResult::default()
        };
        let mut text = String::new();
        facts(&mut text, &[row]);
        let lines: Vec<_> = text.lines().skip(3).collect();
        assert_eq!(
            lines,
            [
                "| start | memory | 25.0 MiB | **at most 20, missed** |",
                "|  | gain | 1.85 × | at least 1.8, met |",
                "|  | rate | 12,346 |  |",
            ]
        );
    }

    #[test]
    fn growth_is_a_table_for_each_size() {
        let point = |of, size, cpu_us| Point { of, size, cpu_us };
        let row = RowResult {
            points: vec![
                point(Size::Stored, 100, 10.0),
                point(Size::Stored, 1_000_000, 14.04),
            ],
            ..RowResult::default()
        };
        let mut text = String::new();
        growth(&mut text, &[row]);
        assert_eq!(
            text,
            "\n| pages stored | 100 | 1,000,000 |\n|---|--:|--:|\n| CPU µs a hit | 10.0 | 14.0 |\n"
        );
    }
}
