//! Steps of the wall clock while the daemon runs. The first tests move the clock of a daemon in
//! this process. The last ones run the binary under libfaketime, which fakes the wall clock and not
//! the monotonic clocks.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use rcgen::date_time_ymd;
use tempfile::TempDir;
use tls_sessiond_core::clock::Step;
use tls_sessiond_proto::{
    self as pb, answer::Result as Answered, call::Method, drive_request::Event,
    revoke_sessions_request::Selector, session_service_client::SessionServiceClient,
    watch_sessions_response::Event as Told,
};
use tokio::{net::TcpStream, process::Command, time::timeout};
use tokio_rustls::TlsConnector;
use tonic::{Code, transport::Channel};

use crate::{
    calls::{Worker, lookup, put, worker},
    doors::{self, Guest, House, rule, told, why},
    harness::{TestDaemon, new, now, reason},
    pki::{Authority, Leaf},
    process::{PATIENCE, Process},
    reload::{context, files, visit},
};

const HOUR: Duration = Duration::from_secs(3600);
const MILLISECOND: Duration = Duration::from_millis(1);

fn all() -> pb::RevokeSessionsRequest {
    pb::RevokeSessionsRequest {
        selector: Some(Selector::All(true)),
        ..Default::default()
    }
}

/// Returns the daemon's wall clock plus this many seconds.
fn away(daemon: &TestDaemon, seconds: i64) -> Option<prost_types::Timestamp> {
    let wall = daemon.core.now().wall();
    let nanos = i32::try_from(wall.as_millis() % 1000).unwrap() * 1_000_000;
    Some(prost_types::Timestamp {
        seconds: i64::try_from(wall.as_secs()).unwrap() + seconds,
        nanos,
    })
}

/// Signs a certificate whose notAfter is an hour from now. X.509 includes that second, so it
/// expires a second later.
fn for_an_hour(authority: &Authority, names: &[&str]) -> Leaf {
    let last = now().as_secs() + HOUR.as_secs();
    authority.sign(names, |params| {
        params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(last);
    })
}

async fn explain(daemon: &TestDaemon, session_id: &str) -> pb::ExplainSessionResponse {
    let request = pb::ExplainSessionRequest {
        role: pb::Role::Server.into(),
        session_id: session_id.into(),
        ..Default::default()
    };
    daemon
        .sessions()
        .explain_session(request)
        .await
        .unwrap()
        .into_inner()
}

// Invariant 15.
#[tokio::test]
async fn revocation_covers_all_sessions_after_a_step_back() {
    for version in ["1.2", "1.3"] {
        let folder = files();
        let daemon = TestDaemon::with(&context(folder.path(), "default", version, "")).await;
        let w = Worker(&daemon);
        assert!(!visit(&daemon).await && visit(&daemon).await);
        w.established("aa").await;
        daemon.clock.set_wall(Step::Back(HOUR));
        assert!(
            visit(&daemon).await,
            "TLS {version}: a step of the clock expires no session"
        );
        let stored: usize = daemon
            .core
            .registry()
            .caches()
            .map(|cache| cache.len())
            .sum();
        let revoked = daemon
            .sessions()
            .revoke_sessions(all())
            .await
            .unwrap()
            .into_inner();
        assert_eq!(revoked.removed, stored as u64);
        assert_eq!(
            daemon
                .core
                .registry()
                .caches()
                .map(|cache| cache.len())
                .sum::<usize>(),
            0
        );
        assert_eq!(
            w.lookup(lookup("aa")).await.miss_reason(),
            pb::MissReason::Revoked
        );
        daemon.clock.advance(MILLISECOND);
        assert!(
            !visit(&daemon).await,
            "TLS {version}: sessions from before the revocation do not resume"
        );
        assert!(
            visit(&daemon).await,
            "TLS {version}: a session authenticated afterwards resumes"
        );
        daemon.stop().await;
    }
}

// Invariant 5.
#[tokio::test]
async fn step_of_the_clock_moves_no_session_expiry() {
    for step in [
        Step::Back(HOUR),
        Step::Forward(HOUR),
        Step::Forward(30 * HOUR),
    ] {
        let daemon = TestDaemon::start().await;
        let w = Worker(&daemon);
        let id = w.established("aa").await;
        w.shutdown(&id).await;
        daemon.clock.set_wall(step);
        daemon.clock.advance(2 * HOUR - MILLISECOND);
        assert!(w.found("aa").await, "{step:?}");
        assert!(explain(&daemon, "aa").await.resumable);
        daemon.clock.advance(MILLISECOND);
        assert_eq!(
            w.lookup(lookup("aa")).await.miss_reason(),
            pb::MissReason::Expired,
            "{step:?}"
        );
        daemon.stop().await;
    }
}

#[tokio::test]
async fn idle_connections_are_freed_after_a_step_back() {
    let daemon = TestDaemon::start().await;
    let w = Worker(&daemon);
    let id = w.established("aa").await;
    daemon.clock.set_wall(Step::Back(HOUR));
    daemon.clock.advance(Duration::from_secs(300) - MILLISECOND);
    daemon.core.connections().sweep();
    assert_eq!(daemon.get(&id).await.id, id);
    daemon.clock.advance(MILLISECOND);
    daemon
        .until("the idle connection is freed", async |daemon| {
            daemon.core.connections().is_empty()
        })
        .await;
    assert!(
        !w.found("aa").await,
        "the connection was not closed, so its session was removed"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn step_ahead_frees_no_connection_in_use() {
    let daemon = TestDaemon::start().await;
    let w = Worker(&daemon);
    let id = w.established("aa").await;
    daemon.clock.set_wall(Step::Forward(30 * HOUR));
    assert_eq!(daemon.core.connections().sweep(), 0);
    assert_eq!(
        daemon.get(&id).await.state(),
        pb::ConnectionState::Established
    );
    assert!(w.found("aa").await);
    w.shutdown(&id).await;
    assert_eq!(w.free(&id).await, 0);
    assert!(w.found("aa").await);
    daemon.stop().await;
}

#[tokio::test]
async fn request_ids_last_a_minute_after_a_step_of_the_clock() {
    let daemon = TestDaemon::start().await;
    let w = Worker(&daemon);
    let request = pb::NewRequest {
        request_id: "once".into(),
        ..worker(pb::Role::Server)
    };
    let first = w.open(request.clone()).await.id;
    for step in [Step::Forward(HOUR), Step::Back(2 * HOUR)] {
        daemon.clock.set_wall(step);
        assert_eq!(w.open(request.clone()).await.id, first, "{step:?}");
    }
    daemon.clock.advance(Duration::from_secs(60));
    assert_ne!(w.open(request).await.id, first);
    daemon.stop().await;
}

// Invariant 5.
#[tokio::test]
async fn sessions_expire_with_certificates_by_the_wall_clock() {
    for version in ["1.2", "1.3"] {
        let folder = files();
        let workers = Authority::new("peers");
        fs::write(folder.path().join("peers.pem"), &workers.pem).unwrap();
        for_an_hour(&workers, &["job.test"]).write(folder.path(), "job");
        let path = folder.path().display();
        let server = context(
            folder.path(),
            "server",
            version,
            "client_auth = \"require\"\nclose_policy = \"flag\"",
        )
        .replace("ca.pem", "peers.pem");
        let client = format!(
            "client_certificates = [{{ certificate = \"{path}/job.crt\", key = \"{path}/job.key\" }}]"
        );
        let daemon =
            TestDaemon::with(&(server + &context(folder.path(), "client", version, &client))).await;
        let w = Worker(&daemon);
        let meet = async || {
            let client = daemon.open_in("client", pb::Role::Client).await;
            let server = daemon.open_in("server", pb::Role::Server).await;
            daemon.handshake(&client, &server).await;
            let seen = daemon.get(&server).await;
            for id in [client, server] {
                w.shutdown(&id).await;
                w.free(&id).await;
            }
            seen
        };
        assert!(!meet().await.session_reused && meet().await.session_reused);
        let listed = async || {
            let request = pb::ListSessionsRequest {
                context: "server".into(),
                ..Default::default()
            };
            let listed = daemon
                .sessions()
                .list_sessions(request)
                .await
                .unwrap()
                .into_inner()
                .sessions;
            listed
                .into_iter()
                .filter(|session| session.role() == pb::Role::Server)
                .collect::<Vec<_>>()
        };
        let sessions = listed().await;
        let of_an_hour = |session: &pb::Session| {
            let until = session.expire_time.unwrap().seconds;
            let left = until - away(&daemon, 0).unwrap().seconds;
            (3590..=3602).contains(&left)
        };
        assert!(
            !sessions.is_empty() && sessions.iter().all(of_an_hour),
            "{sessions:?}"
        );

        // The monotonic time has not moved, but the certificate has expired.
        daemon.clock.set_wall(Step::Forward(2 * HOUR));
        assert_eq!(listed().await, []);
        let request = pb::ExplainSessionRequest {
            context: "server".into(),
            role: pb::Role::Server.into(),
            session_id: sessions[0].id.clone(),
        };
        let explained = daemon
            .sessions()
            .explain_session(request)
            .await
            .unwrap()
            .into_inner();
        assert_eq!(
            (explained.resumable, explained.miss_reason()),
            (false, pb::MissReason::Expired)
        );
        let client = daemon.open_in("client", pb::Role::Client).await;
        let server = daemon.open_in("server", pb::Role::Server).await;
        let mut flight = daemon.exchange(&client, b"", b"").await.unwrap().ciphertext;
        let alert = loop {
            let answer = daemon.exchange(&server, &flight, b"").await.unwrap();
            if let Some(alert) = answer.alert {
                break alert.name;
            }
            flight = daemon
                .exchange(&client, &answer.ciphertext, b"")
                .await
                .unwrap()
                .ciphertext;
        };
        assert_eq!(
            alert, "certificate_expired",
            "TLS {version}: rustls verifies by the wall clock"
        );
        daemon.stop().await;
    }
}

#[tokio::test]
async fn api_time_stamps_follow_the_wall_clock() {
    let daemon = TestDaemon::start().await;
    let w = Worker(&daemon);
    let mut watch = daemon
        .sessions()
        .watch_sessions(pb::WatchSessionsRequest::default())
        .await
        .unwrap()
        .into_inner();
    let id = w.established("aa").await;
    let event = watch.message().await.unwrap().unwrap();
    assert_eq!(event.time, away(&daemon, 0));
    let removed = w.established("bb").await;
    watch.message().await.unwrap().unwrap();
    assert_eq!(w.free(&removed).await, 1);
    // A tombstone has the time of the last call or sweep. That is exact here because the test's
    // clock stands still.
    let stamps = async || {
        let connection = daemon.get(&id).await;
        let session = explain(&daemon, "aa").await.session.unwrap();
        let looked = w.lookup(lookup("aa")).await.session.unwrap();
        let listed = pb::ListSessionsRequest::default();
        let listed = daemon
            .sessions()
            .list_sessions(listed)
            .await
            .unwrap()
            .into_inner()
            .sessions
            .remove(0);
        assert_eq!((&looked, &listed), (&session, &session));
        let gone = explain(&daemon, "bb").await;
        [
            connection.create_time,
            connection.expire_time,
            session.create_time,
            session.authenticate_time,
            session.expire_time,
            gone.remove_time,
        ]
        .map(|stamp| stamp.unwrap())
    };
    let before = stamps().await;
    for (step, shift) in [(Step::Forward(HOUR), 3600), (Step::Back(3 * HOUR), -7200)] {
        daemon.clock.set_wall(step);
        let moved = before.map(|stamp| prost_types::Timestamp {
            seconds: stamp.seconds + shift,
            ..stamp
        });
        assert_eq!(stamps().await, moved, "{step:?}");
        let id = w.open(worker(pb::Role::Server)).await;
        assert_eq!(id.create_time, away(&daemon, 0));
    }
    let revoked = daemon
        .sessions()
        .revoke_sessions(all())
        .await
        .unwrap()
        .into_inner();
    let mut before = away(&daemon, 0).unwrap();
    before.nanos += 1_000_000;
    let carry = before.nanos / 1_000_000_000;
    before = prost_types::Timestamp {
        seconds: before.seconds + i64::from(carry),
        nanos: before.nanos % 1_000_000_000,
    };
    assert_eq!(revoked.before, Some(before));
    loop {
        let event = watch.message().await.unwrap().unwrap();
        if matches!(event.event, Some(Told::Removed(session)) if session.id == "aa") {
            assert_eq!(event.time, away(&daemon, 0));
            break;
        }
    }
    daemon.stop().await;
}

#[tokio::test]
async fn lists_continue_after_a_step_of_the_clock() {
    let daemon = TestDaemon::start().await;
    let w = Worker(&daemon);
    for id in ["aa", "ab", "ac"] {
        w.established(id).await;
        daemon.clock.advance(MILLISECOND);
    }
    for step in [Step::Back(HOUR), Step::Forward(2 * HOUR)] {
        let mut page = pb::ListSessionsRequest {
            page_size: 1,
            ..Default::default()
        };
        let mut ids = Vec::new();
        loop {
            let listed = daemon
                .sessions()
                .list_sessions(page.clone())
                .await
                .unwrap()
                .into_inner();
            ids.extend(listed.sessions.into_iter().map(|session| session.id));
            if listed.next_page_token.is_empty() {
                break;
            }
            page.page_token = listed.next_page_token;
            daemon.clock.set_wall(step);
        }
        ids.sort_unstable();
        assert_eq!(ids, ["aa", "ab", "ac"]);
    }
    daemon.stop().await;
}

#[tokio::test]
async fn worker_ahead_by_30_s_counts_as_now_and_by_61_s_is_refused() {
    let daemon = TestDaemon::start().await;
    let w = Worker(&daemon);
    let mut attached = Guest::new(&daemon.channel).attach().await;
    let id = w.open(worker(pb::Role::Server)).await.id;
    for (session, ahead) in [("a0", 0), ("a1", 30), ("a2", 60)] {
        let request = pb::PutSessionRequest {
            authenticate_time: away(&daemon, ahead),
            ..put(&id, session)
        };
        let stored = w.put(request).await.session.unwrap();
        assert_eq!(stored.authenticate_time, away(&daemon, 0), "{ahead} s");
        assert_eq!(stored.expire_time, away(&daemon, 7200), "{ahead} s");
        let session = session.replace('a', "b");
        let request = pb::PutSessionRequest {
            authenticate_time: away(&daemon, ahead),
            ..put(&id, &session)
        };
        let Answered::PutSession(stored) =
            attached.call(Method::PutSession(Box::new(request))).await
        else {
            panic!("no answer of PutSession")
        };
        assert_eq!(
            stored.session.unwrap().authenticate_time,
            away(&daemon, 0),
            "{ahead} s"
        );
    }
    let request = pb::PutSessionRequest {
        authenticate_time: away(&daemon, 61),
        ..put(&id, "cc")
    };
    let refused = daemon
        .sessions()
        .put_session(request.clone())
        .await
        .unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::InvalidArgument, "AUTHENTICATE_TIME_INVALID")
    );
    let Answered::Error(refused) = attached.call(Method::PutSession(Box::new(request))).await
    else {
        panic!("it was accepted")
    };
    assert_eq!(refused.reason, "AUTHENTICATE_TIME_INVALID");

    // A `before` from an administrator whose clock is ahead counts as now: it covers the sessions
    // stored up to this millisecond, and no later ones.
    let revoke = async |ahead| {
        let request = pb::RevokeSessionsRequest {
            before: away(&daemon, ahead),
            ..all()
        };
        daemon
            .sessions()
            .revoke_sessions(request)
            .await
            .map(|answer| answer.into_inner().removed)
    };
    assert_eq!(
        revoke(61).await.map_err(|status| reason(&status)),
        Err("BEFORE_INVALID".to_owned())
    );
    assert_eq!(revoke(0).await.unwrap(), 0);
    assert_eq!(revoke(30).await.unwrap(), 6);
    daemon.clock.advance(MILLISECOND);
    w.established("dd").await;
    assert!(w.found("dd").await);
    drop(attached);
    daemon.stop().await;
}

#[tokio::test]
async fn old_time_stamps_extend_no_life_and_evade_no_revocation() {
    let daemon = TestDaemon::start().await;
    let w = Worker(&daemon);
    let ticket = |id: &str, session: &str| pb::PutSessionRequest {
        single_use: true,
        version: pb::ProtocolVersion::Tls13.into(),
        ..put(id, session)
    };
    // Two tickets are handed out with their authentication times. After a step back these stamps
    // are ahead of the clock.
    let first = w.open(worker(pb::Role::Server)).await.id;
    let mut stamps = Vec::new();
    for id in ["a1", "a2"] {
        w.put(ticket(&first, id)).await;
        stamps.push(
            w.lookup(lookup(id))
                .await
                .session
                .unwrap()
                .authenticate_time,
        );
    }
    w.shutdown(&first).await;
    let ends = away(&daemon, 7200 - 45).unwrap();
    daemon.clock.advance(Duration::from_secs(10));
    daemon.clock.set_wall(Step::Back(Duration::from_secs(45)));
    let resumed = async |id: &str, next: &str, stamp| {
        let connection = w.open(worker(pb::Role::Server)).await.id;
        assert!(w.set_session(&connection, id).await.session_reused);
        w.put(pb::PutSessionRequest {
            authenticate_time: stamp,
            ..ticket(&connection, next)
        })
        .await
    };
    let next = resumed("a1", "b1", stamps[0]).await.session.unwrap();
    assert_eq!(
        next.expire_time,
        Some(ends),
        "a renewed ticket expires when the first one would have"
    );
    daemon.sessions().revoke_sessions(all()).await.unwrap();
    daemon.clock.advance(MILLISECOND);
    assert_eq!(resumed("a2", "b2", stamps[1]).await.reason, "REVOKED");
    daemon.stop().await;
}

// Invariant 20.
#[tokio::test]
async fn streams_end_when_a_step_expires_their_certificate() {
    let rules = rule("dns:a.test", "default", "worker") + &rule("dns:a.test", "mail", "observer");
    let house = House::with(&(rules + &rule("local", "*", "observer"))).await;
    let mut guest = Guest::new(
        &house
            .over_tls(&for_an_hour(&house.authority, &["a.test"]))
            .await,
    );
    let mut attached = guest.attach().await;
    attached.established("aa").await;
    let mut driven = guest.drive(Event::New(new("", pb::Role::Server))).await;
    driven.answers.message().await.unwrap().unwrap();
    let mut watched = guest.watch("mail").await;
    house.daemon.clock.set_wall(Step::Back(HOUR));
    guest.open("").await.unwrap();
    house.daemon.clock.set_wall(Step::Forward(3 * HOUR));
    let ended = (Code::Unauthenticated, "CERTIFICATE_ENDED".to_owned());
    assert_eq!(why(guest.open("").await), ended);
    assert_eq!(told(attached.answers.message()).await, ended);
    assert_eq!(told(driven.answers.message()).await, ended);
    assert_eq!(told(watched.message()).await, ended);
    house.daemon.stop().await;
}

/// The binary under libfaketime. Its `std::time::SystemTime` reads a clock that the test sets; its
/// monotonic clock is the machine's.
struct Faked {
    process: Process,
    folder: TempDir,
    address: String,
}

/// Returns the path of the library that tests/peers.sh installs. Debian's folder depends on the
/// processor.
fn libfaketime() -> PathBuf {
    let all = fs::read_dir("/usr/lib")
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut found = all.map(|folder| folder.join("faketime/libfaketimeMT.so.1"));
    found
        .find(|library| library.exists())
        .expect("libfaketime is missing: run tests/peers.sh")
}

impl Faked {
    async fn start(config: impl FnOnce(&Path) -> String) -> Self {
        let folder = files();
        fs::write(folder.path().join("offset"), "+0").unwrap();
        fs::write(folder.path().join("config.toml"), config(folder.path())).unwrap();
        let mut process = Process::start(
            Command::new(env!("CARGO_BIN_EXE_tls-sessiond"))
                .arg("--config")
                .arg(folder.path().join("config.toml"))
                .env_clear()
                .env("LD_PRELOAD", libfaketime())
                .env("FAKETIME_TIMESTAMP_FILE", folder.path().join("offset"))
                .env("FAKETIME_NO_CACHE", "1")
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        );
        let address = process.says("listening on tcp://").await;
        Self {
            process,
            folder,
            address,
        }
    }

    async fn guest(&self) -> Guest {
        Guest::new(&doors::over(TcpStream::connect(&self.address).await.unwrap()).await)
    }

    /// Sets the daemon's wall clock ahead of this machine's by `seconds`, and waits until time
    /// stamps of the API show it.
    async fn set_wall(&self, guest: &mut Guest, seconds: i64) {
        let (file, next) = (
            self.folder.path().join("offset"),
            self.folder.path().join("next"),
        );
        fs::write(&next, format!("{seconds:+}")).unwrap();
        fs::rename(next, file).unwrap();
        let shown = async {
            loop {
                let made = guest
                    .connections
                    .new_connection(worker(pb::Role::Server))
                    .await
                    .unwrap();
                let made = made.into_inner().connection.unwrap();
                let here = i64::try_from(now().as_secs()).unwrap();
                let away = made.create_time.unwrap().seconds - here;
                let free = pb::FreeRequest {
                    connection_id: made.id,
                    allow_missing: false,
                };
                guest.connections.free(free).await.unwrap();
                if away.abs_diff(seconds) <= 5 {
                    return;
                }
            }
        };
        timeout(PATIENCE, shown)
            .await
            .expect("libfaketime sets the daemon's wall clock");
    }
}

/// Opens a connection, stores this session on it and closes it, so that the session is kept.
async fn keeps(guest: &mut Guest, context: &str, request: pb::PutSessionRequest) {
    let connection_id = guest.open(context).await.unwrap();
    let request = pb::PutSessionRequest {
        connection_id: connection_id.clone(),
        ..request
    };
    assert_eq!(
        guest
            .sessions
            .put_session(request)
            .await
            .unwrap()
            .into_inner()
            .reason,
        ""
    );
    guest
        .connections
        .shutdown(pb::ShutdownRequest { connection_id })
        .await
        .unwrap();
}

async fn looked(
    sessions: &mut SessionServiceClient<Channel>,
    context: &str,
    id: &str,
) -> pb::LookupSessionResponse {
    let request = pb::LookupSessionRequest {
        context: context.into(),
        ..lookup(id)
    };
    sessions.lookup_session(request).await.unwrap().into_inner()
}

/// Opens a connection with an idle time-out of one second. Returns its id.
async fn short_lived(guest: &mut Guest) -> String {
    let second = prost_types::Duration {
        seconds: 1,
        nanos: 0,
    };
    let request = pb::NewRequest {
        idle_timeout: Some(second),
        ..worker(pb::Role::Server)
    };
    guest
        .connections
        .new_connection(request)
        .await
        .unwrap()
        .into_inner()
        .connection
        .unwrap()
        .id
}

/// Waits until the daemon has freed this idle connection, which its sweep does.
async fn lapses(guest: &mut Guest, id: String) {
    let gone = async {
        let request = pb::GetConnectionRequest { connection_id: id };
        while guest
            .connections
            .get_connection(request.clone())
            .await
            .is_ok()
        {}
    };
    timeout(PATIENCE, gone)
        .await
        .expect("the idle connection is freed");
}

fn two_contexts(folder: &Path) -> String {
    "[listen]\napi = [\"tcp://127.0.0.1:0\"]\n".to_owned()
        + &context(folder, "default", "1.2", "")
        + &context(folder, "short", "1.2", "session_timeout = \"2s\"")
}

#[tokio::test]
async fn binary_revokes_and_expires_after_a_step_back() {
    let daemon = Faked::start(two_contexts).await;
    let mut guest = daemon.guest().await;
    keeps(&mut guest, "", put("", "aa")).await;
    keeps(&mut guest, "short", put("", "bb")).await;
    daemon.set_wall(&mut guest, -3600).await;
    assert!(looked(&mut guest.sessions, "", "aa").await.found);

    // Idle time-outs and lifetimes run on unchanged.
    let idle = short_lived(&mut guest).await;
    lapses(&mut guest, idle).await;
    let expired = async { while looked(&mut guest.sessions, "short", "bb").await.found {} };
    timeout(PATIENCE, expired)
        .await
        .expect("a session expires at its time-out");
    assert_eq!(
        looked(&mut guest.sessions, "short", "bb")
            .await
            .miss_reason(),
        pb::MissReason::Expired
    );

    let revoked = guest
        .sessions
        .revoke_sessions(all())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(revoked.removed, 1);
    assert_eq!(
        looked(&mut guest.sessions, "", "aa").await.miss_reason(),
        pb::MissReason::Revoked
    );

    // A revocation does not cover a session that is authenticated after its answer, however soon.
    for number in 0..20 {
        let connection_id = guest.open("").await.unwrap();
        let id = format!("{number:02x}");
        guest.sessions.revoke_sessions(all()).await.unwrap();
        let stored = guest
            .sessions
            .put_session(put(&connection_id, &id))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(stored.reason, "", "round {number}");
        assert!(
            looked(&mut guest.sessions, "", &id).await.found,
            "round {number}"
        );
    }

    // This machine's clock is now ahead of the daemon's, like the clock of a worker on another host
    // may be.
    let here = now();
    let told = prost_types::Timestamp {
        seconds: i64::try_from(here.as_secs()).unwrap(),
        nanos: 0,
    };
    let connection_id = guest.open("").await.unwrap();
    let request = pb::PutSessionRequest {
        authenticate_time: Some(told),
        ..put(&connection_id, "cc")
    };
    let refused = guest.sessions.put_session(request.clone()).await;
    assert_eq!(
        why(refused),
        (Code::InvalidArgument, "AUTHENTICATE_TIME_INVALID".into())
    );
    daemon.set_wall(&mut guest, -30).await;
    let stored = guest
        .sessions
        .put_session(request)
        .await
        .unwrap()
        .into_inner()
        .session
        .unwrap();
    // The daemon reads its clock twice, so the two times may differ by some milliseconds.
    let millis = |time: Option<prost_types::Timestamp>| {
        time.map(|it| it.seconds * 1000 + i64::from(it.nanos / 1_000_000))
            .unwrap()
    };
    let apart = millis(stored.create_time) - millis(stored.authenticate_time);
    assert!(
        (0..1000).contains(&apart),
        "the authentication counts as now: {apart} ms apart"
    );
    daemon.process.kill().await;
}

#[tokio::test]
async fn binary_keeps_sessions_in_use_after_a_step_ahead() {
    let daemon = Faked::start(two_contexts).await;
    let mut guest = daemon.guest().await;
    keeps(&mut guest, "", put("", "aa")).await;
    let open = guest.open("").await.unwrap();
    guest.sessions.put_session(put(&open, "bb")).await.unwrap();
    daemon.set_wall(&mut guest, 30 * 3600).await;
    // This waits for a sweep after the step.
    let idle = short_lived(&mut guest).await;
    lapses(&mut guest, idle).await;
    for id in ["aa", "bb"] {
        assert!(looked(&mut guest.sessions, "", id).await.found, "{id}");
    }
    let request = pb::GetConnectionRequest {
        connection_id: open,
    };
    let kept = guest
        .connections
        .get_connection(request)
        .await
        .unwrap()
        .into_inner()
        .connection
        .unwrap();
    assert_eq!(kept.state(), pb::ConnectionState::Established);
    daemon.process.kill().await;
}

#[tokio::test]
async fn binary_ends_streams_of_an_expired_certificate() {
    let authority = Authority::new("workers");
    let leaf = for_an_hour(&authority, &["a.test"]);
    let mut daemon = Faked::start(|folder| {
        authority.leaf(&["localhost"]).write(folder, "server");
        fs::write(folder.join("workers.pem"), &authority.pem).unwrap();
        let path = folder.display();
        format!(
            "[listen]\napi = [\"tcp://127.0.0.1:0\", \"tls://127.0.0.1:0\"]\n[listen.tls]\n\
             certificate = \"{path}/server.crt\"\nkey = \"{path}/server.key\"\nclient_ca = \"{path}/workers.pem\"\n{}{}",
            rule("dns:a.test", "*", "worker"),
            rule("local", "*", "worker"),
        )
    })
    .await;
    let tls = daemon.process.says("listening on tls://").await;
    let connect = async || {
        let socket = TcpStream::connect(&tls).await.unwrap();
        let config = doors::client(&authority.pem, Some(&leaf));
        TlsConnector::from(std::sync::Arc::new(config))
            .connect("localhost".try_into().unwrap(), socket)
            .await
    };
    let mut certified = Guest::new(&doors::over(connect().await.unwrap()).await);
    let mut attached = certified.attach().await;
    attached.established("aa").await;
    daemon.set_wall(&mut daemon.guest().await, 2 * 3600).await;
    let ended = (Code::Unauthenticated, "CERTIFICATE_ENDED".to_owned());
    assert_eq!(why(certified.open("").await), ended);
    assert_eq!(told(attached.answers.message()).await, ended);
    daemon.process.kill().await;
}
