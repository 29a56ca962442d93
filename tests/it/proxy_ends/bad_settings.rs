//! Settings that are refused: at start, by `check`, and on the command line.

use std::fs;

use super::world::{Backend, Daemon, Home};
use crate::pki::Authority;

/// Runs the binary to its end. Returns its status and all that it wrote.
fn run(args: &[&str]) -> (Option<i32>, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tls-sessiond"))
        .args(args)
        .env_remove("TLS_SESSIOND_CONFIG")
        .output()
        .unwrap();
    let told = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(told).unwrap())
}

const BACKEND: &str = "tcp://127.0.0.1:9";

#[test]
fn bad_proxy_is_refused_with_its_key_and_its_file() {
    let home = Home::new();
    fs::write(home.folder.path().join("empty.pem"), "").unwrap();
    Authority::new("other")
        .leaf(&["localhost"])
        .write(home.folder.path(), "other");
    let good = home.proxy(BACKEND, "own", "");
    let with = |more: &str| home.proxy(BACKEND, "own", more);
    let originate = "[[proxy]]\nlisten = \"tcp://127.0.0.1:0\"\nconnect = \"example.test:443\"\n";
    let ca = home.path("ca.pem");
    for (config, said) in [
        (
            good.replace("tls.crt", "nowhere.crt"),
            "proxy[0].certificate: cannot read",
        ),
        (good.replace("tls.crt", "nowhere.crt"), "nowhere.crt"),
        (
            good.replace("tls.crt", "empty.pem"),
            "proxy[0].certificate: ",
        ),
        (good.replace("tls.key", "other.key"), "proxy[0].key: "),
        (
            with("client_auth = \"require\""),
            "proxy[0].client_ca: required with client_auth",
        ),
        (
            with(&format!("client_ca = \"{ca}\"")),
            "proxy[0].client_ca: used with client_auth",
        ),
        (
            with("client_auth = \"require\"\nclient_ca = \"nowhere.pem\""),
            "proxy[0].client_ca: cannot read",
        ),
        (
            with("connections = 9223372036854775807"),
            "proxy[0].connections: 9223372036854775807 is not between",
        ),
        (
            with(
                "[[proxy.route]]\nserver_names = [\"a.test\", \"*.b.test\"]\nbackend = \"tcp://127.0.0.1:9\"\n\
                 [[proxy.route]]\nserver_names = [\"*.b.test\"]\nbackend = \"tcp://127.0.0.1:9\"",
            ),
            "proxy[0].route[1].server_names[0]: a route above has this name",
        ),
        (
            with("certificates = \"a\""),
            "proxy[0].certificates: unknown field",
        ),
        (
            good.replace("127.0.0.1:9", "192.0.2.1:80"),
            "proxy[0].backend: `192.0.2.1` is not a loopback",
        ),
        (
            good.replace(BACKEND, "ftp://127.0.0.1"),
            "proxy[0].backend: invalid address",
        ),
        (good.replace(BACKEND, ""), "proxy[0].backend: required"),
        (
            good.replace("\"own\"", "\"tcp://192.0.2.1:1\""),
            "proxy[0].sessions: ",
        ),
        (good.replace("tls://", "unix://"), "proxy[0].listen: "),
        (with("idle_timeout = \"soon\""), "proxy[0].idle_timeout: "),
        (with("connections = 0"), "proxy[0].connections: "),
        (
            with("proxy_protocol = \"maybe\""),
            "proxy[0].proxy_protocol: ",
        ),
        (
            with("proxy_protocol = \"accept\"\nproxy_protocol_from = [\"10.0.0.0/33\"]"),
            "proxy[0].proxy_protocol_from[0]: ",
        ),
        (
            with(&format!(
                "[[proxy.route]]\nserver_names = []\nbackend = \"{BACKEND}\""
            )),
            "proxy[0].route[0].server_names: required",
        ),
        (
            with(&format!(
                "[[proxy.route]]\nserver_names = [\"a b\"]\nbackend = \"{BACKEND}\""
            )),
            "proxy[0].route[0].server_names[0]: ",
        ),
        (
            with(&format!(
                "[[proxy.route]]\nserver_names = [\"a.test\"]\nbackend = \"{BACKEND}\"\n\
                 certificate = \"nowhere.crt\"\nkey = \"nowhere.key\""
            )),
            "proxy[0].route[0].certificate: cannot read",
        ),
        (
            format!("{originate}certificate = \"a\""),
            "proxy[0].certificate: not used with `connect`",
        ),
        (
            format!("{originate}backend = \"{BACKEND}\""),
            "proxy[0].backend: not used with `connect`",
        ),
        (
            originate.replace("127.0.0.1", "0.0.0.0"),
            "proxy[0].listen: `0.0.0.0:0` is not a loopback",
        ),
        (originate.replace(":443", ""), "proxy[0].connect: "),
    ] {
        let file = home.path("c.toml");
        fs::write(&file, &config).unwrap();
        for args in [&["proxy", "--config", &file][..], &["check", &file]] {
            let (status, told) = run(args);
            assert_eq!(status, Some(78), "{args:?}\n{config}\n{told}");
            assert!(
                told.contains(said),
                "{args:?}\n{config}\nsaid: {told}\nwant: {said}"
            );
        }
    }
    let file = home.path("c.toml");
    fs::write(&file, &good).unwrap();
    assert_eq!(run(&["check", &file]).0, Some(0));
}

#[test]
fn proxy_names_the_address_that_is_in_use() {
    let home = Home::new();
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = busy.local_addr().unwrap().to_string();
    let file = home.path("c.toml");
    let config = home
        .proxy(BACKEND, "own", "")
        .replace("127.0.0.1:0", &taken);
    fs::write(&file, config).unwrap();
    let args = ["proxy", "--config", &file, "--set", "listen.proxy_admin="];
    let (status, told) = run(&args);
    assert_eq!(status, Some(1), "{told}");
    assert!(
        told.contains(&format!("cannot listen on tls://{taken}")),
        "{told}"
    );
}

#[test]
fn flags_that_contradict_each_other_are_refused() {
    for (args, said) in [
        (
            &["--backend", BACKEND, "--connect", "a.test:443"][..],
            "cannot be used with",
        ),
        (&["--backend", BACKEND, "--certificate", "a"], "--key"),
        (&["--backend", BACKEND, "--client-ca", "a"], "--client-auth"),
        (
            &["--backend", BACKEND, "--server-name", "a"],
            "used with `connect` only",
        ),
        (&["--backends", BACKEND], "--backend"),
    ] {
        let (status, told) = run(&[&["proxy"], args].concat());
        assert!(matches!(status, Some(2 | 78)), "{args:?}: {told}");
        assert!(told.contains(said), "{args:?}: {told}");
    }
    let home = Home::new();
    let file = home.path("proxy.toml");
    fs::write(&file, home.proxy(BACKEND, "own", "")).unwrap();
    let (status, told) = run(&["proxy", "--config", &file, "--backend", BACKEND]);
    assert_eq!(status, Some(78), "{told}");
    assert!(told.contains("has [[proxy]] already"), "{told}");
    let (status, told) = run(&["proxy", "--set", "listen.proxy_admin="]);
    assert_eq!(status, Some(78), "{told}");
    assert!(told.contains("there is no proxy to run"), "{told}");
}

#[tokio::test]
async fn serve_takes_a_proxy_and_does_not_listen_on_it() {
    let home = Home::new();
    let backend = Backend::listen().await;
    // The proxy's address is in use, so a daemon that listened on it would fail.
    let taken = backend.address().to_string();
    let config = home
        .proxy(BACKEND, "own", "")
        .replace("127.0.0.1:0", &taken);
    let file = home.path("c.toml");
    fs::write(&file, config).unwrap();
    let daemon = Daemon::start(&["--config", &file]).await;
    assert_eq!(daemon.connections().await, 0);
    daemon.binary.terminate().await;
    assert_eq!(daemon.binary.end().await.0.code(), Some(0));
}
