//! A server in a ring, played by a test, and what tests ask of rings.

use std::time::Duration;

use tls_sessiond_proto::{
    self as pb, ticket_key_service_client::TicketKeyServiceClient,
    watch_ticket_keys_request::Event as Said,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

use crate::{
    harness::{TestDaemon, reason},
    process::PATIENCE,
};

pub(super) fn client(daemon: &TestDaemon) -> TicketKeyServiceClient<Channel> {
    TicketKeyServiceClient::new(daemon.channel.clone())
}

/// A server that does what it is told when the test says so.
pub(super) struct Member {
    says: mpsc::Sender<pb::WatchTicketKeysRequest>,
    told: Streaming<pb::WatchTicketKeysResponse>,
}

impl Member {
    pub(super) async fn join(daemon: &TestDaemon, name: &str, style: pb::TicketKeyStyle) -> Self {
        Self::join_with(daemon, name, style, pb::TicketKeyLayout::TicketKeyLayout80).await
    }

    pub(super) async fn join_with(
        daemon: &TestDaemon,
        name: &str,
        style: pb::TicketKeyStyle,
        layout: pb::TicketKeyLayout,
    ) -> Self {
        let (says, said) = mpsc::channel(8);
        let join = pb::JoinRing {
            ring: "web".into(),
            member: name.into(),
            layout: layout.into(),
            style: style.into(),
        };
        let event = Some(Said::Join(join));
        says.send(pb::WatchTicketKeysRequest { event })
            .await
            .unwrap();
        let mut client = client(daemon);
        let watch = client.watch_ticket_keys(ReceiverStream::new(said));
        let told = watch.await.unwrap().into_inner();
        Self { says, told }
    }

    pub(super) async fn told(&mut self) -> Result<pb::WatchTicketKeysResponse, Status> {
        let told = timeout(PATIENCE, self.told.message()).await;
        told.expect("nothing told")
            .map(|told| told.expect("the stream ended"))
    }

    pub(super) async fn says(&self, event: Said) {
        let event = Some(event);
        self.says
            .send(pb::WatchTicketKeysRequest { event })
            .await
            .unwrap();
    }

    pub(super) async fn acknowledges(&self, sequence: u64) {
        self.says(Said::Acknowledge(pb::AcknowledgeKeys { sequence }))
            .await;
    }

    /// Takes an instruction and acknowledges it.
    pub(super) async fn runs(&mut self) -> pb::WatchTicketKeysResponse {
        let told = self.told().await.unwrap();
        self.acknowledges(told.sequence).await;
        told
    }

    pub(super) async fn refused(mut self) -> String {
        loop {
            if let Err(status) = self.told().await {
                return reason(&status);
            }
        }
    }
}

pub(super) async fn ring(daemon: &TestDaemon) -> pb::Ring {
    let request = pb::GetRingRequest { ring: "web".into() };
    let got = client(daemon).get_ring(request).await.unwrap();
    got.into_inner().ring.unwrap()
}

/// Waits until the ring is as `wanted` says.
pub(super) async fn until(daemon: &TestDaemon, wanted: impl Fn(&pb::Ring) -> bool) -> pb::Ring {
    let wait = async {
        loop {
            let ring = ring(daemon).await;
            if wanted(&ring) {
                return ring;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait)
        .await
        .expect("the ring never was so")
}

pub(super) fn epochs(told: &pb::WatchTicketKeysResponse) -> Vec<u64> {
    told.keys.iter().map(|key| key.epoch).collect()
}
