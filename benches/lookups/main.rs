//! Lookups through the client `Worker` against Redis and memcached with their clients: the lookups
//! in a second, the time of one, and the CPU time on both sides.
//!
//! `cargo bench --bench lookups`. Words after `--` select rows by name: `-- 'Unix, 16'`.
//!
//! * `turns`: the lookups of each side, in turns
//! * `many`: the same among ten million sessions
//! * `servers`: the daemon, Redis and memcached as separate processes
//! * `clients`: their clients
//! * `shared/`: the table, the daemon's process, CPU clocks, and the threads that keep the cores
//!   awake
//!
//! The servers run on one core and all clients on another. The three sides take turns in many short
//! rounds, and each round gives one ratio, so other load of the machine affects all of them. Every
//! lookup must find its session.

#![expect(clippy::unwrap_used, reason = "a failure ends the run")]

use std::{sync::Arc, time::Duration};

use tokio::runtime::Runtime;

mod clients;
mod many;
mod servers;
mod turns;

#[path = "../shared/awake.rs"]
mod awake;
#[path = "../shared/cores.rs"]
mod cores;
#[path = "../shared/cpu.rs"]
#[allow(dead_code, reason = "each bench has its own clocks")]
mod cpu;
#[path = "../shared/daemon.rs"]
mod process;
#[path = "../shared/table.rs"]
#[allow(dead_code, reason = "each bench has its own units and goals")]
mod table;

use clients::{Session, Side};
use servers::{Servers, Socket};
use table::{Goal, Round, Table, Unit};
use turns::{Turn, cpus, latency, turn};

const IN_FLIGHT: [usize; 4] = [1, 16, 64, 256];
/// The pause of a client between two lookups in the last row, as if it did a handshake.
const PAUSE: Duration = Duration::from_micros(100);
const ROUNDS: usize = 21;
const SESSIONS: usize = 1000;

fn goal(in_flight: usize) -> Goal {
    Goal::AtLeast(if in_flight < 64 { 1.0 } else { 1.5 })
}

fn rounds(ours: &[Turn], theirs: &[Turn]) -> Vec<Round> {
    let pairs = ours.iter().zip(theirs);
    pairs
        .map(|(ours, theirs)| Round {
            ours: ours.seconds,
            plain: theirs.seconds,
        })
        .collect()
}

/// Measures all rows over one kind of socket.
fn measure(
    runtime: &Runtime,
    servers: &Servers,
    sessions: &Arc<[Session]>,
    [redis_table, memcached_table]: &mut [Table; 2],
    [latencies, all_cpus]: &mut [Vec<String>; 2],
) {
    for side in Side::ALL {
        runtime.block_on(async {
            side.clients(servers, 1).await[0]
                .put((0..SESSIONS).map(Session::make))
                .await;
        });
    }
    let rows = IN_FLIGHT
        .into_iter()
        .map(|count| (count, Duration::ZERO))
        .chain([(1, PAUSE)]);
    for (count, pause) in rows {
        let between = if pause.is_zero() {
            String::new()
        } else {
            format!(", {pause:?} between")
        };
        let name = format!("{:?}, {count} in flight{between}", servers.socket);
        if !redis_table.wants(&name) {
            continue;
        }
        let mut sides =
            Side::ALL.map(|side| (runtime.block_on(side.clients(servers, count)), Vec::new()));
        for round in 0..ROUNDS {
            for (side, (clients, turns)) in Side::ALL.into_iter().zip(&mut sides) {
                let turn = turn(clients, sessions, round, pause, side.server(servers));
                turns.push(runtime.block_on(turn));
            }
        }
        let [ours, redis, memcached] = sides.map(|(_, turns)| turns);
        // With a pause the lookups in a second depend on the pause.
        if pause.is_zero() {
            redis_table.row(&name, Unit::PerSecond, goal(count), &rounds(&ours, &redis));
            memcached_table.row(
                &name,
                Unit::PerSecond,
                Goal::None,
                &rounds(&ours, &memcached),
            );
        }
        for (rows, cell) in [
            (&mut *latencies, latency as fn(&[Turn]) -> String),
            (&mut *all_cpus, cpus),
        ] {
            let [ours, redis, memcached] = [&ours, &redis, &memcached].map(|turns| cell(turns));
            rows.push(format!("{name:40} {ours:>13} {redis:>13} {memcached:>13}"));
        }
    }
}

fn main() {
    let cores = cores::all();
    let [first, second, ..] = cores[..] else {
        panic!("this bench needs two cores: one for the servers and one for the clients")
    };
    let words = || std::env::args().skip(1);
    let mut tables = [
        Table::wanted("Redis", words()),
        Table::wanted("memcached", words()),
    ];
    tables[0].section("lookups in a second: ours / Redis (more is better)");
    tables[1].section("lookups in a second: ours / memcached (more is better)");
    let _awake = awake::Awake::begin();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let sessions: Arc<[Session]> = (0..SESSIONS).map(Session::make).collect();
    let mut more = [Vec::new(), Vec::new()];
    for socket in [Socket::Unix, Socket::Tcp] {
        // The servers inherit the core of this thread.
        cores::pin(second);
        let servers = Servers::start(socket, SESSIONS);
        cores::pin(first);
        measure(&runtime, &servers, &sessions, &mut tables, &mut more);
    }
    let many = many::measure(&runtime, [first, second], &mut tables[0]);
    tables.iter().for_each(Table::print);
    if let Some(many) = many {
        println!("\n{many}");
    }
    let titles = [
        "microseconds of one lookup, median / 99 of 100",
        "microseconds of CPU of one lookup, client / server, without the pause between lookups",
    ];
    for (title, rows) in titles.into_iter().zip(more) {
        println!("\n{title}");
        println!(
            "{:40} {:>13} {:>13} {:>13}",
            "", "ours", "Redis", "memcached"
        );
        rows.iter().for_each(|row| println!("{row}"));
    }
}
