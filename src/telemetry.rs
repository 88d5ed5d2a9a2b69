//! Logs, metrics and traces: how they look and where they go, not what they say.

use std::io::{BufWriter, Write};

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter, Registry, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

use self::json::JsonLines;
use crate::config::{TelemetryConfig, telemetry::LogFormat};

mod json;
pub mod metrics;
pub mod samples;
pub mod traces;

/// Lines that wait to be written; a few hundred bytes each.
const LINES: usize = 8192;

/// Bytes that are written at once.
const BATCH: usize = 64 << 10;

/// A hold on what the process logs; the default one holds nothing.
#[derive(Clone, Debug, Default)]
pub struct Log {
    filter: Option<reload::Handle<EnvFilter, Registry>>,
    losses: Option<LogLosses>,
}

impl Log {
    /// Logs by the configured filter from now on.
    pub fn set_filter(&self, config: &TelemetryConfig) {
        if let Some(handle) = &self.filter {
            // It fails once the subscriber is gone, and with it the log.
            let _ = handle.reload(filter(config));
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
pub struct LogLosses(ErrorCounter);

impl LogLosses {
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.dropped_lines() as u64
    }
}

/// Writes the log. Dropped, it writes what is left, for a second at most; nothing is written after that.
#[derive(Debug)]
#[must_use = "the log ends when it is dropped"]
pub struct LogWriter(#[expect(dead_code, reason = "it is there to be dropped")] WorkerGuard);

fn filter(config: &TelemetryConfig) -> EnvFilter {
    EnvFilter::try_new(&config.filter).unwrap_or_else(|_| EnvFilter::new("info"))
}

/// Sends the process's log to standard error, in the configured form, from a thread of its own.
///
/// No request waits for whoever reads the log: lines that find no room are counted and lost. Only the first call in a process has an
/// effect: the subscriber is global.
pub fn init(config: &TelemetryConfig) -> (Log, LogWriter) {
    let (filter, handle) = reload::Layer::new(filter(config));
    let (lines, writer) = queued(std::io::stderr());
    let losses = LogLosses(lines.error_counter());
    let registry = tracing_subscriber::registry().with(filter);
    let installed = match config.format {
        LogFormat::Json => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .event_format(JsonLines)
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
    });
    (log.unwrap_or_default(), writer)
}

fn queued(sink: impl Write + Send + 'static) -> (NonBlocking, LogWriter) {
    let (lines, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(LINES)
        .lossy(true)
        .thread_name("log")
        // Flushed whenever no line waits: what came together is written together.
        .finish(BufWriter::with_capacity(BATCH, sink));
    (lines, LogWriter(guard))
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex, mpsc},
    };

    use super::*;

    /// Says when a line has come, and takes no further before it may.
    struct Stuck {
        come: mpsc::Sender<()>,
        may: mpsc::Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Stuck {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _ = self.come.send(());
            // An error is leave for all that follow.
            let _ = self.may.recv();
            self.written.lock().unwrap().extend_from_slice(line);
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_log_that_nobody_reads_loses_lines_and_counts_them() {
        let (come, has_come) = mpsc::channel();
        let (allow, may) = mpsc::channel();
        let written = Arc::default();
        let (mut lines, writer) = queued(Stuck {
            come,
            may,
            written: Arc::clone(&written),
        });
        let losses = LogLosses(lines.error_counter());
        lines.write_all(b".").unwrap();
        has_come.recv().unwrap();

        for _ in 0..LINES + 3 {
            lines.write_all(b".").unwrap();
        }

        assert_eq!(losses.count(), 3);
        drop(allow);
        drop(writer);
        assert_eq!(written.lock().unwrap().len(), 1 + LINES);
    }
}
