//! The socket of the admin address, and the connections to it.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    feed::Feed,
    history::HOUR_STEP,
    places::{Place, Places},
    routes::{self, Visitor},
};
use crate::{
    api::admin::Admin,
    config::{AdminDoor, AdminEndpoint},
    log::panics::caught,
    server::tls::Acceptor,
};

/// How long a visitor may take for the head of a request, and for a TLS handshake. A connection
/// without a request ends after it.
const HEAD: Duration = Duration::from_secs(10);
/// How long to wait after an accept failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Largest head of a request, in bytes.
const HEAD_MAX: usize = 16 << 10;

/// The bound socket of the admin address.
pub struct AdminListener {
    socket: TcpListener,
    door: AdminDoor,
    acceptor: Option<Arc<Acceptor>>,
}

impl AdminListener {
    /// Binds the address. An optional one that cannot be bound is left out, and a log line says so.
    /// `key` names it in an error. Needs a tokio runtime around it.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub fn bind(
        key: &str,
        endpoint: AdminEndpoint,
        acceptor: Option<Arc<Acceptor>>,
    ) -> io::Result<Option<Self>> {
        let address = endpoint.address;
        let bind = || {
            let socket = std::net::TcpListener::bind(address)?;
            socket.set_nonblocking(true)?;
            TcpListener::from_std(socket)
        };
        match bind() {
            Ok(socket) => Ok(Some(Self {
                socket,
                door: endpoint.door,
                acceptor,
            })),
            Err(err) if endpoint.optional => {
                tracing::warn!(%address, %err, "cannot bind the default admin address; continuing without metrics and probes");
                Ok(None)
            }
            Err(err) => Err(io::Error::new(
                err.kind(),
                format!("cannot listen on {address} ({key}): {err}"),
            )),
        }
    }

    /// Returns the bound address, with the port that the system chose.
    ///
    /// # Errors
    /// Those of getsockname(2).
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves the daemon's metrics, probes and status page until it is dropped.
    pub(crate) async fn serve(self, admin: Arc<Admin>) {
        let feed = Arc::new(Feed::new(Arc::clone(&admin)));
        let fed = Arc::clone(&feed);
        let steps = async {
            let mut steps = interval(Duration::from_secs(HOUR_STEP));
            steps.set_missed_tick_behavior(MissedTickBehavior::Delay);
            // The first tick is at once, and no step has ended then.
            steps.tick().await;
            loop {
                steps.tick().await;
                feed.step();
            }
        };
        let routes: Routes = Arc::new(move |visitor, place| {
            routes::router(Arc::clone(&admin), Arc::clone(&fed), visitor, place)
        });
        tokio::join!(steps, self.serve_routes(routes));
    }

    /// Serves until it is dropped. `routes` makes the answers for each connection.
    pub(crate) async fn serve_routes(self, routes: Routes) {
        let places = Arc::new(Places::default());
        loop {
            match self.socket.accept().await {
                Ok((socket, _)) => {
                    let door = Door {
                        routes: Arc::clone(&routes),
                        kind: self.door,
                        acceptor: self.acceptor.clone(),
                    };
                    let held = places.take();
                    // A panic is logged, and costs this connection only.
                    tokio::spawn(caught(async move {
                        tokio::select! {
                            () = door.serve(socket, held.place()) => {}
                            () = held.ended() => {}
                        }
                    }));
                }
                Err(err) => {
                    tracing::debug!(%err, "accept failed on the admin address");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Makes the answers for one visitor, at its place.
pub(crate) type Routes = Arc<dyn Fn(Visitor, Arc<Place>) -> Router + Send + Sync>;

/// Serves one connection.
struct Door {
    routes: Routes,
    kind: AdminDoor,
    acceptor: Option<Arc<Acceptor>>,
}

impl Door {
    async fn serve(self, socket: TcpStream, place: &Arc<Place>) {
        // The limit of the head begins with its first byte.
        if !matches!(timeout(HEAD, socket.readable()).await, Ok(Ok(()))) {
            return;
        }
        // An answer goes out at once. An error means that the peer is gone.
        let _ = socket.set_nodelay(true);
        match (self.kind, &self.acceptor) {
            (AdminDoor::Local, _) => self.http(socket, Visitor::local(), place).await,
            (AdminDoor::Public, _) => self.http(socket, Visitor::stranger(), place).await,
            (AdminDoor::MutualTls, Some(acceptor)) => match acceptor.accept_http(socket).await {
                Ok((stream, peer)) => self.http(stream, Visitor::proved(peer), place).await,
                Err(err) => {
                    tracing::debug!(%err, "TLS handshake failed on the admin address");
                }
            },
            (AdminDoor::MutualTls, None) => {}
        }
    }

    async fn http<S>(&self, stream: S, visitor: Visitor, place: &Arc<Place>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let router = (self.routes)(visitor, Arc::clone(place));
        let service = TowerToHyperService::new(router);
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .max_buf_size(HEAD_MAX);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(16)
            .max_header_list_size(u32::try_from(HEAD_MAX).unwrap_or(u32::MAX))
            .keep_alive_interval(HEAD)
            .keep_alive_timeout(HEAD);
        // An error is the peer's: it is gone, or has sent what is not HTTP.
        let _ = builder
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }
}
