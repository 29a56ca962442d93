//! WatchTicketKeys: the membership of one server.
//!
//! A task reads what the server says and sends what it is to run. A server that reads nothing gets only
//! the newest instruction when it reads again.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use tls_sessiond_core::state::CoreState;
use tls_sessiond_keys::epoch::Layout;
use tls_sessiond_proto as pb;
use tls_sessiond_proto::watch_ticket_keys_request::Event as Said;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_stream::{Stream, StreamExt};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{Status, Streaming};

use super::{TicketKeys, layout, phase, ring, style};
use crate::{
    api::{
        access::Caller,
        call::{Deadline, StreamPlace},
        convert,
        error::Refusal,
        quota::Held,
        role::Roles,
    },
    rings::{Membership, RingDesk, Rings},
};

/// The stream of one server.
pub(crate) struct MemberStream {
    told: mpsc::Receiver<Result<pb::WatchTicketKeysResponse, Status>>,
    _task: AbortOnDropHandle<()>,
    _place: StreamPlace,
    _held: Held,
}

impl Stream for MemberStream {
    type Item = Result<pb::WatchTicketKeysResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.told.poll_recv(cx)
    }
}

impl MemberStream {
    /// # Errors
    /// Too many streams of this caller are open.
    pub(super) fn begin(
        service: &TicketKeys,
        by: Arc<Caller>,
        deadline: Option<Deadline>,
        said: Streaming<pb::WatchTicketKeysRequest>,
    ) -> Result<Self, Refusal> {
        let held = by.holder().attached()?;
        let place = StreamPlace::hold(&by);
        let (tells, told) = mpsc::channel(1);
        let member = Member {
            rings: Arc::clone(&service.rings),
            state: Arc::clone(&service.state),
            draining: service.draining.clone(),
            by,
            deadline: deadline.map(|Deadline(at)| at),
            said,
        };
        let task = tokio::spawn(async move {
            if let Err(status) = member.run(&tells).await {
                // A server that has gone does not read it.
                drop(tells.send(Err(status)).await);
            }
        });
        Ok(Self {
            told,
            _task: AbortOnDropHandle::new(task),
            _place: place,
            _held: held,
        })
    }
}

/// The task of one server.
struct Member {
    rings: Arc<Rings>,
    state: Arc<CoreState>,
    draining: CancellationToken,
    by: Arc<Caller>,
    deadline: Option<Instant>,
    said: Streaming<pb::WatchTicketKeysRequest>,
}

/// What a server has joined.
struct Joined {
    ring: Arc<RingDesk>,
    membership: Membership,
    layout: Layout,
}

type Tells = mpsc::Sender<Result<pb::WatchTicketKeysResponse, Status>>;

impl Member {
    /// Returns when the server leaves.
    async fn run(mut self, tells: &Tells) -> Result<(), Status> {
        let deadline = self.deadline;
        let late = async move {
            match deadline {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let draining = self.draining.clone();
        tokio::select! {
            done = self.serve(tells) => done,
            () = late => Err(Refusal::DeadlineExceeded.into()),
            () = draining.cancelled() => Err(Refusal::Draining.into()),
        }
    }

    async fn serve(&mut self, tells: &Tells) -> Result<(), Status> {
        let Some(first) = self.said.try_next().await? else {
            return Ok(());
        };
        let Some(Said::Join(join)) = first.event else {
            let why = "the first message must be `join`";
            return Err(Refusal::MemberEventUnexpected(why).into());
        };
        let Joined {
            ring,
            mut membership,
            layout,
        } = self.join(&join)?;
        let context = ring.context().cloned();
        let lost = Arc::clone(&self.by).loses_ring(Roles::KEYS, context, Arc::clone(&self.state));
        tokio::pin!(lost);
        let mut sent = 0;
        loop {
            let instruction = membership.instruction(layout);
            let (instruction, keys) =
                instruction.ok_or(Refusal::MemberFenced("the lease has ended".into()))?;
            if instruction.sequence != sent {
                sent = instruction.sequence;
                let keys = keys.into_iter().map(|(epoch, key)| pb::TicketKey {
                    epoch,
                    key: Bytes::copy_from_slice(key.bytes()),
                });
                let told = pb::WatchTicketKeysResponse {
                    sequence: instruction.sequence,
                    phase: phase(instruction.phase).into(),
                    keys: keys.collect(),
                    encrypt_epoch: instruction.encrypt,
                    ticket_lifetime: Some(convert::duration(ring.settings().lifetime)),
                };
                if tells.send(Ok(told)).await.is_err() {
                    return Ok(());
                }
            }
            tokio::select! {
                refusal = &mut lost => return Err(refusal.into()),
                is_there = membership.changed() => if !is_there {
                    return Err(Refusal::RingNotFound(ring.name().to_string()).into());
                },
                said = self.said.try_next() => match said?.map(|said| said.event) {
                    // The server has gone without a goodbye.
                    None => return Ok(()),
                    Some(Some(Said::Leave(pb::LeaveRing {}))) => {
                        membership.leave();
                        return Ok(());
                    }
                    Some(said) => hear(&membership, said)?,
                },
            }
        }
    }

    fn join(&self, join: &pb::JoinRing) -> Result<Joined, Refusal> {
        let registry = self.state.registry();
        let ring = ring(&self.rings, &self.by, &registry, &join.ring, Roles::KEYS)?;
        let missing = |field: &'static str| Refusal::MemberInvalid {
            field,
            why: "required: one of the values of the enum".into(),
        };
        let layout = layout(join.layout()).ok_or(missing("layout"))?;
        let style = style(join.style()).ok_or(missing("style"))?;
        let membership = ring
            .join(&join.member, style, self.by.owner())
            .ok_or_else(|| Refusal::RingNotFound(join.ring.clone()))??;
        tracing::info!(
            ring = join.ring,
            member = join.member,
            owner = &**self.by.owner(),
            "ticket keys: a member has joined"
        );
        Ok(Joined {
            ring,
            membership,
            layout,
        })
    }
}

/// Takes what a joined server says.
fn hear(membership: &Membership, said: Option<Said>) -> Result<(), Refusal> {
    match said {
        Some(Said::Acknowledge(acknowledge)) => Ok(membership.acknowledge(acknowledge.sequence)?),
        Some(Said::Refuse(refuse)) => Ok(membership.refuse(refuse.sequence, &refuse.reason)?),
        Some(Said::Join(_)) => {
            let why = "`join` is allowed as the first message only";
            Err(Refusal::MemberEventUnexpected(why))
        }
        Some(Said::Leave(_)) | None => {
            let why = "one of `acknowledge`, `refuse` and `leave` is required";
            Err(Refusal::MemberEventUnexpected(why))
        }
    }
}
