//! Carries pages and call times over a restart: reads the snapshot at start, writes it now and then, after pages were dropped, and at the end.

use std::{path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::calls::Moment;
use super::Pages;
use crate::{
    cache::snapshot::{self, Owners, Restored, SavedPage},
    shared::unix_ms,
    upstream::{Credential, Credentials, read_page},
};

mod calls;

/// How old the file may grow.
const EVERY: Duration = Duration::from_secs(180);
/// After pages were dropped: long enough that a walk of revocations is one write, short enough that a crash shows few of them.
const SOON: Duration = Duration::from_secs(1);
/// After a failed write: the old file may hold what was revoked since.
const AGAIN: Duration = Duration::from_secs(10);
/// How far the clock may have been set back since a page was written.
pub(super) const CLOCK_SKEW_MS: u64 = 60_000;

/// The snapshot file of one gateway.
#[derive(Debug)]
pub struct Snapshot {
    path: PathBuf,
    /// Whose pages the file holds.
    credentials: ArcSwap<Credentials>,
    pages: Arc<Pages>,
}

impl Snapshot {
    #[must_use]
    pub fn new(path: PathBuf, credentials: Arc<Credentials>, pages: Arc<Pages>) -> Arc<Self> {
        Arc::new(Self {
            path,
            credentials: ArcSwap::new(credentials),
            pages,
        })
    }

    /// Writes for `credentials` from now on.
    pub fn set_credentials(&self, credentials: Arc<Credentials>) {
        self.credentials.store(credentials);
    }

    fn owners(&self) -> Owners {
        let credentials = self.credentials.load();
        owners(credentials.all())
    }

    /// Takes in what the file holds. A file that is not to be trusted is left out with one warning, and whatever it holds the start goes on.
    pub async fn restore(self: &Arc<Self>) {
        let snapshot = self.clone();
        let restored = tokio::task::spawn_blocking(move || {
            snapshot.restore_calls();
            snapshot.restore_pages();
        });
        if let Err(panic) = restored.await {
            error!(error = %panic, "reading the snapshot ended in a bug");
        }
    }

    fn restore_calls(&self) {
        let path = calls::beside(&self.path);
        calls::take(&path, &self.credentials.load(), &self.owners(), unix_ms());
    }

    fn restore_pages(&self) {
        let file = self.path.display();
        let most = self.pages.store().longest_snapshot();
        match snapshot::read(&self.path, &self.owners(), most) {
            Ok(None) => {}
            Ok(Some(Restored { pages, foreign })) => {
                let found = pages.len();
                let restored = self.restore_each(pages);
                info!(snapshot.file = %file, snapshot.pages = restored, "restored pages from the snapshot");
                if foreign > 0 {
                    warn!(
                        snapshot.file = %file,
                        snapshot.pages = foreign,
                        "left out pages of another base URL, organization or token"
                    );
                }
                if restored < found {
                    warn!(
                        snapshot.file = %file,
                        snapshot.pages = found - restored,
                        "left out pages that are no pages, or that the clock says are still to come"
                    );
                }
            }
            Err(error) => {
                warn!(snapshot.file = %file, %error, "snapshot is not used");
            }
        }
    }

    /// Returns how many could be.
    fn restore_each(&self, pages: Vec<SavedPage>) -> usize {
        let (now, now_unix_ms) = (Instant::now(), unix_ms());
        let latest = now_unix_ms.saturating_add(CLOCK_SKEW_MS);
        let mut restored = 0;
        for saved in pages {
            // Of a page from the future nobody knows the age.
            if saved.born_unix_ms <= latest
                && let Ok(page) = read_page(&saved.body)
            {
                let store = self.pages.store();
                store.restore(&saved, page, now, now_unix_ms);
                restored += 1;
            }
        }
        restored
    }

    /// Keeps the files up to date until `end`, and writes them once more then.
    pub async fn keep_writing(self: Arc<Self>, end: CancellationToken) {
        tokio::join!(self.keep_writing_pages(&end), self.keep_writing_calls(&end));
    }

    async fn keep_writing_calls(self: &Arc<Self>, end: &CancellationToken) {
        let (mut written, mut pause) = (self.activity(), calls::EVERY);
        loop {
            let moment = tokio::select! {
                () = end.cancelled() => Moment::End,
                () = tokio::time::sleep(pause) => Moment::Meanwhile,
            };
            let activity = self.activity();
            let is_busy = |(_, in_flight): &(u64, u32)| *in_flight > 0;
            if moment == Moment::Meanwhile && activity == written && !activity.iter().any(is_busy) {
                continue;
            }
            let snapshot = self.clone();
            let writing = tokio::task::spawn_blocking(move || snapshot.write_calls(moment));
            let is_written = writing.await.unwrap_or(false);
            if moment == Moment::End {
                return;
            }
            if is_written {
                (written, pause) = (activity, calls::EVERY);
            } else {
                pause = AGAIN;
            }
        }
    }

    /// What each credential has done so far.
    fn activity(&self) -> Vec<(u64, u32)> {
        let credentials = self.credentials.load();
        let all = credentials.all();
        all.map(|credential| credential.budget().activity())
            .collect()
    }

    async fn keep_writing_pages(self: &Arc<Self>, end: &CancellationToken) {
        let mut pause = EVERY;
        loop {
            let due = async {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = self.pages.store().invalidated() => tokio::time::sleep(SOON).await,
                }
            };
            let ended = end.run_until_cancelled(due).await.is_none();
            let snapshot = self.clone();
            let written = tokio::task::spawn_blocking(move || snapshot.write());
            let written = written.await.unwrap_or(false);
            if ended {
                return;
            }
            pause = if written { EVERY } else { AGAIN };
        }
    }

    fn write_calls(&self, moment: Moment) -> bool {
        let (path, owners) = (calls::beside(&self.path), self.owners());
        let credentials = self.credentials.load();
        calls::write(&path, &credentials, &owners, moment, unix_ms())
    }

    /// Whether it could be written.
    fn write(&self) -> bool {
        let pages = self.pages.store().saved(Instant::now(), unix_ms());
        let written = snapshot::write(&self.path, &self.owners(), pages);
        if let Err(error) = &written {
            warn!(snapshot.file = %self.path.display(), %error, "snapshot is not written");
        }
        written.is_ok()
    }
}

/// By what `credentials` are known outside the process: what they read, where, and with which secrets.
pub(super) fn owners<'a>(credentials: impl Iterator<Item = &'a Arc<Credential>>) -> Owners {
    let mut owners = Owners::default();
    for credential in credentials {
        for secrets in credential.secrets() {
            owners.add(credential.id, &credential.name, &secrets);
        }
    }
    owners
}

#[cfg(test)]
mod tests;
