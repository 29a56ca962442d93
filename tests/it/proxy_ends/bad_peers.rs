//! Peers that send something else than TLS, or ask for what there is not: each gets an alert or an
//! answer, and is counted and logged.

use rustls::version::{TLS12, TLS13};
use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};

use super::world::{Backend, Ending, Home, Proxies, drained, said_to, until};
use crate::process::PATIENCE;

const UNEXPECTED_MESSAGE: [u8; 7] = [21, 3, 3, 0, 2, 2, 10];
/// The signature of the PROXY protocol, version 2.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Checks that one more connection was counted for this reason, and that the log has the reason.
async fn counted(proxies: &Proxies, before: u64, reason: &str) {
    until(reason, async || {
        proxies.unserved(reason).await == before + 1
    })
    .await;
    proxies.logs(&format!("\"why\":\"{reason}\"")).await;
}

#[tokio::test]
async fn bytes_that_are_no_tls_get_an_alert_or_an_answer() {
    let home = Home::new();
    let backend = Backend::answering("answer").await;
    let proxies = Proxies::start(&home.proxy(&backend, "own", "")).await;
    let header = [&SIGNATURE[..], &[0x21, 0x11, 0, 12], &[1; 12]].concat();
    for (bytes, reason) in [
        (&b"\0\x01\x02 no TLS"[..], "not_tls"),
        (&[b'x'; 100_000], "not_tls"),
        (
            b"PROXY TCP4 10.0.0.1 10.0.0.2 1000 443\r\n",
            "unexpected_proxy_header",
        ),
        (&header, "unexpected_proxy_header"),
    ] {
        let before = proxies.unserved(reason).await;
        assert_eq!(
            said_to(&proxies.at[0], bytes).await.0,
            UNEXPECTED_MESSAGE,
            "{reason}"
        );
        counted(&proxies, before, reason).await;
    }
    let request = b"GET /secret HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let said = said_to(&proxies.at[0], request).await.0;
    let said = String::from_utf8(said).unwrap();
    assert!(said.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{said}");
    assert!(said.contains("this port speaks TLS"), "{said}");
    counted(&proxies, 0, "plain_http").await;
    assert!(
        !proxies.log().contains("secret"),
        "the log has nothing that peers send"
    );
}

#[tokio::test]
async fn long_request_in_plaintext_gets_its_whole_answer() {
    let home = Home::new();
    let backend = Backend::answering("answer").await;
    let proxies = Proxies::start(&home.proxy(&backend, "own", "")).await;
    let request = format!("POST / HTTP/1.1\r\nCookie: {}\r\n\r\n", "x".repeat(300_000));
    let said = said_to(&proxies.at[0], request.as_bytes()).await.0;
    let said = String::from_utf8(said).unwrap();
    assert!(
        said.ends_with("use https:// instead of http:// in URLs\n"),
        "{said}"
    );
}

#[tokio::test]
async fn proxy_header_is_missing_malformed_too_long_or_from_a_stranger() {
    let home = Home::new();
    let backend = Backend::answering("answer").await;
    let accepts = home.proxy(&backend, "own", "proxy_protocol = \"accept\"");
    let strangers = home.proxy(
        &backend,
        "own",
        "proxy_protocol = \"accept\"\nproxy_protocol_from = [\"10.0.0.0/8\", \"fd00::/8\"]",
    );
    let proxies = Proxies::start(&(accepts + &strangers)).await;
    let binary = |head: [u8; 4], rest: &[u8]| [&SIGNATURE[..], &head, rest].concat();
    let long = [b"PROXY TCP4 ", [b'1'; 200].as_slice(), b"\r\n"].concat();
    for (at, bytes, reason) in [
        (
            0,
            [&[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[7; 500]].concat(),
            "missing_proxy_header",
        ),
        (
            0,
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
            "missing_proxy_header",
        ),
        (
            0,
            b"PROXY TCP4 10.0.0.1 nowhere 1000 443\r\n".to_vec(),
            "invalid_proxy_header",
        ),
        (0, long, "invalid_proxy_header"),
        (
            0,
            binary([0x21, 0x11, 0xff, 0xff], &[0; 70_000]),
            "invalid_proxy_header",
        ),
        (
            0,
            binary([0x21, 0x11, 0, 4], b"abcd"),
            "invalid_proxy_header",
        ),
        (
            1,
            b"PROXY TCP4 10.0.0.1 10.0.0.2 1000 443\r\n".to_vec(),
            "stranger",
        ),
    ] {
        let before = proxies.unserved(reason).await;
        assert_eq!(said_to(&proxies.at[at], &bytes).await.0, b"", "{reason}");
        until(reason, async || {
            proxies.unserved(reason).await == before + 1
        })
        .await;
    }
    for reason in ["missing_proxy_header", "invalid_proxy_header", "stranger"] {
        proxies.logs(&format!("\"why\":\"{reason}\"")).await;
    }
}

#[tokio::test]
async fn server_name_without_a_site_gets_its_alert() {
    let home = Home::new();
    let backend = Backend::answering("answer").await;
    let (certificate, key) = (home.path("tls.crt"), home.path("tls.key"));
    let config = format!(
        "[[proxy]]\nlisten = \"tls://127.0.0.1:0\"\ncertificate = \"{certificate}\"\nkey = \"{key}\"\n\
         [[proxy.route]]\nserver_names = [\"localhost\"]\nbackend = \"{backend}\"\n"
    );
    let proxies = Proxies::start(&config).await;
    for (place, version) in [&TLS12, &TLS13].into_iter().enumerate() {
        let socket = TcpStream::connect(&proxies.at[0]).await.unwrap();
        let refused = home
            .client(version)
            .over(socket, "other.test")
            .await
            .unwrap_err();
        assert!(
            refused.to_string().contains("UnrecognisedName"),
            "{refused}"
        );
        counted(&proxies, place as u64, "no_site").await;
    }
}

#[tokio::test]
async fn backend_that_is_away_is_named_in_bounded_lines() {
    let home = Home::new();
    let away = format!("unix://{}", home.path("away"));
    let proxies = Proxies::start(&home.proxy(&away, "own", "")).await;
    for _ in 0..30 {
        let socket = TcpStream::connect(&proxies.at[0]).await.unwrap();
        let mut tls = home.client(&TLS13).over(socket, "localhost").await.unwrap();
        assert_eq!(drained(&mut tls).await.1, Ending::Whole);
    }
    until("all have ended", async || {
        proxies.ends("backend_away").await == 30
    })
    .await;
    proxies.logs("cannot connect to the backend").await;
    let log = proxies.log();
    let lines = log.matches("cannot connect to the backend").count();
    assert!((1..=10).contains(&lines), "{log}");
    assert!(
        log.contains(&format!("\"backend\":\"{away}\"")) && log.contains("No such file"),
        "{log}"
    );
}

#[tokio::test]
async fn slow_handshake_times_out_and_a_client_without_certificate_gets_its_alert() {
    let home = Home::new();
    let backend = Backend::answering("answer").await;
    let slow = home.proxy(&backend, "own", "handshake_timeout = \"1s\"");
    let more = format!(
        "client_auth = \"require\"\nclient_ca = \"{}\"",
        home.path("ca.pem")
    );
    let proxies = Proxies::start(&(slow + &home.proxy(&backend, "own", &more))).await;
    assert_eq!(said_to(&proxies.at[0], &[22, 3, 1]).await.0, b"");
    counted(&proxies, 0, "timed_out").await;

    let socket = TcpStream::connect(&proxies.at[1]).await.unwrap();
    let mut tls = home.client(&TLS13).over(socket, "localhost").await.unwrap();
    let refused = timeout(PATIENCE, tls.read(&mut [0]))
        .await
        .unwrap()
        .unwrap_err();
    assert!(
        refused.to_string().contains("CertificateRequired"),
        "{refused}"
    );
    let name = "proxy_handshake_failures_total";
    until("the failure is counted", async || {
        proxies
            .metric(name, "alert=\"certificate_required\",side=\"sent\"")
            .await
            == 1
    })
    .await;
    proxies.logs("certificate_required").await;
}
