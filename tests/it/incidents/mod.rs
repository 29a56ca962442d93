//! Security incidents of other products, each as a test. In all of them a session was resumed where
//! it was not made, and carried an authentication to a place where the peer had not authenticated.
//!
//! Each test first shows that the session resumes where it was made. Then it offers the session
//! where the incident resumed it, on every path:
//! * by session id and by ticket,
//! * from the cache of client sessions by server name,
//! * by `New` and `SetSession`,
//! * for workers that run TLS themselves, by `PutSession` and `LookupSession`.
//!
//! There the session must be a miss and the handshake a full one.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, NamedGroup, RootCertStore, SignatureScheme,
    SupportedProtocolVersion,
    client::{
        ClientSessionStore, ResolvesClientCert, Resumption, Tls12ClientSessionValue,
        Tls13ClientSessionValue,
    },
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use tempfile::TempDir;
use tls_sessiond::config::Config;
use tls_sessiond_proto as pb;

use crate::{
    harness::{TestDaemon, new, reason},
    pki::Authority,
};

mod client;
mod reload;
mod server;
mod worker;

/// TLS 1.2 resumes by session id, TLS 1.3 by ticket.
const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// A place of a handshake: a context, and the server name, or an empty one.
#[derive(Clone, Copy, Debug)]
struct At(&'static str, &'static str);

/// The expected end of a handshake where the session must not be resumed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    /// A full handshake that succeeds.
    Full,
    /// A full handshake that ends with this alert.
    Refused(&'static str),
}

/// A daemon with one version of TLS, and the files that its contexts name.
struct Site {
    daemon: TestDaemon,
    folder: TempDir,
    version: &'static SupportedProtocolVersion,
}

/// The authorities. The certificate of each is in `NAME.pem`.
const AUTHORITIES: [&str; 4] = ["servers", "rogue", "one", "two"];

/// The certificates: the authority that signed each, its file, and its names.
const CERTIFICATES: [(&str, &str, &[&str]); 9] = [
    ("servers", "a", &["a.test"]),
    ("servers", "other-a", &["a.test"]),
    ("servers", "b", &["b.test"]),
    ("servers", "ab", &["a.test", "b.test"]),
    ("servers", "wild", &["*.wild.test"]),
    ("rogue", "rogue-a", &["a.test"]),
    ("one", "alice", &["alice.one.test"]),
    ("one", "carol", &["carol.one.test"]),
    ("two", "bob", &["bob.two.test"]),
];

impl Site {
    /// Starts a daemon with these contexts. Unless their lines say otherwise, they trust
    /// `servers.pem` and have one `session_id_context`.
    async fn start(
        version: &'static SupportedProtocolVersion,
        contexts: &[(&str, String)],
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in AUTHORITIES {
            let authority = Authority::new(name);
            std::fs::write(folder.path().join(format!("{name}.pem")), &authority.pem).unwrap();
            for (_, file, names) in CERTIFICATES.iter().filter(|(signer, ..)| *signer == name) {
                authority.leaf(names).write(folder.path(), file);
            }
        }
        let config = config(&folder, version, contexts);
        Self {
            daemon: TestDaemon::run(&config).await,
            folder,
            version,
        }
    }

    /// Reloads the running daemon with other contexts.
    fn reload(&self, contexts: &[(&str, String)]) {
        self.daemon
            .apply(&config(&self.folder, self.version, contexts))
            .unwrap();
    }

    /// Makes a connection.
    async fn open(&self, request: pb::NewRequest) -> pb::Connection {
        self.daemon
            .connections()
            .new_connection(request)
            .await
            .unwrap()
            .into_inner()
            .connection
            .unwrap()
    }

    /// Closes a connection on both sides, so that its sessions stay, and frees it.
    async fn close(&self, id: &str) {
        let shutdown = Some(pb::ShutdownFlags {
            sent: true,
            received: true,
        });
        let request = pb::SetShutdownRequest {
            connection_id: id.into(),
            shutdown,
        };
        self.daemon
            .connections()
            .set_shutdown(request)
            .await
            .unwrap();
        let request = pb::FreeRequest {
            connection_id: id.into(),
            allow_missing: false,
        };
        self.daemon.connections().free(request).await.unwrap();
    }

    /// Returns the number of misses of a context.
    async fn misses(&self, context: &str) -> u64 {
        let request = pb::GetContextRequest {
            name: context.into(),
        };
        let context = self
            .daemon
            .contexts()
            .get_context(request)
            .await
            .unwrap()
            .into_inner()
            .context;
        context.unwrap().stats.unwrap().misses
    }

    /// Asserts that neither `New` nor `SetSession` attaches a session to what this request makes, in either engine.
    async fn refuses(&self, request: &pb::NewRequest, session_id: &str) {
        let mut rpc = self.daemon.connections();
        assert!(!session_id.is_empty());
        for engine in [pb::Engine::Daemon, pb::Engine::Worker] {
            let request = pb::NewRequest {
                engine: engine.into(),
                ..request.clone()
            };
            let named = pb::NewRequest {
                session_id: session_id.into(),
                ..request.clone()
            };
            let refused = rpc
                .new_connection(named)
                .await
                .expect_err("New attached the session");
            assert_eq!(reason(&refused), "SESSION_OUT_OF_SCOPE", "{request:?}");
            let id = self.open(request.clone()).await.id;
            let named = pb::SetSessionRequest {
                connection_id: id.clone(),
                session_id: session_id.into(),
            };
            let refused = rpc
                .set_session(named)
                .await
                .expect_err("SetSession attached the session");
            assert_eq!(reason(&refused), "SESSION_OUT_OF_SCOPE", "{request:?}");
            assert_eq!(self.daemon.get(&id).await.session_id, "");
            self.close(&id).await;
        }
    }

    /// Carries bytes between a client and a server, beginning with the client's, until neither
    /// sends any. Returns the name of the alert that ended the handshake, from either side.
    async fn carry(&self, client: &str, server: &str, mut to_server: Vec<u8>) -> Option<String> {
        while !to_server.is_empty() {
            let answer = self.daemon.exchange(server, &to_server, b"").await.unwrap();
            if let Some(alert) = answer.alert {
                return Some(alert.name);
            }
            to_server = self
                .daemon
                .exchange(client, &answer.ciphertext, b"")
                .await
                .unwrap()
                .ciphertext
                .to_vec();
        }
        None
    }

    async fn listed(&self, context: &str) -> Vec<pb::Session> {
        let request = pb::ListSessionsRequest {
            context: context.into(),
            ..Default::default()
        };
        self.daemon
            .sessions()
            .list_sessions(request)
            .await
            .unwrap()
            .into_inner()
            .sessions
    }

    /// Returns the number of sessions of a role in all contexts.
    async fn sessions(&self, role: pb::Role) -> usize {
        self.listed("")
            .await
            .iter()
            .filter(|session| session.role() == role)
            .count()
    }

    /// Removes a session from the cache.
    async fn remove(&self, session: &pb::Session) {
        let request = pb::RemoveSessionRequest {
            context: session.context.clone(),
            session_id: session.id.clone(),
            role: session.role,
        };
        self.daemon
            .sessions()
            .remove_session(request)
            .await
            .unwrap();
    }

    /// Removes all sessions of a role.
    async fn forget(&self, role: pb::Role) {
        for session in self
            .listed("")
            .await
            .iter()
            .filter(|session| session.role() == role)
        {
            self.remove(session).await;
        }
    }

    /// Returns a session of a context by its id.
    async fn session(&self, context: &str, id: &str) -> pb::Session {
        self.listed(context)
            .await
            .into_iter()
            .find(|session| session.id == id)
            .expect("a stored session")
    }

    fn certificates(&self, file: &str) -> Vec<CertificateDer<'static>> {
        let certificates = CertificateDer::pem_file_iter(self.folder.path().join(file)).unwrap();
        certificates.map(Result::unwrap).collect()
    }
}

fn config(
    folder: &TempDir,
    version: &SupportedProtocolVersion,
    contexts: &[(&str, String)],
) -> Config {
    let spoken = if version.version == TLS12.version {
        "1.2"
    } else {
        "1.3"
    };
    let mut text = String::new();
    for (name, lines) in contexts {
        text += &format!("[[context]]\nname = \"{name}\"\nversions = [\"{spoken}\"]\n{lines}\n");
        // Each key is written out, because a reload refuses to return a missing one to its default.
        for (key, value) in [
            ("ca", "servers.pem"),
            ("session_id_context", "one"),
            ("client_auth", "none"),
        ] {
            if !lines.contains(&format!("{key} = ")) {
                text += &format!("{key} = \"{value}\"\n");
            }
        }
    }
    let file = folder.path().join("incident.toml");
    std::fs::write(&file, text).unwrap();
    let set = ["listen.api=[\"tcp://127.0.0.1:0\"]".to_owned()];
    Config::load(Some(&file), std::iter::empty(), &set).unwrap()
}

/// Returns the lines of a server's context.
fn serves(certificate: &str) -> String {
    format!("certificate = \"{certificate}.crt\"\nkey = \"{certificate}.key\"\n")
}

/// Returns the lines of a server's context that asks clients for certificates of an authority.
fn asks(certificate: &str, client_auth: &str, authority: &str) -> String {
    format!(
        "{}client_auth = \"{client_auth}\"\nca = \"{authority}.pem\"\n",
        serves(certificate)
    )
}

/// Returns a request for a connection. A server's connection ignores the name.
fn at(At(context, server_name): At, role: pb::Role) -> pb::NewRequest {
    pb::NewRequest {
        server_name: server_name.into(),
        ..new(context, role)
    }
}

/// A client that offers its session to any server, which the daemon's own client never does. Away
/// from home, where the session was not made, it shows no certificate and keeps no session.
struct Visitor {
    config: ClientConfig,
    bag: Arc<Bag>,
}

/// The certificate and the sessions of a visitor.
struct Bag {
    away: AtomicBool,
    certificate: Option<Arc<CertifiedKey>>,
    session: Mutex<Option<Tls12ClientSessionValue>>,
    tickets: Mutex<Vec<Tls13ClientSessionValue>>,
}

/// The result of one handshake.
struct Visit {
    /// The server's connection at the end.
    server: pb::Connection,
    /// The alert that ended the handshake.
    alert: Option<String>,
    resumed: bool,
    /// The certificate that the client saw, in a resumption that of the original handshake.
    shown: Option<CertificateDer<'static>>,
}

impl Visitor {
    /// Makes a visitor with a client's certificate or without one.
    fn new(site: &Site, certificate: Option<&str>) -> Self {
        let certificate = certificate.map(|name| {
            let key = PrivateKeyDer::from_pem_file(site.folder.path().join(format!("{name}.key")))
                .unwrap();
            let chain = site.certificates(&format!("{name}.crt"));
            Arc::new(CertifiedKey::from_der(chain, key, &default_provider()).unwrap())
        });
        let bag = Arc::new(Bag {
            away: AtomicBool::new(false),
            certificate,
            session: Mutex::default(),
            tickets: Mutex::default(),
        });
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(site.certificates("servers.pem"));
        let mut config = ClientConfig::builder_with_protocol_versions(&[site.version])
            .with_root_certificates(roots)
            .with_client_cert_resolver(Arc::clone(&bag) as Arc<dyn ResolvesClientCert>);
        config.resumption = Resumption::store(Arc::clone(&bag) as Arc<dyn ClientSessionStore>);
        Self { config, bag }
    }

    /// Removes the visitor's sessions.
    fn forget(&self) {
        *self.bag.session.lock() = None;
        self.bag.tickets.lock().clear();
    }

    /// Makes a handshake at home, where the visitor may keep a session.
    async fn visit(&self, site: &Site, place: At) -> Visit {
        let server = site.open(at(place, pb::Role::Server)).await.id;
        self.meet(site, &server, place.1).await
    }

    /// Makes a handshake away from home.
    async fn stray(&self, site: &Site, place: At) -> Visit {
        let server = site.open(at(place, pb::Role::Server)).await.id;
        self.stray_to(site, &server, place.1).await
    }

    /// Makes a handshake away from home with this connection.
    async fn stray_to(&self, site: &Site, server: &str, name: &str) -> Visit {
        self.bag.away.store(true, Ordering::Relaxed);
        let visit = self.meet(site, server, name).await;
        self.bag.away.store(false, Ordering::Relaxed);
        visit
    }

    /// Makes a handshake with a server's connection, which is then closed and freed.
    async fn meet(&self, site: &Site, server: &str, name: &str) -> Visit {
        let mut config = self.config.clone();
        config.enable_sni = !name.is_empty();
        let name = ServerName::try_from(if name.is_empty() { "a.test" } else { name }).unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name.to_owned()).unwrap();
        let mut alert = None;
        while client.wants_write() && alert.is_none() {
            let mut to_server = Vec::new();
            client.write_tls(&mut to_server).unwrap();
            let answer = site.daemon.exchange(server, &to_server, b"").await.unwrap();
            alert = answer.alert.map(|alert| alert.name);
            let mut to_client = &answer.ciphertext[..];
            // A client that refuses its input writes an alert.
            while !to_client.is_empty() && client.read_tls(&mut to_client).is_ok() {
                if client.process_new_packets().is_err() {
                    break;
                }
            }
        }
        let resumed = client.handshake_kind() == Some(HandshakeKind::Resumed);
        let shown = client
            .peer_certificates()
            .and_then(|chain| chain.first())
            .map(|leaf| leaf.clone().into_owned());
        let seen = site.daemon.get(server).await;
        site.close(server).await;
        Visit {
            server: seen,
            alert,
            resumed,
            shown,
        }
    }
}

impl Visit {
    /// Asserts that both sides finished the handshake and agree whether it was a resumption.
    #[track_caller]
    fn established(&self, resumed: bool) {
        assert_eq!(
            (&self.alert, self.server.state()),
            (&None, pb::ConnectionState::Established)
        );
        assert_eq!(
            (self.resumed, self.server.session_reused),
            (resumed, resumed),
            "{:?}",
            self.server
        );
    }

    /// Asserts that the handshake did not resume, and that it ended as expected.
    #[track_caller]
    fn went(&self, then: Then) {
        match then {
            Then::Full => self.established(false),
            Then::Refused(alert) => {
                assert_eq!(self.alert.as_deref(), Some(alert), "{:?}", self.server);
                assert_eq!(self.server.state(), pb::ConnectionState::Failed);
                assert!(
                    !self.resumed && !self.server.session_reused,
                    "{:?}",
                    self.server
                );
            }
        }
    }
}

impl fmt::Debug for Bag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bag")
    }
}

impl ResolvesClientCert for Bag {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.certificate
            .clone()
            .filter(|_| !self.away.load(Ordering::Relaxed))
    }

    fn has_certs(&self) -> bool {
        self.certificate.is_some()
    }
}

impl ClientSessionStore for Bag {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        if !self.away.load(Ordering::Relaxed) {
            *self.session.lock() = Some(value);
        }
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.session.lock().clone()
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        if !self.away.load(Ordering::Relaxed) {
            self.tickets.lock().push(value);
        }
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.tickets.lock().pop()
    }
}
