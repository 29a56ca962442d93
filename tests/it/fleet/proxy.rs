//! A proxy between a daemon and its store, which cuts, holds and swaps.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinHandle,
};

/// The direction of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Request,
    Answer,
}

/// What the proxy does with the next bytes.
#[derive(Clone, Debug, Default)]
enum Fault {
    #[default]
    None,
    /// Cuts the connection once this many bytes more have passed this way.
    Cut(Way, usize),
    /// Holds requests that have this text back, and all that follow on their connection.
    Hold(String),
    /// Passes the next two answers in the other order.
    Swap,
}

#[derive(Default)]
struct Shared {
    fault: Mutex<Fault>,
    /// Whether the fault has happened.
    happened: AtomicBool,
    released: Notify,
    is_released: AtomicBool,
}

/// A running proxy.
pub(super) struct Proxy {
    pub(super) port: u16,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub(super) async fn start(store: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        let of_all = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let shared = Arc::clone(&of_all);
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(("127.0.0.1", store)).await else {
                        return;
                    };
                    let (near_reads, near_writes) = near.into_split();
                    let (far_reads, far_writes) = far.into_split();
                    // The end of one way ends the other.
                    tokio::select! {
                        () = carry(near_reads, far_writes, Way::Request, &shared) => {}
                        () = carry(far_reads, near_writes, Way::Answer, &shared) => {}
                    }
                });
            }
        });
        Self { port, shared, task }
    }

    fn set(&self, fault: Fault) {
        self.shared.happened.store(false, Ordering::SeqCst);
        self.shared.is_released.store(false, Ordering::SeqCst);
        *self.shared.fault.lock().unwrap() = fault;
    }

    pub(super) fn cut_after(&self, way: Way, bytes: usize) {
        self.set(Fault::Cut(way, bytes));
    }

    pub(super) fn hold(&self, text: &str) {
        self.set(Fault::Hold(text.to_owned()));
    }

    pub(super) fn swap(&self) {
        self.set(Fault::Swap);
    }

    /// Passes what is held back, and all that comes.
    pub(super) fn heal(&self) {
        *self.shared.fault.lock().unwrap() = Fault::None;
        self.shared.is_released.store(true, Ordering::SeqCst);
        self.shared.released.notify_waiters();
    }

    /// Returns whether the fault has happened.
    pub(super) fn happened(&self) -> bool {
        self.shared.happened.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Carries bytes until one side ends or the fault cuts.
async fn carry(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    way: Way,
    shared: &Shared,
) {
    let mut waiting = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let bytes = &buffer[..read];
        let fault = shared.fault.lock().unwrap().clone();
        let has = |text: &str| {
            bytes
                .windows(text.len())
                .any(|part| part == text.as_bytes())
        };
        match fault {
            Fault::Cut(cut, left) if cut == way => {
                let passed = &bytes[..left.min(read)];
                let sent = to.write_all(passed).await;
                let mut fault = shared.fault.lock().unwrap();
                if left < read {
                    *fault = Fault::None;
                    shared.happened.store(true, Ordering::SeqCst);
                    return;
                }
                *fault = Fault::Cut(cut, left - read);
                drop(fault);
                if sent.is_err() {
                    return;
                }
                continue;
            }
            Fault::Hold(text) if way == Way::Request && has(&text) => {
                shared.happened.store(true, Ordering::SeqCst);
                while !shared.is_released.load(Ordering::SeqCst) {
                    let released = shared.released.notified();
                    if shared.is_released.load(Ordering::SeqCst) {
                        break;
                    }
                    released.await;
                }
            }
            Fault::Swap if way == Way::Answer => {
                waiting.extend_from_slice(bytes);
                let Some(first) = answer_len(&waiting) else {
                    continue;
                };
                let Some(second) = answer_len(&waiting[first..]) else {
                    continue;
                };
                let swapped = [
                    &waiting[first..first + second],
                    &waiting[..first],
                    &waiting[first + second..],
                ]
                .concat();
                waiting.clear();
                *shared.fault.lock().unwrap() = Fault::None;
                shared.happened.store(true, Ordering::SeqCst);
                if to.write_all(&swapped).await.is_err() {
                    return;
                }
                continue;
            }
            _ => {}
        }
        let all = [std::mem::take(&mut waiting), bytes.to_vec()].concat();
        if to.write_all(&all).await.is_err() {
            return;
        }
    }
}

/// Returns the length of the first answer of RESP2, if it is whole.
fn answer_len(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")? + 2;
    let number = || {
        std::str::from_utf8(&bytes[1..end - 2])
            .ok()?
            .parse::<i64>()
            .ok()
    };
    match bytes.first()? {
        b'$' => match usize::try_from(number()?) {
            Ok(length) => Some(end + length + 2).filter(|end| *end <= bytes.len()),
            Err(_) => Some(end),
        },
        b'*' => {
            let mut at = end;
            for _ in 0..number()?.max(0) {
                at += answer_len(bytes.get(at..)?)?;
            }
            Some(at)
        }
        _ => Some(end),
    }
}
