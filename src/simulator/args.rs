//! The command line of `simulate-upstream`.

use std::{net::SocketAddr, time::Duration};

use super::{Fault, Options};

/// Simulate Unpod's tasks endpoint, faults included.
#[derive(Clone, Debug, clap::Args)]
pub struct SimulateArgs {
    /// Address to listen on.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8090")]
    listen: SocketAddr,

    /// Delay of every response.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    latency: Duration,

    /// Maximum random delay in addition.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    jitter: Duration,

    /// A fault and its probability (`503`, `reset=0.1`); may be repeated, the first that occurs wins.
    #[arg(long = "fail", value_name = "KIND[=RATIO]")]
    faults: Vec<Fault>,

    /// Calls per minute and API token.
    #[arg(long, value_name = "N")]
    quota: Option<u32>,

    /// Tasks and runs that a page has at most, however many are asked for.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_page_size: Option<u32>,

    /// Requests served at once; more wait.
    #[arg(long, value_name = "N", default_value_t = Options::default().slots, value_parser = at_least_one)]
    slots: usize,

    /// Interval at which a task is added to the live space.
    #[arg(long, value_name = "DURATION", value_parser = period)]
    new_task_every: Option<Duration>,

    /// Seed of all random data.
    #[arg(long, value_name = "N", default_value_t = Options::default().seed)]
    seed: u64,
}

impl SimulateArgs {
    pub fn options(self) -> Options {
        Options {
            listen: self.listen,
            latency: self.latency,
            jitter: self.jitter,
            faults: self.faults,
            quota_per_minute: self.quota,
            max_page_size: self.max_page_size,
            slots: self.slots,
            new_task_every: self.new_task_every,
            seed: self.seed,
            ..Options::default()
        }
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    let number: usize = text.parse().map_err(|error| format!("{error}"))?;
    if number == 0 {
        return Err("at least 1 is needed".to_owned());
    }
    Ok(number)
}

fn period(text: &str) -> Result<Duration, String> {
    let period = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if period.is_zero() {
        return Err("it must be longer than zero".to_owned());
    }
    Ok(period)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::SimulateArgs;
    use crate::simulator::{Fault, FaultKind, Options};

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        simulate: SimulateArgs,
    }

    fn options(arguments: &[&str]) -> Result<Options, clap::Error> {
        let arguments = [&["simulate-upstream"], arguments].concat();
        Ok(Cli::try_parse_from(arguments)?.simulate.options())
    }

    #[test]
    fn the_defaults_are_those_of_the_options() {
        let options = options(&[]).unwrap();
        assert_eq!(options.listen.to_string(), "127.0.0.1:8090");
        assert_eq!(options.slots, 8);
        assert!(options.faults.is_empty() && options.quota_per_minute.is_none());
    }

    #[test]
    fn every_option_is_read() {
        let options = options(&[
            "--latency=50ms",
            "--jitter=1s",
            "--fail=503",
            "--fail=reset=0.5",
            "--quota=5",
            "--max-page-size=50",
            "--slots=2",
            "--new-task-every=2s",
            "--seed=9",
        ])
        .unwrap();
        assert_eq!(options.latency, Duration::from_millis(50));
        assert_eq!(
            options.faults[1],
            Fault {
                kind: FaultKind::Reset,
                ratio: 0.5
            }
        );
        assert_eq!(options.quota_per_minute, Some(5));
        assert_eq!(options.max_page_size, Some(50));
        assert_eq!(options.new_task_every, Some(Duration::from_secs(2)));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for argument in [
            "--max-page-size=0",
            "--slots=0",
            "--new-task-every=0s",
            "--fail=teapot",
            "--latency=soon",
        ] {
            assert!(options(&[argument]).is_err(), "{argument}");
        }
    }
}
