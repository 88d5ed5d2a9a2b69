//! SIGTERM and SIGINT to end, SIGHUP to reload.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals, caught from now on: one that comes before it is awaited is neither lost nor fatal.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Begins to catch them. To be called on the runtime, before the service is announced.
    pub(super) fn catch() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one: `Some` asks to reload, `None` to end.
    pub(super) async fn reload_or_end(&mut self) -> Option<()> {
        tokio::select! {
            _ = self.terminate.recv() => None,
            _ = self.interrupt.recv() => None,
            _ = self.hangup.recv() => Some(()),
        }
    }

    /// Waits for the next one to end.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
