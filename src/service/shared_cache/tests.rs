use super::*;
use crate::{
    config::Config,
    domain::{ListId, ListKey, PageQuery, SpaceKey, SpaceToken},
    telemetry::metrics::Metrics,
};

mod model;

use crate::{cache::snapshot::Owners, shared::test_redis::TestRedis};

fn config(base_url: &str) -> Config {
    let text = format!(
        "[upstream]\nbase_url = '{base_url}'\n[upstream.credentials.default]\ntoken = 'token'\n\
         [cache.redis]\nurl = 'redis://127.0.0.1:1'"
    );
    Config::from_toml(&text).unwrap()
}

/// What the first page of a space is called.
fn name(shared_cache: &SharedCache, credentials: &Credentials) -> String {
    let credential = credentials.named("default").unwrap();
    let key = PageKey {
        list: ListKey {
            space: SpaceKey {
                credential: credential.id,
                space: SpaceToken::new("SPACE").unwrap(),
            },
            id: ListId::TASKS,
        },
        query: PageQuery::new(1, 20).unwrap(),
    };
    shared_cache.keys(credential, &key).unwrap().page.value
}

#[test]
fn a_page_is_called_by_who_reads_it_whatever_else_a_reload_has_changed_yet() {
    let [here, there] = ["https://here.example", "https://there.example"].map(config);
    let before = Arc::new(Credentials::load(&here.upstream).unwrap());
    let (after, _) = before.reload(&there.upstream).unwrap();
    let after = Arc::new(after);
    let redis = RedisConnection::new(here.cache.redis, Metrics::new());
    let shared_cache = SharedCache::new(redis, before.clone());

    let keys = [&before, &after].map(|read_by| name(&shared_cache, read_by));
    shared_cache.set_credentials(after.clone());
    let again = [&before, &after].map(|read_by| name(&shared_cache, read_by));

    assert_ne!(keys[0], keys[1], "another upstream has other pages");
    assert_eq!(keys, again);
}

#[test]
fn what_became_of_a_page_is_told_by_what_stood_against_it() {
    let list = |name| SharedList {
        generation: 1,
        name,
        head: ListHead {
            count: None,
            first_row: None,
        },
    };
    let (seen, other) = (list(1), list(2));
    let cases = [
        (true, false, Some(&seen), RedisStore::Stored),
        (false, true, None, RedisStore::Dropped),
        (false, false, Some(&other), RedisStore::Overtaken),
        (false, false, Some(&seen), RedisStore::Fenced),
    ];
    for (is_kept, was_dropped, in_force, outcome) in cases {
        assert_eq!(
            store_outcome(is_kept, was_dropped, in_force, &seen),
            outcome
        );
    }
}

#[test]
fn no_page_is_kept_of_a_space_that_was_refused_a_moment_ago() {
    let Some(server) = TestRedis::start() else {
        return;
    };
    let mut redis = server.connect();
    let keys = RedisKeys {
        owners: Owners::default(),
        space: "space".to_owned(),
        epoch: "epoch".to_owned(),
        list: "list".to_owned(),
        page: LockedNames {
            value: "page".to_owned(),
            lock: "lock".to_owned(),
        },
    };
    let known = Known {
        epoch: 0,
        generation: 0,
    };
    let look = scripts::look(&keys, known, Nonce(1), Wanted::Missing);
    let looked: LookAnswer = look.invoke(&mut redis).unwrap();
    assert_eq!((looked.0, looked.6), (0, 0));

    let refused = scripts::raise("epoch", 0, Some(EPOCH_FOR), true);
    let (epoch, is_kept): (u64, bool) = refused.invoke(&mut redis).unwrap();
    let store = scripts::store(
        &keys,
        &Stored {
            epoch: 0,
            list: &SharedList::default(),
            list_for: EPOCH_FOR,
            token: Some(Nonce(1)),
            value: b"page",
            fresh_until: LARGEST_NUMBER,
            keep_for: LONGEST_PAGE,
        },
    );
    let stored: StoreAnswer = store.invoke(&mut redis).unwrap();

    assert_eq!((stored.0, stored.2), (epoch, false));
    // Clients may invent spaces.
    let left: u64 = redis::cmd("PTTL").arg("epoch").query(&mut redis).unwrap();
    assert!(!is_kept && left <= ms(REFUSED_FOR), "{left}");
}
