//! The turns of each side, and the numbers that they give.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use crate::{
    clients::{Client, Session},
    cpu,
};

/// The result of one side's turn.
pub(crate) struct Turn {
    /// The wall time of the turn divided by its lookups.
    pub(crate) seconds: f64,
    /// Nanoseconds of each lookup.
    took: Vec<u64>,
    /// CPU seconds of one lookup, of the clients and of the server.
    cpu: [f64; 2],
}

/// The length of a turn. All rows except those of `many` take 40 seconds.
const TURN: Duration = Duration::from_millis(80);

/// Lets every client look sessions up, one after the other with this pause between them, until the
/// turn is over.
pub(crate) async fn turn(
    clients: &mut Vec<Client>,
    sessions: &Arc<[Session]>,
    round: usize,
    pause: Duration,
    server: u32,
) -> Turn {
    let count = clients.len();
    let begun = Instant::now();
    let before = [cpu::this_thread(), cpu::process(server)];
    let mut running = JoinSet::new();
    for (place, mut client) in clients.drain(..).enumerate() {
        let sessions = Arc::clone(sessions);
        running.spawn(async move {
            let mut took = Vec::new();
            let mut before = Instant::now();
            // Each client begins with another session, in each round.
            let first = at_random(round * count + place, sessions.len());
            for session in sessions[first..].iter().chain(sessions.iter().cycle()) {
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
    // A miss ends the run.
    while let Some(done) = running.join_next().await {
        let (client, more) = done.unwrap();
        clients.push(client);
        took.extend(more);
    }
    let lookups = took.len() as f64;
    let [client, server] = [
        cpu::this_thread() - before[0],
        cpu::process(server) - before[1],
    ];
    let cpu = [client / lookups - pause.as_secs_f64(), server / lookups];
    Turn {
        seconds: begun.elapsed().as_secs_f64() / lookups,
        took,
        cpu,
    }
}

/// Returns the median CPU time of a lookup, of the clients and of the server, in microseconds.
pub(crate) fn cpus(turns: &[Turn]) -> String {
    let of = |side: usize| {
        let mut all: Vec<f64> = turns.iter().map(|turn| turn.cpu[side] * 1e6).collect();
        all.sort_unstable_by(f64::total_cmp);
        all[all.len() / 2]
    };
    format!("{:.1} / {:.1}", of(0), of(1))
}

/// Returns the median and the 99th percentile of the time of a lookup, in microseconds.
pub(crate) fn latency(turns: &[Turn]) -> String {
    let mut all: Vec<u64> = turns
        .iter()
        .flat_map(|turn| turn.took.iter().copied())
        .collect();
    all.sort_unstable();
    let of_hundred = |place: usize| all[(all.len() - 1) * place / 100] as f64 / 1e3;
    format!("{:.0} / {:.0}", of_hundred(50), of_hundred(99))
}

/// Returns a number below `below`. It looks random and is the same in each run: splitmix64.
pub(crate) fn at_random(number: usize, below: usize) -> usize {
    let mixed = (number as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    usize::try_from((mixed ^ (mixed >> 31)) % below as u64).unwrap()
}
