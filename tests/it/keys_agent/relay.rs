//! Slow members: a relay between agents and their daemon that gives each instruction late to some of them. It passes the
//! acknowledgements of the agents on, or acknowledges in their place before they have an instruction.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tls_sessiond_proto::{
    self as pb,
    ticket_key_service_client::TicketKeyServiceClient,
    ticket_key_service_server::{TicketKeyService, TicketKeyServiceServer},
    watch_ticket_keys_request::Event,
};
use tokio::{
    net::TcpListener,
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Server},
};

/// How late a slow member gets an instruction. Without acknowledgements a ring rotates every 2 to 3 s, and a HAProxy already has
/// the keys of the next rotation: only a longer delay loses a ticket there.
const DELAY: Duration = Duration::from_secs(4);
/// Messages that may wait.
const WAITING_MAX: usize = 64;

/// The source of the acknowledgements that the daemon gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Acknowledgement {
    /// The agent, when its server runs the keys.
    Agent,
    /// The relay, at once.
    Relay,
}

struct Relay {
    daemon: Channel,
    acknowledgement: Acknowledgement,
    delays: Arc<AtomicBool>,
}

/// Starts a relay. Returns its address, for agents, and whether it delays instructions: not yet. A slow server that joins a ring
/// with such short times would never count, because each instruction is replaced before the server runs it.
pub(super) async fn relay(
    daemon: Channel,
    acknowledgement: Acknowledgement,
) -> (String, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    let delays = Arc::default();
    let relay = TicketKeyServiceServer::new(Relay {
        daemon,
        acknowledgement,
        delays: Arc::clone(&delays),
    });
    let serve = Server::builder().add_service(relay);
    tokio::spawn(serve.serve_with_incoming(TcpListenerStream::new(listener)));
    (address, delays)
}

/// Returns whether a member gets its instructions late.
pub(super) fn is_slow(member: &str) -> bool {
    member.ends_with("-2")
}

#[tonic::async_trait]
impl TicketKeyService for Relay {
    type WatchTicketKeysStream = ReceiverStream<Result<pb::WatchTicketKeysResponse, Status>>;

    async fn watch_ticket_keys(
        &self,
        request: Request<Streaming<pb::WatchTicketKeysRequest>>,
    ) -> Result<Response<Self::WatchTicketKeysStream>, Status> {
        let mut said = request.into_inner();
        let join = said.message().await?.expect("the agent joins");
        let slow = matches!(&join.event, Some(Event::Join(join)) if is_slow(&join.member));
        let acknowledges = self.acknowledgement == Acknowledgement::Relay;
        let (says, heard) = mpsc::channel(WAITING_MAX);
        says.send(join).await.unwrap();
        let mut client = TicketKeyServiceClient::new(self.daemon.clone());
        let told = client.watch_ticket_keys(ReceiverStream::new(heard)).await?;
        let mut told = told.into_inner();
        let at_once = acknowledges.then(|| says.clone());
        tokio::spawn(async move {
            while let Ok(Some(message)) = said.message().await {
                let answers = matches!(
                    message.event,
                    Some(Event::Acknowledge(_) | Event::Refuse(_))
                );
                if answers && acknowledges {
                    continue;
                }
                if says.send(message).await.is_err() {
                    break;
                }
            }
        });
        let (waits, mut waiting) = mpsc::channel(WAITING_MAX);
        let delays = Arc::clone(&self.delays);
        tokio::spawn(async move {
            while let Some(message) = told.message().await.transpose() {
                if let (Ok(message), Some(says)) = (&message, &at_once) {
                    let sequence = message.sequence;
                    let event = Some(Event::Acknowledge(pb::AcknowledgeKeys { sequence }));
                    drop(says.send(pb::WatchTicketKeysRequest { event }).await);
                }
                let delay = match slow && delays.load(Ordering::Relaxed) {
                    true => DELAY,
                    false => Duration::ZERO,
                };
                if waits.send((Instant::now() + delay, message)).await.is_err() {
                    break;
                }
            }
        });
        let (tells, answer) = mpsc::channel(WAITING_MAX);
        tokio::spawn(async move {
            while let Some((due, message)) = waiting.recv().await {
                sleep_until(due).await;
                if tells.send(message).await.is_err() {
                    break;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(answer)))
    }

    async fn list_rings(
        &self,
        _: Request<pb::ListRingsRequest>,
    ) -> Result<Response<pb::ListRingsResponse>, Status> {
        Err(Status::unimplemented("agents do not call it"))
    }

    async fn get_ring(
        &self,
        _: Request<pb::GetRingRequest>,
    ) -> Result<Response<pb::GetRingResponse>, Status> {
        Err(Status::unimplemented("agents do not call it"))
    }

    async fn rotate_ring(
        &self,
        _: Request<pb::RotateRingRequest>,
    ) -> Result<Response<pb::RotateRingResponse>, Status> {
        Err(Status::unimplemented("agents do not call it"))
    }

    async fn fence_member(
        &self,
        _: Request<pb::FenceMemberRequest>,
    ) -> Result<Response<pb::FenceMemberResponse>, Status> {
        Err(Status::unimplemented("agents do not call it"))
    }

    async fn seal_ticket(
        &self,
        _: Request<pb::SealTicketRequest>,
    ) -> Result<Response<pb::SealTicketResponse>, Status> {
        Err(Status::unimplemented("agents do not call it"))
    }

    async fn open_ticket(
        &self,
        _: Request<pb::OpenTicketRequest>,
    ) -> Result<Response<pb::OpenTicketResponse>, Status> {
        Err(Status::unimplemented("agents do not call it"))
    }
}
