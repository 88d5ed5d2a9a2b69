use proptest::prelude::*;
use secrecy::ExposeSecret;

use super::*;

/// An address in one line: servers, credentials, database, TLS.
fn read(text: &str, is_cluster: bool) -> Result<String, &'static str> {
    let who = |credentials: &RedisCredentials| {
        let password = credentials
            .password
            .as_ref()
            .map(ExposeSecret::expose_secret);
        let username = credentials.username.as_deref();
        format!(
            "{}:{}",
            username.unwrap_or_default(),
            password.unwrap_or_default()
        )
    };
    let hosts = |hosts: &[HostPort]| {
        let hosts = hosts.iter().map(|(host, port)| format!("{host} {port}"));
        hosts.collect::<Vec<_>>().join(", ")
    };
    let address = parse(text, is_cluster)?;
    let servers = match &address.servers {
        RedisServers::One(one) => hosts(std::slice::from_ref(one)),
        RedisServers::UnixSocket(path) => path.display().to_string(),
        RedisServers::Sentinel {
            sentinels,
            credentials,
            master,
        } => format!("{master} by {} as {}", hosts(sentinels), who(credentials)),
        RedisServers::Cluster(servers) => format!("cluster {}", hosts(servers)),
    };
    let tls = if address.tls.is_some() { " tls" } else { "" };
    let who = who(&address.credentials);
    Ok(format!("{servers} as {who} in {}{tls}", address.database))
}

#[test]
fn an_address_is_read_from_its_url() {
    for (text, expected) in [
        ("redis://r", "r 6379 as : in 0"),
        ("REDIS://r:6380/", "r 6380 as : in 0"),
        ("valkey://r/2", "r 6379 as : in 2"),
        ("valkeys://r", "r 6379 as : in 0 tls"),
        ("redis://:word@[::1]/", "::1 6379 as :word in 0"),
        (
            "rediss://u:p%40%2Fs@r.internal:6380/3",
            "r.internal 6380 as u:p@/s in 3 tls",
        ),
        ("redis://u:a:b@r", "r 6379 as u:a:b in 0"),
        ("redis+unix:///run/redis.sock", "/run/redis.sock as : in 0"),
        ("valkey+unix://u:p@/run/a%20b?db=4", "/run/a b as u:p in 4"),
        ("redis+sentinel://s/main", "main by s 26379 as : as : in 0"),
        (
            "rediss+sentinel://u:p@s:1,[::1]:2,t/main/5?sentinel_user=v&sentinel_password=%26q",
            "main by s 1, ::1 2, t 26379 as v:&q as u:p in 5 tls",
        ),
    ] {
        assert_eq!(read(text, false).as_deref(), Ok(expected), "{text}");
    }
    for (text, expected) in [
        ("redis://r", "cluster r 6379 as : in 0"),
        ("redis://r:1/0", "cluster r 1 as : in 0"),
        ("valkeys://u:p@r:1,q:2", "cluster r 1, q 2 as u:p in 0 tls"),
    ] {
        assert_eq!(read(text, true).as_deref(), Ok(expected), "{text}");
    }
}

#[test]
fn a_url_that_names_no_redis_is_refused() {
    for text in [
        "",
        "r:6379",
        "http://r",
        "redis://",
        "redis://,r",
        "redis://r:x",
        "redis://r:99999",
        "redis+tcp://r",
        "redis+unix://",
        "redis+unix:///",
        "redis+unix://r/run/redis.sock",
        "rediss+unix:///run/redis.sock",
        "redis+sentinel://s",
        "redis+sentinel://s/",
        "redis+sentinel:///main",
    ] {
        assert_eq!(read(text, false), Err(EXPECTED), "{text}");
    }
    for (text, is_cluster, part) in [
        ("redis://r/x", false, "database number"),
        ("redis://r/-1", false, "database number"),
        ("redis+unix:///r?db=x", false, "database number"),
        ("redis+sentinel://s/main/x", false, "database number"),
        ("redis://r?protocol=resp2", false, "query parameter"),
        ("redis+unix:///r?sentinel_user=u", false, "query parameter"),
        ("redis+sentinel://s/main?db=1", false, "query parameter"),
        ("redis://r#0", false, "percent-encoded"),
        ("redis://word@r", false, "without a password"),
        (
            "redis+sentinel://s/main?sentinel_user=u",
            false,
            "without a password",
        ),
        ("redis://r,q", false, "`cluster = true`"),
        ("redis+unix:///r", true, "`cluster = true`"),
        ("redis+sentinel://s/main", true, "`cluster = true`"),
        ("redis://r/1", true, "only database 0"),
    ] {
        let problem = read(text, is_cluster).unwrap_err();
        assert!(problem.contains(part), "{text}: {problem}");
    }
}

#[test]
fn a_password_that_is_not_percent_encoded_is_told_so() {
    for word in [
        "a@b",
        "a/b",
        "a?b",
        "a#b",
        "a%",
        "a%zz",
        "%",
        "/@",
        "a@b/1?c#d",
    ] {
        for text in [
            format!("redis://:{word}@r:6379/0"),
            format!("rediss://{word}:x@r"),
            format!("redis+unix://u:{word}@/run/redis.sock"),
            format!("redis+sentinel://:{word}@s:1,t:2/main"),
        ] {
            for is_cluster in [false, true] {
                let problem = read(&text, is_cluster);
                assert_eq!(problem, Err(NOT_ENCODED), "{text}");
            }
        }
    }
    for word in ["a@b", "a#b", "a%"] {
        let text = format!("redis+sentinel://s/main?sentinel_password={word}");
        assert_eq!(read(&text, false), Err(NOT_ENCODED), "{text}");
    }
}

proptest! {
    #[test]
    fn a_password_is_taken_as_it_was_encoded(word in "\\PC{1,20}") {
        let encoded: String = word.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let expected = format!("r 6379 as u:{word} in 0");
        prop_assert_eq!(read(&format!("redis://u:{encoded}@r"), false), Ok(expected));
    }

    #[test]
    fn no_text_ends_the_reading_in_a_panic(text in "(redis|valkeys)?(\\+[a-z]{4,8})?(://)?\\PC{0,30}", is_cluster: bool) {
        let _ = read(&text, is_cluster);
    }
}
