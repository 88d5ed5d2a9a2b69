//! Bursts of requests for cold pages, and misses, with hits beside them.

use std::time::Duration;

use super::{FOR_EVER, Measure, ROOMY_MIB, millis};
use crate::{
    load::{Job, Load, Pace, Result, Tally},
    pages::LARGE,
    report::{Fact, Result as RowResult, median},
    request::{Feed, Form},
    rows::Row,
    server::{Kind, Server},
};

/// Clients of a burst; each requests a page twice: when it is cold, and once it has it.
const CLIENTS: usize = 500;
const LATENCY: Duration = Duration::from_millis(200);
/// Of hits beside a burst.
const HITS_PER_SECOND: f64 = 2000.0;
const MISSES_PER_SECOND: f64 = 100.0;
const LANES: usize = 64;

/// What a burst came to, in milliseconds.
struct Burst {
    calls: f64,
    first: f64,
    again: f64,
    hits: f64,
    hits_without: f64,
}

impl Measure<'_> {
    pub(super) async fn burst(&self, row: &'static Row, pages: u64) -> Result<RowResult> {
        self.bench.machine.place_own(2)?;
        let mut result = RowResult::of(row);
        for kind in row.servers {
            let server = self.started(*kind, 2, ROOMY_MIB, None).await?;
            let hits = self.small_hits(&server).await?;
            let mut rounds = Vec::new();
            for round in 0..self.effort.rounds as u64 {
                let first = (1 << 20) + round * 90;
                rounds.push(self.one_burst(&server, &hits, first, pages).await?);
            }
            let name = kind.name();
            let of = |value: fn(&Burst) -> f64| median(rounds.iter().map(value));
            let is_ours = *kind == Kind::Gateway;
            let most = |limit| if is_ours { limit } else { f64::MAX };
            let mut add = |what: &str, value, unit, limit: f64| {
                let fact = Fact::new(format!("{name}: {what}"), value, unit);
                let limited = limit < f64::MAX;
                let fact = if limited { fact.at_most(limit) } else { fact };
                result.facts.push(fact);
            };
            // The worst round: one call is one call.
            let calls = rounds.iter().map(|round| round.calls).fold(0.0, f64::max);
            add("calls", calls, "", most(pages as f64));
            add(
                "p99 of first answers",
                of(|one| one.first),
                "ms",
                most(230.0),
            );
            add("p99 of their hits", of(|one| one.again), "ms", f64::MAX);
            let without = of(|one| one.hits_without);
            add("p99 of hits without it", without, "ms", f64::MAX);
            add(
                "p99 of hits beside it",
                of(|one| one.hits),
                "ms",
                most(2.0 * without),
            );
        }
        Ok(result)
    }

    async fn one_burst(
        &self,
        server: &Server,
        hits: &Job,
        first: u64,
        pages: u64,
    ) -> Result<Burst> {
        let pace = Pace::PerSecond(HITS_PER_SECOND);
        let without = apart(hits.clone(), pace, self.effort.measured).await?;
        let mut expected = self.page_of(LARGE);
        expected.length = None;
        let job = |first| Job {
            target: server.target.clone(),
            form: Form::new(LARGE).with_gzip(true),
            feed: Feed::of(first, pages, CLIENTS as u64),
            expected,
        };
        let mut cold = Load::connect(job(first), CLIENTS, 1).await?;
        let mut again = Load::connect(job(first), CLIENTS, 1).await?;
        let before = self.upstream.calls();
        self.upstream.set_latency(LATENCY);
        let burst = async {
            let first = cold.run(Pace::Closed, FOR_EVER).await?;
            let again = again.run(Pace::Closed, FOR_EVER).await?;
            Ok((first, again))
        };
        // As long as it takes from the first request to the last variant.
        let beside = apart(hits.clone(), pace, LATENCY * 3 / 2);
        let ran: Result<((Tally, Tally), Tally)> = tokio::try_join!(burst, beside);
        self.upstream.set_latency(Duration::ZERO);
        let ((first, again), beside) = ran?;
        let p99 = |tally: &Tally| millis(tally.quantile(0.99));
        Ok(Burst {
            calls: (self.upstream.calls() - before) as f64,
            first: p99(&first),
            again: p99(&again),
            hits: p99(&beside),
            hits_without: p99(&without),
        })
    }

    pub(super) async fn tail(&self, row: &'static Row) -> Result<RowResult> {
        self.bench.machine.place_own(2)?;
        let mut servers = Vec::new();
        let mut rate = f64::MAX;
        for kind in row.servers {
            let server = self.started(*kind, 2, ROOMY_MIB, None).await?;
            let hits = self.small_hits(&server).await?;
            let mut hits = Load::connect(hits, LANES, 1).await?;
            let (saturated, _) = self.measured(&server, &mut hits, Pace::Closed).await?;
            rate = rate.min(saturated.per_second / 2.0);
            servers.push((server, hits));
        }
        let mut result = RowResult::of(row);
        result.rate = Some(rate);
        let mut first = 1 << 33;
        let mut found = vec![Vec::new(); servers.len()];
        self.upstream.set_latency(Duration::from_millis(20));
        for _ in 0..self.effort.rounds {
            for ((server, hits), found) in servers.iter_mut().zip(&mut found) {
                let length = 2 * self.effort.measured;
                let without = hits.run(Pace::PerSecond(rate), length).await?;
                let job = Job {
                    target: server.target.clone(),
                    form: Form::new(LARGE),
                    feed: Feed::of(first, u64::MAX, u64::MAX),
                    expected: self.page_of(LARGE),
                };
                first += 1 << 32;
                let mut misses = Load::connect(job, LANES, 1).await?;
                let (beside, _) = tokio::try_join!(
                    hits.run(Pace::PerSecond(rate), length),
                    misses.run(Pace::PerSecond(MISSES_PER_SECOND), length),
                )?;
                found.push((without, beside));
            }
        }
        self.upstream.set_latency(Duration::ZERO);
        let p99 = |tallies: &Vec<(Tally, Tally)>, of: fn(&(Tally, Tally)) -> &Tally| {
            median(tallies.iter().map(|pair| millis(of(pair).quantile(0.99))))
        };
        let nginx = p99(&found[1], |pair| &pair.1);
        for ((server, _), found) in servers.iter().zip(&found) {
            let name = server.kind.name();
            let (without, beside) = (p99(found, |pair| &pair.0), p99(found, |pair| &pair.1));
            let alone = Fact::new(format!("{name}: p99 without misses"), without, "ms");
            result.facts.push(alone);
            let beside = Fact::new(format!("{name}: p99 beside them"), beside, "ms");
            let is_ours = server.kind == Kind::Gateway;
            result.facts.push(if is_ours {
                beside.at_most(nginx.min(2.0 * without))
            } else {
                beside
            });
        }
        Ok(result)
    }
}

/// Runs a load on a thread of its own: the clients of a burst are busy with their responses.
async fn apart(job: Job, pace: Pace, length: Duration) -> Result<Tally> {
    let run = move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build()?.block_on(async {
            let mut load = Load::connect(job, LANES, 1).await?;
            load.run(pace, length).await
        })
    };
    tokio::task::spawn_blocking(run).await?
}
