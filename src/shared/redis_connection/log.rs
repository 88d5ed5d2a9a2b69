//! The log: a stream that replicas write for each other and read in its order, each on a connection of its own.
//!
//! A replica remembers the last entry that it read. After a lost connection it goes on from a minute before, so nothing goes unheard but
//! what was trimmed meanwhile; that it is told.

use std::{str::FromStr, sync::Arc, time::Duration};

use redis::{Cmd, RedisError};

use super::{Backlog, Live, RedisConnection, Session, Subscriber, Unavailable, in_time, ms};
use crate::{
    shared::connect::{Commands, DialError},
    telemetry::metrics::RedisOperation,
};

/// Entries that the log keeps at least.
const KEPT: usize = 10_000;
/// What is read again on connecting: the clock of a server that took over may be behind by this much, and so the entries that it was told first.
const OVERLAP: Duration = Duration::from_secs(60);
/// Entries that are read at once.
const AT_ONCE: usize = 500;
/// After so many failed reads in a row Redis is lost.
const MOST_FAILURES: u32 = 2;

/// The name of an entry: milliseconds, then a number among those of the same. Redis never gives a smaller one after a larger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EntryId(u64, u64);

/// Entries by id, each with its one field.
type Entries = Vec<(String, Vec<Vec<u8>>)>;
/// By stream. Nothing where none came in time.
type Read = Option<Vec<(String, Entries)>>;

/// How far the log was read.
#[derive(Debug, Default)]
pub(super) struct Position {
    /// The newest entry that was read.
    newest: EntryId,
    /// The entry after which it is read on.
    last: EntryId,
}

impl Position {
    fn advance(&mut self, read: EntryId) {
        self.last = read;
        self.newest = read.max(self.newest);
    }

    /// Reads on from a while before: another server may have taken over.
    pub(super) fn step_back(&mut self) {
        self.last = EntryId(self.newest.0.saturating_sub(ms(OVERLAP)), 0);
    }
}

impl FromStr for EntryId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (time, number) = text.split_once('-').ok_or(())?;
        let parse = |text: &str| text.parse().map_err(|_| ());
        Ok(Self(parse(time)?, parse(number)?))
    }
}

fn appending(log: &str, entry: &[u8]) -> Cmd {
    let mut append = redis::cmd("XADD");
    append
        .arg(log)
        .arg(&["MAXLEN", "~"])
        .arg(KEPT)
        .arg(&["*", "e"])
        .arg(entry);
    append
}

impl Session {
    /// As [`RedisConnection::append`], as part of connecting.
    ///
    /// # Errors
    ///
    /// Returns [`Unavailable`] where Redis has not got it, or may not have.
    pub async fn append(&self, entry: &[u8]) -> Result<(), Unavailable> {
        let append = appending(&self.log, entry);
        let mut commands = self.commands.clone();
        in_time(append.query_async(&mut commands)).await
    }
}

impl RedisConnection {
    /// Logs `entry` for all replicas, this one too.
    ///
    /// # Errors
    ///
    /// Returns [`Unavailable`] where Redis has not got it, or may not have.
    pub async fn append(&self, entry: &[u8]) -> Result<(), Unavailable> {
        let live = self.live.load_full().ok_or(Unavailable)?;
        let append = appending(&self.log_key(), entry);
        let mut commands = live.commands.clone();
        let appended = append.query_async(&mut commands);
        let _: String = self.answer(&live, RedisOperation::Log, appended).await?;
        Ok(())
    }

    pub(super) fn log_key(&self) -> String {
        self.name("{log}")
    }

    /// Finds from where to read on: the beginning, at first, and where Redis has lost entries.
    pub(super) async fn find_position(
        &self,
        commands: &mut Commands,
    ) -> Result<Backlog, DialError> {
        let position = self.log_position.lock().newest;
        if position == EntryId::default() {
            return Ok(Backlog::Complete);
        }
        let newest = self.edge(commands, "XREVRANGE", ["+", "-"]).await?;
        if newest.unwrap_or_default() < position {
            // All that it has may be new.
            *self.log_position.lock() = Position::default();
            return Ok(Backlog::Forgotten);
        }
        let oldest = self.edge(commands, "XRANGE", ["-", "+"]).await?;
        let length: usize = redis::cmd("XLEN")
            .arg(self.log_key())
            .query_async(commands)
            .await?;
        Ok(match oldest {
            Some(oldest) if oldest > position && length >= KEPT => Backlog::Trimmed,
            _ => Backlog::Complete,
        })
    }

    async fn edge(
        &self,
        commands: &mut Commands,
        command: &str,
        range: [&str; 2],
    ) -> Result<Option<EntryId>, DialError> {
        let mut edge = redis::cmd(command);
        edge.arg(self.log_key()).arg(&range).arg(&["COUNT", "1"]);
        let entries: Entries = edge.query_async(commands).await?;
        Ok(entries.first().and_then(|(id, _)| id.parse().ok()))
    }

    /// Reads what was logged since, without waiting for more.
    pub(super) async fn read_backlog(
        &self,
        commands: &mut Commands,
        subscriber: &dyn Subscriber,
    ) -> Result<(), DialError> {
        while self.read(commands, subscriber, None).await? == AT_ONCE {}
        Ok(())
    }

    /// Reads entries as they come, until the connection is lost.
    pub(super) async fn follow_log(&self, live: &Arc<Live>, subscriber: &dyn Subscriber) {
        let mut commands = live.reader.clone();
        let recheck = self.config.recheck;
        let mut failures = 0;
        loop {
            let read = self.read(&mut commands, subscriber, Some(recheck));
            let read = tokio::time::timeout(recheck + self.config.timeout, read).await;
            if let Ok(Ok(_)) = read {
                failures = 0;
                continue;
            }
            failures += 1;
            self.metrics.shared.failed(RedisOperation::Log);
            if let Ok(Err(error)) = &read {
                self.tell_refusal(live, RedisOperation::Log, error);
            }
            let is_broken = matches!(&read, Ok(Err(error)) if super::loss(error).is_some());
            if is_broken || failures >= MOST_FAILURES {
                self.give_up(live, "the log cannot be read");
                return;
            }
            // One that fails at once fails again at once.
            tokio::time::sleep(self.config.timeout).await;
        }
    }

    /// Reads entries after the last one, and waits for one for so long where there is none. Returns how many there were.
    async fn read(
        &self,
        commands: &mut Commands,
        subscriber: &dyn Subscriber,
        wait: Option<Duration>,
    ) -> Result<usize, RedisError> {
        let EntryId(time, number) = self.log_position.lock().last;
        let mut read = redis::cmd("XREAD");
        read.arg("COUNT").arg(AT_ONCE);
        if let Some(wait) = wait {
            read.arg("BLOCK").arg(ms(wait));
        }
        read.arg("STREAMS")
            .arg(self.log_key())
            .arg(format!("{time}-{number}"));
        let streams: Read = read.query_async(commands).await?;
        let entries = streams
            .into_iter()
            .flatten()
            .flat_map(|(_, entries)| entries);
        let mut count = 0;
        for (id, fields) in entries {
            if let Some(entry) = fields.last() {
                subscriber.heard(entry);
            }
            if let Ok(id) = id.parse() {
                self.log_position.lock().advance(id);
            }
            count += 1;
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_that_is_read_in_several_attempts_goes_on_where_the_last_one_ended() {
        let mut position = Position::default();
        position.advance(EntryId(100_000, 7));
        position.step_back();
        assert_eq!(position.last, EntryId(40_000, 0));
        position.advance(EntryId(50_000, 1));
        // The next attempt: what it had read is news to nobody.
        assert_eq!(position.last, EntryId(50_000, 1));
        assert_eq!(position.newest, EntryId(100_000, 7));
        position.advance(EntryId(100_001, 0));
        assert_eq!(position.newest, position.last);
    }
}
