//! A gateway in a process of its own, which is this program again.

use std::{fs::File, io::Write, net::SocketAddr, path::Path, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStderr, Command},
    time::timeout,
};

/// How long a start or an end may take on a busy machine; `drain_timeout` is 20 s.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where a running gateway listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub(crate) data: SocketAddr,
    pub(crate) admin: SocketAddr,
}

/// A gateway that is ready; it is killed when this is dropped.
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) addresses: Addresses,
}

impl Process {
    /// Starts it by the configuration in a file, and waits until it is ready; its log, which is JSON, goes on to `log`.
    ///
    /// The program has to hand `serve` on to the gateway's own command line.
    pub(crate) async fn start(config: &Path, mut log: File) -> Option<Self> {
        let program = std::env::current_exe().expect("this program is a file");
        let mut command = Command::new(program);
        command.args(["serve", "--config"]).arg(config).env_clear();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let child = command.kill_on_drop(true).spawn();
        let mut child = child.expect("this program runs");
        let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        let ready = timeout(PATIENCE, ready(&mut lines, &mut log)).await;
        let addresses = ready.ok().flatten()?;
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let _ = writeln!(log, "{line}");
            }
        });
        Some(Self { child, addresses })
    }

    /// Ends it by a signal, and waits for its end.
    ///
    /// # Errors
    ///
    /// Says that it did not end, or not well.
    pub(crate) async fn end(mut self, signal: &str) -> Result<(), String> {
        send(&self.child, signal);
        match timeout(PATIENCE, self.child.wait()).await {
            Ok(Ok(status)) if signal == "-KILL" || status.success() => Ok(()),
            Ok(end) => Err(format!("{signal} ends it with {end:?}")),
            Err(_) => Err(format!("{signal} does not end it")),
        }
    }
}

/// Sends a signal to a process that runs.
pub(crate) fn send(process: &Child, signal: &str) {
    let id = process.id().expect("the process runs").to_string();
    let sent = std::process::Command::new("kill")
        .args([signal, &id])
        .status();
    assert!(
        sent.is_ok_and(|status| status.success()),
        "{signal} is not sent"
    );
}

/// Reads the log up to the line that names the addresses.
async fn ready(lines: &mut Lines<BufReader<ChildStderr>>, log: &mut File) -> Option<Addresses> {
    loop {
        let line = lines.next_line().await.ok()??;
        let _ = writeln!(log, "{line}");
        if line.contains("gateway is ready") {
            let ready: serde_json::Value = serde_json::from_str(&line).ok()?;
            let address = |name: &str| ready[name].as_str()?.parse().ok();
            return Some(Addresses {
                data: address("server.listen")?,
                admin: address("admin.listen")?,
            });
        }
    }
}
