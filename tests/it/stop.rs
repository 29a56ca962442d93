//! The stop of the daemon: health changes first, then new streams are refused, and running streams
//! are aborted at the drain time-out.

use std::time::{Duration, Instant};

use tls_sessiond_core::connection::ConnectionId;
use tls_sessiond_proto::{
    self as pb, connection_service_client::ConnectionServiceClient, drive_request::Event,
    drive_response::Event as Answer,
};
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    sync::mpsc::{self, Sender},
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Code, Streaming, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    binary::Binary,
    harness::{TestDaemon, new, reason},
};

async fn drive(
    daemon: &TestDaemon,
    role: pb::Role,
) -> (Sender<pb::DriveRequest>, Streaming<pb::DriveResponse>) {
    let (events, receiver) = mpsc::channel(8);
    events.send(event(Event::New(new("", role)))).await.unwrap();
    let answers = daemon
        .connections()
        .drive(ReceiverStream::new(receiver))
        .await
        .unwrap()
        .into_inner();
    (events, answers)
}

fn event(event: Event) -> pb::DriveRequest {
    pb::DriveRequest { event: Some(event) }
}

async fn health(daemon: &TestDaemon, service: &str) -> ServingStatus {
    let request = HealthCheckRequest {
        service: service.into(),
    };
    HealthClient::new(daemon.channel.clone())
        .check(request)
        .await
        .unwrap()
        .into_inner()
        .status()
}

/// Opens a mute connection: one that never sends a byte, as lazy client pools do.
async fn mute(daemon: &TestDaemon) -> TcpStream {
    TcpStream::connect(&daemon.address).await.unwrap()
}

#[tokio::test]
async fn idle_daemon_stops_at_once_even_with_mute_connections() {
    let daemon = TestDaemon::with("[drain]\ntimeout = \"1h\"\n").await;
    let mut mute = mute(&daemon).await;
    assert_eq!(health(&daemon, "").await, ServingStatus::Serving);
    let (begun, core) = (Instant::now(), daemon.core.clone());
    daemon.stop().await;
    assert!(
        begun.elapsed() < Duration::from_secs(30),
        "the stop waited for a mute connection"
    );
    assert!(core.connections().is_empty());
    // The daemon's own greeting may arrive before the end of the connection.
    let mut greeting = Vec::new();
    let closed =
        tokio::time::timeout(Duration::from_secs(10), mute.read_to_end(&mut greeting)).await;
    assert!(closed.is_ok(), "the mute connection stays open");
}

#[tokio::test]
async fn running_stream_is_aborted_at_the_drain_time_out() {
    let mut daemon = TestDaemon::with("[drain]\ndelay = \"1s\"\ntimeout = \"4s\"\n").await;
    let (events, mut answers) = drive(&daemon, pb::Role::Server).await;
    let Answer::Opened(opened) = answers.next().await.unwrap().unwrap().event.unwrap() else {
        panic!("not opened")
    };
    let client = daemon.open(pb::Role::Client).await;
    let hello = daemon.exchange(&client, b"", b"").await.unwrap().ciphertext;
    let mute = mute(&daemon).await;

    daemon.begin_stop();
    daemon
        .until("health is NOT_SERVING", async |daemon| {
            health(daemon, "").await == ServingStatus::NotServing
        })
        .await;
    for service in ["ConnectionService", "SessionService", "ContextService"] {
        let service = format!("tls.sessiond.v1.{service}");
        assert_eq!(
            health(&daemon, &service).await,
            ServingStatus::NotServing,
            "{service}"
        );
    }
    // New streams are refused once the delay has passed, by an error of the daemon or by its
    // GOAWAY.
    daemon
        .until("new streams are refused", async |daemon| {
            let requests = tokio_stream::iter([event(Event::New(new("", pb::Role::Server)))]);
            match daemon.connections().drive(requests).await {
                Ok(_) => false,
                Err(status) => {
                    assert!(
                        status.code() == Code::Unavailable
                            || reason(&status) == "DRAINING"
                            || reason(&status).is_empty(),
                        "{status:?}"
                    );
                    true
                }
            }
        })
        .await;
    // The running stream still works, so the handshake goes on.
    events.send(event(Event::Ciphertext(hello))).await.unwrap();
    let Answer::Ciphertext(flight) = answers.next().await.unwrap().unwrap().event.unwrap() else {
        panic!("no flight")
    };
    assert!(!flight.is_empty());
    assert!(
        daemon
            .core
            .connections()
            .inspect(ConnectionId::parse(&opened.id).unwrap(), |_, _| ())
            .is_ok()
    );

    // At the time-out the stream is aborted, its connection is freed, and the daemon ends well
    // although the worker kept the stream open.
    let core = daemon.core.clone();
    let end = loop {
        match answers.next().await {
            Some(Ok(_)) => {}
            Some(Err(status)) => break Some(status),
            None => break None,
        }
    };
    assert!(end.is_some(), "an aborted stream ends with an error");
    daemon.stop().await;
    assert!(core.connections().is_empty());
    drop((events, mute));
}

#[tokio::test]
async fn binary_prints_its_greeting_and_exits_0_on_sigterm() {
    let daemon = Binary::start(&["--set", "drain.timeout=1s"]).await;
    let mute = TcpStream::connect(&daemon.address).await.unwrap();
    // A stream that its worker never ends.
    let channel = Channel::from_shared(format!("http://{}", daemon.address))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let (events, receiver) = mpsc::channel(8);
    events
        .send(event(Event::New(new("", pb::Role::Server))))
        .await
        .unwrap();
    let mut client = ConnectionServiceClient::new(channel);
    let mut answers = client
        .drive(ReceiverStream::new(receiver))
        .await
        .unwrap()
        .into_inner();
    assert!(answers.next().await.unwrap().is_ok());

    daemon.terminate().await;
    let address = daemon.address.clone();
    let greeting = daemon.greeting.clone();
    let (status, rest) = daemon.end().await;
    assert_eq!(status.code(), Some(0));
    assert!(
        greeting.starts_with(concat!("tls-sessiond ", env!("CARGO_PKG_VERSION"))),
        "{greeting}"
    );
    assert!(rest.contains("certificate for localhost"), "{rest}");
    assert!(
        rest.ends_with(&format!("try: grpcurl -plaintext {address} list\n")),
        "{rest}"
    );
    drop((events, mute));
}

#[tokio::test]
async fn second_signal_ends_the_binary_at_once() {
    let daemon = Binary::start(&["--set", "drain.delay=1h"]).await;
    daemon.terminate().await;
    // Health shows when the first signal has been received.
    let channel = Channel::from_shared(format!("http://{}", daemon.address))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut health = HealthClient::new(channel);
    let asked = async {
        let request = HealthCheckRequest::default();
        while health
            .check(request.clone())
            .await
            .unwrap()
            .into_inner()
            .status()
            != ServingStatus::NotServing
        {}
    };
    tokio::time::timeout(Duration::from_secs(20), asked)
        .await
        .unwrap();
    daemon.terminate().await;
    assert_eq!(daemon.end().await.0.code(), Some(128 + 15));
}
