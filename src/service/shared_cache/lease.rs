//! One replica fills a page at a time: who it is, and for how long.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinHandle;

use super::{Event, keys::LockedNames, scripts};
use crate::{
    shared::{Nonce, RedisConnection, Unavailable},
    telemetry::metrics::RedisOperation,
};

/// How long a page is some replica's to fill, unless it says again that it is: what one that died costs the others.
pub(super) const LOCK_FOR: Duration = Duration::from_secs(3);

/// Who fills a page.
#[derive(Debug)]
pub(in crate::service) enum Lease {
    Acquired(FillLock),
    /// Another replica, for so long unless it says again that it does.
    HeldElsewhere(Duration),
    NotWanted,
}

/// The right to fill a page, until it is dropped.
#[derive(Debug)]
pub(in crate::service) struct FillLock {
    redis: Arc<RedisConnection>,
    names: LockedNames,
    pub(super) token: Nonce,
    renewing: JoinHandle<()>,
    is_released: bool,
}

impl FillLock {
    /// That which `token` was just taken for.
    pub(super) fn new(redis: Arc<RedisConnection>, names: &LockedNames, token: Nonce) -> Self {
        Self {
            renewing: tokio::spawn(renewing(redis.clone(), names.lock.clone(), token)),
            redis,
            names: names.clone(),
            token,
            is_released: false,
        }
    }

    pub(in crate::service) fn token(&self) -> Nonce {
        self.token
    }

    /// Whether it is, as far as Redis has said.
    pub(in crate::service) fn is_held(&self) -> bool {
        !self.renewing.is_finished()
    }

    /// It is gone in Redis already.
    pub(super) fn released(mut self) {
        self.is_released = true;
    }
}

impl Drop for FillLock {
    fn drop(&mut self) {
        self.renewing.abort();
        if self.is_released {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let (redis, names, token) = (self.redis.clone(), self.names.clone(), self.token);
        runtime.spawn(async move {
            let unlock = scripts::unlock(&names.lock, token);
            // One that stays ends by itself.
            let unlocked: Result<u8, Unavailable> = redis.ask(RedisOperation::Lock, &unlock).await;
            if unlocked.is_ok() {
                let _ = redis
                    .append(&Event::Filled { page: names.value }.to_bytes())
                    .await;
            }
        });
    }
}

/// Says again and again that a page is still being filled.
async fn renewing(redis: Arc<RedisConnection>, key: String, token: Nonce) {
    let renew = || {
        let (redis, renew) = (redis.clone(), scripts::renew(&key, token));
        async move { redis.ask(RedisOperation::Lock, &renew).await }
    };
    keep_renewing(renew).await;
}

/// Calls `renew` until the lock is not held any more; each time early enough for another, whether Redis answers or not.
async fn keep_renewing<F>(renew: impl Fn() -> F)
where
    F: Future<Output = Result<bool, Unavailable>>,
{
    loop {
        tokio::time::sleep(LOCK_FOR / 3).await;
        if let Ok(Ok(false)) = tokio::time::timeout(LOCK_FOR / 3, renew()).await {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::pending};

    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_renewal_that_is_not_answered_is_sent_again_before_the_lock_ends() {
        let (renewed, began) = (Cell::new(0), Instant::now());
        let renew = || {
            renewed.set(renewed.get() + 1);
            let is_first = renewed.get() == 1;
            async move { if is_first { pending().await } else { Ok(false) } }
        };
        keep_renewing(renew).await;
        assert_eq!(renewed.get(), 2);
        assert!(began.elapsed() <= LOCK_FOR, "{:?}", began.elapsed());
    }
}
