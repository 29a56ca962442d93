//! The contract of the scripts, on Redis, on Valkey, and on the model of the simulation.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a failure ends the test, and its numbers are small"
)]

use tls_sessiond_store::{
    keeper::LIFE,
    layout::{Bucket, Name},
    script::{
        Answer, Claim, Criteria, ENTRIES_MAX, Expected, Head, Holder, Mode, NEWEST_MAX, Note,
        REVOCATIONS_MAX, Reason, Refused, Request, Revocation, Token,
    },
    seal::SealingKeys,
};
use tls_sessiond_types::{Role, Version};

#[path = "../shared/model.rs"]
#[allow(dead_code, reason = "the simulation uses the rest")]
mod model;
#[path = "../shared/random.rs"]
mod random;
mod refusals;
mod rings;
mod servers;
mod tickets;

use model::{Faults, Model};
use random::Random;
use servers::{RawServer, Server};

/// A store that a test can run requests on, and whose time and losses it makes.
trait Store {
    fn run(&mut self, request: &Request) -> Answer;
    /// Returns milliseconds of the store's clock.
    fn now(&mut self) -> u64;
    fn lapse(&mut self, bucket: Bucket, holder: Holder);
    fn lose_beat(&mut self, bucket: Bucket, holder: Holder);
    fn lose_entry(&mut self, name: Name);
    fn lose_list(&mut self, bucket: Bucket);
    /// Lets a moment pass.
    fn tick(&mut self);
}

impl Store for Model {
    fn run(&mut self, request: &Request) -> Answer {
        Self::run(self, request)
    }

    fn now(&mut self) -> u64 {
        self.now
    }

    fn lapse(&mut self, bucket: Bucket, holder: Holder) {
        Self::lapse(self, bucket, holder);
    }

    fn lose_beat(&mut self, bucket: Bucket, holder: Holder) {
        Self::lose_beat(self, bucket, holder);
    }

    fn lose_entry(&mut self, name: Name) {
        Self::lose_entry(self, name);
    }

    fn lose_list(&mut self, bucket: Bucket) {
        Self::lose_list(self, bucket);
    }

    fn tick(&mut self) {
        self.now += 1;
    }
}

/// Runs a test on every kind of store.
fn on_every_store(test: impl Fn(&mut dyn Store)) {
    test(&mut Model::new(1_000_000, Faults::default()));
    for server in Server::ALL {
        println!("{server:?}");
        test(&mut RawServer::start(server));
    }
}

/// Long enough for every test.
const LONG: u64 = 3_600_000;

fn keys() -> SealingKeys {
    SealingKeys::read(&"ab".repeat(32)).unwrap()
}

fn name(id: &[u8]) -> Name {
    keys().names().name(b"scope", Role::Server, id)
}

/// Returns a name of the same bucket as `like`.
fn beside(like: Name, number: usize) -> Name {
    (0_u64..)
        .map(|number| name(&number.to_be_bytes()))
        .filter(|name| name.bucket() == like.bucket() && *name != like)
        .nth(number)
        .unwrap()
}

fn head(single_use: bool) -> Head {
    Head {
        single_use,
        version: if single_use {
            Version::Tls13
        } else {
            Version::Tls12
        },
        cipher_suite: 0x1301,
        fit: keys().names().fit("rustls", b"", "a.test"),
    }
}

fn criteria() -> Criteria {
    Criteria {
        fit: head(true).fit,
        versions: vec![Version::Tls12, Version::Tls13],
        cipher_suite: None,
    }
}

/// A daemon in the bucket of one name.
struct Daemon {
    claim: Claim,
    bucket: Bucket,
}

impl Daemon {
    fn start(store: &mut dyn Store, number: u8, bucket: Bucket) -> Self {
        let holder = Holder([number; 8]);
        let beat = Request::Beat {
            bucket,
            holder,
            life: LONG,
            expected: Expected::Any,
            valid_until: u64::MAX >> 11,
        };
        let Answer::Beaten {
            deadline, revision, ..
        } = store.run(&beat)
        else {
            panic!("no heartbeat")
        };
        let claim = Claim {
            holder,
            deadline,
            revision,
        };
        Self { claim, bucket }
    }

    fn put(&self, name: Name, token: u32, head: Head) -> Request {
        Request::Put {
            name,
            claim: self.claim,
            token: Token(token),
            head,
            sealed: b"sealed \0\r\n\xff".to_vec(),
            valid_until: u64::MAX >> 11,
            life: LONG,
            pool: None,
        }
    }

    fn find(&self, name: Name, token: u32, mode: Mode) -> Request {
        Request::Find {
            name,
            claim: self.claim,
            token: Token(token),
            mode,
            valid_until: u64::MAX >> 11,
        }
    }

    fn release(&self, name: Name, token: u32) -> Request {
        Request::Release {
            holder: self.claim.holder,
            holds: vec![(name, Token(token))],
        }
    }
}

fn found(head: Head, holds: u8) -> Answer {
    Answer::Found {
        head,
        holds,
        sealed: b"sealed \0\r\n\xff".to_vec(),
    }
}

fn remove(name: Name, reason: Option<Reason>) -> Request {
    Request::Remove {
        entries: vec![(name, reason.map(Note::from))],
    }
}

#[test]
fn single_use_session_is_taken_once_and_only_by_what_fits() {
    on_every_store(|store| {
        let (name, single) = (name(b"one"), head(true));
        let one = Daemon::start(store, 1, name.bucket());
        let two = Daemon::start(store, 2, name.bucket());
        let lookup = |criteria| two.find(name, 9, Mode::Lookup(criteria));
        assert_eq!(store.run(&lookup(criteria())), Answer::None);
        assert_eq!(store.run(&one.put(name, 1, single)), Answer::Stored);
        assert_eq!(
            store.run(&one.put(name, 1, single)),
            Answer::Stored,
            "the same put again"
        );
        assert_eq!(store.run(&two.put(name, 1, single)), Answer::Taken);
        assert_eq!(store.run(&one.put(name, 2, single)), Answer::Taken);
        let other_fit = keys().names().fit("rustls", b"", "b.test");
        for wrong in [
            Criteria {
                fit: other_fit,
                ..criteria()
            },
            Criteria {
                versions: vec![Version::Tls12],
                ..criteria()
            },
            Criteria {
                versions: Vec::new(),
                ..criteria()
            },
            Criteria {
                cipher_suite: Some(0x1302),
                ..criteria()
            },
        ] {
            assert_eq!(store.run(&lookup(wrong.clone())), Answer::Scope);
            let resume = two.find(name, 9, Mode::Resume(wrong));
            assert_eq!(store.run(&resume), Answer::Scope);
        }
        assert_eq!(store.run(&two.find(name, 9, Mode::Peek)), found(single, 1));
        let right = Criteria {
            cipher_suite: Some(0x1301),
            ..criteria()
        };
        assert_eq!(store.run(&lookup(right)), found(single, 1));
        assert_eq!(store.run(&lookup(criteria())), Answer::None);
        assert_eq!(
            store.run(&one.release(name, 1)),
            Answer::Done(0),
            "a release makes no session"
        );
        assert_eq!(store.run(&two.find(name, 9, Mode::Peek)), Answer::None);
    });
}

#[test]
fn session_is_found_only_while_every_holder_lives() {
    on_every_store(|store| {
        let (name, shared) = (name(b"one"), head(false));
        let one = Daemon::start(store, 1, name.bucket());
        let two = Daemon::start(store, 2, name.bucket());
        let three = Daemon::start(store, 3, name.bucket());
        let resume = |by: &Daemon, token| by.find(name, token, Mode::Resume(criteria()));
        assert_eq!(store.run(&one.put(name, 1, shared)), Answer::Stored);
        assert_eq!(store.run(&resume(&two, 1)), found(shared, 1));
        assert_eq!(
            store.run(&resume(&two, 1)),
            found(shared, 2),
            "the same hold again adds none"
        );
        assert_eq!(store.run(&resume(&two, 2)), found(shared, 2));
        assert_eq!(
            store.run(&three.find(name, 1, Mode::Lookup(criteria()))),
            found(shared, 3)
        );
        store.lapse(name.bucket(), two.claim.holder);
        for mode in [
            Mode::Resume(criteria()),
            Mode::Lookup(criteria()),
            Mode::Join,
            Mode::Peek,
        ] {
            assert_eq!(store.run(&three.find(name, 1, mode)), Answer::HolderLost);
        }
        // The second daemon was only cut off. It comes back, and closes what it held.
        let two = Daemon::start(store, 2, name.bucket());
        assert_eq!(store.run(&two.release(name, 1)), Answer::Done(1));
        assert_eq!(
            store.run(&two.release(name, 1)),
            Answer::Done(0),
            "a hold ends once"
        );
        assert_eq!(store.run(&two.release(name, 2)), Answer::Done(1));
        store.lose_beat(name.bucket(), two.claim.holder);
        assert_eq!(
            store.run(&three.find(name, 1, Mode::Join)),
            found(shared, 1)
        );
        assert_eq!(store.run(&one.release(name, 1)), Answer::Done(1));
        assert_eq!(store.run(&three.release(name, 1)), Answer::Done(1));
        for daemon in [&one, &three] {
            store.lapse(name.bucket(), daemon.claim.holder);
        }
        let four = Daemon::start(store, 4, name.bucket());
        assert_eq!(
            store.run(&four.find(name, 1, Mode::Lookup(criteria()))),
            found(shared, 0),
            "all were closed, so it is found after all have gone"
        );
    });
}

/// A model that asks whether a heartbeat is there, and not for its value, breaks the contract.
#[test]
#[should_panic(expected = "Find")]
fn presence_of_a_heartbeat_is_not_enough() {
    let faults = Faults {
        presence_instead_of_value: true,
        ..Faults::default()
    };
    heartbeats_count(&mut Model::new(1_000_000, faults));
}

#[test]
fn daemon_without_its_heartbeat_finds_and_stores_nothing() {
    on_every_store(heartbeats_count);
}

fn heartbeats_count(store: &mut dyn Store) {
    let (name, single) = (name(b"one"), head(true));
    let one = Daemon::start(store, 1, name.bucket());
    let two = Daemon::start(store, 2, name.bucket());
    assert_eq!(store.run(&one.put(name, 1, single)), Answer::Stored);
    let other = beside(name, 0);
    let requests = |by: &Daemon| {
        [
            by.find(name, 2, Mode::Lookup(criteria())),
            by.find(name, 2, Mode::Join),
            by.find(name, 2, Mode::Peek),
            by.put(other, 2, single),
        ]
    };
    let every = |store: &mut dyn Store, by: &Daemon, refused| {
        for request in requests(by) {
            assert_eq!(store.run(&request), Answer::Refused(refused), "{request:?}");
        }
    };
    // An older heartbeat: the store was restored from a file.
    let newer = Daemon {
        claim: Claim {
            deadline: two.claim.deadline + 1,
            ..two.claim
        },
        ..two
    };
    every(store, &newer, Refused::Lost);
    store.lose_beat(two.bucket, two.claim.holder);
    every(store, &two, Refused::Lost);
    let beat = |expected, valid_until| Request::Beat {
        bucket: two.bucket,
        holder: two.claim.holder,
        life: LIFE,
        expected,
        valid_until,
    };
    let now = store.now();
    let lost = store.run(&beat(Expected::Deadline(two.claim.deadline), now + 60_000));
    assert!(matches!(lost, Answer::BeatLost { .. }), "{lost:?}");
    every(store, &two, Refused::Lost);
    for late in [0, now - 1] {
        let overdue = store.run(&beat(Expected::Any, late));
        assert!(
            matches!(overdue, Answer::Overdue { now: Some(told), revision: Some(0) } if told >= now),
            "{overdue:?}"
        );
    }
    let beaten = store.run(&beat(Expected::Any, now + 60_000));
    let Answer::Beaten { now, deadline, .. } = beaten else {
        panic!("{beaten:?}")
    };
    assert_eq!(deadline, now + LIFE);
    let two = Daemon {
        claim: Claim {
            deadline,
            ..two.claim
        },
        ..two
    };
    store.lapse(two.bucket, two.claim.holder);
    every(store, &two, Refused::Lost);
    let lapsed = Daemon {
        claim: Claim {
            deadline: 1,
            ..two.claim
        },
        ..two
    };
    every(store, &lapsed, Refused::Late);
    let revise = |revision| Request::Revise {
        bucket: one.bucket,
        revision,
    };
    assert_eq!(store.run(&revise(7)), Answer::Done(1));
    assert_eq!(store.run(&revise(7)), Answer::Done(0));
    assert_eq!(store.run(&revise(3)), Answer::Done(0));
    every(store, &one, Refused::Revised(7));
    let knowing = Daemon {
        claim: Claim {
            revision: 7,
            ..one.claim
        },
        ..one
    };
    assert_eq!(
        store.run(&knowing.find(name, 2, Mode::Lookup(criteria()))),
        found(single, 1),
        "nothing was taken meanwhile"
    );
    let resign = Request::Resign {
        bucket: knowing.bucket,
        holder: knowing.claim.holder,
        server: "process 1".into(),
    };
    assert_eq!(store.run(&resign), Answer::Done(1));
    assert_eq!(store.run(&resign), Answer::Done(0));
    every(store, &knowing, Refused::Lost);
}

#[test]
fn removed_session_leaves_a_note_that_blocks_a_late_put() {
    on_every_store(|store| {
        let (name, single) = (name(b"one"), head(true));
        let one = Daemon::start(store, 1, name.bucket());
        let find = one.find(name, 2, Mode::Lookup(criteria()));
        assert_eq!(store.run(&one.put(name, 1, single)), Answer::Stored);
        let before = store.now();
        assert_eq!(
            store.run(&remove(name, Some(Reason::Unclosed))),
            Answer::Done(1)
        );
        for request in [&find, &one.put(name, 1, single), &one.put(name, 2, single)] {
            let gone = store.run(request);
            assert!(
                matches!(gone, Answer::Gone { reason: Some(Reason::Unclosed), at } if at >= before),
                "{gone:?}"
            );
        }
        assert_eq!(
            store.run(&remove(name, Some(Reason::Removed))),
            Answer::Done(0)
        );
        assert!(
            matches!(
                store.run(&find),
                Answer::Gone {
                    reason: Some(Reason::Unclosed),
                    ..
                }
            ),
            "the first reason stays"
        );
        // A removal may come before its put, which the store runs late.
        let early = beside(name, 0);
        assert_eq!(
            store.run(&remove(early, Some(Reason::Withdrawn))),
            Answer::Done(0)
        );
        assert!(matches!(
            store.run(&one.put(early, 1, single)),
            Answer::Gone { .. }
        ));
        // Without a note the validity refuses it.
        let third = beside(name, 1);
        let Request::Put {
            claim,
            token,
            head,
            sealed,
            life,
            ..
        } = one.put(third, 1, single)
        else {
            unreachable!()
        };
        let put = |valid_until| Request::Put {
            name: third,
            claim,
            token,
            head,
            sealed: sealed.clone(),
            valid_until,
            life,
            pool: None,
        };
        let late = put(store.now() - 1);
        assert_eq!(
            store.run(&late),
            Answer::Overdue {
                now: None,
                revision: None
            }
        );
        let timely = put(store.now() + 60_000);
        assert_eq!(store.run(&timely), Answer::Stored);
        assert_eq!(store.run(&remove(third, None)), Answer::Done(1));
        assert_eq!(store.run(&timely), Answer::Stored, "no note, no block");
        store.lose_entry(third);
        assert_eq!(
            store.run(&one.find(third, 2, Mode::Lookup(criteria()))),
            Answer::None
        );
    });
}

#[test]
fn holds_of_one_session_have_a_limit() {
    on_every_store(|store| {
        let (name, shared) = (name(b"one"), head(false));
        let one = Daemon::start(store, 1, name.bucket());
        assert_eq!(store.run(&one.put(name, 0, shared)), Answer::Stored);
        for token in 1..255 {
            let joined = store.run(&one.find(name, token, Mode::Join));
            assert_eq!(joined, found(shared, u8::try_from(token).unwrap()));
        }
        assert_eq!(store.run(&one.find(name, 255, Mode::Join)), Answer::Full);
        assert_eq!(
            store.run(&one.find(name, 0, Mode::Join)),
            found(shared, 255)
        );
        assert_eq!(store.run(&one.release(name, 100)), Answer::Done(1));
        assert_eq!(
            store.run(&one.find(name, 255, Mode::Join)),
            found(shared, 254)
        );
    });
}

#[test]
fn batches_remove_and_release_each_entry_for_itself() {
    on_every_store(|store| {
        let first = name(b"one");
        let one = Daemon::start(store, 1, first.bucket());
        let names: Vec<_> = (0..64).map(|number| beside(first, number)).collect();
        for (place, name) in names.iter().enumerate() {
            if place % 2 == 0 {
                let put = one.put(*name, 1, head(false));
                assert_eq!(store.run(&put), Answer::Stored);
            }
        }
        let release = Request::Release {
            holder: one.claim.holder,
            holds: names.iter().map(|name| (*name, Token(1))).collect(),
        };
        assert_eq!(store.run(&release), Answer::Done(32));
        assert_eq!(store.run(&release), Answer::Done(0));
        let entries = names.iter().enumerate().map(|(place, name)| {
            let note = Some(Reason::Revoked.into()).filter(|_: &Note| place % 4 == 0);
            (*name, note)
        });
        let remove = Request::Remove {
            entries: entries.collect(),
        };
        assert_eq!(store.run(&remove), Answer::Done(32));
        for (place, name) in names.iter().enumerate() {
            let answer = store.run(&one.find(*name, 2, Mode::Peek));
            assert_eq!(
                matches!(answer, Answer::Gone { .. }),
                place % 4 == 0,
                "{place}: {answer:?}"
            );
        }
    });
}

#[test]
fn pool_has_the_newest_sessions_and_forgets_those_that_are_gone() {
    on_every_store(|store| {
        let keys = keys();
        let pool = keys.names().pool(b"scope", "openssl", b"", "a.test");
        let one = Daemon::start(store, 1, pool.bucket());
        let name = |number: u8| {
            let mut id = [number; 16];
            pool.mark(&mut id);
            keys.names().name(b"scope", Role::Client, &id)
        };
        let newest = |gone: Vec<Name>| Request::Newest { pool, gone };
        assert_eq!(store.run(&newest(Vec::new())), Answer::Names(Vec::new()));
        for number in 0..70 {
            let Request::Put {
                name,
                claim,
                token,
                head,
                sealed,
                valid_until,
                life,
                ..
            } = one.put(name(number), 1, head(true))
            else {
                unreachable!()
            };
            let put = Request::Put {
                name,
                claim,
                token,
                head,
                sealed,
                valid_until,
                life,
                pool: Some(pool),
            };
            assert_eq!(store.run(&put), Answer::Stored);
        }
        let Answer::Names(names) = store.run(&newest(Vec::new())) else {
            panic!("no names")
        };
        assert_eq!(names.len(), NEWEST_MAX);
        assert!(names.iter().all(|name| name.bucket() == pool.bucket()));
        // A pool has 64 sessions, so all are gone after four times sixteen.
        let mut gone = names;
        for round in 2..=5 {
            let Answer::Names(next) = store.run(&newest(gone.clone())) else {
                panic!("no names")
            };
            assert!(next.iter().all(|name| !gone.contains(name)));
            assert_eq!(next.is_empty(), round == 5, "{round}: {next:?}");
            gone = next;
        }
    });
}

#[test]
fn revocations_are_added_once_and_their_version_only_rises() {
    on_every_store(|store| {
        let one = |number: u8, ends: u64| Revocation {
            id: [number; 16],
            ends,
            sealed: b"sealed: \0\r\n\xff".to_vec(),
        };
        let far = u64::MAX >> 11;
        let read = |store: &mut dyn Store| match store.run(&Request::Revocations) {
            Answer::Revocations {
                revision,
                mut entries,
            } => {
                entries.sort_by_key(|entry| entry.id);
                (revision, entries)
            }
            other => panic!("{other:?}"),
        };
        let revoke = |store: &mut dyn Store, entries: Vec<Revocation>, known| match store.run(
            &Request::Revoke {
                entries,
                known,
                most: REVOCATIONS_MAX,
            },
        ) {
            Answer::Revocations { revision, .. } => revision,
            other => panic!("{other:?}"),
        };
        assert_eq!(read(store), (0, Vec::new()));
        let first = revoke(store, vec![one(1, far)], 0);
        assert!(first > 0);
        assert_eq!(revoke(store, vec![one(1, far)], 0), first, "once");
        assert_eq!(
            revoke(store, vec![one(1, far - 1)], 0),
            first,
            "one that ends earlier replaces none"
        );
        let second = revoke(store, vec![one(2, far), one(3, 1)], 0);
        assert!(second > first);
        // One that has ended is forgotten with the next.
        let third = revoke(store, vec![one(4, far)], second + 1_000_000);
        assert!(third >= second + 1_000_000);
        assert_eq!(
            read(store),
            (third, vec![one(1, far), one(2, far), one(4, far)])
        );
        let many: Vec<_> = (0..REVOCATIONS_MAX)
            .map(|number| Revocation {
                id: [number.to_be_bytes(), [9; 8]].concat().try_into().unwrap(),
                ..one(0, far)
            })
            .collect();
        let mut answers = many
            .chunks(ENTRIES_MAX)
            .map(|entries| {
                store.run(&Request::Revoke {
                    entries: entries.to_vec(),
                    known: 0,
                    most: REVOCATIONS_MAX,
                })
            })
            .collect::<Vec<_>>();
        assert_eq!(answers.pop(), Some(Answer::TooMany));
        assert!(!answers.contains(&Answer::TooMany));
    });
}

/// Makes random requests of three daemons for a few sessions.
fn random_request(random: &mut Random, daemons: &[Daemon], names: &[Name]) -> Request {
    let by = &daemons[random.below(daemons.len() as u64) as usize];
    let name = names[random.below(names.len() as u64) as usize];
    let token = random.below(3) as u32;
    let criteria = Criteria {
        fit: if random.once_in(6) {
            keys().names().fit("openssl", b"", "a.test")
        } else {
            criteria().fit
        },
        versions: if random.once_in(4) {
            vec![Version::Tls13]
        } else {
            criteria().versions
        },
        cipher_suite: Some(0x1302).filter(|_| random.once_in(8)),
    };
    let reason = Some(Reason::Unclosed).filter(|_| random.once_in(2));
    match random.below(13) {
        0..=2 => by.put(name, token, head(random.once_in(2))),
        3 | 4 => by.find(name, token, Mode::Lookup(criteria)),
        5 | 6 => by.find(name, token, Mode::Resume(criteria)),
        7 => by.find(name, token, Mode::Join),
        8 => by.find(name, token, Mode::Peek),
        9 => remove(name, reason),
        10 => by.release(name, token),
        11 => by.ticket(name, Holder([random.below(4) as u8; 8]), random.once_in(2)),
        _ => Request::Revise {
            bucket: by.bucket,
            revision: random.below(2) * random.below(4),
        },
    }
}

/// Forgets times, which the two sides do not share.
fn without_times(answer: Answer) -> Answer {
    match answer {
        Answer::Gone { reason, .. } => Answer::Gone { reason, at: 0 },
        other => other,
    }
}

#[test]
fn model_and_servers_answer_random_requests_alike() {
    let first = name(b"one");
    let names: Vec<_> = (0..4).map(|number| beside(first, number)).collect();
    for server in Server::ALL {
        let mut server = RawServer::start(server);
        for seed in 0..60 {
            let mut random = Random::new(seed);
            server.empty();
            let mut model = Model::new(server.now(), Faults::default());
            let start = |store: &mut dyn Store| -> Vec<_> {
                (1..=3)
                    .map(|number| Daemon::start(store, number, first.bucket()))
                    .collect()
            };
            let daemons = [start(&mut model), start(&mut server)];
            for step in 0..80 {
                if random.once_in(25) {
                    let holder = daemons[0][random.below(3) as usize].claim.holder;
                    model.lapse(first.bucket(), holder);
                    server.lapse(first.bucket(), holder);
                }
                let mut other = Random::new(seed * 1_000 + step);
                let expected = model.run(&random_request(&mut other, &daemons[0], &names));
                let mut other = Random::new(seed * 1_000 + step);
                let request = random_request(&mut other, &daemons[1], &names);
                assert_eq!(
                    without_times(server.run(&request)),
                    without_times(expected),
                    "seed {seed}, step {step}: {request:?}"
                );
            }
        }
    }
}
