//! What is true of a lane: every call, every page that was sent, and what was done when.

use std::collections::HashMap;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    call::{Call, Key, Page},
    checks::{Change, Generations, Invalidation, Outage, OutageKind},
};

/// Filled by the recorder and by whoever disturbs; read by the checks.
pub(crate) struct Truth(Mutex<Known>);

pub(crate) struct Known {
    /// A call's number is its place.
    pub(crate) calls: Vec<Call>,
    pub(crate) changes: Vec<Change>,
    pub(crate) invalidations: Vec<Invalidation>,
    /// Of each gateway.
    pub(crate) outages: Vec<Vec<Outage>>,
    /// When each space was revoked, and until when.
    pub(crate) revoked: HashMap<&'static str, Vec<(Instant, Option<Instant>)>>,
    /// When the upstream was told to fail, and until when.
    pub(crate) failing: Vec<(Instant, Option<Instant>)>,
    pub(crate) generations: Generations,
}

impl Truth {
    pub(crate) fn new(gateways: usize) -> Self {
        Self(Mutex::new(Known {
            calls: Vec::new(),
            changes: Vec::new(),
            invalidations: Vec::new(),
            outages: vec![Vec::new(); gateways],
            revoked: HashMap::new(),
            failing: Vec::new(),
            generations: Generations::default(),
        }))
    }

    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut Known) -> T) -> T {
        f(&mut self.0.lock())
    }

    /// Returns the number of the call.
    pub(crate) fn call_started(&self, key: Key) -> usize {
        let mut known = self.0.lock();
        // Under the lock, so that calls are in order.
        let started = Instant::now();
        known.calls.push(Call {
            key,
            started,
            ended: None,
            page: None,
        });
        known.calls.len() - 1
    }

    /// Has to come before the answer is sent.
    pub(crate) fn call_ended(&self, number: usize, status: u16, page: Option<Page>) {
        let mut known = self.0.lock();
        let ended = Instant::now();
        let call = &mut known.calls[number];
        call.ended = Some(ended);
        call.page = page;
        let (space, started) = (call.key.space, call.started);
        let revoked = known
            .revoked
            .get(space)
            .and_then(|times| times.last())
            .copied();
        // Business errors arrive as 206.
        if let Some((cause, until)) = revoked.filter(|_| status == 206)
            && until.is_none_or(|until| until >= started)
        {
            known.invalidations.push(Invalidation {
                space: Some(space),
                cause,
                known: ended,
                by: None,
                is_pending: false,
            });
            known.changes.push(Change {
                space: Some(space),
                at: ended,
            });
        }
    }

    /// Notes a moment from which pages of a space may be fetched again.
    pub(crate) fn changed(&self, space: Option<&'static str>) {
        let at = Instant::now();
        self.0.lock().changes.push(Change { space, at });
    }

    /// An outage of `gateway` begins; returns its number for [`Self::outage_ended`].
    pub(crate) fn outage_began(&self, gateway: usize, kind: OutageKind) -> usize {
        self.outage_began_at(Instant::now(), gateway, kind)
    }

    /// The same, for one that is noticed late.
    pub(crate) fn outage_began_at(&self, from: Instant, gateway: usize, kind: OutageKind) -> usize {
        let outages = &mut self.0.lock().outages[gateway];
        outages.push(Outage {
            kind,
            from,
            to: None,
        });
        outages.len() - 1
    }

    pub(crate) fn outage_ended(&self, gateway: usize, number: usize) {
        self.0.lock().outages[gateway][number].to = Some(Instant::now());
    }
}
