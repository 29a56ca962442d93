//! What only servers can show: memory that is full, files, foreign values, and what a dump has.

use tls_sessiond_store::{
    layout::Layout,
    script::{Answer, Expected, Head, Mode, Reason, Refused, Request, Token},
};
use tls_sessiond_types::Role;

use crate::{
    Daemon, LONG, Store, beside, criteria, found, head, keys, name, remove,
    servers::{self, RawServer, Server},
};

#[test]
fn full_server_refuses_puts_and_goes_on_with_the_rest() {
    for server in Server::ALL {
        let mut server = RawServer::start(server);
        let (name, other) = (name(b"one"), beside(name(b"one"), 0));
        let one = Daemon::start(&mut server, 1, name.bucket());
        assert_eq!(server.run(&one.put(name, 1, head(true))), Answer::Stored);
        assert_eq!(server.run(&one.put(other, 1, head(false))), Answer::Stored);
        server.configure("maxmemory", "1");
        let refused = server.try_run(&one.put(beside(name, 1), 1, head(true)));
        assert_eq!(refused.err().as_deref(), Some("OOM"));
        let beat = Request::Beat {
            bucket: one.bucket,
            holder: one.claim.holder,
            life: LONG,
            expected: Expected::Deadline(one.claim.deadline),
            valid_until: u64::MAX >> 11,
        };
        assert!(matches!(server.run(&beat), Answer::Beaten { .. }));
        let take = one.find(name, 2, Mode::Resume(criteria()));
        assert_eq!(server.run(&take), found(head(true), 1));
        let hold = one.find(other, 2, Mode::Resume(criteria()));
        assert_eq!(server.run(&hold), found(head(false), 1));
        assert_eq!(server.run(&one.release(other, 2)), Answer::Done(1));
        let remove = remove(other, Some(Reason::Unclosed));
        assert_eq!(server.run(&remove), Answer::Done(1));
        assert!(matches!(
            server.run(&one.find(other, 3, Mode::Peek)),
            Answer::Gone { .. }
        ));
    }
}

#[test]
fn heartbeats_reach_no_file_and_scripts_survive_a_flush() {
    for kind in Server::ALL {
        let mut server = RawServer::start(kind);
        server.configure("appendonly", "yes");
        server.wait_for_rewrite();
        let name = name(b"one");
        let one = Daemon::start(&mut server, 1, name.bucket());
        assert_eq!(server.run(&one.put(name, 1, head(false))), Answer::Stored);
        server.flush_scripts();
        assert_eq!(
            server.run(&one.find(name, 2, Mode::Peek)),
            found(head(false), 1)
        );
        server.restart();
        assert_eq!(
            server.run(&one.find(name, 2, Mode::Peek)),
            Answer::Refused(Refused::Lost),
            "the file has no heartbeat"
        );
        let two = Daemon::start(&mut server, 2, name.bucket());
        assert_eq!(
            server.run(&two.find(name, 2, Mode::Resume(criteria()))),
            Answer::HolderLost
        );
        let _one = Daemon::start(&mut server, 1, name.bucket());
        assert_eq!(
            server.run(&two.find(name, 2, Mode::Resume(criteria()))),
            found(head(false), 1)
        );
    }
}

#[test]
fn foreign_and_broken_values_are_misses_and_can_be_removed() {
    for kind in Server::ALL {
        let mut server = RawServer::start(kind);
        let name = name(b"one");
        let one = Daemon::start(&mut server, 1, name.bucket());
        let modes = || {
            [
                Mode::Lookup(criteria()),
                Mode::Resume(criteria()),
                Mode::Join,
                Mode::Peek,
            ]
        };
        let entry = Layout::new(servers::PREFIX).unwrap().entry(name);
        let sealed = keys().seal(&entry, name, &head(false), b"secret").unwrap();
        let whole = [&head(false).to_bytes()[..], &[0], &sealed].concat();
        server.set_entry(name, &whole);
        assert!(matches!(
            server.run(&one.find(name, 2, Mode::Peek)),
            Answer::Found { .. }
        ));
        let cut = (0..whole.len()).map(|length| whole[..length].to_vec());
        let foreign = [
            vec![],
            b"hello".to_vec(),
            vec![3; 40],
            vec![2],
            vec![2, 9],
            vec![1; 13],
            [&[1, 0, 3, 0, 0][..], &[0; 8], &[255]].concat(),
        ];
        for value in cut.chain(foreign) {
            server.set_entry(name, &value);
            for mode in modes() {
                // An error, a miss, or a value that does not open.
                if let Ok(Answer::Found { head, sealed, .. }) =
                    server.try_run(&one.find(name, 2, mode.clone()))
                {
                    assert!(
                        keys().open(&entry, name, &head, &sealed).is_err(),
                        "{value:?} {mode:?}"
                    );
                }
            }
            drop(server.try_run(&one.release(name, 1)));
            assert!(matches!(
                server.run(&remove(name, None)),
                Answer::Done(0 | 1)
            ));
        }
        // A key of another type, between two entries, keeps no batch from its work.
        server.set_wrong_type(name);
        assert!(
            server
                .try_run(&one.find(name, 2, Mode::Lookup(criteria())))
                .is_err()
        );
        let others = [beside(name, 0), beside(name, 1)];
        for other in others {
            let put = one.put(other, 1, head(false));
            assert_eq!(server.run(&put), Answer::Stored);
        }
        let names = [others[0], name, others[1]];
        let release = Request::Release {
            holder: one.claim.holder,
            holds: names.map(|name| (name, Token(1))).into(),
        };
        assert_eq!(server.run(&release), Answer::Done(2));
        let remove = Request::Remove {
            entries: names
                .map(|name| (name, Some(Reason::Removed.into())))
                .into(),
        };
        assert_eq!(server.run(&remove), Answer::Done(3));
        assert!(matches!(
            server.run(&one.find(name, 2, Mode::Peek)),
            Answer::Gone { .. }
        ));
    }
}

#[test]
fn store_shows_no_id_no_name_and_no_secret() {
    let (id, secret) = (b"the marker id", b"the marker secret");
    for kind in Server::ALL {
        let mut server = RawServer::start(kind);
        let keys = keys();
        let name = keys.names().name(b"the marker scope", Role::Server, id);
        let one = Daemon::start(&mut server, 1, name.bucket());
        let head = Head {
            fit: keys
                .names()
                .fit("rustls", b"the marker binding", "marker.test"),
            ..head(true)
        };
        let entry = Layout::new(servers::PREFIX).unwrap().entry(name);
        let sealed = keys.seal(&entry, name, &head, secret).unwrap();
        let Request::Put {
            claim, token, life, ..
        } = one.put(name, 1, head)
        else {
            unreachable!()
        };
        let put = Request::Put {
            name,
            claim,
            token,
            head,
            sealed,
            valid_until: u64::MAX >> 11,
            life,
            pool: None,
        };
        assert_eq!(server.run(&put), Answer::Stored);
        let peeked = server.run(&one.find(name, 2, Mode::Peek));
        let Answer::Found { head, sealed, .. } = peeked else {
            panic!("{peeked:?}")
        };
        let opened = keys.open(&entry, name, &head, &sealed).unwrap();
        assert_eq!(*opened, *secret);
        let dump = server.dump();
        assert!(dump.len() > 100, "the dump has the entry");
        for marker in [&b"marker"[..], id, secret] {
            let there = dump.windows(marker.len()).any(|part| part == marker);
            assert!(!there, "{}", String::from_utf8_lossy(marker));
        }
    }
}
