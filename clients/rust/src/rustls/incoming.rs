//! A client whose first bytes were read, before its handshake.

use std::io;

use tls_sessiond_types::{
    alert::Alert,
    client_hello::{FirstFlight, Offer, Progress},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A client that has sent its ClientHello, or something else. Nothing was answered yet.
pub struct Incoming<IO> {
    pub(super) offer: Offer,
    /// The bytes that were read.
    pub(super) first: Vec<u8>,
    pub(super) stream: IO,
    is_client_hello: bool,
}

impl<IO: AsyncRead + Unpin> Incoming<IO> {
    /// Reads until the ClientHello is complete or cannot become complete. Holds at most
    /// [`tls_sessiond_types::client_hello::FLIGHT_MAX`] bytes and those of one read. A silent peer
    /// holds the call up: put a timeout around it.
    ///
    /// # Errors
    /// Those of the stream. Bytes that are no ClientHello, and the end of the stream, are none.
    pub async fn read(mut stream: IO) -> io::Result<Self> {
        let mut flight = FirstFlight::default();
        let mut bytes = [0; 2048];
        let (offer, is_client_hello) = loop {
            let length = stream.read(&mut bytes).await?;
            match flight.push(&bytes[..length]) {
                // If rustls will refuse the ClientHello, nothing is looked up and no ticket consumed.
                Progress::Whole(offer) if flight.is_taken_by_rustls() => break (offer, true),
                Progress::Whole(_) => break (Offer::default(), false),
                // rustls reports the end of the stream.
                Progress::Partial if length == 0 => break (Offer::default(), false),
                Progress::Partial => {}
            }
        };
        Ok(Self {
            offer,
            first: flight.into_bytes(),
            stream,
            is_client_hello,
        })
    }
}

impl<IO> Incoming<IO> {
    /// Returns whether the bytes are a ClientHello that rustls can read. Another peer gets its alert
    /// from [`super::Acceptor::accept_incoming`].
    pub fn is_client_hello(&self) -> bool {
        self.is_client_hello
    }

    /// Returns the name of the server that the client asks for (RFC 6066 section 3), in lower case.
    /// Empty: none.
    pub fn server_name(&self) -> &str {
        &self.offer.server_name
    }

    /// Returns the bytes that were read.
    pub fn first_bytes(&self) -> &[u8] {
        &self.first
    }

    /// Returns the stream, without the bytes that were read.
    pub fn into_stream(self) -> IO {
        self.stream
    }
}

impl<IO: AsyncWrite + Unpin> Incoming<IO> {
    /// Refuses the client with a fatal alert, and shuts the stream down.
    ///
    /// # Errors
    /// Those of the stream.
    pub async fn refuse(mut self, alert: Alert) -> io::Result<()> {
        // RFC 5246 section 6.2.1: an alert record of two bytes. Nothing is encrypted yet.
        const FATAL: u8 = 2;
        self.stream
            .write_all(&[21, 3, 3, 0, 2, FATAL, alert.code])
            .await?;
        self.stream.shutdown().await
    }
}
