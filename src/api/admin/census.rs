//! Live connections by context, state, role and engine.

use std::{collections::BTreeMap, sync::Arc};

use tls_sessiond_core::{
    connection::{
        EngineKind, State,
        table::{LISTED_AT_ONCE, Table},
    },
    session::Role,
};
use tls_sessiond_proto as pb;
use tokio::task::yield_now;

use crate::api::convert;

/// The connections of some contexts at one time. Connections that come or go while they are counted
/// may be missing or counted once.
#[derive(Debug, Default)]
pub(crate) struct Census {
    kinds: BTreeMap<(Arc<str>, i32, i32, i32), u64>,
    owners: BTreeMap<Arc<str>, u64>,
}

impl Census {
    /// Counts the connections of the contexts that `shows` accepts.
    pub(crate) async fn take(table: &Table, shows: impl Fn(&str) -> bool) -> Self {
        let mut census = Self::default();
        let mut after = None;
        let mut listed = Vec::with_capacity(LISTED_AT_ONCE);
        loop {
            listed.clear();
            let wanted = |_: &str, context: &str| shows(context);
            after = table.page(wanted, after, LISTED_AT_ONCE, &mut listed);
            for connection in &listed {
                // A connection that was freed meanwhile is not counted.
                let _ = table.inspect(connection.id, |connection, _| {
                    census.add(
                        &connection.context().name,
                        connection.state(),
                        connection.role(),
                        connection.engine_kind(),
                        connection.owner(),
                    );
                });
            }
            if after.is_none() {
                return census;
            }
            // There may be a hundred thousand connections: other calls are served meanwhile.
            yield_now().await;
        }
    }

    fn add(
        &mut self,
        context: &Arc<str>,
        state: State,
        role: Role,
        engine: EngineKind,
        owner: &Arc<str>,
    ) {
        let kind = (
            Arc::clone(context),
            convert::state(state).into(),
            pb::Role::from(role).into(),
            convert::engine(engine).into(),
        );
        *self.kinds.entry(kind).or_default() += 1;
        *self.owners.entry(Arc::clone(owner)).or_default() += 1;
    }

    /// Returns the numbers of connections by kind.
    pub(crate) fn counts(&self) -> Vec<pb::ConnectionCount> {
        self.kinds
            .iter()
            .map(
                |((context, state, role, engine), count)| pb::ConnectionCount {
                    context: context.to_string(),
                    state: *state,
                    role: *role,
                    engine: *engine,
                    count: *count,
                },
            )
            .collect()
    }

    /// Returns the number of connections of each identity that has one.
    pub(crate) fn owners(&self) -> &BTreeMap<Arc<str>, u64> {
        &self.owners
    }
}
