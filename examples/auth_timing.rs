//! Compares how long it takes to reject different keys: the time must reveal nothing to somebody who guesses.
//!
//! For each kind of invalid key, prints the share of pairs in which it took longer than an unknown key. Half means no difference. Exits
//! with 1 if a share differs from half by more than noise can explain.

#![expect(clippy::print_stdout, reason = "it prints what it measured")]
#![expect(
    clippy::disallowed_types,
    reason = "it measures real time, outside any runtime"
)]

use std::{
    hint::black_box,
    process::ExitCode,
    time::{Instant, SystemTime},
};

use unpod_gateway::{
    api::{Clients, Issuers},
    config::Config,
    simulator::gateway,
    upstream::Credentials,
};

const KEY: &str = "ugw_0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const ROUNDS: usize = 200_000;
/// With this many pairs, a fair coin stays well within it.
const TOLERANCE: f64 = 0.05;

fn main() -> ExitCode {
    let clients = clients();
    let mut off = KEY.to_owned();
    off.replace_range(KEY.len() - 1.., "0");
    let unknown = KEY.replace("0123", "zzzz");
    let kinds = [
        ("another unknown key", KEY.replace("0123", "yyyy")),
        ("off by its last character", off),
    ];
    let mut all_alike = true;
    for (name, key) in &kinds {
        let share = share_slower(&clients, &unknown, key);
        let alike = (share - 0.5).abs() < TOLERANCE;
        all_alike &= alike;
        let verdict = if alike { "alike" } else { "DIFFERENT" };
        println!(
            "{name:<26} slower than an unknown key in {:.1} % of pairs: {verdict}",
            share * 100.0
        );
    }
    if all_alike {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn clients() -> Clients {
    let upstream = gateway::upstream("https://unpod.example");
    let text = [upstream, gateway::client("crm", KEY, "spaces = ['*']")].concat();
    let config = Config::from_toml(&text).expect("the configuration is good");
    let credentials = Credentials::load(&config.upstream).expect("the token is there");
    let issuers = Issuers::load(&config.auth, None).expect("there is none");
    Clients::new(&config.clients, &config.views, credentials, issuers, None)
}

/// The share of pairs, measured alternately, in which `other` took longer than `reference`; a tie counts half.
fn share_slower(clients: &Clients, reference: &str, other: &str) -> f64 {
    let field = |key: &str| format!("Token {key}");
    let (reference, other) = (field(reference), field(other));
    let now = SystemTime::now();
    let time = |field: &str| {
        let began = Instant::now();
        assert!(black_box(clients.authenticate(Some(field.as_bytes()), || now, |_| true)).is_err());
        began.elapsed()
    };
    let mut slower = 0.0;
    for round in 0..ROUNDS {
        // The order alternates, since the second request finds warm caches.
        let (first, second) = if round % 2 == 0 {
            let first = time(&reference);
            (first, time(&other))
        } else {
            let first = time(&other);
            (time(&reference), first)
        };
        slower += match second.cmp(&first) {
            std::cmp::Ordering::Greater => 1.0,
            std::cmp::Ordering::Equal => 0.5,
            std::cmp::Ordering::Less => 0.0,
        };
    }
    slower / ROUNDS as f64
}
