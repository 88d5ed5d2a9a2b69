//! Priorities for systemd's journal: a line that begins with `<3>` is an error (sd-daemon(3)), and `journalctl -p err` finds it.

use std::{ffi::OsStr, io::stderr};

use tracing::Level;

use crate::config;

/// Whether lines begin with a priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priorities {
    Off,
    Journal,
}

impl Priorities {
    /// As standard error wants them: systemd says which stream leads to its journal, and standard error may have been redirected since.
    #[must_use]
    pub fn of_stderr() -> Self {
        let stream =
            rustix::fs::fstat(stderr()).map(|stat| format!("{}:{}", stat.st_dev, stat.st_ino));
        let journal = config::journal_stream();
        match (stream, journal) {
            (Ok(stream), Some(journal)) if journal == OsStr::new(&stream) => Self::Journal,
            _ => Self::Off,
        }
    }

    /// What a line of this level begins with.
    #[must_use]
    pub fn prefix(self, level: Level) -> &'static str {
        match (self, level) {
            (Self::Off, _) => "",
            (Self::Journal, Level::ERROR) => "<3>",
            (Self::Journal, Level::WARN) => "<4>",
            (Self::Journal, Level::INFO) => "<6>",
            (Self::Journal, _) => "<7>",
        }
    }
}
