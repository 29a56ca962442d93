//! Idempotency of New (AIP-155): a request that repeats a request_id within a minute gets the first
//! answer.
//!
//! Of each request the digest is remembered, and the answer as bytes. The bytes are limited for
//! each owner and for all owners together. An owner that exceeds a limit loses its own oldest
//! answers, never those of another owner.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use parking_lot::Mutex;
use prost::Message;
use tls_sessiond_core::{clock::Timestamp, connection::Error};
use tls_sessiond_proto as pb;

use super::error::Refusal;

/// How long an answer is remembered.
const REMEMBERED: Duration = Duration::from_secs(60);
/// The longest request id, in characters.
const ID_MAX: usize = 64;
/// The most bytes of all owners together. An owner can exceed it by one answer, if it has no other.
const BYTES_MAX: usize = 64 << 20;
/// The most bytes of one owner. These are 20,000 ordinary answers, 8,000 with the longest server
/// names, or 900 with the most names of a peer.
const BYTES_OF_ONE_MAX: usize = 8 << 20;
/// The most bytes that an answer takes beside its encoding: its entries in the map and the queue,
/// of which each is at most half empty.
const PLACE: usize = 240;
/// How many expired answers one sweep removes, and one call. Both are limited because calls wait
/// for the lock meanwhile.
const FORGOTTEN_BY_SWEEP: usize = 8192;
const FORGOTTEN_BY_CALL: usize = 8;
/// Maps and queues below this capacity are not shrunk.
const SMALL: usize = 64;

/// The first half of the SHA-256 of a request id. Half is enough: an owner that finds a collision
/// affects only its own answers.
type Id = [u8; 16];

/// Holds the remembered answers by owner and request id.
#[derive(Default)]
pub(crate) struct RequestIds(Mutex<OwnerAnswers>);

#[derive(Default)]
struct OwnerAnswers {
    owners: HashMap<Arc<str>, Owned>,
    bytes: usize,
}

/// The answers of one owner.
#[derive(Default)]
struct Owned {
    by_id: HashMap<Id, RememberedAnswer>,
    /// When each answer expires, oldest first.
    order: VecDeque<(Timestamp, Id)>,
    bytes: usize,
}

struct RememberedAnswer {
    until: Timestamp,
    /// SHA-256 of the request.
    request: [u8; 32],
    /// The encoded `NewResponse`, without the owner of its connection.
    response: Box<[u8]>,
}

impl RememberedAnswer {
    /// Returns the bytes that count for this answer: [`PLACE`], its encoding and an eighth of that.
    fn size(&self) -> usize {
        PLACE + self.response.len() + self.response.len() / 8
    }
}

impl RequestIds {
    /// Returns the remembered answer, or else the answer of `make`. Of two calls with the same id,
    /// only one calls `make` successfully within the minute. A request without an id is never
    /// remembered.
    ///
    /// # Errors
    /// [`Refusal::RequestIdTooLong`], [`Error::RequestIdReused`] where another request had the same
    /// id, and the errors of `make`, which are not remembered.
    pub(crate) fn once(
        &self,
        owner: &Arc<str>,
        request: pb::NewRequest,
        now: Timestamp,
        make: impl FnOnce(pb::NewRequest) -> Result<pb::NewResponse, Refusal>,
    ) -> Result<pb::NewResponse, Refusal> {
        if request.request_id.is_empty() {
            return make(request);
        }
        let length = request.request_id.chars().count();
        if length > ID_MAX {
            return Err(Refusal::RequestIdTooLong(length));
        }
        let id = first_half(sha256(request.request_id.as_bytes()));
        let digest = sha256(&request.encode_to_vec());
        let mut answers = self.0.lock();
        answers.forget(owner, now);
        let held = answers
            .owners
            .get(owner)
            .and_then(|owned| owned.find(&id, now));
        if let Some(answer) = held {
            return match answer.request == digest {
                true => Ok(read(&answer.response, owner)),
                false => Err(Error::RequestIdReused.into()),
            };
        }
        let response = make(request)?;
        let answer = RememberedAnswer {
            until: now.after(REMEMBERED),
            request: digest,
            response: write(&response),
        };
        answers.remember(owner, id, answer);
        Ok(response)
    }

    /// Removes expired answers, and releases unused capacity.
    pub(crate) fn expire(&self, now: Timestamp) {
        let mut answers = self.0.lock();
        let OwnerAnswers { owners, bytes } = &mut *answers;
        let mut most = FORGOTTEN_BY_SWEEP;
        owners.retain(|_, owned| {
            most -= owned.expire(now, bytes, most);
            owned.shrink();
            !owned.order.is_empty()
        });
        if owners.capacity() > 4 * owners.len().max(SMALL) {
            owners.shrink_to_fit();
        }
    }
}

impl OwnerAnswers {
    fn forget(&mut self, owner: &Arc<str>, now: Timestamp) {
        let Self { owners, bytes } = self;
        if let Some(owned) = owners.get_mut(owner) {
            owned.expire(now, bytes, FORGOTTEN_BY_CALL);
        }
    }

    fn remember(&mut self, owner: &Arc<str>, id: Id, answer: RememberedAnswer) {
        let size = answer.size();
        let owned = self.owners.entry(Arc::clone(owner)).or_default();
        while owned.bytes + size > BYTES_OF_ONE_MAX || self.bytes + size > BYTES_MAX {
            if !owned.drop_oldest(&mut self.bytes) {
                break;
            }
        }
        owned.order.push_back((answer.until, id));
        owned.bytes += size;
        self.bytes += size;
        // An earlier answer under this id has expired, and has not been removed yet.
        if let Some(old) = owned.by_id.insert(id, answer) {
            owned.bytes -= old.size();
            self.bytes -= old.size();
        }
    }
}

impl Owned {
    /// Removes up to `most` expired answers. Returns how many.
    fn expire(&mut self, now: Timestamp, all: &mut usize, most: usize) -> usize {
        let mut forgotten = 0;
        while forgotten < most && self.order.front().is_some_and(|(until, _)| *until <= now) {
            self.drop_oldest(all);
            forgotten += 1;
        }
        forgotten
    }

    /// Returns the answer of this id, unless it has expired.
    fn find(&self, id: &Id, now: Timestamp) -> Option<&RememberedAnswer> {
        self.by_id.get(id).filter(|answer| answer.until > now)
    }

    /// Removes the oldest answer. Returns whether there was one.
    fn drop_oldest(&mut self, all: &mut usize) -> bool {
        let Some((until, id)) = self.order.pop_front() else {
            return false;
        };
        // A later answer may have replaced the oldest one under the same id. It stays.
        if self
            .by_id
            .get(&id)
            .is_some_and(|answer| answer.until == until)
            && let Some(answer) = self.by_id.remove(&id)
        {
            self.bytes -= answer.size();
            *all -= answer.size();
        }
        true
    }

    fn shrink(&mut self) {
        let wanted = 2 * self.order.len().max(SMALL);
        if self.order.capacity() > 2 * wanted {
            self.order.shrink_to(wanted);
            self.by_id.shrink_to(wanted);
        }
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

fn first_half(hash: [u8; 32]) -> Id {
    let mut id = Id::default();
    id.copy_from_slice(&hash[..16]);
    id
}

fn write(response: &pb::NewResponse) -> Box<[u8]> {
    let mut response = response.clone();
    if let Some(connection) = &mut response.connection {
        connection.owner.clear();
    }
    response.encode_to_vec().into()
}

fn read(response: &[u8], owner: &Arc<str>) -> pb::NewResponse {
    let mut response = pb::NewResponse::decode(response).expect("`write` has encoded it");
    if let Some(connection) = &mut response.connection {
        connection.owner = owner.to_string();
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(id: u32) -> pb::NewRequest {
        pb::NewRequest {
            request_id: format!("{id:064}"),
            ..pb::NewRequest::default()
        }
    }

    fn response(id: u32, owner: &Arc<str>) -> pb::NewResponse {
        let connection = pb::Connection {
            id: format!("{id:032x}"),
            owner: owner.to_string(),
            server_name: "n".repeat(255),
            ..pb::Connection::default()
        };
        pb::NewResponse {
            connection: Some(connection),
        }
    }

    /// Returns whether the answer was remembered. Checks that it equals the first one.
    fn repeated(ids: &RequestIds, owner: &Arc<str>, id: u32, now: Timestamp) -> bool {
        let mut made = false;
        let answer = ids.once(owner, request(id), now, |_| {
            made = true;
            Ok(response(id, owner))
        });
        assert_eq!(answer.unwrap(), response(id, owner));
        !made
    }

    #[test]
    fn each_owner_has_a_share_and_takes_none_of_another() {
        let ids = RequestIds::default();
        let now = Timestamp::from_millis(1);
        let quiet: Arc<str> = "uid:0".into();
        assert!(!repeated(&ids, &quiet, 7, now));
        // Eleven owners at their own limit exceed the limit of all owners by three.
        let owners: Vec<Arc<str>> = (1..12).map(|owner| format!("uid:{owner}").into()).collect();
        for owner in &owners {
            for id in 0..20_000 {
                assert!(!repeated(&ids, owner, id, now));
            }
            assert!(repeated(&ids, owner, 19_999, now));
        }
        assert!(
            repeated(&ids, &quiet, 7, now),
            "other owners cannot evict it"
        );
        assert!(repeated(&ids, &owners[0], 19_000, now));
        let answers = ids.0.lock();
        assert!(
            answers.bytes <= BYTES_MAX + owners.len() * 1_000,
            "{}",
            answers.bytes
        );
        let sum: usize = answers.owners.values().map(|owned| owned.bytes).sum();
        assert_eq!(sum, answers.bytes);
    }

    #[test]
    fn sweep_forgets_what_is_a_minute_old() {
        let ids = RequestIds::default();
        let owner: Arc<str> = "uid:1".into();
        let at = Timestamp::from_millis;
        (0..10_000).for_each(|id| assert!(!repeated(&ids, &owner, id, at(u64::from(id)))));
        ids.expire(at(65_000));
        assert_eq!(
            ids.0.lock().owners[&owner].order.len(),
            4_999,
            "ids 0 to 5,000 are a minute old"
        );
        assert!(repeated(&ids, &owner, 9_999, at(65_000)));
        ids.expire(at(70_000));
        let answers = ids.0.lock();
        assert_eq!((answers.owners.len(), answers.bytes), (0, 0));
    }

    #[test]
    fn request_that_differs_is_refused_under_one_id() {
        let ids = RequestIds::default();
        let owner: Arc<str> = "uid:1".into();
        let now = Timestamp::from_millis(1);
        assert!(!repeated(&ids, &owner, 1, now));
        let other = pb::NewRequest {
            server_name: "b.test".into(),
            ..request(1)
        };
        let refused = ids.once(&owner, other, now, |_| panic!("`make` must not be called"));
        assert!(matches!(
            refused,
            Err(Refusal::Connection(Error::RequestIdReused))
        ));
    }
}
