//! `health --proxy`: the probe of `tls-sessiond proxy`.

use std::{process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
    process::{Child, Command},
    time::timeout,
};

use super::{command, finish, run};
use crate::binary::PATIENCE;

/// A proxy with its admin address.
struct RunningProxy {
    child: Child,
    admin: String,
}

impl RunningProxy {
    /// Starts a proxy whose sessions are at this place.
    async fn start(sessions: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tls-sessiond"));
        let set = [
            "listen.proxy_admin=tcp://127.0.0.1:0",
            "drain.delay=60s",
            "proxy.0.listen=tls://127.0.0.1:0",
        ];
        set.iter().for_each(|set| {
            command.args(["--set", set]);
        });
        command
            .args(["proxy", "--backend", "tcp://127.0.0.1:1"])
            .args(["--sessions", sessions])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let admin = timeout(PATIENCE, async {
            loop {
                let line = lines.next_line().await.unwrap().expect("the proxy ended");
                if let Some(rest) = line.strip_prefix("metrics at ") {
                    return rest.trim_end_matches("/metrics").to_owned();
                }
            }
        });
        let admin = admin.await.expect("the proxy does not start");
        Self { child, admin }
    }
}

#[tokio::test]
async fn proxy_health_is_a_word_and_a_status() {
    let proxy = RunningProxy::start("own").await;
    let ask =
        async |more: &[&str]| run(&[&["health", "--proxy", &proxy.admin], more].concat()).await;
    assert_eq!(ask(&[]).await.ok(), "serving\n");
    let json = ask(&["-o", "json"]).await.json();
    assert_eq!(json, serde_json::json!({"status": "SERVING", "detail": ""}));
    // The address of a daemon in the environment does not matter.
    let mut other = command(&["health", "--proxy", &proxy.admin]);
    other.env("TLS_SESSIOND_ADDRESS", "unix:///nowhere");
    assert_eq!(finish(&mut other).await.ok(), "serving\n");

    let pid = proxy.child.id().unwrap().try_into().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let drains = async {
        loop {
            let ran = ask(&[]).await;
            assert_eq!(ran.err, "", "{ran:?}");
            if ran.status == 1 {
                return ran.out;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert_eq!(timeout(PATIENCE, drains).await.unwrap(), "not serving\n");
    let json = ask(&["-o", "json"]).await;
    assert_eq!(json.status, 1, "{json:?}");
    assert!(json.out.contains("\"NOT_SERVING\""), "{json:?}");
}

#[tokio::test]
async fn proxy_without_its_daemon_serves_and_says_so() {
    let proxy = RunningProxy::start("unix:///nowhere/api.sock").await;
    let out = run(&["health", "--proxy", &proxy.admin]).await.ok();
    let said = "serving; handshakes are full ones, because these sessions are away: unix:///nowhere/api.sock default: ";
    assert!(out.starts_with(said), "{out}");
}

/// The kernel accepts for a listener that never answers. Another one is a server of something else.
#[tokio::test]
async fn other_listeners_are_no_proxy() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        closed.local_addr().unwrap()
    };
    let (silent_at, other_at) = (silent.local_addr().unwrap(), other.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        let (mut socket, _) = other.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            assert_ne!(socket.read_buf(&mut request).await.unwrap(), 0);
        }
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n";
        socket.write_all(answer).await.unwrap();
        socket
    });
    for (at, said) in [
        (closed, "it does not answer"),
        (silent_at, "no answer within 200ms"),
        (other_at, "another server answers there"),
    ] {
        let at = format!("http://{at}");
        let args = ["health", "--timeout", "200ms", "--proxy", &at];
        let err = run(&args).await.failed(69);
        let whole = format!("cannot reach the proxy at {at}: {said}");
        assert!(err.contains(&whole), "{err}");
    }
    serving.await.unwrap();
}
