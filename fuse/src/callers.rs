//! Who a request is made for. The kernel tells uid and gid; supplementary groups are looked up.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use gridvfs_vfs::Caller;
use parking_lot::Mutex;

/// For how long a process's groups are believed.
const LIFE: Duration = Duration::from_secs(1);
/// The most processes whose groups are remembered.
const PROCESSES_MAX: usize = 1024;

/// Makes callers of requests.
pub struct Callers {
    own_uid: u32,
    own_groups: Vec<u32>,
    others: Mutex<HashMap<u32, (Instant, Vec<u32>)>>,
}

impl Callers {
    /// Takes this process's own groups.
    pub fn new() -> Self {
        let groups = nix::unistd::getgroups().unwrap_or_default();
        Self {
            own_uid: nix::unistd::geteuid().as_raw(),
            own_groups: groups.into_iter().map(|group| group.as_raw()).collect(),
            others: Mutex::new(HashMap::new()),
        }
    }

    /// Returns the caller of a request.
    pub fn of(&self, uid: u32, gid: u32, process: u32) -> Caller {
        let groups = if uid == self.own_uid {
            self.own_groups.clone()
        } else if uid == 0 || process == 0 {
            Vec::new()
        } else {
            self.groups_of(process)
        };
        Caller { uid, gid, groups }
    }

    fn groups_of(&self, process: u32) -> Vec<u32> {
        if let Some((since, groups)) = self.others.lock().get(&process)
            && since.elapsed() < LIFE
        {
            return groups.clone();
        }
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let groups = groups_in(&status);
        let mut others = self.others.lock();
        if others.len() >= PROCESSES_MAX {
            others.clear();
        }
        others.insert(process, (Instant::now(), groups.clone()));
        groups
    }
}

fn groups_in(status: &str) -> Vec<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    line.unwrap_or_default().split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read() {
        assert_eq!(groups_in("Gid:\t5\nGroups:\t4 24 1000 \nNStgid:\t1\n"), [4, 24, 1000]);
        assert_eq!(groups_in("Groups:\t\n"), [0u32; 0]);
    }
}
