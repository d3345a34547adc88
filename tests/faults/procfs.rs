//! Processes, threads and descriptors, as the kernel tells of them.

use std::collections::BTreeMap;
use std::fs;

/// The living and the dead children of all threads of a process.
pub(crate) fn children_of(pid: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

/// `R`, `S`, `Z` and so on; `None` if there is no such process.
pub(crate) fn state_of(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// The same of a thread of this process.
pub(crate) fn state_of_thread(thread: u64) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/self/task/{thread}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

pub(crate) fn name_of(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// The one fork server of this process.
#[track_caller]
pub(crate) fn fork_server() -> u32 {
    let servers: Vec<u32> = fork_servers();
    assert_eq!(servers.len(), 1, "fork servers: {servers:?}");
    servers[0]
}

pub(crate) fn fork_servers() -> Vec<u32> {
    let is_server = |pid: &u32| name_of(*pid) == "cf-forkserver" && state_of(*pid) != Some('Z');
    children_of(std::process::id()).into_iter().filter(is_server).collect()
}

/// The workers alive of this process's pools.
pub(crate) fn workers() -> Vec<u32> {
    fork_servers().into_iter().flat_map(children_of).filter(|pid| state_of(*pid) != Some('Z')).collect()
}

/// The processes that were started with `tag` in their environment, or forked by one that was.
pub(crate) fn tagged(tag: &str) -> Vec<(u32, String)> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    processes
        .flatten()
        .filter_map(|process| process.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == tag.as_bytes())
        })
        .map(|pid| (pid, name_of(pid)))
        .collect()
}

/// What this process holds of the system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Footprint {
    /// How many of each kind: which number a descriptor has is not compared.
    descriptors: BTreeMap<String, usize>,
    threads: usize,
    children: Vec<(u32, String)>,
}

impl Footprint {
    pub(crate) fn take() -> Self {
        let mut descriptors = BTreeMap::new();
        // Without a descriptor to look with there is nothing to tell.
        for entry in fs::read_dir("/proc/self/fd").into_iter().flatten().flatten() {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            let target = target.to_string_lossy();
            let kind = target.split_once(":[").map_or(&*target, |(kind, _)| kind);
            *descriptors.entry(kind.to_owned()).or_default() += 1;
        }
        let children = children_of(std::process::id()).into_iter().map(|pid| (pid, name_of(pid))).collect();
        Self { descriptors, threads: fs::read_dir("/proc/self/task").map_or(0, Iterator::count), children }
    }
}

/// The descriptors of this process that are sockets.
pub(crate) fn sockets() -> Vec<i32> {
    fs::read_dir("/proc/self/fd")
        .unwrap()
        .flatten()
        .filter(|entry| {
            fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))
        })
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}
