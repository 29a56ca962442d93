//! The daemon, its CPU time, and its workers.

use std::sync::Arc;

use bytes::Bytes;
use rustls::ClientConfig;
use tls_sessiond_proto::{
    self as pb, connection_service_client::ConnectionServiceClient,
    drive_request::Event as Request, drive_response::Event as Response,
};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{
    Streaming,
    transport::{Channel, Endpoint},
};

pub(crate) use crate::process::Daemon;
use crate::{
    cpu,
    peer::{Kind, Peer, Setup},
};

impl Daemon {
    pub(crate) fn start(setup: &Setup) -> Self {
        Self::run(&setup.folder.path().join("bench.toml"))
    }

    /// Returns the CPU seconds of the daemon so far.
    pub(crate) fn cpu(&self) -> f64 {
        // The kernel accounts for a running thread with a delay.
        std::thread::sleep(std::time::Duration::from_millis(3));
        cpu::process(self.id())
    }

    pub(crate) async fn channel(&self) -> Channel {
        Endpoint::from_shared(self.unix.clone())
            .unwrap()
            .connect()
            .await
            .unwrap()
    }

    pub(crate) async fn worker(&self, socket: Socket) -> Worker {
        let address = match socket {
            Socket::Tcp => &self.tcp,
            Socket::Unix => &self.unix,
        };
        let channel = Endpoint::from_shared(address.clone())
            .unwrap()
            .connect()
            .await
            .unwrap();
        Worker(ConnectionServiceClient::new(channel))
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Socket {
    Tcp,
    Unix,
}

/// A worker that carries bytes between TLS clients and the daemon. Clones share one HTTP/2
/// connection.
#[derive(Clone)]
pub(crate) struct Worker(ConnectionServiceClient<Channel>);

impl Worker {
    /// Runs one connection on one stream. `new` and the first flight are sent together.
    pub(crate) async fn drive(mut self, config: Arc<ClientConfig>, kind: Kind) {
        let mut peer = Peer::client(&config);
        let mut stream = self.open(&mut peer).await;
        while let Some(answer) = stream.answers.message().await.unwrap() {
            match answer.event.unwrap() {
                Response::Ciphertext(records) => stream.send_records(peer.step(&records)),
                Response::Established(_) => {
                    stream.send(Request::Shutdown(pb::ShutdownRequest::default()));
                    stream.requests = None;
                }
                Response::Opened(_) => {}
                other => panic!("unexpected: {other:?}"),
            }
        }
        peer.check(kind);
    }

    pub(crate) async fn open(&mut self, peer: &mut Peer) -> Stream {
        let (requests, receiver) = unbounded_channel();
        for event in [
            Request::New(new()),
            Request::Ciphertext(peer.flush().into()),
        ] {
            requests
                .send(pb::DriveRequest { event: Some(event) })
                .unwrap();
        }
        let answers = self
            .0
            .drive(UnboundedReceiverStream::new(receiver))
            .await
            .unwrap()
            .into_inner();
        Stream {
            requests: Some(requests),
            answers,
        }
    }

    /// Runs one connection by unary calls.
    pub(crate) async fn exchange(mut self, config: Arc<ClientConfig>, kind: Kind) {
        let mut peer = Peer::client(&config);
        let made = self.0.new_connection(new()).await.unwrap().into_inner();
        let connection_id = made.connection.unwrap().id;
        let mut records = peer.flush();
        loop {
            let request = pb::ExchangeRequest {
                connection_id: connection_id.clone(),
                ciphertext: records.into(),
                ..pb::ExchangeRequest::default()
            };
            let answer = self.0.exchange(request).await.unwrap().into_inner();
            records = peer.step(&answer.ciphertext);
            if answer.connection.unwrap().state() == pb::ConnectionState::Established {
                break;
            }
        }
        let request = pb::ShutdownRequest {
            connection_id: connection_id.clone(),
        };
        let answer = self.0.shutdown(request).await.unwrap().into_inner();
        peer.step(&answer.ciphertext);
        self.0
            .free(pb::FreeRequest {
                connection_id,
                allow_missing: false,
            })
            .await
            .unwrap();
        peer.check(kind);
    }
}

fn new() -> pb::NewRequest {
    pb::NewRequest {
        role: pb::Role::Server.into(),
        ..pb::NewRequest::default()
    }
}

/// Both directions of a Drive stream.
pub(crate) struct Stream {
    pub(crate) requests: Option<UnboundedSender<pb::DriveRequest>>,
    pub(crate) answers: Streaming<pb::DriveResponse>,
}

impl Stream {
    pub(crate) fn send(&self, event: Request) {
        if let Some(requests) = &self.requests {
            requests
                .send(pb::DriveRequest { event: Some(event) })
                .unwrap();
        }
    }

    pub(crate) fn send_records(&self, records: impl Into<Bytes>) {
        let records = records.into();
        if !records.is_empty() {
            self.send(Request::Ciphertext(records));
        }
    }
}
