//! The drops that Redis has not got yet, carried over a restart: a purge that was answered reaches the other replicas.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::SharedCache;
use crate::{
    cache::snapshot::{FileError, read_whole, replace},
    off_runtime::on_a_thread,
};

/// The names of ten thousand spaces.
const LONGEST_FILE: u64 = 4 << 20;

/// What Redis has not got yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pending {
    pub everything: bool,
    /// By their names in Redis, each with whether the upstream refused it, and nobody purged it.
    pub spaces: HashMap<String, bool>,
}

impl Pending {
    pub(super) fn count(&self) -> usize {
        self.spaces.len() + usize::from(self.everything)
    }

    /// What the last process left beside `snapshot`.
    fn read(path: &Path) -> Self {
        let read = || -> Result<Option<Self>, FileError> {
            let Some(text) = read_whole(path, LONGEST_FILE)? else {
                return Ok(None);
            };
            let pending = serde_json::from_slice(&text).map_err(io::Error::from)?;
            Ok(Some(pending))
        };
        match read() {
            Ok(pending) => pending.unwrap_or_default(),
            Err(error) => {
                warn!(snapshot.file = %path.display(), %error, "purges of the last process are not sent");
                Self::default()
            }
        }
    }

    fn write(&self, path: &Path) {
        let written = match self.count() {
            0 => match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
            _ => replace(path, |file| {
                serde_json::to_writer(&file, self).map_err(io::Error::from)?;
                file.sync_all()
            }),
        };
        if let Err(error) = written {
            warn!(snapshot.file = %path.display(), %error, "purges that wait for Redis would not survive a restart");
        }
    }
}

impl SharedCache {
    /// Keeps what Redis has not got yet beside `snapshot`, and takes up what the last process left there. Reads a file.
    pub fn keep_pending(&mut self, snapshot: &Path) {
        let mut path = snapshot.as_os_str().to_owned();
        path.push(".purges");
        let path = PathBuf::from(path);
        self.drops.get_mut().pending = Pending::read(&path);
        self.pending_file = Some(path);
        self.redis.metrics().pending_purges(self.pending_drops());
    }

    /// Writes what Redis has not got yet, where there is a file for it, and shows how much that is.
    pub(super) async fn save_pending(&self) {
        self.redis.metrics().pending_purges(self.pending_drops());
        let Some(path) = self.pending_file.clone() else {
            return;
        };
        // One after another: the last is what there is.
        let _saving = self.saving.lock().await;
        let pending = self.drops.lock().pending.clone();
        on_a_thread(move || pending.write(&path)).await;
    }
}
