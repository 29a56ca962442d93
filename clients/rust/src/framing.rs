//! The length-prefixed messages of gRPC. Batches get their prefix, and answers are reassembled from
//! the chunks of the stream.
//!
//! The format is Length-Prefixed-Message of gRPC's PROTOCOL-HTTP2.md: one byte for the compression
//! and four bytes for the length.

use bytes::Buf;
use tls_sessiond_types::secret::SecretBuffer;

/// The size of the prefix in bytes.
pub(super) const PREFIX: usize = 5;
/// The largest message of answers. The daemon splits answers at 1 MiB, but not within a session.
const MESSAGE_MAX: usize = 16 << 20;

/// Returns the prefix of an uncompressed message of this length.
pub(super) fn prefix(length: usize) -> [u8; PREFIX] {
    // The length fits: a batch has at most 1 MiB.
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [0, a, b, c, d]
}

/// A message with its prefix, to be sent by HTTP/2.
#[derive(Default)]
pub(super) struct Framed {
    bytes: SecretBuffer,
    sent: usize,
}

impl Framed {
    pub(super) fn new(bytes: SecretBuffer) -> Self {
        Self { bytes, sent: 0 }
    }
}

impl Buf for Framed {
    fn remaining(&self) -> usize {
        self.chunk().len()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.bytes().get(self.sent..).unwrap_or_default()
    }

    fn advance(&mut self, count: usize) {
        assert!(
            count <= self.remaining(),
            "advanced by {count}, but fewer bytes remain"
        );
        self.sent += count;
    }
}

/// The stream has a message that this client does not accept: compressed, although the client did
/// not ask for compression, or too large.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unexpected;

/// Reassembles messages from the chunks of a stream.
#[derive(Default)]
pub(super) struct Deframer {
    /// The beginning of an incomplete message.
    begun: SecretBuffer,
}

impl Deframer {
    /// Passes each message that `piece` completes to `message`, without its prefix.
    ///
    /// # Errors
    /// Errors of `message`, and a message that is not accepted. The caller must not read on after
    /// an error.
    pub(super) fn read<E: From<Unexpected>>(
        &mut self,
        mut piece: &[u8],
        mut message: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.begun.bytes().is_empty() {
            let Some(whole) = self.go_on(&mut piece)? else {
                return Ok(());
            };
            message(whole.bytes().get(PREFIX..).unwrap_or_default())?;
        }
        while let Some(length) = length(piece)? {
            let Some((this, rest)) = piece.split_at_checked(PREFIX + length) else {
                break;
            };
            message(&this[PREFIX..])?;
            piece = rest;
        }
        append(&mut self.begun, piece);
        Ok(())
    }

    /// Takes from `piece` the bytes that the incomplete message lacks. Returns the message if it is
    /// complete.
    fn go_on(&mut self, piece: &mut &[u8]) -> Result<Option<SecretBuffer>, Unexpected> {
        self.take(piece, PREFIX);
        let Some(length) = length(self.begun.bytes())? else {
            return Ok(None);
        };
        self.take(piece, PREFIX + length);
        let whole = self.begun.bytes().len() == PREFIX + length;
        Ok(whole.then(|| std::mem::take(&mut self.begun)))
    }

    /// Moves bytes from `piece` to the message until it has `size` bytes.
    fn take(&mut self, piece: &mut &[u8], size: usize) {
        let lacks = size.saturating_sub(self.begun.bytes().len());
        let (taken, rest) = piece.split_at(lacks.min(piece.len()));
        append(&mut self.begun, taken);
        *piece = rest;
    }
}

fn append(to: &mut SecretBuffer, bytes: &[u8]) {
    to.grow(bytes.len()).copy_from_slice(bytes);
}

/// Returns the length of the message that begins here. `None`: its prefix is incomplete.
fn length(begun: &[u8]) -> Result<Option<usize>, Unexpected> {
    let Some(&[compressed, a, b, c, d]) = begun.first_chunk() else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    match compressed == 0 && length <= MESSAGE_MAX {
        true => Ok(Some(length)),
        false => Err(Unexpected),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(message: &[u8]) -> Vec<u8> {
        [&prefix(message.len())[..], message].concat()
    }

    /// Reads a stream in chunks of this length.
    fn read(stream: &[u8], piece: usize) -> Result<Vec<Vec<u8>>, Unexpected> {
        let (mut pieces, mut messages) = (Deframer::default(), Vec::new());
        for piece in stream.chunks(piece) {
            pieces.read(piece, |message| {
                messages.push(message.to_vec());
                Ok::<_, Unexpected>(())
            })?;
        }
        Ok(messages)
    }

    #[test]
    fn messages_come_whole_and_in_order_however_the_stream_is_cut() {
        let messages = vec![
            vec![7; 300],
            Vec::new(),
            b"a".to_vec(),
            vec![8; 70_000],
            Vec::new(),
        ];
        let stream: Vec<u8> = messages
            .iter()
            .flat_map(|message| framed(message))
            .collect();
        for piece in [1, 2, 5, 6, 7, 304, 305, 306, 310, 16_384, stream.len()] {
            assert_eq!(read(&stream, piece).as_ref(), Ok(&messages), "{piece}");
        }
        assert_eq!(
            read(&stream[..stream.len() - 1], 100).unwrap().len(),
            4,
            "the last message is incomplete"
        );
    }

    #[test]
    fn message_that_is_compressed_or_too_large_is_refused_before_it_has_come() {
        let too_large = prefix(MESSAGE_MAX + 1);
        for bad in [&[1, 0, 0, 0, 1, 0][..], &too_large, &[0xff; 5]] {
            for piece in [1, 64] {
                assert_eq!(
                    read(&[&framed(b"good"), bad].concat(), piece),
                    Err(Unexpected),
                    "{bad:?}"
                );
            }
        }
        assert_eq!(read(&prefix(MESSAGE_MAX), 64), Ok(Vec::new()));
    }

    #[test]
    fn error_of_who_reads_ends_it() {
        let stream = [framed(b"a"), framed(b"b")].concat();
        let mut seen = 0;
        let read = Deframer::default().read(&stream, |_| {
            seen += 1;
            Err(Unexpected)
        });
        assert_eq!((read, seen), (Err(Unexpected), 1));
    }

    #[test]
    fn framed_message_is_sent_piece_by_piece() {
        let mut bytes = SecretBuffer::default();
        append(&mut bytes, &framed(b"abc"));
        let mut framed = Framed::new(bytes);
        framed.advance(6);
        assert_eq!((framed.chunk(), framed.remaining()), (&b"bc"[..], 2));
        framed.advance(2);
        assert!(!framed.has_remaining());
        assert_eq!(Framed::default().remaining(), 0);
    }
}
