//! Reloads of a running daemon: limits, the scope of renewed certificates, and the report of the
//! last reload.

use std::{path::Path, time::Duration};

use tls_sessiond_proto::{self as pb, watch_sessions_response::Event};

use crate::{
    calls::{Worker, lookup},
    frames::{Raw, SETTINGS},
    harness::{TestDaemon, new, reason},
    pki::Authority,
    reload::{context, files, visit},
};

async fn last_reload(daemon: &TestDaemon) -> Option<pb::Reload> {
    let listed = daemon
        .contexts()
        .list_contexts(pb::ListContextsRequest::default())
        .await
        .unwrap();
    listed.into_inner().last_reload
}

async fn refusal(daemon: &TestDaemon) -> Option<String> {
    let refused = daemon
        .connections()
        .new_connection(new("", pb::Role::Client))
        .await
        .err()?;
    Some(reason(&refused))
}

#[tokio::test]
async fn reload_changes_limits_and_keeps_connections() {
    let folder = files();
    let base = context(folder.path(), "default", "1.2", "");
    let limits = |connections: usize, sessions: usize, misses: u32, streams: u32| {
        format!(
            "[limits]\nconnections = {connections}\nconnections_per_owner = {connections}\nsessions = {sessions}\n\
             misses_per_second = {misses}\nstreams = {streams}\nstreams_non_worker = {streams}\n\
             calls_in_flight = 100\ncalls_per_owner = 100\n[drain]\ndelay = \"0s\"\ntimeout = \"{connections}s\"\n{base}"
        )
    };
    let daemon = TestDaemon::with(&limits(10, 100, 1000, 50)).await;
    let w = Worker(&daemon);
    let mut open = Vec::new();
    for id in ["a1", "a2", "a3"] {
        open.push(w.established(id).await);
    }
    daemon.reload(&limits(2, 1, 1, 7)).unwrap();

    // Existing connections stay, and no more are made.
    assert_eq!(daemon.core.connections().len(), 3);
    assert_eq!(refusal(&daemon).await.as_deref(), Some("CONNECTION_LIMIT"));
    assert_eq!(
        daemon.server_cache_len(),
        1,
        "the other sessions were evicted"
    );
    let misses = async || {
        let mut limited = 0;
        for _ in 0..20 {
            let missed = daemon.sessions().lookup_session(lookup("ee")).await;
            limited += usize::from(missed.is_err_and(|status| reason(&status) == "MISS_LIMIT"));
        }
        limited
    };
    assert!(misses().await >= 10, "one miss per second is allowed");
    let streams = async || {
        let settings = Raw::connect(&daemon.address, 65_535)
            .await
            .until(SETTINGS)
            .await
            .unwrap();
        let setting = settings
            .payload
            .chunks(6)
            .find(|setting| setting[..2] == [0, 3])
            .unwrap();
        u32::from_be_bytes(setting[2..6].try_into().unwrap())
    };
    assert_eq!(streams().await, 7);

    daemon.reload(&limits(10, 100, 1000, 50)).unwrap();
    daemon.clock.advance(Duration::from_secs(1));
    assert_eq!(
        (refusal(&daemon).await, misses().await, streams().await),
        (None, 0, 50)
    );
    for id in ["b1", "b2"] {
        open.push(w.established(id).await);
    }
    assert_eq!(daemon.server_cache_len(), 3);
    daemon.stop().await;
}

#[tokio::test]
async fn renewed_certificate_comes_with_changed_limits() {
    let folder = files();
    let base = context(folder.path(), "default", "1.3", "");
    let daemon = TestDaemon::with(&base).await;
    assert!(!visit(&daemon).await);
    let renewed = base
        .replace("tls.crt", "other.crt")
        .replace("tls.key", "other.key")
        .replace("ca.pem", "other.pem");
    daemon
        .reload(&format!(
            "[limits]\nconnections = 500\nconnections_per_owner = 400\n{renewed}"
        ))
        .unwrap();
    assert!(
        !visit(&daemon).await && visit(&daemon).await,
        "under the other certificate"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn last_reload_is_reported_with_time_and_result() {
    let folder = files();
    let base = context(folder.path(), "default", "1.2", "");
    let daemon = TestDaemon::with(&base).await;
    assert_eq!(last_reload(&daemon).await, None);

    daemon.reload(&base).unwrap();
    let first = last_reload(&daemon).await.unwrap();
    assert!(
        first.applied
            && first.time == first.applied_time
            && first.error.is_empty()
            && first.dropped.is_empty()
    );

    daemon.clock.advance(Duration::from_secs(60));
    let said = daemon
        .reload(&base.replace("tls.crt", "nothing.crt"))
        .unwrap_err()
        .to_string();
    let second = last_reload(&daemon).await.unwrap();
    assert_eq!((second.applied, &second.error), (false, &said));
    assert_eq!(
        second.applied_time, first.time,
        "the earlier configuration is in force"
    );
    assert_eq!(
        second.time.unwrap().seconds,
        first.time.unwrap().seconds + 60
    );

    // Sessions that a reload drops have their own removal reason, in every place that shows one.
    let w = Worker(&daemon);
    w.established("aa").await;
    w.established("ab").await;
    let mut watch = daemon
        .sessions()
        .watch_sessions(pb::WatchSessionsRequest::default())
        .await
        .unwrap()
        .into_inner();
    daemon
        .reload(&context(folder.path(), "default", "1.2", "alpn = [\"h2\"]"))
        .unwrap();
    let third = last_reload(&daemon).await.unwrap();
    let dropped: Vec<_> = third
        .dropped
        .iter()
        .map(|it| (it.context.as_str(), it.sessions))
        .collect();
    assert_eq!((third.applied, dropped), (true, vec![("default", 2)]));
    for _ in 0..2 {
        let told = watch.message().await.unwrap().unwrap();
        assert!(matches!(told.event, Some(Event::Removed(_))));
        assert_eq!(told.reason(), pb::RemovalReason::ScopeChanged);
    }
    let context = daemon
        .contexts()
        .get_context(pb::GetContextRequest::default())
        .await
        .unwrap()
        .into_inner();
    let removals = context.context.unwrap().stats.unwrap().removals_by_reason;
    assert_eq!(removals.len(), 1);
    assert_eq!(
        (removals[0].reason(), removals[0].count),
        (pb::RemovalReason::ScopeChanged, 2)
    );
    let explain = pb::ExplainSessionRequest {
        session_id: "aa".into(),
        role: pb::Role::Server.into(),
        ..pb::ExplainSessionRequest::default()
    };
    let told = daemon
        .sessions()
        .explain_session(explain)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        told.removal_reason(),
        pb::RemovalReason::ScopeChanged,
        "{}",
        told.summary
    );
    assert_eq!(
        told.remove_time, third.time,
        "the sessions are removed at the time of the reload"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn reload_report_hides_error_and_contexts_without_role() {
    let folder = files();
    let by = |contexts: &str, role: &str, alpn: &str| {
        let one = context(folder.path(), "default", "1.2", "");
        let other = context(folder.path(), "other", "1.2", &format!("alpn = [{alpn}]"));
        format!(
            "[[access]]\nidentity = \"local\"\ncontexts = [\"{contexts}\"]\nrole = \"{role}\"\n{one}{other}"
        )
    };
    let text = |alpn: &str| by("default", "worker", alpn);
    let daemon = TestDaemon::with(&text("")).await;
    // The error names files, so an observer of one context does not see it either.
    for (contexts, role, sees) in [
        ("default", "worker", false),
        ("default", "observer", false),
        ("*", "worker", false),
        ("*", "observer", true),
    ] {
        let good = by(contexts, role, "");
        daemon.reload(&good).unwrap();
        let refused = daemon.reload(&good.replace("tls.crt", "nothing.crt"));
        refused.unwrap_err();
        let told = last_reload(&daemon).await.unwrap();
        assert_eq!(!told.error.is_empty(), sees, "{contexts} {role} {told:?}");
        assert!(!told.applied);
    }
    daemon.reload(&text("")).unwrap();
    // This session is in the other context, which the caller may not see.
    let registry = daemon.core.registry();
    let other = registry.get("other").unwrap();
    crate::explaining::store(other, &daemon.core, 7);
    daemon.reload(&text("\"h2\"")).unwrap();
    let told = last_reload(&daemon).await.unwrap();
    assert!(told.applied && told.dropped.is_empty(), "{told:?}");
    daemon.stop().await;
}

/// Replaces the certificate with one for these names, signed by this authority.
fn renew(folder: &Path, authority: &Authority, names: &[&str]) {
    // It has the authority key identifier that RFC 5280 section 4.2.1.1 requires.
    authority
        .sign(names, |params| {
            params.use_authority_key_identifier_extension = true;
        })
        .write(folder, "tls");
}

#[tokio::test]
async fn renewed_certificate_keeps_the_sessions_of_a_scope_by_names() {
    for (scope_by, keeps) in [("names", true), ("certificate", false)] {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new("mesh");
        std::fs::write(folder.path().join("ca.pem"), &authority.pem).unwrap();
        renew(
            folder.path(),
            &authority,
            &["localhost", "spiffe://mesh.test/a"],
        );
        let config = context(
            folder.path(),
            "default",
            "1.3",
            &format!("scope_by = \"{scope_by}\""),
        );
        let daemon = TestDaemon::with(&config).await;
        assert!(!visit(&daemon).await && visit(&daemon).await);

        // The order of names does not matter.
        renew(
            folder.path(),
            &authority,
            &["spiffe://mesh.test/a", "localhost"],
        );
        daemon.reload(&config).unwrap();
        assert_eq!(visit(&daemon).await, keeps, "{scope_by}");
        assert_eq!(
            last_reload(&daemon).await.unwrap().dropped.is_empty(),
            keeps
        );

        // Another name, or another authority with the same name, changes the scope in any case.
        assert!(visit(&daemon).await);
        renew(
            folder.path(),
            &authority,
            &["localhost", "spiffe://mesh.test/b"],
        );
        daemon.reload(&config).unwrap();
        assert!(!visit(&daemon).await && visit(&daemon).await, "{scope_by}");
        let impostor = Authority::new("mesh");
        std::fs::write(
            folder.path().join("ca.pem"),
            format!("{}{}", authority.pem, impostor.pem),
        )
        .unwrap();
        daemon.reload(&config).unwrap();
        visit(&daemon).await;
        assert!(visit(&daemon).await);
        renew(
            folder.path(),
            &impostor,
            &["localhost", "spiffe://mesh.test/b"],
        );
        daemon.reload(&config).unwrap();
        assert!(!visit(&daemon).await, "{scope_by}");
        daemon.stop().await;
    }
}

#[tokio::test]
async fn renewed_client_certificate_is_shown_and_its_sessions_stay() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("mesh");
    std::fs::write(folder.path().join("ca.pem"), &authority.pem).unwrap();
    renew(folder.path(), &authority, &["localhost"]);
    let path = folder.path().display();
    authority
        .leaf(&["client.test"])
        .write(folder.path(), "client");
    let more = format!(
        "scope_by = \"names\"\nclient_auth = \"require\"\n\
         client_certificates = [{{ certificate = \"{path}/client.crt\", key = \"{path}/client.key\" }}]"
    );
    let config = context(folder.path(), "default", "1.2", &more);
    let daemon = TestDaemon::with(&config).await;
    let shown = async |resumes: bool| {
        let client = daemon.open(pb::Role::Client).await;
        let server = daemon.open(pb::Role::Server).await;
        if !resumes {
            let nothing = pb::SetSessionRequest {
                connection_id: client.clone(),
                session_id: String::new(),
            };
            daemon.connections().set_session(nothing).await.unwrap();
        }
        daemon.handshake(&client, &server).await;
        let seen = daemon.get(&server).await;
        assert_eq!(
            (seen.state(), seen.session_reused),
            (pb::ConnectionState::Established, resumes)
        );
        let w = Worker(&daemon);
        for id in [&client, &server] {
            w.shutdown(id).await;
            w.free(id).await;
        }
        seen.peer.unwrap().certificate_sha256
    };
    let first = shown(false).await;
    assert_eq!(shown(true).await, first);
    authority
        .leaf(&["client.test"])
        .write(folder.path(), "client");
    daemon.reload(&config).unwrap();
    assert_eq!(
        shown(true).await,
        first,
        "a resumption keeps the peer's identity"
    );
    let second = shown(false).await;
    assert_ne!(
        second, first,
        "a full handshake shows the renewed certificate"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn scope_by_names_requires_names() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("mesh");
    std::fs::write(folder.path().join("ca.pem"), &authority.pem).unwrap();
    renew(folder.path(), &authority, &[]);
    let by = |scope_by: &str| {
        context(
            folder.path(),
            "default",
            "1.3",
            &format!("scope_by = \"{scope_by}\""),
        )
    };
    let daemon = TestDaemon::with(&by("certificate")).await;
    let refused = daemon.reload(&by("names")).unwrap_err().to_string();
    assert!(
        refused.contains("context[0].certificate") && refused.contains("subject alternative name"),
        "{refused}"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn scope_by_names_needs_equal_client_certificates() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("mesh");
    std::fs::write(folder.path().join("ca.pem"), &authority.pem).unwrap();
    renew(folder.path(), &authority, &["localhost"]);
    for name in ["one", "other"] {
        authority.leaf(&["client.test"]).write(folder.path(), name);
    }
    let path = folder.path().display();
    let of = |context: &str, file: &str, scope_by: &str| {
        let more = format!(
            "scope_by = \"{scope_by}\"\nsession_id_context = \"shared\"\n\
             client_certificates = [{{ certificate = \"{path}/{file}.crt\", key = \"{path}/{file}.key\" }}]"
        );
        self::context(folder.path(), context, "1.2", &more)
    };
    let both = |first: &str, second: &str, scope_by: &str| {
        of("default", first, scope_by) + &of("second", second, scope_by)
    };
    let daemon = TestDaemon::with(&both("one", "one", "names")).await;
    let refused = daemon
        .reload(&both("one", "other", "names"))
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("context[1].client_certificates"),
        "{refused}"
    );
    // Both contexts change together, or each has its own scope.
    daemon.reload(&both("other", "other", "names")).unwrap();
    daemon.reload(&both("one", "other", "certificate")).unwrap();
    daemon.stop().await;
}
