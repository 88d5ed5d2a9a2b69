//! Starts the servers, each with its configuration from `bench/peers`, and stops them.

use std::{
    fs::{self, File},
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    client,
    pages::{Key, LARGE},
    request::{CLIENT_KEY, Form},
    upstream::{self, Upstream},
    usage,
};

/// Longer than the slowest takes on a busy machine: Varnish compiles its configuration, hyper-map compresses its pages.
const START: Duration = Duration::from_secs(120);
const STOP: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Gateway,
    /// Compresses on the fly.
    Nginx,
    /// Stores a compressed page in addition to the plain one.
    NginxCopy,
    Varnish,
    /// Stores only the compressed page.
    VarnishGzip,
    Haproxy,
    /// Bare hyper: the same response to every request.
    Hyper(Fixed),
    /// Hyper with a key check and a plain sharded map.
    HyperMap {
        page_size: u32,
        keys: u64,
        gzip: bool,
    },
}

/// The response of a bare hyper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixed {
    pub page_size: u32,
    pub gzip: bool,
    pub not_modified: bool,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Nginx => "nginx",
            Self::NginxCopy => "nginx-copy",
            Self::Varnish => "varnish",
            Self::VarnishGzip => "varnish-gzip",
            Self::Haproxy => "haproxy",
            Self::Hyper(_) => "hyper",
            Self::HyperMap { .. } => "hyper-map",
        }
    }

    /// Whether it is a server with an upstream, or a limit server that has its pages from the start.
    pub fn is_cache(self) -> bool {
        match self {
            Self::Gateway
            | Self::Nginx
            | Self::NginxCopy
            | Self::Varnish
            | Self::VarnishGzip
            | Self::Haproxy => true,
            Self::Hyper(_) | Self::HyperMap { .. } => false,
        }
    }

    /// Whether concurrent misses of a page are merged into one call.
    pub fn collapses(self) -> bool {
        self.is_cache() && self != Self::Haproxy
    }

    /// Whether a client that accepts gzip gets it.
    pub fn codes(self) -> bool {
        match self {
            Self::Gateway | Self::Nginx | Self::NginxCopy | Self::VarnishGzip => true,
            Self::Varnish | Self::Haproxy | Self::Hyper(_) | Self::HyperMap { .. } => false,
        }
    }
}

/// The cores to measure on; `None` on a machine with only one.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    pub server_cpu: Option<u32>,
    pub own_cpu: Option<u32>,
}

/// How many cores, and workers, a server gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cores {
    One,
    /// Both, shared with the load generator.
    Two,
}

impl Cores {
    fn workers(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
        }
    }
}

impl Machine {
    /// The list of cores of a server, for `taskset`.
    fn list(self, cores: Cores) -> Option<String> {
        let one = self.server_cpu?;
        match (cores, self.own_cpu) {
            (Cores::Two, Some(own)) => Some(format!("{one},{own}")),
            (Cores::One | Cores::Two, _) => Some(one.to_string()),
        }
    }

    /// Pins this process, with the load generator and the upstream, to its own core, or to both if the server has two.
    ///
    /// # Errors
    ///
    /// Returns why it cannot be pinned.
    pub fn place_own(self, cores: Cores) -> io::Result<()> {
        let list = match cores {
            Cores::One => self.own_cpu.map(|own| own.to_string()),
            Cores::Two => self.list(cores),
        };
        let Some(list) = list else {
            return Ok(());
        };
        let pid = std::process::id().to_string();
        let placed = Command::new("taskset")
            .args(["-a", "-c", "-p", &list, &pid])
            .stdout(Stdio::null())
            .status()?;
        if placed.success() {
            return Ok(());
        }
        Err(io::Error::other(format!("taskset ended with {placed}")))
    }
}

/// Where servers run and log to.
#[derive(Clone, Debug)]
pub struct Bench {
    pub gateway: PathBuf,
    /// The folder for configurations, logs and working files.
    pub work: PathBuf,
    pub machine: Machine,
    /// Whether logs go to files; otherwise to `/dev/null`, so that no disk is measured.
    pub keep_logs: bool,
}

/// A running server; it is stopped when dropped.
#[derive(Debug)]
pub struct Server {
    pub kind: Kind,
    pub address: SocketAddr,
    /// The time from its start to its first page.
    pub started_in: Duration,
    child: Child,
    log: PathBuf,
    cache: PathBuf,
}

impl Bench {
    /// Starts a server with this many MiB for pages, and waits until it responds.
    ///
    /// # Errors
    ///
    /// Returns why it does not run.
    pub fn start(
        &self,
        kind: Kind,
        cores: Cores,
        cache_mib: u64,
        upstream: &Upstream,
    ) -> io::Result<Server> {
        // The same server may run once on one core and once on two.
        let name = format!("{}-{}", kind.name(), cores.workers());
        let work = self.work.join(name);
        let cache = cache_folder(&work);
        for folder in [&work, &cache] {
            let _ = fs::remove_dir_all(folder);
            fs::create_dir_all(folder)?;
        }
        let address = free_address()?;
        let log = if self.keep_logs {
            work.join("access.log")
        } else {
            PathBuf::from("/dev/null")
        };
        let filled = Filled {
            work: &work,
            cache: &cache,
            log: &log,
            port: address.port(),
            upstream_port: match kind {
                Kind::Gateway => upstream.unpod.port(),
                _ => upstream.better.port(),
            },
            cache_mib,
            cores,
        };
        let mut command = self.command(kind, &filled)?;
        let output = File::options().append(true).create(true).open(&log)?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let began = Instant::now();
        let child = command.spawn()?;
        let mut server = Server {
            kind,
            address,
            started_in: Duration::ZERO,
            child,
            log,
            cache,
        };
        server.await_first_page()?;
        server.started_in = began.elapsed();
        Ok(server)
    }

    fn command(&self, kind: Kind, filled: &Filled<'_>) -> io::Result<Command> {
        let file = |name: &str, text: &str| -> io::Result<PathBuf> {
            let path = filled.work.join(name);
            fs::write(&path, filled.fill(text, kind)?)?;
            Ok(path)
        };
        let mut command = match kind {
            Kind::Gateway => {
                let config = file("gateway.toml", include_str!("../peers/gateway.toml"))?;
                let mut command = self.on_its_cores(filled.cores, &self.gateway);
                command.arg("serve").arg("--config").arg(config);
                command
            }
            Kind::Nginx | Kind::NginxCopy => {
                let config = file("nginx.conf", include_str!("../peers/nginx.conf"))?;
                let mut command = self.on_its_cores(filled.cores, "nginx");
                command.arg("-p").arg(filled.work).arg("-c").arg(config);
                command
            }
            Kind::Varnish | Kind::VarnishGzip => {
                let config = file("varnish.vcl", include_str!("../peers/varnish.vcl"))?;
                let mut command = self.on_its_cores(filled.cores, "varnishd");
                command.args(["-F", "-j", "none", "-T", "none", "-a"]);
                command.arg(filled.address()).arg("-f").arg(config);
                command.arg("-n").arg(filled.work.join("instance"));
                command.args(["-s", &format!("malloc,{}m", filled.cache_mib)]);
                command.args(["-p", "timeout_idle=75"]);
                command
            }
            Kind::Haproxy => {
                let config = file("haproxy.cfg", include_str!("../peers/haproxy.cfg"))?;
                let mut command = self.on_its_cores(filled.cores, "haproxy");
                command.arg("-f").arg(config);
                command
            }
            Kind::Hyper(fixed) => {
                let mut command = self.limit(filled, fixed.page_size, fixed.gzip)?;
                if fixed.not_modified {
                    command.arg("--not-modified");
                }
                command
            }
            Kind::HyperMap {
                page_size,
                keys,
                gzip,
            } => {
                let mut command = self.limit(filled, page_size, gzip)?;
                command.arg("--keys").arg(keys.to_string());
                command
            }
        };
        command.current_dir(filled.work);
        Ok(command)
    }

    fn limit(&self, filled: &Filled<'_>, page_size: u32, gzip: bool) -> io::Result<Command> {
        let mut command = self.on_its_cores(filled.cores, std::env::current_exe()?);
        command.args(["limit", "--port", &filled.port.to_string()]);
        command.args(["--page-size", &page_size.to_string()]);
        if gzip {
            command.arg("--gzip");
        }
        Ok(command)
    }

    /// A command that runs on the servers' cores and is killed with the benchmark.
    fn on_its_cores(&self, cores: Cores, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM"]);
        if let Some(list) = self.machine.list(cores) {
            command.args(["taskset", "-c", &list]);
        }
        command.arg(program.as_ref());
        command
    }
}

/// The values for the placeholders of a configuration.
struct Filled<'a> {
    work: &'a Path,
    cache: &'a Path,
    log: &'a Path,
    port: u16,
    upstream_port: u16,
    cache_mib: u64,
    cores: Cores,
}

impl Filled<'_> {
    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn fill(&self, text: &str, kind: Kind) -> io::Result<String> {
        let keeps_copies = kind == Kind::NginxCopy;
        let values = [
            ("@PORT@", self.port.to_string()),
            ("@ADMIN_PORT@", free_address()?.port().to_string()),
            ("@UPSTREAM_PORT@", self.upstream_port.to_string()),
            ("@UPSTREAM_TOKEN@", upstream::TOKEN.to_owned()),
            ("@KEY@", CLIENT_KEY.to_owned()),
            ("@WORK@", self.work.display().to_string()),
            ("@CACHE@", self.cache.display().to_string()),
            ("@LOG@", self.log.display().to_string()),
            ("@CACHE_MIB@", self.cache_mib.to_string()),
            ("@WORKERS@", self.cores.workers().to_string()),
            (
                "@GZIP@",
                (if keeps_copies { "off" } else { "on" }).to_owned(),
            ),
            (
                "@CODING@",
                (if keeps_copies { "$coding" } else { "" }).to_owned(),
            ),
            ("@DO_GZIP@", (kind == Kind::VarnishGzip).to_string()),
        ];
        let mut filled = text.to_owned();
        for (placeholder, value) in values {
            filled = filled.replace(placeholder, &value);
        }
        Ok(filled)
    }
}

impl Server {
    /// Its processes.
    pub fn family(&self) -> Vec<u32> {
        usage::family(self.child.id())
    }

    /// Its log so far; `None` without a log file, and for Varnish, which logs to shared memory.
    pub fn logged(&self) -> Option<String> {
        let keeps_none = matches!(self.kind, Kind::Varnish | Kind::VarnishGzip);
        let is_kept = !keeps_none && self.log.is_file();
        is_kept.then(|| fs::read_to_string(&self.log).unwrap_or_default())
    }

    /// Bytes of its pages: resident memory, and for nginx the files of its cache, which are in memory too.
    pub fn memory(&self) -> u64 {
        usage::resident(&self.family()) + files_under(&self.cache)
    }

    fn await_first_page(&mut self) -> io::Result<()> {
        // A limit server has pages of one size; any path will do.
        let form = Form::new(self.address, LARGE);
        let authorization = format!("Token {CLIENT_KEY}");
        let path = form.path(Key(0));
        let fields = [("Authorization", authorization.as_str())];
        let deadline = Instant::now() + START;
        loop {
            if client::get(self.address, &path, &fields).is_ok_and(|reply| reply.status < 500) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                let name = self.kind.name();
                return Err(io::Error::other(format!("{name} ended with {status}")));
            }
            if Instant::now() > deadline {
                let name = self.kind.name();
                return Err(io::Error::other(format!("{name} gives no page")));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Server {
    /// Terminates it, so that it stops its own processes, and kills it if necessary.
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let pid = self.child.id().to_string();
            let _ = Command::new("kill").args(["-TERM", &pid]).status();
        }
        let deadline = Instant::now() + STOP;
        while let Ok(None) = self.child.try_wait() {
            if Instant::now() > deadline {
                let _ = self.child.kill();
            }
            thread::sleep(Duration::from_millis(5));
        }
        let _ = fs::remove_dir_all(&self.cache);
    }
}

/// In memory if there is such a file system, so that nginx's disk is not measured.
fn cache_folder(work: &Path) -> PathBuf {
    let shared_memory = Path::new("/dev/shm");
    if shared_memory.is_dir() {
        let name = work.file_name().unwrap_or_default().to_string_lossy();
        shared_memory.join(format!("gateway-bench-{}-{name}", std::process::id()))
    } else {
        work.join("cache")
    }
}

/// A free port.
fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

fn files_under(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => files_under(&entry.path()),
            // A file takes whole blocks.
            Ok(meta) => meta.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}
