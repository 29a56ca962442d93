//! Corner cases of gRPC and HTTP/2 that clients in other languages, and curl, reach.

use bytes::Bytes;
use http::Request;
use prost::Message;
use tls_sessiond_proto as pb;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{
    Code, Status, client::Grpc, codegen::http::uri::PathAndQuery, metadata::MetadataMap,
    transport::Channel,
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt;

use crate::{
    binary::Binary,
    frames::{self, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, Raw, frame},
    harness::{TestDaemon, new, reason},
    process::PATIENCE,
};

const NEW: &str = "/tls.sessiond.v1.ConnectionService/New";
const LIST: &str = "/tls.sessiond.v1.ContextService/ListContexts";

#[tokio::test]
async fn unary_call_has_exactly_one_message() {
    let daemon = TestDaemon::start().await;
    for count in [0, 2, 1000] {
        let mut grpc = Grpc::new(daemon.channel.clone());
        grpc.ready().await.unwrap();
        let requests = tokio_stream::iter(vec![new("", pb::Role::Server); count]);
        let path = PathAndQuery::from_static(NEW);
        let codec = pb::codec::Codec::<pb::NewRequest, pb::NewResponse>::default();
        let refused = grpc
            .client_streaming(tonic::Request::new(requests), path, codec)
            .await
            .unwrap_err();
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::Unimplemented, "MESSAGE_COUNT"),
            "{count}"
        );
    }
    let listed = daemon
        .connections()
        .list_connections(pb::ListConnectionsRequest::default())
        .await
        .unwrap();
    assert!(
        listed.into_inner().connections.is_empty(),
        "the refused calls made no connection"
    );
    daemon.stop().await;
}

/// Makes a call over plain HTTP/2 with these headers and this body. Returns the status and the
/// headers of the answer.
async fn by_hand(
    daemon: &TestDaemon,
    headers: &[(&str, &str)],
    body: &[u8],
) -> (Status, MetadataMap) {
    let socket = TcpStream::connect(&daemon.address).await.unwrap();
    let (mut calls, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(connection);
    let request =
        Request::post(format!("http://localhost{LIST}")).header("content-type", "application/grpc");
    let request = headers.iter().fold(request, |request, (name, value)| {
        request.header(*name, *value)
    });
    let (response, mut send) = calls
        .send_request(request.body(()).unwrap(), false)
        .unwrap();
    send.send_data(Bytes::copy_from_slice(body), true).unwrap();
    let response = tokio::time::timeout(PATIENCE, response)
        .await
        .expect("an answer")
        .unwrap();
    let status = Status::from_header_map(response.headers()).expect("a refusal");
    (
        status,
        MetadataMap::from_headers(response.headers().clone()),
    )
}

#[tokio::test]
async fn compressed_request_is_refused_with_the_encodings() {
    let daemon = TestDaemon::start().await;
    let compressed = [&[1, 0, 0, 0, 20][..], &[0x1f, 0x8b], &[0; 18]].concat();
    let (refused, metadata) = by_hand(&daemon, &[("grpc-encoding", "gzip")], &compressed).await;
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::Unimplemented, "COMPRESSION_UNSUPPORTED")
    );
    assert_eq!(metadata.get("grpc-accept-encoding").unwrap(), "identity");
    // A compressed message without a grpc-encoding header.
    let (refused, _) = by_hand(&daemon, &[], &compressed).await;
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::Internal, "MESSAGE_MALFORMED")
    );
    assert!(refused.get_details_error_info().is_some());
    daemon.stop().await;
}

#[tokio::test]
async fn http1_request_is_answered_that_this_is_grpc() {
    let daemon = TestDaemon::start().await;
    for request in [
        "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        "POST /x HTTP/1.0\r\ncontent-length: 40000\r\n\r\n",
    ] {
        let mut socket = TcpStream::connect(&daemon.address).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        socket.write_all(&[b'x'; 40_000]).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(PATIENCE, socket.read_to_string(&mut answer))
            .await
            .expect("an end")
            .unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 505 "), "{answer}");
        assert!(
            head.contains(&format!("content-length: {}", body.len())) && body.contains("gRPC"),
            "{answer}"
        );
    }
    daemon.stop().await;
}

#[tokio::test]
async fn burst_of_cancelled_calls_ends_no_other_stream() {
    let daemon = TestDaemon::start().await;
    let mut raw = Raw::connect(&daemon.address, 65_535).await;
    raw.agree().await;
    let drive = frames::call("/tls.sessiond.v1.ConnectionService/Drive");
    let opens = frames::message(
        &pb::DriveRequest {
            event: Some(pb::drive_request::Event::New(new("", pb::Role::Server))),
        }
        .encode_to_vec(),
    );
    let opened = [
        frame(HEADERS, END_HEADERS, 1, &drive),
        frame(DATA, 0, 1, &opens),
    ];
    assert!(raw.send(&opened.concat()).await);
    assert_eq!(
        raw.until(DATA).await.unwrap().stream,
        1,
        "the Drive is open"
    );
    let mut burst = Vec::new();
    for stream in (3..1803).step_by(2) {
        burst.extend(frame(HEADERS, END_HEADERS, stream, &frames::call(LIST)));
        burst.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
    }
    assert!(raw.send(&burst).await);
    let list = [
        frame(HEADERS, END_HEADERS, 1803, &frames::call(LIST)),
        frame(DATA, END_STREAM, 1803, &[0; 5]),
    ];
    assert!(raw.send(&list.concat()).await);
    loop {
        let next = raw.next().await.expect("the connection is still open");
        assert!(
            next.stream != 1 || next.kind == PING,
            "the Drive ended: {}",
            next.kind
        );
        if next.kind == DATA && next.stream == 1803 {
            break;
        }
    }
    drop(raw);
    daemon.stop().await;
}

#[tokio::test]
async fn health_watch_reports_an_unknown_service() {
    let daemon = TestDaemon::start().await;
    let mut health = HealthClient::new(daemon.channel.clone());
    let unknown = HealthCheckRequest {
        service: "no.such.Service".into(),
    };
    let mut watch = health.watch(unknown.clone()).await.unwrap().into_inner();
    let first = tokio::time::timeout(PATIENCE, watch.message())
        .await
        .expect("an answer")
        .unwrap()
        .unwrap();
    assert_eq!(first.status(), ServingStatus::ServiceUnknown);
    assert_eq!(
        health.check(unknown).await.unwrap_err().code(),
        Code::NotFound
    );
    daemon.stop().await;
}

#[tokio::test]
async fn health_watches_delay_no_stop() {
    let binary = Binary::start(&["--set", "drain.timeout=1h"]).await;
    let channel = Channel::from_shared(format!("http://{}", binary.address))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut health = HealthClient::new(channel);
    let mut watches = Vec::new();
    for (service, first) in [
        ("", ServingStatus::Serving),
        ("no.such.Service", ServingStatus::ServiceUnknown),
    ] {
        let request = HealthCheckRequest {
            service: service.into(),
        };
        let mut watch = health.watch(request).await.unwrap().into_inner();
        assert_eq!(watch.message().await.unwrap().unwrap().status(), first);
        watches.push(watch);
    }
    binary.terminate().await;
    let told = tokio::time::timeout(PATIENCE, watches[0].message())
        .await
        .expect("an event")
        .unwrap();
    assert_eq!(told.unwrap().status(), ServingStatus::NotServing);
    for mut watch in watches {
        assert!(
            watch.message().await.unwrap().is_none(),
            "the watch ends without an error"
        );
    }
    drop(health);
    assert_eq!(binary.end().await.0.code(), Some(0));
}

/// Asks reflection for symbols on one stream. Returns the length of each file in bytes, or the
/// error code.
macro_rules! reflected {
    ($daemon:expr, $version:ident, $symbols:expr) => {{
        use tonic_reflection::pb::$version::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let requests = $symbols.map(|symbol| ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::FileContainingSymbol(symbol.to_owned())),
        });
        let mut client = ServerReflectionClient::new($daemon.channel.clone());
        let stream = client
            .server_reflection_info(tokio_stream::iter(requests))
            .await
            .unwrap();
        let mut stream = stream.into_inner();
        let mut answers = Vec::new();
        while let Some(answer) = stream.message().await.unwrap() {
            answers.push(match answer.message_response.unwrap() {
                MessageResponse::FileDescriptorResponse(file) => {
                    Ok(file.file_descriptor_proto[0].len())
                }
                MessageResponse::ErrorResponse(error) => Err(error.error_code),
                other => panic!("{other:?}"),
            });
        }
        answers
    }};
}

#[tokio::test]
async fn unknown_symbol_is_an_error_and_the_stream_goes_on() {
    let daemon = TestDaemon::start().await;
    let symbols = [
        "no.such.Symbol",
        "tls.sessiond.v1.ConnectionService",
        "",
        "grpc.health.v1.Health",
    ];
    let not_found = Err(i32::from(Code::NotFound));
    for answers in [
        reflected!(daemon, v1, symbols),
        reflected!(daemon, v1alpha, symbols),
    ] {
        assert!(
            matches!(answers[..], [_, Ok(1000..), _, Ok(1..)]),
            "{answers:?}"
        );
        assert_eq!((&answers[0], &answers[2]), (&not_found, &not_found));
    }
    daemon.stop().await;
}
