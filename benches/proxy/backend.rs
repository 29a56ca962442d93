//! The plaintext backend of all terminators. Its CPU time is not measured.

use std::{net::SocketAddr, thread};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Builder,
};

/// Bytes of a read or a write.
const CHUNK: usize = 256 << 10;

/// A request to the backend: one byte that says what to do, and a number of bytes.
#[derive(Clone, Copy)]
pub(crate) enum Request {
    /// The backend sends this many bytes and ends.
    Send(u64),
    /// The backend reads this many bytes, sends one, and ends.
    Take(u64),
    /// The backend sends one byte, and then nothing until the client ends.
    Hold,
}

/// The size of an encoded request.
const SIZE: usize = 9;

impl Request {
    pub(crate) fn encode(self) -> [u8; SIZE] {
        let (kind, bytes) = match self {
            Self::Send(bytes) => (b's', bytes),
            Self::Take(bytes) => (b't', bytes),
            Self::Hold => (b'h', 0),
        };
        let mut encoded = [kind; SIZE];
        encoded[1..].copy_from_slice(&bytes.to_be_bytes());
        encoded
    }

    fn decode(encoded: [u8; SIZE]) -> Self {
        let bytes = u64::from_be_bytes(*encoded[1..].first_chunk().unwrap());
        match encoded[0] {
            b's' => Self::Send(bytes),
            b't' => Self::Take(bytes),
            _ => Self::Hold,
        }
    }
}

/// Starts the backend on a thread of its own, which has the cores of the calling thread. Returns its
/// address.
pub(crate) fn start() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let runtime = Builder::new_current_thread().enable_io().build().unwrap();
    thread::spawn(move || {
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).unwrap();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                // A terminator that ends in the middle has failed, which its client notices.
                tokio::spawn(async move { serve(socket).await.unwrap_or_default() });
            }
        });
    });
    address
}

async fn serve(mut socket: TcpStream) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let mut encoded = [0; SIZE];
    socket.read_exact(&mut encoded).await?;
    match Request::decode(encoded) {
        Request::Send(bytes) => {
            let size = usize::try_from(bytes).map_or(CHUNK, |bytes| bytes.min(CHUNK));
            let chunk = vec![7; size];
            let mut left = bytes;
            while left > 0 {
                let size = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
                socket.write_all(&chunk[..size]).await?;
                left -= size as u64;
            }
        }
        Request::Take(bytes) => {
            let mut chunk = vec![0; CHUNK];
            let mut left = bytes;
            while left > 0 {
                match socket.read(&mut chunk).await? {
                    0 => return Ok(()),
                    read => left -= read as u64,
                }
            }
            socket.write_all(b"k").await?;
        }
        Request::Hold => {
            socket.write_all(b"k").await?;
            while socket.read(&mut encoded).await? > 0 {}
        }
    }
    socket.shutdown().await
}
