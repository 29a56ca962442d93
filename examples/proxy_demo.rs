//! Three proxies before a backend that knows no TLS, and a client that returns to another one each
//! time: with one daemon for all, with sessions of their own, with a backend that resets, and with a
//! proxy that is killed. Fails if a handshake is of another kind than told.
//!
//!     make demo-proxy

use std::{
    env,
    io::{self, Write},
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{
    ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion,
    pki_types::{CertificateDer, ServerName},
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const NAMES: [&str; 3] = ["a", "b", "c"];
const PROTOCOLS: [(&str, &SupportedProtocolVersion); 2] =
    [("TLS 1.2", &TLS12), ("TLS 1.3", &TLS13)];
/// How long the whole demo may take, on a busy machine too. It usually takes three seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// Visits that may be full handshakes although they could be resumed: a proxy waits for a lookup only
/// until its deadline, which a busy machine may miss.
pub(crate) const LATE_MAX: usize = 2;
/// How long the daemon may take to notice that a proxy has died.
const NOTICE: Duration = Duration::from_secs(1);

#[tokio::main]
pub(crate) async fn main() -> ExitCode {
    let wrong = match timeout(PATIENCE, demo(&mut io::stdout())).await {
        Ok(Ok(found)) if found.wrong == 0 && found.late <= LATE_MAX => return ExitCode::SUCCESS,
        Ok(Ok(found)) => format!("the handshakes are of another kind than expected: {found:?}"),
        Ok(Err(err)) => err.to_string(),
        Err(_) => format!("not done after {} s", PATIENCE.as_secs()),
    };
    eprintln!("proxy_demo: {wrong}");
    ExitCode::FAILURE
}

/// Handshakes of another kind than told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unexpected {
    /// Resumed ones where a new one was told. There may be none.
    pub(crate) wrong: usize,
    /// New ones where a resumed one was told.
    pub(crate) late: usize,
}

/// Runs the demo.
pub(crate) async fn demo(out: &mut impl Write) -> Result<Unexpected> {
    let site = Site::new().await?;
    let found = Unexpected::default();
    let mut tale = Tale { out, found };
    let (_daemon, _) = site.daemon().await?;
    let socket = format!("unix://{}", site.socket().display());

    tale.say("One daemon has the sessions of three proxies. A client goes round them.")?;
    let mut proxies = site.proxies(&socket).await?;
    for (protocol, version) in PROTOCOLS {
        let client = site.client(version)?;
        for visit in 0..2 * NAMES.len() {
            let proxy = &proxies[visit % NAMES.len()];
            tale.visit(protocol, &client, proxy, Page::Whole, visit > 0)
                .await?;
        }
    }

    tale.say("The backend resets a connection. That page may be cut, so its session ends, and the next handshake is new.")?;
    for (protocol, version) in PROTOCOLS {
        let client = site.client(version)?;
        let steps = [
            (0, Page::Whole, false),
            (1, Page::Reset, true),
            (2, Page::Whole, false),
            (0, Page::Whole, true),
        ];
        for (proxy, page, is_resumed) in steps {
            tale.visit(protocol, &client, &proxies[proxy], page, is_resumed)
                .await?;
        }
    }

    tale.say("Proxy a is killed while one connection is open. The session of that one ends. Others resume at b and c.")?;
    let mut broken = Vec::new();
    let mut others = Vec::new();
    for (protocol, version) in PROTOCOLS {
        let (quiet, busy) = (site.client(version)?, site.client(version)?);
        tale.visit(protocol, &quiet, &proxies[0], Page::Whole, false)
            .await?;
        let open = tale
            .visit(protocol, &busy, &proxies[0], Page::Open, false)
            .await?;
        broken.push((protocol, busy, open));
        others.push((protocol, quiet));
    }
    proxies[0].child.kill().await?;
    sleep(NOTICE).await;
    tale.line("proxy a is killed")?;
    for (protocol, client, open) in broken {
        drop(open);
        tale.visit(protocol, &client, &proxies[1], Page::Whole, false)
            .await?;
    }
    for (protocol, client) in others {
        tale.visit(protocol, &client, &proxies[2], Page::Whole, true)
            .await?;
    }
    drop(proxies);

    tale.say("Without a daemon, each proxy has sessions of its own. The same client never meets the proxy that knows it.")?;
    let proxies = site.proxies("own").await?;
    for (protocol, version) in PROTOCOLS {
        let client = site.client(version)?;
        for visit in 0..2 * NAMES.len() {
            let proxy = &proxies[visit % NAMES.len()];
            tale.visit(protocol, &client, proxy, Page::Whole, false)
                .await?;
        }
    }
    Ok(tale.found)
}

/// What a client asks the backend for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Page {
    /// A page that ends cleanly.
    Whole,
    /// A page that the backend cuts by a TCP reset.
    Reset,
    /// A page whose end never comes.
    Open,
}

impl Page {
    fn path(self) -> &'static str {
        match self {
            Self::Whole => "/",
            Self::Reset => "/reset",
            Self::Open => "/open",
        }
    }
}

/// Prints the visits, and counts those that are not as told.
struct Tale<'o, W> {
    out: &'o mut W,
    found: Unexpected,
}

impl<W: Write> Tale<'_, W> {
    fn say(&mut self, text: &str) -> Result<()> {
        writeln!(self.out, "\n{text}\n")?;
        self.line("proxy  protocol  handshake     time  page")
    }

    fn line(&mut self, text: &str) -> Result<()> {
        writeln!(self.out, "  {text}")?;
        Ok(self.out.flush()?)
    }

    /// Visits a proxy once. Returns the connection if it stays open.
    async fn visit(
        &mut self,
        protocol: &str,
        client: &TlsConnector,
        proxy: &Proxy,
        page: Page,
        is_resumed: bool,
    ) -> Result<Option<TlsStream<TcpStream>>> {
        let began = Instant::now();
        let socket = TcpStream::connect(&proxy.address).await?;
        let mut tls = client
            .connect(ServerName::try_from("localhost")?, socket)
            .await?;
        let took = began.elapsed();
        let kind = match tls.get_ref().1.handshake_kind() {
            Some(HandshakeKind::Resumed) => "Resumed",
            _ => "New",
        };
        let request = format!("GET {} HTTP/1.1\r\nHost: localhost\r\n\r\n", page.path());
        tls.write_all(request.as_bytes()).await?;
        let mut text = Vec::new();
        let read = match page {
            Page::Open => tls.read_buf(&mut text).await,
            _ => tls.read_to_end(&mut text).await,
        };
        let end = match (page, read) {
            (Page::Whole, Ok(_)) => "whole",
            (Page::Reset, Err(_)) => "cut",
            (Page::Open, Ok(_)) => "open",
            (Page::Whole | Page::Open, Err(err)) => return Err(err.into()),
            (Page::Reset, Ok(_)) => return Err("a page that was cut has a clean end".into()),
        };
        let note = match (kind, is_resumed) {
            ("Resumed", false) => {
                self.found.wrong += 1;
                "  <- expected New"
            }
            ("New", true) => {
                self.found.late += 1;
                "  <- expected Resumed"
            }
            _ => "",
        };
        let milliseconds = took.as_secs_f64() * 1000.0;
        let name = proxy.name;
        self.line(&format!(
            "{name:<5}  {protocol:<8}  {kind:<9}  {milliseconds:>4.1} ms  {end}{note}"
        ))?;
        if page == Page::Open {
            return Ok(Some(tls));
        }
        if page == Page::Whole {
            tls.shutdown().await?;
        }
        Ok(None)
    }
}

/// One proxy, which is killed when it is dropped.
struct Proxy {
    name: &'static str,
    address: String,
    child: Child,
}

/// The certificate of all proxies, the backend, and the folder of the programs.
struct Site {
    folder: tempfile::TempDir,
    certificate: CertificateDer<'static>,
    programs: PathBuf,
    backend: String,
}

impl Site {
    async fn new() -> Result<Self> {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("cert.pem"), made.cert.pem())?;
        std::fs::write(
            folder.path().join("key.pem"),
            made.signing_key.serialize_pem(),
        )?;
        // The folder of this program, examples, is next to the daemon.
        let programs = env::current_exe()?
            .parent()
            .and_then(Path::parent)
            .ok_or("the path of this program has no parent folder")?
            .to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let backend = listener.local_addr()?.to_string();
        tokio::spawn(serve(listener));
        Ok(Self {
            folder,
            certificate: made.cert.der().clone(),
            programs,
            backend,
        })
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("api.sock")
    }

    async fn daemon(&self) -> Result<(Child, String)> {
        let mut command = Command::new(self.programs.join("tls-sessiond"));
        let api = format!("listen.api=[\"unix://{}\"]", self.socket().display());
        command.args(["--set", &api, "--set", "listen.admin="]);
        start(&mut command, "listening on unix://").await
    }

    /// Starts the three proxies, with their sessions at this place.
    async fn proxies(&self, sessions: &str) -> Result<Vec<Proxy>> {
        let mut proxies = Vec::new();
        for name in NAMES {
            let mut command = Command::new(self.programs.join("tls-sessiond"));
            command.args(["--set", "listen.proxy_admin=", "proxy"]);
            command.args(["--listen", "tls://127.0.0.1:0", "--sessions", sessions]);
            command.arg(format!("--backend=tcp://{}", self.backend));
            for (option, file) in [("--certificate", "cert.pem"), ("--key", "key.pem")] {
                command.arg(option).arg(self.folder.path().join(file));
            }
            let (child, line) = start(&mut command, "listening on tls://").await?;
            let address = line.split(',').next().unwrap_or_default().to_owned();
            proxies.push(Proxy {
                name,
                address,
                child,
            });
        }
        Ok(proxies)
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

/// The backend: plain HTTP, without any TLS.
async fn serve(listener: TcpListener) {
    while let Ok((socket, _)) = listener.accept().await {
        tokio::spawn(async move {
            // A client that ends early needs no answer.
            let _ = answer(socket).await;
        });
    }
}

async fn answer(mut socket: TcpStream) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if socket.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n";
    socket.write_all(head.as_bytes()).await?;
    if request.starts_with(b"GET /reset ") {
        return socket.set_zero_linger();
    }
    if request.starts_with(b"GET /open ") {
        socket.read_to_end(&mut request).await?;
        return Ok(());
    }
    socket.write_all(b"hello\n").await?;
    socket.shutdown().await
}

/// Starts a program and returns the rest of the line with this prefix. Dropping the child kills it.
async fn start(command: &mut Command, prefix: &str) -> Result<(Child, String)> {
    let program = command.as_std().get_program().to_owned();
    let missing = |err| {
        format!(
            "cannot start {}: {err}; use `make demo-proxy`",
            program.display()
        )
    };
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(missing)?;
    let mut lines = BufReader::new(child.stdout.take().ok_or("no stdout")?).lines();
    while let Some(line) = lines.next_line().await? {
        if let Some(rest) = line.strip_prefix(prefix) {
            return Ok((child, rest.to_owned()));
        }
    }
    Err(format!("{} ended before it listened", program.display()).into())
}
