//! A short-lived worker that calls an HTTPS server with OpenSSL and resumes the session of the
//! worker before it.
//!
//!     tls-sessiond &
//!     cargo run --features openssl --example openssl_client -- --connect 127.0.0.1:8443 --ca tls.crt

#[path = "shared/ended.rs"]
mod ended;

use std::{
    error::Error,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, ValueEnum};
use ended::ended;
use openssl::ssl::{SslConnector, SslMethod, SslStream, SslVersion};
use tls_sessiond_client::{Options, Worker, openssl::ClientSessions};

#[derive(Parser)]
struct Args {
    /// Endpoint of the daemon, as it prints it: tcp://HOST:PORT or unix:///PATH.
    #[arg(long, default_value = "tcp://127.0.0.1:50551")]
    daemon: String,
    /// Address of the server.
    #[arg(long)]
    connect: SocketAddr,
    /// The name in the server's certificate.
    #[arg(long, default_value = "localhost")]
    server_name: String,
    /// PEM file with the trust anchors.
    #[arg(long)]
    ca: PathBuf,
    /// The only version to use; both by default.
    #[arg(long, value_enum)]
    version: Option<Version>,
    /// Close the socket without a close_notify.
    #[arg(long)]
    unclean: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Version {
    #[value(name = "1.2")]
    Tls12,
    #[value(name = "1.3")]
    Tls13,
}

/// How long to wait for the stream at the beginning, and for the reports at the end.
const DAEMON_MAX: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    ended("openssl_client", run(Args::parse()))
}

fn run(args: Args) -> Result<(), Box<dyn Error + Send + Sync>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let mut options = Options::new(&args.daemon, "openssl")?;
    options.lookup_deadline = Duration::from_millis(500);
    let worker = runtime.block_on(async {
        let worker = Worker::connect(options);
        worker.attached(DAEMON_MAX).await;
        worker
    });

    let mut connector = SslConnector::builder(SslMethod::tls_client())?;
    connector.set_ca_file(&args.ca)?;
    if let Some(version) = args.version {
        let version = match version {
            Version::Tls12 => SslVersion::TLS1_2,
            Version::Tls13 => SslVersion::TLS1_3,
        };
        connector.set_min_proto_version(Some(version))?;
        connector.set_max_proto_version(Some(version))?;
    }
    let sessions = ClientSessions::install(&mut connector, worker.clone(), b"default client")?;
    let mut ssl = connector.build().configure()?.into_ssl(&args.server_name)?;
    let offered = sessions.offer_blocking(&mut ssl, &args.server_name);

    let mut stream = SslStream::new(ssl, TcpStream::connect(args.connect)?)?;
    let fetched = stream
        .connect()
        .map_err(Into::into)
        .and_then(|()| fetch(&mut stream, &args));
    let ssl = stream.ssl();
    writeln!(
        io::stdout(),
        "{} offered: {offered} resumed: {}",
        ssl.version_str().replace("TLSv", "TLS "),
        ssl.session_reused()
    )?;
    drop(stream);
    // The reports must reach the daemon before the process exits.
    runtime.block_on(worker.flush(DAEMON_MAX));
    fetched
}

fn fetch(
    stream: &mut SslStream<TcpStream>,
    args: &Args,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    write!(
        stream,
        "GET / HTTP/1.0\r\nHost: {}\r\n\r\n",
        args.server_name
    )?;
    let mut page = Vec::new();
    // If the server closes the socket without a close_notify, this is an error, and the session is
    // removed.
    stream.read_to_end(&mut page)?;
    io::stdout().write_all(&page)?;
    if !args.unclean {
        stream.shutdown()?;
    }
    Ok(())
}
