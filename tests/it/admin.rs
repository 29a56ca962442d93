//! AdminService: what a caller sees of the daemon, and what an administrator changes.

use std::fs;

use tls_sessiond_proto::{self as pb, admin_service_client::AdminServiceClient};
use tonic::{Code, Status, transport::Channel};

use crate::{
    admin_http::Watched,
    binary::Binary,
    calls::{Worker, lookup, put, worker},
    doors::{Guest, House, SOMEBODY, denied, not_there, rule},
    harness::{TestDaemon, reason},
    pki,
};

type Admin = AdminServiceClient<Channel>;

fn admin(channel: &Channel) -> Admin {
    AdminServiceClient::new(channel.clone())
}

async fn status(admin: &mut Admin) -> pb::GetStatusResponse {
    admin
        .get_status(pb::GetStatusRequest {})
        .await
        .unwrap()
        .into_inner()
}

fn why(status: &Status) -> (Code, String) {
    (status.code(), reason(status))
}

#[tokio::test]
async fn status_counts_connections_handshakes_and_owners() {
    let daemon = TestDaemon::start().await;
    let mut admin = admin(&daemon.channel);
    let (client, server) = (
        daemon.open(pb::Role::Client).await,
        daemon.open(pb::Role::Server).await,
    );
    daemon.handshake(&client, &server).await;
    daemon.open(pb::Role::Server).await;
    let seen = status(&mut admin).await;
    assert_eq!(seen.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(seen.state(), pb::DaemonState::Serving);
    assert_eq!(
        (seen.config_digest.len(), seen.last_reload.is_none()),
        (16, true)
    );
    let count = |state: pb::ConnectionState, role: pb::Role| {
        let found = seen.connections.iter().filter(|count| {
            count.state() == state
                && count.role() == role
                && count.context == "default"
                && count.engine() == pb::Engine::Daemon
        });
        found.map(|count| count.count).sum::<u64>()
    };
    use pb::ConnectionState::{Before, Established};
    assert_eq!(count(Established, pb::Role::Client), 1);
    assert_eq!(count(Established, pb::Role::Server), 1);
    assert_eq!(count(Before, pb::Role::Server), 1);
    assert_eq!(seen.connections.len(), 3);
    let handshakes = &seen.contexts[0].stats.as_ref().unwrap().handshakes;
    let full = |count: &pb::HandshakeCount| {
        (count.version(), count.resumed, count.count) == (pb::ProtocolVersion::Tls13, false, 1)
    };
    assert!(
        handshakes.len() == 2 && handshakes.iter().all(full),
        "{handshakes:?}"
    );
    assert_eq!(seen.owners.len(), 1);
    assert_eq!(
        (seen.owners[0].owner.as_str(), seen.owners[0].connections),
        ("local", 3)
    );
    assert_eq!(seen.certificates[0].key, "context default");
    assert!(seen.certificates[0].days_left > 0);
    let process = seen.process.unwrap();
    assert!(process.memory_bytes > 1 << 20 && process.threads > 0 && process.open_files > 0);
    assert_eq!((process.connections, process.connections_max), (3, 100_000));
    assert!(process.sockets >= 1 && process.calls >= 1);
    daemon.stop().await;
}

#[tokio::test]
async fn handshakes_count_by_version_and_resumption() {
    let daemon = TestDaemon::start().await;
    let call = Worker(&daemon);
    let first = call.open(worker(pb::Role::Server)).await.id;
    call.put(put(&first, "aa")).await;
    let resumed = pb::NewRequest {
        session_id: "aa".into(),
        ..worker(pb::Role::Server)
    };
    call.open(resumed).await;
    let seen = status(&mut admin(&daemon.channel)).await;
    let mut handshakes: Vec<_> = seen.contexts[0]
        .stats
        .as_ref()
        .unwrap()
        .handshakes
        .iter()
        .map(|count| (count.role(), count.version(), count.resumed, count.count))
        .collect();
    handshakes.sort_by_key(|kind| kind.2);
    let tls12 = |resumed| (pb::Role::Server, pb::ProtocolVersion::Tls12, resumed, 1);
    assert_eq!(handshakes, [tls12(false), tls12(true)]);
    daemon.stop().await;
}

#[tokio::test]
async fn misses_failures_and_unclosed_ends_name_their_owner() {
    let daemon = TestDaemon::start().await;
    let (call, mut admin) = (Worker(&daemon), admin(&daemon.channel));
    for id in ["aabb", "ccdd"] {
        assert!(!call.lookup(lookup(id)).await.found);
    }
    let garbage = daemon.open(pb::Role::Server).await;
    let request = b"GET / HTTP/1.1\r\n\r\n";
    let failed = daemon.exchange(&garbage, request, b"").await.unwrap();
    assert!(failed.alert.is_some(), "{failed:?}");
    let unclosed = call.open(worker(pb::Role::Server)).await.id;
    call.put(put(&unclosed, "ee")).await;
    call.free(&unclosed).await;
    let misses = admin.list_misses(pb::ListMissesRequest::default()).await;
    let misses = misses.unwrap().into_inner().misses;
    let shown: Vec<_> = misses
        .iter()
        .map(|miss| {
            (
                miss.session_id_prefix.as_str(),
                miss.reason(),
                miss.owner.as_str(),
            )
        })
        .collect();
    let unknown = |id| (id, pb::MissReason::Unknown, "local");
    assert_eq!(shown, [unknown("ccdd"), unknown("aabb")]);
    let newest = pb::ListMissesRequest {
        page_size: 1,
        ..pb::ListMissesRequest::default()
    };
    assert_eq!(
        admin
            .list_misses(newest)
            .await
            .unwrap()
            .into_inner()
            .misses
            .len(),
        1
    );
    let expired = pb::ListMissesRequest {
        reason: pb::MissReason::Expired.into(),
        ..pb::ListMissesRequest::default()
    };
    assert_eq!(
        admin
            .list_misses(expired)
            .await
            .unwrap()
            .into_inner()
            .misses,
        []
    );
    let failures = admin
        .list_failures(pb::ListFailuresRequest::default())
        .await;
    let failures = failures.unwrap().into_inner().failures;
    assert_eq!(failures.len(), 1);
    let failure = &failures[0];
    assert_eq!(
        (failure.owner.as_str(), failure.context.as_str()),
        ("local", "default")
    );
    assert_eq!(
        (failure.engine(), failure.role()),
        (pb::Engine::Daemon, pb::Role::Server)
    );
    assert!(failure.alert.as_ref().is_some_and(|alert| !alert.received));
    assert!(!failure.reason.is_empty() && failure.time.is_some());
    let owner = &status(&mut admin).await.owners[0];
    assert_eq!((owner.misses, owner.failures, owner.unclosed), (2, 1, 1));
    daemon.stop().await;
}

#[tokio::test]
async fn callers_see_their_contexts_only() {
    let rules = rule("uid:54321", "default", "observer") + &rule("local", "*", "worker");
    let house = House::with(&rules).await;
    let mut guest = Guest::new(&house.over_tcp().await);
    let mail = guest.open("mail").await.unwrap();
    guest.open("default").await.unwrap();
    for context in ["default", "mail"] {
        let missed = pb::LookupSessionRequest {
            context: context.into(),
            ..lookup("aa")
        };
        assert!(
            !guest
                .sessions
                .lookup_session(missed)
                .await
                .unwrap()
                .into_inner()
                .found
        );
    }
    let mut observer = admin(&house.over_unix(SOMEBODY).await);
    let seen = status(&mut observer).await;
    let contexts: Vec<_> = seen.contexts.iter().map(|context| &*context.name).collect();
    assert_eq!(contexts, ["default"]);
    assert!(
        seen.connections
            .iter()
            .all(|count| count.context == "default")
    );
    assert_eq!(seen.owners[0].connections, 1);
    // Totals of identities, other HTTP/2 connections and the API's certificate are not of a context.
    assert!(seen.owners.iter().all(|owner| owner.misses == 0));
    assert_eq!((seen.streams.len(), seen.certificates.len()), (0, 1));
    let misses = observer.list_misses(pb::ListMissesRequest::default()).await;
    let misses = misses.unwrap().into_inner().misses;
    assert!(misses.len() == 1 && misses[0].context == "default");
    let elsewhere = pb::ListMissesRequest {
        context: "mail".into(),
        ..pb::ListMissesRequest::default()
    };
    assert_eq!(
        why(&observer.list_misses(elsewhere).await.unwrap_err()),
        denied()
    );
    // An administrator frees connections of any owner, in its own contexts.
    let free = |id: &str| pb::FreeConnectionRequest {
        connection_id: id.into(),
    };
    assert_eq!(
        why(&observer.free_connection(free(&mail)).await.unwrap_err()),
        denied()
    );
    house
        .reload(&(rule("uid:54321", "default", "admin") + &rule("local", "*", "worker")))
        .unwrap();
    let refused = observer.free_connection(free(&mail)).await.unwrap_err();
    assert_eq!(why(&refused), not_there());
    house
        .reload(&(rule("uid:54321", "*", "admin") + &rule("local", "*", "worker")))
        .unwrap();
    observer.free_connection(free(&mail)).await.unwrap();
    let seen = status(&mut observer).await;
    assert!(
        seen.connections
            .iter()
            .all(|count| count.context == "default")
    );
    assert!(seen.contexts.len() == 2 && seen.certificates.iter().any(|of| of.key == "listen.tls"));
    assert!(seen.owners.iter().any(|owner| owner.misses == 2));
    house.daemon.stop().await;
}

#[tokio::test]
async fn calls_about_the_whole_daemon_need_the_role_in_all_contexts() {
    let house = House::with(&rule("local", "*", "admin")).await;
    let mut admin = admin(&house.over_tcp().await);
    let both =
        "[[access]]\nidentity = \"local\"\ncontexts = [\"default\", \"mail\"]\nrole = \"admin\"\n";
    let except = rule("local", "mail", "worker") + &rule("local", "*", "admin");
    for rules in [both.to_owned(), except, rule("local", "*", "observer")] {
        house.reload(&rules).unwrap();
        let refused = [
            admin
                .reload(pb::ReloadRequest {})
                .await
                .map(drop)
                .unwrap_err(),
            admin
                .drain(pb::DrainRequest {})
                .await
                .map(drop)
                .unwrap_err(),
            admin
                .set_log_level(pb::SetLogLevelRequest {
                    level: "off".into(),
                })
                .await
                .map(drop)
                .unwrap_err(),
            admin
                .get_config(pb::GetConfigRequest {})
                .await
                .map(drop)
                .unwrap_err(),
        ];
        assert!(
            refused.iter().all(|status| why(status) == denied()),
            "{rules}: {refused:?}"
        );
    }
    house.reload(&rule("local", "*", "admin")).unwrap();
    let config = admin
        .get_config(pb::GetConfigRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(
        config
            .values
            .iter()
            .any(|value| value.key == "access[0].role")
    );
    // This daemon is embedded: it has neither a log nor a source of its configuration.
    let refused = admin.reload(pb::ReloadRequest {}).await.unwrap_err();
    assert_eq!(reason(&refused), "RELOAD_UNAVAILABLE");
    let level = pb::SetLogLevelRequest {
        level: "debug".into(),
    };
    let refused = admin.set_log_level(level).await.unwrap_err();
    assert_eq!(reason(&refused), "LOG_UNAVAILABLE");
    house.daemon.stop().await;
}

#[tokio::test]
async fn administrator_reloads_and_drains_the_daemon() {
    let folder = tempfile::tempdir().unwrap();
    pki::localhost(folder.path());
    let file = folder.path().join("c.toml");
    let path = file.to_str().unwrap();
    let context = "[[context]]\ncertificate = \"tls.crt\"\nkey = \"tls.key\"\nca = \"ca.pem\"\n";
    fs::write(&file, format!("[limits]\nconnections = 10\n{context}")).unwrap();
    let binary = Binary::start(&["--config", path]).await;
    let channel = TestDaemon::at(&binary.address).await.channel;
    let mut admin = admin(&channel);
    let digest = status(&mut admin).await.config_digest;
    fs::write(
        &file,
        format!("[limits]\nconnections = 20\n{context}alpn = [\"h2\"]\n"),
    )
    .unwrap();
    let applied = admin
        .reload(pb::ReloadRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(applied.changed, ["context[0].alpn", "limits.connections"]);
    assert_eq!(applied.contexts, 1);
    let seen = status(&mut admin).await;
    assert!(seen.last_reload.unwrap().applied && seen.config_digest != digest);
    assert_eq!(seen.process.unwrap().connections_max, 20);
    fs::write(
        &file,
        format!("[limits]\nconnections = 0\n{context}alpn = [\"h2\"]\n"),
    )
    .unwrap();
    let refused = admin.reload(pb::ReloadRequest {}).await.unwrap_err();
    assert_eq!(
        why(&refused),
        (Code::FailedPrecondition, "RELOAD_REFUSED".into())
    );
    assert!(
        refused.message().contains("c.toml:2: limits.connections: "),
        "{refused:?}"
    );
    let seen = status(&mut admin).await;
    let last = seen.last_reload.unwrap();
    assert!(!last.applied && last.error.contains("limits.connections"));
    assert_eq!(seen.process.unwrap().connections_max, 20);
    let config = admin
        .get_config(pb::GetConfigRequest {})
        .await
        .unwrap()
        .into_inner();
    let value = |key: &str| {
        let found = config.values.iter().find(|value| value.key == key);
        found
            .map(|value| (value.value.clone(), value.origin.clone()))
            .unwrap()
    };
    assert_eq!(
        value("limits.connections"),
        ("20".into(), format!("{path}:2"))
    );
    assert_eq!(
        value("limits.sockets"),
        ("10000".into(), "built-in defaults".into())
    );
    assert_eq!(value("listen.api").1, "--set listen.api");
    let level = |level: &str| pb::SetLogLevelRequest {
        level: level.into(),
    };
    let wrong = admin.set_log_level(level("loud")).await.unwrap_err();
    assert_eq!(
        why(&wrong),
        (Code::InvalidArgument, "LOG_LEVEL_INVALID".into())
    );
    let set = admin
        .set_log_level(level("debug,h2=warn"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(set.previous, "info");
    assert_eq!(status(&mut admin).await.log_level, "debug,h2=warn");
    assert!(
        admin
            .drain(pb::DrainRequest {})
            .await
            .unwrap()
            .into_inner()
            .end_time
            .is_some()
    );
    drop((admin, channel));
    let (ended, _) = binary.end().await;
    assert!(ended.success(), "{ended}");
}

#[tokio::test]
async fn long_streams_are_listed_by_connection() {
    let daemon = TestDaemon::start().await;
    let mut guest = Guest::new(&daemon.channel);
    let attached = guest.attach().await;
    let mut admin = admin(&daemon.channel);
    let seen = status(&mut admin).await.streams;
    assert_eq!(seen.len(), 1);
    assert_eq!(
        (seen[0].owner.as_str(), seen[0].streams, seen[0].limit),
        ("local", 1, 8_000)
    );
    drop(attached);
    daemon
        .until("the stream has ended", async |daemon| {
            let mut admin = AdminServiceClient::new(daemon.channel.clone());
            status(&mut admin).await.streams.is_empty()
        })
        .await;
    daemon.stop().await;
}

/// Sends plaintext from a client to its server through the daemon. Returns whether it arrived.
async fn passes(daemon: &TestDaemon, [client, server]: &[String; 2]) -> bool {
    let sent = daemon.exchange(client, b"", b"hello").await.unwrap();
    let received = daemon
        .exchange(server, &sent.ciphertext, b"")
        .await
        .unwrap();
    received.plaintext == "hello"
}

#[tokio::test]
async fn reloads_drop_none_of_a_thousand_connections() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.toml");
    let path = file.to_str().unwrap();
    let config = |sessions| format!("[limits]\nsessions = {sessions}\n");
    fs::write(&file, config(1_000)).unwrap();
    let watched = Watched::start(&["--config", path]).await;
    let daemon = TestDaemon::at(&watched.binary.address).await;
    let mut pairs = Vec::new();
    for _ in 0..500 {
        let pair = [
            daemon.open(pb::Role::Client).await,
            daemon.open(pb::Role::Server).await,
        ];
        daemon.handshake(&pair[0], &pair[1]).await;
        pairs.push(pair);
    }
    let mut admin = admin(&daemon.channel);
    fs::write(&file, config(2_000)).unwrap();
    let applied = admin
        .reload(pb::ReloadRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(applied.changed, ["limits.sessions"]);
    fs::write(&file, config(3_000)).unwrap();
    watched.binary.signal("-HUP").await;
    daemon
        .until("the second reload was applied", async |_| {
            let metrics = watched.get("/metrics").await.body;
            metrics.contains("tls_sessiond_reloads_total{result=\"applied\"} 2")
        })
        .await;
    fs::write(&file, "[limits]\nsessions = \"many\"\n").unwrap();
    let refused = admin.reload(pb::ReloadRequest {}).await.unwrap_err();
    assert!(refused.message().contains("limits.sessions"), "{refused:?}");
    let metrics = watched.get("/metrics").await.body;
    assert!(
        metrics.contains("tls_sessiond_reloads_total{result=\"refused\"} 1"),
        "{metrics}"
    );
    assert!(
        metrics.contains("tls_sessiond_last_reload_applied 0"),
        "{metrics}"
    );
    let seen = status(&mut admin).await;
    assert!(
        seen.last_reload
            .unwrap()
            .error
            .contains("c.toml:2: limits.sessions")
    );
    for pair in &pairs {
        assert!(passes(&daemon, pair).await);
    }
    assert_eq!(seen.process.unwrap().connections, 1_000);
    drop((admin, daemon));
    watched.binary.kill().await;
}

#[tokio::test]
async fn signal_during_an_asked_drain_ends_the_daemon_at_once() {
    let binary = Binary::start(&["--set", "drain.delay=\"300s\""]).await;
    let daemon = TestDaemon::at(&binary.address).await;
    let mut admin = admin(&daemon.channel);
    admin.drain(pb::DrainRequest {}).await.unwrap();
    assert_eq!(status(&mut admin).await.state(), pb::DaemonState::Draining);
    // Asked again, it goes on.
    admin.drain(pb::DrainRequest {}).await.unwrap();
    binary.terminate().await;
    drop((admin, daemon));
    let (ended, _) = binary.end().await;
    assert_eq!(ended.code(), Some(128 + 15), "{ended}");
}
