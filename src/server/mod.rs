//! The rim: how a call arrives, from a socket to a service of [`crate::api`].
//!
//! * [`listen`]: the listening sockets, over `bind` and `passed`
//! * [`tls`]: mutual TLS for API connections
//! * `preface`: the first bytes of a connection
//! * `http`: one HTTP/2 connection, over `write_buffer`, the buffered socket
//! * `message`: request bodies that hold a message back until it is complete
//! * `admission`: rights, limits and deadline of every call
//! * `router`: the services, and the choice of one for a call
//! * `threads`: the server threads, one for each core
//! * `busy_poll`: polling of a server thread before it blocks
//! * [`in_process`]: calls without a socket

use std::{
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use tls_sessiond_core::{clock::Timestamp, connection::Error, state::CoreState};
use tls_sessiond_proto::{
    admin_service_server::AdminServiceServer, connection_service_server::ConnectionServiceServer,
    context_service_server::ContextServiceServer,
    envoy::secret_discovery_service_server::SecretDiscoveryServiceServer,
    session_service_server::SessionServiceServer,
    ticket_key_service_server::TicketKeyServiceServer, worker_service_server::WorkerServiceServer,
};
use tokio_stream::StreamExt;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;
use tonic_reflection::pb::{
    v1::server_reflection_server as v1, v1alpha::server_reflection_server as v1alpha,
};

use crate::{
    api::{
        access::Access,
        admin::{Admin, operator::Operator},
        connections::{Connections, Opener},
        contexts::Contexts,
        durations::CallDurations,
        health::Health,
        idempotency::RequestIds,
        page_token::PageTokens,
        quota::{
            Accounts,
            each_second::EachSecond,
            streams::{StreamLimits, StreamTotals},
            turns::Turns,
        },
        reflection::Reflection,
        reloads::Reloads,
        sessions::Sessions,
        ticket_keys::TicketKeys,
        workers::Workers,
    },
    config::Limits,
    log::panics::caught,
    rings::Rings,
    shutdown::Shutdown,
    store::Store,
    trace::Tracer,
};

mod admission;
pub(crate) mod bind;
mod busy_poll;
mod http;
pub mod in_process;
pub mod listen;
mod message;
pub(crate) mod passed;
mod preface;
mod router;
mod threads;
pub mod tls;
mod write_buffer;

pub use self::threads::Pulse;
use self::{
    http::{Gate, Http},
    in_process::InProcess,
    listen::Listeners,
    router::{MessageLimits, Services},
    threads::ServerThreads,
    tls::Acceptor,
};

/// Largest batch of an Attach, in bytes. A decoded batch takes many times the memory of its bytes.
const BATCH_BYTES_MAX: usize = 2 << 20;
/// Largest request of the context service and of the admin service, in bytes.
const SHORT_BYTES_MAX: usize = 64 << 10;
/// Largest request of health and reflection, in bytes. Callers without a role may call these.
const OPEN_BYTES_MAX: usize = 16 << 10;
/// All services, ready to be served.
pub struct Api {
    http: Http,
    sockets_max: usize,
    health: Health,
    memory: Memory,
    live: LiveLimits,
    reloads: Arc<Reloads>,
    admin: Arc<Admin>,
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
        self.streams
            .resize(limits.streams, limits.streams_non_worker);
        self.connections
            .plaintext_buffer
            .store(limits.plaintext_buffer, Ordering::Relaxed);
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
pub struct Ingress {
    /// Announces changed rules, and writes the audit log.
    pub access: Arc<Access>,
    /// Performs TLS handshakes with clients. `None` where no TLS is configured.
    pub acceptor: Option<Arc<Acceptor>>,
}

/// What the API uses and does not own.
#[derive(Clone)]
pub struct Beside {
    /// Begins the spans of calls.
    pub tracer: Tracer,
    /// The rings of ticket keys.
    pub rings: Arc<Rings>,
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
    pub fn new(
        state: Arc<CoreState>,
        limits: &Limits,
        doors: Ingress,
        store: Option<Arc<Store>>,
        operator: Arc<Operator>,
        Beside { tracer, rings }: Beside,
        shutdown: &Shutdown,
    ) -> Result<Self, Error> {
        let health = Health::new(shutdown.drain.clone());
        let pages = Arc::new(PageTokens::new()?);
        let opener = Arc::new(Opener {
            state: Arc::clone(&state),
            request_ids: RequestIds::default(),
            store: store.clone(),
        });
        let lists = Arc::new(Turns::default());
        let connections = Arc::new(Connections {
            lists: Arc::clone(&lists),
            opener: Arc::clone(&opener),
            pages: Arc::clone(&pages),
            draining: shutdown.drain.clone(),
            plaintext_buffer: AtomicUsize::new(limits.plaintext_buffer),
        });
        let sessions = Arc::new(Sessions {
            lists: Arc::clone(&lists),
            state: Arc::clone(&state),
            pages,
            misses: EachSecond::new(limits.misses_per_second),
            draining: shutdown.drain.clone(),
            store: store.clone(),
        });
        let acceptor = doors.acceptor.clone();
        let durations = Arc::new(CallDurations::new(tracer));
        let gate = Gate {
            access: doors.access,
            tls: doors.acceptor,
            accounts: Arc::new(Accounts::new(limits)),
            state: Arc::clone(&state),
            streams: Arc::new(StreamLimits::new(limits.streams, limits.streams_non_worker)),
            stream_totals: Arc::new(StreamTotals::new()),
            durations: Arc::clone(&durations),
        };
        let workers = Workers {
            durations: Arc::clone(&durations),
            connections: Arc::clone(&connections),
            sessions: Arc::clone(&sessions),
            draining: shutdown.drain.clone(),
        };
        let stream_totals = Arc::clone(&gate.stream_totals);
        let live = LiveLimits {
            accounts: Arc::clone(&gate.accounts),
            streams: Arc::clone(&gate.streams),
            connections: Arc::clone(&connections),
            sessions: Arc::clone(&sessions),
        };
        let ticket_keys = Arc::new(TicketKeys {
            rings: Arc::clone(&rings),
            state: Arc::clone(&state),
            draining: shutdown.drain.clone(),
        });
        let reloads = Arc::new(Reloads::default());
        let admin = Arc::new(Admin {
            lists,
            state: Arc::clone(&state),
            started: state.now().at,
            accounts: Arc::clone(&gate.accounts),
            stream_totals: Arc::clone(&stream_totals),
            reloads: Arc::clone(&reloads),
            store: store.clone(),
            operator,
            health: health.clone(),
            durations: Arc::clone(&durations),
            sockets_max: limits.sockets,
            rings,
            listen_ends: Box::new(move || acceptor.as_ref().map(|acceptor| acceptor.ends())),
        });
        let contexts = Contexts {
            started: state.now().at,
            state,
            stream_totals,
            reloads: Arc::clone(&reloads),
            store,
        };
        let messages = MessageLimits {
            connections: limits.message,
            sessions: limits.message.min(BATCH_BYTES_MAX),
            contexts: limits.message.min(SHORT_BYTES_MAX),
            workers: limits.message.min(BATCH_BYTES_MAX),
            admin: limits.message.min(SHORT_BYTES_MAX),
            ticket_keys: limits.message.min(SHORT_BYTES_MAX),
            others: OPEN_BYTES_MAX,
        };
        let reflection = Reflection::new(shutdown.drain.clone());
        let answers = HealthServer::new(health.clone()).max_decoding_message_size(messages.others);
        let services = Services {
            connections: ConnectionServiceServer::from_arc(connections)
                .max_decoding_message_size(messages.connections),
            sessions: SessionServiceServer::from_arc(sessions)
                .max_decoding_message_size(messages.sessions),
            contexts: ContextServiceServer::new(contexts)
                .max_decoding_message_size(messages.contexts),
            workers: WorkerServiceServer::new(workers).max_decoding_message_size(messages.workers),
            admin: AdminServiceServer::from_arc(Arc::clone(&admin))
                .max_decoding_message_size(messages.admin),
            ticket_keys: TicketKeyServiceServer::from_arc(Arc::clone(&ticket_keys))
                .max_decoding_message_size(messages.ticket_keys),
            secrets: SecretDiscoveryServiceServer::from_arc(ticket_keys)
                .max_decoding_message_size(messages.ticket_keys),
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
        Ok(Self {
            http,
            sockets_max: limits.sockets,
            health,
            memory: Memory(opener),
            live,
            reloads,
            admin,
        })
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

    /// Returns the state of the daemon, for metrics and the status page.
    pub(crate) fn admin(&self) -> Arc<Admin> {
        Arc::clone(&self.admin)
    }

    /// Returns the record of the last reload's outcome.
    pub fn reloads(&self) -> Arc<Reloads> {
        Arc::clone(&self.reloads)
    }

    /// Returns an in-process client. The API treats its calls as those of a caller over loopback.
    pub fn local(&self) -> InProcess {
        InProcess::new(&self.http)
    }

    /// Serves on one server thread for each core. Returns when `shutdown.drain` is cancelled and
    /// the last call has ended, or when `shutdown.abort` is cancelled. Calls `started` once the threads
    /// run.
    ///
    /// # Errors
    /// A server thread cannot be started, or all of them ended and cannot be restarted.
    pub async fn serve(
        self,
        mut listeners: Listeners,
        shutdown: &Shutdown,
        started: impl FnOnce(Pulse),
    ) -> Result<(), ServeError> {
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let (http, stop) = (self.http, shutdown.clone());
        let serve = move |accepted, lookout| http.clone().serve(accepted, stop.clone(), lookout);
        let mut lanes = ServerThreads::start(cores, self.sockets_max, serve)?;
        started(lanes.pulse());
        loop {
            tokio::select! {
                () = shutdown.drain.cancelled() => break,
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
