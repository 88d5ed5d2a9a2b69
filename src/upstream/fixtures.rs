//! What the tests of this floor begin with.

use super::{Credentials, Need, PageRequest, Waiter, Waiters};
use crate::{
    config::{Config, UpstreamConfig},
    domain::{ListId, PageQuery, SpaceToken},
};

/// `[upstream]` by its defaults, but for what `lines` say.
pub(super) fn config(lines: &str) -> UpstreamConfig {
    let least = "[upstream]\nbase_url = 'https://unpod.example'\ncredentials.default.token = 't'";
    let config = Config::from_toml(&format!("{least}\n{lines}"));
    config.expect("a configuration").upstream
}

/// A request with a credential of its own under [`config`].
pub(super) fn request(lines: &str) -> PageRequest {
    let credentials = Credentials::load(&config(lines)).expect("a token");
    let credential = credentials.named("default").expect("it is named").clone();
    let space = SpaceToken::new("SPACE").expect("a token");
    let query = PageQuery {
        page: 1,
        page_size: 20,
    };
    PageRequest::new(credential, space, ListId::TASKS, query, "test".into())
}

/// The waiters of a fill that one client wants.
pub(super) fn waiters(client: &str, need: Need) -> Waiters {
    Waiters::new(Waiter {
        client: client.into(),
        need,
    })
}
