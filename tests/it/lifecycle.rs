//! The rules of the life cycle, call by call, over gRPC.

use tls_sessiond::proto as pb;

use crate::harness::TestDaemon;

#[tokio::test]
async fn handshake_over_exchange() {
    let daemon = TestDaemon::start().await;
    let (client, server) = (daemon.open(pb::Role::Client).await, daemon.open(pb::Role::Server).await);
    daemon.handshake(&client, &server).await;
    let seen = daemon.get(&client).await;
    assert_eq!(seen.state(), pb::ConnectionState::Established);
    assert_eq!(seen.version(), pb::ProtocolVersion::Tls13);
    assert_eq!(daemon.server_sessions().await, 2);
    let sent = daemon.exchange(&client, b"", b"hello").await.unwrap();
    let got = daemon.exchange(&server, &sent.ciphertext, b"").await.unwrap();
    assert_eq!(got.plaintext, "hello");
    daemon.stop().await;
}
