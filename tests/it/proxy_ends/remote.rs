//! Sessions in a daemon over mutual TLS.

use std::{fs, process::Stdio};

use rustls::version::TLS13;
use tokio::process::Command;

use super::world::{Backend, Home, Proxies, fetch, until};
use crate::{pki::Authority, process::Process};

/// Starts a daemon that is reached over mutual TLS alone, at a port of localhost. Returns it and its
/// port.
async fn daemon(home: &Home, port: &str) -> (Process, String) {
    let config = format!(
        "[listen]\napi = [\"tls://127.0.0.1:{port}\"]\nadmin = \"\"\n\
         [listen.tls]\ncertificate = \"daemon.crt\"\nkey = \"daemon.key\"\nclient_ca = \"ca.pem\"\n\
         [[access]]\nidentity = \"dns:proxy.test\"\ncontexts = [\"*\"]\nrole = \"worker\"\n"
    );
    let file = home.folder.path().join("daemon.toml");
    fs::write(&file, config).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tls-sessiond"));
    command.arg("--config").arg(file);
    let mut daemon = Process::logging(&mut command, Stdio::null());
    let at = daemon.says("listening on tls://127.0.0.1:").await;
    (daemon, at)
}

/// Writes the certificates of daemon and proxy, by this authority.
fn issue(home: &Home, authority: &Authority) {
    fs::write(home.path("ca.pem"), &authority.pem).unwrap();
    for (file, name) in [("daemon", "localhost"), ("proxy", "proxy.test")] {
        authority.leaf(&[name]).write(home.folder.path(), file);
    }
}

async fn attached(proxies: &Proxies) -> bool {
    proxies.metric("proxy_attached", "").await == 1
}

#[tokio::test]
async fn reload_renews_the_certificates_for_the_daemon() {
    let home = Home::new();
    issue(&home, &home.authority);
    let (first, port) = daemon(&home, "0").await;
    let backend = Backend::answering("answer").await;
    let (ca, certificate, key) = (
        home.path("ca.pem"),
        home.path("proxy.crt"),
        home.path("proxy.key"),
    );
    let more = format!(
        "sessions_ca = \"{ca}\"\nsessions_certificate = \"{certificate}\"\nsessions_key = \"{key}\""
    );
    let config = home.proxy(&backend, &format!("tls://localhost:{port}"), &more);
    let proxies = Proxies::start(&config).await;
    let resumes = async || {
        let client = home.client(&TLS13);
        until("a client that returns resumes", async || {
            fetch(&client, &proxies.at[0]).await.1
        })
        .await;
    };
    resumes().await;

    // The next daemon and the proxy have certificates of another authority.
    drop(first);
    until("the daemon is gone", async || !attached(&proxies).await).await;
    issue(&home, &Authority::new("other"));
    let (_second, _) = daemon(&home, &port).await;
    let (answer, is_resumed) = fetch(&home.client(&TLS13), &proxies.at[0]).await;
    assert_eq!((answer.as_str(), is_resumed), ("answer", false));
    assert!(
        !attached(&proxies).await,
        "the old files are used until a reload"
    );
    proxies.reload(&config).await;
    until("the daemon is there", async || attached(&proxies).await).await;
    resumes().await;
}
