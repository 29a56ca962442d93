//! Corners of TLS: hellos that a careful server reads twice, and endings that are seldom.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use openssl::ssl::{
    ShutdownState, SslConnector, SslMethod, SslOptions, SslSession, SslStream, SslVerifyMode, SslVersion,
};
use rustls::{
    ClientConfig, ClientConnection, Connection as Tls, RootCertStore, ServerConfig, ServerConnection,
    SupportedCipherSuite, SupportedProtocolVersion, Tls13CipherSuite,
    crypto::{
        CipherSuiteCommon,
        aws_lc_rs::{cipher_suite::TLS13_AES_128_GCM_SHA256, default_provider},
        hmac::Tag,
        tls13::{Hkdf, HkdfExpander, OkmBlock},
    },
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::ProducesTickets,
    version::{TLS12, TLS13},
};
use tls_sessiond::{
    connection::{Alert, ConnectionId, Input, Output, State, Table},
    session::{Role, SessionId, cache::Miss},
};

use crate::{
    client_hello::{Extension, Hello, records},
    foreign_client::{client, connect, open, server, with_roots, with_roots_in},
    pki,
    psk_hello::{
        AES_128, AES_256, CHACHA20, PskHello, SECP256R1, Ticket, X25519, after_retry, first_message, resumed,
    },
};

const CLOSE_NOTIFY: [u8; 7] = [21, 3, 3, 0, 2, 1, 0];

fn send(table: &Table, id: ConnectionId, ciphertext: &[u8]) -> Output {
    let input = Input { ciphertext, ..Input::default() };
    table.apply(id, |connection, now| connection.exchange(input, now)).unwrap()
}

fn state(table: &Table, id: ConnectionId) -> State {
    table.look(id, |connection, _| connection.state()).unwrap()
}

/// Why it failed.
fn failure(table: &Table, id: ConnectionId) -> String {
    let again = table.apply(id, |connection, now| connection.exchange(Input::default(), now));
    again.unwrap_err().to_string()
}

fn cached(table: &Table) -> usize {
    table.registry().get("default").unwrap().server_cache.len()
}

fn misses(table: &Table, why: Miss) -> u64 {
    table.registry().get("default").unwrap().stats.misses.get(why)
}

/// What rustls itself answers to the same flight, as a server with the same certificate.
fn plain_rustls(folder: &Path, alpn: &[&[u8]], flight: &[u8]) -> Vec<u8> {
    let mut config = plain_config(folder, &[&TLS12, &TLS13]);
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let mut server = ServerConnection::new(Arc::new(config)).unwrap();
    let (mut rest, mut answer) = (flight, Vec::new());
    while !rest.is_empty() && server.read_tls(&mut rest).is_ok_and(|read| read > 0) {
        if server.process_new_packets().is_err() {
            break;
        }
    }
    while server.wants_write() {
        server.write_tls(&mut answer).unwrap();
    }
    answer
}

fn plain_config(folder: &Path, versions: &[&'static SupportedProtocolVersion]) -> ServerConfig {
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let chain = CertificateDer::pem_slice_iter(&read("tls.crt")).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(&read("tls.key")).unwrap();
    ServerConfig::builder_with_protocol_versions(versions)
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap()
}

/// Makes sessions by a full handshake of a client with these suites, ends it well, and answers their tickets, newest last.
fn tickets(table: &Table, roots: &RootCertStore, suite: u16) -> Vec<Ticket> {
    let before = all_tickets(table);
    let (_, id, _) = connect(table, &client(roots, |ours| ours == suite), usize::MAX);
    table.apply(id, |connection, _| connection.shutdown(&mut Vec::new())).unwrap();
    table.free(id).unwrap();
    let known = |ticket: &Ticket| before.iter().any(|other| other.identity == ticket.identity);
    all_tickets(table).into_iter().filter(|ticket| !known(ticket)).collect()
}

fn all_tickets(table: &Table) -> Vec<Ticket> {
    let mut all = Vec::new();
    table.registry().get("default").unwrap().server_cache.scan(table.now(), |session| {
        all.push(Ticket::of(session.id().as_bytes(), session.secret().as_bytes().unwrap()));
    });
    all
}

/// The place of the ticket that the server resumes, and how many sessions are in the cache then.
fn offer(table: &Table, hello: &PskHello) -> (Option<u16>, usize) {
    let id = server(table);
    let output = send(table, id, &hello.flight());
    assert_eq!(output.alert, None, "{}", failure(table, id));
    let place = resumed(first_message(&output.ciphertext));
    let left = cached(table);
    table.free(id).unwrap();
    (place, left)
}

#[test]
fn of_several_tickets_the_first_that_fits_is_resumed() {
    let (table, roots) = with_roots("versions = [\"1.3\"]");
    let other_suite = tickets(&table, &roots, AES_256).remove(0);
    let fits = tickets(&table, &roots, AES_128).remove(0);
    let unknown = Ticket { identity: vec![1; 32], psk: vec![2; 32] };
    assert_eq!(cached(&table), 4);
    // The other suite has another hash: its binder is never looked at, and its ticket is not spent.
    let hello = PskHello::offering(&[&unknown, &other_suite, &fits]);
    assert_eq!(offer(&table, &hello), (Some(2), 3), "one was spent, which was resumed");
    let left = all_tickets(&table);
    assert!(left.iter().any(|ticket| ticket.identity == other_suite.identity));
    assert!(left.iter().all(|ticket| ticket.identity != fits.identity));
}

#[test]
fn ticket_of_another_suite_is_a_miss_and_the_full_handshake_makes_all_tickets() {
    let (table, roots) = with_roots("versions = [\"1.3\"]\ntickets = 3");
    // Both have SHA-256, so a client may offer the one and agree on the other; rustls resumes the very suite alone.
    let ticket = tickets(&table, &roots, AES_128).remove(0);
    let hello = PskHello { suites: vec![CHACHA20], ..PskHello::offering(&[&ticket]) };
    assert_eq!(offer(&table, &hello), (None, 3), "nothing is spent");
    assert_eq!(misses(&table, Miss::Scope), 1);
    // The same client, the same suite: what a full handshake makes does not depend on what was offered.
    assert_eq!(tickets(&table, &roots, CHACHA20).len(), 3);
}

#[test]
fn second_hello_after_a_retry_is_read_again() {
    let (table, roots) = with_roots("versions = [\"1.3\"]\nkey_exchange = [\"X25519\"]");
    let ticket = tickets(&table, &roots, AES_128).remove(0);
    assert_eq!(cached(&table), 2);
    let unknown = Ticket { identity: vec![1; 32], psk: vec![2; 32] };
    let groups = vec![SECP256R1, X25519];
    let first = |offered: &Ticket| PskHello {
        groups: groups.clone(),
        shares: vec![SECP256R1],
        ..PskHello::offering(&[offered])
    };
    for (offered, compatible) in [(&unknown, true), (&ticket, false)] {
        let id = server(&table);
        let first = first(offered);
        let retry = send(&table, id, &first.flight()).ciphertext;
        assert_eq!(cached(&table), 2, "a hello that is retried spends nothing");
        let before = after_retry(&first.message(), first_message(&retry));
        let second = match compatible {
            // The first offer held nothing of the suite that the retry names, and so the client offers another.
            true => PskHello { groups: groups.clone(), before, ..PskHello::offering(&[&ticket]) },
            false => PskHello { groups: groups.clone(), before, ..PskHello::offering(&[&unknown]) },
        };
        let flight = [&[20, 3, 3, 0, 1, 1][..], &second.flight()].concat();
        let mut answer = Vec::new();
        for piece in flight.chunks(40) {
            let output = send(&table, id, piece);
            assert_eq!(output.alert, None);
            answer.extend(output.ciphertext);
        }
        let spent = usize::from(compatible);
        assert_eq!(resumed(first_message(&answer)), compatible.then_some(0));
        assert_eq!(cached(&table), 2 - spent);
        table.free(id).unwrap();
        if compatible {
            // For the second round.
            tickets(&table, &roots, AES_128);
            let more = all_tickets(&table).pop().unwrap();
            let registry = table.registry();
            let cache = &registry.get("default").unwrap().server_cache;
            let id = SessionId::new(&more.identity).unwrap();
            assert!(cache.remove(&id, table.now()));
        }
    }
}

#[test]
fn hello_that_is_refused_spends_no_ticket() {
    let folder = tempfile::tempdir().unwrap();
    pki::localhost(folder.path());
    let (table, roots) = with_roots_in(folder.path(), "alpn = [\"h2\"]");
    let all = tickets(&table, &roots, AES_128);
    let ticket = &all[0];
    let usual = || PskHello::offering(&[ticket]);
    let nameless = Ticket { identity: Vec::new(), psk: vec![2; 32] };
    let alpn = |name: &[u8]| {
        let list = [&[u8::try_from(name.len()).unwrap()][..], name].concat();
        Extension::Unknown(16, [&[0, u8::try_from(list.len()).unwrap()][..], &list].concat())
    };
    for (what, hello) in [
        ("an identity of no bytes", PskHello::offering(&[ticket, &nameless])),
        ("an extension twice", PskHello { more: vec![Extension::Unknown(45, vec![1, 1])], ..usual() }),
        (
            "an extension behind the pre_shared_key",
            PskHello { behind: vec![Extension::Unknown(60_000, vec![])], ..usual() },
        ),
        ("no psk_key_exchange_modes", PskHello { modes: vec![], ..usual() }),
        ("no protocol in common", PskHello { more: vec![alpn(b"http/1.1")], ..usual() }),
        ("no suite in common", PskHello { suites: vec![0x1305], ..usual() }),
        ("no group in common", PskHello { groups: vec![0x6a6a], shares: vec![0x6a6a], ..usual() }),
        ("a name that is none", PskHello { server_name: Some("*.b.test"), ..usual() }),
    ] {
        let id = server(&table);
        let output = send(&table, id, &hello.flight());
        assert!(output.alert.is_some() && state(&table, id) == State::Failed, "{what}");
        let theirs = plain_rustls(folder.path(), &[b"h2"], &hello.flight());
        // Behind a ServerHello, whose random and key differ, the alert is encrypted.
        match theirs.first() {
            Some(21) => assert_eq!(output.ciphertext, theirs, "{what}"),
            _ => assert_eq!(output.ciphertext.len(), theirs.len(), "{what}"),
        }
        assert_eq!(cached(&table), all.len(), "{what}");
        table.free(id).unwrap();
    }
    let agreed = PskHello { more: vec![alpn(b"h2")], ..usual() };
    assert_eq!(offer(&table, &agreed), (Some(0), all.len() - 1), "the usual one is resumed");
}

#[test]
fn name_with_a_dot_is_the_same_name() {
    let (table, roots) = with_roots("versions = [\"1.3\"]");
    let ticket = tickets(&table, &roots, AES_128).remove(0);
    let before = cached(&table);
    let id = server(&table);
    let dotted = PskHello { server_name: Some("LocalHost."), ..PskHello::offering(&[&ticket]) };
    let output = send(&table, id, &dotted.flight());
    let name = table.look(id, |connection, _| connection.server_name().to_string()).unwrap();
    assert_eq!((output.alert, name.as_str()), (None, "localhost"));
    // rustls compares names as they were sent: it would not resume, so nothing is spent.
    assert_eq!((resumed(first_message(&output.ciphertext)), cached(&table)), (None, before));
}

#[test]
fn close_notify_during_a_handshake_is_a_close() {
    for version in ["1.2", "1.3"] {
        let (table, roots) = with_roots(&format!("versions = [\"{version}\"]"));
        let ticket = (version == "1.3").then(|| tickets(&table, &roots, AES_128).remove(0));
        let before = cached(&table);
        let id = server(&table);
        let hello = PskHello { tickets: Vec::new(), ..PskHello::offering(&[]) };
        let flight = if ticket.is_some() { hello.flight() } else { old_hello(&[0xc02b]) };
        send(&table, id, &flight);
        let output = send(&table, id, &CLOSE_NOTIFY);
        let flags = table.look(id, |connection, _| connection.shutdown_flags()).unwrap();
        assert_eq!((output.alert, output.ciphertext.len()), (None, 0), "TLS {version}");
        if version == "1.3" {
            assert!(flags.received && state(&table, id) == State::Failed, "TLS {version}");
            assert!(failure(&table, id).contains("closed during the handshake"), "{}", failure(&table, id));
        } else {
            // rustls passes over it as over any warning in the clear, which nobody has signed.
            assert_eq!(state(&table, id), State::Handshaking);
        }
        assert_eq!(cached(&table), before);
    }
}

/// A ClientHello of TLS 1.2 with these suites.
fn old_hello(suites: &[u16]) -> Vec<u8> {
    let mut extensions = Extension::negotiable(&[X25519], &[], &[]);
    extensions.retain(|extension| matches!(extension, Extension::Unknown(10 | 13, _)));
    records(&Hello { session_id: Vec::new(), suites: suites.to_vec(), extensions }.message(), &[])
}

#[test]
fn fallback_that_an_attacker_brought_about_is_refused() {
    const SCSV: u16 = 0x5600;
    let suite = 0xc02b;
    for (versions, suites, refused) in [
        ("\"1.2\", \"1.3\"", vec![suite, SCSV], true),
        ("\"1.2\", \"1.3\"", vec![suite], false),
        ("\"1.2\"", vec![suite, SCSV], false),
    ] {
        let (table, _) = with_roots(&format!("versions = [{versions}]"));
        let id = server(&table);
        let output = send(&table, id, &old_hello(&suites));
        if refused {
            assert_eq!(output.alert, Some(Alert { code: 86, received: false }));
            assert_eq!(output.ciphertext, [21, 3, 3, 0, 2, 2, 86]);
            assert!(failure(&table, id).contains("inappropriate_fallback"), "{}", failure(&table, id));
        } else {
            assert_eq!(
                (output.alert, state(&table, id)),
                (None, State::Handshaking),
                "{versions} {suites:x?}"
            );
        }
    }
}

/// A handshake of the daemon with a rustls peer, and both ends of it.
struct Pair {
    table: Table,
    id: ConnectionId,
    peer: Tls,
}

impl Pair {
    /// The daemon is the server.
    fn with_client(versions: &str) -> Self {
        let (table, roots) = with_roots(&format!("versions = [\"{versions}\"]"));
        let id = server(&table);
        let peer = ClientConnection::new(client(&roots, |_| true), "localhost".try_into().unwrap()).unwrap();
        let mut pair = Self { table, id, peer: peer.into() };
        pair.settle();
        assert_eq!(state(&pair.table, id), State::Established);
        pair
    }

    /// What the peer has to say.
    fn said(&mut self) -> Vec<u8> {
        let mut said = Vec::new();
        while self.peer.wants_write() {
            self.peer.write_tls(&mut said).unwrap();
        }
        said
    }

    /// What the peer makes of it.
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
            let answer = send(&self.table, self.id, &said).ciphertext;
            if said.is_empty() && answer.is_empty() {
                return;
            }
            self.hears(&answer).unwrap();
        }
    }
}

#[test]
fn alert_that_is_named_is_the_one_that_left() {
    // Nothing leaves: rustls has an error of its own and sends no alert.
    let mut pair = Pair::with_client("1.3");
    let mut updates = Vec::new();
    for _ in 0..40 {
        pair.peer.refresh_traffic_keys().unwrap();
        updates.extend(pair.said());
    }
    let output = send(&pair.table, pair.id, &updates);
    let heard = pair.hears(&output.ciphertext);
    named(&pair, &output, heard, "many KeyUpdates");

    // One leaves in the clear, one encrypted: the last byte of a record is not what was encrypted.
    for version in ["1.2", "1.3"] {
        let mut pair = Pair::with_client(version);
        pair.peer.writer().write_all(b"damaged on its way").unwrap();
        let mut record = pair.said();
        *record.last_mut().unwrap() ^= 1;
        let output = send(&pair.table, pair.id, &record);
        assert_eq!(output.alert, Some(Alert { code: 20, received: false }), "TLS {version}: bad_record_mac");
        let heard = pair.hears(&output.ciphertext);
        named(&pair, &output, heard, "a damaged record");
    }

    // A ClientHello that TLS 1.3 refuses in the clear.
    let (table, _) = with_roots("versions = [\"1.3\"]");
    let id = server(&table);
    let output = send(&table, id, &PskHello { suites: vec![0x1305], ..PskHello::offering(&[]) }.flight());
    assert_eq!(output.ciphertext, [21, 3, 3, 0, 2, 2, 40]);
    assert_eq!(output.alert.map(|alert| alert.code), Some(40));

    // A retry that is answered with another name: rustls says nothing.
    let (table, _) = with_roots("versions = [\"1.3\"]\nkey_exchange = [\"X25519\"]");
    let id = server(&table);
    let groups = vec![SECP256R1, X25519];
    let first = PskHello { groups: groups.clone(), shares: vec![SECP256R1], ..PskHello::offering(&[]) };
    send(&table, id, &first.flight());
    let second = PskHello { groups, server_name: Some("other.test"), ..PskHello::offering(&[]) };
    let output = send(&table, id, &second.flight());
    assert_eq!((output.alert, output.ciphertext.len()), (None, 0));
    assert_eq!(state(&table, id), State::Failed);
    assert!(!failure(&table, id).contains("alert"), "{}", failure(&table, id));
}

/// The peer heard what the daemon says that it sent.
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
    assert_eq!(state(&pair.table, pair.id), State::Failed, "{what}");
    assert_eq!(failure(&pair.table, pair.id).contains("alert sent"), heard.is_some(), "{what}");
}

#[test]
fn nothing_follows_our_close_notify() {
    for version in ["1.2", "1.3"] {
        let mut pair = Pair::with_client(version);
        let mut close = Vec::new();
        pair.table.apply(pair.id, |connection, _| connection.shutdown(&mut close)).unwrap();
        assert!(!close.is_empty());
        // A damaged record, which rustls answers with an alert.
        pair.peer.writer().write_all(b"damaged on its way").unwrap();
        let mut record = pair.said();
        *record.last_mut().unwrap() ^= 1;
        let output = send(&pair.table, pair.id, &record);
        assert_eq!((output.alert, output.ciphertext.len()), (None, 0), "TLS {version}");
    }
    // A KeyUpdate that wants one in return.
    let mut pair = Pair::with_client("1.3");
    pair.table.apply(pair.id, |connection, _| connection.shutdown(&mut Vec::new())).unwrap();
    pair.peer.refresh_traffic_keys().unwrap();
    let update = pair.said();
    assert!(send(&pair.table, pair.id, &update).ciphertext.is_empty());
}

/// Tickets of a lifetime that a test wants, with the session in them.
#[derive(Debug)]
struct Lifetime(u32);

impl ProducesTickets for Lifetime {
    fn enabled(&self) -> bool {
        true
    }
    fn lifetime(&self) -> u32 {
        self.0
    }
    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        // Each is another ticket, as of every server.
        let mut ticket = vec![0; 8];
        aws_lc_rs::rand::fill(&mut ticket).ok()?;
        ticket.extend_from_slice(plain);
        Some(ticket)
    }
    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        ticket.get(8..).map(<[u8]>::to_vec)
    }
}

/// A handshake of the daemon's client with a rustls server whose tickets have this lifetime. Answers whether it was resumed.
fn visit(table: &Table, folder: &Path, version: &'static SupportedProtocolVersion, lifetime: u32) -> bool {
    let mut config = plain_config(folder, &[version]);
    config.ticketer = Arc::new(Lifetime(lifetime));
    let id = open(table, Role::Client, "localhost");
    let mut peer = ServerConnection::new(Arc::new(config)).unwrap();
    let mut to_server = send(table, id, b"").ciphertext;
    loop {
        let mut rest = to_server.as_slice();
        while !rest.is_empty() {
            peer.read_tls(&mut rest).unwrap();
            peer.process_new_packets().unwrap();
        }
        let mut to_client = Vec::new();
        while peer.wants_write() {
            peer.write_tls(&mut to_client).unwrap();
        }
        if to_client.is_empty() {
            break;
        }
        let output = send(table, id, &to_client);
        assert_eq!(output.alert, None);
        to_server = output.ciphertext;
    }
    assert_eq!(state(table, id), State::Established);
    let reused = table.look(id, |connection, _| connection.session_reused()).unwrap();
    table.apply(id, |connection, _| connection.shutdown(&mut Vec::new())).unwrap();
    table.free(id).unwrap();
    reused
}

/// Lives of the client's sessions, in seconds, shortest first.
fn lives(table: &Table) -> Vec<u64> {
    let now = table.now();
    let mut lives = Vec::new();
    let registry = table.registry();
    registry.get("default").unwrap().client_cache.scan(now, |session| {
        lives.push(session.expires().since(now.at).as_secs());
    });
    lives.sort_unstable();
    lives
}

#[test]
fn lifetime_of_a_ticket_ends_a_clients_session() {
    for (version, lifetime, kept) in [
        (&TLS13, 0, None),
        (&TLS13, 60, Some(60)),
        (&TLS13, 604_800, Some(7200)),
        (&TLS12, 60, Some(60)),
        // RFC 5077 section 3.3: no statement.
        (&TLS12, 0, Some(7200)),
    ] {
        let (table, folder) = client_daemon("session_timeout = \"2h\"");
        assert!(!visit(&table, folder.path(), version, lifetime));
        let lives = lives(&table);
        let kept: Option<u64> = kept;
        match kept {
            None => assert!(lives.is_empty(), "{version:?} {lifetime}: {lives:?}"),
            Some(most) => {
                assert!(!lives.is_empty(), "{version:?} {lifetime}");
                assert!(
                    lives.iter().all(|life| (most - 2..=most).contains(life)),
                    "{version:?} {lifetime}: {lives:?}"
                );
            }
        }
    }
}

#[test]
fn renewed_ticket_of_a_tls12_resumption_is_kept() {
    let (table, folder) = client_daemon("session_timeout = \"2h\"");
    assert!(!visit(&table, folder.path(), &TLS12, 600));
    assert_eq!(lives(&table).len(), 1);
    assert!(visit(&table, folder.path(), &TLS12, 1200));
    let lives = lives(&table);
    assert!(
        lives.len() == 2 && (590..=600).contains(&lives[0]) && (1190..=1200).contains(&lives[1]),
        "{lives:?}"
    );
    assert!(visit(&table, folder.path(), &TLS12, 1200), "and the new one is offered");
}

fn client_daemon(lines: &str) -> (Table, tempfile::TempDir) {
    use tls_sessiond::{clock::Clock, config::Config, connection::table::Most, context::Registry};
    let folder = tempfile::tempdir().unwrap();
    pki::localhost(folder.path());
    let file = folder.path().join("c.toml");
    std::fs::write(&file, format!("[[context]]\nca = \"ca.pem\"\n{lines}\n")).unwrap();
    let config = Config::load(Some(&file), std::iter::empty(), &[]).unwrap();
    (Table::new(Arc::new(Registry::build(&config).unwrap()), Clock::System, Most::all(100)), folder)
}

#[test]
fn server_name_that_is_none_is_refused_as_rustls_refuses_it() {
    let folder = tempfile::tempdir().unwrap();
    pki::localhost(folder.path());
    let (table, _) = with_roots_in(folder.path(), "");
    for (name, refused) in [
        ("node.1", true),
        ("123", true),
        ("a.test:443", true),
        ("*.b.test", true),
        ("a b.test", true),
        ("unknown.test", false),
        ("under_score.test", false),
        // An address counts as no name (RFC 6066 section 3 forbids it there).
        ("192.0.2.1", false),
        ("2001:db8::1", false),
    ] {
        let id = server(&table);
        let hello = PskHello { server_name: Some(name), ..PskHello::offering(&[]) }.flight();
        let output = send(&table, id, &hello);
        let theirs = plain_rustls(folder.path(), &[], &hello);
        assert_eq!(output.alert.map(|alert| alert.code), refused.then_some(47), "{name}");
        if refused {
            assert_eq!(output.ciphertext, theirs, "{name}: illegal_parameter in the clear");
            assert!(failure(&table, id).contains("ServerName"), "{name}: {}", failure(&table, id));
        } else {
            assert_eq!(
                first_message(&output.ciphertext)[0],
                first_message(&theirs)[0],
                "{name}: a ServerHello"
            );
        }
    }
}

#[test]
fn warnings_and_a_hello_that_never_comes_whole_name_no_alert() {
    // rustls passes over four warnings, and sends nothing at the fifth.
    let (table, _) = with_roots("");
    let id = server(&table);
    let output = send(&table, id, &[21, 3, 3, 0, 2, 1, 90].repeat(6));
    assert_eq!((output.alert, output.ciphertext.len(), state(&table, id)), (None, 0, State::Failed));
    assert!(!failure(&table, id).contains("alert sent"), "{}", failure(&table, id));
    let id = server(&table);
    let hello = PskHello::offering(&[]).flight();
    send(&table, id, &hello[..40]);
    let end = Input { end_of_stream: true, ..Input::default() };
    let output = table.apply(id, |connection, now| connection.exchange(end, now)).unwrap();
    assert_eq!((output.alert, output.ciphertext.len(), state(&table, id)), (None, 0, State::Failed));
    assert!(!failure(&table, id).contains("alert"), "{}", failure(&table, id));
}

/// The key schedule of a client whose Finished is wrong: the second HMAC that it makes, for the first one is the server's.
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
fn wrong_finished_is_a_decrypt_error_on_the_wire_and_in_the_answer() {
    let SupportedCipherSuite::Tls13(suite) = TLS13_AES_128_GCM_SHA256 else { panic!("of TLS 1.3") };
    let wrong = Tls13CipherSuite {
        common: CipherSuiteCommon { ..suite.common },
        hkdf_provider: Box::leak(Box::new(WrongFinished(suite.hkdf_provider, AtomicUsize::new(0)))),
        aead_alg: suite.aead_alg,
        quic: None,
    };
    let mut provider = default_provider();
    provider.cipher_suites = vec![SupportedCipherSuite::Tls13(Box::leak(Box::new(wrong)))];
    let (table, roots) = with_roots("");
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let peer = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let id = server(&table);
    let mut pair = Pair { table, id, peer: peer.into() };
    let hello = pair.said();
    let flight = send(&pair.table, id, &hello).ciphertext;
    pair.hears(&flight).unwrap();
    let finished = pair.said();
    let output = send(&pair.table, id, &finished);
    assert_eq!(output.alert, Some(Alert { code: 51, received: false }));
    let heard = pair.hears(&output.ciphertext);
    named(&pair, &output, heard, "a wrong Finished");
}

/// What lies on the way to an OpenSSL client, and from it.
#[derive(Default)]
struct Wire {
    to: VecDeque<u8>,
    from: Vec<u8>,
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.to.read(buffer) {
            Ok(0) => Err(io::ErrorKind::WouldBlock.into()),
            read => read,
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.from.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A handshake of TLS 1.2 with an OpenSSL client, with or without extended_master_secret. Answers how it ended for the daemon.
fn openssl(
    table: &Table,
    extended: bool,
    session: Option<&SslSession>,
) -> (Option<SslSession>, ConnectionId, Option<Alert>) {
    /// SSL_OP_NO_EXTENDED_MASTER_SECRET.
    const NO_EXTENDED_MASTER_SECRET: SslOptions = SslOptions::from_bits_retain(1);
    let mut connector = SslConnector::builder(SslMethod::tls_client()).unwrap();
    connector.set_verify(SslVerifyMode::NONE);
    connector.set_max_proto_version(Some(SslVersion::TLS1_2)).unwrap();
    if !extended {
        connector.set_options(NO_EXTENDED_MASTER_SECRET);
    }
    let mut ssl = connector.build().configure().unwrap().into_ssl("localhost").unwrap();
    if let Some(session) = session {
        // It is one of this library, in this process.
        #[allow(unsafe_code, reason = "SSL_set_session has no other form")]
        unsafe {
            ssl.set_session(session).unwrap();
        }
    }
    let mut client = SslStream::new(ssl, Wire::default()).unwrap();
    let id = server(table);
    for _ in 0..6 {
        let done = client.connect();
        let said = std::mem::take(&mut client.get_mut().from);
        let output = send(table, id, &said);
        client.get_mut().to.extend(&output.ciphertext);
        if output.alert.is_some() {
            return (None, id, output.alert);
        }
        if done.is_ok() {
            // OpenSSL has the close rule too.
            client.set_shutdown(ShutdownState::SENT);
            return (client.ssl().session().map(ToOwned::to_owned), id, None);
        }
    }
    panic!("it does not end");
}

#[test]
fn session_is_not_resumed_across_extended_master_secret() {
    let (table, _) = with_roots("versions = [\"1.2\"]");
    let closed = |id| {
        table.apply(id, |connection, _| connection.shutdown(&mut Vec::new())).unwrap();
        table.free(id).unwrap();
    };
    let reused = |id| table.look(id, |connection, _| connection.session_reused()).unwrap();
    // RFC 7627 section 5.3: of a session without it, a hello with it makes a full handshake.
    let (session, id, _) = openssl(&table, false, None);
    closed(id);
    let (_, id, alert) = openssl(&table, true, session.as_ref());
    assert_eq!((alert, reused(id), misses(&table, Miss::Scope)), (None, false, 1));
    closed(id);
    // Of a session with it, a hello without it ends the handshake.
    let (session, id, _) = openssl(&table, true, None);
    closed(id);
    let (_, id, alert) = openssl(&table, false, session.as_ref());
    assert_eq!((alert.map(|alert| alert.code), state(&table, id)), (Some(47), State::Failed));
    // With the same in both it is resumed.
    let (_, id, alert) = openssl(&table, true, session.as_ref());
    assert_eq!((alert, reused(id)), (None, true));
}
