//! Sealed sessions: a server's session in the ticket of its client, sealed by a ring.
//!
//! ```text
//! version (1 byte) ‖ sealer (8) ‖ authenticated (8) ‖ created after (4) ‖ lives (4) ‖ handle lives (4) ‖ the
//! session as rustls writes it
//! ```
//!
//! `authenticated` is a time of the daemon, or of the wall clock where several daemons open the ticket.
//! `sealer` is the holder in the shared store that sealed it.
//!
//! rustls' form of a session has the version, the suite, the SNI and the client's certificate. So a
//! ticket has all that the checks of a lookup need.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::{constant_time::verify_slices_are_equal, rand};
use tls_sessiond_store::script::Holder;
use tls_sessiond_types::{Version, client_hello::TICKET_MAX, server_name::ServerName};
use zeroize::Zeroizing;

use super::session_form::SessionForm;
use crate::{
    cache::{Cache, Look, sealed::OpenedSession},
    clock::{Now, Timestamp, WallTime},
    context::{Context, identity::identity},
    session::{
        Format, Miss, NewSession, ResumeCriteria, Secret, Session, SessionId, SessionInfo,
        sealing::{HANDLE_BYTES, Handle, SealsTickets},
        stats::Account,
    },
};

/// The version of the form above.
const VERSION: u8 = 1;
/// Bytes of a state before the session.
const HEAD: usize = 1 + 8 + 8 + 4 + 4 + 4;

/// Returns the binding that tells sessions apart by the trailing dot of their SNI. rustls resumes a
/// session only with the identical SNI, and [`ServerName`] does not keep the dot.
pub(super) fn dot(dotted: bool) -> &'static [u8] {
    if dotted { b"." } else { b"" }
}

/// Seals and opens the sessions of a server's connection.
pub(super) struct TicketSealer {
    cache: Arc<Cache>,
    sealer: Arc<dyn SealsTickets>,
    account: Arc<Account>,
    timeout: Duration,
}

/// A session that was handed to rustls, to be resumed.
#[derive(Clone)]
pub(super) struct Handed {
    pub(super) session: Arc<Session>,
    /// It is sealed in tickets: when the last of them expires.
    pub(super) sealed_until: Option<Timestamp>,
}

/// A sealed session.
pub(super) struct SealedTicket {
    pub(super) ticket: Vec<u8>,
    /// How long the client may use it.
    pub(super) lifetime: Duration,
    /// The session, and when the last of its tickets expires. `None`: the ticket renews that of the session
    /// that the handshake resumes.
    pub(super) session: Option<(SessionInfo, Timestamp)>,
}

impl TicketSealer {
    /// Returns the sealer of a context's servers, for sessions of one version. `None`: the context keeps no
    /// sessions, or stores them.
    ///
    /// Where several daemons open tickets, sessions of TLS 1.2 are stored: any number of connections may
    /// resume one. If a daemon dies or is cut off, no other daemon would know which sessions its connections
    /// have resumed, and how these have ended.
    pub(super) fn of(context: &Context, version: Version) -> Option<Self> {
        let sealing = context.sealing.as_ref()?;
        let is_known = version == Version::Tls13 || context.server_cache.fleet().is_none();
        (is_known && !context.options.no_session_cache).then(|| Self {
            cache: Arc::clone(&context.server_cache),
            sealer: Arc::clone(&sealing.sealer),
            account: Arc::clone(&context.stats),
            timeout: context.session_timeout,
        })
    }

    /// Returns the handle that a ticket names, without opening it.
    pub(super) fn named_handle(&self, ticket: &[u8]) -> Option<SessionId> {
        SessionId::new(&self.sealer.named_handle(ticket)?)
    }

    /// Seals the session of a handshake, in the form of rustls. `handed`: the session that rustls was
    /// given to resume. `None`: the handshake goes on without a ticket.
    pub(super) fn seal(
        &self,
        plain: &[u8],
        handed: Option<&Handed>,
        now: Now,
    ) -> Option<SealedTicket> {
        let form = SessionForm::read(plain)?;
        let resumed = handed.filter(|handed| continues(&handed.session, &form));
        // In TLS 1.2 a resumption makes no session. The new ticket has the handle of the one before, so
        // that both are removed together.
        let renewed = resumed.filter(|_| form.version == Version::Tls12);
        let handle = match renewed {
            Some(Handed {
                session,
                sealed_until,
            }) => {
                // A stored session is found by its id. In a ticket it would be another one.
                (*sealed_until)?;
                session.id().as_bytes().try_into().ok()?
            }
            None => random_handle()?,
        };
        let name = form.server_name.unwrap_or_default();
        let authenticated = resumed.map_or(now.at, |handed| handed.session.authenticated());
        let new = NewSession {
            id: SessionId::new(&handle),
            secret: Secret::copied(plain),
            ..self.session(&form, name, authenticated)
        };
        let lives_max = renewed.map(|handed| handed.session.facts().lives);
        let session = self.cache.to_seal(new, lives_max, now).ok()?;
        // The handle of a renewed ticket is bad until the longest-lived of its tickets has expired.
        let until = renewed
            .and_then(|handed| handed.sealed_until)
            .map_or(session.expires(), |until| until.max(session.expires()));
        let run = self.cache.run()?;
        let sealer = self.cache.sealer(session.id(), now.at)?;
        let state = encode(
            session.facts(),
            until,
            self.time(authenticated, now),
            sealer,
            plain,
        );
        let ticket = self.sealer.seal(&handle, &state, &self.cache.bound(&run))?;
        let left = session.expires().since(now.at);
        (ticket.len() <= TICKET_MAX).then(|| SealedTicket {
            ticket,
            lifetime: left.min(self.sealer.lifetime()),
            session: renewed.is_none().then(|| (session.facts().clone(), until)),
        })
    }

    /// Opens a ticket, and returns its session if that matches `terms`. Spends a single-use session.
    /// Where a store has the list of bad handles, that is to be asked.
    pub(super) fn open(&self, ticket: &[u8], terms: &ResumeCriteria<'_>, now: Now) -> Look {
        match self.opened(ticket, now) {
            Some(opened) => self.cache.admit(opened, terms, now),
            None => Look::Done(Err(Miss::Unknown)),
        }
    }

    fn opened(&self, ticket: &[u8], now: Now) -> Option<OpenedSession> {
        let run = self.cache.run()?;
        let opened = self.sealer.open(ticket, &self.cache.bound(&run))?;
        let state = decode(&opened.state)?;
        let form = SessionForm::read(state.plain)?;
        let name = form.server_name.unwrap_or_default();
        let session = NewSession {
            id: SessionId::new(&opened.handle),
            secret: Secret::copied(state.plain),
            ..self.session(&form, name, self.local_time(state.authenticated, now))
        };
        Some(OpenedSession {
            run,
            session,
            created_after: state.created_after,
            lives: state.lives,
            handle_lives: state.handle_lives,
            sealer: state.sealer,
        })
    }

    /// Returns a time as tickets have it.
    fn time(&self, at: Timestamp, now: Now) -> u64 {
        match self.cache.fleet() {
            Some(_) => now.offset.wall(at).as_millis(),
            None => at.as_millis(),
        }
    }

    fn local_time(&self, time: u64, now: Now) -> Timestamp {
        match self.cache.fleet() {
            Some(_) => now.offset.at(WallTime::from_millis(time)),
            None => Timestamp::from_millis(time),
        }
    }

    /// Returns a session without its id and its secret.
    fn session(&self, form: &SessionForm<'_>, name: &str, authenticated: Timestamp) -> NewSession {
        NewSession {
            id: None,
            version: form.version,
            cipher_suite: form.cipher_suite.into(),
            server_name: ServerName::new(name).into_owned(),
            format: Format::Rustls,
            binding: dot(name.ends_with('.')).into(),
            single_use: form.version == Version::Tls13,
            account: Arc::clone(&self.account),
            peer: form.certificate.map(identity),
            authenticated,
            timeout: self.timeout,
            secret: Secret::copied(&[]),
        }
    }
}

/// Returns whether the session of a handshake continues the one that rustls was given.
///
/// In TLS 1.2 both have the same master secret. In TLS 1.3 they have not, so a session that rustls has
/// refused counts as continued: the ticket expires earlier than it needs to, and never later.
fn continues(handed: &Session, new: &SessionForm<'_>) -> bool {
    let Some(old) = handed.secret().as_bytes().and_then(SessionForm::read) else {
        return false;
    };
    match (old.version, new.version) {
        (Version::Tls13, Version::Tls13) => true,
        (Version::Tls12, Version::Tls12) => verify_slices_are_equal(old.secret, new.secret).is_ok(),
        (Version::Tls12, Version::Tls13) | (Version::Tls13, Version::Tls12) => false,
    }
}

fn random_handle() -> Option<Handle> {
    let mut handle = [0; HANDLE_BYTES];
    rand::fill(&mut handle).ok()?;
    Some(handle)
}

fn encode(
    facts: &SessionInfo,
    until: Timestamp,
    authenticated: u64,
    Holder(sealer): Holder,
    plain: &[u8],
) -> Zeroizing<Vec<u8>> {
    // Room for all, so that no copy of the secret is left behind.
    let mut state = Zeroizing::new(Vec::with_capacity(HEAD + plain.len()));
    state.push(VERSION);
    state.extend_from_slice(&sealer);
    state.extend_from_slice(&authenticated.to_be_bytes());
    state.extend_from_slice(&facts.created_after.to_be_bytes());
    state.extend_from_slice(&facts.lives.to_be_bytes());
    let handle_lives = until.since(facts.authenticated).as_millis();
    let handle_lives = u32::try_from(handle_lives).unwrap_or(u32::MAX);
    state.extend_from_slice(&handle_lives.to_be_bytes());
    state.extend_from_slice(plain);
    state
}

struct SealedState<'s> {
    sealer: Holder,
    authenticated: u64,
    created_after: u32,
    lives: u32,
    handle_lives: u32,
    plain: &'s [u8],
}

fn decode(state: &[u8]) -> Option<SealedState<'_>> {
    let (&[VERSION], rest) = state.split_first_chunk()? else {
        return None;
    };
    let (sealer, rest) = rest.split_first_chunk()?;
    let (authenticated, rest) = rest.split_first_chunk()?;
    let (created_after, rest) = rest.split_first_chunk()?;
    let (lives, rest) = rest.split_first_chunk()?;
    let (handle_lives, plain) = rest.split_first_chunk()?;
    Some(SealedState {
        sealer: Holder(*sealer),
        authenticated: u64::from_be_bytes(*authenticated),
        created_after: u32::from_be_bytes(*created_after),
        lives: u32::from_be_bytes(*lives),
        handle_lives: u32::from_be_bytes(*handle_lives),
        plain,
    })
}
