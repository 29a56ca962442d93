//! The caches that a caller may reach.

use std::sync::Arc;

use tls_sessiond_core::{cache::Cache, context::Registry};

use crate::api::{access::Caller, error::Refusal, role::Roles};

/// Returns the caches of the context `name`, or of all contexts if `name` is empty, as far as the
/// caller has one of these roles there. Each cache is returned once, even if several contexts share
/// it.
///
/// # Errors
/// Those of [`Caller::context`].
pub(crate) fn caches(
    registry: &Registry,
    by: &Caller,
    name: &str,
    roles: Roles,
) -> Result<Vec<Arc<Cache>>, Refusal> {
    let contexts: Vec<_> = match name {
        "" => registry
            .all()
            .iter()
            .filter(|context| by.may(registry, roles, &context.name))
            .collect(),
        name => vec![by.context(registry, name, roles)?],
    };
    let mut caches: Vec<Arc<Cache>> = Vec::with_capacity(2 * contexts.len());
    for context in contexts {
        for cache in [&context.server_cache, &context.client_cache] {
            if !caches.iter().any(|held| Arc::ptr_eq(held, cache)) {
                caches.push(Arc::clone(cache));
            }
        }
    }
    Ok(caches)
}
