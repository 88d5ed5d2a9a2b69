//! Clients that hang up at any point of a request: nothing of them is left, and who stays gets the page that was asked for.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::Handle,
    task::JoinSet,
};
use unpod_gateway::simulator::{SplitMix64, world};

use crate::{
    answer::check,
    gateway::{Gateway, READER, patiently, setup, until},
    raw,
};

const REQUESTS: u64 = 10_000;
/// How many of them come first, to show what remains anyway.
const FIRST: u64 = 1000;
/// Connections open at once.
const AT_ONCE: u64 = 64;
/// One client in so many stays.
const STAYS: u64 = 10;
const SPACES: [&str; 3] = [world::SUPPORT, world::ARCHIVE, world::UNICODE];
const PAGES: u64 = 5;
const SIZES: [u64; 4] = [1, 3, 7, 20];
/// Pages turn stale and are fetched anew all the while, each fetch behind a few waiting clients.
const SHORT_LIVES: &str = "[cache]\nttl = \"100ms\"\nstale_while_revalidate = \"50ms\"\n\
                           [upstream]\ntimeout = \"60s\"\n[server]\nrequest_timeout = \"90s\"";
/// Tasks that a kept connection to the upstream may cost on either side; eight are kept.
const KEPT_TASKS: usize = 8 * 4;

#[derive(Clone, Copy, Debug)]
struct Key {
    space: &'static str,
    page: u64,
    size: u64,
}

impl Key {
    fn all() -> impl Iterator<Item = Self> {
        let of = |space| {
            SIZES
                .iter()
                .flat_map(move |size| (1..=PAGES).map(move |page| (space, page, *size)))
        };
        SPACES
            .into_iter()
            .flat_map(of)
            .map(|(space, page, size)| Self { space, page, size })
    }

    fn any(random: &mut SplitMix64) -> Self {
        Self {
            space: random.pick(&SPACES),
            page: 1 + random.below(PAGES),
            size: random.pick(&SIZES),
        }
    }

    fn target(self) -> String {
        let Self { space, page, size } = self;
        format!("/spaces/{space}/tasks?page={page}&page_size={size}")
    }
}

/// Asks for a page and hangs up somewhere; says so if it stayed and got another answer than it should.
async fn come_and_go(
    address: std::net::SocketAddr,
    random: &mut SplitMix64,
    page: impl Fn(Key) -> Vec<u8>,
) {
    let key = Key::any(random);
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Token {READER}\r\nConnection: close\r\n\r\n",
        key.target()
    );
    if random.below(STAYS) == 0 {
        let answer = raw::parse(&raw::exchange(&mut stream, request.as_bytes()).await);
        check(&http::Method::GET, &key.target(), &answer);
        answer.assert_page(&page(key));
        return;
    }
    let whole = request.len() as u64;
    let sent = match random.below(4) {
        // Within the header, or before it.
        0 => random.below(whole),
        _ => whole,
    };
    stream
        .write_all(&request.as_bytes()[..sent as usize])
        .await
        .unwrap();
    if sent == whole && random.below(2) == 0 {
        let mut part = vec![0; 1 + random.below(3000) as usize];
        let read = stream.read(&mut part);
        assert!(patiently("an answer", read).await.unwrap() > 0);
    }
    if random.below(2) == 0 {
        stream.set_zero_linger().unwrap();
    }
}

/// Has clients with these numbers come and go, a few at once.
async fn flood(gateway: &Gateway, numbers: std::ops::Range<u64>) {
    let mut clients = JoinSet::new();
    for lane in 0..AT_ONCE {
        let (address, control) = (gateway.address(), gateway.upstream().clone());
        let numbers = (numbers.start + lane..numbers.end).step_by(AT_ONCE as usize);
        clients.spawn(async move {
            let page = |key: Key| control.expect_page(key.space, key.page, key.size);
            for number in numbers {
                come_and_go(address, &mut SplitMix64::new(number), page).await;
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
}

/// Waits until nothing is under way, then fills every page; returns the bytes and pages that are stored.
async fn left_over(gateway: &Gateway) -> (u64, u64) {
    gateway.wait_until_in_flight(0).await;
    gateway.wait_until_filled().await;
    until(|| gateway.app.metrics().http.connections_open() == 0).await;
    until(|| gateway.upstream().in_flight() == 0).await;
    for key in Key::all() {
        assert_eq!(raw::get(gateway.address(), &key.target()).await.status, 200);
    }
    gateway.wait_until_filled().await;
    gateway.app.pages().store().size()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_hang_ups_leave_nothing_behind() {
    let gateway = setup().with(SHORT_LIVES).start().await;
    let tasks_before = Handle::current().metrics().num_alive_tasks();

    flood(&gateway, 0..FIRST).await;
    let after_first = left_over(&gateway).await;
    flood(&gateway, FIRST..REQUESTS).await;
    let after_all = left_over(&gateway).await;

    assert_eq!(after_all, after_first);
    assert_eq!(after_all.1, Key::all().count() as u64);
    until(|| Handle::current().metrics().num_alive_tasks() <= tasks_before + KEPT_TASKS).await;
}
