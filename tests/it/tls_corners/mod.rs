//! Rare cases of TLS, compared with plain rustls where the bytes on the wire decide.
//!
//! * `hellos`: rare ClientHellos
//! * `endings`: rare alerts and closes
//! * `client_tickets`: how a client handles a server's tickets

mod client_tickets;
mod endings;
mod hellos;
#[cfg(feature = "peers")]
mod openssl;

use std::{path::Path, sync::Arc};

use rustls::{
    RootCertStore, ServerConfig, ServerConnection, SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    version::{TLS12, TLS13},
};
use tls_sessiond_core::{
    connection::{ConnectionId, Input, Output, State},
    session::Miss,
    state::CoreState,
};

use crate::{
    client_hello::{Extension, Hello, records},
    foreign_client::{client, connect, server},
    psk_hello::{PskHello, Ticket, X25519, first_message, resumed},
};

fn send(core: &CoreState, id: ConnectionId, ciphertext: &[u8]) -> Output {
    let input = Input {
        ciphertext,
        ..Input::default()
    };
    core.connections()
        .with(id, |connection, now| connection.exchange(input, now))
        .unwrap()
        .done()
        .unwrap()
}

fn state(core: &CoreState, id: ConnectionId) -> State {
    core.connections()
        .inspect(id, |connection, _| connection.state())
        .unwrap()
}

/// Returns the reason of the failure.
fn failure(core: &CoreState, id: ConnectionId) -> String {
    let again = core.connections().with(id, |connection, now| {
        connection.exchange(Input::default(), now)
    });
    again.unwrap_err().to_string()
}

fn cached(core: &CoreState) -> usize {
    core.registry().get("default").unwrap().server_cache.len()
}

fn misses(core: &CoreState, why: Miss) -> u64 {
    core.registry()
        .get("default")
        .unwrap()
        .stats
        .misses
        .get(why)
}

/// Returns the answer of plain rustls to the same flight, as a server with the same certificate.
fn plain_rustls(folder: &Path, alpn: &[&[u8]], flight: &[u8]) -> Vec<u8> {
    let mut config = plain_config(folder, &[&TLS12, &TLS13]);
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let mut server = ServerConnection::new(Arc::new(config)).unwrap();
    let (mut rest, mut answer) = (flight, Vec::new());
    while !rest.is_empty() && server.read_tls(&mut rest).is_ok_and(|read| read > 0) {
        if server.process_new_packets().is_err() {
            break;
        }
    }
    while server.wants_write() {
        server.write_tls(&mut answer).unwrap();
    }
    answer
}

fn plain_config(folder: &Path, versions: &[&'static SupportedProtocolVersion]) -> ServerConfig {
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let chain = CertificateDer::pem_slice_iter(&read("tls.crt"))
        .map(Result::unwrap)
        .collect();
    let key = PrivateKeyDer::from_pem_slice(&read("tls.key")).unwrap();
    ServerConfig::builder_with_protocol_versions(versions)
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap()
}

/// Makes sessions by a full handshake of a client with this suite and closes it. Returns their
/// tickets, newest last.
fn tickets(core: &CoreState, roots: &RootCertStore, suite: u16) -> Vec<Ticket> {
    let before = all_tickets(core);
    let (_, id, _) = connect(core, &client(roots, |ours| ours == suite), usize::MAX);
    core.connections()
        .with(id, |connection, _| connection.shutdown(&mut Vec::new()))
        .unwrap();
    core.connections().free(id).unwrap();
    let known = |ticket: &Ticket| before.iter().any(|other| other.identity == ticket.identity);
    all_tickets(core)
        .into_iter()
        .filter(|ticket| !known(ticket))
        .collect()
}

fn all_tickets(core: &CoreState) -> Vec<Ticket> {
    let mut all = Vec::new();
    core.registry()
        .get("default")
        .unwrap()
        .server_cache
        .scan(core.now(), |session| {
            all.push(Ticket::of(
                session.id().as_bytes(),
                session.secret().as_bytes().unwrap(),
            ));
        });
    all
}

/// Returns the index of the ticket that the server resumes, and the number of sessions left in the
/// cache.
fn offer(core: &CoreState, hello: &PskHello) -> (Option<u16>, usize) {
    let id = server(core);
    let output = send(core, id, &hello.flight());
    assert_eq!(output.alert, None, "{}", failure(core, id));
    let place = resumed(first_message(&output.ciphertext));
    let left = cached(core);
    core.connections().free(id).unwrap();
    (place, left)
}

/// Returns a TLS 1.2 ClientHello with these suites.
fn old_hello(suites: &[u16]) -> Vec<u8> {
    let mut extensions = Extension::negotiable(&[X25519], &[], &[]);
    extensions.retain(|extension| matches!(extension, Extension::Unknown(10 | 13, _)));
    records(
        &Hello {
            session_id: Vec::new(),
            suites: suites.to_vec(),
            extensions,
        }
        .message(),
        &[],
    )
}
