//! A worker that fetches a page over HTTPS and exits. TLS runs in the daemon, so the next run
//! resumes the session of this one, as does a run of any other worker.
//!
//!     tls-sessiond &
//!     cargo run --example tls_client -- --connect 127.0.0.1:8443

mod shared;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;
use shared::{Channels, Result, Wire, describe, ended::ended};
use tls_sessiond_proto::{NewRequest, Role, drive_response::Event};
use tokio::net::TcpStream;

#[derive(Parser)]
struct Args {
    /// Endpoint of the daemon, as it prints it: tcp://HOST:PORT or unix:///PATH.
    #[arg(long, default_value = "tcp://127.0.0.1:50551")]
    daemon: String,
    /// The daemon's context, which has the trust anchors.
    #[arg(long, default_value = "default")]
    context: String,
    /// The name in the server's certificate.
    #[arg(long, default_value = "localhost")]
    server_name: String,
    /// Address of the server.
    #[arg(long)]
    connect: String,
    /// The path to fetch.
    #[arg(long, default_value = "/")]
    path: String,
}

/// The largest answer, in bytes.
const ANSWER_MAX: usize = 1 << 20;

#[tokio::main]
async fn main() -> ExitCode {
    ended("tls_client", fetch(Args::parse()).await)
}

async fn fetch(args: Args) -> Result<()> {
    // One connection needs one stream on one channel.
    let channels = Channels::open(&args.daemon, 1).await?;
    let socket = TcpStream::connect(&args.connect).await?;
    let new = NewRequest {
        context: args.context,
        role: Role::Client.into(),
        server_name: args.server_name.clone(),
        ..NewRequest::default()
    };
    let mut wire = Wire::open(channels.place().await?, socket, new).await?;
    // The daemon holds the request until the handshake is done.
    wire.write(format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
        args.path, args.server_name
    ))
    .await;

    let mut answer = Vec::new();
    let mut failure = None;
    while let Some(event) = wire.next().await? {
        match event {
            Event::Established(connection) => writeln!(io::stdout(), "{}", describe(&connection))?,
            Event::Plaintext(bytes) if answer.len() + bytes.len() > ANSWER_MAX => {
                return Err(format!("the answer is longer than {ANSWER_MAX} bytes").into());
            }
            Event::Plaintext(bytes) => answer.extend_from_slice(&bytes),
            Event::Closed(closed) => {
                let received = closed
                    .connection
                    .unwrap_or_default()
                    .shutdown
                    .unwrap_or_default()
                    .received;
                failure = match closed.alert {
                    Some(alert) if alert.received => {
                        Some(format!("the server sent {}", alert.name))
                    }
                    Some(alert) => Some(format!("the server was refused with {}", alert.name)),
                    None if !received => Some("the server ended without a close_notify".to_owned()),
                    None => None,
                };
                // Shut down only now: tickets may arrive until the server has closed.
                wire.shutdown().await;
                wire.finish();
            }
            _ => {}
        }
    }
    io::stdout().write_all(body(&answer))?;
    failure.map_or(Ok(()), |failure| Err(failure.into()))
}

/// Returns what follows the header, or everything if there is no header.
fn body(answer: &[u8]) -> &[u8] {
    let header = answer
        .windows(4)
        .position(|end| end == b"\r\n\r\n")
        .map_or(0, |end| end + 4);
    &answer[header..]
}
