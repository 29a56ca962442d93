//! The clients: threads that block, with rustls. Their CPU time is not measured.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    sync::Arc,
    thread,
    time::Duration,
};

use rustls::{
    CipherSuite, ClientConfig, ClientConnection, HandshakeKind, RootCertStore, Stream,
    client::Resumption,
    crypto::aws_lc_rs::{
        default_provider,
        kx_group::{SECP256R1, X25519},
    },
};

use crate::{backend::Request, terminators::Setup};

/// The number of connections at a time.
pub(crate) const IN_FLIGHT: usize = 16;
const NAME: &str = "localhost";
/// A terminator that does not answer for this long has failed.
const SILENT_MAX: Duration = Duration::from_secs(20);

/// The version of TLS.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Version {
    Tls12,
    Tls13,
}

/// Returns a client with a session store of its own, or with none. It offers one cipher suite, and
/// takes one group, so that all terminators agree on the same.
pub(crate) fn config(setup: &Setup, version: Version, returns: bool) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(setup.certificate()).unwrap();
    let mut provider = default_provider();
    // OpenSSL takes the second one for the leave to use a certificate of this curve (RFC 8422 section 4).
    provider.kx_groups = vec![X25519, SECP256R1];
    provider.cipher_suites.retain(|suite| {
        matches!(
            suite.suite(),
            CipherSuite::TLS13_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        )
    });
    let version = match version {
        Version::Tls12 => &rustls::version::TLS12,
        Version::Tls13 => &rustls::version::TLS13,
    };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = match returns {
        true => Resumption::in_memory_sessions(64),
        false => Resumption::disabled(),
    };
    Arc::new(config)
}

/// An open connection. Dropping it ends it without a close_notify.
pub(crate) struct Open {
    tls: ClientConnection,
    socket: TcpStream,
}

impl Open {
    /// Connects, and sends a request with the end of the handshake.
    pub(crate) fn begin(config: &Arc<ClientConfig>, port: u16, request: Request) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(SILENT_MAX)).unwrap();
        let name = NAME.try_into().unwrap();
        let mut open = Self {
            tls: ClientConnection::new(Arc::clone(config), name).unwrap(),
            socket,
        };
        open.stream().write_all(&request.encode()).unwrap();
        open
    }

    fn stream(&mut self) -> Stream<'_, ClientConnection, TcpStream> {
        Stream::new(&mut self.tls, &mut self.socket)
    }

    /// Sends this many bytes.
    pub(crate) fn send(&mut self, bytes: u64) {
        let chunk = vec![7; 256 << 10];
        let mut left = bytes;
        while left > 0 {
            let size = usize::try_from(left).map_or(chunk.len(), |left| left.min(chunk.len()));
            self.stream().write_all(&chunk[..size]).unwrap();
            left -= size as u64;
        }
    }

    /// Waits for the first byte.
    pub(crate) fn first_byte(&mut self) {
        self.stream().read_exact(&mut [0]).unwrap();
    }

    /// Reads until the close_notify, and closes. Returns the number of bytes, and whether the handshake
    /// resumed.
    pub(crate) fn finish(mut self) -> (u64, bool) {
        let mut chunk = vec![0; 64 << 10];
        let mut read = 0;
        loop {
            match self.stream().read(&mut chunk) {
                Ok(0) => break,
                Ok(some) => read += some as u64,
                Err(err) => panic!("{err}"),
            }
        }
        // A resumption of TLS 1.2 has no key exchange.
        if let Some(group) = self.tls.negotiated_key_exchange_group() {
            assert_eq!(group.name(), X25519.name());
        }
        let resumed = self.tls.handshake_kind() == Some(HandshakeKind::Resumed);
        self.tls.send_close_notify();
        // A terminator may have closed its socket.
        match self.tls.write_tls(&mut self.socket) {
            Ok(_) => {}
            Err(err) => assert!(
                matches!(
                    err.kind(),
                    ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
                ),
                "{err}"
            ),
        }
        (read, resumed)
    }
}

/// Runs connections one after the other on each thread. Each asks for some bytes. Returns how many
/// handshakes resumed.
pub(crate) fn handshakes(configs: &[Arc<ClientConfig>], port: u16, each: usize) -> usize {
    const ANSWER: u64 = 100;
    let one = |config: &Arc<ClientConfig>| {
        let open = Open::begin(config, port, Request::Send(ANSWER));
        let (read, resumed) = open.finish();
        assert_eq!(read, ANSWER);
        resumed
    };
    thread::scope(|scope| {
        let threads: Vec<_> = configs
            .iter()
            .map(|config| scope.spawn(move || (0..each).filter(|_| one(config)).count()))
            .collect();
        let resumed = threads.into_iter().map(|thread| thread.join().unwrap());
        resumed.sum()
    })
}

/// The direction of bulk data.
#[derive(Clone, Copy)]
pub(crate) enum Direction {
    ToClient,
    FromClient,
}

/// Carries this many bytes over one connection of each config.
pub(crate) fn bulk(configs: &[Arc<ClientConfig>], port: u16, direction: Direction, bytes: u64) {
    thread::scope(|scope| {
        for config in configs {
            scope.spawn(move || match direction {
                Direction::ToClient => {
                    let open = Open::begin(config, port, Request::Send(bytes));
                    assert_eq!(open.finish().0, bytes);
                }
                Direction::FromClient => {
                    let mut open = Open::begin(config, port, Request::Take(bytes));
                    open.send(bytes);
                    assert_eq!(open.finish().0, 1);
                }
            });
        }
    });
}
