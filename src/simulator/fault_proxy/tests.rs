//! The proxy over real sockets: what each fault leaves of an answer, and what the controls do.

use std::io::ErrorKind;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::yield_now,
};

use super::*;
use crate::simulator::{
    Options, Simulator,
    world::{ACME_TOKEN, SUPPORT},
};

/// Past the end, so that it is short.
const PAGE: u64 = 9;
/// Longer than any test.
const NEVER: Duration = Duration::from_secs(3600);

struct Bench {
    simulator: Simulator,
    proxy: FaultProxy,
    control: ProxyControl,
}

async fn start() -> Bench {
    let simulator = Simulator::start(Options::default()).await.unwrap();
    let proxy = FaultProxy::start(simulator.address()).await.unwrap();
    let control = proxy.control();
    Bench {
        simulator,
        proxy,
        control,
    }
}

impl Bench {
    /// Sends a request over a connection of its own.
    async fn ask(&self) -> TcpStream {
        let mut stream = TcpStream::connect(self.proxy.address()).await.unwrap();
        let request = format!(
            "GET /api/v2/platform/spaces/{SUPPORT}/tasks/?page={PAGE}&page_size=20 HTTP/1.1\r\n\
             Host: upstream.test\r\nAuthorization: Token {ACME_TOKEN}\r\n\r\n"
        );
        // A connection that is closed at once may refuse it.
        let _ = stream.write_all(request.as_bytes()).await;
        stream
    }

    /// Asks, and reads until the end: what came, and how it ended.
    async fn heard(&self) -> (Vec<u8>, Option<ErrorKind>) {
        let mut bytes = Vec::new();
        let read = self.ask().await.read_to_end(&mut bytes).await;
        (bytes, read.err().map(|error| error.kind()))
    }

    async fn heard_with(&self, fault: WireFault) -> (Vec<u8>, Option<ErrorKind>) {
        self.control.script([Some(fault)]);
        self.heard().await
    }

    fn page(&self) -> Vec<u8> {
        self.simulator.control().expect_page(SUPPORT, PAGE, 20)
    }

    async fn until_open(&self, count: usize) {
        until(|| self.control.open() == count).await;
    }
}

/// Lets the other tasks run until `condition` holds.
async fn until(condition: impl Fn() -> bool) {
    let holds = async {
        while !condition() {
            yield_now().await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(30), holds).await;
    in_time.expect("it comes to hold");
}

fn body(answer: &[u8]) -> &[u8] {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    &answer[end.expect("the head is whole") + 4..]
}

#[tokio::test]
async fn without_a_fault_an_answer_passes_whole() {
    let bench = start().await;
    let (answer, error) = bench.heard().await;
    assert_eq!(error, None);
    assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
    assert_eq!(body(&answer), bench.page());
}

#[tokio::test]
async fn a_slow_answer_is_whole_in_the_end() {
    let bench = start().await;
    let short = Duration::from_micros(1);
    for fault in [WireFault::Delay(short), WireFault::SlowBody(Duration::ZERO)] {
        let (answer, error) = bench.heard_with(fault).await;
        assert_eq!(
            (body(&answer), error),
            (&bench.page()[..], None),
            "{fault:?}"
        );
    }
}

#[tokio::test]
async fn a_cut_answer_ends_where_it_was_cut() {
    let bench = start().await;
    let page = bench.page();

    let (answer, error) = bench.heard_with(WireFault::Truncate).await;
    let length = format!("Content-Length: {}\r\n", page.len());
    assert!(String::from_utf8_lossy(&answer).contains(&length));
    assert_eq!((body(&answer), error), (&page[..page.len() / 2], None));

    let (answer, error) = bench.heard_with(WireFault::CloseMidHeader).await;
    assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n") && error.is_none());
    assert!(!answer.windows(4).any(|four| four == b"\r\n\r\n"));
}

#[tokio::test]
async fn a_reset_is_a_reset() {
    let bench = start().await;
    for fault in [WireFault::Reset, WireFault::ResetMidBody] {
        let (answer, error) = bench.heard_with(fault).await;
        assert_eq!(error, Some(ErrorKind::ConnectionReset), "{fault:?}");
        assert!(!answer.ends_with(&bench.page()), "{fault:?}");
    }
    assert_eq!(bench.heard_with(WireFault::Reset).await.0, b"");
}

#[tokio::test]
async fn no_answer_is_none() {
    let bench = start().await;
    let (answer, _) = bench.heard_with(WireFault::CloseAtOnce).await;
    assert_eq!(answer, b"");
    let (answer, _) = bench.heard_with(WireFault::Garbage).await;
    assert!(!answer.is_empty() && !answer.starts_with(b"HTTP/"));
    assert_eq!(bench.simulator.control().requests(), 0);
}

#[tokio::test]
async fn who_waits_in_vain_and_leaves_is_let_go() {
    let bench = start().await;
    let waits = [
        WireFault::HalfOpen,
        WireFault::Delay(NEVER),
        WireFault::SlowBody(NEVER),
    ];
    for fault in waits {
        bench.control.script([Some(fault)]);
        let client = bench.ask().await;
        bench.until_open(1).await;
        drop(client);
        bench.until_open(0).await;
    }
    // Where it is the upstream that hangs.
    let hold = bench.simulator.control().hold();
    for fault in [None, Some(WireFault::Truncate)] {
        bench.control.script([fault]);
        let client = bench.ask().await;
        let upstream = bench.simulator.control();
        until(|| upstream.in_flight() == 1).await;
        drop(client);
        bench.until_open(0).await;
        until(|| upstream.in_flight() == 0).await;
    }
    hold.release();
}

#[tokio::test]
async fn a_closed_listener_refuses_until_it_is_opened_again() {
    let bench = start().await;
    for _ in 0..3 {
        bench.control.refuse().await;
        let refused = TcpStream::connect(bench.proxy.address()).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        bench.control.accept().await.unwrap();
        assert_eq!(body(&bench.heard().await.0), bench.page());
    }
    assert_eq!(bench.control.injected(), [("refuse", 3)].into());
}

#[tokio::test]
async fn a_dropped_proxy_is_gone() {
    let Bench { proxy, control, .. } = start().await;
    let address = proxy.address();
    drop(proxy);
    let refused = async { while TcpStream::connect(address).await.is_ok() {} };
    let in_time = tokio::time::timeout(Duration::from_secs(30), refused).await;
    in_time.expect("the listener goes");
    until(|| control.open() == 0).await;
}

#[test]
fn a_script_goes_before_the_steady_faults() {
    let mut plan = Plan {
        script: [Some(WireFault::Reset), None].into(),
        faults: vec![(WireFault::Garbage, 1.0)],
        ..Plan::default()
    };
    let next: Vec<_> = (0..4).map(|_| plan.next()).collect();
    let garbage = Some(WireFault::Garbage);
    assert_eq!(next, [Some(WireFault::Reset), None, garbage, garbage]);
    assert_eq!(plan.connections, 4);
    assert_eq!(plan.injected, [("garbage", 2), ("reset", 1)].into());
}

#[test]
fn the_same_seed_draws_the_same_faults() {
    let drawn = |seed| {
        let mut plan = Plan {
            faults: vec![(WireFault::Reset, 0.3), (WireFault::Truncate, 0.5)],
            random: SplitMix64::new(seed),
            ..Plan::default()
        };
        (0..200).map(|_| plan.next()).collect::<Vec<_>>()
    };
    assert_eq!(drawn(7), drawn(7));
    assert_ne!(drawn(7), drawn(8));
    let struck = |fault| drawn(7).iter().filter(|drawn| **drawn == fault).count();
    // A third of all, half of the rest, and what is left.
    for (fault, share) in [
        (Some(WireFault::Reset), 60),
        (Some(WireFault::Truncate), 70),
        (None, 70),
    ] {
        assert!(struck(fault).abs_diff(share) < 25, "{fault:?}");
    }
}
