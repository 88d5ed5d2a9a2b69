//! All credentials: read from the configuration, found by name or by space, and carried over a reload.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use http::HeaderValue;
use secrecy::ExposeSecret;
use tokio::{sync::Semaphore, time::Instant};
use url::{Origin, Url};

use super::{
    call_budget::{BudgetRules, CallBudget},
    circuit::Circuit,
    credential::{Credential, Standing},
};
use crate::{
    config::{CircuitConfig, Problems, UpstreamConfig, upstream::CredentialConfig},
    domain::{CredentialId, SpaceToken},
};

/// The token pair in force of a credential that is no more.
const NONE_IN_FORCE: u64 = u64::MAX;

/// All credentials, by name and by the spaces they serve.
#[derive(Debug)]
pub struct Credentials {
    origin: Url,
    by_name: BTreeMap<String, Arc<Credential>>,
    by_space: HashMap<SpaceToken, Arc<Credential>>,
    default: Option<Arc<Credential>>,
    next_id: u32,
    circuit: CircuitConfig,
    fill_size: u32,
    rules: BudgetRules,
    /// Requests that the upstream gets at once: as many after a reload as before.
    slots: Arc<Semaphore>,
    budgets: Budgets,
}

/// The budget of each token that is configured, or was within the last minute: what was spent with it counts whatever the credential
/// is called, and wherever it was in between.
#[derive(Clone, Debug, Default)]
struct Budgets(HashMap<(Origin, HeaderValue), (Arc<CallBudget>, Instant)>);

impl Budgets {
    fn forget(&mut self, now: Instant) {
        self.0
            .retain(|_, (_, seen)| now.saturating_duration_since(*seen) < CallBudget::MEMORY);
    }

    fn note(&mut self, origin: &Origin, credential: &Credential, now: Instant) {
        for token in credential.tokens() {
            let budget = credential.budget().clone();
            self.0
                .insert((origin.clone(), token.clone()), (budget, now));
        }
    }

    fn of(&self, origin: &Origin, secrets: &Secrets) -> Option<&Arc<CallBudget>> {
        let mut tokens = std::iter::once(&secrets.current).chain(&secrets.next);
        let (budget, _) = tokens.find_map(|token| self.0.get(&(origin.clone(), token.clone())))?;
        Some(budget)
    }
}

/// What a reload means for the pages that were read with the credentials before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Succession {
    /// Another organization or another upstream: none of their pages may be shown.
    pub dropped: Vec<CredentialId>,
    /// A token that was unknown before: what it may see is not known until it has been asked with.
    pub distrusted: Vec<CredentialId>,
}

impl Credentials {
    /// Reads every token, from its file where one is named.
    ///
    /// # Errors
    ///
    /// Returns a problem for each token that cannot be read or sent.
    pub fn load(config: &UpstreamConfig) -> Result<Self, Problems> {
        Self::read(config, None).map(|(credentials, _)| credentials)
    }

    /// Reads every token anew. A credential that is the same user as before keeps its pages, quota and standing. Changes nothing of
    /// what is in force: see [`Credentials::succeed`].
    ///
    /// # Errors
    ///
    /// As [`Credentials::load`].
    pub fn reload(&self, config: &UpstreamConfig) -> Result<(Self, Succession), Problems> {
        Self::read(config, Some(self))
    }

    /// Puts these in force in the place of `before`, whose calls under way are heard no more where their tokens are others.
    pub fn succeed(&self, before: &Self) {
        for old in before.all() {
            let goes_on = |new: &Arc<Credential>| Arc::ptr_eq(&new.standing, &old.standing);
            if !self.by_name.get(&old.name).is_some_and(goes_on) {
                old.standing.put_in_force(NONE_IN_FORCE);
            }
        }
        for new in self.all() {
            // A call may have found since they were read that the other token is the good one.
            let old = before.by_name.get(&new.name);
            let prefers_next = goes_on_with(old, new.next.as_ref());
            new.prefers_next.store(prefers_next, Ordering::Relaxed);
            new.standing.put_in_force(new.token_pair);
            new.budget().configure(self.rules);
        }
    }

    fn read(
        config: &UpstreamConfig,
        before: Option<&Self>,
    ) -> Result<(Self, Succession), Problems> {
        let mut problems = Problems::default();
        let mut all = Self {
            origin: config.base_url().clone(),
            by_name: BTreeMap::new(),
            by_space: HashMap::new(),
            default: None,
            next_id: before.map_or(0, |before| before.next_id),
            circuit: config.circuit.clone(),
            fill_size: config.fill_size,
            rules: BudgetRules::new(config),
            slots: match before {
                Some(before) => before.slots.clone(),
                None => Arc::new(Semaphore::new(config.max_concurrency)),
            },
            budgets: before.map(Self::known_budgets).unwrap_or_default(),
        };
        let (origin, now) = (all.origin.origin(), Instant::now());
        for (name, section) in &config.credentials {
            let Some(secrets) = Secrets::read(name, section, &mut problems) else {
                continue;
            };
            let known = before.and_then(|before| before.by_name.get(name));
            let credential = all.credential(name, secrets, known, before);
            // Two credentials of one token spend from one budget.
            all.budgets.note(&origin, &credential, now);
            let spaces = section.spaces.iter();
            all.by_space.extend(
                spaces.filter_map(|space| Some((SpaceToken::new(space).ok()?, credential.clone()))),
            );
            all.by_name.insert(name.clone(), credential);
        }
        all.default = all.by_name.get("default").cloned();
        if !problems.is_empty() {
            return Err(problems);
        }
        let succession = before.map(|before| before.succession(&all));
        Ok((all, succession.unwrap_or_default()))
    }

    fn known_budgets(&self) -> Budgets {
        let now = Instant::now();
        let mut budgets = self.budgets.clone();
        budgets.forget(now);
        for credential in self.all() {
            budgets.note(&self.origin.origin(), credential, now);
        }
        budgets
    }

    fn credential(
        &mut self,
        name: &str,
        secrets: Secrets,
        known: Option<&Arc<Credential>>,
        before: Option<&Self>,
    ) -> Arc<Credential> {
        let same_origin = before.is_some_and(|before| before.origin == self.origin);
        let same_user = known.filter(|known| same_origin && known.org_handle == secrets.org_handle);
        let id = same_user.map(|known| known.id).unwrap_or_else(|| {
            self.next_id += 1;
            CredentialId(self.next_id)
        });
        let standing = match same_user {
            Some(known) => known.standing.clone(),
            None => Arc::new(Standing::new()),
        };
        let budget = self.budget(&secrets, known, before);
        let same_circuit = before.is_some_and(|before| before.circuit == self.circuit);
        let circuit = match same_user.filter(|_| same_circuit) {
            Some(known) => known.circuit.clone(),
            None => Arc::new(Circuit::new(&self.circuit)),
        };
        let token_pair = same_user.map_or(0, |known| {
            let unchanged = known.current == secrets.current && known.next == secrets.next;
            known.token_pair + u64::from(!unchanged)
        });
        let prefers_next = goes_on_with(known, secrets.next.as_ref());
        Arc::new(Credential {
            id,
            name: name.to_owned(),
            org_handle: secrets.org_handle,
            origin: self.origin.clone(),
            current: secrets.current,
            next: secrets.next,
            prefers_next: AtomicBool::new(prefers_next),
            token_pair,
            standing,
            budget,
            circuit,
            fill_size: self.fill_size,
        })
    }

    /// The quota is the token's, whatever the organization; and the account's, whatever the token.
    fn budget(
        &self,
        secrets: &Secrets,
        known: Option<&Arc<Credential>>,
        before: Option<&Self>,
    ) -> Arc<CallBudget> {
        let origin = self.origin.origin();
        let same_place = before.is_some_and(|before| before.origin.origin() == origin);
        let of_account = || known.filter(|_| same_place).map(|known| known.budget());
        let budget = self
            .budgets
            .of(&origin, secrets)
            .or_else(of_account)
            .cloned();
        budget.unwrap_or_else(|| Arc::new(CallBudget::new(self.rules, self.slots.clone())))
    }

    /// What became of these credentials in `after`.
    fn succession(&self, after: &Self) -> Succession {
        let mut succession = Succession::default();
        for old in self.all() {
            match after.by_name.get(&old.name).filter(|new| new.id == old.id) {
                None => succession.dropped.push(old.id),
                Some(new) if !old.has(new.authorization(new.preferred())) => {
                    succession.distrusted.push(old.id);
                }
                Some(_) => {}
            }
        }
        succession
    }

    /// The upstream they are good for.
    #[must_use]
    pub fn origin(&self) -> &Url {
        &self.origin
    }

    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Arc<Credential>> {
        self.by_name.get(name)
    }

    /// The credential that serves `space`: the one that names it, else the default.
    #[must_use]
    pub fn serving(&self, space: &SpaceToken) -> Option<&Arc<Credential>> {
        self.by_space.get(space).or(self.default.as_ref())
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<Credential>> {
        self.by_name.values()
    }
}

/// Whether the token that `old` has in use is `next`: what is in use stays so, wherever it stands in the configuration.
fn goes_on_with(old: Option<&Arc<Credential>>, next: Option<&HeaderValue>) -> bool {
    old.is_some_and(|old| Some(old.authorization(old.preferred())) == next)
}

/// What one section of the configuration says, ready to send.
struct Secrets {
    current: HeaderValue,
    next: Option<HeaderValue>,
    org_handle: Option<HeaderValue>,
}

impl Secrets {
    fn read(name: &str, section: &CredentialConfig, problems: &mut Problems) -> Option<Self> {
        let key = format!("upstream.credentials.{name}");
        let mut token = |read: Result<Option<_>, (&str, String)>| match read {
            Ok(token) => token.map(|token: secrecy::SecretString| {
                let text = format!("Token {}", token.expose_secret());
                let mut value = HeaderValue::try_from(text).expect("a token is visible ASCII");
                value.set_sensitive(true);
                value
            }),
            Err((part, text)) => {
                problems.add(format!("{key}.{part}"), text);
                None
            }
        };
        let current = token(section.read_token().map(Some));
        let next = token(section.read_next_token());
        let org_handle = section.org_handle.as_deref().map(|handle| {
            HeaderValue::from_str(handle).expect("a loaded configuration's handle is visible ASCII")
        });
        Some(Self {
            // While both are the same there is nothing to fall back to.
            next: next.filter(|next| Some(next) != current.as_ref()),
            current: current?,
            org_handle,
        })
    }
}

#[cfg(test)]
mod tests;
