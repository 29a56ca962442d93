//! A worker that serves HTTPS without keys and without a TLS library. TLS runs in the daemon, so
//! every replica resumes the sessions of all others.
//!
//!     tls-sessiond &
//!     cargo run --example tls_server -- --listen 127.0.0.1:8443 --name a &
//!     cargo run --example tls_server -- --listen 127.0.0.1:8444 --name b &
//!     curl -k https://127.0.0.1:8443/ https://127.0.0.1:8444/

mod shared;

use std::{
    io::{self, Write},
    net::SocketAddr,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::Parser;
use shared::{Channels, Place, Result, Wire, describe, ended::ended};
use tls_sessiond_proto::{NewRequest, Role, drive_response::Event};
use tokio::{
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
    /// The daemon's context, which has the certificate.
    #[arg(long, default_value = "default")]
    context: String,
    /// The name of this replica in its answers.
    #[arg(long, default_value = "worker")]
    name: String,
    /// Connections on one channel to the daemon before another channel is opened; less than its
    /// limits.streams.
    #[arg(long, default_value = "1000")]
    streams: usize,
}

/// The largest request that is kept, in bytes.
const REQUEST_MAX: usize = 8 * 1024;
/// How long one connection may take.
const CONNECTION_MAX: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> ExitCode {
    ended("tls_server", run(Arc::new(Args::parse())).await)
}

async fn run(args: Arc<Args>) -> Result<()> {
    let channels = Arc::new(Channels::open(&args.daemon, args.streams).await?);
    let listener = TcpListener::bind(args.listen).await?;
    writeln!(io::stdout(), "listening on {}", listener.local_addr()?)?;
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
        let (channels, args) = (Arc::clone(&channels), Arc::clone(&args));
        tokio::spawn(async move {
            let served = async { serve(socket, channels.place().await?, &args).await };
            match timeout(CONNECTION_MAX, served).await {
                Ok(Ok(())) => {}
                Ok(Err(err)) => eprintln!("{peer}: {err}"),
                Err(_) => eprintln!("{peer}: took too long"),
            }
        });
    }
}

/// Serves one connection, from the ClientHello to the close_notify.
async fn serve(socket: TcpStream, place: Place, args: &Args) -> Result<()> {
    let new = NewRequest {
        context: args.context.clone(),
        role: Role::Server.into(),
        ..NewRequest::default()
    };
    let mut wire = Wire::open(place, socket, new).await?;
    let mut page = String::new();
    let mut request = Vec::new();
    let mut answered = false;
    while let Some(event) = wire.next().await? {
        match event {
            Event::Established(connection) => {
                page = format!("{}: {}\n", args.name, describe(&connection));
            }
            Event::Plaintext(bytes) if !answered => {
                let room = REQUEST_MAX - request.len();
                request.extend_from_slice(&bytes[..bytes.len().min(room)]);
                if let Some(status) = status(&request) {
                    answered = true;
                    wire.write(response(status, &page)).await;
                    wire.shutdown().await;
                }
            }
            // The peer has closed. It has the whole answer or wants none, so this side closes as
            // well. A peer may wait for that with its socket open. If its socket has ended too, the
            // daemon has already closed. After a failure there is nothing left to close.
            Event::Closed(_) => {
                wire.shutdown().await;
                wire.finish();
            }
            _ => {}
        }
    }
    Ok(())
}

/// Returns the status of the answer once the request is complete or too long.
fn status(request: &[u8]) -> Option<&'static str> {
    let whole = request.windows(4).any(|end| end == b"\r\n\r\n");
    match (whole, request.starts_with(b"GET ")) {
        (true, true) => Some("200 OK"),
        (true, false) => Some("405 Method Not Allowed"),
        (false, _) if request.len() == REQUEST_MAX => Some("431 Request Header Fields Too Large"),
        (false, _) => None,
    }
}

fn response(status: &str, page: &str) -> String {
    let body = if status.starts_with("200") {
        page
    } else {
        status
    };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
