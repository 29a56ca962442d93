//! Sessions that the daemon seals in the tickets of its clients: they are resumed by the rules of stored
//! ones, and nothing is stored.
//!
//! * `rules`: the rules of stored sessions
//! * `changes`: rotations, restarts and reloads
//! * `flights`: tickets as they are on the wire: sent twice, changed, cut, made up
//! * `histories`: random histories of clients
//! * `peers`: clients of OpenSSL

mod changes;
mod flights;
mod histories;
#[cfg(feature = "peers")]
mod peers;
mod rules;

use std::{path::Path, sync::Arc};

use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, SupportedProtocolVersion,
    client::{Resumption, Tls12Resumption},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    version::{TLS12, TLS13},
};
use tls_sessiond_proto::{
    self as pb, revoke_sessions_request::Selector,
    ticket_key_service_client::TicketKeyServiceClient,
};

use crate::{
    harness::TestDaemon,
    pki::{self, Leaf},
    psk_hello::first_message,
};

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// A ring that rotates only if it is asked to.
const RING: &str =
    "[[ticket_keys]]\nname = \"web\"\nrotate = \"7d\"\nlifetime = \"1h\"\nmax_key_age = \"7d\"\n";

/// A daemon whose default context seals its sessions, and the files of its certificates.
struct House {
    folder: tempfile::TempDir,
    daemon: TestDaemon,
}

/// Returns a configuration whose context has these further lines.
fn config(folder: &Path, lines: &str) -> String {
    let file = |name: &str| folder.join(name);
    format!(
        "{RING}[[context]]\ncertificate = {:?}\nkey = {:?}\nca = {:?}\n{lines}\n",
        file("tls.crt"),
        file("tls.key"),
        file("ca.pem")
    )
}

/// Keys of a context that seals its sessions, and has hardly any room for stored ones.
const SEALED: &str = "ticket_kind = \"sealed\"\nticket_ring = \"web\"\ncache_entries_max = 1\ncache_bytes_max = \"1KiB\"\n";

impl House {
    async fn new() -> Self {
        Self::with("").await
    }

    async fn with(lines: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        pki::localhost(folder.path());
        let config = config(folder.path(), &format!("{SEALED}{lines}"));
        let daemon = TestDaemon::with(&config).await;
        Self { folder, daemon }
    }

    fn client(&self, version: &'static SupportedProtocolVersion) -> Client {
        let pem = std::fs::read(self.folder.path().join("ca.pem")).unwrap();
        Client::new(&pem, version, None)
    }

    async fn stats(&self) -> pb::SessionStats {
        self.context().await.stats.unwrap()
    }

    async fn context(&self) -> pb::Context {
        let mut contexts = self.daemon.contexts();
        let got = contexts.get_context(pb::GetContextRequest::default());
        got.await.unwrap().into_inner().context.unwrap()
    }

    /// Returns how many lookups missed for this reason.
    async fn misses(&self, why: pb::MissReason) -> u64 {
        let stats = self.stats().await;
        let counts = stats.misses_by_reason.iter();
        counts
            .filter(|count| count.reason() == why)
            .map(|count| count.count)
            .sum()
    }

    async fn rotate(&self, emergency: bool) {
        let request = pb::RotateRingRequest {
            ring: "web".into(),
            emergency,
        };
        TicketKeyServiceClient::new(self.daemon.channel.clone())
            .rotate_ring(request)
            .await
            .unwrap();
    }

    async fn is_idle(&self) -> bool {
        let request = pb::GetRingRequest { ring: "web".into() };
        let mut rings = TicketKeyServiceClient::new(self.daemon.channel.clone());
        let ring = rings.get_ring(request).await.unwrap().into_inner().ring;
        ring.unwrap().phase() == pb::RingPhase::Idle
    }

    async fn revoke(&self, selector: Selector) {
        let request = pb::RevokeSessionsRequest {
            selector: Some(selector),
            ..Default::default()
        };
        self.daemon
            .sessions()
            .revoke_sessions(request)
            .await
            .unwrap();
    }

    async fn remove(&self, id: &str) -> bool {
        let request = pb::RemoveSessionRequest {
            role: pb::Role::Server.into(),
            session_id: id.into(),
            ..Default::default()
        };
        self.daemon
            .sessions()
            .remove_session(request)
            .await
            .unwrap()
            .into_inner()
            .removed
    }

    /// Sends a first flight to a new connection. Returns the first handshake message of the answer.
    async fn answers(&self, flight: &[u8]) -> Vec<u8> {
        let id = self.daemon.open(pb::Role::Server).await;
        let answer = self.daemon.exchange(&id, flight, b"").await.unwrap();
        assert_eq!(answer.alert, None);
        let first = first_message(&answer.ciphertext).to_vec();
        self.free(&id).await;
        first
    }

    async fn shut(&self, id: &str) {
        let request = pb::ShutdownRequest {
            connection_id: id.into(),
        };
        self.daemon.connections().shutdown(request).await.unwrap();
        assert_eq!(self.free(id).await, [""; 0]);
    }

    /// Frees a connection. Returns the sessions that this removed.
    async fn free(&self, id: &str) -> Vec<String> {
        let request = pb::FreeRequest {
            connection_id: id.into(),
            ..Default::default()
        };
        let freed = self.daemon.connections().free(request).await.unwrap();
        freed
            .into_inner()
            .removed_sessions
            .into_iter()
            .map(|removed| {
                assert_eq!(removed.reason(), pb::RemovalReason::Unclosed);
                removed.session_id
            })
            .collect()
    }
}

/// One client with sessions of its own.
struct Client(Arc<ClientConfig>);

impl Client {
    fn new(
        ca: &[u8],
        version: &'static SupportedProtocolVersion,
        certificate: Option<&Leaf>,
    ) -> Self {
        let mut roots = RootCertStore::empty();
        for der in CertificateDer::pem_slice_iter(ca) {
            roots.add(der.unwrap()).unwrap();
        }
        let builder =
            ClientConfig::builder_with_protocol_versions(&[version]).with_root_certificates(roots);
        let config = match certificate {
            None => builder.with_no_client_auth(),
            Some(leaf) => {
                let chain = CertificateDer::pem_slice_iter(leaf.chain.as_bytes());
                let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
                builder
                    .with_client_auth_cert(chain.map(Result::unwrap).collect(), key)
                    .unwrap()
            }
        };
        Self(Arc::new(config))
    }

    /// Returns a client of TLS 1.2 that does not know tickets.
    fn without_tickets(self) -> Self {
        let mut config = Arc::unwrap_or_clone(self.0);
        config.resumption =
            Resumption::in_memory_sessions(8).tls12_resumption(Tls12Resumption::SessionIdOnly);
        Self(Arc::new(config))
    }

    /// Runs a handshake with a new connection of the daemon. Returns its id, and whether it resumed.
    async fn visits(&self, daemon: &TestDaemon) -> (String, bool) {
        self.visits_in("", daemon).await
    }

    async fn visits_in(&self, context: &str, daemon: &TestDaemon) -> (String, bool) {
        let mut tls = self.tls();
        let id = daemon.open_in(context, pb::Role::Server).await;
        carry(daemon, &id, &mut tls).await;
        assert!(!tls.is_handshaking());
        let resumed = tls.handshake_kind() == Some(HandshakeKind::Resumed);
        assert_eq!(daemon.get(&id).await.session_reused, resumed);
        (id, resumed)
    }

    fn tls(&self) -> ClientConnection {
        let name = ServerName::try_from("localhost").unwrap();
        ClientConnection::new(Arc::clone(&self.0), name).unwrap()
    }
}

/// Carries records between a client and a connection of the daemon until the client has no more.
async fn carry(daemon: &TestDaemon, id: &str, tls: &mut ClientConnection) {
    loop {
        let said = said(tls);
        if said.is_empty() {
            return;
        }
        let answer = daemon.exchange(id, &said, b"").await.unwrap();
        assert_eq!(answer.alert, None);
        let mut rest = &answer.ciphertext[..];
        while !rest.is_empty() {
            tls.read_tls(&mut rest).unwrap();
            tls.process_new_packets().unwrap();
        }
    }
}

/// Returns the records that a client has to send.
fn said(tls: &mut ClientConnection) -> Vec<u8> {
    let mut said = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut said).unwrap();
    }
    said
}
