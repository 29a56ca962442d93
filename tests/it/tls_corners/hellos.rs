//! Rare ClientHellos: several tickets, retries, names, fallbacks.

use tls_sessiond_core::{
    connection::{Alert, State},
    session::{Miss, SessionId},
};

use super::{
    all_tickets, cached, failure, misses, offer, old_hello, plain_rustls, send, state, tickets,
};
use crate::{
    client_hello::Extension,
    foreign_client::{server, with_roots, with_roots_in},
    pki,
    psk_hello::{
        AES_128, AES_256, CHACHA20, PskHello, SECP256R1, Ticket, X25519, after_retry,
        first_message, resumed,
    },
};

#[test]
fn first_suitable_ticket_of_several_is_resumed() {
    let (core, roots) = with_roots("versions = [\"1.3\"]");
    let other_suite = tickets(&core, &roots, AES_256).remove(0);
    let fits = tickets(&core, &roots, AES_128).remove(0);
    let unknown = Ticket {
        identity: vec![1; 32],
        psk: vec![2; 32],
    };
    assert_eq!(cached(&core), 4);
    // The other suite has another hash, so its binder is not checked and its ticket is not
    // consumed.
    let hello = PskHello::offering(&[&unknown, &other_suite, &fits]);
    assert_eq!(
        offer(&core, &hello),
        (Some(2), 3),
        "only the resumed ticket is consumed"
    );
    let left = all_tickets(&core);
    assert!(
        left.iter()
            .any(|ticket| ticket.identity == other_suite.identity)
    );
    assert!(left.iter().all(|ticket| ticket.identity != fits.identity));
}

#[test]
fn ticket_of_another_suite_falls_back_to_a_full_handshake() {
    let (core, roots) = with_roots("versions = [\"1.3\"]\ntickets = 3");
    // Both suites use SHA-256, so a client may offer a ticket of one and agree on the other (RFC
    // 8446 section 4.6.1). rustls resumes only with the same suite.
    let ticket = tickets(&core, &roots, AES_128).remove(0);
    let hello = PskHello {
        suites: vec![CHACHA20],
        ..PskHello::offering(&[&ticket])
    };
    assert_eq!(offer(&core, &hello), (None, 3), "no ticket is consumed");
    assert_eq!(misses(&core, Miss::Scope), 1);
    // The same client with the same suite: the tickets of a full handshake do not depend on the
    // offer.
    assert_eq!(tickets(&core, &roots, CHACHA20).len(), 3);
}

#[test]
fn second_hello_after_a_retry_is_read_again() {
    let (core, roots) = with_roots("versions = [\"1.3\"]\nkey_exchange = [\"X25519\"]");
    let ticket = tickets(&core, &roots, AES_128).remove(0);
    assert_eq!(cached(&core), 2);
    let unknown = Ticket {
        identity: vec![1; 32],
        psk: vec![2; 32],
    };
    let groups = vec![SECP256R1, X25519];
    let first = |offered: &Ticket| PskHello {
        groups: groups.clone(),
        shares: vec![SECP256R1],
        ..PskHello::offering(&[offered])
    };
    for (offered, compatible) in [(&unknown, true), (&ticket, false)] {
        let id = server(&core);
        let first = first(offered);
        let retry = send(&core, id, &first.flight()).ciphertext;
        assert_eq!(
            cached(&core),
            2,
            "a hello that is retried consumes no ticket"
        );
        let before = after_retry(&first.message(), first_message(&retry));
        let second = match compatible {
            // The first offer had no ticket for the suite of the retry, so the client offers
            // another one.
            true => PskHello {
                groups: groups.clone(),
                before,
                ..PskHello::offering(&[&ticket])
            },
            false => PskHello {
                groups: groups.clone(),
                before,
                ..PskHello::offering(&[&unknown])
            },
        };
        let flight = [&[20, 3, 3, 0, 1, 1][..], &second.flight()].concat();
        let mut answer = Vec::new();
        for piece in flight.chunks(40) {
            let output = send(&core, id, piece);
            assert_eq!(output.alert, None);
            answer.extend(output.ciphertext);
        }
        let spent = usize::from(compatible);
        assert_eq!(resumed(first_message(&answer)), compatible.then_some(0));
        assert_eq!(cached(&core), 2 - spent);
        core.connections().free(id).unwrap();
        if compatible {
            // A ticket for the second round.
            tickets(&core, &roots, AES_128);
            let more = all_tickets(&core).pop().unwrap();
            let registry = core.registry();
            let cache = &registry.get("default").unwrap().server_cache;
            let id = SessionId::new(&more.identity).unwrap();
            assert!(cache.remove(&id, core.now()));
        }
    }
}

#[test]
fn second_hello_that_is_refused_spends_no_ticket() {
    let (core, roots) = with_roots("versions = [\"1.3\"]\nkey_exchange = [\"X25519\"]");
    let ticket = tickets(&core, &roots, AES_128).remove(0);
    let groups = vec![SECP256R1, X25519];
    let first = || PskHello {
        groups: groups.clone(),
        shares: vec![SECP256R1],
        suites: vec![AES_128, AES_256],
        ..PskHello::offering(&[&ticket])
    };
    let second = || PskHello {
        shares: vec![X25519],
        ..first()
    };
    for (what, second) in [
        (
            "another name",
            PskHello {
                server_name: Some("other.test"),
                ..second()
            },
        ),
        (
            "no name",
            PskHello {
                server_name: None,
                ..second()
            },
        ),
        (
            "another suite",
            PskHello {
                suites: vec![AES_256],
                ..second()
            },
        ),
        (
            "early data",
            PskHello {
                more: vec![Extension::Unknown(42, vec![])],
                ..second()
            },
        ),
    ] {
        let id = server(&core);
        let retry = send(&core, id, &first().flight()).ciphertext;
        let before = after_retry(&first().message(), first_message(&retry));
        send(&core, id, &PskHello { before, ..second }.flight());
        assert_eq!(
            (state(&core, id), cached(&core)),
            (State::Failed, 2),
            "{what}"
        );
        core.connections().free(id).unwrap();
    }
}

#[test]
fn hello_that_is_refused_spends_no_ticket() {
    let folder = tempfile::tempdir().unwrap();
    pki::localhost(folder.path());
    let (core, roots) = with_roots_in(folder.path(), "alpn = [\"h2\"]");
    let all = tickets(&core, &roots, AES_128);
    let ticket = &all[0];
    let usual = || PskHello::offering(&[ticket]);
    let nameless = Ticket {
        identity: Vec::new(),
        psk: vec![2; 32],
    };
    let alpn = |name: &[u8]| {
        let list = [&[u8::try_from(name.len()).unwrap()][..], name].concat();
        Extension::Unknown(
            16,
            [&[0, u8::try_from(list.len()).unwrap()][..], &list].concat(),
        )
    };
    let raw = |kind, body: &[u8]| Extension::Unknown(kind, body.to_vec());
    for (what, hello) in [
        (
            "an identity of no bytes",
            PskHello::offering(&[ticket, &nameless]),
        ),
        (
            "an extension twice",
            PskHello {
                more: vec![Extension::Unknown(45, vec![1, 1])],
                ..usual()
            },
        ),
        (
            "an extension behind the pre_shared_key",
            PskHello {
                behind: vec![Extension::Unknown(60_000, vec![])],
                ..usual()
            },
        ),
        (
            "no psk_key_exchange_modes",
            PskHello {
                modes: vec![],
                ..usual()
            },
        ),
        (
            "no protocol in common",
            PskHello {
                more: vec![alpn(b"http/1.1")],
                ..usual()
            },
        ),
        (
            "no suite in common",
            PskHello {
                suites: vec![0x1305],
                ..usual()
            },
        ),
        (
            "no group in common",
            PskHello {
                groups: vec![0x6a6a],
                shares: vec![0x6a6a],
                ..usual()
            },
        ),
        (
            "a share twice",
            PskHello {
                shares: vec![X25519, X25519],
                ..usual()
            },
        ),
        (
            "bytes behind the modes",
            PskHello {
                modes: vec![],
                more: vec![raw(45, &[1, 1, 0])],
                ..usual()
            },
        ),
        (
            "an empty list of protocols",
            PskHello {
                more: vec![raw(16, &[0, 0])],
                ..usual()
            },
        ),
        (
            "extended_master_secret with a body",
            PskHello {
                more: vec![raw(23, &[0])],
                ..usual()
            },
        ),
        (
            "early_data with a body",
            PskHello {
                more: vec![raw(42, &[0])],
                ..usual()
            },
        ),
        (
            "a malformed status_request",
            PskHello {
                more: vec![raw(5, &[1])],
                ..usual()
            },
        ),
        (
            "one way to compress certificates twice",
            PskHello {
                more: vec![raw(27, &[4, 0, 2, 0, 2])],
                ..usual()
            },
        ),
        (
            "a name that is none",
            PskHello {
                server_name: Some("*.b.test"),
                ..usual()
            },
        ),
    ] {
        let id = server(&core);
        let output = send(&core, id, &hello.flight());
        assert!(
            output.alert.is_some() && state(&core, id) == State::Failed,
            "{what}"
        );
        let theirs = plain_rustls(folder.path(), &[b"h2"], &hello.flight());
        // After a ServerHello, which has another random and key, the alert is encrypted.
        match theirs.first() {
            Some(21) => assert_eq!(output.ciphertext, theirs, "{what}"),
            _ => assert_eq!(output.ciphertext.len(), theirs.len(), "{what}"),
        }
        assert_eq!(cached(&core), all.len(), "{what}");
        core.connections().free(id).unwrap();
    }
    // The records of the hello contain a second message.
    let id = server(&core);
    let message = [usual().message(), vec![1, 0, 0, 0]].concat();
    let output = send(&core, id, &crate::client_hello::records(&message, &[]));
    assert!(
        output.alert.is_some() && cached(&core) == all.len(),
        "a message behind the hello"
    );
    let agreed = PskHello {
        more: vec![alpn(b"h2")],
        ..usual()
    };
    assert_eq!(
        offer(&core, &agreed),
        (Some(0), all.len() - 1),
        "the valid hello is resumed"
    );
}

#[test]
fn trailing_dot_of_a_server_name_is_ignored() {
    let (core, roots) = with_roots("versions = [\"1.3\"]");
    let ticket = tickets(&core, &roots, AES_128).remove(0);
    let before = cached(&core);
    let id = server(&core);
    let dotted = PskHello {
        server_name: Some("LocalHost."),
        ..PskHello::offering(&[&ticket])
    };
    let output = send(&core, id, &dotted.flight());
    let name = core
        .connections()
        .inspect(id, |connection, _| connection.server_name().to_string())
        .unwrap();
    assert_eq!((output.alert, name.as_str()), (None, "localhost"));
    // rustls compares names as they were sent and would not resume, so no ticket is consumed.
    assert_eq!(
        (resumed(first_message(&output.ciphertext)), cached(&core)),
        (None, before)
    );
}

#[test]
fn forced_fallback_to_an_older_version_is_refused() {
    const SCSV: u16 = 0x5600;
    let suite = 0xc02b;
    for (versions, suites, refused) in [
        ("\"1.2\", \"1.3\"", vec![suite, SCSV], true),
        ("\"1.2\", \"1.3\"", vec![suite], false),
        ("\"1.2\"", vec![suite, SCSV], false),
    ] {
        let (core, _) = with_roots(&format!("versions = [{versions}]"));
        let id = server(&core);
        let output = send(&core, id, &old_hello(&suites));
        if refused {
            assert_eq!(
                output.alert,
                Some(Alert {
                    code: 86,
                    received: false
                })
            );
            assert_eq!(output.ciphertext, [21, 3, 3, 0, 2, 2, 86]);
            assert!(
                failure(&core, id).contains("inappropriate_fallback"),
                "{}",
                failure(&core, id)
            );
        } else {
            assert_eq!(
                (output.alert, state(&core, id)),
                (None, State::Handshaking),
                "{versions} {suites:x?}"
            );
        }
    }
}

#[test]
fn invalid_server_name_is_refused_as_by_rustls() {
    let folder = tempfile::tempdir().unwrap();
    pki::localhost(folder.path());
    let (core, _) = with_roots_in(folder.path(), "");
    for (name, refused) in [
        ("node.1", true),
        ("123", true),
        ("a.test:443", true),
        ("*.b.test", true),
        ("a b.test", true),
        ("unknown.test", false),
        ("under_score.test", false),
        // An address counts as no name (RFC 6066 section 3 forbids addresses there).
        ("192.0.2.1", false),
        ("2001:db8::1", false),
    ] {
        let id = server(&core);
        let hello = PskHello {
            server_name: Some(name),
            ..PskHello::offering(&[])
        }
        .flight();
        let output = send(&core, id, &hello);
        let theirs = plain_rustls(folder.path(), &[], &hello);
        assert_eq!(
            output.alert.map(|alert| alert.code),
            refused.then_some(47),
            "{name}"
        );
        if refused {
            assert_eq!(
                output.ciphertext, theirs,
                "{name}: illegal_parameter in the clear"
            );
            assert!(
                failure(&core, id).contains("ServerName"),
                "{name}: {}",
                failure(&core, id)
            );
        } else {
            assert_eq!(
                first_message(&output.ciphertext)[0],
                first_message(&theirs)[0],
                "{name}: a ServerHello"
            );
        }
    }
}
