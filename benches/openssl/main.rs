//! Resumed handshakes of an OpenSSL worker per CPU second, with its sessions in this daemon, in
//! Redis by callbacks, and in OpenSSL's own cache.
//!
//! `cargo bench --features openssl --bench openssl`
//!
//! * `tls`: the worker's side and its peer, over memory
//! * `sides`: the three places of the sessions
//!
//! The times are those of the worker: its thread, and the thread of the client's runtime. The CPU
//! time of its peer, the daemon and Redis is not included. The three sides take turns in short
//! rounds. A handshake that should resume and did not ends the run.

#![expect(clippy::unwrap_used, reason = "a failure ends the run")]

use openssl::ssl::SslVersion;

mod sides;
mod tls;

#[path = "../shared/awake.rs"]
mod awake;
#[path = "../shared/cores.rs"]
mod cores;
#[path = "../shared/cpu.rs"]
#[allow(
    dead_code,
    reason = "this bench does not read the CPU time of a process"
)]
mod cpu;
#[path = "../shared/daemon.rs"]
#[allow(dead_code, reason = "this bench does not read the daemon's CPU time")]
mod process;
#[path = "../lookups/servers.rs"]
#[allow(dead_code, reason = "this bench does not use memcached")]
mod servers;
#[path = "../shared/table.rs"]
#[allow(dead_code, reason = "each bench has its own units and goals")]
mod table;

use servers::{Servers, Socket};
use sides::Side;
use table::{Goal, Round, Table, Unit};
use tls::Setup;

const ROUNDS: usize = 31;
/// Handshakes of each side in one round.
const HANDSHAKES: usize = 32;

/// More sessions than the handshakes of a run make.
const SESSIONS: usize = 20_000;

fn main() {
    let setup = Setup::make();
    let servers = Servers::start(Socket::Unix, SESSIONS);
    let words = || std::env::args().skip(1);
    let mut redis_table = Table::wanted("Redis", words());
    let mut own_table = Table::wanted("own", words());
    redis_table
        .section("OpenSSL worker: resumed handshakes per CPU second / with Redis in its callbacks");
    own_table
        .section("OpenSSL worker: resumed handshakes per CPU second / with OpenSSL's own cache");
    {
        let _awake = awake::Awake::begin();
        for (name, version) in [
            ("TLS 1.2", SslVersion::TLS1_2),
            ("TLS 1.3", SslVersion::TLS1_3),
        ] {
            if !redis_table.wants(name) {
                continue;
            }
            let mut sides = [
                Side::daemon(&setup, version, &servers),
                Side::redis(&setup, version, &servers),
                Side::own(&setup, version),
            ];
            let turns: Vec<[f64; 3]> = (0..ROUNDS)
                .map(|_| {
                    sides.each_mut().map(|side| {
                        (0..HANDSHAKES).map(|_| side.handshake()).sum::<f64>() + side.rest()
                    })
                })
                .collect();
            let rounds = |place: usize| -> Vec<Round> {
                turns
                    .iter()
                    .map(|turn| Round {
                        ours: turn[0],
                        plain: turn[place],
                    })
                    .collect()
            };
            redis_table.row(name, Unit::Rate(HANDSHAKES), Goal::None, &rounds(1));
            own_table.row(name, Unit::Rate(HANDSHAKES), Goal::None, &rounds(2));
        }
    }
    redis_table.print();
    own_table.print();
}
