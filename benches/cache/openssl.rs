//! OpenSSL's own cache: that of an SSL_CTX, with its lock, hash table and list.

#![allow(
    unsafe_code,
    reason = "neither `openssl` nor `openssl-sys` has what makes a session or looks one up"
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
    fn SSL_SESSION_set1_ticket_appdata(session: *mut SSL_SESSION, data: *const c_void, len: usize) -> c_int;
    /// What a server's handshake looks a TLS 1.2 id up with, under the lock of the context.
    fn SSL_has_matching_session_id(ssl: *const SSL, id: *const u8, len: c_uint) -> c_int;
}

pub(crate) struct Context(SslContext);

/// A connection to ask with, its version, and a session to name others by.
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

/// A lookup finds sessions of the connection's version only.
fn session(id: &Id, version: c_int) -> SslSession {
    // SAFETY: the session is new and nobody else has it; the id is as long as is said.
    unsafe {
        let session = SSL_SESSION_new();
        assert!(!session.is_null());
        let session = SslSession::from_ptr(session);
        assert_eq!(SSL_SESSION_set1_id(session.as_ptr(), id.as_ptr(), 32), 1);
        assert_eq!(SSL_SESSION_set_protocol_version(session.as_ptr(), version), 1);
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
        // SAFETY: reads a number of a connection that lives.
        let version = unsafe { SSL_version(ssl.as_ptr()) };
        Hand { name: session(&[0; 32], version), version, ssl }
    }

    /// It says that it is there, and hands nothing out.
    fn get(&self, hand: &mut Hand, key: &Id) -> bool {
        // SAFETY: the connection is this thread's, the id is as long as is said, and the table is asked under its lock.
        black_box(unsafe { SSL_has_matching_session_id(hand.ssl.as_ptr(), key.as_ptr(), 32) }) == 1
    }

    fn put(&self, hand: &mut Hand, key: &Id, data: &Data, _: Uses) {
        let session = session(key, hand.version);
        // SAFETY: nobody else has the session yet, and the data, which are copied, are as long as is said.
        let set =
            unsafe { SSL_SESSION_set1_ticket_appdata(session.as_ptr(), data.as_ptr().cast(), data.len()) };
        assert_eq!(set, 1);
        // SAFETY: the session is not changed from here on; the context counts its reference itself.
        assert!(unsafe { self.0.add_session(&session) });
    }

    /// It is asked for by id and version.
    fn take(&self, hand: &mut Hand, key: &Id) -> bool {
        // SAFETY: this session is this thread's alone, and in no cache; the id is as long as is said.
        let set = unsafe { SSL_SESSION_set1_id(hand.name.as_ptr(), key.as_ptr(), 32) };
        assert_eq!(set, 1);
        // SAFETY: both live, and the context locks itself.
        black_box(unsafe { self.0.remove_session(&hand.name) })
    }
}
