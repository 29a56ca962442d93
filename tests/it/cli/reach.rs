//! The ways to a daemon: loopback, a Unix socket, mutual TLS; and daemons that cannot be reached.

use std::{fs, io, net::TcpListener, time::Instant};

use super::{ask, command, finish, run, shown};
use crate::{
    binary::PATIENCE,
    doors::{House, rule},
    harness::TestDaemon,
    pki::Authority,
};

#[tokio::test]
async fn commands_reach_a_daemon_over_loopback_and_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let socket = format!("unix://{}", shown(&folder.path().join("api.sock")));
    let api = format!("[\"tcp://127.0.0.1:0\", \"{socket}\"]");
    let daemon = TestDaemon::listening(&api, "").await;
    let port = daemon.address.rsplit(':').next().unwrap();
    for address in [
        socket,
        format!("tcp://{}", daemon.address),
        format!("http://{}/", daemon.address),
        format!("tcp://localhost:{port}"),
    ] {
        let out = run(&["--address", &address, "health"]).await.ok();
        assert_eq!(out, "serving\n", "{address}");
        let list = run(&["contexts", "list", "--address", &address, "-o", "json"]).await;
        assert_eq!(list.json()["contexts"][0]["name"], "default", "{address}");
    }
}

#[tokio::test]
async fn commands_reach_a_daemon_over_mutual_tls() {
    let house = House::with(&rule("dns:admin.test", "mail", "admin")).await;
    house
        .authority
        .leaf(&["admin.test"])
        .write(house.folder(), "admin");
    let file = |name: &str| shown(&house.folder().join(name));
    let (ca, certificate, key) = (file("ca.pem"), file("admin.crt"), file("admin.key"));
    let by_name = format!("tls://localhost:{}", house.tls.port());
    let by_address = format!("https://{}", house.tls);
    let tls = async |address: &str, certificate: &str, key: &str, name: &[&str]| {
        let files = ["--ca", &ca, "--certificate", certificate, "--key", key];
        let call = ["contexts", "list", "-o", "json", "--address", address];
        run(&[&call[..], &files, name].concat()).await
    };
    let named: &[&str] = &["--tls-server-name", "localhost"];
    for (address, name) in [(&by_name, &[][..]), (&by_address, named)] {
        let list = tls(address, &certificate, &key, name).await.json();
        // The rule gives rights in one context only.
        let contexts = list["contexts"].as_array().unwrap();
        assert_eq!(contexts.len(), 1, "{list}");
        assert_eq!(contexts[0]["name"], "mail");
    }

    let err = tls(&by_address, &certificate, &key, &[]).await.failed(69);
    assert!(err.contains("not valid for name"), "{err}");
    let err = tls(&by_name, &certificate, &key, &["--tls-server-name", "a b"]).await;
    assert!(err.failed(2).contains("--tls-server-name"));

    // The daemon refuses the certificate of another authority with an alert.
    Authority::new("others")
        .leaf(&["admin.test"])
        .write(house.folder(), "other");
    let (other, other_key) = (file("other.crt"), file("other.key"));
    let err = tls(&by_name, &other, &other_key, &[]).await.failed(69);
    assert!(err.contains("UnknownCA"), "{err}");

    // Files that cannot be used: the error names the option and the file, and no key material.
    for (certificate, key, said) in [
        (&*file("nowhere"), &*key, "--certificate: cannot read "),
        (&certificate, &file("nowhere"), "--key: cannot read "),
        (&certificate, &other_key, "--key: "),
        (&key, &key, "--certificate: "),
        (&certificate, &certificate, "--key: "),
    ] {
        let err = tls(&by_name, certificate, key, &[]).await.failed(78);
        assert!(
            err.contains(said) && err.contains(&file("")),
            "{said}: {err}"
        );
        let secret = fs::read_to_string(file("admin.key")).unwrap();
        let secret = secret.lines().nth(1).unwrap();
        assert!(!err.contains(&secret[..16]), "{err}");
    }
}

#[tokio::test]
async fn a_caller_without_rights_is_told_the_remedy() {
    let house = House::with(&rule("dns:admin.test", "*", "admin")).await;
    let err = ask(&house.daemon, "contexts show default").await.failed(1);
    assert!(err.contains("PERMISSION_DENIED"), "{err}");
    assert!(err.contains("[[access]]"), "{err}");
}

#[tokio::test]
async fn a_daemon_that_cannot_be_reached_has_status_69() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = format!("unix://{}", shown(&folder.path().join("api.sock")));
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let no_socket = format!("unix://{}", shown(&file));
    // A port that was free a moment ago.
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = format!("tcp://{}", free.local_addr().unwrap());
    drop(free);
    for (address, said) in [
        (nowhere, "no daemon has made this socket"),
        (no_socket, "refused"),
        (closed, "no daemon listens there"),
    ] {
        for call in [
            &["health"][..],
            &["contexts", "list"],
            &["sessions", "watch"],
        ] {
            let err = run(&[call, &["--address", &address]].concat())
                .await
                .failed(69);
            assert!(err.contains(&address) && err.contains(said), "{err}");
        }
    }
}

/// The kernel accepts for this listener, and no process ever answers.
#[tokio::test]
async fn a_listener_that_never_answers_delays_no_command_beyond_its_limit() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp://{}", silent.local_addr().unwrap());
    for (call, said) in [
        (&["health"][..], "no answer within 1s"),
        (&["health", "--timeout", "200ms"], "no answer within 200ms"),
        (
            &["contexts", "list", "--timeout", "200ms"],
            "no answer within 200ms",
        ),
    ] {
        let begin = Instant::now();
        let err = run(&[call, &["--address", &address]].concat())
            .await
            .failed(69);
        assert!(err.contains(said), "{err}");
        // Far more than the limit, for a busy machine, and less than the default of other commands.
        assert!(begin.elapsed() < PATIENCE / 12, "{call:?}");
    }
}

/// A server that is not gRPC over HTTP/2.
#[tokio::test]
async fn another_server_is_no_daemon() {
    let other = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("tcp://{}", other.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        let (mut socket, _) = other.accept().await.unwrap();
        let answer = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n";
        socket.write_all(answer).await.unwrap();
        socket
    });
    run(&["contexts", "list", "--address", &address])
        .await
        .failed(69);
    serving.await.unwrap();
}

#[tokio::test]
async fn a_closed_pipe_ends_a_command_quietly() {
    let daemon = TestDaemon::start().await;
    for form in ["table", "json", "yaml"] {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let address = format!("tcp://{}", daemon.address);
        let args = ["contexts", "list", "-o", form, "--address", &address];
        let ran = finish(command(&args).stdout(writer)).await;
        assert_eq!((ran.status, &*ran.err), (0, ""), "{form}");
    }
}

#[tokio::test]
async fn a_full_disk_is_a_failure() {
    let daemon = TestDaemon::start().await;
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let address = format!("tcp://{}", daemon.address);
    let ran = finish(command(&["health", "--address", &address]).stdout(full)).await;
    let err = ran.failed(1);
    assert!(err.contains("cannot write to stdout"), "{err}");
}
