//! What is asked of the kernel when a session begins.

use std::sync::atomic::Ordering;

use fuser::{InitFlags, KernelConfig};

use crate::core::Core;
use crate::passthrough;

/// Asks for what the session is to have, and notes what of it the kernel grants.
pub(super) fn ask(core: &Core, config: &mut KernelConfig) {
    // Not asked for, on purpose: POSIX_LOCKS and FLOCK_LOCKS (the kernel keeps locks itself),
    // AUTO_INVAL_DATA (it would drop pages for our own writes).
    let options = &core.options;
    for wanted in [
        InitFlags::FUSE_ATOMIC_O_TRUNC,
        InitFlags::FUSE_ASYNC_DIO,
        InitFlags::FUSE_PARALLEL_DIROPS,
        InitFlags::FUSE_DO_READDIRPLUS,
        InitFlags::FUSE_READDIRPLUS_AUTO,
        InitFlags::FUSE_CACHE_SYMLINKS,
        // The server clears set-id bits as it writes for the caller; the kernel would do it by
        // a SETATTR that the caller may not make. A kernel that gathers writes hands those over
        // at once that clear them.
        if options.writeback_cache {
            InitFlags::FUSE_HANDLE_KILLPRIV_V2
        } else {
            InitFlags::FUSE_HANDLE_KILLPRIV
        },
    ] {
        if config.add_capabilities(wanted).is_err() {
            log::debug!("the kernel lacks {wanted:?}");
        }
    }
    if options.writeback_cache {
        match config.add_capabilities(InitFlags::FUSE_WRITEBACK_CACHE) {
            Ok(()) => core.writes_back.store(true, Ordering::Relaxed),
            Err(_) => log::debug!("the kernel has no write-back cache"),
        }
        let unopened = options.listing_cache
            && options.default_permissions
            && core.writes_back.load(Ordering::Relaxed)
            && config.add_capabilities(InitFlags::FUSE_NO_OPENDIR_SUPPORT).is_ok();
        core.unopened_directories.store(unopened, Ordering::Relaxed);
    } else if options.passthrough
        && passthrough::is_permitted()
        && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
    {
        // Of 1: local files lie on a plain file system, and ours may be the lower one of an
        // overlay. The kernel does not grant this beside the write-back cache.
        let granted = config.set_max_stack_depth(1).is_ok();
        core.passthrough.store(granted, Ordering::Relaxed);
    }
    let _ = config.set_max_write(options.write_bytes_max);
    let _ = config.set_max_background(options.background_max);
    let _ = config.set_congestion_threshold(options.background_max);
}
