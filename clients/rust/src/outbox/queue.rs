//! The queue of a stream. Calls are encoded one behind the other into the messages that carry them.

use std::collections::VecDeque;

use tls_sessiond_proto::wire::Writer;
use tls_sessiond_types::secret::SecretBuffer;

use super::encode::{Call, EncodeCall};
use crate::{
    framing::{PREFIX, prefix},
    options::Limits,
};

/// Limits of one AttachRequest.
const BATCH_CALLS: usize = 1000;
const BATCH_BYTES: usize = 1 << 20;
/// The largest initial capacity of a message. The length of the last message is used if it is
/// smaller.
const ROOM: usize = 64 << 10;

pub(crate) struct Queue {
    limits: Limits,
    /// Encoded messages. New calls go into the last one.
    batches: VecDeque<Batch>,
    /// The number and the size of each call in all messages.
    calls: VecDeque<(u64, usize)>,
    /// Bytes of all messages.
    bytes: usize,
    /// The length of the last message.
    usual: usize,
}

struct Batch {
    bytes: SecretBuffer,
    calls: usize,
}

impl Queue {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            batches: VecDeque::new(),
            calls: VecDeque::new(),
            bytes: 0,
            usual: 0,
        }
    }

    /// Returns whether a call of this size does not fit into the limits.
    pub(crate) fn is_full(&self, size: usize) -> bool {
        self.calls.len() >= self.limits.queued_calls
            || self.bytes + size > self.limits.queued_bytes
            || size > self.limits.call_bytes
    }

    /// Appends a call. Does not check the limits: see [`Queue::is_full`].
    pub(crate) fn push(&mut self, call: &Call<'_, impl EncodeCall>) {
        let size = call.size();
        let most = self.limits.call_bytes.min(BATCH_BYTES);
        let goes = |batch: &Batch| {
            batch.calls < BATCH_CALLS && batch.bytes.bytes().len() - PREFIX + size <= most
        };
        if !self.batches.back().is_some_and(goes) {
            let mut bytes = SecretBuffer::with_capacity(self.usual.min(ROOM));
            bytes.grow(PREFIX);
            self.batches.push_back(Batch { bytes, calls: 0 });
        }
        let Some(batch) = self.batches.back_mut() else {
            return;
        };
        call.write(&mut Writer::new(batch.bytes.grow(size)));
        batch.calls += 1;
        self.calls.push_back((call.id, size));
        self.bytes += size;
    }

    /// Takes the next message with its length prefix, and the number of its calls. Calls that want
    /// an answer are left out unless `wanted` returns true for their number.
    pub(crate) fn pop(&mut self, wanted: impl Fn(u64) -> bool) -> Option<(SecretBuffer, usize)> {
        loop {
            let Batch { mut bytes, calls } = self.batches.pop_front()?;
            self.bytes -= bytes.bytes().len() - PREFIX;
            let (mut from, mut to, mut left) = (PREFIX, PREFIX, calls);
            for (id, size) in self.calls.drain(..calls) {
                if id == 0 || wanted(id) {
                    if to < from {
                        bytes.pull(from, size, to);
                    }
                    to += size;
                } else {
                    left -= 1;
                }
                from += size;
            }
            bytes.truncate(to);
            bytes.bytes_mut()[..PREFIX].copy_from_slice(&prefix(to - PREFIX));
            self.usual = to;
            if left > 0 {
                return Some((bytes, left));
            }
        }
    }

    /// Drops all calls.
    pub(crate) fn clear(&mut self) {
        self.batches.clear();
        self.calls.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use tls_sessiond_proto as pb;
    use tls_sessiond_proto::call::Method;

    fn push(queue: &mut Queue, id: u64) {
        let words = Method::Shutdown(pb::ShutdownRequest {
            connection_id: "@".repeat(20),
        });
        queue.push(&Call {
            id,
            alias: "",
            words: &words,
            words_size: words.size(),
        });
    }

    fn pop(queue: &mut Queue, wanted: impl Fn(u64) -> bool) -> Option<Vec<u64>> {
        let (bytes, count) = queue.pop(wanted)?;
        let (prefix, message) = bytes.bytes().split_at(PREFIX);
        assert_eq!(prefix, super::prefix(message.len()));
        let calls = pb::AttachRequest::decode(message).unwrap().calls;
        assert_eq!(calls.len(), count);
        Some(calls.into_iter().map(|call| call.id).collect())
    }

    #[test]
    fn messages_are_no_larger_than_the_largest_call_may_be() {
        let mut queue = Queue::new(Limits {
            call_bytes: 100,
            ..Limits::default()
        });
        (0..10).for_each(|_| push(&mut queue, 0));
        let mut sizes = Vec::new();
        while let Some((bytes, calls)) = queue.pop(|_| false) {
            assert!(bytes.bytes().len() <= PREFIX + 100);
            sizes.push(calls);
        }
        assert_eq!(sizes, [3, 3, 3, 1]);
        assert_eq!((queue.bytes, queue.calls.len()), (0, 0));
    }

    #[test]
    fn calls_that_are_not_wanted_any_more_are_left_out_and_the_others_stay_in_order() {
        let mut queue = Queue::new(Limits::default());
        [1, 0, 2, 3, 300, 0, 4]
            .into_iter()
            .for_each(|id| push(&mut queue, id));
        assert_eq!(
            pop(&mut queue, |id| id % 2 == 0),
            Some(vec![0, 2, 300, 0, 4])
        );
        [1, 3].into_iter().for_each(|id| push(&mut queue, id));
        assert_eq!(
            pop(&mut queue, |_| false),
            None,
            "a message without calls is not sent"
        );
        assert_eq!(queue.bytes, 0);
    }

    #[test]
    fn queue_is_full_by_calls_by_bytes_and_for_what_is_too_large() {
        let mut queue = Queue::new(Limits {
            queued_calls: 2,
            queued_bytes: 100,
            call_bytes: 90,
        });
        assert!(!queue.is_full(90) && queue.is_full(91));
        push(&mut queue, 0);
        assert!(!queue.is_full(70) && queue.is_full(80));
        push(&mut queue, 0);
        assert!(queue.is_full(1));
        queue.clear();
        assert!(!queue.is_full(90));
    }
}
