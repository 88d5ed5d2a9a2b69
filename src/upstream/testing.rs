//! What the tests of the stack ask with.

use std::sync::Arc;

use http::HeaderValue;

use super::{Credential, Credentials, PageRequest, TokenSlot, Urgency, Validators};
use crate::{
    config::Config,
    domain::{PageQuery, SpaceToken},
};

/// The credential of `tokens`, TOML within its section.
pub(super) fn credential(tokens: &str) -> Arc<Credential> {
    let config = Config::from_toml(&format!(
        "[upstream]\nbase_url = \"https://unpod.example\"\n[upstream.credentials.default]\n{tokens}"
    ))
    .unwrap();
    let credentials = Credentials::load(&config.upstream).unwrap();
    credentials.named("default").unwrap().clone()
}

/// A request with `credential` on which nothing depends.
pub(super) fn request_with(credential: Arc<Credential>) -> PageRequest {
    PageRequest {
        token: TokenSlot::Current,
        credential,
        space: SpaceToken::new("SPACE").unwrap(),
        query: PageQuery {
            page: 1,
            page_size: 20,
        },
        validators: Validators::default(),
        request_id: HeaderValue::from_static("test"),
        cause: "test".into(),
        urgency: Urgency::Waiting,
    }
}

/// A request on which nothing depends.
pub(super) fn any_request() -> PageRequest {
    request_with(credential("token = \"0123456789abcdef\""))
}
