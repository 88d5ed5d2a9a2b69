//! The upstream's rate limit: so many calls a minute for each API token.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::Instant;

const WINDOW: Duration = Duration::from_secs(60);

/// Counts each token's calls in windows of a minute, each of which opens with the token's first call.
#[derive(Debug, Default)]
pub(super) struct Quota {
    per_minute: Option<u32>,
    windows: BTreeMap<String, Window>,
}

#[derive(Debug)]
struct Window {
    opened: Instant,
    calls: u32,
}

/// Where a token stands after a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Standing {
    pub(super) limit: u32,
    pub(super) remaining: u32,
    pub(super) exceeded: bool,
    pub(super) renewed_in: Duration,
}

impl Standing {
    /// Returns when the window ends, in Unix seconds.
    pub(super) fn reset(&self) -> u64 {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        (now + self.renewed_in).as_secs()
    }
}

impl Quota {
    pub(super) fn new(per_minute: Option<u32>) -> Self {
        Self {
            per_minute,
            windows: BTreeMap::new(),
        }
    }

    /// Counts a call of `token`; without a quota there is nothing to tell.
    pub(super) fn spend(&mut self, token: &str) -> Option<Standing> {
        let limit = self.per_minute?;
        let now = Instant::now();
        let window = self.windows.entry(token.to_owned()).or_insert(Window {
            opened: now,
            calls: 0,
        });
        if now.duration_since(window.opened) >= WINDOW {
            *window = Window {
                opened: now,
                calls: 0,
            };
        }
        window.calls = window.calls.saturating_add(1);
        Some(Standing {
            limit,
            remaining: limit.saturating_sub(window.calls),
            exceeded: window.calls > limit,
            renewed_in: WINDOW.saturating_sub(now.duration_since(window.opened)),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Quota;

    #[tokio::test(start_paused = true)]
    async fn a_token_has_its_calls_back_after_a_minute() {
        let mut quota = Quota::new(Some(2));
        let mut spend = |token| {
            let standing = quota.spend(token).unwrap();
            (
                standing.remaining,
                standing.exceeded,
                standing.renewed_in.as_secs(),
            )
        };
        assert_eq!(spend("one"), (1, false, 60));
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(spend("one"), (0, false, 40));
        assert_eq!(spend("one"), (0, true, 40));
        assert_eq!(spend("two"), (1, false, 60));
        tokio::time::advance(Duration::from_secs(40)).await;
        assert_eq!(spend("one"), (1, false, 60));
    }

    #[test]
    fn without_a_quota_nothing_is_told() {
        assert_eq!(Quota::new(None).spend("one"), None);
    }
}
