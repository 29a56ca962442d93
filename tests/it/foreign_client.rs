//! A rustls client outside the daemon against the daemon's server objects, in memory.

use std::{collections::VecDeque, path::Path, sync::Arc};

use parking_lot::Mutex;
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, NamedGroup, RootCertStore,
    client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue},
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tls_sessiond::config::Config;
use tls_sessiond_core::{
    clock::Clock,
    connection::{ConnectionId, ConnectionPlan, EngineKind, Input, State, table::Most},
    context::Registry,
    state::CoreState,
};
use tls_sessiond_types::Role;

use crate::pki;

/// A session store that keeps sessions but not the server's preferred group. So a server with
/// another group answers every hello with a HelloRetryRequest.
#[derive(Default)]
struct Forgetful {
    tls12: Mutex<Option<Tls12ClientSessionValue>>,
    tickets: Mutex<VecDeque<Tls13ClientSessionValue>>,
}

impl std::fmt::Debug for Forgetful {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Forgetful")
    }
}

impl ClientSessionStore for Forgetful {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}
    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }
    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        *self.tls12.lock() = Some(value);
    }
    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.tls12.lock().clone()
    }
    fn remove_tls12_session(&self, _: &ServerName<'static>) {}
    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.tickets.lock().push_back(value);
    }
    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.tickets.lock().pop_back()
    }
}

fn daemon(lines: &str) -> (CoreState, Arc<ClientConfig>) {
    let (core, roots) = with_roots(lines);
    (core, client(&roots, |_| true))
}

/// Returns a client that trusts these roots and has those suites of rustls for which `wants` is
/// true.
pub(crate) fn client(roots: &RootCertStore, wants: impl Fn(u16) -> bool) -> Arc<ClientConfig> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider
        .cipher_suites
        .retain(|suite| wants(suite.suite().into()));
    let mut client = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots.clone())
        .with_no_client_auth();
    client.resumption = Resumption::store(Arc::new(Forgetful::default()));
    Arc::new(client)
}

/// Returns a table with a default context that has these lines, and the roots that its peers trust.
pub(crate) fn with_roots(lines: &str) -> (CoreState, RootCertStore) {
    let folder = tempfile::tempdir().unwrap();
    pki::localhost(folder.path());
    with_roots_in(folder.path(), lines)
}

/// Does as [`with_roots`] with the certificates of a folder.
pub(crate) fn with_roots_in(folder: &Path, lines: &str) -> (CoreState, RootCertStore) {
    let file = folder.join("c.toml");
    let text = format!(
        "[[context]]\ncertificate = \"tls.crt\"\nkey = \"tls.key\"\nca = \"ca.pem\"\n{lines}\n"
    );
    std::fs::write(&file, text).unwrap();
    let config = Config::load(Some(&file), std::iter::empty(), &[]).unwrap();
    let core = CoreState::new(
        Arc::new(Registry::build(&config.settings()).unwrap()),
        Clock::System,
        Most::all(100),
    );
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(folder.join("ca.pem")).unwrap())
        .unwrap();
    (core, roots)
}

/// Makes a server object of the default context.
pub(crate) fn server(core: &CoreState) -> ConnectionId {
    open(core, Role::Server, "")
}

pub(crate) fn open(core: &CoreState, role: Role, server_name: &str) -> ConnectionId {
    let plan = ConnectionPlan {
        context: Arc::clone(core.registry().get("default").unwrap()),
        role,
        engine: EngineKind::Daemon,
        server_name: server_name.into(),
        owner: "test".into(),
        idle_timeout: None,
        peer_address: String::new(),
    };
    core.connections()
        .create(plan, None, |connection, _| connection.id())
        .unwrap()
}

/// Runs a whole handshake, with at most `chunk` bytes at a time to the server. Returns its kind,
/// the id of the server object and the number of the client's flights.
pub(crate) fn connect(
    core: &CoreState,
    config: &Arc<ClientConfig>,
    chunk: usize,
) -> (HandshakeKind, ConnectionId, usize) {
    let id = server(core);
    let mut client =
        ClientConnection::new(Arc::clone(config), "localhost".try_into().unwrap()).unwrap();
    let mut flights = 0;
    while client.wants_write() {
        flights += 1;
        let mut to_server = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut to_server).unwrap();
        }
        for part in to_server.chunks(chunk) {
            let input = Input {
                ciphertext: part,
                ..Input::default()
            };
            let output = core
                .connections()
                .with(id, |connection, now| connection.exchange(input, now))
                .unwrap()
                .done()
                .unwrap();
            assert_eq!(output.alert, None);
            let mut to_client = output.ciphertext.as_slice();
            while !to_client.is_empty() {
                client.read_tls(&mut to_client).unwrap();
                client.process_new_packets().unwrap();
            }
        }
    }
    assert_eq!(
        core.connections()
            .inspect(id, |connection, _| connection.state())
            .unwrap(),
        State::Established
    );
    (client.handshake_kind().unwrap(), id, flights)
}

#[test]
fn sessions_are_found_through_a_hello_retry_request() {
    let (core, client) = daemon("key_exchange = [\"secp384r1\"]\nversions = [\"1.3\"]");
    let (kind, first, flights) = connect(&core, &client, usize::MAX);
    assert_eq!(
        (kind, flights),
        (HandshakeKind::FullWithHelloRetryRequest, 3)
    );
    core.connections()
        .with(first, |connection, _| connection.shutdown(&mut Vec::new()))
        .unwrap();
    let (kind, second, flights) = connect(&core, &client, usize::MAX);
    assert_eq!(
        (kind, flights),
        (HandshakeKind::Resumed, 3),
        "two hellos and a Finished"
    );
    assert!(
        core.connections()
            .inspect(second, |connection, _| connection.session_reused())
            .unwrap()
    );
    // The full handshake made two tickets. The resumption consumed one and made one.
    assert_eq!(
        core.registry().get("default").unwrap().server_cache.len(),
        2
    );
}

#[test]
fn first_flight_may_be_cut_anywhere_in_both_versions() {
    for version in ["1.2", "1.3"] {
        let (core, client) = daemon(&format!("versions = [\"{version}\"]"));
        for chunk in [1, 2, 3, 5, 7, 100] {
            let (_, full, _) = connect(&core, &client, chunk);
            let (kind, resumed, _) = connect(&core, &client, chunk);
            assert_eq!(
                kind,
                HandshakeKind::Resumed,
                "TLS {version}, {chunk} bytes at a time"
            );
            for id in [full, resumed] {
                core.connections()
                    .with(id, |connection, _| connection.shutdown(&mut Vec::new()))
                    .unwrap();
                core.connections().free(id).unwrap();
            }
        }
    }
}

#[test]
fn full_handshake_makes_two_tickets_and_resumption_one() {
    let (core, client) = daemon("versions = [\"1.3\"]");
    let made = || core.registry().get("default").unwrap().server_cache.len();
    connect(&core, &client, usize::MAX);
    assert_eq!(made(), 2);
    connect(&core, &client, usize::MAX);
    assert_eq!(made(), 2, "the resumption consumed one ticket and made one");
}

#[test]
fn debug_output_holds_no_secret() {
    let (core, client) = daemon("versions = [\"1.2\"]");
    let (_, id, _) = connect(&core, &client, usize::MAX);
    let context = Arc::clone(core.registry().get("default").unwrap());
    let mut shown = format!("{context:?}{core:?}");
    let mut secrets = 0;
    context.server_cache.scan(core.now(), |session| {
        shown += &format!("{session:?}{:?}", session.secret());
        let secret = session.secret().as_bytes().expect("a server's secret");
        // No eight bytes of the secret in a row are shown, as hex or as Rust prints bytes.
        for part in secret.windows(8) {
            let hex: String = part.iter().map(|byte| format!("{byte:02x}")).collect();
            assert!(!shown.contains(&hex) && !shown.contains(&format!("{part:?}")[1..]));
        }
        assert!(
            !shown.contains(&session.id().to_string()),
            "a session id is shown in part only: a peer that knows it could offer it"
        );
        secrets += 1;
    });
    assert_eq!(secrets, 1);
    shown += &core
        .connections()
        .inspect(id, |connection, _| format!("{connection:?}"))
        .unwrap();
    assert!(shown.contains("Secret(…)"));
}
