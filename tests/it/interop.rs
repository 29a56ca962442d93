//! Workers of the daemon with third-party peers: OpenSSL, curl, GnuTLS and sslyze.

use tls_sessiond_proto as pb;
use tokio::{
    io::{AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    process::Command,
    task::JoinHandle,
};

use crate::{
    harness::TestDaemon,
    process::{GET, Process, Server, example, peer, run},
    returning::Certificate,
};

/// The versions of TLS: openssl's option, and the name on the example server's page.
pub(crate) const VERSIONS: [(&str, &str); 2] = [("-tls1_2", "TLS 1.2"), ("-tls1_3", "TLS 1.3")];

/// Fetches a page with `openssl s_client` until the server closes. `session` is the option and file
/// to read or write the session. Returns the output.
pub(crate) async fn s_client(address: &str, version: &str, session: [&str; 2]) -> String {
    let args = [
        "s_client",
        "-connect",
        address,
        "-servername",
        "localhost",
        version,
        "-ign_eof",
    ];
    run(Command::new("openssl").args(args).args(session), GET)
        .await
        .0
}

#[tokio::test]
async fn openssl_resumes_at_another_worker() {
    let daemon = TestDaemon::start().await;
    let (one, two) = (
        Server::start(&daemon, "one").await,
        Server::start(&daemon, "two").await,
    );
    let folder = tempfile::tempdir().unwrap();
    for (version, words) in VERSIONS {
        let file = folder.path().join(version);
        let file = file.to_str().unwrap();
        let first = s_client(&one.address, version, ["-sess_out", file]).await;
        assert!(
            first.contains("New, ") && first.contains(&format!("one: {words} ")),
            "{first}"
        );
        let second = s_client(&two.address, version, ["-sess_in", file]).await;
        assert!(
            second.contains("Reused, ") && second.contains(&format!("two: {words} ")),
            "{second}"
        );
        assert!(second.contains("resumed: true"), "{second}");
    }
}

#[tokio::test]
async fn openssl_does_not_resume_without_a_shared_daemon() {
    let certificate = Certificate::new();
    let mine = TestDaemon::with(&certificate.context()).await;
    let other = TestDaemon::with(&certificate.context()).await;
    let (one, two) = (
        Server::start(&mine, "one").await,
        Server::start(&other, "two").await,
    );
    for (version, _) in VERSIONS {
        let file = certificate.chain().with_file_name(version);
        let file = file.to_str().unwrap();
        s_client(&one.address, version, ["-sess_out", file]).await;
        let second = s_client(&two.address, version, ["-sess_in", file]).await;
        assert!(
            second.contains("New, ") && second.contains("resumed: false"),
            "{second}"
        );
    }
}

#[tokio::test]
async fn curl_fetches_the_page() {
    let daemon = TestDaemon::start().await;
    let server = Server::start(&daemon, "replica-7").await;
    let url = format!("https://{}/", server.address);
    let (page, good) = run(Command::new("curl").args(["-sS", "-k", &url]), "").await;
    assert!(good, "{page}");
    assert_eq!(
        page,
        "replica-7: TLS 1.3 TLS_AES_256_GCM_SHA384 resumed: false\n"
    );
}

#[tokio::test]
async fn example_server_outlives_peers_that_misbehave() {
    let daemon = TestDaemon::start().await;
    let server = Server::start(&daemon, "one").await;
    // A client that leaves at once, one that speaks no TLS, and one with half a ClientHello.
    for bytes in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", &[22, 3, 1, 1, 0, 1]] {
        let mut socket = TcpStream::connect(&server.address).await.unwrap();
        socket.write_all(bytes).await.unwrap();
    }
    let url = format!("https://{}/", server.address);
    let long = format!("X-Long: {}", "x".repeat(10_000));
    for (args, status) in [
        (["-X", "POST"], "405"),
        (["-H", &long], "431"),
        (["-H", "X-Short: x"], "200"),
    ] {
        let status_only = ["-sk", "-o", "/dev/null", "-w", "%{http_code}", &url];
        let (said, _) = run(Command::new("curl").args(status_only).args(args), "").await;
        assert_eq!(said, status);
    }
    daemon
        .until("all connections are freed", async |daemon| {
            daemon.core.connections().is_empty()
        })
        .await;
}

#[tokio::test]
async fn example_server_finds_the_daemon_at_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let socket = format!("unix://{}", folder.path().join("api.sock").display());
    let set = format!("listen.api=[\"{socket}\"]");
    let mut daemon =
        Process::start(Command::new(env!("CARGO_BIN_EXE_tls-sessiond")).args(["--set", &set]));
    daemon.says("listening on unix://").await;
    let args = ["--daemon", &socket, "--listen", "127.0.0.1:0"];
    let mut server = Process::start(example("tls_server").args(args));
    let address = server.says("listening on ").await;
    let (said, good) = run(
        example("tls_client").args(["--daemon", &socket, "--connect", &address]),
        "",
    )
    .await;
    assert!(good && said.contains("worker: TLS 1.3"), "{said}");
}

#[tokio::test]
async fn gnutls_resumes() {
    let daemon = TestDaemon::start().await;
    let server = Server::start(&daemon, "one").await;
    let (host, port) = server.address.split_once(':').unwrap();
    for priority in [
        "NORMAL:-VERS-ALL:+VERS-TLS1.2",
        "NORMAL:-VERS-ALL:+VERS-TLS1.3",
    ] {
        let args = [
            "--resume",
            "--insecure",
            "--priority",
            priority,
            "--port",
            port,
            host,
        ];
        let (said, _) = run(Command::new("gnutls-cli").args(args), GET).await;
        assert!(said.contains("This is a resumed session"), "{said}");
        assert!(said.contains("resumed: true"), "{said}");
    }
}

/// sslyze closes its sockets without sending its close_notify, and the close rule removes sessions
/// for that. The number of resumptions before the daemon learns of it would vary, so the context
/// has `ignore-unexpected-eof`.
#[tokio::test]
async fn sslyze_resumes_where_unexpected_eof_is_ignored() {
    let certificate = Certificate::new();
    let config = certificate.context() + "options = [\"ignore-unexpected-eof\"]\n";
    let daemon = TestDaemon::with(&config).await;
    let server = Server::start(&daemon, "one").await;
    let (said, good) = run(
        peer("sslyze").args(["--resum", "--resum_attempts", "10", &server.address]),
        "",
    )
    .await;
    let line = said
        .lines()
        .find(|line| line.contains("With Session IDs:"))
        .unwrap_or_default();
    assert!(
        good && line.contains("(10 successful resumptions out of 10 attempts)"),
        "{said}"
    );
}

/// Starts `openssl s_server`. Returns the process and its address.
pub(crate) async fn s_server(certificate: &Certificate, args: &[&str]) -> (Process, String) {
    let mut command = Command::new("openssl");
    command
        .args(["s_server", "-accept", "127.0.0.1:0"])
        .args(args);
    command
        .arg("-cert")
        .arg(certificate.chain())
        .arg("-key")
        .arg(certificate.key());
    let mut process = Process::start(&mut command);
    let address = process.says("ACCEPT ").await;
    (process, address)
}

fn tls_client(daemon: &TestDaemon, address: &str) -> Command {
    let mut command = example("tls_client");
    command.args([
        "--daemon",
        &format!("http://{}", daemon.address),
        "--connect",
        address,
    ]);
    command
}

pub(crate) async fn client_sessions(daemon: &TestDaemon) -> usize {
    let listed = daemon
        .sessions()
        .list_sessions(pb::ListSessionsRequest::default())
        .await
        .unwrap();
    listed
        .into_inner()
        .sessions
        .iter()
        .filter(|session| session.role() == pb::Role::Client)
        .count()
}

#[tokio::test]
async fn second_client_process_resumes_at_openssl() {
    for (version, words) in VERSIONS {
        let certificate = Certificate::new();
        let daemon = TestDaemon::with(&certificate.context()).await;
        let (_server, address) = s_server(&certificate, &["-www", version]).await;
        for resumed in [false, true, true] {
            let (said, good) = run(&mut tls_client(&daemon, &address), "").await;
            let first = said.lines().next().unwrap_or_default();
            assert!(good && first.starts_with(words), "{said}");
            assert!(
                first.ends_with(&format!("resumed: {resumed}")),
                "{version}: {said}"
            );
            assert!(said.contains("s_server"), "the page of s_server: {said}");
        }
    }
}

#[tokio::test]
async fn server_that_is_killed_leaves_no_session() {
    for (version, _) in VERSIONS {
        let certificate = Certificate::new();
        let daemon = TestDaemon::with(&certificate.context()).await;
        let (server, address) = s_server(&certificate, &[version]).await;
        let client = Process::start(&mut tls_client(&daemon, &address));
        daemon
            .until("the session is stored", async |daemon| {
                client_sessions(daemon).await > 0
            })
            .await;
        server.kill().await;
        assert!(
            !client.succeeds().await,
            "{version}: there was no close_notify"
        );
        assert_eq!(client_sessions(&daemon).await, 0, "{version}");
    }
}

#[tokio::test]
async fn cut_connection_is_not_resumed_by_the_client() {
    for (version, _) in VERSIONS {
        let certificate = Certificate::new();
        let daemon = TestDaemon::with(&certificate.context()).await;
        let (_server, address) = s_server(&certificate, &[version]).await;
        let cable = Cable::to(&address).await;

        let client = Process::start(&mut tls_client(&daemon, &cable.address));
        daemon
            .until("the session is stored", async |daemon| {
                client_sessions(daemon).await > 0
            })
            .await;
        cable.cut();
        assert!(
            !client.succeeds().await,
            "{version}: there was no close_notify"
        );
        assert_eq!(client_sessions(&daemon).await, 0, "{version}");

        let mut again = Process::start(&mut tls_client(&daemon, &address));
        assert!(
            again.says("TLS ").await.ends_with("resumed: false"),
            "{version}"
        );
    }
}

/// A proxy for one TCP connection to an address, which the test can cut.
struct Cable {
    address: String,
    carry: JoinHandle<()>,
}

impl Cable {
    async fn to(address: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = (
            listener.local_addr().unwrap().to_string(),
            address.to_owned(),
        );
        let carry = tokio::spawn(async move {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = TcpStream::connect(far).await.unwrap();
            drop(copy_bidirectional(&mut near, &mut far).await);
        });
        Self {
            address: near,
            carry,
        }
    }

    fn cut(self) {
        self.carry.abort();
    }
}

#[tokio::test]
async fn curl_over_http1_is_told_what_listens() {
    let daemon = TestDaemon::start().await;
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--http1.1"])
        .arg(format!("http://{}/", daemon.address));
    let (said, _) = run(&mut curl, "").await;
    assert!(
        said.starts_with("This is tls-sessiond: it speaks gRPC over HTTP/2."),
        "{said}"
    );
    daemon.stop().await;
}
