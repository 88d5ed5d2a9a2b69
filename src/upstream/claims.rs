//! For whom a call is made: who began its fill, and whoever joined it since.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Urgency;

/// That a client wants a call, and how much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub urgency: Urgency,
    pub client: Arc<str>,
}

/// The claims on one fill: at least one, and one a client. A clone sees what is added later.
#[derive(Clone, Debug)]
pub struct Claims {
    shared: Arc<Shared>,
    is_retry: bool,
}

#[derive(Debug)]
struct Shared {
    list: Mutex<Vec<Claim>>,
    news: Notify,
}

impl Claims {
    #[must_use]
    pub fn new(first: Claim) -> Self {
        Self {
            shared: Arc::new(Shared {
                list: Mutex::new(vec![first]),
                news: Notify::new(),
            }),
            is_retry: false,
        }
    }

    /// Adds a claim; of two of one client the more urgent counts.
    pub fn add(&self, claim: Claim) {
        let mut list = self.shared.list.lock();
        match list.iter_mut().find(|held| held.client == claim.client) {
            Some(held) if held.urgency <= claim.urgency => return,
            Some(held) => *held = claim,
            None => list.push(claim),
        }
        drop(list);
        self.tell();
    }

    /// The same claims, on a further try: those who come later join no first try either.
    #[must_use]
    pub fn of_a_retry(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            is_retry: true,
        }
    }

    /// How much the call matters to whom it matters most.
    #[must_use]
    pub fn urgency(&self) -> Urgency {
        let present = self.present();
        let urgencies = present.iter().map(|claim| claim.urgency);
        urgencies.min().expect("who began it has a claim")
    }

    /// The claims there are now.
    #[must_use]
    pub fn present(&self) -> Vec<Claim> {
        let mut present = self.shared.list.lock().clone();
        if self.is_retry {
            for claim in &mut present {
                claim.urgency = claim.urgency.of_a_retry();
            }
        }
        present
    }

    /// Has whoever stands in line for them look again.
    pub(super) fn tell(&self) {
        self.shared.news.notify_one();
    }

    /// Waits until there is something to look at. One at a time may wait: a fill stands in one line at once.
    pub(super) async fn told(&self) {
        self.shared.news.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use Urgency::{Background, CanStandIn, Retry, Waiting};

    fn claims(all: &[(Urgency, &str)]) -> Claims {
        let mut all = all.iter().map(|(urgency, client)| Claim {
            urgency: *urgency,
            client: (*client).into(),
        });
        let claims = Claims::new(all.next().expect("a first one"));
        all.for_each(|claim| claims.add(claim));
        claims
    }

    fn present(claims: &Claims) -> Vec<(Urgency, String)> {
        let present = claims.present();
        let pair = |claim: &Claim| (claim.urgency, claim.client.to_string());
        present.iter().map(pair).collect()
    }

    #[test]
    fn a_client_claims_once_as_urgently_as_it_ever_did() {
        for (all, expected) in [
            (vec![(Waiting, "a"), (Waiting, "a")], vec![(Waiting, "a")]),
            (
                vec![(Waiting, "a"), (CanStandIn, "a")],
                vec![(Waiting, "a")],
            ),
            (
                vec![(CanStandIn, "a"), (Waiting, "a")],
                vec![(Waiting, "a")],
            ),
            (
                vec![(Background, "x"), (Waiting, "a"), (CanStandIn, "b")],
                vec![(Background, "x"), (Waiting, "a"), (CanStandIn, "b")],
            ),
        ] {
            let claims = claims(&all);
            let expected: Vec<_> = expected
                .into_iter()
                .map(|(urgency, client)| (urgency, client.to_owned()))
                .collect();
            assert_eq!(present(&claims), expected, "{all:?}");
            assert_eq!(
                Some(claims.urgency()),
                expected.iter().map(|(urgency, _)| *urgency).min()
            );
        }
    }

    #[test]
    fn who_joins_a_retry_claims_a_retry() {
        let first = claims(&[(Waiting, "a")]);
        let retry = first.of_a_retry();

        first.add(Claim {
            urgency: Waiting,
            client: "b".into(),
        });

        assert_eq!(
            present(&retry),
            [(Retry, "a".to_owned()), (Retry, "b".to_owned())]
        );
        assert_eq!(first.urgency(), Waiting);
    }
}
