//! Spans of calls, in the trace of the caller (W3C Trace Context). A build without the feature `otel`
//! has none.

#[cfg(not(feature = "otel"))]
mod absent;
#[cfg(feature = "otel")]
mod spans;

#[cfg(not(feature = "otel"))]
pub use absent::{NoScope as SpanScope, NoSpan as CallSpan, NoTracer as Tracer};
#[cfg(feature = "otel")]
pub use spans::{CallSpan, SpanScope, Tracer};
