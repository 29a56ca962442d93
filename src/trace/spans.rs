//! Spans of the OpenTelemetry SDK. Their names and attributes are those of its conventions for RPC and for
//! databases.

use http::HeaderMap;
use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, TextMapPropagator},
    trace::{SpanKind, Status, TraceContextExt, Tracer as _, TracerProvider},
};
use opentelemetry_sdk::{
    propagation::TraceContextPropagator,
    trace::{SdkTracer, SdkTracerProvider},
};

/// The name under which the spans of the daemon are recorded.
const SCOPE: &str = "tls-sessiond";
/// The longest headers that are read, in bytes. A `traceparent` of version 00 has 55, and later ones may be
/// longer. W3C Trace Context asks to read a `tracestate` of at least 512.
const PARENT_MAX: usize = 128;
const STATE_MAX: usize = 512;

/// Begins a span for each call. The default one begins none.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<SdkTracer>);

impl Tracer {
    /// Returns a tracer whose spans go to the processors of `provider`.
    pub fn of(provider: &SdkTracerProvider) -> Self {
        Self(Some(provider.tracer(SCOPE)))
    }

    /// Begins the span of a call of `method`, a full name without its first slash. The span belongs to the
    /// trace that `headers` name. Malformed headers count as missing.
    pub(crate) fn call(&self, method: &'static str, headers: &HeaderMap) -> CallSpan {
        let Some(tracer) = &self.0 else {
            return CallSpan(None);
        };
        let mut parent = Context::new();
        if headers.contains_key("traceparent") {
            let propagator = TraceContextPropagator::new();
            parent = propagator.extract_with_context(&parent, &Headers(headers));
        }
        let attributes = [
            KeyValue::new("rpc.system.name", "grpc"),
            KeyValue::new("rpc.method", method),
        ];
        let builder = tracer.span_builder(method).with_kind(SpanKind::Server);
        let span = builder
            .with_attributes(attributes)
            .start_with_context(tracer, &parent);
        CallSpan::recorded(parent.with_value(self.clone()).with_span(span))
    }
}

/// The span of a call, or of a request to the shared store. It ends when it is dropped.
#[derive(Debug, Default)]
pub struct CallSpan(Option<Context>);

impl CallSpan {
    /// Keeps a span only if it is recorded: the others cost nothing more.
    fn recorded(context: Context) -> Self {
        Self(context.span().is_recording().then_some(context))
    }

    /// Returns a handle for parts of the call.
    pub(crate) fn scope(&self) -> SpanScope {
        SpanScope(self.0.clone())
    }

    /// Begins the span of a request to the shared store, if the call that makes it is recorded.
    #[cfg(feature = "redis")]
    pub(crate) fn of_store() -> Self {
        let call = Context::current();
        if !call.span().is_recording() {
            return Self(None);
        }
        let Some(Tracer(Some(tracer))) = call.get::<Tracer>().cloned() else {
            return Self(None);
        };
        let builder = tracer.span_builder("store").with_kind(SpanKind::Client);
        let span = builder
            .with_attributes([KeyValue::new("db.system.name", "redis")])
            .start_with_context(&tracer, &call);
        Self::recorded(call.with_span(span))
    }

    /// Sets the name of the gRPC status with which the call ends. `failed`: the daemon is at fault, and not
    /// the caller.
    pub(crate) fn ends_with(&self, status: &'static str, failed: bool) {
        let Some(context) = &self.0 else { return };
        let attribute = KeyValue::new("rpc.response.status_code", status);
        context.span().set_attribute(attribute);
        if failed {
            self.fails(status);
        }
    }

    /// Records an error: a word of few.
    pub(crate) fn fails(&self, error: &'static str) {
        let Some(context) = &self.0 else { return };
        let span = context.span();
        span.set_attribute(KeyValue::new("error.type", error));
        span.set_status(Status::error(""));
    }
}

/// Runs parts of a call. It does not end the span.
#[derive(Clone, Debug, Default)]
pub struct SpanScope(Option<Context>);

impl SpanScope {
    /// Runs a part of the call. Requests to the store that begin meanwhile belong to its span.
    pub(crate) fn run<R>(&self, part: impl FnOnce() -> R) -> R {
        let _current = self.0.clone().map(Context::attach);
        part()
    }
}

impl Drop for CallSpan {
    fn drop(&mut self) {
        if let Some(context) = &self.0 {
            context.span().end();
        }
    }
}

/// Headers of a request, as the propagator reads them.
struct Headers<'h>(&'h HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let longest = match key {
            "tracestate" => STATE_MAX,
            _ => PARENT_MAX,
        };
        let mut values = self.0.get_all(key).iter();
        let value = values.next()?.to_str().ok()?;
        // Two headers may mean two things to two readers.
        (values.next().is_none() && value.len() <= longest).then_some(value)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}
