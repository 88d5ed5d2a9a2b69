//! The memory of stored pages and of idle connections.

use super::{CONNECTIONS, FOR_EVER, Measure, ROOMY_MIB, mib};
use crate::{
    load::{Job, Load, Pace, Result},
    pages::LARGE,
    report::{Fact, Result as RowResult},
    request::{Feed, Form},
    rows::{MANY, Row},
    server::{Kind, Tls},
};

const IDLE_TLS: u64 = 1000;
const IDLE_PLAIN: u64 = 10_000;

impl Measure<'_> {
    pub(super) async fn memory(&self, row: &'static Row) -> Result<RowResult> {
        self.bench.machine.place_own(2)?;
        let mut result = RowResult::of(row);
        let mut servers = Vec::new();
        for kind in row.servers {
            let server = self.started(*kind, 2, ROOMY_MIB, None).await?;
            let empty = server.memory();
            let pages = self.scaled(MANY);
            let job = Job {
                target: server.target.clone(),
                form: Form::new(LARGE),
                feed: Feed::of(0, pages, pages),
                expected: self.page_of(LARGE),
            };
            let mut load = Load::connect(job, CONNECTIONS, 1).await?;
            load.run(Pace::Closed, FOR_EVER).await?;
            servers.push((server, empty));
        }
        tokio::time::sleep(self.effort.settling).await;
        let held = servers
            .iter()
            .map(|(server, empty)| mib(server.memory().saturating_sub(*empty)));
        let held: Vec<_> = held.collect();
        for ((server, _), held_mib) in servers.iter().zip(&held) {
            let fact = Fact::new(format!("{}: pages", server.kind.name()), *held_mib, "MiB");
            let is_ours = server.kind == Kind::Gateway;
            result.facts.push(if is_ours {
                fact.at_most(held[1] / 3.0)
            } else {
                fact
            });
        }
        drop(servers);
        for kind in row.servers {
            let tls = Some(Tls::Http2);
            let idle = self.idle(*kind, tls, self.scaled(IDLE_TLS)).await?;
            let fact = Fact::new(format!("{}: idle TLS connection", kind.name()), idle, "KiB");
            let is_ours = *kind == Kind::Gateway;
            result
                .facts
                .push(if is_ours { fact.at_most(40.0) } else { fact });
            let idle = self.idle(*kind, None, self.scaled(IDLE_PLAIN)).await?;
            let what = format!("{}: idle plain connection", kind.name());
            result.facts.push(Fact::new(what, idle, "KiB"));
        }
        Ok(result)
    }

    /// KiB of a connection that has had one response.
    async fn idle(&self, kind: Kind, tls: Option<Tls>, connections: u64) -> Result<f64> {
        let server = self.started(kind, 2, ROOMY_MIB, tls).await?;
        let job = Job {
            feed: Feed::of(0, 1, connections),
            ..self.small_hits(&server).await?
        };
        let before = server.memory();
        let mut load = Load::connect(job, connections as usize, 1).await?;
        load.run(Pace::Closed, FOR_EVER).await?;
        Ok(server.memory().saturating_sub(before) as f64 / 1024.0 / connections as f64)
    }
}
