//! What breaks: gateways, Redis, and the way between them.

use std::{ops::Range, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use unpod_gateway::simulator::{Fault as UpstreamFault, FaultKind, SplitMix64};

use crate::{
    call,
    checks::{Outage, OutageKind, RECONNECTS},
    lane::Place,
    operator,
    proxy::State,
    redis_server::{Data, Servers},
    watch::{POLL, settle},
};

/// How long a fault lasts and how long it is calm after it, in milliseconds.
const LASTS: Range<u64> = 200..3000;
const CALM: Range<u64> = 500..8000;
/// For how long Redis loses what is written before it fails over or restarts.
const LACKS: Duration = Duration::from_millis(500);
/// The ends of the keys by which replicas hear of each other: without them a replica goes on alone, as without Redis.
const OF_ALL: [&str; 2] = ["{log}", "members"];

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fault {
    Kill,
    Restart,
    Reset,
    Silent,
    Slow,
    RedisKill,
    RedisRestart,
    RedisStop,
    Failover,
    FailoverLossy,
    Full,
    WrongType,
    ClientKill,
    Flush,
    Upstream,
}

/// What a fault is done to; two faults at once are of different sides.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Side {
    Gateway,
    Redis,
    Upstream,
}

const FAULTS: [(&str, Fault, Side); 15] = [
    ("kill", Fault::Kill, Side::Gateway),
    ("restart", Fault::Restart, Side::Gateway),
    ("reset", Fault::Reset, Side::Gateway),
    ("silent", Fault::Silent, Side::Gateway),
    ("slow", Fault::Slow, Side::Gateway),
    ("redis-kill", Fault::RedisKill, Side::Redis),
    ("redis-restart", Fault::RedisRestart, Side::Redis),
    ("redis-stop", Fault::RedisStop, Side::Redis),
    ("failover", Fault::Failover, Side::Redis),
    ("failover-lossy", Fault::FailoverLossy, Side::Redis),
    ("full", Fault::Full, Side::Redis),
    ("wrong-type", Fault::WrongType, Side::Redis),
    ("client-kill", Fault::ClientKill, Side::Redis),
    ("flush", Fault::Flush, Side::Redis),
    ("upstream", Fault::Upstream, Side::Upstream),
];

pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    FAULTS.iter().map(|(name, ..)| *name)
}

/// One fault, drawn beforehand: what happens depends on the seed alone.
struct Draw {
    name: &'static str,
    fault: Fault,
    side: Side,
    gateway: usize,
    lasts: Duration,
    random: SplitMix64,
}

impl Draw {
    fn new(random: &mut SplitMix64, place: &Place) -> Option<Self> {
        let allowed: Vec<_> = FAULTS
            .into_iter()
            .filter(|(name, ..)| place.allows(name))
            .collect();
        if allowed.is_empty() {
            return None;
        }
        let (name, fault, side) = random.pick(&allowed);
        Some(Self {
            name,
            fault,
            side,
            gateway: random.below(place.gateways.len() as u64) as usize,
            lasts: between(random, LASTS),
            random: SplitMix64::new(random.below(u64::MAX)),
        })
    }
}

fn between(random: &mut SplitMix64, range: Range<u64>) -> Duration {
    Duration::from_millis(range.start + random.below(range.end - range.start))
}

/// Breaks one thing, or two at once, and mends them, until `end`.
pub(crate) async fn rage(
    place: Arc<Place>,
    servers: &mut Servers,
    mut random: SplitMix64,
    end: Instant,
) {
    loop {
        let calm = between(&mut random, CALM);
        if Instant::now() + calm >= end {
            sleep(end - Instant::now()).await;
            return;
        }
        sleep(calm).await;
        let first = Draw::new(&mut random, &place);
        let second = Draw::new(&mut random, &place);
        let is_double = random.below(3) == 0;
        let Some(first) = first else { continue };
        let second = second.filter(|second| is_double && second.side != first.side);
        // The servers are needed by one of the two at most.
        let both = match second {
            Some(second) if second.side == Side::Redis => (second, Some(first)),
            second => (first, second),
        };
        let aside = async {
            if let Some(draw) = both.1 {
                return strike(&place, None, draw).await;
            }
            Vec::new()
        };
        let (one, other) = tokio::join!(strike(&place, Some(servers), both.0), aside);
        let ended = Instant::now();
        let place = &place;
        let settling = one
            .into_iter()
            .chain(other)
            .map(|(gateway, number)| async move {
                settle(place, gateway).await;
                place.truth.outage_ended(gateway, number);
                let took = ended.elapsed();
                if took > RECONNECTS {
                    place.wrong(
                        "recovery",
                        format!("gateway {gateway} connects {took:.1?} after Redis was back"),
                    );
                }
            });
        futures_util::future::join_all(settling).await;
    }
}

/// Runs a fault to its end; returns the outages that it caused, by gateway and number, which end when the gateway is connected again.
async fn strike(
    place: &Place,
    servers: Option<&mut Servers>,
    mut draw: Draw,
) -> Vec<(usize, usize)> {
    let concerned: Vec<_> = match draw.side {
        Side::Gateway => vec![draw.gateway],
        Side::Redis => (0..place.gateways.len()).collect(),
        Side::Upstream => Vec::new(),
    };
    let begin = |gateway| {
        (
            gateway,
            place.truth.outage_began(gateway, OutageKind::Redis),
        )
    };
    let began: Vec<_> = concerned.into_iter().map(begin).collect();
    place.count(format!("fault: {}", draw.name));
    place.event(format!(
        "{} of gateway {} for {:?}",
        draw.name, draw.gateway, draw.lasts
    ));
    match (draw.side, servers) {
        (Side::Gateway, _) => strike_gateway(place, &mut draw).await,
        (Side::Redis, Some(servers)) => strike_redis(place, servers, &mut draw).await,
        (Side::Upstream | Side::Redis, _) => strike_upstream(place, &draw).await,
    }
    place.event(format!("{} is over", draw.name));
    began
}

async fn strike_gateway(place: &Place, draw: &mut Draw) {
    let (gateway, proxy) = (&place.gateways[draw.gateway], &place.proxies[draw.gateway]);
    match draw.fault {
        Fault::Kill | Fault::Restart => {
            let (kind, signal) = match draw.fault {
                Fault::Kill => (OutageKind::Killed, "-KILL"),
                _ => (OutageKind::Stopped, "-TERM"),
            };
            let down = place.truth.outage_began(draw.gateway, kind);
            if let Err(error) = gateway.end(signal).await {
                place.wrong("process", format!("gateway {}: {error}", draw.gateway));
            }
            sleep(draw.lasts / 2).await;
            gateway.start().await;
            place.truth.outage_ended(draw.gateway, down);
        }
        Fault::Reset => {
            proxy.set(State::Reset);
            sleep(draw.lasts * 2).await;
        }
        Fault::Silent => {
            proxy.set(State::Silent);
            sleep(draw.lasts * 3).await;
            if draw.random.below(2) == 0 {
                proxy.cut();
            }
        }
        _ => {
            proxy.set(State::Slow(Duration::from_millis(
                20 + draw.random.below(200),
            )));
            sleep(draw.lasts).await;
        }
    }
    proxy.set(State::Open);
}

async fn strike_redis(place: &Place, servers: &mut Servers, draw: &mut Draw) {
    let run = async |servers: &Servers, command: &str| {
        let ran = servers.primary.run::<redis::Value>(command).await;
        ran.unwrap_or_else(|error| panic!("{command}: {error}"));
    };
    match draw.fault {
        Fault::RedisKill => {
            servers.primary.kill().await;
            sleep(draw.lasts).await;
            servers.restart(Data::None, &place.proxies).await;
        }
        Fault::RedisRestart => {
            run(servers, "SAVE").await;
            write_in_vain(place, draw).await;
            servers.primary.kill().await;
            sleep(draw.lasts).await;
            servers.restart(Data::Saved, &place.proxies).await;
        }
        Fault::RedisStop => {
            servers.primary.signal("-STOP");
            sleep(draw.lasts * 2).await;
            servers.primary.signal("-CONT");
        }
        Fault::Failover | Fault::FailoverLossy => {
            servers.promote().await;
            if draw.fault == Fault::FailoverLossy {
                write_in_vain(place, draw).await;
            }
            servers.fail_over(&place.proxies).await;
        }
        Fault::Full => {
            run(servers, "CONFIG SET maxmemory 1mb").await;
            keep_connected(place, draw.lasts * 2).await;
            run(servers, "CONFIG SET maxmemory 0").await;
        }
        Fault::WrongType => {
            if let Some(key) = servers.spoil(&mut draw.random).await {
                place.event(format!("{key} is spoilt"));
                match OF_ALL.iter().any(|of_all| key.ends_with(of_all)) {
                    true => sleep(draw.lasts * 2).await,
                    false => keep_connected(place, draw.lasts * 2).await,
                }
                let _ = servers.primary.run_words::<()>(&["DEL", &key]).await;
            }
        }
        Fault::ClientKill => {
            run(servers, "CLIENT KILL TYPE normal").await;
            run(servers, "CLIENT KILL TYPE pubsub").await;
        }
        _ => run(servers, "FLUSHALL").await,
    }
}

/// Waits while what is written will be lost; a purge is among it.
async fn write_in_vain(place: &Place, draw: &mut Draw) {
    sleep(LACKS / 2).await;
    if place.allows("purge") {
        let space = call::any_space(&mut draw.random);
        operator::purge(place, draw.gateway, Some(space)).await;
    }
    sleep(LACKS / 2).await;
}

/// Waits, while nothing but commands fail: that costs no gateway its connection.
async fn keep_connected(place: &Place, lasts: Duration) {
    let until = Instant::now() + lasts;
    while Instant::now() < until {
        sleep(POLL).await;
        for (number, gateway) in place.gateways.iter().enumerate() {
            let is_lost = gateway.redis().await.is_some_and(|redis| !redis.is_up);
            // This fault's outage is one; with another, the connection may be gone.
            let open = |outage: &&Outage| outage.to.is_none();
            let outages = place
                .truth
                .with(|known| known.outages[number].iter().filter(open).count());
            if is_lost && outages == 1 {
                place.wrong(
                    "connection",
                    format!("gateway {number} lost it by an error of a key"),
                );
                return sleep(until - Instant::now()).await;
            }
        }
    }
}

async fn strike_upstream(place: &Place, draw: &Draw) {
    let kinds = [FaultKind::Unavailable, FaultKind::Reset, FaultKind::Hang];
    let kind = draw.random.clone().pick(&kinds);
    place.truth.changed(None);
    place
        .truth
        .with(|truth| truth.failing.push((Instant::now(), None)));
    place
        .upstream
        .set_faults(vec![UpstreamFault { kind, ratio: 0.7 }]);
    sleep(draw.lasts).await;
    place.upstream.set_faults(Vec::new());
    place.truth.with(|truth| {
        let last = truth.failing.last_mut();
        last.expect("it has begun").1 = Some(Instant::now());
    });
    place.truth.changed(None);
}
