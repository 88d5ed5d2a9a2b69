//! What would run, in a few lines.

use std::fmt::Write;

use bytesize::ByteSize;

use crate::config::Config;

/// More are counted, not named.
const MOST_NAMES: usize = 8;

/// A line for each part that `config` has run.
pub(super) fn of(config: &Config) -> String {
    let mut lines = String::new();
    for (part, text) in [
        ("listeners:", listeners(config)),
        ("upstream:", upstream(config)),
        ("credentials:", names(config.upstream.credentials.keys())),
        (
            "clients:",
            names(config.clients.iter().map(|client| &client.name)),
        ),
        ("cache:", cache(config)),
        ("Redis:", redis(config)),
    ] {
        writeln!(lines, "{part:<13} {text}").expect("a `String` takes any text");
    }
    lines
}

fn listeners(config: &Config) -> String {
    let (server, admin) = (&config.server, &config.admin);
    let scheme = match &server.tls {
        Some(tls) if tls.client_ca_file.is_some() => "TLS, client certificates",
        Some(_) => "TLS",
        None => "plain HTTP",
    };
    let key = match admin.keys() {
        [] => "no key",
        [..] => "with a key",
    };
    format!(
        "{} for clients ({scheme}), {} for operators ({key})",
        server.listen, admin.listen
    )
}

fn upstream(config: &Config) -> String {
    let upstream = &config.upstream;
    let calls = match upstream.quota_per_minute {
        0 => "as many calls as its headers allow".to_owned(),
        quota => format!("{quota} calls a minute for each credential"),
    };
    format!("{}, {calls}", upstream.base_url())
}

fn names<'a>(all: impl Iterator<Item = &'a String>) -> String {
    let all: Vec<_> = all.map(String::as_str).collect();
    let shown = all[..all.len().min(MOST_NAMES)].join(", ");
    match all.len() {
        0 => "none".to_owned(),
        1..=MOST_NAMES => shown,
        count => format!("{shown} and {} more", count - MOST_NAMES),
    }
}

fn cache(config: &Config) -> String {
    let cache = &config.cache;
    let snapshot = match &cache.snapshot_file {
        Some(file) => format!("kept over a restart in {}", file.display()),
        None => "not kept over a restart".to_owned(),
    };
    format!(
        "{}, pages fresh for {}, {snapshot}",
        ByteSize(cache.max_bytes as u64),
        humantime::format_duration(cache.ttl)
    )
}

fn redis(config: &Config) -> String {
    let redis = &config.cache.redis;
    if !redis.is_configured() {
        return "off".to_owned();
    }
    format!("shared by {} gateways at most", redis.replicas)
}

#[cfg(test)]
mod tests {
    use super::{names as named, *};

    #[test]
    fn each_part_that_would_run_has_a_line() {
        let config = |rest: &str| {
            let text = format!(
                "upstream.base_url = 'https://unpod.example'
                 upstream.credentials.default.token = 's3cret'
                 {rest}"
            );
            of(&Config::from_toml(&text).unwrap())
        };
        assert_eq!(
            config(""),
            "listeners:    127.0.0.1:8080 for clients (plain HTTP), 127.0.0.1:9090 for operators (no key)\n\
             upstream:     https://unpod.example/, as many calls as its headers allow\n\
             credentials:  default\n\
             clients:      none\n\
             cache:        256.0 MiB, pages fresh for 30s, not kept over a restart\n\
             Redis:        off\n"
        );
        let much = config(
            "upstream.credentials.crm.token = 's3cret'
             upstream.quota_per_minute = 60
             admin.key_sha256 = ['0000000000000000000000000000000000000000000000000000000000000001']
             cache.redis = { url = 'redis://:s3cret@r', replicas = 3 }
             cache.snapshot_file = '/tmp/pages'",
        );
        for part in [
            "operators (with a key)",
            "60 calls a minute",
            "credentials:  crm, default\n",
            "in /tmp/pages\n",
            "shared by 3 gateways at most",
        ] {
            assert!(much.contains(part), "{part}: {much}");
        }
        assert!(!much.contains("s3cret"), "{much}");
    }

    #[test]
    fn many_names_are_counted() {
        let names = |count: usize| {
            let all: Vec<_> = (0..count).map(|name| name.to_string()).collect();
            named(all.iter())
        };
        for (count, expected) in [
            (0, "none"),
            (1, "0"),
            (8, "0, 1, 2, 3, 4, 5, 6, 7"),
            (9, "0, 1, 2, 3, 4, 5, 6, 7 and 1 more"),
        ] {
            assert_eq!(names(count), expected);
        }
    }
}
