//! Answers that a real daemon gives only under load or in another version, from a server that
//! follows a script.

use std::pin::Pin;

use serde_json::Value;
use tls_sessiond_proto::{
    self as pb,
    session_service_server::{SessionService, SessionServiceServer},
    watch_sessions_response::Event,
};
use tokio::{io::AsyncReadExt, net::TcpListener, time::timeout};
use tokio_stream::{Stream, wrappers::TcpListenerStream};
use tonic::{Request, Response, Status, transport::Server};

use super::{command, run};
use crate::binary::PATIENCE;

/// A server of SessionService with sessions and events of its own.
struct Script;

/// A session whose name would act on a terminal, and whose enums are of a newer version.
fn session() -> pb::Session {
    pb::Session {
        id: "abcd".into(),
        context: "web".into(),
        role: 9,
        version: 8,
        server_name: "a\x1b[31m\nb".into(),
        ..Default::default()
    }
}

#[tonic::async_trait]
impl SessionService for Script {
    type WatchSessionsStream =
        Pin<Box<dyn Stream<Item = Result<pb::WatchSessionsResponse, Status>> + Send>>;

    /// The first page is empty, which is allowed, and the second one has the session.
    async fn list_sessions(
        &self,
        request: Request<pb::ListSessionsRequest>,
    ) -> Result<Response<pb::ListSessionsResponse>, Status> {
        Ok(Response::new(match &*request.into_inner().page_token {
            "" => pb::ListSessionsResponse {
                next_page_token: "second".into(),
                ..Default::default()
            },
            _ => pb::ListSessionsResponse {
                sessions: vec![session()],
                ..Default::default()
            },
        }))
    }

    async fn watch_sessions(
        &self,
        _: Request<pb::WatchSessionsRequest>,
    ) -> Result<Response<Self::WatchSessionsStream>, Status> {
        let events = [Event::Dropped(3), Event::Added(session())].map(|event| {
            Ok(pb::WatchSessionsResponse {
                event: Some(event),
                ..Default::default()
            })
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(events))))
    }

    async fn remove_session(
        &self,
        _: Request<pb::RemoveSessionRequest>,
    ) -> Result<Response<pb::RemoveSessionResponse>, Status> {
        Err(Status::unavailable("the store is \x1b[2Jaway"))
    }

    async fn put_session(
        &self,
        _: Request<pb::PutSessionRequest>,
    ) -> Result<Response<pb::PutSessionResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn lookup_session(
        &self,
        _: Request<pb::LookupSessionRequest>,
    ) -> Result<Response<pb::LookupSessionResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn revoke_sessions(
        &self,
        _: Request<pb::RevokeSessionsRequest>,
    ) -> Result<Response<pb::RevokeSessionsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn explain_session(
        &self,
        _: Request<pb::ExplainSessionRequest>,
    ) -> Result<Response<pb::ExplainSessionResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// Starts the server. Returns its address.
async fn serve() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    let server = Server::builder().add_service(SessionServiceServer::new(Script));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

/// Reads this many lines of a watch, and ends it.
async fn watched(form: &str, lines: usize) -> Vec<String> {
    let args = ["sessions", "watch", "-o", form, "--address", &serve().await];
    let mut watch = command(&args).spawn().unwrap();
    let mut out = watch.stdout.take().unwrap();
    let mut text = Vec::new();
    let read = async {
        while text.iter().filter(|byte| **byte == b'\n').count() < lines {
            text.push(out.read_u8().await.unwrap());
        }
    };
    timeout(PATIENCE, read).await.expect("no event");
    watch.kill().await.unwrap();
    let text = String::from_utf8(text).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn dropped_events_are_told_and_names_are_escaped() {
    let lines = watched("table", 2).await;
    assert_eq!(lines[0], "3 events were dropped");
    assert!(lines[1].contains("  added "), "{lines:?}");
    assert!(lines[1].ends_with("a\\u{1b}[31m\\nb"), "{lines:?}");

    let lines = watched("json", 2).await;
    let dropped: Value = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!(dropped["dropped"], "3");
    let added: Value = serde_json::from_str(&lines[1]).unwrap();
    assert_eq!(added["added"]["serverName"], "a\x1b[31m\nb");
    // A number that has no name in this version is written as a number.
    assert_eq!(added["added"]["role"], 9);

    let lines = watched("yaml", 3).await;
    assert_eq!(lines[0], "---", "{lines:?}");
    assert!(lines.contains(&"dropped: \"3\"".into()), "{lines:?}");
}

#[tokio::test]
async fn an_empty_page_is_not_the_last() {
    let address = serve().await;
    let out = run(&["sessions", "list", "--address", &address]).await.ok();
    let row: Vec<_> = out.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..5], ["abcd", "web", "9", "8", "a\\u{1b}[31m\\nb"]);
}

#[tokio::test]
async fn an_error_of_the_daemon_is_escaped_and_is_no_missing_daemon() {
    let address = serve().await;
    let args = ["sessions", "remove", "abcd", "--address", &address];
    let err = run(&args).await.failed(1);
    assert_eq!(
        err,
        "tls-sessiond: UNAVAILABLE: the store is \\u{1b}[2Jaway\n"
    );
}
