//! Requests and answers as data, and the scripts that the store runs.
//!
//! Every script of a bucket touches keys of that bucket alone, so a cluster runs it too. Each is
//! safe to run twice, except [`Request::Put`]: a put whose answer was lost is followed by a removal
//! and never repeated, because its session may have been taken meanwhile.

use std::sync::LazyLock;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use tls_sessiond_types::{Version, hex};

use crate::layout::{Bucket, Fit, Layout, Name, Pool, RingName};

mod answer;

pub use answer::{Answer, Refused, RingAnswer, UnknownAnswer, Value};

/// The most entries of one [`Request::Release`] or [`Request::Remove`].
pub const ENTRIES_MAX: usize = 64;

/// How long the note of a stored session is kept: ten minutes, in milliseconds.
const NOTE_MILLIS: u64 = 600_000;

/// How long the store knows that a daemon has stopped with everything delivered: as long as a ticket may
/// live that it has sealed, in milliseconds.
const RESIGNED_MILLIS: u64 = 7 * 24 * 3_600_000;

/// One life of one daemon in one bucket: random, and never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Holder(pub [u8; 8]);

/// One hold of a holder on one session. A holder never uses a token twice for a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u32);

/// The last heartbeat that the store acknowledged. Only its holder may find and put sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The holder.
    pub holder: Holder,
    /// Its deadline, in milliseconds of the store's clock.
    pub deadline: u64,
    /// The version of the revocations that this daemon knows.
    pub revision: u64,
}

/// What the store may see of a session: what a script checks before it hands the session out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Whether a lookup takes the session.
    pub single_use: bool,
    /// The version of the session.
    pub version: Version,
    /// The IANA number of its cipher suite. 0: unknown.
    pub cipher_suite: u16,
    /// The hash of format, binding and server name.
    pub fit: Fit,
}

const HEAD: usize = 13;

fn version_byte(version: Version) -> u8 {
    match version {
        Version::Tls12 => 3,
        Version::Tls13 => 4,
    }
}

impl Head {
    /// Returns the first bytes of an entry with this head.
    pub fn to_bytes(&self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        bytes[0] = 1;
        bytes[1] = self.single_use.into();
        bytes[2] = version_byte(self.version);
        bytes[3..5].copy_from_slice(&self.cipher_suite.to_be_bytes());
        bytes[5..].copy_from_slice(&self.fit.0);
        bytes
    }

    /// Reads the first bytes of an entry. `None`: no version of this layout wrote them.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let &[1, flags, version, high, low, ref fit @ ..] = bytes else {
            return None;
        };
        Some(Self {
            single_use: match flags {
                0 => false,
                1 => true,
                _ => return None,
            },
            version: match version {
                3 => Version::Tls12,
                4 => Version::Tls13,
                _ => return None,
            },
            cipher_suite: u16::from_be_bytes([high, low]),
            fit: Fit(fit.try_into().ok()?),
        })
    }
}

/// What a lookup may resume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Criteria {
    /// The hash of format, binding and server name.
    pub fit: Fit,
    /// The versions that can be spoken.
    pub versions: Vec<Version>,
    /// The only cipher suite that can be agreed on. `None`: any.
    pub cipher_suite: Option<u16>,
}

/// What a [`Request::Find`] does with the session that it finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Takes a single-use session, and reads any other. For a lookup that belongs to no connection.
    Lookup(Criteria),
    /// Takes a single-use session, and holds any other. For a handshake of the daemon's engine.
    Resume(Criteria),
    /// Holds the session. For a connection whose worker resumed it.
    Join,
    /// Reads the session.
    Peek,
}

/// Why a session was removed, as its note has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Its connection ended while it was open.
    Unclosed,
    /// A fatal alert ended one of its connections.
    FatalAlert,
    /// A caller removed it.
    Removed,
    /// It was revoked.
    Revoked,
    /// A daemon did not know whether its put had reached the store.
    Withdrawn,
    /// It was sealed in a ticket of single use, and resumed.
    Spent,
}

/// What the store keeps of a session that was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// Why it was removed.
    pub reason: Reason,
    /// How long the note is kept, in milliseconds: until the ticket has expired that the session is sealed
    /// in. `None`: it was stored, and the note is kept for ten minutes.
    pub ticket_life: Option<u64>,
}

impl From<Reason> for Note {
    fn from(reason: Reason) -> Self {
        Self {
            reason,
            ticket_life: None,
        }
    }
}

impl Note {
    /// Returns how long the note is kept, in milliseconds.
    pub fn life(&self) -> u64 {
        self.ticket_life.unwrap_or(NOTE_MILLIS).max(1)
    }
}

impl Reason {
    const ALL: [Self; 6] = [
        Self::Unclosed,
        Self::FatalAlert,
        Self::Removed,
        Self::Revoked,
        Self::Withdrawn,
        Self::Spent,
    ];

    /// Returns the number of the reason in a note.
    fn number(self) -> u8 {
        match self {
            Self::Unclosed => 1,
            Self::FatalAlert => 2,
            Self::Removed => 3,
            Self::Revoked => 4,
            Self::Withdrawn => 5,
            // SPENT in common.lua.
            Self::Spent => 6,
        }
    }
}

/// Whether the store must have an earlier heartbeat of the holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It must have this deadline. Otherwise it has lost the heartbeat.
    Deadline(u64),
    /// It may have any or none: the first heartbeat of a life, or the first after a loss.
    Any,
}

/// The most names that [`Request::Newest`] reads.
pub const NEWEST_MAX: usize = 16;
/// The most sessions of a pool. Beyond it, the oldest is found by its id alone.
const POOL_MAX: i64 = 64;
/// The most revocations in force.
pub const REVOCATIONS_MAX: u64 = 4_096;
/// How many more there may be of those that revoke all sessions of contexts.
pub const REVOCATIONS_OF_ALL: u64 = 256;

/// A revocation, as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// A keyed hash of what it revokes.
    pub id: [u8; 16],
    /// When it is forgotten, in milliseconds of the store's clock. Of two with the same id, the store
    /// keeps the one that ends later.
    pub ends: u64,
    /// Its sealed value.
    pub sealed: Vec<u8>,
}

/// One request to the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Finds a session.
    Find {
        /// The session.
        name: Name,
        /// The last heartbeat of this daemon.
        claim: Claim,
        /// The hold that the request makes, if its mode makes one.
        token: Token,
        /// What to do with the session.
        mode: Mode,
        /// After this time of the store's clock the find is refused. In milliseconds.
        valid_until: u64,
    },
    /// Stores a session, held by the daemon that stores it.
    Put {
        /// The session.
        name: Name,
        /// The last heartbeat of this daemon.
        claim: Claim,
        /// The hold that the request makes.
        token: Token,
        /// The head of the entry.
        head: Head,
        /// The sealed value.
        sealed: Vec<u8>,
        /// After this time of the store's clock the put is refused. In milliseconds.
        valid_until: u64,
        /// How long the session lives, in milliseconds. At least 1.
        life: u64,
        /// Client: the pool that the session joins. It is in the bucket of the session.
        pool: Option<Pool>,
    },
    /// Reads the newest sessions of a pool, after others were taken out of it.
    Newest {
        /// The pool.
        pool: Pool,
        /// Names that the store does not have any more. At most [`NEWEST_MAX`].
        gone: Vec<Name>,
    },
    /// Adds revocations, and reads their version.
    Revoke {
        /// At most [`ENTRIES_MAX`].
        entries: Vec<Revocation>,
        /// A version that the daemon was told. The new version is not lower.
        known: u64,
        /// The most entries that there may be. At most [`REVOCATIONS_MAX`], except for those that
        /// revoke all sessions of a context.
        most: u64,
    },
    /// Reads all revocations and their version.
    Revocations,
    /// Ends holds, whose connections were closed. All sessions are of one bucket.
    Release {
        /// The holder.
        holder: Holder,
        /// At most [`ENTRIES_MAX`] sessions, each with its hold.
        holds: Vec<(Name, Token)>,
    },
    /// Removes sessions of one bucket, and writes the notes of those with one. Sessions of tickets are put
    /// on the list of those that are not good any more.
    Remove {
        /// At most [`ENTRIES_MAX`].
        entries: Vec<(Name, Option<Note>)>,
    },
    /// Looks whether the session of a ticket that opened is still good, and spends a single-use one.
    Ticket {
        /// The session.
        name: Name,
        /// The last heartbeat of this daemon.
        claim: Claim,
        /// The holder that sealed the ticket, in the bucket of the session.
        sealer: Holder,
        /// What the process of the store calls itself.
        server: Box<str>,
        /// Whether to spend it.
        spends: bool,
        /// How long the ticket lives, in milliseconds. At least 1.
        life: u64,
        /// After this time of the store's clock the look is refused. In milliseconds.
        valid_until: u64,
    },
    /// Writes a heartbeat.
    Beat {
        /// The bucket.
        bucket: Bucket,
        /// The holder.
        holder: Holder,
        /// How long the holder lives from now on, in milliseconds.
        life: u64,
        /// The heartbeat that the store must have.
        expected: Expected,
        /// After this time of the store's clock the heartbeat is refused. 0: only the time is wanted.
        /// In milliseconds.
        valid_until: u64,
    },
    /// Removes the heartbeat of a daemon that stops, and remembers that it had delivered everything.
    Resign {
        /// The bucket.
        bucket: Bucket,
        /// The holder.
        holder: Holder,
        /// What the process of the store calls itself.
        server: Box<str>,
    },
    /// Raises the version of the revocations.
    Revise {
        /// The bucket.
        bucket: Bucket,
        /// The new version.
        revision: u64,
    },
    /// Looks at a ring of ticket keys, and writes it if `write` says so.
    Ring {
        /// The ring.
        ring: RingName,
        /// The daemon that looks: random at each of its starts.
        daemon: Holder,
        /// How long a daemon counts as alive after a look, and how long it rotates the ring, in
        /// milliseconds.
        lease: u64,
        /// The version of the ring that the daemon knows. The answer has the ring if the store has
        /// another one.
        known: RingVersion,
        /// What to write.
        write: Option<RingWrite>,
    },
    /// Looks whether a ticket that the daemons of a ring have sealed is spent, and spends it if it is
    /// not.
    Spend {
        /// The ring.
        ring: RingName,
        /// The version that the daemon knows. The store must have it.
        known: RingVersion,
        /// The handle of the ticket.
        handle: [u8; 16],
        /// Whether to spend it.
        spends: bool,
        /// How long to remember that it is spent, in milliseconds. At least 1.
        life: u64,
    },
}

/// The version of a ring of ticket keys that a daemon knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RingVersion {
    /// Its number. 0: the daemon knows none.
    pub number: u64,
    /// The first [`MARK_BYTES`] of the sealed value: another value may have the same number.
    pub mark: Vec<u8>,
}

/// Bytes with which no two sealed rings begin: a version and a nonce.
pub const MARK_BYTES: usize = 13;

/// A ring of ticket keys to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingWrite {
    /// Its version. It is written only if it is the one after that in the store, which the daemon
    /// knows.
    pub version: u64,
    /// Its sealed value.
    pub sealed: Vec<u8>,
    /// Whether it gives back what the store has lost: then any later version is written.
    pub restores: bool,
}

/// A script: its text, and its SHA-1 by which EVALSHA names it.
#[derive(Debug)]
pub struct Script {
    /// The text.
    pub text: String,
    /// 40 hex digits.
    pub sha1: String,
}

/// Makes a script. `flags` are those of the first line (see EVAL): with `allow-oom` the script runs
/// although the memory of the store is used up.
fn script(flags: &str, body: &str) -> Script {
    let text = format!(
        "#!lua flags={flags}\n{}\n{body}",
        include_str!("common.lua")
    );
    let sha1 = digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    Script {
        sha1: hex::string(sha1.as_ref()),
        text,
    }
}

/// Flags of scripts that make no memory, or that little of it is worth more than the limit.
const ALWAYS: &str = "allow-oom";
/// Flags of a script that a full store refuses.
const WITHIN_MEMORY: &str = "";

static FIND: LazyLock<Script> = LazyLock::new(|| script(ALWAYS, include_str!("find.lua")));
static PUT: LazyLock<Script> = LazyLock::new(|| script(WITHIN_MEMORY, include_str!("put.lua")));
static RELEASE: LazyLock<Script> = LazyLock::new(|| script(ALWAYS, include_str!("release.lua")));
static REMOVE: LazyLock<Script> = LazyLock::new(|| script(ALWAYS, include_str!("remove.lua")));
static BEAT: LazyLock<Script> = LazyLock::new(|| script(ALWAYS, include_str!("beat.lua")));
static RESIGN: LazyLock<Script> = LazyLock::new(|| script(ALWAYS, include_str!("resign.lua")));
static REVISE: LazyLock<Script> = LazyLock::new(|| script(ALWAYS, include_str!("revise.lua")));
static NEWEST: LazyLock<Script> = LazyLock::new(|| script(ALWAYS, include_str!("newest.lua")));
static TICKET: LazyLock<Script> = LazyLock::new(|| script(ALWAYS, include_str!("ticket.lua")));
static SPEND: LazyLock<Script> = LazyLock::new(|| script(ALWAYS, include_str!("spend.lua")));
static RING: LazyLock<Script> = LazyLock::new(|| script(ALWAYS, include_str!("ring.lua")));
static REVOKE: LazyLock<Script> = LazyLock::new(|| script(ALWAYS, include_str!("revoke.lua")));
static REVOCATIONS: LazyLock<Script> =
    LazyLock::new(|| script(ALWAYS, include_str!("revocations.lua")));

impl Request {
    /// Returns the script that the store runs for the request.
    pub fn script(&self) -> &'static Script {
        match self {
            Self::Find { .. } => &FIND,
            Self::Put { .. } => &PUT,
            Self::Release { .. } => &RELEASE,
            Self::Remove { .. } => &REMOVE,
            Self::Beat { .. } => &BEAT,
            Self::Resign { .. } => &RESIGN,
            Self::Revise { .. } => &REVISE,
            Self::Newest { .. } => &NEWEST,
            Self::Revoke { .. } => &REVOKE,
            Self::Revocations => &REVOCATIONS,
            Self::Ring { .. } => &RING,
            Self::Spend { .. } => &SPEND,
            Self::Ticket { .. } => &TICKET,
        }
    }

    /// Returns the keys that the script uses. All are of one bucket.
    pub fn keys(&self, layout: &Layout) -> Vec<Vec<u8>> {
        match self {
            Self::Find { name, .. } => {
                vec![layout.entry(*name), layout.beats(name.bucket())]
            }
            Self::Put { name, pool, .. } => [layout.entry(*name), layout.beats(name.bucket())]
                .into_iter()
                .chain(pool.as_ref().map(|pool| layout.pool(pool)))
                .collect(),
            Self::Newest { pool, .. } => vec![layout.pool(pool)],
            Self::Revoke { .. } | Self::Revocations => vec![layout.revocations()],
            Self::Ring { ring, .. } => vec![layout.ring(*ring)],
            Self::Spend { ring, .. } => vec![layout.ring(*ring), layout.spent(*ring)],
            Self::Release { holds, .. } => {
                holds.iter().map(|(name, _)| layout.entry(*name)).collect()
            }
            Self::Remove { entries } => {
                let key = |(name, note): &(Name, Option<Note>)| match is_ticket(note) {
                    true => layout.tickets(name.bucket()),
                    false => layout.entry(*name),
                };
                let bucket = entries.first().map(|(name, _)| name.bucket());
                let beats = bucket.map(|bucket| layout.beats(bucket));
                entries.iter().map(key).chain(beats).collect()
            }
            Self::Beat { bucket, .. } | Self::Revise { bucket, .. } => {
                vec![layout.beats(*bucket)]
            }
            Self::Resign { bucket, .. } => {
                vec![layout.beats(*bucket), layout.tickets(*bucket)]
            }
            Self::Ticket { name, .. } => {
                let bucket = name.bucket();
                vec![layout.tickets(bucket), layout.beats(bucket)]
            }
        }
    }

    /// Returns the arguments of the script.
    pub fn arguments(&self) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        self.each_argument(&mut |argument| all.push(argument.to_vec()));
        all
    }

    /// Passes each argument of the script to `to`, in their order.
    pub fn each_argument(&self, to: &mut impl FnMut(&[u8])) {
        match self {
            Self::Find {
                claim,
                token,
                mode,
                valid_until,
                ..
            } => {
                let (word, criteria) = match mode {
                    Mode::Lookup(criteria) => ("lookup", Some(criteria)),
                    Mode::Resume(criteria) => ("resume", Some(criteria)),
                    Mode::Join => ("join", None),
                    Mode::Peek => ("peek", None),
                };
                claimed(claim, to);
                to(word.as_bytes());
                to(&token.0.to_be_bytes());
                to(criteria.map_or(&[][..], |criteria| &criteria.fit.0));
                let mut versions = [0; 4];
                let spoken = criteria.map_or(&[][..], |criteria| &criteria.versions);
                let count = spoken.len().min(versions.len());
                for (byte, version) in versions.iter_mut().zip(spoken) {
                    *byte = version_byte(*version);
                }
                to(&versions[..count]);
                match criteria.and_then(|criteria| criteria.cipher_suite) {
                    Some(suite) => to(&suite.to_be_bytes()),
                    None => to(&[]),
                }
                number(*valid_until, to);
            }
            Self::Put {
                claim,
                token,
                head,
                sealed,
                valid_until,
                life,
                name,
                ..
            } => {
                claimed(claim, to);
                to(&token.0.to_be_bytes());
                to(&head.to_bytes());
                to(sealed);
                number(*valid_until, to);
                number((*life).max(1), to);
                to(name.as_bytes());
                number(POOL_MAX.unsigned_abs(), to);
            }
            Self::Newest { gone, .. } => {
                number(NEWEST_MAX as u64, to);
                gone.iter().for_each(|name| to(name.as_bytes()));
            }
            Self::Revoke {
                entries,
                known,
                most,
            } => {
                number(*known, to);
                number(*most, to);
                for entry in entries {
                    to(&entry.id);
                    let ends = entry.ends.to_string();
                    to(&[ends.as_bytes(), b":", &entry.sealed].concat());
                }
            }
            Self::Revocations => {}
            Self::Release { holder, holds } => {
                to(&holder.0);
                holds
                    .iter()
                    .for_each(|(_, token)| to(&token.0.to_be_bytes()));
            }
            Self::Remove { entries } => {
                for (name, note) in entries {
                    number(note.map_or(0, |note| note.reason.number().into()), to);
                    number(note.map_or(1, |note| note.life()), to);
                    to(if is_ticket(note) {
                        name.as_bytes()
                    } else {
                        &[]
                    });
                }
            }
            Self::Beat {
                holder,
                life,
                expected,
                valid_until,
                ..
            } => {
                to(&holder.0);
                number(*life, to);
                match expected {
                    Expected::Deadline(deadline) => number(*deadline, to),
                    Expected::Any => to(b"*"),
                }
                number(*valid_until, to);
            }
            Self::Resign { holder, server, .. } => {
                to(&holder.0);
                to(server.as_bytes());
                number(RESIGNED_MILLIS, to);
            }
            Self::Ticket {
                name,
                claim,
                sealer,
                server,
                spends,
                life,
                valid_until,
            } => {
                claimed(claim, to);
                to(name.as_bytes());
                to(&sealer.0);
                to(server.as_bytes());
                to(if *spends { b"1" } else { b"0" });
                number((*life).max(1), to);
                number(*valid_until, to);
            }
            Self::Revise { revision, .. } => number(*revision, to),
            Self::Ring {
                daemon,
                lease,
                known,
                write,
                ..
            } => {
                to(&daemon.0);
                number(*lease, to);
                number(known.number, to);
                to(&known.mark);
                number(write.as_ref().map_or(0, |write| write.version), to);
                let restores = write.as_ref().is_some_and(|write| write.restores);
                to(if restores { b"1" } else { b"0" });
                to(write.as_ref().map_or(&[], |write| &write.sealed));
            }
            Self::Spend {
                known,
                handle,
                spends,
                life,
                ..
            } => {
                number(known.number, to);
                to(&known.mark);
                to(handle);
                to(if *spends { b"1" } else { b"0" });
                number((*life).max(1), to);
            }
        }
    }
}

/// Returns whether a session is one of a ticket.
fn is_ticket(note: &Option<Note>) -> bool {
    note.is_some_and(|note| note.ticket_life.is_some())
}

fn claimed(claim: &Claim, to: &mut impl FnMut(&[u8])) {
    to(&claim.holder.0);
    number(claim.deadline, to);
    number(claim.revision, to);
}

/// Passes a number as decimal digits.
fn number(number: u64, to: &mut impl FnMut(&[u8])) {
    let mut digits = [0; 20];
    let (mut at, mut rest) = (digits.len(), number);
    loop {
        at -= 1;
        // Below ten.
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    to(&digits[at..]);
}

#[cfg(test)]
mod tests;
