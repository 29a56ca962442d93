//! A ring as bytes, for the daemons that share it. Its times are of a clock that all of them read.
//!
//! The bytes have the secrets of the epochs: the caller seals them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use zeroize::Zeroizing;

use super::{
    Attachment, Epoch, Lease, MEMBERS_MAX, Member, NAME_MAX, Phase, Ring, Settings, Style, Window,
};
use crate::epoch::{EpochSecret, SECRET_BYTES};

/// The version of this form.
const VERSION: u8 = 1;
/// Most bytes of a ring: 1,024 members with the longest names and owners.
pub const STATE_MAX: usize = 4 << 20;
/// Most bytes of the text of a member, besides its name.
const TEXT_MAX: usize = 3_500;
/// Bytes of a member besides its texts.
const MEMBER_BYTES: usize = 64;

const PHASES: [Phase; 4] = [Phase::Idle, Phase::Prepare, Phase::Activate, Phase::Settle];
const STYLES: [Style; 3] = [Style::List, Style::Push, Style::Single];

impl Ring {
    /// Returns the whole state of the ring, apart from its name.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let texts = self.members.iter().map(|(name, member)| {
            let trouble = member.trouble.as_ref().map_or(0, |trouble| trouble.len());
            MEMBER_BYTES + name.len() + member.by.owner.len() + trouble
        });
        // Room for all, so that no copy of a secret is left behind.
        let room = 256 + 3 * (8 + SECRET_BYTES) + texts.sum::<usize>();
        let mut out = Writer(Zeroizing::new(Vec::with_capacity(room)));
        out.byte(VERSION);
        let Settings {
            rotate,
            lifetime,
            max_key_age,
            members_wait,
        } = self.settings;
        for time in [rotate, lifetime, max_key_age, members_wait] {
            out.time(time);
        }
        for epoch in self.epochs() {
            out.number(epoch.number);
            out.bytes(epoch.secret.bytes());
        }
        out.bytes(&self.run);
        out.place(PHASES.iter().position(|phase| *phase == self.phase));
        for number in [self.sequence, self.leases, self.rotations] {
            out.number(number);
        }
        for time in [self.since, self.activated, self.oldest_in_use] {
            out.time(time);
        }
        out.option(self.settled_from, Writer::time);
        out.flag(self.is_emergency);
        out.flag(self.is_asked);
        for (name, member) in &self.members {
            out.text(name);
            out.text(&member.by.owner);
            out.number(member.by.daemon);
            out.option(member.lease, |out, Lease(number, _)| out.number(number));
            out.place(STYLES.iter().position(|style| *style == member.style));
            out.flag(member.counts);
            out.flag(member.is_late);
            out.number(member.acknowledged);
            out.number(member.first);
            out.time(member.seen);
            out.time(member.joined);
            out.option(member.trouble.as_deref(), Writer::text);
        }
        out.0
    }

    /// Reads a ring, with the settings of the daemon that wrote it. `None`: no version of this form writes
    /// that.
    pub fn decode(name: &str, bytes: &[u8]) -> Option<Self> {
        if bytes.len() > STATE_MAX {
            return None;
        }
        let mut from = Reader(bytes);
        if from.byte()? != VERSION {
            return None;
        }
        let settings = Settings {
            rotate: from.time()?,
            lifetime: from.time()?,
            max_key_age: from.time()?,
            members_wait: from.time()?,
        };
        let window = Window {
            before: from.epoch()?,
            current: from.epoch()?,
            next: from.epoch()?,
        };
        let mut ring = Self::of(name, settings, window, *from.take()?, Duration::ZERO);
        ring.phase = *PHASES.get(usize::from(from.byte()?))?;
        ring.sequence = from.number()?;
        ring.leases = from.number()?;
        ring.rotations = from.number()?;
        ring.since = from.time()?;
        ring.activated = from.time()?;
        ring.oldest_in_use = from.time()?;
        ring.settled_from = from.option(Reader::time)?;
        ring.is_emergency = from.flag()?;
        ring.is_asked = from.flag()?;
        ring.members = from.members()?;
        Some(ring)
    }
}

struct Writer(Zeroizing<Vec<u8>>);

impl Writer {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn flag(&mut self, flag: bool) {
        self.byte(flag.into());
    }

    /// Writes the place of a word in its list. Every word is in its list.
    fn place(&mut self, place: Option<usize>) {
        self.byte(
            place
                .and_then(|place| u8::try_from(place).ok())
                .unwrap_or(u8::MAX),
        );
    }

    fn number(&mut self, number: u64) {
        self.bytes(&number.to_be_bytes());
    }

    fn time(&mut self, time: Duration) {
        self.number(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    }

    /// Writes a text, and leaves out what is beyond [`TEXT_MAX`].
    fn text(&mut self, text: &str) {
        let mut end = text.len().min(TEXT_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.bytes(&u16::try_from(end).unwrap_or(u16::MAX).to_be_bytes());
        self.bytes(&text.as_bytes()[..end]);
    }

    fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.flag(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
    }
}

/// Reads a state from its beginning. Each value is `None` if the bytes have another form.
pub(crate) struct Reader<'s>(&'s [u8]);

impl<'s> Reader<'s> {
    pub(crate) fn new(bytes: &'s [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take<const N: usize>(&mut self) -> Option<&'s [u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| *byte)
    }

    fn flag(&mut self) -> Option<bool> {
        match self.byte()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    pub(crate) fn number(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(*self.take()?))
    }

    fn time(&mut self) -> Option<Duration> {
        self.number().map(Duration::from_millis)
    }

    pub(crate) fn epoch(&mut self) -> Option<Epoch> {
        let number = self.number()?;
        let secret = EpochSecret::of(self.take()?);
        Some(Epoch { number, secret })
    }

    pub(crate) fn text(&mut self) -> Option<Arc<str>> {
        let length = usize::from(u16::from_be_bytes(*self.take()?));
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(std::str::from_utf8(text).ok()?.into())
    }

    fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        Some(match self.flag()? {
            true => Some(read(self)?),
            false => None,
        })
    }

    fn members(&mut self) -> Option<BTreeMap<Arc<str>, Member>> {
        let mut members = BTreeMap::new();
        while !self.0.is_empty() {
            let name = self.text()?;
            let by = Attachment {
                owner: self.text()?,
                daemon: self.number()?,
            };
            let daemon = by.daemon;
            let member = Member {
                by,
                lease: self
                    .option(Self::number)?
                    .map(|number| Lease(number, daemon)),
                style: *STYLES.get(usize::from(self.byte()?))?,
                counts: self.flag()?,
                is_late: self.flag()?,
                acknowledged: self.number()?,
                first: self.number()?,
                seen: self.time()?,
                joined: self.time()?,
                trouble: self.option(Self::text)?,
            };
            let is_new = members.insert(Arc::clone(&name), member).is_none();
            if name.len() > NAME_MAX || !is_new || members.len() > MEMBERS_MAX {
                return None;
            }
        }
        Some(members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const SETTINGS: Settings = Settings {
        rotate: Duration::from_secs(10),
        lifetime: Duration::from_secs(10),
        max_key_age: Duration::from_secs(60),
        members_wait: SECOND,
    };

    /// Returns a ring in each phase, with members of every kind.
    fn rings() -> Vec<Ring> {
        let mut ring = Ring::new("web", SETTINGS, SECOND).unwrap();
        let by = Attachment {
            owner: "uid:33".into(),
            daemon: 7,
        };
        let one = ring.join("one", Style::Push, &by, SECOND).unwrap();
        ring.acknowledge(one, 1, SECOND).unwrap();
        let two = ring.join("two", Style::Single, &by, 2 * SECOND).unwrap();
        ring.refuse(two, 1, "a wörd").unwrap();
        let mut rings = vec![ring.clone()];
        for second in 11..60 {
            let now = second * SECOND;
            let events = ring.tick(now).unwrap();
            let told = ring.instruction(one).unwrap().sequence;
            rings.extend((!events.is_empty()).then(|| ring.clone()));
            ring.acknowledge(one, told, now).unwrap();
        }
        ring.rotate();
        ring.detach(one, 60 * SECOND);
        rings.push(ring.clone());
        ring.rotate_at_once(61 * SECOND).unwrap();
        rings.push(ring);
        assert!(
            PHASES
                .iter()
                .all(|phase| rings.iter().any(|ring| ring.phase == *phase))
        );
        rings
    }

    #[test]
    fn ring_is_read_as_it_was_written_and_nothing_else_panics() {
        for ring in rings() {
            let bytes = ring.encode();
            let read = Ring::decode("web", &bytes).unwrap();
            assert_eq!(*read.encode(), *bytes);
            assert_eq!(read.view(70 * SECOND), ring.view(70 * SECOND));
            assert_eq!(read.due(), ring.due());
            for length in 0..bytes.len() {
                // A state that ends before a member is one with fewer members.
                drop(Ring::decode("web", &bytes[..length]));
            }
            for bit in 0..8 * bytes.len() {
                let mut changed = bytes.to_vec();
                changed[bit / 8] ^= 1 << (bit % 8);
                drop(Ring::decode("web", &changed));
            }
            assert!(Ring::decode("web", &[]).is_none());
        }
    }

    #[test]
    fn full_ring_is_not_too_long() {
        let mut ring = Ring::new("web", SETTINGS, SECOND).unwrap();
        let by = Attachment {
            owner: "o".repeat(2 * TEXT_MAX).into(),
            daemon: 7,
        };
        for number in 0..MEMBERS_MAX {
            let name = format!("{number:0>NAME_MAX$}");
            let lease = ring.join(&name, Style::List, &by, SECOND).unwrap();
            ring.refuse(lease, 1, &"w".repeat(1_000)).unwrap();
        }
        let bytes = ring.encode();
        assert!(bytes.len() <= STATE_MAX, "{}", bytes.len());
        assert!(Ring::decode("web", &bytes).is_some());
    }
}
