//! The clients: that of this project, redis-rs, and async-memcached.

use std::time::Duration;

use async_memcached::AsciiProtocol;
use redis::{
    AsyncConnectionConfig, IntoConnectionInfo, aio::MultiplexedConnection, io::tcp::TcpSettings,
};
use tls_sessiond_client::{Lookup, Options, Put, Role, Version, Worker};

use crate::servers::{Servers, Socket};

/// The deadline of a lookup, the same for all clients. A later answer ends the run. It is redis-rs'
/// default.
const DEADLINE: Duration = Duration::from_millis(500);
/// The number of sessions that are put before an answer is awaited.
const AT_ONCE: usize = 1000;
/// About the size of an OpenSSL session.
const DATA: usize = 200;

/// A TLS 1.2 session under an id of 32 bytes. The id is decimal digits because memcached's keys
/// must be text.
pub(crate) struct Session {
    id: String,
    data: Vec<u8>,
}

impl Session {
    pub(crate) fn make(number: usize) -> Self {
        Self {
            id: format!("{number:032}"),
            data: format!("{number:0DATA$}").into(),
        }
    }
}

/// The server that is measured.
#[derive(Clone, Copy)]
pub(crate) enum Side {
    Ours,
    Redis,
    Memcached,
}

/// One of the clients that send lookups at the same time.
pub(crate) enum Client {
    Ours(Worker),
    Redis(MultiplexedConnection),
    Memcached(async_memcached::Client),
}

impl Side {
    pub(crate) const ALL: [Self; 3] = [Self::Ours, Self::Redis, Self::Memcached];

    /// Returns the process id of the server.
    pub(crate) fn server(self, servers: &Servers) -> u32 {
        match self {
            Self::Ours => servers.daemon.id(),
            Self::Redis => servers.redis.id(),
            Self::Memcached => servers.memcached.id(),
        }
    }

    /// Makes clients. They share one connection, except those of memcached: its client has one
    /// request in flight.
    pub(crate) async fn clients(self, servers: &Servers, count: usize) -> Vec<Client> {
        match self {
            Self::Ours => {
                let worker = worker(servers).await;
                (0..count).map(|_| Client::Ours(worker.clone())).collect()
            }
            Self::Redis => {
                let connection = redis(servers).await;
                (0..count)
                    .map(|_| Client::Redis(connection.clone()))
                    .collect()
            }
            Self::Memcached => {
                let mut clients = Vec::new();
                for _ in 0..count {
                    let client = async_memcached::Client::new(&servers.memcached.address)
                        .await
                        .unwrap();
                    clients.push(Client::Memcached(client));
                }
                clients
            }
        }
    }
}

async fn worker(servers: &Servers) -> Worker {
    let endpoint = match servers.socket {
        Socket::Unix => &servers.daemon.unix,
        Socket::Tcp => &servers.daemon.tcp,
    };
    let mut options = Options::new(endpoint, "openssl").unwrap();
    options.lookup_deadline = DEADLINE;
    let worker = Worker::connect(options);
    assert!(
        worker.attached(Duration::from_secs(5)).await,
        "the worker has no stream after 5 s"
    );
    worker
}

async fn redis(servers: &Servers) -> MultiplexedConnection {
    let info = servers
        .redis
        .address
        .as_str()
        .into_connection_info()
        .unwrap();
    // The daemon's client and memcached's set it too.
    let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(DEADLINE));
    redis::Client::open(info)
        .unwrap()
        .get_multiplexed_async_connection_with_config(&config)
        .await
        .unwrap()
}

impl Client {
    /// Looks a session up. A miss ends the run.
    pub(crate) async fn find(&mut self, session: &Session) {
        match self {
            Self::Ours(worker) => {
                let found = worker.lookup(Lookup::server(session.id.as_bytes())).await;
                let found = found.unwrap_or_else(|| panic!("a miss: {:?}", worker.counters()));
                assert_eq!(found.data(), session.data);
            }
            Self::Redis(connection) => {
                let found: Vec<u8> = redis::cmd("GET")
                    .arg(&session.id)
                    .query_async(connection)
                    .await
                    .unwrap();
                assert_eq!(found, session.data);
            }
            Self::Memcached(client) => {
                let found = client.get(&session.id).await.unwrap().expect("a miss");
                assert_eq!(found.data.unwrap(), session.data);
            }
        }
    }

    /// Puts all sessions, many at a time, and looks up the last of each part.
    pub(crate) async fn put(&mut self, sessions: impl Iterator<Item = Session>) {
        let mut sessions = sessions.peekable();
        while sessions.peek().is_some() {
            let some: Vec<_> = sessions.by_ref().take(AT_ONCE).collect();
            self.put_some(&some).await;
            self.find(some.last().unwrap()).await;
        }
    }

    async fn put_some(&mut self, sessions: &[Session]) {
        match self {
            Self::Ours(worker) => {
                for session in sessions {
                    let connection = worker.open(Role::Server, "", None);
                    let put = Put::new(Version::Tls12, session.data.clone());
                    connection.put(Put {
                        session_id: session.id.clone().into(),
                        ..put
                    });
                    connection.shutdown();
                }
                assert!(
                    worker.flush(Duration::from_secs(5)).await,
                    "the daemon has not processed the sessions after 5 s"
                );
            }
            Self::Redis(connection) => {
                let mut pipe = redis::pipe();
                for session in sessions {
                    pipe.cmd("SET").arg(&session.id).arg(&session.data).ignore();
                }
                pipe.exec_async(connection).await.unwrap();
            }
            Self::Memcached(client) => {
                for session in sessions {
                    client
                        .set(&session.id, session.data.as_slice(), None, None)
                        .await
                        .unwrap();
                }
            }
        }
    }
}
