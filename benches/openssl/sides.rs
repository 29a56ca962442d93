//! The places of the worker's sessions: the daemon, Redis, and OpenSSL's own cache.

use std::{sync::Mutex, time::Duration};

use openssl::ssl::{
    SslContext, SslContextBuilder, SslOptions, SslSession, SslSessionCacheMode, SslVersion,
};
use redis::Connection;
use tls_sessiond_client::{Options, Worker, openssl::ServerSessions};
use tokio::runtime::{Builder, Runtime};

use crate::{
    cpu,
    servers::Servers,
    tls::{Peer, Setup},
};

const CONTEXT: &[u8] = b"bench";
/// The lifetime of a session in seconds: OpenSSL's default.
const LIFE: u64 = 7200;

/// A worker, and a peer that returns to it.
pub(crate) struct Side {
    server: SslContext,
    peer: Peer,
    /// The runtime of the client, if there is one, and the CPU time of its thread at the last call.
    line: Option<(Runtime, f64)>,
}

impl Side {
    /// Keeps the sessions in the daemon, by the adapter.
    pub(crate) fn daemon(setup: &Setup, version: SslVersion, servers: &Servers) -> Self {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let mut options = Options::new(&servers.daemon.unix, "openssl").unwrap();
        options.lookup_deadline = Duration::from_millis(500);
        let worker = runtime.block_on(async {
            let worker = Worker::connect(options);
            assert!(worker.attached(Duration::from_secs(5)).await);
            worker
        });
        let mut context = setup.server(version);
        ServerSessions::install(&mut context, worker, CONTEXT).unwrap();
        Self::begin(context, version, Some(runtime))
    }

    /// Keeps the sessions in Redis, as the callbacks of many servers do. A lookup consumes a TLS
    /// 1.3 session. A session whose connection ended unclosed is not removed.
    pub(crate) fn redis(setup: &Setup, version: SslVersion, servers: &Servers) -> Self {
        let connect = || {
            let client = redis::Client::open(servers.redis.address.as_str()).unwrap();
            Mutex::new(client.get_connection().unwrap())
        };
        let (puts, gets) = (connect(), connect());
        let get = if version == SslVersion::TLS1_3 {
            "GETDEL"
        } else {
            "GET"
        };
        let mut context = setup.server(version);
        context.set_session_id_context(CONTEXT).unwrap();
        context.set_options(SslOptions::NO_TICKET);
        context
            .set_session_cache_mode(SslSessionCacheMode::SERVER | SslSessionCacheMode::NO_INTERNAL);
        context.set_new_session_callback(move |_, session| {
            let mut redis = puts.lock().unwrap();
            let data = session.to_der().unwrap();
            redis::cmd("SETEX")
                .arg(session.id())
                .arg(LIFE)
                .arg(data)
                .exec(&mut *redis)
                .unwrap();
        });
        let find = move |id: &[u8]| {
            let mut redis: std::sync::MutexGuard<'_, Connection> = gets.lock().unwrap();
            let found: Option<Vec<u8>> = redis::cmd(get).arg(id).query(&mut *redis).unwrap();
            SslSession::from_der(&found?).ok()
        };
        // SAFETY: the session is decoded in this call, so it belongs to no other context.
        #[expect(unsafe_code, reason = "the `openssl` crate has no safe call for it")]
        unsafe {
            context.set_get_session_callback(move |_, id| find(id));
        }
        Self::begin(context, version, None)
    }

    /// Keeps the sessions in OpenSSL's own cache, which no other worker sees.
    pub(crate) fn own(setup: &Setup, version: SslVersion) -> Self {
        let mut context = setup.server(version);
        context.set_session_id_context(CONTEXT).unwrap();
        context.set_options(SslOptions::NO_TICKET);
        context.set_session_cache_mode(SslSessionCacheMode::SERVER);
        Self::begin(context, version, None)
    }

    /// Makes a side. Its first handshake is a full one.
    fn begin(context: SslContextBuilder, version: SslVersion, runtime: Option<Runtime>) -> Self {
        let line = runtime.map(|runtime| {
            let used = used(&runtime);
            (runtime, used)
        });
        let mut side = Self {
            server: context.build(),
            peer: Peer::new(version),
            line,
        };
        side.handshake();
        side.rest();
        side
    }

    /// Does one handshake. Returns the CPU seconds of the worker's own thread.
    pub(crate) fn handshake(&mut self) -> f64 {
        self.peer.meet(&self.server)
    }

    /// Returns the CPU seconds of the client's thread since the last call.
    pub(crate) fn rest(&mut self) -> f64 {
        let Some((runtime, before)) = &mut self.line else {
            return 0.0;
        };
        let used = used(runtime);
        used - std::mem::replace(before, used)
    }
}

/// Returns the CPU seconds of the runtime's only thread.
fn used(runtime: &Runtime) -> f64 {
    runtime
        .block_on(runtime.spawn(async { cpu::this_thread() }))
        .unwrap()
}
