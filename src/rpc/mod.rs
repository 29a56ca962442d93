//! The API: gRPC in, calls on the table, the caches and the contexts out. Errors turn into statuses here and nowhere else.
//!
//! * [`listen`]: where it listens
//! * [`access`]: what each caller may do
//! * [`tls`]: mutual TLS under it
//! * [`status`]: the table of refusals
//! * `accounts`, over `pool`: what one identity holds at a time
//! * `each_second`: how often one may do something in a second
//! * `health`, `reflection`: whether the daemon wants work, and what there is to call
//! * `lanes`: one thread for each core
//! * `line_budget`: how often the log tells of the same
//! * `lookout`: what such a thread does before it sleeps
//! * `http`, `socket`: one HTTP/2 connection, and the bytes under it
//! * `preface`: the first bytes of a connection
//! * `edge`: what every call passes
//! * `whole`: requests in whole messages
//! * [`local`]: calls from this process
//! * `connections`, `sessions`, `contexts`, `workers`: one file for each service
//! * `drive`, `attach`, `watch`: one for each stream
//! * `streams`: how many of them one HTTP/2 connection holds
//! * `batch`, `answers`: the calls of one message of an Attach, and what they answer, as bytes
//! * `seldom`: futures that are not asked at every wake-up
//! * [`reloads`]: the last reload, for those that ask
//! * `revoke`, `explain`: which sessions resume no more, and why not
//! * `session_list`: pages of sessions
//! * `convert`, `page`, `turns`, `request_ids`: messages, lists, one list at a time, repeated requests

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
use tokio_stream::StreamExt;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;
use tonic_reflection::pb::{
    v1::server_reflection_server as v1, v1alpha::server_reflection_server as v1alpha,
};

use crate::{
    config::Limits,
    log::panics::caught,
    proto::{
        self, connection_service_server::ConnectionServiceServer,
        context_service_server::ContextServiceServer, session_service_server::SessionServiceServer,
        worker_service_server::WorkerServiceServer,
    },
};

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
mod seldom;
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

/// Largest batch of an Attach: what it says in few bytes takes many times as much once it is read.
const BATCH_BYTES_MAX: usize = 2 << 20;
/// Largest request that names contexts.
const SHORT_BYTES_MAX: usize = 64 << 10;
/// Largest request of health and reflection, which are open to callers without a role.
const OPEN_BYTES_MAX: usize = 16 << 10;
/// Paths of all methods that are served. Only calls that the table of rights does not list ask for them.
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
            FileDescriptorSet::decode(set).expect("the descriptors are built in, and a test reads them");
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

/// Whether the daemon serves a method, by its descriptors.
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

/// The limits of the API that a reload may change. Clones change the same ones.
#[derive(Clone)]
pub struct LiveLimits {
    accounts: Arc<Accounts>,
    streams: Arc<StreamLimits>,
    connections: Arc<Connections>,
    sessions: Arc<Sessions>,
}

impl LiveLimits {
    /// Takes the limits of a new configuration: for what is asked for from now on. What is held beyond them stays.
    pub fn apply(&self, limits: &Limits) {
        self.accounts.resize(limits);
        self.streams.resize(limits.streams, limits.streams_non_worker);
        self.connections.plaintext_buffer.store(limits.plaintext_buffer, Ordering::Relaxed);
        self.sessions.misses.resize(limits.misses_per_second);
    }
}

/// What the API remembers of calls for some time.
#[derive(Clone)]
pub struct Memory(Arc<Opener>);

impl Memory {
    /// Forgets what is too old. Called at every sweep, for no other call may come.
    pub fn expire(&self, now: Timestamp) {
        self.0.request_ids.expire(now);
    }
}

/// Who is let in, and what that may do there. Both can change while it serves.
#[derive(Clone)]
pub struct Doors {
    /// The rules.
    pub access: Arc<Access>,
    /// Who comes over TLS. `None`: nobody does.
    pub acceptor: Option<Arc<Acceptor>>,
}

/// Why the API does not serve any more.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The system gave no thread, or no event queue for it.
    #[error("cannot start a thread of the API: {0}")]
    Thread(#[from] std::io::Error),
    /// The system let no thread begin again after a panic.
    #[error("all threads of the API ended by themselves")]
    ThreadsEnded,
}

impl Api {
    /// Puts the services together.
    ///
    /// # Errors
    /// The system has no random numbers.
    ///
    /// # Panics
    /// Never: the descriptors are built in, and a test reads them.
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

    /// What tells whether the daemon serves.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// What it remembers of calls.
    pub fn memory(&self) -> Memory {
        self.memory.clone()
    }

    /// What a reload may change of its limits.
    pub fn live_limits(&self) -> LiveLimits {
        self.live.clone()
    }

    /// Where the outcome of each reload is told.
    pub fn reloads(&self) -> Arc<Reloads> {
        Arc::clone(&self.reloads)
    }

    /// Answers calls of this process as those of a caller over loopback, without a socket.
    pub fn local(&self) -> Local {
        Local::new(&self.http)
    }

    /// Serves on one thread for each core until `signals.draining` is cancelled and the last call has ended, or
    /// `signals.kill` is.
    ///
    /// # Errors
    /// Threads that cannot be had, or that all end by themselves.
    pub async fn serve(self, mut listeners: Listeners, signals: &Signals) -> Result<(), ServeError> {
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let (http, stop) = (self.http, signals.clone());
        let serve = move |accepted, lookout| http.clone().serve(accepted, stop.clone(), lookout);
        let mut lanes = Lanes::start(cores, self.sockets_max, serve)?;
        loop {
            tokio::select! {
                () = signals.draining.cancelled() => break,
                // A panic has its line in the log, and costs the socket that it came with.
                accepted = caught(listeners.next()) => if let Ok(Some(accepted)) = accepted {
                    let _ = caught(lanes.hand(accepted)).await;
                },
                Some(()) = lanes.ended() => {
                    if lanes.alive() == 0 {
                        return Err(ServeError::ThreadsEnded);
                    }
                    tracing::error!(left = lanes.alive(), "a thread of the API ended and cannot begin again");
                }
            }
        }
        drop(listeners);
        lanes.close();
        while lanes.ended().await.is_some() {}
        Ok(())
    }
}
