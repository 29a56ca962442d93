//! The API: gRPC in, calls on the table, the caches and the contexts out. Errors turn into statuses here and nowhere else.
//!
//! * [`listen`]: sockets, who calls, and when a connection must end
//! * [`status`]: the table of refusals
//! * `lanes`: one thread for each core
//! * `edge`: what every call passes
//! * `connections`, `sessions`, `contexts`, `workers`: one file for each service
//! * `drive`, `attach`: one for each stream
//! * `convert`, `page`, `request_ids`: messages, lists, repeated requests

use std::{num::NonZeroUsize, sync::Arc, thread, time::Duration};

use tokio_stream::StreamExt;
use tonic::{service::Routes, transport::Server};
use tonic_health::server::HealthReporter;

use crate::{
    config::Limits,
    connection::{Error, Table},
    proto::{
        self, connection_service_server::ConnectionServiceServer,
        context_service_server::ContextServiceServer, session_service_server::SessionServiceServer,
        worker_service_server::WorkerServiceServer,
    },
};

mod attach;
mod connections;
mod contexts;
mod convert;
mod drive;
mod edge;
mod lanes;
pub mod listen;
mod page;
mod request_ids;
mod sessions;
pub mod status;
mod workers;

use connections::{Connections, Opener};
use contexts::Contexts;
use edge::Edge;
use lanes::Lanes;
use listen::{Listeners, Signals};
use page::Pages;
use request_ids::RequestIds;
use sessions::Sessions;
use workers::Workers;

/// How often an idle HTTP/2 connection is asked whether it lives, and how long it may take to answer.
const KEEPALIVE: Duration = Duration::from_secs(60);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// What a call may send ahead of being read. A Drive whose answers nobody reads is not read from either, and its window
/// fills; the connection's window has room for all of them, or one such stream would stop every other call of its worker.
const STREAM_WINDOW: u32 = 256 << 10;
/// RFC 9113 section 6.9.1.
const WINDOW_MAX: u32 = (1 << 31) - 1;

fn connection_window(streams: u32) -> u32 {
    streams.saturating_add(1).saturating_mul(STREAM_WINDOW).min(WINDOW_MAX)
}

/// Largest batch of an Attach: what it says in few bytes takes many times as much once it is read.
const BATCH_BYTES_MAX: usize = 2 << 20;
/// Largest header block of a call.
const HEADERS_MAX: u32 = 16 << 10;
/// Streams that a peer reset before they were handled (CVE-2023-44487).
const PENDING_RESETS_MAX: usize = 64;

/// The services that health speaks of; `""` is the daemon as a whole.
const HEALTH_NAMES: [&str; 5] = [
    "",
    "tls.sessiond.v1.ConnectionService",
    "tls.sessiond.v1.SessionService",
    "tls.sessiond.v1.ContextService",
    "tls.sessiond.v1.WorkerService",
];

/// All services, ready to be served.
pub struct Api {
    routes: Routes,
    streams: u32,
    health: Health,
}

/// Why the API does not serve any more.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The system gave no thread, or no event queue for it.
    #[error("cannot start a thread of the API: {0}")]
    Thread(#[from] std::io::Error),
    /// gRPC failed by itself.
    #[error("the API ended by itself: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// Tells orchestrators whether to send work.
#[derive(Clone)]
pub struct Health(HealthReporter);

impl Health {
    /// grpc.health.v1: for the daemon and for each service.
    pub async fn set(&self, serving: Serving) {
        let status = match serving {
            Serving::Yes => tonic_health::ServingStatus::Serving,
            Serving::No => tonic_health::ServingStatus::NotServing,
        };
        for name in HEALTH_NAMES {
            self.0.set_service_status(name, status).await;
        }
    }
}

/// Whether the daemon wants work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serving {
    /// SERVING.
    Yes,
    /// NOT_SERVING: it starts or stops.
    No,
}

impl Api {
    /// Puts the services together.
    ///
    /// # Errors
    /// The system has no random numbers.
    ///
    /// # Panics
    /// Never: the descriptors are built in, and a test reads them.
    pub fn new(table: Arc<Table>, limits: &Limits, signals: &Signals) -> Result<Self, Error> {
        let (reporter, health) = tonic_health::server::health_reporter();
        let pages = Arc::new(Pages::new()?);
        let request_ids = RequestIds::new(limits.connections);
        let connections = Arc::new(Connections {
            opener: Arc::new(Opener { table: Arc::clone(&table), request_ids }),
            pages: Arc::clone(&pages),
            draining: signals.draining.clone(),
            plaintext_buffer: limits.plaintext_buffer,
        });
        let sessions = Arc::new(Sessions { table: Arc::clone(&table), pages });
        let workers = Workers {
            connections: Arc::clone(&connections),
            sessions: Arc::clone(&sessions),
            draining: signals.draining.clone(),
        };
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        let routes = Routes::default()
            .add_service(
                ConnectionServiceServer::from_arc(connections).max_decoding_message_size(limits.message),
            )
            .add_service(SessionServiceServer::from_arc(sessions).max_decoding_message_size(limits.message))
            .add_service(
                ContextServiceServer::new(Contexts { started: table.now(), table })
                    .max_decoding_message_size(limits.message),
            )
            .add_service(
                WorkerServiceServer::new(workers)
                    .max_decoding_message_size(limits.message.min(BATCH_BYTES_MAX)),
            )
            .add_service(health)
            .add_service(reflection().build_v1().expect("the descriptors are valid"))
            .add_service(reflection().build_v1alpha().expect("the descriptors are valid"));
        Ok(Self { routes, streams: limits.streams, health: Health(reporter) })
    }

    /// What tells whether the daemon serves.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Serves on one thread for each core until `signals.draining` is cancelled and the last call has ended, or
    /// `signals.kill` is.
    ///
    /// # Errors
    /// Threads that cannot be had, and those of the transport.
    pub async fn serve(self, mut listeners: Listeners, signals: &Signals) -> Result<(), ServeError> {
        let (routes, streams, draining) = (self.routes, self.streams, signals.draining.clone());
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let mut lanes = Lanes::start(cores, signals, move |incoming| {
            Server::builder()
                .max_concurrent_streams(streams)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(connection_window(streams))
                .http2_keepalive_interval(Some(KEEPALIVE))
                .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
                .http2_max_header_list_size(HEADERS_MAX)
                .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS_MAX))
                .layer(Edge)
                .add_routes(routes.clone())
                .serve_with_incoming_shutdown(incoming, draining.clone().cancelled_owned())
        })?;
        loop {
            tokio::select! {
                () = signals.draining.cancelled() => break,
                Some(accepted) = listeners.next() => lanes.hand(accepted).await,
                // None ends before it is told to, but by an error.
                Some(ended) = lanes.ended() => ended?,
            }
        }
        drop(listeners);
        lanes.close();
        while let Some(ended) = lanes.ended().await {
            ended?;
        }
        Ok(())
    }
}
