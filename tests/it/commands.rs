//! The commands that the pages show, run from their text.

use std::{fs, os::unix::fs::symlink, process::Stdio};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStderr, Command},
};
use unpod_gateway::simulator::{Options, Simulator, world};

use crate::{
    answer::{Ask, http_client},
    documents::{block, blocks, pages, readme_configuration, text_of},
    gateway::{READER, patiently},
    process::command,
};

/// Pages whose commands are not run here, and why.
const NOT_RUN: [(&str, &str); 5] = [
    (
        "README.md",
        "`.ci/run` runs the tests and `.ci/smoke` the demo; the rest compiles for minutes",
    ),
    ("docs/frontends.md", "tests/browser runs them"),
    (
        "docs/install.md",
        "they need root, Docker or a cluster; `.ci/container` and `.ci/deploy` do the same",
    ),
    (
        "docs/performance.md",
        "they measure for minutes; `.ci/full` runs them",
    ),
    ("docs/quota.md", "it runs for minutes; `.ci/full` runs it"),
];
const CONFIGURE: &str = "docs/configure.md";

/// Passes what it is given to the curl behind it, and fails where the answer is an error.
const CURL: &str = "#!/bin/sh\nPATH=${PATH#*:}\nexec curl --fail-with-body --noproxy '*' \"$@\"\n";

/// A gateway with the README's configuration, and a shell in the folder of its file.
struct Deployment {
    folder: TempDir,
    address: String,
    admin: String,
    log: Lines<BufReader<ChildStderr>>,
    _gateway: Child,
    _simulator: Simulator,
}

impl Deployment {
    async fn start() -> Self {
        let simulator = Simulator::start(Options::default()).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let config = readme_configuration(folder.path(), &simulator.base_url());
        fs::write(folder.path().join("gateway.toml"), config).unwrap();
        let programs = folder.path().join("programs");
        fs::create_dir(&programs).unwrap();
        let program = env!("CARGO_BIN_EXE_unpod-gateway");
        symlink(program, programs.join("unpod-gateway")).unwrap();
        fs::write(programs.join("curl"), CURL).unwrap();
        make_executable(&programs.join("curl"));
        let mut gateway = command(&["serve", "--config", "gateway.toml"])
            .current_dir(folder.path())
            .env("UNPOD_GATEWAY__SERVER__LISTEN", "127.0.0.1:0")
            .env("UNPOD_GATEWAY__ADMIN__LISTEN", "127.0.0.1:0")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(gateway.stderr.take().unwrap()).lines();
        let mut deployment = Self {
            folder,
            address: String::new(),
            admin: String::new(),
            log,
            _gateway: gateway,
            _simulator: simulator,
        };
        let ready = deployment.line_with("gateway is ready").await;
        let ready: serde_json::Value = serde_json::from_str(&ready).unwrap();
        let address = |name: &str| ready[name].as_str().unwrap().to_owned();
        deployment.address = address("server.listen");
        deployment.admin = address("admin.listen");
        deployment
    }

    /// The next line of its log that holds `part`.
    async fn line_with(&mut self, part: &str) -> String {
        loop {
            let line = patiently(part, self.log.next_line()).await.unwrap();
            let line = line.unwrap_or_else(|| panic!("ended without {part}"));
            if line.contains(part) {
                return line;
            }
        }
    }

    /// What `script` prints, with what a reader would put in: addresses, a space, the client.
    async fn run(&self, script: &str) -> String {
        let path = std::env::join_paths(
            std::iter::once(self.folder.path().join("programs"))
                .chain(std::env::split_paths(&path_of_the_tests())),
        );
        let script = script
            .replace("127.0.0.1:8080", &self.address)
            .replace("127.0.0.1:9090", &self.admin)
            .replace("8KZAMRAHSXXXXXXMAYNASMJC", world::SUPPORT)
            .replace("SPACE_TOKEN", world::SUPPORT)
            .replace("/SPACE", &format!("/{}", world::SUPPORT))
            .replace("=SPACE", &format!("={}", world::SUPPORT))
            .replace("client=NAME", "client=crm");
        let run = Command::new("sh")
            .args(["-euc", &script])
            .current_dir(self.folder.path())
            .env("PATH", path.unwrap())
            .env("KEY", READER)
            .env("SPACE", world::SUPPORT)
            .output();
        let output = patiently("a block of a page", run).await.unwrap();
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the shell's programs are found by it"
)]
fn path_of_the_tests() -> std::ffi::OsString {
    std::env::var_os("PATH").unwrap()
}

fn make_executable(file: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn commands_of_the_pages_work_as_they_are_written() {
    let deployment = Deployment::start().await;
    let mut run = 0;
    for page in pages() {
        let elsewhere = page == CONFIGURE || NOT_RUN.iter().any(|(named, _)| *named == page);
        for script in blocks(&text_of(&page), "sh") {
            if !elsewhere {
                deployment.run(&script).await;
                run += 1;
            }
        }
    }
    assert!(run >= 5, "{run}");
}

#[test]
fn a_page_whose_commands_are_not_run_has_some() {
    for (page, _) in NOT_RUN {
        assert!(!blocks(&text_of(page), "sh").is_empty(), "{page}");
    }
}

#[tokio::test]
async fn browser_tokens_work_as_the_page_on_configuring_says() {
    let mut deployment = Deployment::start().await;
    deployment
        .run(&block(CONFIGURE, "sh", "key browser-signing"))
        .await;
    let path = deployment.folder.path().join("gateway.toml");
    let first = fs::read_to_string(&path).unwrap();
    let more = block(CONFIGURE, "toml", "[auth.browser_tokens]");
    fs::write(&path, format!("{first}\n{more}")).unwrap();
    deployment.line_with("configuration is reloaded").await;
    let minted = deployment
        .run(&block(CONFIGURE, "sh", "/browser-tokens"))
        .await;

    let minted: serde_json::Value = serde_json::from_str(&minted).unwrap();
    let token = minted["token"].as_str().unwrap();
    let path = format!("/spaces/{}/tasks", world::SUPPORT);
    let base = format!("http://{}", deployment.address);
    let read = Ask::new(http_client(), "GET", base, &path).key(token);
    assert_eq!(read.await.status, 200);
}
