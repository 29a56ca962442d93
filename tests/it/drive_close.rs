//! The end of a Drive, and of a connection by Exchange, after the peer's close_notify and the end
//! of the transport.

use rustls::{
    ClientConnection, HandshakeKind, SupportedProtocolVersion,
    version::{TLS12, TLS13},
};
use tempfile::TempDir;
use tls_sessiond_proto::{
    self as pb, connection_service_client::ConnectionServiceClient,
    context_service_client::ContextServiceClient, drive_request::Event as Request,
    drive_response::Event as Answer,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::{
    binary::Binary,
    harness::{self, TestDaemon},
    process::{PATIENCE, Server},
    returning::{Certificate, Returning},
};

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// A daemon in its own process, with one context.
struct Stage {
    _daemon: Binary,
    channel: Channel,
    certificate: Certificate,
    _folder: TempDir,
}

impl Stage {
    /// Starts the daemon. `keys` are further keys of the context.
    async fn start(keys: &str) -> Self {
        let certificate = Certificate::new();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("daemon.toml");
        std::fs::write(&file, certificate.context() + keys).unwrap();
        let daemon = Binary::start(&["--config", file.to_str().unwrap()]).await;
        let channel = Endpoint::from_shared(format!("http://{}", daemon.address)).unwrap();
        let channel = channel.connect().await.unwrap();
        Self {
            _daemon: daemon,
            channel,
            certificate,
            _folder: folder,
        }
    }

    fn connections(&self) -> ConnectionServiceClient<Channel> {
        ConnectionServiceClient::new(self.channel.clone())
    }

    /// Opens a Drive. The worker's half stays open until the wire is dropped.
    async fn drive(&self, first: Request) -> Wire {
        let (requests, receiver) = mpsc::channel(8);
        requests
            .send(pb::DriveRequest { event: Some(first) })
            .await
            .unwrap();
        let answers = self
            .connections()
            .drive(ReceiverStream::new(receiver))
            .await
            .unwrap()
            .into_inner();
        let mut wire = Wire {
            id: String::new(),
            requests,
            answers,
        };
        let Ok(Some(Answer::Opened(opened))) = wire.next().await else {
            panic!("not opened")
        };
        wire.id = opened.id;
        wire
    }

    async fn server(&self) -> Wire {
        self.drive(Request::New(harness::new("", pb::Role::Server)))
            .await
    }

    async fn open(&self, role: pb::Role) -> String {
        let made = self
            .connections()
            .new_connection(harness::new("", role))
            .await
            .unwrap()
            .into_inner();
        made.connection.unwrap().id
    }

    async fn exchange(&self, id: &str, input: pb::ExchangeRequest) -> pb::ExchangeResponse {
        let request = pb::ExchangeRequest {
            connection_id: id.into(),
            ..input
        };
        self.connections()
            .exchange(request)
            .await
            .unwrap()
            .into_inner()
    }

    async fn get(&self, id: &str) -> pb::Connection {
        let request = pb::GetConnectionRequest {
            connection_id: id.into(),
        };
        self.connections()
            .get_connection(request)
            .await
            .unwrap()
            .into_inner()
            .connection
            .unwrap()
    }

    async fn free(&self, id: &str) -> Vec<pb::RemovedSession> {
        let request = pb::FreeRequest {
            connection_id: id.into(),
            allow_missing: false,
        };
        self.connections()
            .free(request)
            .await
            .unwrap()
            .into_inner()
            .removed_sessions
    }

    /// Waits until the daemon has no connection object.
    async fn empty(&self) {
        let wait = async {
            let list = pb::ListConnectionsRequest::default();
            while !self
                .connections()
                .list_connections(list.clone())
                .await
                .unwrap()
                .into_inner()
                .connections
                .is_empty()
            {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, wait)
            .await
            .expect("the connections are freed");
    }

    /// Returns how many sessions the context lost because their connection ended open.
    async fn unclosed(&self) -> u64 {
        let request = pb::GetContextRequest::default();
        let context = ContextServiceClient::new(self.channel.clone())
            .get_context(request)
            .await
            .unwrap();
        context
            .into_inner()
            .context
            .unwrap()
            .stats
            .unwrap()
            .unclosed
    }

    /// Returns whether the next handshake of this client resumes.
    async fn resumes(&self, client: &Returning) -> bool {
        let mut tls = client.tls();
        self.server().await.meet(&mut tls).await;
        tls.handshake_kind() == Some(HandshakeKind::Resumed)
    }
}

/// A worker's end of one Drive.
struct Wire {
    id: String,
    requests: mpsc::Sender<pb::DriveRequest>,
    answers: Streaming<pb::DriveResponse>,
}

impl Wire {
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

    /// Sends the client's pending records to the daemon.
    async fn forward(&self, tls: &mut ClientConnection) {
        let records = written(tls);
        if !records.is_empty() {
            self.send(Request::Ciphertext(records.into())).await;
        }
    }

    /// Shakes hands and waits for first data from the server. The tickets come before that data.
    async fn meet(&mut self, tls: &mut ClientConnection) {
        let mut heard = Vec::new();
        while heard != b"hello" {
            self.forward(tls).await;
            match self.next().await.unwrap().expect("the handshake goes on") {
                Answer::Ciphertext(records) => heard.extend(feed(tls, &records)),
                Answer::Established(_) => self.send(Request::Plaintext("hello".into())).await,
                other => panic!("{other:?}"),
            }
        }
    }

    /// Sends the client's close_notify to the daemon. Returns the daemon's Closed event.
    async fn peer_closes(&mut self, tls: &mut ClientConnection) -> pb::DriveClosed {
        tls.send_close_notify();
        self.forward(tls).await;
        match self.next().await.unwrap() {
            Some(Answer::Closed(closed)) => closed,
            other => panic!("{other:?}"),
        }
    }

    /// Reports the end of the transport. Returns all answers up to the end of the stream. That must
    /// come soon although the worker's half stays open.
    async fn ends(&mut self) -> Vec<Answer> {
        self.send(Request::EndOfStream(true)).await;
        let mut answers = Vec::new();
        while let Some(answer) = self.next().await.unwrap() {
            answers.push(answer);
        }
        answers
    }
}

fn written(tls: &mut ClientConnection) -> Vec<u8> {
    let mut records = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut records).unwrap();
    }
    records
}

/// Gives records to the client and returns the plaintext in them.
fn feed(tls: &mut ClientConnection, mut records: &[u8]) -> Vec<u8> {
    let mut plaintext = Vec::new();
    while !records.is_empty() {
        tls.read_tls(&mut records).unwrap();
        let state = tls.process_new_packets().unwrap();
        let mut chunk = vec![0; state.plaintext_bytes_to_read()];
        std::io::Read::read_exact(&mut tls.reader(), &mut chunk).unwrap();
        plaintext.extend(chunk);
    }
    plaintext
}

/// Asserts that the answers are ciphertext that ends with a close_notify. Returns the plaintext
/// before it.
fn close_notify(tls: &mut ClientConnection, answers: &[Answer]) -> Vec<u8> {
    let mut heard = Vec::new();
    for answer in answers {
        let Answer::Ciphertext(records) = answer else {
            panic!("{answer:?}")
        };
        heard.extend(feed(tls, records));
    }
    assert!(
        tls.process_new_packets().unwrap().peer_has_closed(),
        "no close_notify among {answers:?}"
    );
    heard
}

#[tokio::test]
async fn drive_ends_once_the_peer_closed_and_its_transport_ended() {
    for version in VERSIONS {
        let stage = Stage::start("").await;
        let client = Returning::new(&stage.certificate, version);
        let (mut wire, mut tls) = (stage.server().await, client.tls());
        wire.meet(&mut tls).await;
        let closed = wire.peer_closes(&mut tls).await.connection.unwrap();
        assert_eq!(
            closed.shutdown.unwrap(),
            pb::ShutdownFlags {
                sent: false,
                received: true
            }
        );
        let answers = wire.ends().await;
        assert!(close_notify(&mut tls, &answers).is_empty());
        stage.empty().await;
        assert_eq!(stage.unclosed().await, 0, "{version:?}");
        assert!(stage.resumes(&client).await, "{version:?}");
    }
}

#[tokio::test]
async fn plaintext_before_the_end_is_encrypted_first() {
    let stage = Stage::start("").await;
    for version in VERSIONS {
        let client = Returning::new(&stage.certificate, version);
        // The worker still has data for a peer that has closed its half.
        let (mut wire, mut tls) = (stage.server().await, client.tls());
        wire.meet(&mut tls).await;
        wire.peer_closes(&mut tls).await;
        wire.send(Request::Plaintext("the rest".into())).await;
        let answers = wire.ends().await;
        assert_eq!(close_notify(&mut tls, &answers), b"the rest", "{version:?}");

        // Plaintext waits for the handshake. The handshake's last flight brings the close_notify
        // too.
        let (mut wire, mut tls) = (stage.server().await, client.tls());
        wire.send(Request::Plaintext("waited".into())).await;
        let mut heard = Vec::new();
        let mut established = false;
        while !established {
            wire.forward(&mut tls).await;
            match wire.next().await.unwrap().expect("the handshake goes on") {
                Answer::Ciphertext(records) => {
                    heard.extend(feed(&mut tls, &records));
                    tls.send_close_notify();
                }
                Answer::Established(_) => established = true,
                other => panic!("{other:?}"),
            }
        }
        let answers = wire.ends().await;
        let (closed, ciphertext): (Vec<_>, Vec<_>) = answers
            .into_iter()
            .partition(|answer| matches!(answer, Answer::Closed(_)));
        assert_eq!(closed.len(), 1, "{version:?}");
        heard.extend(close_notify(&mut tls, &ciphertext));
        assert_eq!(heard, b"waited", "{version:?}");
    }
}

#[tokio::test]
async fn close_policy_and_quiet_shutdown_decide_kept_sessions() {
    for (policy, options, alert, kept) in [
        ("flag", "", true, true),
        ("written", "", true, true),
        ("errors-only", "", true, true),
        ("flag", "\"quiet-shutdown\"", false, true),
        ("errors-only", "\"quiet-shutdown\"", false, true),
        ("written", "\"quiet-shutdown\"", false, false),
    ] {
        let stage = Stage::start(&format!(
            "close_policy = \"{policy}\"\noptions = [{options}]\n"
        ))
        .await;
        for version in VERSIONS {
            let what = format!("{policy} {options} {version:?}");
            let client = Returning::new(&stage.certificate, version);
            let (mut wire, mut tls) = (stage.server().await, client.tls());
            wire.meet(&mut tls).await;
            let before = stage.unclosed().await;
            wire.peer_closes(&mut tls).await;
            let answers = wire.ends().await;
            if alert {
                close_notify(&mut tls, &answers);
            } else {
                assert!(answers.is_empty(), "{what}: {answers:?}");
            }
            stage.empty().await;
            assert_eq!(stage.unclosed().await == before, kept, "{what}");
            assert_eq!(stage.resumes(&client).await, kept, "{what}");
            stage.empty().await;
        }
    }
}

#[tokio::test]
async fn drive_over_a_connection_ends_and_leaves_it_closed() {
    for (options, evidence) in [
        ("", pb::CloseEvidence::Written),
        ("\"quiet-shutdown\"", pb::CloseEvidence::Asserted),
    ] {
        let stage = Stage::start(&format!("options = [{options}]\n")).await;
        for version in VERSIONS {
            let id = stage.open(pb::Role::Server).await;
            let mut wire = stage.drive(Request::ConnectionId(id.clone())).await;
            let mut tls = Returning::new(&stage.certificate, version).tls();
            wire.meet(&mut tls).await;
            wire.peer_closes(&mut tls).await;
            wire.ends().await;
            let left = stage.get(&id).await;
            assert_eq!(left.state(), pb::ConnectionState::Established);
            assert_eq!(
                left.shutdown.unwrap(),
                pb::ShutdownFlags {
                    sent: true,
                    received: true
                }
            );
            assert_eq!(left.close_evidence(), evidence);
            assert!(stage.free(&id).await.is_empty(), "{version:?}");
        }
    }
}

#[tokio::test]
async fn drive_of_a_client_ends_as_a_servers_does() {
    let stage = Stage::start("").await;
    let server = stage.open(pb::Role::Server).await;
    let mut wire = stage
        .drive(Request::New(harness::new("", pb::Role::Client)))
        .await;
    let mut established = false;
    while !established {
        match wire.next().await.unwrap().expect("the handshake goes on") {
            Answer::Ciphertext(ciphertext) => {
                let input = pb::ExchangeRequest {
                    ciphertext,
                    ..Default::default()
                };
                let flight = stage.exchange(&server, input).await.ciphertext;
                if !flight.is_empty() {
                    wire.send(Request::Ciphertext(flight)).await;
                }
            }
            Answer::Established(_) => established = true,
            other => panic!("{other:?}"),
        }
    }
    let request = pb::ShutdownRequest {
        connection_id: server.clone(),
    };
    let records = stage
        .connections()
        .shutdown(request)
        .await
        .unwrap()
        .into_inner()
        .ciphertext;
    wire.send(Request::Ciphertext(records)).await;
    let mut answers = wire.ends().await;
    let Some(Answer::Ciphertext(ciphertext)) = answers.pop() else {
        panic!("{answers:?}")
    };
    let input = pb::ExchangeRequest {
        ciphertext,
        ..Default::default()
    };
    let told = stage.exchange(&server, input).await.connection.unwrap();
    assert_eq!(
        told.shutdown.unwrap(),
        pb::ShutdownFlags {
            sent: true,
            received: true
        }
    );
    assert!(matches!(answers.pop(), Some(Answer::Closed(_))));
    stage.free(&server).await;
    stage.empty().await;
    assert_eq!(stage.unclosed().await, 0);
}

#[tokio::test]
async fn exchange_at_the_end_answers_the_peers_close() {
    let stage = Stage::start("").await;
    for version in VERSIONS {
        for at_once in [true, false] {
            let client = Returning::new(&stage.certificate, version);
            let (id, mut tls) = (stage.open(pb::Role::Server).await, client.tls());
            loop {
                let input = pb::ExchangeRequest {
                    ciphertext: written(&mut tls).into(),
                    ..Default::default()
                };
                let answer = stage.exchange(&id, input).await;
                feed(&mut tls, &answer.ciphertext);
                if answer.connection.unwrap().state() == pb::ConnectionState::Established {
                    break;
                }
            }
            tls.send_close_notify();
            let closing = pb::ExchangeRequest {
                ciphertext: written(&mut tls).into(),
                ..Default::default()
            };
            let ending = pb::ExchangeRequest {
                plaintext: "the rest".into(),
                end_of_stream: true,
                ..Default::default()
            };
            let answer = if at_once {
                let ciphertext = closing.ciphertext;
                stage
                    .exchange(
                        &id,
                        pb::ExchangeRequest {
                            ciphertext,
                            ..ending
                        },
                    )
                    .await
            } else {
                let half = stage.exchange(&id, closing).await;
                assert!(
                    half.ciphertext.is_empty(),
                    "a half-closed connection goes on"
                );
                stage.exchange(&id, ending).await
            };
            let heard = close_notify(&mut tls, &[Answer::Ciphertext(answer.ciphertext)]);
            assert_eq!(heard, b"the rest", "{version:?}, at once: {at_once}");
            let closed = answer.connection.unwrap();
            assert_eq!(
                closed.shutdown.unwrap(),
                pb::ShutdownFlags {
                    sent: true,
                    received: true
                }
            );
            assert_eq!(closed.close_evidence(), pb::CloseEvidence::Written);
            assert!(answer.alert.is_none() && answer.removed_sessions.is_empty());
            // A second end of stream sends no second alert (decision 3).
            let again = pb::ExchangeRequest {
                end_of_stream: true,
                ..Default::default()
            };
            assert!(stage.exchange(&id, again).await.ciphertext.is_empty());
            assert!(
                stage.free(&id).await.is_empty(),
                "{version:?}, at once: {at_once}"
            );
        }
    }
}

#[tokio::test]
async fn end_after_this_sides_close_makes_no_second_alert() {
    let stage = Stage::start("").await;
    for version in VERSIONS {
        let client = Returning::new(&stage.certificate, version);
        let (mut wire, mut tls) = (stage.server().await, client.tls());
        wire.meet(&mut tls).await;
        wire.send(Request::Shutdown(pb::ShutdownRequest::default()))
            .await;
        let Ok(Some(answer)) = wire.next().await else {
            panic!("no close_notify")
        };
        close_notify(&mut tls, &[answer]);
        wire.peer_closes(&mut tls).await;
        assert_eq!(wire.ends().await, [], "{version:?}");
        stage.empty().await;
        assert_eq!(stage.unclosed().await, 0, "{version:?}");
    }
}

#[tokio::test]
async fn end_without_close_notify_still_fails_the_connection() {
    let stage = Stage::start("").await;
    for version in VERSIONS {
        let client = Returning::new(&stage.certificate, version);
        let (mut wire, mut tls) = (stage.server().await, client.tls());
        wire.meet(&mut tls).await;
        let answers = wire.ends().await;
        let [Answer::Closed(closed)] = answers.as_slice() else {
            panic!("{answers:?}")
        };
        assert_eq!(
            closed.connection.as_ref().unwrap().state(),
            pb::ConnectionState::Failed
        );
        assert!(!closed.removed_sessions.is_empty(), "{version:?}");
        stage.empty().await;
        assert!(!stage.resumes(&client).await, "{version:?}");
        stage.empty().await;
    }
}

#[tokio::test]
async fn ignored_end_without_close_notify_is_a_close() {
    for version in VERSIONS {
        let stage = Stage::start("options = [\"ignore-unexpected-eof\"]\n").await;
        let client = Returning::new(&stage.certificate, version);
        let (mut wire, mut tls) = (stage.server().await, client.tls());
        wire.meet(&mut tls).await;
        let mut answers = wire.ends().await;
        let Some(Answer::Closed(closed)) = answers.pop() else {
            panic!("{answers:?}")
        };
        let flags = closed.connection.unwrap().shutdown.unwrap();
        assert_eq!(
            flags,
            pb::ShutdownFlags {
                sent: true,
                received: true
            }
        );
        close_notify(&mut tls, &answers);
        stage.empty().await;
        assert_eq!(stage.unclosed().await, 0, "{version:?}");
        assert!(stage.resumes(&client).await, "{version:?}");
    }
}

#[tokio::test]
async fn end_in_a_handshake_ends_the_drive() {
    for options in ["", "\"ignore-unexpected-eof\""] {
        let stage = Stage::start(&format!("options = [{options}]\n")).await;
        for started in [false, true] {
            let mut wire = stage.server().await;
            if started {
                let mut tls = Returning::new(&stage.certificate, &TLS13).tls();
                wire.forward(&mut tls).await;
            }
            wire.send(Request::Plaintext("never sent".into())).await;
            let answers = wire.ends().await;
            assert!(
                matches!(answers.last(), Some(Answer::Closed(_))),
                "{options}: {answers:?}"
            );
            assert!(
                !answers
                    .iter()
                    .any(|answer| matches!(answer, Answer::Established(_)))
            );
            stage.empty().await;
        }
    }
}

#[tokio::test]
async fn empty_ciphertext_is_echoed_after_all_earlier_answers() {
    let stage = Stage::start("").await;
    let echo = || Request::Ciphertext(Vec::new().into());
    let is_echo = |answer: &Answer| matches!(answer, Answer::Ciphertext(none) if none.is_empty());
    let mut wire = stage.server().await;
    wire.send(echo()).await;
    assert!(is_echo(&wire.next().await.unwrap().unwrap()));
    let mut tls = Returning::new(&stage.certificate, &TLS13).tls();
    wire.meet(&mut tls).await;
    wire.send(Request::Plaintext("more".into())).await;
    wire.send(Request::Shutdown(pb::ShutdownRequest::default()))
        .await;
    wire.send(echo()).await;
    let mut answers = Vec::new();
    while !answers.last().is_some_and(is_echo) {
        answers.push(wire.next().await.unwrap().unwrap());
    }
    answers.pop();
    assert_eq!(close_notify(&mut tls, &answers), b"more");
}

#[tokio::test]
async fn end_of_stream_that_is_false_is_refused() {
    let stage = Stage::start("").await;
    let id = stage.open(pb::Role::Server).await;
    let mut wire = stage.drive(Request::ConnectionId(id.clone())).await;
    wire.send(Request::EndOfStream(false)).await;
    let refusal = wire.next().await.unwrap_err();
    assert_eq!(refusal.code(), Code::InvalidArgument);
    assert_eq!(harness::reason(&refusal), "END_OF_STREAM_INVALID");
    assert_eq!(
        stage.get(&id).await.state(),
        pb::ConnectionState::Before,
        "nothing was changed"
    );
}

#[tokio::test]
async fn client_that_closes_an_idle_connection_keeps_its_session() {
    for version in VERSIONS {
        let certificate = Certificate::new();
        let daemon = TestDaemon::with(&certificate.context()).await;
        let server = Server::start(&daemon, "one").await;
        let client = Returning::new(&certificate, version);
        let mut tls = client.connect(&server.address).await;
        // The client sends a close_notify and ends its socket at once.
        tokio::io::AsyncWriteExt::shutdown(&mut tls).await.unwrap();
        drop(tls);
        daemon
            .until("the connection is freed", async |daemon| {
                daemon.core.connections().is_empty()
            })
            .await;
        let page = client.fetch(&server.address).await;
        assert!(page.contains("resumed: true"), "{version:?}: {page}");
    }
}
