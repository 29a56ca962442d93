//! Reloads that change the scope of a context, with the binary. A session that authenticated under
//! the replaced scope is not stored, resumed or revealed under the new one.

use std::{fs, path::Path};

use bytes::Bytes;
use prost_types::Timestamp;
use tempfile::TempDir;
use tls_sessiond_proto::{
    self as pb, context_service_client::ContextServiceClient, revoke_sessions_request::Selector,
};
use tokio::{net::TcpStream, time::timeout};

use crate::{
    binary::{Binary, PATIENCE},
    calls::{self, lookup, put, worker},
    doors::{self, Guest, rule},
    harness::new,
    reload::{context, files},
};

/// The binary with a configuration file that the test replaces.
pub(crate) struct Served {
    pub(crate) guest: Guest,
    contexts: ContextServiceClient<tonic::transport::Channel>,
    folder: TempDir,
    binary: Binary,
}

impl Served {
    pub(crate) async fn start(config: impl FnOnce(&Path) -> String) -> Self {
        let folder = files();
        let file = folder.path().join("daemon.toml");
        fs::write(&file, config(folder.path())).unwrap();
        let binary = Binary::start(&["--config", file.to_str().unwrap()]).await;
        let channel = doors::over(TcpStream::connect(&binary.address).await.unwrap()).await;
        let contexts = ContextServiceClient::new(channel.clone());
        Self {
            guest: Guest::new(&channel),
            contexts,
            folder,
            binary,
        }
    }

    async fn context(&mut self, name: &str) -> Option<pb::Context> {
        let request = pb::GetContextRequest { name: name.into() };
        self.contexts
            .get_context(request)
            .await
            .ok()?
            .into_inner()
            .context
    }

    /// Replaces the file, sends SIGHUP, and waits until the change shows in a context.
    async fn reload(
        &mut self,
        config: impl FnOnce(&Path) -> String,
        name: &str,
        shows: impl Fn(Option<&pb::Context>, Option<&pb::Context>) -> bool,
    ) {
        let before = self.context(name).await;
        fs::write(
            self.folder.path().join("daemon.toml"),
            config(self.folder.path()),
        )
        .unwrap();
        self.binary.signal("-HUP").await;
        let taken = async {
            while !shows(before.as_ref(), self.context(name).await.as_ref()) {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, taken)
            .await
            .expect("the new configuration never applies");
    }

    /// Moves the default context to a scope of other application protocols.
    async fn move_to(&mut self, alpn: &str) {
        let more = format!("alpn = [\"{alpn}\"]");
        let scope = |context: Option<&pb::Context>| context.map(|context| context.scope.clone());
        self.reload(
            |folder| both(folder, &more),
            "default",
            |before, now| scope(before) != scope(now),
        )
        .await;
    }

    pub(crate) async fn open(&mut self, request: pb::NewRequest) -> pb::Connection {
        self.guest
            .connections
            .new_connection(request)
            .await
            .unwrap()
            .into_inner()
            .connection
            .unwrap()
    }

    /// Opens a worker's connection in a context. The connection resumes this session unless it is
    /// empty.
    pub(crate) async fn resumed(&mut self, context: &str, session_id: &str) -> pb::Connection {
        let request = pb::NewRequest {
            context: context.into(),
            session_id: session_id.into(),
            ..worker(pb::Role::Server)
        };
        self.open(request).await
    }

    pub(crate) async fn put(&mut self, request: pb::PutSessionRequest) -> pb::PutSessionResponse {
        self.guest
            .sessions
            .put_session(request)
            .await
            .unwrap()
            .into_inner()
    }

    pub(crate) async fn shutdown(&mut self, id: &str) {
        let request = pb::ShutdownRequest {
            connection_id: id.into(),
        };
        self.guest.connections.shutdown(request).await.unwrap();
    }

    pub(crate) async fn free(&mut self, id: &str) {
        let request = pb::FreeRequest {
            connection_id: id.into(),
            allow_missing: false,
        };
        self.guest.connections.free(request).await.unwrap();
    }

    pub(crate) async fn set_session(&mut self, id: &str, session_id: &str) -> pb::Connection {
        let request = pb::SetSessionRequest {
            connection_id: id.into(),
            session_id: session_id.into(),
        };
        self.guest
            .connections
            .set_session(request)
            .await
            .unwrap()
            .into_inner()
            .connection
            .unwrap()
    }

    /// Stores this session through a connection that is then closed.
    pub(crate) async fn keep(&mut self, context: &str, request: pb::PutSessionRequest) {
        let id = self.resumed(context, "").await.id;
        let stored = self
            .put(pb::PutSessionRequest {
                connection_id: id.clone(),
                ..request
            })
            .await;
        assert_eq!(stored.reason, "");
        self.shutdown(&id).await;
        self.free(&id).await;
    }

    pub(crate) async fn lookup(
        &mut self,
        context: &str,
        session_id: &str,
    ) -> pb::LookupSessionResponse {
        let request = pb::LookupSessionRequest {
            context: context.into(),
            ..lookup(session_id)
        };
        self.guest
            .sessions
            .lookup_session(request)
            .await
            .unwrap()
            .into_inner()
    }

    pub(crate) async fn explain(
        &mut self,
        context: &str,
        session_id: &str,
    ) -> pb::ExplainSessionResponse {
        let request = pb::ExplainSessionRequest {
            context: context.into(),
            session_id: session_id.into(),
            role: pb::Role::Server.into(),
        };
        self.guest
            .sessions
            .explain_session(request)
            .await
            .unwrap()
            .into_inner()
    }

    pub(crate) async fn revoke(&mut self, selector: Selector) -> u64 {
        let request = pb::RevokeSessionsRequest {
            selector: Some(selector),
            ..Default::default()
        };
        self.guest
            .sessions
            .revoke_sessions(request)
            .await
            .unwrap()
            .into_inner()
            .removed
    }

    /// Returns all stored sessions.
    pub(crate) async fn stored(&mut self) -> Vec<pb::Session> {
        let request = pb::ListSessionsRequest {
            page_size: 1000,
            ..Default::default()
        };
        self.guest
            .sessions
            .list_sessions(request)
            .await
            .unwrap()
            .into_inner()
            .sessions
    }

    pub(crate) async fn look(&mut self, id: &str) -> pb::Connection {
        let request = pb::GetConnectionRequest {
            connection_id: id.into(),
        };
        self.guest
            .connections
            .get_connection(request)
            .await
            .unwrap()
            .into_inner()
            .connection
            .unwrap()
    }

    /// Carries bytes between two connections of the daemon's engine until neither sends any.
    pub(crate) async fn shake(&mut self, client: &str, server: &str, mut to_server: Bytes) {
        loop {
            let to_client = self
                .guest
                .exchange(server, to_server, Bytes::new())
                .await
                .ciphertext;
            to_server = self
                .guest
                .exchange(client, to_client, Bytes::new())
                .await
                .ciphertext;
            if to_server.is_empty() {
                return;
            }
        }
    }

    /// Opens a client and a server of the daemon's engine.
    pub(crate) async fn ends(&mut self) -> [String; 2] {
        [
            self.open(new("", pb::Role::Client)).await.id,
            self.open(new("", pb::Role::Server)).await.id,
        ]
    }

    /// Runs a handshake of the daemon's engine that both ends close. Returns the server.
    async fn visit(&mut self) -> pb::Connection {
        let [client, server] = self.ends().await;
        let hello = self
            .guest
            .exchange(&client, Bytes::new(), Bytes::new())
            .await
            .ciphertext;
        self.shake(&client, &server, hello).await;
        let seen = self.look(&server).await;
        assert_eq!(seen.state(), pb::ConnectionState::Established);
        for id in [client, server] {
            self.shutdown(&id).await;
            self.free(&id).await;
        }
        seen
    }
}

/// Returns the default context with `more`, and a context with the same session_id_context that
/// never changes.
fn both(folder: &Path, more: &str) -> String {
    let version = "1.2\", \"1.3";
    context(
        folder,
        "default",
        version,
        &format!("session_id_context = \"one\"\n{more}"),
    ) + &context(folder, "beside", version, "session_id_context = \"one\"")
}

fn start_alone(folder: &Path) -> String {
    both(folder, "alpn = [\"old\"]")
}

/// Returns a TLS 1.3 ticket of a peer with a certificate.
pub(crate) fn ticket(connection_id: &str, session_id: &str) -> pb::PutSessionRequest {
    pb::PutSessionRequest {
        single_use: true,
        version: pb::ProtocolVersion::Tls13.into(),
        peer: Some(peer()),
        ..put(connection_id, session_id)
    }
}

pub(crate) fn peer() -> pb::PeerIdentity {
    pb::PeerIdentity {
        certificate_sha256: "07".repeat(32),
        subject: "CN=job".into(),
        dns_names: vec!["job.example.org".into()],
        uris: vec!["spiffe://example.org/job".into()],
    }
}

/// Asserts that a lookup and ExplainSession know nothing of an id.
async fn assert_unknown(served: &mut Served, context: &str, session_id: &str) {
    let missed = served.lookup(context, session_id).await;
    assert_eq!(
        (missed.found, missed.miss_reason()),
        (false, pb::MissReason::Unknown),
        "{context} {session_id}"
    );
    let told = served.explain(context, session_id).await;
    let reasons = (told.miss_reason(), told.removal_reason(), told.session);
    assert_eq!(
        reasons,
        (
            pb::MissReason::Unknown,
            pb::RemovalReason::Unspecified,
            None
        ),
        "{}",
        told.summary
    );
}

// Invariant 16.
#[tokio::test]
async fn session_looked_up_before_a_reload_renews_nothing() {
    let mut served = Served::start(start_alone).await;
    let mut stamps: Vec<Option<Timestamp>> = Vec::new();
    for (id, single_use) in [("a1", true), ("a2", false)] {
        served
            .keep(
                "",
                pb::PutSessionRequest {
                    single_use,
                    ..ticket("", id)
                },
            )
            .await;
        stamps.push(
            served
                .lookup("", id)
                .await
                .session
                .unwrap()
                .authenticate_time,
        );
    }
    served.move_to("new").await;
    for (place, id) in ["a1", "a2"].into_iter().enumerate() {
        for (number, stamp) in [None, stamps[place]].into_iter().enumerate() {
            let next = format!("b{place}{number}0");
            let by_new = served.resumed("", id).await;
            let by_set = served.resumed("", "").await;
            let by_set = served.set_session(&by_set.id, id).await;
            for connection in [by_new, by_set] {
                assert!(connection.session_reused);
                assert_eq!(
                    connection.peer, None,
                    "the new scope knows a peer of the old one"
                );
                let told = pb::PutSessionRequest {
                    authenticate_time: stamp,
                    ..ticket(&connection.id, &next)
                };
                assert_eq!(served.put(told).await.reason, "AUTHENTICATION_UNKNOWN");
            }
        }
        // The worker names no session and stores the old authentication time again.
        let connection = served.resumed("", "").await.id;
        let told = pb::PutSessionRequest {
            authenticate_time: stamps[place],
            ..ticket(&connection, "cc")
        };
        assert_eq!(
            served.put(told).await.reason,
            "REVOKED",
            "it authenticated before the scope began"
        );
    }
    assert_eq!(served.stored().await, []);
    // A full handshake under the new scope is stored.
    served.keep("", ticket("", "dd")).await;
    assert!(served.lookup("", "dd").await.found);
}

// Invariant 16.
#[tokio::test]
async fn worker_connection_of_the_old_scope_stores_nothing() {
    let mut served = Served::start(start_alone).await;
    served.keep("", ticket("", "aa")).await;
    assert!(served.lookup("", "aa").await.found);
    let unused = served.resumed("", "").await.id;
    let resumed = served.resumed("", "aa").await;
    assert_eq!(resumed.peer, Some(peer()));
    let established = served.resumed("", "").await.id;
    assert_eq!(served.put(ticket(&established, "ab")).await.reason, "");
    served.move_to("new").await;
    for (id, session) in [(&unused, "b1"), (&resumed.id, "b2"), (&established, "b3")] {
        assert_eq!(served.put(ticket(id, session)).await.reason, "REVOKED");
    }
    // The connection resumes a session of its scope only after the reload.
    served.set_session(&unused, "aa").await;
    assert_eq!(served.put(ticket(&unused, "b4")).await.reason, "REVOKED");
    assert_eq!(served.stored().await, []);
    for session in ["aa", "ab", "b1", "b2", "b3", "b4"] {
        assert!(!served.lookup("", session).await.found);
    }
}

// Invariant 16.
#[tokio::test]
async fn handshakes_across_a_reload_store_nothing() {
    for version in ["1.2", "1.3"] {
        let of_version = |folder: &Path, alpn: &str| {
            context(folder, "default", version, &format!("alpn = [\"{alpn}\"]"))
        };
        let mut served = Served::start(|folder| of_version(folder, "old")).await;
        assert!(!served.visit().await.session_reused);
        assert!(served.visit().await.session_reused, "TLS {version}");
        // Two handshakes that are half done: one resumes, and the client of the other has no
        // session to offer.
        let mut running = Vec::new();
        for resumes in [true, false] {
            let [client, server] = served.ends().await;
            if !resumes {
                let detach = pb::SetSessionRequest {
                    connection_id: client.clone(),
                    session_id: String::new(),
                };
                served.guest.connections.set_session(detach).await.unwrap();
            }
            let hello = served
                .guest
                .exchange(&client, Bytes::new(), Bytes::new())
                .await
                .ciphertext;
            let flight = served
                .guest
                .exchange(&server, hello, Bytes::new())
                .await
                .ciphertext;
            running.push((client, server, flight, resumes));
        }
        let [client, server] = served.ends().await;
        let changed = |before: Option<&pb::Context>, now: Option<&pb::Context>| {
            before.map(|context| &context.scope) != now.map(|context| &context.scope)
        };
        served
            .reload(|folder| of_version(folder, "new"), "default", changed)
            .await;
        for (client, server, flight, resumes) in running {
            let answer = served
                .guest
                .exchange(&client, flight, Bytes::new())
                .await
                .ciphertext;
            served.shake(&client, &server, answer).await;
            for id in [&client, &server] {
                let seen = served.look(id).await;
                assert_eq!(
                    seen.state(),
                    pb::ConnectionState::Established,
                    "TLS {version}"
                );
                assert_eq!(seen.session_reused, resumes);
                served.shutdown(id).await;
            }
            assert_eq!(
                served.stored().await,
                [],
                "TLS {version}, resumes: {resumes}"
            );
        }
        // A handshake that begins now on connections of the old scope resumes nothing.
        let hello = served
            .guest
            .exchange(&client, Bytes::new(), Bytes::new())
            .await
            .ciphertext;
        served.shake(&client, &server, hello).await;
        assert!(
            !served.look(&server).await.session_reused
                && !served.look(&client).await.session_reused
        );
        assert_eq!(served.stored().await, [], "TLS {version}");
        assert!(!served.visit().await.session_reused, "TLS {version}");
        assert!(
            served.visit().await.session_reused,
            "TLS {version}: a session of the new scope resumes"
        );
    }
}

// Invariant 3.
#[tokio::test]
async fn contexts_of_different_scopes_reveal_nothing_to_each_other() {
    let mut served = Served::start(start_alone).await;
    served.keep("", ticket("", "aa")).await;
    served.keep("", put("", "ab")).await;
    served.keep("", put("", "ac")).await;
    assert!(served.lookup("", "aa").await.found);
    let remove = pb::RemoveSessionRequest {
        session_id: "ab".into(),
        role: pb::Role::Server.into(),
        ..Default::default()
    };
    assert!(
        served
            .guest
            .sessions
            .remove_session(remove)
            .await
            .unwrap()
            .into_inner()
            .removed
    );
    // The other context has the same session_id_context.
    for session in ["aa", "ab"] {
        assert_unknown(&mut served, "beside", session).await;
        let connection = served.resumed("beside", session).await;
        assert_eq!(connection.peer, None);
        assert_eq!(
            served.put(ticket(&connection.id, "bb")).await.reason,
            "AUTHENTICATION_UNKNOWN"
        );
    }
    // A caller without a role in a context learns nothing of its stored sessions either.
    let rules = rule("local", "beside", "worker") + &rule("local", "beside", "admin");
    served
        .reload(
            |folder| start_alone(folder) + &rules,
            "default",
            |before, now| before.is_some() && now.is_none(),
        )
        .await;
    assert_eq!(
        served.lookup("beside", "ac").await.miss_reason(),
        pb::MissReason::Unknown
    );
    assert!(
        served.resumed("beside", "ac").await.session_reused,
        "the answer is that for an unknown id"
    );
}

#[tokio::test]
async fn restored_scope_starts_without_old_sessions() {
    let mut served = Served::start(start_alone).await;
    served.keep("", ticket("", "aa")).await;
    let stamp = served
        .lookup("", "aa")
        .await
        .session
        .unwrap()
        .authenticate_time;
    let scope = served.context("default").await.unwrap().scope;
    served.move_to("new").await;
    served.move_to("old").await;
    assert_eq!(served.context("default").await.unwrap().scope, scope);
    assert_eq!(
        served.lookup("", "aa").await.miss_reason(),
        pb::MissReason::Unknown
    );
    let connection = served.resumed("", "aa").await;
    assert_eq!(connection.peer, None);
    let told = pb::PutSessionRequest {
        authenticate_time: stamp,
        ..ticket(&connection.id, "ab")
    };
    assert_eq!(
        served.put(told.clone()).await.reason,
        "AUTHENTICATION_UNKNOWN"
    );
    let connection_id = served.resumed("", "").await.id;
    assert_eq!(
        served
            .put(pb::PutSessionRequest {
                connection_id,
                ..told
            })
            .await
            .reason,
        "REVOKED"
    );
}

#[tokio::test]
async fn unchanged_scope_keeps_its_records() {
    let mut served = Served::start(start_alone).await;
    served.keep("", ticket("", "aa")).await;
    let authenticated = served
        .lookup("", "aa")
        .await
        .session
        .unwrap()
        .authenticate_time;
    let hour = "alpn = [\"old\"]\nsession_timeout = \"1h\"";
    served
        .reload(
            |folder| both(folder, hour),
            "default",
            |_, now| {
                now.is_some_and(|now| {
                    now.session_timeout
                        .as_ref()
                        .is_some_and(|timeout| timeout.seconds == 3600)
                })
            },
        )
        .await;
    assert_eq!(
        served.explain("", "aa").await.removal_reason(),
        pb::RemovalReason::Taken
    );
    let connection = served.resumed("", "aa").await;
    assert_eq!(connection.peer, Some(peer()));
    let next = served
        .put(ticket(&connection.id, "ab"))
        .await
        .session
        .unwrap();
    assert_eq!(
        (next.authenticate_time, next.peer),
        (authenticated, Some(peer()))
    );
}

#[tokio::test]
async fn explain_covers_sessions_of_the_former_scope() {
    // Both contexts have one scope at first.
    let mut served = Served::start(|folder| both(folder, "")).await;
    for (context, id) in [
        ("default", "aa"),
        ("default", "ab"),
        ("beside", "ba"),
        ("beside", "bb"),
    ] {
        served.keep(context, ticket("", id)).await;
    }
    assert!(served.lookup("", "ab").await.found && served.lookup("", "bb").await.found);
    let told = served.explain("", "bb").await;
    assert_eq!(
        told.removal_reason(),
        pb::RemovalReason::Taken,
        "one scope: {}",
        told.summary
    );

    served.move_to("new").await;
    let told = served.explain("", "ab").await;
    assert_eq!(
        (told.miss_reason(), told.removal_reason()),
        (pb::MissReason::Unknown, pb::RemovalReason::Taken)
    );
    assert!(
        told.summary.contains("reload") && told.remove_time.is_some(),
        "{}",
        told.summary
    );
    // But nothing of the sessions made under the context that keeps the old scope.
    assert_unknown(&mut served, "default", "bb").await;
    // That context still has its sessions, and those made while both had one scope.
    for id in ["aa", "ba"] {
        assert!(served.lookup("beside", id).await.found, "{id}");
    }

    // No other context keeps this scope.
    served.keep("", calls::put("", "ac")).await;
    served.move_to("newer").await;
    let told = served.explain("", "ac").await;
    assert_eq!(
        (told.miss_reason(), told.removal_reason()),
        (pb::MissReason::Unknown, pb::RemovalReason::ScopeChanged)
    );
    assert_eq!(
        served.explain("", "ab").await.removal_reason(),
        pb::RemovalReason::Taken,
        "two reloads ago"
    );
    assert_unknown(&mut served, "beside", "ac").await;
}
