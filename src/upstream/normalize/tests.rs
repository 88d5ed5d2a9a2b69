use std::{future::ready, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt;
use http::HeaderValue;
use parking_lot::Mutex;
use proptest::prelude::*;
use tokio::time::Instant;
use tower::{ServiceExt, service_fn};

use super::*;
use crate::{
    config::{
        NormalizeConfig,
        normalize::{RuleCode, RuleConfig},
    },
    upstream::{Head, Validators, fixtures},
};

/// Fri, 01 Jan 2027 00:00:00 GMT, when every answer here is received.
const NOW: i64 = 1_798_761_600;
const HTML: &str = "<!DOCTYPE html>\n\n<html lang=\"en\"><title>Server Error</title></html>";
const PAGE: &str = r#"{"count":57,"status_code":200,"message":"Tasks Fetched Successfully","data":[{"task_id":"T1","status":"completed"}]}"#;

fn raw(status: u16, fields: &[(&'static str, &str)], body: impl Into<Bytes>) -> RawAnswer {
    let headers = fields
        .iter()
        .map(|(name, value)| {
            let name = http::HeaderName::from_static(name);
            (name, HeaderValue::from_str(value).unwrap())
        })
        .collect();
    RawAnswer {
        status: StatusCode::from_u16(status).unwrap(),
        head: Head {
            headers,
            received: Instant::now(),
            received_unix: NOW,
            response_delay: Duration::ZERO,
        },
        body: body.into(),
        gzip: None,
    }
}

/// What `raw` means by its status, its header and its body.
fn judged(rules: &Rules, raw: RawAnswer) -> Verdict {
    let limits = CallLimits::read(&raw.head);
    normalize(rules, raw, &limits)
}

/// The answer as the built-in rules understand it: `page`, `not_modified`, `unknown_message`, or the error's code.
fn meaning(raw: RawAnswer) -> &'static str {
    code(&judged(&Rules::default(), raw))
}

fn code(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Known(Ok(answer)) => match answer.content {
            Content::Page(_) => "page",
            Content::NotModified => "not_modified",
        },
        Verdict::Known(Err(error)) => error.as_str(),
        Verdict::UnknownMessage(_) => "unknown_message",
    }
}

fn failure(raw: RawAnswer) -> Option<FailureSource> {
    match judged(&Rules::default(), raw) {
        Verdict::Known(Err(UpstreamError::Failed(source))) => Some(source),
        Verdict::Known(_) | Verdict::UnknownMessage(_) => None,
    }
}

fn rules(own: &[(&str, RuleCode)]) -> Rules {
    let rules = own
        .iter()
        .map(|(contains, code)| RuleConfig {
            contains: (*contains).to_owned(),
            code: *code,
        })
        .collect();
    Rules::new(&NormalizeConfig { rules })
}

#[test]
fn every_known_answer_has_its_meaning() {
    // What the upstream was seen or is documented to answer, byte for byte where it was seen.
    let table: &[(u16, &str, &str)] = &[
        (200, PAGE, "page"),
        (
            200,
            r#"{"count":57,"status_code":200,"message":"Tasks Fetched Successfully","data":[]}"#,
            "page",
        ),
        (
            200,
            r#"{"count":0,"status_code":200,"message":"Tasks Fetched Successfully","data":[]}"#,
            "page",
        ),
        // Unknown space, no role, a viewer's role.
        (
            206,
            r#"{"status_code":206,"message":"Invalid Space Token","data":{}}"#,
            "space_not_found",
        ),
        (
            206,
            r#"{"status_code":206,"message":"You Don't have Access to this Space","data":{}}"#,
            "space_access_denied",
        ),
        (
            206,
            r#"{"status_code":206,"message":"You Don't have Access to do operation to this Space","data":{}}"#,
            "space_access_denied",
        ),
        // Bad paging.
        (
            206,
            r#"{"status_code":206,"message":"Tasks Fetch Failed","data":{"errors":"{\"detail\":\"skip must be >= 0\"}"},"errors":"{\"detail\":\"skip must be >= 0\"}"}"#,
            "upstream_rejected",
        ),
        (
            206,
            r#"{"status_code":206,"message":"Tasks Fetch Failed","data":{},"errors":"MongoDB can only handle up to 8-byte ints"}"#,
            "upstream_rejected",
        ),
        // An inner service failed: text, JSON text, HTML, nothing; and in the sister routes' words.
        (
            206,
            r#"{"status_code":206,"message":"Tasks Fetch Failed","data":{"errors":"Internal Server Error"},"errors":"Internal Server Error"}"#,
            "upstream_failed",
        ),
        (
            206,
            r#"{"status_code":206,"message":"Tasks Fetch Failed","data":{},"errors":"{\"detail\":\"db-7.inner: no route\"}"}"#,
            "upstream_failed",
        ),
        (
            206,
            r#"{"status_code":206,"message":"Tasks Fetch Failed","data":{},"errors":"<html>502</html>"}"#,
            "upstream_failed",
        ),
        (
            206,
            r#"{"status_code":206,"message":"Tasks Fetch Failed","data":{},"errors":""}"#,
            "upstream_failed",
        ),
        (
            206,
            r#"{"status_code":206,"message":"Tasks Fetch Failed","data":{}}"#,
            "upstream_failed",
        ),
        (
            206,
            r#"{"status_code":206,"message":"Runs Fetch Failed","data":{}}"#,
            "upstream_failed",
        ),
        (
            206,
            r#"{"status_code":206,"message":"Invalid Role Code","data":{}}"#,
            "upstream_failed",
        ),
        (
            206,
            r#"{"status_code":206,"message":"Tasks Fetch Failed","data":{"errors":"{\"detail\":\"slow down\"}"},"errors":"{\"detail\":\"slow down\"}"}"#,
            "upstream_failed",
        ),
        // What no rule knows.
        (
            206,
            r#"{"status_code":206,"message":"There is some Validation error","data":{"errors":{"pilot":["This field is required."]}}}"#,
            "unknown_message",
        ),
        (206, r#"{"status_code":206,"data":{}}"#, "unknown_message"),
        (
            206,
            r#"{"status_code":206,"message":null}"#,
            "unknown_message",
        ),
        (206, PAGE, "unknown_message"),
        (206, "{}", "unknown_message"),
        // Something in between answers without JSON: nothing is known of the request.
        (206, "", "upstream_failed"),
        (206, "partial", "upstream_failed"),
        (206, "[]", "upstream_failed"),
        (206, HTML, "upstream_failed"),
        // The credential.
        (
            401,
            r#"{"message":"Invalid token.","status_code":401}"#,
            "upstream_auth_failed",
        ),
        (
            401,
            r#"{"message":"Informations d'authentification non fournies.","status_code":401}"#,
            "upstream_auth_failed",
        ),
        (
            401,
            r#"{"message": "Unauthorized Access", "error": "Expired Auth Token"}"#,
            "upstream_auth_failed",
        ),
        (
            401,
            r#"{"detail":"Invalid token."}"#,
            "upstream_auth_failed",
        ),
        (
            401,
            r#"{"error":{"code":"unauthorized","message":"no"}}"#,
            "upstream_auth_failed",
        ),
        (401, HTML, "upstream_failed"),
        (401, "", "upstream_failed"),
        (401, "Unauthorized", "upstream_failed"),
        (401, r#""Unauthorized""#, "upstream_failed"),
        (401, r#"["Unauthorized"]"#, "upstream_failed"),
        (401, r#"{"status_code":401"#, "upstream_failed"),
        (401, r#"{"status_code":500}"#, "upstream_failed"),
        (
            403,
            r#"{"status_code":403,"message":"Token has expired."}"#,
            "upstream_auth_failed",
        ),
        (
            403,
            r#"{"status_code":403,"message":"TOKEN HAS EXPIRED"}"#,
            "upstream_auth_failed",
        ),
        (
            403,
            r#"{"status_code":403,"message":"Access denied."}"#,
            "space_access_denied",
        ),
        (
            403,
            r#"{"message":"You Don't have Access to this Space"}"#,
            "space_access_denied",
        ),
        (
            403,
            r#"{"error":{"code":"forbidden","message":"no"}}"#,
            "space_access_denied",
        ),
        (
            403,
            r#"{"error":{"code":"token_expired"}}"#,
            "upstream_auth_failed",
        ),
        (
            403,
            r#"{"message":"Token has expired."}"#,
            "upstream_auth_failed",
        ),
        // What stands in between tells nothing of the space.
        (403, "", "upstream_failed"),
        (403, "Forbidden", "upstream_failed"),
        (403, HTML, "upstream_failed"),
        (403, r#"{"message":"Forbidden"}"#, "upstream_failed"),
        (403, r#"{"error":"blocked"}"#, "upstream_failed"),
        (
            403,
            r#"{"status_code":500,"message":"no"}"#,
            "upstream_failed",
        ),
        (403, "null", "upstream_failed"),
        (
            400,
            r#"{"status_code":400,"message":"Org-Handle header is required."}"#,
            "upstream_rejected",
        ),
        (422, r#"{"status_code":422}"#, "upstream_rejected"),
        (422, r#"{"message":"no"}"#, "upstream_rejected"),
        (400, r#"{"error":{"code":"bad"}}"#, "upstream_rejected"),
        (422, "", "upstream_failed"),
        (422, "no", "upstream_failed"),
        (422, "[]", "upstream_failed"),
        (400, "Bad Request", "upstream_failed"),
        (400, r#"{"detail":"bad"}"#, "upstream_rejected"),
        (
            404,
            r#"{"status_code":404,"message":"Space not found."}"#,
            "space_not_found",
        ),
        (404, r#"{"message":"gone"}"#, "space_not_found"),
        (404, r#"{"error":{"code":"not_found"}}"#, "space_not_found"),
        (404, r#"{}"#, "space_not_found"),
        (
            404,
            r#"{"status_code":200,"message":"ok"}"#,
            "upstream_failed",
        ),
        (410, "gone", "upstream_failed"),
        (404, HTML, "upstream_failed"),
        (404, "", "upstream_failed"),
        (410, r#"{"status_code":410}"#, "space_not_found"),
        (410, HTML, "upstream_failed"),
        (400, HTML, "upstream_failed"),
        (422, HTML, "upstream_failed"),
        (429, r#"{"status_code":429}"#, "upstream_quota_exhausted"),
        (429, HTML, "upstream_quota_exhausted"),
        (429, "", "upstream_quota_exhausted"),
        (
            429,
            r#"{"error":{"code":"rate_limit_exceeded","message":"no"}}"#,
            "upstream_quota_exhausted",
        ),
        // A throttle is one whatever status it comes with.
        (
            403,
            r#"{"error":{"code":"rate_limit_exceeded"}}"#,
            "upstream_quota_exhausted",
        ),
        (
            503,
            r#"{"error":{"code":"Too_Many_Requests"}}"#,
            "upstream_quota_exhausted",
        ),
        (
            200,
            r#"{"error":{"code":"rate_limit_exceeded"}}"#,
            "upstream_quota_exhausted",
        ),
        (403, r#"{"status_code":429}"#, "upstream_quota_exhausted"),
        (206, r#"{"status_code":429}"#, "upstream_quota_exhausted"),
        (304, "", "not_modified"),
        // Everything else failed, a redirect and a success of another kind too.
        (500, HTML, "upstream_failed"),
        (502, "", "upstream_failed"),
        (503, PAGE, "upstream_failed"),
        (301, "0", "upstream_failed"),
        (302, "", "upstream_failed"),
        (201, PAGE, "upstream_failed"),
        (202, PAGE, "upstream_failed"),
        (204, "", "upstream_failed"),
        (203, PAGE, "upstream_failed"),
        (
            406,
            r#"{"message":"Could not satisfy the request Accept header.","status_code":406}"#,
            "upstream_failed",
        ),
        (418, "", "upstream_failed"),
        // A success that is none.
        (
            200,
            r#"{"count":null,"status_code":200,"message":"Tasks Fetched Successfully","data":null}"#,
            "upstream_invalid_response",
        ),
        (
            200,
            r#"{"count":1,"status_code":200,"data":{}}"#,
            "upstream_invalid_response",
        ),
        (
            200,
            r#"{"status_code":200,"data":[]}"#,
            "upstream_invalid_response",
        ),
        (200, r#"{"count":1,"data":[{"#, "upstream_invalid_response"),
        (200, "", "upstream_invalid_response"),
        (200, "[]", "upstream_invalid_response"),
        (200, HTML, "upstream_failed"),
    ];
    for &(status, body, expected) in table {
        assert_eq!(meaning(raw(status, &[], body)), expected, "{status} {body}");
    }
}

#[test]
fn messages_are_known_in_any_case() {
    for (message, expected) in [
        ("INVALID SPACE TOKEN", "space_not_found"),
        ("error: invalid space token!", "space_not_found"),
        ("you don't have access", "space_access_denied"),
        ("TASKS FETCH FAILED", "upstream_failed"),
    ] {
        let body = format!(r#"{{"status_code":206,"message":"{message}"}}"#);
        assert_eq!(meaning(raw(206, &[], body)), expected, "{message}");
    }
}

#[test]
fn an_inner_service_that_asks_for_patience_is_not_asked_again() {
    for (errors, is_transient) in [
        ("Slow down", false),
        ("429 Too Many Requests", false),
        ("rate limit reached", false),
        ("request was throttled.", false),
        ("Internal Server Error", true),
    ] {
        for message in ["Tasks Fetch Failed", "Runs Fetch Failed"] {
            let body =
                format!(r#"{{"status_code":206,"message":"{message}","errors":"{errors}"}}"#);
            let error = UpstreamError::Failed(failure(raw(206, &[], body)).unwrap());
            assert_eq!(error.is_transient(), is_transient, "{errors}");
            assert_eq!(error.inner_message(), Some(message), "{errors}");
        }
    }
}

#[test]
fn the_message_of_a_206_is_kept_for_the_log_and_cut() {
    let long = "é".repeat(300);
    for (message, kept) in [
        ("Tasks Fetch Failed", Some("Tasks Fetch Failed".to_owned())),
        ("Invalid Role Code", Some("Invalid Role Code".to_owned())),
        (
            &format!("Tasks Fetch Failed {long}"),
            Some(format!("Tasks Fetch Failed {}", "é".repeat(181))),
        ),
    ] {
        let body = format!(r#"{{"status_code":206,"message":"{message}","errors":"db-7.inner"}}"#);
        let error = UpstreamError::Failed(failure(raw(206, &[], body)).unwrap());
        assert_eq!(error.inner_message(), kept.as_deref());
    }
    let status = UpstreamError::Failed(failure(raw(500, &[], r#"{"message":"m"}"#)).unwrap());
    assert_eq!(status.inner_message(), None);
}

#[test]
fn a_body_under_200_that_names_a_failure_counts_as_it() {
    let table = [
        (
            r#"{"status_code":206,"message":"Invalid Space Token","data":{}}"#,
            "space_not_found",
        ),
        (
            r#"{"status_code":206,"message":"new","count":0,"data":[]}"#,
            "unknown_message",
        ),
        (
            r#"{"status_code":401,"message":"Invalid token."}"#,
            "upstream_auth_failed",
        ),
        (
            r#"{"status_code":403,"message":"Token has expired."}"#,
            "upstream_auth_failed",
        ),
        (
            r#"{"status_code":403,"message":"No."}"#,
            "space_access_denied",
        ),
        (
            r#"{"status_code":404,"count":0,"data":[]}"#,
            "space_not_found",
        ),
        (r#"{"status_code":429}"#, "upstream_quota_exhausted"),
        (
            r#"{"status_code":500,"count":0,"data":[]}"#,
            "upstream_failed",
        ),
        // Beyond what HTTP knows.
        (
            r#"{"status_code":1000,"count":0,"data":[]}"#,
            "upstream_failed",
        ),
        (
            r#"{"status_code":70000,"count":0,"data":[]}"#,
            "upstream_failed",
        ),
        (
            r#"{"status_code":18446744073709551615,"count":0,"data":[]}"#,
            "upstream_failed",
        ),
        // No failure, or no number.
        (r#"{"status_code":201,"count":0,"data":[]}"#, "page"),
        (r#"{"status_code":304,"count":0,"data":[]}"#, "page"),
        (r#"{"status_code":0,"count":0,"data":[]}"#, "page"),
        (r#"{"status_code":"404","count":0,"data":[]}"#, "page"),
        (r#"{"status_code":-1,"count":0,"data":[]}"#, "page"),
        (r#"{"count":0,"data":[]}"#, "page"),
    ];
    for (body, expected) in table {
        assert_eq!(meaning(raw(200, &[], body)), expected, "{body}");
    }
}

#[test]
fn a_body_cannot_turn_a_failure_into_anything_else() {
    for status in [206, 401, 500, 503] {
        for said in [200, 206, 404, 429] {
            let effective = effective_status(StatusCode::from_u16(status).unwrap(), Some(said));
            assert_eq!(effective.as_u16(), status, "{said}");
        }
    }
}

#[test]
fn own_rules_are_asked_first_in_any_case() {
    let own = rules(&[
        ("QUOTA exceeded", RuleCode::UpstreamQuotaExhausted),
        ("invalid space", RuleCode::UpstreamRejected),
        ("invalid", RuleCode::UpstreamAuthFailed),
    ]);
    for (message, expected) in [
        ("Quota Exceeded for today", "upstream_quota_exhausted"),
        ("Invalid Space Token", "upstream_rejected"),
        ("Invalid Role Code", "upstream_auth_failed"),
        ("Tasks Fetch Failed", "upstream_failed"),
        ("something new", "unknown_message"),
    ] {
        let body = format!(r#"{{"status_code":206,"message":"{message}"}}"#);
        let verdict = judged(&own, raw(206, &[], body));
        assert_eq!(code(&verdict), expected, "{message}");
    }
}

#[test]
fn own_rules_speak_of_206_alone() {
    let own = rules(&[("token", RuleCode::SpaceNotFound)]);
    let body = r#"{"status_code":401,"message":"Invalid token."}"#;
    let verdict = judged(&own, raw(401, &[], body));
    assert_eq!(code(&verdict), "upstream_auth_failed");
}

#[test]
fn each_code_of_a_rule_is_the_error_of_that_name() {
    for (rule, expected) in [
        (RuleCode::SpaceNotFound, "space_not_found"),
        (RuleCode::SpaceAccessDenied, "space_access_denied"),
        (RuleCode::UpstreamRejected, "upstream_rejected"),
        (RuleCode::UpstreamFailed, "upstream_failed"),
        (RuleCode::UpstreamAuthFailed, "upstream_auth_failed"),
        (RuleCode::UpstreamQuotaExhausted, "upstream_quota_exhausted"),
    ] {
        let verdict = judged(&rules(&[("x", rule)]), raw(206, &[], r#"{"message":"x"}"#));
        assert_eq!(code(&verdict), expected);
    }
}

#[test]
fn a_header_that_throttles_says_nothing_of_access() {
    let denied = r#"{"status_code":403,"message":"no"}"#;
    let expired = r#"{"status_code":403,"message":"Token has expired."}"#;
    let throttle = "upstream_quota_exhausted";
    for (status, field, body, expected) in [
        (403, ("retry-after", "30"), denied, throttle),
        (403, ("retry-after", "0"), denied, throttle),
        (403, ("retry-after", "soon"), denied, throttle),
        (403, ("x-ratelimit-remaining", "0"), denied, throttle),
        (403, ("retry-after", "30"), "blocked", throttle),
        (403, ("x-ratelimit-remaining", "0"), "", throttle),
        (
            403,
            ("x-ratelimit-remaining", "3"),
            denied,
            "space_access_denied",
        ),
        (
            403,
            ("x-ratelimit-remaining", "0"),
            expired,
            "upstream_auth_failed",
        ),
        (503, ("x-ratelimit-remaining", "0"), HTML, throttle),
        (503, ("retry-after", "30"), HTML, "upstream_failed"),
        (
            404,
            ("x-ratelimit-remaining", "0"),
            r#"{"status_code":404}"#,
            "space_not_found",
        ),
        (200, ("x-ratelimit-remaining", "0"), PAGE, "page"),
        (200, ("retry-after", "30"), PAGE, "page"),
        (500, ("x-ratelimit-remaining", "0"), HTML, "upstream_failed"),
    ] {
        let answer = raw(status, &[field], body);
        assert_eq!(meaning(answer), expected, "{status} {field:?} {body}");
    }
}

#[test]
fn a_failure_by_its_status_tells_how_long_it_asks_to_wait() {
    let under_200 = r#"{"status_code":503,"message":"no","data":{}}"#;
    for (status, body, text, seconds) in [
        (503, "", Some("7"), Some(7)),
        (502, HTML, Some("Fri, 01 Jan 2027 00:01:30 GMT"), Some(90)),
        (504, "", Some("soon"), None),
        (503, "", None, None),
        (200, under_200, Some("7"), Some(7)),
        (500, "", Some("7"), Some(7)),
        (503, "", Some("0"), None),
        (503, "", Some("Thu, 31 Dec 2026 23:59:00 GMT"), None),
        (404, "", Some("7"), None),
        (302, "", Some("7"), None),
    ] {
        let fields: Vec<_> = text.map(|text| ("retry-after", text)).into_iter().collect();
        let Verdict::Known(Err(error)) = judged(&Rules::default(), raw(status, &fields, body))
        else {
            panic!("{status} is a failure");
        };
        let expected = seconds.map(Duration::from_secs);
        assert_eq!(error.asks_to_wait(), expected, "{status} {text:?}");
    }
}

#[test]
fn html_is_known_by_its_type_and_by_its_look() {
    let typed = [("content-type", "Text/HTML; charset=utf-8")];
    assert_eq!(failure(raw(200, &typed, PAGE)), Some(FailureSource::Html));
    assert_eq!(failure(raw(206, &typed, "no")), Some(FailureSource::Html));
    let spaced = format!(" \r\n{HTML}");
    assert_eq!(failure(raw(200, &[], spaced)), Some(FailureSource::Html));
}

#[test]
fn only_a_real_404_or_410_states_how_long_to_remember_it() {
    let head_of = |raw| match judged(&Rules::default(), raw) {
        Verdict::Known(Err(UpstreamError::SpaceNotFound { head })) => head,
        Verdict::Known(_) | Verdict::UnknownMessage(_) => panic!("no such space"),
    };
    let stated = [("cache-control", "max-age=90")];
    for status in [404, 410] {
        let head = head_of(raw(status, &stated, r#"{"message":"gone"}"#)).unwrap();
        assert_eq!(head.headers["cache-control"], "max-age=90", "{status}");
    }
    assert!(head_of(raw(200, &stated, r#"{"status_code":404}"#)).is_none());
    assert!(head_of(raw(206, &stated, r#"{"message":"Invalid Space Token"}"#)).is_none());
}

#[test]
fn a_page_keeps_the_bytes_and_the_header_it_came_with() {
    let answer = raw(200, &[("etag", "\"v1\"")], PAGE);
    let Verdict::Known(Ok(answer)) = judged(&Rules::default(), answer) else {
        panic!("a page");
    };
    let Content::Page(page) = answer.content else {
        panic!("a page");
    };
    assert_eq!(page.body, PAGE);
    assert_eq!(page.count, 57);
    assert_eq!(answer.head.headers["etag"], "\"v1\"");
}

fn request(validators: Validators) -> PageRequest {
    PageRequest {
        validators,
        ..fixtures::request("")
    }
}

/// What the layer makes of one answer of the service below it, and its metrics.
fn through_the_layer(
    validators: Validators,
    answer: Result<RawAnswer, ClientError>,
) -> (Result<Answer, UpstreamError>, Arc<Metrics>) {
    let metrics = Metrics::new();
    let once = Arc::new(Mutex::new(Some(answer)));
    let inner = service_fn(move |_: PageRequest| ready(once.lock().take().expect("asked once")));
    let outcome = NormalizeLayer::new(Rules::default(), metrics.clone())
        .layer(inner)
        .oneshot(request(validators))
        .now_or_never()
        .expect("nothing to wait for");
    (outcome, metrics)
}

#[tokio::test(start_paused = true)]
async fn whoever_is_refused_for_want_of_quota_is_told_what_the_next_one_is() {
    let quota = rules(&[("plan", RuleCode::UpstreamQuotaExhausted)]);
    let later = [("retry-after", "30")];
    let reset = [("x-ratelimit-reset", "45")];
    let past = [("retry-after", "Thu, 31 Dec 2026 23:59:00 GMT")];
    for (answer, seconds) in [
        (raw(429, &later, ""), 30),
        (raw(429, &reset, ""), 45),
        (raw(429, &past, ""), 1),
        (raw(429, &[], ""), 1),
        (raw(429, &[("retry-after", "99999999")], ""), 3600),
        (
            raw(200, &later, r#"{"status_code":429,"message":"Too many"}"#),
            30,
        ),
        (
            raw(200, &[], r#"{"status_code":429,"message":"Too many"}"#),
            1,
        ),
        (raw(206, &later, r#"{"message":"plan used up"}"#), 30),
        (raw(206, &[], r#"{"message":"plan used up"}"#), 1),
        (raw(403, &later, "blocked"), 30),
        (raw(403, &[("x-ratelimit-remaining", "0")], ""), 1),
        (
            raw(503, &[("x-ratelimit-remaining", "0"), reset[0]], ""),
            45,
        ),
    ] {
        let status = answer.status;
        let request = request(Validators::default());
        let budget = request.credential.budget().clone();
        let once = Arc::new(Mutex::new(Some(answer)));
        let inner =
            service_fn(move |_: PageRequest| ready(Ok(once.lock().take().expect("asked once"))));
        let layer = NormalizeLayer::new(quota.clone(), Metrics::new());
        let outcome = layer.layer(inner).oneshot(request).await;
        let Err(UpstreamError::QuotaExhausted { retry_after }) = outcome else {
            panic!("{status}: a spent quota");
        };
        let expected = Duration::from_secs(seconds);
        assert_eq!(retry_after, Some(expected), "{status}");
        let next = budget.acquire_now().await;
        assert_eq!(next.unwrap_err(), expected, "{status}");
    }
}

#[test]
fn a_wrong_clock_of_the_upstreams_is_shown() {
    for (date, shown) in [
        ("Fri, 01 Jan 2027 00:00:00 GMT", "0"),
        ("Fri, 01 Jan 2027 00:02:01 GMT", "120"),
        ("Thu, 31 Dec 2026 23:57:59 GMT", "-120"),
    ] {
        let answer = Ok(raw(200, &[("date", date)], PAGE));
        let (outcome, metrics) = through_the_layer(Validators::default(), answer);
        assert!(outcome.is_ok());
        let text = metrics.encode();
        let line = format!("gateway_upstream_clock_skew_seconds {shown}");
        assert!(text.lines().any(|sample| sample == line), "{date}: {text}");
    }
}

#[test]
fn a_304_stands_for_a_page_only_where_it_was_asked_for() {
    let asked = Validators {
        etag: Some(HeaderValue::from_static("\"v1\"")),
        last_modified: None,
    };
    let (outcome, _) = through_the_layer(asked, Ok(raw(304, &[], "")));
    assert!(matches!(outcome.unwrap().content, Content::NotModified));

    let (outcome, _) = through_the_layer(Validators::default(), Ok(raw(304, &[], "")));
    assert!(matches!(
        outcome.unwrap_err(),
        UpstreamError::Failed(FailureSource::Status {
            status: StatusCode::NOT_MODIFIED,
            retry_after: None,
        })
    ));
}

#[test]
fn an_unknown_message_is_a_rejection_and_counted() {
    let body = r#"{"status_code":206,"message":"There is some Validation error"}"#;
    let (outcome, metrics) = through_the_layer(Validators::default(), Ok(raw(206, &[], body)));
    assert!(matches!(outcome.unwrap_err(), UpstreamError::Rejected));
    let text = metrics.encode();
    let counted = text
        .lines()
        .find(|line| line.contains("unknown_message") && !line.starts_with('#'));
    assert!(
        counted.is_some_and(|line| line.ends_with(" 1")),
        "{counted:?}"
    );
}

#[test]
fn an_oversized_body_is_an_invalid_response() {
    let (outcome, _) = through_the_layer(Validators::default(), Err(ClientError::TooLarge(7)));
    assert!(matches!(
        outcome.unwrap_err(),
        UpstreamError::InvalidResponse(InvalidAnswer::TooLarge(7))
    ));
}

fn any_status() -> impl Strategy<Value = u16> {
    prop_oneof![
        4 => Just(200_u16),
        2 => Just(206),
        1 => Just(304),
        3 => 200..600_u16,
        1 => 100..1000_u16,
    ]
}

/// Bodies that come near a page, and bodies that do not.
fn any_body() -> impl Strategy<Value = Vec<u8>> {
    let member = prop::sample::select(
        &[
            r#""count":57"#,
            r#""count":0"#,
            r#""count":null"#,
            r#""count":"1""#,
            r#""count":1.0"#,
            r#""count":-1"#,
            r#""data":[]"#,
            r#""data":[{"task_id":"a"},null,1]"#,
            r#""data":null"#,
            r#""data":{}"#,
            r#""data":["#,
            r#""status_code":200"#,
            r#""status_code":206"#,
            r#""status_code":404"#,
            r#""status_code":99999999999"#,
            r#""message":"Tasks Fetch Failed""#,
            r#""message":"\ud83d\ude00""#,
            r#""message":{}"#,
            r#""errors":"slow down""#,
            r#""errors":[[]]"#,
        ][..],
    );
    let object = prop::collection::vec(member, 0..6)
        .prop_map(|members| format!("{{{}}}", members.join(",")).into_bytes());
    prop_oneof![
        4 => object.clone(),
        1 => (object, any::<prop::sample::Index>()).prop_map(|(mut bytes, place)| {
            bytes.truncate(place.index(bytes.len()));
            bytes
        }),
        1 => prop::collection::vec(any::<u8>(), 0..200),
    ]
}

fn is_a_page(body: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(body)
        .is_ok_and(|value| value["data"].is_array() && value["count"].is_u64())
}

proptest! {
    #[test]
    fn nothing_but_a_page_under_200_becomes_a_page(status in any_status(), body in any_body()) {
        let verdict = judged(&Rules::default(), raw(status, &[], body.clone()));
        if code(&verdict) == "page" {
            prop_assert_eq!(status, 200);
            prop_assert!(is_a_page(&body));
        }
    }

    #[test]
    fn no_206_is_a_success(body in any_body()) {
        let said = serde_json::from_slice::<serde_json::Value>(&body)
            .is_ok_and(|value| value["status_code"] == 206);
        for status in [200, 206] {
            let verdict = judged(&Rules::default(), raw(status, &[], body.clone()));
            if status == 206 || said {
                prop_assert!(!matches!(code(&verdict), "page" | "not_modified"));
            }
        }
    }
}

#[tokio::test]
async fn a_large_answer_is_read_by_another_thread() {
    for (length, at_once) in [(1 << 10, true), (1 << 20, false)] {
        let text = "x".repeat(length);
        let body = Bytes::from(format!(r#"{{"count":1,"data":["{text}"]}}"#));
        let inner = service_fn(move |_: PageRequest| ready(Ok(raw(200, &[], body.clone()))));
        let layer = NormalizeLayer::new(Rules::default(), Metrics::new());
        let read = || {
            layer
                .layer(inner.clone())
                .oneshot(request(Validators::default()))
        };

        assert_eq!(read().now_or_never().is_some(), at_once, "{length}");
        assert!(matches!(read().await.unwrap().content, Content::Page(_)));
    }
}
