//! The parser of first flights. The target checks:
//!
//! * The answer does not depend on how the flight is cut into pieces.
//! * The parser keeps exactly the bytes that came.
//! * It reads the same offer as tls-parser and rustls.
//! * rustls asks for no session that the parser has not read.
//!
//! ```text
//! input: a byte of flags, a byte that decides the pieces, a byte that decides the records, then
//!   RAW      the flight as it comes over the wire
//!   else     the body of a ClientHello; the target adds its header and its records
//!   OLD      the rustls server has TLS 1.2 alone
//! ```

use std::sync::{Arc, LazyLock, Mutex};

use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{DnsName, PrivateKeyDer},
    server::{Acceptor, StoresServerSessions},
    version::{TLS12, TLS13},
};
use tls_parser::{
    TlsExtension, TlsMessage, TlsMessageHandshake, parse_tls_client_hello_extensions,
};
use tls_sessiond_types::{
    client_hello::{
        FirstFlight, IDENTITIES_MAX, Offer, Progress, SESSION_ID_MAX, TICKET_MAX, TICKETS_MAX,
    },
    server_name::ServerName,
};

const RAW: u8 = 1;
const OLD: u8 = 2;

pub(crate) fn run(data: &[u8]) {
    let &[flags, pieces, records, ref rest @ ..] = data else {
        return;
    };
    let flight = if flags & RAW == 0 {
        in_records(&message(rest), records)
    } else {
        rest.to_vec()
    };

    let mut reader = FirstFlight::default();
    let answer = reader.push(&flight);
    assert_eq!(
        reader.into_bytes(),
        flight,
        "the parser keeps exactly the bytes that came"
    );
    in_pieces(&flight, pieces, &answer);
    let taken = engine(&flight, &answer, flags & OLD != 0);
    if let Progress::Whole(offer) = &answer {
        assert!(offer.identities.len() <= IDENTITIES_MAX);
        let ids = offer.identities.iter().chain(&offer.session_id);
        ids.for_each(|id| assert!((1..=SESSION_ID_MAX).contains(&id.len())));
        assert!(offer.tickets.tls13.len() <= TICKETS_MAX);
        let tickets = offer.tickets.tls13.iter().chain(&offer.tickets.tls12);
        tickets.for_each(|ticket| {
            assert!((SESSION_ID_MAX + 1..=TICKET_MAX).contains(&ticket.len()));
        });
        // tls-parser reads past some lengths that do not fit, and rustls refuses them.
        if taken {
            second_parser(&flight, offer);
        }
    }
}

fn message(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len())
        .expect("inputs are short")
        .to_be_bytes();
    [&[1, length[1], length[2], length[3]], body].concat()
}

/// Puts the message into records whose sizes `sizes` decides; zero means one record.
fn in_records(message: &[u8], sizes: u8) -> Vec<u8> {
    let mut flight = Vec::new();
    let most = if sizes == 0 {
        16_384
    } else {
        usize::from(sizes) * 3
    };
    for payload in message.chunks(most) {
        flight.extend([22, 3, 1]);
        flight.extend(
            u16::try_from(payload.len())
                .expect("a record is short")
                .to_be_bytes(),
        );
        flight.extend(payload);
    }
    flight
}

fn in_pieces(flight: &[u8], sizes: u8, answer: &Progress) {
    let (mut reader, mut pushed, mut size) = (FirstFlight::default(), 0, usize::from(sizes));
    let mut last = Progress::Partial;
    let mut rest = flight;
    while !rest.is_empty() && last == Progress::Partial {
        size = (size * 7 + 1) % 97;
        let (piece, after) = rest.split_at((size + 1).min(rest.len()));
        last = reader.push(piece);
        (rest, pushed) = (after, pushed + piece.len());
    }
    assert_eq!(
        last, *answer,
        "the answer depends on how the flight was cut"
    );
    assert_eq!(reader.into_bytes(), &flight[..pushed]);
}

/// Returns the first handshake message, taken out of its records.
fn gathered(mut flight: &[u8]) -> Option<Vec<u8>> {
    let mut message = Vec::new();
    loop {
        if let Some(&[_, high, middle, low]) = message.first_chunk() {
            let length = 4 + usize::try_from(u32::from_be_bytes([0, high, middle, low])).ok()?;
            if message.len() >= length {
                message.truncate(length);
                return Some(message);
            }
        }
        let &[kind, _, _, high, low] = flight.first_chunk()?;
        let length = usize::from(u16::from_be_bytes([high, low]));
        if kind != 22 || length == 0 {
            return None;
        }
        message.extend(flight.get(5..5 + length)?);
        flight = &flight[5 + length..];
    }
}

/// Compares with tls-parser, if it parses the whole message, knows everything in it, and no
/// extension is repeated.
fn second_parser(flight: &[u8], read: &Offer) {
    let Some(message) = gathered(flight) else {
        return;
    };
    let Ok((rest, TlsMessage::Handshake(TlsMessageHandshake::ClientHello(hello)))) =
        tls_parser::parse_tls_message_handshake(&message)
    else {
        return;
    };
    // tls-parser leaves out extensions that do not fit, and everything after them.
    let fields = 2
        + 32
        + 1
        + hello.session_id.map_or(0, <[u8]>::len)
        + 2
        + 2 * hello.ciphers.len()
        + 1
        + hello.comp.len();
    let whole = 4 + fields + hello.ext.map_or(0, |extensions| 2 + extensions.len());
    if !rest.is_empty() || message.len() != whole {
        return;
    }
    let session_id = hello
        .session_id
        .map(<[u8]>::to_vec)
        .filter(|id| !id.is_empty());
    let mut offer = Offer {
        session_id,
        ..Offer::default()
    };
    let Ok((rest, extensions)) = parse_tls_client_hello_extensions(hello.ext.unwrap_or_default())
    else {
        return;
    };
    let mut seen = [false; 3];
    for extension in extensions {
        let place = match extension {
            TlsExtension::SNI(names) => {
                // One name only: with several, tls-parser differs from rustls and this parser.
                let [(kind, name)] = names.as_slice() else {
                    return;
                };
                let Ok(name) = std::str::from_utf8(name) else {
                    return;
                };
                let Ok(name) = DnsName::try_from(name) else {
                    return;
                };
                if kind.0 != 0 {
                    return;
                }
                offer.server_name = ServerName::new(name.as_ref()).into_owned();
                offer.dotted = name.as_ref().ends_with('.');
                0
            }
            TlsExtension::SessionTicket(ticket) => {
                offer.tickets.taken = true;
                if !ticket.is_empty() {
                    offer.session_id = None;
                }
                1
            }
            TlsExtension::SupportedVersions(versions) => {
                offer.tls13 = versions.iter().any(|version| version.0 == 0x0304);
                2
            }
            // tls-parser does not parse these; this parser may find them malformed.
            TlsExtension::PreSharedKey(_) => return,
            _ => continue,
        };
        if std::mem::replace(&mut seen[place], true) {
            return;
        }
    }
    if rest.is_empty() {
        assert_eq!(read.tls13, offer.tls13, "tls-parser reads other versions");
        assert_eq!(
            (&read.session_id, read.tickets.taken),
            (&offer.session_id, offer.tickets.taken),
            "tls-parser reads another session id"
        );
        assert_eq!(
            (&read.server_name, read.dotted),
            (&offer.server_name, offer.dotted),
            "tls-parser reads another name"
        );
    }
}

/// Checks that rustls reads what the parser has read, if rustls accepts the flight.
///
/// The name, and the sessions that rustls asks its storage for, decide which session is resumed.
/// The storage has only sessions that the parser has read. Returns whether rustls accepts the
/// flight.
fn engine(flight: &[u8], answer: &Progress, old: bool) -> bool {
    let mut acceptor = Acceptor::default();
    let mut rest = flight;
    while !rest.is_empty() {
        if acceptor.read_tls(&mut rest).is_err() {
            return false;
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let Progress::Whole(offer) = answer else {
                    panic!("rustls has a whole ClientHello")
                };
                let hello = accepted.client_hello();
                let name = hello.server_name().unwrap_or_default();
                assert_eq!(
                    offer.server_name,
                    ServerName::new(name),
                    "rustls reads another name"
                );
                assert_eq!(
                    offer.dotted,
                    name.ends_with('.'),
                    "rustls reads another name"
                );
                // rustls asks its storage, and then accepts or refuses the hello.
                let asked = Arc::new(Asked::default());
                let _ = accepted.into_connection(server(Arc::clone(&asked), old));
                asked.was_read(offer, old);
                return true;
            }
            Err(_) => return false,
        }
    }
    false
}

/// An empty session storage that records the ids it was asked for.
#[derive(Debug, Default)]
struct Asked(Mutex<Vec<(Version, Vec<u8>)>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Tls12,
    Tls13,
}

impl Asked {
    fn was_read(&self, offer: &Offer, old: bool) {
        for (version, id) in self
            .0
            .lock()
            .expect("no thread panics with the lock")
            .iter()
        {
            let read = match version {
                Version::Tls12 => offer.session_id.as_slice(),
                Version::Tls13 => offer.identities.as_slice(),
            };
            assert_eq!(
                *version == Version::Tls13,
                offer.tls13 && !old,
                "rustls speaks another version"
            );
            // rustls also asks for identities of a client that offers no key exchange mode, and
            // resumes none of them.
            let resumes = *version == Version::Tls12 || !read.is_empty();
            let ours =
                resumes && (1..=SESSION_ID_MAX).contains(&id.len()) && read.len() < IDENTITIES_MAX;
            assert!(
                !ours || read.contains(id),
                "rustls asks for {id:?}, which was not read"
            );
        }
    }
}

impl StoresServerSessions for Asked {
    fn put(&self, _: Vec<u8>, _: Vec<u8>) -> bool {
        false
    }

    fn get(&self, id: &[u8]) -> Option<Vec<u8>> {
        self.0
            .lock()
            .expect("no thread panics with the lock")
            .push((Version::Tls12, id.to_vec()));
        None
    }

    fn take(&self, identity: &[u8]) -> Option<Vec<u8>> {
        self.0
            .lock()
            .expect("no thread panics with the lock")
            .push((Version::Tls13, identity.to_vec()));
        None
    }

    fn can_cache(&self) -> bool {
        true
    }
}

/// Makes a server as the daemon does, for both versions or for TLS 1.2 alone.
fn server(asked: Arc<Asked>, old: bool) -> Arc<ServerConfig> {
    static SERVERS: LazyLock<[ServerConfig; 2]> = LazyLock::new(|| {
        let made =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("keys can be made");
        let (chain, key) = (
            vec![made.cert.der().clone()],
            made.signing_key.serialize_der(),
        );
        [&[&TLS12, &TLS13][..], &[&TLS12]].map(|versions| {
            let key = PrivateKeyDer::Pkcs8(key.clone().into());
            ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_protocol_versions(versions)
                .expect("the provider has these versions")
                .with_no_client_auth()
                .with_single_cert(chain.clone(), key)
                .expect("the key belongs to the certificate")
        })
    });
    let mut config = SERVERS[usize::from(old)].clone();
    config.session_storage = asked;
    Arc::new(config)
}
