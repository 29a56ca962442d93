//! Connection objects in memory, against plain rustls in memory.

use std::sync::Arc;

use rustls::{ClientConfig, ServerConfig, SupportedProtocolVersion};
use tls_sessiond::config::Config;
use tls_sessiond_core::{
    clock::Clock,
    connection::{
        ConnectionPlan, EngineKind, Input, Table,
        table::{Driver, Ending, Most},
    },
    context::Registry,
};
use tls_sessiond_types::Role;

use crate::{
    cpu,
    peer::{IN_FLIGHT, Kind, Peer, Setup},
    table::{self, Goal, Round, Unit},
};

const ROUNDS: usize = 101;

/// One connection on the server's side.
trait Server {
    fn step(&mut self, records: &[u8]) -> Vec<u8>;
    fn close(self) -> Vec<u8>;
}

impl Server for Peer {
    fn step(&mut self, records: &[u8]) -> Vec<u8> {
        self.step(records)
    }

    fn close(mut self) -> Vec<u8> {
        Self::close(&mut self)
    }
}

impl Server for Driver {
    fn step(&mut self, records: &[u8]) -> Vec<u8> {
        self.exchange(Input {
            ciphertext: records,
            ..Input::default()
        })
        .unwrap()
        .done()
        .unwrap()
        .ciphertext
    }

    fn close(self) -> Vec<u8> {
        let mut records = Vec::new();
        self.shutdown(&mut records).unwrap();
        records
    }
}

/// Returns the CPU seconds of the server's side for one handshake of each client, from making the
/// object to dropping it. All handshakes are in flight at once, and the clock is read only when the
/// sides change.
fn handshakes<S: Server>(clients: &[Arc<ClientConfig>], kind: Kind, make: impl Fn() -> S) -> f64 {
    let mut used = 0.0;
    let mut peers: Vec<_> = clients.iter().map(Peer::client).collect();
    let mut flights: Vec<_> = peers.iter_mut().map(Peer::flush).collect();
    let mut servers: Vec<S> = cpu::add(&mut used, || clients.iter().map(|_| make()).collect());
    while flights.iter().any(|flight| !flight.is_empty()) {
        let answers: Vec<_> = cpu::add(&mut used, || {
            servers
                .iter_mut()
                .zip(&flights)
                .map(|(server, flight)| server.step(flight))
                .collect()
        });
        flights = peers
            .iter_mut()
            .zip(answers)
            .map(|(peer, answer)| peer.step(&answer))
            .collect();
    }
    let last: Vec<_> = cpu::add(&mut used, || servers.into_iter().map(S::close).collect());
    for (peer, flight) in peers.iter_mut().zip(last) {
        peer.step(&flight);
        peer.check(kind);
    }
    used
}

/// Returns the CPU seconds of plain rustls for the same handshakes.
pub(crate) fn plain(clients: &[Arc<ClientConfig>], kind: Kind, config: &Arc<ServerConfig>) -> f64 {
    handshakes(clients, kind, || Peer::server(config))
}

/// Gives each client a session to resume.
pub(crate) fn prime(clients: &[Arc<ClientConfig>], kind: Kind, config: &Arc<ServerConfig>) {
    if kind == Kind::Resumed {
        plain(clients, Kind::Full, config);
    }
}

pub(crate) fn measure(
    setup: &Setup,
    name: &str,
    version: &'static SupportedProtocolVersion,
    kind: Kind,
    table: &mut table::Table,
) {
    let config = Config::load(
        Some(&setup.folder.path().join("bench.toml")),
        std::iter::empty(),
        &[],
    )
    .unwrap();
    let registry = Arc::new(Registry::build(&config.settings()).unwrap());
    let context = Arc::clone(registry.get("default").unwrap());
    let connections = Arc::new(Table::new(Clock::System, Most::all(1_000)));
    let open = || {
        let plan = ConnectionPlan {
            context: Arc::clone(&context),
            role: Role::Server,
            engine: EngineKind::Daemon,
            server_name: String::new(),
            owner: "bench".into(),
            idle_timeout: None,
            peer_address: String::new(),
        };
        let id = connections
            .create(plan, None, |connection, _| connection.id())
            .unwrap();
        connections.drive(id, Ending::Free).unwrap()
    };
    let mut compare = |name: &str, tickets, goal| {
        if !table.wants(name) {
            return;
        }
        let ours = setup.clients(version, kind);
        let theirs = setup.clients(version, kind);
        let plain_config = setup.plain(tickets);
        if kind == Kind::Resumed {
            handshakes(&ours, Kind::Full, open);
        }
        prime(&theirs, kind, &plain_config);
        let rounds: Vec<_> = (0..ROUNDS)
            .map(|_| Round {
                ours: handshakes(&ours, kind, open),
                plain: plain(&theirs, kind, &plain_config),
            })
            .collect();
        table.row(name, Unit::Time(IN_FLIGHT), goal, &rounds);
    };
    let name = &format!("Engine {name}");
    // The daemon makes two tickets after a full handshake and one after a resumption.
    let single = kind == Kind::Resumed && name.contains("1.3");
    compare(name, if single { 1 } else { 2 }, Goal::AtMost(1.15));
    if single {
        compare("Engine, plain makes 2 tickets", 2, Goal::None);
    }
}
