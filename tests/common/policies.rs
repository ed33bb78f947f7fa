//! Under which settings of the disk cache the tests of data, names and applications are run.
//!
//! Not everything five times five times: what is quick runs on every way to a server by default, and
//! under every policy on one way each ([`ALL`]); what takes long runs on every way once, each under
//! another policy ([`ROTATED`]).

use std::sync::atomic::{AtomicUsize, Ordering};

use super::Way;

/// The settings of a mount's disk cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// What holds if nothing is said: write-through and shared, or no cache for a local directory.
    Default,
    /// No disk cache.
    Off,
    /// Write-through, in a local directory, too.
    ThroughShared,
    /// Write-through; names and attributes are believed.
    ThroughDedicated,
    /// Write-back; files are revalidated when they are opened.
    BackShared,
    /// Write-back; the kernel gathers writes.
    BackDedicated,
    /// The same without the kernel.
    BackHandedOver,
    /// Nothing is written; files are revalidated when they are opened.
    ReadOnly,
    /// Nothing is written, and nobody else writes.
    ReadOnlyShared,
}

impl Policy {
    /// The `-o` options. The cache is small, so that frames are evicted, and in half of the write-back
    /// sessions data is sent while it is still being written.
    fn options(self) -> &'static str {
        match self {
            Self::Default | Self::Off => "",
            Self::ThroughShared => "write_policy=write-through,consistency=shared",
            Self::ThroughDedicated => "write_policy=write-through,consistency=dedicated",
            Self::BackShared => "write_policy=write-back,consistency=shared,writeback_delay=0.2",
            Self::BackDedicated => "write_policy=write-back,consistency=dedicated",
            Self::BackHandedOver => {
                "write_policy=write-back,consistency=dedicated,kernel_writeback=off,\
                 writeback_delay=0.2"
            }
            Self::ReadOnly => "ro,write_policy=read-only,consistency=shared",
            Self::ReadOnlyShared => "ro,consistency=read-only-shared",
        }
    }

    /// Says whether the mount may take it that nobody else changes files.
    pub fn trusts(self) -> bool {
        let trusting = [
            Self::ThroughDedicated,
            Self::BackDedicated,
            Self::BackHandedOver,
            Self::ReadOnlyShared,
        ];
        trusting.contains(&self)
    }
}

/// A way to a server with the settings of a cache.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// How the files are reached.
    pub way: Way,
    /// How they are cached.
    pub policy: Policy,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}, {:?}", self.way, self.policy)
    }
}

impl Case {
    /// The `-o` options.
    pub fn options(self) -> Vec<String> {
        match self.policy {
            Policy::Default => Vec::new(),
            Policy::Off => vec!["cache=off".into()],
            policy => vec![format!("cache=on,cache_size=64M,cache_banks=4,{}", policy.options())],
        }
    }
}

const fn case(way: Way, policy: Policy) -> Case {
    Case { way, policy }
}

/// Runs a check in every case, two at once: each waits for much of its time.
pub fn each(cases: &[Case], check: impl Fn(Case) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    check(*case);
                }
            });
        }
    });
}

/// Every way by default, and every policy that writes on one way.
pub const ALL: [Case; 11] = [
    case(Way::Local, Policy::Default),
    case(Way::Ssh, Policy::Default),
    case(Way::Forward, Policy::Default),
    case(Way::NoProxy, Policy::Default),
    case(Way::Nfs, Policy::Default),
    case(Way::Local, Policy::ThroughShared),
    case(Way::Ssh, Policy::Off),
    case(Way::Local, Policy::ThroughDedicated),
    case(Way::Ssh, Policy::BackShared),
    case(Way::Nfs, Policy::BackDedicated),
    case(Way::Local, Policy::BackHandedOver),
];

/// Every way once, each under another policy.
pub const ROTATED: [Case; 5] = [
    case(Way::Local, Policy::BackHandedOver),
    case(Way::Ssh, Policy::BackDedicated),
    case(Way::Forward, Policy::ThroughDedicated),
    case(Way::NoProxy, Policy::BackShared),
    case(Way::Nfs, Policy::Default),
];

/// Where others change the files meanwhile: nobody has them alone.
pub const SHARED: [Case; 7] = [
    case(Way::Local, Policy::Default),
    case(Way::Ssh, Policy::Default),
    case(Way::Forward, Policy::Default),
    case(Way::NoProxy, Policy::Default),
    case(Way::Nfs, Policy::Default),
    case(Way::Ssh, Policy::Off),
    case(Way::Local, Policy::BackShared),
];

/// For what only reads.
pub const READING: [Case; 8] = [
    case(Way::Ssh, Policy::Default),
    case(Way::Ssh, Policy::Off),
    case(Way::Local, Policy::ReadOnly),
    case(Way::Ssh, Policy::ReadOnlyShared),
    case(Way::Nfs, Policy::ReadOnly),
    case(Way::Local, Policy::ThroughDedicated),
    case(Way::Ssh, Policy::BackShared),
    case(Way::Local, Policy::BackDedicated),
];
