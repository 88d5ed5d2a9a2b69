//! Sends finished spans to a collector over OTLP/HTTP, in a task of its own.
//!
//! No client request waits for it: spans that find the queue full, or no collector, are counted and dropped. Of our own:
//! opentelemetry-otlp takes headers and compression from the environment, and does not say how many spans were lost.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use opentelemetry_proto::{
    tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    transform::{
        common::tonic::ResourceAttributesWithSchema,
        trace::tonic::group_spans_by_resource_and_scope,
    },
};
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{Span, SpanData, SpanProcessor},
};
use prost::Message;
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use url::Url;

use crate::{
    outbound::{Bounds, BuildError, Outbound, OutboundError},
    telemetry::metrics::{Metrics, SpanLoss},
};

/// Spans that may wait; a few hundred bytes each.
const QUEUE: usize = 4096;
/// Spans sent at once.
const BATCH: usize = 512;
/// How long a batch waits for more spans.
const PAUSE: Duration = Duration::from_secs(1);
/// How long the end of the process waits for queued spans to be sent.
const FLUSH: Duration = Duration::from_secs(2);
const BOUNDS: Bounds = Bounds {
    connect_timeout: Duration::from_secs(2),
    timeout: Duration::from_secs(5),
    // A collector's answer holds a few bytes, if any.
    max_body: 64 * 1024,
    max_idle: 1,
};

const PROTOBUF: HeaderValue = HeaderValue::from_static("application/x-protobuf");

/// Headers of every request beside its own; replaced by a reload.
pub type CollectorHeaders = Arc<ArcSwap<HeaderMap>>;

/// Where spans go.
#[derive(Clone, Debug)]
pub struct Collector {
    http: Outbound,
    headers: CollectorHeaders,
}

impl Collector {
    /// # Errors
    ///
    /// Returns what is wrong with the TLS set-up.
    pub fn new(url: Url, headers: HeaderMap) -> Result<Self, BuildError> {
        Ok(Self {
            http: Outbound::new(url, BOUNDS)?,
            headers: Arc::new(ArcSwap::from_pointee(headers)),
        })
    }

    #[must_use]
    pub fn headers(&self) -> CollectorHeaders {
        self.headers.clone()
    }

    async fn post(&self, spans: Vec<u8>) -> Result<Bytes, OutboundError> {
        let mut headers = HeaderMap::clone(&self.headers.load());
        headers.insert(header::CONTENT_TYPE, PROTOBUF);
        let (_, answer) = self.http.ask(Method::POST, headers, spans).await?;
        Ok(answer)
    }
}

/// Takes spans as they end.
#[derive(Debug)]
pub(super) struct Queue {
    ended: mpsc::Sender<SpanData>,
    metrics: Arc<Metrics>,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &opentelemetry::Context) {}

    fn on_end(&self, span: SpanData) {
        if self.ended.try_send(span).is_err() {
            self.metrics.process.spans_lost(SpanLoss::QueueFull, 1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// The task that sends them.
#[derive(Debug)]
pub struct Export {
    task: JoinHandle<()>,
    end: CancellationToken,
}

impl Export {
    /// Starts sending what is queued to `collector`, as the spans of `resource`.
    pub(super) fn start(
        collector: Collector,
        resource: &opentelemetry_sdk::Resource,
        metrics: Arc<Metrics>,
    ) -> (Self, Queue) {
        let (sender, ended) = mpsc::channel(QUEUE);
        let end = CancellationToken::new();
        let exporter = Exporter {
            collector,
            ended,
            resource: resource.into(),
            metrics: metrics.clone(),
            works: true,
        };
        let task = tokio::spawn(exporter.run(end.clone()));
        let queue = Queue {
            ended: sender,
            metrics,
        };
        (Self { task, end }, queue)
    }

    /// Sends what is queued, for two seconds at most. Spans that end later are lost.
    pub async fn end(self) {
        self.end.cancel();
        let mut task = self.task;
        if timeout(FLUSH, &mut task).await.is_err() {
            task.abort();
            // It counts what it leaves behind.
            let _ = task.await;
        }
    }
}

#[derive(Debug)]
struct Exporter {
    collector: Collector,
    ended: mpsc::Receiver<SpanData>,
    resource: ResourceAttributesWithSchema,
    metrics: Arc<Metrics>,
    /// Whether the last batch was accepted: only changes are logged.
    works: bool,
}

impl Exporter {
    async fn run(mut self, end: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                biased;
                () = end.cancelled() => break,
                is_open = gather(&mut self.ended, &mut batch) => if !is_open { break },
            }
            self.send(&mut batch).await;
        }
        self.ended.close();
        while let Ok(span) = self.ended.try_recv() {
            batch.push(span);
            if batch.len() == BATCH {
                self.send(&mut batch).await;
            }
        }
        self.send(&mut batch).await;
    }

    async fn send(&mut self, batch: &mut Vec<SpanData>) {
        if batch.is_empty() {
            return;
        }
        let count = batch.len() as u64;
        // Counted up front: the end of the process may cut it off.
        let mut lost = Lost {
            metrics: &self.metrics,
            count,
        };
        let sent = self.post(std::mem::take(batch)).await;
        lost.count = *sent.as_ref().unwrap_or(&count);
        drop(lost);
        self.note(sent);
    }

    /// Returns how many spans the collector refused. An answer that cannot be read says nothing.
    async fn post(&self, batch: Vec<SpanData>) -> Result<u64, OutboundError> {
        let request = ExportTraceServiceRequest {
            resource_spans: group_spans_by_resource_and_scope(batch, &self.resource),
        };
        match self.collector.post(request.encode_to_vec()).await {
            Ok(answer) => Ok(refused(answer)),
            Err(OutboundError::Body(_) | OutboundError::TooLong(_)) => Ok(0),
            Err(error) => Err(error),
        }
    }

    fn note(&mut self, sent: Result<u64, OutboundError>) {
        let worked = self.works;
        self.works = sent.is_ok();
        match sent {
            Err(error) if worked => {
                let cause = std::error::Error::source(&error).map(tracing::field::display);
                warn!(
                    %error,
                    error.cause = cause,
                    "traces cannot be exported and are dropped: check telemetry.otlp_endpoint, telemetry.otlp_headers_file and the collector"
                );
            }
            Ok(_) if !worked => info!("traces are exported again"),
            Ok(_) | Err(_) => {}
        }
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let left = std::iter::from_fn(|| self.ended.try_recv().ok()).count();
        self.metrics
            .process
            .spans_lost(SpanLoss::ExportFailed, left as u64);
    }
}

/// Collects spans until a batch is full or old enough; `false`: no more will come.
///
/// Cancel safe: what was collected stays in `batch`.
async fn gather(ended: &mut mpsc::Receiver<SpanData>, batch: &mut Vec<SpanData>) -> bool {
    if ended.recv_many(batch, BATCH).await == 0 {
        return false;
    }
    let until = Instant::now() + PAUSE;
    while batch.len() < BATCH {
        match timeout_at(until, ended.recv_many(batch, BATCH - batch.len())).await {
            Ok(0) => return false,
            Ok(_) => {}
            Err(_) => break,
        }
    }
    true
}

/// Counts spans as lost when dropped.
struct Lost<'a> {
    metrics: &'a Metrics,
    count: u64,
}

impl Drop for Lost<'_> {
    fn drop(&mut self) {
        self.metrics
            .process
            .spans_lost(SpanLoss::ExportFailed, self.count);
    }
}

fn refused(answer: Bytes) -> u64 {
    ExportTraceServiceResponse::decode(answer)
        .ok()
        .and_then(|answer| answer.partial_success)
        .map_or(0, |partial| partial.rejected_spans.try_into().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{Tracer, TracerProvider};
    use opentelemetry_sdk::trace::SdkTracerProvider;

    use super::*;

    #[test]
    fn what_a_full_queue_does_not_take_is_counted() {
        let metrics = Metrics::new();
        let (sender, mut ended) = mpsc::channel(2);
        let provider = SdkTracerProvider::builder()
            .with_span_processor(Queue {
                ended: sender,
                metrics: metrics.clone(),
            })
            .build();
        let tracer = provider.tracer("test");

        for name in ["first", "second", "third"] {
            drop(tracer.start(name));
        }

        let names: Vec<_> = std::iter::from_fn(|| ended.try_recv().ok())
            .map(|span| span.name)
            .collect();
        assert_eq!(names, ["first", "second"]);
        let text = metrics.encode();
        assert!(text.contains("gateway_traces_dropped_total{reason=\"queue_full\"} 1\n"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_goes_when_it_is_full_or_a_second_old() {
        let metrics = Metrics::new();
        let (sender, mut ended) = mpsc::channel(2 * BATCH);
        let provider = SdkTracerProvider::builder()
            .with_span_processor(Queue {
                ended: sender,
                metrics,
            })
            .build();
        let tracer = provider.tracer("test");
        let began = Instant::now();
        for _ in 0..=BATCH {
            drop(tracer.start("span"));
        }
        let mut batch = Vec::new();

        assert!(gather(&mut ended, &mut batch).await);
        assert_eq!((batch.len(), began.elapsed()), (BATCH, Duration::ZERO));

        batch.clear();
        assert!(gather(&mut ended, &mut batch).await);
        assert_eq!((batch.len(), began.elapsed()), (1, PAUSE));

        batch.clear();
        drop((tracer, provider));
        assert!(!gather(&mut ended, &mut batch).await);
    }
}
