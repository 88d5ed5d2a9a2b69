//! The results, and how they are printed.

use std::fmt::{self, Write as _};

use serde_json::{Value, json};

use crate::rows::Row;

/// One server in one row: the medians of its rounds.
#[derive(Clone, Debug)]
pub struct Throughput {
    pub server: &'static str,
    pub per_second: f64,
    /// CPU time of all its processes per request.
    pub cpu_us: f64,
    /// The share of a core it used: below 0.9 the load generator was the bottleneck.
    pub busy: f64,
}

/// The gateway relative to another server in one row: medians of the ratios within a round; above 1 the gateway is ahead.
#[derive(Clone, Debug)]
pub struct Comparison {
    pub against: &'static str,
    pub throughput: f64,
    /// The other's CPU time per request divided by the gateway's.
    pub cpu: f64,
    pub mark: Option<f64>,
}

impl Comparison {
    /// Both ratios must reach the mark: if the load generator is the bottleneck, throughput alone would favour the slower server.
    pub fn is_met(&self) -> Option<bool> {
        self.mark.map(|mark| self.throughput.min(self.cpu) >= mark)
    }
}

/// A single figure.
#[derive(Clone, Debug)]
pub struct Fact {
    pub what: String,
    pub value: f64,
    pub unit: &'static str,
    pub mark: Option<Mark>,
}

/// The target of a figure.
#[derive(Clone, Copy, Debug)]
pub enum Mark {
    AtMost(f64),
    AtLeast(f64),
}

impl Mark {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "at most {}", rounded(*limit)),
            Self::AtLeast(limit) => write!(f, "at least {}", rounded(*limit)),
        }
    }
}

/// The cost of a hit at one size.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    pub of: Size,
    pub size: u64,
    pub cpu_us: f64,
}

/// What grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    Stored,
    Connected,
}

impl Size {
    pub fn name(self) -> &'static str {
        match self {
            Self::Stored => "pages stored",
            Self::Connected => "connections",
        }
    }
}

impl Fact {
    pub fn new(what: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            what: what.into(),
            value,
            unit,
            mark: None,
        }
    }

    pub fn at_most(self, limit: f64) -> Self {
        Self {
            mark: Some(Mark::AtMost(limit)),
            ..self
        }
    }

    pub fn at_least(self, limit: f64) -> Self {
        Self {
            mark: Some(Mark::AtLeast(limit)),
            ..self
        }
    }

    pub fn is_met(&self) -> Option<bool> {
        self.mark.map(|mark| mark.is_met(self.value))
    }
}

/// The result of one row.
#[derive(Clone, Debug, Default)]
pub struct RowResult {
    pub id: &'static str,
    pub what: &'static str,
    pub servers: Vec<Throughput>,
    pub comparisons: Vec<Comparison>,
    pub facts: Vec<Fact>,
    pub points: Vec<Point>,
}

impl RowResult {
    /// The result as text, under the name of its row.
    pub fn of(self, row: &Row) -> Self {
        Self {
            id: row.id,
            what: row.what,
            ..self
        }
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut text = format!("\n{}  {}\n", self.id, self.what);
        if !self.servers.is_empty() {
            text.push_str(
                "  server          requests/s  CPU µs   core    gateway is   by CPU     mark\n",
            );
        }
        for server in &self.servers {
            let _ = write!(
                text,
                "  {:<14} {:>11.0} {:>7.1} {:>5.0} %",
                server.server,
                server.per_second,
                server.cpu_us,
                server.busy * 100.0
            );
            let compared = self.comparisons.iter();
            if let Some(found) = compared.clone().find(|one| one.against == server.server) {
                let _ = write!(text, " {:>9.2} × {:>8.2} ×", found.throughput, found.cpu);
                if let Some(mark) = found.mark {
                    let _ = write!(text, " {:>6.2} × {}", mark, verdict(found.is_met()));
                }
            }
            text.push('\n');
        }
        for fact in &self.facts {
            let _ = write!(
                text,
                "  {:<52} {:>10.2} {}",
                fact.what, fact.value, fact.unit
            );
            if let Some(mark) = fact.mark {
                let _ = write!(text, "  {mark} {}", verdict(fact.is_met()));
            }
            text.push('\n');
        }
        for point in &self.points {
            let what = format!("{} {}", point.size, point.of.name());
            let _ = writeln!(text, "  {what:<52} {:>10.2} CPU µs", point.cpu_us);
        }
        text
    }

    pub fn json(&self) -> Value {
        let servers = self.servers.iter().map(|server| {
            json!({
                "server": server.server,
                "requests_per_second": server.per_second.round(),
                "cpu_us_per_request": rounded(server.cpu_us),
                "core_share": rounded(server.busy),
            })
        });
        let comparisons = self.comparisons.iter().map(|one| {
            json!({
                "against": one.against,
                "throughput_ratio": rounded(one.throughput),
                "cpu_ratio": rounded(one.cpu),
                "mark": one.mark,
                "met": one.is_met(),
            })
        });
        let facts = self.facts.iter().map(|fact| {
            json!({
                "what": fact.what,
                "value": rounded(fact.value),
                "unit": fact.unit,
                "mark": fact.mark.map(|mark| mark.to_string()),
                "met": fact.is_met(),
            })
        });
        let points = self.points.iter().map(|point| {
            json!({
                "of": point.of.name(),
                "size": point.size,
                "cpu_us_per_request": rounded(point.cpu_us),
            })
        });
        json!({
            "row": self.id,
            "what": self.what,
            "servers": servers.collect::<Vec<_>>(),
            "comparisons": comparisons.collect::<Vec<_>>(),
            "facts": facts.collect::<Vec<_>>(),
            "points": points.collect::<Vec<_>>(),
        })
    }

    /// Marks met and missed.
    pub fn marks(&self) -> (usize, usize) {
        let compared = self.comparisons.iter().filter_map(Comparison::is_met);
        let all: Vec<_> = compared
            .chain(self.facts.iter().filter_map(Fact::is_met))
            .collect();
        let met = all.iter().filter(|met| **met).count();
        (met, all.len() - met)
    }
}

pub fn verdict(met: Option<bool>) -> &'static str {
    match met {
        Some(true) => "met",
        Some(false) => "MISSED",
        None => "",
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
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

    #[test]
    fn the_lower_of_two_ratios_is_held_against_the_mark() {
        let compared = |throughput, cpu, mark| Comparison {
            against: "nginx",
            throughput,
            cpu,
            mark,
        };
        assert_eq!(compared(1.6, 1.5, Some(1.5)).is_met(), Some(true));
        assert_eq!(compared(1.6, 1.4, Some(1.5)).is_met(), Some(false));
        assert_eq!(compared(1.4, 1.6, Some(1.5)).is_met(), Some(false));
        assert_eq!(compared(0.1, 0.1, None).is_met(), None);
        // A figure that could not be measured does not meet its mark.
        assert_eq!(
            compared(f64::NAN, f64::NAN, Some(1.0)).is_met(),
            Some(false)
        );
    }

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median([]).is_nan());
    }
}
