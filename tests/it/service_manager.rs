//! What a service manager is told: systemd's protocol for `Type=notify`, over a socket of the test's own.

use std::{
    ffi::OsString,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram as StdUnixDatagram},
    },
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::{
    net::{UnixDatagram, UnixStream},
    process::Child,
};

use crate::{
    gateway::{ConfigFile, patiently, setup},
    process, raw,
};

/// A manager that waits at a socket, and the value of `NOTIFY_SOCKET` that leads to it.
struct Manager {
    socket: UnixDatagram,
    address: OsString,
}

impl Manager {
    fn at_path(path: &Path) -> Self {
        Self {
            socket: UnixDatagram::bind(path).unwrap(),
            address: path.into(),
        }
    }

    /// At an abstract address, which is no file.
    fn at_name(name: &str) -> Self {
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let socket = StdUnixDatagram::bind_addr(&address).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self {
            socket: UnixDatagram::from_std(socket).unwrap(),
            address: format!("@{name}").into(),
        }
    }

    /// The next datagram's assignments, without what is only for eyes.
    async fn told(&self) -> String {
        let mut datagram = [0; 512];
        let received = patiently("a datagram", self.socket.recv(&mut datagram)).await;
        let text = std::str::from_utf8(&datagram[..received.unwrap()]).unwrap();
        let (status, assignments): (Vec<_>, Vec<_>) = text
            .lines()
            .partition(|assignment| assignment.starts_with("STATUS="));
        assert_eq!(status.len(), 1, "{text}");
        let times = assignments
            .iter()
            .filter_map(|assignment| assignment.strip_prefix("MONOTONIC_USEC="));
        for time in times {
            let passed = time.parse::<u64>().unwrap();
            assert!((1..=monotonic_usec()).contains(&passed), "{passed}");
        }
        let what = assignments
            .iter()
            .map(|assignment| match assignment.split_once('=') {
                Some(("MONOTONIC_USEC", _)) => "MONOTONIC_USEC",
                _ => assignment,
            });
        what.collect::<Vec<_>>().join("\n")
    }
}

/// The clock that systemd compares with.
fn monotonic_usec() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000 + u64::try_from(now.tv_nsec).unwrap() / 1000
}

/// `serve` under a manager, its listeners at sockets beside its configuration.
struct Service {
    child: Child,
    file: ConfigFile,
}

impl Service {
    fn start(manager: &Manager) -> Self {
        let file = ConfigFile::new("");
        file.rewrite(&config(&file, "30s"));
        let child = process::command(&["serve", "--config", &file.path()])
            .env("NOTIFY_SOCKET", &manager.address)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, file }
    }

    /// Reloads by SIGHUP with another lifetime.
    async fn reload(&self, ttl: &str) {
        self.file.rewrite(&config(&self.file, ttl));
        process::signal(&self.child, "-HUP").await;
    }

    async fn answers(&self, socket: &str, path: &str) -> bool {
        let socket = beside(&self.file, socket);
        let mut stream = UnixStream::connect(socket).await.unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
        let answer = raw::exchange(&mut stream, request.as_bytes()).await;
        answer.starts_with(b"HTTP/1.1 200 ")
    }
}

fn beside(file: &ConfigFile, name: &str) -> PathBuf {
    Path::new(&file.path()).with_file_name(name)
}

fn config(file: &ConfigFile, ttl: &str) -> String {
    let listen = |name| format!("unix:{}", beside(file, name).display());
    let (data, admin) = (listen("data"), listen("admin"));
    let text = format!(
        "[server]\nlisten = \"{data}\"\n[admin]\nlisten = \"{admin}\"\n[cache]\nttl = \"{ttl}\""
    );
    setup().with(&text).toml("http://127.0.0.1:9")
}

async fn is_told_everything(manager: Manager) {
    let mut service = Service::start(&manager);
    assert_eq!(manager.told().await, "READY=1");
    assert!(service.answers("data", "/healthz").await);
    assert!(service.answers("admin", "/readyz").await);

    for ttl in ["1m", "no duration"] {
        service.reload(ttl).await;
        assert_eq!(manager.told().await, "RELOADING=1\nMONOTONIC_USEC");
        // A refused configuration changes nothing, so the service is ready as before.
        assert_eq!(manager.told().await, "READY=1");
    }

    process::signal(&service.child, "-TERM").await;
    assert_eq!(manager.told().await, "STOPPING=1");
    let status = patiently("its end", service.child.wait()).await.unwrap();
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn a_manager_at_a_path_is_told_how_far_the_service_is() {
    let folder = tempfile::tempdir().unwrap();
    is_told_everything(Manager::at_path(&folder.path().join("notify"))).await;
}

#[tokio::test]
async fn a_manager_at_an_abstract_name_is_told_how_far_the_service_is() {
    let name = format!("unpod-gateway-test-{}", std::process::id());
    is_told_everything(Manager::at_name(&name)).await;
}

#[tokio::test]
async fn a_manager_that_is_gone_costs_the_service_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = Manager::at_path(&path);
    let mut service = Service::start(&manager);
    assert_eq!(manager.told().await, "READY=1");
    drop(manager);

    service.reload("1m").await;
    assert!(service.answers("data", "/healthz").await);
    process::signal(&service.child, "-TERM").await;
    let status = patiently("its end", service.child.wait()).await.unwrap();
    assert_eq!(status.code(), Some(0));
}
