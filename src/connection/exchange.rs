//! Bytes in, bytes out: SSL_do_handshake, SSL_read and SSL_write over memory.

use std::sync::Arc;

use rustls::Error as TlsError;

use super::{
    Alert, Choice, Connection, EngineKind, Error, Removed, Shutdown, State,
    engine::{End, Engine},
    unanswered::Lease,
};
use crate::{
    alert,
    client_hello::{FLIGHT_MAX, FirstFlight, Offer, Progress},
    clock::Now,
    config::ClosePolicy,
    context::identity::identity,
    session::{
        Format, NewSession, RemovalReason, Role, Session, SessionId, Terms, Version,
        resumption::{Made, Resumption},
    },
};

/// What came from the peer, and what shall go to it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Input<'a> {
    /// Records from the peer, cut anywhere.
    pub ciphertext: &'a [u8],
    /// Application data to encrypt.
    pub plaintext: &'a [u8],
    /// The transport ended. Where the peer has closed, also by a close_notify in `ciphertext`, this side closes too: its
    /// close_notify follows the records of `plaintext`. Where it has not, the connection fails.
    pub end_of_stream: bool,
}

/// What a step made.
#[derive(Debug, Default)]
pub struct Output {
    /// Records for the peer.
    pub ciphertext: Vec<u8>,
    /// Application data from the peer.
    pub plaintext: Vec<u8>,
    /// What ended the connection.
    pub alert: Option<Alert>,
    /// Sessions that left the cache because of that.
    pub removed: Vec<Removed>,
}

/// How many tickets a client keeps of one connection. A server may send any number, and each has its place in the cache.
const TICKETS_KEPT_MAX: usize = 8;

impl Connection {
    /// One step. The first one begins the handshake.
    ///
    /// # Errors
    /// The worker runs this connection, it has failed, or plaintext came before the handshake was done or after SENT. Nothing of the input
    /// was used then. Where the peers have begun too many handshakes, a handshake that is not whole fails.
    pub fn exchange(&mut self, input: Input<'_>, now: Now) -> Result<Output, Error> {
        if self.engine_kind == EngineKind::Worker {
            return Err(Error::WrongEngine(EngineKind::Daemon));
        }
        if !matches!(self.state, State::Before | State::Handshaking) {
            return self.step(input, now);
        }
        let output = self.step(input, now)?;
        let kept = self.unanswered_bytes(input.ciphertext.len(), !output.ciphertext.is_empty());
        // Asked afterwards: a handshake that goes on keeps nothing, and is not held up by others that do not.
        if let Some(Err(error)) = self.unanswered.as_mut().map(|lease| lease.keep(kept, now.at)) {
            self.fail(error.to_string());
            return Err(error);
        }
        Ok(output)
    }

    /// What a handshake keeps of what its peer has sent, in bytes, after a step in which so many came.
    fn unanswered_bytes(&self, came: usize, answered: bool) -> usize {
        /// What rustls reads into at least.
        const ENGINE_MIN: usize = 4096;
        let before = self.unanswered.as_ref().map_or(0, Lease::bytes);
        match (&self.first_flight, self.state) {
            (Some(first_flight), State::Handshaking) => first_flight.size(),
            // What came since the last answer, at most.
            (None, State::Handshaking) if !answered && before + came > 0 => {
                (before.max(ENGINE_MIN) + came).min(FLIGHT_MAX)
            }
            (_, State::Before | State::Handshaking | State::Established | State::Failed) => 0,
        }
    }

    fn step(&mut self, input: Input<'_>, now: Now) -> Result<Output, Error> {
        match self.state {
            State::Failed => {
                return Err(Error::Failed(self.failure.clone().unwrap_or_default()));
            }
            State::Established if !input.plaintext.is_empty() && self.shutdown.sent => {
                return Err(Error::ProtocolIsShutdown);
            }
            State::Before | State::Handshaking if !input.plaintext.is_empty() => {
                return Err(Error::HandshakeNotFinished);
            }
            State::Before => self.begin(now)?,
            State::Handshaking | State::Established => {}
        }
        let mut output = Output::default();
        let end = self.read(input.ciphertext, now, &mut output)?;
        self.progress(now);
        if let Some(engine) = &mut self.engine {
            // The peer's close_notify ends its side alone: this one may go on (RFC 8446 section 6.1).
            if matches!(end, None | Some(End::CloseNotify)) && !input.plaintext.is_empty() {
                engine.write(input.plaintext);
            }
            engine.flush(&mut output.ciphertext);
        }
        match end {
            None => {}
            Some(End::CloseNotify) => self.shutdown.received = true,
            Some(End::AlertReceived(alert)) => {
                self.shutdown.received = true;
                output.alert = Some(alert);
                output.removed = self.condemn(RemovalReason::FatalAlert);
                self.fail(alert.to_string());
            }
            Some(End::Refused(error)) => self.refuse(&error, &mut output),
        }
        if input.end_of_stream {
            self.end_of_stream(&mut output);
        }
        Ok(output)
    }

    /// The first step of a handshake. Flags that were set before it are lost, as SSL_do_handshake loses them.
    fn begin(&mut self, now: Now) -> Result<(), Error> {
        match self.role {
            Role::Server => {
                self.context.stats.accept.count();
                self.first_flight = Some(FirstFlight::default());
            }
            Role::Client => {
                let session = self.session_to_offer(now);
                let (Some(side), Some((_, target))) = (&self.context.client, &self.target) else {
                    return Err(Error::WithoutTrust(Arc::clone(&self.context.name)));
                };
                let config = side.pinned(self.pin).unwrap_or_else(|| side.all());
                let resumption = Arc::new(Resumption::new(!self.context.options.no_session_cache));
                resumption.offer(session.clone());
                let engine =
                    Engine::client(config, target.clone(), resumption, now.wall()).map_err(Error::Engine)?;
                self.context.stats.connect.count();
                self.attached.clone_from(&session);
                self.offered = session;
                self.engine = Some(engine);
            }
        }
        self.shutdown = Shutdown::default();
        self.state = State::Handshaking;
        Ok(())
    }

    /// What a client offers: what is attached if it still may be resumed, else what the cache offers by itself. A
    /// single-use session leaves the cache here.
    fn session_to_offer(&self, now: Now) -> Option<Arc<Session>> {
        let cache = &self.context.client_cache;
        let terms = self.terms(self.server_name());
        let attached = self.attached.as_ref().and_then(|session| cache.find(session.id(), &terms, now).ok());
        match (attached, self.choice) {
            (Some(session), _) => Some(session),
            (None, Choice::Named) => None,
            (None, Choice::Free) => cache.newest(&terms, now),
        }
    }

    /// What this connection can resume: a session of the daemon's engine, in a version that it may speak.
    fn terms<'a>(&'a self, server_name: &'a str) -> Terms<'a> {
        let versions = match &self.pin {
            Some(pin) => std::slice::from_ref(pin),
            None => &self.context.versions,
        };
        Terms { format: &Format::Rustls, binding: &[], versions, server_name }
    }

    fn read(&mut self, ciphertext: &[u8], now: Now, output: &mut Output) -> Result<Option<End>, Error> {
        let Some(mut first_flight) = self.first_flight.take() else {
            let Some(engine) = &mut self.engine else { return Ok(None) };
            return Ok(engine.read(ciphertext, now.wall(), &mut output.plaintext));
        };
        match first_flight.push(ciphertext) {
            Progress::Partial => {
                self.first_flight = Some(first_flight);
                Ok(None)
            }
            Progress::Whole(offer) => {
                self.accept(&offer, now)?;
                let Some(engine) = &mut self.engine else { return Ok(None) };
                Ok(engine.read(&first_flight.into_bytes(), now.wall(), &mut output.plaintext))
            }
        }
    }

    /// A server's handshake begins in earnest: what the peer offers is fetched beforehand.
    fn accept(&mut self, offer: &Offer, now: Now) -> Result<(), Error> {
        let Some(side) = &self.context.server else {
            return Err(Error::WithoutCertificate(Arc::clone(&self.context.name)));
        };
        let config = side.pinned(self.pin).unwrap_or_else(|| side.all());
        let found = if self.context.options.no_session_cache { None } else { self.lookup(offer, now) };
        // Each resumption spends a ticket and needs one in return (OpenSSL's SSL_CTX_set_num_tickets(3)).
        let tickets = match &found {
            Some(session) if session.kind().version == Version::Tls13 => self.context.tickets.min(1),
            _ => self.context.tickets,
        };
        let resumption = Arc::new(Resumption::new(!self.context.options.no_session_cache));
        resumption.offer(found.clone());
        self.engine = Some(Engine::server(config, tickets, resumption, now.wall()).map_err(Error::Engine)?);
        self.offered = found;
        Ok(())
    }

    fn lookup(&self, offer: &Offer, now: Now) -> Option<Arc<Session>> {
        let spoken = self.terms(&offer.server_name);
        let (version, ids) = if offer.tls13 && spoken.versions.contains(&Version::Tls13) {
            (Version::Tls13, offer.identities.as_slice())
        } else if spoken.versions.contains(&Version::Tls12) {
            (Version::Tls12, offer.session_id.as_slice())
        } else {
            return None;
        };
        let terms = Terms { versions: &[version], ..spoken };
        let mut last = None;
        for id in ids.iter().filter_map(|id| SessionId::new(id)) {
            match self.context.server_cache.find(&id, &terms, now) {
                Ok(session) => return Some(session),
                Err(miss) => last = Some(miss),
            }
        }
        if let Some(miss) = last {
            self.context.stats.misses.count(miss);
        }
        None
    }

    /// Takes from the engine what the handshake has decided and made so far.
    fn progress(&mut self, now: Now) {
        let Some(engine) = self.engine.as_ref() else { return };
        if self.state == State::Handshaking {
            self.agreed.version = engine.version();
            self.agreed.cipher_suite = engine.cipher_suite().into();
            if self.role == Role::Server && self.agreed.server_name.is_none() {
                self.agreed.server_name = engine.server_name().map(Into::into);
            }
            let made = engine.take_made();
            if engine.resumed() && !self.agreed.reused {
                self.resumed();
            }
            self.finish(now);
            self.keep(made, now);
        } else if self.state == State::Established {
            let made = engine.take_made();
            self.keep(made, now);
        }
    }

    /// The peers agreed to resume what was offered.
    fn resumed(&mut self) {
        self.agreed.reused = true;
        let Some(session) = self.offered.clone() else { return };
        self.agreed.peer.clone_from(&session.kind().peer);
        self.agreed.authenticated = session.authenticated();
        if self.role == Role::Server {
            self.context.stats.hits.count();
        }
        // A ticket is spent; a TLS 1.2 session is shared by all who resume it.
        if session.kind().version == Version::Tls12 {
            self.attached = Some(Arc::clone(&session));
            self.family.join(&session);
        }
    }

    /// The handshake may be done.
    fn finish(&mut self, now: Now) {
        let Some(engine) = self.engine.as_ref().filter(|engine| !engine.is_handshaking()) else { return };
        self.state = State::Established;
        self.agreed.alpn =
            engine.alpn().map(|protocol| String::from_utf8_lossy(protocol).into_owned()).unwrap_or_default();
        if !self.agreed.reused {
            self.agreed.authenticated = now.at;
            self.agreed.peer = engine.peer_certificate().map(identity);
        }
        // What was attached for this handshake is either in the family now or of no more use.
        if !self.attached.as_ref().is_some_and(|session| self.family.contains(session)) {
            self.attached = None;
        }
        self.offered = None;
        match self.role {
            Role::Server => self.context.stats.accept_good.count(),
            Role::Client => {
                self.context.stats.connect_good.count();
                if self.agreed.reused {
                    self.context.stats.hits.count();
                }
            }
        }
    }

    /// Sessions that the handshake made join the cache and the family; the last one is attached.
    fn keep(&mut self, made: Vec<Made>, now: Now) {
        let Some(version) = self.agreed.version else { return };
        if self.context.options.no_session_cache || (version == Version::Tls12 && self.agreed.reused) {
            return;
        }
        let server_name: Arc<str> = match (&self.target, &self.agreed.server_name) {
            (Some((name, _)), _) | (None, Some(name)) => Arc::clone(name),
            (None, None) => "".into(),
        };
        for Made { id, secret } in made {
            if self.family.len() >= TICKETS_KEPT_MAX.max(self.context.tickets) {
                return;
            }
            let session = self.context.cache(self.role).put(
                NewSession {
                    id,
                    version,
                    cipher_suite: self.agreed.cipher_suite.clone(),
                    server_name: Arc::clone(&server_name),
                    format: Format::Rustls,
                    binding: [].into(),
                    single_use: version == Version::Tls13,
                    account: Arc::clone(&self.context.stats),
                    peer: self.agreed.peer.clone(),
                    authenticated: self.agreed.authenticated,
                    timeout: self.context.session_timeout,
                    secret,
                },
                now,
            );
            if let Ok(session) = session {
                self.family.join(&session);
                self.attached = Some(session);
            }
        }
    }

    /// A fatal alert goes out. After SENT nothing does, and the family of a side that has closed stays (OpenSSL 3,
    /// ssl3_send_alert).
    fn refuse(&mut self, error: &TlsError, output: &mut Output) {
        if !self.is_closed() {
            output.removed = self.condemn(RemovalReason::FatalAlert);
        }
        if self.shutdown.sent {
            output.ciphertext.clear();
            self.fail(format!("after this side closed, {error}"));
        } else {
            let alert = alert::sent(error, &output.ciphertext);
            output.alert = Some(alert);
            self.fail(format!("{alert}: {error}"));
        }
    }

    /// The transport ended. After the peer's close_notify nothing more can come, so this side closes as well. Without a
    /// close_notify an attacker may have cut the transport, and the connection fails (RFC 8446 section 6.1).
    fn end_of_stream(&mut self, output: &mut Output) {
        if self.state == State::Failed {
            return;
        }
        self.shutdown.received |= self.context.options.ignore_unexpected_eof;
        if self.shutdown.received {
            // A handshake that has not finished has nothing to close (SSL_R_SHUTDOWN_WHILE_IN_INIT).
            if self.state == State::Established && !self.shutdown.sent {
                self.close_side(&mut output.ciphertext);
            }
            return;
        }
        // No alert: a context that minds nothing but alerts forgives it.
        if !self.is_closed() && self.context.close_policy != ClosePolicy::ErrorsOnly {
            output.removed = self.condemn(RemovalReason::FatalAlert);
        }
        self.fail("the transport ended without a close_notify".into());
    }

    /// Whatever comes now is refused; the keys are gone.
    pub(super) fn fail(&mut self, why: String) {
        let pinned = match self.pin.filter(|_| self.state == State::Handshaking) {
            Some(version) => format!(
                "; this handshake was pinned to {version} by Clear or SetSession: for another peer use GetSession, \
                 New, SetSession and Free, or Free and New"
            ),
            None => String::new(),
        };
        self.failure = Some(why + &pinned);
        if self.state == State::Handshaking {
            self.first_flight = None;
        }
        self.family.release();
        self.engine = None;
        self.offered = None;
        self.unanswered.iter_mut().for_each(Lease::release);
        self.state = State::Failed;
    }
}
