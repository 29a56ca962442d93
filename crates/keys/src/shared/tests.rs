//! Random histories of three daemons, of a store that loses the ring, and of servers.

use std::collections::BTreeMap;

use super::*;
use crate::{
    epoch::Layout,
    ring::{Attachment, Lease, Refused, Style},
};

const SECOND: Duration = Duration::from_secs(1);
const SETTINGS: Settings = Settings {
    rotate: Duration::from_secs(4),
    lifetime: Duration::from_secs(4),
    max_key_age: Duration::from_secs(100_000),
    members_wait: Duration::from_secs(100_000),
};
const DAEMONS: usize = 3;
const SERVERS: usize = 4;
/// How long a lease lasts.
const LEASE: Duration = Duration::from_secs(3);

struct Random(u64);

impl Random {
    fn below(&mut self, below: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from(self.0 >> 40).unwrap() % below
    }
}

/// The store, as the script of the real one has it.
#[derive(Default)]
struct Store {
    version: u64,
    state: Vec<u8>,
    leader: Option<(u64, Duration)>,
    looks: BTreeMap<u64, Duration>,
    /// A defect: it takes writes of daemons that do not know the version before.
    takes_any: bool,
}

impl Store {
    fn lose(&mut self) {
        *self = Self {
            takes_any: self.takes_any,
            ..Self::default()
        };
    }
}

struct Daemon {
    id: u64,
    copy: SharedRing,
    /// The state that it knows, as the mark of the real store.
    known: Vec<u8>,
    looked: Duration,
}

impl Daemon {
    fn start(id: u64, now: Duration) -> Self {
        Self {
            id,
            copy: SharedRing::new("web", SETTINGS),
            known: Vec::new(),
            looked: now,
        }
    }

    /// Looks at the store, and writes a change. Returns what the change returned if it was written.
    fn look<T>(
        &mut self,
        store: &mut Store,
        now: Duration,
        change: Option<Change<T>>,
    ) -> (Shown, Option<T>) {
        self.looked = now;
        store.looks.insert(self.id, now);
        store.looks.retain(|_, at| now < *at + LEASE);
        if store
            .leader
            .is_none_or(|(leader, ends)| leader == self.id || ends <= now)
        {
            store.leader = Some((self.id, now + LEASE));
        }
        let mut is_known = store.version == self.copy.version() && store.state == self.known;
        let is_written = change.as_ref().is_some_and(|change| {
            let follows = is_known && change.version() == store.version + 1;
            let is_later = change.version() > store.version;
            store.takes_any || (is_later && (change.restores() || follows))
        });
        if let Some(change) = change.as_ref().filter(|_| is_written) {
            store.version = change.version();
            store.state = change.state().to_vec();
            self.known.clone_from(&store.state);
            is_known = true;
        }
        let seen = Seen {
            now,
            version: store.version,
            leads: store.leader.is_some_and(|(leader, _)| leader == self.id),
            is_written,
            state: (!is_known && store.version > 0).then_some(&store.state),
            alive: store.looks.keys().copied().collect(),
        };
        let shown = self.copy.saw(&seen, now);
        if shown == Shown::New {
            self.known.clone_from(&store.state);
        }
        let outcome = change.filter(|_| is_written);
        (shown, outcome.map(|change| self.copy.written(change)))
    }

    /// Does what a daemon does from time to time.
    fn turn(&mut self, store: &mut Store, now: Duration) {
        self.look::<()>(store, now, None);
        if let Some(mend) = self.copy.mend(now).unwrap() {
            self.look(store, now, Some(mend));
        }
        if let Ok(Some(tick)) = self.copy.tick(now) {
            self.look(store, now, Some(tick));
        }
    }

    /// Makes a change until the store takes it. `None`: nothing can be changed now.
    fn change<T>(
        &mut self,
        store: &mut Store,
        now: Duration,
        change: impl Fn(&mut Ring, Duration) -> T,
    ) -> Option<T> {
        for _ in 0..8 {
            let made = self.copy.change(now, &change).ok()?;
            if let (_, Some(outcome)) = self.look(store, now, Some(made)) {
                return Some(outcome);
            }
        }
        None
    }
}

/// A server: what it runs, and what it has a lease for.
#[derive(Default)]
struct Server {
    daemon: usize,
    lease: Option<Lease>,
    /// The keys that it opens. The first one encrypts.
    keys: Vec<Vec<u8>>,
    /// The instruction of these keys, not acknowledged yet.
    told: Option<u64>,
    counts: bool,
}

struct Fleet {
    random: Random,
    now: Duration,
    store: Store,
    daemons: Vec<Daemon>,
    servers: Vec<Server>,
    rotations: u64,
    /// The latest version that there was.
    latest: u64,
    went_back: bool,
}

impl Fleet {
    fn new(seed: u64) -> Self {
        Self {
            random: Random(seed),
            now: SECOND,
            store: Store::default(),
            daemons: (0..DAEMONS)
                .map(|id| Daemon::start(id as u64, SECOND))
                .collect(),
            servers: (0..SERVERS).map(|_| Server::default()).collect(),
            rotations: 0,
            latest: 0,
            went_back: false,
        }
    }

    /// A server joins, takes an instruction or acknowledges it, through its daemon.
    fn serve(&mut self, number: usize) {
        let server = &mut self.servers[number];
        let daemon = &mut self.daemons[server.daemon];
        let (store, now) = (&mut self.store, self.now);
        let Some(lease) = server.lease else {
            let by = Attachment {
                owner: "owner".into(),
                daemon: daemon.id,
            };
            let name = number.to_string();
            let joined = daemon.change(store, now, |ring, now| {
                ring.join(&name, Style::List, &by, now).unwrap()
            });
            server.lease = joined;
            server.told = None;
            return;
        };
        let Some(sequence) = server.told.take() else {
            let Some(ring) = daemon.copy.ring() else {
                return;
            };
            let Some(instruction) = ring.instruction(lease) else {
                server.lease = None;
                return;
            };
            let keys = instruction.open.iter();
            let keys = keys.map(|epoch| ring.key(*epoch, Layout::Bytes80).unwrap());
            server.keys = keys.map(|key| key.bytes().to_vec()).collect();
            server.told = Some(instruction.sequence);
            return;
        };
        let acknowledged = daemon.change(store, now, |ring, now| {
            ring.acknowledge(lease, sequence, now)
        });
        match acknowledged {
            Some(Ok(())) => {
                let view = daemon.copy.ring().unwrap().view(now);
                let member = view
                    .members
                    .iter()
                    .find(|member| *member.name == *number.to_string());
                server.counts = member.is_some_and(|member| member.counts);
            }
            Some(Err(Refused::Fenced)) => server.lease = None,
            // The ring has gone back behind an instruction that it gave.
            Some(Err(_)) => self.went_back = true,
            // The acknowledgement is said again later.
            None => server.told = Some(sequence),
        }
    }

    fn step(&mut self) {
        match self.random.below(600) {
            0 if self.store.version > 0 || self.knowing() >= 2 => {
                let crashed = self.random.below(DAEMONS);
                self.daemons[crashed] = Daemon::start(self.daemons[crashed].id + 10, self.now);
                for server in &mut self.servers {
                    if server.daemon == crashed {
                        server.lease = None;
                    }
                }
            }
            1 => {
                let server = self.random.below(SERVERS);
                self.servers[server].daemon = self.random.below(DAEMONS);
                self.servers[server].lease = None;
            }
            2 if self.store.version > 0 && self.knowing() >= 2 => self.store.lose(),
            number if number < 300 => {
                let server = self.random.below(SERVERS);
                self.serve(server);
            }
            _ => self.now += Duration::from_millis(50),
        }
        // Every daemon looks once a second at least.
        for daemon in &mut self.daemons {
            if self.now >= daemon.looked + SECOND || self.random.below(10) == 0 {
                daemon.turn(&mut self.store, self.now);
            }
        }
        self.latest = self.latest.max(self.store.version);
        if let Some(ring) = self.daemons[0].copy.ring() {
            self.rotations = self.rotations.max(ring.view(self.now).rotations);
        }
    }

    /// Returns how many daemons know the latest version: a store that loses it gets it back from them.
    fn knowing(&self) -> usize {
        let latest = self.store.version;
        self.daemons
            .iter()
            .filter(|daemon| daemon.copy.version() == latest)
            .count()
    }

    /// Returns whether no counted server makes a ticket that another one cannot open, and the ring has
    /// never gone back.
    fn is_whole(&self) -> bool {
        if self.went_back {
            return false;
        }
        let counted = || self.servers.iter().filter(|server| server.counts);
        counted().all(|from| counted().all(|to| to.keys.contains(&from.keys[0])))
    }

    /// Runs a history. Returns whether it lost no ticket.
    fn run(&mut self) -> bool {
        (0..30_000).all(|_| {
            self.step();
            self.is_whole()
        })
    }
}

#[test]
fn no_history_of_several_daemons_loses_a_ticket() {
    let mut rotations = 0;
    for seed in 0..40 {
        let mut fleet = Fleet::new(seed);
        assert!(fleet.run(), "seed {seed}");
        rotations += fleet.rotations;
    }
    println!("{rotations} rotations");
    assert!(rotations > 1_000, "{rotations}");
}

#[test]
fn store_without_an_order_of_writes_loses_tickets() {
    let loses = |seed| {
        let mut fleet = Fleet::new(seed);
        fleet.store.takes_any = true;
        !fleet.run()
    };
    assert!((0..40).any(loses));
}

#[test]
fn first_ring_waits_until_others_could_have_given_theirs_back() {
    let mut store = Store::default();
    let mut daemon = Daemon::start(1, SECOND);
    daemon.turn(&mut store, SECOND);
    assert_eq!(store.version, 0);
    assert_eq!(
        daemon.copy.change(SECOND, |_, _| ()).err(),
        Some(NotNow::NotSeen)
    );
    daemon.turn(&mut store, SECOND + QUIET);
    assert_eq!(store.version, 1);
    // Nothing is changed for a while after a loss, and tickets sealed before it do not open after it.
    let now = 2 * SECOND + QUIET;
    let sealed = daemon.copy.ring().unwrap().seal(b"state", b"").unwrap().1;
    assert!(daemon.copy.ring().unwrap().open(&sealed, b"").is_ok());
    store = Store::default();
    daemon.turn(&mut store, now);
    assert_eq!(store.version, 1);
    assert!(daemon.copy.ring().unwrap().open(&sealed, b"").is_err());
    assert_eq!(
        daemon.copy.change(now, |_, _| ()).err(),
        Some(NotNow::NotSeen)
    );
    assert!(daemon.copy.change(now + QUIET, |_, _| ()).is_ok());
}

#[test]
fn state_of_a_later_version_is_not_replaced() {
    let mut copy = SharedRing::new("web", SETTINGS);
    let seen = Seen {
        now: SECOND,
        version: 7,
        leads: true,
        state: Some(b"\x02 of a later version"),
        ..Seen::default()
    };
    assert_eq!(copy.saw(&seen, SECOND), Shown::Unreadable);
    assert!(copy.mend(100 * SECOND).unwrap().is_none());
    assert_eq!(
        copy.change(100 * SECOND, |_, _| ()).err(),
        Some(NotNow::NotSeen)
    );
}

/// The store goes back to a state in which the last lease was not given yet.
#[test]
fn ring_that_went_back_gives_no_lease_again() {
    let now = 10 * SECOND;
    let mut store = Store::default();
    let mut daemon = Daemon::start(1, SECOND);
    daemon.turn(&mut store, SECOND);
    daemon.turn(&mut store, SECOND + QUIET);
    let (version, state) = (store.version, store.state.clone());
    let by = Attachment {
        owner: "owner".into(),
        daemon: 1,
    };
    let join = |name: &'static str| {
        let by = by.clone();
        move |ring: &mut Ring, now| ring.join(name, Style::List, &by, now).unwrap()
    };
    let lost = daemon.change(&mut store, now, join("lost")).unwrap();
    let mut other = Daemon::start(2, now);
    (store.version, store.state) = (version + 5, state);
    for daemon in [&mut daemon, &mut other] {
        daemon.turn(&mut store, now);
    }
    let given = daemon.change(&mut store, now, join("next")).unwrap();
    assert_ne!(given, lost);
    assert!(!daemon.copy.ring().unwrap().holds(lost));
    // Another daemon may give the same number, and its leases are others.
    let elsewhere = other.change(&mut store, now, |ring, now| {
        let by = Attachment {
            owner: "owner".into(),
            daemon: 2,
        };
        ring.join("elsewhere", Style::List, &by, now).unwrap()
    });
    assert_ne!(elsewhere.unwrap(), lost);
}
