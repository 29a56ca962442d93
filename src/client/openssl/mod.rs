//! Sessions of workers that run OpenSSL: callbacks on an `SslContextBuilder`, and nothing else for the program to do.
//!
//! ```no_run
//! # fn server() -> Result<(), Box<dyn std::error::Error>> {
//! use openssl::ssl::{SslAcceptor, SslMethod};
//! use tls_sessiond::client::{Options, Worker, openssl::ServerSessions};
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
//! What it does with each SSL of the context:
//!
//! * a peer offers a session, TLS 1.2 or 1.3: it is looked up in the daemon, for the lookup deadline at most
//! * a handshake made a session: it is put
//! * a close_notify was sent: SSL_shutdown(3). SENT was set otherwise: SSL_set_shutdown(3)
//! * a fatal alert was sent or received: the sessions leave the cache
//! * the SSL is freed: so is its connection object, and without SENT its sessions leave the cache
//!
//! OpenSSL's own cache is switched off, so nothing of it is passed on, its overflow least of all. The info callback of the
//! context is taken (SSL_CTX_set_info_callback(3)). An SSL that is cleared and used again is not followed: free it
//! instead. Encodings of different versions of OpenSSL understand each other; name the format `openssl` in
//! [`super::Options`].
//!
//! `SslStream` reads the end of a socket as `Ok(0)`, with a close_notify before it or without. Only `get_shutdown` tells:
//! a program that answers both with `shutdown` keeps sessions that an attacker may have cut short.
//!
//! A lookup blocks its thread. On a tokio runtime with one thread, the one that [`Worker::connect`] was called on, it
//! always misses.

mod ffi;
mod observed;
mod shared;

use std::sync::Arc;

use openssl::{
    error::ErrorStack,
    ex_data::Index,
    ssl::{Ssl, SslContextBuilder, SslOptions, SslRef, SslSessionCacheMode},
};

use self::{
    observed::Observed,
    shared::{Shared, decode},
};
use super::{Found, Lookup, Worker};

/// The server's side.
pub struct ServerSessions(());

impl ServerSessions {
    /// Shares the sessions of all SSLs that will be made from this context.
    ///
    /// `session_id_context`, 1 to 32 bytes, is SSL_CTX_set_session_id_context(3): it stands for all that must agree
    /// between workers that resume each other's sessions, certificates and trust above all. SNI and the verify mode
    /// are compared as well. Tickets are switched off (`SSL_OP_NO_TICKET`): sessions lie in the daemon.
    ///
    /// # Errors
    /// OpenSSL does not take it: `session_id_context` is too long, for example.
    pub fn install(
        context: &mut SslContextBuilder,
        worker: Worker,
        session_id_context: &[u8],
    ) -> Result<(), ErrorStack> {
        context.set_session_id_context(session_id_context)?;
        context.set_options(SslOptions::NO_TICKET);
        context.set_session_cache_mode(SslSessionCacheMode::SERVER | SslSessionCacheMode::NO_INTERNAL);
        let (shared, index) = observe(context, worker, session_id_context)?;
        ffi::set_get_session_callback(context, move |ssl, id| {
            if let Some(session) = ssl.ex_data(index).and_then(|observed| observed.offered(id)) {
                return Some(session);
            }
            let found = shared.find(ssl, id)?;
            let session = decode(found.data())?;
            Observed::of(ssl, index, || Observed::new(Arc::clone(&shared), ""))?.offer(found);
            Some(session)
        });
        Ok(())
    }
}

/// The client's side: what [`ClientSessions::offer`] is called for.
#[derive(Clone)]
pub struct ClientSessions {
    shared: Arc<Shared>,
    index: Index<Ssl, Observed>,
}

impl ClientSessions {
    /// Shares the sessions of all SSLs that will be made from this context and offered a session.
    ///
    /// `session_id_context` stands for all that must agree between workers that resume each other's sessions: client
    /// certificate and trust above all. At most 512 bytes; the verify mode is compared as well.
    ///
    /// # Errors
    /// OpenSSL does not take it.
    pub fn install(
        context: &mut SslContextBuilder,
        worker: Worker,
        session_id_context: &[u8],
    ) -> Result<Self, ErrorStack> {
        context.set_session_cache_mode(SslSessionCacheMode::CLIENT | SslSessionCacheMode::NO_INTERNAL);
        let (shared, index) = observe(context, worker, session_id_context)?;
        Ok(Self { shared, index })
    }

    /// Offers the newest session with this server, before SSL_connect(3), and observes the SSL from then on: without it
    /// no session is kept. Says whether there was one.
    pub async fn offer(&self, ssl: &mut SslRef, server_name: &str) -> bool {
        let binding = self.shared.binding(ssl);
        let newest = Lookup { binding: &binding, ..Lookup::client(server_name) };
        let found = self.shared.worker.lookup(newest).await;
        self.set(ssl, server_name, found)
    }

    /// [`ClientSessions::offer`] for threads that are no tasks: blocks for the lookup deadline at most.
    pub fn offer_blocking(&self, ssl: &mut SslRef, server_name: &str) -> bool {
        let binding = self.shared.binding(ssl);
        let newest = Lookup { binding: &binding, ..Lookup::client(server_name) };
        let found = self.shared.worker.lookup_blocking(newest);
        self.set(ssl, server_name, found)
    }

    fn set(&self, ssl: &mut SslRef, server_name: &str, found: Option<Found>) -> bool {
        // What OpenSSL does not take back is not offered; the handshake is full.
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

/// What both sides have in common: new sessions are put, and what happens is observed.
fn observe(
    context: &mut SslContextBuilder,
    worker: Worker,
    session_id_context: &[u8],
) -> Result<(Arc<Shared>, Index<Ssl, Observed>), ErrorStack> {
    let index = ffi::index()?;
    let shared = Arc::new(Shared { worker, session_id_context: session_id_context.to_vec() });
    let sharing = Arc::clone(&shared);
    context.set_new_session_callback(move |ssl, session| {
        let (server, reused) = (ssl.is_server(), ssl.session_reused());
        // A session that OpenSSL cannot encode is one that nobody resumes.
        let Ok(Some(put)) = sharing.put(ssl, &session) else { return };
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
