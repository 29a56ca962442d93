//! Connections whose TLS runs in the worker: the same rules, reported call by call and through
//! Attach.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost_types::Timestamp;
use tls_sessiond_proto::{
    self as pb, answer::Result as Answered, call::Method,
    worker_service_client::WorkerServiceClient,
};
use tokio::sync::mpsc::{self, Sender};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use crate::{
    calls::{Worker, lookup, put, worker},
    harness::{TestDaemon, reason},
};

#[tokio::test]
async fn worker_sessions_follow_the_close_rule() {
    let daemon = TestDaemon::start().await;
    let w = Worker(&daemon);

    // Never closed: ended by Free, by Clear, and by a fatal alert of either side.
    let id = w.established("aa").await;
    assert_eq!(
        daemon.get(&id).await.state(),
        pb::ConnectionState::Established
    );
    assert!(
        w.found("aa").await,
        "an open connection's session may be resumed"
    );
    assert_eq!(w.free(&id).await, 1);
    assert!(!w.found("aa").await);

    let id = w.established("ab").await;
    let cleared = daemon
        .connections()
        .clear(pb::ClearRequest {
            connection_id: id.clone(),
        })
        .await
        .unwrap();
    assert_eq!(cleared.into_inner().removed_sessions.len(), 1);
    assert!(!w.found("ab").await);
    assert_eq!(
        w.put(put(&id, "ac")).await.reason,
        "",
        "a cleared object may be used again"
    );
    for received in [true, false] {
        let id = w.established("ad").await;
        let alert = Some(pb::Alert {
            code: 20,
            received,
            ..Default::default()
        });
        let request = pb::ReportAlertRequest {
            connection_id: id.clone(),
            alert,
        };
        let told = daemon
            .connections()
            .report_alert(request)
            .await
            .unwrap()
            .into_inner();
        let connection = told.connection.unwrap();
        assert_eq!(
            (told.removed_sessions.len(), connection.state()),
            (1, pb::ConnectionState::Failed)
        );
        assert_eq!(connection.shutdown.unwrap().received, received);
        assert!(!w.found("ad").await);
        let refused = daemon
            .sessions()
            .put_session(put(&id, "ae"))
            .await
            .unwrap_err();
        assert_eq!(reason(&refused), "CONNECTION_FAILED");
    }

    // Closed connections keep their sessions. A later alert sent by this side changes nothing. A
    // later alert of the peer removes the session.
    let id = w.established("ba").await;
    let closed = w.shutdown(&id).await;
    assert_eq!(
        (closed.status(), closed.ciphertext.len()),
        (pb::ShutdownStatus::Sent, 0)
    );
    assert_eq!(
        closed.connection.unwrap().close_evidence(),
        pb::CloseEvidence::Written
    );
    let alert = |received| pb::ReportAlertRequest {
        connection_id: id.clone(),
        alert: Some(pb::Alert {
            code: 20,
            received,
            ..Default::default()
        }),
    };
    daemon
        .connections()
        .report_alert(alert(false))
        .await
        .unwrap();
    assert!(w.found("ba").await);
    assert_eq!(w.free(&id).await, 0);
    assert!(w.found("ba").await);
    let id = w.established("bb").await;
    w.shutdown(&id).await;
    let alert = Some(pb::Alert {
        code: 20,
        received: true,
        ..Default::default()
    });
    daemon
        .connections()
        .report_alert(pb::ReportAlertRequest {
            connection_id: id,
            alert,
        })
        .await
        .unwrap();
    assert!(!w.found("bb").await);
    daemon.stop().await;
}

#[tokio::test]
async fn unclosed_resumption_removes_the_session() {
    let daemon = TestDaemon::start().await;
    let w = Worker(&daemon);
    let first = w.established("aa").await;
    w.shutdown(&first).await;
    w.free(&first).await;

    // Resumed and closed: the session is kept. Resumed and not closed: the session is removed for
    // all.
    let request = pb::NewRequest {
        session_id: "aa".into(),
        ..worker(pb::Role::Server)
    };
    let second = w.open(request.clone()).await;
    assert_eq!(
        (second.state(), second.session_reused),
        (pb::ConnectionState::Established, true)
    );
    assert_eq!(second.cipher_suite, "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256");
    w.shutdown(&second.id).await;
    assert_eq!(w.free(&second.id).await, 0);
    let third = w.open(worker(pb::Role::Server)).await;
    assert!(w.set_session(&third.id, "aa").await.session_reused);
    assert_eq!(w.free(&third.id).await, 1);
    assert!(!w.found("aa").await);

    // The lookup consumes a single-use session. Its connection counts as resumed nevertheless, and
    // has only its new sessions in its family.
    let first = w.open(worker(pb::Role::Server)).await.id;
    let ticket = |id: &str, session: &str| pb::PutSessionRequest {
        single_use: true,
        version: pb::ProtocolVersion::Tls13.into(),
        ..put(id, session)
    };
    w.put(ticket(&first, "ba")).await;
    w.shutdown(&first).await;
    let found = w.lookup(lookup("ba")).await;
    assert_eq!(
        (found.found, &found.data[..]),
        (true, &b"master secret"[..])
    );
    assert!(!w.found("ba").await, "the session was consumed");
    let second = w.open(worker(pb::Role::Server)).await.id;
    assert!(w.set_session(&second, "ba").await.session_reused);
    let authenticated = found.session.unwrap().authenticate_time;
    daemon.clock.advance(Duration::from_secs(60));
    let next = w
        .put(pb::PutSessionRequest {
            authenticate_time: authenticated,
            ..ticket(&second, "bb")
        })
        .await;
    assert_eq!(
        next.session.unwrap().authenticate_time,
        authenticated,
        "a resumption keeps the time"
    );
    assert_eq!(w.free(&second).await, 1);
    let stats = daemon
        .contexts()
        .get_context(pb::GetContextRequest::default())
        .await
        .unwrap()
        .into_inner();
    let stats = stats.context.unwrap().stats.unwrap();
    assert_eq!((stats.hits, stats.misses, stats.unclosed), (3, 2, 2));
    daemon.stop().await;
}

#[tokio::test]
async fn lookup_and_put_give_the_reason_of_a_failure() {
    let daemon = TestDaemon::with(
        "[[context]]\noptions = [\"no-session-cache\"]\nname = \"off\"\n\
         [[context]]\nsession_timeout = \"100s\"\nsession_bytes_max = \"64B\"\n",
    )
    .await;
    let w = Worker(&daemon);
    let id = w.open(worker(pb::Role::Server)).await.id;
    let bound = pb::PutSessionRequest {
        binding: "vhost a".into(),
        server_name: "A.test".into(),
        ..put(&id, "aa")
    };
    assert_eq!(w.put(bound).await.session.unwrap().server_name, "a.test");
    w.shutdown(&id).await;
    let asked = pb::LookupSessionRequest {
        binding: "vhost a".into(),
        server_name: "a.test".into(),
        ..lookup("aa")
    };
    let named = |name: &str| pb::LookupSessionRequest {
        server_name: name.into(),
        ..asked.clone()
    };
    for (what, request, why) in [
        ("unknown", lookup("ff"), pb::MissReason::Unknown),
        (
            "no binding",
            pb::LookupSessionRequest {
                binding: Vec::new().into(),
                ..asked.clone()
            },
            pb::MissReason::Scope,
        ),
        (
            "another binding",
            pb::LookupSessionRequest {
                binding: "vhost b".into(),
                ..asked.clone()
            },
            pb::MissReason::Scope,
        ),
        (
            "another library",
            pb::LookupSessionRequest {
                format: "go".into(),
                ..asked.clone()
            },
            pb::MissReason::Scope,
        ),
        (
            "another server name",
            named("b.test"),
            pb::MissReason::Scope,
        ),
        ("no server name", named(""), pb::MissReason::Scope),
        (
            "another role",
            pb::LookupSessionRequest {
                role: pb::Role::Client.into(),
                ..asked.clone()
            },
            pb::MissReason::Unknown,
        ),
        (
            "cache off",
            pb::LookupSessionRequest {
                context: "off".into(),
                ..asked.clone()
            },
            pb::MissReason::CacheOff,
        ),
    ] {
        let answer = w.lookup(request).await;
        assert_eq!(
            (answer.found, answer.miss_reason(), answer.data.len()),
            (false, why, 0),
            "{what}"
        );
    }
    assert!(w.lookup(named("A.test")).await.found && w.lookup(asked.clone()).await.found);
    daemon.clock.advance(Duration::from_secs(100));
    assert_eq!(w.lookup(asked).await.miss_reason(), pb::MissReason::Expired);

    // PutSession gives the reason too if it stores nothing.
    let id = w.open(worker(pb::Role::Server)).await.id;
    let old = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
        - 1000;
    let old = Some(Timestamp {
        seconds: i64::try_from(old).unwrap(),
        nanos: 0,
    });
    for (request, why) in [
        (
            pb::PutSessionRequest {
                data: vec![0; 65].into(),
                ..put(&id, "ba")
            },
            "TOO_LARGE",
        ),
        (
            pb::PutSessionRequest {
                authenticate_time: old,
                ..put(&id, "ba")
            },
            "EXPIRED",
        ),
    ] {
        let answer = w.put(request).await;
        assert_eq!((answer.session, answer.reason.as_str()), (None, why));
    }
    // The handshake of that connection authenticated long ago, whatever a later put says.
    assert_eq!(w.put(put(&id, "ba")).await.reason, "EXPIRED");
    let id = w.established("ba").await;
    assert_eq!(w.put(put(&id, "ba")).await.reason, "ID_TAKEN");
    let off = w
        .open(pb::NewRequest {
            context: "off".into(),
            ..worker(pb::Role::Server)
        })
        .await
        .id;
    assert_eq!(w.put(put(&off, "ca")).await.reason, "CACHE_OFF");
    daemon.stop().await;
}

#[tokio::test]
async fn client_workers_share_a_pool() {
    let daemon = TestDaemon::start().await;
    let w = Worker(&daemon);
    let id = w.open(worker(pb::Role::Client)).await.id;
    let made = w
        .put(pb::PutSessionRequest {
            single_use: true,
            ..put(&id, "")
        })
        .await
        .session
        .unwrap();
    assert_eq!(
        (made.id.len(), made.server_name.as_str()),
        (32, "localhost")
    );
    w.shutdown(&id).await;
    let any = pb::LookupSessionRequest {
        role: pb::Role::Client.into(),
        session_id: String::new(),
        server_name: "localhost".into(),
        ..lookup("")
    };
    let elsewhere = pb::LookupSessionRequest {
        server_name: "elsewhere.test".into(),
        ..any.clone()
    };
    assert!(!w.lookup(elsewhere).await.found);
    assert!(
        !w.lookup(pb::LookupSessionRequest {
            format: "go".into(),
            ..any.clone()
        })
        .await
        .found
    );
    let found = w.lookup(any.clone()).await;
    assert_eq!(found.session.unwrap().id, made.id);
    assert!(
        !w.lookup(any).await.found,
        "the pool had one single-use session"
    );

    // The daemon's own engine shares neither the pool nor the format.
    let own = daemon.open(pb::Role::Client).await;
    let hello = daemon.exchange(&own, b"", b"").await.unwrap();
    assert_eq!(hello.connection.unwrap().session_id, "");
    daemon.stop().await;
}

/// An Attach: requests out, answers in.
pub(crate) struct Stream {
    requests: Sender<pb::AttachRequest>,
    answers: Streaming<pb::AttachResponse>,
}

impl Stream {
    pub(crate) async fn attach(daemon: &TestDaemon) -> Self {
        let (requests, receiver) = mpsc::channel(16);
        let mut client = WorkerServiceClient::new(daemon.channel.clone());
        let answers = client
            .attach(ReceiverStream::new(receiver))
            .await
            .unwrap()
            .into_inner();
        Self { requests, answers }
    }

    pub(crate) async fn send(&self, calls: Vec<pb::Call>) {
        self.requests
            .send(pb::AttachRequest { calls })
            .await
            .unwrap();
    }

    /// Waits for the answers to this many calls.
    pub(crate) async fn answers(&mut self, count: usize) -> Vec<pb::Answer> {
        let mut answers = Vec::new();
        while answers.len() < count {
            answers.extend(
                self.answers
                    .message()
                    .await
                    .unwrap()
                    .expect("the stream ended")
                    .answers,
            );
        }
        assert_eq!(answers.len(), count);
        answers
    }
}

pub(crate) fn call(id: u64, method: Method) -> pb::Call {
    pb::Call {
        id,
        method: Some(method),
        alias: String::new(),
    }
}

fn make(id: u64, alias: &str) -> pb::Call {
    pb::Call {
        alias: alias.into(),
        ..call(id, Method::New(worker(pb::Role::Server).into()))
    }
}

fn error(answer: &pb::Answer) -> (u64, &str) {
    match &answer.result {
        Some(Answered::Error(error)) => (answer.id, error.reason.as_str()),
        other => panic!("no error: {other:?}"),
    }
}

#[tokio::test]
async fn one_batch_carries_a_whole_connection_without_answers() {
    let daemon = TestDaemon::start().await;
    let mut stream = Stream::attach(&daemon).await;
    let of = |id: &str| id.to_owned();
    stream
        .send(vec![
            make(0, "@1"),
            call(0, Method::PutSession(put("@1", "aa").into())),
            call(
                0,
                Method::Shutdown(pb::ShutdownRequest {
                    connection_id: of("@1"),
                }),
            ),
            call(
                0,
                Method::Free(pb::FreeRequest {
                    connection_id: of("@1"),
                    allow_missing: false,
                }),
            ),
            call(7, Method::LookupSession(lookup("aa").into())),
            make(0, "@1"),
            call(
                8,
                Method::SetSession(pb::SetSessionRequest {
                    connection_id: of("@1"),
                    session_id: of("aa"),
                }),
            ),
        ])
        .await;
    let answers = stream.answers(2).await;
    let Some(Answered::LookupSession(found)) = &answers[0].result else {
        panic!("{:?}", answers[0])
    };
    assert!(
        answers[0].id == 7 && found.found,
        "a closed connection keeps its session"
    );
    let Some(Answered::SetSession(resumed)) = &answers[1].result else {
        panic!("{:?}", answers[1])
    };
    assert!(answers[1].id == 8 && resumed.connection.as_ref().unwrap().session_reused);
    assert_eq!(daemon.core.connections().len(), 1);

    // A broken stream loses its open connections and their sessions.
    drop(stream);
    daemon
        .until("the stream's connections are freed", async |daemon| {
            daemon.core.connections().is_empty()
        })
        .await;
    assert!(!Worker(&daemon).found("aa").await);
    daemon.stop().await;
}

#[tokio::test]
async fn failed_call_does_not_end_its_attach_stream() {
    let daemon = TestDaemon::start().await;
    let others = Worker(&daemon).established("ee").await;
    let mut stream = Stream::attach(&daemon).await;
    let free = |id: &str| {
        Method::Free(pb::FreeRequest {
            connection_id: id.into(),
            allow_missing: false,
        })
    };
    let long = format!("@{}", "x".repeat(64));
    let no_format = pb::PutSessionRequest {
        format: "rustls".into(),
        ..put("@1", "aa")
    };
    stream
        .send(vec![
            make(1, "@1"),
            make(2, "@1"),
            make(3, "1"),
            make(4, "@"),
            make(5, &long),
            pb::Call {
                alias: "@2".into(),
                ..call(6, free("@1"))
            },
            call(7, free("@nobody")),
            pb::Call {
                id: 8,
                ..Default::default()
            },
            // The call wants no answer, but a failure is answered.
            call(0, free("@nobody")),
            call(9, Method::PutSession(no_format.into())),
            call(10, free("@1")),
            call(11, free("@1")),
            make(12, "@1"),
        ])
        .await;
    let answers = stream.answers(13).await;
    assert!(matches!(answers[0].result, Some(Answered::New(_))));
    let refused: Vec<_> = answers[1..10].iter().map(error).collect();
    assert_eq!(
        refused,
        [
            (2, "ALIAS_TAKEN"),
            (3, "ALIAS_MALFORMED"),
            (4, "ALIAS_MALFORMED"),
            (5, "ALIAS_MALFORMED"),
            (6, "ALIAS_MALFORMED"),
            (7, "ALIAS_UNKNOWN"),
            (8, "METHOD_REQUIRED"),
            (0, "ALIAS_UNKNOWN"),
            (9, "FORMAT_INVALID"),
        ]
    );
    assert!(matches!(answers[10].result, Some(Answered::Free(_))));
    assert_eq!(error(&answers[11]), (11, "ALIAS_UNKNOWN"));
    assert!(
        matches!(answers[12].result, Some(Answered::New(_))),
        "the alias is still taken after Free"
    );
    assert!(
        Worker(&daemon).found("ee").await && daemon.get(&others).await.id == others,
        "connections of others are not disturbed"
    );

    // A batch over the limit ends the stream.
    stream.send((0..1001).map(|_| make(0, "")).collect()).await;
    let end = loop {
        match stream.answers.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended without an error"),
            Err(status) => break status,
        }
    };
    assert_eq!(
        (end.code(), reason(&end).as_str()),
        (Code::InvalidArgument, "BATCH_TOO_LARGE")
    );
    daemon
        .until("the stream's connections are freed", async |daemon| {
            daemon.core.connections().len() == 1
        })
        .await;
    daemon.stop().await;
}

#[tokio::test]
async fn end_of_an_attach_frees_its_ten_thousand_connections() {
    let daemon = TestDaemon::start().await;
    let mut stream = Stream::attach(&daemon).await;
    const ALL: usize = 10_000;
    for batch in 0..ALL / 500 {
        let calls = (0..500).flat_map(|place| {
            let number = batch * 500 + place;
            let alias = format!("@{number}");
            [
                make(0, &alias),
                call(
                    0,
                    Method::PutSession(put(&alias, &format!("{number:08x}")).into()),
                ),
            ]
        });
        stream.send(calls.collect()).await;
    }
    stream.send(vec![make(1, "@last")]).await;
    stream.answers(1).await;
    assert_eq!(daemon.core.connections().len(), ALL + 1);
    assert_eq!(daemon.server_cache_len(), ALL);
    drop(stream);
    daemon
        .until("all connections are freed", async |daemon| {
            daemon.core.connections().is_empty()
        })
        .await;
    assert_eq!(daemon.server_cache_len(), 0);
    daemon.stop().await;
}

#[tokio::test]
async fn one_of_many_lookups_finds_a_single_use_session() {
    let daemon = TestDaemon::with("[limits]\nmisses_per_second = 10_000_000\n").await;
    let mut streams = Vec::new();
    for _ in 0..8 {
        streams.push(Stream::attach(&daemon).await);
    }
    for round in 0..50 {
        let ids: Vec<String> = (0..200)
            .map(|place| format!("{:08x}", round * 200 + place))
            .collect();
        let free = |id: &str| {
            Method::Free(pb::FreeRequest {
                connection_id: id.into(),
                allow_missing: false,
            })
        };
        let calls = ids.iter().flat_map(|id| {
            let alias = format!("@{id}");
            let put = pb::PutSessionRequest {
                single_use: true,
                ..put(&alias, id)
            };
            let shutdown = pb::ShutdownRequest {
                connection_id: alias.clone(),
            };
            [
                make(0, &alias),
                call(0, Method::PutSession(put.into())),
                call(0, Method::Shutdown(shutdown)),
                call(0, free(&alias)),
            ]
        });
        streams[0].send(calls.collect()).await;
        // The answer to this call shows that all sessions are stored.
        streams[0]
            .send(vec![call(1, Method::LookupSession(lookup("00").into()))])
            .await;
        streams[0].answers(1).await;
        // Each of the 8 workers looks up each session eight times: 64 lookups a session.
        for stream in &streams {
            for part in ids.chunks(100) {
                let calls = part.iter().flat_map(|id| {
                    (0..8).map(|_| {
                        call(
                            u64::from_str_radix(id, 16).unwrap() + 1,
                            Method::LookupSession(lookup(id).into()),
                        )
                    })
                });
                stream.send(calls.collect()).await;
            }
        }
        let mut found = std::collections::HashMap::new();
        for stream in &mut streams {
            for answer in stream.answers(8 * ids.len()).await {
                let Some(Answered::LookupSession(looked)) = answer.result else {
                    panic!("no lookup")
                };
                *found.entry(answer.id).or_insert(0) += u32::from(looked.found);
            }
        }
        assert!(
            found.len() == ids.len() && found.values().all(|&times| times == 1),
            "{found:?}"
        );
    }
    daemon.stop().await;
}

#[tokio::test]
async fn calls_of_the_other_engine_are_refused() {
    let daemon = TestDaemon::start().await;
    let w = Worker(&daemon);
    let id = w.open(worker(pb::Role::Server)).await.id;
    let refused = daemon.exchange(&id, b"", b"").await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::FailedPrecondition, "WRONG_ENGINE")
    );
    let drive = pb::DriveRequest {
        event: Some(pb::drive_request::Event::ConnectionId(id)),
    };
    let mut answers = daemon
        .connections()
        .drive(tokio_stream::iter([drive]))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        reason(&answers.message().await.unwrap_err()),
        "WRONG_ENGINE"
    );
    let own = daemon.open(pb::Role::Server).await;
    let refused = daemon
        .sessions()
        .put_session(put(&own, "aa"))
        .await
        .unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::FailedPrecondition, "WRONG_ENGINE")
    );

    let id = w.open(worker(pb::Role::Server)).await.id;
    let client = w.open(worker(pb::Role::Client)).await.id;
    let future = Some(Timestamp {
        seconds: 99_999_999_999,
        nanos: 0,
    });
    let negative = Some(prost_types::Duration {
        seconds: -1,
        nanos: 0,
    });
    let peer = Some(pb::PeerIdentity {
        certificate_sha256: "xy".into(),
        ..Default::default()
    });
    for (why, request) in [
        ("SESSION_ID_REQUIRED", put(&id, "")),
        ("SESSION_ID_MALFORMED", put(&id, "a")),
        ("SESSION_ID_MALFORMED", put(&id, &"ab".repeat(65))),
        ("SESSION_ID_UNEXPECTED", put(&client, "aa")),
        ("CONNECTION_NOT_FOUND", put(&"0".repeat(32), "aa")),
        ("CONNECTION_ID_MALFORMED", put("@1", "aa")),
        (
            "DATA_REQUIRED",
            pb::PutSessionRequest {
                data: "".into(),
                ..put(&id, "aa")
            },
        ),
        (
            "FORMAT_INVALID",
            pb::PutSessionRequest {
                format: String::new(),
                ..put(&id, "aa")
            },
        ),
        (
            "FORMAT_INVALID",
            pb::PutSessionRequest {
                format: "rustls".into(),
                ..put(&id, "aa")
            },
        ),
        (
            "FORMAT_INVALID",
            pb::PutSessionRequest {
                format: "x".repeat(33),
                ..put(&id, "aa")
            },
        ),
        (
            "VERSION_REQUIRED",
            pb::PutSessionRequest {
                version: 0,
                ..put(&id, "aa")
            },
        ),
        (
            "VERSION_REQUIRED",
            pb::PutSessionRequest {
                version: 9,
                ..put(&id, "aa")
            },
        ),
        (
            "BYTES_TOO_LONG",
            pb::PutSessionRequest {
                binding: vec![0; 1025].into(),
                ..put(&id, "aa")
            },
        ),
        (
            "BYTES_TOO_LONG",
            pb::PutSessionRequest {
                cipher_suite: "x".repeat(65),
                ..put(&id, "aa")
            },
        ),
        (
            "BYTES_TOO_LONG",
            pb::PutSessionRequest {
                server_name: "x".repeat(256),
                ..put(&id, "aa")
            },
        ),
        (
            "TIMEOUT_INVALID",
            pb::PutSessionRequest {
                timeout: negative,
                ..put(&id, "aa")
            },
        ),
        (
            "AUTHENTICATE_TIME_INVALID",
            pb::PutSessionRequest {
                authenticate_time: future,
                ..put(&id, "aa")
            },
        ),
        (
            "PEER_INVALID",
            pb::PutSessionRequest {
                peer,
                ..put(&id, "aa")
            },
        ),
    ] {
        assert_eq!(
            reason(&daemon.sessions().put_session(request).await.expect_err(why)),
            why
        );
    }
    assert_eq!(
        daemon.get(&id).await.state(),
        pb::ConnectionState::Before,
        "a refused put establishes no connection"
    );
    for (why, request) in [
        (
            "CONTEXT_NOT_FOUND",
            pb::LookupSessionRequest {
                context: "nowhere".into(),
                ..lookup("aa")
            },
        ),
        (
            "ROLE_REQUIRED",
            pb::LookupSessionRequest {
                role: 0,
                ..lookup("aa")
            },
        ),
        ("SESSION_ID_REQUIRED", lookup("")),
        ("SESSION_ID_MALFORMED", lookup("zz")),
        (
            "SERVER_NAME_REQUIRED",
            pb::LookupSessionRequest {
                role: pb::Role::Client.into(),
                ..lookup("")
            },
        ),
        (
            "FORMAT_INVALID",
            pb::LookupSessionRequest {
                format: "Open SSL".into(),
                ..lookup("aa")
            },
        ),
        (
            "BYTES_TOO_LONG",
            pb::LookupSessionRequest {
                binding: vec![0; 1025].into(),
                ..lookup("aa")
            },
        ),
    ] {
        assert_eq!(
            reason(
                &daemon
                    .sessions()
                    .lookup_session(request)
                    .await
                    .expect_err(why)
            ),
            why
        );
    }
    daemon.stop().await;
}

#[tokio::test]
async fn one_connection_has_a_bounded_family() {
    let daemon = TestDaemon::start().await;
    let w = Worker(&daemon);
    let id = w.open(worker(pb::Role::Server)).await.id;
    for number in 0..64 {
        assert_eq!(w.put(put(&id, &format!("{number:04x}"))).await.reason, "");
    }
    assert_eq!(w.put(put(&id, "ffff")).await.reason, "TOO_MANY");
    assert_eq!(w.free(&id).await, 64);
    daemon.stop().await;
}

#[tokio::test]
async fn resumption_restores_no_removed_session() {
    let daemon = TestDaemon::start().await;
    let w = Worker(&daemon);
    let first = w.established("aa").await;
    let second = w
        .open(pb::NewRequest {
            session_id: "aa".into(),
            ..worker(pb::Role::Server)
        })
        .await
        .id;
    assert_eq!(w.free(&first).await, 1);
    assert_eq!(w.put(put(&second, "aa")).await.reason, "RESUMED");
    w.shutdown(&second).await;
    w.free(&second).await;
    assert!(!w.found("aa").await);
    daemon.stop().await;
}

#[tokio::test]
async fn new_over_the_limit_removes_nothing() {
    let daemon = TestDaemon::with("[limits]\nconnections = 1\n").await;
    let w = Worker(&daemon);
    let first = w.established("aa").await;
    w.shutdown(&first).await;
    let request = pb::NewRequest {
        session_id: "aa".into(),
        ..worker(pb::Role::Server)
    };
    let refused = daemon
        .connections()
        .new_connection(request.clone())
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), "CONNECTION_LIMIT");
    assert!(w.found("aa").await);
    w.free(&first).await;
    assert!(w.open(request).await.session_reused);
    daemon.stop().await;
}

#[tokio::test]
async fn resumed_session_of_a_disabled_version_joins_the_family() {
    // Contexts that differ only in versions share a cache.
    let daemon = TestDaemon::with(
        "[[context]]\nversions = [\"1.3\"]\nsession_id_context = \"one\"\n\
         [[context]]\nname = \"both\"\nsession_id_context = \"one\"\n",
    )
    .await;
    let w = Worker(&daemon);
    let first = w
        .open(pb::NewRequest {
            context: "both".into(),
            ..worker(pb::Role::Server)
        })
        .await
        .id;
    w.put(put(&first, "aa")).await;
    w.shutdown(&first).await;
    let second = w
        .open(pb::NewRequest {
            session_id: "aa".into(),
            ..worker(pb::Role::Server)
        })
        .await
        .id;
    assert_eq!(
        w.free(&second).await,
        1,
        "the resumed session must be removed"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn repeated_request_moves_its_alias() {
    let daemon = TestDaemon::start().await;
    let mut stream = Stream::attach(&daemon).await;
    let again = pb::NewRequest {
        request_id: "r".into(),
        ..worker(pb::Role::Server)
    };
    let make = |id, alias: &str| pb::Call {
        alias: alias.into(),
        ..call(id, Method::New(again.clone().into()))
    };
    let free = |id: &str| {
        Method::Free(pb::FreeRequest {
            connection_id: id.into(),
            allow_missing: false,
        })
    };
    stream
        .send(vec![
            make(1, "@1"),
            make(2, "@2"),
            call(3, free("@1")),
            call(4, free("@2")),
        ])
        .await;
    let answers = stream.answers(4).await;
    assert_eq!(error(&answers[2]), (3, "ALIAS_UNKNOWN"));
    assert!(matches!(answers[3].result, Some(Answered::Free(_))));
    daemon.stop().await;
}

#[tokio::test]
async fn batch_of_a_million_empty_calls_is_refused_unread() {
    let daemon = TestDaemon::start().await;
    let mut stream = Stream::attach(&daemon).await;
    stream.send(vec![pb::Call::default(); 1 << 20 | 1]).await;
    let refused = stream.answers.message().await.unwrap_err();
    let told = (refused.code(), reason(&refused));
    assert_eq!(
        told,
        (Code::ResourceExhausted, "MESSAGE_TOO_LARGE".into()),
        "{refused:?}"
    );
    daemon.stop().await;
}
