//! The HTTP/2 connections of an engine. The daemon limits the calls on one connection, and a call
//! beyond the limit would wait without an error. So a further connection is opened before one is
//! full.

use parking_lot::Mutex;
use tokio::{sync::Mutex as AsyncMutex, time::timeout};

use super::{EngineError, call::Call, channel::Channel};
use crate::options::Options;

/// The connections to one daemon.
pub(super) struct Pool {
    pub(super) options: Options,
    opened: Mutex<OpenChannels>,
    /// Held while a connection is opened, so that only one of the callers that find no room opens
    /// one.
    opening: AsyncMutex<()>,
}

#[derive(Default)]
struct OpenChannels {
    channels: Vec<Channel>,
    /// The number of failed attempts to open one, and the error of the last.
    failures: u64,
    last_failure: Option<EngineError>,
}

impl Pool {
    pub(super) fn new(options: Options) -> Self {
        Self {
            options,
            opened: Mutex::default(),
            opening: AsyncMutex::default(),
        }
    }

    /// Begins a call on a connection with room. Opens a connection if none has room.
    ///
    /// # Errors
    /// The daemon cannot be reached. Callers that wait for the same attempt get the same error.
    pub(super) async fn begin(&self) -> Result<Call, EngineError> {
        let failures = {
            let mut opened = self.opened.lock();
            if let Some(call) = opened.begin() {
                return Ok(call);
            }
            opened.failures
        };
        let _turn = self.opening.lock().await;
        {
            let mut opened = self.opened.lock();
            if let Some(call) = opened.begin() {
                return Ok(call);
            }
            if let Some(error) = opened.last_failure.as_ref()
                && opened.failures != failures
            {
                return Err(error.clone());
            }
        }
        let within = self.options.connect_timeout();
        let channel = timeout(within, Channel::open(&self.options.address)).await;
        let mut opened = self.opened.lock();
        let error = match channel.unwrap_or_else(|late| Err(late.into())) {
            Ok(channel) => {
                opened.channels.push(channel);
                match opened.begin() {
                    Some(call) => return Ok(call),
                    None => EngineError::DaemonLost("it closed the connection at once".into()),
                }
            }
            Err(error) => EngineError::unreachable(&error),
        };
        opened.failures += 1;
        opened.last_failure = Some(error.clone());
        Err(error)
    }
}

impl OpenChannels {
    /// Begins a call on the first channel that has room. Drops the channels that have ended, and
    /// idle ones except the first.
    fn begin(&mut self) -> Option<Call> {
        let mut call = None;
        let mut idle = 0;
        self.channels.retain(|channel| {
            if call.is_none() && channel.has_room() {
                call = channel.begin().ok();
                return call.is_some();
            }
            idle += usize::from(channel.is_idle());
            !channel.is_idle() || idle < 2
        });
        call
    }
}

#[cfg(test)]
mod tests {
    use std::{io::ErrorKind, sync::Arc, time::Instant};

    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn callers_share_one_attempt_that_gets_no_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
        let pool = Arc::new(Pool::new(Options::new(&endpoint, "rustls").unwrap()));
        let begun = Instant::now();
        let calls: Vec<_> = (0..9)
            .map(|_| {
                let pool = Arc::clone(&pool);
                tokio::spawn(async move { pool.begin().await.err() })
            })
            .collect();
        for call in calls {
            let Some(EngineError::Unreachable { kind, .. }) = call.await.unwrap() else {
                panic!("the daemon does not answer");
            };
            assert_eq!(kind, ErrorKind::TimedOut);
        }
        assert!(begun.elapsed() < 2 * pool.options.connect_timeout());
    }
}
