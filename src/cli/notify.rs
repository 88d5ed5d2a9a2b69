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

use rustix::time::{ClockId, clock_gettime};
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
    fn message(self) -> String {
        match self {
            Self::Ready => "READY=1\nSTATUS=serving".to_owned(),
            // By the time, systemd tells this reload from the one before (sd_notify(3)).
            Self::Reloading => format!(
                "RELOADING=1\nMONOTONIC_USEC={}\nSTATUS=reloading",
                monotonic_usec()
            ),
            Self::ReloadRefused => {
                "READY=1\nSTATUS=serving; the last reload was refused, the log says why".to_owned()
            }
            Self::Stopping => "STOPPING=1\nSTATUS=draining".to_owned(),
        }
    }
}

fn monotonic_usec() -> u128 {
    let since = Duration::try_from(clock_gettime(ClockId::Monotonic));
    since.unwrap_or_default().as_micros()
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
        let told = self
            .0
            .iter()
            .try_for_each(|to| to.send(progress.message().as_bytes()));
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
