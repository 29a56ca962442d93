//! Compares the session caches of a daemon with a naive model, over random sequences of calls and
//! with a clock that the test moves: every answer, every removal and its reason, every counter, and
//! the stored sessions after every call.
//!
//! The model does not predict which session an eviction removes. It knows whether an eviction was
//! necessary, whether this cache had to give way, and that the session put last stays. A watcher
//! reports the evicted session, and must report each removal exactly once.

mod model;
mod real;
mod reload;
mod world;

use std::path::Path;

use model::Key;
use proptest::prelude::*;
use tls_sessiond::config::Config;
use tls_sessiond_core::{cache::Offering, context::Trust};
use world::World;

use crate::{pki, seed::runner};

/// Limit of all caches together, in sessions.
const SESSIONS: usize = 12;
const BYTES: usize = 9_000;

/// A configuration of up to three contexts.
#[derive(Clone, Copy, Debug, Default)]
struct Setup {
    /// Whether the first context has the second of its two scopes.
    moved: bool,
    small: bool,
    second: Second,
    /// Whether there is a third context. Its cache has so many shards that its sessions lie in
    /// different ones.
    third: bool,
}

#[derive(Clone, Copy, Debug, Default)]
enum Second {
    None,
    #[default]
    Apart,
    /// Shares the caches of the first.
    Sharing,
}

/// The settings of a context.
struct ContextPlan {
    name: &'static str,
    session_id_context: &'static str,
    alpn: u8,
    entries_max: usize,
    bytes_max: usize,
    session_bytes_max: usize,
}

impl ContextPlan {
    fn key(&self, server: bool) -> Key {
        Key {
            session_id_context: self.session_id_context,
            alpn: self.alpn,
            server,
        }
    }
}

impl Setup {
    fn contexts(self) -> Vec<ContextPlan> {
        let (entries_max, bytes_max, session_bytes_max) = if self.small {
            (3, 2_300, 200)
        } else {
            (6, 4_500, 300)
        };
        let first = ContextPlan {
            name: "first",
            session_id_context: "first",
            alpn: u8::from(self.moved),
            entries_max,
            bytes_max,
            session_bytes_max,
        };
        let second = match self.second {
            Second::None => None,
            Second::Apart => Some(ContextPlan {
                name: "second",
                session_id_context: "second",
                alpn: 0,
                entries_max: 5,
                bytes_max: 5_000,
                session_bytes_max: 300,
            }),
            Second::Sharing => Some(ContextPlan {
                name: "second",
                ..first
            }),
        };
        let third = self.third.then_some(ContextPlan {
            name: "third",
            session_id_context: "third",
            alpn: 0,
            entries_max: 2_048,
            bytes_max: 3_800,
            session_bytes_max: 300,
        });
        [Some(first), second, third].into_iter().flatten().collect()
    }

    fn config(self, folder: &Path) -> Config {
        let mut config = Config::defaults();
        config.limits.sessions = SESSIONS;
        config.limits.session_bytes = BYTES;
        let base = config.contexts.remove(0);
        config.contexts = self
            .contexts()
            .into_iter()
            .map(|plan| {
                let mut context = base.clone();
                context.name = plan.name.into();
                context.session_id_context = plan.session_id_context.into();
                context.alpn = vec![format!("p{}", plan.alpn)];
                context.cache_entries_max = plan.entries_max;
                context.cache_bytes_max = plan.bytes_max;
                context.session_bytes_max = plan.session_bytes_max;
                context.self_made = false;
                context.offering = Offering::Shared;
                context.trust = Trust::File(folder.join("ca.pem"));
                context
            })
            .collect();
        config
    }
}

/// Selects a cache: the context, modulo the number of contexts, and the role.
#[derive(Clone, Copy, Debug)]
struct At {
    context: usize,
    server: bool,
}

/// A session to put.
#[derive(Clone, Copy, Debug)]
struct New {
    id: u8,
    single_use: bool,
    name: u8,
    peer: u8,
    /// Seconds since the authentication. `timeout` is the lifetime from then on, in seconds.
    ago: u64,
    timeout: u64,
    secret: usize,
}

/// The criteria of a lookup: matching ones, or with one that differs.
#[derive(Clone, Copy, Debug)]
enum ResumeCriteria {
    Good,
    OtherFormat,
    OtherBinding,
    OtherVersion,
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Put(At, New),
    Find(At, u8, u8, ResumeCriteria),
    Newest(At, u8),
    Remove(At, u8),
    Explain(At, u8),
    /// Withdraws one of all sessions ever stored, because of an alert or as unclosed.
    Withdraw(At, prop::sample::Index, bool),
    Hold(prop::sample::Index),
    Release(prop::sample::Index),
    /// Revokes by a selector, with `before` so many seconds ago, and purges at once if the last
    /// field is true.
    Revoke(At, u8, u64, bool),
    Reap,
    Wait(u64),
    Reload(Setup),
}

/// Number of ids. It is small, so that calls often meet the same session.
const IDS: u8 = 8;

fn setup() -> impl Strategy<Value = Setup> {
    let second = prop_oneof![
        Just(Second::None),
        Just(Second::Apart),
        Just(Second::Sharing)
    ];
    (any::<bool>(), any::<bool>(), second, any::<bool>()).prop_map(
        |(moved, small, second, third)| Setup {
            moved,
            small,
            second,
            third,
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    let at = || {
        (0..3_usize, prop::bool::weighted(0.6)).prop_map(|(context, server)| At { context, server })
    };
    let id = || 0..IDS;
    let name = || 0..2_u8;
    let which = any::<prop::sample::Index>;
    let seconds = || prop_oneof![3 => Just(0_u64), 1 => 1..2_000_u64, 1 => Just(5_000)];
    let timeout = prop_oneof![4 => Just(7_200_u64), 2 => 1..2_000_u64, 1 => Just(1_000_000)];
    let new = (
        id(),
        any::<bool>(),
        name(),
        0..3_u8,
        seconds(),
        timeout,
        1..330_usize,
    )
        .prop_map(|(id, single_use, name, peer, ago, timeout, secret)| New {
            id,
            single_use,
            name,
            peer,
            ago,
            timeout,
            secret,
        });
    let terms = prop_oneof![
        6 => Just(ResumeCriteria::Good),
        1 => Just(ResumeCriteria::OtherFormat),
        1 => Just(ResumeCriteria::OtherBinding),
        1 => Just(ResumeCriteria::OtherVersion)
    ];
    prop_oneof![
        14 => (at(), new).prop_map(|(at, new)| Op::Put(at, new)),
        8 => (at(), id(), name(), terms).prop_map(|(at, id, name, terms)| Op::Find(at, id, name, terms)),
        3 => (at(), name()).prop_map(|(at, name)| Op::Newest(at, name)),
        2 => (at(), id()).prop_map(|(at, id)| Op::Remove(at, id)),
        2 => (at(), id()).prop_map(|(at, id)| Op::Explain(at, id)),
        2 => (at(), which(), any::<bool>()).prop_map(|(at, which, alert)| Op::Withdraw(at, which, alert)),
        1 => which().prop_map(Op::Hold),
        1 => which().prop_map(Op::Release),
        2 => (at(), 0..7_u8, seconds(), any::<bool>())
            .prop_map(|(at, selector, ago, purge)| Op::Revoke(at, selector, ago, purge)),
        1 => Just(Op::Reap),
        2 => prop_oneof![Just(1_u64), Just(5), 1..3_000_u64].prop_map(Op::Wait),
        1 => setup().prop_map(Op::Reload),
    ]
}

// Invariant 4.
#[test]
fn random_sequences_agree_with_a_naive_cache_model() {
    let folder = tempfile::tempdir().unwrap();
    pki::localhost(folder.path());
    runner(3_000)
        .run(
            &(setup(), proptest::collection::vec(op(), 1..120)),
            |(setup, ops)| {
                let mut world = World::new(setup, folder.path());
                ops.into_iter().for_each(|op| world.run(op));
                Ok(())
            },
        )
        .unwrap();
}
