//! Reloads of contexts while the daemon runs. A reload applies as a whole or not at all, and a
//! changed scope ends the sessions made under the old one.

use std::{path::Path, time::Duration};

use tempfile::TempDir;
use tls_sessiond_proto::{
    self as pb, context_service_client::ContextServiceClient, revoke_sessions_request::Selector,
};
use tokio::process::Command;

use crate::{
    calls::{Worker, lookup, put, worker},
    harness::TestDaemon,
    pki::{self, Authority},
    process::Process,
};

pub(crate) fn files() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    pki::localhost(folder.path());
    let other = Authority::new("other");
    std::fs::write(folder.path().join("other.pem"), &other.pem).unwrap();
    other.leaf(&["localhost"]).write(folder.path(), "other");
    folder
}

/// Returns a context that speaks one version, with `more` beside its certificate. Keys that tests
/// change are written with their default otherwise, because a reload does not return a missing key
/// to its default.
pub(crate) fn context(folder: &Path, name: &str, version: &str, more: &str) -> String {
    let path = folder.display();
    let defaults = [
        "client_auth = \"none\"",
        "alpn = []",
        "session_timeout = \"2h\"",
        "tickets = 2",
        "cache_entries_max = 20_480",
    ];
    let written = |line: &&str| !more.contains(line.split('=').next().unwrap_or(line));
    let rest = defaults
        .into_iter()
        .filter(written)
        .collect::<Vec<_>>()
        .join("\n");
    format!(
        "[[context]]\nname = \"{name}\"\nversions = [\"{version}\"]\ncertificate = \"{path}/tls.crt\"\n\
         key = \"{path}/tls.key\"\nca = \"{path}/ca.pem\"\n{more}\n{rest}\n"
    )
}

/// Runs a handshake that ends well. Returns whether the server resumed.
pub(crate) async fn visit(daemon: &TestDaemon) -> bool {
    let client = daemon.open(pb::Role::Client).await;
    let server = daemon.open(pb::Role::Server).await;
    daemon.handshake(&client, &server).await;
    let seen = daemon.get(&server).await;
    assert_eq!(seen.state(), pb::ConnectionState::Established);
    let w = Worker(daemon);
    for id in [&client, &server] {
        w.shutdown(id).await;
        w.free(id).await;
    }
    seen.session_reused
}

// Invariant 16.
#[tokio::test]
async fn reload_keeps_sessions_only_where_the_scope_is_unchanged() {
    let folder = files();
    let folder = folder.path();
    let path = folder.display();
    for version in ["1.2", "1.3"] {
        let base = context(folder, "default", version, "");
        let daemon = TestDaemon::with(&base).await;
        assert!(!visit(&daemon).await && visit(&daemon).await);
        for (what, changed, resumes) in [
            ("nothing", base.clone(), true),
            (
                "time-outs",
                context(
                    folder,
                    "default",
                    version,
                    "session_timeout = \"1h\"\ntickets = 1",
                ),
                true,
            ),
            (
                "its size",
                context(folder, "default", version, "cache_entries_max = 100"),
                true,
            ),
            (
                "another context",
                format!("{base}{}", context(folder, "new", version, "")),
                true,
            ),
            (
                "alpn",
                context(folder, "default", version, "alpn = [\"h2\"]"),
                false,
            ),
            (
                "client_auth",
                context(
                    folder,
                    "default",
                    version,
                    "client_auth = \"request\"\nalpn = [\"h2\"]",
                ),
                false,
            ),
            (
                "the trust anchors",
                context(
                    folder,
                    "default",
                    version,
                    "client_auth = \"request\"\nalpn = [\"h2\"]",
                )
                .replace("ca.pem", "both.pem"),
                false,
            ),
            ("the certificate", base.replace("tls.", "again."), false),
            ("and back", base.clone(), false),
        ] {
            let authority = std::fs::read_to_string(folder.join("ca.pem")).unwrap();
            let both =
                authority.clone() + &std::fs::read_to_string(folder.join("other.pem")).unwrap();
            std::fs::write(folder.join("both.pem"), both).unwrap();
            for file in ["again.crt", "again.key"] {
                std::fs::copy(
                    folder.join(file.replace("again", "other")),
                    folder.join(file),
                )
                .unwrap();
            }
            let changed = match what {
                "the certificate" => changed.replace("ca.pem", "other.pem"),
                _ => changed,
            };
            daemon.reload(&changed).unwrap();
            assert_eq!(visit(&daemon).await, resumes, "TLS {version}: {what}");
            assert!(
                visit(&daemon).await,
                "TLS {version}: a session of the new scope resumes, {what}"
            );
        }
        // A new certificate under the same file name, as a renewal writes it.
        std::fs::write(
            folder.join("ca.pem"),
            std::fs::read(folder.join("other.pem")).unwrap(),
        )
        .unwrap();
        for end in ["crt", "key"] {
            let other = folder.join(format!("other.{end}"));
            std::fs::copy(other, folder.join(format!("tls.{end}"))).unwrap();
        }
        daemon.reload(&base).unwrap();
        assert!(!visit(&daemon).await && visit(&daemon).await, "{path}");
        pki::localhost(folder);
        daemon.stop().await;
    }
}

#[tokio::test]
async fn reload_keeps_the_certificate_of_the_built_in_context() {
    let daemon = TestDaemon::start().await;
    assert!(!visit(&daemon).await);
    daemon.reload("").unwrap();
    assert!(visit(&daemon).await);
    daemon.stop().await;
}

// Invariant 16.
#[tokio::test]
async fn invalid_or_fixed_changes_refuse_the_whole_reload() {
    let folder = files();
    let folder = folder.path();
    let base = context(folder, "default", "1.3", "");
    let daemon = TestDaemon::with(&base).await;
    assert!(!visit(&daemon).await);
    let good = context(folder, "new", "1.3", "");
    let lost = context(folder, "lost", "1.3", "").replace("tls.crt", "nothing.crt");
    for (config, said) in [
        (format!("{good}{lost}"), "nothing.crt"),
        (
            format!("[limits]\nsockets = 500\n{base}{good}"),
            "limits.sockets",
        ),
        (
            format!("[limits]\nmessage = \"1MiB\"\n{base}{good}"),
            "limits.message",
        ),
        (
            format!("[log]\nformat = \"json\"\n{base}{good}"),
            "log.format",
        ),
        (
            format!(
                "{base}{good}{}",
                context(
                    folder,
                    "big",
                    "1.3",
                    "session_id_context = \"new\"\ncache_entries_max = 1"
                )
            ),
            "cache_entries_max",
        ),
    ] {
        let refused = daemon.reload(&config).unwrap_err().to_string();
        assert!(refused.contains(said), "{refused}");
        let request = pb::GetContextRequest { name: "new".into() };
        assert!(
            daemon.contexts().get_context(request).await.is_err(),
            "a part was applied"
        );
    }
    assert!(visit(&daemon).await);
    daemon.stop().await;
}

#[tokio::test]
async fn connections_of_the_old_scope_go_on_and_store_nothing() {
    let folder = files();
    let folder = folder.path();
    let base = context(folder, "default", "1.3", "");
    let daemon = TestDaemon::with(&base).await;
    let w = Worker(&daemon);
    let old = w.established("aa").await;
    // One connection is in the middle of its handshake.
    let client = daemon.open(pb::Role::Client).await;
    let server = daemon.open(pb::Role::Server).await;
    let hello = daemon.exchange(&client, b"", b"").await.unwrap().ciphertext;
    let flight = daemon
        .exchange(&server, &hello, b"")
        .await
        .unwrap()
        .ciphertext;

    daemon
        .reload(&context(folder, "default", "1.3", "alpn = [\"h2\"]"))
        .unwrap();
    let finished = daemon
        .exchange(&client, &flight, b"")
        .await
        .unwrap()
        .ciphertext;
    daemon.exchange(&server, &finished, b"").await.unwrap();
    let seen = daemon.get(&server).await;
    assert_eq!(
        (seen.state(), seen.session_id.as_str()),
        (pb::ConnectionState::Established, "")
    );
    assert_eq!(
        w.put(put(&old, "ab")).await.reason,
        "REVOKED",
        "its scope was replaced"
    );
    for id in ["aa", "ab"] {
        assert!(!w.found(id).await);
    }
    let told = daemon
        .sessions()
        .explain_session(pb::ExplainSessionRequest {
            session_id: "aa".into(),
            role: pb::Role::Server.into(),
            ..Default::default()
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        told.removal_reason(),
        pb::RemovalReason::ScopeChanged,
        "{}",
        told.summary
    );
    assert_eq!(daemon.server_cache_len(), 0);
    let listed = daemon
        .sessions()
        .list_sessions(pb::ListSessionsRequest::default())
        .await
        .unwrap();
    assert!(listed.into_inner().sessions.is_empty());
    daemon.stop().await;
}

// Invariant 15.
#[tokio::test]
async fn revocations_survive_a_reload_that_replaces_the_cache() {
    let folder = files();
    let folder = folder.path();
    let base = context(folder, "default", "1.2", "");
    let daemon = TestDaemon::with(&base).await;
    let w = Worker(&daemon);
    let authenticated = std::time::SystemTime::UNIX_EPOCH
        + Duration::from_millis(daemon.core.now().wall().as_millis());
    daemon.clock.advance(Duration::from_secs(10));
    let request = pb::RevokeSessionsRequest {
        selector: Some(Selector::ServerName("a.test".into())),
        ..Default::default()
    };
    daemon.sessions().revoke_sessions(request).await.unwrap();
    // Another context in the same scope, another scope, then both at once.
    let named = |name: &str, more: &str| context(folder, name, "1.2", more);
    let beside = named("beside", "session_id_context = \"default\"");
    for (config, stores) in [
        (format!("{base}{beside}"), true),
        (named("default", "alpn = [\"h2\"]"), false),
        (format!("{base}{}", named("new", "")), false),
        (named("new", "alpn = [\"h2\"]"), false),
    ] {
        daemon.reload(&config).unwrap();
        for name in ["default", "beside", "new"]
            .into_iter()
            .filter(|name| config.contains(&format!("name = \"{name}\"")))
        {
            let request = pb::NewRequest {
                context: name.into(),
                ..worker(pb::Role::Server)
            };
            let id = w.open(request).await.id;
            let old = pb::PutSessionRequest {
                server_name: "a.test".into(),
                authenticate_time: Some(authenticated.into()),
                ..put(&id, "aa")
            };
            assert_eq!(w.put(old.clone()).await.reason, "REVOKED", "{config}");
            let other = pb::PutSessionRequest {
                server_name: "b.test".into(),
                ..old
            };
            let reason = if stores { "" } else { "REVOKED" };
            assert_eq!(
                w.put(other).await.reason,
                reason,
                "authenticated before the scope began: {config}"
            );
            w.free(&id).await;
        }
    }
    daemon.stop().await;
}

#[tokio::test]
async fn reload_keeps_counters_and_applies_cache_limits() {
    let folder = files();
    let folder = folder.path();
    let daemon = TestDaemon::with(&context(folder, "default", "1.2", "")).await;
    let w = Worker(&daemon);
    for id in ["aa", "ab", "ac", "ad"] {
        w.established(id).await;
    }
    daemon
        .reload(&context(
            folder,
            "default",
            "1.2",
            "cache_entries_max = 2\nsession_bytes_max = \"64B\"",
        ))
        .unwrap();
    let request = pb::GetContextRequest::default();
    let told = daemon
        .contexts()
        .get_context(request)
        .await
        .unwrap()
        .into_inner()
        .context
        .unwrap();
    let stats = told.stats.unwrap();
    assert_eq!(
        (
            told.cache_entries_max,
            stats.sessions,
            stats.cache_full,
            stats.accept
        ),
        (2, 2, 2, 4)
    );
    let id = w.open(worker(pb::Role::Server)).await.id;
    let large = pb::PutSessionRequest {
        data: vec![1; 65].into(),
        ..put(&id, "ae")
    };
    let refused = w.put(large).await;
    assert_eq!(
        (&*refused.reason, refused.not_stored_reason()),
        ("TOO_LARGE", pb::NotStoredReason::TooLarge)
    );
    assert_eq!(
        w.lookup(lookup("ff")).await.miss_reason(),
        pb::MissReason::Unknown
    );
    daemon.stop().await;
}

#[tokio::test]
async fn sighup_reloads_the_file_and_a_bad_file_changes_nothing() {
    let folder = files();
    let file = folder.path().join("daemon.toml");
    std::fs::write(&file, context(folder.path(), "one", "1.3", "")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tls-sessiond"));
    command
        .arg("--config")
        .arg(&file)
        .args(["--set", "listen.api=[\"tcp://127.0.0.1:0\"]"]);
    let mut daemon = Process::start(&mut command);
    let address = daemon.says("listening on tcp://").await;
    let names = async || {
        let mut contexts = ContextServiceClient::connect(format!("http://{address}"))
            .await
            .unwrap();
        let listed = contexts
            .list_contexts(pb::ListContextsRequest::default())
            .await
            .unwrap()
            .into_inner();
        ["one", "two"].map(|name| listed.contexts.iter().any(|context| context.name == name))
    };
    assert_eq!(names().await, [true, false]);
    let both = context(folder.path(), "one", "1.3", "") + &context(folder.path(), "two", "1.3", "");
    for (text, then) in [
        (both.as_str(), [true, true]),
        ("[[context]]\nnme = 1\n", [true, true]),
    ] {
        std::fs::write(&file, text).unwrap();
        daemon.signal("HUP").await;
        let mut seen = names().await;
        // The signal takes effect within a moment, or never.
        for _ in 0..100 {
            if seen == then {
                break;
            }
            seen = names().await;
        }
        assert_eq!(seen, then, "{text}");
    }
    daemon.signal("TERM").await;
    assert!(daemon.succeeds().await);
}
