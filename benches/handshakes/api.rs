//! Handshakes through Drive and Exchange, 16 in flight, against the server's side of plain rustls
//! in memory.

use std::sync::Arc;

use rustls::{ClientConfig, SupportedProtocolVersion};
use tokio::{runtime::Runtime, task::JoinSet};

use crate::{
    daemon::{Daemon, Socket, Worker},
    engine,
    peer::{IN_FLIGHT, Kind, Setup},
    table::{Goal, Round, Table, Unit},
};

const ROUNDS: usize = 41;
/// Handshakes of each client in one round, one after the other.
const REPEATS: usize = 6;

/// How the bytes get to the daemon.
#[derive(Clone, Copy)]
pub(crate) struct Way {
    call: Call,
    socket: Socket,
    /// HTTP/2 connections, which share the TLS connections in flight.
    workers: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Call {
    Drive,
    Exchange,
}

impl Way {
    pub(crate) const ALL: [Self; 5] = [
        Self {
            call: Call::Drive,
            socket: Socket::Unix,
            workers: 1,
        },
        Self {
            call: Call::Drive,
            socket: Socket::Tcp,
            workers: 1,
        },
        Self {
            call: Call::Drive,
            socket: Socket::Unix,
            workers: 4,
        },
        Self {
            call: Call::Exchange,
            socket: Socket::Unix,
            workers: 1,
        },
        Self {
            call: Call::Exchange,
            socket: Socket::Tcp,
            workers: 1,
        },
    ];
}

/// Runs all clients at the same time. Each makes its handshakes one after the other.
async fn handshakes(
    workers: &[Worker],
    clients: &[Arc<ClientConfig>],
    call: Call,
    kind: Kind,
    repeats: usize,
) {
    let mut running = JoinSet::new();
    for (place, client) in clients.iter().enumerate() {
        let (worker, client) = (workers[place % workers.len()].clone(), Arc::clone(client));
        running.spawn(async move {
            for _ in 0..repeats {
                match call {
                    Call::Drive => worker.clone().drive(Arc::clone(&client), kind).await,
                    Call::Exchange => worker.clone().exchange(Arc::clone(&client), kind).await,
                }
            }
        });
    }
    // A failed handshake ends the run.
    while let Some(done) = running.join_next().await {
        done.unwrap();
    }
}

pub(crate) fn measure(
    setup: &Setup,
    daemon: &Daemon,
    runtime: &Runtime,
    way: Way,
    (name, version, kind): (&str, &'static SupportedProtocolVersion, Kind),
    table: &mut Table,
) {
    let tls13 = name.contains("1.3");
    let shared = if way.workers > 1 {
        format!(", {} workers", way.workers)
    } else {
        String::new()
    };
    let name = format!("{:?} {:?} {name}{shared}", way.call, way.socket);
    if !table.wants(&name) {
        return;
    }
    let plain_config = setup.plain(if tls13 && kind == Kind::Resumed { 1 } else { 2 });
    let mut workers = Vec::new();
    for _ in 0..way.workers {
        workers.push(runtime.block_on(daemon.worker(way.socket)));
    }
    let rounds: Vec<_> = (0..ROUNDS)
        .map(|_| {
            // Each round has new clients, so their sessions are young in the daemon's cache.
            let (ours, theirs) = (setup.clients(version, kind), setup.clients(version, kind));
            engine::prime(&theirs, kind, &plain_config);
            if kind == Kind::Resumed {
                runtime.block_on(handshakes(&workers, &ours, way.call, Kind::Full, 1));
            }
            let before = daemon.cpu();
            runtime.block_on(handshakes(&workers, &ours, way.call, kind, REPEATS));
            let ours = daemon.cpu() - before;
            let plain = (0..REPEATS)
                .map(|_| engine::plain(&theirs, kind, &plain_config))
                .sum();
            Round { ours, plain }
        })
        .collect();
    let goal = match (way.call, kind) {
        _ if way.workers > 1 => Goal::None,
        (Call::Drive, Kind::Resumed) if tls13 => Goal::AtLeast(0.75),
        (Call::Drive, Kind::Resumed) => Goal::AtLeast(0.33),
        _ => Goal::None,
    };
    table.row(&name, Unit::Rate(IN_FLIGHT * REPEATS), goal, &rounds);
}
