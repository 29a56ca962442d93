//! The daemon, the backends and the proxies. They are started once for all tests of this folder.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Child as Process,
    sync::OnceLock,
    thread::sleep,
    time::{Duration, Instant},
};

use super::{
    child::{Child, remove_at_the_end},
    lane::LANES,
    peers, script,
};
use crate::{
    pki::{Authority, Leaf},
    process::PATIENCE,
};

/// How many proxies share the daemon.
pub(super) const PROXIES: usize = 3;

/// The server behind a lane.
#[derive(Clone, Copy)]
pub(super) enum Backend {
    /// nginx, HTTP/1.1. Connections stay open.
    Nginx,
    /// nginx, HTTP/1.1. It ends each connection after one page.
    NginxOnce,
    /// nginx, HTTP/2 without TLS.
    NginxHttp2,
    /// Python's http.server, which ends each connection after one page.
    Python,
    /// WebSockets in Node.
    Echo,
}

/// A running proxy.
pub(super) struct Replica {
    /// The address of each lane, `127.0.0.1:PORT`.
    pub(super) addresses: Vec<String>,
    /// The address of the metrics.
    pub(super) admin: String,
    _process: Child,
}

/// All of them.
pub(super) struct Fleet {
    pub(super) folder: PathBuf,
    /// The authority of the servers and of clients.
    pub(super) authority: Authority,
    pub(super) replicas: Vec<Replica>,
    _backends: Vec<Child>,
    _remover: Process,
}

static FLEET: OnceLock<Fleet> = OnceLock::new();

/// Returns the fleet. The first call starts it.
pub(super) fn fleet() -> &'static Fleet {
    FLEET.get_or_init(Fleet::start)
}

impl Fleet {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap().keep();
        let remover = remove_at_the_end(&folder);
        let (authority, other) = (Authority::new("test"), Authority::new("other"));
        fs::write(folder.join("ca.pem"), &authority.pem).unwrap();
        fs::write(folder.join("both.pem"), authority.pem.clone() + &other.pem).unwrap();
        authority.leaf(&["localhost"]).write(&folder, "tls");
        let (python, echo) = (python(&folder), echo());
        let nginx = nginx(&folder);
        let daemon = daemon(&folder);
        let places = Places {
            folder: &folder,
            python: python
                .says("Serving HTTP on 127.0.0.1 port ")
                .split(' ')
                .next()
                .unwrap()
                .to_owned(),
            echo: echo.says("listening on "),
        };
        let replicas = (0..PROXIES).map(|place| places.proxy(place)).collect();
        Self {
            authority,
            replicas,
            _backends: vec![python, echo, nginx, daemon],
            _remover: remover,
            folder,
        }
    }

    /// Returns the path of a file in the folder of the fleet.
    pub(super) fn path(&self, name: &str) -> String {
        text(&self.folder, name)
    }

    /// Returns the address of the daemon.
    pub(super) fn daemon(&self) -> String {
        format!("unix://{}", self.path("api.sock"))
    }

    /// Writes the certificate of a client to NAME.crt and NAME.key. Returns both paths.
    pub(super) fn client(&self, name: &str, leaf: &Leaf) -> [String; 2] {
        leaf.write(&self.folder, name);
        [
            self.path(&format!("{name}.crt")),
            self.path(&format!("{name}.key")),
        ]
    }
}

fn text(folder: &Path, name: &str) -> String {
    folder.join(name).to_str().unwrap().to_owned()
}

/// Where the backends are.
struct Places<'f> {
    folder: &'f Path,
    python: String,
    echo: String,
}

impl Places<'_> {
    fn backend(&self, backend: Backend) -> String {
        let socket = |name| format!("unix://{}", text(self.folder, name));
        match backend {
            Backend::Nginx => socket("http1"),
            Backend::NginxOnce => socket("once"),
            Backend::NginxHttp2 => socket("http2"),
            Backend::Python => format!("tcp://127.0.0.1:{}", self.python),
            Backend::Echo => format!("tcp://127.0.0.1:{}", self.echo),
        }
    }

    /// Starts a proxy with a `[[proxy]]` for each lane.
    fn proxy(&self, place: usize) -> Replica {
        let at = |name| text(self.folder, name);
        let mut config = "[listen]\nproxy_admin = \"tcp://127.0.0.1:0\"\n".to_owned();
        for lane in &LANES {
            let (certificate, key, daemon) = (at("tls.crt"), at("tls.key"), at("api.sock"));
            config += &format!(
                "[[proxy]]\nlisten = \"tls://127.0.0.1:0\"\nbackend = {:?}\nsessions = \"unix://{daemon}\"\n\
                 certificate = {certificate:?}\nkey = {key:?}\nconnections = 500\n{}\n",
                self.backend(lane.backend),
                (lane.more)(self.folder, place),
            );
        }
        let file = self.folder.join(format!("proxy-{place}.toml"));
        fs::write(&file, config).unwrap();
        let process = Child::first(env!("CARGO_BIN_EXE_tls-sessiond"), |command| {
            command.arg("proxy").arg("--config").arg(file);
        });
        // "127.0.0.1:PORT, to BACKEND"
        let listening = LANES
            .iter()
            .map(|_| process.says("listening on tls://"))
            .map(|line| line.split(',').next().unwrap().to_owned());
        let addresses = listening.collect();
        let admin = process.says("metrics at http://");
        Replica {
            addresses,
            admin: admin.strip_suffix("/metrics").unwrap().to_owned(),
            _process: process,
        }
    }
}

fn daemon(folder: &Path) -> Child {
    let listen = format!("listen.api=[\"unix://{}\"]", text(folder, "api.sock"));
    let daemon = Child::first(env!("CARGO_BIN_EXE_tls-sessiond"), |command| {
        command.args(["--set", &listen, "--set", "listen.admin="]);
    });
    daemon.says("listening on unix://");
    daemon
}

/// Starts nginx on Unix sockets, because it has no way to tell a port that the system chose.
fn nginx(folder: &Path) -> Child {
    let here = folder.display();
    let server = |socket: &str, more: &str| {
        format!(
            "server {{ listen unix:{here}/{socket}; default_type text/plain; {more}\n\
             location / {{ return 200 \"a page of nginx over $server_protocol\\n\"; }} }}\n"
        )
    };
    let temporary: String = ["client_body", "proxy", "fastcgi", "scgi", "uwsgi"]
        .map(|name| format!("{name}_temp_path {here}/{name};\n"))
        .concat();
    let config = format!(
        "daemon off; pid {here}/nginx.pid; error_log {here}/nginx.err; worker_processes 1;\n\
         events {{ worker_connections 512; }}\nhttp {{ access_log off; {temporary}{}{}{} }}\n",
        server("http1", ""),
        server("once", "keepalive_timeout 0;"),
        server("http2", "").replace("http2;", "http2 http2;"),
    );
    let file = folder.join("nginx.conf");
    fs::write(&file, config).unwrap();
    let nginx = Child::start("/usr/sbin/nginx", |command| {
        command.arg("-p").arg(folder).arg("-c").arg(&file);
    });
    let began = Instant::now();
    // It writes this file once its sockets are open.
    while !folder.join("nginx.pid").exists() {
        let said = fs::read_to_string(folder.join("nginx.err")).unwrap_or_default();
        assert!(began.elapsed() < PATIENCE, "nginx does not start: {said}");
        sleep(Duration::from_millis(5));
    }
    nginx
}

fn python(folder: &Path) -> Child {
    let root = folder.join("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("index.html"), format!("{}\n", super::PYTHON)).unwrap();
    fs::write(root.join("large"), large()).unwrap();
    Child::start("python3", |command| {
        command.args(["-u", "-m", "http.server", "--bind", "127.0.0.1", "0"]);
        command.arg("--directory").arg(root);
    })
}

/// Returns a file of many records.
pub(super) fn large() -> Vec<u8> {
    let numbers = 0..500_000_u32;
    numbers.flat_map(|number| number.to_be_bytes()).collect()
}

fn echo() -> Child {
    Child::start("node", |command| {
        command.args([&script("websocket.js"), "serve"]);
        command.env("NODE_PATH", peers("node_modules"));
    })
}
