//! The close rule over sockets: a session of a connection that ends open is not resumed at any
//! worker.

use std::time::Duration;

use rustls::{
    ClientConnection, HandshakeKind, SupportedProtocolVersion,
    version::{TLS12, TLS13},
};
use tls_sessiond_proto::{
    self as pb, connection_service_client::ConnectionServiceClient,
    drive_request::Event as Request, drive_response::Event as Answer,
};
use tokio::{io::AsyncWriteExt, net::TcpStream, sync::mpsc, time::timeout};
use tokio_rustls::client::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::{
    harness::{self, TestDaemon},
    process::{PATIENCE, Server},
    returning::{Certificate, Returning},
};

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// How a connection ends.
#[derive(Clone, Copy, Debug)]
enum Ending {
    /// The client's TCP connection ends without a close_notify.
    TransportEnds,
    /// The worker ends its stream without a Shutdown.
    WorkerHangsUp,
    /// The worker's stream is cut.
    StreamCut,
    /// The connection is idle for longer than the idle time-out.
    Idle,
    /// The client receives garbage and sends an alert.
    AlertFromPeer,
    /// The client sends garbage.
    AlertToPeer,
    /// The client closes, and the worker does not.
    PeerCloses,
    /// The worker calls Shutdown.
    Shutdown,
    /// The worker calls Shutdown, and the client closes without a close_notify.
    ShutdownThenTransportEnds,
    /// The worker sets the SENT flag and hangs up.
    SetShutdown,
}

// Invariant 1.
#[tokio::test]
async fn sessions_of_connections_that_end_open_are_removed() {
    use Ending::*;
    for ending in [
        TransportEnds,
        WorkerHangsUp,
        StreamCut,
        Idle,
        AlertFromPeer,
        AlertToPeer,
        PeerCloses,
    ] {
        for version in VERSIONS {
            assert!(
                !resumes_after(ending, version).await,
                "{ending:?} {version:?}"
            );
        }
    }
}

#[tokio::test]
async fn sessions_of_connections_that_were_closed_are_kept() {
    use Ending::*;
    for ending in [Shutdown, ShutdownThenTransportEnds, SetShutdown] {
        for version in VERSIONS {
            assert!(
                resumes_after(ending, version).await,
                "{ending:?} {version:?}"
            );
        }
    }
}

/// Returns whether a client whose first connection ended in this way resumes at another worker.
async fn resumes_after(ending: Ending, version: &'static SupportedProtocolVersion) -> bool {
    let certificate = Certificate::new();
    let daemon = TestDaemon::with(&certificate.context()).await;
    let client = Returning::new(&certificate, version);

    let mut tls = client.tls();
    let mut worker = Worker::open(&daemon).await;
    worker.meet(&mut tls).await;
    let sessions = daemon.server_sessions().await;
    assert!(sessions > 0);
    worker.end(ending, &mut tls, &daemon).await;
    daemon
        .until("the connection is freed", async |daemon| {
            daemon.core.connections().is_empty()
        })
        .await;
    let kept = daemon.server_sessions().await;
    assert!(
        kept == 0 || kept == sessions,
        "a family is kept or removed as a whole"
    );

    let mut tls = client.tls();
    Worker::open(&daemon).await.meet(&mut tls).await;
    let resumed = tls.handshake_kind() == Some(HandshakeKind::Resumed);
    assert_eq!(resumed, kept > 0);
    offered_once(&daemon, resumed).await;
    daemon.stop().await;
    resumed
}

/// Asserts that the client offered one session, which was a hit or a miss.
async fn offered_once(daemon: &TestDaemon, hit: bool) {
    let context = daemon
        .contexts()
        .get_context(pb::GetContextRequest::default())
        .await
        .unwrap();
    let stats = context.into_inner().context.unwrap().stats.unwrap();
    assert_eq!(
        (stats.hits, stats.misses),
        if hit { (1, 0) } else { (0, 1) }
    );
}

/// A worker with one Drive of a server's connection, over its own channel.
struct Worker {
    id: String,
    requests: mpsc::Sender<pb::DriveRequest>,
    answers: Streaming<pb::DriveResponse>,
    _channel: Channel,
}

impl Worker {
    async fn open(daemon: &TestDaemon) -> Self {
        let channel = Endpoint::from_shared(format!("http://{}", daemon.address)).unwrap();
        let channel = channel.connect().await.unwrap();
        let (requests, receiver) = mpsc::channel(4);
        let new = Request::New(harness::new("", pb::Role::Server));
        requests
            .send(pb::DriveRequest { event: Some(new) })
            .await
            .unwrap();
        let answers = ConnectionServiceClient::new(channel.clone())
            .drive(ReceiverStream::new(receiver))
            .await
            .unwrap()
            .into_inner();
        let mut worker = Self {
            id: String::new(),
            requests,
            answers,
            _channel: channel,
        };
        let Ok(Some(Answer::Opened(opened))) = worker.next().await else {
            panic!("not opened")
        };
        worker.id = opened.id;
        worker
    }

    async fn send(&self, event: Request) {
        self.requests
            .send(pb::DriveRequest { event: Some(event) })
            .await
            .unwrap();
    }

    async fn next(&mut self) -> Result<Option<Answer>, Status> {
        let answer = timeout(PATIENCE, self.answers.message())
            .await
            .expect("an answer")?;
        Ok(answer.and_then(|answer| answer.event))
    }

    /// Waits until the daemon reports that the peer's side ended. Returns the alert, if any.
    async fn closed(&mut self) -> Option<pb::Alert> {
        loop {
            match self.next().await.unwrap().expect("closed") {
                Answer::Closed(closed) => return closed.alert,
                Answer::Ciphertext(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Shakes hands and waits for first data from the server. The tickets come before that data.
    async fn meet(&mut self, tls: &mut ClientConnection) {
        let mut heard = Vec::new();
        while heard != b"hello" {
            self.forward(tls).await;
            match self.next().await.unwrap().expect("the handshake goes on") {
                Answer::Ciphertext(records) => heard.extend(feed(tls, &records).unwrap()),
                Answer::Established(_) => self.send(Request::Plaintext("hello".into())).await,
                other => panic!("{other:?}"),
            }
        }
    }

    /// Sends the client's pending records to the daemon.
    async fn forward(&mut self, tls: &mut ClientConnection) {
        let records = written(tls);
        if !records.is_empty() {
            self.send(Request::Ciphertext(records.into())).await;
        }
    }

    async fn end(mut self, ending: Ending, tls: &mut ClientConnection, daemon: &TestDaemon) {
        match ending {
            Ending::TransportEnds => {
                self.send(Request::EndOfStream(true)).await;
                assert_eq!(self.closed().await, None);
            }
            Ending::WorkerHangsUp => {
                drop(self.requests);
                let rest = timeout(PATIENCE, self.answers.message())
                    .await
                    .expect("the end")
                    .unwrap();
                assert_eq!(rest, None);
            }
            Ending::StreamCut => {}
            Ending::Idle => {
                daemon.clock.advance(Duration::from_secs(301));
                let freed = self.next().await.expect_err("the stream ends");
                assert_eq!(harness::reason(&freed), "CONNECTION_FREED");
            }
            Ending::AlertFromPeer => {
                feed(
                    tls,
                    &[23, 3, 3, 0, 32]
                        .into_iter()
                        .chain([0; 32])
                        .collect::<Vec<_>>(),
                )
                .unwrap_err();
                self.forward(tls).await;
                let alert = self.closed().await.expect("an alert");
                assert_eq!(
                    (alert.name.as_str(), alert.received),
                    ("bad_record_mac", true)
                );
            }
            Ending::AlertToPeer => {
                std::io::Write::write_all(&mut tls.writer(), b"hello").unwrap();
                let mut records = written(tls);
                *records.last_mut().unwrap() ^= 1;
                self.send(Request::Ciphertext(records.into())).await;
                let alert = self.closed().await.expect("an alert");
                assert_eq!(
                    (alert.name.as_str(), alert.received),
                    ("bad_record_mac", false)
                );
            }
            Ending::PeerCloses => {
                tls.send_close_notify();
                self.forward(tls).await;
                assert_eq!(self.closed().await, None);
            }
            Ending::Shutdown => self.shut_down(tls).await,
            Ending::ShutdownThenTransportEnds => {
                self.shut_down(tls).await;
                self.send(Request::EndOfStream(true)).await;
                assert_eq!(self.closed().await, None);
            }
            Ending::SetShutdown => {
                let shutdown = Some(pb::ShutdownFlags {
                    sent: true,
                    received: false,
                });
                let request = pb::SetShutdownRequest {
                    connection_id: self.id.clone(),
                    shutdown,
                };
                daemon.connections().set_shutdown(request).await.unwrap();
            }
        }
    }

    async fn shut_down(&mut self, tls: &mut ClientConnection) {
        self.send(Request::Shutdown(pb::ShutdownRequest::default()))
            .await;
        let Ok(Some(Answer::Ciphertext(records))) = self.next().await else {
            panic!("no close_notify")
        };
        tls.read_tls(&mut &records[..]).unwrap();
        assert!(tls.process_new_packets().unwrap().peer_has_closed());
    }
}

fn written(tls: &mut ClientConnection) -> Vec<u8> {
    let mut records = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut records).unwrap();
    }
    records
}

/// Gives records to the client. Returns the plaintext in them.
fn feed(tls: &mut ClientConnection, mut records: &[u8]) -> Result<Vec<u8>, rustls::Error> {
    let mut plaintext = Vec::new();
    while !records.is_empty() {
        tls.read_tls(&mut records).unwrap();
        let state = tls.process_new_packets()?;
        let mut chunk = vec![0; state.plaintext_bytes_to_read()];
        std::io::Read::read_exact(&mut tls.reader(), &mut chunk).unwrap();
        plaintext.extend(chunk);
    }
    Ok(plaintext)
}

/// Connects a client to one worker, lets `end` end the connection, and asserts that the client does
/// not resume at another worker.
async fn comes_back_after(end: impl AsyncFn(Server, TlsStream<TcpStream>)) {
    for version in VERSIONS {
        let certificate = Certificate::new();
        let daemon = TestDaemon::with(&certificate.context()).await;
        let (one, two) = (
            Server::start(&daemon, "one").await,
            Server::start(&daemon, "two").await,
        );
        let client = Returning::new(&certificate, version);

        let mut tls = client.connect(&one.address).await;
        tls.write_all(b"GET / HT").await.unwrap();
        assert!(daemon.server_sessions().await > 0);
        end(one, tls).await;
        daemon
            .until("the connection is freed", async |daemon| {
                daemon.core.connections().is_empty()
            })
            .await;
        assert_eq!(daemon.server_sessions().await, 0, "{version:?}");

        let page = client.fetch(&two.address).await;
        assert!(
            page.contains("two:") && page.contains("resumed: false"),
            "{version:?}: {page}"
        );
        offered_once(&daemon, false).await;
    }
}

// Invariant 1.
#[tokio::test]
async fn killed_worker_loses_sessions_of_open_connections() {
    comes_back_after(async |worker, _tls| worker.process.kill().await).await;
}

#[tokio::test]
async fn client_that_cuts_its_socket_loses_the_session() {
    comes_back_after(async |_worker, tls| drop(tls)).await;
}

#[tokio::test]
async fn session_closed_at_one_worker_resumes_at_another() {
    for version in VERSIONS {
        let certificate = Certificate::new();
        let daemon = TestDaemon::with(&certificate.context()).await;
        let (one, two) = (
            Server::start(&daemon, "one").await,
            Server::start(&daemon, "two").await,
        );
        let client = Returning::new(&certificate, version);

        let page = client.fetch(&one.address).await;
        assert!(
            page.contains("one:") && page.contains("resumed: false"),
            "{version:?}: {page}"
        );
        let page = client.fetch(&two.address).await;
        assert!(
            page.contains("two:") && page.contains("resumed: true"),
            "{version:?}: {page}"
        );
        offered_once(&daemon, true).await;
    }
}
