//! The calls that were made in the last minute, carried over a restart: a restart does not refill a quota.
//!
//! Written every few seconds while calls are made, and at the end of a drain. Only what was written then is all that was spent: after a crash the
//! next process counts what may be missing, too.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::{
    cache::snapshot::{Owner, Owners, read_whole, replace},
    shared::ms,
    upstream::{BudgetSnapshot, Credential, Credentials},
};

/// The times of a million calls.
const LONGEST_FILE: u64 = 16 << 20;
/// What is remembered of one credential: no quota is larger.
const MOST_CALLS: usize = 65_536;

/// How often the file is written while calls are made.
pub(super) const EVERY: Duration = Duration::from_secs(2);
/// Calls of so long may be missing after a crash: writing takes its time, too.
const MISSING: Duration = Duration::from_secs(4);

/// What was spent.
#[derive(Debug, Serialize, Deserialize)]
struct Spent {
    /// Whether it was written at the end, after the last call.
    complete: bool,
    credentials: Vec<SpentBy>,
}

/// What one credential has spent, in Unix milliseconds.
#[derive(Debug, Serialize, Deserialize)]
struct SpentBy {
    owner: Owner,
    ended: Vec<u64>,
    #[serde(rename = "others")]
    external_calls: Option<(u32, u64)>,
    #[serde(rename = "hold_until")]
    blocked_until: Option<u64>,
    learned: Option<u32>,
}

/// Beside the snapshot: the file of calls that belongs to it.
pub(super) fn beside(snapshot: &Path) -> PathBuf {
    let mut name = snapshot.as_os_str().to_owned();
    name.push(".calls");
    name.into()
}

/// When a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// Calls are made after it.
    Meanwhile,
    /// No call is made any more.
    End,
}

/// Writes what was spent; at the end it closes every call budget before. Returns whether it could be written.
pub(super) fn write(
    path: &Path,
    credentials: &Credentials,
    owners: &Owners,
    moment: Moment,
    now_unix_ms: u64,
) -> bool {
    let now = Instant::now();
    let of = |credential: &Arc<Credential>| {
        let spent = match moment {
            Moment::Meanwhile => credential.budget().snapshot(now),
            Moment::End => credential.budget().close(now),
        };
        let owner = owners.owner(credential.id)?.clone();
        Some(told(owner, &spent, now_unix_ms))
    };
    let spent = Spent {
        complete: moment == Moment::End,
        credentials: credentials.all().filter_map(of).collect(),
    };
    let written = replace(path, |file| {
        serde_json::to_writer(&file, &spent).map_err(io::Error::from)?;
        match moment {
            // It outlives the process, if not the machine.
            Moment::Meanwhile => Ok(()),
            Moment::End => file.sync_all(),
        }
    });
    if let Err(error) = &written {
        warn!(snapshot.file = %path.display(), %error, "call times are not written: the next start is cautious for a minute");
        // An older one would be taken for the last few seconds' word.
        let _ = fs::remove_file(path);
    }
    written.is_ok()
}

/// Takes in what the last process spent, and leaves it for the next as what may not be all.
pub(super) fn take(path: &Path, credentials: &Credentials, owners: &Owners, now_unix_ms: u64) {
    let text = match read_whole(path, LONGEST_FILE) {
        Ok(Some(text)) => text,
        Ok(None) => return,
        Err(error) => {
            warn!(snapshot.file = %path.display(), %error, "call times are not used");
            return;
        }
    };
    // First: should this process crash, its calls are not in there.
    if let Err(error) = fs::remove_file(path) {
        warn!(snapshot.file = %path.display(), %error, "call times cannot be taken away, and are not used");
        return;
    }
    let Ok(all) = serde_json::from_slice::<Spent>(&text) else {
        warn!(snapshot.file = %path.display(), "call times are damaged, and are not used");
        return;
    };
    let now = Instant::now();
    let missing = (!all.complete).then_some(MISSING);
    for spent in all.credentials {
        let Some(id) = owners.id(&spent.owner) else {
            continue;
        };
        if let Some(credential) = credentials.all().find(|credential| credential.id == id) {
            let known = heard(&spent, missing, now_unix_ms);
            credential.budget().resume(&known, missing, now);
            info!(
                credential.name = credential.name,
                quota.calls = spent.ended.len(),
                quota.complete = all.complete,
                "the quota goes on where the last process left it"
            );
        }
    }
    write(path, credentials, owners, Moment::Meanwhile, now_unix_ms);
}

fn told(owner: Owner, spent: &BudgetSnapshot, now_unix_ms: u64) -> SpentBy {
    let after = |left: Duration| now_unix_ms.saturating_add(ms(left));
    SpentBy {
        owner,
        ended: spent
            .ago
            .iter()
            .map(|ago| now_unix_ms.saturating_sub(ms(*ago)))
            .collect(),
        external_calls: spent
            .external_calls
            .map(|(count, left)| (count, after(left))),
        blocked_until: spent.blocked_for.map(after),
        learned: spent.learned,
    }
}

/// A time that lies ahead, by a clock that was set back, is taken for now. Calls that were under way may have ended later than it says, by what is
/// `missing`.
fn heard(spent: &SpentBy, missing: Option<Duration>, now_unix_ms: u64) -> BudgetSnapshot {
    let later = ms(missing.unwrap_or_default());
    let left = |until: u64| Duration::from_millis(until.saturating_sub(now_unix_ms));
    BudgetSnapshot {
        ago: spent
            .ended
            .iter()
            // The last are the latest.
            .rev()
            .take(MOST_CALLS)
            .map(|ended| now_unix_ms.saturating_sub(ended.saturating_add(later)))
            .map(Duration::from_millis)
            .collect(),
        external_calls: spent
            .external_calls
            .map(|(count, until)| (count, left(until))),
        blocked_for: spent.blocked_until.map(left),
        learned: spent.learned,
    }
}

#[cfg(test)]
mod tests;
