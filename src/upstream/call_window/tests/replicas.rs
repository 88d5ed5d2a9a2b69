//! Redis counts calls as [`CallWindow`] does: both are asked the same, by a clock set by hand.

use redis::{Connection, Script};

use super::*;
use crate::shared::{Calls, test_redis::TestRedis};

const KEY: &str = "{credential}:calls";
/// Longer than any test.
const LEASE: u64 = 1 << 40;

/// The calls of a credential in a Redis that ends with the test.
struct Counter {
    _server: TestRedis,
    redis: Connection,
    script: Script,
}

impl Counter {
    /// `None` where no Redis is installed and no CI insists.
    fn start() -> Option<Self> {
        let server = TestRedis::start()?;
        Some(Self {
            redis: server.connect(),
            _server: server,
            script: Script::new(Calls::SCRIPT),
        })
    }

    /// One that knows of nothing spent.
    fn clear(&mut self, limit: u32) {
        self.forget();
        for (name, value) in [("pace", 1), ("limit", limit)] {
            let kept = redis::cmd("ZADD")
                .arg(KEY)
                .arg(-i64::from(value))
                .arg(name)
                .exec(&mut self.redis);
            kept.unwrap();
        }
    }

    fn forget(&mut self) {
        redis::cmd("DEL").arg(KEY).exec(&mut self.redis).unwrap();
    }

    fn run(&mut self, what: &str, now: u64, arguments: &[u64]) -> u64 {
        let mut run = self.script.key(KEY);
        run.arg(what).arg(now).arg(arguments);
        run.invoke(&mut self.redis).unwrap()
    }

    /// How many milliseconds until there is a call; 0: it is granted.
    fn grant(&mut self, now: u64, call: u64, limit: u32) -> u64 {
        self.run("grant", now, &[call, limit.into(), LEASE])
    }
}

fn ms(time: Duration) -> u64 {
    time.as_nanos().div_ceil(1_000_000).try_into().unwrap()
}

#[test]
fn all_replicas_have_the_pace_of_one_process() {
    let Some(mut counter) = Counter::start() else {
        return;
    };
    let mut random = fastrand::Rng::with_seed(7);
    for limit in [1, 2, 3, 5, 6, 10, 60, 600] {
        counter.clear(limit);
        let mut bench = Bench::settled(limit);
        bench.window.end_caution();
        let (began, mut under_way, mut granted) = (bench.now, Vec::new(), 0);
        for call in 0..600 {
            let pause = random.u64(0..90_000 / u64::from(limit));
            // At times nobody asks for long.
            bench.pass(Duration::from_millis(
                pause * random.choice([0, 0, 1, 1, 9]).unwrap(),
            ));
            let now = 1_000_000_000 + ms(bench.now - began);
            let expected = bench.wait();
            match random.u8(0..20) {
                0 => {
                    let hold = random.u64(1..20_000);
                    counter.run("report", now, &[hold]);
                    bench.window.block(Duration::from_millis(hold), bench.now);
                }
                1..8 if !under_way.is_empty() => {
                    let call = under_way.swap_remove(random.usize(0..under_way.len()));
                    counter.run("end", now, &[call]);
                    bench.window.end(bench.now);
                }
                _ => {
                    let wait = counter.grant(now, call, limit);
                    assert_eq!(wait, ms(expected), "call {call} of {limit} a minute");
                    if wait == 0 {
                        bench.begin();
                        under_way.push(call);
                        granted += 1;
                    }
                }
            }
        }
        assert!(granted > 50, "{granted} of {limit} a minute");
    }
}

#[test]
fn a_counter_that_is_lost_grants_no_more_than_the_quota_in_any_minute() {
    let Some(mut counter) = Counter::start() else {
        return;
    };
    for limit in [1, 2, 3, 5, 6, 60] {
        for lost_at in [0, 1, 30, 45, 50, 55, 59, 60, 61, 90] {
            counter.clear(limit);
            let (mut now, mut call, mut made) = (1_000_000_000, 0, Vec::new());
            let (began, mut is_lost) = (now, false);
            while now < began + 200_000 {
                if now >= began + lost_at * 1000 && !is_lost {
                    is_lost = true;
                    counter.forget();
                }
                match counter.grant(now, call, limit) {
                    0 => {
                        counter.run("end", now, &[call]);
                        made.push(now);
                    }
                    wait => now += wait.min(1000),
                }
                call += 1;
            }
            for (index, from) in made.iter().enumerate() {
                let until = made[index..].iter().take_while(|at| **at < from + 60_000);
                assert!(
                    until.count() <= limit as usize,
                    "{limit} a minute, lost at {lost_at}"
                );
            }
            assert!(made.last() > Some(&(began + 130_000)), "it goes on");
        }
    }
}

#[test]
fn what_was_made_alone_counts_and_what_was_never_made_does_not() {
    let Some(mut counter) = Counter::start() else {
        return;
    };
    let now = 1_000_000_000;
    counter.clear(5);
    for call in 0..9 {
        assert_eq!(counter.grant(now, call, 5), 0);
        assert_eq!(counter.run("give_back", now, &[call]), 0);
        counter.run("give_back", now, &[call]);
    }
    // Two ended, told twice; one under way.
    for _ in 0..2 {
        counter.run("report", now, &[0, 20, 10_000, 21, 10_000]);
    }
    (22..25).for_each(|call| assert_eq!(counter.grant(now, call, 5), 0));
    assert_eq!(counter.grant(now, 25, 5), 50_000);
    // The longer of two holds.
    counter.run("report", now, &[90_000]);
    counter.run("report", now, &[1000]);
    assert_eq!(counter.grant(now, 25, 5), 90_000);
}

#[test]
fn a_clock_that_is_set_back_costs_a_minute_at_most() {
    let Some(mut counter) = Counter::start() else {
        return;
    };
    for limit in [1, 5, 60] {
        counter.clear(limit);
        let (mut now, mut call) = (1_000_000_000, 0);
        // The minute and the pace are spent, and one call is under way.
        while now < 1_000_000_000 + 70_000 {
            match counter.run("grant", now, &[call, limit.into(), 60_000]) {
                0 if call > 0 => {
                    counter.run("end", now, &[call]);
                }
                wait => now += wait,
            }
            call += 1;
        }
        let back = now - 3_600_000;
        let wait = counter.run("grant", back, &[call, limit.into(), 60_000]);
        assert!(wait <= 60_000, "{wait} ms at {limit} a minute");
    }
}
