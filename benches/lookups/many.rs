//! Lookups among ten million sessions, and how much longer one takes there than among a thousand.
//! Needs 11 GB of memory.
//!
//! Four servers take turns: the daemon and Redis, each with few and with many sessions. A client
//! looks up random sessions, and the list of its lookups is equally long for both sizes. So only
//! the memory of the servers differs.

use std::{sync::Arc, time::Duration};

use tokio::runtime::Runtime;

use crate::{
    ROUNDS, SESSIONS,
    clients::{Session, Side},
    cores, goal, rounds,
    servers::{Servers, Socket},
    table::{Table, Unit},
    turns::{Turn, at_random, turn},
};

const MANY: usize = 10_000_000;
/// The number of sessions that are looked up.
const ASKED: usize = 1_000_000;
const IN_FLIGHT: [usize; 2] = [1, 64];
const SIDES: [Side; 2] = [Side::Ours, Side::Redis];

/// Servers with the same number of sessions, and the sessions to look up.
struct House {
    servers: Servers,
    asked: Arc<[Session]>,
}

impl House {
    fn fill(runtime: &Runtime, [clients, servers]: [usize; 2], size: usize) -> Self {
        // The servers inherit the core of this thread.
        cores::pin(servers);
        let servers = Servers::start(Socket::Unix, size);
        cores::pin(clients);
        for side in SIDES {
            runtime.block_on(async {
                side.clients(&servers, 1).await[0]
                    .put((0..size).map(Session::make))
                    .await;
            });
        }
        let asked = (0..ASKED)
            .map(|number| Session::make(at_random(number, size)))
            .collect();
        Self { servers, asked }
    }
}

/// Measures the rows and returns a text about them. `None`: no row was selected.
pub(crate) fn measure(runtime: &Runtime, cores: [usize; 2], table: &mut Table) -> Option<String> {
    let name = |count: usize| format!("Unix, {count} in flight, of {}M", MANY / 1_000_000);
    let wanted: Vec<_> = IN_FLIGHT
        .into_iter()
        .filter(|&count| table.wants(&name(count)))
        .collect();
    if wanted.is_empty() {
        return None;
    }
    let [few, many] = [SESSIONS, MANY].map(|size| House::fill(runtime, cores, size));
    let mut said = format!("time of a lookup among {MANY} divided by that among {SESSIONS}");
    for count in wanted {
        let sides = [
            (&few, Side::Ours),
            (&few, Side::Redis),
            (&many, Side::Ours),
            (&many, Side::Redis),
        ];
        let mut sides = sides.map(|(house, side)| {
            (
                house,
                side,
                runtime.block_on(side.clients(&house.servers, count)),
                Vec::new(),
            )
        });
        for round in 0..ROUNDS {
            for (house, side, clients, turns) in &mut sides {
                let server = side.server(&house.servers);
                let turn = turn(clients, &house.asked, round, Duration::ZERO, server);
                turns.push(runtime.block_on(turn));
            }
        }
        let [few_ours, few_redis, ours, redis] = sides.map(|(_, _, _, turns)| turns);
        table.row(
            &name(count),
            Unit::PerSecond,
            goal(count),
            &rounds(&ours, &redis),
        );
        let [ours, redis] =
            [(few_ours, ours), (few_redis, redis)].map(|(few, many)| growth(&few, &many));
        said += &format!("\n{count} in flight: ours {ours:.2}, Redis {redis:.2}");
    }
    Some(said)
}

/// Returns the median of the rounds' ratios.
fn growth(few: &[Turn], many: &[Turn]) -> f64 {
    let mut all: Vec<f64> = few
        .iter()
        .zip(many)
        .map(|(few, many)| many.seconds / few.seconds)
        .collect();
    all.sort_unstable_by(f64::total_cmp);
    all[all.len() / 2]
}
