//! Events and flags of an SSL.

/// The flags of SSL_get_shutdown(3).
#[derive(Clone, Copy)]
pub(super) struct Flags {
    pub(super) sent: bool,
    pub(super) received: bool,
}

/// An event of SSL_CTX_set_info_callback(3).
pub(super) enum Event {
    HandshakeDone,
    Alert { level: u8, code: u8, received: bool },
}
