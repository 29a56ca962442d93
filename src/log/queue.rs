//! Lines that wait to be written, bounded in bytes.

use std::collections::VecDeque;

/// Maximum number of bytes of waiting lines, for each kind.
pub(super) const BYTES_MAX: usize = 1 << 20;
/// Memory of a line in the queue besides its bytes.
const LINE_OVERHEAD: usize = 64;

/// The kind of a line. Each kind has a queue of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A line that passed the filter.
    Ordinary,
    /// A line about a refusal, a removal or a revocation. A flood of other lines takes none of
    /// their room.
    Audit,
}

/// Both queues. The oldest line is taken first, whichever its queue.
#[derive(Debug, Default)]
pub(super) struct Queues {
    ordinary: Queue,
    audit: Queue,
    /// Sequence number of the next line.
    number: u64,
    /// Number of lines dropped since the start.
    dropped_ever: u64,
}

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<(u64, Vec<u8>)>,
    bytes: usize,
    /// Number of lines dropped since the last notice.
    dropped: u64,
}

/// Lines that were dropped because their queue was full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Dropped {
    pub(super) ordinary: u64,
    pub(super) audit: u64,
}

impl Queues {
    /// Adds a line, or counts it as dropped if its queue is full. Returns which it did.
    pub(super) fn push(&mut self, kind: Kind, line: Vec<u8>) -> Pushed {
        let queue = match kind {
            Kind::Ordinary => &mut self.ordinary,
            Kind::Audit => &mut self.audit,
        };
        let bytes = line.len() + LINE_OVERHEAD;
        if queue.bytes + bytes > BYTES_MAX {
            queue.dropped += 1;
            self.dropped_ever += 1;
            return Pushed::Dropped;
        }
        queue.bytes += bytes;
        queue.lines.push_back((self.number, line));
        self.number += 1;
        Pushed::Waits
    }

    /// Returns the number of lines dropped since the start.
    pub(super) fn dropped_ever(&self) -> u64 {
        self.dropped_ever
    }

    /// Takes the oldest line.
    pub(super) fn pop(&mut self) -> Option<Vec<u8>> {
        let first = |queue: &Queue| queue.lines.front().map(|(number, _)| *number);
        let queue = match (first(&self.ordinary), first(&self.audit)) {
            (Some(ordinary), Some(audit)) if audit < ordinary => &mut self.audit,
            (None, Some(_)) => &mut self.audit,
            _ => &mut self.ordinary,
        };
        let (_, line) = queue.lines.pop_front()?;
        queue.bytes -= line.len() + LINE_OVERHEAD;
        Some(line)
    }

    /// Returns whether no line waits.
    pub(super) fn is_empty(&self) -> bool {
        self.ordinary.lines.is_empty() && self.audit.lines.is_empty()
    }

    /// Takes the counts of dropped lines, if any were dropped.
    pub(super) fn take_dropped(&mut self) -> Option<Dropped> {
        let dropped = Dropped {
            ordinary: std::mem::take(&mut self.ordinary.dropped),
            audit: std::mem::take(&mut self.audit.dropped),
        };
        (dropped != Dropped::default()).then_some(dropped)
    }
}

/// The result of adding a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    /// The line waits to be written.
    Waits,
    /// The line was counted and dropped.
    Dropped,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_written_in_order() {
        let mut queues = Queues::default();
        for (number, kind) in [Kind::Ordinary, Kind::Audit, Kind::Audit, Kind::Ordinary]
            .into_iter()
            .enumerate()
        {
            assert_eq!(
                queues.push(kind, vec![u8::try_from(number).unwrap()]),
                Pushed::Waits
            );
        }
        let left: Vec<_> = std::iter::from_fn(|| queues.pop()).flatten().collect();
        assert_eq!(left, [0, 1, 2, 3]);
        assert_eq!(queues.take_dropped(), None);
    }

    #[test]
    fn full_queue_counts_dropped_lines_and_spares_the_other_queue() {
        let mut queues = Queues::default();
        let line = || vec![b'x'; 1000];
        let kept = (0..5000)
            .filter(|_| queues.push(Kind::Ordinary, line()) == Pushed::Waits)
            .count();
        assert_eq!(kept, BYTES_MAX / (1000 + LINE_OVERHEAD));
        assert_eq!(queues.push(Kind::Audit, line()), Pushed::Waits);
        let dropped = queues.take_dropped().unwrap();
        assert_eq!(
            dropped,
            Dropped {
                ordinary: 5000 - kept as u64,
                audit: 0
            }
        );
        assert_eq!(queues.take_dropped(), None);
        assert_eq!(queues.dropped_ever(), 5000 - kept as u64);
        assert!(queues.pop().is_some());
        assert_eq!(
            queues.push(Kind::Ordinary, line()),
            Pushed::Waits,
            "freed room is used again"
        );
    }
}
