//! Record marking (RFC 5531, section 11): records out of a byte stream.
//!
//! A large record's body is read straight into one buffer of its exact size, which becomes the
//! record: the data of a READ reply is a slice of it and is never copied again. Small records are
//! read many at a time and copied out, so that keeping one keeps no more than itself.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use gridvfs_vfs::rpc::LAST_FRAGMENT;
use tokio::io::{AsyncRead, AsyncReadExt};

/// How much is read ahead. It holds a hundred small replies; of a 1 MiB reply, at most this much
/// is copied once.
const READ_AHEAD_BYTES: usize = 16 << 10;
/// The most fragments of one record. Servers that fragment do it by their buffer size, not by the
/// byte.
const FRAGMENTS_MAX: usize = 16 << 10;

/// Why a byte stream ended or is none of records.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The stream could not be read.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The stream ended between two records.
    #[error("the server closed the channel")]
    Closed,
    /// The stream ended within a record.
    #[error("the server closed the channel in the middle of a reply")]
    Cut,
    /// A record is longer than what is taken.
    #[error("a reply of over {bytes} bytes, {max} at most are taken")]
    TooLong {
        /// How long the record is at least.
        bytes: usize,
        /// The most that is taken.
        max: usize,
        /// The call that it is for, where that was to be seen.
        xid: Option<u32>,
    },
    /// A record without content, or of more fragments than anybody would send.
    #[error("an empty reply fragment")]
    Empty,
}

/// Takes records from a byte stream.
pub struct RecordReader<R> {
    inner: R,
    ahead: BytesMut,
    record_bytes_max: usize,
    /// Told of every piece of bytes received.
    on_bytes: Box<dyn FnMut(usize) + Send>,
}

impl<R: AsyncRead + Unpin> RecordReader<R> {
    /// Makes a reader that takes records of up to `record_bytes_max` bytes.
    pub fn new(inner: R, record_bytes_max: usize) -> Self {
        Self::with_observer(inner, record_bytes_max, |_| {})
    }

    /// Makes a reader that tells `on_bytes` how many bytes each read brought.
    pub fn with_observer(
        inner: R,
        record_bytes_max: usize,
        on_bytes: impl FnMut(usize) + Send + 'static,
    ) -> Self {
        let ahead = BytesMut::with_capacity(READ_AHEAD_BYTES);
        Self { inner, ahead, record_bytes_max, on_bytes: Box::new(on_bytes) }
    }

    /// Takes the next record.
    pub async fn next(&mut self) -> Result<Bytes, RecordError> {
        let mut record = BytesMut::new();
        for fragment in 0..FRAGMENTS_MAX {
            if !self.fill(4).await? {
                let clean = fragment == 0 && self.ahead.is_empty();
                return Err(if clean { RecordError::Closed } else { RecordError::Cut });
            }
            let mark = self.ahead.get_u32();
            let last = mark & LAST_FRAGMENT != 0;
            let length = (mark & !LAST_FRAGMENT) as usize;
            let total = record.len() + length;
            if total > self.record_bytes_max {
                let xid = match record.get(..4) {
                    Some(xid) => xid.try_into().ok(),
                    None if self.fill(4).await? => self.ahead[..4].try_into().ok(),
                    None => None,
                };
                return Err(RecordError::TooLong {
                    bytes: total,
                    max: self.record_bytes_max,
                    xid: xid.map(u32::from_be_bytes),
                });
            }
            // An empty last fragment behind data is odd but says what it means.
            if length == 0 && (!last || record.is_empty()) {
                return Err(RecordError::Empty);
            }
            if fragment == 0 && last {
                return self.body(length).await;
            }
            self.append(&mut record, length).await?;
            if last {
                return Ok(record.freeze());
            }
        }
        Err(RecordError::Empty)
    }

    /// Takes a record of one fragment, as nearly all are.
    async fn body(&mut self, length: usize) -> Result<Bytes, RecordError> {
        if length <= READ_AHEAD_BYTES / 2 {
            if !self.fill(length).await? {
                return Err(RecordError::Cut);
            }
            let record = Bytes::copy_from_slice(&self.ahead[..length]);
            self.ahead.advance(length);
            return Ok(record);
        }
        let mut record = BytesMut::with_capacity(length);
        self.append(&mut record, length).await?;
        Ok(record.freeze())
    }

    /// Appends `length` bytes of the stream to `record`, reading them into place.
    async fn append(&mut self, record: &mut BytesMut, length: usize) -> Result<(), RecordError> {
        record.reserve(length);
        let at_hand = length.min(self.ahead.len());
        record.extend_from_slice(&self.ahead[..at_hand]);
        self.ahead.advance(at_hand);
        let mut left = length - at_hand;
        while left > 0 {
            let read = self.inner.read_buf(&mut record.limit(left)).await?;
            if read == 0 {
                return Err(RecordError::Cut);
            }
            (self.on_bytes)(read);
            left -= read;
        }
        Ok(())
    }

    /// Makes sure that `length` bytes are read ahead; `false` when the stream ends before.
    async fn fill(&mut self, length: usize) -> Result<bool, RecordError> {
        debug_assert!(length <= READ_AHEAD_BYTES);
        while self.ahead.len() < length {
            if self.ahead.capacity() < length.max(READ_AHEAD_BYTES / 2) {
                // Nothing else refers to the buffer: this moves the bytes to its front.
                self.ahead.reserve(READ_AHEAD_BYTES - self.ahead.len());
            }
            let room = self.ahead.capacity() - self.ahead.len();
            let read = self.inner.read_buf(&mut (&mut self.ahead).limit(room)).await?;
            if read == 0 {
                return Ok(false);
            }
            (self.on_bytes)(read);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn marked(record: &[u8], cuts: &[usize]) -> Vec<u8> {
        let mut stream = Vec::new();
        let mut start = 0;
        for end in cuts.iter().copied().chain([record.len()]) {
            let last = end == record.len();
            let length = (end - start) as u32;
            let mark = if last { length | LAST_FRAGMENT } else { length };
            stream.extend_from_slice(&mark.to_be_bytes());
            stream.extend_from_slice(&record[start..end]);
            start = end;
        }
        stream
    }

    /// Hands out a stream in pieces of given sizes, over and over.
    struct Pieces(Vec<u8>, Vec<usize>, usize);

    impl AsyncRead for Pieces {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            _context: &mut std::task::Context<'_>,
            buffer: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            let size = self.1[self.2 % self.1.len()];
            self.2 += 1;
            let size = size.min(self.0.len()).min(buffer.remaining());
            buffer.put_slice(&self.0[..size]);
            self.0.drain(..size);
            std::task::Poll::Ready(Ok(()))
        }
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().expect("runtime").block_on(future)
    }

    #[test]
    fn a_record_split_into_two_fragments_anywhere_comes_back() {
        let record: Vec<u8> = (0..100).collect();
        for cut in 1..record.len() {
            let stream = marked(&record, &[cut]);
            run(async {
                let mut reader = RecordReader::new(&stream[..], 100);
                assert_eq!(reader.next().await.expect("record"), record);
                assert!(matches!(reader.next().await, Err(RecordError::Closed)));
            });
        }
    }

    #[test]
    fn every_way_to_cut_a_stream_is_seen() {
        let stream = marked(&[7; 20], &[8]);
        for length in 1..stream.len() {
            let error = run(async { RecordReader::new(&stream[..length], 100).next().await });
            assert!(matches!(error, Err(RecordError::Cut)), "{length}: {error:?}");
        }
    }

    #[test]
    fn lengths_are_checked_before_anything_is_allocated() {
        let stream = [&[0xff; 4][..], b"\0\0\0\x07 and so on"].concat();
        let error = run(async { RecordReader::new(&stream[..], 100).next().await });
        assert!(matches!(error, Err(RecordError::TooLong { xid: Some(7), .. })), "{error:?}");
        // Two fragments that only together are too long.
        let stream = marked(&[0, 0, 0, 9, 1, 1, 1, 1], &[6]);
        let error = run(async { RecordReader::new(&stream[..], 7).next().await });
        assert!(matches!(error, Err(RecordError::TooLong { xid: Some(9), .. })), "{error:?}");
        for stream in [&[0; 4][..], &[0x80, 0, 0, 0][..]] {
            let error = run(async { RecordReader::new(stream, 7).next().await });
            assert!(matches!(error, Err(RecordError::Empty)), "{error:?}");
        }
    }

    proptest! {
        #[test]
        fn records_come_back_however_they_are_fragmented_and_delivered(
            records in prop::collection::vec(
                (prop_oneof![1usize..300, 1usize..40_000], prop::collection::vec(any::<u16>(), 0..6)),
                1..12,
            ),
            pieces in prop::collection::vec(1usize..20_000, 1..8),
        ) {
            let mut stream = Vec::new();
            let mut expected = Vec::new();
            for (number, (length, cuts)) in records.into_iter().enumerate() {
                let record: Vec<u8> = (0..length).map(|at| (at * 31 + number) as u8).collect();
                let mut cuts: Vec<usize> =
                    cuts.into_iter().map(|cut| usize::from(cut) % length).filter(|cut| *cut > 0).collect();
                cuts.sort_unstable();
                cuts.dedup();
                stream.extend(marked(&record, &cuts));
                expected.push(record);
            }
            run(async {
                let mut reader = RecordReader::new(Pieces(stream, pieces, 0), 40_000);
                for record in expected {
                    assert_eq!(reader.next().await.expect("record"), record);
                }
                assert!(matches!(reader.next().await, Err(RecordError::Closed)));
            });
        }
    }
}
