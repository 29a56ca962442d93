//! Listeners: the file of a Unix socket, and sockets that systemd passes.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::UnixListener,
    },
    path::Path,
};

use tls_sessiond::{
    config::Config,
    daemon::{Daemon, Error},
};
use tls_sessiond_core::clock::Clock;
use tokio::{net::TcpStream, process::Command};

use crate::{
    doors::{Guest, House, SOMEBODY, denied, open_to_all, over, rule, why},
    pki::Authority,
    process::{Process, peer, run},
};

fn bind(socket: &Path, set: &[&str]) -> Result<Daemon, Error> {
    let mut all = vec![format!("listen.api=[\"unix://{}\"]", socket.display())];
    all.extend(set.iter().map(|&set| set.to_owned()));
    Daemon::bind(
        &Config::load(None, std::iter::empty(), &all).unwrap(),
        Clock::System,
    )
}

#[tokio::test]
async fn unix_socket_has_the_configured_mode_and_owner() {
    let folder = tempfile::tempdir().unwrap();
    let own = fs::metadata(folder.path()).unwrap();
    for (set, mode, owner) in [
        (&[][..], 0o660, (own.uid(), own.gid())),
        (
            &["listen.unix_mode=\"0600\""],
            0o600,
            (own.uid(), own.gid()),
        ),
        (
            &[
                "listen.unix_mode=\"0666\"",
                "listen.unix_owner=\"54321:54322\"",
            ],
            0o666,
            (54_321, 54_322),
        ),
    ] {
        // The daemon creates the folder if it is missing.
        let socket = folder.path().join("run/a.sock");
        let daemon = bind(&socket, set).expect("changing the owner of a file requires root");
        let file = fs::metadata(&socket).unwrap();
        assert_eq!(
            (file.permissions().mode() & 0o777, (file.uid(), file.gid())),
            (mode, owner)
        );
        drop(daemon);
        assert!(!socket.exists(), "the daemon must remove its socket file");
    }
}

#[tokio::test]
async fn only_the_socket_of_a_dead_daemon_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api.sock");
    drop(UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    let daemon = bind(&socket, &[]).unwrap();
    let refused = bind(&socket, &[]).err().expect("bound twice").to_string();
    assert!(
        refused.contains("another daemon answers there"),
        "{refused}"
    );
    assert!(socket.exists(), "the first daemon lost its socket");
    drop(daemon);

    fs::write(&socket, "a file of somebody").unwrap();
    let refused = bind(&socket, &[]);
    assert_eq!(
        fs::read_to_string(&socket).unwrap_or_default(),
        "a file of somebody",
        "{:?}",
        refused.err()
    );
}

#[tokio::test]
async fn unix_peer_is_identified_by_its_user() {
    let rules = rule("uid:54321", "default", "worker") + &rule("uid:54322", "mail", "observer");
    let house = House::with(&rules).await;
    // A copy, because the user may not enter the folder of the peers.
    let grpcurl = house.folder().join("grpcurl");
    fs::copy(peer("grpcurl").as_std().get_program(), &grpcurl).expect("run tests/peers.sh");
    for (uid, good, said) in [
        (SOMEBODY, true, "\"owner\": \"uid:54321\""),
        (SOMEBODY + 1, false, "uid:54322"),
        (SOMEBODY + 2, false, "uid:54323"),
    ] {
        let mut command = Command::new("setpriv");
        command
            .args([
                format!("--reuid={uid}"),
                format!("--regid={uid}"),
                "--clear-groups".into(),
            ])
            .arg(&grpcurl)
            .args([
                "-plaintext",
                "-unix",
                "-authority",
                "localhost",
                "-d",
                "{\"role\": \"ROLE_SERVER\"}",
            ])
            .arg(&house.socket)
            .arg("tls.sessiond.v1.ConnectionService/New");
        let (written, ended_well) = run(&mut command, "").await;
        assert_eq!(ended_well, good, "{uid}: {written}");
        assert!(written.contains(said), "{uid}: {written}");
        assert_eq!(
            written.contains("PERMISSION_DENIED"),
            !good,
            "{uid}: {written}"
        );
    }
    // A user without a right to the socket file cannot connect.
    fs::set_permissions(&house.socket, fs::Permissions::from_mode(0o660)).unwrap();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=54321", "--regid=54321", "--clear-groups"])
        .arg(&grpcurl)
        .args([
            "-plaintext",
            "-unix",
            "-authority",
            "localhost",
            "-connect-timeout",
            "2",
        ])
        .arg(&house.socket)
        .arg("list");
    let (written, ended_well) = run(&mut command, "").await;
    assert!(
        !ended_well && written.contains("permission denied"),
        "{written}"
    );
    house.daemon.stop().await;
}

/// A script that binds sockets, passes them as systemd does (sd_listen_fds(3)), and executes the
/// daemon.
const STARTER: &str = r#"
import os, socket, sys
count = int(sys.argv[1])
wanted, command = sys.argv[2:2 + count], sys.argv[2 + count:]
made = []
for name in wanted:
    if name.startswith("/"):
        made.append(socket.socket(socket.AF_UNIX))
        made[-1].bind(name)
    else:
        made.append(socket.socket(socket.AF_INET))
        made[-1].bind((name, 0))
        print("bound", made[-1].getsockname()[1], flush=True)
    made[-1].listen()
far = [os.dup2(one.fileno(), 100 + at) for at, one in enumerate(made)]
for at, one in enumerate(far):
    os.dup2(one, 3 + at, inheritable=True)
    os.close(one)
os.environ.update(LISTEN_FDS=str(count), LISTEN_PID=str(os.getpid()))
os.execv(command[0], command)
"#;

/// Returns the command of a daemon that inherits bound sockets.
fn passed(sockets: &[&str], more: &[&str]) -> Command {
    let mut command = Command::new("python3");
    command
        .args(["-c", STARTER])
        .arg(sockets.len().to_string())
        .args(sockets);
    command.arg(env!("CARGO_BIN_EXE_tls-sessiond")).args(more);
    command.env_remove("TLS_SESSIOND_CONFIG");
    command
}

const FROM_SYSTEMD: [&str; 4] = [
    "--set",
    "listen.api=[\"systemd\"]",
    "--set",
    "drain.timeout=100ms",
];

#[tokio::test]
async fn systemd_sockets_are_served_and_outlive_the_daemon() {
    let folder = tempfile::tempdir().unwrap();
    open_to_all(folder.path());
    let socket = folder.path().join("passed.sock");
    let mut command = passed(&["127.0.0.1", &socket.display().to_string()], &FROM_SYSTEMD);
    let mut daemon = Process::start(&mut command);
    let port = daemon.says("bound ").await;
    assert_eq!(daemon.says("listening on tcp://127.0.0.1:").await, port);
    assert_eq!(
        daemon.says("listening on unix://").await,
        socket.display().to_string()
    );
    let tcp = over(
        TcpStream::connect(format!("127.0.0.1:{port}"))
            .await
            .unwrap(),
    )
    .await;
    let unix = over(tokio::net::UnixStream::connect(&socket).await.unwrap()).await;
    for (channel, owner) in [
        (tcp, "local".to_owned()),
        (unix, format!("uid:{}", rustix::process::getuid().as_raw())),
    ] {
        let mut guest = Guest::new(&channel);
        let id = guest.open("").await.unwrap();
        let request = tls_sessiond_proto::GetConnectionRequest { connection_id: id };
        let seen = guest
            .connections
            .get_connection(request)
            .await
            .unwrap()
            .into_inner()
            .connection
            .unwrap();
        assert_eq!(seen.owner, owner);
    }
    daemon.signal("TERM").await;
    assert!(daemon.succeeds().await);
    assert!(socket.exists(), "the daemon removed the file of systemd");
}

// Invariant 21.
#[tokio::test]
async fn systemd_socket_beyond_loopback_requires_tls() {
    let (written, good) = run(&mut passed(&["0.0.0.0"], &FROM_SYSTEMD), "").await;
    assert!(
        !good && written.contains("which is not loopback: that needs [listen.tls]"),
        "{written}"
    );

    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("workers");
    authority.leaf(&["localhost"]).write(folder.path(), "tls");
    fs::write(folder.path().join("ca.pem"), &authority.pem).unwrap();
    let file = folder.path().join("tls.toml");
    let text = "[listen]\napi = [\"systemd\"]\n[listen.tls]\ncertificate = \"tls.crt\"\nkey = \"tls.key\"\n\
                client_ca = \"ca.pem\"\n";
    fs::write(&file, text.to_owned() + &rule("dns:*.test", "*", "worker")).unwrap();
    let file = file.display().to_string();
    let mut daemon = Process::start(&mut passed(
        &["0.0.0.0", "127.0.0.1"],
        &["--config", &file, "--set", "drain.timeout=100ms"],
    ));
    let [far, near] = [daemon.says("bound ").await, daemon.says("bound ").await];
    assert_eq!(daemon.says("listening on tls://0.0.0.0:").await, far);
    assert_eq!(daemon.says("listening on tcp://127.0.0.1:").await, near);
    let mut guest = Guest::new(
        &over(
            TcpStream::connect(format!("127.0.0.1:{near}"))
                .await
                .unwrap(),
        )
        .await,
    );
    assert_eq!(
        why(guest.open("").await),
        denied(),
        "no rule matches `local`"
    );
    daemon.signal("TERM").await;
    assert!(daemon.succeeds().await);

    let mut alone = Command::new(env!("CARGO_BIN_EXE_tls-sessiond"));
    let (written, good) = run(alone.args(FROM_SYSTEMD).env_remove("LISTEN_FDS"), "").await;
    assert!(
        !good && written.contains("systemd has passed no socket"),
        "{written}"
    );
}

// Invariant 21.
#[tokio::test]
async fn plaintext_beyond_loopback_is_refused_at_start() {
    for address in [
        "tcp://0.0.0.0:0",
        "tcp://[::]:0",
        "tls://127.0.0.1:0",
        "tcp://[::ffff:127.0.0.1]:0",
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tls-sessiond"));
        command
            .args(["--set", &format!("listen.api=[\"{address}\"]")])
            .env_remove("TLS_SESSIOND_CONFIG");
        let (written, good) = run(&mut command, "").await;
        assert!(
            !good && !written.contains("listening"),
            "{address}: {written}"
        );
        assert!(
            written.contains("this one needs [listen.tls]"),
            "{address}: {written}"
        );
    }
}
