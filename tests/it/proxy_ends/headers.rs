//! The PROXY protocol: the header that a backend gets, and addresses that a load balancer tells.

use std::net::SocketAddr;

use rustls::version::{TLS12, TLS13};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::world::{BOTH, Backend, Home, Proxies, drained, resumed, take_tickets};

/// A header of version 2, read by the text of the specification.
#[derive(Debug)]
struct Header {
    source: SocketAddr,
    destination: SocketAddr,
    /// Type and value.
    parts: Vec<(u8, Vec<u8>)>,
}

fn parts(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut parts = Vec::new();
    while let [kind, high, low, rest @ ..] = bytes {
        let (value, rest) = rest.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        parts.push((*kind, value.to_vec()));
        bytes = rest;
    }
    assert!(bytes.is_empty(), "{bytes:?}");
    parts
}

impl Header {
    async fn read(from: &mut TcpStream) -> Self {
        let mut head = [0; 16];
        from.read_exact(&mut head).await.unwrap();
        assert_eq!(&head[..12], b"\r\n\r\n\0\r\nQUIT\n");
        // Version 2, PROXY, a stream over IPv4.
        assert_eq!(head[12..14], [0x21, 0x11]);
        let mut rest = vec![0; usize::from(u16::from_be_bytes([head[14], head[15]]))];
        from.read_exact(&mut rest).await.unwrap();
        let address = |ip: usize, port: usize| {
            let ip: [u8; 4] = rest[ip..ip + 4].try_into().unwrap();
            SocketAddr::from((ip, u16::from_be_bytes([rest[port], rest[port + 1]])))
        };
        Self {
            source: address(0, 8),
            destination: address(4, 10),
            parts: parts(&rest[12..]),
        }
    }

    fn part(&self, kind: u8) -> Option<&[u8]> {
        let found = self.parts.iter().find(|(found, _)| *found == kind);
        found.map(|(_, value)| value.as_slice())
    }
}

const ALPN: u8 = 1;
const AUTHORITY: u8 = 2;
const SSL: u8 = 0x20;
const RESUMED: u8 = 0xe0;
/// Parts of `SSL`.
const VERSION: u8 = 0x21;
const COMMON_NAME: u8 = 0x22;
const CIPHER: u8 = 0x23;

#[tokio::test]
async fn backend_learns_the_addresses_and_the_handshake() {
    let home = Home::new();
    let backend = Backend::listen().await;
    let leaf = home.issue("client", &["client.test"]);
    let more = format!(
        "proxy_protocol = \"send\"\nalpn = [\"h2\", \"http/1.1\"]\nclient_auth = \"request\"\nclient_ca = \"{}\"",
        home.path("ca.pem")
    );
    let proxies = Proxies::start(&home.proxy(&backend.uri(), "own", &more)).await;
    for (version, has_certificate) in [
        (&TLS12, true),
        (&TLS13, true),
        (&TLS12, false),
        (&TLS13, false),
    ] {
        let client = match has_certificate {
            true => home.client_with(version, &leaf, &["http/1.1"]),
            false => home.client(version),
        };
        for is_resumed in [false, true] {
            let what = format!("{:?} {has_certificate} {is_resumed}", version.version);
            let (tls, socket) = tokio::join!(client.connect(&proxies.at[0]), backend.accept());
            let (mut tls, mut socket) = (tls, socket);
            assert_eq!(resumed(&tls), is_resumed, "{what}");
            let header = Header::read(&mut socket).await;
            let near = tls.get_ref().0.local_addr().unwrap();
            assert_eq!(header.source, near, "{what}");
            assert_eq!(header.destination.to_string(), proxies.at[0], "{what}");
            assert_eq!(header.part(AUTHORITY), Some(&b"localhost"[..]), "{what}");
            let alpn = has_certificate.then_some(&b"http/1.1"[..]);
            assert_eq!(header.part(ALPN), alpn, "{what}");
            assert_eq!(
                header.part(RESUMED),
                Some(&[u8::from(is_resumed)][..]),
                "{what}"
            );
            let ssl = header.part(SSL).unwrap();
            // PP2_CLIENT_SSL, CERT_CONN and CERT_SESS. "verify" is 0 for a verified certificate.
            let bits = match (has_certificate, is_resumed) {
                (false, _) => 1,
                (true, false) => 7,
                (true, true) => 5,
            };
            let unverified = u32::from(!has_certificate);
            assert_eq!(ssl[0], bits, "{what}");
            assert_eq!(ssl[1..5], unverified.to_be_bytes(), "{what}");
            let parts = parts(&ssl[5..]);
            let part = |kind: u8| {
                let found = parts.iter().find(|(found, _)| *found == kind);
                found.map(|(_, value)| String::from_utf8(value.clone()).unwrap())
            };
            let name = if *version == TLS12 {
                "TLSv1.2"
            } else {
                "TLSv1.3"
            };
            assert_eq!(part(VERSION).as_deref(), Some(name), "{what}");
            let common_name = has_certificate.then_some("client.test");
            assert_eq!(part(COMMON_NAME).as_deref(), common_name, "{what}");
            assert!(part(CIPHER).unwrap().starts_with("TLS_"), "{what}");
            // The bytes of the client follow.
            tls.write_all(b"request").await.unwrap();
            socket.read_exact(&mut [0; 7]).await.unwrap();
            drop(socket);
            drained(&mut tls).await;
            tls.shutdown().await.unwrap();
        }
    }
}

#[tokio::test]
async fn told_addresses_are_passed_on() {
    let home = Home::new();
    let backend = Backend::listen().await;
    let more = "proxy_protocol = \"both\"\nproxy_protocol_from = [\"127.0.0.0/8\"]";
    let proxies = Proxies::start(&home.proxy(&backend.uri(), "own", more)).await;
    let binary = [
        &b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x10"[..],
        &[192, 0, 2, 7, 192, 0, 2, 1, 0x30, 0x39, 1, 0xbb],
        // A part that the proxy does not know.
        &[0xea, 0, 1, 9],
    ]
    .concat();
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    let line = b"PROXY TCP4 192.0.2.7 192.0.2.1 12345 443\r\n";
    let told = Some(("192.0.2.7:12345", "192.0.2.1:443"));
    for version in BOTH {
        for (header, told) in [
            (&line[..], told),
            (&binary, told),
            (local, None),
            (b"PROXY UNKNOWN\r\n", None),
        ] {
            let mut socket = TcpStream::connect(&proxies.at[0]).await.unwrap();
            let near = socket.local_addr().unwrap().to_string();
            socket.write_all(header).await.unwrap();
            let client = home.client(version);
            let (tls, backend) = tokio::join!(client.over(socket, "localhost"), backend.accept());
            let (mut tls, mut backend) = (tls.unwrap(), backend);
            take_tickets(&mut tls).await;
            let (source, destination) = told.unwrap_or((&near, &proxies.at[0]));
            let header = Header::read(&mut backend).await;
            assert_eq!(header.source.to_string(), source);
            assert_eq!(header.destination.to_string(), destination);
        }
    }
}
