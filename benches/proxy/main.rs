//! `tls-sessiond proxy` against HAProxy and hitch as terminators of TLS: CPU time of a connection and
//! of bulk data, the share of resumed handshakes of clients that return to three of them, and the
//! memory of idle connections.
//!
//! `cargo bench --bench proxy`. Words after `--` select rows by name: `-- 'TLS 1.3 resumed'`. With
//! `BEFORE=FILE`, the proxy of another build takes turns too.
//!
//! * `backend`: the plaintext backend of all of them
//! * `clients`: the TLS clients
//! * `terminators`: the programs
//!
//! All programs have one thread on one core; clients and backend have another core. Ours is the proxy
//! and the daemon that has its sessions. The programs take turns in short rounds, and each round gives
//! one ratio.

#![expect(clippy::unwrap_used, reason = "a failure ends the run")]

use std::{
    env,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Resource, getrlimit, setrlimit};
use rustls::ClientConfig;

mod backend;
mod clients;
mod terminators;

#[path = "../shared/awake.rs"]
mod awake;
#[path = "../shared/cores.rs"]
mod cores;
#[path = "../shared/cpu.rs"]
#[allow(dead_code, reason = "each bench has its own clocks")]
mod cpu;
#[path = "../shared/daemon.rs"]
#[allow(dead_code, reason = "this bench makes no call")]
mod process;
#[path = "../shared/table.rs"]
#[allow(dead_code, reason = "each bench has its own units and goals")]
mod table;

use backend::Request;
use clients::{Direction, IN_FLIGHT, Open, Version};
use table::{Goal, Round, Table, Unit};
use terminators::{BEFORE, HAPROXY, HITCH, Setup, Terminator};

const ROUNDS: usize = 11;
/// Handshakes of each thread of clients in one round.
const EACH: usize = 30;
/// Connections at a time that carry bulk data, and the bytes of each.
const BULK: usize = 4;
const BULK_BYTES: u64 = 64 << 20;
/// The most turns of a row that are repeated because a lookup was late.
const REPEATS: usize = 20;
/// How long the last reports to the daemon may take.
const SETTLE: Duration = Duration::from_millis(60);

/// The programs that take turns, ours first, and a table for each other one.
struct Bench {
    setup: Setup,
    terminators: Vec<Terminator>,
    tables: Vec<Table>,
}

/// One turn: CPU time and time of its work, in seconds.
struct Turn {
    cpu: f64,
    wall: f64,
}

impl Bench {
    fn wants(&self, name: &str) -> bool {
        self.tables.iter().any(|table| table.wants(name))
    }

    /// Measures a row, and adds it to each table. `work` is done once for each program in each round,
    /// after `prepare`, which is not measured. A turn is repeated if `work` returns false.
    fn row(
        &mut self,
        (name, unit): (&str, Unit),
        goal: impl Fn(&str) -> Goal,
        prepare: impl Fn(&Terminator),
        work: impl Fn(&Terminator) -> bool,
    ) {
        let mut repeats = 0;
        let mut turns: Vec<Vec<Turn>> = self.terminators.iter().map(|_| Vec::new()).collect();
        for round in 0..ROUNDS {
            for place in 0..self.terminators.len() {
                let place = (place + round) % self.terminators.len();
                let terminator = &self.terminators[place];
                let turn = loop {
                    if let Some(turn) = turn(terminator, &prepare, &work) {
                        break turn;
                    }
                    repeats += 1;
                    assert!(repeats <= REPEATS, "{name}: lookups are late too often");
                };
                turns[place].push(turn);
            }
        }
        let (ours, others) = turns.split_first().unwrap();
        let names: Vec<_> = self
            .terminators
            .iter()
            .skip(1)
            .map(|other| other.name)
            .collect();
        for ((table, other), name_of_other) in self.tables.iter_mut().zip(others).zip(names) {
            let rounds = ours.iter().zip(other).map(|(ours, other)| Round {
                ours: ours.cpu,
                plain: other.cpu,
            });
            let rounds: Vec<_> = rounds.collect();
            table.row(name, unit, goal(name_of_other), &rounds);
        }
        let rates = self
            .terminators
            .iter()
            .zip(&turns)
            .map(|(terminator, turns)| {
                let mut walls: Vec<_> = turns.iter().map(|turn| turn.wall).collect();
                walls.sort_by(f64::total_cmp);
                let wall = walls[walls.len() / 2];
                let rate = match unit {
                    Unit::PerGib(gib) => format!("{:.2} GiB/s", gib / wall),
                    _ => format!("{:.0}/s", (IN_FLIGHT * EACH) as f64 / wall),
                };
                format!("{} {rate}", terminator.name)
            });
        let rates: Vec<_> = rates.collect();
        println!("{name}: {}; {repeats} turns repeated", rates.join(", "));
    }

    fn handshakes(&mut self, version: Version, returns: bool) {
        let name = format!(
            "{} {}",
            match version {
                Version::Tls12 => "TLS 1.2",
                Version::Tls13 => "TLS 1.3",
            },
            if returns { "resumed" } else { "full" }
        );
        if !self.wants(&name) {
            return;
        }
        let goal = |other: &str| match (version, returns, other) {
            (Version::Tls13, true, HAPROXY) => Goal::AtMost(1.0),
            _ => Goal::None,
        };
        let configs: Vec<Vec<Arc<ClientConfig>>> = self
            .terminators
            .iter()
            .map(|_| {
                let config = |_| clients::config(&self.setup, version, returns);
                (0..IN_FLIGHT).map(config).collect()
            })
            .collect();
        let names: Vec<_> = self.terminators.iter().map(|one| one.name).collect();
        let configs_of = |terminator: &Terminator| {
            let place = names.iter().position(|name| *name == terminator.name);
            &configs[place.unwrap()]
        };
        let count = IN_FLIGHT * EACH;
        // A handshake before each turn gives each client a new session.
        let prepare = |terminator: &Terminator| {
            clients::handshakes(configs_of(terminator), terminator.ports[0], 1);
        };
        let work = |terminator: &Terminator| {
            let resumed = clients::handshakes(configs_of(terminator), terminator.ports[0], EACH);
            let expected = if returns { count } else { 0 };
            // After a lookup that is late, because the machine is busy, the handshake is a full one.
            resumed.abs_diff(expected) * 100 <= count
        };
        self.row((&name, Unit::Time(count)), goal, prepare, work);
    }

    fn bulk(&mut self, direction: Direction) {
        let name = match direction {
            Direction::ToClient => "bulk to the client",
            Direction::FromClient => "bulk from the client",
        };
        if !self.wants(name) {
            return;
        }
        let goal = |other: &str| match other {
            HAPROXY => Goal::AtMost(1.1),
            _ => Goal::None,
        };
        let config = clients::config(&self.setup, Version::Tls13, false);
        let configs = vec![config; BULK];
        let gib = (BULK as u64 * BULK_BYTES) as f64 / f64::from(1 << 30);
        let work = |terminator: &Terminator| {
            clients::bulk(&configs, terminator.ports[0], direction, BULK_BYTES);
            true
        };
        self.row((name, Unit::PerGib(gib)), goal, |_| {}, work);
    }
}

/// Lets a program do its work once. `None`: the work is to be repeated.
fn turn(
    terminator: &Terminator,
    prepare: impl Fn(&Terminator),
    work: impl Fn(&Terminator) -> bool,
) -> Option<Turn> {
    prepare(terminator);
    thread::sleep(SETTLE);
    let (before, begun) = (terminator.cpu(), Instant::now());
    let is_done = work(terminator);
    let wall = begun.elapsed().as_secs_f64();
    thread::sleep(SETTLE);
    let cpu = terminator.cpu() - before;
    is_done.then_some(Turn { cpu, wall })
}

/// Shows the share of resumed handshakes of clients that return to three programs of each kind, each
/// time to one that is chosen at random.
fn returning(setup: &Setup) {
    const PROGRAMS: usize = 3;
    const VISITS: usize = 300;
    for start in [Setup::ours, Setup::haproxy, Setup::hitch] {
        let terminator = start(setup, PROGRAMS);
        for (version, word) in [(Version::Tls12, "TLS 1.2"), (Version::Tls13, "TLS 1.3")] {
            let config = clients::config(setup, version, true);
            let mut chance: u32 = 1;
            let mut resumed = 0;
            for _ in 0..=VISITS {
                // Numerical Recipes' generator: the same order for all.
                chance = chance.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let port = terminator.ports[(chance >> 16) as usize % PROGRAMS];
                let one = std::slice::from_ref(&config);
                resumed += clients::handshakes(one, port, 1);
            }
            println!(
                "returning clients over three terminators, {word}, {}: {resumed} of {VISITS} resumed",
                terminator.name
            );
        }
    }
}

/// Shows the memory of an idle connection: of the second thousand, because the first one also fills
/// what every process has once.
fn memory(setup: &Setup) {
    const THOUSAND: usize = 1_000;
    let config = clients::config(setup, Version::Tls13, false);
    for start in [Setup::ours, Setup::haproxy, Setup::hitch] {
        let terminator = start(setup, 1);
        let mut open = Vec::new();
        let mut resident = vec![terminator.resident()];
        for _ in 0..2 {
            for _ in 0..THOUSAND {
                let mut one = Open::begin(&config, terminator.ports[0], Request::Hold);
                one.first_byte();
                open.push(one);
            }
            thread::sleep(Duration::from_millis(500));
            resident.push(terminator.resident());
        }
        println!(
            "memory, {}: {:.1} MiB without connections, {:.1} with {THOUSAND}, {:.1} with {}: {:.1} KiB each",
            terminator.name,
            resident[0] as f64 / 1024.0,
            resident[1] as f64 / 1024.0,
            resident[2] as f64 / 1024.0,
            2 * THOUSAND,
            (resident[2] - resident[1]) as f64 / THOUSAND as f64
        );
    }
}

fn main() {
    let words = || env::args().skip(1);
    let cores = cores::all();
    let [first, second, ..] = cores[..] else {
        panic!(
            "this bench needs two cores: one for the terminators, and one for clients and backend"
        )
    };
    // Both ends of two thousand connections are in this process.
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files).unwrap();
    let _awake = awake::Awake::begin();
    cores::pin(first);
    let setup = Setup::make(backend::start());
    // Programs inherit the core of this thread.
    cores::pin(second);
    let mut terminators = vec![setup.ours(1), setup.haproxy(1), setup.hitch(1)];
    let mut tables = vec![
        Table::wanted(HAPROXY, words()),
        Table::wanted(HITCH, words()),
    ];
    if let Some(binary) = env::var_os("BEFORE") {
        terminators.push(setup.before(Path::new(&binary)));
        tables.push(Table::wanted(BEFORE, words()));
    }
    cores::pin(first);
    for (table, other) in tables.iter_mut().zip(&terminators[1..]) {
        table.section(&format!(
            "CPU time of the proxy with its daemon / of {} (less is better)",
            other.name
        ));
    }
    let mut bench = Bench {
        setup,
        terminators,
        tables,
    };
    for version in [Version::Tls12, Version::Tls13] {
        for returns in [false, true] {
            bench.handshakes(version, returns);
        }
    }
    bench.bulk(Direction::ToClient);
    bench.bulk(Direction::FromClient);
    bench.tables.iter().for_each(Table::print);
    println!();
    let Bench { setup, .. } = &bench;
    if bench.wants("returning") {
        returning(setup);
    }
    if bench.wants("memory") {
        memory(setup);
    }
}
