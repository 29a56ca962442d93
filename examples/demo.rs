//! Clients that return to three workers: first with one daemon that all workers share, then with
//! one daemon for each worker. The second case is that of replicas without a shared cache.
//!
//!     make demo

use std::{
    env, io,
    io::Write,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    sync::Arc,
    time::Duration,
};

use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    pki_types::{CertificateDer, ServerName},
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::timeout,
};
use tokio_rustls::TlsConnector;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const WORKERS: usize = 3;
const CLIENTS: usize = 20;
/// Visits of each client, including the first.
const VISITS: usize = 6;
/// The goal with a shared daemon: the percentage of returning visits that are resumed.
const WANTED: usize = 99;
/// How long the whole demo may take.
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::main]
async fn main() -> ExitCode {
    match timeout(PATIENCE, demo()).await {
        Ok(Ok(true)) => ExitCode::SUCCESS,
        Ok(Ok(false)) => {
            eprintln!("demo: fewer than {WANTED} % resumed with the shared daemon");
            ExitCode::FAILURE
        }
        Ok(Err(err)) => {
            eprintln!("demo: {err}");
            ExitCode::FAILURE
        }
        Err(_) => {
            eprintln!("demo: not done after {} s", PATIENCE.as_secs());
            ExitCode::FAILURE
        }
    }
}

/// Runs the demo. Returns whether the shared daemon reached the goal.
async fn demo() -> Result<bool> {
    let site = Site::new()?;
    let mut out = io::stdout();
    writeln!(
        out,
        "{CLIENTS} clients call {VISITS} times each; every call meets one of {WORKERS} workers.\n"
    )?;
    writeln!(
        out,
        "  {:<22} {:<8} {:>8} {:>8} {:>8}",
        "daemon", "protocol", "returns", "resumed", "share"
    )?;
    let mut good = true;
    for (label, daemons) in [("one, shared", 1), ("one for each worker", WORKERS)] {
        for (protocol, version) in [("TLS 1.2", &TLS12), ("TLS 1.3", &TLS13)] {
            let resumed = returns_resumed(&site, daemons, version).await?;
            let returns = CLIENTS * (VISITS - 1);
            let percent = resumed * 100 / returns;
            writeln!(
                out,
                "  {label:<22} {protocol:<8} {returns:>8} {resumed:>8} {percent:>6} %"
            )?;
            good &= daemons > 1 || percent >= WANTED;
        }
    }
    writeln!(
        out,
        "\nWith one daemon a client resumes wherever it lands. Without it, only where it happens to meet the worker that\n\
         it met last; everything else is a full handshake with its signature and its round trips."
    )?;
    Ok(good)
}

/// Returns the number of returning visits that were resumed.
async fn returns_resumed(
    site: &Site,
    daemons: usize,
    version: &'static SupportedProtocolVersion,
) -> Result<usize> {
    let mut running = Vec::new();
    let mut addresses = Vec::new();
    for _ in 0..daemons {
        let (daemon, address) = site.daemon().await?;
        running.push(daemon);
        addresses.push(address);
    }
    let mut workers = Vec::new();
    for number in 0..WORKERS {
        let (worker, address) = site.worker(&addresses[number % daemons]).await?;
        running.push(worker);
        workers.push(address);
    }
    // The balancer is fair, and the same in every run: xorshift32.
    let mut random = 0x2545_f491_u32;
    let mut balancer = || {
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        &workers[random as usize % WORKERS]
    };
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| site.client(version))
        .collect::<Result<_>>()?;
    let mut resumed = 0;
    for visit in 0..VISITS {
        for client in &clients {
            let page = fetch(client, balancer()).await?;
            if visit > 0 && page.contains("resumed: true") {
                resumed += 1;
            }
        }
    }
    Ok(resumed)
}

async fn fetch(client: &TlsConnector, address: &str) -> Result<String> {
    let socket = TcpStream::connect(address).await?;
    let mut tls = client
        .connect(ServerName::try_from("localhost")?, socket)
        .await?;
    tls.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await?;
    let mut page = String::new();
    tls.read_to_string(&mut page).await?;
    tls.shutdown().await?;
    Ok(page)
}

/// The certificate that all daemons present and all clients trust, and the folder of the programs.
struct Site {
    folder: tempfile::TempDir,
    certificate: CertificateDer<'static>,
    programs: PathBuf,
}

impl Site {
    fn new() -> Result<Self> {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        let folder = tempfile::tempdir()?;
        let (chain, key) = (
            folder.path().join("cert.pem"),
            folder.path().join("key.pem"),
        );
        std::fs::write(&chain, made.cert.pem())?;
        std::fs::write(&key, made.signing_key.serialize_pem())?;
        let config = format!(
            "[listen]\napi = [\"tcp://127.0.0.1:0\"]\n[[context]]\ncertificate = {chain:?}\nkey = {key:?}\nca = {chain:?}\n"
        );
        std::fs::write(folder.path().join("daemon.toml"), config)?;
        // This example is in examples/, next to the daemon.
        let programs = env::current_exe()?
            .parent()
            .and_then(Path::parent)
            .ok_or("the path of this program has no parent folder")?
            .to_owned();
        Ok(Self {
            folder,
            certificate: made.cert.der().clone(),
            programs,
        })
    }

    async fn daemon(&self) -> Result<(Child, String)> {
        let mut command = Command::new(self.programs.join("tls-sessiond"));
        command
            .arg("--config")
            .arg(self.folder.path().join("daemon.toml"));
        start(&mut command, "listening on tcp://").await
    }

    async fn worker(&self, daemon: &str) -> Result<(Child, String)> {
        let mut command = Command::new(self.programs.join("examples/tls_server"));
        command.args([
            "--listen",
            "127.0.0.1:0",
            "--daemon",
            &format!("http://{daemon}"),
        ]);
        start(&mut command, "listening on ").await
    }

    /// Returns a client with its own session store.
    fn client(&self, version: &'static SupportedProtocolVersion) -> Result<TlsConnector> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone())?;
        let config = ClientConfig::builder_with_protocol_versions(&[version])
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

/// Starts a program and returns the address that it listens on. Dropping the child kills it.
async fn start(command: &mut Command, prefix: &str) -> Result<(Child, String)> {
    let program = command.as_std().get_program().to_owned();
    let missing = |err| format!("cannot start {}: {err}; use `make demo`", program.display());
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(missing)?;
    let mut lines = BufReader::new(child.stdout.take().ok_or("no stdout")?).lines();
    while let Some(line) = lines.next_line().await? {
        if let Some(address) = line.strip_prefix(prefix) {
            return Ok((child, address.to_owned()));
        }
    }
    Err(format!("{} ended before it listened", program.display()).into())
}
