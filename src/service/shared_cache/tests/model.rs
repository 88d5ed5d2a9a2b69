//! `docs/replicas.md`, checked: the stores of several replicas and a real Redis, in random interleavings of fills, moves, purges, lost connections,
//! restarts, and a Redis that loses its last writes or all of them.

use bytes::Bytes;
use http::HeaderMap;
use proptest::{collection::vec, prelude::*};
use redis::Connection;
use tokio::time::Instant;

use super::super::*;
use crate::{
    cache::{
        PageStore, Received,
        list::{Began, StateNames},
        snapshot::Owners,
        store::StoreDecision,
    },
    config::Config,
    domain::{CredentialId, ListId, ListKey, PageQuery, SpaceKey, SpaceToken},
    shared::test_redis::TestRedis,
};

const REPLICAS: usize = 3;
const PAGES: usize = 2;
/// What may be evicted.
const EVICTED: [&str; 4] = ["epoch", "list", "page:1", "page:2"];
const HOUR: Duration = Duration::from_secs(3600);

#[derive(Clone, Debug)]
enum Step {
    /// A row is added at the head of the list.
    Move,
    /// A client asks a replica for a page; forced: for a new one.
    Begin(usize, usize, bool),
    /// The upstream answers one of the calls under way: what it answers then is as of now.
    Answer(prop::sample::Index),
    /// A fill ends.
    End(prop::sample::Index),
    Purge(usize),
    /// A replica reads the log.
    Read(usize),
    Disconnect(usize),
    Reconnect(usize),
    SendPending(usize),
    Restart(usize),
    /// Locks run out.
    Expire,
    /// Redis has no room for a key.
    Evict(usize),
    /// The copy takes over has what Redis has now, or what it had then.
    Copy,
    FailOver,
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    let replica = 0..REPLICAS;
    prop_oneof![
        2 => Just(Step::Move),
        8 => (replica.clone(), 0..PAGES, any::<bool>()).prop_map(|(r, p, f)| Step::Begin(r, p, f)),
        3 => any::<prop::sample::Index>().prop_map(Step::Answer),
        6 => any::<prop::sample::Index>().prop_map(Step::End),
        2 => replica.clone().prop_map(Step::Purge),
        6 => replica.clone().prop_map(Step::Read),
        2 => replica.clone().prop_map(Step::Disconnect),
        3 => replica.clone().prop_map(Step::Reconnect),
        1 => replica.clone().prop_map(Step::SendPending),
        1 => replica.prop_map(Step::Restart),
        1 => Just(Step::Expire),
        1 => (0..EVICTED.len()).prop_map(Step::Evict),
        2 => Just(Step::Copy),
        1 => Just(Step::FailOver),
        1 => Just(Step::Flush),
    ]
}

struct Replica {
    store: PageStore,
    drops: Drops,
    /// The id of the last entry of the log that it read.
    position: u64,
    is_connected: bool,
}

struct Fill {
    replica: usize,
    page: usize,
    began: Began,
    /// When its call was sent: its page is of a space that was dropped later, or not.
    sent: u64,
    answer: Option<Bytes>,
    token: Option<Nonce>,
}

type Backup = (Vec<(Vec<u8>, Vec<u8>)>, usize);

struct World {
    redis: Connection,
    log: Vec<(u64, Event)>,
    entries: u64,
    replicas: Vec<Replica>,
    fills: Vec<Fill>,
    keys: [(PageKey, RedisKeys); PAGES],
    count: u64,
    now: u64,
    purged: u64,
    /// When the call of the page was sent that Redis took last, in its epoch and generation.
    taken: [(u64, u64, u64); PAGES],
    backup: Option<Backup>,
    /// Redis has lost writes that some replica must still tell it of.
    is_behind: bool,
}

fn space() -> SpaceKey {
    SpaceKey {
        credential: CredentialId(0),
        space: SpaceToken::new("SPACE").unwrap(),
    }
}

fn keys(number: u32) -> (PageKey, RedisKeys) {
    let key = PageKey {
        list: ListKey {
            space: space(),
            id: ListId::TASKS,
        },
        query: PageQuery::new(number, 20).unwrap(),
    };
    let redis = RedisKeys {
        owners: Owners::default(),
        space: "space".to_owned(),
        epoch: "epoch".to_owned(),
        list: "list".to_owned(),
        page: LockedNames {
            value: format!("page:{number}"),
            lock: format!("lock:{number}"),
        },
    };
    (key, redis)
}

impl Replica {
    fn new() -> Self {
        let text = "[upstream]\nbase_url = 'https://upstream.example'\n\
                    [upstream.credentials.default]\ntoken = 'token'\n[cache]\nttl = '1h'";
        let store = PageStore::new(&Config::from_toml(text).unwrap().cache);
        let names = StateNames::new(&[7; blake3::KEY_LEN]);
        store.set_names(HashMap::from([(CredentialId(0), names)]));
        store.share_epochs();
        Self {
            store,
            drops: Drops::default(),
            position: 0,
            is_connected: true,
        }
    }

    fn hear(&mut self, event: &Event) {
        let now = Instant::now();
        match event {
            Event::Dropped {
                space: of, epoch, ..
            } => {
                self.store.hear_drop(&space(), *epoch, false, now);
                self.drops.add(of, *epoch, false);
            }
            Event::Moved { epoch, state, .. } => {
                let list = ListKey {
                    space: space(),
                    id: ListId::TASKS,
                };
                self.store.hear_list(&list, *epoch, state, now);
            }
            Event::Purged { .. } | Event::Unwanted { .. } | Event::Filled { .. } => {}
        }
    }

    fn read(&mut self, log: &[(u64, Event)]) {
        let newest = log.last().map_or(0, |(id, _)| *id);
        if newest < self.position {
            self.position = 0;
        }
        for (id, event) in log {
            if *id > self.position {
                self.hear(event);
            }
        }
        self.position = newest;
    }

    /// When the call was sent for a page that it may show.
    fn shows(&self, key: &PageKey) -> Option<u64> {
        self.store
            .get(key)
            .map(|page| sent(&page.content.page().body))
    }
}

fn sent(body: &[u8]) -> u64 {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap();
    body["sent"].as_u64().unwrap()
}

fn dropped(epoch: u64) -> Event {
    Event::Dropped {
        space: "space".to_owned(),
        epoch,
        refused: false,
    }
}

impl World {
    fn new(mut redis: Connection) -> Self {
        let _: () = redis::cmd("FLUSHALL").query(&mut redis).unwrap();
        Self {
            redis,
            log: Vec::new(),
            entries: 0,
            replicas: (0..REPLICAS).map(|_| Replica::new()).collect(),
            fills: Vec::new(),
            keys: [keys(1), keys(2)],
            count: 30,
            now: 1,
            purged: 0,
            taken: [(0, 0, 0); PAGES],
            backup: None,
            is_behind: false,
        }
    }

    fn run(&mut self, step: &Step) {
        self.now += 1;
        match step {
            Step::Move => self.count += 1,
            Step::Begin(replica, page, is_forced) => self.begin(*replica, *page, *is_forced),
            Step::Answer(which) if !self.fills.is_empty() => {
                let place = which.index(self.fills.len());
                self.answer(place);
            }
            Step::End(which) if !self.fills.is_empty() => {
                let fill = self.fills.swap_remove(which.index(self.fills.len()));
                self.end(fill);
            }
            Step::Answer(_) | Step::End(_) => {}
            Step::Purge(replica) => self.purge(*replica),
            Step::Read(replica) if self.replicas[*replica].is_connected => {
                self.replicas[*replica].read(&self.log);
            }
            Step::Read(_) => {}
            Step::Disconnect(replica) => self.replicas[*replica].is_connected = false,
            Step::Reconnect(replica) => self.reconnect(*replica),
            Step::SendPending(replica) => self.send_pending(*replica),
            Step::Restart(replica) => self.restart(*replica),
            Step::Expire => {
                let locks = self.keys.clone().map(|(_, keys)| keys.page.lock);
                let _: () = redis::cmd("DEL")
                    .arg(&locks)
                    .query(&mut self.redis)
                    .unwrap();
            }
            // An epoch is no older than a fill under way: one whose drop nobody knows any more would be kept.
            Step::Evict(0) if self.fills.iter().any(|fill| fill.sent < self.purged) => {}
            Step::Evict(key) => {
                let _: () = redis::cmd("DEL")
                    .arg(EVICTED[*key])
                    .query(&mut self.redis)
                    .unwrap();
            }
            Step::Copy => self.backup = Some(self.copy()),
            Step::FailOver => self.fail_over(),
            Step::Flush => {
                self.backup = Some((Vec::new(), 0));
                self.fail_over();
            }
        }
    }

    /// Unless that is a second failure: it alone knows what Redis has lost or was not told.
    fn restart(&mut self, replica: usize) {
        let newest = self.log.last().map_or(0, |(id, _)| *id);
        let mut others = self.replicas.iter().enumerate();
        let is_known = others
            .any(|(other, one)| other != replica && one.is_connected && one.position == newest);
        if is_known && !self.is_behind && self.replicas[replica].drops.pending.count() == 0 {
            self.fills.retain(|fill| fill.replica != replica);
            let mut fresh = Replica::new();
            fresh.read(&self.log);
            self.replicas[replica] = fresh;
        }
    }

    fn begin(&mut self, replica: usize, page: usize, is_forced: bool) {
        let (key, keys) = self.keys[page].clone();
        let (now, store) = (Instant::now(), &self.replicas[replica].store);
        let stored = store.get(&key);
        if !is_forced && stored.is_some_and(|page| page.moved_at().is_none()) {
            return;
        }
        // What is heard of a space and a list is kept by who holds them.
        let _list = store.begin(key.clone(), now);
        let mut token = None;
        if self.replicas[replica].is_connected {
            let (epoch, generation) = store.known_numbers(&key);
            let (known, taken) = (Known { epoch, generation }, Nonce::fresh());
            let wanted = match is_forced {
                true => Wanted::Newest,
                false => Wanted::Missing,
            };
            let look = scripts::look(&keys, known, taken, wanted);
            let answer: LookAnswer = look.invoke(&mut self.redis).unwrap();
            let (epoch, generation, name, count, first, value, held) = answer;
            store.hear_drop(&key.list.space, epoch, false, now);
            let list = shared_list(generation, name, count, first);
            if let Some(list) = &list {
                store.hear_list(&key.list, epoch, list, now);
            }
            token = (held == 0).then_some(taken);
            if let (Some(value), Some(list), false) = (value, list, is_forced) {
                self.take(replica, page, &value, epoch, list.name);
                if let Some(token) = token {
                    let unlock = scripts::unlock(&keys.page.lock, token);
                    let _: u8 = unlock.invoke(&mut self.redis).unwrap();
                }
                return;
            }
            if held > 0 {
                return;
            }
        }
        let began = self.replicas[replica].store.begin(key, Instant::now());
        self.fills.push(Fill {
            replica,
            page,
            began,
            sent: self.now,
            answer: None,
            token,
        });
    }

    /// Takes over a page of another replica.
    fn take(&mut self, replica: usize, page: usize, value: &[u8], epoch: u64, name: u64) {
        let (key, _) = self.keys[page].clone();
        let (now, store) = (Instant::now(), &self.replicas[replica].store);
        let began = store.begin_shared(key.clone(), name, now);
        let Some(began) = began.filter(|began| began.epoch() == epoch) else {
            return;
        };
        let saved = SavedPage {
            key,
            born_unix_ms: 0,
            lifetime: HOUR,
            headers: HeaderMap::new(),
            body: Bytes::copy_from_slice(value),
            epoch,
        };
        let read = read_page(&saved.body).unwrap();
        store.take_shared(&began, &saved, read, Duration::ZERO, now, 0);
    }

    fn answer(&mut self, place: usize) {
        let (count, fill) = (self.count, &mut self.fills[place]);
        let first = count - 20 * fill.page as u64;
        let row = format!("{{\"task_id\":\"t{first}\"}}");
        let body = format!(
            "{{\"count\":{count},\"sent\":{},\"data\":[{row}]}}",
            fill.sent
        );
        fill.answer.get_or_insert(body.into());
    }

    fn end(&mut self, mut fill: Fill) {
        let place = self.fills.len();
        self.fills.push(fill);
        self.answer(place);
        fill = self.fills.pop().unwrap();
        let (key, keys) = self.keys[fill.page].clone();
        let (now, headers) = (Instant::now(), HeaderMap::new());
        let replica = &mut self.replicas[fill.replica];
        let received = Received {
            headers: &headers,
            received: now,
            received_unix: 0,
            response_delay: Duration::ZERO,
        };
        let body = fill.answer.unwrap();
        let page = read_page(&body).unwrap();
        let kept = replica
            .store
            .put(&fill.began, page, &received, StoreDecision::Store);
        if !replica.is_connected {
            return;
        }
        let Some(shared) = replica.store.share(&key, &kept.page, now, 0) else {
            if let Some(token) = fill.token {
                let unlock = scripts::unlock(&keys.page.lock, token);
                let _: u8 = unlock.invoke(&mut self.redis).unwrap();
            }
            return;
        };
        let (epoch, list) = (shared.page.epoch, shared.list);
        let store = scripts::store(
            &keys,
            &Stored {
                epoch,
                list: &list,
                list_for: HOUR,
                token: fill.token,
                value: &body,
                fresh_until: u64::MAX >> 12,
                keep_for: HOUR,
            },
        );
        let answer: StoreAnswer = store.invoke(&mut self.redis).unwrap();
        let (in_force, was_behind, _, generation, name, count, first) = answer;
        replica.store.hear_drop(&space(), in_force, false, now);
        let state = shared_list(generation, name, count, first);
        if was_behind {
            self.append(dropped(epoch));
        }
        if let Some(state) = state {
            let replica = &self.replicas[fill.replica];
            replica.store.hear_list(&key.list, in_force, &state, now);
            if in_force == epoch && state.name == list.name && state.generation > list.generation {
                self.append(Event::Moved {
                    space: keys.space.clone(),
                    epoch,
                    list: "tasks".to_owned(),
                    state,
                });
            }
        }
        self.check_taken(fill.page);
    }

    /// No page replaces one whose call was sent later.
    fn check_taken(&mut self, page: usize) {
        let (_, keys) = &self.keys[page];
        let kept: (Option<u64>, Option<u64>, Option<Vec<u8>>) = redis::cmd("HMGET")
            .arg(&keys.page.value)
            .arg(&["epoch", "generation", "page"])
            .query(&mut self.redis)
            .unwrap();
        if let (Some(epoch), Some(generation), Some(body)) = kept {
            let (sent, before) = (sent(&body), self.taken[page]);
            if (epoch, generation) == (before.0, before.1) {
                assert!(sent >= before.2, "an older page replaced a younger");
            }
            self.taken[page] = (epoch, generation, sent);
        }
    }

    fn purge(&mut self, replica: usize) {
        self.purged = self.now;
        self.replicas[replica].store.purge_space(&space().space);
        match self.replicas[replica].is_connected {
            true => self.raise(replica),
            false => self.replicas[replica]
                .drops
                .add_pending("space".to_owned(), false),
        }
    }

    fn raise(&mut self, replica: usize) {
        let replica = &mut self.replicas[replica];
        let known = replica
            .drops
            .spaces
            .get("space")
            .map_or(0, |known| known.epoch);
        let raise = scripts::raise("epoch", known, Some(HOUR), false);
        let (epoch, _): (u64, bool) = raise.invoke(&mut self.redis).unwrap();
        replica.hear(&dropped(epoch));
        self.append(dropped(epoch));
    }

    fn send_pending(&mut self, replica: usize) {
        let pending = &mut self.replicas[replica];
        if pending.is_connected && pending.drops.pending.spaces.remove("space").is_some() {
            self.raise(replica);
        }
    }

    fn reconnect(&mut self, replica: usize) {
        if self.replicas[replica].is_connected {
            return;
        }
        for (_, known) in self.replicas[replica].drops.spaces.clone() {
            let assertion = scripts::assert_epoch("epoch", known.epoch, Some(HOUR), false);
            let (epoch, is_news, _): scripts::AssertAnswer =
                assertion.invoke(&mut self.redis).unwrap();
            if is_news {
                self.append(dropped(epoch));
            }
        }
        let replica = &mut self.replicas[replica];
        replica.read(&self.log);
        replica.is_connected = true;
        if self.replicas.iter().all(|replica| replica.is_connected) {
            self.is_behind = false;
        }
    }

    /// Ids are of the time: none is given twice, whatever Redis has lost.
    fn append(&mut self, event: Event) {
        self.entries += 1;
        self.log.push((self.entries, event));
    }

    fn copy(&mut self) -> Backup {
        let keys: Vec<Vec<u8>> = redis::cmd("KEYS").arg("*").query(&mut self.redis).unwrap();
        let mut copied = Vec::new();
        for key in keys {
            let value: Vec<u8> = redis::cmd("DUMP").arg(&key).query(&mut self.redis).unwrap();
            copied.push((key, value));
        }
        (copied, self.log.len())
    }

    fn fail_over(&mut self) {
        let Some((copied, length)) = self.backup.take() else {
            return;
        };
        let _: () = redis::cmd("FLUSHALL").query(&mut self.redis).unwrap();
        for (key, value) in copied {
            let mut restore = redis::cmd("RESTORE");
            restore.arg(key).arg(3_600_000).arg(value);
            let _: () = restore.query(&mut self.redis).unwrap();
        }
        self.log.truncate(length);
        self.taken = [(0, 0, 0); PAGES];
        self.is_behind = true;
        for replica in &mut self.replicas {
            replica.is_connected = false;
        }
    }

    /// All are connected and have heard everything; every fill has ended.
    fn settle(&mut self) {
        self.now += 1;
        (0..REPLICAS).for_each(|replica| self.reconnect(replica));
        (0..REPLICAS).for_each(|replica| self.send_pending(replica));
        for replica in &mut self.replicas {
            replica.read(&self.log);
        }
        for fill in std::mem::take(&mut self.fills) {
            self.end(fill);
        }
        for replica in &mut self.replicas {
            replica.read(&self.log);
        }
    }

    fn check(&mut self) {
        for (key, keys) in self.keys.clone() {
            for replica in &self.replicas {
                let shown = replica.shows(&key);
                assert!(
                    shown.is_none_or(|sent| sent >= self.purged),
                    "a replica shows a page from before a purge"
                );
            }
            // What a replica finds that knows nothing.
            let (epoch, generation) = (0, 0);
            let known = Known { epoch, generation };
            let look = scripts::look(&keys, known, Nonce(1), Wanted::Missing);
            let answer: LookAnswer = look.invoke(&mut self.redis).unwrap();
            let found = answer.5.map(|body| sent(&body));
            assert!(
                found.is_none_or(|sent| sent >= self.purged),
                "Redis has a page from before a purge"
            );
        }
        // Once each has asked anew, and heard what Redis had lost, all know one state.
        self.run(&Step::Expire);
        for replica in (0..REPLICAS).chain(0..REPLICAS) {
            self.run(&Step::Begin(replica, 0, true));
            self.settle();
        }
        let known = |replica: &Replica| {
            let key = &self.keys[0].0;
            let page = replica.store.get(key).unwrap();
            assert!(page.moved_at().is_none(), "{page:?}");
            (replica.store.known_numbers(key), page.content.count)
        };
        let known: Vec<_> = self.replicas.iter().map(known).collect();
        assert!(known.iter().all(|one| *one == known[0]), "{known:?}");
    }
}

#[test]
fn whatever_happens_in_whatever_order_replicas_come_to_the_same_and_show_nothing_that_was_purged() {
    let Some(redis) = TestRedis::start() else {
        return;
    };
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(steps in vec(step(), 1..60))| {
        let mut world = World::new(redis.connect());
        for step in &steps {
            world.run(step);
        }
        world.settle();
        world.check();
    });
}
