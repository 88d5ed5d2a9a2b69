//! A bounded buffer of log lines and the thread that writes them.
//!
//! Of our own: tracing-appender copies each line into an allocation of its own, wakes its thread for each, and has it spin for the next:
//! a twentieth of what a hit costs. Here all lines share one buffer, and its thread is woken for the first line of a batch only.

use std::{
    io::{self, Write},
    mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use super::journal::Priorities;

/// Capacity in bytes: some 8,000 lines of the access log.
const MOST: usize = 4 << 20;
/// Bytes that are written at once, without waiting for more.
const BATCH: usize = 64 << 10;
/// Capacity that is kept from batch to batch. With [`BATCH`] alone the buffer grew and shrank again, which copied every line once more.
const KEPT: usize = 4 * BATCH;
/// How long the first line waits for others.
const GATHER: Duration = Duration::from_millis(10);
/// How long dropping the writer waits for the rest to be written.
const PATIENCE: Duration = Duration::from_secs(1);

/// Takes lines without ever waiting for the writer. Clones share a buffer.
#[derive(Clone, Debug)]
pub struct Lines {
    queue: Arc<Queue>,
    priorities: Priorities,
}

/// Takes the lines of one event.
#[derive(Debug)]
pub struct EventLines<'a> {
    lines: &'a Lines,
    prefix: &'static str,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    come: Condvar,
    lost: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    is_over: bool,
}

/// Writes the log. Dropping it writes the rest, for a second at most; nothing is written after that.
#[derive(Debug)]
#[must_use = "the log ends when it is dropped"]
pub struct LogWriter {
    queue: Arc<Queue>,
    ended: mpsc::Receiver<()>,
}

/// Starts a thread that writes to `sink`.
///
/// # Panics
///
/// Panics where the system gives no thread.
pub(super) fn lines(
    sink: impl Write + Send + 'static,
    priorities: Priorities,
) -> (Lines, LogWriter) {
    let queue = Arc::new(Queue::default());
    let (end, ended) = mpsc::channel();
    let taken = queue.clone();
    thread::Builder::new()
        .name("log".into())
        .spawn(move || {
            taken.write_to(sink);
            // The writer may have given up waiting.
            let _ = end.send(());
        })
        .expect("a process that begins has a thread to spare");
    let lines = Lines {
        queue: queue.clone(),
        priorities,
    };
    (lines, LogWriter { queue, ended })
}

impl Lines {
    pub(super) fn push(&self, line: &[u8]) {
        self.queue.push(line);
    }

    /// What a line of `level` has to begin with.
    pub(super) fn prefix(&self, level: Level) -> &'static str {
        self.priorities.prefix(level)
    }

    /// How many lines were dropped.
    pub(super) fn lost(&self) -> u64 {
        self.queue.lost.load(Ordering::Relaxed)
    }
}

/// One call of `write` is one line.
impl Write for EventLines<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.prefix.is_empty() {
            self.lines.push(line);
        } else {
            self.lines.push(&[self.prefix.as_bytes(), line].concat());
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = EventLines<'a>;

    fn make_writer(&'a self) -> EventLines<'a> {
        EventLines {
            lines: self,
            prefix: self.prefix(Level::INFO),
        }
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> EventLines<'a> {
        EventLines {
            lines: self,
            prefix: self.prefix(*event.level()),
        }
    }
}

impl Queue {
    fn push(&self, line: &[u8]) {
        let mut waiting = self.waiting.lock();
        let before = waiting.bytes.len();
        let after = before + line.len();
        if after > MOST {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.bytes.extend_from_slice(line);
        drop(waiting);
        // In between it sleeps: no wake-up per line.
        if before == 0 || (before < BATCH && after >= BATCH) {
            self.come.notify_one();
        }
    }

    fn write_to(&self, mut sink: impl Write) {
        let mut batch = Vec::new();
        while self.take(&mut batch) {
            let unwritten = write_batch(&mut sink, &batch);
            let lost = unwritten.iter().filter(|byte| **byte == b'\n').count() as u64;
            self.lost.fetch_add(lost, Ordering::Relaxed);
            batch.clear();
            batch.shrink_to(KEPT);
        }
    }

    /// Waits for lines; `false`: the log has ended and none is left.
    fn take(&self, batch: &mut Vec<u8>) -> bool {
        let is_idle = |waiting: &mut Waiting| waiting.bytes.is_empty() && !waiting.is_over;
        let gathers = |waiting: &mut Waiting| waiting.bytes.len() < BATCH && !waiting.is_over;
        let mut waiting = self.waiting.lock();
        self.come.wait_while(&mut waiting, is_idle);
        self.come.wait_while_for(&mut waiting, gathers, GATHER);
        mem::swap(&mut waiting.bytes, batch);
        !batch.is_empty()
    }
}

/// Writes what it can, however long that takes, and returns the rest.
fn write_batch<'a>(sink: &mut impl Write, batch: &'a [u8]) -> &'a [u8] {
    let mut rest = batch;
    while !rest.is_empty() {
        match sink.write(rest) {
            Ok(written @ 1..) => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The pipe was made non-blocking by another process.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(GATHER),
            Ok(0) | Err(_) => break,
        }
    }
    rest
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.queue.waiting.lock().is_over = true;
        self.queue.come.notify_one();
        // The reader of the log may have stopped.
        let _ = self.ended.recv_timeout(PATIENCE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says when a batch has come, and takes no further before it may.
    struct Stuck {
        come: mpsc::Sender<()>,
        may: mpsc::Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Stuck {
        fn write(&mut self, batch: &[u8]) -> io::Result<usize> {
            let _ = self.come.send(());
            // An error is leave for all that follow.
            let _ = self.may.recv();
            self.written.lock().extend_from_slice(batch);
            Ok(batch.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_begins_with_the_priority_of_its_level() {
        for (priorities, level, prefix) in [
            (Priorities::Off, Level::ERROR, ""),
            (Priorities::Journal, Level::ERROR, "<3>"),
            (Priorities::Journal, Level::WARN, "<4>"),
            (Priorities::Journal, Level::INFO, "<6>"),
            (Priorities::Journal, Level::DEBUG, "<7>"),
            (Priorities::Journal, Level::TRACE, "<7>"),
        ] {
            let (lines, _writer) = lines(io::sink(), priorities);
            assert_eq!(lines.prefix(level), prefix);
        }
    }

    #[test]
    fn a_log_that_nobody_reads_loses_lines_and_counts_them() {
        let (come, has_come) = mpsc::channel();
        let (allow, may) = mpsc::channel();
        let written = Arc::default();
        let (lines, writer) = lines(
            Stuck {
                come,
                may,
                written: Arc::clone(&written),
            },
            Priorities::Off,
        );
        let write = |line: &[u8]| lines.make_writer().write_all(line).unwrap();
        write(b".");
        has_come.recv().unwrap();

        let line = [b'.'; 1024];
        for _ in 0..MOST / line.len() {
            write(&line);
        }
        assert_eq!(lines.lost(), 0);
        for _ in 0..3 {
            write(b".");
        }

        assert_eq!(lines.lost(), 3);
        drop(allow);
        drop(writer);
        assert_eq!(written.lock().len(), 1 + MOST);
    }

    #[test]
    fn what_a_sink_refuses_is_counted_and_what_it_delays_is_not() {
        /// Takes three bytes at a time, and nothing at first and in the end.
        struct Narrow(usize);
        impl Write for Narrow {
            fn write(&mut self, batch: &[u8]) -> io::Result<usize> {
                self.0 += 1;
                match self.0 {
                    1 => Err(io::ErrorKind::WouldBlock.into()),
                    2 => Err(io::ErrorKind::Interrupted.into()),
                    3 | 4 => Ok(batch.len().min(3)),
                    _ => Err(io::ErrorKind::BrokenPipe.into()),
                }
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        assert_eq!(write_batch(&mut Narrow(0), b"ab\ncd\n"), b"");
        assert_eq!(write_batch(&mut Narrow(0), b"ab\ncd\nef\n"), b"ef\n");

        let (lines, writer) = lines(Narrow(4), Priorities::Off);
        lines.make_writer().write_all(b"a\nb\n").unwrap();
        drop(writer);
        assert_eq!(lines.lost(), 2);
    }

    #[test]
    fn whatever_came_is_written_in_its_order_before_the_end() {
        let (come, _come) = mpsc::channel();
        let (_, may) = mpsc::channel();
        let written = Arc::default();
        let (lines, writer) = lines(
            Stuck {
                come,
                may,
                written: Arc::clone(&written),
            },
            Priorities::Off,
        );
        let mut expected = Vec::new();
        for number in 0..10_000 {
            let line = format!("{number}\n");
            lines.make_writer().write_all(line.as_bytes()).unwrap();
            expected.extend_from_slice(line.as_bytes());
        }
        drop(writer);
        assert_eq!(lines.lost(), 0);
        assert!(*written.lock() == expected);
    }
}
