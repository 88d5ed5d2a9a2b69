//! The results, as one Markdown table of servers and one of single figures.

use std::fmt::Write as _;

use crate::{rows::Row, server::Kind, usage};

/// One server in one row: the medians of its rounds.
#[derive(Clone, Copy, Debug)]
pub struct Served {
    pub kind: Kind,
    pub workers: usize,
    pub per_second: f64,
    /// CPU time of all its processes per request.
    pub cpu_us: f64,
    /// The other's CPU time per request to the gateway's, by round; the median. Above 1 the gateway is ahead.
    pub gateway_is: f64,
    /// The p50 and p99 at a fixed rate, in milliseconds.
    pub latency: Option<(f64, f64)>,
}

/// A single figure.
#[derive(Clone, Debug)]
pub struct Fact {
    pub what: String,
    pub value: f64,
    pub unit: &'static str,
    pub at_most: Option<f64>,
}

impl Fact {
    pub fn new(what: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            what: what.into(),
            value,
            unit,
            at_most: None,
        }
    }

    pub fn at_most(self, limit: f64) -> Self {
        Self {
            at_most: Some(limit),
            ..self
        }
    }

    fn is_missed(&self) -> bool {
        // A figure that could not be measured misses its mark.
        self.at_most
            .is_some_and(|limit| self.value.is_nan() || self.value > limit)
    }
}

/// The result of one row.
#[derive(Clone, Debug)]
pub struct Result {
    pub row: &'static Row,
    /// Requests a second at which latency was measured.
    pub rate: Option<f64>,
    pub servers: Vec<Served>,
    pub facts: Vec<Fact>,
}

impl Result {
    pub fn of(row: &'static Row) -> Self {
        Self {
            row,
            rate: None,
            servers: Vec::new(),
            facts: Vec::new(),
        }
    }

    /// How many times as good as `against` the server `of` is by CPU time, with so many workers.
    pub fn ratio(&self, of: Kind, against: Kind, workers: usize) -> Option<f64> {
        let find = |kind| {
            let mut found = self.servers.iter();
            found.find(|one| one.kind == kind && one.workers == workers)
        };
        Some(find(against)?.gateway_is / find(of)?.gateway_is)
    }

    fn marks(&self) -> Vec<(String, bool)> {
        let marks = self.row.marks.iter().filter_map(|mark| {
            let found = self.ratio(mark.of, mark.against, 2)?;
            let (of, against) = (mark.of.name(), mark.against.name());
            let text = format!("{of} to {against} {found:.2} ({})", mark.at_least);
            Some((text, found >= mark.at_least))
        });
        marks.collect()
    }
}

/// Both tables; a mark that is missed is bold.
pub fn markdown(results: &[Result], rounds: usize) -> String {
    let mut text = format!(
        "{rounds} rounds on {} cores of {}.\n",
        std::thread::available_parallelism().map_or(1, usize::from),
        usage::processor()
    );
    text.push_str("\n| row | server | workers | requests/s | CPU µs | gateway is | p50, p99 ms |\n|---|---|--:|--:|--:|--:|--:|\n");
    for result in results {
        let mut name = format!("{}: {}", result.row.id, result.row.what);
        for served in &result.servers {
            let latency = served
                .latency
                .map_or_else(String::new, |(p50, p99)| format!("{p50:.2}, {p99:.2}"));
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {:.1} | {:.2} | {latency} |",
                std::mem::take(&mut name),
                served.kind.name(),
                served.workers,
                figure(served.per_second),
                served.cpu_us,
                served.gateway_is,
            );
        }
    }
    text.push_str("\n| row | what | found | mark |\n|---|---|--:|---|\n");
    for result in results {
        let id = result.row.id;
        if let Some(rate) = result.rate {
            let _ = writeln!(
                text,
                "| {id} | rate of the latencies | {} /s | |",
                figure(rate)
            );
        }
        for (mark, is_met) in result.marks() {
            let mark = emphasized(&mark, !is_met);
            let _ = writeln!(text, "| {id} | CPU, two workers: {mark} | | |");
        }
        for fact in &result.facts {
            let limit = fact.at_most.map(|limit| format!("≤ {}", figure(limit)));
            let limit = emphasized(&limit.unwrap_or_default(), fact.is_missed());
            let (what, found, unit) = (&fact.what, figure(fact.value), fact.unit);
            let _ = writeln!(text, "| {id} | {what} | {found} {unit} | {limit} |");
        }
    }
    text
}

fn emphasized(text: &str, is_missed: bool) -> String {
    if is_missed {
        format!("**{text}, missed**")
    } else {
        text.to_owned()
    }
}

/// Three significant digits, or a whole number with thousands separators.
fn figure(value: f64) -> String {
    match value.abs() {
        large if large >= 1000.0 => {
            let (thousands, rest) = ((value / 1000.0).trunc(), (value % 1000.0).abs());
            format!("{thousands:.0},{:03.0}", rest.floor())
        }
        large if large >= 100.0 => format!("{value:.0}"),
        large if large >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The middle value; of an even number of them the mean of the middle two.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => f64::midpoint(values[count / 2 - 1], values[count / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::ROWS;

    #[test]
    fn what_misses_its_mark_is_shown() {
        let served = |kind, cpu_us, gateway_is| Served {
            kind,
            workers: 2,
            per_second: 64_321.4,
            cpu_us,
            gateway_is,
            latency: None,
        };
        let mut result = Result::of(&ROWS[0]);
        result.servers = vec![
            served(Kind::Gateway, 10.0, 1.0),
            served(Kind::Release, 12.5, 1.25),
            served(Kind::Nginx, 11.0, 1.1),
        ];
        result.facts = vec![
            Fact::new("memory", 25.04, "MiB").at_most(20.0),
            Fact::new("nothing", f64::NAN, "").at_most(1.0),
        ];
        let text = markdown(&[result], 3);
        for line in [
            "| W1: hit, 2 KB | gateway | 2 | 64,321 | 10.0 | 1.00 |  |",
            "|  | nginx | 2 | 64,321 | 11.0 | 1.10 |  |",
            "| W1 | CPU, two workers: gateway to nginx 1.10 (1.05) | | |",
            "| W1 | CPU, two workers: **release to nginx 0.88 (0.9), missed** | | |",
            "| W1 | memory | 25.0 MiB | **≤ 20.0, missed** |",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(text.contains("**≤ 1.00, missed**"));
    }

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median([]).is_nan());
    }
}
