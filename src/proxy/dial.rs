//! Connects to a backend or a server, and looks its name up.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{TcpStream, UnixStream, lookup_host},
    sync::Mutex,
    time::{Instant, sleep},
};

use super::plain::Plain;
use crate::config::Destination;

/// How long the addresses of a name are used, and how long a failure counts.
const FRESH: Duration = Duration::from_secs(2);
/// How long to wait for room at a Unix socket whose queue is full.
const FULL_PAUSE: Duration = Duration::from_millis(10);

/// A destination, and the addresses of its name. One lookup of it runs at a time: a lookup holds a thread
/// of the process until the system gives up, and a name that is slow must not take those of others.
pub(super) struct Dial {
    pub(super) to: Destination,
    looked_up: Arc<Mutex<Option<LookedUp>>>,
}

/// The outcome of a lookup.
struct LookedUp {
    at: Instant,
    found: Result<Vec<SocketAddr>, (io::ErrorKind, String)>,
}

impl Dial {
    pub(super) fn new(to: Destination) -> Self {
        Self {
            to,
            looked_up: Arc::default(),
        }
    }

    /// Connects. A name may have several addresses, which are tried one after the other. A backend at
    /// a Unix socket may be busy for ever: put a timeout around this.
    ///
    /// # Errors
    /// Those of the system.
    pub(super) async fn connect(&self) -> io::Result<Plain> {
        match &self.to {
            Destination::Tcp(host, port) => self.tcp(host, *port).await,
            Destination::Unix(path) => loop {
                match UnixStream::connect(path).await {
                    // As many connections wait as the backend has room for (unix(7)). The system does
                    // not tell when there is room again.
                    Err(err) if err.kind() == io::ErrorKind::WouldBlock => sleep(FULL_PAUSE).await,
                    connected => return connected.map(Plain::Unix),
                }
            },
        }
    }

    async fn tcp(&self, host: &str, port: u16) -> io::Result<Plain> {
        let addresses = match host.parse::<IpAddr>() {
            Ok(ip) => vec![SocketAddr::new(ip, port)],
            Err(_) => self.look_up(host.to_owned(), port).await?,
        };
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in addresses {
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    return Ok(Plain::Tcp(stream));
                }
                Err(err) => last = err,
            }
        }
        Err(last)
    }

    /// Returns the addresses of the name. The lookup goes on if the caller stops waiting, so that the next
    /// one begins no other.
    async fn look_up(&self, host: String, port: u16) -> io::Result<Vec<SocketAddr>> {
        let looked_up = Arc::clone(&self.looked_up);
        let looking = tokio::spawn(async move {
            let mut held = looked_up.lock().await;
            if let Some(held) = held.as_ref().filter(|held| held.at.elapsed() < FRESH) {
                return held.found.clone();
            }
            let found = lookup_host((host.as_str(), port)).await;
            let found = found
                .map(Iterator::collect)
                .map_err(|err| (err.kind(), err.to_string()));
            *held = Some(LookedUp {
                at: Instant::now(),
                found: Result::clone(&found),
            });
            found
        });
        let found: Result<Vec<SocketAddr>, _> = looking.await.map_err(io::Error::other)?;
        found.map_err(|(kind, why)| io::Error::new(kind, why))
    }
}
