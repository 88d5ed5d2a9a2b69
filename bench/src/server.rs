//! Starts the servers, each with its configuration from `bench/peers`, and stops them.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio_rustls::rustls::{ClientConfig, RootCertStore, pki_types::CertificateDer};

use crate::{
    load::{Result, Target, fetch, other},
    pages::{Key, LARGE},
    request::{CLIENT_KEY, Form},
    upstream::{self, Upstream},
    usage,
};

/// Longer than the slowest takes on a busy machine: Varnish compiles its configuration.
const START: Duration = Duration::from_secs(120);
const STOP: Duration = Duration::from_secs(5);
/// Each server's certificate and its key, in its working directory.
pub const CERTIFICATE: &str = "cert.pem";
pub const KEY: &str = "key.pem";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The program as shipped.
    Gateway,
    /// `cargo build --release`.
    Release,
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
            Self::Release => "release",
            Self::Nginx => "nginx",
            Self::NginxCopy => "nginx-copy",
            Self::Varnish => "varnish",
            Self::VarnishGzip => "varnish-gzip",
            Self::Haproxy => "haproxy",
            Self::Hyper(_) => "hyper",
        }
    }

    /// Whether it is a server with an upstream, or the limit server, which has its page from the start.
    pub fn is_cache(self) -> bool {
        !matches!(self, Self::Hyper(_))
    }

    pub fn is_gateway(self) -> bool {
        matches!(self, Self::Gateway | Self::Release)
    }

    /// Whether a client that accepts gzip gets it.
    pub fn codes(self) -> bool {
        !matches!(self, Self::Varnish | Self::Haproxy | Self::Hyper(_))
    }
}

/// The cores to measure on; `None` on a machine with only one.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    pub server_cpu: Option<u32>,
    pub own_cpu: Option<u32>,
}

impl Machine {
    /// The list of cores of a server, for `taskset`.
    fn list(self, workers: usize) -> Option<String> {
        let (server, own) = (self.server_cpu?, self.own_cpu?);
        Some(if workers == 1 {
            server.to_string()
        } else {
            format!("{server},{own}")
        })
    }

    /// Pins this process, with the load generator and the upstream: beside a server with one worker to its own core, else to both.
    ///
    /// # Errors
    ///
    /// Returns why it cannot be pinned.
    pub fn place_own(self, workers: usize) -> io::Result<()> {
        let own = || self.own_cpu.map(|own| own.to_string());
        let list = if workers == 1 {
            own()
        } else {
            self.list(workers)
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

/// A certificate of its own for 127.0.0.1, as PEM and for clients.
#[derive(Debug)]
pub struct Certificate {
    certificate: String,
    key: String,
    trusted: CertificateDer<'static>,
}

impl Certificate {
    /// # Errors
    ///
    /// Returns why it cannot be made.
    pub fn new() -> Result<Self> {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
        Ok(Self {
            certificate: made.cert.pem(),
            key: made.signing_key.serialize_pem(),
            trusted: made.cert.der().clone(),
        })
    }

    /// A client without sessions to resume.
    pub fn client(&self, protocol: Tls) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.trusted.clone()).expect("it was just made");
        let mut client = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.alpn_protocols = vec![protocol.name().into()];
        client.into()
    }
}

/// What servers run from.
#[derive(Debug)]
pub struct Bench {
    pub gateway: PathBuf,
    pub release: PathBuf,
    /// The folder for configurations and working files.
    pub work: PathBuf,
    pub machine: Machine,
    pub certificate: Certificate,
}

/// How a server runs.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub kind: Kind,
    pub workers: usize,
    /// For pages.
    pub cache_mib: u64,
    pub tls: Option<Tls>,
}

/// What is spoken over TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Tls {
    #[value(name = "http/1.1")]
    Http1,
    #[value(name = "h2")]
    Http2,
}

impl Tls {
    /// Its name in ALPN.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http/1.1",
            Self::Http2 => "h2",
        }
    }
}

/// A running server; it is stopped when dropped.
#[derive(Debug)]
pub struct Server {
    pub kind: Kind,
    pub target: Target,
    /// The time from its start to its first page.
    pub started_in: Duration,
    child: Child,
    cache: PathBuf,
}

impl Bench {
    /// Starts a server and waits until it responds.
    ///
    /// # Errors
    ///
    /// Returns why it does not run.
    pub async fn start(&self, setup: Setup, upstream: &Upstream) -> Result<Server> {
        let kind = setup.kind;
        let work = self.work.join(kind.name());
        let cache = cache_folder(&work);
        for folder in [&work, &cache] {
            let _ = fs::remove_dir_all(folder);
            fs::create_dir_all(folder)?;
        }
        let Certificate {
            certificate, key, ..
        } = &self.certificate;
        fs::write(work.join(CERTIFICATE), certificate)?;
        fs::write(work.join(KEY), key)?;
        fs::write(work.join("both.pem"), format!("{certificate}{key}"))?;
        let address = free_address()?;
        let filled = Filled {
            work: &work,
            cache: &cache,
            port: address.port(),
            upstream_port: if kind.is_gateway() {
                upstream.unpod.port()
            } else {
                upstream.better.port()
            },
            setup,
        };
        let mut command = self.command(&filled)?;
        // Access logs too, so that no disk is measured.
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let http2 = setup.tls == Some(Tls::Http2);
        let tls = setup.tls.map(|protocol| self.certificate.client(protocol));
        let began = Instant::now();
        let mut server = Server {
            kind,
            target: Target {
                address,
                tls,
                http2,
            },
            started_in: Duration::ZERO,
            child: command.spawn()?,
            cache,
        };
        server.await_first_page().await?;
        server.started_in = began.elapsed();
        Ok(server)
    }

    fn command(&self, filled: &Filled<'_>) -> io::Result<Command> {
        let Setup {
            kind,
            workers,
            cache_mib,
            tls,
        } = filled.setup;
        let file = |name: &str, text: &str| -> io::Result<PathBuf> {
            let path = filled.work.join(name);
            fs::write(&path, filled.fill(text)?)?;
            Ok(path)
        };
        let mut command;
        match kind {
            Kind::Gateway | Kind::Release => {
                let config = file("gateway.toml", include_str!("../peers/gateway.toml"))?;
                let program = match kind {
                    Kind::Gateway => &self.gateway,
                    _ => &self.release,
                };
                command = self.on_its_cores(workers, program);
                command.arg("serve").arg("--config").arg(config);
            }
            Kind::Nginx | Kind::NginxCopy => {
                let config = file("nginx.conf", include_str!("../peers/nginx.conf"))?;
                command = self.on_its_cores(workers, "nginx");
                command.arg("-p").arg(filled.work).arg("-c").arg(config);
            }
            Kind::Varnish | Kind::VarnishGzip => {
                let config = file("varnish.vcl", include_str!("../peers/varnish.vcl"))?;
                command = self.on_its_cores(workers, "varnishd");
                command.args(["-F", "-j", "none", "-T", "none", "-a"]);
                command.arg(format!("127.0.0.1:{}", filled.port));
                command.arg("-f").arg(config);
                command.arg("-n").arg(filled.work.join("instance"));
                command.args(["-s", &format!("malloc,{cache_mib}m")]);
                command.args(["-p", "timeout_idle=75"]);
            }
            Kind::Haproxy => {
                let config = file("haproxy.cfg", include_str!("../peers/haproxy.cfg"))?;
                command = self.on_its_cores(workers, "haproxy");
                command.arg("-f").arg(config);
            }
            Kind::Hyper(fixed) => {
                command = self.on_its_cores(workers, std::env::current_exe()?);
                command.args(["limit", "--port", &filled.port.to_string()]);
                command.args(["--workers", &workers.to_string()]);
                command.args(["--page-size", &fixed.page_size.to_string()]);
                command.args(fixed.gzip.then_some("--gzip"));
                command.args(fixed.not_modified.then_some("--not-modified"));
                command.args(tls.iter().flat_map(|protocol| ["--tls", protocol.name()]));
            }
        }
        command.current_dir(filled.work);
        Ok(command)
    }

    /// A command that runs on the servers' cores and is killed with the benchmark.
    fn on_its_cores(&self, workers: usize, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM"]);
        if let Some(list) = self.machine.list(workers) {
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
    port: u16,
    upstream_port: u16,
    setup: Setup,
}

impl Filled<'_> {
    fn fill(&self, text: &str) -> io::Result<String> {
        let Setup { kind, .. } = self.setup;
        let keeps_copies = kind == Kind::NginxCopy;
        let work = self.work.display();
        let if_tls = |text: String| match self.setup.tls {
            Some(_) => text,
            None => String::new(),
        };
        let values = [
            ("@PORT@", self.port.to_string()),
            ("@ADMIN_PORT@", free_address()?.port().to_string()),
            ("@UPSTREAM_PORT@", self.upstream_port.to_string()),
            ("@UPSTREAM_TOKEN@", upstream::TOKEN.to_owned()),
            ("@KEY@", CLIENT_KEY.to_owned()),
            ("@WORK@", work.to_string()),
            ("@CACHE@", self.cache.display().to_string()),
            ("@CACHE_MIB@", self.setup.cache_mib.to_string()),
            ("@WORKERS@", self.setup.workers.to_string()),
            ("@GZIP@", if keeps_copies { "off" } else { "on" }.to_owned()),
            (
                "@CODING@",
                if keeps_copies { "$coding" } else { "" }.to_owned(),
            ),
            ("@DO_GZIP@", (kind == Kind::VarnishGzip).to_string()),
            (
                "@GATEWAY_TLS@",
                if_tls(format!(
                    "tls = {{ cert_file = \"{work}/cert.pem\", key_file = \"{work}/key.pem\" }}"
                )),
            ),
            ("@NGINX_TLS@", if_tls("ssl http2".to_owned())),
            (
                "@HAPROXY_TLS@",
                if_tls(format!("ssl crt {work}/both.pem alpn h2,http/1.1")),
            ),
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

    /// CPU time of its processes so far.
    pub fn cpu(&self) -> Duration {
        usage::cpu(&self.family())
    }

    /// Bytes it holds: resident memory, and for nginx the files of its cache, which are in memory too.
    pub fn memory(&self) -> u64 {
        usage::resident(&self.family()) + files_under(&self.cache)
    }

    async fn await_first_page(&mut self) -> Result<()> {
        // The limit server has one page; any path will do.
        let request = Form::new(LARGE).request(&self.target, Key(0));
        let deadline = Instant::now() + START;
        loop {
            let reply = fetch(&self.target, request.clone()).await;
            if reply.is_ok_and(|(reply, _)| reply.status().as_u16() < 500) {
                return Ok(());
            }
            let name = self.kind.name();
            if let Some(status) = self.child.try_wait()? {
                return Err(other(format!("{name} ended with {status}")));
            }
            if Instant::now() > deadline {
                return Err(other(format!("{name} gives no page")));
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
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
