//! WatchTicketKeys: the membership of one server.
//!
//! A task reads what the server says and sends what it is to run. A server that reads nothing gets only
//! the newest instruction when it reads again.

use std::sync::Arc;

use bytes::Bytes;
use tls_sessiond_core::state::CoreState;
use tls_sessiond_keys::epoch::Layout;
use tls_sessiond_proto as pb;
use tls_sessiond_proto::watch_ticket_keys_request::Event as Said;
use tokio::time::{Instant, sleep_until};
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{
    TicketKeys, layout, phase, ring,
    stream::{MemberStream, Tells},
    style,
};
use crate::{
    api::{access::Caller, call::Deadline, convert, error::Refusal, role::Roles},
    rings::{Membership, RingDesk, Rings},
};

/// Begins the stream of one server.
///
/// # Errors
/// Too many streams of this caller are open.
pub(super) fn begin(
    service: &TicketKeys,
    by: Arc<Caller>,
    deadline: Option<Deadline>,
    said: Streaming<pb::WatchTicketKeysRequest>,
) -> Result<MemberStream<pb::WatchTicketKeysResponse>, Refusal> {
    let member = Member {
        rings: Arc::clone(&service.rings),
        state: Arc::clone(&service.state),
        draining: service.draining.clone(),
        by: Arc::clone(&by),
        deadline: deadline.map(|Deadline(at)| at),
        said,
    };
    MemberStream::begin(&by, |tells| member.run(tells))
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

impl Member {
    /// Returns when the server leaves.
    async fn run(mut self, tells: Tells<pb::WatchTicketKeysResponse>) -> Result<(), Status> {
        let deadline = self.deadline;
        let late = async move {
            match deadline {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let draining = self.draining.clone();
        tokio::select! {
            done = self.serve(&tells) => done,
            () = late => Err(Refusal::DeadlineExceeded.into()),
            () = draining.cancelled() => Err(Refusal::Draining.into()),
        }
    }

    async fn serve(&mut self, tells: &Tells<pb::WatchTicketKeysResponse>) -> Result<(), Status> {
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
        } = self.join(&join).await?;
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
                        membership.leave().await;
                        return Ok(());
                    }
                    Some(said) => hear(&membership, said).await?,
                },
            }
        }
    }

    async fn join(&self, join: &pb::JoinRing) -> Result<Joined, Refusal> {
        let ring = {
            let registry = self.state.registry();
            ring(&self.rings, &self.by, &registry, &join.ring, Roles::KEYS)?
        };
        let missing = |field: &'static str| Refusal::MemberInvalid {
            field,
            why: "required: one of the values of the enum".into(),
        };
        let layout = layout(join.layout()).ok_or(missing("layout"))?;
        let style = style(join.style()).ok_or(missing("style"))?;
        let membership = ring
            .join(&join.member, style, self.by.owner())
            .await
            .map_err(|why| why.of_ring(&join.ring))?;
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
async fn hear(membership: &Membership, said: Option<Said>) -> Result<(), Refusal> {
    match said {
        Some(Said::Acknowledge(acknowledge)) => {
            Ok(membership.acknowledge(acknowledge.sequence).await??)
        }
        Some(Said::Refuse(refuse)) => {
            Ok(membership.refuse(refuse.sequence, &refuse.reason).await??)
        }
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
