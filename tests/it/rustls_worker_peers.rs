//! Workers on rustls with clients that are other programs.

use rustls::version::TLS12;
use tls_sessiond_client::rustls as sessions;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    process::Command,
};

use crate::{
    harness::TestDaemon,
    interop::{VERSIONS, s_client},
    process::{GET, run},
    returning::Certificate,
    rustls_worker::{Fleet, acceptor, config, handshakes, over, serve},
};

#[tokio::test]
async fn sessions_of_one_rustls_worker_resume_at_another() {
    let fleet = Fleet::start().await;
    for (version, words) in VERSIONS {
        let file = fleet.certificate.chain().with_file_name(version);
        let file = file.to_str().unwrap();
        let before = handshakes(&fleet.daemon);
        let first = s_client(&fleet.one.address, version, ["-sess_out", file]).await;
        assert!(
            first.contains("New, ") && first.contains(&format!("one: {words} ")),
            "{first}"
        );
        over(&fleet.daemon, before).await;
        let before = handshakes(&fleet.daemon);
        let second = s_client(&fleet.two.address, version, ["-sess_in", file]).await;
        over(&fleet.daemon, before).await;
        assert!(
            second.contains("Reused, ") && second.contains(&format!("two: {words} ")),
            "{second}"
        );
        assert!(second.contains("resumed: true"), "{second}");
    }

    // gnutls-cli resumes at the address of its first connection. So a proxy carries its first
    // connection to one worker and its second to the other.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    for priority in [
        "NORMAL:-VERS-ALL:+VERS-TLS1.2",
        "NORMAL:-VERS-ALL:+VERS-TLS1.3",
    ] {
        let before = handshakes(&fleet.daemon);
        let carry = async {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut one = TcpStream::connect(&fleet.one.address).await.unwrap();
            // gnutls-cli closes its socket with our close_notify unread, which is a reset.
            drop(copy_bidirectional(&mut near, &mut one).await);
            let (mut near, _) = listener.accept().await.unwrap();
            over(&fleet.daemon, before).await;
            let mut two = TcpStream::connect(&fleet.two.address).await.unwrap();
            drop(copy_bidirectional(&mut near, &mut two).await);
        };
        let args = [
            "--resume",
            "--insecure",
            "--priority",
            priority,
            "--port",
            &port,
            "127.0.0.1",
        ];
        let mut gnutls = Command::new("gnutls-cli");
        let ((said, _), ()) = tokio::join!(run(gnutls.args(args), GET), carry);
        assert!(said.contains("This is a resumed session"), "{said}");
        assert!(
            said.contains("two: ") && said.contains("resumed: true"),
            "{said}"
        );
    }
}

#[tokio::test]
async fn ticketer_of_the_rustls_config_is_not_used() {
    let daemon = TestDaemon::start().await;
    let certificate = Certificate::new();
    let mut config = config(&certificate, &[&TLS12]);
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
    let address = serve(acceptor(&daemon, config, sessions::FORMAT, "a").await).await;
    // A client that offers TLS 1.3 as well, because -4 restricts only the address family.
    let file = certificate.chain().with_file_name("session");
    let file = file.to_str().unwrap();
    let first = s_client(&address, "-4", ["-sess_out", file]).await;
    assert!(
        first.contains("New, ") && !first.contains("TLS session ticket:"),
        "{first}"
    );
    daemon
        .until("the session is stored", async |daemon| {
            daemon.server_cache_len() == 1
        })
        .await;
    let second = s_client(&address, "-4", ["-sess_in", file]).await;
    assert!(
        second.contains("Reused, TLSv1.2") && second.contains("resumed: true"),
        "{second}"
    );
}
