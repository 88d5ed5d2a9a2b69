//! How a metric is declared: its name, help and zero samples in one call, beside the field that holds it.

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Metric, Registry},
};

/// Registers `metric` and returns it.
pub(super) fn declare<M: Metric + Clone>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    metric: M,
) -> M {
    registry.register(name, help, metric.clone());
    metric
}

/// Registers a counter.
pub(super) fn counter(registry: &mut Registry, name: &str, help: &str) -> Counter {
    declare(registry, name, help, Counter::default())
}

/// Registers a gauge.
pub(super) fn gauge(registry: &mut Registry, name: &str, help: &str) -> Gauge {
    declare(registry, name, help, Gauge::default())
}

/// A counter for each value of one label.
#[derive(Debug)]
pub(super) struct CounterBy {
    label: &'static str,
    counters: Family<[(&'static str, &'static str); 1], Counter>,
}

impl CounterBy {
    /// Registers it, with a sample for each of `values`.
    pub(super) fn new(
        registry: &mut Registry,
        name: &str,
        help: &str,
        label: &'static str,
        values: impl IntoIterator<Item = &'static str>,
    ) -> Self {
        let counters = declare(registry, name, help, Family::default());
        let new = Self { label, counters };
        for value in values {
            new.add(value, 0);
        }
        new
    }

    pub(super) fn inc(&self, value: &'static str) {
        self.add(value, 1);
    }

    pub(super) fn add(&self, value: &'static str, count: u64) {
        let labels = [(self.label, value)];
        self.counters.get_or_create(&labels).inc_by(count);
    }
}

/// Declares a closed set of label values: an enum, `ALL` of them, and `as_str`.
macro_rules! label_values {
    (
        $(#[$about:meta])*
        pub enum $name:ident { $($(#[$of:meta])* $variant:ident = $text:literal,)+ }
    ) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$of])* $variant,)+ }

        impl $name {
            pub const ALL: [Self; [$($text),+].len()] = [$(Self::$variant),+];

            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}
pub(super) use label_values;

/// Counts one up, and down again when dropped: an end is counted where it surely ends.
#[derive(Debug)]
pub struct GaugeGuard(Gauge);

impl GaugeGuard {
    pub(super) fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
