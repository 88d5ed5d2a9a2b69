//! Logs, metrics and traces: their form and where they go; for the access log also what it contains.

use tracing::Subscriber;
use tracing_subscriber::{
    Layer, Registry,
    filter::{LevelFilter, Targets, filter_fn},
    fmt::{self, MakeWriter},
    layer::SubscriberExt,
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt,
};

use self::lines::{Lines, lines};
pub use self::{access::AccessLog, journal::Priorities, lines::LogWriter};
use crate::config::{TelemetryConfig, telemetry::LogFormat};

pub mod access;
pub mod history;
mod journal;
mod lines;
pub mod metrics;
pub mod traces;

/// The target of our own spans. A library's may hold anything and stay out of the log.
const OUR_SPANS: &str = "unpod_gateway";

/// Controls the log of the process; the default controls nothing.
#[derive(Clone, Debug, Default)]
pub struct Log {
    filter: Option<reload::Handle<Targets, Registry>>,
    losses: Option<LogLosses>,
    is_json: bool,
    told: Option<access::Told>,
}

impl Log {
    /// Replaces the filter by the configured one.
    pub fn set_filter(&self, config: &TelemetryConfig) {
        if let Some(handle) = &self.filter {
            // It fails only once the subscriber is gone.
            let _ = handle.reload(filter(config));
        }
    }

    /// Has `tell` see each request in place of the access log.
    #[must_use]
    pub fn telling(self, tell: impl Fn(&access::Request<'_>) + Send + Sync + 'static) -> Self {
        Self {
            told: Some(access::Told::new(tell)),
            ..self
        }
    }

    /// The access log, which goes where the log goes.
    #[must_use]
    pub fn access_log(&self, config: &TelemetryConfig) -> AccessLog {
        if let Some(told) = &self.told {
            return AccessLog::Told(told.clone());
        }
        if !config.access_log {
            return AccessLog::Off;
        }
        match &self.losses {
            Some(LogLosses(lines)) if self.is_json => AccessLog::Json(lines.clone()),
            Some(_) | None => AccessLog::Events,
        }
    }

    /// Counts dropped lines; `None` where the log belongs to another gateway in the process.
    #[must_use]
    pub fn losses(&self) -> Option<&LogLosses> {
        self.losses.as_ref()
    }
}

/// Counts lines that were dropped.
#[derive(Clone, Debug)]
pub struct LogLosses(Lines);

impl LogLosses {
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.lost()
    }
}

fn filter(config: &TelemetryConfig) -> Targets {
    let configured = config.filter.parse();
    let configured = configured.unwrap_or_else(|_| Targets::new().with_default(LevelFilter::INFO));
    // Quotes what the server said. We report ourselves why there is no connection.
    configured.with_target("redis", LevelFilter::OFF)
}

/// Writes the process's log to standard error in the configured form, on a thread of its own.
///
/// No request waits for the reader of the log: lines that do not fit the buffer are counted and dropped. Only the first call in a process
/// has an effect: the subscriber is global.
pub fn init(config: &TelemetryConfig) -> (Log, LogWriter) {
    let (filter, handle) = reload::Layer::new(filter(config));
    let (lines, writer) = lines(std::io::stderr(), Priorities::of_stderr());
    let losses = LogLosses(lines.clone());
    let layer = match config.format {
        LogFormat::Json => json(lines).boxed(),
        LogFormat::Pretty => fmt::layer().with_target(false).with_writer(lines).boxed(),
    };
    let installed = tracing_subscriber::registry()
        .with(filter)
        .with(layer)
        .try_init();
    // A second gateway in the process shares the first one's log.
    let log = installed.ok().map(|()| Log {
        filter: Some(handle),
        losses: Some(losses),
        is_json: config.format == LogFormat::Json,
        told: None,
    });
    (log.unwrap_or_default(), writer)
}

/// One object a line: an event's fields, and as `span` those of our innermost span around it.
fn json<S, W>(writer: W) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    fmt::layer()
        .json()
        .flatten_event(true)
        .with_span_list(false)
        .with_writer(writer)
        .with_filter(filter_fn(|metadata| {
            !metadata.is_span() || metadata.target().starts_with(OUR_SPANS)
        }))
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc};

    use parking_lot::Mutex;
    use serde_json::Value;
    use tracing::{error_span, info, subscriber::with_default};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The lines that `events` log.
    pub(super) fn logged(events: impl FnOnce()) -> String {
        let sink = Sink::default();
        let written = sink.clone();
        let layer = json(move || sink.clone());
        with_default(tracing_subscriber::registry().with(layer), events);
        let lines = written.0.lock().clone();
        String::from_utf8(lines).unwrap()
    }

    #[test]
    fn an_event_has_the_fields_of_our_spans_around_it_and_of_no_library() {
        let lines = logged(|| {
            let _ours = error_span!("fill", request.id = "a\"b", page = 3_u32).entered();
            let _theirs = error_span!(target: "h2", "codec", secret = "x").entered();
            info!(own = 1, "within");
            drop((_theirs, _ours));
            info!("without");
        });
        let lines: Vec<Value> = lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let span = &lines[0]["span"];
        assert_eq!(span["request.id"], "a\"b");
        assert_eq!((&span["page"], &lines[0]["own"]), (&3.into(), &1.into()));
        assert!(!lines[0].to_string().contains("secret"));
        assert_eq!(lines[1].get("span"), None);
    }
}
