//! What the demo prints of each request: a short line.

use std::collections::HashMap;

use crate::{domain::SpaceToken, telemetry::access::Request};

/// Writes requests as lines, with the spaces that it knows by their tokens.
pub(super) struct Lines {
    /// By their fingerprints, which is all that a request tells.
    spaces: HashMap<String, &'static str>,
}

impl Lines {
    pub(super) fn of_spaces(spaces: impl Iterator<Item = &'static str>) -> Self {
        let fingerprint = |space: &str| {
            let token = SpaceToken::new(space).ok()?;
            Some(token.fingerprint().as_str().to_owned())
        };
        Self {
            spaces: spaces
                .filter_map(|space| Some((fingerprint(space)?, space)))
                .collect(),
        }
    }

    /// Status, what the cache did, upstream calls, time, method and path; the answer's code where it is an error.
    pub(super) fn line(&self, request: &Request<'_>) -> String {
        let status = request
            .status
            .map_or("-".to_owned(), |status| status.to_string());
        let calls = match request.upstream_calls {
            Some(1) => "1 upstream call".to_owned(),
            calls => format!("{} upstream calls", calls.unwrap_or(0)),
        };
        let told = request.code.or(request.cache).unwrap_or("-");
        let milliseconds = request.duration_us / 1000;
        format!(
            "{status:<3}  {told:<18}  {calls:<16}  {milliseconds:>4} ms  {} {}",
            request.method,
            self.path(request)
        )
    }

    fn path(&self, request: &Request<'_>) -> String {
        let space = request.space.unwrap_or("…");
        let space = self.spaces.get(space).copied().unwrap_or(space);
        let path = match request.route {
            "tasks" => format!("/spaces/{space}/tasks"),
            "runs" => format!("/spaces/{space}/runs"),
            "run_tasks" => format!("/spaces/{space}/runs/…/tasks"),
            "browser_tokens" => "/browser-tokens".to_owned(),
            "openapi" => "/openapi.json".to_owned(),
            other => format!("({other})"),
        };
        match (request.page, request.page_size) {
            (Some(page), Some(size)) => format!("{path}?page={page}&page_size={size}"),
            _ => path,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    #[test]
    fn a_request_is_one_short_line() {
        const SPACE: &str = "SUPPORT0000000000000000A";
        let token = SpaceToken::new(SPACE).unwrap();
        let fingerprint = token.fingerprint();
        let lines = Lines::of_spaces([SPACE].into_iter());
        let request = Request {
            id: "id",
            method: &Method::GET,
            route: "tasks",
            trace_id: None,
            peer: None,
            client_address: None,
            client: "demo",
            space: Some(fingerprint.as_str()),
            page: Some(1),
            page_size: Some(2),
            status: Some(200),
            code: None,
            bytes: Some(5),
            duration_us: 84_300,
            cache: Some("miss"),
            age_s: None,
            upstream_calls: Some(1),
        };
        let refused = Request {
            space: None,
            page: None,
            page_size: None,
            status: Some(401),
            code: Some("unauthenticated"),
            duration_us: 40,
            cache: None,
            upstream_calls: None,
            ..request
        };
        let elsewhere = Request {
            space: Some("space-0123456789ab"),
            route: "runs",
            method: &Method::HEAD,
            upstream_calls: Some(0),
            cache: Some("hit"),
            ..request
        };
        let unknown = Request {
            route: "other",
            status: None,
            code: Some("cancelled"),
            ..refused
        };
        for (request, expected) in [
            (
                request,
                "200  miss                1 upstream call     84 ms  GET /spaces/SUPPORT0000000000000000A/tasks?page=1&page_size=2",
            ),
            (
                refused,
                "401  unauthenticated     0 upstream calls     0 ms  GET /spaces/…/tasks",
            ),
            (
                elsewhere,
                "200  hit                 0 upstream calls    84 ms  HEAD /spaces/space-0123456789ab/runs?page=1&page_size=2",
            ),
            (
                unknown,
                "-    cancelled           0 upstream calls     0 ms  GET (other)",
            ),
        ] {
            assert_eq!(lines.line(&request), expected);
        }
    }
}
