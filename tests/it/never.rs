//! What never happens, whatever the upstream answers and whatever a client sends: another origin is asked, a client's field or
//! parameter reaches the upstream, or anything but a page is asked for.

use std::{collections::BTreeSet, io::ErrorKind, net::TcpListener};

use tokio::net::TcpStream;
use unpod_gateway::simulator::{RecordedRequest, Scripted, SplitMix64, world};

use crate::{
    answer::{Answer, check},
    gateway::{Gateway, READER, setup, start},
    raw,
};

/// Somebody whom the gateway has no business with.
struct Bystander(TcpListener);

impl Bystander {
    fn at(host: &str) -> Self {
        let listener = TcpListener::bind((host, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self(listener)
    }

    fn authority(&self) -> String {
        self.0.local_addr().unwrap().to_string()
    }

    /// A connection would stand in the kernel's queue, made before the answer that it was made for.
    #[track_caller]
    fn assert_alone(&self, context: &str) {
        let accepted = self.0.accept();
        let nobody = accepted.map(drop).unwrap_err().kind();
        assert_eq!(nobody, ErrorKind::WouldBlock, "{context}");
    }
}

fn path(space: &str) -> String {
    format!("/api/v2/platform/spaces/{space}/tasks/?page=1&page_size=20")
}

#[tokio::test]
async fn a_redirect_leads_nowhere() {
    let gateway = setup().with("[upstream]\nretries = 2").start().await;
    let (here, elsewhere) = (Bystander::at("127.0.0.1"), Bystander::at("127.0.0.2"));
    let port = here.0.local_addr().unwrap().port();
    let itself = gateway.upstream_url();
    for status in [300, 301, 302, 303, 305, 307, 308] {
        let space = |number: usize| format!("MOVED{status}-{number}");
        let own = |number: usize| path(&space(number));
        let locations = [
            format!("http://{}{}", here.authority(), own(0)),
            format!("http://{}{}", elsewhere.authority(), own(1)),
            format!("http://localhost:{port}{}", own(2)),
            format!("https://{}{}", here.authority(), own(3)),
            format!("//{}{}", here.authority(), own(4)),
            format!("http://user:word@{}{}", here.authority(), own(5)),
            format!("{itself}{}", own(6)),
            own(7),
            "?page=2&page_size=20".to_owned(),
            path("ELSEWHERE"),
        ];
        for (number, location) in locations.iter().enumerate() {
            let moved = Scripted::json(status, "{}").header("location", location);
            gateway.upstream().script(&space(number), vec![moved]);

            let answer = gateway.tasks(&space(number), "").await;

            let context = format!("{status} {location}");
            answer.assert_error("upstream_failed");
            assert!(!format!("{answer:?}").contains(location), "{context}");
            let asked = gateway.upstream().requests_to(&space(number));
            assert_eq!(asked, 1, "{context}");
            here.assert_alone(&context);
            elsewhere.assert_alone(&context);
        }
    }
    assert_eq!(gateway.upstream().requests_to("ELSEWHERE"), 0);
}

#[tokio::test]
async fn a_page_that_names_other_places_leads_nowhere_either() {
    let gateway = start().await;
    let bystander = Bystander::at("127.0.0.1");
    let (url, port) = (
        format!("http://{}/", bystander.authority()),
        bystander.0.local_addr().unwrap().port(),
    );
    let fields = [
        ("location", url.clone()),
        ("content-location", url.clone()),
        ("refresh", format!("0; url={url}")),
        (
            "alt-svc",
            format!("h2=\":{port}\"; ma=60, http/1.1=\":{port}\""),
        ),
        ("link", format!("<{url}>; rel=preload")),
    ];
    for (name, value) in fields {
        let page = Scripted::json(200, r#"{"count":0,"data":[]}"#).header(name, &value);
        let space = format!("NAMES-{name}");
        gateway.upstream().script(&space, vec![page]);
        for query in ["", "?page=2"] {
            let answer = gateway.tasks(&space, query).await;
            assert_eq!(answer.status, 200);
            bystander.assert_alone(name);
        }
    }
}

/// Lines that a client may send, alone or in a group, to have a proxy drop, add or change a field towards its upstream, or to
/// smuggle a second request behind the first.
const TRICKS: [&str; 49] = [
    "Connection: authorization\r\n",
    "Connection: x-request-id, accept, accept-language, org-handle, host\r\n",
    "Connection: keep-alive, close, te\r\nTE: trailers, deflate;q=0.5\r\n",
    "Proxy-Connection: keep-alive\r\nKeep-Alive: timeout=1, max=1\r\n",
    "Connection: org-handle\r\nOrg-Handle: evil.test\r\n",
    "TE: gzip, chunked\r\n",
    "Trailer: Authorization, Org-Handle\r\n",
    "Upgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Key: ZXZpbGV2aWxldmlsZXZpbA==\r\nSec-WebSocket-Version: 13\r\n",
    "Upgrade: h2c\r\nConnection: upgrade, http2-settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    "Upgrade: TLS/1.2\r\nConnection: upgrade\r\n",
    "Proxy-Authorization: Basic ZXZpbA==\r\n",
    "Transfer-Encoding: chunked\r\n\r\n0\r\n",
    "Transfer-Encoding: chunked\r\n\r\n4\r\nevil\r\n0\r\nOrg-Handle: evil.test\r\n",
    "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n",
    "Transfer-Encoding: identity\r\n",
    "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n",
    "Transfer-Encoding: chunked, identity\r\n",
    "Transfer-Encoding: xchunked\r\n",
    "Transfer-Encoding : chunked\r\n",
    "Transfer-Encoding:\tchunked\r\n\r\n0\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    "Content-Length: 0\r\n",
    "Content-Length: 2\r\n",
    "Content-Length: +2\r\n",
    "Content-Length: 2, 2\r\n",
    "Content-Length: 2\r\nContent-Length: 3\r\n",
    "Expect: 100-continue\r\n",
    "Max-Forwards: 0\r\n",
    "org_handle: evil.test\r\nORG_HANDLE: evil.test\r\n",
    "x_request_id: evil\r\nX_Request-Id: evil\r\n",
    "http_authorization: Token evil\r\nauthorization_: evil\r\n",
    "Org-Handle: evil.test\r\nX-Org-Handle: evil.test\r\n",
    "X-Request-Id: evil evil\r\n",
    "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Host: evil.test\r\nX-Forwarded-Proto: gopher\r\nX-Forwarded-Prefix: /evil\r\n",
    "Forwarded: for=192.0.2.1;host=evil.test;proto=gopher\r\nX-Real-IP: 192.0.2.1\r\n",
    "Via: 1.1 evil\r\nCDN-Loop: evil\r\nEarly-Data: 1\r\n",
    "Cookie: sessionid=evil; Authorization=evil\r\n",
    "If-None-Match: \"evil\"\r\nIf-Match: \"evil\"\r\nIf-Modified-Since: Mon, 23 Nov 2026 20:48:28 GMT\r\n",
    "If-Unmodified-Since: Mon, 23 Nov 2026 20:48:28 GMT\r\nIf-Range: \"evil\"\r\n",
    "Range: bytes=0-1\r\n",
    "Accept-Language: fr\r\nAccept: text/html\r\nAccept-Encoding: identity\r\nUser-Agent: evil\r\n",
    "X-HTTP-Method-Override: POST\r\nX-HTTP-Method: DELETE\r\nX-Method-Override: PUT\r\n",
    "X-Original-URL: /evil\r\nX-Rewrite-URL: /evil\r\nX-Original-Host: evil.test\r\n",
    "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 10\r\n\r\nspace_id=8",
    "X-Space-Id: 8\r\nSpace-Id: 8\r\nspace_id: 8\r\nUser-Id: 1\r\n",
    "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\ntracestate: evil=1\r\nbaggage: evil=1\r\n",
    "Origin: https://evil.test\r\nReferer: https://evil.test/\r\nSec-Fetch-Mode: cors\r\n",
    " folded: evil\r\n",
    "Evil\0: evil\r\nX-Evil: a\0b\r\n",
];

/// What a client got that may have been refused by the HTTP parser, whose answers are bare.
async fn answer_to(gateway: &Gateway, target: &str, lines: &str) -> Option<Answer> {
    let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
    let request = format!(
        "GET {target} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Token {READER}\r\nConnection: close\r\n{lines}\r\n"
    );
    let answer = raw::parse(&raw::exchange(&mut stream, request.as_bytes()).await);
    if answer.header("x-request-id").is_none() {
        assert_eq!(answer.status, 400, "{lines}");
        return None;
    }
    check(&http::Method::GET, target, &answer);
    Some(answer)
}

/// A request as the upstream got it, without what differs from one to the next.
fn form(request: &RecordedRequest) -> (&str, Vec<(&str, &str)>) {
    let fields = request.headers.iter();
    let fields = fields.filter(|(name, _)| name != "x-request-id");
    let fields = fields.map(|(name, value)| (name.as_str(), value.as_str()));
    (&request.method, fields.collect())
}

#[tokio::test]
async fn no_trick_of_a_client_changes_what_the_upstream_is_sent() {
    let gateway = start().await;
    gateway.tasks(world::SUPPORT, "").await;
    let plain = gateway.upstream().recorded().remove(0);
    let mut answered = 0;
    for (number, lines) in TRICKS.iter().enumerate() {
        // A page of its own, which is not stored.
        let page = number + 2;
        let before = gateway.upstream().recorded().len();

        let target = format!("/spaces/{}/tasks?page={page}", world::SUPPORT);
        let answer = answer_to(&gateway, &target, lines).await;

        let sent = gateway.upstream().recorded().split_off(before);
        let Some(answer) = answer.filter(|answer| answer.status == 200) else {
            assert_eq!(sent, [], "{lines}");
            continue;
        };
        answered += 1;
        assert_eq!(sent.len(), 1, "{lines}");
        let expected = format!(
            "/api/v2/platform/spaces/{}/tasks/?page={page}&page_size=20",
            world::SUPPORT
        );
        assert_eq!(sent[0].target, expected, "{lines}");
        assert_eq!(form(&sent[0]), form(&plain), "{lines}");
        // One id for client, log and upstream: never one that was not fit.
        let id = sent[0].header("x-request-id");
        assert_eq!(id, answer.header("x-request-id"), "{lines}");
        assert!(!id.unwrap().contains("evil"), "{lines}");
    }
    // Most are no fault in themselves.
    assert!(answered > TRICKS.len() / 2, "{answered}");
    assert_eq!(gateway.upstream().posts(), 0);
}

/// Draws query strings as a client might send them that looks for a way past the gateway.
struct Queries(SplitMix64);

impl Queries {
    fn next(&mut self) -> String {
        let pairs = (0..self.0.below(5))
            .map(|_| self.pair())
            .collect::<Vec<_>>();
        let separator = self.0.pick(&["&", "&", "&", "&", "&&", "&;", ";"]);
        let end = self.0.pick(&["", "", "", "", "&", "#page=9", "?page=9"]);
        pairs.join(separator) + end
    }

    fn pair(&mut self) -> String {
        let name = match self.0.below(10) {
            0..=6 => self
                .0
                .pick(&["page", "page_size", "p%61ge", "page%5Fsize", "%70%61%67%65"]),
            7..=8 => self.0.pick(&[
                "space_id",
                "user_id",
                "thread_id",
                "status",
                "search",
                "call_type",
                "from_ts",
                "to_ts",
                "format",
            ]),
            _ => self.0.pick(&[
                "Page",
                "PAGE_SIZE",
                "page%20",
                "%20page",
                "+page",
                "page%00",
                "page[]",
                "page[0]",
                "page.size",
                "page-size",
                "_page",
                "pagesize",
                "p%D0%B0ge",
                "page%E2%80%8B",
                "",
                "%",
                "%zz",
                "%c3%28",
                "page%3D1",
                "page%26space_id",
                "space%5Fid",
                "%2570age",
            ]),
        };
        let value = match self.0.below(10) {
            0..=7 => self
                .0
                .pick(&["1", "2", "3", "02", "0003", "7", "20", "100", "%31", "1%30"]),
            8 => self.0.pick(&[
                "",
                "0",
                "000",
                "101",
                "1000001",
                "99999999999999999999",
                "-1",
                "%2B1",
                "+2",
            ]),
            _ => self.0.pick(&[
                "1.0",
                "1e1",
                "0x2",
                "1_0",
                "%201",
                "2%20",
                "2%00",
                "%D9%A2",
                "%EF%BC%92",
                "2%26space_id=8",
                "2%26space_id%3D8",
                "2;space_id=8",
                "2,3",
                "1%0d%0aOrg-Handle:evil",
                "*",
                "%",
                "null",
                "[2]",
                "=2",
                "=",
            ]),
        };
        match self.0.below(12) {
            0 => name.to_owned(),
            _ => format!("{name}={value}"),
        }
    }
}

/// Undoes form encoding; a broken escape stands for itself.
fn decoded(text: &str) -> String {
    let text = text.replace('+', " ");
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escape = (first == b'%').then(|| text_of_two(after)).flatten();
        let escaped = escape.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() {
            &after[2..]
        } else {
            after
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Two hexadecimal digits, if that is what comes next.
fn text_of_two(bytes: &[u8]) -> Option<&str> {
    let two = bytes.get(..2)?;
    let is_hex = two.iter().all(u8::is_ascii_hexdigit);
    is_hex.then(|| std::str::from_utf8(two).ok()).flatten()
}

/// The page that a query names, as the contract reads it: none where it is to be refused.
fn named(query: &str, drops_unknown: bool) -> Option<(u64, u64)> {
    let query = query.split('#').next().unwrap();
    let (mut page, mut size) = (None, None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (place, most) = match decoded(name).as_str() {
            "page" => (&mut page, 1_000_000),
            "page_size" => (&mut size, 100),
            _ if drops_unknown => continue,
            _ => return None,
        };
        let value = decoded(value);
        let is_number = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
        let number = value
            .parse()
            .ok()
            .filter(|number| (1..=most).contains(number));
        if !is_number || number.is_none() || place.is_some() {
            return None;
        }
        *place = number;
    }
    Some((page.unwrap_or(1), size.unwrap_or(20)))
}

async fn assert_only_pages_are_asked_for(gateway: &Gateway, drops_unknown: bool, seed: u64) {
    const QUERIES: usize = 500;
    let mut queries = Queries(SplitMix64::new(seed));
    let mut pages = BTreeSet::new();
    for _ in 0..QUERIES {
        let query = queries.next();
        // Where the upstream has the path too, the parameters of a filter are as unknown as any.
        let prefix = if drops_unknown {
            "/api/v2/platform"
        } else {
            ""
        };
        let target = format!("{prefix}/spaces/{}/tasks?{query}", world::SUPPORT);
        let answer = raw::get(gateway.address(), &target).await;
        match named(&query, drops_unknown) {
            Some((page, size)) => {
                let expected = gateway.upstream().expect_page(world::SUPPORT, page, size);
                assert_eq!(answer.status, 200, "{query}");
                answer.assert_page(&expected);
                pages.insert((page, size));
            }
            None => assert_eq!(answer.status, 400, "{query}"),
        }
    }
    let expected: BTreeSet<String> = pages
        .iter()
        .map(|(page, size)| {
            let space = world::SUPPORT;
            format!("/api/v2/platform/spaces/{space}/tasks/?page={page}&page_size={size}")
        })
        .collect();
    let recorded = gateway.upstream().recorded();
    let asked: BTreeSet<String> = recorded
        .iter()
        .map(|request| request.target.clone())
        .collect();
    assert_eq!(asked, expected);
    assert!(recorded.iter().all(|request| request.method == "GET"));
    // Enough of the queries were good for that to mean something.
    assert!(pages.len() > 10, "{}", pages.len());
}

#[tokio::test]
async fn whatever_the_query_only_two_canonical_numbers_are_asked_for() {
    let gateway = start().await;
    assert_only_pages_are_asked_for(&gateway, false, 1).await;
}

#[tokio::test]
async fn whatever_is_dropped_only_two_canonical_numbers_are_asked_for() {
    let lenient = "[routes.tasks]\nunknown_parameters = \"ignore\"";
    let gateway = setup().with(lenient).start().await;
    assert_only_pages_are_asked_for(&gateway, true, 2).await;
}
