//! Logs, metrics and traces: how they look and where they go, and of the access log what it says.

use tracing_subscriber::{
    EnvFilter, Registry, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

pub use self::{access::AccessLog, lines::LogWriter};
use self::{
    json::{JsonFields, JsonLines},
    lines::{Lines, lines},
};
use crate::config::{TelemetryConfig, telemetry::LogFormat};

pub mod access;
mod json;
mod lines;
pub mod metrics;
pub mod samples;
pub mod traces;

/// A hold on what the process logs; the default one holds nothing.
#[derive(Clone, Debug, Default)]
pub struct Log {
    filter: Option<reload::Handle<EnvFilter, Registry>>,
    losses: Option<LogLosses>,
    is_json: bool,
}

impl Log {
    /// Logs by the configured filter from now on.
    pub fn set_filter(&self, config: &TelemetryConfig) {
        if let Some(handle) = &self.filter {
            // It fails once the subscriber is gone, and with it the log.
            let _ = handle.reload(filter(config));
        }
    }

    /// Where the access log goes: where everything else does.
    #[must_use]
    pub fn access_log(&self, config: &TelemetryConfig) -> AccessLog {
        if !config.access_log {
            return AccessLog::OFF;
        }
        match &self.losses {
            Some(LogLosses(lines)) if self.is_json => AccessLog::json(lines.clone()),
            Some(_) | None => AccessLog::EVENTS,
        }
    }

    /// What of it is lost; `None` where it is somebody else's.
    #[must_use]
    pub fn losses(&self) -> Option<&LogLosses> {
        self.losses.as_ref()
    }
}

/// How many lines could not be written in time.
#[derive(Clone, Debug)]
pub struct LogLosses(Lines);

impl LogLosses {
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.lost()
    }
}

fn filter(config: &TelemetryConfig) -> EnvFilter {
    EnvFilter::try_new(&config.filter).unwrap_or_else(|_| EnvFilter::new("info"))
}

/// Sends the process's log to standard error, in the configured form, from a thread of its own.
///
/// No request waits for whoever reads the log: lines that find no room are counted and lost. Only the first call in a process has an
/// effect: the subscriber is global.
pub fn init(config: &TelemetryConfig) -> (Log, LogWriter) {
    let (filter, handle) = reload::Layer::new(filter(config));
    let (lines, writer) = lines(std::io::stderr());
    let losses = LogLosses(lines.clone());
    let registry = tracing_subscriber::registry().with(filter);
    let installed = match config.format {
        LogFormat::Json => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .event_format(JsonLines)
                    .fmt_fields(JsonFields)
                    .with_writer(lines),
            )
            .try_init(),
        LogFormat::Pretty => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .with_target(false)
                    .with_writer(lines),
            )
            .try_init(),
    };
    // A second gateway in the process logs where the first does.
    let log = installed.ok().map(|()| Log {
        filter: Some(handle),
        losses: Some(losses),
        is_json: config.format == LogFormat::Json,
    });
    (log.unwrap_or_default(), writer)
}
