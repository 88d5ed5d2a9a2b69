//! Runs the workloads of the rows.

use std::time::Duration;

use crate::{
    check::{check, tag_of_first_page},
    load::{Expect, Job, Load, Pace, Result, Tally, other, reconnect},
    pages::LARGE,
    report::{Fact, Result as RowResult, Served, median},
    request::{Feed, Form},
    rows::{Hits, ONE_SMALL, Row, Work},
    server::{Bench, Kind, Server, Setup, Tls},
    upstream::Upstream,
};

mod bursts;
mod memory;
mod streams;

/// Connections of plain closed loops.
const CONNECTIONS: usize = 64;
/// Connections that have variants made: so few never wait for each other.
const CODED_AT_ONCE: usize = 4;
/// Connections over TLS, and the streams of each.
const HTTP2: (usize, usize) = (100, 10);
/// Cache size for all pages of a row.
const ROOMY_MIB: u64 = 1024;
/// A small cache, for misses with a full cache.
const TIGHT_MIB: u64 = 64;
/// Pages of 40 KB that fill it twice.
const TO_FILL: u64 = 2 * (TIGHT_MIB << 20) / 40_000;
const HANDSHAKES_PER_SECOND: f64 = 1000.0;
const FOR_EVER: Duration = Duration::from_secs(3600);

/// Durations and repetitions.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    pub rounds: usize,
    /// How many workers servers have, in turn.
    pub workers: &'static [usize],
    pub warm_up: Duration,
    pub measured: Duration,
    /// The share of pages, connections and streams used in rows with many.
    pub scale: u64,
    /// How long servers are idle before their memory is read: the gateway compresses pages after a minute.
    pub settling: Duration,
}

impl Effort {
    pub fn full(rounds: usize) -> Self {
        Self {
            rounds,
            workers: &[2, 1],
            warm_up: Duration::from_millis(300),
            measured: Duration::from_millis(1500),
            scale: 1,
            settling: Duration::from_secs(100),
        }
    }

    /// Enough to see that everything works, too little to measure.
    pub fn short() -> Self {
        Self {
            rounds: 1,
            workers: &[2],
            warm_up: Duration::from_millis(20),
            measured: Duration::from_millis(100),
            scale: 20,
            settling: Duration::ZERO,
        }
    }
}

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
}

impl Measure<'_> {
    /// Runs a row.
    ///
    /// # Errors
    ///
    /// Returns what went wrong; a row is measured completely or not at all.
    pub async fn row(&self, row: &'static Row) -> Result<RowResult> {
        match row.work {
            Work::Hits(hits) => self.hits(row, hits).await,
            Work::Handshakes => self.handshakes(row).await,
            Work::Misses => self.misses(row).await,
            Work::Burst(pages) => self.burst(row, pages).await,
            Work::Streams => self.streams(row).await,
            Work::Tail => self.tail(row).await,
            Work::Memory => self.memory(row).await,
            Work::Start => self.start(row).await,
        }
    }

    async fn hits(&self, row: &'static Row, hits: Hits) -> Result<RowResult> {
        let mut result = RowResult::of(row);
        for workers in self.effort.workers.iter().copied() {
            self.bench.machine.place_own(workers)?;
            let (mut servers, mut jobs) = (Vec::new(), Vec::new());
            for kind in row.servers {
                let tls = hits.http2.then_some(Tls::Http2);
                let server = self.started(*kind, workers, ROOMY_MIB, tls).await?;
                jobs.push(self.job_of(&server, hits).await?);
                servers.push(server);
            }
            let (connections, streams) = if hits.http2 { HTTP2 } else { (CONNECTIONS, 1) };
            let mut loads = connect(jobs, connections, streams).await?;
            let calls = self.upstream.calls();
            let mut served = self.closed(row, workers, &servers, &mut loads).await?;
            // One worker alone is judged by CPU time.
            if workers == 2 {
                let slowest = served
                    .iter()
                    .map(|one| one.per_second)
                    .fold(f64::MAX, f64::min);
                let rate = slowest / 2.0;
                result.rate = Some(rate);
                self.open(rate, &mut loads, &mut served).await?;
            }
            match self.upstream.calls() - calls {
                0 => result.servers.extend(served),
                misses => return Err(other(format!("{misses} requests were no hits"))),
            }
        }
        Ok(result)
    }

    /// Fills a server with the pages of `hits` and their compressed variants; returns what to request.
    async fn job_of(&self, server: &Server, hits: Hits) -> Result<Job> {
        let keys = self.scaled(hits.keys);
        let mut job = Job {
            target: server.target.clone(),
            form: Form::new(hits.page_size).with_gzip(hits.takes_gzip),
            feed: Feed::zipf(keys),
            expected: self.page_of(hits.page_size),
        };
        if hits.takes_gzip {
            job.expected.length = None;
        }
        if server.kind.is_cache() {
            self.fill(&job, keys).await?;
        }
        if hits.conditional {
            job.form.has = Some(tag_of_first_page(server, self.upstream).await?);
            job.expected = Expect {
                status: 304,
                length: Some(0),
            };
        }
        Ok(job)
    }

    /// Requests each page until none causes a call, at least three times: a compressed variant is made on a hit, and the gateway answers
    /// uncompressed where more than a few wait for theirs.
    async fn fill(&self, job: &Job, pages: u64) -> Result<()> {
        const MOST_PASSES: usize = 6;
        for pass in 1..=MOST_PASSES {
            let before = self.upstream.calls();
            let job = Job {
                feed: Feed::of(0, pages, pages),
                ..job.clone()
            };
            let connections = if job.form.takes_gzip {
                CODED_AT_ONCE
            } else {
                CONNECTIONS
            };
            let mut load = Load::connect(job, connections, 1).await?;
            load.run(Pace::Closed, FOR_EVER).await?;
            if pass > 2 && self.upstream.calls() == before {
                return Ok(());
            }
        }
        Err(other("pages do not stay"))
    }

    /// Rounds of closed loops: the servers of a row in turn, compared within each round.
    async fn closed(
        &self,
        row: &Row,
        workers: usize,
        servers: &[Server],
        loads: &mut [Load],
    ) -> Result<Vec<Served>> {
        let mut rounds: Vec<Vec<Round>> = vec![Vec::new(); servers.len()];
        for number in 0..self.effort.rounds {
            for turn in 0..servers.len() {
                // Rotates the order, so that no server is always first or always after the same one.
                let at = (turn + number) % servers.len();
                let round = self.measured(&servers[at], &mut loads[at], Pace::Closed);
                let name = servers[at].kind.name();
                let round = round.await.map_err(|error| format!("{name}: {error}"))?;
                rounds[at].push(round.0);
            }
        }
        Ok(compared(row, workers, &rounds))
    }

    /// Adds latencies at `rate`.
    async fn open(&self, rate: f64, loads: &mut [Load], served: &mut [Served]) -> Result<()> {
        let mut times = vec![Vec::new(); loads.len()];
        for _ in 0..self.effort.rounds {
            for (load, times) in loads.iter_mut().zip(&mut times) {
                load.run(Pace::PerSecond(rate), self.effort.warm_up).await?;
                let tally = load
                    .run(Pace::PerSecond(rate), self.effort.measured)
                    .await?;
                times.push(tally);
            }
        }
        for (served, times) in served.iter_mut().zip(&times) {
            served.latency = Some((quantile(times, 0.5), quantile(times, 0.99)));
        }
        Ok(())
    }

    async fn measured(
        &self,
        server: &Server,
        load: &mut Load,
        pace: Pace,
    ) -> Result<(Round, Tally)> {
        load.run(pace, self.effort.warm_up).await?;
        let before = server.cpu();
        let tally = load.run(pace, self.effort.measured).await?;
        Ok((round_of(&tally, server.cpu() - before), tally))
    }

    async fn handshakes(&self, row: &'static Row) -> Result<RowResult> {
        let mut result = RowResult::of(row);
        result.rate = Some(HANDSHAKES_PER_SECOND);
        for workers in self.effort.workers.iter().copied() {
            self.bench.machine.place_own(workers)?;
            let mut jobs = Vec::new();
            for kind in row.servers {
                let tls = Some(Tls::Http1);
                let server = self.started(*kind, workers, ROOMY_MIB, tls).await?;
                let job = self.job_of(&server, ONE_SMALL).await?;
                jobs.push((server, job));
            }
            let mut rounds = vec![Vec::new(); jobs.len()];
            let mut tallies = vec![Vec::new(); jobs.len()];
            for _ in 0..self.effort.rounds {
                for (at, (server, job)) in jobs.iter().enumerate() {
                    let before = server.cpu();
                    let client = || self.bench.certificate.client(Tls::Http1);
                    let length = 2 * self.effort.measured;
                    let tally = reconnect(job, client, HANDSHAKES_PER_SECOND, length).await?;
                    // All but the first of each lane.
                    if tally.resumed + 64 < tally.times.len() {
                        let name = server.kind.name();
                        return Err(other(format!("{name} resumed {} only", tally.resumed)));
                    }
                    rounds[at].push(round_of(&tally, server.cpu() - before));
                    tallies[at].push(tally);
                }
            }
            let mut served = compared(row, workers, &rounds);
            for (served, tallies) in served.iter_mut().zip(&tallies) {
                served.latency = Some((quantile(tallies, 0.5), quantile(tallies, 0.99)));
            }
            result.servers.extend(served);
        }
        Ok(result)
    }

    async fn misses(&self, row: &'static Row) -> Result<RowResult> {
        let workers = 2;
        self.bench.machine.place_own(workers)?;
        let (mut servers, mut jobs) = (Vec::new(), Vec::new());
        let mut first = 1 << 32;
        for kind in row.servers {
            let server = self.started(*kind, workers, TIGHT_MIB, None).await?;
            let job = Job {
                target: server.target.clone(),
                form: Form::new(LARGE),
                feed: Feed::of(0, u64::MAX, self.scaled(TO_FILL)),
                expected: self.page_of(LARGE),
            };
            let mut load = Load::connect(job.clone(), CONNECTIONS, 1).await?;
            load.run(Pace::Closed, FOR_EVER).await?;
            let feed = Feed::of(first, u64::MAX, u64::MAX);
            jobs.push(Job { feed, ..job });
            servers.push(server);
            first += 1 << 32;
        }
        let mut loads = connect(jobs, CONNECTIONS, 1).await?;
        let mut result = RowResult::of(row);
        result.servers = self.closed(row, workers, &servers, &mut loads).await?;
        Ok(result)
    }

    async fn start(&self, row: &'static Row) -> Result<RowResult> {
        self.bench.machine.place_own(2)?;
        let mut result = RowResult::of(row);
        for kind in row.servers {
            let mut started = Vec::new();
            let mut resident = Vec::new();
            for _ in 0..self.effort.rounds {
                let setup = Setup {
                    kind: *kind,
                    workers: 2,
                    cache_mib: ROOMY_MIB,
                    tls: None,
                };
                let server = self.bench.start(setup, self.upstream).await?;
                started.push(millis(server.started_in));
                resident.push(mib(server.memory()));
            }
            let name = kind.name();
            let start = Fact::new(format!("{name}: first page"), median(started), "ms");
            result.facts.push(start.at_most(50.0));
            let idle = Fact::new(format!("{name}: idle"), median(resident), "MiB");
            result.facts.push(idle.at_most(20.0));
        }
        Ok(result)
    }

    /// Starts a server and verifies it.
    async fn started(
        &self,
        kind: Kind,
        workers: usize,
        cache_mib: u64,
        tls: Option<Tls>,
    ) -> Result<Server> {
        let setup = Setup {
            kind,
            workers,
            cache_mib,
            tls,
        };
        let server = self.bench.start(setup, self.upstream).await?;
        check(&server, self.upstream).await?;
        Ok(server)
    }

    /// The expected response for a page of a size.
    fn page_of(&self, page_size: u32) -> Expect {
        Expect {
            status: 200,
            length: Some(self.upstream.pages(page_size).body_len()),
        }
    }

    fn scaled(&self, many: u64) -> u64 {
        (many / self.effort.scale).max(1)
    }

    /// The job of hits on the one page of 2 KB, which is stored.
    async fn small_hits(&self, server: &Server) -> Result<Job> {
        self.job_of(server, ONE_SMALL).await
    }
}

/// Connections for each job, made when all servers run: one that sends nothing is soon closed.
async fn connect(jobs: Vec<Job>, connections: usize, streams: usize) -> Result<Vec<Load>> {
    let mut loads = Vec::new();
    for job in jobs {
        loads.push(Load::connect(job, connections, streams).await?);
    }
    Ok(loads)
}

fn round_of(tally: &Tally, used: Duration) -> Round {
    let answers = tally.times.len() as f64;
    Round {
        per_second: answers / tally.took.as_secs_f64(),
        cpu_us: used.as_secs_f64() * 1e6 / answers,
    }
}

fn compared(row: &Row, workers: usize, rounds: &[Vec<Round>]) -> Vec<Served> {
    let servers = row.servers.iter().zip(rounds);
    let served = servers.map(|(kind, of_server)| {
        let pairs = rounds[0].iter().zip(of_server);
        Served {
            kind: *kind,
            workers,
            per_second: median(of_server.iter().map(|round| round.per_second)),
            cpu_us: median(of_server.iter().map(|round| round.cpu_us)),
            gateway_is: median(pairs.map(|(ours, other)| other.cpu_us / ours.cpu_us)),
            latency: None,
        }
    });
    served.collect()
}

/// The median over the rounds, in milliseconds.
fn quantile(rounds: &[Tally], share: f64) -> f64 {
    median(rounds.iter().map(|tally| millis(tally.quantile(share))))
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
