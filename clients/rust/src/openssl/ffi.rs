//! Calls that the `openssl` crate does not offer: the end of an SSL, its alerts, and the server
//! name in a ClientHello.
//!
//! All `unsafe` code of this crate is in this file.

#![expect(
    unsafe_code,
    reason = "OpenSSL is a C library; each block says why it is sound"
)]

use std::{
    ffi::{c_int, c_long, c_uint, c_void},
    ptr,
    sync::OnceLock,
};

use foreign_types::ForeignTypeRef;
use openssl::{
    error::ErrorStack,
    ex_data::Index,
    ssl::{Ssl, SslContextBuilder, SslRef, SslSession, SslSessionRef},
};
use openssl_sys::{
    CRYPTO_EX_DATA, SSL, SSL_CTX, SSL_client_hello_get0_ext, SSL_get_ex_new_index, SSL_get_shutdown,
};

use super::{
    event::{Event, Flags},
    observer::Observed,
};

unsafe extern "C" {
    /// SSL_CTX_set_info_callback(3).
    fn SSL_CTX_set_info_callback(
        ctx: *mut SSL_CTX,
        callback: Option<unsafe extern "C" fn(*const SSL, c_int, c_int)>,
    );
}

const SSL_CB_READ: c_int = 0x04;
const SSL_CB_ALERT: c_int = 0x4000;
const SSL_CB_HANDSHAKE_DONE: c_int = 0x20;
const SSL_SENT_SHUTDOWN: c_int = 1;
const SSL_RECEIVED_SHUTDOWN: c_int = 2;
const TLSEXT_TYPE_SERVER_NAME: c_uint = 0;

/// Returns the index under which an SSL keeps its [`Observed`]. Freeing the SSL frees that too.
///
/// # Errors
/// Fails if OpenSSL has no more indices.
pub(super) fn index() -> Result<Index<Ssl, Observed>, ErrorStack> {
    static INDEX: OnceLock<Index<Ssl, Observed>> = OnceLock::new();
    if let Some(index) = INDEX.get() {
        return Ok(*index);
    }
    openssl::init();
    // SAFETY: the functions have the signatures that OpenSSL calls them with.
    let raw = unsafe { SSL_get_ex_new_index(0, ptr::null_mut(), None, Some(copied), Some(freed)) };
    if raw < 0 {
        return Err(ErrorStack::get());
    }
    // SAFETY: `SslRef::set_ex_data` stores a Box<Observed> under this index, and `freed` reads it
    // as such. If two threads come here at once, one index stays unused.
    Ok(*INDEX.get_or_init(|| unsafe { Index::from_raw(raw) }))
}

/// Called by SSL_dup(3): the copy is an SSL of its own, and nothing is observed of it yet.
unsafe extern "C" fn copied(
    _: *mut CRYPTO_EX_DATA,
    _: *const CRYPTO_EX_DATA,
    data: *mut *mut c_void,
    _: c_int,
    _: c_long,
    _: *mut c_void,
) -> c_int {
    // SAFETY: OpenSSL passes the address of the pointer that it is about to store.
    unsafe { data.write(ptr::null_mut()) };
    1
}

/// Called when SSL_free(3) begins. The fields of the SSL are still valid.
unsafe extern "C" fn freed(
    ssl: *mut c_void,
    data: *mut c_void,
    _: *mut CRYPTO_EX_DATA,
    _: c_int,
    _: c_long,
    _: *mut c_void,
) {
    if ssl.is_null() || data.is_null() {
        return;
    }
    // SAFETY: `SslRef::set_ex_data` boxed `data`, and OpenSSL gives up its ownership with this
    // call.
    let observed = unsafe { Box::from_raw(data.cast::<Observed>()) };
    // SAFETY: `ssl` is the SSL that is being freed.
    let flags = flags(unsafe { SSL_get_shutdown(ssl.cast()) });
    observed.end(flags);
}

/// Returns the shutdown flags: SSL_get_shutdown(3).
fn shutdown_flags(ssl: &SslRef) -> Flags {
    // SAFETY: the reference keeps the SSL alive.
    flags(unsafe { SSL_get_shutdown(ssl.as_ptr()) })
}

fn flags(mask: c_int) -> Flags {
    Flags {
        sent: mask & SSL_SENT_SHUTDOWN != 0,
        received: mask & SSL_RECEIVED_SHUTDOWN != 0,
    }
}

/// Reports the events of the context's SSLs to their [`Observed`]: SSL_CTX_set_info_callback(3).
pub(super) fn observe(context: &mut SslContextBuilder) {
    // SAFETY: the context is alive, and the callback has the signature that OpenSSL expects.
    unsafe { SSL_CTX_set_info_callback(context.as_ptr(), Some(happened)) };
}

unsafe extern "C" fn happened(ssl: *const SSL, place: c_int, value: c_int) {
    let event = if place & SSL_CB_ALERT != 0 {
        let [.., level, code] = value.to_be_bytes();
        Event::Alert {
            level,
            code,
            received: place & SSL_CB_READ != 0,
        }
    } else if place & SSL_CB_HANDSHAKE_DONE != 0 {
        Event::HandshakeDone
    } else {
        return;
    };
    let Ok(index) = index() else { return };
    // SAFETY: OpenSSL calls this for an SSL that no other code uses meanwhile.
    let ssl = unsafe { SslRef::from_ptr_mut(ssl.cast_mut()) };
    let flags = shutdown_flags(ssl);
    Observed::see(ssl, index, event, flags);
}

/// Sets the callback that finds sessions: SSL_CTX_sess_set_get_cb(3). `find` must return a session
/// that it decoded in the same call, so that it belongs to no other context.
pub(super) fn set_get_session_callback(
    context: &mut SslContextBuilder,
    find: impl Fn(&mut SslRef, &[u8]) -> Option<SslSession> + Send + Sync + 'static,
) {
    // SAFETY: the caller upholds the requirement above.
    unsafe { context.set_get_session_callback(find) };
}

/// Sets the session to resume: SSL_set_session(3). It must have been decoded for this call, so that
/// it belongs to no other context.
pub(super) fn set_session(ssl: &mut SslRef, session: &SslSessionRef) -> Result<(), ErrorStack> {
    // SAFETY: the caller upholds the requirement above.
    unsafe { ssl.set_session(session) }
}

/// Returns the server_name extension of the ClientHello that is being read (RFC 6066 section 3).
/// `None` outside of the callbacks that OpenSSL makes meanwhile.
pub(super) fn server_name_extension(ssl: &SslRef) -> Option<&[u8]> {
    let (mut data, mut length) = (ptr::null(), 0);
    // SAFETY: both pointers are valid, and OpenSSL sets them if the call returns 1.
    let there = unsafe {
        SSL_client_hello_get0_ext(
            ssl.as_ptr(),
            TLSEXT_TYPE_SERVER_NAME,
            &mut data,
            &mut length,
        ) == 1
    };
    // SAFETY: the bytes belong to the ClientHello, which the SSL keeps for longer than this borrow.
    (there && !data.is_null()).then(|| unsafe { std::slice::from_raw_parts(data, length) })
}
