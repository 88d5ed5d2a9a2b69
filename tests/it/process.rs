//! The binary as a shell and a service manager see it.

use std::{
    path::Path,
    process::{Output, Stdio},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader, Lines},
    net::{TcpStream, unix::pipe},
    process::{Child, Command},
    task::JoinHandle,
};
use unpod_gateway::simulator::{Control, Options, Scripted, Simulator, world};

use crate::{
    answer::{Ask, http_client},
    gateway::{ConfigFile, READER, Setup, digest, patiently, setup},
    pki::{Authority, TlsFiles},
    raw,
};

/// EX_CONFIG of sysexits.h.
const EX_CONFIG: Option<i32> = Some(78);

pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unpod-gateway"));
    command.args(arguments).kill_on_drop(true).env_clear();
    command.stdin(Stdio::null());
    command
}

pub(crate) async fn run(arguments: &[&str]) -> Output {
    let output = command(arguments).output();
    patiently("the end of a command", output).await.unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// `serve` in a process of its own, with everything it logs.
pub(crate) struct Served {
    child: Child,
    pub(crate) data: String,
    pub(crate) admin: String,
    log: JoinHandle<Vec<String>>,
    file: ConfigFile,
}

impl Served {
    pub(crate) async fn start(setup: Setup, base_url: &str) -> Self {
        Self::start_under(&[], setup, base_url).await
    }

    /// As [`Served::start`], with these variables in its environment and no other.
    pub(crate) async fn start_under(
        environment: &[(&str, &str)],
        setup: Setup,
        base_url: &str,
    ) -> Self {
        let mut serve = command(&["serve"]);
        serve.envs(environment.iter().copied());
        Self::start_by(serve, setup, base_url).await
    }

    /// As [`Served::start`], by a shell that runs `first` before: it sets limits.
    async fn start_after(first: &str, setup: Setup, base_url: &str) -> Self {
        let mut shell = Command::new("/bin/sh");
        shell.kill_on_drop(true).env_clear().stdin(Stdio::null());
        let script = format!("{first} && exec \"$0\" serve \"$@\"");
        shell.args(["-c", &script, env!("CARGO_BIN_EXE_unpod-gateway")]);
        Self::start_by(shell, setup, base_url).await
    }

    async fn start_by(mut serve: Command, setup: Setup, base_url: &str) -> Self {
        let json = "[telemetry]\nformat = \"json\"";
        let file = ConfigFile::new(&setup.with(json).toml(base_url));
        let mut child = serve
            .args(["--config", &file.path()])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut log = Vec::new();
        let ready = loop {
            let line = patiently("a ready line", lines.next_line()).await.unwrap();
            let line = line.unwrap_or_else(|| panic!("ended early: {log:?}"));
            log.push(line.clone());
            if line.contains("gateway is ready") {
                break serde_json::from_str::<serde_json::Value>(&line).unwrap();
            }
        };
        let log = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                log.push(line);
            }
            log
        });
        let address = |name: &str| ready[name].as_str().unwrap().to_owned();
        Self {
            child,
            data: address("server.listen"),
            admin: address("admin.listen"),
            log,
            file,
        }
    }

    pub(crate) fn get(&self, path: &str) -> Ask {
        self.ask("GET", path)
    }

    pub(crate) fn ask(&self, method: &str, path: &str) -> Ask {
        Ask::new(http_client(), method, format!("http://{}", self.data), path).key(READER)
    }

    pub(crate) async fn signal(&self, name: &str) {
        signal(&self.child, name).await;
    }

    /// Waits for the end: its exit code and its log.
    pub(crate) async fn end(mut self) -> (Option<i32>, Vec<String>) {
        let status = patiently("the process's end", self.child.wait()).await;
        (status.unwrap().code(), self.log.await.unwrap())
    }
}

pub(crate) async fn signal(child: &Child, name: &str) {
    let id = child.id().expect("the process runs").to_string();
    let sent = std::process::Command::new("kill")
        .args([name, &id])
        .status();
    assert!(sent.unwrap().success());
}

/// The next line that contains `part`.
async fn line_with<R: AsyncRead + Unpin>(lines: &mut Lines<BufReader<R>>, part: &str) -> String {
    loop {
        let line = patiently(part, lines.next_line()).await.unwrap();
        let line = line.unwrap_or_else(|| panic!("ended without {part}"));
        if line.contains(part) {
            return line;
        }
    }
}

#[tokio::test]
async fn the_version_is_printed() {
    let output = run(&["--version"]).await;
    assert!(output.status.success());
    let version = concat!("unpod-gateway ", env!("CARGO_PKG_VERSION"));
    let rest = text(&output.stdout).trim_end().strip_prefix(version);
    let rest = rest.unwrap_or_else(|| panic!("{output:?}"));
    // A development build has no revision: it would compile anew with every commit.
    let is_revision = |text: &str| {
        let revision = text.trim_end_matches("-dirty");
        revision.len() == 12 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let revision = rest
        .strip_prefix(" (")
        .and_then(|rest| rest.strip_suffix(')'));
    assert!(
        rest.is_empty() || revision.is_some_and(is_revision),
        "{rest}"
    );
}

#[tokio::test]
async fn every_shell_can_complete_the_command_line() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]).await;
        assert!(output.status.success(), "{output:?}");
        for word in ["healthcheck", "online"] {
            assert!(text(&output.stdout).contains(word), "{shell}: {word}");
        }
    }
    let unknown = run(&["completions", "bsh"]).await;
    assert_eq!(unknown.status.code(), Some(2));
    let told = text(&unknown.stderr);
    assert!(told.contains("similar value exists: 'bash'"), "{told}");
}

#[tokio::test]
async fn check_tells_all_problems_at_once_by_key_and_never_a_value() {
    let file = ConfigFile::new(
        r#"
        canarysection = "canary-a"
        [server]
        listen = "canary-b"
        max_in_flight = 0
        canarykey = "canary-c"
        [cache]
        ttl = "canary-d"
        jitter = 7.0
        [upstream]
        base_url = "http://canary-e.example"
        [upstream.credentials.default]
        token = "canary f"
        [[clients]]
        name = "canary g"
        key_sha256 = ["canary-h"]
        spaces = []
        "#,
    );

    let output = run(&["check", "--config", &file.path()]).await;

    assert_eq!(output.status.code(), EX_CONFIG);
    assert_eq!(text(&output.stdout), "");
    let problems = text(&output.stderr);
    for key in [
        "canarysection",
        "server.listen",
        "server.canarykey",
        "cache.ttl",
        "cache.jitter",
        "clients[0].key_sha256",
    ] {
        assert!(problems.contains(key), "{key} is missing in\n{problems}");
    }
    for value in ["canary-", "canary f", "canary g"] {
        assert!(!problems.contains(value), "{value} is told in\n{problems}");
    }
}

#[tokio::test]
async fn check_tells_what_one_key_says_against_another() {
    let file = ConfigFile::new(
        r#"
        [server]
        max_in_flight = 0
        [admin]
        listen = "0.0.0.0:9090"
        [upstream]
        base_url = "http://canary-e.example"
        timeout = "0s"
        [upstream.credentials.default]
        token = "canary f"
        [[clients]]
        name = "canary g"
        key_sha256 = []
        spaces = []
        credential = "canary-i"
        "#,
    );

    let output = run(&["check", "--config", &file.path()]).await;

    assert_eq!(output.status.code(), EX_CONFIG);
    let problems = text(&output.stderr);
    for key in [
        "server.max_in_flight",
        "admin",
        "upstream.base_url",
        "upstream.timeout",
        "upstream.credentials.default",
        "clients[0].name",
        "clients[0].key_sha256",
        "clients[0].spaces",
        "clients[0].credential",
    ] {
        assert!(problems.contains(key), "{key} is missing in\n{problems}");
    }
    for value in ["canary-", "canary f", "canary g"] {
        assert!(!problems.contains(value), "{value} is told in\n{problems}");
    }
}

#[tokio::test]
async fn broken_toml_is_told_by_file_line_column_and_cause() {
    let file = ConfigFile::new("[upstream.credentials.default]\ntoken = canary-token\n");

    let output = run(&["check", "--config", &file.path()]).await;

    assert_eq!(output.status.code(), EX_CONFIG);
    let expected = format!(
        "--config: {}:2:9: string values must be quoted, expected literal string\n",
        file.path()
    );
    assert_eq!(text(&output.stderr), expected);
}

#[tokio::test]
async fn the_configuration_may_be_named_by_a_variable_and_names_files_beside_it() {
    let file = ConfigFile::new(&setup().token_file("token").toml("https://unpod.example"));
    file.put("token", world::ACME_TOKEN);
    let check = |arguments: &'static [&'static str], variable: String| {
        let mut command = command(arguments);
        command.env("UNPOD_GATEWAY_CONFIG", variable);
        async move { command.output().await.unwrap() }
    };

    let read = check(&["check"], file.path()).await;

    assert!(read.status.success(), "{read:?}");
    assert!(text(&read.stdout).contains("https://unpod.example"));
    let other = check(&["check", "--config", "/nowhere.toml"], file.path()).await;
    assert_eq!(other.status.code(), EX_CONFIG);
    assert!(text(&other.stderr).contains("/nowhere.toml"), "{other:?}");
}

#[tokio::test]
async fn check_prints_a_good_configuration_without_its_secrets() {
    let file = ConfigFile::new(&setup().toml("https://unpod.example"));

    let output = run(&["check", "--config", &file.path()]).await;

    assert!(output.status.success());
    let shown = text(&output.stdout);
    assert!(shown.contains("https://unpod.example") && shown.contains("<hidden>"));
    assert!(!shown.contains(world::ACME_TOKEN), "{shown}");
}

#[tokio::test]
async fn check_warns_where_a_request_never_lives_to_see_its_call() {
    for (quota, warns) in [(0, false), (1, true), (3, true), (4, false), (60, false)] {
        let quota = format!("[upstream]\nquota_per_minute = {quota}");
        let file = ConfigFile::new(&setup().with(&quota).toml("https://unpod.example"));
        let output = run(&["check", "--config", &file.path()]).await;
        assert!(output.status.success());
        let told = text(&output.stderr);
        assert_eq!(told.contains("warning: upstream.timeout"), warns, "{told}");
    }
}

#[tokio::test]
async fn serve_refuses_a_bad_configuration_before_it_binds() {
    // A port that is taken would be the error of a gateway that binds first.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!(
        "[server]\nlisten = \"{}\"\nmax_in_flight = 0",
        taken.local_addr().unwrap()
    );
    let file = ConfigFile::new(&setup().with(&listen).toml("http://127.0.0.1:9"));

    let output = run(&["serve", "--config", &file.path()]).await;

    assert_eq!(output.status.code(), EX_CONFIG);
    assert!(text(&output.stderr).contains("server.max_in_flight"));
}

#[tokio::test]
async fn serve_refuses_a_file_that_is_not_there() {
    let output = run(&["serve", "--config", "/nonexistent/gateway.toml"]).await;
    assert_eq!(output.status.code(), EX_CONFIG);
}

#[tokio::test]
async fn serve_refuses_a_token_file_that_is_not_there() {
    let missing = r#"
        [upstream]
        base_url = "http://127.0.0.1:9"
        [upstream.credentials.default]
        token_file = "/nonexistent/token"
        "#;
    let file = ConfigFile::new(missing);
    for command in ["serve", "check"] {
        let output = run(&[command, "--config", &file.path()]).await;
        assert_eq!(output.status.code(), EX_CONFIG, "{command}");
        let told = text(&output.stderr);
        assert!(told.contains("upstream.credentials.default"), "{told}");
    }
}

#[tokio::test]
async fn serve_says_so_when_an_address_is_taken() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("[server]\nlisten = \"{}\"", taken.local_addr().unwrap());
    let file = ConfigFile::new(&setup().with(&listen).toml("http://127.0.0.1:9"));

    let output = run(&["serve", "--config", &file.path()]).await;

    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("cannot listen on"));
}

#[tokio::test]
async fn a_new_key_authenticates_with_the_table_that_came_with_it() {
    let output = run(&["key", "new", "--client", "crm"]).await;
    assert!(output.status.success());
    let printed = text(&output.stdout);
    let key = printed
        .lines()
        .find(|line| line.starts_with("ugw_"))
        .unwrap();
    let (_, table) = printed.split_once("\n\n").unwrap();
    assert!(table.contains(&digest(key)), "{printed}");

    let gateway = setup().with(table).start().await;
    let answer = gateway.tasks(world::SUPPORT, "").key(key).await;

    assert_eq!(answer.status, 200);
    let again = run(&["key", "new", "--client", "crm"]).await;
    assert_ne!(output.stdout, again.stdout);
}

#[tokio::test]
async fn no_key_is_made_for_a_client_that_no_configuration_takes() {
    let long = "x".repeat(65);
    for name in ["a b", "", "crm\n", "b\u{fc}ro", "a\"b", &long] {
        let output = run(&["key", "new", "--client", name]).await;
        assert!(!output.status.success(), "{name:?}");
        assert!(text(&output.stdout).is_empty(), "{name:?}");
        let told = text(&output.stderr);
        assert!(told.contains("--client: expected 1 to 64 of"), "{told}");
    }
}

#[tokio::test]
async fn a_new_browser_signing_key_is_one_that_a_gateway_signs_with() {
    let output = run(&["key", "browser-signing"]).await;
    assert!(output.status.success());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &output.stdout).unwrap();
    let path = file.path().display();
    let signing = format!("[auth.browser_tokens]\nsigning_key_file = '{path}'");

    let gateway = setup().with(&signing).start().await;
    let body = format!("{{\"spaces\":[\"{}\"],\"ttl_seconds\":60}}", world::SUPPORT);
    let minted = gateway.ask("POST", "/browser-tokens").body(body).await;

    assert_eq!(minted.status, 200);
    let again = run(&["key", "browser-signing"]).await;
    assert_ne!(output.stdout, again.stdout);
}

#[tokio::test]
async fn healthcheck_tells_a_gateway_that_serves_from_one_that_does_not() {
    let served = Served::start(setup().with(LOGGING), "http://127.0.0.1:9").await;
    let listen = format!("[admin]\nlisten = \"{}\"", served.admin);
    let file = ConfigFile::new(&setup().with(&listen).toml("http://127.0.0.1:9"));

    let healthy = run(&["healthcheck", "--config", &file.path()]).await;
    assert_eq!(healthy.status.code(), Some(0));

    let nobody = "[admin]\nlisten = \"unix:/nonexistent/gateway.sock\"";
    let nobody = ConfigFile::new(&setup().with(nobody).toml("http://127.0.0.1:9"));
    let gone = run(&["healthcheck", "--config", &nobody.path()]).await;
    assert_eq!(gone.status.code(), Some(1));

    let broken = ConfigFile::new("[admin]\nlisten = 7");
    let refused = run(&["healthcheck", "--config", &broken.path()]).await;
    assert_eq!(refused.status.code(), EX_CONFIG);
}

#[tokio::test]
async fn healthcheck_needs_neither_tls_nor_a_proxys_header() {
    let authority = Authority::new();
    let files = TlsFiles::new(&authority.server(), Some(&authority));
    let fenced = "[server]\nproxy_protocol = true\ntrusted_proxies = [\"127.0.0.0/8\"]";
    let fenced = setup().with(LOGGING).with(fenced).with(&files.toml());
    let served = Served::start(fenced.clone(), "http://127.0.0.1:9").await;
    let listen = format!(
        "[server]\nlisten = \"{}\"\n[admin]\nlisten = \"{}\"",
        served.data, served.admin
    );
    let file = ConfigFile::new(&fenced.with(&listen).toml("http://127.0.0.1:9"));

    let healthy = run(&["healthcheck", "--config", &file.path()]).await;

    assert_eq!(healthy.status.code(), Some(0), "{healthy:?}");
}

/// `serve` needs a line to be found by.
const LOGGING: &str = "[telemetry]\nfilter = \"info\"";

#[tokio::test]
async fn settings_come_from_the_environment_too() {
    let file = ConfigFile::new(&setup().toml("http://127.0.0.1:9"));
    let check = |name: &'static str, value: &'static str| {
        let mut command = command(&["check", "--config", &file.path()]);
        command.env(name, value);
        async move { command.output().await.unwrap() }
    };

    let good = check("UNPOD_GATEWAY__CACHE__TTL", "77s").await;
    assert!(good.status.success());
    assert!(text(&good.stdout).contains("ttl = \"77s\""));

    let bad = check("UNPOD_GATEWAY__CACHE__TTL", "canary").await;
    assert_eq!(bad.status.code(), EX_CONFIG);
    let problems = text(&bad.stderr);
    assert!(problems.contains("cache.ttl") && !problems.contains("canary"));

    let slip = check("UNPOD_GATEWAY_CACHE_TTL", "canary").await;
    assert_eq!(slip.status.code(), EX_CONFIG);
    assert_eq!(
        text(&slip.stderr),
        "UNPOD_GATEWAY_CACHE_TTL: no setting has this name; did you mean UNPOD_GATEWAY__CACHE__TTL?\n"
    );

    let foreign = check("UNPOD_GATEWAY_PORT", "tcp://10.0.0.1:80").await;
    assert!(foreign.status.success());
}

#[tokio::test]
async fn the_demo_takes_a_port_tells_each_request_and_ends_after_some() {
    let mut child = command(&["demo", "--port", "0", "--exit-after", "3"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = line_with(&mut lines, "gateway: ").await;
    let origin = line.split_whitespace().last().unwrap().to_owned();
    let path = format!("/spaces/{}/tasks", world::SUPPORT);
    let ask = |key: &str| Ask::new(http_client(), "GET", origin.clone(), &path).key(key);
    line_with(&mut lines, "Ctrl-C").await;

    for (key, status, told) in [
        (
            "ugw_demo_key_for_loopback_only",
            200,
            "200  miss                1 upstream call ",
        ),
        (
            "ugw_demo_key_for_loopback_only",
            200,
            "200  hit                 0 upstream calls ",
        ),
        ("wrong", 401, "401  unauthenticated     0 upstream calls "),
    ] {
        assert_eq!(ask(key).await.status, status);
        let line = line_with(&mut lines, " ms  GET ").await;
        assert!(line.starts_with(told), "{line}");
        let full = format!("GET {path}?page=1&page_size=20");
        let shown = if status == 200 { &full } else { "GET /spaces/" };
        assert!(line.contains(shown), "{line}");
    }

    let status = patiently("the demo's end", child.wait()).await.unwrap();
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn the_demo_refuses_a_port_that_is_taken() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = run(&["demo", "--port", &port]).await;
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    assert!(
        told.contains(&format!("cannot listen on 127.0.0.1:{port}")),
        "{told}"
    );
}

#[tokio::test]
async fn the_demo_prints_a_curl_line_that_works_and_ends_on_sigint() {
    let mut child = command(&["demo"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = line_with(&mut lines, "curl -i").await;
    let quoted: Vec<&str> = line.split('\'').collect();
    let [curl, header, between, url, ""] = quoted[..] else {
        panic!("{line}");
    };
    assert_eq!((curl.trim(), between.trim()), ("curl -i -H", ""));
    let (name, value) = header.split_once(": ").unwrap();
    let rest = url.strip_prefix("http://").unwrap();
    let (address, path) = rest.split_once('/').unwrap();
    let origin = format!("http://{address}");

    for status in ["fwd=uri-miss; fwd-status=200; stored", "hit"] {
        let asked = Ask::new(http_client(), "GET", origin.clone(), &format!("/{path}"));
        let answer = asked.header(name, value).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.cache_status(), status);
    }

    signal(&child, "-INT").await;
    let status = patiently("the demo's end", child.wait()).await.unwrap();
    assert_eq!(status.code(), Some(0));
    let mut said = String::new();
    let mut stderr = child.stderr.take().unwrap();
    stderr.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "");
}

#[tokio::test]
async fn a_simulated_upstream_serves_and_ends_on_sigterm() {
    let mut child = command(&["simulate-upstream", "--listen", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = line_with(&mut lines, "simulated upstream").await;
    let url = line.split_whitespace().last().unwrap();
    let gateway = setup().start_before(url).await;
    assert_eq!(gateway.tasks(world::SUPPORT, "").await.status, 200);

    signal(&child, "-TERM").await;
    let status = patiently("its end", child.wait()).await.unwrap();
    assert_eq!(status.code(), Some(0));
}

/// Asks again and again over one connection, as long as the gateway keeps it open. Returns how often it was answered.
async fn ask_until_told_to_go(address: String) -> u32 {
    let path = format!("/spaces/{}/tasks", world::SUPPORT);
    let origin = format!("http://{address}");
    let asked = Ask::new(http_client(), "GET", origin, &path).key(READER);
    let mut answered = 0;
    loop {
        let answer = asked.clone().await;
        assert_eq!(answer.status, 200);
        answered += 1;
        if answer.header("connection") == Some("close") {
            return answered;
        }
    }
}

#[tokio::test]
async fn sigterm_under_load_refuses_nobody() {
    let simulator = Simulator::start(Options::default()).await.unwrap();
    let control = simulator.control();
    let slow_end = "[server]\ndrain_delay = \"300ms\"";
    let served = Served::start(setup().with(LOGGING).with(slow_end), &simulator.base_url()).await;
    let busy: Vec<_> = (0..8)
        .map(|_| tokio::spawn(ask_until_told_to_go(served.data.clone())))
        .collect();
    control.wait_for_requests(1).await;
    let hold = control.hold();
    let waiting: Vec<_> = (2..6)
        .map(|page| {
            let path = format!("/spaces/{}/tasks?page={page}", world::SUPPORT);
            served.get(&path).spawn()
        })
        .collect();
    control.wait_for_requests(5).await;

    served.signal("-TERM").await;
    for answered in busy {
        assert!(answered.await.unwrap() > 0);
    }
    // While the listener is still open, readiness says what is coming.
    let ready = raw::exchange(
        &mut TcpStream::connect(&served.admin).await.unwrap(),
        b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(ready.starts_with(b"HTTP/1.1 503 "));
    hold.release();
    for answer in waiting {
        assert_eq!(answer.await.unwrap().status, 200);
    }

    let (code, log) = served.end().await;
    assert_eq!(code, Some(0), "{log:?}");
}

/// The soft and the hard limit of open files of a process.
fn open_files(child: &Child) -> (String, String) {
    let id = child.id().expect("the process runs");
    let limits = std::fs::read_to_string(format!("/proc/{id}/limits")).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let mut words = line.unwrap().split_whitespace().skip(3).map(str::to_owned);
    (words.next().unwrap(), words.next().unwrap())
}

#[tokio::test]
async fn the_soft_limit_of_open_files_is_raised_to_the_hard_one() {
    let log = "[telemetry]\nfilter = \"info\"";
    let first = "ulimit -Sn 200 && ulimit -Hn 2000";
    let few = setup().with(log).with("[server]\nmax_connections = 100");
    let served = Served::start_after(first, few, "http://127.0.0.1:9").await;

    let limits = open_files(&served.child);

    assert_eq!(limits, ("2000".to_owned(), "2000".to_owned()));
    served.signal("-TERM").await;
    let (_, log) = served.end().await;
    assert!(!log.iter().any(|line| line.contains("limit of open files")));
}

#[tokio::test]
async fn connections_leave_descriptors_for_the_upstream_and_the_operators() {
    let log = "[telemetry]\nfilter = \"info\"";
    let simulator = Simulator::start(Options::default()).await.unwrap();
    let first = "ulimit -n 320";
    let served = Served::start_after(first, setup().with(log), &simulator.base_url()).await;
    let data: std::net::SocketAddr = served.data.parse().unwrap();
    let mut silent = Vec::new();
    for _ in 0..400 {
        silent.push(TcpStream::connect(data).await.unwrap());
    }

    let live = raw::exchange(
        &mut TcpStream::connect(&served.admin).await.unwrap(),
        b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(live.starts_with(b"HTTP/1.1 200 "));
    drop(silent);
    let miss = served
        .get(&format!("/spaces/{}/tasks", world::SUPPORT))
        .await;
    assert_eq!(miss.status, 200);

    served.signal("-TERM").await;
    let (_, log) = served.end().await;
    let warning = log.iter().find(|line| line.contains("limit of open files"));
    let warning: serde_json::Value = serde_json::from_str(warning.unwrap()).unwrap();
    assert_eq!(warning["server.max_connections"], 10_000);
    assert_eq!(warning["limit.open_files"], 320);
    assert_eq!(warning["server.connections"], 80);
    assert!(
        !log.iter()
            .any(|line| line.contains("could not be accepted"))
    );
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let long_end = "[server]\ndrain_delay = \"1h\"";
    let served = Served::start(setup().with(LOGGING).with(long_end), "http://127.0.0.1:9").await;
    served.signal("-TERM").await;
    let draining =
        async { while served.get("/healthz").await.header("connection") != Some("close") {} };
    patiently("the drain", draining).await;

    served.signal("-TERM").await;

    let (code, _) = served.end().await;
    assert_eq!(code, Some(1));
}

/// Makes a file that is read for as long as somebody holds its other end.
fn make_fifo(path: &str) {
    let made = std::process::Command::new("mkfifo").arg(path).status();
    assert!(made.unwrap().success());
}

/// The other end of a fifo, from when somebody reads it.
async fn held_open(fifo: &str) -> pipe::Sender {
    let opened = async {
        loop {
            match pipe::OpenOptions::new().open_sender(fifo) {
                Ok(sender) => return sender,
                // Nobody has it open yet.
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    patiently("a reader of the fifo", opened).await
}

#[tokio::test]
async fn a_reload_that_hangs_holds_up_neither_requests_nor_the_end() {
    let one = setup().with(LOGGING).with("[server]\nworkers = 1");
    for way in ["a signal", "a request", "a changed file"] {
        let served = Served::start(one.clone(), "http://127.0.0.1:9").await;
        let fifo = format!("{}.token", served.file.path());
        make_fifo(&fifo);
        let hanging = one.clone().token_file(&fifo);
        served.file.rewrite(&hanging.toml("http://127.0.0.1:9"));
        match way {
            "a signal" => served.signal("-HUP").await,
            "a request" => {
                let reload = http_client().post(format!("http://{}/reload", served.admin));
                tokio::spawn(reload.send());
            }
            _ => {}
        }
        let held = held_open(&fifo).await;

        for _ in 0..3 {
            assert_eq!(served.get("/healthz").await.status, 200, "{way}");
        }
        for path in ["/livez", "/readyz", "/metrics", "/config"] {
            let asked = http_client().get(format!("http://{}{path}", served.admin));
            let answered = patiently(path, asked.send()).await.unwrap();
            assert_eq!(answered.status(), 200, "{way} {path}");
        }
        served.signal("-TERM").await;
        let (code, log) = served.end().await;
        assert_eq!(code, Some(0), "{way}: {log:?}");
        drop(held);
    }
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// Asks for a page that the upstream holds back, and goes away once it was asked for.
async fn hang_up(served: &Served, path: &str, id: &str, upstream: Control) {
    let asked = upstream.requests();
    let lines = format!("X-Request-Id: {id}\r\nTraceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\n");
    let stream = raw::ask(&served.data, path, &lines).await;
    upstream.wait_for_requests(asked + 1).await;
    raw::leave(stream);
    let line =
        "gateway_http_requests_total{route=\"tasks\",status=\"cancelled\",client=\"none\"} 1";
    let url = format!("http://{}/metrics", served.admin);
    let counted = async {
        loop {
            let text = http_client().get(&url).send().await.unwrap().text().await;
            if text.unwrap().lines().any(|counted| counted == line) {
                return;
            }
        }
    };
    patiently("the count of who went away", counted).await;
}

#[tokio::test]
async fn the_access_log_has_one_line_a_request() {
    let logging = "[telemetry]\nfilter = \"info\"\naccess_log = true";
    let simulator = Simulator::start(Options::default()).await.unwrap();
    let served = Served::start(setup().with(logging), &simulator.base_url()).await;
    let path = format!("/spaces/{}/tasks", world::SUPPORT);
    for id in ["first", "second"] {
        served.get(&path).header("x-request-id", id).await;
    }
    served
        .get("/nowhere")
        .without_key()
        .header("x-request-id", "third")
        .await;
    served.get("/healthz").await;
    let hold = simulator.control().hold();
    hang_up(
        &served,
        &format!("{path}?page=2"),
        "fourth",
        simulator.control(),
    )
    .await;
    hold.release();

    served.signal("-TERM").await;
    let (_, log) = served.end().await;

    let lines: Vec<serde_json::Value> = log
        .iter()
        .map(|line| serde_json::from_str(line).expect(line))
        .filter(|line: &serde_json::Value| line["message"] == "request")
        .collect();
    let told = |name: &str| -> Vec<String> {
        lines
            .iter()
            .map(|line| line[name].as_str().unwrap_or("-").to_owned())
            .collect()
    };
    assert_eq!(told("request.id"), ["first", "second", "third", "fourth"]);
    assert_eq!(told("client.name"), ["reader", "reader", "none", "reader"]);
    assert_eq!(told("cache.outcome"), ["miss", "hit", "-", "-"]);
    assert_eq!(
        told("response.code"),
        ["-", "-", "unauthenticated", "cancelled"]
    );
    assert_eq!(told("peer.address"), ["127.0.0.1"; 4]);
    assert_eq!(told("client.address"), ["127.0.0.1"; 4]);
    assert_eq!(told("trace.id"), ["-", "-", "-", TRACE]);
    let number =
        |name: &str| -> Vec<Option<u64>> { lines.iter().map(|line| line[name].as_u64()).collect() };
    assert_eq!(number("upstream.calls"), [Some(1), Some(0), None, None]);
    assert_eq!(number("page"), [Some(1), Some(1), None, Some(2)]);
    assert_eq!(number("page_size"), [Some(20), Some(20), None, Some(20)]);
    assert_eq!(
        number("response.status"),
        [Some(200), Some(200), Some(401), None]
    );
    assert!(number("response.duration_us").iter().all(Option::is_some));
    assert!(!Path::new(&told("space")[0]).has_root());
    assert!(log.iter().all(|line| !line.contains(world::SUPPORT)));
}

#[tokio::test]
async fn the_filter_holds_for_the_access_log_and_is_reloaded() {
    let logging = |level| {
        setup().with(&format!(
            "[telemetry]\nformat = \"json\"\nfilter = \"info,unpod_gateway::access={level}\"\naccess_log = true"
        ))
    };
    let simulator = Simulator::start(Options::default()).await.unwrap();
    let base_url = simulator.base_url();
    let served = Served::start(logging("warn"), &base_url).await;
    for (level, id) in [("warn", "a"), ("info", "b"), ("off", "c"), ("debug", "d")] {
        served.file.rewrite(&logging(level).toml(&base_url));
        let reload = http_client().post(format!("http://{}/reload", served.admin));
        assert_eq!(reload.send().await.unwrap().status(), 200, "{level}");
        served.get("/nowhere").header("x-request-id", id).await;
    }

    served.signal("-TERM").await;
    let (_, log) = served.end().await;

    let told = |id: &str| {
        log.iter()
            .any(|line| line.contains(&format!("\"request.id\":\"{id}\"")))
    };
    assert_eq!(["a", "b", "c", "d"].map(told), [false, true, false, true]);
}

/// What the log says of one request and of the fill it caused, by its id.
#[tokio::test]
async fn each_line_of_a_fill_names_the_request_that_caused_it_and_its_page() {
    let simulator = Simulator::start(Options::default()).await.unwrap();
    let logging = "[telemetry]\nfilter = \"info\"\naccess_log = true";
    let served = Served::start(setup().with(logging), &simulator.base_url()).await;
    let long = format!("Tasks Fetch Failed {}", "ä".repeat(300));
    let short = "Tasks Fetch Failed of \"one\"";
    let script = |message: &str| {
        let body = serde_json::json!({"status_code": 206, "message": message, "data": {}});
        Scripted::json(206, body.to_string())
    };
    let cut: String = long.chars().take(200).collect();
    let table = [
        ("short", script(short), Some(short)),
        ("long", script(&long), Some(cut.as_str())),
        (
            "none",
            Scripted::json(500, "{\"message\":\"not shown\"}"),
            None,
        ),
    ];
    for (id, answer, _) in &table {
        simulator.control().script(id, vec![answer.clone()]);
        let path = format!("/spaces/{id}/tasks?page=3&page_size=7");
        let failed = served.get(&path).header("x-request-id", id).await;
        failed.assert_error("upstream_failed");
    }
    let bad = served.get("/spaces/short/tasks?page=0");
    bad.header("x-request-id", "bad").await;

    served.signal("-TERM").await;
    let (_, log) = served.end().await;

    let lines: Vec<serde_json::Value> = log
        .iter()
        .map(|line| serde_json::from_str(line).expect(line))
        .collect();
    let of = |id: &str| -> Vec<_> {
        let lines = lines.iter();
        let is_of = |line: &&serde_json::Value| {
            line["request.id"] == id || line["span"]["request.id"] == id
        };
        lines.filter(is_of).collect()
    };
    for (id, _, message) in &table {
        let [failure, request] = &of(id)[..] else {
            panic!("{id}: {log:?}");
        };
        assert_eq!(failure["level"], "WARN");
        assert_eq!(failure["message"], "upstream gave no page");
        assert_eq!(failure["credential.name"], "default");
        assert_eq!(failure["upstream.message"].as_str(), *message, "{id}");
        assert_eq!(failure["space"], request["space"]);
        assert_eq!(request["message"], "request");
        for fields in [&failure["span"], *request] {
            let page = (&fields["page"], &fields["page_size"]);
            assert_eq!(page, (&3.into(), &7.into()));
        }
    }
    let [bad] = &of("bad")[..] else {
        panic!("{log:?}");
    };
    assert_eq!((bad.get("page"), bad.get("page_size")), (None, None));
}

/// A client may write what it wants; no line of the log is as long as that.
#[tokio::test]
async fn what_a_client_makes_up_is_cut_in_the_log() {
    let simulator = Simulator::start(Options::default()).await.unwrap();
    let logging = "[telemetry]\nfilter = \"info\"\naccess_log = true";
    let served = Served::start(setup().with(logging), &simulator.base_url()).await;
    let long = "M".repeat(12_000);
    let lines = [
        format!("{long} /spaces/A/tasks HTTP/1.1\r\nHost: a\r\n"),
        format!("GET /{long} HTTP/1.1\r\nHost: a\r\n"),
        format!("GET /?{long} HTTP/1.1\r\nHost: a\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {long}\r\n"),
        format!("GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: {long}\r\n"),
        format!("GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: {long}\r\n"),
        format!("GET / HTTP/1.1\r\nHost: a\r\nTraceparent: {long}\r\n"),
        format!("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {long}\r\n"),
        format!("GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Token {long}\r\n"),
    ];
    for head in &lines {
        let mut stream = TcpStream::connect(&served.data).await.unwrap();
        let request = format!("{head}Connection: close\r\n\r\n");
        raw::exchange(&mut stream, request.as_bytes()).await;
    }

    served.signal("-TERM").await;
    let (_, log) = served.end().await;

    let requests = log.iter().filter(|line| line.contains("\"request.id\""));
    assert_eq!(requests.count(), lines.len());
    for line in &log {
        assert!(!line.contains(&"M".repeat(33)), "{line}");
    }
}

/// The priority of each line that `serve` logs, where `JOURNAL_STREAM` names `stream` and standard error is `stderr`.
async fn priorities(stream: impl Fn(u64, u64) -> String) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;

    let stderr = tempfile::NamedTempFile::new().unwrap();
    let found = stderr.as_file().metadata().unwrap();
    let simulator = Simulator::start(Options::default()).await.unwrap();
    let logging = "[telemetry]\nfilter = \"info\"\naccess_log = true";
    let listen = tempfile::tempdir().unwrap();
    let socket = listen.path().join("data");
    let warned = format!(
        "[server]\nlisten = 'unix:{}'\n\
         [[clients]]\nname = 'old'\nspaces = ['*']\nexpires = '2001-01-01T00:00:00Z'\n\
         key_sha256 = ['0000000000000000000000000000000000000000000000000000000000000001']",
        socket.display()
    );
    let config = setup().with(logging).with(&warned);
    let file = ConfigFile::new(&config.toml(&simulator.base_url()));
    let mut child = command(&["serve", "--config", &file.path()])
        .env("JOURNAL_STREAM", stream(found.dev(), found.ino()))
        .stderr(stderr.reopen().unwrap())
        .spawn()
        .unwrap();
    let ask = async {
        loop {
            match tokio::net::UnixStream::connect(&socket).await {
                Ok(stream) => break stream,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    let mut connection = patiently("the listener", ask).await;
    let request = b"GET /nowhere HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    raw::exchange(&mut connection, request).await;
    signal(&child, "-TERM").await;
    patiently("the process's end", child.wait()).await.unwrap();
    let log = std::fs::read_to_string(stderr.path()).unwrap();
    assert!(log.contains("\"request\""), "{log}");
    let priority = |line: &str| {
        let (priority, object) = line.split_once('{').unwrap();
        let object: serde_json::Value = serde_json::from_str(&format!("{{{object}")).unwrap();
        format!("{priority} {}", object["level"].as_str().unwrap())
    };
    log.lines().map(priority).collect()
}

#[tokio::test]
async fn lines_to_the_journal_begin_with_their_priority() {
    let told = priorities(|device, inode| format!("{device}:{inode}")).await;
    for expected in ["<6> INFO", "<4> WARN"] {
        assert!(told.iter().any(|line| line == expected), "{told:?}");
    }
    let known = ["<3> ERROR", "<4> WARN", "<6> INFO"];
    assert!(
        told.iter().all(|line| known.contains(&line.as_str())),
        "{told:?}"
    );
}

#[tokio::test]
async fn lines_to_elsewhere_have_no_priority() {
    let told = priorities(|device, inode| format!("{device}:{}", inode + 1)).await;
    assert!(told.iter().all(|line| line.starts_with(' ')), "{told:?}");
}
