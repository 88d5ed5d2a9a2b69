//! Lets answers take turns: what is ready is read before the first short answer is written, then these are written one right after the
//! other.
//!
//! A peer on this machine is busy with the first while the others come; else the kernel wakes it for each, which costs up to a microsecond
//! of ours. Measured in W1: 0.69 → 0.78 × bare hyper, of which 0.74 are had by polling each connection once more instead.

use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, IoSlice},
    mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    runtime::Handle,
    sync::Notify,
};

/// What is no longer is written as one piece, and may wait its turn: copying it costs less than what else has to be done for it.
const SHORT: usize = 8 << 10;
/// So many bytes may wait; who comes then is not held up.
const MOST: usize = 256 << 10;

thread_local! {
    /// Where pieces are joined.
    static WHOLE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The short answers of a server's connections, until it is their turn.
#[derive(Debug, Default)]
pub(super) struct Turns {
    waiting: Mutex<Waiting>,
    come: Notify,
}

/// Answers one behind the other, and whose each is.
#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    answers: Vec<(Arc<Socket>, usize)>,
}

impl Turns {
    /// For a server on the present runtime; `None` where that has several threads. Among these who waits is taken over by another: a hit
    /// took up to a quarter more of two cores.
    pub(super) fn new() -> Option<Self> {
        let threads = Handle::current().metrics().num_workers();
        (threads == 1).then(Self::default)
    }

    /// Writes what waits, each time that all that was ready has been read.
    pub(super) async fn run(&self) {
        let mut taken = Waiting::default();
        loop {
            self.come.notified().await;
            let_others_go_first().await;
            self.write(&mut taken);
        }
    }

    /// Writes what waits, for connections that have ended.
    pub(super) fn finish(&self) {
        self.write(&mut Waiting::default());
    }

    /// Takes an answer in, if there is room.
    fn put_off(&self, socket: &Arc<Socket>, pieces: &[IoSlice<'_>], length: usize) -> bool {
        let mut waiting = lock(&self.waiting);
        if waiting.bytes.len() + length > MOST {
            return false;
        }
        append(&mut waiting.bytes, pieces);
        waiting.answers.push((socket.clone(), length));
        if waiting.answers.len() == 1 {
            self.come.notify_one();
        }
        true
    }

    fn write(&self, taken: &mut Waiting) {
        mem::swap(&mut *lock(&self.waiting), taken);
        let mut rest = taken.bytes.as_slice();
        for (socket, length) in taken.answers.drain(..) {
            let (answer, others) = rest.split_at(length);
            socket.write(answer);
            rest = others;
        }
        taken.bytes.clear();
    }
}

/// Resolves once whoever is ready was polled. Not `yield_now`, which also waits for what is not ready yet.
async fn let_others_go_first() {
    let mut is_first = true;
    poll_fn(|cx| {
        if mem::take(&mut is_first) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    })
    .await;
}

/// Has `write` take pieces of so many bytes in all, as one where they are short.
fn joined<R>(pieces: &[IoSlice<'_>], length: usize, write: impl FnOnce(&[IoSlice<'_>]) -> R) -> R {
    if length > SHORT || pieces.len() == 1 {
        return write(pieces);
    }
    WHOLE.with_borrow_mut(|whole| {
        whole.clear();
        append(whole, pieces);
        write(&[IoSlice::new(whole)])
    })
}

fn append(bytes: &mut Vec<u8>, pieces: &[IoSlice<'_>]) {
    for piece in pieces {
        bytes.extend_from_slice(piece);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The way out of a connection.
#[derive(Debug)]
struct Socket {
    half: OwnedWriteHalf,
    behind: Mutex<Behind>,
}

/// What a connection has said that is not written yet.
#[derive(Debug, Default)]
struct Behind {
    /// How many answers wait their turn.
    waiting: usize,
    /// What the peer did not take when it was.
    rest: Vec<u8>,
    error: Option<io::Error>,
    connection: Option<Waker>,
    /// Whether the connection waits for its turn.
    is_awaited: bool,
}

impl Behind {
    /// Whether something is left that nobody will write but the connection.
    fn is_stuck(&self) -> bool {
        !self.rest.is_empty() || self.error.is_some()
    }

    fn note(&mut self, cx: &Context<'_>) {
        match &mut self.connection {
            Some(known) => known.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }
}

impl Socket {
    /// Hands an answer over to wait its turn; `false`: it may not, or there is no room.
    fn put_off(
        self: &Arc<Self>,
        turns: &Turns,
        cx: &Context<'_>,
        pieces: &[IoSlice<'_>],
        length: usize,
    ) -> bool {
        let mut behind = lock(&self.behind);
        if behind.is_stuck() || !turns.put_off(self, pieces, length) {
            return false;
        }
        behind.waiting += 1;
        behind.note(cx);
        true
    }

    /// Writes an answer whose turn it is. What the peer does not take is left to the connection.
    fn write(&self, answer: &[u8]) {
        let mut behind = lock(&self.behind);
        behind.waiting -= 1;
        let mut left = answer;
        while !behind.is_stuck() && !left.is_empty() {
            match self.half.try_write(left) {
                Ok(0) => behind.error = Some(io::ErrorKind::WriteZero.into()),
                Ok(written) => left = &left[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => behind.error = Some(error),
            }
        }
        behind.rest.extend_from_slice(left);
        let is_awaited = mem::take(&mut behind.is_awaited);
        if (is_awaited || !left.is_empty())
            && let Some(connection) = &behind.connection
        {
            connection.wake_by_ref();
        }
    }

    /// Resolves once all that was said before is written.
    fn poll_written(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut behind = lock(&self.behind);
        if let Some(error) = behind.error.take() {
            return Poll::Ready(Err(error));
        }
        if behind.waiting > 0 {
            behind.note(cx);
            behind.is_awaited = true;
            return Poll::Pending;
        }
        while !behind.rest.is_empty() {
            let written = ready!(self.poll(cx, |half| half.try_write(&behind.rest)))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            behind.rest.drain(..written);
        }
        Poll::Ready(Ok(()))
    }

    fn poll<T>(
        &self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&OwnedWriteHalf) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            ready!(self.half.as_ref().poll_write_ready(cx))?;
            match write(&self.half) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }
}

/// A TCP connection whose answers take turns, if there are any to take.
#[derive(Debug)]
pub(super) struct Tcp {
    half: OwnedReadHalf,
    socket: Arc<Socket>,
    turns: Option<Arc<Turns>>,
    /// Whether something was read since the last answer began.
    has_read: bool,
}

impl Tcp {
    pub(super) fn new(stream: TcpStream, turns: Option<Arc<Turns>>) -> Self {
        let (read, write) = stream.into_split();
        Self {
            half: read,
            socket: Arc::new(Socket {
                half: write,
                behind: Mutex::default(),
            }),
            turns,
            has_read: false,
        }
    }
}

impl AsyncRead for Tcp {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.half).poll_read(cx, buffer);
        self.has_read |= buffer.filled().len() > before;
        read
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = pieces.iter().map(|piece| piece.len()).sum();
        let is_short = length <= SHORT;
        let has_read = mem::take(&mut self.has_read);
        if let Some(turns) = &self.turns {
            if is_short && self.socket.put_off(turns, cx, pieces, length) {
                return Poll::Ready(Ok(length));
            }
            // Too long to be copied: the connection itself waits, once.
            if !is_short && has_read {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        ready!(self.socket.poll_written(cx))?;
        joined(pieces, length, |pieces| {
            self.socket.poll(cx, |half| half.try_write_vectored(pieces))
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What waits its turn is as good as written: it will be, whatever becomes of the connection.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if lock(&self.socket.behind).is_stuck() {
            return self.socket.poll_written(cx);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.socket.poll_written(cx))?;
        match Arc::get_mut(&mut self.socket) {
            Some(socket) => Pin::new(&mut socket.half).poll_shutdown(cx),
            // Its last answer was written just now, and is let go of next.
            None => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        task::Wake,
    };

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Polls a connection as its task would, and counts how often that is woken.
    struct Poller(Arc<Wakes>);

    impl Poller {
        fn new() -> Self {
            Self(Arc::default())
        }

        fn write(&self, tcp: &mut Tcp, pieces: &[&[u8]]) -> Poll<io::Result<usize>> {
            let slices: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
            self.poll(|cx| Pin::new(&mut *tcp).poll_write_vectored(cx, &slices))
        }

        fn poll<T>(&self, poll: impl FnOnce(&mut Context<'_>) -> T) -> T {
            poll(&mut Context::from_waker(&self.0.clone().into()))
        }

        fn wakes(&self) -> usize {
            self.0.0.swap(0, Ordering::Relaxed)
        }
    }

    /// A client, and the connection that serves it.
    async fn connected(turns: Option<&Arc<Turns>>) -> (TcpStream, Tcp) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, accepted) = tokio::join!(client, listener.accept());
        (
            client.unwrap(),
            Tcp::new(accepted.unwrap().0, turns.cloned()),
        )
    }

    async fn ask(client: &mut TcpStream, tcp: &mut Tcp) {
        client.write_all(b"GET").await.unwrap();
        tcp.read_exact(&mut [0; 3]).await.unwrap();
    }

    async fn read(client: &mut TcpStream, length: usize) -> Vec<u8> {
        let mut came = vec![0; length];
        client.read_exact(&mut came).await.unwrap();
        came
    }

    /// Until the connection ends.
    async fn read_all(client: &mut TcpStream) -> Vec<u8> {
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();
        all
    }

    fn is_written(written: &Poll<io::Result<usize>>, length: usize) -> bool {
        matches!(written, Poll::Ready(Ok(written)) if *written == length)
    }

    #[test]
    fn what_is_short_is_written_as_one_piece() {
        let table = [
            (vec![vec![b'a'; 10]], 1),
            (vec![vec![b'a'; SHORT - 1], vec![b'b']], 1),
            (vec![vec![b'a'; SHORT], vec![b'b']], 2),
            (vec![vec![b'a'; 3], vec![], vec![b'b'; 3]], 1),
        ];
        for (parts, pieces) in table {
            let whole = parts.concat();
            let slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
            let written = joined(&slices, whole.len(), |written| {
                let parts: Vec<_> = written.iter().map(|slice| slice.to_vec()).collect();
                (parts.len(), parts.concat())
            });
            assert_eq!(written, (pieces, whole));
        }
    }

    #[tokio::test]
    async fn short_answers_are_written_when_all_that_is_ready_was_read() {
        let turns = Arc::new(Turns::default());
        let (mut a, mut of_a) = connected(Some(&turns)).await;
        let (mut b, mut of_b) = connected(Some(&turns)).await;
        let poller = Poller::new();
        assert!(is_written(&poller.write(&mut of_a, &[b"1", b"."]), 2));
        assert!(is_written(&poller.write(&mut of_b, &[b"2", b"", b"."]), 2));
        assert!(is_written(&poller.write(&mut of_a, &[b"3."]), 2));
        let error = a.try_read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);

        turns.write(&mut Waiting::default());

        assert_eq!(read(&mut a, 4).await, b"1.3.");
        assert_eq!(read(&mut b, 2).await, b"2.");
        assert_eq!(poller.wakes(), 0, "nobody waits for that");
    }

    #[tokio::test]
    async fn a_server_writes_them_without_being_told() {
        let turns = Arc::new(Turns::new().unwrap());
        let (mut client, mut tcp) = connected(Some(&turns)).await;
        let running = tokio::spawn(async move { turns.run().await });
        for _ in 0..3 {
            ask(&mut client, &mut tcp).await;
            tcp.write_all(b"answer").await.unwrap();
            assert_eq!(read(&mut client, 6).await, b"answer");
        }
        running.abort();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn among_several_threads_nobody_waits() {
        assert!(Turns::new().is_none());
        let (mut client, mut tcp) = connected(None).await;
        let long = vec![b'a'; SHORT + 1];
        ask(&mut client, &mut tcp).await;
        let poller = Poller::new();
        // Until the system has said that there is room, a connection waits for that.
        tcp.write_all(b"1").await.unwrap();
        assert!(is_written(&poller.write(&mut tcp, &[&long]), SHORT + 1));
        assert!(is_written(&poller.write(&mut tcp, &[b"2", b"3"]), 2));
        let expected = [b"1", &*long, b"23"].concat();
        assert_eq!(read(&mut client, SHORT + 4).await, expected);
    }

    #[tokio::test]
    async fn a_long_answer_to_what_was_read_waits_once() {
        let turns = Arc::new(Turns::default());
        let (mut client, mut tcp) = connected(Some(&turns)).await;
        let poller = Poller::new();
        let long = vec![b'a'; SHORT + 1];
        for _ in 0..2 {
            ask(&mut client, &mut tcp).await;
            assert!(poller.write(&mut tcp, &[&long]).is_pending());
            assert_eq!(poller.wakes(), 1);
            tcp.write_all(&long).await.unwrap();
            assert_eq!(read(&mut client, long.len()).await, long);
        }
    }

    #[tokio::test]
    async fn what_is_long_or_too_much_comes_after_what_waits() {
        let long = vec![b'b'; SHORT + 1];
        let table: [(usize, &[u8]); 2] = [(1, &long), (MOST / SHORT, b"b")];
        for (before, last) in table {
            let turns = Arc::new(Turns::default());
            let (mut client, mut tcp) = connected(Some(&turns)).await;
            let poller = Poller::new();
            let short = [b'a'; SHORT];
            for _ in 0..before {
                assert!(is_written(&poller.write(&mut tcp, &[&short]), SHORT));
            }
            assert!(poller.write(&mut tcp, &[last]).is_pending());
            assert_eq!(poller.wakes(), 0);

            let all = before * SHORT + last.len();
            let reading = tokio::spawn(async move { read(&mut client, all).await });
            turns.write(&mut Waiting::default());
            assert_ne!(poller.wakes(), 0, "it waited for its turn");
            tcp.write_all(last).await.unwrap();
            turns.write(&mut Waiting::default());

            let came = reading.await.unwrap();
            let (first, second) = came.split_at(before * SHORT);
            assert!(first.iter().all(|byte| *byte == b'a'));
            assert!(second == last);
        }
    }

    #[tokio::test]
    async fn what_a_peer_does_not_take_at_once_is_the_connections_to_write() {
        let turns = Arc::new(Turns::default());
        let (mut client, mut tcp) = connected(Some(&turns)).await;
        let poller = Poller::new();
        let answer = [b'a'; SHORT];
        let mut said = 0;
        // Nobody reads.
        while poller.wakes() == 0 {
            assert!(is_written(&poller.write(&mut tcp, &[&answer]), SHORT));
            said += SHORT;
            turns.write(&mut Waiting::default());
        }
        let flushed = poller.poll(|cx| Pin::new(&mut tcp).poll_flush(cx));
        assert!(flushed.is_pending());
        let one_more = poller.write(&mut tcp, &[b"b"]);
        assert!(one_more.is_pending(), "it would come before");

        let reading = tokio::spawn(async move { read(&mut client, said).await });
        tcp.flush().await.unwrap();
        assert!(reading.await.unwrap().iter().all(|byte| *byte == b'a'));
    }

    #[tokio::test]
    async fn the_end_of_a_connection_comes_after_its_last_answer() {
        let turns = Arc::new(Turns::default());
        let (mut client, mut tcp) = connected(Some(&turns)).await;
        let poller = Poller::new();
        assert!(is_written(&poller.write(&mut tcp, &[b"answer"]), 6));
        let ended = poller.poll(|cx| Pin::new(&mut tcp).poll_shutdown(cx));
        assert!(ended.is_pending());
        turns.write(&mut Waiting::default());
        assert_eq!(poller.wakes(), 1);
        tcp.shutdown().await.unwrap();
        assert_eq!(read_all(&mut client).await, b"answer");
    }

    #[tokio::test]
    async fn the_last_answer_of_a_connection_that_is_dropped_is_written() {
        let turns = Arc::new(Turns::default());
        let (mut client, mut tcp) = connected(Some(&turns)).await;
        assert!(is_written(&Poller::new().write(&mut tcp, &[b"answer"]), 6));
        drop(tcp);
        turns.finish();
        assert_eq!(read_all(&mut client).await, b"answer");
    }

    #[tokio::test]
    async fn a_peer_that_has_gone_is_an_error_of_the_connection() {
        let turns = Arc::new(Turns::default());
        let (client, mut tcp) = connected(Some(&turns)).await;
        client.set_zero_linger().unwrap();
        drop(client);
        // The reset has come.
        assert!(tcp.read(&mut [0; 1]).await.is_err());
        let poller = Poller::new();
        assert!(is_written(&poller.write(&mut tcp, &[b"answer"]), 6));
        turns.write(&mut Waiting::default());
        assert_eq!(poller.wakes(), 1);
        assert!(tcp.flush().await.is_err());
    }
}
