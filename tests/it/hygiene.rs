//! Secrecy of the process: access to its memory, and secrets that its log must not contain.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
};

use tls_sessiond_proto::{self as pb, drive_request::Event, revoke_sessions_request::Selector};
use tokio::{
    net::{TcpStream, UnixStream},
    process::Command,
};

use crate::{
    calls,
    doors::{Guest, SOMEBODY, denied, open_to_all, over, rule, told, why},
    harness::new,
    process::Process,
};

// Invariant 23.
#[tokio::test]
async fn process_memory_is_closed_to_its_user_and_core_files() {
    let folder = tempfile::tempdir().unwrap();
    open_to_all(folder.path());
    // The test copies the binary, because the other user may not enter the folder that it was built
    // in.
    let binary = folder.path().join("tls-sessiond");
    fs::copy(env!("CARGO_BIN_EXE_tls-sessiond"), &binary).unwrap();
    let mut command = Command::new("setpriv");
    command
        .args([
            format!("--reuid={SOMEBODY}"),
            format!("--regid={SOMEBODY}"),
            "--clear-groups".into(),
        ])
        .arg(&binary)
        .args(["--set", "listen.api=[\"tcp://127.0.0.1:0\"]"]);
    let mut daemon = Process::start(&mut command);
    daemon.says("listening on tcp://").await;
    let process = format!("/proc/{}", daemon.id());
    let limits = fs::read_to_string(format!("{process}/limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    let numbers: Vec<_> = core.split_whitespace().skip(4).take(2).collect();
    assert_eq!(numbers, ["0", "0"], "{core}");
    // The daemon runs as the other user. The files of its memory belong to root, because the
    // process is not dumpable (proc(5)).
    let status = fs::read_to_string(format!("{process}/status")).unwrap();
    let uid = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .unwrap();
    assert_eq!(uid.split_whitespace().collect::<Vec<_>>(), ["54321"; 4]);
    for file in ["mem", "maps", "environ"] {
        assert_eq!(
            fs::metadata(format!("{process}/{file}")).unwrap().uid(),
            0,
            "{file}"
        );
    }
    daemon.signal("TERM").await;
    assert!(daemon.succeeds().await);
}

/// Shakes hands, sends data and closes. Returns the ids of the sessions that were made.
async fn visit(guest: &mut Guest) -> Vec<String> {
    let ends = guest.pair().await;
    guest
        .exchange(&ends[0], Default::default(), PLAINTEXT.into())
        .await;
    let mut sessions = Vec::new();
    for connection_id in ends {
        let request = pb::GetSessionRequest {
            connection_id: connection_id.clone(),
        };
        sessions.extend(
            guest
                .connections
                .get_session(request)
                .await
                .unwrap()
                .into_inner()
                .session,
        );
        guest
            .connections
            .shutdown(pb::ShutdownRequest {
                connection_id: connection_id.clone(),
            })
            .await
            .unwrap();
        let free = pb::FreeRequest {
            connection_id,
            allow_missing: false,
        };
        guest.connections.free(free).await.unwrap();
    }
    sessions.into_iter().map(|session| session.id).collect()
}

const PLAINTEXT: &str = "a plaintext found nowhere else";
const SECRET: &str = "a secret found nowhere else";

// Invariant 23.
#[tokio::test]
async fn log_holds_no_secret_and_audits_refusals_and_removals() {
    let folder = tempfile::tempdir().unwrap();
    crate::pki::localhost(folder.path());
    let path = |name: &str| folder.path().join(name);
    let context = |name: &str, version: &str| {
        format!(
            "[[context]]\nname = \"{name}\"\nversions = [\"{version}\"]\ncertificate = \"tls.crt\"\n\
             key = \"tls.key\"\nca = \"ca.pem\"\n"
        )
    };
    let uid = rustix::process::getuid().as_raw();
    let rules = [
        rule(&format!("uid:{uid}"), "*", "admin"),
        rule("local", "default", "worker"),
    ];
    let mut seen = String::new();
    let mut ids: Vec<String> = Vec::new();
    for version in ["1.2", "1.3"] {
        let (file, log, socket) = (path("daemon.toml"), path("log"), path("api.sock"));
        let contexts = context("default", version) + &context("mail", "1.3");
        fs::write(&file, rules.concat() + &contexts).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tls-sessiond"));
        command
            .arg("--config")
            .arg(&file)
            // Lines of other crates are logged too. None of them may contain a secret.
            .env(
                "RUST_LOG",
                "debug,h2=debug,hyper=debug,rustls=debug,tonic=debug",
            )
            .args([
                "--set",
                &format!(
                    "listen.api=[\"tcp://127.0.0.1:0\", \"unix://{}\"]",
                    socket.display()
                ),
            ])
            // Streams are still open at the stop.
            .args(["--set", "drain.timeout=100ms"]);
        let mut daemon = Process::logging(&mut command, File::create(&log).unwrap());
        let address = daemon.says("listening on tcp://").await;
        let mut worker = Guest::new(&over(TcpStream::connect(&address).await.unwrap()).await);
        let mut admin = Guest::new(&over(UnixStream::connect(&socket).await.unwrap()).await);

        // The second visit resumes.
        for _ in 0..2 {
            ids.extend(visit(&mut worker).await);
        }
        let put_id = "c0ffee00c0ffee11c0ffee22c0ffee33";
        let connection = worker.open("").await.unwrap();
        let spoken = if version == "1.2" {
            pb::ProtocolVersion::Tls12
        } else {
            pb::ProtocolVersion::Tls13
        };
        let put = pb::PutSessionRequest {
            data: SECRET.into(),
            version: spoken.into(),
            ..calls::put(&connection, put_id)
        };
        worker.sessions.put_session(put).await.unwrap();
        assert!(
            worker
                .sessions
                .lookup_session(calls::lookup(put_id))
                .await
                .unwrap()
                .into_inner()
                .found
        );
        worker
            .sessions
            .lookup_session(calls::lookup("dead00beef00dead00beef00dead00be"))
            .await
            .unwrap();
        let mut attached = worker.attach().await;
        attached
            .established("c0ffee44c0ffee55c0ffee66c0ffee77")
            .await;
        drop(attached);
        let listed = admin
            .sessions
            .list_sessions(pb::ListSessionsRequest::default())
            .await
            .unwrap();
        ids.extend(
            listed
                .into_inner()
                .sessions
                .into_iter()
                .map(|session| session.id),
        );
        ids.extend(["dead00beef00dead00beef00dead00be", put_id].map(str::to_owned));
        let remove = pb::RemoveSessionRequest {
            session_id: put_id.into(),
            role: pb::Role::Server.into(),
            ..Default::default()
        };
        assert_eq!(
            why(worker.sessions.remove_session(remove.clone()).await),
            denied()
        );
        assert!(
            admin
                .sessions
                .remove_session(remove)
                .await
                .unwrap()
                .into_inner()
                .removed
        );
        let revoke = pb::RevokeSessionsRequest {
            selector: Some(Selector::ServerName("localhost".into())),
            ..Default::default()
        };
        assert_eq!(
            why(worker.sessions.revoke_sessions(revoke.clone()).await),
            denied()
        );
        admin.sessions.revoke_sessions(revoke).await.unwrap();
        // Calls in a context without the role, unary and on a stream, and a call of an identity
        // without the role anywhere.
        assert_eq!(why(worker.open("mail").await), denied());
        let mut driven = worker
            .drive(Event::New(new("mail", pb::Role::Server)))
            .await;
        assert_eq!(told(driven.answers.message()).await, denied());
        assert_eq!(why(admin.open("").await), denied());
        // The rule of a stream is removed while the stream is open.
        let mut attached = worker.attach().await;
        let [admins, _] = &rules;
        fs::write(&file, format!("{admins}{contexts}")).unwrap();
        daemon.signal("HUP").await;
        assert_eq!(told(attached.answers.message()).await, denied());
        daemon.signal("TERM").await;
        assert!(daemon.succeeds().await);
        let written = fs::read_to_string(&log).unwrap();

        let audit: Vec<_> = written
            .lines()
            .filter(|line| line.contains("\"target\":\"audit\""))
            .collect();
        let admin = format!("\"owner\":\"uid:{uid}\"");
        for (what, times, words) in [
            (
                "removal",
                1,
                &[
                    "\"RemoveSession\"",
                    admin.as_str(),
                    "\"session\":\"c0ffee00…\"",
                    "\"removed\":true",
                ][..],
            ),
            (
                "revocation",
                1,
                &["\"RevokeSessions\"", &admin, "localhost", "\"removed\":"],
            ),
            (
                "removal by a worker",
                1,
                &[
                    "a call was refused",
                    "\"owner\":\"local\"",
                    "SessionService/RemoveSession",
                ],
            ),
            (
                "revocation by a worker",
                1,
                &[
                    "a call was refused",
                    "\"owner\":\"local\"",
                    "RevokeSessions",
                ],
            ),
            (
                "worker of another context",
                2,
                &["a call was refused", "\"owner\":\"local\"", "`mail`"],
            ),
            (
                "worker whose rule is removed",
                1,
                &[
                    "a call was refused",
                    "\"owner\":\"local\"",
                    "`local` does not have the role worker:",
                ],
            ),
            (
                "admin that makes a connection",
                1,
                &["a call was refused", &admin, "ConnectionService/New"],
            ),
        ] {
            let told = audit
                .iter()
                .filter(|line| words.iter().all(|word| line.contains(word)))
                .count();
            assert_eq!(told, times, "{what}: {audit:#?}");
        }
        seen += &written;
    }
    assert!(seen.contains("DEBUG"), "the log has lines of level debug");
    assert!(
        ids.len() > 8 && ids.iter().all(|id| id.len() >= 32),
        "{ids:?}"
    );
    for id in &ids {
        assert!(
            !seen.to_lowercase().contains(id.as_str()),
            "a session id is in the log: {id}"
        );
    }
    for word in [PLAINTEXT, SECRET, "BEGIN PRIVATE"] {
        let hex: String = word.bytes().map(|byte| format!("{byte:02x}")).collect();
        let numbers = format!("{:?}", &word.as_bytes()[..8]);
        for form in [word, &hex, numbers.trim_matches(['[', ']'])] {
            assert!(!seen.contains(form), "a secret is in the log: {form}");
        }
    }
}
