//! The PROXY protocol: the header that a load balancer sends before the bytes of its client, and the
//! one that a backend gets (haproxy.org/download/3.0/doc/proxy-protocol.txt).

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use ppp::{v1, v2};
use tls_sessiond_client::{Version, rustls::TlsStream};
use tls_sessiond_core::context::identity::common_name;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::tally::Unserved;

/// The longest header of version 2 that is read after its first 16 bytes.
const PAYLOAD_MAX: usize = 4096;
/// The longest line of version 1, with its end (section 2.1).
const LINE_MAX: usize = 107;
/// The beginning of version 1.
const LINE: &[u8] = b"PROXY ";

/// The addresses of a connection: those that a header tells, or else those of the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    /// The client.
    pub(super) source: SocketAddr,
    /// The address that it connected to.
    pub(super) destination: SocketAddr,
}

/// Returns whether bytes begin like a header, in either version.
pub(super) fn begins(bytes: &[u8]) -> bool {
    bytes.starts_with(LINE) || bytes.starts_with(v2::PROTOCOL_PREFIX)
}

/// Reads the header that stands before everything else, and no byte more. `None`: it tells no
/// addresses, as that of a health check.
///
/// # Errors
/// Why there is no header. A stream that fails counts as ended.
pub(super) async fn read(
    from: &mut (impl AsyncRead + Unpin),
) -> Result<Option<Addresses>, Unserved> {
    const SIGNATURE: usize = v2::PROTOCOL_PREFIX.len();
    let mut header = vec![0; SIGNATURE];
    // Both versions are longer than the signature of version 2.
    from.read_exact(&mut header).await.map_err(over)?;
    if header == v2::PROTOCOL_PREFIX {
        let mut head = [0; 4];
        from.read_exact(&mut head).await.map_err(over)?;
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        if length > PAYLOAD_MAX {
            return Err(Unserved::InvalidProxyHeader);
        }
        header.extend(head);
        let begin = header.len();
        header.resize(begin + length, 0);
        from.read_exact(&mut header[begin..]).await.map_err(over)?;
        return binary(&header);
    }
    if !header.starts_with(LINE) {
        return Err(Unserved::MissingProxyHeader);
    }
    while !header.ends_with(b"\n") {
        if header.len() >= LINE_MAX {
            return Err(Unserved::InvalidProxyHeader);
        }
        header.push(from.read_u8().await.map_err(over)?);
    }
    line(&header)
}

fn over(_: io::Error) -> Unserved {
    Unserved::Ended
}

fn binary(header: &[u8]) -> Result<Option<Addresses>, Unserved> {
    let header = v2::Header::try_from(header).map_err(|_| Unserved::InvalidProxyHeader)?;
    let is_stream = header.protocol == v2::Protocol::Stream;
    match (header.command, header.addresses) {
        (v2::Command::Local, _) | (_, v2::Addresses::Unspecified | v2::Addresses::Unix(_)) => {
            Ok(None)
        }
        (v2::Command::Proxy, _) if !is_stream => Err(Unserved::InvalidProxyHeader),
        (v2::Command::Proxy, v2::Addresses::IPv4(ip)) => Ok(Some(Addresses {
            source: (ip.source_address, ip.source_port).into(),
            destination: (ip.destination_address, ip.destination_port).into(),
        })),
        (v2::Command::Proxy, v2::Addresses::IPv6(ip)) => Ok(Some(Addresses {
            source: (ip.source_address, ip.source_port).into(),
            destination: (ip.destination_address, ip.destination_port).into(),
        })),
    }
}

fn line(header: &[u8]) -> Result<Option<Addresses>, Unserved> {
    let header = v1::Header::try_from(header).map_err(|_| Unserved::InvalidProxyHeader)?;
    Ok(match header.addresses {
        v1::Addresses::Unknown => None,
        v1::Addresses::Tcp4(ip) => Some(Addresses {
            source: (ip.source_address, ip.source_port).into(),
            destination: (ip.destination_address, ip.destination_port).into(),
        }),
        v1::Addresses::Tcp6(ip) => Some(Addresses {
            source: (ip.source_address, ip.source_port).into(),
            destination: (ip.destination_address, ip.destination_port).into(),
        }),
    })
}

/// The type of our own TLV, of those that are free for own use (section 2.2.7): one byte, 1 if the
/// handshake resumed a session and 0 if it was a full one.
pub(crate) const TYPE_RESUMED: u8 = 0xe0;

/// The bits of `client` in PP2_TYPE_SSL (section 2.2.6).
const CLIENT_SSL: u8 = 1;
const CLIENT_CERT_CONN: u8 = 2;
const CLIENT_CERT_SESS: u8 = 4;

/// Makes the header for a backend: addresses, PP2_TYPE_ALPN, PP2_TYPE_AUTHORITY, PP2_TYPE_SSL and
/// [`TYPE_RESUMED`].
///
/// # Errors
/// The values are longer than a header can be.
pub(super) fn write<IO>(addresses: Addresses, tls: &TlsStream<IO>) -> io::Result<Vec<u8>> {
    let (_, rustls) = tls.get_ref().get_ref();
    let leaf = rustls.peer_certificates().and_then(<[_]>::first);
    let client = match (leaf.is_some(), tls.resumed()) {
        (false, _) => CLIENT_SSL,
        (true, false) => CLIENT_SSL | CLIENT_CERT_CONN | CLIENT_CERT_SESS,
        (true, true) => CLIENT_SSL | CLIENT_CERT_SESS,
    };
    let mut ssl = vec![client];
    // "verify" is zero if the client's certificate was verified. One that was not ends the handshake.
    ssl.extend(u32::to_be_bytes(u32::from(leaf.is_none())));
    let version = match tls.version() {
        Version::Tls12 => "TLSv1.2",
        Version::Tls13 => "TLSv1.3",
    };
    part(&mut ssl, v2::Type::SSLVersion, version.as_bytes())?;
    if let Some(name) = leaf.and_then(|leaf| common_name(leaf)) {
        part(&mut ssl, v2::Type::SSLCommonName, name.as_bytes())?;
    }
    part(&mut ssl, v2::Type::SSLCipher, tls.cipher_suite().as_bytes())?;
    let command = v2::Version::Two | v2::Command::Proxy;
    let pair = same_family(addresses);
    let mut header = v2::Builder::with_addresses(command, v2::Protocol::Stream, pair);
    if let Some(protocol) = rustls.alpn_protocol() {
        header = header.write_tlv(v2::Type::ALPN, protocol)?;
    }
    if let Some(name) = rustls.server_name() {
        header = header.write_tlv(v2::Type::Authority, name.as_bytes())?;
    }
    let resumed = [u8::from(tls.resumed())];
    header
        .write_tlv(v2::Type::SSL, &ssl)?
        .write_tlv(TYPE_RESUMED, &resumed[..])?
        .build()
}

/// Adds one part of PP2_TYPE_SSL.
fn part(to: &mut Vec<u8>, kind: v2::Type, value: &[u8]) -> io::Result<()> {
    let length = u16::try_from(value.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    to.push(kind.into());
    to.extend(length.to_be_bytes());
    to.extend(value);
    Ok(())
}

/// A header has addresses of one family: both become IPv6 if one of them is.
fn same_family(addresses: Addresses) -> (SocketAddr, SocketAddr) {
    let Addresses {
        source,
        destination,
    } = addresses;
    let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let (source, destination) = (plain(source), plain(destination));
    let mapped = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    };
    match source.is_ipv4() == destination.is_ipv4() {
        true => (source, destination),
        false => (mapped(source), mapped(destination)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(bytes: &[u8]) -> Result<Option<Addresses>, Unserved> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let mut rest = bytes;
        match runtime.block_on(read(&mut rest)) {
            Ok(addresses) => {
                assert_eq!(rest, b"\x16\x03", "no byte of what follows is read");
                Ok(addresses)
            }
            Err(why) => Err(why),
        }
    }

    #[test]
    fn headers_of_both_versions_are_read_and_others_refused() {
        let told = Addresses {
            source: "10.0.0.1:1000".parse().unwrap(),
            destination: "10.0.0.2:443".parse().unwrap(),
        };
        let command = v2::Version::Two | v2::Command::Proxy;
        let pair = (told.source, told.destination);
        let binary = |command, protocol| {
            let header = v2::Builder::with_addresses(command, protocol, pair);
            let header = header
                .write_tlv(v2::Type::NoOp, [0; 40].as_slice())
                .unwrap();
            [header.build().unwrap(), vec![22, 3]].concat()
        };
        assert_eq!(
            parsed(&binary(command, v2::Protocol::Stream)),
            Ok(Some(told))
        );
        assert_eq!(
            parsed(b"PROXY TCP4 10.0.0.1 10.0.0.2 1000 443\r\n\x16\x03"),
            Ok(Some(told))
        );
        assert_eq!(parsed(b"PROXY UNKNOWN\r\n\x16\x03"), Ok(None));
        let local = v2::Version::Two | v2::Command::Local;
        assert_eq!(parsed(&binary(local, v2::Protocol::Stream)), Ok(None));
        let datagram = parsed(&binary(command, v2::Protocol::Datagram));
        assert_eq!(datagram, Err(Unserved::InvalidProxyHeader));
        for (bytes, why) in [
            (&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00"[..], Unserved::MissingProxyHeader),
            (b"GET / HTTP/1.1\r\n", Unserved::MissingProxyHeader),
            (b"PROXY TCP4 10.0.0.1 10.0.0.2 1000\r\n", Unserved::InvalidProxyHeader),
            (b"PROXY TCP4 10.0.0.1 10.0.0.2 1000 443 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28", Unserved::InvalidProxyHeader),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff", Unserved::InvalidProxyHeader),
            (b"\r\n\r\n\0\r\nQUIT\n\x31\x11\x00\x00", Unserved::InvalidProxyHeader),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x04abcd", Unserved::InvalidProxyHeader),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0cabcd", Unserved::Ended),
            (b"PROXY", Unserved::Ended),
        ] {
            assert_eq!(parsed(bytes), Err(why), "{bytes:?}");
        }
    }

    #[test]
    fn addresses_of_a_header_have_one_family() {
        let pair = |one: &str, two: &str| {
            let (one, two) = same_family(Addresses {
                source: one.parse().unwrap(),
                destination: two.parse().unwrap(),
            });
            (one.to_string(), two.to_string())
        };
        let both = |one: &str, two: &str| (one.to_owned(), two.to_owned());
        assert_eq!(
            pair("[::ffff:1.2.3.4]:1", "5.6.7.8:2"),
            both("1.2.3.4:1", "5.6.7.8:2")
        );
        assert_eq!(
            pair("[fd00::1]:1", "5.6.7.8:2"),
            both("[fd00::1]:1", "[::ffff:5.6.7.8]:2")
        );
    }
}
