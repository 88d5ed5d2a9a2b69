//! Measures how far the page store's resident memory grows past `cache.max_bytes`.
//!
//! `cargo run --release --example memory` fills stores of 256 MiB with twice as much, for body sizes from 1 KB to 16 MB and 1 to
//! 64 writers, each in a process of its own, and prints the growth against the bound: `max_bytes` + 15 % + 32 MB, beside the
//! bodies that writers hold in their hands. Exits with 1 where one is exceeded.
#![expect(
    clippy::print_stdout,
    reason = "a program that prints what it measured"
)]

#[path = "soak/resident.rs"]
mod resident;

use std::{
    process::{Command, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use tokio::time::Instant;
use unpod_gateway::{
    cache::{PageStore, Received, store::StoreDecision},
    config::Config,
    domain::{CredentialId, ListId, ListKey, PageKey, PageQuery, SpaceKey, SpaceToken},
    upstream::read_page,
};

use crate::resident::resident;

/// The gateway's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const MAX_BYTES: usize = 256 << 20;
/// How much is put in, in stores.
const TIMES: usize = 2;
/// What a task takes in a page, as in the upstream's.
const TASK_BYTES: usize = 1000;
const SIZES: [usize; 5] = [1 << 10, 10 << 10, 40 << 10, 1 << 20, 16 << 20];
const WRITERS: [usize; 3] = [1, 8, 64];

fn main() -> ExitCode {
    let arguments: Vec<usize> = std::env::args()
        .skip(1)
        .filter_map(|argument| argument.parse().ok())
        .collect();
    match arguments[..] {
        [size, writers] => {
            println!("{}", measure(size, writers));
            ExitCode::SUCCESS
        }
        _ => report(),
    }
}

fn report() -> ExitCode {
    println!("body bytes  writers  growth MiB  bound MiB");
    let mut kept_all = true;
    for size in SIZES {
        for writers in WRITERS {
            let growth = measure_apart(size, writers);
            // The model, and the copies that running writers are about to put in.
            let in_hand = size * (1 + writers.min(threads()));
            let bound = MAX_BYTES * 115 / 100 + (32 << 20) + in_hand;
            let kept = growth <= bound;
            kept_all &= kept;
            println!(
                "{size:>10} {writers:>8} {:>11} {:>10}  {}",
                growth >> 20,
                bound >> 20,
                if kept { "" } else { "exceeded" }
            );
        }
    }
    if kept_all {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Measures in a process of its own: what an allocator has kept from before must not count.
fn measure_apart(size: usize, writers: usize) -> usize {
    let program = std::env::current_exe().expect("a running program has a path");
    let output = Command::new(program)
        .args([size.to_string(), writers.to_string()])
        .output()
        .expect("a program can start itself");
    String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .expect("the program prints a number")
}

/// The most that resident memory grew while the store was filled.
fn measure(size: usize, writers: usize) -> usize {
    let config = Config::from_toml(&format!(
        "[upstream]\nbase_url = 'https://upstream.test'\n[upstream.credentials.default]\ntoken = 't'\n\
         [cache]\nmax_bytes = '{MAX_BYTES}B'\n"
    ))
    .expect("the configuration is valid");
    let store = Arc::new(PageStore::new(&config.cache));
    let before = resident("self");
    let most = Arc::new(AtomicU64::new(0));
    let done = Arc::new(AtomicBool::new(false));
    let watching = watch(most.clone(), done.clone());
    let each = (TIMES * MAX_BYTES / size / writers).max(2);
    let model = Arc::new(body(size));
    runtime().block_on(async {
        let mut filling = tokio::task::JoinSet::new();
        for writer in 0..writers {
            filling.spawn(fill(store.clone(), writer, each, model.clone()));
        }
        while let Some(writer) = filling.join_next().await {
            writer.expect("a writer does not panic");
        }
    });
    done.store(true, Ordering::Release);
    watching.join().expect("the watcher does not panic");
    usize::try_from(most.load(Ordering::Acquire))
        .unwrap_or(usize::MAX)
        .saturating_sub(before)
}

fn watch(most: Arc<AtomicU64>, done: Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        while !done.load(Ordering::Acquire) {
            most.fetch_max(resident("self") as u64, Ordering::AcqRel);
            std::thread::sleep(Duration::from_millis(2));
        }
        most.fetch_max(resident("self") as u64, Ordering::AcqRel);
    })
}

/// As the gateway's: fills are tasks on a few threads.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .build()
        .expect("a runtime can be built")
}

async fn fill(store: Arc<PageStore>, writer: usize, pages: usize, model: Arc<Bytes>) {
    let headers = HeaderMap::new();
    for number in 0..pages {
        let now = Instant::now();
        let key = PageKey {
            list: ListKey {
                space: SpaceKey {
                    credential: CredentialId(0),
                    space: SpaceToken::new(&format!("SPACE{writer}-{}", number / 10))
                        .expect("the name is a token"),
                },
                id: ListId::TASKS,
            },
            query: PageQuery {
                page: u32::try_from(number % 10 + 1).unwrap_or(1),
                page_size: 20,
            },
        };
        let answer = Received {
            headers: &headers,
            received: now,
            received_unix: 0,
            response_delay: Duration::ZERO,
        };
        let page = read_page(&Bytes::copy_from_slice(&model)).expect("the body is a page");
        let began = store.begin(key, now);
        store.put(&began, page, &answer, StoreDecision::Store);
        tokio::task::yield_now().await;
    }
}

fn body(size: usize) -> Bytes {
    let filler = "x".repeat(size.min(TASK_BYTES));
    let task = format!(r#"{{"task_id":"T0000001000000000000000000000038","text":"{filler}"}}"#);
    let tasks = vec![task.as_str(); (size / TASK_BYTES).max(1)].join(",");
    format!(r#"{{"count":200,"status_code":200,"message":"m","data":[{tasks}]}}"#).into()
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
