//! The process: what every one exports under the names that Prometheus's own clients use, read from `/proc` when asked for (where there
//! is none there are no such metrics), and what befell ours.

use std::{fmt, fs};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, family::Family, gauge::ConstGauge, gauge::Gauge},
    registry::Registry,
};

use super::declare::{CounterBy, declare, label_values};

/// Of `/proc/*/stat`. The kernel's `USER_HZ` is 100 on every architecture we build for; asking it takes `unsafe`.
const TICKS_A_SECOND: f64 = 100.0;

/// Version, reloads and lost spans.
#[derive(Debug)]
pub struct ProcessMetrics {
    config_reloads: CounterBy,
    traces_dropped: CounterBy,
}

impl ProcessMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let build_info = declare(
            registry,
            "build_info",
            "Always 1; the running version",
            Family::<[(&str, &str); 1], Gauge>::default(),
        );
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        build_info.get_or_create(&version).set(1);
        Self {
            config_reloads: CounterBy::new(
                registry,
                "config_reloads",
                "Configuration reloads, by outcome",
                "outcome",
                ReloadOutcome::ALL.map(ReloadOutcome::as_str),
            ),
            traces_dropped: CounterBy::new(
                registry,
                "traces_dropped",
                "Spans that were not exported, by reason",
                "reason",
                SpanLoss::ALL.map(SpanLoss::as_str),
            ),
        }
    }

    /// The configuration was read again.
    pub fn reloaded(&self, outcome: ReloadOutcome) {
        self.config_reloads.inc(outcome.as_str());
    }

    /// Spans are lost.
    pub fn spans_lost(&self, reason: SpanLoss, count: u64) {
        self.traces_dropped.add(reason.as_str(), count);
    }
}

label_values! {
    /// The outcome of a reload.
    pub enum ReloadOutcome {
        Applied = "applied",
        Refused = "refused",
    }
}

label_values! {
    /// Why spans were not exported, as it is counted.
    pub enum SpanLoss {
        /// Spans end faster than the collector accepts them.
        QueueFull = "queue_full",
        /// The collector is unreachable, fails or refuses them.
        ExportFailed = "export_failed",
    }
}

/// This process.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let stat = read("/proc/self/stat").as_deref().and_then(Stat::parse);
        let boot = read("/proc/stat").as_deref().and_then(boot_time);
        let mut put = |name: &str, help: &str, metric: &dyn EncodeMetric| {
            let kind = metric.metric_type();
            metric.encode(encoder.encode_descriptor(name, help, None, kind)?)
        };
        if let Some(stat) = &stat {
            put(
                "process_cpu_seconds",
                "User and system CPU time",
                &ConstCounter::new(stat.cpu_seconds),
            )?;
        }
        if let (Some(stat), Some(boot)) = (&stat, boot) {
            put(
                "process_start_time_seconds",
                "Start time of the process, in Unix seconds",
                &ConstGauge::new(boot + stat.began_after_boot),
            )?;
        }
        if let Some(bytes) = read("/proc/self/status").as_deref().and_then(resident) {
            put(
                "process_resident_memory_bytes",
                "Resident memory",
                &ConstGauge::new(bytes),
            )?;
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            // One of them is the directory's own.
            let open = i64::try_from(open.count().saturating_sub(1)).unwrap_or(i64::MAX);
            put(
                "process_open_fds",
                "Open file descriptors",
                &ConstGauge::new(open),
            )?;
        }
        if let Some(most) = read("/proc/self/limits").as_deref().and_then(max_fds) {
            put(
                "process_max_fds",
                "Limit of open file descriptors",
                &ConstGauge::new(most),
            )?;
        }
        Ok(())
    }
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// Of `/proc/self/stat` what is shown, in seconds.
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_seconds: f64,
    began_after_boot: f64,
}

impl Stat {
    /// proc_pid_stat(5). Its second field is the command's name, which may hold spaces and parentheses.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let third_on: Vec<&str> = rest.split_whitespace().collect();
        let seconds = |field: usize| -> Option<f64> {
            let ticks: f64 = third_on.get(field - 3)?.parse().ok()?;
            Some(ticks / TICKS_A_SECOND)
        };
        Some(Self {
            cpu_seconds: seconds(14)? + seconds(15)?,
            began_after_boot: seconds(22)?,
        })
    }
}

/// When the machine booted, in Unix seconds; of `/proc/stat`.
fn boot_time(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("btime "))?;
    line.trim().parse().ok()
}

/// Bytes held in RAM; of `/proc/self/status`.
fn resident(text: &str) -> Option<i64> {
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The soft limit; of `/proc/self/limits`, where it may be "unlimited".
fn max_fds(text: &str) -> Option<i64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_named_with_parentheses_and_spaces_shifts_no_field() {
        let text = "7 (a) b) S 1 7 7 0 -1 4194304 1 0 0 0 250 50 0 0 20 0 3 0 12345 9 9";
        let expected = Stat {
            cpu_seconds: 3.0,
            began_after_boot: 123.45,
        };
        assert_eq!(Stat::parse(text), Some(expected));
        assert_eq!(Stat::parse("7 (a) S 1"), None);
    }

    #[test]
    fn each_file_gives_its_number() {
        assert_eq!(boot_time("cpu 1 2\nbtime 1700000000\n"), Some(1.7e9));
        assert_eq!(
            resident("VmPeak: 9 kB\nVmRSS:\t  2048 kB\n"),
            Some(2_097_152)
        );
        let limits = "Max processes  1 1 processes\nMax open files   1024   4096   files\n";
        assert_eq!(max_fds(limits), Some(1024));
        assert_eq!(max_fds("Max open files unlimited unlimited files"), None);
    }
}
