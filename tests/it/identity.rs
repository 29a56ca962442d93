//! The table of rights lists every method, unlisted methods are refused, and a reload changes
//! rights at once.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use prost::Message;
use prost_types::FileDescriptorProto;
use tls_sessiond::api::{access::RIGHTS, role::Roles};
use tls_sessiond_proto as pb;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Streaming, transport::Channel};

use crate::{
    calls,
    doors::{Guest, client, denied, try_over, why},
    harness::{TestDaemon, new},
    pki,
    process::PATIENCE,
    ruled::{Running, rule},
};

/// Returns the paths of all methods of all services, as one version of reflection lists them.
macro_rules! reflected {
    ($version:ident, $channel:expr) => {{
        use tonic_reflection::pb::$version::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let ask = async |wanted: MessageRequest| {
            let request = ServerReflectionRequest {
                host: String::new(),
                message_request: Some(wanted),
            };
            let mut client = ServerReflectionClient::new($channel.clone());
            let mut answers = client
                .server_reflection_info(tokio_stream::once(request))
                .await
                .unwrap()
                .into_inner();
            answers
                .message()
                .await
                .unwrap()
                .unwrap()
                .message_response
                .unwrap()
        };
        let MessageResponse::ListServicesResponse(listed) =
            ask(MessageRequest::ListServices(String::new())).await
        else {
            panic!("no list")
        };
        let mut paths = BTreeSet::new();
        for service in listed.service {
            let wanted = MessageRequest::FileContainingSymbol(service.name.clone());
            let MessageResponse::FileDescriptorResponse(files) = ask(wanted).await else {
                panic!("no file has {}", service.name)
            };
            for file in files.file_descriptor_proto {
                let file = FileDescriptorProto::decode(&*file).unwrap();
                for declared in &file.service {
                    let name = format!("{}.{}", file.package(), declared.name());
                    if name == service.name {
                        paths.extend(
                            declared
                                .method
                                .iter()
                                .map(|method| format!("/{name}/{}", method.name())),
                        );
                    }
                }
            }
        }
        paths
    }};
}

/// Makes a call with an empty message. Returns its code and reason.
async fn call(channel: &Channel, path: &str) -> (Code, String) {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    why(grpc
        .streaming(
            Request::new(tokio_stream::once(())),
            path.parse().unwrap(),
            codec,
        )
        .await)
}

#[tokio::test]
async fn every_method_that_is_served_is_in_the_table_of_rights() {
    let daemon = Running::with("").await;
    let channel = daemon.local().await.channel;
    let mut served = reflected!(v1, channel);
    served.append(&mut reflected!(v1alpha, channel));
    assert!(served.len() > 20, "reflection lists {served:?}");
    let listed: BTreeSet<_> = RIGHTS.iter().map(|(path, _)| (*path).to_owned()).collect();
    assert_eq!(served, listed);
    // A caller without a role is denied every method except those for anyone.
    let stranger = daemon
        .over_tls(&daemon.authority.leaf(&["stranger.test"]))
        .await;
    for (path, roles) in RIGHTS {
        let answered = call(&stranger.channel, path).await;
        assert_eq!(
            answered == denied(),
            !roles.meet(Roles::ANYONE),
            "{path}: {answered:?}"
        );
    }
    daemon.stop().await;
}

#[tokio::test]
async fn unknown_methods_all_get_the_same_error() {
    let daemon = Running::with("").await;
    let stranger = daemon
        .over_tls(&daemon.authority.leaf(&["stranger.test"]))
        .await
        .channel;
    for channel in [daemon.local().await.channel, stranger] {
        for path in [
            "/tls.sessiond.v1.ConnectionService/NoSuchMethod",
            "/tls.sessiond.v1.ConnectionService/New/",
            "/tls.sessiond.v1.ConnectionService/new",
            "//tls.sessiond.v1.ConnectionService/New",
            "/tls.sessiond.v1.NoSuchService/New",
            "/grpc.health.v1.Health/List",
            "/grpc.health.v1.Health/check",
            "/grpc.reflection.v1.ServerReflection/",
            "/",
        ] {
            assert_eq!(
                call(&channel, path).await,
                (Code::Unimplemented, "METHOD_UNKNOWN".into()),
                "{path}"
            );
        }
    }
    daemon.stop().await;
}

/// Waits until a condition holds, which a reload brings about.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

/// Number of reloads in the race.
const ROUNDS: usize = 200;

/// The context in which the caller is a worker, and the idle time-out in seconds. Each reload
/// changes both.
const LIVES: [(&str, i64); 2] = [("a", 100), ("b", 200)];

fn one_or_other(folder: &Path, (granted, life): (&str, i64)) -> String {
    let folder = folder.display();
    let context = |name: &str| {
        format!(
            "[[context]]\nname = \"{name}\"\ncertificate = \"{folder}/tls.crt\"\nkey = \"{folder}/tls.key\"\n\
             idle_timeout = \"{life}s\"\n"
        )
    };
    rule("local", granted, "worker") + &context("a") + &context("b")
}

/// Asserts that a new connection has the context and the idle time-out of one configuration, or
/// that the call was denied. Returns how many connections the call made, 1 or 0.
fn is_of_one_configuration(made: Result<pb::Connection, Code>) -> u64 {
    match made {
        Ok(made) => {
            let life = made.expire_time.unwrap().seconds - made.create_time.unwrap().seconds;
            assert!(
                LIVES.contains(&(made.context.as_str(), life)),
                "`{}` with {life} s",
                made.context
            );
            1
        }
        Err(code) => {
            assert_eq!(code, Code::PermissionDenied);
            0
        }
    }
}

/// Reads a stream to its end, so that it is not reset. h2 closes a connection with too many reset
/// streams.
async fn to_its_end<T>(answers: &mut Streaming<T>) {
    while let Ok(Some(_)) = answers.message().await {}
}

/// Makes connections in both contexts until `stop` is cancelled, by New, Attach or Drive. Returns
/// how many were made.
async fn make_connections(channel: Channel, way: usize, stop: CancellationToken) -> u64 {
    let mut guest = Guest::new(&channel);
    let mut made = 0;
    while !stop.is_cancelled() {
        // Each call begins its own Attach, because an Attach ends when its caller loses its last
        // role.
        for (context, _) in LIVES {
            let request = new(context, pb::Role::Server);
            made += match way {
                0 => {
                    let answer = guest.connections.new_connection(request).await;
                    let answer = answer.map(|made| made.into_inner().connection.unwrap());
                    is_of_one_configuration(answer.map_err(|status| status.code()))
                }
                1 => {
                    let calls = [request].into_iter().map(|request| pb::Call {
                        id: 1,
                        method: Some(pb::call::Method::New(Box::new(request))),
                        alias: String::new(),
                    });
                    let message = pb::AttachRequest {
                        calls: calls.collect(),
                    };
                    let mut answers = guest
                        .workers
                        .attach(tokio_stream::once(message))
                        .await
                        .unwrap()
                        .into_inner();
                    let answer = answers
                        .message()
                        .await
                        .unwrap()
                        .unwrap()
                        .answers
                        .remove(0)
                        .result
                        .unwrap();
                    to_its_end(&mut answers).await;
                    is_of_one_configuration(match answer {
                        pb::answer::Result::New(made) => Ok(made.connection.unwrap()),
                        pb::answer::Result::Error(error) => Err(error.code.into()),
                        other => panic!("{other:?}"),
                    })
                }
                _ => {
                    let first = pb::DriveRequest {
                        event: Some(pb::drive_request::Event::New(request)),
                    };
                    let mut answers = guest
                        .connections
                        .drive(tokio_stream::once(first))
                        .await
                        .unwrap()
                        .into_inner();
                    let opened = answers.message().await;
                    to_its_end(&mut answers).await;
                    is_of_one_configuration(match opened {
                        Ok(Some(pb::DriveResponse {
                            event: Some(pb::drive_response::Event::Opened(made)),
                        })) => Ok(made),
                        Ok(other) => panic!("{other:?}"),
                        Err(status) => Err(status.code()),
                    })
                }
            };
        }
    }
    made
}

// Invariant 20.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_and_contexts_of_a_reload_change_at_once() {
    let folder = tempfile::tempdir().unwrap();
    pki::localhost(folder.path());
    let configs = LIVES.map(|life| one_or_other(folder.path(), life));
    let daemon = TestDaemon::with(&configs[0]).await;
    let stop = CancellationToken::new();
    let mut callers = [(); 3].map(|()| Vec::new());
    for (way, tasks) in callers.iter_mut().enumerate() {
        let channel = Channel::from_shared(format!("http://{}", daemon.address))
            .unwrap()
            .connect()
            .await
            .unwrap();
        for _ in 0..2 {
            tasks.push(tokio::spawn(make_connections(
                channel.clone(),
                way,
                stop.clone(),
            )));
        }
    }
    for round in 1..=ROUNDS {
        tokio::task::block_in_place(|| daemon.reload(&configs[round % 2])).unwrap();
        tokio::task::yield_now().await;
    }
    stop.cancel();
    let mut made = [0; 3];
    for (made, tasks) in made.iter_mut().zip(callers) {
        for task in tasks {
            *made += task.await.unwrap();
        }
    }
    assert!(made.iter().all(|made| *made > 100), "{made:?} were made");
    // Connections that streams made are freed with the streams, whatever the rules are then. Those
    // of unary calls stay.
    let [left, ..] = made;
    daemon
        .until("streams free their connections", async |daemon| {
            daemon.core.connections().len() as u64 == left
        })
        .await;
    daemon.stop().await;
}

// Invariant 20.
#[tokio::test]
async fn refused_free_keeps_the_session_until_the_stream_ends() {
    let both = rule("dns:a.test", "*", "worker");
    let daemon = Running::with(&both).await;
    let mut guest = daemon.over_tls(&daemon.authority.leaf(&["a.test"])).await;
    let mut attached = guest.attach().await;
    let ids = [
        attached.established("aa").await,
        attached.established("bb").await,
    ];
    daemon.reload(&rule("dns:a.test", "mail", "worker")).await;
    until("the role in `default` is lost", async || {
        guest.open("").await.is_err()
    })
    .await;
    for (connection_id, allow_missing) in ids.clone().into_iter().zip([false, true]) {
        let free = pb::FreeRequest {
            connection_id,
            allow_missing,
        };
        match attached.call(pb::call::Method::Free(free)).await {
            pb::answer::Result::Error(error) => assert_eq!(error.reason, "CONNECTION_NOT_FOUND"),
            pb::answer::Result::Free(freed) => {
                assert!(allow_missing && freed.removed_sessions.is_empty());
            }
            other => panic!("{other:?}"),
        }
    }
    let mut observer = daemon.local().await;
    let mut explain = async |session_id: &str| {
        let request = pb::ExplainSessionRequest {
            session_id: session_id.into(),
            role: pb::Role::Server.into(),
            ..Default::default()
        };
        observer
            .sessions
            .explain_session(request)
            .await
            .unwrap()
            .into_inner()
    };
    for session in ["aa", "bb"] {
        assert!(
            explain(session).await.resumable,
            "{session}: its connection still exists"
        );
    }
    drop(attached);
    for session in ["aa", "bb"] {
        until("the stream's end removes the session", async || {
            !explain(session).await.resumable
        })
        .await;
        assert_eq!(
            explain(session).await.removal_reason(),
            pb::RemovalReason::Unclosed
        );
    }
    daemon.stop().await;
}

#[tokio::test]
async fn remembered_request_id_answers_only_a_caller_with_the_role() {
    let both = rule("dns:a.test", "*", "worker");
    let daemon = Running::with(&both).await;
    let mut guest = daemon.over_tls(&daemon.authority.leaf(&["a.test"])).await;
    let request = pb::NewRequest {
        request_id: "once".into(),
        ..calls::worker(pb::Role::Server)
    };
    let first = guest
        .connections
        .new_connection(request.clone())
        .await
        .unwrap()
        .into_inner();
    let again = guest
        .connections
        .new_connection(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(first, again);
    daemon.reload(&rule("dns:a.test", "mail", "worker")).await;
    until("the role in `default` is lost", async || {
        guest.open("").await.is_err()
    })
    .await;
    assert_eq!(
        why(guest.connections.new_connection(request.clone()).await),
        denied()
    );
    let mut attached = guest.attach().await;
    let method = pb::call::Method::New(Box::new(request.clone()));
    assert!(
        matches!(attached.call(method).await, pb::answer::Result::Error(error) if error.reason == "PERMISSION_DENIED")
    );
    daemon.reload(&both).await;
    until("the role is back", async || guest.open("").await.is_ok()).await;
    assert_eq!(
        guest
            .connections
            .new_connection(request)
            .await
            .unwrap()
            .into_inner(),
        first
    );
    daemon.stop().await;
}

#[tokio::test]
async fn naming_the_attached_session_again_replaces_nothing() {
    let daemon = Running::with(&rule("dns:a.test", "*", "worker")).await;
    let mut guest = daemon.over_tls(&daemon.authority.leaf(&["a.test"])).await;
    let open = guest.open("").await.unwrap();
    // Two sessions of one open connection, the second of them attached.
    for (session, single_use) in [("aa", false), ("bb", true)] {
        let put = pb::PutSessionRequest {
            single_use,
            ..calls::put(&open, session)
        };
        assert_eq!(
            guest
                .sessions
                .put_session(put)
                .await
                .unwrap()
                .into_inner()
                .reason,
            ""
        );
    }
    let shown = pb::GetSessionRequest {
        connection_id: open.clone(),
    };
    let shown = async |guest: &mut Guest| {
        let answer = guest
            .connections
            .get_session(shown.clone())
            .await
            .unwrap()
            .into_inner();
        answer.session.map(|session| session.id)
    };
    let attached = shown(&mut guest).await;
    assert_eq!(attached.as_deref(), Some("bb"));
    let lookup = guest
        .sessions
        .lookup_session(calls::lookup("bb"))
        .await
        .unwrap()
        .into_inner();
    assert!(lookup.found, "the lookup consumes the session");
    let name = |session: &str| pb::SetSessionRequest {
        connection_id: open.clone(),
        session_id: session.into(),
    };
    let named = guest
        .connections
        .set_session(name("bb"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (named.removed_sessions.len(), shown(&mut guest).await),
        (0, attached)
    );
    let found = async |guest: &mut Guest, session: &str| {
        guest
            .sessions
            .lookup_session(calls::lookup(session))
            .await
            .unwrap()
            .into_inner()
            .found
    };
    assert!(found(&mut guest, "aa").await);
    // Naming any other session, even an unknown one, still replaces and removes.
    let other = guest
        .connections
        .set_session(name("cc"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        other
            .removed_sessions
            .into_iter()
            .map(|removed| removed.session_id)
            .collect::<Vec<_>>(),
        ["aa"]
    );
    assert!(!found(&mut guest, "aa").await);
    daemon.stop().await;
}

#[tokio::test]
async fn requests_that_are_not_grpc_calls_reach_no_service() {
    let daemon = Running::with("").await;
    let client: Client<HttpConnector, tonic::body::Body> = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build_http();
    let path = "/grpc.health.v1.Health/Check";
    for (method, content_type, status) in [
        ("POST", Some("application/grpc"), 200),
        ("POST", Some("application/grpc+proto"), 200),
        ("POST", Some("application/grpc;charset=utf-8"), 200),
        ("POST", Some("application/grpc-web"), 415),
        ("POST", Some("application/grpc-web+proto"), 415),
        ("POST", Some("application/grpc+json"), 415),
        ("POST", Some("application/grpcx"), 415),
        ("POST", Some("text/plain"), 415),
        ("POST", Some("application/json"), 415),
        ("POST", None, 415),
        ("GET", Some("application/grpc"), 405),
        ("GET", None, 405),
        ("PUT", Some("application/grpc"), 405),
        ("OPTIONS", None, 405),
        ("BREW", Some("application/grpc"), 405),
    ] {
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", daemon.tcp));
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        // One empty message.
        let body = tonic::body::Body::new(String::from("\0\0\0\0\0"));
        let answer = client.request(request.body(body).unwrap()).await.unwrap();
        let what = format!("{method} {content_type:?}");
        assert_eq!(answer.status(), status, "{what}");
        let served = answer
            .headers()
            .get("content-type")
            .is_some_and(|kind| kind == "application/grpc");
        assert_eq!(served, status == 200, "{what}");
        let allow = answer
            .headers()
            .get("allow")
            .map(|allow| allow.to_str().unwrap());
        assert_eq!(allow, (status == 405).then_some("POST"), "{what}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn extended_key_usage_of_a_client_certificate_needs_client_auth() {
    use rcgen::ExtendedKeyUsagePurpose::{Any, ClientAuth, ServerAuth};
    let daemon = Running::with(&rule("dns:a.test", "*", "worker")).await;
    for (usages, taken) in [
        (vec![], true),
        (vec![ClientAuth], true),
        (vec![ServerAuth, ClientAuth], true),
        (vec![ServerAuth], false),
        (vec![Any], false),
    ] {
        let leaf = daemon.authority.sign(&["a.test"], |params| {
            params.extended_key_usages = usages.clone();
        });
        let socket = TcpStream::connect(&daemon.tls).await.unwrap();
        let connector = TlsConnector::from(Arc::new(client(&daemon.authority.pem, Some(&leaf))));
        // In TLS 1.3 the refusal comes with the first read.
        let stream = connector
            .connect("localhost".try_into().unwrap(), socket)
            .await
            .unwrap();
        let opened = match try_over(stream).await {
            Ok(channel) => Guest::new(&channel).open("").await.is_ok(),
            Err(_) => false,
        };
        assert_eq!(opened, taken, "{usages:?}");
    }
    daemon.stop().await;
}
