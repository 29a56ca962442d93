//! Repeated requests (AIP-155): the same request_id within a minute gets the first answer.
//!
//! A request is remembered by its digest, and its answer as bytes, in a bounded number of them for each owner and in all. An
//! owner that needs more forgets its own oldest answers, never those of another owner.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use parking_lot::Mutex;
use prost::Message;
use tls_sessiond_core::{clock::Timestamp, connection::Error};

use super::status::Refusal;
use crate::proto as pb;

/// How long an answer is remembered.
const REMEMBERED: Duration = Duration::from_secs(60);
/// The longest request id, in characters.
const ID_MAX: usize = 64;
/// Most bytes of all owners. One answer of an owner that has no other is remembered beyond it.
const BYTES_MAX: usize = 64 << 20;
/// Most bytes of one owner: 20,000 ordinary answers, 8,000 with the longest server names, and 900 with the most names of a peer.
const BYTES_OF_ONE_MAX: usize = 8 << 20;
/// What an answer takes beside its own bytes, at most: its place in table and queue, each at most half empty.
const PLACE: usize = 240;
/// How many answers one sweep forgets, and one call: calls wait meanwhile.
const FORGOTTEN_BY_SWEEP: usize = 8192;
const FORGOTTEN_BY_CALL: usize = 8;
/// Tables that are smaller than this stay as they are.
const SMALL: usize = 64;

/// The first half of a digest: an owner that finds two request ids for one has fooled itself.
type Id = [u8; 16];

/// Answers by owner and request id.
#[derive(Default)]
pub(super) struct RequestIds(Mutex<Answers>);

#[derive(Default)]
struct Answers {
    owners: HashMap<Arc<str>, Owned>,
    bytes: usize,
}

/// The answers of one owner.
#[derive(Default)]
struct Owned {
    by_id: HashMap<Id, Answer>,
    /// Until when each is remembered, oldest first.
    order: VecDeque<(Timestamp, Id)>,
    bytes: usize,
}

struct Answer {
    until: Timestamp,
    /// SHA-256 of the request.
    request: [u8; 32],
    /// Encoded, without the owner.
    response: Box<[u8]>,
}

impl Answer {
    fn size(&self) -> usize {
        PLACE + self.response.len() + self.response.len() / 8
    }
}

impl RequestIds {
    /// Returns the remembered answer, or what `make` answers now. Two calls with one id never both make something.
    pub(super) fn once(
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
        let held = answers.owners.get(owner).and_then(|owned| owned.find(&id, now));
        if let Some(answer) = held {
            return match answer.request == digest {
                true => Ok(read(&answer.response, owner)),
                false => Err(Error::RequestIdReused.into()),
            };
        }
        let response = make(request)?;
        let answer = Answer { until: now.after(REMEMBERED), request: digest, response: write(&response) };
        answers.remember(owner, id, answer);
        Ok(response)
    }

    /// Forgets answers whose minute has passed.
    pub(super) fn expire(&self, now: Timestamp) {
        let mut answers = self.0.lock();
        let Answers { owners, bytes } = &mut *answers;
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

impl Answers {
    fn forget(&mut self, owner: &Arc<str>, now: Timestamp) {
        let Self { owners, bytes } = self;
        if let Some(owned) = owners.get_mut(owner) {
            owned.expire(now, bytes, FORGOTTEN_BY_CALL);
        }
    }

    fn remember(&mut self, owner: &Arc<str>, id: Id, answer: Answer) {
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
        // The one before it is too old, and has yet to be forgotten.
        if let Some(old) = owned.by_id.insert(id, answer) {
            owned.bytes -= old.size();
            self.bytes -= old.size();
        }
    }
}

impl Owned {
    /// Forgets up to `most` answers; says how many.
    fn expire(&mut self, now: Timestamp, all: &mut usize, most: usize) -> usize {
        let mut forgotten = 0;
        while forgotten < most && self.order.front().is_some_and(|(until, _)| *until <= now) {
            self.drop_oldest(all);
            forgotten += 1;
        }
        forgotten
    }

    /// One whose minute has passed may be there still.
    fn find(&self, id: &Id, now: Timestamp) -> Option<&Answer> {
        self.by_id.get(id).filter(|answer| answer.until > now)
    }

    /// Says whether there was one.
    fn drop_oldest(&mut self, all: &mut usize) -> bool {
        let Some((until, id)) = self.order.pop_front() else { return false };
        // Under the same id there may be a later one.
        if self.by_id.get(&id).is_some_and(|answer| answer.until == until)
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
        pb::NewRequest { request_id: format!("{id:064}"), ..pb::NewRequest::default() }
    }

    fn response(id: u32, owner: &Arc<str>) -> pb::NewResponse {
        let connection = pb::Connection {
            id: format!("{id:032x}"),
            owner: owner.to_string(),
            server_name: "n".repeat(255),
            ..pb::Connection::default()
        };
        pb::NewResponse { connection: Some(connection) }
    }

    /// Whether the answer was remembered; it is the first one then.
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
        // Of eleven owners with as much as they may have, three are beyond what all may have.
        let owners: Vec<Arc<str>> = (1..12).map(|owner| format!("uid:{owner}").into()).collect();
        for owner in &owners {
            for id in 0..20_000 {
                assert!(!repeated(&ids, owner, id, now));
            }
            assert!(repeated(&ids, owner, 19_999, now));
        }
        assert!(repeated(&ids, &quiet, 7, now), "others cannot push it out");
        assert!(repeated(&ids, &owners[0], 19_000, now));
        let answers = ids.0.lock();
        assert!(answers.bytes <= BYTES_MAX + owners.len() * 1_000, "{}", answers.bytes);
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
        assert_eq!(ids.0.lock().owners[&owner].order.len(), 4_999, "ids 0 to 5,000 are a minute old");
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
        let other = pb::NewRequest { server_name: "b.test".into(), ..request(1) };
        let refused = ids.once(&owner, other, now, |_| panic!("it is not made"));
        assert!(matches!(refused, Err(Refusal::Connection(Error::RequestIdReused))));
    }
}
