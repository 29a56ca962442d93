//! All interleavings of a small fleet: three servers that run and acknowledge instructions late. The first
//! one also takes them late, loses its way to the ring, comes back and restarts.
//!
//! Numbers of epochs and instructions count from the current one, and times from now, so the states are
//! finite, and all of them are visited.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    time::Duration,
};

use super::{Attachment, Instruction, Lease, Phase, Ring, Settings, Style};

/// A defect that the exploration must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mutant {
    /// Goes on without acknowledgements.
    WaitForNone,
    /// Drops an epoch at once.
    DropEarly,
}

const SERVERS: usize = 3;
/// The exploration counts time in these.
const UNIT: Duration = Duration::from_secs(1);
const SETTINGS: Settings = Settings {
    rotate: UNIT,
    lifetime: UNIT.saturating_mul(2),
    max_key_age: UNIT.saturating_mul(3),
    members_wait: UNIT,
};
/// Times that are longer ago than this do not differ.
const PAST: u64 = 4;
/// Instructions that are further behind than this do not differ: two rotations have passed.
const BEHIND: u64 = 8;
/// An exploration that has not ended after this many states is a fault of the model.
const STATES_MAX: usize = 3_000_000;

#[derive(Clone, Debug)]
struct Server {
    style: Style,
    lease: Option<Lease>,
    told: Option<Instruction>,
    runs: Option<Instruction>,
    /// Whether it is away, or was restarted while it was away.
    is_lossy: bool,
}

#[derive(Clone, Debug)]
struct Fleet {
    ring: Ring,
    now: u64,
    servers: Vec<Server>,
    /// By epoch: when a counted server made the last ticket. Without those that have expired.
    made: BTreeMap<u64, u64>,
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Pass,
    Take(usize),
    Run(usize),
    Acknowledge(usize),
    Lose(usize),
    Return(usize),
    Restart(usize),
}

/// A run by how far it is behind, and the epoch that it encrypts with.
type RunKey = Option<(u64, u64)>;
/// A server by what decides its future.
type ServerKey = (bool, bool, u64, u64, RunKey, RunKey);
type Key = (Phase, [u64; 4], Vec<ServerKey>, Vec<(u64, u64)>);

fn at(units: u64) -> Duration {
    UNIT * u32::try_from(units).unwrap()
}

impl Fleet {
    fn new(styles: [Style; SERVERS], mutant: Option<Mutant>) -> Self {
        let mut ring = Ring::new("web", SETTINGS, Duration::ZERO).unwrap();
        ring.mutant = mutant;
        let mut join = |style, name: usize| {
            let lease = ring
                .join(
                    &name.to_string(),
                    style,
                    &Attachment::default(),
                    Duration::ZERO,
                )
                .unwrap();
            let runs = ring.instruction(lease);
            let sequence = runs.as_ref().unwrap().sequence;
            ring.acknowledge(lease, sequence, Duration::ZERO).unwrap();
            Server {
                style,
                lease: Some(lease),
                told: runs.clone(),
                runs,
                is_lossy: name == 0,
            }
        };
        let servers = (0..).zip(styles).map(|(name, style)| join(style, name));
        let servers = servers.collect();
        let mut fleet = Self {
            ring,
            now: 0,
            servers,
            made: BTreeMap::new(),
        };
        fleet.serve();
        fleet
    }

    fn is_counted(&self, server: usize) -> bool {
        let name = server.to_string();
        self.ring
            .members
            .get(name.as_str())
            .is_some_and(|member| member.counts)
    }

    /// Every counted server makes a ticket.
    fn serve(&mut self) {
        let (now, lifetime) = (self.now, SETTINGS.lifetime.as_secs());
        self.made.retain(|_, made| now < *made + lifetime);
        for server in 0..SERVERS {
            if self.is_counted(server)
                && let Some(runs) = &self.servers[server].runs
            {
                self.made.insert(runs.encrypt, now);
            }
        }
    }

    /// Returns a ticket that some counted server cannot open.
    fn lost(&self) -> Option<String> {
        for (name, server) in self.servers.iter().enumerate() {
            let Some(runs) = &server.runs else { continue };
            let mut lost = self.made.keys().filter(|epoch| !runs.open.contains(epoch));
            if self.is_counted(name)
                && let Some(epoch) = lost.next()
            {
                return Some(format!(
                    "server {name} runs {runs:?}, and a ticket of epoch {epoch} is valid"
                ));
            }
        }
        None
    }

    fn act(&self, act: Act) -> Option<Self> {
        let mut next = self.clone();
        match act {
            Act::Pass => next.now += 1,
            Act::Take(server) => {
                let lease = self.servers[server].lease?;
                let told = self.ring.instruction(lease)?;
                if self.servers[server].told.as_ref() == Some(&told) {
                    return None;
                }
                next.servers[server].told = Some(told);
            }
            Act::Run(server) => {
                let Server { lease, told, .. } = &self.servers[server];
                let told = match self.servers[server].is_lossy {
                    true => told.clone()?,
                    false => self.ring.instruction((*lease)?)?,
                };
                let runs = &mut next.servers[server].runs;
                if runs.replace(told) == *runs {
                    return None;
                }
            }
            Act::Acknowledge(server) => {
                let Server {
                    lease, runs, told, ..
                } = &self.servers[server];
                // After it has joined again, a server acknowledges what it was told since.
                let (lease, runs) = ((*lease)?, runs.as_ref()?);
                told.as_ref()?;
                let _fenced = next.ring.acknowledge(lease, runs.sequence, at(self.now));
            }
            Act::Lose(server) => {
                let lease = next.servers[server].lease.take()?;
                next.servers[server].told = None;
                next.ring.detach(lease, at(self.now));
            }
            Act::Return(server) => {
                if self.servers[server]
                    .lease
                    .is_some_and(|lease| self.ring.holds(lease))
                {
                    return None;
                }
                let style = self.servers[server].style;
                let joined = next.ring.join(
                    &server.to_string(),
                    style,
                    &Attachment::default(),
                    at(self.now),
                );
                next.servers[server].lease = Some(joined.unwrap());
                next.servers[server].told = None;
            }
            Act::Restart(server) => {
                if self.servers[server].lease.is_some() {
                    return None;
                }
                next.servers[server].runs.take()?;
            }
        }
        next.ring.tick(at(next.now)).unwrap();
        next.serve();
        Some(next)
    }

    fn key(&self) -> Key {
        let since = |time: Duration| self.now.saturating_sub(time.as_secs()).min(PAST);
        let ring = &self.ring;
        let epoch = |number: u64| (ring.window.next.number - number).min(PAST);
        let behind = |sequence: u64| (ring.sequence - sequence).min(BEHIND);
        let run = |run: &Option<Instruction>| {
            let run = run.as_ref()?;
            Some((behind(run.sequence), epoch(run.encrypt)))
        };
        let servers = self.servers.iter().enumerate().map(|(name, server)| {
            let known = ring.members.get(name.to_string().as_str());
            let holds = server.lease.is_some_and(|lease| ring.holds(lease));
            (
                holds,
                known.is_some_and(|member| member.counts),
                known.map_or(0, |member| behind(member.acknowledged)),
                known.map_or(0, |member| behind(member.first)),
                run(&server.told),
                run(&server.runs),
            )
        });
        (
            ring.phase,
            [
                since(ring.since),
                since(ring.activated),
                since(ring.oldest_in_use),
                ring.settled_from.map_or(PAST + 1, since),
            ],
            servers.collect(),
            self.made
                .iter()
                .map(|(number, made)| (epoch(*number), self.now - made))
                .collect(),
        )
    }
}

/// Explores from the start. Returns the number of states, or how a ticket was lost.
fn explore(styles: [Style; SERVERS], mutant: Option<Mutant>) -> Result<usize, String> {
    let acts: Vec<_> = (0..SERVERS)
        .flat_map(|server| [Act::Run(server), Act::Acknowledge(server)])
        .chain([Act::Take(0), Act::Lose(0), Act::Return(0), Act::Restart(0)])
        .chain([Act::Pass])
        .collect();
    let first = Fleet::new(styles, mutant);
    let mut seen = HashSet::from([first.key()]);
    let mut waiting = VecDeque::from([first]);
    while let Some(fleet) = waiting.pop_front() {
        assert!(seen.len() < STATES_MAX, "the states have no end: {fleet:?}");
        for act in &acts {
            let Some(next) = fleet.act(*act) else {
                continue;
            };
            if let Some(lost) = next.lost() {
                return Err(format!(
                    "{lost} after {act:?} in {:?}",
                    next.ring.view(at(next.now))
                ));
            }
            if seen.insert(next.key()) {
                waiting.push_back(next);
            }
        }
    }
    Ok(seen.len())
}

#[test]
fn no_interleaving_loses_a_ticket() {
    let states = explore([Style::List, Style::Push, Style::List], None);
    assert!(states.unwrap() > 100_000);
}

#[test]
fn rotation_without_acknowledgements_loses_tickets() {
    for style in [Style::List, Style::Push] {
        let lost = explore([style; SERVERS], Some(Mutant::WaitForNone));
        lost.expect_err("it goes on without acknowledgements");
    }
}

#[test]
fn epoch_that_is_dropped_early_loses_tickets() {
    let lost = explore([Style::List; SERVERS], Some(Mutant::DropEarly));
    lost.expect_err("it drops an epoch whose tickets are valid");
}
