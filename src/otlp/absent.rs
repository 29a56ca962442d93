//! Traces and metrics of a build without the feature `otel`: there are none. The configuration refuses
//! `otlp.endpoint` there.

use std::sync::Arc;

use crate::{
    api::admin::Admin,
    config::{Config, ConfigError},
    trace::Tracer,
};

/// See the module of the same name in a build with the feature.
#[derive(Debug)]
pub struct NoTelemetry;

/// Nothing that is sent.
#[derive(Debug)]
pub struct NoSending;

impl NoTelemetry {
    /// Reads nothing.
    ///
    /// # Errors
    /// None.
    pub fn read(_config: &Config) -> Result<Self, ConfigError> {
        Ok(Self)
    }

    /// Returns the tracer that makes no span.
    pub fn tracer(&self) -> Tracer {
        Tracer::default()
    }

    /// Begins nothing.
    pub(crate) fn begin(self, _admin: Arc<Admin>) -> NoSending {
        NoSending
    }
}

impl NoSending {
    /// Returns at once.
    pub async fn stop(self) {}
}
