//! What the scripts answer.

use super::{Head, Holder, Name, Reason, Revocation};
#[cfg(doc)]
use super::{REVOCATIONS_MAX, Request};

/// Why a request found or stored nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The store has lost the heartbeat of this daemon: it was restored, emptied or replaced.
    Lost,
    /// The heartbeat of this daemon has lapsed.
    Late,
    /// The revocations have this version now.
    Revised(u64),
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The daemon may not use the bucket now.
    Refused(Refused),
    /// Find: the session.
    Found {
        /// Its head.
        head: Head,
        /// How many holds it had before this request.
        holds: u8,
        /// Its sealed value.
        sealed: Vec<u8>,
    },
    /// Find: there is no such session.
    None,
    /// Find, put, ticket: the session was removed, for this reason, at this time of the store's clock.
    Gone {
        /// The reason, if this daemon knows it.
        reason: Option<Reason>,
        /// Milliseconds of the store's clock.
        at: u64,
    },
    /// Find: the session does not match the criteria. It stays.
    Scope,
    /// Find: a daemon that holds the session is not alive. The session stays. Ticket: the daemon that
    /// sealed it has ended, and may have known more of it than the store.
    HolderLost,
    /// Find: the session has as many holds as it can have.
    Full,
    /// Find: the entry has a form that no version of this layout writes.
    Malformed,
    /// Put: the session is stored. Spend: the ticket was not spent before.
    Stored,
    /// Ticket: its session is good, and spent now if it was to be.
    Good,
    /// Put: another session has the name. Spend: the ticket is spent.
    Taken,
    /// Spend: the daemon knows another version of the ring than the store.
    Behind,
    /// Find, put, beat: it came after its validity. `now` is the store's time, if the script tells it.
    Overdue {
        /// Milliseconds of the store's clock. Only a heartbeat tells it.
        now: Option<u64>,
        /// The version of the revocations. Only a heartbeat tells it.
        revision: Option<u64>,
    },
    /// Release, remove, resign, revise: how many entries were changed. Remove: or are on the list now, and
    /// were not.
    Done(u64),
    /// Beat: it is written.
    Beaten {
        /// Milliseconds of the store's clock.
        now: u64,
        /// The new deadline, in milliseconds of the store's clock.
        deadline: u64,
        /// The version of the revocations.
        revision: u64,
    },
    /// Newest: the names, newest first.
    Names(Vec<Name>),
    /// Revoke, revocations: their version, and with revocations all of them.
    Revocations {
        /// Later revocations have a higher one.
        revision: u64,
        /// All that are in force.
        entries: Vec<Revocation>,
    },
    /// Revoke: there are [`REVOCATIONS_MAX`].
    TooMany,
    /// Ring: what the store has.
    Ring(RingAnswer),
    /// Beat: the store does not have the expected one.
    BeatLost {
        /// Milliseconds of the store's clock.
        now: u64,
        /// The version of the revocations.
        revision: u64,
    },
}

/// The answer to [`Request::Ring`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingAnswer {
    /// Milliseconds of the store's clock.
    pub now: u64,
    /// The version of the ring in the store. 0: the store has none.
    pub version: u64,
    /// Whether the daemon that asks is the one that rotates the ring.
    pub leads: bool,
    /// Whether the ring was written.
    pub is_written: bool,
    /// The lowest version that a daemon knew at its last look.
    pub least: u64,
    /// Its sealed value. `None`: the daemon knows this version, or there is none.
    pub sealed: Option<Vec<u8>>,
    /// The daemons that are alive.
    pub alive: Vec<Holder>,
}

/// A value of RESP, as far as scripts return it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A bulk string.
    Bytes(Vec<u8>),
    /// An integer.
    Integer(i64),
    /// An array.
    List(Vec<Self>),
    /// Any other value. No script returns one.
    Other,
}

/// The store answered with something that no script returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store gave an answer that the script cannot give")]
pub struct UnknownAnswer;

impl Answer {
    /// Reads the result of a script.
    ///
    /// # Errors
    /// No script returns this value.
    pub fn read(value: &Value) -> Result<Self, UnknownAnswer> {
        let Value::List(parts) = value else {
            return Err(UnknownAnswer);
        };
        let (Some(Value::Bytes(kind)), rest) = (parts.first(), parts.get(1..).unwrap_or_default())
        else {
            return Err(UnknownAnswer);
        };
        let number = |place: usize| match rest.get(place) {
            Some(Value::Integer(number)) => u64::try_from(*number).map_err(|_| UnknownAnswer),
            Some(Value::Bytes(digits)) => std::str::from_utf8(digits)
                .ok()
                .and_then(|digits| digits.parse().ok())
                .ok_or(UnknownAnswer),
            _ => Err(UnknownAnswer),
        };
        Ok(match (kind.as_slice(), rest.len()) {
            (b"lost", 0) => Self::Refused(Refused::Lost),
            (b"late", 0) => Self::Refused(Refused::Late),
            (b"revised", 1) => Self::Refused(Refused::Revised(number(0)?)),
            (b"none", 0) => Self::None,
            (b"gone", 2) => {
                let reason = number(0)?;
                Self::Gone {
                    reason: Reason::ALL
                        .into_iter()
                        .find(|known| u64::from(known.number()) == reason),
                    at: number(1)?,
                }
            }
            (b"scope", 0) => Self::Scope,
            (b"holder", 0) => Self::HolderLost,
            (b"full", 0) => Self::Full,
            (b"malformed", 0) => Self::Malformed,
            (b"found", 3) => {
                let (Some(Value::Bytes(head)), Some(Value::Bytes(sealed))) =
                    (rest.first(), rest.get(2))
                else {
                    return Err(UnknownAnswer);
                };
                match Head::read(head) {
                    Some(head) => Self::Found {
                        head,
                        holds: u8::try_from(number(1)?).map_err(|_| UnknownAnswer)?,
                        sealed: sealed.clone(),
                    },
                    None => Self::Malformed,
                }
            }
            (b"stored", 0) => Self::Stored,
            (b"taken", 0) => Self::Taken,
            (b"good", 0) => Self::Good,
            (b"behind", 0) => Self::Behind,
            (b"overdue", 0) => Self::Overdue {
                now: None,
                revision: None,
            },
            (b"overdue", 2) => Self::Overdue {
                now: Some(number(0)?),
                revision: Some(number(1)?),
            },
            (b"done", 1) => Self::Done(number(0)?),
            (b"beaten", 3) => Self::Beaten {
                now: number(0)?,
                deadline: number(1)?,
                revision: number(2)?,
            },
            (b"names", _) => Self::Names(
                rest.iter()
                    .filter_map(|name| match name {
                        Value::Bytes(bytes) => Name::read(bytes),
                        _ => None,
                    })
                    .collect(),
            ),
            (b"revocations", 1..) => Self::Revocations {
                revision: number(0)?,
                entries: read_revocations(rest.get(1..).unwrap_or_default()),
            },
            (b"many", 0) => Self::TooMany,
            (b"ring", 6..) => {
                let Some(Value::Bytes(sealed)) = rest.get(5) else {
                    return Err(UnknownAnswer);
                };
                let alive = rest.iter().skip(6).filter_map(|daemon| match daemon {
                    Value::Bytes(id) => Some(Holder(id.as_slice().try_into().ok()?)),
                    _ => None,
                });
                Self::Ring(RingAnswer {
                    now: number(0)?,
                    version: number(1)?,
                    leads: number(2)? == 1,
                    is_written: number(3)? == 1,
                    least: number(4)?,
                    sealed: Some(sealed.clone()).filter(|sealed| !sealed.is_empty()),
                    alive: alive.collect(),
                })
            }
            (b"lost", 2) => Self::BeatLost {
                now: number(0)?,
                revision: number(1)?,
            },
            _ => return Err(UnknownAnswer),
        })
    }
}

/// Reads pairs of an id and a value: the end in decimal digits, a colon, and the sealed value. Leaves
/// out what no daemon has written.
fn read_revocations(pairs: &[Value]) -> Vec<Revocation> {
    let read = |pair: &[Value]| {
        let [Value::Bytes(id), Value::Bytes(value)] = pair else {
            return None;
        };
        let colon = value.iter().position(|byte| *byte == b':')?;
        Some(Revocation {
            id: id.as_slice().try_into().ok()?,
            ends: std::str::from_utf8(&value[..colon]).ok()?.parse().ok()?,
            sealed: value[colon + 1..].to_vec(),
        })
    };
    pairs.chunks(2).filter_map(read).collect()
}
