//! Catching up with Redis after it was lost.

use redis::Script;

use super::{
    STATE_FOR, SharedCache,
    keys::{mark, space_name},
    ms, scripts,
};
use crate::{
    cache::list::Mark,
    domain::{ListKey, SpaceKey},
    service::snapshot::owners,
    shared::{Nonce, Session, Unavailable},
};

/// Lists asked for at once while catching up.
const AT_ONCE: usize = 200;

impl SharedCache {
    /// Tells Redis of the calls of the upstream that this replica made by itself.
    pub(in crate::service) async fn report_calls(
        &self,
        session: &Session,
    ) -> Result<(), Unavailable> {
        let credentials = self.credentials.load_full();
        for credential in credentials.all() {
            if let Some(calls) = credential.budget().shared() {
                calls.report(session).await?;
            }
        }
        Ok(())
    }

    /// Finds which of `lists`, those of a space one after another, are still what this replica knows them as, under the era of `session`: each with its mark there.
    ///
    /// A Redis that has forgotten is told what this replica knows. One that has not is right: a space it knows nothing of may have been
    /// dropped there.
    pub(in crate::service) async fn still(
        &self,
        session: &Session,
        lists: Vec<(ListKey, Option<Mark>, Option<u64>)>,
    ) -> Result<Vec<(ListKey, Option<Mark>)>, Unavailable> {
        let forgot = session
            .before
            .is_some_and(|before| before.birth != session.era.birth);
        let named = self.named(lists);
        let script = Script::new(scripts::STILL);
        let mut found = Vec::with_capacity(named.len());
        let mut fresh: Option<(&SpaceKey, Nonce)> = None;
        for some in named.chunks(AT_ONCE) {
            let mut still = script.prepare_invoke();
            still.arg(ms(STATE_FOR));
            let mut offered = Vec::with_capacity(some.len());
            for (key, mark, generation, name) in some {
                let Some(name) = name else {
                    found.push((key.clone(), None));
                    continue;
                };
                let known = mark.filter(|_| forgot);
                // One for all lists of a space.
                let of_space = fresh.filter(|(space, _)| **space == key.space);
                let (_, unknown) =
                    *fresh.insert(of_space.unwrap_or_else(|| (&key.space, Nonce::fresh())));
                let epoch = known.map_or(unknown, |mark| Nonce(mark.epoch));
                let generation = mark.map(|mark| mark.generation).or(*generation);
                still
                    .key(self.state_key(name))
                    .key(self.list_key(name, &key.id))
                    .arg(epoch)
                    .arg(generation.map_or_else(Nonce::fresh, Nonce))
                    .arg(u8::from(known.is_some()));
                self.remember(name, &key.space, |_| true);
                offered.push((key, mark, name, epoch));
            }
            let answers: Vec<(Nonce, Nonce)> = session.ask(&still).await?;
            for ((key, known, name, offered), (epoch, generation)) in
                offered.into_iter().zip(answers)
            {
                // What nobody else knew until now is what this replica says.
                let same = match known {
                    Some(known) => known.epoch == epoch.0,
                    None => offered == epoch,
                };
                let mark = mark(name, session.era, epoch, generation);
                found.push((key.clone(), same.then_some(mark)));
            }
        }
        Ok(found)
    }

    /// With what the space of each is called in Redis; `None`: its credential is gone.
    fn named(&self, lists: Vec<(ListKey, Option<Mark>, Option<u64>)>) -> Vec<Named> {
        let credentials = self.credentials.load_full();
        let name = |key: &ListKey| {
            let mut all = credentials.all();
            let owner = all.find(|credential| credential.id == key.space.credential)?;
            space_name(&owners(std::iter::once(owner)), &key.space)
        };
        let named = lists.into_iter().map(|(key, mark, generation)| {
            let name = name(&key);
            (key, mark, generation, name)
        });
        named.collect()
    }
}

/// A list, what all replicas knew its state by, what its generation is called, and its space in Redis.
type Named = (ListKey, Option<Mark>, Option<u64>, Option<String>);
