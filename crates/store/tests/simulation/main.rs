//! Several daemons on one store, in virtual time, with everything that goes wrong between them.
//!
//! `cargo test --package tls-sessiond-store --test simulation`. A failure names its seed;
//! `SIMULATION_SEED=17` runs that seed alone, `SIMULATION_SEEDS=5000` runs that many.
//!
//! Daemons make sessions, resume each other's, close them or do not, stop for seconds, and die. The
//! network delays, loses and reorders requests and answers. The store hangs, is restored from a file
//! that lacks the last second, loses its heartbeats, and evicts notes. Rules:
//!
//! * G1: a session that became bad at a time is not handed out later than `UNCLOSED_MAX` after it.
//! * G2: a single-use session is handed out once.
//! * G3: a lookup that does not fit consumes nothing.
//!
//! A session that is sealed in a ticket is handed out if the store answers that it is good: see `tickets`.
//!
//! G1 and G2 have one exception: the store was restored from a file that lacks the hold or the take,
//! and the daemon that made it died, hung or was cut off before it could repeat what it had decided.
//!
//! Each mutant breaks one part of the protocol, and must be caught.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a failure ends the test, and its numbers are small"
)]

use std::{cmp::Reverse, collections::BTreeMap, env};

use tls_sessiond_store::{
    keeper::{
        BEAT_VALID, Keeper, LIFE, LocalTime, NoAnswer, QUARANTINE, Removal, RequestId, Seed,
        UNCLOSED_MAX,
    },
    layout::{Bucket, Fit, Name},
    script::{
        Answer, Claim, Criteria, Expected, Head, Holder, Mode, Reason, Refused, Request, Token,
    },
    seal::SealingKeys,
};
use tls_sessiond_types::{Role, Version};
use zeroize::Zeroizing;

#[path = "../shared/model.rs"]
#[allow(dead_code, reason = "the contract suite uses the rest")]
mod model;
#[path = "../shared/random.rs"]
mod random;
mod tickets;

use model::{Faults, Model};
use random::Random;
use tickets::{Sealed, Ticket};

/// How long a daemon waits for the answer to a put, in milliseconds.
const PUT_VALID: u64 = 50;
const DAEMONS: usize = 3;
/// Virtual milliseconds of one history.
const LENGTH: u64 = 40_000;
/// How long a daemon waits for a lookup or a put, and for a request of its keeper.
const CALL_DEADLINE: u64 = PUT_VALID;
const KEEPER_DEADLINE: u64 = 200;
/// Where the store's clock begins.
const STORE_BEGIN: u64 = 1_700_000_000_000;
/// How much of the last writes a restored file may lack.
const FILE_LAG: u64 = 1_000;

/// How many sessions histories have handed out.
#[derive(Clone, Copy, Debug, Default)]
struct HandedOut {
    all: u64,
    /// Of these, how many were sealed in tickets.
    tickets: u64,
}

impl std::ops::AddAssign for HandedOut {
    fn add_assign(&mut self, other: Self) {
        self.all += other.all;
        self.tickets += other.tickets;
    }
}

/// One part of the protocol, left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    None,
    BeatBeforeAcknowledgement,
    NoValidUntil,
    ReleaseWithoutToken,
    RetryOfPutWithoutToken,
    DeletionBeforeScopeCheck,
    DeadlineOfTheWrongClock,
    NoReplay,
    NoRunId,
    NoQuarantine,
    TicketsOfTheDead,
}

/// What is true of a session, whatever the store says.
#[derive(Clone, Debug, Default)]
struct Truth {
    bad: Vec<Bad>,
    /// When the take that handed it out was sent, and by which daemon.
    taken: Option<(u64, usize)>,
}

/// A connection ended unclosed.
#[derive(Clone, Copy, Debug)]
struct Bad {
    since: u64,
    by: usize,
    /// When the store got the hold of the connection, at the earliest.
    held: u64,
}

/// An open connection of a daemon.
#[derive(Clone, Copy, Debug)]
struct Open {
    name: Name,
    hold: (Holder, Token),
    /// When its request was sent.
    since: u64,
}

struct Daemon {
    keeper: Keeper,
    /// How far its monotonic clock is from the true time.
    clock: u64,
    open: Vec<Open>,
    sealed: Vec<Sealed>,
    /// It has closed its connections, and stops once the store has everything.
    stops: bool,
    /// Puts whose answer has not come, by request.
    puts: Vec<u64>,
    stopped_until: u64,
    /// From when to when it was dead, stopped or cut off.
    trouble: Vec<(u64, u64)>,
    /// Requests that take removals are lost until then.
    removals_lost_until: u64,
    starts: u64,
    /// The run id of the store that its connections showed.
    knows: u64,
    /// When the mutant last sent a heartbeat of its own.
    forged: u64,
}

#[derive(Clone, Debug)]
enum Purpose {
    Keeper(RequestId),
    Forged,
    Find { name: Name },
    Put { name: Name, token: Token },
    Ticket { name: Name },
}

#[derive(Clone, Debug)]
enum Event {
    Step(usize),
    /// The request reaches the store.
    Run(u64),
    /// The answer reaches the daemon.
    Answer(u64, Answer),
    /// The daemon waits no longer.
    Deadline(u64),
    StoreResumes,
}

#[derive(Clone, Debug)]
struct UnderWay {
    daemon: usize,
    starts: u64,
    run_id: u64,
    sent: u64,
    request: Request,
    purpose: Purpose,
}

struct World {
    random: Random,
    mutant: Mutant,
    now: u64,
    store: Model,
    /// How often the store was started.
    run_id: u64,
    /// What the store's file has had, with the time of each state, oldest first.
    files: Vec<(u64, Model)>,
    hangs_until: u64,
    /// From when to when the store hung.
    hangs: Vec<(u64, u64)>,
    /// Until then the store evicts notes, because its memory is used up.
    pressed_until: u64,
    restored: Vec<u64>,
    waiting: Vec<u64>,
    daemons: Vec<Daemon>,
    events: std::collections::BinaryHeap<Reverse<(u64, u64)>>,
    due: BTreeMap<u64, Event>,
    requests: BTreeMap<u64, UnderWay>,
    counter: u64,
    names: Vec<Name>,
    unused: usize,
    truths: BTreeMap<Name, Truth>,
    fit: Fit,
    other_fit: Fit,
    bucket: Bucket,
    handed_out: u64,
    ticket_names: Vec<Name>,
    tickets: Vec<Ticket>,
    /// How many of those that were handed out were in tickets.
    resumed: u64,
}

impl World {
    fn new(seed: u64, mutant: Mutant) -> Self {
        let keys = SealingKeys::read(&"ab".repeat(32)).unwrap();
        let bucket = keys.names().name(b"", Role::Server, b"").bucket();
        let names: Vec<_> = (0_u64..)
            .map(|id| keys.names().name(b"", Role::Server, &id.to_be_bytes()))
            .filter(|name| name.bucket() == bucket)
            .take(400)
            .collect();
        let ticket_names = (1_u64 << 40..)
            .map(|id| keys.names().name(b"", Role::Server, &id.to_be_bytes()))
            .filter(|name| name.bucket() == bucket)
            .take(400)
            .collect();
        let faults = Faults {
            tickets_of_the_dead: mutant == Mutant::TicketsOfTheDead,
            release_without_token: mutant == Mutant::ReleaseWithoutToken,
            deletion_before_scope_check: mutant == Mutant::DeletionBeforeScopeCheck,
            ..Faults::default()
        };
        let mut world = Self {
            random: Random::new(seed),
            mutant,
            now: 0,
            store: Model::new(STORE_BEGIN, faults),
            run_id: 0,
            files: Vec::new(),
            hangs_until: 0,
            hangs: Vec::new(),
            pressed_until: 0,
            restored: Vec::new(),
            waiting: Vec::new(),
            daemons: Vec::new(),
            events: Default::default(),
            due: BTreeMap::new(),
            requests: BTreeMap::new(),
            counter: 0,
            names,
            unused: 0,
            truths: BTreeMap::new(),
            fit: keys.names().fit("rustls", b"", "a.test"),
            other_fit: keys.names().fit("rustls", b"", "b.test"),
            bucket,
            handed_out: 0,
            ticket_names,
            tickets: Vec::new(),
            resumed: 0,
        };
        for place in 0..DAEMONS {
            let clock = world.random.below(1_000_000);
            world.daemons.push(Daemon {
                keeper: Keeper::new(bucket, seed_of([place as u8 + 1; 32])),
                clock,
                open: Vec::new(),
                sealed: Vec::new(),
                stops: false,
                puts: Vec::new(),
                stopped_until: 0,
                trouble: Vec::new(),
                removals_lost_until: 0,
                starts: 0,
                knows: 0,
                forged: 0,
            });
            world.at(place as u64, Event::Step(place));
        }
        world
    }

    fn at(&mut self, time: u64, event: Event) {
        self.counter += 1;
        self.events.push(Reverse((time, self.counter)));
        self.due.insert(self.counter, event);
    }

    /// Runs the history, and returns the first rule that was broken.
    fn run(mut self) -> Result<HandedOut, String> {
        while let Some(Reverse((time, number))) = self.events.pop() {
            if time > LENGTH {
                break;
            }
            self.now = time;
            self.store.now = STORE_BEGIN + time;
            if self.files.last().is_none_or(|(at, _)| time >= at + 100) {
                self.files.push((time, self.store.clone()));
                if self.files.len() > 30 {
                    self.files.remove(0);
                }
            }
            let Some(event) = self.due.remove(&number) else {
                continue;
            };
            match event {
                Event::Step(place) => self.step(place),
                Event::Run(id) => {
                    if time < self.hangs_until {
                        self.waiting.push(id);
                    } else {
                        self.serve(id)?;
                    }
                }
                Event::StoreResumes => {
                    for id in std::mem::take(&mut self.waiting) {
                        self.serve(id)?;
                    }
                }
                Event::Answer(id, answer) => self.answered(id, Some(answer))?,
                Event::Deadline(id) => self.answered(id, None)?,
            }
        }
        Ok(HandedOut {
            all: self.handed_out,
            tickets: self.resumed,
        })
    }

    fn local(&self, place: usize) -> LocalTime {
        LocalTime(self.now + self.daemons[place].clock)
    }

    fn send(&mut self, place: usize, request: Request, purpose: Purpose) {
        self.counter += 1;
        let id = self.counter;
        let starts = self.daemons[place].starts;
        let lost = matches!(request, Request::Remove { .. })
            && self.now < self.daemons[place].removals_lost_until;
        let wait = match purpose {
            Purpose::Keeper(_) | Purpose::Forged => KEEPER_DEADLINE,
            Purpose::Find { .. } | Purpose::Put { .. } | Purpose::Ticket { .. } => CALL_DEADLINE,
        };
        self.requests.insert(
            id,
            UnderWay {
                daemon: place,
                starts,
                run_id: self.run_id,
                sent: self.now,
                request,
                purpose,
            },
        );
        if !lost && !self.random.once_in(50) {
            let delay = self.delay();
            self.at(self.now + delay, Event::Run(id));
        }
        self.at(self.now + wait, Event::Deadline(id));
        // A client library may repeat what it had sent on a connection that broke. Puts are never
        // repeated.
        if !matches!(self.requests[&id].purpose, Purpose::Put { .. }) && self.random.once_in(25) {
            let again = UnderWay {
                starts: u64::MAX,
                ..self.requests[&id].clone()
            };
            self.counter += 1;
            self.requests.insert(self.counter, again);
            let delay = 1 + self.random.below(400);
            self.at(self.now + delay, Event::Run(self.counter));
        }
    }

    /// Returns how long a message takes: mostly a millisecond, sometimes until after the deadline.
    fn delay(&mut self) -> u64 {
        match self.random.below(40) {
            0 => self.random.below(400),
            1..=4 => self.random.below(40),
            _ => 1,
        }
    }

    fn step(&mut self, place: usize) {
        let pause = 5 + self.random.below(25);
        self.at(self.now + pause, Event::Step(place));
        if place == 0 {
            self.trouble_of_the_store();
        }
        if self.now < self.daemons[place].stopped_until {
            return;
        }
        if self.random.once_in(900) {
            return self.die(place);
        }
        if self.random.once_in(500) {
            let until = self.now + self.random.below(9_000);
            self.daemons[place].stopped_until = until;
            self.daemons[place].trouble.push((self.now, until));
            return;
        }
        if self.random.once_in(400) {
            let until = self.now + self.random.below(9_000);
            self.daemons[place].removals_lost_until = until;
            self.daemons[place].trouble.push((self.now, until));
        }
        let now = self.local(place);
        // A request needs a connection, and a new connection shows the run id.
        if self.daemons[place].knows != self.run_id {
            self.daemons[place].knows = self.run_id;
            if self.mutant != Mutant::NoRunId {
                self.daemons[place].keeper.lost(now);
            }
        }
        if let Some((id, request)) = self.daemons[place].keeper.poll(now) {
            self.keep(place, id, request);
        }
        if self.mutant == Mutant::BeatBeforeAcknowledgement {
            self.forge(place);
        }
        if self.daemons[place].stops {
            return self.stop(place);
        }
        match self.random.below(8) {
            0 | 1 => self.make(place),
            2..=4 => self.look(place),
            5 | 6 => self.end_one(place),
            _ => {}
        }
        match self.random.below(8) {
            0 | 1 => self.seal(place),
            2..=4 => self.offer_ticket(place),
            5 | 6 => self.end_sealed(place),
            _ if self.random.once_in(60) => self.close_all(place),
            _ => {}
        }
    }

    /// Sends a request of the keeper, or leaves it out as a mutant does.
    fn keep(&mut self, place: usize, id: RequestId, request: Request) {
        let is_replay = matches!(&request, Request::Remove { entries } if entries.iter().all(|(_, reason)| reason.is_none()));
        if self.mutant == Mutant::NoReplay && is_replay {
            let now = self.local(place);
            self.daemons[place]
                .keeper
                .answered(id, Ok(Answer::Done(0)), now);
            return;
        }
        self.send(place, request, Purpose::Keeper(id));
    }

    /// Sends a heartbeat although removals wait.
    fn forge(&mut self, place: usize) {
        let now = self.local(place);
        let Ok((claim, valid_until)) = self.daemons[place].keeper.may_put(now, PUT_VALID) else {
            return;
        };
        if self.now < self.daemons[place].forged + 1_000 {
            return;
        }
        self.daemons[place].forged = self.now;
        let beat = Request::Beat {
            bucket: self.bucket,
            holder: claim.holder,
            life: LIFE,
            expected: Expected::Any,
            valid_until: valid_until + BEAT_VALID,
        };
        self.send(place, beat, Purpose::Forged);
    }

    fn trouble_of_the_store(&mut self) {
        if self.random.once_in(500) && self.now >= self.hangs_until {
            self.hangs_until = self.now + self.random.below(4_000);
            self.hangs.push((self.now, self.hangs_until));
            self.at(self.hangs_until, Event::StoreResumes);
        }
        if self.random.once_in(300) {
            self.pressed_until = self.now + self.random.below(4_000);
        }
        if self.now < self.pressed_until {
            for note in self.store.notes() {
                self.store.lose_entry(note);
            }
        }
        if self.random.once_in(1_500) {
            self.store.lose_all_beats();
        }
        if self.random.once_in(1_500) {
            self.store.lose_list(self.bucket);
        }
        // A file that is restored twice in a short time is another machine's story.
        let calm = self.restored.last().is_none_or(|at| self.now > at + 5_000);
        if self.random.once_in(400) && calm && !self.files.is_empty() {
            let lag = self.random.below(FILE_LAG);
            let state = self.files.iter().rev().find(|(at, _)| at + lag <= self.now);
            if let Some((_, file)) = state.cloned() {
                let now = self.store.now;
                self.store = file;
                self.store.now = now;
                // An append-only file has no heartbeats. A snapshot has them.
                if self.random.once_in(2) {
                    self.store.lose_all_beats();
                }
                self.files.clear();
                self.restored.push(self.now);
                self.run_id += 1;
                self.waiting.clear();
            }
        }
    }

    fn die(&mut self, place: usize) {
        let starts = self.daemons[place].starts + 1;
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.random.next().to_be_bytes());
        for open in std::mem::take(&mut self.daemons[place].open) {
            self.spoil(open.name, place, open.since);
        }
        self.spoil_sealed(place);
        for id in std::mem::take(&mut self.daemons[place].puts) {
            if let Some(UnderWay {
                purpose: Purpose::Put { name, .. },
                sent,
                ..
            }) = self.requests.get(&id)
            {
                let (name, sent) = (*name, *sent);
                self.spoil(name, place, sent);
            }
        }
        let (now, until) = (self.now, self.now + self.random.below(3_000));
        let daemon = &mut self.daemons[place];
        daemon.keeper = Keeper::new(self.bucket, seed_of(seed));
        daemon.starts = starts;
        daemon.stops = false;
        daemon.trouble.push((now, until));
        daemon.stopped_until = until;
    }

    fn spoil(&mut self, name: Name, by: usize, held: u64) {
        let bad = Bad {
            since: self.now,
            by,
            held,
        };
        self.truths.entry(name).or_default().bad.push(bad);
    }

    /// Returns whether the store has lost what a daemon did at a time, and the daemon could not
    /// repeat it in time.
    fn is_excused(&self, by: usize, held: u64) -> bool {
        let trouble = &self.daemons[by].trouble;
        self.restored.iter().any(|restored| {
            let is_lost = held <= *restored && *restored <= held + FILE_LAG + CALL_DEADLINE;
            // The store may hang after its restart, and the others find nothing meanwhile.
            let end = restored.max(&self.last_hang_end(*restored)) + QUARANTINE;
            is_lost
                && trouble
                    .iter()
                    .any(|(begin, until)| *begin <= end && *until >= held)
        })
    }

    /// Returns when the store answered again after a time.
    fn last_hang_end(&self, after: u64) -> u64 {
        let hangs = self
            .hangs
            .iter()
            .filter(|(begin, _)| *begin <= after + QUARANTINE);
        hangs.map(|(_, end)| *end).max().unwrap_or(0)
    }

    fn head(&self, name: Name) -> Head {
        // Every third session is shared, as those of TLS 1.2 are.
        let single_use = !name.as_bytes()[15].is_multiple_of(3);
        Head {
            single_use,
            version: if single_use {
                Version::Tls13
            } else {
                Version::Tls12
            },
            cipher_suite: 0,
            fit: self.fit,
        }
    }

    fn make(&mut self, place: usize) {
        let now = self.local(place);
        let Ok((claim, valid_until)) = self.daemons[place].keeper.may_put(now, PUT_VALID) else {
            return;
        };
        let Some(&name) = self.names.get(self.unused) else {
            return;
        };
        self.unused += 1;
        self.truths.insert(name, Truth::default());
        let token = self.daemons[place].keeper.token();
        let put = Request::Put {
            name,
            claim,
            token,
            head: self.head(name),
            sealed: name.as_bytes().to_vec(),
            valid_until: if self.mutant == Mutant::NoValidUntil {
                u64::MAX
            } else {
                valid_until
            },
            life: 600_000,
            pool: None,
        };
        self.send(place, put, Purpose::Put { name, token });
        let id = self.last_put();
        self.daemons[place].puts.push(id);
    }

    fn last_put(&self) -> u64 {
        let last = self.requests.last_key_value();
        last.map_or(0, |(number, _)| *number)
    }

    /// A client comes back to this daemon with one of its sessions.
    fn look(&mut self, place: usize) {
        let now = self.local(place);
        let keeper = &self.daemons[place].keeper;
        let claim = match self.mutant {
            Mutant::NoQuarantine => keeper.may_put(now, CALL_DEADLINE),
            _ => keeper.may_find(now, CALL_DEADLINE),
        };
        let Ok((claim, valid_until)) = claim else {
            return;
        };
        if self.unused == 0 {
            return;
        }
        // Mostly a session of the last seconds.
        let back = match self.random.below(4) {
            0 => self.random.below(self.unused as u64),
            _ => self.random.below(20.min(self.unused as u64)),
        };
        let name = self.names[self.unused - 1 - back as usize];
        if self.daemons[place].keeper.is_removing(name) {
            return;
        }
        let criteria = Criteria {
            fit: if self.random.once_in(10) {
                self.other_fit
            } else {
                self.fit
            },
            versions: vec![Version::Tls12, Version::Tls13],
            cipher_suite: None,
        };
        let token = self.daemons[place].keeper.token();
        let find = Request::Find {
            name,
            claim,
            token,
            mode: Mode::Resume(criteria),
            valid_until,
        };
        self.send(place, find, Purpose::Find { name });
    }

    /// One connection ends: closed, or not.
    fn end_one(&mut self, place: usize) {
        let count = self.daemons[place].open.len() as u64;
        if count == 0 {
            return;
        }
        let at = self.random.below(count) as usize;
        let open = self.daemons[place].open.swap_remove(at);
        let now = self.local(place);
        if self.random.once_in(3) {
            self.spoil(open.name, place, open.since);
            let reason = Some(Reason::Unclosed);
            if self.daemons[place].keeper.remove(open.name, reason) == Removal::Abandoned {
                self.daemons[place].open.clear();
            }
        } else {
            let (holder, token) = open.hold;
            self.daemons[place]
                .keeper
                .release(holder, open.name, token, now);
        }
    }

    /// The store runs a request.
    fn serve(&mut self, id: u64) -> Result<(), String> {
        let Some(under_way) = self.requests.get(&id).cloned() else {
            return Ok(());
        };
        if under_way.run_id != self.run_id {
            // Its connection was to the process that has ended.
            return Ok(());
        }
        let answer = self.store.run(&under_way.request);
        match (&under_way.request, &answer) {
            (Request::Find { name, .. }, Answer::Found { .. })
            | (Request::Ticket { name, .. }, Answer::Good) => {
                let bad = self.truths.entry(*name).or_default().bad.clone();
                let broken = bad.iter().find(|bad| {
                    self.now > bad.since + UNCLOSED_MAX && !self.is_excused(bad.by, bad.held)
                });
                if let Some(bad) = broken {
                    return Err(format!(
                        "G1: {name:?}: {bad:?}, and it was handed out at {}",
                        self.now
                    ));
                }
            }
            (Request::Find { name, .. }, Answer::Scope) if !self.store.has(*name) => {
                return Err(format!("G3: a lookup that did not fit consumed {name:?}"));
            }
            (Request::Beat { holder, .. }, Answer::Beaten { .. })
                if self.mutant == Mutant::DeadlineOfTheWrongClock =>
            {
                // The daemons' clocks are up to a minute ahead.
                let by = (self.daemons[under_way.daemon].clock % 60_000) as i64;
                self.store.skew(self.bucket, *holder, by);
            }
            _ => {}
        }
        if !self.random.once_in(50) {
            let delay = self.delay();
            self.at(self.now + delay, Event::Answer(id, answer));
        }
        Ok(())
    }

    /// The daemon gets an answer, or waits no longer.
    fn answered(&mut self, id: u64, answer: Option<Answer>) -> Result<(), String> {
        let Some(under_way) = self.requests.get(&id).cloned() else {
            return Ok(());
        };
        let place = under_way.daemon;
        let until = self.daemons[place].stopped_until;
        if self.now < until {
            let event = match answer {
                Some(answer) => Event::Answer(id, answer),
                None => Event::Deadline(id),
            };
            self.at(until, event);
            return Ok(());
        }
        let is_present = under_way.starts == self.daemons[place].starts;
        // A request that reaches the store after the deadline is run all the same.
        match (answer.is_some(), &under_way.purpose) {
            (true, _) => _ = self.requests.remove(&id),
            (false, _) => {
                if let Some(late) = self.requests.get_mut(&id) {
                    late.starts = u64::MAX;
                }
            }
        }
        if !is_present {
            return Ok(());
        }
        self.daemons[place].puts.retain(|put| *put != id);
        let now = self.local(place);
        if matches!(answer, Some(Answer::Refused(Refused::Lost))) {
            self.daemons[place].keeper.lost(now);
        }
        match under_way.purpose {
            Purpose::Keeper(id) => {
                let answer = answer.ok_or(NoAnswer);
                self.daemons[place].keeper.answered(id, answer, now);
                if self.daemons[place].knows == self.run_id
                    && let Some((id, next)) = self.daemons[place].keeper.poll(now)
                {
                    self.keep(place, id, next);
                }
            }
            Purpose::Forged => {}
            Purpose::Put { name, token } => self.put_ended(place, name, token, answer, &under_way),
            Purpose::Ticket { name } => {
                if let Request::Ticket { claim, .. } = &under_way.request {
                    let (claim, since) = (*claim, under_way.sent);
                    return self.ticket_ended(place, name, claim, since, answer.as_ref());
                }
            }
            Purpose::Find { name } => {
                if let Request::Find { claim, token, .. } = &under_way.request {
                    return self.find_ended(place, name, (*claim, *token), under_way.sent, answer);
                }
            }
        }
        Ok(())
    }

    fn put_ended(
        &mut self,
        place: usize,
        name: Name,
        token: Token,
        answer: Option<Answer>,
        put: &UnderWay,
    ) {
        let Request::Put { claim, .. } = &put.request else {
            return;
        };
        match answer {
            Some(Answer::Stored) => {
                let (hold, since) = ((claim.holder, token), put.sent);
                if self.daemons[place].keeper.holder() == claim.holder {
                    self.daemons[place].open.push(Open { name, hold, since });
                } else {
                    self.spoil(name, place, since);
                }
            }
            Some(_) => self.spoil(name, place, put.sent),
            // The store may have it, or get it later.
            None if self.mutant == Mutant::RetryOfPutWithoutToken => {
                let now = self.local(place);
                if let Ok((claim, valid)) = self.daemons[place].keeper.may_put(now, PUT_VALID)
                    && let Request::Put {
                        head, sealed, life, ..
                    } = put.request.clone()
                {
                    let token = self.daemons[place].keeper.token();
                    let again = Request::Put {
                        name,
                        claim,
                        token,
                        head,
                        sealed,
                        valid_until: valid,
                        life,
                        pool: None,
                    };
                    self.send(place, again, Purpose::Put { name, token });
                    let id = self.last_put();
                    self.daemons[place].puts.push(id);
                }
            }
            None => {
                self.spoil(name, place, put.sent);
                let reason = Some(Reason::Withdrawn);
                self.daemons[place].keeper.remove(name, reason);
            }
        }
    }

    fn find_ended(
        &mut self,
        place: usize,
        name: Name,
        (claim, token): (Claim, Token),
        since: u64,
        answer: Option<Answer>,
    ) -> Result<(), String> {
        let now = self.local(place);
        let Some(Answer::Found { head, .. }) = answer else {
            // A take whose answer was lost may have been run.
            if answer.is_none() && self.head(name).single_use {
                self.daemons[place].keeper.took(name, &claim, now);
            }
            return Ok(());
        };
        if !self.daemons[place].keeper.is_present(&claim) {
            // The store has lost what it had since: the answer counts as none.
            if head.single_use {
                self.daemons[place].keeper.took(name, &claim, now);
            }
            return Ok(());
        }
        self.handed_out += 1;
        if !head.single_use {
            let hold = (claim.holder, token);
            self.daemons[place].open.push(Open { name, hold, since });
            return Ok(());
        }
        self.daemons[place].keeper.took(name, &claim, now);
        let taken = self.truths.entry(name).or_default().taken;
        if let Some((at, taker)) = taken
            && !self.is_excused(taker, at)
        {
            return Err(format!(
                "G2: {name:?} was handed out to {taker} at {at}, and to {place} at {}",
                self.now
            ));
        }
        self.truths.entry(name).or_default().taken = Some((since, place));
        Ok(())
    }
}

fn seed_of(bytes: [u8; 32]) -> Seed {
    Seed::new(Zeroizing::new(bytes))
}

fn seeds() -> Vec<u64> {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse().ok());
    match number("SIMULATION_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("SIMULATION_SEEDS").unwrap_or(1_000)).collect(),
    }
}

/// Runs seeds on all cores. Returns the first that breaks a rule, and the number of sessions that
/// were handed out.
fn run(mutant: Mutant, seeds: &[u64]) -> (Option<(u64, String)>, HandedOut) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let parts = std::thread::scope(|scope| {
        let parts: Vec<_> = seeds
            .chunks(seeds.len().div_ceil(cores))
            .map(|part| {
                scope.spawn(move || {
                    let mut handed_out = HandedOut::default();
                    for seed in part {
                        match World::new(*seed, mutant).run() {
                            Ok(count) => handed_out += count,
                            Err(broken) => return (Some((*seed, broken)), handed_out),
                        }
                    }
                    (None, handed_out)
                })
            })
            .collect();
        parts
            .into_iter()
            .map(|part| part.join().unwrap())
            .collect::<Vec<_>>()
    });
    let mut handed_out = HandedOut::default();
    parts.iter().for_each(|(_, count)| handed_out += *count);
    let broken = parts.into_iter().find_map(|(broken, _)| broken);
    (broken, handed_out)
}

#[test]
fn no_history_hands_out_a_bad_session_or_one_twice() {
    let seeds = seeds();
    let (broken, handed_out) = run(Mutant::None, &seeds);
    if let Some((seed, broken)) = broken {
        panic!("SIMULATION_SEED={seed}: {broken}");
    }
    let least = 20 * seeds.len() as u64;
    let resumes = handed_out.all - handed_out.tickets > least && handed_out.tickets > least;
    assert!(resumes, "the histories resume something: {handed_out:?}");
    println!("{} histories, {handed_out:?}", seeds.len());
}

#[test]
fn every_mutant_is_caught() {
    let seeds: Vec<_> = (0..4_000).collect();
    for mutant in [
        Mutant::BeatBeforeAcknowledgement,
        Mutant::NoValidUntil,
        Mutant::ReleaseWithoutToken,
        Mutant::RetryOfPutWithoutToken,
        Mutant::DeletionBeforeScopeCheck,
        Mutant::DeadlineOfTheWrongClock,
        Mutant::NoReplay,
        Mutant::NoRunId,
        Mutant::NoQuarantine,
        Mutant::TicketsOfTheDead,
    ] {
        match run(mutant, &seeds) {
            (Some((seed, broken)), _) => println!("{mutant:?}: seed {seed}: {broken}"),
            (None, _) => panic!("{mutant:?} was not caught in {} histories", seeds.len()),
        }
    }
}
