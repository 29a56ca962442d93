//! Lookups through a daemon whose store is Redis, against the same scripts called straight by
//! redis-rs; the CPU time of a resumed connection; and the memory of a daemon whose store has a
//! million sessions.
//!
//! `cargo bench --bench fleet`. Words after `--` select rows by name: `-- 'take, 64'`.
//!
//! * `straight`: the scripts, called by redis-rs
//!
//! Redis runs on one core, daemon and client on another, as a sidecar and a store on another host
//! do. The two sides take turns in short rounds, and each round gives one ratio.

#![expect(clippy::unwrap_used, reason = "a failure ends the run")]

use std::{
    fs,
    net::TcpListener,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use tempfile::TempDir;
use tls_sessiond_client::{Connection, Lookup, Options, Put, Role, Version, Worker};
use tokio::runtime::Runtime;

mod straight;

#[path = "../shared/awake.rs"]
mod awake;
#[path = "../shared/cores.rs"]
mod cores;
#[path = "../shared/cpu.rs"]
#[allow(dead_code, reason = "each bench has its own clocks")]
mod cpu;
#[path = "../shared/daemon.rs"]
#[allow(dead_code, reason = "this bench uses the Unix socket alone")]
mod process;
#[path = "../shared/table.rs"]
#[allow(dead_code, reason = "each bench has its own units and goals")]
mod table;

use straight::Straight;
use table::{Goal, Round, Table, Unit};

const ROUNDS: usize = 21;
/// Lookups of a round.
const LOOKUPS: usize = 2_000;
const DEADLINE: Duration = Duration::from_secs(10);
/// About the size of an OpenSSL session.
const DATA: usize = 200;

/// What a lookup does with a session.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Uses {
    /// Takes it out of the store.
    Take,
    /// Leaves it there.
    Read,
    /// Holds it: a connection names the session that its worker resumed.
    Hold,
}

/// A Redis on a loopback port.
struct Redis {
    child: Child,
    port: u16,
    _folder: TempDir,
}

impl Redis {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(folder.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server: run tests/peers.sh");
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(10), "Redis is silent");
            thread::sleep(Duration::from_millis(5));
        }
        Self {
            child,
            port,
            _folder: folder,
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A daemon over a store, and a worker that is attached to it.
struct Ours {
    daemon: process::Daemon,
    worker: Worker,
    _folder: TempDir,
}

fn id(number: usize) -> Vec<u8> {
    format!("{number:032}").into()
}

impl Ours {
    fn start(runtime: &Runtime, redis: &Redis) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("keys"), "00112233445566778899aabbccddeeff".repeat(2)).unwrap();
        let config = format!(
            "[listen]\napi = [\"tcp://127.0.0.1:0\", \"unix://{}\"]\n[store]\nkind = \"redis\"\ndeadline = \"1s\"\n\
             [store.redis]\nurls = [\"redis://127.0.0.1:{}\"]\nsealing_keys = \"keys\"\n",
            path("api.sock").display(),
            redis.port
        );
        fs::write(path("daemon.toml"), config).unwrap();
        let daemon = process::Daemon::run(&path("daemon.toml"));
        let mut options = Options::new(&daemon.unix, "openssl").unwrap();
        options.lookup_deadline = DEADLINE;
        let worker = runtime.block_on(async {
            let worker = Worker::connect(options);
            assert!(worker.attached(Duration::from_secs(10)).await);
            worker
        });
        Self {
            daemon,
            worker,
            _folder: folder,
        }
    }

    async fn put(&self, numbers: std::ops::Range<usize>, uses: Uses) {
        for some in numbers.collect::<Vec<_>>().chunks(1_000) {
            for number in some {
                self.make(*number, uses);
            }
            assert!(self.worker.flush(DEADLINE).await, "not processed");
        }
    }

    /// Makes a session on a connection that is then closed.
    fn make(&self, number: usize, uses: Uses) {
        let connection = self.worker.open(Role::Server, "", None);
        let data = format!("{number:0DATA$}").into();
        let version = match uses {
            Uses::Take => Version::Tls13,
            Uses::Read | Uses::Hold => Version::Tls12,
        };
        connection.put(Put {
            session_id: id(number),
            single_use: uses == Uses::Take,
            ..Put::new(version, data)
        });
        connection.shutdown();
    }

    async fn find(&self, number: usize) {
        let id = id(number);
        let found = self.worker.lookup(Lookup::server(&id)).await;
        let found = found.unwrap_or_else(|| panic!("a miss: {:?}", self.worker.counters()));
        assert_eq!(found.data().len(), DATA);
    }

    /// Opens connections that name these sessions, this many at a time. Returns them.
    async fn hold(&self, in_flight: usize, numbers: std::ops::Range<usize>) -> Vec<Connection> {
        let mut held = Vec::with_capacity(numbers.len());
        for some in numbers.collect::<Vec<_>>().chunks(in_flight) {
            held.extend(
                some.iter()
                    .map(|number| self.worker.open(Role::Server, "", Some(&id(*number)))),
            );
            assert!(self.worker.flush(DEADLINE).await, "not processed");
        }
        held
    }
}

/// Runs the lookups, this many at a time. Returns the seconds of one.
async fn timed<F: Future<Output = ()>>(
    in_flight: usize,
    numbers: std::ops::Range<usize>,
    find: impl Fn(usize) -> F,
) -> f64 {
    let count = numbers.len();
    let begun = Instant::now();
    stream::iter(numbers)
        .for_each_concurrent(in_flight, &find)
        .await;
    begun.elapsed().as_secs_f64() / count as f64
}

fn lookups(runtime: &Runtime, ours: &Ours, straight: &Straight, redis: &Redis, table: &mut Table) {
    let mut next = 0;
    for uses in [Uses::Take, Uses::Read, Uses::Hold] {
        for (in_flight, goal) in [
            (1, 1.0 / 1.8),
            (64, if uses == Uses::Take { 0.7 } else { 0.8 }),
        ] {
            let word = match uses {
                Uses::Take => "take",
                Uses::Read => "read",
                Uses::Hold => "hold",
            };
            let name = format!("{word}, {in_flight} in flight");
            if !table.wants(&name) {
                continue;
            }
            let (mut rounds, mut cpus) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                let numbers = next..next + LOOKUPS;
                next += LOOKUPS;
                let round = runtime.block_on(async {
                    ours.put(numbers.clone(), uses).await;
                    straight.put(numbers.clone(), uses).await;
                    // The releases of the puts go out a moment later.
                    tokio::time::sleep(Duration::from_millis(60)).await;
                    let before = [ours.daemon.id(), redis.child.id()].map(cpu::process);
                    let (seconds, held) = if uses == Uses::Hold {
                        let begun = Instant::now();
                        let held = ours.hold(in_flight, numbers.clone()).await;
                        (begun.elapsed().as_secs_f64() / LOOKUPS as f64, held)
                    } else {
                        let find = |number| ours.find(number);
                        (timed(in_flight, numbers.clone(), find).await, Vec::new())
                    };
                    let after = [ours.daemon.id(), redis.child.id()].map(cpu::process);
                    cpus.push(
                        [0, 1]
                            .map(|side: usize| (after[side] - before[side]) / LOOKUPS as f64 * 1e6),
                    );
                    held.iter().for_each(Connection::shutdown);
                    drop(held);
                    assert!(ours.worker.flush(DEADLINE).await);
                    let plain = if uses == Uses::Hold {
                        straight.hold(in_flight, numbers).await
                    } else {
                        timed(in_flight, numbers, |number| straight.find(number, uses)).await
                    };
                    Round {
                        ours: seconds,
                        plain,
                    }
                });
                rounds.push(round);
            }
            table.row(&name, Unit::PerSecond, Goal::AtLeast(goal), &rounds);
            eprintln!("{name}: {} of CPU, daemon / store", shown(&mut cpus));
        }
    }
}

/// Shows medians of microseconds.
fn shown(pairs: &mut [[f64; 2]]) -> String {
    let mut median = |side: usize| {
        pairs.sort_by(|one, two| one[side].total_cmp(&two[side]));
        pairs[pairs.len() / 2][side]
    };
    format!("{:.1} / {:.1} µs", median(0), median(1))
}

/// The CPU time of a resumed TLS 1.3 connection of a worker: a lookup, New, a put, Shutdown, Free.
fn connections(runtime: &Runtime, ours: &Ours, redis: &Redis) {
    const COUNT: usize = 2_000;
    let mut cpus = Vec::new();
    for round in 0..11 {
        let first = 50_000_000 + 2 * round * COUNT;
        runtime.block_on(async {
            ours.put(first..first + COUNT, Uses::Take).await;
            let before = [ours.daemon.id(), redis.child.id()].map(cpu::process);
            stream::iter(first..first + COUNT)
                .for_each_concurrent(64, |number| async move {
                    ours.find(number).await;
                    let connection = ours.worker.open(Role::Server, "", Some(&id(number)));
                    connection.put(Put {
                        session_id: id(number + COUNT),
                        single_use: true,
                        ..Put::new(Version::Tls13, vec![1; DATA])
                    });
                    connection.shutdown();
                })
                .await;
            assert!(ours.worker.flush(DEADLINE).await);
            tokio::time::sleep(Duration::from_millis(100)).await;
            let after = [ours.daemon.id(), redis.child.id()].map(cpu::process);
            cpus.push([0, 1].map(|side: usize| (after[side] - before[side]) / COUNT as f64 * 1e6));
        });
    }
    println!(
        "\na resumed TLS 1.3 connection of a worker takes {} of CPU, daemon / store",
        shown(&mut cpus)
    );
}

/// The memory of a daemon, in KiB.
fn resident(id: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn memory(runtime: &Runtime, ours: &Ours, straight: &Straight) {
    const FEW: usize = 1_000;
    const MANY: usize = 1_000_000;
    let first = 100_000_000;
    let settle = || thread::sleep(Duration::from_millis(500));
    let before = runtime.block_on(straight.used_memory());
    runtime.block_on(ours.put(first..first + FEW, Uses::Read));
    settle();
    let few = resident(ours.daemon.id());
    runtime.block_on(ours.put(first + FEW..first + MANY, Uses::Read));
    settle();
    let many = resident(ours.daemon.id());
    let used = runtime.block_on(straight.used_memory()) - before;
    println!(
        "\na session with {DATA} bytes of data takes {:.0} bytes of the store",
        used as f64 / MANY as f64
    );
    let more = (many as f64 - few as f64) / 1024.0;
    let verdict = if more <= 8.0 { "met" } else { "missed" };
    println!(
        "\nmemory of the daemon: {:.1} MiB with {FEW} sessions in the store, {:.1} MiB with {MANY}: {more:.1} MiB more; \
         goal: at most 8 MiB more: {verdict}",
        few as f64 / 1024.0,
        many as f64 / 1024.0
    );
}

fn main() {
    let cores = cores::all();
    let [first, second, ..] = cores[..] else {
        panic!("this bench needs two cores: one for the store, and one for daemon and client")
    };
    let mut table = Table::wanted("redis-rs", std::env::args().skip(1));
    table.section(
        "lookups in a second: through the daemon / the same script by redis-rs (more is better)",
    );
    let _awake = awake::Awake::begin();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    // Redis inherits the core of this thread.
    cores::pin(second);
    let redis = Redis::start();
    cores::pin(first);
    let ours = Ours::start(&runtime, &redis);
    let straight = runtime.block_on(Straight::connect(redis.port));
    lookups(&runtime, &ours, &straight, &redis, &mut table);
    table.print();
    if table.wants("connection") {
        connections(&runtime, &ours, &redis);
    }
    if table.wants("memory") {
        memory(&runtime, &ours, &straight);
    }
}
