//! Whether a daemon that says nothing still lives: it is asked, and must answer in time (RFC 9113 section 6.7).

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

/// How long a daemon may be silent before it is asked, and how long it may then take.
const SILENT_MAX: Duration = Duration::from_secs(10);
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// The pings of one HTTP/2 connection.
pub(super) struct KeepAlive {
    pings: PingPong,
    timer: Pin<Box<Sleep>>,
    life: Life,
}

/// What is known of the daemon since the timer was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Silent,
    Heard,
    /// It has not answered yet.
    Asked,
}

/// What is to be done when the time has come.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    /// Nothing, for another while.
    Wait,
    Ask,
    /// It lives no more.
    Dead,
}

impl KeepAlive {
    pub(super) fn new(pings: PingPong) -> Self {
        Self { pings, timer: Box::pin(sleep(SILENT_MAX)), life: Life::Silent }
    }

    /// Something came.
    pub(super) fn heard(&mut self) {
        self.life.heard();
    }

    /// Ready when the daemon lives no more.
    pub(super) fn poll_dead(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.life == Life::Asked
                && let Poll::Ready(answered) = self.pings.poll_pong(cx)
            {
                if answered.is_err() {
                    return Poll::Ready(());
                }
                self.life = Life::Silent;
                self.set(SILENT_MAX);
            }
            ready!(self.timer.as_mut().poll(cx));
            match self.life.due() {
                Due::Wait => self.set(SILENT_MAX),
                Due::Ask if self.pings.send_ping(Ping::opaque()).is_ok() => self.set(ANSWER_MAX),
                Due::Ask | Due::Dead => return Poll::Ready(()),
            }
        }
    }

    fn set(&mut self, within: Duration) {
        self.timer.as_mut().reset(Instant::now() + within);
    }
}

impl Life {
    fn heard(&mut self) {
        // Who was asked answers all the same.
        if *self == Self::Silent {
            *self = Self::Heard;
        }
    }

    fn due(&mut self) -> Due {
        let (next, due) = match self {
            Self::Heard => (Self::Silent, Due::Wait),
            Self::Silent => (Self::Asked, Due::Ask),
            Self::Asked => (Self::Asked, Due::Dead),
        };
        *self = next;
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn daemon_is_asked_after_silence_and_dead_after_no_answer() {
        let mut life = Life::Silent;
        life.heard();
        life.heard();
        assert_eq!([life.due(), life.due()], [Due::Wait, Due::Ask]);
        life.heard();
        assert_eq!((life.due(), life.due()), (Due::Dead, Due::Dead), "a ping has its answer");
    }
}
