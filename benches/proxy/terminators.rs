//! The programs that are compared: each terminates TLS for the same backend, with the same certificate
//! and one thread.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{cpu, process::Daemon};

/// The names of the other programs.
pub(crate) const HAPROXY: &str = "HAProxy";
pub(crate) const HITCH: &str = "hitch";
/// The name of another build of this project.
pub(crate) const BEFORE: &str = "before";

/// How long a program has to listen.
const START: Duration = Duration::from_secs(10);

/// The files that all programs share, and the backend.
pub(crate) struct Setup {
    folder: TempDir,
    certificate: rustls::pki_types::CertificateDer<'static>,
    backend: SocketAddr,
}

impl Setup {
    pub(crate) fn make(backend: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        fs::write(folder.path().join("tls.crt"), &chain).unwrap();
        fs::write(folder.path().join("tls.key"), &key).unwrap();
        fs::write(folder.path().join("both.pem"), key + &chain).unwrap();
        Self {
            folder,
            certificate: made.cert.der().clone(),
            backend,
        }
    }

    pub(crate) fn certificate(&self) -> rustls::pki_types::CertificateDer<'static> {
        self.certificate.clone()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts a daemon for the sessions of proxies.
    fn daemon(&self) -> Daemon {
        let config = format!(
            "[listen]\napi = [\"tcp://127.0.0.1:0\", \"unix://{}\"]\nadmin = \"\"\n",
            self.path(&format!("{}.sock", free_port())).display()
        );
        fs::write(self.path("daemon.toml"), config).unwrap();
        Daemon::run(&self.path("daemon.toml"))
    }

    /// Starts a proxy of this project, and returns it with the port that it listens on.
    fn proxy(&self, binary: &Path, daemon: &Daemon) -> (Running, u16) {
        let mut child = Command::new(binary)
            .args(["proxy", "--listen", "tls://127.0.0.1:0"])
            .args(["--set", "listen.proxy_admin=\"\""])
            .args(["--backend", &format!("tcp://{}", self.backend)])
            .args(["--sessions", &daemon.unix, "--certificate"])
            .arg(self.path("tls.crt"))
            .arg("--key")
            .arg(self.path("tls.key"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = lines
            .map_while(Result::ok)
            .find_map(|line| {
                let address = line.strip_prefix("listening on tls://")?;
                let (address, _) = address.split_once(',')?;
                Some(address.parse::<SocketAddr>().unwrap().port())
            })
            .expect("the proxy listens");
        (Running(child), port)
    }

    /// Starts this project's proxies, which share one daemon.
    pub(crate) fn ours(&self, proxies: usize) -> Terminator {
        let binary = Path::new(env!("CARGO_BIN_EXE_tls-sessiond"));
        self.with_proxies("ours", binary, proxies)
    }

    /// Starts a proxy of another build, with a daemon of this one.
    pub(crate) fn before(&self, binary: &Path) -> Terminator {
        self.with_proxies(BEFORE, binary, 1)
    }

    fn with_proxies(&self, name: &'static str, binary: &Path, proxies: usize) -> Terminator {
        let daemon = self.daemon();
        let started = (0..proxies).map(|_| self.proxy(binary, &daemon));
        let (programs, ports) = started.unzip();
        // The proxies attach to the daemon in the background.
        thread::sleep(Duration::from_millis(300));
        Terminator {
            name,
            programs,
            daemon: Some(daemon),
            ports,
        }
    }

    /// Starts one HAProxy, or several, with tickets of their own.
    pub(crate) fn haproxy(&self, programs: usize) -> Terminator {
        let config = |port: u16| {
            format!(
                "global\n  nbthread 1\n  maxconn 5000\n\
                 defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 5m\n  timeout server 5m\n\
                 frontend tls\n  bind 127.0.0.1:{port} ssl crt {} curves X25519\n  default_backend plain\n\
                 backend plain\n  server one {}\n",
                self.path("both.pem").display(),
                self.backend
            )
        };
        let command = |config: &Path| {
            let mut command = Command::new(installed("haproxy"));
            command.args(["-q", "-db", "-f"]).arg(config);
            command
        };
        self.others(HAPROXY, programs, &config, &command)
    }

    /// Starts one hitch, or several, with tickets of their own.
    pub(crate) fn hitch(&self, programs: usize) -> Terminator {
        // hitch refuses to run its worker as root. The package of Debian adds this user.
        let user = match rustix::process::getuid().is_root() {
            true => "user = \"_hitch\"\n",
            false => "",
        };
        let config = |port: u16| {
            format!(
                "frontend = \"[127.0.0.1]:{port}\"\nbackend = \"[127.0.0.1]:{}\"\npem-file = \"{}\"\n\
                 workers = 1\necdh-curve = \"X25519\"\nkeepalive = 3600\nocsp-dir = \"\"\n{user}",
                self.backend.port(),
                self.path("both.pem").display(),
            )
        };
        let command = |config: &Path| {
            let mut command = Command::new(installed("hitch"));
            command.arg("--config").arg(config);
            command
        };
        self.others(HITCH, programs, &config, &command)
    }

    fn others(
        &self,
        name: &'static str,
        programs: usize,
        config: &dyn Fn(u16) -> String,
        command: &dyn Fn(&Path) -> Command,
    ) -> Terminator {
        let start = || {
            let port = free_port();
            let file = self.path(&format!("{port}.conf"));
            fs::write(&file, config(port)).unwrap();
            let mut command = command(&file);
            let child = command
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap_or_else(|err| panic!("{name}: {err}: run `tests/peers.sh bench`"));
            let begun = Instant::now();
            while TcpStream::connect(("127.0.0.1", port)).is_err() {
                assert!(begun.elapsed() < START, "{name} does not listen");
                thread::sleep(Duration::from_millis(5));
            }
            (Running(child), port)
        };
        let (programs, ports) = (0..programs).map(|_| start()).unzip();
        Terminator {
            name,
            programs,
            daemon: None,
            ports,
        }
    }
}

/// A program. Dropping it ends its processes.
struct Running(Child);

impl Running {
    /// Returns the ids of its processes.
    fn processes(&self) -> Vec<u32> {
        let mut ids = vec![self.0.id()];
        ids.extend(children(self.0.id()));
        ids
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // hitch's worker ends when its parent has ended.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A terminator of TLS: one program, or several that clients return to.
pub(crate) struct Terminator {
    pub(crate) name: &'static str,
    programs: Vec<Running>,
    daemon: Option<Daemon>,
    pub(crate) ports: Vec<u16>,
}

impl Terminator {
    /// Returns the CPU time of all its processes, with the daemon's.
    pub(crate) fn cpu(&self) -> f64 {
        self.processes().map(cpu::process).sum()
    }

    /// Returns the resident memory of all its processes, with the daemon's, in KiB.
    pub(crate) fn resident(&self) -> u64 {
        self.processes().map(resident).sum()
    }

    fn processes(&self) -> impl Iterator<Item = u32> {
        let programs = self.programs.iter().flat_map(Running::processes);
        programs.chain(self.daemon.iter().map(Daemon::id))
    }
}

fn children(parent: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    let list = list.expect("this kernel lists the children of a process");
    list.split_whitespace()
        .map(|id| id.parse().unwrap())
        .collect()
}

fn resident(id: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse().unwrap()
}

fn free_port() -> u16 {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    free.local_addr().unwrap().port()
}

/// Returns the path of a program of Debian. The PATH of a user may not have /usr/sbin.
fn installed(name: &str) -> PathBuf {
    let path = Path::new("/usr/sbin").join(name);
    if path.exists() { path } else { name.into() }
}
