//! The CPU time of the daemon against that of plain rustls, as ratios from one run: `cargo bench`.
//!
//! Words after `--` select rows by name: `cargo bench --bench handshakes -- 'Drive Unix TLS 1.2'`.
//!
//! * `cpu`: CPU clocks of this thread and of the daemon
//! * `peer`: the certificate, the clients, and plain rustls as a server
//! * `engine`: connection objects in memory
//! * `daemon`: the daemon, its CPU time, and its workers
//! * `api`: handshakes through Drive and Exchange
//! * `worker`: the life of a connection whose TLS runs in the worker
//! * `bulk`: application data through Drive
//! * `shared/`: the table, the daemon's process, and the threads that keep the cores awake
//!
//! Both sides of a comparison take turns in many short rounds, and each round gives one ratio, so
//! other load of the machine affects both. The times are CPU time, not wall time. A handshake that
//! should resume and did not ends the run.

#![expect(clippy::unwrap_used, reason = "a failure ends the run")]

use rustls::version::{TLS12, TLS13};

mod api;
mod bulk;
#[path = "../shared/cpu.rs"]
mod cpu;
mod daemon;
mod engine;
mod peer;
mod worker;

#[path = "../shared/awake.rs"]
mod awake;
#[path = "../shared/cores.rs"]
mod cores;
#[path = "../shared/daemon.rs"]
mod process;
#[path = "../shared/table.rs"]
#[allow(dead_code, reason = "each bench has its own units and goals")]
mod table;

use peer::{Kind, Setup};
use table::Table;

fn main() {
    let setup = Setup::make();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut table = Table::wanted("plain", std::env::args().skip(1));
    let _awake = awake::Awake::begin();
    let scenarios = [
        ("TLS 1.3 full", &TLS13, Kind::Full),
        ("TLS 1.3 resumed", &TLS13, Kind::Resumed),
        ("TLS 1.2 full", &TLS12, Kind::Full),
        ("TLS 1.2 resumed", &TLS12, Kind::Resumed),
    ];
    table.section("engine, in memory: CPU of a server's handshake / plain rustls (less is better)");
    for (name, version, kind) in scenarios {
        engine::measure(&setup, name, version, kind, &mut table);
    }
    let daemon = daemon::Daemon::start(&setup);
    table.section(
        "API, 16 in flight: handshakes per CPU second of the daemon / plain rustls (more is better)",
    );
    for way in api::Way::ALL {
        for (name, version, kind) in scenarios {
            api::measure(
                &setup,
                &daemon,
                &runtime,
                way,
                (name, version, kind),
                &mut table,
            );
        }
    }
    table.section(
        "worker engine, pipelined: CPU of the daemon for a resumed connection / plain rustls' own handshake",
    );
    worker::measure(&setup, &daemon, &runtime, &mut table);
    table.section(
        "bulk, 64 KiB messages: MiB per CPU second of the daemon / plain rustls (more is better)",
    );
    bulk::measure(&setup, &daemon, &runtime, &mut table);
    table.print();
}
