//! The listener of a proxy, and what its connections share.

use std::{
    fmt, io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tls_sessiond_client::rustls::TlsStream;
use tls_sessiond_core::clock::WallTime;
use tls_sessiond_types::alert::Alert;
use tokio::{
    net::{TcpListener, TcpStream, UnixListener},
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    originate,
    places::{ConnectionPlace, ConnectionPlaces},
    plain::Plain,
    settings::Doing,
    tally::{End, ProxyTally, Unserved},
    visit,
};
use crate::{
    api::quota::line_budget::LineBudget,
    config::{Destination, ProxyConfig, ProxyListen, UnixFile},
    log::panics::caught,
    server::{
        bind::{self, SocketFile},
        passed::{PassedSocket, PassedSockets},
    },
};

/// How long to wait after an accept failed, for example because no file descriptor was free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Log lines of one kind that peers can cause, in each span.
const LINES: u32 = 5;
const LINES_SPAN: Duration = Duration::from_secs(10);

/// Why a client has no handshake.
pub(super) enum NoHandshake {
    Unserved(Unserved),
    Alert(Alert),
}

/// What the connections of a proxy share.
pub(super) struct ProxyDoor {
    /// The address that it listens on, as metrics and log lines have it.
    pub(super) name: String,
    pub(super) tally: ProxyTally,
    settings: ArcSwap<Live>,
    places: Arc<ConnectionPlaces>,
    lines: LineBudgets,
    /// Cancelled when connections must end at once.
    pub(super) abort: CancellationToken,
    /// Cancelled when connections should end: their backends get the end of the clients.
    pub(super) finish: CancellationToken,
}

/// The settings that a new connection takes.
pub(super) struct Live {
    pub(super) config: ProxyConfig,
    pub(super) doing: Doing,
    /// When the first certificate expires.
    pub(super) ends: Option<WallTime>,
}

/// Budgets for log lines that peers can cause.
struct LineBudgets {
    accept: LineBudget,
    away: LineBudget,
    failed: LineBudget,
    full: LineBudget,
}

impl ProxyDoor {
    pub(super) fn new(
        name: String,
        live: Live,
        abort: CancellationToken,
        finish: CancellationToken,
    ) -> Self {
        let budget = || LineBudget::new(LINES, LINES_SPAN);
        Self {
            name,
            tally: ProxyTally::default(),
            settings: ArcSwap::new(Arc::new(live)),
            places: Arc::default(),
            lines: LineBudgets {
                accept: budget(),
                away: budget(),
                failed: budget(),
                full: budget(),
            },
            abort,
            finish,
        }
    }

    /// Returns the settings in force.
    pub(super) fn live(&self) -> Arc<Live> {
        self.settings.load_full()
    }

    /// Makes new connections use other settings.
    pub(super) fn swap(&self, live: Live) {
        self.settings.store(Arc::new(live));
    }

    /// Counts a client without a handshake, and logs it as far as its budget allows.
    pub(super) fn failed(&self, peer: &dyn fmt::Display, failed: &NoHandshake) {
        let why = match failed {
            NoHandshake::Unserved(why) => {
                self.tally.unserved(*why);
                why.word().to_owned()
            }
            NoHandshake::Alert(alert) => {
                self.tally.failures.count(Some(*alert));
                alert.to_string()
            }
        };
        // A peer that only looks whether the port is open is a health check.
        if let NoHandshake::Unserved(Unserved::Ended) = failed {
            tracing::debug!(proxy = self.name, %peer, why, "no handshake");
        } else if let Some(left_out) = self.lines.failed.take(Instant::now()) {
            tracing::info!(proxy = self.name, %peer, why, left_out, "no handshake");
        }
    }

    /// Logs that a backend, or a server, could not be reached.
    pub(super) fn away(&self, backend: &Destination, err: &io::Error) {
        if let Some(left_out) = self.lines.away.take(Instant::now()) {
            tracing::warn!(proxy = self.name, %backend, %err, left_out, "cannot connect to the backend");
        }
    }

    /// Logs that the daemon did not run a connection.
    pub(super) fn no_engine(&self, err: &io::Error) {
        if let Some(left_out) = self.lines.away.take(Instant::now()) {
            tracing::warn!(proxy = self.name, %err, left_out, "the daemon runs no connection");
        }
    }

    /// Counts the end of a connection.
    pub(super) fn ended(
        &self,
        peer: SocketAddr,
        tls: &TlsStream<TcpStream>,
        end: End,
        took: Duration,
    ) {
        self.tally.ended(end);
        let (_, rustls) = tls.get_ref().get_ref();
        tracing::debug!(
            proxy = self.name,
            %peer,
            server_name = rustls.server_name().unwrap_or_default(),
            version = ?tls.version(),
            resumed = tls.resumed(),
            end = end.word(),
            milliseconds = took.as_millis(),
            "connection ended"
        );
    }

    fn take_place(&self) -> Option<ConnectionPlace> {
        let most = self.settings.load().config.connections;
        let place = self.places.take(most);
        if place.is_none() {
            self.tally.unserved(Unserved::TooMany);
            if let Some(left_out) = self.lines.full.take(Instant::now()) {
                tracing::warn!(
                    proxy = self.name,
                    connections = most,
                    left_out,
                    "as many connections are open as the proxy allows: a new one is reset"
                );
            }
        }
        place
    }
}

/// A socket that accepts the connections of a proxy.
pub(super) enum ProxyListener {
    Tls(TcpListener),
    Tcp(TcpListener),
    /// The file comes first, so it is dropped first.
    Unix(SocketFile, UnixListener),
}

impl ProxyListener {
    /// Binds the address of a proxy.
    ///
    /// # Errors
    /// Those of the system, with the address.
    pub(super) fn bind(
        config: &ProxyConfig,
        file: UnixFile,
        passed: &mut PassedSockets,
    ) -> io::Result<Self> {
        match &config.listen {
            ProxyListen::Systemd(name) => Self::passed(name, config.terminates(), passed),
            ProxyListen::Tls(address) => bind::tcp("tls", *address, false).map(Self::Tls),
            ProxyListen::Tcp(address) => bind::tcp("tcp", *address, false).map(Self::Tcp),
            ProxyListen::Unix(path) => {
                bind::unix(path, file).map(|(file, socket)| Self::Unix(file, socket))
            }
        }
    }

    fn passed(name: &str, terminates: bool, passed: &mut PassedSockets) -> io::Result<Self> {
        let refuse = |why: String| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        match passed.take(name) {
            None => refuse(format!(
                "cannot listen on systemd:{name}: systemd has passed no socket of this name (LISTEN_FDS, LISTEN_FDNAMES, LISTEN_PID)"
            )),
            Some(PassedSocket::Tcp(socket, _)) if terminates => Ok(Self::Tls(socket)),
            Some(PassedSocket::Tcp(socket, address)) if address.ip().is_loopback() => {
                Ok(Self::Tcp(socket))
            }
            Some(PassedSocket::Tcp(_, address)) => refuse(format!(
                "cannot listen on systemd:{name}: {address} is not a loopback address, and programs send plaintext there"
            )),
            Some(PassedSocket::Unix(..)) if terminates => refuse(format!(
                "cannot listen on systemd:{name}: a Unix socket, and clients connect over TCP"
            )),
            Some(PassedSocket::Unix(file, socket)) => Ok(Self::Unix(file, socket)),
        }
    }

    /// Returns the bound address, with the port that the system chose.
    pub(super) fn address(&self) -> ProxyListen {
        let unset = SocketAddr::from(([0, 0, 0, 0], 0));
        let bound = |socket: &TcpListener| socket.local_addr().unwrap_or(unset);
        match self {
            Self::Tls(socket) => ProxyListen::Tls(bound(socket)),
            Self::Tcp(socket) => ProxyListen::Tcp(bound(socket)),
            Self::Unix(file, _) => ProxyListen::Unix(file.path().to_owned()),
        }
    }

    async fn accept(&self) -> io::Result<(Plain, Option<SocketAddr>)> {
        match self {
            Self::Tls(socket) | Self::Tcp(socket) => {
                let (stream, peer) = socket.accept().await?;
                stream.set_nodelay(true)?;
                Ok((Plain::Tcp(stream), Some(peer)))
            }
            Self::Unix(_, socket) => {
                let (stream, _) = socket.accept().await?;
                Ok((Plain::Unix(stream), None))
            }
        }
    }
}

/// Accepts connections until `drain` is cancelled. `tracker` has their tasks.
pub(super) async fn accept(
    listener: ProxyListener,
    proxy: Arc<ProxyDoor>,
    drain: CancellationToken,
    tracker: TaskTracker,
) {
    loop {
        let accepted = tokio::select! {
            () = drain.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, peer)) => {
                let Some(place) = proxy.take_place() else {
                    socket.reset();
                    continue;
                };
                let proxy = Arc::clone(&proxy);
                // A panic is logged, and costs this connection only.
                tracker.spawn(caught(
                    async move { serve(&proxy, socket, peer, place).await },
                ));
            }
            Err(err) => {
                if let Some(left_out) = proxy.lines.accept.take(Instant::now()) {
                    tracing::warn!(proxy = proxy.name, %err, left_out, "cannot accept a connection; the next attempt is in 100 ms");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(proxy: &ProxyDoor, socket: Plain, peer: Option<SocketAddr>, place: ConnectionPlace) {
    let live = proxy.live();
    match (&live.doing, socket, peer) {
        (Doing::Terminate(settings), Plain::Tcp(socket), Some(peer)) => {
            visit::terminate(proxy, (&live.config, settings), socket, peer, place).await;
        }
        (Doing::Originate(settings), socket, _) => {
            originate::originate(proxy, (&live.config, settings), socket, place).await;
        }
        // A proxy that terminates TLS has no Unix socket.
        (Doing::Terminate(_), ..) => {}
    }
}
