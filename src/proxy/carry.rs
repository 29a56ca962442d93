//! Carries bytes between a TLS stream and a plaintext one, until both directions have ended.
//!
//! The end of the plaintext side becomes a close_notify, and that of the TLS side the end of the
//! plaintext side's half. Buffers are held only while bytes wait in them, so that idle connections
//! hold none.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// Size of a buffer, in bytes: four records of TLS.
const BUFFER: usize = 64 << 10;
/// Most buffers that a thread keeps for later use.
const KEPT: usize = 16;
/// A connection without a byte for this long is quiet.
const QUIET: Duration = Duration::from_millis(500);

/// How long no byte may pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct IdleTimes {
    /// While the plaintext side has not ended.
    pub(super) idle: Duration,
    /// After the close_notify.
    pub(super) after_close: Duration,
}

/// How carrying ended.
#[derive(Debug)]
pub(super) enum Carried {
    /// The close_notify was sent. `is_whole`: the TLS side has ended as well, so the plaintext side has
    /// all of its data.
    Closed { is_whole: bool },
    /// The TLS side failed.
    TlsFailed(io::Error),
    /// The plaintext side failed.
    PlainFailed,
    /// No byte passed for too long.
    Idle,
}

/// Counters of the bytes that passed: to the plaintext side, and from it.
pub(super) struct Passed<'t> {
    pub(super) to_plain: &'t AtomicU64,
    pub(super) from_plain: &'t AtomicU64,
}

/// Carries until both sides have ended. Once `finish` is cancelled and the connection is quiet, the
/// plaintext side gets the end of its half, as if the TLS side had sent its own.
pub(super) async fn carry<T, P>(
    tls: &mut T,
    plain: &mut P,
    limits: IdleTimes,
    passed: &Passed<'_>,
    finish: &CancellationToken,
) -> Carried
where
    T: AsyncRead + AsyncWrite + Unpin,
    P: AsyncRead + AsyncWrite + Unpin,
{
    let (mut up, mut down) = (Half::default(), Half::default());
    let mut last = Instant::now();
    let mut timer = pin!(sleep_until(last + limits.idle));
    let mut finished = pin!(finish.cancelled());
    let mut is_finishing = false;
    let mut is_whole = true;
    poll_fn(|cx| {
        if !is_finishing && finished.as_mut().poll(cx).is_ready() {
            is_finishing = true;
            timer.as_mut().reset((last + QUIET).max(Instant::now()));
        }
        let before = (up.moved, down.moved, down.is_done());
        let mut polled = up.poll(tls, plain, cx);
        if let Poll::Ready(Err(Broken::To(err))) = &polled {
            // The system reports a reset once, to a write or to a read. The other one of them then
            // looks like the end of the stream. After a true end, writes fail in another way.
            down.is_cut |= !matches!(
                err.kind(),
                io::ErrorKind::BrokenPipe | io::ErrorKind::NotConnected
            );
            // A backend that does not read any more may have an answer all the same.
            up.discard();
            polled = up.poll(tls, plain, cx);
        }
        match polled {
            Poll::Ready(Err(Broken::From(err))) if !down.is_done() => {
                return Poll::Ready(Carried::TlsFailed(err));
            }
            Poll::Ready(Err(Broken::From(_))) => {
                is_whole = false;
                up.abandon();
            }
            Poll::Ready(Err(Broken::To(_))) => up.abandon(),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        match down.poll(plain, tls, cx) {
            Poll::Ready(Err(Broken::From(_))) => return Poll::Ready(Carried::PlainFailed),
            Poll::Ready(Err(Broken::To(err))) => return Poll::Ready(Carried::TlsFailed(err)),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        passed
            .to_plain
            .fetch_add(up.moved - before.0, Ordering::Relaxed);
        passed
            .from_plain
            .fetch_add(down.moved - before.1, Ordering::Relaxed);
        if up.is_done() && down.is_done() {
            return Poll::Ready(Carried::Closed { is_whole });
        }
        let limit = match down.is_done() {
            true => limits.after_close,
            false => limits.idle,
        };
        if (up.moved, down.moved, down.is_done()) != before {
            last = Instant::now();
            if down.is_done() {
                timer.as_mut().reset(last + limit);
            }
        }
        while timer.as_mut().poll(cx).is_ready() {
            if last.elapsed() >= limit {
                let end = match down.is_done() {
                    // The TLS side got its close_notify, and has not ended.
                    true => Carried::Closed { is_whole: false },
                    false => Carried::Idle,
                };
                return Poll::Ready(end);
            }
            let is_quiet = last.elapsed() >= QUIET;
            // An end that the TLS side has not sent would cut data that is on its way.
            if is_finishing && is_quiet && !up.is_finishing {
                up.finish();
                cx.waker().wake_by_ref();
            }
            let next = match is_finishing && !is_quiet {
                true => QUIET,
                false => limit,
            };
            timer.as_mut().reset(last + next);
        }
        Poll::Pending
    })
    .await
}

/// The side that failed.
enum Broken {
    From(io::Error),
    To(io::Error),
}

#[derive(Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Reading,
    Closing,
    Done,
}

/// One direction.
#[derive(Default)]
struct Half {
    stage: Stage,
    buffer: Option<Box<[u8]>>,
    begin: usize,
    end: usize,
    must_flush: bool,
    is_finishing: bool,
    /// Whether the bytes are thrown away. The side that sends them goes on reading then: closing a
    /// socket with unread bytes would reset it, and the answer could be lost.
    discards: bool,
    /// Whether an end of the stream that is read is none.
    is_cut: bool,
    moved: u64,
}

impl Half {
    fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// Reads nothing more. What was read before is still written.
    fn finish(&mut self) {
        self.is_finishing = true;
    }

    /// Throws the bytes away from now on.
    fn discard(&mut self) {
        self.discards = true;
        self.begin = self.end;
        self.must_flush = false;
        if self.stage == Stage::Closing {
            self.abandon();
        }
    }

    fn abandon(&mut self) {
        self.stage = Stage::Done;
        self.keep();
    }

    fn poll<F, T>(
        &mut self,
        from: &mut F,
        to: &mut T,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Broken>>
    where
        F: AsyncRead + Unpin,
        T: AsyncWrite + Unpin,
    {
        loop {
            match self.stage {
                Stage::Done => return Poll::Ready(Ok(())),
                Stage::Closing if self.discards => self.abandon(),
                Stage::Closing => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(Broken::To)?;
                    self.stage = Stage::Done;
                }
                Stage::Reading if self.begin < self.end => ready!(self.write(to, cx))?,
                Stage::Reading if self.is_finishing => self.stage = Stage::Closing,
                Stage::Reading => match self.read(from, cx) {
                    Poll::Ready(read) => read?,
                    Poll::Pending => {
                        if self.must_flush {
                            ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(Broken::To)?;
                            self.must_flush = false;
                        }
                        return Poll::Pending;
                    }
                },
            }
        }
    }

    fn write<T: AsyncWrite + Unpin>(
        &mut self,
        to: &mut T,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Broken>> {
        let Some(buffer) = &self.buffer else {
            self.begin = self.end;
            return Poll::Ready(Ok(()));
        };
        let wrote = Pin::new(to).poll_write(cx, &buffer[self.begin..self.end]);
        match ready!(wrote).map_err(Broken::To)? {
            0 => return Poll::Ready(Err(Broken::To(io::ErrorKind::WriteZero.into()))),
            wrote => {
                self.begin += wrote;
                self.moved += wrote as u64;
                self.must_flush = true;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn read<F: AsyncRead + Unpin>(
        &mut self,
        from: &mut F,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Broken>> {
        let mut buffer = self.buffer.take().unwrap_or_else(take_buffer);
        let mut into = ReadBuf::new(&mut buffer);
        let read = Pin::new(from).poll_read(cx, &mut into);
        let length = into.filled().len();
        self.buffer = Some(buffer);
        match read {
            Poll::Ready(Ok(())) if length > 0 && self.discards => {}
            Poll::Ready(Ok(())) if length > 0 => (self.begin, self.end) = (0, length),
            Poll::Ready(Ok(())) if self.is_cut => {
                return Poll::Ready(Err(Broken::From(io::ErrorKind::ConnectionReset.into())));
            }
            Poll::Ready(Ok(())) => {
                self.stage = Stage::Closing;
                self.keep();
            }
            Poll::Ready(Err(err)) => return Poll::Ready(Err(Broken::From(err))),
            Poll::Pending => {
                self.keep();
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Gives the buffer to the next direction that needs one.
    fn keep(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            BUFFERS.with_borrow_mut(|kept| {
                if kept.len() < KEPT {
                    kept.push(buffer);
                }
            });
        }
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        self.keep();
    }
}

thread_local! {
    /// Buffers that no connection of this thread uses now.
    static BUFFERS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

fn take_buffer() -> Box<[u8]> {
    let kept = BUFFERS.with_borrow_mut(Vec::pop);
    kept.unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice())
}
