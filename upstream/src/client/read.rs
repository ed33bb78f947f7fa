//! READ: ranges of any size, and no end of file that is none.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use gridvfs_vfs::nfs3::{self, DATA_BYTES_MAX};
use gridvfs_vfs::{Attr, Caller, Error, FileHandle, FileKind, ReadData, Result, Status};

use super::{NfsClient, results};
use crate::rpc::{CallClass, Pending, Request};

/// How many times in a row a server may bring nothing although the file goes on.
const EMPTY_READS_MAX: u32 = 5;
/// The first pause before such a READ is repeated; it doubles.
const EMPTY_READ_PAUSE: Duration = Duration::from_millis(20);

impl NfsClient {
    /// Reads a range. One call suffices as a rule: its data is then returned where it was
    /// received. A larger range is read by calls in parallel, and put together.
    pub(super) async fn read_range(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        count: u32,
    ) -> Result<ReadData> {
        // More would not fit a reply to our own callers; the trait allows short reads.
        let count = count.min(DATA_BYTES_MAX as u32);
        let end = offset.saturating_add(u64::from(count));
        let mut pieces = Vec::with_capacity(count.div_ceil(self.sizes.read).max(1) as usize);
        let mut at = offset;
        loop {
            let size = (end - at).min(u64::from(self.sizes.read)) as u32;
            let request = self.read_request(caller, file, at, size);
            pieces.push((at, size, self.rpc.send(request.clone()).await?, request));
            at += u64::from(size);
            if at >= end {
                break;
            }
        }
        let mut whole = BytesMut::new();
        let single = pieces.len() == 1;
        let mut attr = None;
        for (at, size, pending, request) in pieces {
            let piece = self.read_piece(pending, request, file, at, size).await?;
            attr = piece.attr.or(attr);
            if single {
                return Ok(piece);
            }
            if whole.is_empty() {
                whole.reserve(count as usize);
            }
            whole.extend_from_slice(&piece.data);
            if piece.eof || piece.data.len() < size as usize {
                return Ok(ReadData { data: whole.freeze(), eof: piece.eof, attr });
            }
        }
        Ok(ReadData { data: whole.freeze(), eof: false, attr })
    }

    fn read_request(&self, caller: &Caller, file: &FileHandle, offset: u64, count: u32) -> Request {
        let arguments = nfs3::ReadArgs { file: *file, offset, count };
        let mut request = self.request(caller, nfs3::READ, &arguments, CallClass::Read);
        request.reply_bytes = count as usize;
        request
    }

    /// Waits for a READ that is on its way, and asks again for what it does not bring.
    async fn read_piece(
        &self,
        pending: Pending,
        request: Request,
        file: &FileHandle,
        offset: u64,
        count: u32,
    ) -> Result<ReadData> {
        let first = pending.reply_with(results).await?.results;
        let first = match first {
            Err(Status::JUKEBOX) => {
                self.rpc.busy().pause().await?;
                self.exchange(request.clone()).await?.into_result()?
            }
            first => first?,
        };
        let mut read = checked(first, offset, count)?;
        if finished(&read, count) {
            return Ok(read);
        }
        let mut whole = BytesMut::with_capacity(count as usize);
        whole.extend_from_slice(&read.data);
        let mut attr = read.attr;
        let mut empty = u32::from(read.data.is_empty());
        while !read.eof && whole.len() < count as usize {
            if empty > EMPTY_READS_MAX {
                let text = format!("READ brings nothing at {} of a longer file", whole.len());
                return if whole.is_empty() {
                    Err(Error::Protocol(text))
                } else {
                    break_off(whole, attr)
                };
            }
            if empty > 0 {
                tokio::time::sleep(EMPTY_READ_PAUSE * (1 << (empty - 1))).await;
            }
            let (at, left) = (offset + whole.len() as u64, count - whole.len() as u32);
            let again = self.read_request(&request.caller, file, at, left);
            read = checked(self.exchange(again).await?.into_result()?, at, left)?;
            empty = if read.data.is_empty() { empty + 1 } else { 0 };
            whole.extend_from_slice(&read.data);
            attr = read.attr.or(attr);
        }
        Ok(ReadData { data: whole.freeze(), eof: read.eof, attr })
    }
}

/// Returns what there is, without an end of file: the caller asks again for the rest.
fn break_off(whole: BytesMut, attr: Option<Attr>) -> Result<ReadData> {
    Ok(ReadData { data: whole.freeze(), eof: false, attr })
}

fn finished(read: &ReadData, count: u32) -> bool {
    read.eof || read.data.len() == count as usize
}

/// Checks a reply against what was asked for. An end of file that the attributes of the same reply
/// contradict is none.
fn checked(mut read: ReadData, offset: u64, count: u32) -> Result<ReadData> {
    if read.data.len() > count as usize {
        let brought = read.data.len();
        return Err(Error::Protocol(format!("READ of {count} bytes brought {brought}")));
    }
    let end = offset.saturating_add(read.data.len() as u64);
    let regular = read.attr.filter(|attr| attr.kind == FileKind::Regular);
    match regular {
        // Full replies need no end of file; the next call tells.
        Some(attr) if read.eof && attr.size > end => read.eof = false,
        // Servers may leave the flag out where the range ends at the end exactly; but nothing at
        // all behind the end is the end.
        Some(attr) if !read.eof && read.data.is_empty() && attr.size <= offset => read.eof = true,
        _ => {}
    }
    if count == 0 {
        read.data = Bytes::new();
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gridvfs_vfs::{DeviceNumber, Time};

    fn reply(length: usize, eof: bool, size: Option<u64>) -> ReadData {
        let time = Time::default();
        let attr = size.map(|size| Attr {
            kind: FileKind::Regular,
            mode: 0,
            links: 1,
            uid: 0,
            gid: 0,
            size,
            used: 0,
            device: DeviceNumber::default(),
            fsid: 0,
            fileid: 1,
            atime: time,
            mtime: time,
            ctime: time,
        });
        ReadData { data: vec![0; length].into(), eof, attr }
    }

    #[test]
    fn an_end_of_file_that_is_contradicted_is_none() {
        assert!(!checked(reply(10, true, Some(200)), 0, 100).expect("good").eof);
        assert!(checked(reply(10, true, Some(10)), 0, 100).expect("good").eof);
        assert!(checked(reply(10, true, None), 0, 100).expect("good").eof);
        assert!(checked(reply(0, false, Some(10)), 10, 100).expect("good").eof);
        assert!(!checked(reply(0, false, Some(11)), 10, 100).expect("good").eof);
        assert!(checked(reply(101, false, None), 0, 100).is_err());
    }
}
