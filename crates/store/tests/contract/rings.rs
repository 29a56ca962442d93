//! The contract of the script for rings of ticket keys, on Redis and on Valkey.

use tls_sessiond_store::{
    layout::RingName,
    script::{Answer, Holder, MARK_BYTES, Request, RingAnswer, RingVersion, RingWrite},
};

use super::{
    LONG, Store, keys,
    servers::{RawServer, Server},
};

const ONE: Holder = Holder([1; 8]);
const TWO: Holder = Holder([2; 8]);

fn ring() -> RingName {
    keys().names().ring("web")
}

/// What a daemon knows of the ring.
#[derive(Clone, Default)]
struct Known {
    version: u64,
    sealed: Vec<u8>,
}

impl Known {
    fn look(&self, daemon: Holder, write: Option<RingWrite>) -> Request {
        Request::Ring {
            ring: ring(),
            daemon,
            lease: LONG,
            known: self.version(),
            write,
        }
    }

    fn version(&self) -> RingVersion {
        RingVersion {
            number: self.version,
            mark: self.sealed.iter().take(MARK_BYTES).copied().collect(),
        }
    }

    fn spend(&self, handle: [u8; 16], spends: bool) -> Request {
        Request::Spend {
            ring: ring(),
            known: self.version(),
            handle,
            spends,
            life: LONG,
        }
    }

    /// Returns the write of the next version.
    fn next(&self, sealed: &[u8]) -> RingWrite {
        RingWrite {
            version: self.version + 1,
            sealed: sealed.to_vec(),
            restores: false,
        }
    }
}

fn run(store: &mut RawServer, request: &Request) -> RingAnswer {
    match store.run(request) {
        Answer::Ring(answer) => answer,
        other => panic!("{other:?}"),
    }
}

fn on_every_server(test: impl Fn(&mut RawServer)) {
    for server in Server::ALL {
        println!("{server:?}");
        test(&mut RawServer::start(server));
    }
}

#[test]
fn one_daemon_rotates_until_its_lease_ends() {
    on_every_server(|store| {
        let known = Known::default();
        let one = run(store, &known.look(ONE, None));
        assert!(one.leads && one.version == 0 && one.sealed.is_none());
        assert_eq!(one.alive, [ONE]);
        let two = run(store, &known.look(TWO, None));
        assert!(!two.leads);
        assert_eq!(two.alive.len(), 2);
        assert!(run(store, &known.look(ONE, None)).leads);
        store.lapse_ring(ring(), ONE);
        let two = run(store, &known.look(TWO, None));
        assert!(two.leads);
        assert_eq!(two.alive, [TWO]);
        assert!(!run(store, &known.look(ONE, None)).leads);
    });
}

#[test]
fn of_two_writes_after_one_version_the_second_is_refused() {
    on_every_server(|store| {
        let none = Known::default();
        let first = none.next(b"the first value \0\xff");
        let written = run(store, &none.look(ONE, Some(first.clone())));
        assert!(written.is_written && written.version == 1 && written.sealed.is_none());
        let refused = run(store, &none.look(TWO, Some(none.next(b"another value"))));
        assert!(!refused.is_written);
        assert_eq!(refused.sealed.as_ref(), Some(&first.sealed));
        let known = Known {
            version: 1,
            sealed: first.sealed,
        };
        assert!(run(store, &known.look(TWO, None)).sealed.is_none());
        let second = known.next(b"the second value");
        assert!(run(store, &known.look(TWO, Some(second.clone()))).is_written);
        let behind = run(
            store,
            &known.look(ONE, Some(known.next(b"too late, as it is"))),
        );
        assert!(!behind.is_written);
        assert_eq!(
            (behind.version, behind.sealed),
            (2, Some(second.sealed.clone()))
        );
        // The first daemon has looked, and knows the first version.
        assert_eq!(behind.least, 1);
        let later = Known {
            version: 2,
            sealed: second.sealed,
        };
        assert_eq!(run(store, &later.look(ONE, None)).least, 1);
        assert_eq!(run(store, &later.look(TWO, None)).least, 2);
    });
}

#[test]
fn values_of_one_version_are_told_apart() {
    on_every_server(|store| {
        let none = Known::default();
        run(
            store,
            &none.look(ONE, Some(none.next(b"a value of this store"))),
        );
        let fork = Known {
            version: 1,
            sealed: b"a value of another one".to_vec(),
        };
        let seen = run(
            store,
            &fork.look(TWO, Some(fork.next(b"the next value, forked"))),
        );
        assert!(!seen.is_written);
        assert_eq!(seen.sealed.as_deref(), Some(&b"a value of this store"[..]));
    });
}

#[test]
fn lost_ring_is_given_back_and_the_later_version_wins() {
    on_every_server(|store| {
        let back = |version: u64, sealed: &[u8]| {
            let known = Known {
                version,
                sealed: sealed.to_vec(),
            };
            let write = RingWrite {
                version,
                sealed: sealed.to_vec(),
                restores: true,
            };
            known.look(ONE, Some(write))
        };
        let (old, new) = (&b"the value of version 4"[..], &b"a value of version 5"[..]);
        assert!(run(store, &back(4, old)).is_written);
        assert!(run(store, &back(5, new)).is_written);
        let late = run(store, &back(4, old));
        assert!(!late.is_written);
        assert_eq!((late.version, late.sealed.as_deref()), (5, Some(new)));
        store.empty();
        assert_eq!(run(store, &Known::default().look(TWO, None)).version, 0);
    });
}

#[test]
fn ticket_is_spent_once_and_only_for_the_ring_that_the_store_has() {
    on_every_server(|store| {
        let none = Known::default();
        assert_eq!(store.run(&none.spend([1; 16], true)), Answer::Stored);
        let first = none.next(b"the first value \0\xff");
        run(store, &none.look(ONE, Some(first.clone())));
        let known = Known {
            version: 1,
            sealed: first.sealed,
        };
        assert_eq!(store.run(&none.spend([2; 16], true)), Answer::Behind);
        assert_eq!(store.run(&known.spend([2; 16], false)), Answer::Stored);
        assert_eq!(store.run(&known.spend([2; 16], true)), Answer::Stored);
        assert_eq!(store.run(&known.spend([2; 16], true)), Answer::Taken);
        assert_eq!(store.run(&known.spend([2; 16], false)), Answer::Taken);
        // Without the list of spent tickets, the ring is gone too.
        store.lose_spent(ring());
        assert_eq!(store.run(&known.spend([3; 16], true)), Answer::Behind);
        assert_eq!(run(store, &known.look(ONE, None)).version, 0);
        store.empty();
        assert_eq!(store.run(&known.spend([2; 16], true)), Answer::Behind);
    });
}
