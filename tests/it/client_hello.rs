//! Tests of the reader of first flights: with ClientHellos whose offer is known, against a second
//! parser, and with garbage.

use proptest::prelude::*;
use tls_parser::{
    TlsExtension, TlsMessage, TlsMessageHandshake, parse_tls_client_hello_extensions,
    parse_tls_plaintext,
};
use tls_sessiond_types::{
    client_hello::{
        FirstFlight, IDENTITIES_MAX, Offer, Parameters, Progress, SESSION_ID_MAX, TICKET_MAX,
        TICKETS_MAX,
    },
    server_name::ServerName,
};

/// The content of a ClientHello before it is encoded.
#[derive(Clone, Debug)]
pub(crate) struct Hello {
    pub(crate) session_id: Vec<u8>,
    pub(crate) suites: Vec<u16>,
    pub(crate) extensions: Vec<Extension>,
}

#[derive(Clone, Debug)]
pub(crate) enum Extension {
    ServerName(String),
    Ticket(Vec<u8>),
    Versions(Vec<u16>),
    Identities(Vec<Vec<u8>>),
    /// A GREASE extension (RFC 8701) or one that no parser knows, with its type and body.
    Unknown(u16, Vec<u8>),
}

fn u16_vector(bytes: &[u8]) -> Vec<u8> {
    [
        &u16::try_from(bytes.len()).unwrap().to_be_bytes()[..],
        bytes,
    ]
    .concat()
}

fn u8_vector(bytes: &[u8]) -> Vec<u8> {
    [&[u8::try_from(bytes.len()).unwrap()][..], bytes].concat()
}

fn u16s(values: &[u16]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_be_bytes())
        .collect()
}

impl Extension {
    /// Returns the extensions that a TLS 1.3 server requires: versions, groups, signature
    /// algorithms, key shares and, unless `modes` is empty, PSK key exchange modes.
    pub(crate) fn negotiable(groups: &[u16], shares: &[u16], modes: &[u8]) -> Vec<Self> {
        let shares: Vec<u8> = shares
            .iter()
            .flat_map(|&group| {
                // No test makes the server read a P-256 share: that would have to be a point on the
                // curve.
                [&group.to_be_bytes()[..], &u16_vector(&[9; 32])].concat()
            })
            .collect();
        let mut all = vec![
            Self::Versions(vec![0x0304]),
            Self::Unknown(10, u16_vector(&u16s(groups))),
            Self::Unknown(13, u16_vector(&u16s(&[0x0403, 0x0804]))),
            Self::Unknown(51, u16_vector(&shares)),
        ];
        all.extend((!modes.is_empty()).then(|| Self::Unknown(45, u8_vector(modes))));
        all
    }

    fn encode(&self) -> Vec<u8> {
        let (kind, body) = match self {
            Self::ServerName(name) => (
                0,
                u16_vector(&[&[0][..], &u16_vector(name.as_bytes())].concat()),
            ),
            Self::Ticket(ticket) => (35, ticket.clone()),
            Self::Versions(versions) => (43, u8_vector(&u16s(versions))),
            Self::Identities(identities) => {
                let list: Vec<u8> = identities
                    .iter()
                    .flat_map(|identity| [u16_vector(identity), vec![1, 2, 3, 4]].concat())
                    .collect();
                let binders: Vec<u8> = identities
                    .iter()
                    .flat_map(|_| u8_vector(&[7; 32]))
                    .collect();
                (41, [u16_vector(&list), u16_vector(&binders)].concat())
            }
            Self::Unknown(kind, body) => (*kind, body.clone()),
        };
        [&u16::to_be_bytes(kind)[..], &u16_vector(&body)].concat()
    }
}

impl Hello {
    pub(crate) fn message(&self) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([9; 32]);
        body.extend(u8_vector(&self.session_id));
        body.extend(u16_vector(&u16s(&self.suites)));
        body.extend([1, 0]);
        let extensions: Vec<u8> = self.extensions.iter().flat_map(Extension::encode).collect();
        if !extensions.is_empty() {
            body.extend(u16_vector(&extensions));
        }
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[1, length[1], length[2], length[3]][..], &body].concat()
    }

    /// Returns the offer that the daemon reads from this ClientHello. It resumes TLS 1.3 with
    /// psk_dhe_ke only.
    fn offer(&self) -> Offer {
        let session_id = Some(self.session_id.clone()).filter(|id| !id.is_empty());
        let parameters = Parameters {
            cipher_suites: self.suites.clone(),
            ..Parameters::default()
        };
        let fallback = self.suites.contains(&0x5600);
        let mut offer = Offer {
            session_id,
            fallback,
            parameters,
            ..Offer::default()
        };
        for extension in &self.extensions {
            match extension {
                Extension::ServerName(name) => {
                    offer.server_name = ServerName::new(name).into_owned();
                }
                Extension::Ticket(ticket) => {
                    offer.tickets.taken = true;
                    if !ticket.is_empty() {
                        offer.session_id = None;
                    }
                    offer.tickets.tls12 =
                        Some(ticket.clone()).filter(|ticket| ticket.len() > SESSION_ID_MAX);
                }
                Extension::Versions(versions) => offer.tls13 = versions.contains(&0x0304),
                Extension::Identities(identities) => {
                    let ours = |identity: &&Vec<u8>| (1..=SESSION_ID_MAX).contains(&identity.len());
                    offer.identities = identities
                        .iter()
                        .filter(ours)
                        .take(IDENTITIES_MAX)
                        .cloned()
                        .collect();
                    let longer = identities
                        .iter()
                        .filter(|identity| identity.len() > SESSION_ID_MAX);
                    offer.tickets.tls13 = longer.take(TICKETS_MAX).cloned().collect();
                }
                // The strategy makes only one body for each of these.
                Extension::Unknown(10, _) => offer.parameters.groups = vec![29],
                Extension::Unknown(51, _) => offer.parameters.key_shares = vec![29],
                Extension::Unknown(..) => {}
            }
        }
        offer
    }
}

/// Returns the message in records of these sizes. Further records hold 16384 bytes, the last one
/// the rest.
pub(crate) fn records(message: &[u8], sizes: &[usize]) -> Vec<u8> {
    let mut rest = message;
    let mut sizes = sizes.iter();
    let mut records = Vec::new();
    while !rest.is_empty() {
        let size = sizes.next().copied().unwrap_or(16_384).clamp(1, rest.len());
        let (payload, after) = rest.split_at(size);
        records.extend([22, 3, 1]);
        records.extend(u16_vector(payload));
        rest = after;
    }
    records
}

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..=most)
}

fn grease() -> impl Strategy<Value = u16> {
    (0u16..16).prop_map(|digit| 0x0a0a + 0x1010 * digit)
}

fn hello() -> impl Strategy<Value = Hello> {
    let version = prop_oneof![Just(0x0304u16), Just(0x0303), Just(0x0302), grease()];
    let extensions = (
        proptest::option::of("[a-zA-Z]{1,12}(\\.[a-z][a-z0-9]{0,11}){0,3}"),
        proptest::option::of(bytes(80)),
        proptest::option::of(proptest::collection::vec(version, 1..6)),
        proptest::option::of(proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 1..90),
            1..24,
        )),
        proptest::collection::vec((prop_oneof![grease(), unknown()], bytes(40)), 0..6),
        any::<prop::sample::Index>(),
    )
        .prop_map(|(name, ticket, versions, identities, unknown, turn)| {
            let mut all: Vec<Extension> = unknown
                .into_iter()
                .map(|(kind, body)| Extension::Unknown(kind, body))
                .collect();
            // No extension type occurs twice.
            let kind = |extension: &Extension| match extension {
                Extension::Unknown(kind, _) => *kind,
                _ => 0,
            };
            all.sort_by_key(kind);
            all.dedup_by_key(|extension| kind(extension));
            all.extend(name.map(Extension::ServerName));
            all.extend(ticket.map(Extension::Ticket));
            all.extend(Extension::negotiable(&[29], &[29], &[1]).split_off(1));
            all.extend(versions.map(Extension::Versions));
            if !all.is_empty() {
                let turn = turn.index(all.len());
                all.rotate_left(turn);
            }
            // RFC 8446 section 4.2.11: pre_shared_key is the last one.
            all.extend(identities.map(Extension::Identities));
            all
        });
    (
        bytes(32),
        proptest::collection::vec(any::<u16>(), 1..8),
        extensions,
    )
        .prop_map(|(session_id, suites, extensions)| Hello {
            session_id,
            suites,
            extensions,
        })
}

/// Makes extension types that neither parser knows. tls-parser knows 13172, next protocol
/// negotiation, whose body is empty.
fn unknown() -> impl Strategy<Value = u16> {
    (100u16..60_000).prop_filter("known to tls-parser", |&kind| kind != 13_172)
}

fn push_all(flight: &mut FirstFlight, bytes: &[u8], chunk: usize) -> Progress {
    let mut chunks = bytes.chunks(chunk.max(1)).peekable();
    while let Some(chunk) = chunks.next() {
        match flight.push(chunk) {
            Progress::Partial => {}
            whole @ Progress::Whole(_) => {
                assert!(chunks.peek().is_none(), "whole before the last byte");
                return whole;
            }
        }
    }
    Progress::Partial
}

/// Returns the offer as tls-parser reads it.
fn oracle(record: &[u8]) -> Offer {
    let (_, plaintext) = parse_tls_plaintext(record).unwrap();
    let TlsMessage::Handshake(TlsMessageHandshake::ClientHello(hello)) = &plaintext.msg[0] else {
        panic!("no ClientHello");
    };
    let session_id = hello
        .session_id
        .map(<[u8]>::to_vec)
        .filter(|id| !id.is_empty());
    let mut offer = Offer {
        session_id,
        ..Offer::default()
    };
    let (_, extensions) = parse_tls_client_hello_extensions(hello.ext.unwrap_or_default()).unwrap();
    for extension in extensions {
        match extension {
            TlsExtension::SNI(names) => {
                let name = str::from_utf8(names[0].1).unwrap();
                offer.server_name = ServerName::new(name).into_owned();
            }
            TlsExtension::SessionTicket(ticket) => {
                offer.tickets.taken = true;
                if !ticket.is_empty() {
                    offer.session_id = None;
                }
                offer.tickets.tls12 =
                    Some(ticket.to_vec()).filter(|ticket| ticket.len() > SESSION_ID_MAX);
            }
            TlsExtension::SupportedVersions(versions) => {
                offer.tls13 = versions.iter().any(|version| version.0 == 0x0304);
            }
            _ => {}
        }
    }
    offer
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn offer_is_read_however_the_flight_is_cut(
        hello in hello(),
        sizes in proptest::collection::vec(1usize..400, 0..8),
        chunk in 1usize..600,
    ) {
        let flight = records(&hello.message(), &sizes);
        let mut reader = FirstFlight::default();
        prop_assert_eq!(push_all(&mut reader, &flight, chunk), Progress::Whole(hello.offer()));
        prop_assert_eq!(reader.into_bytes(), flight);
    }

    #[test]
    fn second_parser_reads_the_same_offer(hello in hello()) {
        let message = hello.message();
        let mut reader = FirstFlight::default();
        let Progress::Whole(mut read) = reader.push(&records(&message, &[])) else { panic!("not whole") };
        // tls-parser leaves PSK identities as raw bytes.
        read.identities.clear();
        read.tickets.tls13.clear();
        read.parameters = Parameters::default();
        read.fallback = false;
        prop_assert_eq!(read, oracle(&records(&message, &[])));
    }

    #[test]
    fn garbage_is_handed_on_untouched(garbage in bytes(600), chunk in 1usize..64) {
        let mut reader = FirstFlight::default();
        let mut pushed = 0;
        for chunk in garbage.chunks(chunk) {
            pushed += chunk.len();
            if reader.push(chunk) != Progress::Partial {
                break;
            }
        }
        prop_assert_eq!(reader.into_bytes(), &garbage[..pushed]);
    }

    #[test]
    fn damaged_hello_never_panics_or_exceeds_the_limit(
        hello in hello(),
        at in any::<prop::sample::Index>(),
        flip in 1u8..,
    ) {
        let mut flight = records(&hello.message(), &[]);
        let at = at.index(flight.len());
        flight[at] ^= flip;
        let mut reader = FirstFlight::default();
        if let Progress::Whole(offer) = reader.push(&flight) {
            prop_assert!(offer.identities.len() <= IDENTITIES_MAX);
            prop_assert!(offer.tickets.tls13.len() <= TICKETS_MAX);
        }
    }
}

#[test]
fn hello_that_every_server_refuses_offers_nothing() {
    let usual = || {
        let mut all = Extension::negotiable(&[29], &[29], &[1]);
        all.push(Extension::Identities(vec![vec![7; 32]]));
        all
    };
    let read = |extensions: Vec<Extension>| {
        let hello = Hello {
            session_id: vec![3; 32],
            suites: vec![0x1301],
            extensions,
        };
        match FirstFlight::default().push(&records(&hello.message(), &[])) {
            Progress::Whole(offer) => offer,
            Progress::Partial => panic!("the hello is complete"),
        }
    };
    assert_eq!(read(usual()).identities, [vec![7; 32]]);
    let with = |change: &dyn Fn(&mut Vec<Extension>)| {
        let mut all = usual();
        change(&mut all);
        read(all)
    };
    let name = |name: &str| Extension::ServerName(name.into());
    for (what, offer) in [
        (
            "an extension twice",
            with(&|all| all.insert(0, Extension::Unknown(45, vec![1, 1]))),
        ),
        (
            "an unknown extension twice",
            with(&|all| {
                all.insert(0, Extension::Unknown(60_000, vec![]));
                all.insert(0, Extension::Unknown(60_000, vec![]));
            }),
        ),
        (
            "an extension behind the pre_shared_key",
            with(&|all| all.push(Extension::Unknown(60_000, vec![]))),
        ),
        (
            "an empty identity",
            with(&|all| {
                all.pop();
                all.push(Extension::Identities(vec![vec![7; 32], vec![]]));
            }),
        ),
        (
            "a server name with a port",
            with(&|all| all.insert(0, name("a.test:443"))),
        ),
        ("a wildcard", with(&|all| all.insert(0, name("*.b.test")))),
    ] {
        assert_eq!(offer, Offer::default(), "{what}");
    }
    for (what, missing) in [("signature_algorithms", 2), ("psk_key_exchange_modes", 4)] {
        let offer = with(&|all| drop(all.remove(missing)));
        assert!(offer.identities.is_empty() && offer.tls13, "{what}");
    }
    let psk_alone = with(&|all| all[4] = Extension::Unknown(45, vec![1, 0]));
    assert!(psk_alone.identities.is_empty(), "psk_ke alone");
}

#[test]
fn offered_tickets_have_limits() {
    let read = |extensions: Vec<Extension>| {
        let hello = Hello {
            session_id: vec![3; 32],
            suites: vec![0x1301],
            extensions,
        };
        match FirstFlight::default().push(&records(&hello.message(), &[])) {
            Progress::Whole(offer) => offer.tickets,
            Progress::Partial => panic!("the hello is complete"),
        }
    };
    assert!(!read(Vec::new()).taken);
    for (length, is_read) in [
        (0, false),
        (SESSION_ID_MAX, false),
        (SESSION_ID_MAX + 1, true),
        (TICKET_MAX, true),
        (TICKET_MAX + 1, false),
    ] {
        let ticket = vec![7; length];
        let offered = read(vec![Extension::Ticket(ticket.clone())]);
        assert!(offered.taken);
        assert_eq!(offered.tls12, is_read.then_some(ticket), "{length}");
    }
    let mut all = Extension::negotiable(&[29], &[29], &[1]);
    let ticket = |last: u8| [vec![7; SESSION_ID_MAX], vec![last]].concat();
    let mut identities = vec![vec![1; 32], vec![9; TICKET_MAX + 1]];
    identities.extend((0..9).map(ticket));
    all.push(Extension::Identities(identities));
    let first: Vec<_> = (0..9).map(ticket).take(TICKETS_MAX).collect();
    assert_eq!(read(all.clone()).tls13, first);
    // Without psk_key_exchange_modes.
    all.remove(4);
    assert!(read(all).tls13.is_empty());
}

#[test]
fn second_hello_may_follow_a_change_cipher_spec() {
    let hello = Hello {
        session_id: vec![3; 32],
        suites: vec![0x1301],
        extensions: Vec::new(),
    };
    let message = records(&hello.message(), &[]);
    let flight = [&[20, 3, 3, 0, 1, 1][..], &message].concat();
    for chunk in [1, 3, 6, 7, flight.len()] {
        let mut reader = FirstFlight::after_retry();
        assert_eq!(
            push_all(&mut reader, &flight, chunk),
            Progress::Whole(hello.offer()),
            "{chunk}"
        );
        assert_eq!(reader.into_bytes(), flight);
    }
    assert_eq!(
        FirstFlight::after_retry().push(&message),
        Progress::Whole(hello.offer())
    );
    // Any other record ends the reading: rustls handles it.
    for other in [
        &[20, 3, 3, 0, 1, 2][..],
        &[23, 3, 3, 0, 1, 2],
        &[20, 3, 3, 0, 2, 1, 1],
    ] {
        assert_eq!(
            FirstFlight::after_retry().push(other),
            Progress::Whole(Offer::default()),
            "{other:?}"
        );
    }
}

#[test]
fn impossible_hello_is_not_waited_for() {
    for (what, flight) in [
        ("a record of another type", &b"GET / HTTP/1.1\r\n"[..]),
        ("an empty record", &[22, 3, 1, 0, 0]),
        ("a record that is too long", &[22, 3, 1, 0x41, 0x01]),
        ("another message", &[22, 3, 1, 0, 4, 2, 0, 0, 0]),
        ("a message that is too long", &[22, 3, 1, 0, 4, 1, 1, 0, 0]),
        ("a change_cipher_spec", &[20, 3, 1, 0, 1, 1]),
    ] {
        assert_eq!(
            FirstFlight::default().push(flight),
            Progress::Whole(Offer::default()),
            "{what}"
        );
    }
    assert_eq!(
        FirstFlight::default().push(&[22, 3, 1, 0, 4, 1, 0, 0xff]),
        Progress::Partial
    );
    // A long message in records of one byte each.
    let mut reader = FirstFlight::default();
    let message = [&[1, 0, 0xff, 0xff][..], &[0; 0xffff]].concat();
    let taken = message
        .iter()
        .take_while(|&&byte| reader.push(&[22, 3, 1, 0, 1, byte]) == Progress::Partial)
        .count();
    assert!(
        (13_000..14_000).contains(&taken),
        "{taken} records were kept"
    );
}
