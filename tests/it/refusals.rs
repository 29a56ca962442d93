//! Refusals: each has the right code, reason and field, and loses nothing.

use prost_types::Duration;
use tls_sessiond_proto::{self as pb, drive_request::Event, drive_response::Event as Answer};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use crate::{
    harness::{TestDaemon, new, reason, within},
    pki,
};

/// Asserts that a call was refused with this code, this reason and a violation of this field.
#[track_caller]
fn refused<T: std::fmt::Debug>(
    what: &str,
    result: Result<T, Status>,
    code: Code,
    why: &str,
    field: Option<&str>,
) {
    let status = result.expect_err(what);
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (code, why),
        "{what}: {status:?}"
    );
    assert_eq!(
        status.get_details_error_info().unwrap().domain,
        "tls.sessiond.v1",
        "{what}"
    );
    let violations = status
        .get_details_bad_request()
        .map(|bad| bad.field_violations)
        .unwrap_or_default();
    assert_eq!(
        violations.first().map(|violation| violation.field.as_str()),
        field,
        "{what}"
    );
    if code == Code::ResourceExhausted {
        assert!(
            status.get_details_retry_info().is_some() || why == "MESSAGE_TOO_LARGE",
            "{what}: no retry delay"
        );
    }
}

const UNKNOWN_ID: &str = "00000000000000000000000000000000";

fn server() -> pb::NewRequest {
    new("", pb::Role::Server)
}

#[tokio::test]
async fn new_refuses_invalid_requests() {
    let folder = tempfile::tempdir().unwrap();
    pki::localhost(folder.path());
    let empty_roots = format!(
        "[[context]]\nname = \"default\"\ncertificate = \"{0}/tls.crt\"\nkey = \"{0}/tls.key\"\nca = \"{0}/ca.pem\"\n\
         [[context]]\nname = \"client-only\"\nca = \"{0}/ca.pem\"\n",
        folder.path().display()
    );
    let daemon = TestDaemon::with(&empty_roots).await;
    let (invalid, missing) = (Code::InvalidArgument, Code::NotFound);
    let client = new("", pb::Role::Client);
    let named = |name: &str| pb::NewRequest {
        server_name: name.into(),
        ..client.clone()
    };
    let idle = |seconds, nanos| pb::NewRequest {
        idle_timeout: Some(Duration { seconds, nanos }),
        ..server()
    };
    let session = |id: &str| pb::NewRequest {
        session_id: id.into(),
        ..client.clone()
    };
    for (what, request, code, why, field) in [
        (
            "no role",
            pb::NewRequest::default(),
            invalid,
            "ROLE_REQUIRED",
            Some("role"),
        ),
        (
            "an unknown role number",
            pb::NewRequest {
                role: 9,
                ..server()
            },
            invalid,
            "ROLE_REQUIRED",
            Some("role"),
        ),
        (
            "an unknown engine",
            pb::NewRequest {
                engine: 9,
                ..server()
            },
            invalid,
            "ENGINE_UNKNOWN",
            Some("engine"),
        ),
        (
            "no such context",
            new("nowhere", pb::Role::Server),
            missing,
            "CONTEXT_NOT_FOUND",
            None,
        ),
        (
            "no server name",
            named(""),
            invalid,
            "SERVER_NAME_REQUIRED",
            Some("server_name"),
        ),
        (
            "no name at all",
            named("not a name"),
            invalid,
            "SERVER_NAME_MALFORMED",
            Some("server_name"),
        ),
        (
            "a name with a port",
            named("localhost:443"),
            invalid,
            "SERVER_NAME_MALFORMED",
            Some("server_name"),
        ),
        (
            "a name that is too long",
            named(&"ä".repeat(50_000)),
            invalid,
            "SERVER_NAME_MALFORMED",
            Some("server_name"),
        ),
        (
            "no certificate",
            new("client-only", pb::Role::Server),
            Code::FailedPrecondition,
            "CONTEXT_WITHOUT_CERTIFICATE",
            None,
        ),
        (
            "no idle time at all",
            idle(0, 0),
            invalid,
            "IDLE_TIMEOUT_INVALID",
            Some("idle_timeout"),
        ),
        (
            "a negative idle time",
            idle(-5, 0),
            invalid,
            "IDLE_TIMEOUT_INVALID",
            Some("idle_timeout"),
        ),
        (
            "a huge idle time",
            idle(i64::MAX, 0),
            invalid,
            "IDLE_TIMEOUT_INVALID",
            Some("idle_timeout"),
        ),
        (
            "a session id that is no hex",
            session("xyz"),
            invalid,
            "SESSION_ID_MALFORMED",
            Some("session_id"),
        ),
        (
            "a session id of 65 bytes",
            session(&"ab".repeat(65)),
            invalid,
            "SESSION_ID_MALFORMED",
            Some("session_id"),
        ),
        (
            "a long request id",
            pb::NewRequest {
                request_id: "x".repeat(65),
                ..server()
            },
            invalid,
            "REQUEST_ID_TOO_LONG",
            Some("request_id"),
        ),
    ] {
        refused(
            what,
            daemon.connections().new_connection(request).await,
            code,
            why,
            field,
        );
    }
    assert!(
        daemon.core.connections().is_empty(),
        "a refused New leaves no connection"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn every_call_on_a_connection_refuses_bad_ids() {
    let daemon = TestDaemon::start().await;
    let mut rpc = daemon.connections();
    for (id, code, why) in [
        ("", Code::InvalidArgument, "CONNECTION_ID_MALFORMED"),
        ("17", Code::InvalidArgument, "CONNECTION_ID_MALFORMED"),
        (
            "ABCDEF000000000000000000000000:0",
            Code::InvalidArgument,
            "CONNECTION_ID_MALFORMED",
        ),
        (
            "zz000000000000000000000000000000",
            Code::InvalidArgument,
            "CONNECTION_ID_MALFORMED",
        ),
        (UNKNOWN_ID, Code::NotFound, "CONNECTION_NOT_FOUND"),
    ] {
        let connection_id = id.to_owned();
        let field = (code == Code::InvalidArgument).then_some("connection_id");
        let alert = Some(pb::Alert {
            code: 40,
            ..pb::Alert::default()
        });
        let flags = Some(pb::ShutdownFlags::default());
        macro_rules! refuses {
            ($method:ident, $request:expr) => {
                refused(
                    &format!("{}({id:?})", stringify!($method)),
                    rpc.$method($request).await,
                    code,
                    why,
                    field,
                );
            };
        }
        refuses!(
            clear,
            pb::ClearRequest {
                connection_id: connection_id.clone()
            }
        );
        refuses!(
            shutdown,
            pb::ShutdownRequest {
                connection_id: connection_id.clone()
            }
        );
        refuses!(
            set_shutdown,
            pb::SetShutdownRequest {
                connection_id: connection_id.clone(),
                shutdown: flags
            }
        );
        refuses!(
            free,
            pb::FreeRequest {
                connection_id: connection_id.clone(),
                allow_missing: false
            }
        );
        refuses!(
            get_connection,
            pb::GetConnectionRequest {
                connection_id: connection_id.clone()
            }
        );
        refuses!(
            set_session,
            pb::SetSessionRequest {
                connection_id: connection_id.clone(),
                session_id: String::new()
            }
        );
        refuses!(
            get_session,
            pb::GetSessionRequest {
                connection_id: connection_id.clone()
            }
        );
        refuses!(
            report_alert,
            pb::ReportAlertRequest {
                connection_id: connection_id.clone(),
                alert
            }
        );
        refuses!(
            exchange,
            pb::ExchangeRequest {
                connection_id,
                ..pb::ExchangeRequest::default()
            }
        );
    }
    let missing = pb::FreeRequest {
        connection_id: UNKNOWN_ID.into(),
        allow_missing: true,
    };
    rpc.free(missing).await.unwrap();
    let malformed = pb::FreeRequest {
        connection_id: "17".into(),
        allow_missing: true,
    };
    assert!(
        rpc.free(malformed).await.is_err(),
        "allow_missing does not allow malformed ids"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn calls_refuse_missing_and_wrong_fields() {
    let daemon = TestDaemon::start().await;
    let mut rpc = daemon.connections();
    let id = daemon.open(pb::Role::Server).await;
    let before = daemon.get(&id).await;
    let invalid = Code::InvalidArgument;

    let request = pb::SetShutdownRequest {
        connection_id: id.clone(),
        shutdown: None,
    };
    refused(
        "no flags",
        rpc.set_shutdown(request).await,
        invalid,
        "SHUTDOWN_REQUIRED",
        Some("shutdown"),
    );
    for (what, alert) in [
        ("no alert", None),
        ("close_notify", Some(0)),
        ("no such alert", Some(256)),
    ] {
        let alert = alert.map(|code| pb::Alert {
            code,
            ..pb::Alert::default()
        });
        let request = pb::ReportAlertRequest {
            connection_id: id.clone(),
            alert,
        };
        refused(
            what,
            rpc.report_alert(request).await,
            invalid,
            "ALERT_INVALID",
            Some("alert"),
        );
    }
    let alert = Some(pb::Alert {
        code: 40,
        ..pb::Alert::default()
    });
    let request = pb::ReportAlertRequest {
        connection_id: id.clone(),
        alert,
    };
    refused(
        "the daemon's own engine",
        rpc.report_alert(request).await,
        Code::FailedPrecondition,
        "WRONG_ENGINE",
        None,
    );
    let request = pb::SetSessionRequest {
        connection_id: id.clone(),
        session_id: "0".into(),
    };
    refused(
        "half a byte",
        rpc.set_session(request).await,
        invalid,
        "SESSION_ID_MALFORMED",
        Some("session_id"),
    );

    for (what, ciphertext, plaintext, field) in [
        (
            "long ciphertext",
            vec![0; (1 << 20) + 1],
            vec![],
            "ciphertext",
        ),
        (
            "long plaintext",
            vec![],
            vec![0; (1 << 20) + 1],
            "plaintext",
        ),
    ] {
        refused(
            what,
            daemon.exchange(&id, &ciphertext, &plaintext).await,
            invalid,
            "BYTES_TOO_LONG",
            Some(field),
        );
    }
    refused(
        "a message over the limit",
        daemon.exchange(&id, &vec![0; 5 << 20], b"").await,
        Code::ResourceExhausted,
        "MESSAGE_TOO_LARGE",
        None,
    );
    refused(
        "plaintext before the handshake",
        daemon.exchange(&id, b"", b"early").await,
        Code::FailedPrecondition,
        "HANDSHAKE_NOT_FINISHED",
        None,
    );
    let request = pb::ShutdownRequest {
        connection_id: id.clone(),
    };
    refused(
        "nothing to close",
        rpc.shutdown(request).await,
        Code::FailedPrecondition,
        "SHUTDOWN_IN_INIT",
        None,
    );

    let after = daemon.get(&id).await;
    assert_eq!(
        (after.state, after.shutdown),
        (before.state, before.shutdown),
        "refusals change nothing"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn lists_and_removals_refuse_invalid_requests() {
    let daemon = TestDaemon::start().await;
    let (mut connections, mut sessions, mut contexts) =
        (daemon.connections(), daemon.sessions(), daemon.contexts());
    let invalid = Code::InvalidArgument;
    for page_size in [-1, i32::MIN, 1001, i32::MAX] {
        let field = Some("page_size");
        let request = pb::ListConnectionsRequest {
            page_size,
            ..Default::default()
        };
        refused(
            "size",
            connections.list_connections(request).await,
            invalid,
            "PAGE_SIZE_INVALID",
            field,
        );
        let request = pb::ListSessionsRequest {
            page_size,
            ..Default::default()
        };
        refused(
            "size",
            sessions.list_sessions(request).await,
            invalid,
            "PAGE_SIZE_INVALID",
            field,
        );
    }
    for token in ["0", "zz", "00", &"00".repeat(40), "\u{1F4A9}"] {
        let field = Some("page_token");
        let request = pb::ListConnectionsRequest {
            page_token: token.into(),
            ..Default::default()
        };
        refused(
            "token",
            connections.list_connections(request).await,
            invalid,
            "PAGE_TOKEN_INVALID",
            field,
        );
        let request = pb::ListSessionsRequest {
            page_token: token.into(),
            ..Default::default()
        };
        refused(
            "token",
            sessions.list_sessions(request).await,
            invalid,
            "PAGE_TOKEN_INVALID",
            field,
        );
    }
    let context = "nowhere".to_owned();
    let missing = Code::NotFound;
    let request = pb::ListConnectionsRequest {
        context: context.clone(),
        ..Default::default()
    };
    refused(
        "context",
        connections.list_connections(request).await,
        missing,
        "CONTEXT_NOT_FOUND",
        None,
    );
    let request = pb::ListSessionsRequest {
        context: context.clone(),
        ..Default::default()
    };
    refused(
        "context",
        sessions.list_sessions(request).await,
        missing,
        "CONTEXT_NOT_FOUND",
        None,
    );
    let request = pb::GetContextRequest {
        name: context.clone(),
    };
    refused(
        "context",
        contexts.get_context(request).await,
        missing,
        "CONTEXT_NOT_FOUND",
        None,
    );

    let remove = |context: &str, session_id: &str, role: i32| pb::RemoveSessionRequest {
        context: context.into(),
        session_id: session_id.into(),
        role,
    };
    for (what, request, code, why, field) in [
        (
            "context",
            remove("nowhere", "ab", 2),
            missing,
            "CONTEXT_NOT_FOUND",
            None,
        ),
        (
            "role",
            remove("", "ab", 0),
            invalid,
            "ROLE_REQUIRED",
            Some("role"),
        ),
        (
            "no id",
            remove("", "", 2),
            invalid,
            "SESSION_ID_REQUIRED",
            Some("session_id"),
        ),
        (
            "odd id",
            remove("", "abc", 2),
            invalid,
            "SESSION_ID_MALFORMED",
            Some("session_id"),
        ),
        (
            "long id",
            remove("", &"ab".repeat(65), 2),
            invalid,
            "SESSION_ID_MALFORMED",
            Some("session_id"),
        ),
    ] {
        refused(
            what,
            sessions.remove_session(request).await,
            code,
            why,
            field,
        );
    }
    assert!(
        !sessions
            .remove_session(remove("", "ab", 2))
            .await
            .unwrap()
            .into_inner()
            .removed
    );
    daemon.stop().await;
}

#[tokio::test]
async fn passed_deadline_fails_the_call_and_changes_nothing() {
    let daemon = TestDaemon::start().await;
    let mut rpc = daemon.patient_connections();
    refused(
        "unary",
        rpc.new_connection(within("0n", server())).await,
        Code::DeadlineExceeded,
        "DEADLINE_EXCEEDED",
        None,
    );
    assert!(daemon.core.connections().is_empty());

    // A Drive ends with the same code at its deadline, and its connection is freed.
    let (events, receiver) = mpsc::channel(4);
    let mut request = Request::new(ReceiverStream::new(receiver));
    request
        .metadata_mut()
        .insert("grpc-timeout", "700m".parse().unwrap());
    events.send(drive(Event::New(server()))).await.unwrap();
    let mut answers = rpc.drive(request).await.unwrap().into_inner();
    assert!(matches!(
        answers.next().await.unwrap().unwrap().event,
        Some(Answer::Opened(_))
    ));
    let end = answers.next().await.unwrap();
    refused(
        "drive",
        end,
        Code::DeadlineExceeded,
        "DEADLINE_EXCEEDED",
        None,
    );
    assert!(daemon.core.connections().is_empty());
    daemon.stop().await;
}

fn drive(event: Event) -> pb::DriveRequest {
    pb::DriveRequest { event: Some(event) }
}

#[tokio::test]
async fn drive_refuses_invalid_events() {
    let daemon = TestDaemon::with("[limits]\nplaintext_buffer = \"1KiB\"\n").await;
    let existing = daemon.open(pb::Role::Server).await;
    let invalid = Code::InvalidArgument;
    let (early, event) = ("DRIVE_EVENT_UNEXPECTED", Some("event"));
    let big = vec![0; (1 << 20) + 1];
    for (what, events, code, why, field) in [
        (
            "bytes before new",
            vec![Event::Ciphertext("x".into())],
            invalid,
            early,
            event,
        ),
        (
            "shutdown before new",
            vec![Event::Shutdown(pb::ShutdownRequest::default())],
            invalid,
            early,
            event,
        ),
        (
            "new twice",
            vec![Event::New(server()), Event::New(server())],
            invalid,
            early,
            event,
        ),
        (
            "id after new",
            vec![Event::New(server()), Event::ConnectionId(existing.clone())],
            invalid,
            early,
            event,
        ),
        (
            "bad new",
            vec![Event::New(pb::NewRequest::default())],
            invalid,
            "ROLE_REQUIRED",
            Some("role"),
        ),
        (
            "bad id",
            vec![Event::ConnectionId("x".into())],
            invalid,
            "CONNECTION_ID_MALFORMED",
            Some("connection_id"),
        ),
        (
            "unknown id",
            vec![Event::ConnectionId(UNKNOWN_ID.into())],
            Code::NotFound,
            "CONNECTION_NOT_FOUND",
            None,
        ),
        (
            "long bytes",
            vec![Event::New(server()), Event::Ciphertext(big.into())],
            invalid,
            "BYTES_TOO_LONG",
            Some("ciphertext"),
        ),
        (
            "early shutdown",
            vec![
                Event::New(server()),
                Event::Shutdown(pb::ShutdownRequest::default()),
            ],
            Code::FailedPrecondition,
            "SHUTDOWN_IN_INIT",
            None,
        ),
        (
            "too much buffered plaintext",
            vec![Event::New(server()), Event::Plaintext(vec![0; 1025].into())],
            Code::ResourceExhausted,
            "PLAINTEXT_BUFFER_FULL",
            None,
        ),
    ] {
        let requests = tokio_stream::iter(events.into_iter().map(drive).collect::<Vec<_>>());
        let mut answers = daemon
            .connections()
            .drive(requests)
            .await
            .unwrap()
            .into_inner();
        let mut last = answers.next().await.unwrap();
        while last.is_ok() {
            last = answers
                .next()
                .await
                .unwrap_or_else(|| panic!("{what}: ended well"));
        }
        refused(what, last, code, why, field);
    }
    let requests = tokio_stream::iter([pb::DriveRequest { event: None }]);
    let mut answers = daemon
        .connections()
        .drive(requests)
        .await
        .unwrap()
        .into_inner();
    refused(
        "no event",
        answers.next().await.unwrap(),
        invalid,
        early,
        event,
    );
    daemon
        .until(
            "ended streams have freed their connections",
            async |daemon| daemon.core.connections().len() == 1,
        )
        .await;
    assert_eq!(
        daemon.get(&existing).await.state(),
        pb::ConnectionState::Before
    );
    daemon.stop().await;
}

#[tokio::test]
async fn connection_on_a_drive_is_busy_for_other_calls() {
    let daemon = TestDaemon::start().await;
    let mut rpc = daemon.connections();
    let id = daemon.open(pb::Role::Server).await;
    let (events, receiver) = mpsc::channel(4);
    events
        .send(drive(Event::ConnectionId(id.clone())))
        .await
        .unwrap();
    let mut answers = rpc
        .drive(ReceiverStream::new(receiver))
        .await
        .unwrap()
        .into_inner();
    assert!(matches!(
        answers.next().await.unwrap().unwrap().event,
        Some(Answer::Opened(_))
    ));

    let busy = (Code::FailedPrecondition, "CONNECTION_BUSY");
    let connection_id = id.clone();
    let request = pb::ClearRequest {
        connection_id: connection_id.clone(),
    };
    refused(
        "clear",
        rpc.clear(request.clone()).await,
        busy.0,
        busy.1,
        None,
    );
    let shut = pb::ShutdownRequest {
        connection_id: connection_id.clone(),
    };
    refused("shutdown", rpc.shutdown(shut).await, busy.0, busy.1, None);
    refused(
        "exchange",
        daemon.exchange(&id, b"", b"").await,
        busy.0,
        busy.1,
        None,
    );
    let set = pb::SetSessionRequest {
        connection_id: connection_id.clone(),
        session_id: String::new(),
    };
    refused(
        "set session",
        rpc.set_session(set).await,
        busy.0,
        busy.1,
        None,
    );
    let second = tokio_stream::iter([drive(Event::ConnectionId(id.clone()))]);
    let mut other = rpc.drive(second).await.unwrap().into_inner();
    refused(
        "a second drive",
        other.next().await.unwrap(),
        busy.0,
        busy.1,
        None,
    );

    // SetShutdown is allowed meanwhile and does not disturb the stream.
    let flags = Some(pb::ShutdownFlags {
        sent: true,
        received: false,
    });
    rpc.set_shutdown(pb::SetShutdownRequest {
        connection_id: connection_id.clone(),
        shutdown: flags,
    })
    .await
    .unwrap();
    drop(events);
    assert!(answers.next().await.is_none());
    rpc.clear(request).await.unwrap();

    // The stream is told when another call frees its connection.
    let (events, receiver) = mpsc::channel(4);
    events
        .send(drive(Event::ConnectionId(id.clone())))
        .await
        .unwrap();
    let mut answers = rpc
        .drive(ReceiverStream::new(receiver))
        .await
        .unwrap()
        .into_inner();
    assert!(answers.next().await.unwrap().is_ok());
    rpc.free(pb::FreeRequest {
        connection_id,
        allow_missing: false,
    })
    .await
    .unwrap();
    refused(
        "freed",
        answers.next().await.unwrap(),
        Code::Aborted,
        "CONNECTION_FREED",
        None,
    );
    daemon.stop().await;
}

#[tokio::test]
async fn bad_records_fail_only_their_own_connection() {
    let daemon = TestDaemon::start().await;
    let (client, other) = (
        daemon.open(pb::Role::Client).await,
        daemon.open(pb::Role::Server).await,
    );
    let hello = daemon.exchange(&client, b"", b"").await.unwrap().ciphertext;
    for (what, bytes, alert) in [
        (
            "plain HTTP",
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
            Some("decode_error"),
        ),
        (
            "application data first",
            vec![23, 3, 3, 0, 1, 0],
            Some("unexpected_message"),
        ),
        ("an alert first", vec![21, 3, 3, 0, 2, 2, 40], None),
        (
            "a record that is too long",
            vec![22, 3, 1, 0xff, 0xff],
            Some("decode_error"),
        ),
        (
            "an unknown record type",
            vec![99, 3, 3, 0, 1, 0],
            Some("decode_error"),
        ),
        (
            "a hello that is cut short by its own length",
            vec![22, 3, 1, 0, 12, 1, 0, 0, 8, 3, 3, 0, 0, 0, 0, 0, 0],
            Some("decode_error"),
        ),
        (
            "a server's message",
            vec![22, 3, 3, 0, 4, 14, 0, 0, 0],
            Some("unexpected_message"),
        ),
    ] {
        let id = daemon.open(pb::Role::Server).await;
        let answer = daemon
            .exchange(&id, &bytes, b"")
            .await
            .unwrap_or_else(|err| panic!("{what}: {err}"));
        let told = answer.alert.unwrap_or_else(|| panic!("{what}: no alert"));
        assert_eq!(
            answer.connection.unwrap().state(),
            pb::ConnectionState::Failed,
            "{what}"
        );
        match alert {
            Some(name) => assert_eq!((told.name.as_str(), told.received), (name, false), "{what}"),
            None => assert_eq!((told.code, told.received), (40, true), "{what}"),
        }
        refused(
            what,
            daemon.exchange(&id, b"", b"").await,
            Code::FailedPrecondition,
            "CONNECTION_FAILED",
            None,
        );
        let clear = pb::ClearRequest {
            connection_id: id.clone(),
        };
        let cleared = daemon
            .connections()
            .clear(clear)
            .await
            .unwrap()
            .into_inner()
            .connection
            .unwrap();
        assert_eq!(
            cleared.state(),
            pb::ConnectionState::Before,
            "{what}: Clear does not help"
        );
    }

    // The server waits for the rest of a record that is cut anywhere, and loses none of it.
    let mut answer = Vec::new();
    for byte in hello.chunks(1) {
        assert!(
            answer.is_empty(),
            "the server answered before the hello was complete"
        );
        answer = daemon
            .exchange(&other, byte, b"")
            .await
            .unwrap()
            .ciphertext
            .to_vec();
    }
    let finished = daemon
        .exchange(&client, &answer, b"")
        .await
        .unwrap()
        .ciphertext;
    daemon.exchange(&other, &finished, b"").await.unwrap();
    assert_eq!(
        daemon.get(&other).await.state(),
        pb::ConnectionState::Established
    );
    daemon.stop().await;
}

#[tokio::test]
async fn full_table_refuses_with_a_retry_delay() {
    let daemon = TestDaemon::with("[limits]\nconnections = 2\n").await;
    let first = daemon.open(pb::Role::Server).await;
    daemon.open(pb::Role::Server).await;
    let mut rpc = daemon.connections();
    refused(
        "the third",
        rpc.new_connection(server()).await,
        Code::ResourceExhausted,
        "CONNECTION_LIMIT",
        None,
    );
    rpc.free(pb::FreeRequest {
        connection_id: first,
        allow_missing: false,
    })
    .await
    .unwrap();
    rpc.new_connection(server()).await.unwrap();
    daemon.stop().await;
}

// Invariant 3.
#[tokio::test]
async fn session_of_another_context_or_role_or_server_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    pki::localhost(folder.path());
    let mut config = String::new();
    for name in ["default", "other"] {
        config += &format!(
            "[[context]]\nname = \"{name}\"\ncertificate = \"{0}/tls.crt\"\nkey = \"{0}/tls.key\"\nca = \"{0}/ca.pem\"\n",
            folder.path().display()
        );
    }
    let daemon = TestDaemon::with(&config).await;
    let mut rpc = daemon.connections();
    let (client, server) = (
        daemon.open(pb::Role::Client).await,
        daemon.open(pb::Role::Server).await,
    );
    daemon.handshake(&client, &server).await;
    let of_client = daemon.get(&client).await.session_id;
    let of_server = daemon.get(&server).await.session_id;
    let elsewhere = pb::NewRequest {
        server_name: "elsewhere.test".into(),
        ..new("", pb::Role::Client)
    };
    for (what, request, session_id) in [
        (
            "another context",
            new("other", pb::Role::Client),
            &of_client,
        ),
        ("another role", new("", pb::Role::Client), &of_server),
        ("another server", elsewhere, &of_client),
    ] {
        let asked = pb::NewRequest {
            session_id: session_id.clone(),
            ..request.clone()
        };
        let invalid = Code::InvalidArgument;
        refused(
            what,
            rpc.new_connection(asked).await,
            invalid,
            "SESSION_OUT_OF_SCOPE",
            Some("session_id"),
        );
        let id = rpc
            .new_connection(request)
            .await
            .unwrap()
            .into_inner()
            .connection
            .unwrap()
            .id;
        let asked = pb::SetSessionRequest {
            connection_id: id,
            session_id: session_id.clone(),
        };
        refused(
            what,
            rpc.set_session(asked).await,
            invalid,
            "SESSION_OUT_OF_SCOPE",
            Some("session_id"),
        );
    }
    daemon.stop().await;
}

#[tokio::test]
async fn unknown_method_and_malformed_message_have_reasons() {
    let daemon = TestDaemon::start().await;
    let mut client = tonic::client::Grpc::new(daemon.channel.clone());
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<pb::NewRequest, pb::NewResponse>::default();
    let path = "/tls.sessiond.v1.ConnectionService/Renegotiate"
        .parse()
        .unwrap();
    let answer = client.unary(Request::new(server()), path, codec).await;
    refused(
        "no such method",
        answer,
        Code::Unimplemented,
        "METHOD_UNKNOWN",
        None,
    );

    // Field 2 (role, a varint) sent as a string. Protobuf calls this a wrong wire type.
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<pb::RemoveSessionRequest, pb::NewResponse>::default();
    let path = "/tls.sessiond.v1.ConnectionService/New".parse().unwrap();
    let wrong = pb::RemoveSessionRequest {
        session_id: "text".into(),
        ..Default::default()
    };
    let answer = client.unary(Request::new(wrong), path, codec).await;
    refused(
        "malformed",
        answer,
        Code::Internal,
        "MESSAGE_MALFORMED",
        None,
    );
    daemon.stop().await;
}

#[tokio::test]
async fn malformed_message_on_a_stream_has_a_reason() {
    let daemon = TestDaemon::start().await;
    // Field 1 sent as a number, although it is a message in both requests.
    let wrong = pb::LookupSessionResponse {
        found: true,
        ..Default::default()
    };
    for path in [
        "/tls.sessiond.v1.ConnectionService/Drive",
        "/tls.sessiond.v1.WorkerService/Attach",
    ] {
        let mut client = tonic::client::Grpc::new(daemon.channel.clone());
        client.ready().await.unwrap();
        let codec =
            tonic_prost::ProstCodec::<pb::LookupSessionResponse, pb::NewResponse>::default();
        let requests = Request::new(tokio_stream::iter([wrong.clone()]));
        let mut answers = client
            .streaming(requests, path.parse().unwrap(), codec)
            .await
            .unwrap()
            .into_inner();
        let answer = answers.message().await;
        refused(path, answer, Code::Internal, "MESSAGE_MALFORMED", None);
    }
    daemon.stop().await;
}
