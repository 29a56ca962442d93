//! The gRPC API. Translates calls into operations on the connection table, the session caches and
//! the contexts. This is the only room that turns errors into gRPC statuses.
//!
//! * [`listen`]: the listening sockets
//! * [`access`]: identities, roles and the rights of each caller
//! * [`tls`]: mutual TLS for API connections
//! * [`status`]: the table of refusals and their gRPC statuses
//! * `accounts`, over `pool`: limits on the resources that one identity holds at a time
//! * `each_second`: rate limits for each owner, per second
//! * `health`, `reflection`: the standard gRPC services of these names
//! * `lanes`: the server threads, one for each core
//! * `line_budget`: rate limits for log lines
//! * `lookout`: busy polling of a server thread before it blocks
//! * `http`, `socket`: one HTTP/2 connection, and the buffered socket under it
//! * `preface`: the first bytes of a connection
//! * `edge`: admission of calls: rights, limits and deadline
//! * `whole`: request bodies that hold a message back until it is complete
//! * [`local`]: in-process calls, without a socket
//! * `connections`, `sessions`, `contexts`, `workers`: one file for each service
//! * `drive`, `attach`, `watch`: one file for each streaming RPC
//! * `streams`: how many long streams one HTTP/2 connection holds
//! * `batch`, `answers`: decode the calls of one Attach message and encode their answers
//! * `seldom`: futures that are polled only after their own waker fired
//! * [`reloads`]: the outcome of the last reload
//! * `revoke`, `explain`: revocation, and why a session is no longer found
//! * `session_list`: pages of sessions
//! * `convert`: conversion to and from API messages
//! * `page`: page tokens of lists
//! * `turns`: one running list for each caller
//! * `request_ids`: idempotency of repeated requests

use std::{
    collections::HashSet,
    num::NonZeroUsize,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use prost::Message;
use prost_types::FileDescriptorSet;
use tls_sessiond_core::{
    clock::Timestamp,
    connection::{Error, Table},
};
use tls_sessiond_proto as proto;
use tls_sessiond_proto::{
    connection_service_server::ConnectionServiceServer, context_service_server::ContextServiceServer,
    session_service_server::SessionServiceServer, worker_service_server::WorkerServiceServer,
};
use tokio_stream::StreamExt;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;
use tonic_reflection::pb::{
    v1::server_reflection_server as v1, v1alpha::server_reflection_server as v1alpha,
};

use crate::{config::Limits, log::panics::caught};

pub mod access;
mod accounts;
mod answers;
mod attach;
mod batch;
mod connections;
mod contexts;
mod convert;
mod drive;
mod each_second;
mod edge;
mod explain;
mod health;
mod http;
mod lanes;
mod line_budget;
pub mod listen;
pub mod local;
mod lookout;
mod page;
mod pool;
mod preface;
mod reflection;
pub mod reloads;
mod request_ids;
mod revoke;
mod session_list;
mod sessions;
mod socket;
pub mod status;
mod streams;
pub mod tls;
mod turns;
mod watch;
mod whole;
mod workers;

pub use self::health::{Health, Serving};
use access::Access;
use accounts::Accounts;
use connections::{Connections, Opener};
use contexts::Contexts;
use each_second::EachSecond;
use http::{Gate, Http, MessageLimits, Services};
use lanes::Lanes;
use listen::{Listeners, Signals};
use local::Local;
use page::Pages;
use reflection::Reflection;
use reloads::Reloads;
use request_ids::RequestIds;
use sessions::Sessions;
use streams::{StreamLimits, StreamTotals};
use tls::Acceptor;
use turns::Turns;
use workers::Workers;

/// Largest batch of an Attach, in bytes. A decoded batch takes many times the memory of its bytes.
const BATCH_BYTES_MAX: usize = 2 << 20;
/// Largest request of the context service, in bytes.
const SHORT_BYTES_MAX: usize = 64 << 10;
/// Largest request of health and reflection, in bytes. Callers without a role may call these.
const OPEN_BYTES_MAX: usize = 16 << 10;
/// The paths of all methods that the daemon serves. Read only for a call that the table of rights
/// does not list.
static METHODS: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let sets = [
        proto::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let mut methods = HashSet::new();
    for set in sets {
        let set =
            FileDescriptorSet::decode(set).expect("the descriptors are compiled in and a test decodes them");
        for file in &set.file {
            for service in &file.service {
                let paths = service
                    .method
                    .iter()
                    .map(|method| format!("/{}.{}/{}", file.package(), service.name(), method.name()));
                methods.extend(paths);
            }
        }
    }
    methods
});

/// Returns whether the protobuf descriptors of the daemon have the method of this path.
fn serves(path: &str) -> bool {
    METHODS.contains(path)
}

/// All services, ready to be served.
pub struct Api {
    http: Http,
    sockets_max: usize,
    health: Health,
    memory: Memory,
    live: LiveLimits,
    reloads: Arc<Reloads>,
}

/// The limits of the API that a reload may change. All clones share the same limits.
#[derive(Clone)]
pub struct LiveLimits {
    accounts: Arc<Accounts>,
    streams: Arc<StreamLimits>,
    connections: Arc<Connections>,
    sessions: Arc<Sessions>,
}

impl LiveLimits {
    /// Applies the limits of a new configuration to later requests. Resources that are already held
    /// stay held, even where they exceed a new limit.
    pub fn apply(&self, limits: &Limits) {
        self.accounts.resize(limits);
        self.streams.resize(limits.streams, limits.streams_non_worker);
        self.connections.plaintext_buffer.store(limits.plaintext_buffer, Ordering::Relaxed);
        self.sessions.misses.resize(limits.misses_per_second);
    }
}

/// The answers that the API remembers for a time, to repeat them for a repeated request id.
#[derive(Clone)]
pub struct Memory(Arc<Opener>);

impl Memory {
    /// Removes expired answers. Every sweep calls this, because no later call may come to do it.
    pub fn expire(&self, now: Timestamp) {
        self.0.request_ids.expire(now);
    }
}

/// The access rules and the TLS acceptor of the API. A reload can change both while the API serves.
#[derive(Clone)]
pub struct Doors {
    /// Announces changed rules, and writes the audit log.
    pub access: Arc<Access>,
    /// Performs TLS handshakes with clients. `None` where no TLS is configured.
    pub acceptor: Option<Arc<Acceptor>>,
}

/// Why the API stopped serving.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The system refused to create a thread or its event queue.
    #[error("cannot start a server thread of the API: {0}")]
    Thread(#[from] std::io::Error),
    /// All server threads ended, and the system refused to restart them.
    #[error("all server threads of the API ended after panics and cannot be restarted")]
    ThreadsEnded,
}

impl Api {
    /// Creates all services.
    ///
    /// # Errors
    /// The system provides no random numbers.
    ///
    /// # Panics
    /// Never. The descriptors are compiled in, and a test decodes them.
    pub fn new(table: Arc<Table>, limits: &Limits, doors: Doors, signals: &Signals) -> Result<Self, Error> {
        let health = Health::new(signals.draining.clone());
        let pages = Arc::new(Pages::new()?);
        let opener = Arc::new(Opener { table: Arc::clone(&table), request_ids: RequestIds::default() });
        let lists = Arc::new(Turns::default());
        let connections = Arc::new(Connections {
            lists: Arc::clone(&lists),
            opener: Arc::clone(&opener),
            pages: Arc::clone(&pages),
            draining: signals.draining.clone(),
            plaintext_buffer: AtomicUsize::new(limits.plaintext_buffer),
        });
        let sessions = Arc::new(Sessions {
            lists,
            table: Arc::clone(&table),
            pages,
            misses: EachSecond::new(limits.misses_per_second),
            draining: signals.draining.clone(),
        });
        let gate = Gate {
            access: doors.access,
            tls: doors.acceptor,
            accounts: Arc::new(Accounts::new(limits)),
            table: Arc::clone(&table),
            streams: Arc::new(StreamLimits::new(limits.streams, limits.streams_non_worker)),
            stream_totals: Arc::new(StreamTotals::new()),
        };
        let workers = Workers {
            connections: Arc::clone(&connections),
            sessions: Arc::clone(&sessions),
            draining: signals.draining.clone(),
        };
        let stream_totals = Arc::clone(&gate.stream_totals);
        let live = LiveLimits {
            accounts: Arc::clone(&gate.accounts),
            streams: Arc::clone(&gate.streams),
            connections: Arc::clone(&connections),
            sessions: Arc::clone(&sessions),
        };
        let reloads = Arc::new(Reloads::default());
        let contexts =
            Contexts { started: table.now().at, table, stream_totals, reloads: Arc::clone(&reloads) };
        let messages = MessageLimits {
            connections: limits.message,
            sessions: limits.message.min(BATCH_BYTES_MAX),
            contexts: limits.message.min(SHORT_BYTES_MAX),
            workers: limits.message.min(BATCH_BYTES_MAX),
            others: OPEN_BYTES_MAX,
        };
        let reflection = Reflection::new(signals.draining.clone());
        let answers = HealthServer::new(health.clone()).max_decoding_message_size(messages.others);
        let services = Services {
            connections: ConnectionServiceServer::from_arc(connections)
                .max_decoding_message_size(messages.connections),
            sessions: SessionServiceServer::from_arc(sessions).max_decoding_message_size(messages.sessions),
            contexts: ContextServiceServer::new(contexts).max_decoding_message_size(messages.contexts),
            workers: WorkerServiceServer::new(workers).max_decoding_message_size(messages.workers),
            others: Routes::new(answers)
                .add_service(
                    v1::ServerReflectionServer::new(reflection.clone())
                        .max_decoding_message_size(messages.others),
                )
                .add_service(
                    v1alpha::ServerReflectionServer::new(reflection)
                        .max_decoding_message_size(messages.others),
                )
                .prepare(),
            messages,
        };
        let http = Http::new(services, gate);
        Ok(Self { http, sockets_max: limits.sockets, health, memory: Memory(opener), live, reloads })
    }

    /// Returns the handle that sets whether the daemon reports itself as serving.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Returns the remembered answers, so that the sweep can expire them.
    pub fn memory(&self) -> Memory {
        self.memory.clone()
    }

    /// Returns the limits that a reload may change.
    pub fn live_limits(&self) -> LiveLimits {
        self.live.clone()
    }

    /// Returns the record of the last reload's outcome.
    pub fn reloads(&self) -> Arc<Reloads> {
        Arc::clone(&self.reloads)
    }

    /// Returns an in-process client. The API treats its calls as those of a caller over loopback.
    pub fn local(&self) -> Local {
        Local::new(&self.http)
    }

    /// Serves on one server thread for each core. Returns when `signals.draining` is cancelled and
    /// the last call has ended, or when `signals.kill` is cancelled.
    ///
    /// # Errors
    /// A server thread cannot be started, or all of them ended and cannot be restarted.
    pub async fn serve(self, mut listeners: Listeners, signals: &Signals) -> Result<(), ServeError> {
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let (http, stop) = (self.http, signals.clone());
        let serve = move |accepted, lookout| http.clone().serve(accepted, stop.clone(), lookout);
        let mut lanes = Lanes::start(cores, self.sockets_max, serve)?;
        loop {
            tokio::select! {
                () = signals.draining.cancelled() => break,
                // A panic is logged and costs only the socket that was accepted.
                accepted = caught(listeners.next()) => if let Ok(Some(accepted)) = accepted {
                    let _ = caught(lanes.hand(accepted)).await;
                },
                Some(()) = lanes.ended() => {
                    if lanes.alive() == 0 {
                        return Err(ServeError::ThreadsEnded);
                    }
                    tracing::error!(left = lanes.alive(), "a server thread of the API ended and cannot be restarted");
                }
            }
        }
        drop(listeners);
        lanes.close();
        while lanes.ended().await.is_some() {}
        Ok(())
    }
}
