//! Repeated requests (AIP-155): the same request_id within a minute gets the first answer.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;

use super::status::Refusal;
use crate::{clock::Timestamp, connection::Error, proto as pb};

/// How long an answer is remembered.
const REMEMBERED: Duration = Duration::from_secs(60);
/// The longest request id, in characters.
const ID_MAX: usize = 64;

type Key = (Arc<str>, String);

/// Answers by owner and request id. Holds at most `entries_max`; the oldest go first.
pub(super) struct RequestIds {
    entries_max: usize,
    answers: Mutex<Answers>,
}

#[derive(Default)]
struct Answers {
    by_id: HashMap<Key, (pb::NewRequest, pb::NewResponse)>,
    order: VecDeque<(Timestamp, Key)>,
}

impl RequestIds {
    pub(super) fn new(entries_max: usize) -> Self {
        Self { entries_max, answers: Mutex::default() }
    }

    /// The remembered answer, or what `make` answers now. Two calls with one id never both make something.
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
        let key = (Arc::clone(owner), request.request_id.clone());
        let mut answers = self.answers.lock();
        answers.forget(self.entries_max, now);
        if let Some((first, answer)) = answers.by_id.get(&key) {
            return if *first == request { Ok(answer.clone()) } else { Err(Error::RequestIdReused.into()) };
        }
        let answer = make(request.clone())?;
        answers.order.push_back((now.after(REMEMBERED), key.clone()));
        answers.by_id.insert(key, (request, answer.clone()));
        Ok(answer)
    }
}

impl Answers {
    fn forget(&mut self, entries_max: usize, now: Timestamp) {
        while let Some((until, _)) = self.order.front() {
            if *until > now && self.order.len() < entries_max {
                return;
            }
            if let Some((_, key)) = self.order.pop_front() {
                self.by_id.remove(&key);
            }
        }
    }
}
