//! One port in front of three proxies, as a load balancer below TLS is, for clients that keep sessions by host and port.

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};

use super::{fleet::PROXIES, lane::Lane};

/// Starts a switch on a free port. It carries its first connection to the first proxy, the second one to the second proxy, and so on
/// in turns. It ends with the runtime of the test. Returns its port.
pub(super) async fn switch(lane: &Lane) -> u16 {
    start(lane, false).await
}

/// Starts a switch that carries one connection at a time: a client that returns at once comes after the end of its connection before,
/// when the session is in the daemon.
pub(super) async fn slow_switch(lane: &Lane) -> u16 {
    start(lane, true).await
}

async fn start(lane: &Lane, one_by_one: bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let addresses = lane.addresses();
    tokio::spawn(async move {
        for proxy in (0..PROXIES).cycle() {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = TcpStream::connect(addresses[proxy]).await.unwrap();
            // A client may close its socket with a close_notify unread, which is a reset.
            let carry = async move { drop(copy_bidirectional(&mut near, &mut far).await) };
            let carrying = tokio::spawn(carry);
            if one_by_one {
                carrying.await.unwrap();
            }
        }
    });
    port
}
