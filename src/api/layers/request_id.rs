//! A request's id: the client's own if it is fit, else a new one.
//!
//! Of our own, since tower-http's layer keeps whatever the client sent.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::domain::hex::write_hex;

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The id of the request with these `headers`.
pub(super) fn request_id(headers: &HeaderMap) -> HeaderValue {
    let given = headers.get(REQUEST_ID).filter(|value| is_fit(value));
    given.cloned().unwrap_or_else(new_id)
}

pub(super) fn text(id: &HeaderValue) -> &str {
    id.to_str().unwrap_or_default()
}

fn is_fit(value: &HeaderValue) -> bool {
    let bytes = value.as_bytes();
    let is_fit = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    (1..=64).contains(&bytes.len()) && bytes.iter().all(is_fit)
}

/// 128 random bits in hex: ids need to differ, not to be secret.
fn new_id() -> HeaderValue {
    let mut digits = [0; 32];
    write_hex(&fastrand::u128(..).to_ne_bytes(), &mut digits);
    // Owned, so that the first copy allocates nothing.
    let digits = Bytes::from_owner(digits);
    HeaderValue::from_maybe_shared(digits).expect("hex digits are visible ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fit_request_id_is_kept_and_any_other_replaced() {
        let kept = |text: &str| {
            let given = HeaderValue::from_str(text).unwrap();
            let headers = HeaderMap::from_iter([(REQUEST_ID, given.clone())]);
            request_id(&headers) == given
        };
        assert!(kept("a.B-9_z") && kept(&"x".repeat(64)));
        for bad in ["", "a b", "ä", "a/b", "\"", &"x".repeat(65)] {
            assert!(!kept(bad), "{bad}");
        }
        let none = HeaderMap::new();
        assert_ne!(request_id(&none), request_id(&none));
    }
}
