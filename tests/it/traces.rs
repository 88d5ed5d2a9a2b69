//! Traces: what a collector is sent, what the upstream is told, and that neither holds a secret or is waited for.

use std::{collections::HashMap, convert::Infallible, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
    },
    common::v1::any_value::Value,
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use parking_lot::Mutex;
use prost::Message;
use tokio::net::TcpListener;
use unpod_gateway::simulator::{Scripted, world};

use crate::gateway::{Gateway, READER, Setup, setup, until};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
const PORT_NOBODY_LISTENS_ON: u16 = 9;

/// A collector that keeps what it is sent.
struct Collector {
    address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
}

#[derive(Clone)]
struct Received {
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Collector {
    async fn start() -> Self {
        Self::answering(200, ExportTraceServiceResponse::default()).await
    }

    async fn answering(status: u16, answer: ExportTraceServiceResponse) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let received = Arc::<Mutex<Vec<Received>>>::default();
        let answer = Bytes::from(answer.encode_to_vec());
        let kept = Arc::clone(&received);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (kept, answer) = (kept.clone(), answer.clone());
                let service =
                    service_fn(move |request| keep(kept.clone(), request, status, answer.clone()));
                let connection = http1::Builder::new();
                tokio::spawn(connection.serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { address, received }
    }

    fn setup(&self) -> Setup {
        exporting_to(self.address.port())
    }

    fn received(&self) -> Vec<Received> {
        self.received.lock().clone()
    }

    fn spans(&self) -> Vec<Span> {
        let decoded = |received: &Received| {
            let request = ExportTraceServiceRequest::decode(received.body.clone()).unwrap();
            request.resource_spans.into_iter()
        };
        let resources: Vec<_> = self.received().iter().flat_map(decoded).collect();
        resources
            .into_iter()
            .flat_map(|resource| resource.scope_spans)
            .flat_map(|scope| scope.spans)
            .collect()
    }
}

async fn keep(
    kept: Arc<Mutex<Vec<Received>>>,
    request: Request<Incoming>,
    status: u16,
    answer: Bytes,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let headers = request.headers().clone();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    kept.lock().push(Received {
        path,
        headers,
        body,
    });
    let mut response = Response::new(Full::new(answer));
    *response.status_mut() = status.try_into().unwrap();
    Ok(response)
}

fn exporting_to(port: u16) -> Setup {
    setup().with(&format!(
        "[telemetry]\notlp_endpoint = \"http://127.0.0.1:{port}\""
    ))
}

/// Ends the gateway, which sends the collector all that it has not sent yet.
async fn flush(gateway: Gateway) {
    assert!(gateway.app.drain().await);
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The one span of this name.
#[track_caller]
fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let mut found = spans.iter().filter(|span| span.name == name);
    let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
    let first = found
        .next()
        .unwrap_or_else(|| panic!("{name} in {names:?}"));
    assert!(found.next().is_none(), "two of {name} in {names:?}");
    first
}

fn attributes(span: &Span) -> HashMap<&str, String> {
    let shown = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::BoolValue(value) => value.to_string(),
        Value::IntValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    };
    let attributes = span.attributes.iter();
    attributes
        .map(|attribute| {
            let value = attribute.value.as_ref().and_then(|any| any.value.as_ref());
            (attribute.key.as_str(), shown(value.unwrap()))
        })
        .collect()
}

const ROOT: &str = "GET /spaces/{space_token}/tasks";

#[tokio::test]
async fn a_fill_is_a_tree_below_the_callers_span_that_goes_on_upstream() {
    let collector = Collector::start().await;
    let gateway = collector.setup().start().await;
    let answer = gateway
        .tasks(world::SUPPORT, "")
        .header("traceparent", &format!("00-{TRACE}-{PARENT}-01"))
        .header("tracestate", "vendor=opaque")
        .await;
    assert_eq!(answer.status, 200);
    let asked = gateway.upstream().recorded().remove(0);
    flush(gateway).await;

    let spans = collector.spans();
    assert_eq!(spans.len(), 6, "{spans:?}");
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE));
    let root = named(&spans, ROOT);
    assert_eq!(hex(&root.parent_span_id), PARENT);
    assert_eq!(root.kind, SpanKind::Server as i32);
    for step in ["auth", "lookup", "wait", "fill"] {
        let step = named(&spans, step);
        assert_eq!(step.parent_span_id, root.span_id, "{}", step.name);
        assert!(step.start_time_unix_nano >= root.start_time_unix_nano);
    }
    let call = named(&spans, "GET");
    assert_eq!(call.parent_span_id, named(&spans, "fill").span_id);
    assert_eq!(call.kind, SpanKind::Client as i32);
    let expected = format!("00-{TRACE}-{}-01", hex(&call.span_id));
    assert_eq!(asked.header("traceparent"), Some(expected.as_str()));
    assert_eq!(asked.header("tracestate"), None);
}

#[tokio::test]
async fn spans_tell_what_happened_by_the_conventions_names() {
    let collector = Collector::start().await;
    let gateway = collector.setup().start().await;
    let answer = gateway.tasks(world::SUPPORT, "").await;
    let id = answer.header("x-request-id").unwrap().to_owned();
    let upstream = gateway.upstream_url();
    flush(gateway).await;

    let spans = collector.spans();
    let root = attributes(named(&spans, ROOT));
    for (name, value) in [
        ("http.request.method", "GET"),
        ("http.route", "/spaces/{space_token}/tasks"),
        ("http.response.status_code", "200"),
        ("client.address", "127.0.0.1"),
        ("gateway.client", "reader"),
        ("gateway.cache.outcome", "miss"),
        ("gateway.upstream.calls", "1"),
        ("gateway.request.id", &id),
    ] {
        assert_eq!(root.get(name).map(String::as_str), Some(value), "{name}");
    }
    let call = attributes(named(&spans, "GET"));
    assert_eq!(call["server.address"], "127.0.0.1");
    assert!(upstream.ends_with(&format!(":{}", call["server.port"])));
    assert_eq!(call["http.response.status_code"], "200");
    assert!(!call.contains_key("http.request.resend_count"));
    assert_eq!(
        attributes(named(&spans, "fill"))["gateway.fill.outcome"],
        "stored"
    );
    let sent = collector.received().remove(0);
    assert_eq!(sent.path, "/v1/traces");
    assert_eq!(sent.headers["content-type"], "application/x-protobuf");
}

#[tokio::test]
async fn a_hit_asks_nobody_and_begins_a_trace_of_its_own() {
    let collector = Collector::start().await;
    let gateway = collector.setup().start().await;
    gateway.tasks(world::SUPPORT, "").await;
    gateway
        .tasks(world::SUPPORT, "")
        .header("traceparent", &format!("00-{TRACE}-{PARENT}-zz"))
        .await;
    flush(gateway).await;

    let spans = collector.spans();
    let roots: Vec<&Span> = spans.iter().filter(|span| span.name == ROOT).collect();
    assert_eq!(roots.len(), 2);
    assert!(roots.iter().all(|root| root.parent_span_id.is_empty()));
    assert_ne!(roots[0].trace_id, roots[1].trace_id);
    let of_the_hit: Vec<&str> = spans
        .iter()
        .filter(|span| span.trace_id == roots[1].trace_id)
        .map(|span| span.name.as_str())
        .collect();
    assert_eq!(of_the_hit, ["auth", "lookup", ROOT]);
}

#[tokio::test]
async fn what_the_caller_does_not_sample_is_passed_on_and_not_exported() {
    let collector = Collector::start().await;
    let gateway = collector.setup().start().await;
    gateway
        .tasks(world::SUPPORT, "")
        .header("traceparent", &format!("00-{TRACE}-{PARENT}-00"))
        .await;
    let asked = gateway.upstream().recorded().remove(0);
    flush(gateway).await;

    let told = asked.header("traceparent").unwrap();
    assert!(told.starts_with(&format!("00-{TRACE}-")) && told.ends_with("-00"));
    assert!(!told.contains(PARENT), "{told}");
    assert!(collector.received().is_empty());
}

#[tokio::test]
async fn without_a_collector_the_upstream_is_told_of_no_trace() {
    let gateway = setup().start().await;
    gateway
        .tasks(world::SUPPORT, "")
        .header("traceparent", &format!("00-{TRACE}-{PARENT}-01"))
        .await;
    let asked = gateway.upstream().recorded().remove(0);
    assert_eq!(asked.header("traceparent"), None);
}

#[tokio::test]
async fn each_try_has_a_span_and_the_failed_ones_say_so() {
    let collector = Collector::start().await;
    let gateway = collector
        .setup()
        .with("[upstream]\nretries = 1")
        .start()
        .await;
    let failure = || Scripted::new(503, "busy");
    gateway
        .upstream()
        .script(world::SUPPORT, vec![failure(), failure()]);
    let answer = gateway.tasks(world::SUPPORT, "").await;
    answer.assert_error("upstream_failed");
    flush(gateway).await;

    let spans = collector.spans();
    let tries: Vec<&Span> = spans.iter().filter(|span| span.name == "GET").collect();
    assert_eq!(tries.len(), 2);
    assert_eq!(attributes(tries[1])["http.request.resend_count"], "1");
    let failed = |span: &Span| {
        let status = span.status.as_ref().map(|status| status.code);
        status == Some(StatusCode::Error as i32)
    };
    assert!(tries.into_iter().all(failed));
    assert_eq!(
        attributes(named(&spans, ROOT))["gateway.upstream.calls"],
        "2"
    );
    for (name, code) in [(ROOT, "upstream_failed"), ("fill", "upstream_failed")] {
        let span = named(&spans, name);
        assert!(failed(span), "{name}");
        assert_eq!(attributes(span)["error.type"], code, "{name}");
    }
}

#[tokio::test]
async fn no_secret_and_no_space_is_exported() {
    let collector = Collector::start().await;
    let gateway = collector.setup().start().await;
    gateway.tasks(world::SUPPORT, "?page=1").await;
    gateway.tasks("NOSUCHSPACE0000000000000", "").await;
    gateway.tasks(world::SUPPORT, "?secret=canary").await;
    gateway.get("/canary?canary").await;
    gateway.ask("CANARY", "/canary").await;
    gateway.tasks(world::SUPPORT, "").key("ugw_canary").await;
    flush(gateway).await;

    let received = collector.received();
    assert!(!received.is_empty());
    for secret in [
        READER,
        world::ACME_TOKEN,
        world::SUPPORT,
        "NOSUCHSPACE",
        "canary",
        "CANARY",
    ] {
        for batch in &received {
            let found = batch
                .body
                .windows(secret.len())
                .any(|window| window == secret.as_bytes());
            assert!(!found, "{secret} is exported");
        }
    }
}

/// Asks for a page twice, ends the gateway, and returns how many spans it lost by its own count.
async fn lost_before(port: u16) -> u64 {
    let gateway = exporting_to(port).start().await;
    for outcome in ["fwd=uri-miss; fwd-status=200; stored", "hit"] {
        let answer = gateway.tasks(world::SUPPORT, "").await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.cache_status(), outcome);
    }
    let metrics = gateway.app.metrics().clone();
    flush(gateway).await;
    let text = metrics.encode();
    let line = "gateway_traces_dropped_total{reason=\"export_failed\"} ";
    let count = text.lines().find_map(|told| told.strip_prefix(line));
    count.unwrap().parse().unwrap()
}

/// Six of the miss, three of the hit.
const SPANS_OF_BOTH: u64 = 9;

#[tokio::test]
async fn a_collector_that_is_down_changes_no_answer_and_is_counted() {
    assert_eq!(lost_before(PORT_NOBODY_LISTENS_ON).await, SPANS_OF_BOTH);
}

#[tokio::test]
async fn what_a_collector_refuses_is_counted() {
    let all = Collector::answering(503, ExportTraceServiceResponse::default()).await;
    assert_eq!(lost_before(all.address.port()).await, SPANS_OF_BOTH);

    let partial_success = Some(ExportTracePartialSuccess {
        rejected_spans: 2,
        error_message: "too old".to_owned(),
    });
    let some = Collector::answering(200, ExportTraceServiceResponse { partial_success }).await;
    assert_eq!(lost_before(some.address.port()).await, 2);

    let none = Collector::start().await;
    assert_eq!(lost_before(none.address.port()).await, 0);
}

#[tokio::test]
async fn a_collector_that_never_answers_holds_up_neither_requests_nor_the_end() {
    // It accepts by the kernel's hand, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    assert_eq!(lost_before(port).await, SPANS_OF_BOTH);
}

#[tokio::test]
async fn spans_are_sent_while_the_gateway_runs() {
    let collector = Collector::start().await;
    let gateway = collector.setup().start().await;
    gateway.tasks(world::SUPPORT, "").await;
    until(|| collector.spans().len() == 6).await;
}

#[tokio::test]
async fn headers_for_the_collector_are_read_from_a_file_and_again_when_it_changes() {
    let collector = Collector::start().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let write = |key: &str| {
        let text = format!("Authorization: Bearer {key}\nx-scope-orgid: unpod\n");
        std::fs::write(file.path(), text).unwrap();
    };
    write("first");
    let setup = collector.setup();
    let named = format!(
        "[telemetry]\notlp_headers_file = '{}'",
        file.path().display()
    );
    let gateway = setup.with(&named).start().await;

    gateway.tasks(world::SUPPORT, "").await;
    until(|| !collector.received().is_empty()).await;
    write("second");
    gateway.app.reload("a test").await.unwrap();
    gateway.tasks(world::SUPPORT, "").await;
    flush(gateway).await;

    let received = collector.received();
    let keys: Vec<_> = received
        .iter()
        .map(|sent| &sent.headers["authorization"])
        .collect();
    assert_eq!(
        (keys[0], *keys.last().unwrap()),
        (
            &"Bearer first".parse().unwrap(),
            &"Bearer second".parse().unwrap()
        )
    );
    for sent in &received {
        assert_eq!(sent.headers["x-scope-orgid"], "unpod");
        assert_eq!(sent.headers["content-type"], "application/x-protobuf");
    }
}
