//! The tracer of a build without the feature `otel`: it makes no span.

use http::HeaderMap;

/// See the module of the same name in a build with the feature.
#[derive(Clone, Debug, Default)]
pub struct NoTracer(());

/// A span that is not recorded.
#[derive(Debug, Default)]
pub struct NoSpan(());

/// Runs parts of a call as they are.
#[derive(Clone, Debug, Default)]
pub struct NoScope(());

impl NoScope {
    /// Runs `part`.
    pub(crate) fn run<R>(&self, part: impl FnOnce() -> R) -> R {
        part()
    }
}

impl NoTracer {
    /// Begins nothing.
    pub(crate) fn call(&self, _method: &'static str, _headers: &HeaderMap) -> NoSpan {
        NoSpan(())
    }
}

impl NoSpan {
    /// Returns a handle that does nothing.
    pub(crate) fn scope(&self) -> NoScope {
        NoScope(())
    }

    /// Returns a span that is not recorded.
    #[cfg(feature = "redis")]
    pub(crate) fn of_store() -> Self {
        Self(())
    }

    /// Records nothing.
    pub(crate) fn ends_with(&self, _status: &'static str, _failed: bool) {}

    /// Records nothing.
    #[cfg(feature = "redis")]
    pub(crate) fn fails(&self, _error: &'static str) {}
}
