//! FETCH, of our extension program: ranges of a file, compressed on the way and without zeros.
//!
//! What comes is not trusted: see [`PackedFetch::unpack`].

use std::sync::atomic::Ordering;

use gridvfs_vfs::ext::{self, FetchArgs, PackedFetch};
use gridvfs_vfs::rpc::Refusal;
use gridvfs_vfs::{Caller, Error, Fetched, FileHandle, Result, Status, check_fetch};

use super::{NfsClient, results};
use crate::rpc::{CallClass, CallError};

/// What is decompressed where it arrives; more would keep the network's thread from its work for
/// over 100 µs.
const AT_ONCE_BYTES: usize = 64 << 10;

impl NfsClient {
    /// Fetches ranges by one call. A server without the procedure is asked once.
    pub(super) async fn fetch_ranges(
        &self,
        caller: &Caller,
        file: &FileHandle,
        ranges: &[(u64, u32)],
        level: i32,
    ) -> Result<Fetched> {
        let total = check_fetch(ranges, level)?;
        if !self.fetches.load(Ordering::Relaxed) {
            return Err(Status::NOTSUPP.into());
        }
        let arguments = FetchArgs { file: *file, level, ranges: ranges.to_vec() };
        let mut request = self.request(caller, ext::FETCH, &arguments, CallClass::Read);
        (request.program, request.version) = (ext::PROGRAM, ext::VERSION);
        // What it may be at most, and will be once it is here.
        request.reply_bytes = total;
        let pending = self.rpc.send(request).await?;
        match pending.reply_with(results::<PackedFetch>).await {
            Ok(reply) => unpacked(reply.results?, arguments.ranges, total).await,
            Err(CallError::Refused(
                Refusal::ProgramUnavailable
                | Refusal::ProgramMismatch { .. }
                | Refusal::ProcedureUnavailable,
            )) => {
                self.fetches.store(false, Ordering::Relaxed);
                Err(Status::NOTSUPP.into())
            }
            Err(error) => Err(error.into()),
        }
    }
}

async fn unpacked(packed: PackedFetch, asked: Vec<(u64, u32)>, total: usize) -> Result<Fetched> {
    let lie = |lie: ext::FetchLie| Error::Protocol(lie.to_string());
    if !packed.compressed || total <= AT_ONCE_BYTES {
        return packed.unpack(&asked).map_err(lie);
    }
    let unpacking = tokio::task::spawn_blocking(move || packed.unpack(&asked));
    match unpacking.await {
        Ok(fetched) => fetched.map_err(lie),
        // The runtime is ending.
        Err(_) => Err(Error::Interrupted),
    }
}
