//! A worker that serves HTTPS with OpenSSL and shares its sessions: every replica resumes the
//! sessions of all others.
//!
//!     tls-sessiond &
//!     openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -keyout tls.key -out tls.crt
//!     cargo run --features openssl --example openssl_server -- --certificate tls.crt --key tls.key --name a

#[path = "shared/ended.rs"]
mod ended;

use std::{
    error::Error,
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    thread,
    time::Duration,
};

use clap::Parser;
use ended::ended;
use openssl::ssl::{
    ShutdownResult, ShutdownState, SslAcceptor, SslFiletype, SslMethod, SslRef, SslStream,
    SslVerifyMode,
};
use tls_sessiond_client::{Options, Worker, openssl::ServerSessions};

#[derive(Parser)]
struct Args {
    /// Endpoint of the daemon, as it prints it: tcp://HOST:PORT or unix:///PATH.
    #[arg(long, default_value = "tcp://127.0.0.1:50551")]
    daemon: String,
    /// Address to listen on; with port 0 the system chooses one.
    #[arg(long, default_value = "127.0.0.1:8443")]
    listen: SocketAddr,
    /// PEM file with the certificate chain.
    #[arg(long)]
    certificate: PathBuf,
    /// PEM file with the private key.
    #[arg(long)]
    key: PathBuf,
    /// The session id context, which must agree between replicas:
    /// SSL_CTX_set_session_id_context(3).
    #[arg(long, default_value = "www")]
    session_id_context: String,
    /// Groups for the key exchange: SSL_CTX_set1_groups_list(3).
    #[arg(long)]
    groups: Option<String>,
    /// How long a handshake waits for the daemon, in milliseconds. Then it is a full one.
    #[arg(long, default_value = "20")]
    lookup_deadline: u64,
    /// The name of this replica in its answers.
    #[arg(long, default_value = "worker")]
    name: String,
}

/// The largest request that is read, in bytes.
const REQUEST_MAX: usize = 8 * 1024;
/// How long to wait for the stream at the beginning.
const DAEMON_MAX: Duration = Duration::from_secs(2);
/// How long a peer may be silent.
const SILENCE_MAX: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    ended("openssl_server", run(Args::parse()))
}

fn run(args: Args) -> Result<(), Box<dyn Error + Send + Sync>> {
    // OpenSSL blocks the threads, so the stream to the daemon has a runtime of its own.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let mut options = Options::new(&args.daemon, "openssl")?;
    options.lookup_deadline = Duration::from_millis(args.lookup_deadline);
    let worker = runtime.block_on(async {
        let worker = Worker::connect(options);
        // The worker also serves without the daemon. But with a stream the first peer can already
        // resume.
        worker.attached(DAEMON_MAX).await;
        worker
    });
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?;
    acceptor.set_certificate_chain_file(&args.certificate)?;
    acceptor.set_private_key_file(&args.key, SslFiletype::PEM)?;
    acceptor.set_verify(SslVerifyMode::NONE);
    if let Some(groups) = &args.groups {
        acceptor.set_groups_list(groups)?;
    }
    ServerSessions::install(&mut acceptor, worker, args.session_id_context.as_bytes())?;
    let acceptor = Arc::new(acceptor.build());

    let listener = TcpListener::bind(args.listen)?;
    writeln!(io::stdout(), "listening on {}", listener.local_addr()?)?;
    let name: Arc<str> = args.name.into();
    for socket in listener.incoming() {
        let (socket, acceptor, name) = (socket?, Arc::clone(&acceptor), Arc::clone(&name));
        thread::spawn(move || {
            if let Err(err) = serve(socket, &acceptor, &name) {
                eprintln!("{err}");
            }
        });
    }
    Ok(())
}

/// Serves one connection, from the handshake to the close_notify. After an early return the
/// connection is unclosed: dropping the stream removes its sessions from the cache.
fn serve(
    socket: TcpStream,
    acceptor: &SslAcceptor,
    name: &str,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    socket.set_read_timeout(Some(SILENCE_MAX))?;
    socket.set_nodelay(true)?;
    let mut stream = acceptor.accept(socket)?;
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut bytes = [0; 1024];
        let length = stream.read(&mut bytes)?;
        request.extend_from_slice(&bytes[..length]);
        if length == 0 && !stream.get_shutdown().contains(ShutdownState::RECEIVED) {
            return Err("the socket ended without a close_notify".into());
        }
        if length == 0 || request.len() > REQUEST_MAX {
            return close(&mut stream);
        }
    }
    let page = format!("{name}: {}\n", describe(stream.ssl()));
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{page}",
        page.len()
    )?;
    close(&mut stream)
}

/// Sends a close_notify and waits for that of the peer.
fn close(stream: &mut SslStream<TcpStream>) -> Result<(), Box<dyn Error + Send + Sync>> {
    if stream.shutdown()? == ShutdownResult::Sent {
        // The peer may close its socket instead. Only the close_notify of this side decides.
        let _ = stream.shutdown();
    }
    Ok(())
}

fn describe(ssl: &SslRef) -> String {
    let suite = ssl
        .current_cipher()
        .and_then(|cipher| cipher.standard_name())
        .unwrap_or("unknown suite");
    format!(
        "{} {suite} resumed: {}",
        ssl.version_str().replace("TLSv", "TLS "),
        ssl.session_reused()
    )
}
