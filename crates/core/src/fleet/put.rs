//! Sessions on their way to the shared store.

use std::{fmt, sync::Arc};

use tls_sessiond_store::{
    layout::{Name, Pool},
    script::{Answer, Claim, Head, Request},
};

use super::{Failure, FleetStore, Hold, Refusal, Value, value};
use crate::{clock::Now, session::SessionInfo};

/// Why a session is not in the shared store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PutRefused {
    /// The store is away, or did not answer in time.
    Away,
    /// The id belongs to another session, or to one that was removed.
    IdTaken,
    /// The system has no random numbers.
    NoRandomness,
}

/// A session that is to be stored. Its connection holds it already: see [`Hold`].
///
/// Dropping a put without its answer removes the session, because the store may have it.
pub struct Put {
    store: Arc<FleetStore>,
    hold: Arc<Hold>,
    name: Name,
    claim: Claim,
    request: Request,
    is_settled: bool,
}

impl FleetStore {
    /// Makes the put of a session, which lives until `facts.expires()`. `pool`: that of a client's
    /// session, in whose bucket `name` lies.
    pub(crate) fn put(
        self: &Arc<Self>,
        name: Name,
        pool: Option<Pool>,
        facts: &SessionInfo,
        secret: &[u8],
        now: Now,
    ) -> Result<Put, PutRefused> {
        let (claim, valid_until, token) = self.may_put(name, now.at).map_err(|why| match why {
            Refusal::Away | Refusal::Removing => PutRefused::Away,
        })?;
        let kind = &facts.kind;
        let wall = |at| now.offset.wall(at);
        let value = Value {
            id: facts.id.as_bytes().into(),
            cipher_suite: (*kind.cipher_suite).into(),
            server_name: kind.server_name.clone(),
            format: kind.format.clone(),
            binding: (&*kind.binding).into(),
            peer: kind.peer.clone(),
            authenticated: wall(facts.authenticated),
            created: wall(facts.created()),
            expires: wall(facts.expires()),
            secret: None,
        };
        let keys = self.keys();
        let format = Self::format(&kind.format);
        let head = Head {
            single_use: kind.single_use,
            version: kind.version,
            cipher_suite: value::suite_number(&kind.cipher_suite),
            fit: keys.names().fit(format, &kind.binding, &kind.server_name),
        };
        let sealed = keys
            .seal(
                &self.layout().entry(name),
                name,
                &head,
                &value.encode(secret),
            )
            .map_err(|_| PutRefused::NoRandomness)?;
        let life = facts.expires().since(now.at).as_millis();
        let request = Request::Put {
            name,
            claim,
            token,
            head,
            sealed,
            valid_until,
            life: u64::try_from(life).unwrap_or(u64::MAX),
            pool,
        };
        let hold = Hold::new(self, name, claim.holder, token, facts.clone(), false);
        Ok(Put {
            store: Arc::clone(self),
            hold: Arc::new(hold),
            name,
            claim,
            request,
            is_settled: false,
        })
    }
}

impl Put {
    /// Returns the request to send.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Returns the hold of the connection that made the session.
    pub fn hold(&self) -> &Arc<Hold> {
        &self.hold
    }

    /// Returns whether the session is still wanted. If it is not, the put need not be sent.
    pub fn is_wanted(&self) -> bool {
        !self.hold.is_over()
    }

    /// Takes the answer.
    pub(crate) fn answered(
        mut self,
        answer: Result<Answer, Failure>,
        now: Now,
    ) -> Result<(), PutRefused> {
        self.is_settled = true;
        self.store.note(self.name, &self.claim, &answer, now.at);
        let (refused, is_known) = match answer {
            Ok(Answer::Stored) => {
                self.hold.stored();
                return Ok(());
            }
            Ok(Answer::Taken | Answer::Gone { .. }) => (PutRefused::IdTaken, true),
            Ok(Answer::Refused(_) | Answer::Overdue { .. }) | Err(Failure::NotRun) => {
                (PutRefused::Away, true)
            }
            Ok(_) | Err(Failure::NoAnswer) => (PutRefused::Away, false),
        };
        self.hold.not_stored(is_known);
        Err(refused)
    }
}

impl fmt::Debug for Put {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Put")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Drop for Put {
    fn drop(&mut self) {
        if !self.is_settled {
            self.hold.not_stored(false);
        }
    }
}
