//! Lookups through the client `Worker`, against Redis and memcached with clients of theirs: how many in a second, how long
//! one takes, and how much CPU on either side. `cargo bench --bench lookups`; words after `--` choose rows by name:
//! `-- 'Unix, 16'`.
//!
//! * `servers`: the daemon, Redis and memcached as processes of their own
//! * `clients`: who asks them
//! * `shared/`: the table, the daemon's process, CPU clocks, and cores that do not sleep
//!
//! One core has the servers, another one all clients. The three take turns in many short rounds, and each round gives one
//! ratio: whatever else the machine does meanwhile hits all of them. Every lookup must find what was put.

#![expect(clippy::unwrap_used, reason = "where anything fails there is nothing to measure")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{runtime::Runtime, task::JoinSet};

mod clients;
mod servers;

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

use clients::{Client, Session, Side};
use servers::{Servers, Socket};
use table::{Goal, Round, Table, Unit};

const IN_FLIGHT: [usize; 4] = [1, 16, 64, 256];
/// What a client does between two lookups in the last row, as if it made a handshake.
const PAUSE: Duration = Duration::from_micros(100);
const ROUNDS: usize = 21;
/// How long each side has in a round: with all rows 40 seconds.
const TURN: Duration = Duration::from_millis(80);
const SESSIONS: usize = 1000;

/// What one side did in its turn.
struct Turn {
    /// Of one lookup, when all are done.
    seconds: f64,
    /// Nanoseconds of each lookup.
    took: Vec<u64>,
    /// Seconds that one lookup took of the clients' core, and of the server's.
    cpu: [f64; 2],
}

/// Every client looks sessions up, one after the other and with this pause between them, until the turn is over.
async fn turn(clients: &mut Vec<Client>, sessions: &Arc<[Session]>, pause: Duration, server: u32) -> Turn {
    let begun = Instant::now();
    let before = [cpu::this_thread(), cpu::process(server)];
    let mut running = JoinSet::new();
    for (place, mut client) in clients.drain(..).enumerate() {
        let sessions = Arc::clone(sessions);
        running.spawn(async move {
            let mut took = Vec::new();
            let mut before = Instant::now();
            // Each begins elsewhere.
            for session in sessions.iter().cycle().skip(place * 31 % SESSIONS) {
                client.find(session).await;
                let now = Instant::now();
                took.push(u64::try_from((now - before).as_nanos()).unwrap());
                before = now;
                if now - begun > TURN {
                    break;
                }
                if !pause.is_zero() {
                    while before < now + pause {
                        before = Instant::now();
                    }
                }
            }
            (client, took)
        });
    }
    let mut took = Vec::new();
    // A lookup that found nothing ends the run.
    while let Some(done) = running.join_next().await {
        let (client, more) = done.unwrap();
        clients.push(client);
        took.extend(more);
    }
    let lookups = took.len() as f64;
    let [client, server] = [cpu::this_thread() - before[0], cpu::process(server) - before[1]];
    let cpu = [client / lookups - pause.as_secs_f64(), server / lookups];
    Turn { seconds: begun.elapsed().as_secs_f64() / lookups, took, cpu }
}

/// The median of what a lookup takes of either core.
fn cpu(turns: &[Turn]) -> String {
    let of = |side: usize| {
        let mut all: Vec<f64> = turns.iter().map(|turn| turn.cpu[side] * 1e6).collect();
        all.sort_unstable_by(f64::total_cmp);
        all[all.len() / 2]
    };
    format!("{:.1} / {:.1}", of(0), of(1))
}

/// Half of the lookups, and 99 of 100, were no slower.
fn latency(turns: &[Turn]) -> String {
    let mut all: Vec<u64> = turns.iter().flat_map(|turn| turn.took.iter().copied()).collect();
    all.sort_unstable();
    let of_hundred = |place: usize| all[(all.len() - 1) * place / 100] as f64 / 1e3;
    format!("{:.0} / {:.0}", of_hundred(50), of_hundred(99))
}

/// All rows over one kind of socket.
fn measure(
    runtime: &Runtime,
    servers: &Servers,
    sessions: &Arc<[Session]>,
    [redis_table, memcached_table]: &mut [Table; 2],
    [latencies, cpus]: &mut [Vec<String>; 2],
) {
    for side in Side::ALL {
        runtime.block_on(async { side.clients(servers, 1).await[0].put(sessions).await });
    }
    let rows = IN_FLIGHT.into_iter().map(|count| (count, Duration::ZERO)).chain([(1, PAUSE)]);
    for (count, pause) in rows {
        let between = if pause.is_zero() { String::new() } else { format!(", {pause:?} between") };
        let name = format!("{:?}, {count} in flight{between}", servers.socket);
        if !redis_table.wants(&name) {
            continue;
        }
        let mut sides = Side::ALL.map(|side| (runtime.block_on(side.clients(servers, count)), Vec::new()));
        for _ in 0..ROUNDS {
            for (side, (clients, turns)) in Side::ALL.into_iter().zip(&mut sides) {
                turns.push(runtime.block_on(turn(clients, sessions, pause, side.server(servers))));
            }
        }
        let [ours, redis, memcached] = sides.map(|(_, turns)| turns);
        let rounds = |theirs: &[Turn]| {
            let pairs = ours.iter().zip(theirs);
            pairs
                .map(|(ours, theirs)| Round { ours: ours.seconds, plain: theirs.seconds })
                .collect::<Vec<_>>()
        };
        let goal = Goal::AtLeast(if count < 64 { 1.0 } else { 1.5 });
        // How many there are in a second depends on the pause.
        if pause.is_zero() {
            redis_table.row(&name, Unit::PerSecond, goal, &rounds(&redis));
            memcached_table.row(&name, Unit::PerSecond, Goal::None, &rounds(&memcached));
        }
        for (rows, cell) in [(&mut *latencies, latency as fn(&[Turn]) -> String), (&mut *cpus, cpu)] {
            let [ours, redis, memcached] = [&ours, &redis, &memcached].map(|turns| cell(turns));
            rows.push(format!("{name:40} {ours:>13} {redis:>13} {memcached:>13}"));
        }
    }
}

fn main() {
    let cores = cores::all();
    let [first, second, ..] = cores[..] else {
        panic!("one core is for the servers and one for the clients")
    };
    let words = || std::env::args().skip(1);
    let mut tables = [Table::wanted("Redis", words()), Table::wanted("memcached", words())];
    tables[0].section("lookups in a second: ours / Redis (more is better)");
    tables[1].section("lookups in a second: ours / memcached (more is better)");
    let _awake = awake::Awake::begin();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let sessions: Arc<[Session]> = (0..SESSIONS).map(Session::make).collect();
    let mut more = [Vec::new(), Vec::new()];
    for socket in [Socket::Unix, Socket::Tcp] {
        // Who is started inherits the core.
        cores::pin(second);
        let servers = Servers::start(socket);
        cores::pin(first);
        measure(&runtime, &servers, &sessions, &mut tables, &mut more);
    }
    tables.iter().for_each(Table::print);
    let titles = [
        "microseconds of one lookup, median / 99 of 100",
        "microseconds of CPU of one lookup, client / server: what is between lookups is not counted",
    ];
    for (title, rows) in titles.into_iter().zip(more) {
        println!("\n{title}");
        println!("{:40} {:>13} {:>13} {:>13}", "", "ours", "Redis", "memcached");
        rows.iter().for_each(|row| println!("{row}"));
    }
}
