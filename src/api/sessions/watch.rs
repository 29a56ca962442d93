//! WatchSessions: streams the events of sessions as they happen.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tls_sessiond_core::{
    clock::WallOffset,
    session::events::{Delivery, Event, EventKind, MissEvent, WATCHERS_MAX, Watch},
    state::CoreState,
};
use tls_sessiond_proto as pb;
use tls_sessiond_proto::watch_sessions_response::Event as Told;
use tls_sessiond_types::hex;
use tokio::time::{Sleep, sleep_until};
use tokio_stream::Stream;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::Status;

use super::calls::Sessions;
use crate::api::{
    access::Caller,
    call::{Deadline, StreamPlace},
    convert,
    error::Refusal,
    quota::Held,
    role::Roles,
};

/// The stream of events of one watcher.
pub(crate) struct SessionWatch {
    watch: Watch,
    state: Arc<CoreState>,
    waiting: VecDeque<Delivery>,
    deadline: Option<Pin<Box<Sleep>>>,
    draining: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Ready when the caller has lost the role `observer` for the contexts that it watches, or its
    /// certificate has expired.
    lost: Pin<Box<dyn Future<Output = Refusal> + Send>>,
    ended: bool,
    _place: StreamPlace,
    _held: Held,
}

impl Sessions {
    pub(crate) fn watch(
        &self,
        by: &Arc<Caller>,
        name: &str,
        deadline: Option<Deadline>,
    ) -> Result<SessionWatch, Refusal> {
        let registry = self.state.registry();
        let wanted = match name {
            "" => None,
            name => Some(by.context(&registry, name, Roles::OBSERVER)?.name.clone()),
        };
        let lost = Arc::clone(by).loses(Roles::OBSERVER, wanted.clone(), Arc::clone(&self.state));
        // Rights are checked at each event, because a reload may change the rules.
        let (watcher, state) = (Arc::clone(by), Arc::clone(&self.state));
        let wanted = move |context: &str| {
            wanted.as_ref().is_none_or(|name| **name == *context)
                && watcher.may(&state.registry(), Roles::OBSERVER, context)
        };
        let held = by.holder().watcher()?;
        let watch = registry
            .ledger()
            .watchers
            .watch(wanted)
            .ok_or(Refusal::WatcherLimit(WATCHERS_MAX))?;
        Ok(SessionWatch {
            watch,
            state: Arc::clone(&self.state),
            waiting: VecDeque::new(),
            deadline: deadline.map(|Deadline(at)| Box::pin(sleep_until(at))),
            draining: Box::pin(self.draining.clone().cancelled_owned()),
            lost: Box::pin(lost),
            ended: false,
            _place: StreamPlace::hold(by),
            _held: held,
        })
    }
}

impl Stream for SessionWatch {
    type Item = Result<pb::WatchSessionsResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        let expired = this
            .deadline
            .as_mut()
            .is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready());
        let over = if expired {
            Some(Refusal::DeadlineExceeded)
        } else if let Poll::Ready(refusal) = this.lost.as_mut().poll(cx) {
            Some(refusal)
        } else {
            this.draining
                .as_mut()
                .poll(cx)
                .is_ready()
                .then_some(Refusal::Draining)
        };
        if let Some(refusal) = over {
            this.ended = true;
            return Poll::Ready(Some(Err(refusal.into())));
        }
        if this.waiting.is_empty() {
            match this.watch.poll(cx.waker()) {
                Poll::Ready(news) => this.waiting.extend(news),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(
            this.waiting
                .pop_front()
                .map(|news| Ok(told(news, this.state.now().offset))),
        )
    }
}

fn told(news: Delivery, offset: WallOffset) -> pb::WatchSessionsResponse {
    match news {
        Delivery::Dropped(count) => pb::WatchSessionsResponse {
            event: Some(Told::Dropped(count)),
            ..Default::default()
        },
        Delivery::Missed(miss) => {
            let MissEvent {
                at,
                id,
                role,
                context,
                server_name,
                owner: _,
                why,
            } = *miss;
            let missed = pb::SessionMiss {
                session_id_prefix: hex::string(id.prefix()),
                context: context.to_string(),
                role: pb::Role::from(role).into(),
                server_name: server_name.to_string(),
                reason: convert::miss_reason(why).into(),
            };
            pb::WatchSessionsResponse {
                time: Some(convert::timestamp(offset.wall(at))),
                event: Some(Told::Missed(missed)),
                ..Default::default()
            }
        }
        Delivery::Event(event) => {
            let Event {
                at,
                what,
                facts,
                open_connections,
                data_bytes,
            } = *event;
            let session = convert::facts(&facts, offset, open_connections, data_bytes);
            let (event, reason) = match what {
                EventKind::Added => (Told::Added(session), pb::RemovalReason::Unspecified),
                EventKind::Hit => (Told::Hit(session), pb::RemovalReason::Unspecified),
                EventKind::Removed(reason) => {
                    (Told::Removed(session), convert::removal_reason(reason))
                }
            };
            pb::WatchSessionsResponse {
                time: Some(convert::timestamp(offset.wall(at))),
                event: Some(event),
                reason: reason.into(),
            }
        }
    }
}
