//! Rare ends of connections: the alert that was sent, if any, closes during a handshake, and
//! silence after a close_notify.

use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustls::{
    ClientConfig, ClientConnection, Connection as Tls, SupportedCipherSuite, Tls13CipherSuite,
    crypto::{
        CipherSuiteCommon,
        aws_lc_rs::{cipher_suite::TLS13_AES_128_GCM_SHA256, default_provider},
        hmac::Tag,
        tls13::{Hkdf, HkdfExpander, OkmBlock},
    },
    version::TLS13,
};
use tls_sessiond_core::{
    connection::{Alert, ConnectionId, Input, Output, State},
    state::CoreState,
};

use super::{cached, failure, old_hello, send, state, tickets};
use crate::{
    foreign_client::{client, server, with_roots},
    psk_hello::{AES_128, PskHello, SECP256R1, X25519},
};

const CLOSE_NOTIFY: [u8; 7] = [21, 3, 3, 0, 2, 1, 0];

#[test]
fn close_notify_ends_only_a_tls13_handshake() {
    for version in ["1.2", "1.3"] {
        let (core, roots) = with_roots(&format!("versions = [\"{version}\"]"));
        let ticket = (version == "1.3").then(|| tickets(&core, &roots, AES_128).remove(0));
        let before = cached(&core);
        let id = server(&core);
        let hello = PskHello {
            tickets: Vec::new(),
            ..PskHello::offering(&[])
        };
        let flight = if ticket.is_some() {
            hello.flight()
        } else {
            old_hello(&[0xc02b])
        };
        send(&core, id, &flight);
        let output = send(&core, id, &CLOSE_NOTIFY);
        let flags = core
            .connections()
            .inspect(id, |connection, _| connection.shutdown_flags())
            .unwrap();
        assert_eq!(
            (output.alert, output.ciphertext.len()),
            (None, 0),
            "TLS {version}"
        );
        if version == "1.3" {
            assert!(
                flags.received && state(&core, id) == State::Failed,
                "TLS {version}"
            );
            assert!(
                failure(&core, id).contains("closed during the handshake"),
                "{}",
                failure(&core, id)
            );
        } else {
            // rustls ignores it, as it ignores every unauthenticated warning.
            assert_eq!(state(&core, id), State::Handshaking);
        }
        assert_eq!(cached(&core), before);
    }
}

/// A connection of the daemon and its rustls peer.
struct Pair {
    core: CoreState,
    id: ConnectionId,
    peer: Tls,
}

impl Pair {
    /// Runs a handshake with the daemon as the server.
    fn with_client(versions: &str) -> Self {
        let (core, roots) = with_roots(&format!("versions = [\"{versions}\"]"));
        let id = server(&core);
        let peer = ClientConnection::new(client(&roots, |_| true), "localhost".try_into().unwrap())
            .unwrap();
        let mut pair = Self {
            core,
            id,
            peer: peer.into(),
        };
        pair.settle();
        assert_eq!(state(&pair.core, id), State::Established);
        pair
    }

    /// Returns the bytes that the peer wants to send.
    fn said(&mut self) -> Vec<u8> {
        let mut said = Vec::new();
        while self.peer.wants_write() {
            self.peer.write_tls(&mut said).unwrap();
        }
        said
    }

    /// Passes bytes to the peer.
    fn hears(&mut self, mut ciphertext: &[u8]) -> Result<(), rustls::Error> {
        while !ciphertext.is_empty() {
            self.peer.read_tls(&mut ciphertext).unwrap();
            self.peer.process_new_packets()?;
        }
        Ok(())
    }

    fn settle(&mut self) {
        loop {
            let said = self.said();
            let answer = send(&self.core, self.id, &said).ciphertext;
            if said.is_empty() && answer.is_empty() {
                return;
            }
            self.hears(&answer).unwrap();
        }
    }
}

#[test]
fn reported_alert_is_the_one_on_the_wire() {
    // No alert is sent: rustls fails with an error of its own.
    let mut pair = Pair::with_client("1.3");
    let mut updates = Vec::new();
    for _ in 0..40 {
        pair.peer.refresh_traffic_keys().unwrap();
        updates.extend(pair.said());
    }
    let output = send(&pair.core, pair.id, &updates);
    let heard = pair.hears(&output.ciphertext);
    named(&pair, &output, heard, "many KeyUpdates");

    // A damaged record: its last byte differs from the encrypted one. An alert is sent in both
    // versions.
    for version in ["1.2", "1.3"] {
        let mut pair = Pair::with_client(version);
        pair.peer.writer().write_all(b"damaged on its way").unwrap();
        let mut record = pair.said();
        *record.last_mut().unwrap() ^= 1;
        let output = send(&pair.core, pair.id, &record);
        assert_eq!(
            output.alert,
            Some(Alert {
                code: 20,
                received: false
            }),
            "TLS {version}: bad_record_mac"
        );
        let heard = pair.hears(&output.ciphertext);
        named(&pair, &output, heard, "a damaged record");
    }

    // A ClientHello that TLS 1.3 refuses in the clear.
    let (core, _) = with_roots("versions = [\"1.3\"]");
    let id = server(&core);
    let output = send(
        &core,
        id,
        &PskHello {
            suites: vec![0x1305],
            ..PskHello::offering(&[])
        }
        .flight(),
    );
    assert_eq!(output.ciphertext, [21, 3, 3, 0, 2, 2, 40]);
    assert_eq!(output.alert.map(|alert| alert.code), Some(40));

    // The second ClientHello after a retry has another name. rustls sends no alert.
    let (core, _) = with_roots("versions = [\"1.3\"]\nkey_exchange = [\"X25519\"]");
    let id = server(&core);
    let groups = vec![SECP256R1, X25519];
    let first = PskHello {
        groups: groups.clone(),
        shares: vec![SECP256R1],
        ..PskHello::offering(&[])
    };
    send(&core, id, &first.flight());
    let second = PskHello {
        groups,
        server_name: Some("other.test"),
        ..PskHello::offering(&[])
    };
    let output = send(&core, id, &second.flight());
    assert_eq!((output.alert, output.ciphertext.len()), (None, 0));
    assert_eq!(state(&core, id), State::Failed);
    assert!(
        !failure(&core, id).contains("alert"),
        "{}",
        failure(&core, id)
    );
}

/// Asserts that the peer received the alert that the daemon reports as sent, or none.
fn named(pair: &Pair, output: &Output, heard: Result<(), rustls::Error>, what: &str) {
    let heard = match heard {
        Ok(()) => None,
        Err(rustls::Error::AlertReceived(description)) => Some(u8::from(description)),
        Err(err) => panic!("{what}: {err}"),
    };
    assert_eq!(
        output.alert.map(|alert| (alert.code, alert.received)),
        heard.map(|code| (code, false)),
        "{what}"
    );
    assert_eq!(state(&pair.core, pair.id), State::Failed, "{what}");
    assert_eq!(
        failure(&pair.core, pair.id).contains("alert sent"),
        heard.is_some(),
        "{what}"
    );
}

#[test]
fn engine_sends_nothing_after_its_close_notify() {
    for version in ["1.2", "1.3"] {
        let mut pair = Pair::with_client(version);
        let mut close = Vec::new();
        pair.core
            .connections()
            .with(pair.id, |connection, _| connection.shutdown(&mut close))
            .unwrap();
        assert!(!close.is_empty());
        // A damaged record, which rustls answers with an alert.
        pair.peer.writer().write_all(b"damaged on its way").unwrap();
        let mut record = pair.said();
        *record.last_mut().unwrap() ^= 1;
        let output = send(&pair.core, pair.id, &record);
        assert_eq!(
            (output.alert, output.ciphertext.len()),
            (None, 0),
            "TLS {version}"
        );
    }
    // A KeyUpdate that requests one in return.
    let mut pair = Pair::with_client("1.3");
    pair.core
        .connections()
        .with(pair.id, |connection, _| {
            connection.shutdown(&mut Vec::new())
        })
        .unwrap();
    pair.peer.refresh_traffic_keys().unwrap();
    let update = pair.said();
    assert!(send(&pair.core, pair.id, &update).ciphertext.is_empty());
}

#[test]
fn warnings_and_incomplete_hellos_report_no_alert() {
    // rustls ignores four warnings, and fails at the fifth without an alert.
    let (core, _) = with_roots("");
    let id = server(&core);
    let output = send(&core, id, &[21, 3, 3, 0, 2, 1, 90].repeat(6));
    assert_eq!(
        (output.alert, output.ciphertext.len(), state(&core, id)),
        (None, 0, State::Failed)
    );
    assert!(
        !failure(&core, id).contains("alert sent"),
        "{}",
        failure(&core, id)
    );
    let id = server(&core);
    let hello = PskHello::offering(&[]).flight();
    send(&core, id, &hello[..40]);
    let end = Input {
        end_of_stream: true,
        ..Input::default()
    };
    let output = core
        .connections()
        .with(id, |connection, now| connection.exchange(end, now))
        .unwrap()
        .done()
        .unwrap();
    assert_eq!(
        (output.alert, output.ciphertext.len(), state(&core, id)),
        (None, 0, State::Failed)
    );
    assert!(
        !failure(&core, id).contains("alert"),
        "{}",
        failure(&core, id)
    );
}

/// The key schedule of a client with a wrong Finished. The second HMAC is the client's, the first
/// one the server's.
struct WrongFinished(&'static dyn Hkdf, AtomicUsize);

impl Hkdf for WrongFinished {
    fn extract_from_zero_ikm(&self, salt: Option<&[u8]>) -> Box<dyn HkdfExpander> {
        self.0.extract_from_zero_ikm(salt)
    }
    fn extract_from_secret(&self, salt: Option<&[u8]>, secret: &[u8]) -> Box<dyn HkdfExpander> {
        self.0.extract_from_secret(salt, secret)
    }
    fn expander_for_okm(&self, okm: &OkmBlock) -> Box<dyn HkdfExpander> {
        self.0.expander_for_okm(okm)
    }
    fn hmac_sign(&self, key: &OkmBlock, message: &[u8]) -> Tag {
        let tag = self.0.hmac_sign(key, message);
        match self.1.fetch_add(1, Ordering::Relaxed) {
            1 => Tag::new(&vec![0; tag.as_ref().len()]),
            _ => tag,
        }
    }
}

#[test]
fn wrong_finished_is_sent_and_reported_as_decrypt_error() {
    let SupportedCipherSuite::Tls13(suite) = TLS13_AES_128_GCM_SHA256 else {
        panic!("of TLS 1.3")
    };
    let wrong = Tls13CipherSuite {
        common: CipherSuiteCommon { ..suite.common },
        hkdf_provider: Box::leak(Box::new(WrongFinished(
            suite.hkdf_provider,
            AtomicUsize::new(0),
        ))),
        aead_alg: suite.aead_alg,
        quic: None,
    };
    let mut provider = default_provider();
    provider.cipher_suites = vec![SupportedCipherSuite::Tls13(Box::leak(Box::new(wrong)))];
    let (core, roots) = with_roots("");
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let peer = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let id = server(&core);
    let mut pair = Pair {
        core,
        id,
        peer: peer.into(),
    };
    let hello = pair.said();
    let flight = send(&pair.core, id, &hello).ciphertext;
    pair.hears(&flight).unwrap();
    let finished = pair.said();
    let output = send(&pair.core, id, &finished);
    assert_eq!(
        output.alert,
        Some(Alert {
            code: 51,
            received: false
        })
    );
    let heard = pair.hears(&output.ciphertext);
    named(&pair, &output, heard, "a wrong Finished");
}
