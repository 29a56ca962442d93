//! The two kinds of time in the daemon, and the one source of both. All other code is passed a
//! [`Now`].
//!
//! * [`Timestamp`] is a time on the process's time line, which runs on a monotonic clock and never
//!   jumps. Lifetimes, idle time-outs, revocations and page tokens use it.
//! * [`WallTime`] is a time of the wall clock, which an administrator or NTP may set. Certificates
//!   and the time stamps of the API use it.
//! * [`WallOffset`] converts one into the other.

use std::{
    fmt,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::time::{ClockId, clock_gettime};

/// A time on the process's time line, in milliseconds.
///
/// The line begins with the value of the wall clock at the start of the process, or with 2020-01-01
/// if that is later. Then it runs on CLOCK_BOOTTIME, which also counts the time during which the
/// system is suspended. Setting the wall clock does not move it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

/// A time of the wall clock, in milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct WallTime(u64);

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

impl Timestamp {
    /// Returns the time at this number of milliseconds on the time line.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Returns the time in milliseconds on the time line.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Returns the time in whole seconds on the time line.
    pub const fn as_secs(self) -> u64 {
        self.0 / 1000
    }

    /// Returns the duration from `earlier` to this time. Zero if this time is not later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// Returns the time a duration later. Saturates at the maximum.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(millis(span)))
    }
}

impl WallTime {
    /// A time after the end of every certificate.
    pub const MAX: Self = Self(u64::MAX);

    /// Returns the time this many milliseconds after the Unix epoch.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Returns the time this many seconds after the Unix epoch. A time before the epoch gives the
    /// epoch.
    pub fn from_secs(secs: i64) -> Self {
        Self(u64::try_from(secs).unwrap_or(0).saturating_mul(1000))
    }

    /// Returns the milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Returns the whole seconds since the Unix epoch.
    pub const fn as_secs(self) -> u64 {
        self.0 / 1000
    }

    /// Returns the duration from `earlier` to this time. Zero if this time is not later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// Returns the time a duration later. Saturates at the maximum.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(millis(span)))
    }
}

/// How many milliseconds the wall clock is ahead of the process's time line. Changes only when the
/// wall clock is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct WallOffset(i64);

impl WallOffset {
    /// Converts a time of the time line to the wall clock as it is set now.
    pub fn wall(self, at: Timestamp) -> WallTime {
        WallTime(at.0.saturating_add_signed(self.0))
    }

    /// Converts a time of the wall clock, as it is set now, to the time line. A time before the
    /// line's first millisecond gives that millisecond.
    pub fn at(self, wall: WallTime) -> Timestamp {
        Timestamp(match u64::try_from(self.0) {
            Ok(ahead) => wall.0.saturating_sub(ahead),
            Err(_) => wall.0.saturating_add(self.0.unsigned_abs()),
        })
    }
}

/// One reading of the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Now {
    /// The time.
    pub at: Timestamp,
    /// The offset of the wall clock at that time.
    pub offset: WallOffset,
}

impl Now {
    /// Returns a reading at which both clocks have the same value, as when the process starts.
    pub const fn from_millis(millis: u64) -> Self {
        Self {
            at: Timestamp(millis),
            offset: WallOffset(0),
        }
    }

    /// Returns the time of the wall clock.
    pub fn wall(self) -> WallTime {
        self.offset.wall(self.at)
    }

    /// Returns the reading a duration later, if the wall clock is not set meanwhile.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self {
            at: self.at.after(span),
            ..self
        }
    }
}

/// The clock of the system, or one that a test moves.
#[derive(Clone, Default)]
pub enum Clock {
    /// The clocks of the system. All clocks of this kind share the time line of the process.
    #[default]
    System,
    /// A clock that stands still until [`ManualClock::advance`] moves it.
    Manual(ManualClock),
}

impl Clock {
    /// Reads the clock.
    pub fn now(&self) -> Now {
        match self {
            Self::System => LINE.now(),
            Self::Manual(manual) => Now {
                at: Timestamp(manual.0.at.load(Ordering::SeqCst)),
                offset: manual.offset(),
            },
        }
    }

    /// Returns the offset of the wall clock at the last reading. Reads no clock.
    pub fn offset(&self) -> WallOffset {
        match self {
            Self::System => LINE.offset(),
            Self::Manual(manual) => manual.offset(),
        }
    }

    /// Returns how long it takes until this clock reaches `at`. `None`: it has reached it, or this
    /// is a manual clock.
    pub fn until(&self, at: Timestamp) -> Option<Duration> {
        match self {
            Self::System => Some(at.since(LINE.now().at)).filter(|left| !left.is_zero()),
            Self::Manual(_) => None,
        }
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({})", self.now().at.as_millis())
    }
}

/// The process's time line.
static LINE: LazyLock<TimeLine> = LazyLock::new(TimeLine::begin);

/// The time line begins at this value or later (2020-01-01). So times before the start can be
/// expressed even if the system boots with a wall clock of 1970.
const EARLIEST: Duration = Duration::from_secs(1_577_836_800);
/// The smallest step of the wall clock that is followed. Reading two clocks takes time, and this
/// must not change the offset: a time stamp that a caller of the API returns must convert to the
/// time that it was made from.
const STEP_MIN: Duration = Duration::from_millis(5);
/// A reading of the wall clock between two readings of the time line is exact enough if those are
/// this close.
const NARROW: Duration = Duration::from_millis(1);
/// Most attempts at a measurement. An attempt is inexact if the thread is descheduled during it.
const TRIES: usize = 8;

struct TimeLine {
    /// CLOCK_BOOTTIME at the start.
    boot: Duration,
    /// The first value of the line.
    first: Duration,
    /// The [`WallOffset`] at the last reading of the wall clock.
    offset: AtomicI64,
    /// The millisecond of the last reading of the wall clock, which is read once in a millisecond
    /// and not at each call.
    looked: AtomicU64,
}

/// Reads CLOCK_BOOTTIME. rustix reads it through the vDSO, as libc does.
fn boottime() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

/// Reads the wall clock. A time before 1970 gives 1970.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads the wall clock"
)]
fn wall_clock() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Returns `one` - `other` in nanoseconds.
fn difference(one: Duration, other: Duration) -> i64 {
    let nanos = |span: Duration| i64::try_from(span.as_nanos()).unwrap_or(i64::MAX);
    nanos(one).saturating_sub(nanos(other))
}

const NANOS_OF_MILLI: i64 = 1_000_000;

impl TimeLine {
    fn begin() -> Self {
        let line = Self {
            boot: boottime(),
            first: wall_clock().max(EARLIEST),
            offset: AtomicI64::new(0),
            looked: AtomicU64::new(0),
        };
        line.measure();
        line
    }

    fn now(&self) -> Now {
        let at = self.at();
        let millis = millis(at);
        if self.looked.load(Ordering::Relaxed) != millis {
            self.looked.store(millis, Ordering::Relaxed);
            if self.is_off(difference(wall_clock(), at), Duration::ZERO) {
                self.measure();
            }
        }
        Now {
            at: Timestamp(millis),
            offset: self.offset(),
        }
    }

    fn offset(&self) -> WallOffset {
        WallOffset(self.offset.load(Ordering::Relaxed))
    }

    fn at(&self) -> Duration {
        self.first + boottime().saturating_sub(self.boot)
    }

    /// Returns whether an offset in nanoseconds, measured with this error, differs from the known
    /// offset by at least [`STEP_MIN`].
    fn is_off(&self, measured: i64, error: Duration) -> bool {
        let known = self
            .offset
            .load(Ordering::Relaxed)
            .saturating_mul(NANOS_OF_MILLI);
        Duration::from_nanos(measured.abs_diff(known)) >= STEP_MIN + error
    }

    /// Reads the wall clock between two readings of the line, and updates the offset if the wall
    /// clock was set.
    fn measure(&self) {
        let measured = (0..TRIES).map(|_| {
            let before = self.at();
            let wall = wall_clock();
            (self.at().saturating_sub(before), difference(wall, before))
        });
        // Takes the first measurement that is exact enough, or else the most exact of all.
        let mut best: Option<(Duration, i64)> = None;
        for (error, offset) in measured {
            if best.is_none_or(|(least, _)| error < least) {
                best = Some((error, offset));
            }
            if error < NARROW {
                break;
            }
        }
        if let Some((error, offset)) = best
            && self.is_off(offset, error)
        {
            let millis = offset
                .saturating_add(NANOS_OF_MILLI / 2)
                .div_euclid(NANOS_OF_MILLI);
            self.offset.store(millis, Ordering::Relaxed);
        }
    }
}

/// A clock that only a test moves, so that it can simulate years in a second.
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<Hands>);

#[derive(Debug)]
struct Hands {
    at: AtomicU64,
    offset: AtomicI64,
}

/// A change of the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// To a time that is later by this duration.
    Forward(Duration),
    /// To a time that is earlier by this duration.
    Back(Duration),
}

impl ManualClock {
    /// Makes a clock whose wall clock and time line both have this value.
    pub fn starting(wall: WallTime) -> Self {
        Self(Arc::new(Hands {
            at: AtomicU64::new(wall.0),
            offset: AtomicI64::new(0),
        }))
    }

    /// Moves the wall clock and the time line forward.
    pub fn advance(&self, span: Duration) {
        self.0.at.fetch_add(millis(span), Ordering::SeqCst);
    }

    /// Sets the wall clock. The time line does not move.
    pub fn set_wall(&self, step: Step) {
        let by = |span| i64::try_from(millis(span)).unwrap_or(i64::MAX);
        match step {
            Step::Forward(span) => self.0.offset.fetch_add(by(span), Ordering::SeqCst),
            Step::Back(span) => self.0.offset.fetch_sub(by(span), Ordering::SeqCst),
        };
    }

    fn offset(&self) -> WallOffset {
        WallOffset(self.0.offset.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_convert_both_ways_and_saturate() {
        let at = Timestamp::from_millis(5_000);
        for (offset, wall) in [(0, 5_000), (3_000, 8_000), (-3_000, 2_000)] {
            let offset = WallOffset(offset);
            assert_eq!(offset.wall(at), WallTime::from_millis(wall));
            assert_eq!(offset.at(WallTime::from_millis(wall)), at);
        }
        assert_eq!(WallOffset(-6_000).wall(at), WallTime::default());
        assert_eq!(
            WallOffset(6_000).at(WallTime::from_millis(5_000)),
            Timestamp::default()
        );
        assert_eq!(
            WallOffset(-6_000).at(WallTime::MAX),
            Timestamp::from_millis(u64::MAX)
        );
        assert_eq!(
            WallOffset(i64::MIN).at(WallTime::MAX),
            Timestamp::from_millis(u64::MAX)
        );
        assert_eq!(
            WallOffset(i64::MAX).wall(Timestamp::from_millis(u64::MAX)),
            WallTime::MAX
        );
    }

    #[test]
    fn line_is_near_the_wall_clock_and_keeps_its_offset() {
        let first = Clock::System.now();
        let shown = WallTime(millis(wall_clock()));
        assert!(
            shown.since(first.wall()) < Duration::from_secs(5),
            "{shown:?} is long after {first:?}"
        );
        assert!(
            first.wall().since(shown) < STEP_MIN + NARROW,
            "{first:?} is after {shown:?}"
        );
        let mut last = first;
        while last.at.since(first.at) < Duration::from_millis(50) {
            let next = Clock::System.now();
            assert!(next.at >= last.at);
            assert_eq!(
                next.offset, first.offset,
                "a clock that nothing sets has one offset"
            );
            last = next;
        }
    }

    #[test]
    fn clock_says_how_long_until_a_moment() {
        let next = Clock::System.now().at.after(Duration::from_secs(60));
        let left = Clock::System.until(next).unwrap();
        assert!(
            left <= Duration::from_secs(60) && left > Duration::from_secs(30),
            "{left:?}"
        );
        assert_eq!(Clock::System.until(Clock::System.now().at), None);
        let manual = Clock::Manual(ManualClock::starting(WallTime::default()));
        assert_eq!(manual.until(next), None, "a manual clock stands still");
    }

    #[test]
    fn line_follows_a_set_wall_clock_and_ignores_jitter() {
        let line = TimeLine::begin();
        let exact = line.offset();
        for away in [-3_600_000, 86_400_000, 6] {
            // Simulates a wall clock that was set: the known offset is wrong by `away` ms.
            line.offset.store(exact.0 + away, Ordering::Relaxed);
            line.looked.store(0, Ordering::Relaxed);
            let found = line.now().offset;
            assert!(found.0.abs_diff(exact.0) <= 1, "{found:?} is not {exact:?}");
        }
        for near in [-3, 3] {
            line.offset.store(exact.0 + near, Ordering::Relaxed);
            line.looked.store(0, Ordering::Relaxed);
            assert_eq!(line.now().offset.0, exact.0 + near);
        }
    }

    #[test]
    fn manual_wall_clock_is_set_without_moving_the_line() {
        let manual = ManualClock::starting(WallTime::from_millis(10_000));
        let clock = Clock::Manual(manual.clone());
        manual.set_wall(Step::Back(Duration::from_secs(4)));
        assert_eq!(clock.now().at, Timestamp::from_millis(10_000));
        assert_eq!(clock.now().wall(), WallTime::from_millis(6_000));
        manual.set_wall(Step::Forward(Duration::from_secs(9)));
        manual.advance(Duration::from_secs(1));
        assert_eq!(clock.now().at, Timestamp::from_millis(11_000));
        assert_eq!(clock.now().wall(), WallTime::from_millis(16_000));
    }
}
