//! The upstream as it fails, on the wire and in its answers: what a client sees of each fault, and that none of them lasts.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{io::AsyncWriteExt, net::TcpListener};
use unpod_gateway::simulator::{
    Fault, FaultKind, FaultProxy, Options, ProxyControl, Simulator, WireFault, world,
};

use crate::{
    answer::{Answer, CODES},
    gateway::{Gateway, Setup, patiently, setup, until},
    process::Served,
    raw,
};

/// Longer than any deadline.
const NEVER: Duration = Duration::from_secs(3600);
/// Every page is stale at once and may only stand in; nothing is remembered. One slot: a fault that kept it would be the last.
const STALE_AT_ONCE: &str = "[cache]\nttl = \"0s\"\nstale_while_revalidate = \"0s\"\nnegative_ttl = \"0s\"\n\
                             rejected_ttl = \"0s\"\n[upstream]\nmax_concurrency = 1";
/// For what never answers.
const SHORT_DEADLINE: &str = "[upstream]\ntimeout = \"300ms\"";

/// What is done to the upstream.
#[derive(Clone, Copy, Debug)]
enum Harm {
    /// Connections are refused.
    Refused,
    Wire(WireFault),
    Answer(FaultKind),
}

/// What a client sees of a failing upstream.
#[derive(Debug)]
struct Seen {
    /// With nothing stored.
    code: &'static str,
    /// With a stale page stored: why it stands in, unless it does not.
    stands_in: Option<&'static str>,
}

/// One second a byte, as a slow attacker would.
const DRIP: WireFault = WireFault::SlowBody(Duration::from_secs(1));
const WIRE: [WireFault; 9] = [
    WireFault::Delay(NEVER),
    WireFault::Reset,
    WireFault::ResetMidBody,
    WireFault::HalfOpen,
    WireFault::CloseAtOnce,
    WireFault::CloseMidHeader,
    WireFault::Truncate,
    WireFault::Garbage,
    DRIP,
];

impl Harm {
    fn name(self) -> String {
        match self {
            Self::Refused => "wire refuse".to_owned(),
            Self::Wire(fault) => format!("wire {}", fault.as_str()),
            Self::Answer(kind) => format!("answer {}", kind.as_str()),
        }
    }

    /// What clients are to see of it: the contract's table, harm by harm.
    fn seen(self) -> Seen {
        let code = match self {
            Self::Refused => "upstream_unreachable",
            Self::Wire(fault) => match fault {
                WireFault::Reset
                | WireFault::ResetMidBody
                | WireFault::CloseAtOnce
                | WireFault::CloseMidHeader => "upstream_unreachable",
                WireFault::Delay(_) | WireFault::HalfOpen | WireFault::SlowBody(_) => {
                    "upstream_timeout"
                }
                WireFault::Truncate | WireFault::Garbage => "upstream_invalid_response",
            },
            Self::Answer(kind) => match kind {
                FaultKind::ServerError
                | FaultKind::BadGateway
                | FaultKind::Unavailable
                | FaultKind::GatewayTimeout
                | FaultKind::InnerFailed
                | FaultKind::InnerHtml
                | FaultKind::InnerSlowDown
                | FaultKind::Html
                | FaultKind::Redirect => "upstream_failed",
                FaultKind::Unauthorized | FaultKind::TokenExpired => "upstream_auth_failed",
                FaultKind::RateLimited => "upstream_quota_exhausted",
                FaultKind::Reset => "upstream_unreachable",
                FaultKind::Hang | FaultKind::SlowBody => "upstream_timeout",
                FaultKind::Truncate
                | FaultKind::NullData
                | FaultKind::Empty
                | FaultKind::Garbage
                | FaultKind::GzipBomb => "upstream_invalid_response",
                FaultKind::StatusInBody => "space_not_found",
            },
        };
        let stands_in = match code {
            "upstream_quota_exhausted" => Some("quota"),
            "upstream_auth_failed" | "space_not_found" => None,
            _ => Some("stale-if-error"),
        };
        Seen { code, stands_in }
    }

    /// The counters that each page asked for adds to.
    fn counters(self) -> Vec<String> {
        let fills = format!("gateway_fills_total{{outcome=\"{}\"}}", self.seen().code);
        let no_answer = "gateway_upstream_requests_total{status=\"none\",client=\"reader\"}";
        match self {
            Self::Refused | Self::Wire(_) => vec![fills, no_answer.to_owned()],
            Self::Answer(_) => vec![fills],
        }
    }
}

/// The value of a counter, in Prometheus's text form.
fn value(metrics: &str, counter: &str) -> u64 {
    let sample = metrics.lines().find_map(|line| line.strip_prefix(counter));
    sample.map_or(0, |value| value.trim().parse().unwrap())
}

/// A gateway, a fault proxy and a simulator, one behind the other.
struct Bench {
    gateway: Gateway,
    wire: ProxyControl,
    simulator: Simulator,
    _proxy: FaultProxy,
}

impl Bench {
    async fn start(setup: Setup) -> Self {
        let simulator = Simulator::start(Options::default()).await.unwrap();
        let proxy = FaultProxy::start(simulator.address()).await.unwrap();
        let gateway = setup.start_before(&proxy.base_url()).await;
        Self {
            gateway,
            wire: proxy.control(),
            simulator,
            _proxy: proxy,
        }
    }

    async fn before(harm: Harm) -> Self {
        let setup = setup().with(STALE_AT_ONCE);
        let setup = match harm.seen().code {
            "upstream_timeout" => setup.with(SHORT_DEADLINE),
            _ => setup,
        };
        Self::start(setup).await
    }

    async fn harm(&self, harm: Harm) {
        match harm {
            Harm::Refused => self.wire.refuse().await,
            Harm::Wire(fault) => self.wire.set_faults(vec![(fault, 1.0)]),
            Harm::Answer(kind) => {
                let always = vec![Fault::always(kind)];
                self.simulator.control().set_faults(always);
            }
        }
    }

    async fn relieve(&self) {
        self.wire.set_faults(Vec::new());
        self.wire.accept().await.unwrap();
        self.simulator.control().set_faults(Vec::new());
    }

    async fn page(&self, page: u64) -> Answer {
        let query = format!("?page={page}");
        self.gateway.tasks(world::SUPPORT, &query).await
    }

    /// Asks until a fill succeeds: on a busy machine a good one may outlast a short deadline too.
    async fn fill(&self, page: u64) -> Answer {
        let filled = async {
            loop {
                let answer = self.page(page).await;
                if answer.status == 200 && answer.cache_status().ends_with("; stored") {
                    return answer;
                }
            }
        };
        patiently("a good fill", filled).await
    }

    /// What the operators' listener says.
    async fn operator(&self, path: &str) -> String {
        let url = format!("{}{path}", self.gateway.admin_url());
        let response = self.gateway.http().get(url).send().await.unwrap();
        // Readiness is 503 where nothing could be answered: no stale page is shown for a refused token.
        let expected = [200, 503][usize::from(path == "/readyz")];
        let status = response.status().as_u16();
        assert!([200, expected].contains(&status), "{path}: {status}");
        response.text().await.unwrap()
    }

    fn expected(&self, page: u64) -> Vec<u8> {
        let control = self.simulator.control();
        control.expect_page(world::SUPPORT, page, 20)
    }
}

/// Does `harm` to the upstream of a gateway that has one page stored and one not, looks at all that can be seen, and ends it.
async fn assert_seen(harm: Harm) {
    let name = harm.name();
    let Seen { code, stands_in } = harm.seen();
    let bench = Bench::before(harm).await;
    bench.fill(2).await;
    let before = bench.operator("/metrics").await;

    bench.harm(harm).await;
    let cold = bench.page(1).await;
    let stale = bench.page(2).await;

    assert_eq!(cold.code(), code, "{name}: {:?}", cold.body);
    match stands_in {
        Some(detail) => {
            assert_eq!(
                stale.cache_status(),
                format!("hit; detail={detail}"),
                "{name}"
            );
            stale.assert_page(&bench.expected(2));
        }
        None => assert_eq!(stale.code(), code, "{name}"),
    }
    let metrics = bench.operator("/metrics").await;
    for counter in harm.counters() {
        let counted = value(&metrics, &counter) - value(&before, &counter);
        // The fill of the stale page waits for the end of the pause.
        let ended = if code == "upstream_quota_exhausted" {
            1
        } else {
            2
        };
        assert_eq!(counted, ended, "{name}: {counter}");
    }
    let ready = bench.operator("/readyz").await;
    assert_eq!(
        ready.contains("degraded"),
        code == "upstream_auth_failed",
        "{name}"
    );
    // Nothing is held on to: neither the connection, nor, as the next fills show, the slot.
    until(|| bench.wire.open() == 0).await;

    bench.relieve().await;
    for page in [1, 2] {
        let healed = bench.fill(page).await;
        healed.assert_page(&bench.expected(page));
    }
    let ready = bench.operator("/readyz").await;
    assert!(ready.contains("\"status\":\"ready\""), "{name}");
}

/// The same for each, side by side: most of the time is a deadline's or a pause's. Boxed: together they are too much for a stack.
async fn assert_all_seen(harms: &[Harm]) {
    join_all(harms.iter().map(|harm| Box::pin(assert_seen(*harm)))).await;
}

#[tokio::test]
async fn a_refused_connection_is_told_and_heals() {
    assert_seen(Harm::Refused).await;
}

#[tokio::test]
async fn a_fault_on_the_wire_is_told_and_heals() {
    assert_all_seen(&WIRE.map(Harm::Wire)).await;
}

#[tokio::test]
async fn a_fault_in_the_answer_is_told_and_heals() {
    assert_all_seen(&FaultKind::ALL.map(|(_, kind)| Harm::Answer(kind))).await;
}

#[tokio::test]
async fn a_delay_within_the_deadline_is_waited_for() {
    let bench = Bench::start(setup()).await;
    let late = WireFault::Delay(Duration::from_millis(30));
    bench.wire.set_faults(vec![(late, 1.0)]);

    let answer = bench.page(1).await;

    answer.assert_page(&bench.expected(1));
}

#[tokio::test]
async fn a_byte_a_second_does_not_outlive_the_deadline() {
    let bench = Bench::start(setup().with(SHORT_DEADLINE)).await;
    bench.wire.set_faults(vec![(DRIP, 1.0)]);
    let path = format!("/spaces/{}/tasks", world::SUPPORT);
    let asked: Vec<_> = (0..10).map(|_| bench.gateway.get(&path).spawn()).collect();

    for answer in asked {
        answer.await.unwrap().assert_error("upstream_timeout");
    }

    // It has hung up on the upstream, which would go on for an hour.
    until(|| bench.wire.open() == 0).await;
    bench.gateway.wait_until_filled().await;
}

#[tokio::test]
async fn what_may_pass_on_the_wire_is_tried_again_and_no_client_sees_it() {
    let may_pass = [
        WireFault::Reset,
        WireFault::ResetMidBody,
        WireFault::CloseAtOnce,
        WireFault::CloseMidHeader,
    ];
    for fault in may_pass {
        let bench = Bench::start(setup().with("[upstream]\nretries = 2")).await;
        bench.wire.script([Some(fault), Some(fault), None]);

        let answer = bench.page(1).await;

        answer.assert_page(&bench.expected(1));
        assert_eq!(bench.wire.connections(), 3, "{fault:?}");
    }
    for fault in [WireFault::Truncate, WireFault::Garbage] {
        let bench = Bench::start(setup().with("[upstream]\nretries = 2")).await;
        bench.wire.script([Some(fault)]);

        let answer = bench.page(1).await;

        answer.assert_error("upstream_invalid_response");
        assert_eq!(bench.wire.connections(), 1, "{fault:?}");
    }
}

/// An upstream that resets each kept connection as soon as it carries a second request, and counts those.
async fn forgetful(listener: TcpListener, died: Arc<AtomicU32>) {
    let page = r#"{"count":0,"status_code":200,"message":"m","data":[]}"#;
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{page}",
        page.len()
    );
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (answer, died) = (answer.clone(), died.clone());
        tokio::spawn(async move {
            assert!(raw::read_head(&mut stream).await);
            stream.write_all(answer.as_bytes()).await.unwrap();
            if raw::read_head(&mut stream).await {
                died.fetch_add(1, Ordering::Relaxed);
                stream.set_zero_linger().unwrap();
            }
        });
    }
}

#[tokio::test]
async fn a_kept_connection_that_has_died_costs_a_try_and_no_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base_url = format!("http://{}", listener.local_addr().unwrap());
    let died = Arc::new(AtomicU32::new(0));
    let upstream = tokio::spawn(forgetful(listener, died.clone()));
    let once_more = setup().with("[upstream]\nretries = 1");
    let gateway = once_more.start_before(&base_url).await;

    for page in 1..=5 {
        let query = format!("?page={page}");
        let answer = gateway.tasks(world::SUPPORT, &query).await;
        assert_eq!(
            answer.cache_status(),
            "fwd=uri-miss; fwd-status=200; stored"
        );
    }
    assert!(died.load(Ordering::Relaxed) > 0);
    upstream.abort();
}

#[tokio::test]
async fn the_log_says_why_an_upstream_gave_no_page() {
    let simulator = Simulator::start(Options::default()).await.unwrap();
    let proxy = FaultProxy::start(simulator.address()).await.unwrap();
    let wire = proxy.control();
    let logging = setup().with("[telemetry]\nfilter = \"info\"");
    let served = Served::start(logging, &proxy.base_url()).await;
    let ask = || served.get(&format!("/spaces/{}/tasks", world::SUPPORT));

    wire.refuse().await;
    ask().await.assert_error("upstream_unreachable");
    wire.accept().await.unwrap();
    wire.script([Some(WireFault::Garbage)]);
    ask().await.assert_error("upstream_invalid_response");

    served.signal("-TERM").await;
    let (_, log) = served.end().await;
    let reasons: Vec<String> = log
        .iter()
        .filter(|line| line.contains("upstream gave no page"))
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["upstream.reason"].to_string()
        })
        .collect();
    assert_eq!(reasons.len(), 2, "{log:?}");
    assert!(reasons[0].contains("Connection refused"), "{reasons:?}");
    assert!(reasons[1].contains("not HTTP"), "{reasons:?}");
}

fn every_harm() -> Vec<Harm> {
    let wire = WIRE.map(Harm::Wire);
    let answers = FaultKind::ALL.map(|(_, kind)| Harm::Answer(kind));
    [&[Harm::Refused][..], &wire, &answers].concat()
}

/// The cells of every row of `docs/resilience.md`, headings apart.
fn operators_rows() -> Vec<Vec<String>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/resilience.md");
    let text = fs::read_to_string(file).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| "));
    let cells = |row: &str| row.split('|').map(|cell| cell.trim().to_owned()).collect();
    let rows: Vec<Vec<String>> = rows.map(cells).collect();
    rows.into_iter().filter(|row| row[4] != "tests").collect()
}

#[test]
fn the_operators_page_says_of_each_fault_what_is_seen() {
    let rows = operators_rows();
    for harm in every_harm() {
        let (name, seen) = (harm.name(), harm.seen());
        let named = format!("`{name}`");
        let row = rows.iter().find(|row| row[0].contains(&named));
        let row = row.unwrap_or_else(|| panic!("no row for {name}"));
        let (_, status) = CODES.iter().find(|(code, _)| *code == seen.code).unwrap();
        let told = format!("{status} `{}`", seen.code);
        assert!(row[1].starts_with(&told), "{name}: {}", row[1]);
        let stale = match seen.stands_in {
            Some(detail) => format!("200, `{detail}`"),
            None => "the same: ".to_owned(),
        };
        assert!(row[2].starts_with(&stale), "{name}: {}", row[2]);
    }
}
