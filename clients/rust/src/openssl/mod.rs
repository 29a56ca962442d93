//! Sessions of workers that run OpenSSL. Callbacks on an `SslContextBuilder` do all the work; the
//! program needs no further code.
//!
//! ```no_run
//! # fn server() -> Result<(), Box<dyn std::error::Error>> {
//! use openssl::ssl::{SslAcceptor, SslMethod};
//! use tls_sessiond_client::{Options, Worker, openssl::ServerSessions};
//!
//! # let runtime = tokio::runtime::Runtime::new()?;
//! # let _inside = runtime.enter();
//! let worker = Worker::connect(Options::new("unix:///run/tls-sessiond/api.sock", "openssl")?);
//! let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?;
//! ServerSessions::install(&mut acceptor, worker, b"www")?;
//! // certificate and key, then acceptor.build(), accept, shutdown, drop
//! # Ok(())
//! # }
//! ```
//!
//! The callbacks do this for each SSL of the context:
//!
//! * The peer offers a session, TLS 1.2 or 1.3: it is looked up in the daemon, for the lookup
//!   deadline at most.
//! * A handshake made a session: it is put.
//! * A close_notify was sent: SSL_shutdown(3) is reported. The SENT flag was set in another way:
//!   SSL_set_shutdown(3) is reported.
//! * A fatal alert was sent or received: the sessions are removed from the cache.
//! * The SSL is freed: its connection object is freed. Without the SENT flag its sessions are
//!   removed from the cache.
//!
//! OpenSSL's own cache is switched off. Its events, such as an overflow, therefore never reach the
//! daemon. The adapter uses the info callback of the context (SSL_CTX_set_info_callback(3)). An SSL
//! that is cleared and used again is not followed: free it instead. All versions of OpenSSL can
//! read each other's encoding of sessions; use the format `openssl` in [`crate::Options`].
//!
//! `SslStream` returns `Ok(0)` at the end of a socket, with or without a close_notify before it.
//! Only `get_shutdown` tells the two apart. A program that answers both with `shutdown` keeps
//! sessions that an attacker may have truncated.
//!
//! A lookup blocks its thread. On a tokio runtime with one thread, if [`Worker::connect`] was
//! called on it, every lookup is a miss.

mod event;
mod ffi;
mod observer;
mod session;

use std::sync::Arc;

use openssl::{
    error::ErrorStack,
    ex_data::Index,
    ssl::{Ssl, SslContextBuilder, SslOptions, SslRef, SslSessionCacheMode},
};

use self::{
    observer::Observed,
    session::{SharedSessions, decode},
};
use crate::{Found, Lookup, Worker};

/// Shares the sessions of servers.
pub struct ServerSessions(());

impl ServerSessions {
    /// Shares the sessions of all SSLs that will be made from this context.
    ///
    /// `session_id_context`, 1 to 32 bytes, is set by SSL_CTX_set_session_id_context(3). It stands
    /// for everything that must agree between workers that resume each other's sessions, above all
    /// certificates and trust. The SNI and the verify mode are compared as well. Stateless tickets
    /// are switched off (`SSL_OP_NO_TICKET`), because the sessions are in the daemon.
    ///
    /// # Errors
    /// Fails if OpenSSL refuses a setting, for example because `session_id_context` is too long.
    pub fn install(
        context: &mut SslContextBuilder,
        worker: Worker,
        session_id_context: &[u8],
    ) -> Result<(), ErrorStack> {
        context.set_session_id_context(session_id_context)?;
        context.set_options(SslOptions::NO_TICKET);
        context
            .set_session_cache_mode(SslSessionCacheMode::SERVER | SslSessionCacheMode::NO_INTERNAL);
        let (shared, index) = observe(context, worker, session_id_context)?;
        ffi::set_get_session_callback(context, move |ssl, id| {
            if let Some(session) = ssl.ex_data(index).and_then(|observed| observed.offered(id)) {
                return Some(session);
            }
            let found = shared.find(ssl, ffi::server_name_extension(ssl), id)?;
            let session = decode(found.data())?;
            Observed::of(ssl, index, || Observed::new(Arc::clone(&shared), ""))?.offer(found);
            Some(session)
        });
        Ok(())
    }
}

/// Shares the sessions of clients that call [`ClientSessions::offer`].
#[derive(Clone)]
pub struct ClientSessions {
    shared: Arc<SharedSessions>,
    index: Index<Ssl, Observed>,
}

impl ClientSessions {
    /// Shares the sessions of all SSLs that will be made from this context and offered a session.
    ///
    /// `session_id_context`, at most 512 bytes, stands for everything that must agree between
    /// workers that resume each other's sessions, above all the client's certificate and its trust
    /// anchors. The verify mode is compared as well.
    ///
    /// # Errors
    /// Fails if OpenSSL refuses a setting.
    pub fn install(
        context: &mut SslContextBuilder,
        worker: Worker,
        session_id_context: &[u8],
    ) -> Result<Self, ErrorStack> {
        context
            .set_session_cache_mode(SslSessionCacheMode::CLIENT | SslSessionCacheMode::NO_INTERNAL);
        let (shared, index) = observe(context, worker, session_id_context)?;
        Ok(Self { shared, index })
    }

    /// Offers the newest session with this server. Call it before SSL_connect(3). Without this call
    /// no session of the SSL is stored. Returns whether a session was offered.
    pub async fn offer(&self, ssl: &mut SslRef, server_name: &str) -> bool {
        let binding = self.shared.binding(ssl);
        let newest = Lookup {
            binding: &binding,
            ..Lookup::client(server_name)
        };
        let found = self.shared.worker.lookup(newest).await;
        self.set(ssl, server_name, found)
    }

    /// Does [`ClientSessions::offer`] for threads that are not async tasks. Blocks for the lookup
    /// deadline at most.
    pub fn offer_blocking(&self, ssl: &mut SslRef, server_name: &str) -> bool {
        let binding = self.shared.binding(ssl);
        let newest = Lookup {
            binding: &binding,
            ..Lookup::client(server_name)
        };
        let found = self.shared.worker.lookup_blocking(newest);
        self.set(ssl, server_name, found)
    }

    fn set(&self, ssl: &mut SslRef, server_name: &str, found: Option<Found>) -> bool {
        // A session that OpenSSL cannot decode or set is not offered, and the handshake is a full
        // one.
        let found = found.filter(|found| {
            decode(found.data()).is_some_and(|session| ffi::set_session(ssl, &session).is_ok())
        });
        let make = || Observed::new(Arc::clone(&self.shared), server_name);
        match (Observed::of(ssl, self.index, make), found) {
            (Some(observed), Some(found)) => {
                observed.offer(found);
                true
            }
            _ => false,
        }
    }
}

/// Installs the callbacks of both sides: puts new sessions, and observes events.
fn observe(
    context: &mut SslContextBuilder,
    worker: Worker,
    session_id_context: &[u8],
) -> Result<(Arc<SharedSessions>, Index<Ssl, Observed>), ErrorStack> {
    let index = ffi::index()?;
    let shared = Arc::new(SharedSessions {
        worker,
        session_id_context: session_id_context.to_vec(),
    });
    let sharing = Arc::clone(&shared);
    context.set_new_session_callback(move |ssl, session| {
        let (server, reused) = (ssl.is_server(), ssl.session_reused());
        // A session that OpenSSL cannot encode is not stored, so it is never resumed.
        let Ok(Some(put)) = sharing.put(ssl, &session) else {
            return;
        };
        let observed = match server {
            true => Observed::of(ssl, index, || Observed::new(Arc::clone(&sharing), "")),
            false => ssl.ex_data_mut(index),
        };
        if let Some(observed) = observed {
            observed.put(put, server, reused);
        }
    });
    ffi::observe(context);
    Ok((shared, index))
}
