//! Every captured answer of the vendor's own server, byte for byte, and what a client gets for it.

use crate::{
    gateway::{Gateway, setup},
    raw::RawUpstream,
};

/// A capture's name and the code of what comes out; none where it is a page.
const CAPTURES: [(&str, Option<&str>); 49] = [
    ("access-none-other-space", Some("space_access_denied")),
    ("access-viewer", Some("space_access_denied")),
    ("auth-bad-token", Some("upstream_auth_failed")),
    ("auth-fr", Some("upstream_auth_failed")),
    ("auth-missing", Some("upstream_auth_failed")),
    ("h-accept-html", Some("upstream_failed")),
    ("m-post-empty", Some("upstream_rejected")),
    ("noslash", Some("upstream_failed")),
    ("ok-beyond-end", None),
    ("ok-last-page", None),
    ("ok-page1-size20", None),
    ("page-zero", Some("upstream_rejected")),
    ("path-unknown", Some("upstream_failed")),
    ("q-space_id-override", None),
    ("runs-access-no-role", Some("space_access_denied")),
    ("runs-access-unknown", Some("space_not_found")),
    ("runs-access-viewer", Some("space_access_denied")),
    ("runs-auth-bad-token", Some("upstream_auth_failed")),
    ("runs-noslash", Some("upstream_failed")),
    ("runs-ok-beyond-end", None),
    ("runs-ok-last-page", None),
    ("runs-ok-page1-size10", None),
    ("runs-ok-page2-size10", None),
    ("runs-page-zero", Some("upstream_rejected")),
    ("runs-q-space_id-override", None),
    ("runs-up-200nulldata", Some("upstream_invalid_response")),
    ("runs-up-429", Some("upstream_failed")),
    ("runs-up-500text", Some("upstream_failed")),
    ("runtasks-id-question-space_id", None),
    ("runtasks-ok-last-page", None),
    ("runtasks-ok-page1-size5", None),
    ("runtasks-page-zero", Some("upstream_rejected")),
    ("runtasks-poison", Some("upstream_failed")),
    ("runtasks-run-of-other-space", None),
    ("runtasks-unknown-run", None),
    ("runtasks-up-500json", Some("upstream_failed")),
    ("size-1", None),
    ("space-empty", None),
    ("space-poison", Some("upstream_failed")),
    ("space-unknown", Some("space_not_found")),
    ("tasks-insert-before-page1", None),
    ("tasks-insert-before-page2", None),
    ("tasks-insert-between-size-100-page3", None),
    ("tasks-insert-middle-page1", None),
    ("tasks-insert-middle-page2", None),
    ("up-200nulldata", Some("upstream_invalid_response")),
    ("up-429", Some("upstream_failed")),
    ("up-500text", Some("upstream_failed")),
    ("up-refused", Some("upstream_failed")),
];

const SPACE: &str = "MAINSPACE0000000000000A1";

fn directory() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures")
}

async fn before_capture(name: &str) -> (Gateway, RawUpstream, Vec<u8>) {
    let bytes = std::fs::read(directory().join(format!("{name}.http"))).unwrap();
    let upstream = RawUpstream::answering(bytes.clone()).await;
    let gateway = setup().start_before(&upstream.base_url()).await;
    (gateway, upstream, bytes)
}

/// The route whose upstream answered so.
fn path(name: &str) -> String {
    let list = match name.split('-').next() {
        Some("runs") => "runs",
        Some("runtasks") => "runs/R00000000000000000000000000def005/tasks",
        _ => "tasks",
    };
    format!("/spaces/{SPACE}/{list}")
}

fn body(answer: &[u8]) -> &[u8] {
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n");
    &answer[head.unwrap() + 4..]
}

#[test]
fn every_capture_is_in_the_table() {
    let mut files: Vec<String> = std::fs::read_dir(directory())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|name| name.strip_suffix(".http").map(str::to_owned))
        .collect();
    files.sort_unstable();
    assert_eq!(files, CAPTURES.map(|(name, _)| name));
}

#[tokio::test]
async fn a_captured_page_comes_out_byte_for_byte() {
    for (name, _) in CAPTURES.iter().filter(|(_, code)| code.is_none()) {
        let (gateway, upstream, bytes) = before_capture(name).await;

        let answer = gateway.get(&path(name)).await;

        answer.assert_page(body(&bytes));
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(upstream.requests(), 1, "{name}");
    }
}

#[tokio::test]
async fn a_captured_failure_comes_out_as_the_error_it_is() {
    for (name, code) in CAPTURES {
        let Some(code) = code else { continue };
        let (gateway, upstream, bytes) = before_capture(name).await;

        let answer = gateway.get(&path(name)).await;

        assert_eq!(answer.code(), code, "{name}");
        assert_eq!(upstream.requests(), 1, "{name}");
        assert_no_line_of(body(&bytes), &answer.body, name);
    }
}

/// Nothing of the upstream's own text gets out but the messages that the contract recognises.
fn assert_no_line_of(upstream: &[u8], answer: &[u8], name: &str) {
    let recognised = ["Invalid Space Token", "You Don't have Access to this Space"];
    let mut answer = String::from_utf8_lossy(answer).into_owned();
    for message in recognised {
        answer = answer.replace(message, "");
    }
    let upstream = String::from_utf8_lossy(upstream);
    let texts = upstream.split(['"', '\n', '<', '>', '\\']);
    for text in texts.map(str::trim).filter(|text| text.len() > 12) {
        assert!(!answer.contains(text), "{name}: {text}");
    }
}
