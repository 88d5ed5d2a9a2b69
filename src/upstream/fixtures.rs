//! What the tests of this floor begin with.

use http::HeaderValue;
use tokio::time::Instant;

use super::{
    Calls, Credentials, LastError, PageRequest, Priority, Sent, TokenSlot, Validators, Waiter,
    Waiters,
};
use crate::{
    config::{Config, UpstreamConfig},
    domain::{ListId, PageQuery, SpaceToken},
    telemetry::traces::TraceContext,
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
    PageRequest {
        credential: credentials.named("default").expect("it is named").clone(),
        token: TokenSlot::Current,
        space: SpaceToken::new("SPACE").expect("a token"),
        list: ListId::TASKS,
        query: PageQuery {
            page: 1,
            page_size: 20,
        },
        validators: Validators::default(),
        request_id: HeaderValue::from_static("test"),
        began: Instant::now(),
        cause: "test".into(),
        waiters: waiters(Priority::Waiting, "test"),
        sent: Sent::default(),
        calls: Calls::default(),
        last_error: LastError::default(),
        trace: TraceContext::default(),
    }
}

/// The waiters of a request that one client waits for.
pub(super) fn waiters(priority: Priority, client: &str) -> Waiters {
    Waiters::new(Waiter {
        priority,
        client: client.into(),
    })
}
