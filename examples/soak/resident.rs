//! Resident memory of this process.

/// Resident bytes; 0 if the system does not report them.
pub(crate) fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .and_then(|kilobytes| kilobytes.trim().parse::<usize>().ok())
        .map_or(0, |kilobytes| kilobytes << 10)
}
