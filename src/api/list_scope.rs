//! `X-List-Scope`: how far a list was looked through.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::service::Scope;

const LIST_SCOPE: HeaderName = HeaderName::from_static("x-list-scope");

/// Writes the field.
pub fn write(scope: Scope, headers: &mut HeaderMap) {
    let field = format!("newest={}; of={}", scope.looked_at, scope.count);
    let field = HeaderValue::try_from(field).expect("words and digits are visible ASCII");
    headers.insert(LIST_SCOPE, field);
}
