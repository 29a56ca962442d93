//! A worker that serves HTTPS with rustls and shares its sessions: every replica resumes the
//! sessions of all others.
//!
//!     tls-sessiond &
//!     cargo run --all-features --example rustls_worker -- --certificate tls.crt --key tls.key --listen 127.0.0.1:8443 &
//!     cargo run --all-features --example rustls_worker -- --certificate tls.crt --key tls.key --listen 127.0.0.1:8444 &
//!     openssl s_client -connect 127.0.0.1:8443 -sess_out session    # then GET / HTTP/1.1, and an empty line
//!     openssl s_client -connect 127.0.0.1:8444 -sess_in session

#[path = "shared/ended.rs"]
mod ended;

use std::{
    error::Error,
    io::{self, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::Parser;
use ended::ended;
use rustls::{
    ProtocolVersion, ServerConfig,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
};
use tls_sessiond_client::{Options, Worker, rustls as sessions, rustls::Acceptor};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

#[derive(Parser)]
struct Args {
    /// Endpoint of the daemon, as it prints it: tcp://HOST:PORT or unix:///PATH.
    #[arg(long, default_value = "tcp://127.0.0.1:50551")]
    daemon: String,
    /// Address to listen on; with port 0 the system chooses one.
    #[arg(long, default_value = "127.0.0.1:8443")]
    listen: SocketAddr,
    /// The name of this replica in its answers.
    #[arg(long, default_value = "worker")]
    name: String,
    /// PEM file with the certificate chain, the leaf first.
    #[arg(long)]
    certificate: PathBuf,
    /// PEM file with the private key.
    #[arg(long)]
    key: PathBuf,
    /// The daemon's context, which limits the lifetime of sessions.
    #[arg(long, default_value = "default")]
    context: String,
    /// How long a handshake waits for the daemon, in milliseconds. Then it is a full one.
    #[arg(long, default_value_t = 20)]
    lookup_deadline: u64,
}

/// The largest request that is kept, in bytes.
const REQUEST_MAX: u64 = 8 * 1024;
/// How long one connection may take.
const CONNECTION_MAX: Duration = Duration::from_secs(30);

/// Describes what is wrong with a PEM file. Errors of the parser are not printed, because some
/// contain lines of the file.
fn unreadable(path: &Path, err: &pem::Error) -> String {
    match err {
        pem::Error::Io(err) => format!("cannot read {}: {err}", path.display()),
        _ => format!(
            "{}: expected PEM with a certificate chain, or one private key",
            path.display()
        ),
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    ended("rustls_worker", run(Args::parse()).await)
}

async fn run(args: Args) -> Result<(), Box<dyn Error + Send + Sync>> {
    let chain = CertificateDer::pem_file_iter(&args.certificate)
        .and_then(|certificates| certificates.collect::<Result<Vec<_>, _>>())
        .map_err(|err| unreadable(&args.certificate, &err))?;
    let key = PrivateKeyDer::from_pem_file(&args.key).map_err(|err| unreadable(&args.key, &err))?;
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)?;

    let mut options = Options::new(&args.daemon, sessions::FORMAT)?;
    options.context = args.context;
    options.lookup_deadline = Duration::from_millis(args.lookup_deadline);
    let worker = Worker::connect(options);
    let acceptor = Acceptor::new(
        worker,
        Arc::new(config),
        sessions::Options::new("no client certificates"),
    );

    let listener = TcpListener::bind(args.listen).await?;
    writeln!(io::stdout(), "listening on {}", listener.local_addr()?)?;
    let name: Arc<str> = args.name.into();
    loop {
        let (socket, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(err) => {
                eprintln!("cannot accept: {err}");
                // Most likely too many files are open. Waiting lets other connections end.
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, name) = (acceptor.clone(), Arc::clone(&name));
        tokio::spawn(async move {
            match timeout(CONNECTION_MAX, serve(socket, &acceptor, &name)).await {
                Ok(Ok(())) => {}
                Ok(Err(err)) => eprintln!("{peer}: {err}"),
                Err(_) => eprintln!("{peer}: took too long"),
            }
        });
    }
}

/// Serves one connection: reads a request, sends the answer and the close_notify, and reads until
/// the peer has closed.
async fn serve(socket: TcpStream, acceptor: &Acceptor, name: &str) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut tls = acceptor.accept(socket).await?;
    let version = match tls.get_ref().get_ref().1.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "TLS 1.3",
        _ => "TLS 1.2",
    };
    let page = format!(
        "{name}: {version} {} resumed: {}\n",
        tls.cipher_suite(),
        tls.resumed()
    );

    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let room = REQUEST_MAX - request.len() as u64;
        if (&mut tls).take(room).read_buf(&mut request).await? == 0 {
            // The peer has closed, or its request is too large.
            return tls.shutdown().await;
        }
    }
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close";
    tls.write_all(format!("{head}\r\nContent-Length: {}\r\n\r\n{page}", page.len()).as_bytes())
        .await?;
    tls.shutdown().await?;
    // Closing a socket with unread bytes resets it, and the peer may lose the answer.
    tokio::io::copy(&mut tls, &mut tokio::io::sink())
        .await
        .map(drop)
}
