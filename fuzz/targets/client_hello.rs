//! The reader of first flights: the same answer however the flight is cut, as much memory as came, and the same offer as
//! tls-parser and rustls read.
//!
//! ```text
//! input: a byte of flags, a byte that the pieces come from, a byte that the records come from, then
//!   RAW      the flight as it comes over the wire
//!   else     the body of a ClientHello, which gets its header and its records here
//! ```

use rustls::server::Acceptor;
use tls_parser::{TlsExtension, TlsMessage, TlsMessageHandshake, parse_tls_client_hello_extensions};
use tls_sessiond::client_hello::{FirstFlight, IDENTITIES_MAX, Offer, Progress, SESSION_ID_MAX};

const RAW: u8 = 1;

pub(crate) fn run(data: &[u8]) {
    let &[flags, pieces, records, ref rest @ ..] = data else { return };
    let flight = if flags & RAW == 0 { in_records(&message(rest), records) } else { rest.to_vec() };

    let mut reader = FirstFlight::default();
    let answer = reader.push(&flight);
    assert_eq!(reader.into_bytes(), flight, "every byte is kept, and no other");
    in_pieces(&flight, pieces, &answer);
    let taken = engine(&flight, &answer);
    if let Progress::Whole(offer) = &answer {
        assert!(offer.identities.len() <= IDENTITIES_MAX);
        let ids = offer.identities.iter().chain(&offer.session_id);
        ids.for_each(|id| assert!((1..=SESSION_ID_MAX).contains(&id.len())));
        // tls-parser reads past some lengths that do not fit. Nothing is looked for then, and rustls refuses it.
        if taken || *offer != Offer::default() {
            second_parser(&flight, offer);
        }
    }
}

fn message(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("inputs are short").to_be_bytes();
    [&[1, length[1], length[2], length[3]], body].concat()
}

/// The message in records whose sizes come from a number: one record for zero.
fn in_records(message: &[u8], sizes: u8) -> Vec<u8> {
    let mut flight = Vec::new();
    let most = if sizes == 0 { 16_384 } else { usize::from(sizes) * 3 };
    for payload in message.chunks(most) {
        flight.extend([22, 3, 1]);
        flight.extend(u16::try_from(payload.len()).expect("a record is short").to_be_bytes());
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
    assert_eq!(last, *answer, "the answer depends on how the flight was cut");
    assert_eq!(reader.into_bytes(), &flight[..pushed]);
}

/// The first handshake message, out of its records.
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

/// tls-parser, where it takes the whole message, knows everything in it, and nothing is there twice.
fn second_parser(flight: &[u8], read: &Offer) {
    let Some(message) = gathered(flight) else { return };
    let Ok((rest, TlsMessage::Handshake(TlsMessageHandshake::ClientHello(hello)))) =
        tls_parser::parse_tls_message_handshake(&message)
    else {
        return;
    };
    // It leaves out extensions that do not fit, and what follows them.
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
    let session_id = hello.session_id.map(<[u8]>::to_vec).filter(|id| !id.is_empty());
    let mut offer = Offer { session_id, ..Offer::default() };
    let Ok((rest, extensions)) = parse_tls_client_hello_extensions(hello.ext.unwrap_or_default()) else {
        return;
    };
    let mut seen = [false; 3];
    for extension in extensions {
        let place = match extension {
            TlsExtension::SNI(names) => {
                // One name: what rustls and we do with more is not what tls-parser does.
                let [(kind, name)] = names.as_slice() else { return };
                let Ok(name) = std::str::from_utf8(name) else { return };
                if kind.0 != 0 || rustls::pki_types::DnsName::try_from(name).is_err() {
                    return;
                }
                offer.server_name = name.to_lowercase();
                0
            }
            TlsExtension::SessionTicket(ticket) => {
                if !ticket.is_empty() {
                    offer.session_id = None;
                }
                1
            }
            TlsExtension::SupportedVersions(versions) => {
                offer.tls13 = versions.iter().any(|version| version.0 == 0x0304);
                2
            }
            // It leaves these as they are; ours may find them malformed.
            TlsExtension::PreSharedKey(_) => return,
            _ => continue,
        };
        if std::mem::replace(&mut seen[place], true) {
            return;
        }
    }
    if rest.is_empty() {
        assert_eq!(*read, offer, "tls-parser reads another offer");
    }
}

/// What rustls takes must be what was read: the name decides which sessions are looked for. Tells whether
/// it takes it.
fn engine(flight: &[u8], answer: &Progress) -> bool {
    let mut acceptor = Acceptor::default();
    let mut rest = flight;
    while !rest.is_empty() {
        if acceptor.read_tls(&mut rest).is_err() {
            return false;
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let Progress::Whole(offer) = answer else { panic!("rustls has a whole ClientHello") };
                let name = accepted.client_hello().server_name().unwrap_or_default().to_lowercase();
                assert_eq!(offer.server_name, name, "rustls reads another name");
                return true;
            }
            Err(_) => return false,
        }
    }
    false
}
