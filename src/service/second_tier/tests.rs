use super::*;
use crate::{config::Config, domain::PageQuery, telemetry::metrics::Metrics};

fn config(base_url: &str) -> Config {
    let text = format!(
        "[upstream]\nbase_url = '{base_url}'\n[upstream.credentials.default]\ntoken = 'token'\n\
         [cache.redis]\nurl = 'redis://127.0.0.1:1'"
    );
    Config::from_toml(&text).unwrap()
}

/// What the first page of a space is called.
fn name(second_tier: &SecondTier, credentials: &Credentials) -> String {
    let credential = credentials.named("default").unwrap();
    let key = PageKey {
        space: SpaceKey {
            credential: credential.id,
            space: SpaceToken::new("SPACE").unwrap(),
        },
        query: PageQuery::new(1, 20).unwrap(),
    };
    second_tier.names(credential, &key).unwrap().page
}

#[test]
fn a_page_is_called_by_who_reads_it_whatever_else_a_reload_has_changed_yet() {
    let [here, there] = ["https://here.example", "https://there.example"].map(config);
    let before = Arc::new(Credentials::load(&here.upstream).unwrap());
    let (after, _) = before.reload(&there.upstream).unwrap();
    let after = Arc::new(after);
    let link = Link::new(here.cache.redis, Metrics::new());
    let second_tier = SecondTier::new(link, before.clone());

    let names = [&before, &after].map(|read_by| name(&second_tier, read_by));
    second_tier.set_credentials(after.clone());
    let again = [&before, &after].map(|read_by| name(&second_tier, read_by));

    assert_ne!(names[0], names[1], "another upstream has other pages");
    assert_eq!(names, again);
}
