//! Events that tell of a space as a whole, as JSON.

use std::time::{Duration, SystemTime};

use crate::service::changes::{Delayed, Gone, Status, Synced};

/// In whole seconds, and one at least: a client should not ask again at once.
pub(super) fn seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

pub(super) fn synced(synced: &Synced, status: &Status) -> String {
    format!(
        r#"{{"type":"space.synced","verified_at":"{}","next_poll_seconds":{},"count":{},"watched":{}}}"#,
        time(synced.verified_at),
        seconds(status.next_poll),
        synced.count,
        synced.watched
    )
}

pub(super) fn delayed(delayed: &Delayed) -> String {
    format!(
        r#"{{"type":"space.delayed","since":"{}","code":"{}"}}"#,
        time(delayed.since),
        delayed.code
    )
}

pub(super) fn reset(reason: Gone, cursor: &str) -> String {
    format!(
        r#"{{"type":"space.reset","reason":"{}","cursor":"{cursor}"}}"#,
        reason.as_str()
    )
}

pub(super) fn gone(code: &str) -> String {
    format!(r#"{{"type":"space.gone","code":"{code}"}}"#)
}
