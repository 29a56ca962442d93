//! Sessions of OpenSSL clients in a server of the daemon.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
};

use openssl::ssl::{
    ShutdownState, SslConnector, SslMethod, SslOptions, SslSession, SslStream, SslVerifyMode,
    SslVersion,
};
use tls_sessiond_core::{
    connection::{Alert, ConnectionId, State},
    session::Miss,
    state::CoreState,
};

use super::{misses, send, state};
use crate::foreign_client::{server, with_roots};

/// Bytes in flight to and from an OpenSSL client.
#[derive(Default)]
struct Wire {
    to: VecDeque<u8>,
    from: Vec<u8>,
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.to.read(buffer) {
            Ok(0) => Err(io::ErrorKind::WouldBlock.into()),
            read => read,
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.from.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs a TLS 1.2 handshake with an OpenSSL client, with or without extended_master_secret. Returns
/// the client's session, the daemon's connection and its alert.
fn handshake(
    core: &CoreState,
    extended: bool,
    session: Option<&SslSession>,
) -> (Option<SslSession>, ConnectionId, Option<Alert>) {
    /// SSL_OP_NO_EXTENDED_MASTER_SECRET.
    const NO_EXTENDED_MASTER_SECRET: SslOptions = SslOptions::from_bits_retain(1);
    let mut connector = SslConnector::builder(SslMethod::tls_client()).unwrap();
    connector.set_verify(SslVerifyMode::NONE);
    connector
        .set_max_proto_version(Some(SslVersion::TLS1_2))
        .unwrap();
    if !extended {
        connector.set_options(NO_EXTENDED_MASTER_SECRET);
    }
    let mut ssl = connector
        .build()
        .configure()
        .unwrap()
        .into_ssl("localhost")
        .unwrap();
    if let Some(session) = session {
        // The session belongs to the same library in the same process.
        #[allow(unsafe_code, reason = "SSL_set_session has no other form")]
        unsafe {
            ssl.set_session(session).unwrap();
        }
    }
    let mut client = SslStream::new(ssl, Wire::default()).unwrap();
    let id = server(core);
    for _ in 0..6 {
        let done = client.connect();
        let said = std::mem::take(&mut client.get_mut().from);
        let output = send(core, id, &said);
        client.get_mut().to.extend(&output.ciphertext);
        if output.alert.is_some() {
            return (None, id, output.alert);
        }
        if done.is_ok() {
            // OpenSSL has the close rule too.
            client.set_shutdown(ShutdownState::SENT);
            return (client.ssl().session().map(ToOwned::to_owned), id, None);
        }
    }
    panic!("the handshake does not end");
}

#[test]
fn session_is_not_resumed_across_extended_master_secret() {
    let (core, _) = with_roots("versions = [\"1.2\"]");
    let closed = |id| {
        core.connections()
            .with(id, |connection, _| connection.shutdown(&mut Vec::new()))
            .unwrap();
        core.connections().free(id).unwrap();
    };
    let reused = |id| {
        core.connections()
            .inspect(id, |connection, _| connection.session_reused())
            .unwrap()
    };
    // RFC 7627 section 5.3: a hello with the extension makes a full handshake if the session lacks
    // it.
    let (session, id, _) = handshake(&core, false, None);
    closed(id);
    let (_, id, alert) = handshake(&core, true, session.as_ref());
    assert_eq!(
        (alert, reused(id), misses(&core, Miss::Scope)),
        (None, false, 1)
    );
    closed(id);
    // A hello without the extension ends the handshake if the session has it.
    let (session, id, _) = handshake(&core, true, None);
    closed(id);
    let (_, id, alert) = handshake(&core, false, session.as_ref());
    assert_eq!(
        (alert.map(|alert| alert.code), state(&core, id)),
        (Some(47), State::Failed)
    );
    // If both have it, the session is resumed.
    let (_, id, alert) = handshake(&core, true, session.as_ref());
    assert_eq!((alert, reused(id)), (None, true));
}
