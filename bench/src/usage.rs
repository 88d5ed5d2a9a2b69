//! CPU time and memory of a server and all its processes, from `/proc`.

use std::{fs, time::Duration};

/// A process and all its descendants.
pub fn family(pid: u32) -> Vec<u32> {
    let all: Vec<(u32, u32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| Some((pid, stat(pid)?.parent)))
        .collect();
    let mut family = vec![pid];
    let mut at = 0;
    while let Some(parent) = family.get(at).copied() {
        family.extend(
            all.iter()
                .filter(|(_, of)| *of == parent)
                .map(|(pid, _)| *pid),
        );
        at += 1;
    }
    family
}

/// CPU time of a process tree, including threads that have ended.
pub fn cpu(family: &[u32]) -> Duration {
    family.iter().filter_map(|pid| Some(stat(*pid)?.cpu)).sum()
}

/// Proportional set size of a process tree in bytes.
pub fn resident(family: &[u32]) -> u64 {
    family.iter().filter_map(|pid| proportional(*pid)).sum()
}

fn proportional(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find(|line| line.starts_with("Pss:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}

/// The processor's name, if the system reports it.
pub fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let name = lines.find(|(name, _)| name.trim() == "model name");
    name.map_or("an unnamed processor", |(_, value)| value.trim())
        .to_owned()
}

struct Stat {
    parent: u32,
    cpu: Duration,
}

/// Clock ticks per second; the same on every Linux (proc(5), `USER_HZ`).
const TICKS_PER_SECOND: u64 = 100;

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain anything.
    let rest = text.rsplit_once(") ")?.1;
    let fields: Vec<&str> = rest.split(' ').collect();
    let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        cpu: Duration::from_millis((ticks(11)? + ticks(12)?) * 1000 / TICKS_PER_SECOND),
    })
}
