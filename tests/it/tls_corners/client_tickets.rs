//! How a client handles a server's tickets: their lifetimes, and tickets of a resumption.

use std::{path::Path, sync::Arc};

use rustls::{
    ServerConnection, SupportedProtocolVersion,
    server::ProducesTickets,
    version::{TLS12, TLS13},
};
use tls_sessiond_core::{connection::State, state::CoreState};
use tls_sessiond_types::Role;

use super::{plain_config, send, state};
use crate::{foreign_client::open, pki};

/// Tickets with a given lifetime that contain the session.
#[derive(Debug)]
struct Lifetime(u32);

impl ProducesTickets for Lifetime {
    fn enabled(&self) -> bool {
        true
    }
    fn lifetime(&self) -> u32 {
        self.0
    }
    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        // Each ticket differs, as those of every server do.
        let mut ticket = vec![0; 8];
        aws_lc_rs::rand::fill(&mut ticket).ok()?;
        ticket.extend_from_slice(plain);
        Some(ticket)
    }
    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        ticket.get(8..).map(<[u8]>::to_vec)
    }
}

/// Runs a handshake of the daemon's client with a rustls server whose tickets have this lifetime.
/// Returns whether it resumed.
fn visit(
    core: &CoreState,
    folder: &Path,
    version: &'static SupportedProtocolVersion,
    lifetime: u32,
) -> bool {
    let mut config = plain_config(folder, &[version]);
    config.ticketer = Arc::new(Lifetime(lifetime));
    let id = open(core, Role::Client, "localhost");
    let mut peer = ServerConnection::new(Arc::new(config)).unwrap();
    let mut to_server = send(core, id, b"").ciphertext;
    loop {
        let mut rest = to_server.as_slice();
        while !rest.is_empty() {
            peer.read_tls(&mut rest).unwrap();
            peer.process_new_packets().unwrap();
        }
        let mut to_client = Vec::new();
        while peer.wants_write() {
            peer.write_tls(&mut to_client).unwrap();
        }
        if to_client.is_empty() {
            break;
        }
        let output = send(core, id, &to_client);
        assert_eq!(output.alert, None);
        to_server = output.ciphertext;
    }
    assert_eq!(state(core, id), State::Established);
    let reused = core
        .connections()
        .inspect(id, |connection, _| connection.session_reused())
        .unwrap();
    core.connections()
        .with(id, |connection, _| connection.shutdown(&mut Vec::new()))
        .unwrap();
    core.connections().free(id).unwrap();
    reused
}

/// Returns the remaining lifetimes of the client's sessions in seconds, shortest first.
fn lives(core: &CoreState) -> Vec<u64> {
    let now = core.now();
    let mut lives = Vec::new();
    let registry = core.registry();
    registry
        .get("default")
        .unwrap()
        .client_cache
        .scan(now, |session| {
            lives.push(session.expires().since(now.at).as_secs());
        });
    lives.sort_unstable();
    lives
}

#[test]
fn ticket_lifetime_limits_a_client_session() {
    for (version, lifetime, kept) in [
        (&TLS13, 0, None),
        (&TLS13, 60, Some(60)),
        (&TLS13, 604_800, Some(7200)),
        (&TLS12, 60, Some(60)),
        // RFC 5077 section 3.3: 0 leaves the lifetime unspecified.
        (&TLS12, 0, Some(7200)),
    ] {
        let (core, folder) = client_daemon("session_timeout = \"2h\"");
        assert!(!visit(&core, folder.path(), version, lifetime));
        let lives = lives(&core);
        let kept: Option<u64> = kept;
        match kept {
            None => assert!(lives.is_empty(), "{version:?} {lifetime}: {lives:?}"),
            Some(most) => {
                assert!(!lives.is_empty(), "{version:?} {lifetime}");
                assert!(
                    lives.iter().all(|life| (most - 2..=most).contains(life)),
                    "{version:?} {lifetime}: {lives:?}"
                );
            }
        }
    }
}

#[test]
fn renewed_ticket_of_a_tls12_resumption_is_kept() {
    let (core, folder) = client_daemon("session_timeout = \"2h\"");
    assert!(!visit(&core, folder.path(), &TLS12, 600));
    assert_eq!(lives(&core).len(), 1);
    assert!(visit(&core, folder.path(), &TLS12, 1200));
    let lives = lives(&core);
    assert!(
        lives.len() == 2 && (590..=600).contains(&lives[0]) && (1190..=1200).contains(&lives[1]),
        "{lives:?}"
    );
    assert!(
        visit(&core, folder.path(), &TLS12, 1200),
        "the renewed ticket is offered"
    );
}

fn client_daemon(lines: &str) -> (CoreState, tempfile::TempDir) {
    use tls_sessiond::config::Config;
    use tls_sessiond_core::{clock::Clock, connection::table::Most, context::Registry};
    let folder = tempfile::tempdir().unwrap();
    pki::localhost(folder.path());
    let file = folder.path().join("c.toml");
    std::fs::write(&file, format!("[[context]]\nca = \"ca.pem\"\n{lines}\n")).unwrap();
    let config = Config::load(Some(&file), std::iter::empty(), &[]).unwrap();
    (
        CoreState::new(
            Arc::new(Registry::build(&config.settings()).unwrap()),
            Clock::System,
            Most::all(100),
        ),
        folder,
    )
}
