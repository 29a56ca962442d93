//! OpenSSL's own cache: that of an SSL_CTX, with its lock, hash table and list.

#![allow(
    unsafe_code,
    reason = "neither `openssl` nor `openssl-sys` can make a session or look one up"
)]

use std::{
    ffi::{c_int, c_uint, c_void},
    hint::black_box,
};

use foreign_types::ForeignType;
use openssl::ssl::{Ssl, SslContext, SslMethod, SslSession, SslSessionCacheMode};
use openssl_sys::{SSL, SSL_SESSION, SSL_version};

use crate::contenders::{Contender, Data, Id, Uses};

unsafe extern "C" {
    fn SSL_SESSION_new() -> *mut SSL_SESSION;
    fn SSL_SESSION_set1_id(session: *mut SSL_SESSION, id: *const u8, len: c_uint) -> c_int;
    fn SSL_SESSION_set_protocol_version(session: *mut SSL_SESSION, version: c_int) -> c_int;
    fn SSL_SESSION_set1_ticket_appdata(
        session: *mut SSL_SESSION,
        data: *const c_void,
        len: usize,
    ) -> c_int;
    /// The lookup of a TLS 1.2 session id in a server's handshake. It takes the lock of the
    /// context.
    fn SSL_has_matching_session_id(ssl: *const SSL, id: *const u8, len: c_uint) -> c_int;
}

pub(crate) struct Context(SslContext);

/// A connection for lookups, its version, and a session that names the one to remove.
pub(crate) struct Hand {
    ssl: Ssl,
    version: c_int,
    name: SslSession,
}

impl Context {
    pub(crate) fn new(size: usize) -> Self {
        let mut context = SslContext::builder(SslMethod::tls_server()).unwrap();
        context.set_session_cache_mode(SslSessionCacheMode::SERVER);
        context.set_session_cache_size(i32::try_from(size).unwrap());
        Self(context.build())
    }
}

/// Makes a session. A lookup finds only sessions of the connection's version.
fn session(id: &Id, version: c_int) -> SslSession {
    // SAFETY: no other code has the new session yet, and the id has 32 bytes.
    unsafe {
        let session = SSL_SESSION_new();
        assert!(!session.is_null());
        let session = SslSession::from_ptr(session);
        assert_eq!(SSL_SESSION_set1_id(session.as_ptr(), id.as_ptr(), 32), 1);
        assert_eq!(
            SSL_SESSION_set_protocol_version(session.as_ptr(), version),
            1
        );
        session
    }
}

impl Contender for Context {
    type Key = Id;
    type Hand = Hand;

    fn key(id: &Id) -> Id {
        *id
    }

    fn hand(&self) -> Hand {
        let ssl = Ssl::new(&self.0).unwrap();
        // SAFETY: reads a number of a live connection.
        let version = unsafe { SSL_version(ssl.as_ptr()) };
        Hand {
            name: session(&[0; 32], version),
            version,
            ssl,
        }
    }

    /// Returns whether the session is there. OpenSSL's call does not return the session.
    fn get(&self, hand: &mut Hand, key: &Id) -> bool {
        // SAFETY: only this thread uses the connection, the id has 32 bytes, and OpenSSL locks the
        // table.
        black_box(unsafe { SSL_has_matching_session_id(hand.ssl.as_ptr(), key.as_ptr(), 32) }) == 1
    }

    fn put(&self, hand: &mut Hand, key: &Id, data: &Data, _: Uses) {
        let session = session(key, hand.version);
        // SAFETY: no other code has the session yet. OpenSSL copies `data.len()` bytes of the data.
        let set = unsafe {
            SSL_SESSION_set1_ticket_appdata(session.as_ptr(), data.as_ptr().cast(), data.len())
        };
        assert_eq!(set, 1);
        // SAFETY: the session is not changed from here on, and the context counts its own
        // reference.
        assert!(unsafe { self.0.add_session(&session) });
    }

    // OpenSSL finds the session to remove by its id and version.
    fn take(&self, hand: &mut Hand, key: &Id) -> bool {
        // SAFETY: only this thread uses this session, it is in no cache, and the id has 32 bytes.
        let set = unsafe { SSL_SESSION_set1_id(hand.name.as_ptr(), key.as_ptr(), 32) };
        assert_eq!(set, 1);
        // SAFETY: the context and the session are alive, and the context takes its own lock.
        black_box(unsafe { self.0.remove_session(&hand.name) })
    }
}
