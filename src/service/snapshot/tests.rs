use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;

use super::*;
use crate::{
    cache::PageStore,
    config::Config,
    domain::{ListId, ListKey, PageKey, PageQuery, SpaceKey, SpaceToken},
    telemetry::metrics::Metrics,
};

/// A gateway's parts that a snapshot needs, with its file in `folder`.
fn snapshot(folder: &std::path::Path) -> Arc<Snapshot> {
    let config = Config::from_toml(
        "[upstream]\nbase_url = 'https://unpod.example'\n\
         [upstream.credentials.default]\ntoken = 'token'\n[cache]\nmax_bytes = '1MiB'",
    )
    .unwrap();
    let store = PageStore::new(&config.cache);
    let pages = Pages::new(store, Metrics::new(), Duration::from_secs(1), 1);
    let credentials = Credentials::load(&config.upstream).unwrap();
    Snapshot::new(folder.join("pages"), Arc::new(credentials), pages)
}

/// Small and edge values more often than others.
fn number() -> impl Strategy<Value = u32> {
    prop_oneof![
        0..3_u32,
        Just(20),
        Just(1_000_000),
        Just(u32::MAX),
        any::<u32>()
    ]
}

fn time() -> impl Strategy<Value = u64> {
    let now = unix_ms();
    prop_oneof![
        Just(0),
        Just(u64::MAX),
        Just(now),
        now - 100_000..now + 100_000,
        any::<u64>()
    ]
}

fn body() -> impl Strategy<Value = String> {
    let count = prop_oneof![Just(0), Just(1), Just(u64::MAX), any::<u64>()];
    let list = count.prop_map(|count| {
        format!(r#"{{"count":{count},"status_code":200,"message":"","data":[{{"task_id":"a"}}]}}"#)
    });
    prop_oneof![4 => list, 1 => ".*"]
}

fn header() -> impl Strategy<Value = (HeaderName, HeaderValue)> {
    let name = prop_oneof![
        Just("etag"),
        Just("date"),
        Just("cache-control"),
        Just("age"),
        Just("x-other")
    ];
    let value = prop_oneof![
        Just("max-age=18446744073709551616".to_owned()),
        Just("Fri, 31 Dec 9999 23:59:59 GMT".to_owned()),
        "[ -~]{0,40}",
    ];
    (name, value).prop_map(|(name, value)| {
        (
            HeaderName::from_static(name),
            HeaderValue::try_from(value).unwrap(),
        )
    })
}

prop_compose! {
    fn page(id: crate::domain::CredentialId)(
        page in number(),
        page_size in number(),
        born_unix_ms in time(),
        lifetime_ms in time(),
        headers in prop::collection::vec(header(), 0..4),
        body in body(),
    ) -> SavedPage {
        SavedPage {
            key: PageKey {
                list: ListKey { space: SpaceKey { credential: id, space: SpaceToken::new("SPACE").unwrap() }, id: ListId::TASKS },
                query: PageQuery { page, page_size },
            },
            born_unix_ms,
            lifetime: Duration::from_millis(lifetime_ms),
            headers: headers.into_iter().collect::<HeaderMap>(),
            body: body.into(),
            epoch: 0,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Written by who has the token: the seal is good, whatever stands in the file.
    #[test]
    fn no_value_in_a_well_sealed_file_stops_a_start(
        pages in prop::collection::vec(page(crate::domain::CredentialId(1)), 0..4)
    ) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let snapshot = snapshot(folder.path());
            let credentials = snapshot.credentials.load_full();
            let credential = credentials.named("default").unwrap();
            assert_eq!(credential.id.0, 1, "as the pages have it");
            snapshot::write(&snapshot.path, &snapshot.owners(), pages.clone().into_iter()).unwrap();

            snapshot.restore_pages();

            let (now, service) = (Instant::now(), &snapshot.pages);
            for page in &pages {
                let _ = service.explain(&page.key, credential, now);
                if let Some(cuts) = service.store().cuts(&page.key, now) {
                    let _ = service.store().assemble(&cuts, now);
                }
            }
            let _ = service.largest_spaces(9, &credentials, now);
            assert!(snapshot.write());
        });
    }
}
