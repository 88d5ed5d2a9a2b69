//! What the tests of this floor begin with.

use http::HeaderValue;
use tokio::time::Instant;

use super::{
    AcquiredCall, Calls, Credentials, LastError, Need, PageRequest, Sent, TokenSlot, Validators,
    Waiter, Waiters,
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
        call: AcquiredCall::default(),
        is_retry: false,
        sent: Sent::default(),
        calls: Calls::default(),
        last_error: LastError::default(),
        trace: TraceContext::default(),
    }
}

/// The waiters of a fill that one client wants.
pub(super) fn waiters(client: &str, need: Need) -> Waiters {
    Waiters::new(Waiter {
        client: client.into(),
        need,
    })
}
