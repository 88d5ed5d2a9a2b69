//! Does the work of the rows.

use std::{fmt::Display, time::Duration};

use crate::{
    check::{check, tag_of_first_page},
    load::{Expect, Load, LoadError, Pace},
    pages::{Key, LARGE, SMALL},
    request::{Feed, Form},
    results::{Comparison, Fact, RowResult, Throughput, median},
    rows::{HOT_TENTH, Hits, MANY, Row, Work},
    server::{Bench, Kind, Server},
    upstream::Upstream,
    usage,
};

/// Connections of the closed loops.
const CONNECTIONS: usize = 64;
/// Room for all pages of a row.
const ROOMY_MIB: u64 = 1024;
/// A cache that is soon full, for the misses.
const TIGHT_MIB: u64 = 64;
/// Pages of 40 KB that fill it twice.
const TO_FILL: u64 = 2 * (TIGHT_MIB << 20) / 40_000;

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    pub rounds: usize,
    pub warm_up: Duration,
    pub measured: Duration,
    /// Keys of the rows with many, as a share of them.
    pub scale: u64,
    /// Pages stored, and connections, of the rows about growth.
    pub stored: &'static [u64],
    pub connected: &'static [usize],
}

impl Effort {
    pub fn full(rounds: usize) -> Self {
        Self {
            rounds,
            warm_up: Duration::from_millis(300),
            measured: Duration::from_secs(2),
            scale: 1,
            stored: &[100, 10_000, 1_000_000],
            connected: &[1, 10, 64, 1_000, 10_000],
        }
    }

    /// Enough to see that everything works, too little to say how fast.
    pub fn short() -> Self {
        Self {
            rounds: 1,
            warm_up: Duration::from_millis(20),
            measured: Duration::from_millis(150),
            scale: 20,
            stored: &[100, 500],
            connected: &[1, 200],
        }
    }
}

pub struct Measure<'a> {
    pub bench: &'a Bench,
    pub upstream: &'a Upstream,
    pub effort: Effort,
}

/// What a server did in one round.
#[derive(Clone, Copy, Debug)]
struct Round {
    per_second: f64,
    cpu_us: f64,
    busy: f64,
}

impl Measure<'_> {
    /// Does the work of a row.
    ///
    /// # Errors
    ///
    /// Returns what went wrong; a row is measured whole or not at all.
    pub fn row(&self, row: &Row) -> Result<RowResult, String> {
        let result = match row.work {
            Work::Hits(hits) => self.hits(row, hits),
            Work::Misses => self.misses(row),
            Work::Burst => self.burst(row),
            Work::Memory => self.memory(row),
            Work::Tail => self.tail(row),
            Work::Start => self.start(row),
            Work::Growth => self.growth(row),
        };
        result.map_err(|error| format!("{}: {error}", row.id))
    }

    fn hits(&self, row: &Row, hits: Hits) -> Result<RowResult, String> {
        let hits = self.scaled(hits);
        let mut lanes = Vec::new();
        for (kind, _) in row.servers {
            let server = self.started(*kind, ROOMY_MIB)?;
            let (feed, expected) = self.stored(&server, hits)?;
            lanes.push((server, feed, expected));
        }
        self.rounds(row, |at| {
            let (server, feed, expected) = &lanes[at];
            let calls = self.upstream.calls();
            let round = self.closed_loop(server, CONNECTIONS, feed.clone(), *expected)?;
            match self.upstream.calls() - calls {
                0 => Ok(round),
                misses => Err(format!("{misses} requests were no hits")),
            }
        })
    }

    fn scaled(&self, hits: Hits) -> Hits {
        let scaled = |keys: u64| (keys / self.effort.scale).max(1);
        Hits {
            keys: scaled(hits.keys),
            stored: scaled(hits.stored),
            ..hits
        }
    }

    /// Puts the pages of a row into a server, with their coded copies; returns what to ask for and what must come.
    fn stored(&self, server: &Server, hits: Hits) -> Result<(Feed, Expect), String> {
        let mut form = Form::new(server.address, hits.page_size).with_gzip(hits.takes_gzip);
        let mut expected = self.page_of(hits.page_size);
        if hits.takes_gzip {
            expected.body_len = None;
        }
        if server.kind.is_cache() {
            // Twice: a coded copy may be made on the first hit, which comes after the fill.
            for _ in 0..2 {
                self.ask_each(server, &form, 0..hits.stored, expected)?;
            }
        }
        if hits.conditional {
            form.has = Some(match server.kind {
                Kind::Hyper(_) | Kind::HyperMap { .. } => "\"any\"".to_owned(),
                _ => tag_of_first_page(server, self.upstream)?,
            });
            expected = Expect {
                status: 304,
                body_len: Some(0),
            };
        }
        let feed = if hits.keys == 1 {
            Feed::one(&form)
        } else {
            Feed::zipf(&form, hits.keys)
        };
        Ok((feed, expected))
    }

    fn misses(&self, row: &Row) -> Result<RowResult, String> {
        let mut servers = Vec::new();
        for (kind, _) in row.servers {
            let server = self.started(*kind, TIGHT_MIB)?;
            let form = Form::new(server.address, LARGE);
            let fill = 0..TO_FILL / self.effort.scale;
            self.ask_each(&server, &form, fill, self.page_of(LARGE))?;
            servers.push(server);
        }
        let mut next = 1 << 32;
        self.rounds(row, |at| {
            let server = &servers[at];
            let form = Form::new(server.address, LARGE);
            // More than can be asked for in a round.
            let feed = Feed::each(&form, next..next + (1 << 32));
            next += 1 << 32;
            let calls = self.upstream.calls();
            let round = self.closed_loop(server, CONNECTIONS, feed, self.page_of(LARGE))?;
            let asked = (round.per_second * self.effort.measured.as_secs_f64()) as u64;
            if self.upstream.calls() - calls < asked {
                return Err("not every request was a miss".to_owned());
            }
            Ok(round)
        })
    }

    fn burst(&self, row: &Row) -> Result<RowResult, String> {
        const AT_ONCE: usize = 500;
        const LATENCY: Duration = Duration::from_millis(200);
        let mut result = empty(row);
        for (kind, _) in row.servers {
            let server = self.started(*kind, ROOMY_MIB)?;
            let form = Form::new(server.address, LARGE);
            let mut calls = Vec::new();
            let mut p99 = Vec::new();
            for round in 0..self.effort.rounds {
                let feed = Feed::times(&form, Key(round as u64), AT_ONCE as u64);
                let expected = self.page_of(LARGE);
                let mut load =
                    Load::closed(server.address, AT_ONCE, feed, expected).map_err(text)?;
                let before = self.upstream.calls();
                self.upstream.set_latency(LATENCY);
                let asked = load.run_out();
                self.upstream.set_latency(Duration::ZERO);
                asked.map_err(text)?;
                calls.push((self.upstream.calls() - before) as f64);
                p99.push(millis(load.tally(0).times.quantile(0.99)));
            }
            // The worst round: one call is one call.
            let calls = calls.into_iter().fold(0.0, f64::max);
            let is_ours = *kind == Kind::Gateway;
            let calls = Fact::new(format!("{}: upstream calls", kind.name()), calls, "");
            let p99 = Fact::new(format!("{}: p99", kind.name()), median(p99), "ms");
            result
                .facts
                .push(if is_ours { calls.at_most(1.0) } else { calls });
            result
                .facts
                .push(if is_ours { p99.at_most(230.0) } else { p99 });
        }
        Ok(result)
    }

    fn memory(&self, row: &Row) -> Result<RowResult, String> {
        let mut result = empty(row);
        let mut taken = Vec::new();
        for (kind, _) in row.servers {
            let server = self.started(*kind, ROOMY_MIB)?;
            let before = server.memory();
            let form = Form::new(server.address, LARGE);
            let all = 0..MANY / self.effort.scale;
            self.ask_each(&server, &form, all, self.page_of(LARGE))?;
            let mib = (server.memory() - before) as f64 / f64::from(1 << 20);
            let what = format!("{}: memory for the pages", kind.name());
            result.facts.push(Fact::new(what, mib, "MiB"));
            taken.push(mib);
        }
        let share = Fact::new("gateway / nginx", taken[0] / taken[1], "");
        result.facts.push(share.at_most(1.0 / 3.0));
        for hot in HOT_TENTH {
            let hits = self.row(&hot)?;
            result.servers.extend(hits.servers);
            result.comparisons.extend(hits.comparisons);
        }
        Ok(result)
    }

    fn tail(&self, row: &Row) -> Result<RowResult, String> {
        let hits = Hits {
            page_size: SMALL,
            keys: 1000,
            stored: 1000,
            takes_gzip: false,
            conditional: false,
        };
        let mut lanes = Vec::new();
        let mut rate = f64::MAX;
        for (kind, _) in row.servers {
            let server = self.started(*kind, ROOMY_MIB)?;
            let (feed, expected) = self.stored(&server, hits)?;
            let saturated = self.closed_loop(&server, CONNECTIONS, feed.clone(), expected)?;
            // Both get the same load: half of what the slower can do.
            rate = rate.min(saturated.per_second / 2.0);
            lanes.push((server, feed, expected));
        }
        let mut result = empty(row);
        result.facts.push(Fact::new("hits a second", rate, ""));
        let mut times = vec![Vec::new(); lanes.len()];
        let mut next = 1 << 32;
        for _ in 0..self.effort.rounds {
            for (at, (server, feed, expected)) in lanes.iter().enumerate() {
                let found = self.open_loop(server, feed.clone(), *expected, rate, next)?;
                times[at].push(found);
                next += 1 << 20;
            }
        }
        for (at, (server, ..)) in lanes.iter().enumerate() {
            for (place, name) in ["p50", "p99", "p99.9"].into_iter().enumerate() {
                let value = median(times[at].iter().map(|round| round[place]));
                let what = format!("{}: {name}", server.kind.name());
                result.facts.push(Fact::new(what, value, "µs"));
            }
        }
        let pairs = times[0].iter().zip(&times[1]);
        let ratio = median(pairs.map(|(ours, theirs)| ours[2] / theirs[2]));
        let ratio = Fact::new("p99.9: gateway / nginx", ratio, "");
        result.facts.push(ratio.at_most(1.0));
        Ok(result)
    }

    /// The median, 99th and 99.9th percentile of hits at a rate, in microseconds, with misses beside them.
    fn open_loop(
        &self,
        server: &Server,
        feed: Feed,
        expected: Expect,
        rate: f64,
        first_miss: u64,
    ) -> Result<[f64; 3], String> {
        const MISSES_PER_SECOND: f64 = 100.0;
        let misses = Feed::each(&Form::new(server.address, LARGE), first_miss..u64::MAX);
        self.upstream.set_latency(Duration::from_millis(20));
        let run = || -> Result<Load, LoadError> {
            let address = server.address;
            let mut load = Load::new()?;
            load.add_lane(address, CONNECTIONS, feed, expected, Pace::PerSecond(rate))?;
            let pace = Pace::PerSecond(MISSES_PER_SECOND);
            load.add_lane(address, CONNECTIONS, misses, self.page_of(LARGE), pace)?;
            load.run_for(self.effort.warm_up)?;
            load.run_for(3 * self.effort.measured)?;
            Ok(load)
        };
        let ran = run();
        self.upstream.set_latency(Duration::ZERO);
        let mut load = ran.map_err(text)?;
        let times = load.tally(0).times.clone();
        load.finish().map_err(text)?;
        Ok([0.5, 0.99, 0.999].map(|share| millis(times.quantile(share)) * 1000.0))
    }

    fn start(&self, row: &Row) -> Result<RowResult, String> {
        let mut result = empty(row);
        for (kind, _) in row.servers {
            let mut started = Vec::new();
            let mut resident = Vec::new();
            for _ in 0..self.effort.rounds.max(3) {
                let server = self.bench.start(*kind, ROOMY_MIB, self.upstream);
                let server = server.map_err(text)?;
                started.push(millis(server.started_in));
                resident.push(usage::resident(&server.family()) as f64 / f64::from(1 << 20));
            }
            let what = format!("{}: start to the first page", kind.name());
            result
                .facts
                .push(Fact::new(what, median(started), "ms").at_most(50.0));
            let what = format!("{}: resident memory idle", kind.name());
            result
                .facts
                .push(Fact::new(what, median(resident), "MiB").at_most(20.0));
        }
        Ok(result)
    }

    fn growth(&self, row: &Row) -> Result<RowResult, String> {
        let mut result = empty(row);
        for stored in self.effort.stored {
            // What a page of 2 KB takes, its keys and the allocator's share included.
            let needed = stored * 6_000;
            if needed > usage::available() / 2 {
                let what = format!("{stored} pages: not measured, too little memory");
                result
                    .facts
                    .push(Fact::new(what, needed as f64 / 1e9, "GB"));
                continue;
            }
            let cpu = self.cost_with_stored(*stored, needed)?;
            let what = format!("{stored} pages stored, any of them asked for");
            result.facts.push(Fact::new(what, cpu, "CPU µs a hit"));
        }
        for connected in self.effort.connected {
            let cpu = self.cost_with_connections(*connected)?;
            let what = format!("{connected} connections, one page");
            result.facts.push(Fact::new(what, cpu, "CPU µs a hit"));
        }
        Ok(result)
    }

    fn cost_with_stored(&self, stored: u64, bytes: u64) -> Result<f64, String> {
        let server = self.started(Kind::Gateway, ROOMY_MIB.max(bytes >> 20))?;
        let form = Form::new(server.address, SMALL);
        let expected = self.page_of(SMALL);
        self.ask_each(&server, &form, 0..stored, expected)?;
        let calls = self.upstream.calls();
        let cpu = self.cost(&server, CONNECTIONS, &Feed::any(&form, stored))?;
        if self.upstream.calls() != calls {
            return Err(format!("not all of {stored} pages were stored"));
        }
        Ok(cpu)
    }

    fn cost_with_connections(&self, connected: usize) -> Result<f64, String> {
        let server = self.started(Kind::Gateway, ROOMY_MIB)?;
        let form = Form::new(server.address, SMALL);
        self.cost(&server, connected, &Feed::one(&form))
    }

    /// CPU time of a hit of 2 KB.
    fn cost(&self, server: &Server, connections: usize, feed: &Feed) -> Result<f64, String> {
        let mut costs = Vec::new();
        for _ in 0..self.effort.rounds {
            let expected = self.page_of(SMALL);
            let round = self.closed_loop(server, connections, feed.clone(), expected)?;
            costs.push(round.cpu_us);
        }
        Ok(median(costs))
    }

    /// Interleaves the servers of a row, and compares within each round.
    fn rounds(
        &self,
        row: &Row,
        mut measure: impl FnMut(usize) -> Result<Round, String>,
    ) -> Result<RowResult, String> {
        let mut rounds: Vec<Vec<Round>> = vec![Vec::new(); row.servers.len()];
        for number in 0..self.effort.rounds {
            for turn in 0..row.servers.len() {
                // Nobody is always first, or always behind the same neighbour.
                let at = (turn + number) % row.servers.len();
                let name = row.servers[at].0.name();
                let round = measure(at).map_err(|error| format!("{name}: {error}"))?;
                rounds[at].push(round);
            }
        }
        let of = |at: usize, value: fn(&Round) -> f64| median(rounds[at].iter().map(value));
        let servers = row.servers.iter().enumerate();
        let measured = servers.map(|(at, (kind, _))| Throughput {
            server: kind.name(),
            per_second: of(at, |round| round.per_second),
            cpu_us: of(at, |round| round.cpu_us),
            busy: of(at, |round| round.busy),
        });
        let others = row.servers.iter().enumerate().skip(1);
        let compared = others.map(|(at, (kind, mark))| {
            let pairs = || rounds[0].iter().zip(&rounds[at]);
            Comparison {
                against: kind.name(),
                throughput: median(pairs().map(|(ours, other)| ours.per_second / other.per_second)),
                cpu: median(pairs().map(|(ours, other)| other.cpu_us / ours.cpu_us)),
                mark: *mark,
            }
        });
        Ok(RowResult {
            servers: measured.collect(),
            comparisons: compared.collect(),
            ..empty(row)
        })
    }

    fn closed_loop(
        &self,
        server: &Server,
        connections: usize,
        feed: Feed,
        expected: Expect,
    ) -> Result<Round, String> {
        let load = Load::closed(server.address, connections, feed, expected);
        let mut load = load.map_err(text)?;
        load.run_for(self.effort.warm_up).map_err(text)?;
        let family = server.family();
        let before = usage::cpu(&family);
        let took = load.run_for(self.effort.measured).map_err(text)?;
        let used = usage::cpu(&family) - before;
        let answers = load.tally(0).answers as f64;
        load.finish().map_err(text)?;
        Ok(Round {
            per_second: answers / took.as_secs_f64(),
            cpu_us: used.as_secs_f64() * 1e6 / answers,
            busy: used.as_secs_f64() / took.as_secs_f64(),
        })
    }

    /// Starts a server and checks that it does the job.
    fn started(&self, kind: Kind, cache_mib: u64) -> Result<Server, String> {
        let server = self.bench.start(kind, cache_mib, self.upstream);
        let server = server.map_err(|error| format!("{}: {error}", kind.name()))?;
        check(&server, self.upstream)?;
        Ok(server)
    }

    fn ask_each(
        &self,
        server: &Server,
        form: &Form,
        keys: std::ops::Range<u64>,
        expected: Expect,
    ) -> Result<(), String> {
        let feed = Feed::each(form, keys);
        let load = Load::closed(server.address, CONNECTIONS, feed, expected);
        load.and_then(|mut load| load.run_out())
            .map_err(|error| format!("{}: {error}", server.kind.name()))
    }

    /// What a whole page of a size looks like.
    fn page_of(&self, page_size: u32) -> Expect {
        Expect {
            status: 200,
            body_len: Some(self.upstream.pages(page_size).body_len() as u64),
        }
    }
}

fn empty(row: &Row) -> RowResult {
    RowResult {
        id: row.id,
        what: row.what,
        ..RowResult::default()
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn text(error: impl Display) -> String {
    error.to_string()
}
