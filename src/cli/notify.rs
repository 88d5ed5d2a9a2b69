//! Notifies the service manager by systemd's protocol for `Type=notify`: one datagram for each change, to `NOTIFY_SOCKET`.

use std::{
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use tracing::warn;

use crate::config;

/// How long to wait for a manager that does not read its socket.
const PATIENCE: Duration = Duration::from_secs(1);

/// The state of the service, as `systemctl status` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Both listeners are served.
    Ready,
    Reloading,
    /// Ready as before: the old configuration stays.
    ReloadRefused,
    Stopping,
}

impl Progress {
    fn message(self) -> &'static [u8] {
        match self {
            Self::Ready => b"READY=1\nSTATUS=serving",
            Self::Reloading => b"RELOADING=1\nSTATUS=reloading",
            Self::ReloadRefused => {
                b"READY=1\nSTATUS=serving; the last reload was refused, the log says why"
            }
            Self::Stopping => b"STOPPING=1\nSTATUS=draining",
        }
    }
}

/// The service manager that wants to be notified, if any.
#[derive(Debug)]
pub(super) struct ServiceManager(Option<Notifier>);

#[derive(Debug)]
struct Notifier {
    socket: UnixDatagram,
    manager: SocketAddr,
}

impl ServiceManager {
    /// The one of the environment. A failure is logged, since the manager may believe that the service never starts.
    pub(super) fn of_environment() -> Self {
        let notifier = config::notify_socket().map(|name| Notifier::to(&name));
        Self(notifier.and_then(|made| made.map_err(|error| cannot_be_told(&error)).ok()))
    }

    pub(super) fn tell(&self, progress: Progress) {
        let told = self.0.iter().try_for_each(|to| to.send(progress.message()));
        if let Err(error) = told {
            cannot_be_told(&error);
        }
    }
}

fn cannot_be_told(error: &io::Error) {
    warn!(%error, "cannot notify the service manager");
}

impl Notifier {
    /// A name that begins with `@` is an abstract socket, any other a path.
    fn to(name: &OsStr) -> io::Result<Self> {
        let manager = match name.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { socket, manager })
    }

    fn send(&self, message: &[u8]) -> io::Result<()> {
        self.socket.send_to_addr(message, &self.manager).map(drop)
    }
}
