//! Pages that outlive the process: stale, of true age, and only ever in place of an error.

use std::{
    fs::{self, OpenOptions, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::Command,
};

use unpod_gateway::simulator::{Options, Simulator, world::SUPPORT};

use crate::{
    gateway::{Gateway, Setup, patiently, setup},
    process::Served,
};

struct Restart {
    folder: tempfile::TempDir,
    simulator: Simulator,
}

impl Restart {
    async fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            simulator: Simulator::start(Options::default()).await.unwrap(),
        }
    }

    fn file(&self) -> std::path::PathBuf {
        self.folder.path().join("pages")
    }

    fn setup(&self) -> Setup {
        setup().with(&format!(
            "[cache]\nsnapshot_file = '{}'",
            self.file().display()
        ))
    }

    async fn start(&self) -> Gateway {
        self.setup().start_before(&self.simulator.base_url()).await
    }

    /// Fills two pages and ends.
    async fn leave_pages(&self) -> bytes::Bytes {
        let gateway = self.start().await;
        let page = gateway.tasks(SUPPORT, "?page=1").await;
        gateway.tasks(SUPPORT, "?page=2").await;
        assert!(gateway.app.drain().await);
        page.body
    }
}

#[tokio::test]
async fn after_a_restart_pages_stand_in_for_an_upstream_that_is_gone() {
    let restart = Restart::new().await;
    let old = restart.leave_pages().await;
    let base_url = restart.simulator.base_url();
    let setup = restart.setup();
    restart.simulator.stop().await;

    let gateway = setup.start_before(&base_url).await;
    let stale = gateway.tasks(SUPPORT, "?page=1").await;

    stale.assert_page(&old);
    assert!(
        stale.cache_status().contains("detail=stale-if-error"),
        "{}",
        stale.cache_status()
    );
    assert!(stale.header("age").is_some());
}

#[tokio::test]
async fn after_a_restart_a_state_of_the_list_is_called_as_before() {
    let restart = Restart::new().await;
    let mut names = std::collections::HashSet::new();
    for moves in 1..=2 {
        for _ in 0..2 {
            let gateway = restart.start().await;
            let page = gateway.tasks(SUPPORT, "?page=1").await;
            names.insert(page.header("x-list-generation").unwrap().to_owned());
            assert_eq!(names.len(), moves);
            assert!(gateway.app.drain().await);
        }
        restart.simulator.control().add_task(SUPPORT);
    }
}

#[tokio::test]
async fn a_restored_page_is_never_shown_unasked() {
    let restart = Restart::new().await;
    restart.leave_pages().await;
    let control = restart.simulator.control();
    control.revoke_space(SUPPORT);

    let gateway = restart.start().await;

    gateway
        .tasks(SUPPORT, "?page=1")
        .await
        .assert_error("space_access_denied");
    gateway
        .tasks(SUPPORT, "?page=2")
        .await
        .assert_error("space_access_denied");
    assert_eq!(control.requests(), 3);
}

#[tokio::test]
async fn a_damaged_file_is_left_out_and_replaced() {
    let restart = Restart::new().await;
    restart.leave_pages().await;
    let mut bytes = fs::read(restart.file()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(restart.file(), bytes).unwrap();

    let gateway = restart.start().await;

    assert_eq!(gateway.app.pages().store().size().1, 0);
    restart.leave_pages().await;
    let gateway = restart.start().await;
    assert_eq!(gateway.app.pages().store().size().1, 2);
}

/// What may become of a file between two starts.
type Spoil = (&'static str, fn(&Path));
const SPOILS: [Spoil; 8] = [
    ("cut", |file| {
        let length = fs::metadata(file).unwrap().len();
        let file = OpenOptions::new().write(true).open(file).unwrap();
        file.set_len(length - 1).unwrap();
    }),
    ("empty", |file| {
        OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(file)
            .unwrap();
    }),
    ("too long", |file| {
        let file = OpenOptions::new().write(true).open(file).unwrap();
        file.set_len(1 << 40).unwrap();
    }),
    ("a pipe", |file| {
        fs::remove_file(file).unwrap();
        assert!(Command::new("mkfifo").arg(file).status().unwrap().success());
    }),
    ("a link", |file| {
        let elsewhere = file.with_extension("elsewhere");
        fs::rename(file, &elsewhere).unwrap();
        symlink(&elsewhere, file).unwrap();
    }),
    ("written by the group", |file| {
        fs::set_permissions(file, Permissions::from_mode(0o660)).unwrap();
    }),
    ("written by others", |file| {
        fs::set_permissions(file, Permissions::from_mode(0o602)).unwrap();
    }),
    ("in a folder of everybody's", |file| {
        fs::set_permissions(file.parent().unwrap(), Permissions::from_mode(0o777)).unwrap();
    }),
];

#[tokio::test]
async fn no_file_stops_a_start_and_none_is_used_that_others_may_have_written() {
    for (name, spoil) in SPOILS {
        let restart = Restart::new().await;
        restart.leave_pages().await;
        spoil(&restart.file());
        let calls = restart.folder.path().join("pages.calls");
        spoil(&calls);

        let gateway = restart.start().await;

        assert_eq!(gateway.app.pages().store().size().1, 0, "{name}");
        assert_eq!(gateway.tasks(SUPPORT, "?page=1").await.status, 200);
    }
}

#[tokio::test]
async fn pages_of_another_token_are_not_taken_over() {
    let restart = Restart::new().await;
    restart.leave_pages().await;
    let other = restart
        .setup()
        .with("[upstream.credentials.default]\ntoken = 'another'");

    let gateway = other.start_before(&restart.simulator.base_url()).await;

    assert_eq!(gateway.app.pages().store().size().1, 0);
}

#[tokio::test]
async fn a_restart_gives_no_new_minute() {
    let restart = Restart::new().await;
    let quota = "[upstream]\nquota_per_minute = 2";
    let base_url = restart.simulator.base_url();
    let gateway = restart.setup().start_before(&base_url).await;
    for page in 1..=2 {
        let answer = gateway.tasks(SUPPORT, &format!("?page={page}")).await;
        assert_eq!(answer.status, 200);
    }
    gateway.app.drain().await;

    let gateway = restart.setup().with(quota).start_before(&base_url).await;
    let third = gateway.tasks(SUPPORT, "?page=3").await;

    third.assert_error("upstream_quota_exhausted");
    assert_eq!(restart.simulator.control().requests(), 2);
    let old = gateway.tasks(SUPPORT, "?page=1").await;
    assert_eq!(old.cache_status(), "hit; detail=quota");
}

#[tokio::test]
async fn a_crash_gives_no_new_minute() {
    let restart = Restart::new().await;
    let control = restart.simulator.control();
    // Nothing is configured: the limit is learned from the header.
    control.set_quota(Some(5));
    let base_url = restart.simulator.base_url();
    let logged = restart.setup().with("[telemetry]\nfilter = 'info'");
    let gateway = Served::start(logged, &base_url).await;
    for page in 1..=3 {
        let path = format!("/spaces/{SUPPORT}/tasks?page={page}");
        assert_eq!(gateway.get(&path).await.status, 200);
    }
    let calls = restart.folder.path().join("pages.calls");
    let three_are_written = async {
        loop {
            let text = fs::read(&calls).unwrap_or_default();
            let written = serde_json::from_slice::<serde_json::Value>(&text).unwrap_or_default();
            let credentials = written["credentials"].as_array().into_iter().flatten();
            let ended = credentials.filter_map(|spent| spent["ended"].as_array());
            if ended.flatten().count() == 3 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    patiently("the file of calls", three_are_written).await;
    gateway.signal("-9").await;
    gateway.end().await;

    let gateway = restart.start().await;
    let fourth = gateway.tasks(SUPPORT, "?page=4").await;

    fourth.assert_error("upstream_quota_exhausted");
    assert_eq!(control.requests(), 3);
}

#[tokio::test]
async fn after_a_restart_pages_are_cut_from_a_saved_range() {
    let restart = Restart::new().await;
    let wide = || restart.setup().with("[cache]\nassemble_pages = true");
    let base_url = restart.simulator.base_url();
    let gateway = wide().start_before(&base_url).await;
    gateway.tasks(SUPPORT, "?page=1").await;
    let old = gateway.tasks(SUPPORT, "?page=2").await.body;
    assert!(gateway.app.drain().await);
    let setup = wide();
    restart.simulator.stop().await;

    let gateway = setup.start_before(&base_url).await;
    let stale = gateway.tasks(SUPPORT, "?page=2").await;

    stale.assert_page(&old);
    let status = stale.cache_status();
    assert!(status.contains("detail=stale-if-error"), "{status}");
}
