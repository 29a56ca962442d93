//! Traces and metrics, sent to a collector by OTLP over gRPC. A build without the feature `otel` sends
//! none.
//!
//! * `collector`: the connection to the collector
//! * `queue`: the spans that wait to be sent
//! * `points`: metrics as messages of OTLP
//! * `trouble`: what the log says about a collector
//! * `sender`: the task that sends both

#[cfg(not(feature = "otel"))]
mod absent;
#[cfg(feature = "otel")]
mod collector;
#[cfg(feature = "otel")]
mod points;
#[cfg(feature = "otel")]
mod queue;
#[cfg(feature = "otel")]
mod sender;
#[cfg(feature = "otel")]
mod trouble;

#[cfg(not(feature = "otel"))]
pub use absent::{NoSending as Sending, NoTelemetry as Telemetry};
#[cfg(feature = "otel")]
pub use sender::{Sending, Telemetry};
