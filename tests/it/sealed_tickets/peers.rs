//! Clients of OpenSSL, over sockets.

use super::{SEALED, config};
use crate::{
    harness::TestDaemon,
    interop::{VERSIONS, s_client},
    pki,
    process::Server,
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
