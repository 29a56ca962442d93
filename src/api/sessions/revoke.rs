//! RevokeSessions: makes sessions unusable for resumption.

use std::{sync::Arc, time::Duration};

use tls_sessiond_core::{cache::revocation::Selector, clock::WallTime};
use tls_sessiond_proto as pb;
use tls_sessiond_proto::revoke_sessions_request::Selector as Asked;
use tls_sessiond_types::{hex, server_name::ServerName};
use tokio::{task::yield_now, time::sleep};

use super::{
    calls::{SERVER_NAME_MAX, Sessions},
    reach::caches,
};
use crate::{
    api::{access::Caller, convert, convert::within, error::Refusal, role::Roles},
    store::NotRevoked,
};

/// The resolution of the daemon's clock.
const MILLISECOND: Duration = Duration::from_millis(1);
/// How many sessions are removed without a pause. It takes a tenth of a millisecond.
const PURGED_AT_ONCE: usize = 256;
/// The most bytes of a URI name (SPIFFE ID standard, section 2.3).
const URI_MAX: usize = 2048;

impl Sessions {
    pub(crate) async fn revoke(
        &self,
        by: &Caller,
        request: pb::RevokeSessionsRequest,
    ) -> Result<pb::RevokeSessionsResponse, Refusal> {
        let mut caches = caches(&self.state.registry(), by, &request.context, Roles::ADMIN)?;
        let selector = read_selector(request.selector)?;
        let now = self.state.now();
        // A revocation covers sessions authenticated before its time. With the next millisecond it
        // also covers those of the current one.
        let next = now.at.after(MILLISECOND);
        let before = match &request.before {
            None => next,
            Some(told) => {
                let before = convert::past(told, now, next).ok_or(Refusal::BeforeInvalid)?;
                // Round up to a whole millisecond, so that the revocation covers too many sessions
                // rather than too few.
                let part = told.nanos % 1_000_000 != 0;
                if part {
                    before.after(MILLISECOND).min(next)
                } else {
                    before
                }
            }
        };
        // Every cache refuses matching sessions before the first cache is scanned. The loop repeats
        // for caches that a reload adds meanwhile.
        loop {
            for cache in &caches {
                cache.tell_time(now.at);
                cache.revoke(selector.clone(), before);
            }
            // A reload may have removed the context, and its sessions with it.
            let there_now =
                self::caches(&self.state.registry(), by, &request.context, Roles::ADMIN)
                    .unwrap_or_default();
            if there_now
                .iter()
                .all(|now| caches.iter().any(|cache| Arc::ptr_eq(now, cache)))
            {
                break;
            }
            caches = there_now;
        }
        let mut told = RevocationAudit {
            by,
            context: &request.context,
            selector,
            before: now.offset.wall(before),
            removed: 0,
            finished: false,
        };
        for cache in &caches {
            for part in 0..cache.shards() {
                for slice in cache.revoked(part).chunks(PURGED_AT_ONCE) {
                    told.removed += cache.withdraw_revoked(slice) as u64;
                    yield_now().await;
                }
                yield_now().await;
            }
        }
        if let Some(store) = &self.store {
            let before = now.offset.wall(before);
            let registry = Arc::clone(&self.state.registry());
            let contexts: Vec<&str> = match request.context.as_str() {
                "" => registry
                    .all()
                    .iter()
                    .map(|context| &*context.name)
                    .filter(|name| by.may(&registry, Roles::ADMIN, name))
                    .collect(),
                name => vec![name],
            };
            store
                .revoke(&self.state, &contexts, &told.selector, before)
                .await
                .map_err(|why| match why {
                    NotRevoked::Away => Refusal::RevocationUndelivered,
                    NotRevoked::TooMany => Refusal::RevocationLimit,
                })?;
        }
        // Wait until `before` has passed, so that a session that authenticates after the answer is
        // not covered.
        while let Some(left) = self.state.clock().until(before) {
            sleep(left).await;
        }
        told.finished = true;
        Ok(pb::RevokeSessionsResponse {
            removed: told.removed,
            before: Some(convert::timestamp(told.before)),
        })
    }
}

/// The audit line of a revocation that is in force. It is written on drop, so that it is also
/// written when the caller cancels the call.
struct RevocationAudit<'r> {
    by: &'r Caller,
    context: &'r str,
    selector: Selector,
    before: WallTime,
    removed: u64,
    /// Set once all matching sessions are removed from the caches. Otherwise the rest are removed
    /// when they are looked up or expire.
    finished: bool,
}

impl Drop for RevocationAudit<'_> {
    fn drop(&mut self) {
        tracing::info!(
            target: "audit",
            owner = %self.by.owner(),
            context = self.context,
            selector = ?self.selector,
            before_ms = self.before.as_millis(),
            removed = self.removed,
            finished = self.finished,
            "RevokeSessions"
        );
    }
}

fn read_selector(asked: Option<Asked>) -> Result<Selector, Refusal> {
    let text = |field, text: String, max| match text.len() {
        0 => Err(Refusal::SelectorRequired),
        length => within(field, length, max).map(|()| text),
    };
    let name = |field, told| {
        let name = ServerName::new(&text(field, told, SERVER_NAME_MAX)?).into_owned();
        if name.is_empty() {
            Err(Refusal::SelectorRequired)
        } else {
            Ok(name)
        }
    };
    Ok(match asked {
        None | Some(Asked::All(false)) => return Err(Refusal::SelectorRequired),
        Some(Asked::All(true)) => Selector::All,
        Some(Asked::CertificateSha256(digest)) => {
            let digest = hex::read(&digest).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
            Selector::Certificate(digest.ok_or(Refusal::CertificateSha256Malformed)?)
        }
        Some(Asked::Uri(uri)) => Selector::Uri(text("uri", uri, URI_MAX)?.into()),
        Some(Asked::DnsName(dns)) => Selector::DnsName(name("dns_name", dns)?),
        Some(Asked::ServerName(server)) => Selector::ServerName(name("server_name", server)?),
    })
}
