//! The revocations in the store, and their version in every bucket.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tls_sessiond_core::{
    cache::SharedRevocations,
    fleet::{Failure, FleetStore},
    state::CoreState,
};
use tls_sessiond_store::{
    layout::Bucket,
    script::{Answer, ENTRIES_MAX, REVOCATIONS_MAX, REVOCATIONS_OF_ALL, Request, Revocation},
};
use tokio::time::Instant;

use super::link::Link;

/// How often the list is read before the refresh is tried again later: other daemons may add to it.
const READS_MAX: usize = 4;
/// How long each of the requests waits for its answer.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// Reads the revocations in the store, applies those that are new, gives back those that the store
/// has lost, and raises the version of every bucket to that of the list.
///
/// # Errors
/// The store did not answer.
pub(super) async fn refresh(link: &Arc<Link>, state: &CoreState) -> Result<(), Failure> {
    let ask = async |request: &Request| link.ask(request, Instant::now() + ANSWER_MAX).await;
    let fleet = link.fleet();
    let revision = 'complete: {
        for _ in 0..READS_MAX {
            let Answer::Revocations { revision, entries } = ask(&Request::Revocations).await?
            else {
                return Err(Failure::NoAnswer);
            };
            let lost = learn(state, fleet, entries);
            let known = fleet.told();
            // Only the version of a list that was read, and that lacks nothing, is adopted.
            if lost.is_empty() && revision >= known {
                break 'complete revision;
            }
            let mut chunks: Vec<Vec<Revocation>> =
                lost.chunks(ENTRIES_MAX).map(<[_]>::to_vec).collect();
            if chunks.is_empty() {
                chunks.push(Vec::new());
            }
            for entries in chunks {
                let give_back = Request::Revoke {
                    entries,
                    known,
                    most: REVOCATIONS_MAX + REVOCATIONS_OF_ALL,
                };
                match ask(&give_back).await? {
                    Answer::Revocations { .. } => {}
                    _ => return Err(Failure::NotRun),
                }
            }
        }
        return Err(Failure::NoAnswer);
    };
    let raised = Bucket::all().map(|bucket| async move {
        let request = Request::Revise { bucket, revision };
        link.ask(&request, Instant::now() + ANSWER_MAX).await
    });
    for answer in join_all(raised).await {
        answer?;
    }
    fleet.knows(revision);
    Ok(())
}

/// Applies revocations to the caches. Returns those that this daemon knows and the store does not
/// have.
fn learn(state: &CoreState, fleet: &FleetStore, entries: Vec<Revocation>) -> Vec<Revocation> {
    let registry = state.registry();
    let known: &SharedRevocations = &registry.ledger().revocations;
    let now = state.now();
    let mut lost = known.stored();
    lost.retain(|held| {
        let is_there = |entry: &Revocation| entry.id == held.id && entry.ends >= held.ends;
        held.ends > now.wall().as_millis() && !entries.iter().any(is_there)
    });
    let caches = |name: &str| {
        let context = registry.get(name);
        context.map_or_else(Vec::new, |context| {
            vec![
                Arc::clone(&context.server_cache),
                Arc::clone(&context.client_cache),
            ]
        })
    };
    known.learn(fleet, entries, caches, now);
    lost
}
