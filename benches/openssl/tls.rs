//! OpenSSL over memory: the certificate, contexts, and one handshake.

use std::{
    cell::RefCell,
    collections::VecDeque,
    io::{self, Read, Write},
    rc::Rc,
    sync::{Arc, Mutex},
};

use openssl::{
    pkey::PKey,
    ssl::{
        Ssl, SslContext, SslContextBuilder, SslMethod, SslSession, SslSessionCacheMode, SslStream,
        SslVersion,
    },
    x509::X509,
};

use crate::cpu;

/// The server's certificate: ECDSA with P-256.
pub(crate) struct Setup {
    certificate: X509,
    key: PKey<openssl::pkey::Private>,
}

impl Setup {
    pub(crate) fn make() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        Self {
            certificate: X509::from_der(made.cert.der()).unwrap(),
            key: PKey::private_key_from_der(&made.signing_key.serialize_der()).unwrap(),
        }
    }

    pub(crate) fn server(&self, version: SslVersion) -> SslContextBuilder {
        let mut context = SslContext::builder(SslMethod::tls_server()).unwrap();
        context.set_certificate(&self.certificate).unwrap();
        context.set_private_key(&self.key).unwrap();
        only(&mut context, version);
        context
    }
}

fn only(context: &mut SslContextBuilder, version: SslVersion) {
    context.set_min_proto_version(Some(version)).unwrap();
    context.set_max_proto_version(Some(version)).unwrap();
}

/// A peer that resumes the last session that it got.
pub(crate) struct Peer {
    context: SslContext,
    session: Arc<Mutex<Option<SslSession>>>,
}

impl Peer {
    pub(crate) fn new(version: SslVersion) -> Self {
        let mut context = SslContext::builder(SslMethod::tls_client()).unwrap();
        only(&mut context, version);
        context
            .set_session_cache_mode(SslSessionCacheMode::CLIENT | SslSessionCacheMode::NO_INTERNAL);
        let session = Arc::new(Mutex::new(None));
        let last = Arc::clone(&session);
        context.set_new_session_callback(move |_, new| *last.lock().unwrap() = Some(new));
        Self {
            context: context.build(),
            session,
        }
    }

    /// Does a handshake with a server and a clean close. Returns the CPU seconds of the server's
    /// side on this thread.
    pub(crate) fn meet(&self, server: &SslContext) -> f64 {
        let mut used = 0.0;
        let (near, far) = Pipe::pair();
        let mut ssl = Ssl::new(&self.context).unwrap();
        let session = self.session.lock().unwrap().take();
        if let Some(session) = &session {
            // SAFETY: the session came from this context.
            #[expect(unsafe_code, reason = "the `openssl` crate has no safe call for it")]
            unsafe {
                ssl.set_session(session).unwrap();
            }
        }
        let mut client = SslStream::new(ssl, near).unwrap();
        let mut served = cpu::add(&mut used, || {
            SslStream::new(Ssl::new(server).unwrap(), far).unwrap()
        });
        let (mut connected, mut accepted) = (false, false);
        while !connected || !accepted {
            connected |= client.connect().is_ok();
            accepted |= cpu::add(&mut used, || served.accept().is_ok());
        }
        // The client gets the tickets of TLS 1.3 with its first read.
        let mut byte = [0];
        assert!(client.ssl_read(&mut byte).is_err());
        assert_eq!(
            client.ssl().session_reused(),
            session.is_some(),
            "the peer resumes if it has a session"
        );
        cpu::add(&mut used, || served.shutdown().unwrap());
        assert_eq!(client.read(&mut byte).unwrap(), 0);
        client.shutdown().unwrap();
        cpu::add(&mut used, || {
            served.shutdown().unwrap();
            drop(served);
        });
        if self.session.lock().unwrap().is_none() {
            // A TLS 1.2 resumption makes no new session.
            *self.session.lock().unwrap() = session;
        }
        used
    }
}

type Bytes = Rc<RefCell<VecDeque<u8>>>;

/// One end of a socket pair in memory.
struct Pipe {
    incoming: Bytes,
    outgoing: Bytes,
}

impl Pipe {
    fn pair() -> (Self, Self) {
        let (one, two) = (Bytes::default(), Bytes::default());
        let far = Self {
            incoming: Rc::clone(&one),
            outgoing: Rc::clone(&two),
        };
        (
            Self {
                incoming: two,
                outgoing: one,
            },
            far,
        )
    }
}

impl Read for Pipe {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.incoming.borrow_mut().read(buf)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            length => Ok(length),
        }
    }
}

impl Write for Pipe {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.outgoing.borrow_mut().write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
