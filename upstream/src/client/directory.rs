//! READDIR and READDIRPLUS.

use std::sync::atomic::Ordering;

use gridvfs_vfs::nfs3::{self, PlainPage};
use gridvfs_vfs::{Caller, DirPage, Error, FileHandle, Result, Status, Verifier};

use super::NfsClient;
use crate::rpc::CallClass;

/// The smallest page that is asked for: it holds the longest name with handle and attributes.
const PAGE_BYTES_MIN: u32 = 4096;
/// How many pages in a row may bring no entry although the directory goes on.
const EMPTY_PAGES_MAX: u32 = 8;

impl NfsClient {
    pub(super) async fn list(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        mut cookie: u64,
        mut verifier: Verifier,
        size_bytes: u32,
        plus: bool,
    ) -> Result<DirPage> {
        let mut size = size_bytes.clamp(PAGE_BYTES_MIN, self.sizes.page);
        for _ in 0..EMPTY_PAGES_MAX {
            let page = match self.page(caller, dir, cookie, verifier, size, plus).await {
                Err(Error::Status(Status::TOOSMALL)) if size < self.sizes.page => {
                    size = size.saturating_mul(2).min(self.sizes.page);
                    continue;
                }
                page => page?,
            };
            let last = page.entries.last().map(|entry| entry.cookie);
            let page = with_good_names(page);
            if page.eof || !page.entries.is_empty() {
                return Ok(page);
            }
            (cookie, verifier) = (last.unwrap_or(cookie), page.verifier);
        }
        Err(Error::Protocol("a directory brings no entries and no end".into()))
    }

    async fn page(
        &self,
        caller: &Caller,
        dir: &FileHandle,
        cookie: u64,
        verifier: Verifier,
        size: u32,
        plus: bool,
    ) -> Result<DirPage> {
        if plus && !self.plain_listings.load(Ordering::Relaxed) {
            let arguments = nfs3::ReadDirPlusArgs {
                dir: *dir,
                cookie,
                verifier,
                dir_count: size,
                max_count: size,
            };
            let mut request = self.request(caller, nfs3::READDIRPLUS, &arguments, CallClass::Read);
            request.reply_bytes = size as usize;
            match self.exchange::<DirPage>(request).await.map_err(Error::from) {
                Ok(answer) if answer.result != Err(Status::NOTSUPP) => {
                    return answer.into_result();
                }
                Err(error) if error != Error::Status(Status::NOTSUPP) => return Err(error),
                _ => self.plain_listings.store(true, Ordering::Relaxed),
            }
        }
        let arguments = nfs3::ReadDirArgs { dir: *dir, cookie, verifier, count: size };
        let mut request = self.request(caller, nfs3::READDIR, &arguments, CallClass::Read);
        request.reply_bytes = size as usize;
        let PlainPage(page) = self.exchange(request).await?.into_result()?;
        Ok(page)
    }
}

/// Drops entries whose names are none. A server that lies must not lead a program out of the
/// directory that it lists.
fn with_good_names(mut page: DirPage) -> DirPage {
    page.entries.retain(|entry| {
        let good =
            !entry.name.is_empty() && !entry.name.contains(&b'/') && !entry.name.contains(&0);
        if !good {
            log::warn!("a directory entry is left out: {:?} is no name", entry.name);
        }
        good
    });
    page
}
