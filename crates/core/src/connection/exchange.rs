//! SSL_do_handshake(3), SSL_read(3) and SSL_write(3) over memory.

use std::sync::Arc;

use rustls::AlertDescription;
use tls_sessiond_types::{
    Role, Version, alert,
    client_hello::{FLIGHT_MAX, FirstFlight, Offer, Progress},
    server_name::ServerName,
};

use super::{
    Alert, Choice, Connection, EngineKind, Error, Failure, Removed, Shutdown, State,
    daemon_engine::{End, Engine, Violation},
    outlook::{self, Retried},
    sealing::{TicketSealer, dot},
    unanswered::Lease,
};
use crate::{
    cache::{Ask, Found, Look, Missed, PendingPut},
    clock::{Now, Timestamp},
    connection::handshake_store::{HandshakeStore, NewTicket},
    context::{ClosePolicy, identity::identity},
    fleet::Purpose,
    session::{
        Format, Miss, NewSession, RemovalReason, ResumeCriteria, Session, SessionId, SessionInfo,
        recent::{self, FailureEvent, REASON_MAX},
        stats::HandshakeKind,
    },
};

/// The input of one step: bytes from the peer, and plaintext for the peer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Input<'a> {
    /// Records from the peer, split at any byte.
    pub ciphertext: &'a [u8],
    /// Application data to encrypt.
    pub plaintext: &'a [u8],
    /// Whether the transport ended. If the peer has closed, for example by a close_notify in
    /// `ciphertext`, this side closes too, and its close_notify follows the records of `plaintext`.
    /// If the peer has not closed, the connection fails.
    pub end_of_stream: bool,
}

/// The output of one step.
#[derive(Debug, Default)]
pub struct Output {
    /// Records for the peer.
    pub ciphertext: Vec<u8>,
    /// Application data from the peer.
    pub plaintext: Vec<u8>,
    /// The fatal alert that ended the connection.
    pub alert: Option<Alert>,
    /// Sessions that were removed because the connection failed.
    pub removed: Vec<Removed>,
    /// Puts into the shared store. The caller sends them, and waits for their answers before it
    /// passes `ciphertext` on, so that a session is found everywhere once its client has it. Then
    /// [`Connection::puts_answered`] is called.
    pub puts: Vec<PendingPut>,
}

/// The outcome of a step.
#[derive(Debug)]
pub enum Step {
    /// The step is done.
    Done(Output),
    /// The shared store must be asked for a session. The connection waits for
    /// [`Connection::given`], and refuses other steps until then.
    Ask(Box<Ask>),
}

impl Step {
    /// Returns the output. `None`: the shared store must be asked first.
    pub fn done(self) -> Option<Output> {
        match self {
            Self::Done(output) => Some(output),
            Self::Ask(_) => None,
        }
    }
}

/// A flight of the client whose lookup waits for the shared store.
pub(super) struct Asking {
    flight: FirstFlight,
    offer: Offer,
    /// How many of the offered sessions were asked for.
    asked: usize,
    missed: Vec<(SessionId, Miss)>,
    end_of_stream: bool,
}

/// Most sessions of one ClientHello that the shared store is asked for. A client offers one or two;
/// each costs a round trip.
const ASKED_MAX: usize = 4;

/// The sessions that a client offers and rustls would resume.
struct Resumable {
    version: Version,
    /// The only cipher suite that can be agreed on. `None`: any.
    cipher_suite: Option<&'static str>,
    candidates: Vec<Candidate>,
}

/// A session that a client offers.
enum Candidate {
    /// One that is looked up by its id.
    Stored(SessionId),
    /// One in a ticket.
    Sealed(Arc<TicketSealer>, Vec<u8>),
}

impl Candidate {
    /// Returns the id of the session. `None`: the ticket names none.
    fn id(&self) -> Option<SessionId> {
        match self {
            Self::Stored(id) => Some(id.clone()),
            Self::Sealed(sealer, ticket) => sealer.named_handle(ticket),
        }
    }
}

/// What became of a flight of the client.
enum Accepted {
    /// The engine has it.
    Read(Option<End>),
    /// The shared store must be asked first.
    Ask(Box<Ask>),
}

/// Most tickets that a connection keeps, unless `tickets` of its context is higher. A server may
/// send its client any number of tickets, and each takes a place in the cache.
const TICKETS_KEPT_MAX: usize = 8;

/// The record of the unencrypted alert inappropriate_fallback (RFC 7507).
const INAPPROPRIATE_FALLBACK: [u8; 7] = [21, 3, 3, 0, 2, 2, 86];

impl Connection {
    /// Runs one step. The first step begins the handshake.
    ///
    /// # Errors
    /// * The worker runs this connection, it has failed, or plaintext came before the handshake was
    ///   finished or after SENT. The input was not used.
    /// * Unfinished handshakes hold too many bytes. This handshake, which is unfinished too, fails.
    pub fn exchange(&mut self, input: Input<'_>, now: Now) -> Result<Step, Error> {
        if self.engine_kind == EngineKind::Worker {
            return Err(Error::WrongEngine(EngineKind::Daemon));
        }
        if self.is_asking() {
            return Err(Error::Busy);
        }
        if !matches!(self.state, State::Before | State::Handshaking) {
            return self.step(input, now);
        }
        let step = self.step(input, now);
        self.counted(input.ciphertext.len(), step, now)
    }

    /// Takes the session that the shared store has found, or the reason of the miss, and goes on
    /// with the step that has asked for it.
    ///
    /// # Errors
    /// Those of [`Self::exchange`]. A connection that does not wait, because it was cleared
    /// meanwhile, drops the session and does nothing.
    pub fn given(&mut self, found: Result<Found, Miss>, now: Now) -> Result<Step, Error> {
        let Some(asking) = self.asking.take() else {
            return Ok(Step::Done(Output::default()));
        };
        let step = self.go_on(asking, found, now);
        self.counted(0, step, now)
    }

    /// Counts the bytes that an unfinished handshake holds after a step.
    fn counted(&mut self, came: usize, step: Result<Step, Error>, now: Now) -> Result<Step, Error> {
        let step = step?;
        let answered = matches!(&step, Step::Done(output) if !output.ciphertext.is_empty());
        let kept = self.unanswered_bytes(came, answered);
        // Counted after the step: a handshake that makes progress holds no bytes, so stalled
        // handshakes do not block it.
        if let Some(Err(error)) = self
            .unanswered
            .as_mut()
            .map(|lease| lease.keep(kept, now.at))
        {
            self.fail(error.to_string(), None);
            return Err(error);
        }
        Ok(step)
    }

    /// Returns how many bytes of the peer's input an unfinished handshake holds after a step.
    ///
    /// `came`: the bytes that the step received. `answered`: whether the step made output.
    fn unanswered_bytes(&self, came: usize, answered: bool) -> usize {
        /// The smallest buffer that rustls reads into.
        const ENGINE_MIN: usize = 4096;
        let before = self.unanswered.as_ref().map_or(0, Lease::bytes);
        let waiting = self.asking.as_ref().map(|asking| &asking.flight);
        match (self.first_flight.as_ref().or(waiting), self.state) {
            (Some(first_flight), State::Handshaking) => first_flight.size(),
            // An upper bound: all bytes since the last answer.
            (None, State::Handshaking) if !answered && before + came > 0 => {
                (before.max(ENGINE_MIN) + came).min(FLIGHT_MAX)
            }
            (_, State::Before | State::Handshaking | State::Established | State::Failed) => 0,
        }
    }

    fn step(&mut self, input: Input<'_>, now: Now) -> Result<Step, Error> {
        match self.state {
            State::Failed => {
                return Err(self.has_failed());
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
        let had_closed = self.written;
        let end = match self.read(input.ciphertext, now, &mut output)? {
            Accepted::Read(end) => end,
            Accepted::Ask(ask) => {
                if let Some(asking) = &mut self.asking {
                    asking.end_of_stream = input.end_of_stream;
                }
                return Ok(Step::Ask(ask));
            }
        };
        Ok(Step::Done(
            self.finish_step(end, &input, had_closed, output, now),
        ))
    }

    /// Does what follows after the engine has read the peer's bytes.
    fn finish_step(
        &mut self,
        end: Option<End>,
        input: &Input<'_>,
        had_closed: bool,
        mut output: Output,
        now: Now,
    ) -> Output {
        self.progress(now);
        if let Some(engine) = &mut self.engine {
            // The peer's close_notify closes only the peer's side. This side may still send (RFC
            // 8446 section 6.1).
            if matches!(end, None | Some(End::CloseNotify)) && !input.plaintext.is_empty() {
                engine.write(input.plaintext);
            }
            engine.flush(&mut output.ciphertext);
            // No record may follow a close_notify (RFC 8446 section 6.1), but rustls answers some
            // records even then.
            if had_closed {
                output.ciphertext.clear();
            }
        }
        self.await_second_hello();
        match end {
            None => {}
            Some(End::CloseNotify) => self.close_received(&mut output),
            Some(End::AlertReceived(alert)) => {
                self.shutdown.received = true;
                if self.shutdown.sent {
                    output.ciphertext.clear();
                }
                output.alert = Some(alert);
                output.removed = self.condemn(RemovalReason::FatalAlert);
                self.fail(alert.to_string(), Some(alert));
            }
            Some(End::Violation(refused)) => self.refuse(refused, &mut output),
        }
        if input.end_of_stream {
            self.end_of_stream(&mut output);
        }
        output.puts = std::mem::take(&mut self.puts);
        output
    }

    /// Goes on with a flight, whose lookup has this outcome.
    fn go_on(
        &mut self,
        mut asking: Box<Asking>,
        found: Result<Found, Miss>,
        now: Now,
    ) -> Result<Step, Error> {
        let found = match found {
            Ok(found) => Some(found),
            Err(miss) => {
                let offered = self.offered_sessions(&asking.flight, &asking.offer);
                let asked = offered
                    .and_then(|offered| offered.candidates.into_iter().nth(asking.asked - 1));
                let id = asked.and_then(|asked| asked.id());
                asking.missed.extend(id.map(|id| (id, miss)));
                None
            }
        };
        let mut output = Output::default();
        let end_of_stream = asking.end_of_stream;
        match self.accepted(asking, found, now, &mut output)? {
            Accepted::Read(end) => {
                let input = Input {
                    end_of_stream,
                    ..Input::default()
                };
                Ok(Step::Done(self.finish_step(
                    end,
                    &input,
                    self.written,
                    output,
                    now,
                )))
            }
            Accepted::Ask(ask) => Ok(Step::Ask(ask)),
        }
    }

    /// Begins a handshake. Resets the shutdown flags, as SSL_do_handshake(3) does.
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
                let resumption =
                    Arc::new(HandshakeStore::new(!self.context.options.no_session_cache));
                resumption.offer(session.as_ref().map(|found| Arc::clone(&found.session)));
                let engine = Engine::client(config, target.clone(), resumption, now)
                    .map_err(Error::Engine)?;
                self.context.stats.connect.count();
                self.attached.clone_from(&session);
                self.offered = session;
                self.engine = Some(engine);
            }
        }
        self.shutdown = Shutdown::default();
        self.begun = now.at;
        self.state = State::Handshaking;
        Ok(())
    }

    /// Returns the session that a client offers: the attached session if it may still be resumed,
    /// or else the newest one of the cache, unless SetSession excludes it. Consumes a single-use
    /// session.
    fn session_to_offer(&self, now: Now) -> Option<Found> {
        let cache = &self.context.client_cache;
        let terms = self.terms(self.server_name());
        let attached = self.session().and_then(|session| {
            // Sessions of the daemon's own clients stay in its memory: rustls has no encoding of
            // them.
            let found = cache.find(session.id(), &terms, now);
            // SSL_CTX_sess_misses(3) counts only the misses of servers.
            found
                .inspect_err(|&why| {
                    let missed = Missed {
                        id: session.id(),
                        server_name: self.server_name(),
                        owner: &self.owner,
                        why,
                    };
                    cache.tell_missed(&self.context.name, missed, now);
                })
                .ok()
        });
        match (attached, self.choice) {
            (Some(session), _) => Some(Found::near(session)),
            (None, Choice::Named) => None,
            (None, Choice::Free) => cache.newest(&terms, now).map(Found::near),
        }
    }

    /// Returns the criteria for sessions that this connection can resume: made by the daemon's
    /// engine, in a version that the connection may speak.
    fn terms<'a>(&'a self, server_name: &'a ServerName<'a>) -> ResumeCriteria<'a> {
        let versions = match &self.pin {
            Some(pin) => std::slice::from_ref(pin),
            None => &self.context.versions,
        };
        ResumeCriteria {
            format: &Format::Rustls,
            binding: &[],
            versions,
            server_name,
            cipher_suite: None,
        }
    }

    fn read(
        &mut self,
        ciphertext: &[u8],
        now: Now,
        output: &mut Output,
    ) -> Result<Accepted, Error> {
        let Some(mut first_flight) = self.first_flight.take() else {
            let engine = self.engine.as_mut();
            let end = engine.and_then(|engine| engine.read(ciphertext, now, &mut output.plaintext));
            return Ok(Accepted::Read(end));
        };
        match first_flight.push(ciphertext) {
            Progress::Partial => {
                self.first_flight = Some(first_flight);
                Ok(Accepted::Read(None))
            }
            Progress::Whole(offer) => {
                if !first_flight.is_second() && self.falls_back(&offer) {
                    output.ciphertext.extend_from_slice(&INAPPROPRIATE_FALLBACK);
                    return Ok(Accepted::Read(Some(End::Violation(Violation {
                        error: "the client fell back to an older version (RFC 7507)".into(),
                        alert: Some(AlertDescription::InappropriateFallback.into()),
                    }))));
                }
                let asking = Box::new(Asking {
                    flight: first_flight,
                    offer,
                    asked: 0,
                    missed: Vec::new(),
                    end_of_stream: false,
                });
                self.accepted(asking, None, now, output)
            }
        }
    }

    /// Looks up the next sessions that the client offers, unless one was `found`, and passes the
    /// flight to the engine after the last lookup.
    fn accepted(
        &mut self,
        mut asking: Box<Asking>,
        found: Option<Found>,
        now: Now,
        output: &mut Output,
    ) -> Result<Accepted, Error> {
        let is_second = asking.flight.is_second();
        let found = match found {
            Some(found) => Some(found),
            None if is_second && !self.may_look_again(&asking.offer) => None,
            None if self.context.options.no_session_cache => None,
            None => match self.lookup(&mut asking, now) {
                Look::Done(found) => found.ok(),
                Look::Ask(ask) => {
                    self.asking = Some(asking);
                    return Ok(Accepted::Ask(ask));
                }
            },
        };
        let Asking { flight, offer, .. } = *asking;
        if is_second {
            if let (Some(engine), Some(found)) = (&self.engine, &found) {
                engine.offer(found);
            }
            if found.is_some() {
                self.offered = found;
            }
        } else {
            self.accept(&offer, found, now)?;
        }
        let engine = self.engine.as_mut();
        Ok(Accepted::Read(engine.and_then(|engine| {
            engine.read(&flight.into_bytes(), now, &mut output.plaintext)
        })))
    }

    /// Returns whether the client fell back from TLS 1.3 although this server speaks it. Only an
    /// attacker causes that (RFC 7507).
    fn falls_back(&self, offer: &Offer) -> bool {
        let spoken = self.terms(&ServerName::NONE).versions;
        offer.fallback && !offer.tls13 && spoken.contains(&Version::Tls13)
    }

    /// Gathers the flight again after a HelloRetryRequest, because the second ClientHello may offer
    /// other sessions (RFC 8446 section 4.1.2).
    fn await_second_hello(&mut self) {
        let retried = self.engine.as_ref().is_some_and(Engine::retried);
        if retried && !self.retried && self.role == Role::Server {
            self.retried = true;
            self.first_flight = Some(FirstFlight::after_retry());
        }
    }

    /// Returns whether the second ClientHello may offer a session that the first one did not.
    fn may_look_again(&self, offer: &Offer) -> bool {
        let (None, Some(side)) = (&self.offered, &self.context.server) else {
            return false;
        };
        let config = side.pinned(self.pin).unwrap_or_else(|| side.all());
        self.retry
            .as_ref()
            .is_some_and(|retry| retry.goes_on_with(config, offer))
    }

    /// Creates the server's engine, which resumes `found`.
    fn accept(&mut self, offer: &Offer, found: Option<Found>, now: Now) -> Result<(), Error> {
        let Some(side) = &self.context.server else {
            return Err(Error::WithoutCertificate(Arc::clone(&self.context.name)));
        };
        let config = side.pinned(self.pin).unwrap_or_else(|| side.all());
        let retry = Retried::of(config, offer);
        let session = found.as_ref().map(|found| Arc::clone(&found.session));
        // A resumption consumes one ticket and makes one in return (OpenSSL's
        // SSL_CTX_set_num_tickets(3)).
        let tickets = match &session {
            Some(session) if session.kind().version == Version::Tls13 => {
                self.context.tickets.min(1)
            }
            _ => self.context.tickets,
        };
        let is_tls13 = offer.tls13
            && self
                .terms(&offer.server_name)
                .versions
                .contains(&Version::Tls13);
        let version = if is_tls13 {
            Version::Tls13
        } else {
            Version::Tls12
        };
        let sealer = TicketSealer::of(&self.context, version);
        let resumption = HandshakeStore::new(!self.context.options.no_session_cache);
        let resumption = Arc::new(resumption.sealing(sealer, offer.tickets.taken));
        match (session, found.as_ref().and_then(|found| found.sealed_until)) {
            (Some(session), Some(until)) => resumption.offer_sealed(session, until),
            (session, _) => resumption.offer(session),
        }
        self.engine =
            Some(Engine::server(config, tickets, resumption, now).map_err(Error::Engine)?);
        self.retry = Some(retry);
        self.offered = found;
        Ok(())
    }

    /// Returns the sessions that a client offers and rustls would resume, and what they must match
    /// besides server name and binding.
    fn offered_sessions(&self, flight: &FirstFlight, offer: &Offer) -> Option<Resumable> {
        let side = self.context.server.as_ref()?;
        let config = side.pinned(self.pin).unwrap_or_else(|| side.all());
        let spoken = self.terms(&offer.server_name).versions;
        let (version, cipher_suite, ids, tickets) =
            if offer.tls13 && spoken.contains(&Version::Tls13) {
                let cipher_suite = outlook::tls13_suite(config, &offer.parameters)?;
                (
                    Version::Tls13,
                    Some(cipher_suite),
                    offer.identities.as_slice(),
                    offer.tickets.tls13.as_slice(),
                )
            } else if spoken.contains(&Version::Tls12) {
                let (id, ticket) = (&offer.session_id, &offer.tickets.tls12);
                (Version::Tls12, None, id.as_slice(), ticket.as_slice())
            } else {
                return None;
            };
        let stored = ids.iter().filter_map(|id| SessionId::new(id));
        let mut candidates: Vec<_> = stored.map(Candidate::Stored).collect();
        if let Some(sealer) = TicketSealer::of(&self.context, version).map(Arc::new) {
            let sealed = tickets.iter().cloned();
            candidates.extend(sealed.map(|ticket| Candidate::Sealed(Arc::clone(&sealer), ticket)));
        }
        if candidates.is_empty() || !flight.is_taken_by_rustls() {
            return None;
        }
        if self.context.server_cache.fleet().is_some() {
            candidates.truncate(ASKED_MAX);
        }
        Some(Resumable {
            version,
            cipher_suite,
            candidates,
        })
    }

    /// Looks up the offered sessions that were not looked up yet. Consumes a single-use session.
    /// Misses are counted after the last one.
    fn lookup(&self, asking: &mut Asking, now: Now) -> Look {
        let Asking {
            flight,
            offer,
            asked,
            missed,
            ..
        } = asking;
        let Some(Resumable {
            version,
            cipher_suite,
            candidates,
        }) = self.offered_sessions(flight, offer)
        else {
            return Look::Done(Err(Miss::Unknown));
        };
        let terms = ResumeCriteria {
            binding: dot(offer.dotted),
            versions: &[version],
            cipher_suite,
            ..self.terms(&offer.server_name)
        };
        let cache = &self.context.server_cache;
        for candidate in candidates.into_iter().skip(*asked) {
            *asked += 1;
            let look = match &candidate {
                Candidate::Stored(id) => {
                    cache.look(id, &terms, Purpose::Resume, &self.context.stats, now)
                }
                Candidate::Sealed(sealer, ticket) => sealer.open(ticket, &terms, now),
            };
            match look {
                Look::Done(Err(miss)) => missed.extend(candidate.id().map(|id| (id, miss))),
                look => return look,
            }
        }
        for (id, miss) in &*missed {
            let missed = Missed {
                id,
                server_name: &offer.server_name,
                owner: &self.owner,
                why: *miss,
            };
            cache.tell_missed(&self.context.name, missed, now);
        }
        // A ClientHello counts one miss, as in SSL_CTX_sess_misses(3): that of its last ticket.
        if let Some((_, miss)) = missed.last() {
            self.context.stats.misses.count(*miss);
        }
        Look::Done(Err(Miss::Unknown))
    }

    /// Takes the results of the handshake and the new sessions from the engine.
    fn progress(&mut self, now: Now) {
        let Some(engine) = self.engine.as_ref() else {
            return;
        };
        if self.state == State::Handshaking {
            self.agreed.version = engine.version();
            self.agreed.cipher_suite = engine.cipher_suite().into();
            if self.role == Role::Server && self.agreed.server_name.is_none() {
                let name = engine.server_name();
                self.agreed.server_name = name.map(|name| ServerName::new(name).into_owned());
                self.agreed.dotted = name.is_some_and(|name| name.ends_with('.'));
            }
            let (made, sealed) = (engine.take_made(), engine.take_sealed());
            if engine.resumed() && !self.agreed.reused {
                self.resumed();
            }
            self.finish(now);
            self.keep_sealed(sealed, now);
            self.keep(made, now);
        } else if self.state == State::Established {
            let (made, sealed) = (engine.take_made(), engine.take_sealed());
            self.keep_sealed(sealed, now);
            self.keep(made, now);
        }
    }

    /// Records that the handshake resumes the offered session.
    fn resumed(&mut self) {
        self.agreed.reused = true;
        let Some(found) = self.offered.clone() else {
            return;
        };
        let session = &found.session;
        self.agreed.peer.clone_from(&session.kind().peer);
        self.agreed.authenticated = session.authenticated();
        if self.role == Role::Server {
            self.context.stats.hits.count();
        }
        // A ticket is consumed. A TLS 1.2 session is shared by all connections that resume it.
        if session.kind().version == Version::Tls12 {
            self.family.join(&found);
            self.attached = Some(found);
        }
    }

    /// Establishes the connection if the handshake is finished.
    fn finish(&mut self, now: Now) {
        let Some(engine) = self
            .engine
            .as_ref()
            .filter(|engine| !engine.is_handshaking())
        else {
            return;
        };
        self.state = State::Established;
        self.agreed.alpn = engine
            .alpn()
            .map(|protocol| String::from_utf8_lossy(protocol).into_owned())
            .unwrap_or_default();
        if !self.agreed.reused {
            self.agreed.authenticated = now.at;
            self.agreed.peer = engine.peer_certificate().map(identity);
        }
        // A session that was attached for this handshake is in the family now, or no longer useful.
        if !self
            .attached
            .as_ref()
            .is_some_and(|session| self.family.contains(session))
        {
            self.attached = None;
        }
        let offered = self.offered.take();
        let duration = now.at.since(self.begun);
        self.context.stats.durations.count(duration);
        self.context.stats.finished.count(HandshakeKind {
            role: self.role,
            version: self.agreed.version,
            resumed: self.agreed.reused,
        });
        match self.role {
            Role::Server => {
                self.context.stats.accept_good.count();
                // rustls refused the session, for example for its cipher suite or its extended
                // master secret.
                if let Some(offered) = offered.filter(|_| !self.agreed.reused) {
                    let missed = Missed {
                        id: offered.session.id(),
                        server_name: self.server_name(),
                        owner: &self.owner,
                        why: Miss::Scope,
                    };
                    let cache = &self.context.server_cache;
                    cache.missed(&self.context.stats, missed, now);
                }
            }
            Role::Client => {
                self.context.stats.connect_good.count();
                if self.agreed.reused {
                    self.context.stats.hits.count();
                }
            }
        }
    }

    /// Takes the sessions that were sealed in tickets into the family, and attaches the last one. All of
    /// them are on their way to the client, so none is left out.
    fn keep_sealed(&mut self, sealed: Vec<(SessionInfo, Timestamp)>, now: Now) {
        let cache = Arc::clone(self.context.cache(self.role));
        for (session, until) in sealed {
            cache.sealed(&session, now);
            let owners = &cache.ledger().owners;
            owners.count(&self.owner, |totals| totals.stored.count());
            let found = Found::sealed(Arc::new(Session::without_secret(session)), until);
            self.family.join(&found);
            self.attached = Some(found);
        }
    }

    /// Puts the sessions that the handshake made into the cache and the family, and attaches the
    /// last one.
    fn keep(&mut self, made: Vec<NewTicket>, now: Now) {
        let Some(version) = self.agreed.version else {
            return;
        };
        if self.context.options.no_session_cache {
            return;
        }
        // In TLS 1.2 a resumption makes no new session, but the server may give its client a new
        // ticket (RFC 5077 section 3.3).
        let resumed_itself = version == Version::Tls12 && self.agreed.reused;
        let renewed =
            |made: &NewTicket| !resumed_itself || (self.role == Role::Client && made.renews);
        let made: Vec<_> = made.into_iter().filter(renewed).collect();
        let server_name = self.server_name().clone();
        for NewTicket {
            id,
            secret,
            lifetime,
            ..
        } in made
        {
            if self.family.len() >= TICKETS_KEPT_MAX.max(self.context.tickets) {
                return;
            }
            // The lifetime of a ticket counts from now. The session timeout counts from the
            // authentication.
            let ends = lifetime.map(|lifetime| now.at.since(self.agreed.authenticated) + lifetime);
            let timeout = self.context.session_timeout;
            let kept = self.keep_one(
                NewSession {
                    id,
                    version,
                    cipher_suite: self.agreed.cipher_suite.clone(),
                    server_name: server_name.clone(),
                    format: Format::Rustls,
                    binding: dot(self.agreed.dotted).into(),
                    single_use: version == Version::Tls13,
                    account: Arc::clone(&self.context.stats),
                    peer: self.agreed.peer.clone(),
                    authenticated: self.agreed.authenticated,
                    timeout: ends.map_or(timeout, |ends| ends.min(timeout)),
                    secret,
                },
                now,
            );
            if let Some(found) = kept {
                self.family.join(&found);
                self.attached = Some(found);
            }
        }
    }

    fn keep_one(&mut self, new: NewSession, now: Now) -> Option<Found> {
        let cache = self.context.cache(self.role);
        let kept = cache.keep(new, now).ok()?;
        let owners = &cache.ledger().owners;
        owners.count(&self.owner, |totals| totals.stored.count());
        self.puts.extend(kept.put);
        Some(kept.found)
    }

    /// Sets RECEIVED. During a handshake this fails the connection without an answer, because the
    /// handshake can no longer finish.
    fn close_received(&mut self, output: &mut Output) {
        self.shutdown.received = true;
        if self.state == State::Handshaking {
            output.ciphertext.clear();
            self.fail("the peer closed during the handshake".into(), None);
        }
    }

    /// Fails the connection because the peer violated TLS. Sends the alert of rustls, if there is
    /// one.
    ///
    /// After SENT no alert is sent. If this side has closed, the family stays (OpenSSL 3,
    /// ssl3_send_alert).
    fn refuse(&mut self, refused: Violation, output: &mut Output) {
        let Violation { error, alert } = refused;
        if !self.is_closed() {
            output.removed = self.condemn(RemovalReason::FatalAlert);
        }
        if self.shutdown.sent {
            output.ciphertext.clear();
            return self.fail(format!("after this side closed, {error}"), None);
        }
        let sent = alert.or_else(|| alert::in_clear(&output.ciphertext));
        output.alert = sent.map(|code| Alert {
            code,
            received: false,
        });
        let why = match output.alert {
            Some(alert) => format!("{alert}: {error}"),
            None => error,
        };
        self.fail(why, output.alert);
    }

    /// Handles the end of the transport.
    ///
    /// After the peer's close_notify no more data can come, so this side closes as well. Without a
    /// close_notify an attacker may have truncated the stream, so the connection fails (RFC 8446
    /// section 6.1).
    fn end_of_stream(&mut self, output: &mut Output) {
        if self.state == State::Failed {
            return;
        }
        self.shutdown.received |= self.context.options.ignore_unexpected_eof;
        if self.shutdown.received {
            // An unfinished handshake cannot be closed (SSL_R_SHUTDOWN_WHILE_IN_INIT), and can no
            // longer finish.
            if self.state != State::Established {
                return self.close_received(output);
            }
            if !self.shutdown.sent {
                self.close_side(&mut output.ciphertext);
            }
            return;
        }
        // A truncation is not an alert, so the family stays under `errors-only`.
        if !self.is_closed() && self.context.close_policy != ClosePolicy::ErrorsOnly {
            output.removed = self.condemn(RemovalReason::FatalAlert);
        }
        self.fail("the transport ended without a close_notify".into(), None);
    }

    /// Counts a handshake that failed, and keeps it among the recent failures.
    fn tell_failed(&self, why: &str, alert: Option<Alert>) {
        self.context.stats.failures.count(alert);
        let ledger = self.context.cache(self.role).ledger();
        ledger
            .owners
            .count(&self.owner, |totals| totals.failures.count());
        let at = ledger.latest();
        ledger.recent.failures.keep(at, || FailureEvent {
            at,
            alert,
            reason: recent::cut(why, REASON_MAX).into(),
            context: Arc::clone(&self.context.name),
            role: self.role,
            in_daemon: self.engine_kind == EngineKind::Daemon,
            server_name: self.server_name().clone().into_owned(),
            owner: Arc::clone(&self.owner),
            peer_address: self.peer_address.clone(),
        });
    }

    /// Fails the connection and drops its keys. Every later step is refused.
    ///
    /// `alert`: the alert that ended the connection, if one did.
    pub(super) fn fail(&mut self, why: String, alert: Option<Alert>) {
        // With the worker's engine the state stays Before until the handshake is finished.
        let in_handshake = matches!(self.state, State::Before | State::Handshaking);
        if in_handshake {
            self.tell_failed(&why, alert);
        }
        let pinned = match self.pin.filter(|_| self.state == State::Handshaking) {
            Some(version) => format!(
                "; this handshake was pinned to {version} by Clear or SetSession: for another peer use GetSession, \
                 New, SetSession and Free, or Free and New"
            ),
            None => String::new(),
        };
        self.failure = Some(Failure {
            why: why + &pinned,
            in_handshake,
        });
        if self.state == State::Handshaking {
            self.first_flight = None;
        }
        self.family.release();
        self.engine = None;
        self.offered = None;
        self.asking = None;
        self.unanswered.iter_mut().for_each(Lease::release);
        self.state = State::Failed;
    }
}
