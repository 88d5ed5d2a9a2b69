//! The schedule of faults.

use std::{io, ops::Range, time::Duration};

use tokio::time::sleep;
use unpod_gateway::simulator::{
    Control, Fault, FaultKind, FaultProxy, ProxyControl, Simulator, SplitMix64, WireFault,
};

/// How long one state lasts, in milliseconds.
const LASTS: Range<u64> = 300..3000;
/// Shorter than the gateways' deadline.
const SHORT_DELAY: Duration = Duration::from_millis(300);
/// Longer than the gateways' deadline.
const LONG_DELAY: Duration = Duration::from_secs(10);

const WIRE: [WireFault; 10] = [
    WireFault::Delay(SHORT_DELAY),
    WireFault::Delay(LONG_DELAY),
    WireFault::Reset,
    WireFault::ResetMidBody,
    WireFault::HalfOpen,
    WireFault::CloseAtOnce,
    WireFault::CloseMidHeader,
    WireFault::Truncate,
    WireFault::Garbage,
    WireFault::SlowBody(Duration::from_secs(1)),
];

/// By how many seconds the upstream's clock is off: usually 0.
const SKEWS: [i64; 8] = [0, 0, 0, 0, 45, -45, 3600, -3600];

/// The faults of one upstream.
pub(crate) struct Weather {
    wire: ProxyControl,
    answers: Control,
    random: SplitMix64,
}

impl Weather {
    pub(crate) fn new(proxy: &FaultProxy, simulator: &Simulator, random: SplitMix64) -> Self {
        Self {
            wire: proxy.control(),
            answers: simulator.control(),
            random,
        }
    }

    /// Changes the faults until it is dropped.
    ///
    /// # Errors
    ///
    /// Returns the system's error if the proxy cannot listen again.
    pub(crate) async fn change(&mut self) -> io::Result<()> {
        // The fault that takes the most memory must occur during warm-up.
        let bomb = Fault::always(FaultKind::GzipBomb);
        self.answers.set_faults(vec![bomb]);
        sleep(Duration::from_millis(LASTS.end)).await;
        loop {
            match self.random.below(10) {
                0..=2 => self.clear().await?,
                3..=4 => self.mix_wire(),
                5..=6 => self.mix_answers(),
                7..=8 => {
                    self.mix_wire();
                    self.mix_answers();
                }
                _ => self.break_down().await,
            }
            self.answers.set_clock_skew(self.random.pick(&SKEWS));
            let lasts = LASTS.start + self.random.below(LASTS.end - LASTS.start);
            sleep(Duration::from_millis(lasts)).await;
            // No request may be rejected for longer than a state lasts.
            self.wire.accept().await?;
        }
    }

    /// Ends every fault.
    ///
    /// # Errors
    ///
    /// Returns the system's error if the proxy cannot listen again.
    pub(crate) async fn clear(&self) -> io::Result<()> {
        self.wire.set_faults(Vec::new());
        self.answers.set_faults(Vec::new());
        self.answers.set_clock_skew(0);
        self.wire.accept().await
    }

    fn mix_wire(&mut self) {
        let faults = (0..3).map(|_| (self.random.pick(&WIRE), 0.2)).collect();
        self.wire.set_faults(faults);
    }

    fn mix_answers(&mut self) {
        let mut any = || self.random.pick(&FaultKind::ALL).1;
        let faults = (0..3)
            .map(|_| Fault {
                kind: any(),
                ratio: 0.2,
            })
            .collect();
        self.answers.set_faults(faults);
    }

    /// One fault for all requests.
    async fn break_down(&mut self) {
        match self.random.below(3) {
            0 => self.wire.refuse().await,
            1 => self.wire.set_faults(vec![(self.random.pick(&WIRE), 1.0)]),
            _ => {
                let kind = self.random.pick(&FaultKind::ALL).1;
                self.answers.set_faults(vec![Fault::always(kind)]);
            }
        }
    }
}
