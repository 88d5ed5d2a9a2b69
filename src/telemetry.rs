//! Logs and metrics: how they look and where they go, not what they say.

use tracing_subscriber::{
    EnvFilter, Registry, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

use crate::config::{TelemetryConfig, telemetry::LogFormat};

pub mod metrics;
pub mod traces;

/// A hold on what the process logs; the default one holds nothing.
#[derive(Clone, Debug, Default)]
pub struct LogFilter(Option<reload::Handle<EnvFilter, Registry>>);

impl LogFilter {
    /// Logs by the configured filter from now on.
    pub fn set(&self, config: &TelemetryConfig) {
        if let Some(handle) = &self.0 {
            // It fails once the subscriber is gone, and with it the log.
            let _ = handle.reload(filter(config));
        }
    }
}

fn filter(config: &TelemetryConfig) -> EnvFilter {
    EnvFilter::try_new(&config.filter).unwrap_or_else(|_| EnvFilter::new("info"))
}

/// Sends the process's log to standard error, in the configured form.
///
/// Only the first call in a process has an effect: the subscriber is global.
pub fn init(config: &TelemetryConfig) -> LogFilter {
    let (filter, handle) = reload::Layer::new(filter(config));
    let registry = tracing_subscriber::registry().with(filter);
    let installed = match config.format {
        LogFormat::Json => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_current_span(false)
                    .with_span_list(false)
                    .with_writer(std::io::stderr),
            )
            .try_init(),
        LogFormat::Pretty => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .with_target(false)
                    .with_writer(std::io::stderr),
            )
            .try_init(),
    };
    // A second gateway in the process logs where the first does.
    LogFilter(installed.ok().map(|()| handle))
}
