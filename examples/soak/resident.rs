//! Resident memory of a process.

/// Resident bytes of the process of this id, or of `self`; 0 if the system does not report them.
pub(crate) fn resident(process: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .and_then(|kilobytes| kilobytes.trim().parse::<usize>().ok())
        .map_or(0, |kilobytes| kilobytes << 10)
}
