//! Lookups through the client `Worker`, against Redis and memcached with clients of theirs: how many in a second, and
//! how long one takes. `cargo bench --bench lookups`; words after `--` choose rows by name: `-- 'Unix, 16'`.
//!
//! * `servers`: the daemon, Redis and memcached as processes of their own
//! * `clients`: who asks them
//! * `shared/`: the table, the daemon's process, and cores that do not sleep
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
#[path = "../shared/daemon.rs"]
#[allow(dead_code, reason = "here nobody asks for its CPU time")]
mod process;
#[path = "../shared/table.rs"]
#[allow(dead_code, reason = "each bench has its own units and goals")]
mod table;

use clients::{Client, Session, Side};
use servers::{Servers, Socket};
use table::{Goal, Round, Table, Unit};

const IN_FLIGHT: [usize; 4] = [1, 16, 64, 256];
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
}

/// Every client looks sessions up, one after the other, until the turn is over.
async fn turn(clients: &mut Vec<Client>, sessions: &Arc<[Session]>) -> Turn {
    let begun = Instant::now();
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
    Turn { seconds: begun.elapsed().as_secs_f64() / took.len() as f64, took }
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
    latencies: &mut Vec<String>,
) {
    for side in Side::ALL {
        runtime.block_on(async { side.clients(servers, 1).await[0].put(sessions).await });
    }
    for count in IN_FLIGHT {
        let name = format!("{:?}, {count} in flight", servers.socket);
        if !redis_table.wants(&name) {
            continue;
        }
        let mut sides = Side::ALL.map(|side| (runtime.block_on(side.clients(servers, count)), Vec::new()));
        for _ in 0..ROUNDS {
            for (clients, turns) in &mut sides {
                turns.push(runtime.block_on(turn(clients, sessions)));
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
        redis_table.row(&name, Unit::PerSecond, goal, &rounds(&redis));
        memcached_table.row(&name, Unit::PerSecond, Goal::None, &rounds(&memcached));
        let [ours, redis, memcached] = [ours, redis, memcached].map(|turns| latency(&turns));
        latencies.push(format!("{name:40} {ours:>13} {redis:>13} {memcached:>13}"));
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
    let mut latencies = Vec::new();
    for socket in [Socket::Unix, Socket::Tcp] {
        // Who is started inherits the core.
        cores::pin(second);
        let servers = Servers::start(socket);
        cores::pin(first);
        measure(&runtime, &servers, &sessions, &mut tables, &mut latencies);
    }
    tables.iter().for_each(Table::print);
    println!("\nmicroseconds of one lookup, median / 99 of 100");
    println!("{:40} {:>13} {:>13} {:>13}", "", "ours", "Redis", "memcached");
    latencies.iter().for_each(|row| println!("{row}"));
}
