//! The files of deploy/, each tried by a script of tests/deploy. A script prints one line for each thing that it
//! has shown, and fails with a message.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{process::Command, sync::Semaphore, time::timeout};

/// Time limit of one script, on a busy machine.
const LIMIT: Duration = Duration::from_secs(600);
/// The scripts run one after the other: each starts builds, containers or machines of its own.
static TURN: Semaphore = Semaphore::const_new(1);

/// Runs a script, and checks that it has shown at least this number of things.
async fn tries(script: &str, least: usize) {
    let _turn = TURN.acquire().await.unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let peers = root.join(".peers");
    let path = [peers.join("venv/bin"), peers.join("bin")].into_iter();
    let system = std::env::var_os("PATH").unwrap_or_default();
    let path: Vec<PathBuf> = path.chain(std::env::split_paths(&system)).collect();
    let run = Command::new(peers.join("venv/bin/python"))
        .arg("-B")
        .arg(root.join("tests/deploy").join(script))
        .env("TLS_SESSIOND", env!("CARGO_BIN_EXE_tls-sessiond"))
        .env("PATH", std::env::join_paths(path).unwrap())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(LIMIT, run).await.expect("the script did not end");
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    assert!(
        output.status.success(),
        "{script}: {}\n{said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let shown = said.lines().filter(|line| line.starts_with("ok: ")).count();
    assert!(shown >= least, "{script} has shown {shown} things:\n{said}");
}

#[tokio::test]
async fn image_is_built_and_runs_without_rights() {
    tries("image.py", 14).await;
}

#[tokio::test]
async fn pods_share_sessions_over_a_socket_and_mutual_tls() {
    tries("pods.py", 8).await;
}

#[tokio::test]
async fn kubernetes_and_helm_give_the_same_valid_objects() {
    tries("kubernetes.py", 36).await;
}

#[tokio::test]
async fn units_run_under_real_systemds() {
    tries("systemd.py", 24).await;
}

#[tokio::test]
async fn packages_install_upgrade_and_go() {
    tries("packages.py", 8).await;
}

#[tokio::test]
async fn compose_starts_workers_that_share_sessions() {
    tries("compose.py", 5).await;
}
