//! Spans of a request, exported over OTLP if `telemetry.otlp_endpoint` is set.
//!
//! One SDK tracer per gateway: `tracing` is global, and two gateways may run in a process. A span's [`TraceContext`] is passed down; with
//! tracing off it is empty, and beginning a span below it costs a branch. No span holds a token, a key, a path or a query: a space shows as
//! its fingerprint.

use std::{borrow::Cow, sync::Arc};

use http::HeaderValue;
use opentelemetry::{
    Context, KeyValue, Value,
    trace::{
        Span as _, SpanContext, SpanKind, Status, TraceContextExt, TraceId, Tracer as _,
        TracerProvider,
    },
};
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SdkTracer, SdkTracerProvider},
};

use super::metrics::Metrics;

mod export;
pub mod traceparent;

pub use self::{
    export::{Collector, CollectorHeaders, Export},
    traceparent::TRACEPARENT,
};

const SERVICE: &str = "unpod-gateway";

/// Begins the request spans of one gateway.
#[derive(Clone, Debug)]
pub struct Tracer(SdkTracer);

impl Tracer {
    /// Exports to `collector` until the [`Export`] is ended. Needs a runtime.
    ///
    /// A caller's sampled flag is honoured; a trace that begins here is sampled.
    #[must_use]
    pub fn exporting_to(collector: Collector, metrics: Arc<Metrics>) -> (Self, Export) {
        // The default builder reads the environment.
        let resource = Resource::builder_empty()
            .with_service_name(SERVICE)
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let (export, queue) = Export::start(collector, &resource, metrics);
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOn)))
            .with_resource(resource)
            .with_span_processor(queue)
            .build();
        (Self(provider.tracer(SERVICE)), export)
    }

    /// Begins the span of a request, a child of its caller's if there is one.
    #[must_use]
    pub fn begin(&self, name: Cow<'static, str>, caller: Option<SpanContext>) -> Span {
        let parent = caller.map_or_else(Context::new, |caller| {
            Context::new().with_remote_span_context(caller)
        });
        begin(&self.0, name, SpanKind::Server, &parent)
    }
}

fn begin(tracer: &SdkTracer, name: Cow<'static, str>, kind: SpanKind, parent: &Context) -> Span {
    let span = tracer
        .span_builder(name)
        .with_kind(kind)
        .start_with_context(tracer, parent);
    let context = TraceContext(Some(Arc::new(Inner {
        tracer: tracer.clone(),
        context: span.span_context().clone(),
    })));
    Span {
        span: Some(Box::new(span)),
        context,
    }
}

/// Identifies a span in its trace; child spans begin from it.
#[derive(Clone, Debug, Default)]
pub struct TraceContext(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    tracer: SdkTracer,
    context: SpanContext,
}

impl TraceContext {
    /// Begins a step within the gateway.
    #[must_use]
    pub fn begin(&self, name: &'static str) -> Span {
        self.begin_as(name, SpanKind::Internal)
    }

    /// Begins a call of another service.
    #[must_use]
    pub fn begin_call(&self, name: &'static str) -> Span {
        self.begin_as(name, SpanKind::Client)
    }

    fn begin_as(&self, name: &'static str, kind: SpanKind) -> Span {
        let Some(inner) = &self.0 else {
            return Span::default();
        };
        // `remote` is only the API's word for a parent without its span; the context itself says that it is ours.
        let parent = Context::new().with_remote_span_context(inner.context.clone());
        begin(&inner.tracer, name.into(), kind, &parent)
    }

    #[must_use]
    pub fn is_off(&self) -> bool {
        self.0.is_none()
    }

    #[must_use]
    pub fn trace_id(&self) -> Option<TraceId> {
        Some(self.0.as_ref()?.context.trace_id())
    }

    /// The header that makes this span the parent of the called service's.
    #[must_use]
    pub fn traceparent(&self) -> Option<HeaderValue> {
        Some(traceparent::write(&self.0.as_ref()?.context))
    }
}

/// A span that ends when dropped. The default one is off.
#[derive(Debug, Default)]
pub struct Span {
    // Boxed: inline it would enlarge every request, with tracing off too.
    span: Option<Box<opentelemetry_sdk::trace::Span>>,
    context: TraceContext,
}

impl Span {
    #[must_use]
    pub fn context(&self) -> &TraceContext {
        &self.context
    }

    /// Sets an attribute. Names are those of OpenTelemetry's semantic conventions, or begin with `gateway.`.
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        if let Some(span) = &mut self.span {
            span.set_attribute(KeyValue::new(name, value));
        }
    }

    /// Like [`Span::set`], with a value that is computed only if tracing is on.
    pub fn set_with<V: Into<Value>>(&mut self, name: &'static str, value: impl FnOnce() -> V) {
        if self.span.is_some() {
            self.set(name, value());
        }
    }

    /// Marks it as failed, with an error's code.
    pub fn fail(&mut self, code: impl Into<Value>) {
        self.set("error.type", code);
        if let Some(span) = &mut self.span {
            // The description would say no more than the code.
            span.set_status(Status::error(""));
        }
    }
}
