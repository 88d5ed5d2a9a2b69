//! A bound listener: a TCP port, or a Unix socket and its file.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use rustix::io::Errno;
use tokio::net::{TcpListener, TcpSocket, UnixListener, UnixSocket, UnixStream};

use super::Connection;
use crate::{config::value::ListenAddress, peer::Peer};

/// Connections that wait to be accepted: a burst beyond it costs its clients a second each. The kernel caps it at `net.core.somaxconn`.
const BACKLOG: u32 = 4096;

/// A bound listener.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    /// The file goes first: until the listener is closed no other file can have its inode.
    Unix(SocketFile, UnixListener),
}

impl Listener {
    /// Binds `address`. A socket file that nobody listens on any more is replaced; any other file stays.
    ///
    /// # Errors
    ///
    /// Returns the system's error, as for an address in use, or says that the path names a file that is no socket.
    pub async fn bind(address: &ListenAddress) -> io::Result<Self> {
        match address {
            ListenAddress::Tcp(address) => bind_tcp(*address).map(Self::Tcp),
            ListenAddress::Unix(path) => bind_unix(path).await,
        }
    }

    /// Where it listens; a port of 0 shows as the one it got.
    ///
    /// # Errors
    ///
    /// Returns the system's error.
    pub fn address(&self) -> io::Result<ListenAddress> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(ListenAddress::Tcp),
            Self::Unix(file, _) => Ok(ListenAddress::Unix(file.path.clone())),
        }
    }

    pub(super) async fn accept(&self) -> io::Result<(Box<dyn Connection>, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // Fails on a connection that is reset already; reading from it will say so.
                let _ = stream.set_nodelay(true);
                Ok((Box::new(stream), Peer::at(address.ip())))
            }
            Self::Unix(_, listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Box::new(stream), Peer::UnixSocket))
            }
        }
    }
}

/// As `TcpListener::bind`, with our backlog.
fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn bind_unix(path: &Path) -> io::Result<Listener> {
    remove_abandoned(path).await?;
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    let file = SocketFile::of(path)?;
    Ok(Listener::Unix(file, socket.listen(BACKLOG)?))
}

/// Removes a socket that nobody listens on, as a process that was killed leaves behind.
async fn remove_abandoned(path: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !metadata.file_type().is_socket() {
        // A link too: what it leads to is another's to remove.
        let why = "there is a file of this name that is no socket; it is left alone";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
    }
    let refused = UnixStream::connect(path).await;
    if refused.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
        fs::remove_file(path)?;
    }
    Ok(())
}

/// The file of a Unix socket that we bound; it is removed at the end unless another stands in its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }

    fn is_still_ours(&self) -> bool {
        fs::symlink_metadata(&self.path)
            .is_ok_and(|found| found.dev() == self.device && found.ino() == self.inode)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_still_ours() {
            // Somebody else may have taken it away meanwhile.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether an error of `accept` is that of one connection, or of the moment: the next one can be accepted at once.
///
/// Those that accept(2) names. Any other, such as a lack of descriptors or memory, would come again at once.
pub(super) fn concerns_one_connection(error: &io::Error) -> bool {
    const OF_ONE: &[Errno] = &[
        Errno::AGAIN,
        Errno::CONNABORTED,
        Errno::CONNRESET,
        Errno::HOSTDOWN,
        Errno::HOSTUNREACH,
        Errno::INTR,
        Errno::NETDOWN,
        Errno::NETUNREACH,
        #[cfg(target_os = "linux")]
        Errno::NONET,
        Errno::NOPROTOOPT,
        Errno::OPNOTSUPP,
        // A firewall's word.
        Errno::PERM,
        Errno::PROTO,
        Errno::TIMEDOUT,
    ];
    Errno::from_io_error(error).is_some_and(|error| OF_ONE.contains(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepting_pauses_for_want_of_descriptors_and_memory_alone() {
        use io::Error;
        let of_one = |errno: Errno| concerns_one_connection(&Error::from(errno));
        for errno in [
            Errno::CONNABORTED,
            Errno::PROTO,
            Errno::NETDOWN,
            Errno::HOSTUNREACH,
            Errno::NETUNREACH,
            Errno::NOPROTOOPT,
            Errno::HOSTDOWN,
            Errno::OPNOTSUPP,
            Errno::PERM,
            Errno::TIMEDOUT,
            Errno::INTR,
        ] {
            assert!(of_one(errno), "{errno:?}");
        }
        for errno in [
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOBUFS,
            Errno::NOMEM,
            Errno::BADF,
            Errno::INVAL,
        ] {
            assert!(!of_one(errno), "{errno:?}");
        }
        assert!(!concerns_one_connection(&Error::other("of no system")));
    }

    fn unix(path: &Path) -> ListenAddress {
        ListenAddress::Unix(path.to_owned())
    }

    #[tokio::test]
    async fn whatever_is_no_socket_is_left_alone_and_refused() {
        let directory = tempfile::tempdir().unwrap();
        let named = |name: &str| directory.path().join(name);
        fs::write(named("file"), "a snapshot").unwrap();
        fs::create_dir(named("directory")).unwrap();
        drop(std::os::unix::net::UnixListener::bind(named("socket")).unwrap());
        for (link, target) in [
            ("to-file", "file"),
            ("to-socket", "socket"),
            ("to-none", "none"),
        ] {
            std::os::unix::fs::symlink(named(target), named(link)).unwrap();
        }
        for name in ["file", "directory", "to-file", "to-socket", "to-none"] {
            let before = fs::symlink_metadata(named(name)).unwrap().ino();

            let refused = Listener::bind(&unix(&named(name))).await.unwrap_err();

            assert!(
                refused.to_string().contains("no socket"),
                "{name}: {refused}"
            );
            let after = fs::symlink_metadata(named(name)).unwrap().ino();
            assert_eq!(after, before, "{name}");
        }
        assert_eq!(fs::read(named("file")).unwrap(), b"a snapshot");
        assert!(named("socket").exists());
    }

    #[tokio::test]
    async fn a_socket_that_somebody_listens_on_is_in_use() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let _first = Listener::bind(&unix(&path)).await.unwrap();
        let second = Listener::bind(&unix(&path)).await.unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn what_stands_in_the_place_of_our_socket_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let first = Listener::bind(&unix(&path)).await.unwrap();
        fs::remove_file(&path).unwrap();
        let successor = Listener::bind(&unix(&path)).await.unwrap();

        drop(first);
        assert!(UnixStream::connect(&path).await.is_ok());

        fs::remove_file(&path).unwrap();
        fs::write(&path, "a file").unwrap();
        drop(successor);
        assert_eq!(fs::read(&path).unwrap(), b"a file");
    }

    #[tokio::test]
    async fn a_burst_of_connections_waits_in_the_backlog() {
        let address = ListenAddress::Tcp("127.0.0.1:0".parse().unwrap());
        let listener = Listener::bind(&address).await.unwrap();
        let ListenAddress::Tcp(address) = listener.address().unwrap() else {
            panic!("a port was bound");
        };
        // Beyond the 128 of old, and far below any `somaxconn`: nobody accepts, so each must find its place there.
        let mut waiting = Vec::new();
        for _ in 0..300 {
            waiting.push(tokio::net::TcpStream::connect(address).await.unwrap());
        }
        let queued = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
        let port = format!(":{:04X} ", address.port());
        let ours = queued
            .lines()
            .find(|line| line.contains(&port) && line.contains(" 0A "));
        // For a listening socket the receive queue is how many wait.
        if let Some(line) = ours {
            assert!(line.contains(":0000012C "), "{line}");
        }
        assert_eq!(waiting.len(), 300);
    }
}
