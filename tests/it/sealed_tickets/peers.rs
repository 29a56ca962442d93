//! Clients of OpenSSL, over sockets.

use tokio::process::Command;

use super::{SEALED, config};
use crate::{
    harness::TestDaemon,
    interop::{VERSIONS, s_client},
    pki,
    process::{GET, Server, run},
};

#[tokio::test]
async fn openssl_resumes_sealed_sessions_at_another_worker() {
    let folder = tempfile::tempdir().unwrap();
    pki::localhost(folder.path());
    let daemon = TestDaemon::with(&config(folder.path(), SEALED)).await;
    let one = Server::start(&daemon, "one").await;
    let two = Server::start(&daemon, "two").await;
    for (version, words) in VERSIONS {
        let file = folder.path().join(version);
        let file = file.to_str().unwrap();
        let first = s_client(&one.address, version, ["-sess_out", file]).await;
        assert!(first.contains("New, "), "{first}");
        let second = s_client(&two.address, version, ["-sess_in", file]).await;
        assert!(
            second.contains("Reused, ") && second.contains(&format!("two: {words} ")),
            "{second}"
        );
        // The same ticket again: that of TLS 1.3 is single-use.
        let third = s_client(&one.address, version, ["-sess_in", file]).await;
        let again = if words == "TLS 1.3" {
            "New, "
        } else {
            "Reused, "
        };
        assert!(third.contains(again), "{third}");
    }
    assert_eq!(daemon.server_cache_len(), 0);
}

#[tokio::test]
async fn ticket_of_a_second_client_hello_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    pki::localhost(folder.path());
    // OpenSSL sends a key share of the first group only, so the server asks for another one.
    let lines = format!("{SEALED}key_exchange = [\"secp256r1\"]\n");
    let daemon = TestDaemon::with(&config(folder.path(), &lines)).await;
    let server = Server::start(&daemon, "one").await;
    let file = folder.path().join("session");
    let visit = async |option: &str| {
        let mut client = Command::new("openssl");
        client.args(["s_client", "-connect", &server.address, "-tls1_3"]);
        client.args(["-servername", "localhost", "-ign_eof", "-msg"]);
        client.args(["-groups", "X25519:P-256", option]).arg(&file);
        run(&mut client, GET).await.0
    };
    assert!(visit("-sess_out").await.contains("New, "));
    let second = visit("-sess_in").await;
    assert_eq!(second.matches("ClientHello").count(), 2, "{second}");
    assert!(second.contains("Reused, "), "{second}");
    assert!(visit("-sess_in").await.contains("New, "), "single use");
}
