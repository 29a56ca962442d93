//! HTTP/2 by hand (RFC 9113), for peers that no library can act as.

use std::{future::poll_fn, io, pin::Pin, task::Poll, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    time::timeout,
};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// Time limit for an immediate reaction of the daemon.
pub(crate) const SOON: Duration = Duration::from_secs(40);

pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// A transport of HTTP/2.
pub(crate) trait Line: AsyncRead + AsyncWrite + Unpin + Send {}

impl<L: AsyncRead + AsyncWrite + Unpin + Send> Line for L {}

/// A connection.
pub(crate) struct Raw(Box<dyn Line>);

/// Encodes one frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Encodes a header field that is in no table (RFC 7541 section 6.2.2).
pub(crate) fn field(name: &str, value: &str) -> Vec<u8> {
    let mut block = vec![0];
    for text in [name, value] {
        match u8::try_from(text.len()) {
            Ok(short) if short < 127 => block.push(short),
            _ => {
                block.push(127);
                let mut rest = text.len() - 127;
                while rest >= 128 {
                    block.push(u8::try_from(rest % 128).unwrap() | 128);
                    rest /= 128;
                }
                block.push(u8::try_from(rest).unwrap());
            }
        }
        block.extend(text.as_bytes());
    }
    block
}

/// Encodes the header block of a gRPC call.
pub(crate) fn call(path: &str) -> Vec<u8> {
    [
        field(":method", "POST"),
        field(":scheme", "http"),
        field(":path", path),
        field(":authority", "localhost"),
        field("content-type", "application/grpc"),
        field("te", "trailers"),
    ]
    .concat()
}

/// Encodes a gRPC message.
pub(crate) fn message(bytes: &[u8]) -> Vec<u8> {
    [
        &[0][..],
        &u32::try_from(bytes.len()).unwrap().to_be_bytes(),
        bytes,
    ]
    .concat()
}

impl Raw {
    /// Connects and sends the preface over loopback, with this window for each stream.
    pub(crate) async fn connect(address: &str, window: u32) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap(), window).await
    }

    /// Sends the preface over a transport.
    pub(crate) async fn over(line: impl Line + 'static, window: u32) -> Self {
        let mut raw = Self(Box::new(line));
        let setting = [&4u16.to_be_bytes()[..], &window.to_be_bytes()].concat();
        let greeting = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            &frame(SETTINGS, 0, 0, &setting)[..],
        ]
        .concat();
        raw.0.write_all(&greeting).await.unwrap();
        // TLS buffers bytes that the socket did not take.
        raw.0.flush().await.unwrap();
        raw
    }

    /// Discards the bytes that have arrived, without waiting.
    pub(crate) async fn drain(&mut self) {
        let mut heard = [0; 65_536];
        loop {
            let mut heard = ReadBuf::new(&mut heard);
            let read =
                poll_fn(|cx| Poll::Ready(Pin::new(&mut *self.0).poll_read(cx, &mut heard))).await;
            if !matches!(read, Poll::Ready(Ok(()))) || heard.filled().is_empty() {
                break;
            }
        }
    }

    /// Acknowledges the settings and waits for the window of a worker's connection. The daemon
    /// would refuse larger amounts before that.
    pub(crate) async fn agree(&mut self) {
        self.until(SETTINGS).await.unwrap();
        assert!(self.send(&frame(SETTINGS, ACK, 0, &[])).await);
        self.until(WINDOW_UPDATE).await.unwrap();
        assert!(self.send(&frame(PING, 0, 0, &[7; 8])).await);
        self.until(PING).await.unwrap();
    }

    /// Sends bytes. Returns `false` if the daemon has closed, or takes no more for one second.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> bool {
        let sent = async {
            self.0.write_all(bytes).await?;
            self.0.flush().await
        };
        matches!(timeout(Duration::from_secs(1), sent).await, Ok(Ok(())))
    }

    /// Sends many bytes without reading. Returns `false` if the daemon has closed, or takes no more
    /// for one second.
    pub(crate) async fn send_all(&mut self, bytes: &[u8]) -> bool {
        for piece in bytes.chunks(64 << 10) {
            if !self.send(piece).await {
                return false;
            }
        }
        true
    }

    pub(crate) async fn next(&mut self) -> io::Result<Frame> {
        let read = async {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            self.0.read_exact(&mut payload).await?;
            Ok(Frame {
                kind: head[3],
                stream,
                payload,
            })
        };
        timeout(SOON, read).await.expect("the daemon sends nothing")
    }

    /// Reads until a frame of this kind arrives. Returns it, or an error if the connection ended.
    pub(crate) async fn until(&mut self, kind: u8) -> io::Result<Frame> {
        loop {
            let next = self.next().await?;
            if next.kind == kind {
                return Ok(next);
            }
        }
    }

    /// Returns the code of the daemon's GOAWAY, or `None` if it only closed the connection.
    pub(crate) async fn end(&mut self) -> Option<u32> {
        let frame = self.until(GOAWAY).await.ok()?;
        Some(u32::from_be_bytes(frame.payload[4..8].try_into().unwrap()))
    }
}
