//! Implements TicketKeyService.
//!
//! * `member`: the stream of one server
//! * `sds`: Envoy's secret discovery service
//! * `stream`: the answers of both

mod member;
mod sds;
mod stream;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tls_sessiond_core::{context::Registry, state::CoreState};
use tls_sessiond_keys::{
    epoch::Layout,
    ring::{MemberView, Phase, Refused, RingView, Style},
    ticket::{NotOpened, OVERHEAD},
};
use tls_sessiond_proto as pb;
use tls_sessiond_proto::ticket_key_service_server::TicketKeyService;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, async_trait};

use self::stream::MemberStream;
use super::{
    access::Caller,
    call::{Deadline, answer, caller},
    convert,
    error::Refusal,
    role::Roles,
};
use crate::rings::{NotJoined, NotOpenedHere, NotShared, RingDesk, Rings, Tickets};

/// Longest state that is sealed, in bytes.
const STATE_MAX: usize = 8192;
/// Longest binding of a ticket, in bytes.
const BINDING_MAX: usize = 1024;

/// Holds the state that the calls of TicketKeyService share.
#[derive(Clone)]
pub(crate) struct TicketKeys {
    pub(crate) rings: Arc<Rings>,
    pub(crate) state: Arc<CoreState>,
    pub(crate) draining: CancellationToken,
}

impl TicketKeys {
    /// Returns the ring of a call, if the caller has one of these roles for it.
    fn ring(&self, by: &Caller, name: &str, roles: Roles) -> Result<Arc<RingDesk>, Refusal> {
        ring(&self.rings, by, &self.state.registry(), name, roles)
    }

    /// Returns the caller and the deadline of a stream that makes its caller a member.
    fn admitted<T>(&self, request: &Request<T>) -> Result<(Arc<Caller>, Option<Deadline>), Status> {
        if self.draining.is_cancelled() {
            return Err(Refusal::Draining.into());
        }
        let deadline = request.extensions().get::<Deadline>().copied();
        Ok((caller(request)?, deadline))
    }

    fn get(&self, by: &Caller, name: &str) -> Result<pb::GetRingResponse, Refusal> {
        let ring = self.ring(by, name, Roles::OBSERVER)?;
        Ok(pb::GetRingResponse {
            ring: Some(shown(&ring)),
        })
    }

    async fn rotate(
        &self,
        by: &Caller,
        request: &pb::RotateRingRequest,
    ) -> Result<pb::RotateRingResponse, Refusal> {
        let ring = self.ring(by, &request.ring, Roles::ADMIN)?;
        tracing::info!(
            target: "audit",
            owner = &**by.owner(),
            ring = request.ring,
            emergency = request.emergency,
            "rotation of ticket keys asked for by an administrator"
        );
        ring.rotate(request.emergency).await?;
        Ok(pb::RotateRingResponse {
            ring: Some(shown(&ring)),
        })
    }

    async fn fence(
        &self,
        by: &Caller,
        request: &pb::FenceMemberRequest,
    ) -> Result<pb::FenceMemberResponse, Refusal> {
        let ring = self.ring(by, &request.ring, Roles::ADMIN)?;
        tracing::info!(
            target: "audit",
            owner = &**by.owner(),
            ring = request.ring,
            member = request.member,
            "member fenced by an administrator"
        );
        if !ring.fence(&request.member).await? {
            return Err(Refusal::MemberNotFound);
        }
        Ok(pb::FenceMemberResponse {
            ring: Some(shown(&ring)),
        })
    }

    fn seal(
        &self,
        by: &Caller,
        request: &pb::SealTicketRequest,
    ) -> Result<pb::SealTicketResponse, Refusal> {
        let ring = self.ring(by, &request.ring, Roles::KEYS)?;
        at_most("state", request.state.len(), STATE_MAX)?;
        at_most("binding", request.binding.len(), BINDING_MAX)?;
        let ticket = ring.seal(&request.state, &request.binding)?;
        Ok(pb::SealTicketResponse {
            ticket: ticket.into(),
            lifetime: Some(convert::duration(ring.settings().lifetime)),
        })
    }

    async fn open(
        &self,
        by: &Caller,
        request: &pb::OpenTicketRequest,
    ) -> Result<pb::OpenTicketResponse, Refusal> {
        let ring = self.ring(by, &request.ring, Roles::KEYS)?;
        at_most("ticket", request.ticket.len(), STATE_MAX + OVERHEAD)?;
        at_most("binding", request.binding.len(), BINDING_MAX)?;
        let missed = |reason: pb::MissReason| pb::OpenTicketResponse {
            miss_reason: reason.into(),
            ..Default::default()
        };
        let opened = ring.open(&request.ticket, &request.binding, request.single_use);
        Ok(match opened.await {
            Ok(opened) => pb::OpenTicketResponse {
                found: true,
                state: Bytes::copy_from_slice(&opened.state),
                epoch: opened.epoch,
                renew: opened.renew,
                ..Default::default()
            },
            Err(NotOpenedHere::Ticket(NotOpened::Unknown)) => missed(pb::MissReason::Unknown),
            Err(NotOpenedHere::Ticket(NotOpened::Changed)) => missed(pb::MissReason::Scope),
            Err(NotOpenedHere::Spent) => missed(pb::MissReason::Removed),
            Err(NotOpenedHere::NotShared(why)) => return Err(why.into()),
        })
    }
}

fn at_most(field: &'static str, length: usize, max: usize) -> Result<(), Refusal> {
    match length <= max {
        true => Ok(()),
        false => Err(Refusal::FieldTooLong { field, length, max }),
    }
}

/// Returns a ring, if the caller has one of these roles for it.
fn ring(
    rings: &Rings,
    by: &Caller,
    registry: &Registry,
    name: &str,
    roles: Roles,
) -> Result<Arc<RingDesk>, Refusal> {
    let ring = rings
        .get(name)
        .ok_or_else(|| Refusal::RingNotFound(name.into()))?;
    let context = ring.context().map(|context| &**context);
    match by.may_ring(registry, roles, context) {
        true => Ok(ring),
        false => Err(by.denied(roles, Some(context.unwrap_or("*")))),
    }
}

#[async_trait]
impl TicketKeyService for TicketKeys {
    type WatchTicketKeysStream = MemberStream<pb::WatchTicketKeysResponse>;

    async fn watch_ticket_keys(
        &self,
        request: Request<Streaming<pb::WatchTicketKeysRequest>>,
    ) -> Result<Response<Self::WatchTicketKeysStream>, Status> {
        let (by, deadline) = self.admitted(&request)?;
        let stream = member::begin(self, by, deadline, request.into_inner())?;
        Ok(Response::new(stream))
    }

    async fn list_rings(
        &self,
        request: Request<pb::ListRingsRequest>,
    ) -> Result<Response<pb::ListRingsResponse>, Status> {
        let by = caller(&request)?;
        let registry = self.state.registry();
        let all = self.rings.all();
        let seen = all.iter().filter(|ring| {
            let context = ring.context().map(|context| &**context);
            by.may_ring(&registry, Roles::OBSERVER, context)
        });
        Ok(Response::new(pb::ListRingsResponse {
            rings: seen.map(|ring| shown(ring)).collect(),
        }))
    }

    async fn get_ring(
        &self,
        request: Request<pb::GetRingRequest>,
    ) -> Result<Response<pb::GetRingResponse>, Status> {
        let by = caller(&request)?;
        answer(self.get(&by, &request.get_ref().ring))
    }

    async fn rotate_ring(
        &self,
        request: Request<pb::RotateRingRequest>,
    ) -> Result<Response<pb::RotateRingResponse>, Status> {
        let by = caller(&request)?;
        answer(self.rotate(&by, request.get_ref()).await)
    }

    async fn fence_member(
        &self,
        request: Request<pb::FenceMemberRequest>,
    ) -> Result<Response<pb::FenceMemberResponse>, Status> {
        let by = caller(&request)?;
        answer(self.fence(&by, request.get_ref()).await)
    }

    async fn seal_ticket(
        &self,
        request: Request<pb::SealTicketRequest>,
    ) -> Result<Response<pb::SealTicketResponse>, Status> {
        let by = caller(&request)?;
        answer(self.seal(&by, request.get_ref()))
    }

    async fn open_ticket(
        &self,
        request: Request<pb::OpenTicketRequest>,
    ) -> Result<Response<pb::OpenTicketResponse>, Status> {
        let by = caller(&request)?;
        answer(self.open(&by, request.get_ref()).await)
    }
}

/// Returns the state of a ring as the API shows it. One that the shared store has not shown yet has
/// neither phase nor members.
pub(crate) fn shown(ring: &RingDesk) -> pb::Ring {
    let settings = ring.settings();
    let view = ring.view();
    let shared = ring.daemons();
    let (tickets, by_epoch) = ring.tickets();
    let of_epoch = |(epoch, tickets): (u64, Tickets)| pb::EpochTickets {
        epoch,
        sealed: tickets.sealed,
        opened: tickets.opened,
    };
    pb::Ring {
        name: ring.name().to_string(),
        context: ring.context().map(ToString::to_string).unwrap_or_default(),
        fenced: ring.fenced.get(),
        rotate: lasting(settings.rotate),
        lifetime: lasting(settings.lifetime),
        max_key_age: lasting(settings.max_key_age),
        saved: ring.is_saved(),
        shared: shared.is_some(),
        rotates_here: shared.is_none_or(|(leads, _)| leads),
        daemons: shared.map_or(1, |(_, daemons)| u32::try_from(daemons).unwrap_or(u32::MAX)),
        trouble: ring.trouble().as_deref().unwrap_or_default().to_owned(),
        tickets_sealed: tickets.sealed,
        tickets_opened: tickets.opened,
        tickets: by_epoch.into_iter().map(of_epoch).collect(),
        ..view.map(shown_view).unwrap_or_default()
    }
}

fn lasting(time: Duration) -> Option<prost_types::Duration> {
    Some(convert::duration(time))
}

fn shown_view(view: RingView) -> pb::Ring {
    pb::Ring {
        phase: phase(view.phase).into(),
        phase_age: lasting(view.since),
        sequence: view.sequence,
        epoch: view.epoch,
        epoch_age: lasting(view.age),
        open_epochs: view.opened,
        rotations: view.rotations,
        emergency: view.is_emergency,
        members: view.members.into_iter().map(shown_member).collect(),
        ..Default::default()
    }
}

fn shown_member(member: MemberView) -> pb::RingMember {
    pb::RingMember {
        owner: member.by.owner.to_string(),
        name: member.name.to_string(),
        style: match member.style {
            Style::List => pb::TicketKeyStyle::List,
            Style::Push => pb::TicketKeyStyle::Push,
            Style::Single => pb::TicketKeyStyle::Single,
        }
        .into(),
        attached: member.is_attached,
        counted: member.counts,
        acknowledged_sequence: member.acknowledged,
        behind: member.behind.and_then(lasting),
        late: member.is_late,
        trouble: member.trouble.as_deref().unwrap_or_default().to_owned(),
    }
}

fn phase(phase: Phase) -> pb::RingPhase {
    match phase {
        Phase::Idle => pb::RingPhase::Idle,
        Phase::Prepare => pb::RingPhase::Prepare,
        Phase::Activate => pb::RingPhase::Activate,
        Phase::Settle => pb::RingPhase::Settle,
    }
}

fn layout(layout: pb::TicketKeyLayout) -> Option<Layout> {
    Some(match layout {
        pb::TicketKeyLayout::Unspecified => return None,
        pb::TicketKeyLayout::TicketKeyLayout80 => Layout::Bytes80,
        pb::TicketKeyLayout::TicketKeyLayout48 => Layout::Bytes48,
        pb::TicketKeyLayout::TicketKeyLayout32 => Layout::Bytes32,
    })
}

fn style(style: pb::TicketKeyStyle) -> Option<Style> {
    Some(match style {
        pb::TicketKeyStyle::Unspecified => return None,
        pb::TicketKeyStyle::List => Style::List,
        pb::TicketKeyStyle::Push => Style::Push,
        pb::TicketKeyStyle::Single => Style::Single,
    })
}

impl From<NotShared> for Refusal {
    fn from(why: NotShared) -> Self {
        Self::RingAway(why)
    }
}

impl NotJoined {
    /// Returns the refusal of a member of the ring with this name.
    fn of_ring(self, ring: &str) -> Refusal {
        match self {
            Self::Gone => Refusal::RingNotFound(ring.into()),
            Self::Refused(refused) => refused.into(),
            Self::NotShared(why) => why.into(),
        }
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        let why = refused.to_string();
        match refused {
            Refused::Name => Self::MemberInvalid {
                field: "member",
                why,
            },
            Refused::TooMany => Self::MemberLimit(why),
            Refused::Fenced => Self::MemberFenced(why),
            Refused::Unknown(..) | Refused::Earlier(..) => Self::InstructionUnknown(why),
        }
    }
}
