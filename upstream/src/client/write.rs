//! WRITE: ranges of any size.
//!
//! The write verifier is passed up: the layer above keeps unstable data until COMMIT and sends it
//! again when the verifier has changed. Nothing is kept here once the reply is in.

use bytes::Bytes;
use gridvfs_vfs::nfs3;
use gridvfs_vfs::{Caller, Error, FileHandle, Result, Stability, Status, Wcc, Written};

use super::{NfsClient, results};
use crate::rpc::{CallClass, Pending, Request};

/// How many times in a row a server may take nothing of a WRITE.
const EMPTY_WRITES_MAX: u32 = 5;

impl NfsClient {
    /// Writes a range; what is larger than the server takes is sent by calls in parallel. After an
    /// error in the middle, the count says how much from the start is written.
    pub(super) async fn write_range(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        data: Bytes,
        stable: Stability,
    ) -> Result<Written> {
        let size = self.sizes.write as usize;
        let mut pieces = Vec::with_capacity(data.len().div_ceil(size).max(1));
        let mut rest = data;
        let mut at = offset;
        loop {
            let piece = rest.split_to(rest.len().min(size));
            let request = self.write_request(caller, file, at, piece, stable);
            let length = request.payload.as_ref().map_or(0, Bytes::len);
            pieces.push((at, self.rpc.send(request.clone()).await?, request));
            at = at.saturating_add(length as u64);
            if rest.is_empty() {
                break;
            }
        }
        let single = pieces.len() == 1;
        let mut whole: Option<Written> = None;
        let mut short = false;
        for (at, pending, request) in pieces {
            let length = request.payload.as_ref().map_or(0, Bytes::len);
            let written = match self.write_piece(pending, request, file, at, stable).await {
                Ok(written) => written,
                Err(error) => match whole {
                    Some(whole) => return Ok(whole),
                    None => return Err(error),
                },
            };
            if single {
                return Ok(written);
            }
            // The replies of all are waited for, so that no WRITE is still under way when this
            // returns; but only what is joined to the start counts.
            if !short {
                whole = Some(match whole {
                    None => Written { wcc: Wcc { before: None, ..written.wcc }, ..written },
                    Some(before) => joined(before, written),
                });
                short = (written.count as usize) < length;
            }
        }
        whole.ok_or_else(|| Error::Protocol("nothing was written".into()))
    }

    fn write_request(
        &self,
        caller: &Caller,
        file: &FileHandle,
        offset: u64,
        data: Bytes,
        stable: Stability,
    ) -> Request {
        let count = data.len() as u32;
        let head = nfs3::WriteHead { file: *file, offset, count, stable };
        // The data's own length word follows the head.
        let mut request = self.request(caller, nfs3::WRITE, &(head, count), CallClass::Write);
        request.payload = Some(data);
        request
    }

    /// Waits for a WRITE that is on its way, and sends again what it did not take.
    async fn write_piece(
        &self,
        pending: Pending,
        request: Request,
        file: &FileHandle,
        offset: u64,
        stable: Stability,
    ) -> Result<Written> {
        let mut rest = request.payload.clone().unwrap_or_default();
        let first = pending.reply_with(results).await?.results;
        let mut written: Written = match first {
            Err(Status::JUKEBOX) => {
                self.rpc.busy().pause().await?;
                self.exchange(request.clone()).await?.into_result()?
            }
            first => first?,
        };
        let mut whole: Option<Written> = None;
        let mut empty = 0;
        loop {
            let count = written.count as usize;
            if count > rest.len() {
                let given = rest.len();
                return Err(Error::Protocol(format!("WRITE of {given} bytes took {count}")));
            }
            if written.committed < stable {
                // Less durable than was asked for: RFC 1813 forbids it, fsync would be a lie.
                return Err(Error::Protocol("WRITE is less stable than asked for".into()));
            }
            let _ = rest.split_to(count);
            whole = Some(match whole {
                None => written,
                Some(before) => joined(before, written),
            });
            if let Some(whole) = whole.filter(|_| rest.is_empty()) {
                return Ok(whole);
            }
            empty = if count == 0 { empty + 1 } else { 0 };
            if empty > EMPTY_WRITES_MAX {
                return Err(Error::Protocol("WRITE takes nothing".into()));
            }
            let done = whole.map_or(0, |whole| u64::from(whole.count));
            let again =
                self.write_request(&request.caller, file, offset + done, rest.clone(), stable);
            written = self.exchange(again).await?.into_result()?;
        }
    }
}

/// Puts two writes together. Of differing verifiers, the server has restarted in between: a third
/// that equals neither makes that plain to whoever compares it with COMMIT's.
fn joined(first: Written, second: Written) -> Written {
    let verifier = match first.verifier == second.verifier {
        true => first.verifier,
        false => crate::rpc::random_u64().to_ne_bytes(),
    };
    let newer = |a, b| match (a, b) {
        (Some(a), Some(b)) => {
            Some(std::cmp::max_by_key(a, b, |attr: &gridvfs_vfs::Attr| attr.ctime))
        }
        (a, b) => a.or(b),
    };
    Written {
        count: first.count + second.count,
        committed: first.committed.min(second.committed),
        verifier,
        // They may have been executed in any order: what was before all of them is not known.
        wcc: Wcc { before: None, after: newer(first.wcc.after, second.wcc.after) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_around_a_restart_get_a_verifier_of_their_own() {
        let write =
            |verifier, committed| Written { count: 5, committed, verifier, wcc: Wcc::default() };
        let same = joined(write([1; 8], Stability::Unstable), write([1; 8], Stability::FileSync));
        assert_eq!(same, Written { count: 10, ..write([1; 8], Stability::Unstable) });
        let other = joined(write([1; 8], Stability::Unstable), write([2; 8], Stability::Unstable));
        assert!(other.verifier != [1; 8] && other.verifier != [2; 8]);
    }
}
