//! Runs the workloads of the rows.

use std::{
    fmt::Display,
    thread,
    time::{Duration, Instant},
};

use crate::{
    check::{check, tag_of_first_page},
    load::{Expect, Load, LoadError, Pace},
    pages::{Key, LARGE, SMALL},
    request::{Feed, Form},
    results::{Comparison, Fact, Point, RowResult, Size, Throughput, median},
    rows::{HOT_TENTH, Hits, MANY, Row, Servers, TWO_CORES, Work},
    server::{Bench, Cores, Kind, Server},
    upstream::Upstream,
    usage,
};

/// Connections of closed loops.
const CONNECTIONS: usize = 64;
/// Cache size for all pages of a row.
const ROOMY_MIB: u64 = 1024;
/// A small cache, for misses with a full cache.
const TIGHT_MIB: u64 = 64;
/// Pages of 40 KB that fill it twice.
const TO_FILL: u64 = 2 * (TIGHT_MIB << 20) / 40_000;
/// The memory of a page of 2 KB, with keys and allocator overhead.
const BYTES_STORED: u64 = 6_000;
/// How often memory is read until it is stable, and by how much it may still fall then.
const LOOK: Duration = Duration::from_secs(1);
const STILL: f64 = 0.005;

/// Durations and repetitions.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    pub rounds: usize,
    pub warm_up: Duration,
    pub measured: Duration,
    /// The share of keys used in rows with many keys.
    pub scale: u64,
    /// Stored pages and connections of the growth row.
    pub stored: &'static [u64],
    pub connected: &'static [usize],
    /// How long servers are idle, at least and at most, before their memory is read.
    pub settling: (Duration, Duration),
}

impl Effort {
    pub fn full(rounds: usize) -> Self {
        Self {
            rounds,
            warm_up: Duration::from_millis(300),
            measured: Duration::from_secs(2),
            scale: 1,
            stored: &[100, 10_000, 1_000_000],
            connected: &[1, 10, 100, 1_000, 10_000],
            settling: (Duration::from_secs(80), Duration::from_secs(150)),
        }
    }

    /// Enough to see that everything works, too little to measure.
    pub fn short() -> Self {
        Self {
            rounds: 1,
            warm_up: Duration::from_millis(20),
            measured: Duration::from_millis(150),
            scale: 20,
            stored: &[100, 500],
            connected: &[1, 200],
            settling: (Duration::ZERO, Duration::from_secs(3)),
        }
    }
}

/// What to request, and the expected response.
type Lane = (Feed, Expect);

pub struct Measure<'a> {
    pub bench: &'a Bench,
    pub upstream: &'a Upstream,
    pub effort: Effort,
}

/// A server's result in one round.
#[derive(Clone, Copy, Debug)]
struct Round {
    per_second: f64,
    cpu_us: f64,
    busy: f64,
}

impl Measure<'_> {
    /// Runs a row.
    ///
    /// # Errors
    ///
    /// Returns what went wrong; a row is measured completely or not at all.
    pub fn row(&self, row: &Row) -> Result<RowResult, String> {
        let result = match row.work {
            Work::Hits(hits) => self.hits(row, hits),
            Work::Misses => self.misses(row),
            Work::Burst => self.burst(row),
            Work::Memory => self.memory(row),
            Work::TwoCores => self.two_cores(row),
            Work::Tail => self.tail(row),
            Work::Start => self.start(row),
            Work::Growth => self.growth(row),
        };
        result.map_err(|error| format!("{}: {error}", row.id))
    }

    fn hits(&self, row: &Row, hits: Hits) -> Result<RowResult, String> {
        let mut servers = Vec::new();
        for (kind, _) in row.servers {
            servers.push(self.started(*kind, Cores::One, ROOMY_MIB)?);
        }
        let servers: Vec<_> = servers.iter().collect();
        self.hits_on(&servers, row.servers, hits)
            .map(|found| found.of(row))
    }

    /// Measures hits on running servers and compares them as `wanted` says.
    fn hits_on(
        &self,
        servers: &[&Server],
        wanted: Servers,
        hits: Hits,
    ) -> Result<RowResult, String> {
        let hits = self.scaled(hits);
        let mut lanes = Vec::new();
        for server in servers {
            lanes.push((server, self.stored(server, hits)?));
        }
        self.rounds(wanted, |at| {
            let (server, lane) = &lanes[at];
            self.round_of_hits(server, lane)
        })
    }

    /// A round in which the upstream must not be called.
    fn round_of_hits(&self, server: &Server, lane: &Lane) -> Result<Round, String> {
        let calls = self.upstream.calls();
        let (feed, expected) = lane;
        let round = self.closed_loop(server, CONNECTIONS, feed.clone(), *expected)?;
        match self.upstream.calls() - calls {
            0 => Ok(round),
            misses => Err(format!("{misses} requests were no hits")),
        }
    }

    fn scaled(&self, hits: Hits) -> Hits {
        let scaled = |keys: u64| (keys / self.effort.scale).max(1);
        Hits {
            keys: scaled(hits.keys),
            stored: scaled(hits.stored),
            ..hits
        }
    }

    /// Fills a server with the pages of a row and their compressed variants; returns what to request and the expected response.
    fn stored(&self, server: &Server, hits: Hits) -> Result<Lane, String> {
        let mut form = Form::new(server.address, hits.page_size).with_gzip(hits.takes_gzip);
        let mut expected = self.page_of(hits.page_size);
        if hits.takes_gzip {
            expected.body_len = None;
        }
        if server.kind.is_cache() {
            self.fill(server, &form, hits.stored, expected)?;
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

    /// Requests each page until none causes a call, at least twice, since a compressed variant may be made on the first hit.
    fn fill(
        &self,
        server: &Server,
        form: &Form,
        pages: u64,
        expected: Expect,
    ) -> Result<(), String> {
        const MOST_PASSES: usize = 4;
        let mut calls = Vec::new();
        while calls.len() < MOST_PASSES {
            let before = self.upstream.calls();
            self.ask_each(server, form, 0..pages, expected)?;
            calls.push(self.upstream.calls() - before);
            if calls.len() > 1 && calls.last() == Some(&0) {
                return Ok(());
            }
        }
        let name = server.kind.name();
        Err(format!(
            "{name}: {pages} pages cost {calls:?} calls, pass by pass"
        ))
    }

    fn misses(&self, row: &Row) -> Result<RowResult, String> {
        let mut servers = Vec::new();
        for (kind, _) in row.servers {
            let server = self.started(*kind, Cores::One, TIGHT_MIB)?;
            let form = Form::new(server.address, LARGE);
            let fill = 0..TO_FILL / self.effort.scale;
            self.ask_each(&server, &form, fill, self.page_of(LARGE))?;
            servers.push(server);
        }
        let mut next = 1 << 32;
        let found = self.rounds(row.servers, |at| {
            let server = &servers[at];
            let form = Form::new(server.address, LARGE);
            // More than can be requested in a round.
            let feed = Feed::each(&form, next..next + (1 << 32));
            next += 1 << 32;
            let calls = self.upstream.calls();
            let round = self.closed_loop(server, CONNECTIONS, feed, self.page_of(LARGE))?;
            let asked = (round.per_second * self.effort.measured.as_secs_f64()) as u64;
            if self.upstream.calls() - calls < asked {
                return Err("not every request was a miss".to_owned());
            }
            Ok(round)
        })?;
        Ok(found.of(row))
    }

    fn burst(&self, row: &Row) -> Result<RowResult, String> {
        const AT_ONCE: usize = 500;
        const LATENCY: Duration = Duration::from_millis(200);
        let mut result = RowResult::default();
        for (kind, _) in row.servers {
            let server = self.started(*kind, Cores::One, ROOMY_MIB)?;
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
        Ok(result.of(row))
    }

    fn memory(&self, row: &Row) -> Result<RowResult, String> {
        let mut servers = Vec::new();
        let mut empty = Vec::new();
        for (kind, _) in row.servers {
            let server = self.started(*kind, Cores::One, ROOMY_MIB)?;
            empty.push(server.memory());
            let keeps_copies = *kind == Kind::NginxCopy;
            let form = Form::new(server.address, LARGE).with_gzip(keeps_copies);
            let mut expected = self.page_of(LARGE);
            if keeps_copies {
                expected.body_len = None;
            }
            let all = 0..MANY / self.effort.scale;
            self.ask_each(&server, &form, all, expected)?;
            servers.push(server);
        }
        let mut result = RowResult::default();
        let taken = |when: &str, result: &mut RowResult| {
            let held = self.settled(&servers);
            let pairs = held.iter().zip(&empty);
            let mib: Vec<_> = pairs
                .map(|(held, empty)| held.saturating_sub(*empty) as f64 / f64::from(1 << 20))
                .collect();
            for (server, mib) in servers.iter().zip(&mib) {
                let what = format!("{}: memory for the pages, {when}", server.kind.name());
                result.facts.push(Fact::new(what, *mib, "MiB"));
            }
            let share = Fact::new(format!("gateway / nginx, {when}"), mib[0] / mib[1], "");
            result.facts.push(share.at_most(1.0 / 3.0));
        };
        taken("before the hits", &mut result);
        for (hits, wanted) in HOT_TENTH {
            let of_kind = |kind| servers.iter().filter(move |server| server.kind == kind);
            let compared: Vec<_> = wanted.iter().flat_map(|(kind, _)| of_kind(*kind)).collect();
            let found = self.hits_on(&compared, wanted, hits)?;
            result.servers.extend(found.servers);
            result.comparisons.extend(found.comparisons);
        }
        taken("after them", &mut result);
        Ok(result.of(row))
    }

    /// The memory of each server once none frees any more. All are idle for the same time.
    fn settled(&self, servers: &[Server]) -> Vec<u64> {
        let (least, most) = self.effort.settling;
        let began = Instant::now();
        let mut held: Vec<_> = servers.iter().map(Server::memory).collect();
        while began.elapsed() < most {
            thread::sleep(LOOK);
            let now: Vec<_> = servers.iter().map(Server::memory).collect();
            let mut pairs = held.iter().zip(&now);
            let is_still = pairs.all(|(before, now)| *now as f64 >= *before as f64 * (1.0 - STILL));
            held = now;
            if is_still && began.elapsed() >= least {
                break;
            }
        }
        held
    }

    /// By CPU time: with a load generator on the same cores, throughput says nothing.
    fn two_cores(&self, row: &Row) -> Result<RowResult, String> {
        let mut servers = Vec::new();
        for (kind, _) in row.servers {
            for cores in [Cores::One, Cores::Two] {
                let server = self.started(*kind, cores, ROOMY_MIB)?;
                let lane = self.stored(&server, self.scaled(TWO_CORES))?;
                servers.push((cores, server, lane));
            }
        }
        let mut costs = vec![Vec::new(); servers.len()];
        for _ in 0..self.effort.rounds {
            for (at, (cores, server, lane)) in servers.iter().enumerate() {
                self.bench.machine.place_own(*cores).map_err(text)?;
                let round = self.round_of_hits(server, lane);
                self.bench.machine.place_own(Cores::One).map_err(text)?;
                let round = round.map_err(|error| format!("{}: {error}", server.kind.name()))?;
                costs[at].push(round.cpu_us);
            }
        }
        let mut result = RowResult::default();
        for ((kind, _), costs) in row.servers.iter().zip(costs.chunks_exact(2)) {
            let name = kind.name();
            for (cores, costs) in ["one core", "two"].into_iter().zip(costs) {
                let cost = median(costs.iter().copied());
                let what = format!("{name}: CPU a request on {cores}");
                result.facts.push(Fact::new(what, cost, "µs"));
            }
            let pairs = costs[0].iter().zip(&costs[1]);
            let gain = median(pairs.map(|(one, two)| 2.0 * one / two));
            let gain = Fact::new(format!("{name}: what two cores are to one"), gain, "×");
            let is_ours = *kind == Kind::Gateway;
            result
                .facts
                .push(if is_ours { gain.at_least(1.8) } else { gain });
        }
        Ok(result.of(row))
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
            let server = self.started(*kind, Cores::One, ROOMY_MIB)?;
            let (feed, expected) = self.stored(&server, hits)?;
            let saturated = self.closed_loop(&server, CONNECTIONS, feed.clone(), expected)?;
            // Both get the same load: half of the slower one's throughput.
            rate = rate.min(saturated.per_second / 2.0);
            lanes.push((server, feed, expected));
        }
        let mut result = RowResult::default();
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
        Ok(result.of(row))
    }

    /// The median, 99th and 99.9th percentile of hits at a rate, in microseconds, with concurrent misses.
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
        let mut result = RowResult::default();
        for (kind, _) in row.servers {
            let mut started = Vec::new();
            let mut resident = Vec::new();
            for _ in 0..self.effort.rounds.max(3) {
                let server = self
                    .bench
                    .start(*kind, Cores::One, ROOMY_MIB, self.upstream);
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
        Ok(result.of(row))
    }

    fn growth(&self, row: &Row) -> Result<RowResult, String> {
        let mut result = RowResult::default();
        let mut grow = |of, size, cpu_us| result.points.push(Point { of, size, cpu_us });
        let mut left_out = Vec::new();
        for stored in self.effort.stored.iter().copied() {
            let needed = stored * BYTES_STORED;
            if needed > usage::available() / 2 {
                let what = format!("{stored} pages not measured: memory for them is not free");
                left_out.push(Fact::new(what, 2.0 * needed as f64 / 1e9, "GB"));
                continue;
            }
            grow(Size::Stored, stored, self.cost_with_stored(stored, needed)?);
        }
        // Each is an open file of the load generator, which has few others.
        let most = usage::most_files().saturating_sub(100);
        for connected in self.effort.connected.iter().copied() {
            if connected as u64 > most {
                let what = format!("{connected} connections not measured: files may be open");
                left_out.push(Fact::new(what, most as f64, ""));
                continue;
            }
            let cost = self.cost_with_connections(connected)?;
            grow(Size::Connected, connected as u64, cost);
        }
        result.facts = left_out;
        Ok(result.of(row))
    }

    fn cost_with_stored(&self, stored: u64, bytes: u64) -> Result<f64, String> {
        let server = self.started(Kind::Gateway, Cores::One, ROOMY_MIB.max(bytes >> 20))?;
        let form = Form::new(server.address, SMALL);
        self.ask_each(&server, &form, 0..stored, self.page_of(SMALL))?;
        let feed = Feed::any(&form, stored);
        self.cost(&server, CONNECTIONS, feed)
    }

    fn cost_with_connections(&self, connected: usize) -> Result<f64, String> {
        let server = self.started(Kind::Gateway, Cores::One, ROOMY_MIB)?;
        let form = Form::new(server.address, SMALL);
        self.ask_each(&server, &form, 0..1, self.page_of(SMALL))?;
        self.cost(&server, connected, Feed::one(&form))
    }

    /// CPU time of a hit of 2 KB, all rounds over the same connections.
    fn cost(&self, server: &Server, connections: usize, feed: Feed) -> Result<f64, String> {
        let calls = self.upstream.calls();
        let load = Load::closed(server.address, connections, feed, self.page_of(SMALL));
        let mut load = load.map_err(text)?;
        let mut costs = Vec::new();
        for _ in 0..self.effort.rounds {
            costs.push(self.measured(server, &mut load)?.cpu_us);
        }
        load.finish().map_err(text)?;
        match self.upstream.calls() - calls {
            0 => Ok(median(costs)),
            misses => Err(format!("{misses} requests were no hits")),
        }
    }

    /// Interleaves the servers of a row, and compares within each round.
    fn rounds(
        &self,
        wanted: Servers,
        mut measure: impl FnMut(usize) -> Result<Round, String>,
    ) -> Result<RowResult, String> {
        let mut rounds: Vec<Vec<Round>> = vec![Vec::new(); wanted.len()];
        for number in 0..self.effort.rounds {
            for turn in 0..wanted.len() {
                // Rotates the order, so that no server is always first or always after the same one.
                let at = (turn + number) % wanted.len();
                let name = wanted[at].0.name();
                let round = measure(at).map_err(|error| format!("{name}: {error}"))?;
                rounds[at].push(round);
            }
        }
        let of = |at: usize, value: fn(&Round) -> f64| median(rounds[at].iter().map(value));
        let servers = wanted.iter().enumerate();
        let measured = servers.map(|(at, (kind, _))| Throughput {
            server: kind.name(),
            per_second: of(at, |round| round.per_second),
            cpu_us: of(at, |round| round.cpu_us),
            busy: of(at, |round| round.busy),
        });
        let others = wanted.iter().enumerate().skip(1);
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
            ..RowResult::default()
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
        let round = self.measured(server, &mut load)?;
        load.finish().map_err(text)?;
        Ok(round)
    }

    /// One round of a load with one lane, after a short warm-up; requests in flight at the end stay in flight.
    fn measured(&self, server: &Server, load: &mut Load) -> Result<Round, String> {
        load.run_for(self.effort.warm_up).map_err(text)?;
        let family = server.family();
        let before = usage::cpu(&family);
        let took = load.run_for(self.effort.measured).map_err(text)?;
        let used = usage::cpu(&family) - before;
        let answers = load.tally(0).answers as f64;
        Ok(Round {
            per_second: answers / took.as_secs_f64(),
            cpu_us: used.as_secs_f64() * 1e6 / answers,
            busy: used.as_secs_f64() / took.as_secs_f64(),
        })
    }

    /// Starts a server and verifies it.
    fn started(&self, kind: Kind, cores: Cores, cache_mib: u64) -> Result<Server, String> {
        let server = self.bench.start(kind, cores, cache_mib, self.upstream);
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

    /// The expected response for a page of a size.
    fn page_of(&self, page_size: u32) -> Expect {
        Expect {
            status: 200,
            body_len: Some(self.upstream.pages(page_size).body_len() as u64),
        }
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn text(error: impl Display) -> String {
    error.to_string()
}
