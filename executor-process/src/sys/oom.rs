//! How many processes the kernel has killed for want of memory, as far as it tells.
//!
//! A process killed by the kernel for want of memory has got SIGKILL, as if anybody had sent it. Only the counter of its
//! control group tells them apart; it counts kills of processes in that group, whoever ran out of memory, this group or
//! the machine. Outside of any group the machine's counter has to do.

use std::fs;
use std::path::PathBuf;

/// The counter of this process's control group.
#[derive(Debug)]
pub(crate) struct MemoryKills {
    file: Option<PathBuf>,
    /// What was told already.
    seen: u64,
}

impl MemoryKills {
    /// Counts from now on.
    pub(crate) fn watch() -> Self {
        let file = candidates().into_iter().find(|file| read(file).is_some());
        let seen = file.as_ref().and_then(read).unwrap_or(0);
        Self { file, seen }
    }

    /// Whether there was a kill that was not taken yet. Takes it.
    pub(crate) fn take(&mut self) -> bool {
        let now = self.file.as_ref().and_then(read).unwrap_or(0);
        let is_new = now > self.seen;
        self.seen += u64::from(is_new);
        is_new
    }
}

/// The files that may hold the counter, best first.
fn candidates() -> Vec<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut files = Vec::new();
    for line in groups.lines() {
        // `number:controllers:path`, without controllers for the second version.
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let path = path.trim_start_matches('/');
        if controllers.is_empty() {
            for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
                files.push([root, path, "memory.events"].iter().collect());
            }
        } else if controllers.split(',').any(|controller| controller == "memory") {
            files.push(["/sys/fs/cgroup/memory", path, "memory.oom_control"].iter().collect());
            // In a container the group may be mounted as the root.
            files.push(PathBuf::from("/sys/fs/cgroup/memory/memory.oom_control"));
        }
    }
    files.push(PathBuf::from("/proc/vmstat"));
    files
}

/// All of the files have a line `oom_kill <count>`.
fn read(file: &PathBuf) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_counter_on_every_linux() {
        let kills = MemoryKills::watch();
        assert!(kills.file.is_some());
    }
}
