//! Detects a dead peer of an HTTP/2 connection: a silent peer is pinged and must answer in time
//! (RFC 9113 section 6.7).

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

/// The pings of one HTTP/2 connection.
pub struct KeepAlive {
    pings: PingPong,
    timer: Pin<Box<Sleep>>,
    life: Life,
    silent_max: Duration,
    answer_max: Duration,
}

/// What is known of the peer since the timer was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Silent,
    Heard,
    /// A ping was sent and has no answer yet.
    Asked,
}

/// The action when the timer expires.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    /// Wait for another interval.
    Wait,
    Ask,
    /// The peer is dead.
    Dead,
}

impl KeepAlive {
    /// Makes a timer. A peer that is silent for `silent_max` is pinged, and must answer within
    /// `answer_max`.
    pub fn new(pings: PingPong, silent_max: Duration, answer_max: Duration) -> Self {
        Self {
            pings,
            timer: Box::pin(sleep(silent_max)),
            life: Life::Silent,
            silent_max,
            answer_max,
        }
    }

    /// Records that data was received.
    pub fn heard(&mut self) {
        self.life.heard();
    }

    /// Becomes ready when the peer is dead.
    pub fn poll_dead(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.life == Life::Asked
                && let Poll::Ready(answered) = self.pings.poll_pong(cx)
            {
                if answered.is_err() {
                    return Poll::Ready(());
                }
                self.life = Life::Silent;
                self.set(self.silent_max);
            }
            ready!(self.timer.as_mut().poll(cx));
            match self.life.due() {
                Due::Wait => self.set(self.silent_max),
                Due::Ask if self.pings.send_ping(Ping::opaque()).is_ok() => {
                    self.set(self.answer_max);
                }
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
        // After a ping only its answer counts.
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
    fn peer_is_asked_after_silence_and_dead_after_no_answer() {
        let mut life = Life::Silent;
        life.heard();
        life.heard();
        assert_eq!([life.due(), life.due()], [Due::Wait, Due::Ask]);
        life.heard();
        assert_eq!(
            (life.due(), life.due()),
            (Due::Dead, Due::Dead),
            "data does not replace the answer to a ping"
        );
    }
}
