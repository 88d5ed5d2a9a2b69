//! Streams of changes: what they hold, and what an event costs.

use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::{
    body::Incoming,
    header::{ACCEPT, HeaderValue},
};
use tokio::task::JoinSet;

use super::{Measure, ROOMY_MIB, millis};
use crate::{
    load::{Error, Result, Sender, Target, other},
    pages::{LARGE, WATCHED},
    report::{Fact, Result as RowResult},
    request,
    rows::Row,
};

const STREAMS: u64 = 1000;
/// Several polls, which are ten seconds apart.
const WITHIN: Duration = Duration::from_secs(60);

/// A stream and the connection that it is the only one of.
struct Stream {
    body: Incoming,
    seen: Vec<u8>,
    _connection: Sender,
}

impl Stream {
    async fn open(target: &Target) -> Result<Self> {
        let path = format!("/spaces/{WATCHED}/changes?after=now");
        let mut request = request::get(target, &path);
        let stream = HeaderValue::from_static("text/event-stream");
        request.headers_mut().insert(ACCEPT, stream);
        let (mut sender, _) = Sender::connect(target).await?;
        let response = sender.send(request).await?;
        if response.status() != 200 {
            return Err(other(format!("a stream: {}", response.status())));
        }
        Ok(Self {
            body: response.into_body(),
            seen: Vec::new(),
            _connection: sender,
        })
    }

    /// Reads until the event has come so often in all.
    async fn await_events(&mut self, event: &[u8], times: usize) -> Result<()> {
        while count(&self.seen, event) < times {
            let frame = self.body.frame().await;
            let frame = frame.ok_or_else(|| other("a stream ended"))??;
            self.seen
                .extend_from_slice(frame.data_ref().map_or(&[], |data| &data[..]));
        }
        Ok(())
    }
}

impl Measure<'_> {
    pub(super) async fn streams(&self, row: &'static Row) -> Result<RowResult> {
        self.bench.machine.place_own(2)?;
        let mut result = RowResult::of(row);
        for kind in row.servers {
            let server = self.started(*kind, 2, ROOMY_MIB, None).await?;
            let before = server.memory();
            let count = self.scaled(STREAMS);
            let mut streams = JoinSet::new();
            for _ in 0..count {
                let mut stream = Stream::open(&server.target).await?;
                streams.spawn(async move {
                    stream.await_events(b"event: space.synced", 1).await?;
                    Ok::<_, Error>(stream)
                });
            }
            let opened = self.all(streams).await?;
            let held = server.memory().saturating_sub(before) as f64 / 1024.0 / count as f64;
            result
                .facts
                .push(Fact::new("memory of a stream", held, "KiB"));

            self.upstream.change();
            let (used, began) = (server.cpu(), Instant::now());
            let mut streams = JoinSet::new();
            for mut stream in opened {
                streams.spawn(async move {
                    stream.await_events(b"event: task.updated", 1).await?;
                    let first = Instant::now();
                    let all = LARGE as usize;
                    stream.await_events(b"event: task.updated", all).await?;
                    Ok::<_, Error>((first, Instant::now()))
                });
            }
            let told = self.all(streams).await?;
            let used = (server.cpu() - used).as_secs_f64() * 1e6;
            let events = (count * u64::from(LARGE)) as f64;
            let first = told.iter().map(|(first, _)| *first).min().unwrap_or(began);
            let last = told.iter().map(|(_, last)| *last).max().unwrap_or(began);
            let spread = millis(last - first);
            result.facts.extend([
                Fact::new("CPU time of an event on a stream", used / events, "µs"),
                Fact::new("from the first stream told to the last", spread, "ms"),
            ]);
        }
        Ok(result)
    }

    async fn all<T: 'static>(&self, mut tasks: JoinSet<Result<T>>) -> Result<Vec<T>> {
        let mut all = Vec::new();
        let within = tokio::time::timeout(WITHIN, async {
            while let Some(task) = tasks.join_next().await {
                all.push(task??);
            }
            Ok::<_, Error>(())
        });
        within.await??;
        Ok(all)
    }
}

fn count(text: &[u8], wanted: &[u8]) -> usize {
    text.windows(wanted.len())
        .filter(|found| *found == wanted)
        .count()
}
