//! The contract of sealed tickets: what the store knows of a ticket's session.

use tls_sessiond_store::{
    layout::Name,
    script::{Answer, Holder, Note, Reason, Refused, Request},
};

use super::{Daemon, LONG, name, on_every_store};

impl Daemon {
    pub(super) fn ticket(&self, name: Name, sealer: Holder, spends: bool) -> Request {
        Request::Ticket {
            name,
            claim: self.claim,
            sealer,
            server: "process 1".into(),
            spends,
            life: LONG,
            valid_until: u64::MAX >> 11,
        }
    }
}

fn is_gone(answer: &Answer, why: Reason) -> bool {
    matches!(answer, Answer::Gone { reason: Some(reason), .. } if *reason == why)
}

#[test]
fn ticket_is_good_until_it_is_spent_or_removed() {
    on_every_store(|store| {
        let (single, shared) = (name(b"single"), name(b"shared"));
        let one = Daemon::start(store, 1, single.bucket());
        let sealer = one.claim.holder;
        assert_eq!(store.run(&one.ticket(single, sealer, false)), Answer::Good);
        assert_eq!(store.run(&one.ticket(single, sealer, true)), Answer::Good);
        let again = store.run(&one.ticket(single, sealer, true));
        assert!(is_gone(&again, Reason::Spent), "{again:?}");
        let one = Daemon::start(store, 1, shared.bucket());
        assert_eq!(store.run(&one.ticket(shared, sealer, false)), Answer::Good);
        let note = Note {
            reason: Reason::Unclosed,
            ticket_life: Some(LONG),
        };
        let entries = vec![(shared, Some(note))];
        store.run(&Request::Remove { entries });
        let gone = store.run(&one.ticket(shared, sealer, false));
        assert!(is_gone(&gone, Reason::Unclosed), "{gone:?}");
    });
}

#[test]
fn ticket_of_a_daemon_that_died_is_not_good_and_of_one_that_stopped_is() {
    on_every_store(|store| {
        let name = name(b"one");
        let died = Daemon::start(store, 1, name.bucket());
        let stopped = Daemon::start(store, 2, name.bucket());
        let asks = Daemon::start(store, 3, name.bucket());
        let resign = Request::Resign {
            bucket: name.bucket(),
            holder: stopped.claim.holder,
            server: "process 1".into(),
        };
        assert_eq!(store.run(&resign), Answer::Done(1));
        store.lapse(name.bucket(), died.claim.holder);
        let ask = |by: &Daemon, sealer: &Daemon| by.ticket(name, sealer.claim.holder, false);
        assert_eq!(store.run(&ask(&asks, &died)), Answer::HolderLost);
        assert_eq!(store.run(&ask(&asks, &stopped)), Answer::Good);
        // A store that was restarted is another process, and may be older than what was told to it.
        let mut restarted = ask(&asks, &stopped);
        if let Request::Ticket { server, .. } = &mut restarted {
            *server = "process 2".into();
        }
        assert_eq!(store.run(&restarted), Answer::HolderLost);
        // A heartbeat that is not there any more cannot be given up well.
        store.lose_beat(name.bucket(), died.claim.holder);
        let resign = Request::Resign {
            bucket: name.bucket(),
            holder: died.claim.holder,
            server: "process 1".into(),
        };
        assert_eq!(store.run(&resign), Answer::Done(0));
        assert_eq!(store.run(&ask(&asks, &died)), Answer::HolderLost);
        // A daemon without its own heartbeat, or without the last revocations, is told nothing.
        store.lose_beat(name.bucket(), asks.claim.holder);
        assert_eq!(
            store.run(&ask(&asks, &stopped)),
            Answer::Refused(Refused::Lost)
        );
        let asks = Daemon::start(store, 3, name.bucket());
        let revise = Request::Revise {
            bucket: name.bucket(),
            revision: 7,
        };
        store.run(&revise);
        assert_eq!(
            store.run(&ask(&asks, &stopped)),
            Answer::Refused(Refused::Revised(7))
        );
    });
}

/// A note that lasts longer is kept, whichever comes first: several tickets may have one session.
#[test]
fn session_is_on_the_list_for_the_longest_of_its_notes() {
    on_every_store(|store| {
        let name = name(b"one");
        let one = Daemon::start(store, 1, name.bucket());
        let put = |life| Request::Remove {
            entries: vec![(
                name,
                Some(Note {
                    reason: Reason::Removed,
                    ticket_life: Some(life),
                }),
            )],
        };
        assert_eq!(store.run(&put(1)), Answer::Done(1));
        assert_eq!(store.run(&put(LONG)), Answer::Done(0));
        assert_eq!(store.run(&put(1)), Answer::Done(0));
        // What is removed as a stored session is another session.
        store.run(&super::remove(name, Some(Reason::Unclosed)));
        let start = store.now();
        while store.now() < start + 3 {
            store.tick();
        }
        let gone = store.run(&one.ticket(name, one.claim.holder, false));
        assert!(is_gone(&gone, Reason::Removed), "{gone:?}");
    });
}

/// A store that evicts the list has lost which tickets are bad.
#[test]
fn no_ticket_is_good_after_the_list_was_lost() {
    on_every_store(|store| {
        let (spent, other) = (name(b"one"), super::beside(name(b"one"), 0));
        let one = Daemon::start(store, 1, spent.bucket());
        let sealer = one.claim.holder;
        assert_eq!(store.run(&one.ticket(spent, sealer, true)), Answer::Good);
        store.lose_list(spent.bucket());
        let resign = Request::Resign {
            bucket: spent.bucket(),
            holder: sealer,
            server: "process 1".into(),
        };
        assert_eq!(store.run(&resign), Answer::Done(0));
        for name in [spent, other] {
            let answer = store.run(&one.ticket(name, sealer, false));
            assert_eq!(answer, Answer::Refused(Refused::Lost));
        }
        let again = Daemon::start(store, 2, spent.bucket());
        let answer = store.run(&again.ticket(spent, sealer, false));
        assert_eq!(answer, Answer::HolderLost);
        let holder = again.claim.holder;
        assert_eq!(store.run(&again.ticket(other, holder, true)), Answer::Good);
    });
}
