//! Measures what packing cold pages saves, and what it costs those who ask for one again.
//!
//! `cargo run --release --example packing` stores 10,000 pages of 40 KB as `bench/run` has them, and prints the resident memory they
//! take: as they came, packed, with a tenth of them in use, and where that tenth was in use all along. Then it prints how long a
//! packed page takes to give each coding, beside a page in use.
#![expect(
    clippy::print_stdout,
    reason = "a program that prints what it measured"
)]

#[expect(
    dead_code,
    unreachable_pub,
    reason = "the benchmark's own, which uses more of it"
)]
#[path = "../bench/src/pages.rs"]
mod pages;
#[path = "soak/resident.rs"]
mod resident;

use std::{
    ops::{ControlFlow, Range},
    process::Command,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use tokio::time::Instant;
use unpod_gateway::{
    cache::{
        PageStore, Received, StoredPage,
        http_semantics::ContentCoding,
        store::{IDLE_AFTER, StoreDecision},
    },
    config::Config,
    domain::{CredentialId, ListId, ListKey, PageKey, PageQuery, SpaceKey, SpaceToken},
    upstream::read_page,
};

use crate::{
    pages::{Key, LARGE, Pages},
    resident::resident,
};

/// The gateway's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PAGES: u64 = 10_000;
/// Those in use: every so many-th, so that they are spread over memory.
const HOT: usize = 10;
/// How many pages a time is the median of.
const TIMED: u64 = 500;
/// The allocator gives back what was free for a second when the thread that packed ends, ten seconds after its work.
const GIVEN_BACK: Duration = Duration::from_secs(13);
/// What the measured process is told to do.
const SCENES: [&str; 4] = ["packed", "in-use-again", "in-use", "times"];

fn main() {
    match std::env::args().nth(1) {
        Some(scene) => runtime().block_on(async {
            // As the gateway's: fills and hits are tasks on worker threads.
            let playing = tokio::spawn(async move { play(&scene).await });
            playing.await.expect("the scene does not panic");
        }),
        None => SCENES.iter().for_each(|scene| play_apart(scene)),
    }
}

/// In a process of its own: what an allocator has kept from before must not count.
fn play_apart(scene: &str) {
    let program = std::env::current_exe().expect("a running program has a path");
    let status = Command::new(program).arg(scene).status();
    assert!(status.expect("a program can start itself").success());
}

async fn play(scene: &str) {
    match scene {
        "packed" => packed().await,
        "in-use-again" => in_use_again().await,
        "in-use" => in_use().await,
        "times" => times().await,
        other => println!("there is no scene {other}"),
    }
}

async fn packed() {
    let scene = Scene::filled(0..PAGES).await;
    scene.tell("as they came").await;
    scene.pack(IDLE_AFTER).await;
    scene.tell("packed").await;
}

async fn in_use_again() {
    let scene = Scene::filled(0..PAGES).await;
    scene.pack(IDLE_AFTER).await;
    scene.take_tenth(ContentCoding::Identity, IDLE_AFTER).await;
    scene.tell("packed, then a tenth asked for plain").await;
    scene.take_tenth(ContentCoding::Gzip, IDLE_AFTER).await;
    scene.tell("and with gzip").await;
}

async fn in_use() {
    let scene = Scene::filled(0..PAGES).await;
    scene.take_tenth(ContentCoding::Identity, IDLE_AFTER).await;
    scene.pack(IDLE_AFTER).await;
    scene.tell("packed but for a tenth in use").await;
    scene
        .take_tenth(ContentCoding::Identity, 2 * IDLE_AFTER)
        .await;
    scene.pack(2 * IDLE_AFTER).await;
    scene.tell("the same a minute later").await;
}

/// A store, and what was resident before anything was in it.
struct Scene {
    store: Arc<PageStore>,
    keys: Vec<PageKey>,
    before: usize,
    began: Instant,
}

impl Scene {
    async fn filled(numbers: Range<u64>) -> Self {
        let config = "[upstream]\nbase_url = 'https://upstream.test'\n\
             [upstream.credentials.default]\ntoken = 't'\n[cache]\nmax_bytes = '1GiB'\n";
        let config = Config::from_toml(config).expect("the configuration is valid");
        let pages = Pages::of(LARGE);
        let scene = Self {
            store: Arc::new(PageStore::new(&config.cache)),
            keys: numbers.clone().map(page_key).collect(),
            before: resident("self"),
            began: Instant::now(),
        };
        for (number, key) in numbers.zip(&scene.keys) {
            scene.fill(key, &pages.body(Key(number)));
            tokio::task::yield_now().await;
        }
        scene
    }

    fn fill(&self, key: &PageKey, body: &Bytes) {
        let headers = HeaderMap::new();
        let answer = Received {
            headers: &headers,
            received: self.began,
            received_unix: 0,
            response_delay: Duration::ZERO,
        };
        let page = read_page(body).expect("the body is a page");
        let began = self.store.begin(key.clone(), self.began);
        self.store.put(&began, page, &answer, StoreDecision::Store);
    }

    fn page(&self, key: &PageKey) -> Arc<StoredPage> {
        self.store.get(key).expect("it is stored")
    }

    /// As the gateway does, `later` than the fill.
    async fn pack(&self, later: Duration) {
        let (store, now) = (self.store.clone(), self.began + later);
        let packing = move || {
            store.compress_idle(now, |pause| {
                std::thread::sleep(pause);
                ControlFlow::Continue(())
            })
        };
        let packing = tokio::task::spawn_blocking(packing);
        packing.await.expect("packing does not panic");
    }

    /// Asks for `key` in `coding`, and returns how long that took.
    async fn take(&self, key: &PageKey, coding: ContentCoding, later: Duration) -> Duration {
        let page = self.page(key);
        let began = Instant::now();
        let encodings = &page.content.whole().encodings;
        let is_new = !encodings.is_available(coding);
        encodings.get(coding, self.began + later).await;
        if is_new {
            self.store.reweigh(&page);
        }
        began.elapsed()
    }

    async fn take_tenth(&self, coding: ContentCoding, later: Duration) {
        for key in self.keys.iter().step_by(HOT) {
            self.take(key, coding, later).await;
        }
    }

    async fn tell(&self, what: &str) {
        tokio::time::sleep(GIVEN_BACK).await;
        let (weight, _) = self.store.size();
        println!(
            "{what:>40}: {:>4} MiB resident, {:>4} MiB by its own count",
            resident("self").saturating_sub(self.before) >> 20,
            weight >> 20
        );
    }
}

async fn times() {
    for coding in ContentCoding::BY_PREFERENCE {
        let scene = Scene::filled(0..TIMED).await;
        let new = scene.median(coding, Duration::ZERO).await;
        let in_use = scene.median(coding, Duration::ZERO).await;
        scene.take_all(ContentCoding::Zstd).await;
        scene.pack(IDLE_AFTER).await;
        scene.pack(2 * IDLE_AFTER).await;
        let packed = scene.median(coding, 2 * IDLE_AFTER).await;
        println!(
            "{:>40}: {new:>9.1?} when it is new, {in_use:>9.1?} in use, {packed:>9.1?} packed",
            coding.as_str()
        );
    }
}

impl Scene {
    async fn take_all(&self, coding: ContentCoding) {
        for key in &self.keys {
            self.take(key, coding, Duration::from_secs(1)).await;
        }
    }

    async fn median(&self, coding: ContentCoding, later: Duration) -> Duration {
        let mut times = Vec::new();
        for key in &self.keys {
            times.push(self.take(key, coding, later).await);
        }
        times.sort_unstable();
        times[times.len() / 2]
    }
}

fn page_key(number: u64) -> PageKey {
    let key = Key(number);
    PageKey {
        list: ListKey {
            space: SpaceKey {
                credential: CredentialId(0),
                space: SpaceToken::new(&key.space()).expect("the name is a token"),
            },
            id: ListId::TASKS,
        },
        query: PageQuery {
            page: u32::try_from(key.page()).expect("it has two digits"),
            page_size: LARGE,
        },
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_time()
        .build()
        .expect("a runtime can be built")
}
