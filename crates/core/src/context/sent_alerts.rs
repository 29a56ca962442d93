//! Finds out which alert a step of rustls sent. rustls does not report it, and in TLS 1.3 an alert
//! is encrypted.
//!
//! The error of rustls is not enough: rustls answers a violation with an alert, with none, or with
//! another one than the error suggests. Therefore the encrypters record the alert that they
//! encrypt, in a thread-local. A step of rustls runs on one thread from beginning to end.

use std::cell::Cell;

use rustls::{
    ConnectionTrafficSecrets, ContentType, Error,
    crypto::cipher::{
        AeadKey, Iv, KeyBlockShape, MessageDecrypter, MessageEncrypter, OutboundOpaqueMessage,
        OutboundPlainMessage, Tls12AeadAlgorithm, Tls13AeadAlgorithm, UnsupportedOperationError,
    },
};

thread_local! {
    static LAST: Cell<Option<u8>> = const { Cell::new(None) };
}

/// Returns the AlertDescription of the last fatal alert that was encrypted on this thread since the
/// last call. Warning alerts, such as close_notify, do not count.
pub fn take() -> Option<u8> {
    LAST.take()
}

/// A TLS 1.3 AEAD whose encrypters record alerts.
pub(super) struct Tls13(pub(super) &'static dyn Tls13AeadAlgorithm);

impl Tls13AeadAlgorithm for Tls13 {
    fn encrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
        Box::new(Noting(self.0.encrypter(key, iv)))
    }

    fn decrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageDecrypter> {
        self.0.decrypter(key, iv)
    }

    fn key_len(&self) -> usize {
        self.0.key_len()
    }

    fn extract_keys(
        &self,
        key: AeadKey,
        iv: Iv,
    ) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        self.0.extract_keys(key, iv)
    }

    fn fips(&self) -> bool {
        self.0.fips()
    }
}

/// A TLS 1.2 AEAD whose encrypters record alerts.
pub(super) struct Tls12(pub(super) &'static dyn Tls12AeadAlgorithm);

impl Tls12AeadAlgorithm for Tls12 {
    fn encrypter(&self, key: AeadKey, iv: &[u8], extra: &[u8]) -> Box<dyn MessageEncrypter> {
        Box::new(Noting(self.0.encrypter(key, iv, extra)))
    }

    fn decrypter(&self, key: AeadKey, iv: &[u8]) -> Box<dyn MessageDecrypter> {
        self.0.decrypter(key, iv)
    }

    fn key_block_shape(&self) -> KeyBlockShape {
        self.0.key_block_shape()
    }

    fn extract_keys(
        &self,
        key: AeadKey,
        iv: &[u8],
        explicit: &[u8],
    ) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        self.0.extract_keys(key, iv, explicit)
    }

    fn fips(&self) -> bool {
        self.0.fips()
    }
}

struct Noting(Box<dyn MessageEncrypter>);

impl MessageEncrypter for Noting {
    fn encrypt(
        &mut self,
        message: OutboundPlainMessage<'_>,
        seq: u64,
    ) -> Result<OutboundOpaqueMessage, Error> {
        const FATAL: u8 = 2;
        if message.typ == ContentType::Alert
            && let [FATAL, description] = *message.payload.to_vec()
        {
            LAST.set(Some(description));
        }
        self.0.encrypt(message, seq)
    }

    fn encrypted_payload_len(&self, payload_len: usize) -> usize {
        self.0.encrypted_payload_len(payload_len)
    }
}
