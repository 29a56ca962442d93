//! curl, which keeps its sessions for the URLs of one command.

use std::fs;

use tokio::process::Command;

use super::{
    NGINX, NGINX_H2, PYTHON,
    fleet::{PROXIES, large},
    lane::Lane,
    switch::slow_switch,
};
use crate::process::run;

/// Returns curl with options that all its tests need.
fn curl(lane: &Lane, port: &str) -> Command {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error"]);
    command.args(["--cacert", &lane.fleet.path("ca.pem")]);
    command.args(["--resolve", &format!("localhost:{port}:127.0.0.1")]);
    command
}

/// Fetches a page over each proxy in turn with one command, and once more over the first one.
async fn moves(name: &str, page: &str) {
    let lane = Lane::of(name);
    for (version, options) in [
        ("1.2", ["--tlsv1.2", "--tls-max", "1.2"]),
        ("1.3", ["--tlsv1.3", "--tls-max", "1.3"]),
    ] {
        let visit = async || {
            let port = slow_switch(&lane).await.to_string();
            let mut command = curl(&lane, &port);
            command.arg("--verbose").args(options);
            let url = format!("https://localhost:{port}/");
            let (said, good) = run(command.args([&url; PROXIES + 1]), "").await;
            assert!(good, "{said}");
            assert_eq!(said.matches(page).count(), PROXIES + 1, "{said}");
            let offered = said.matches("SSL re-using session ID").count();
            assert_eq!(offered, PROXIES, "{said}");
            // The server shows its certificate in a full handshake only.
            let handshakes = said.split("TLS handshake, Client hello (1)").skip(1);
            let is_resumed = |said: &str| !said.contains("TLS handshake, Certificate (11)");
            handshakes.map(is_resumed).collect()
        };
        let expected = [false, true, true, true];
        lane.resumes(version, &expected, visit).await;
    }
    lane.all_closed().await;
}

#[tokio::test]
async fn curl_resumes_at_each_proxy_of_nginx() {
    moves("curl nginx", NGINX).await;
}

#[tokio::test]
async fn curl_resumes_at_each_proxy_of_http_server() {
    moves("curl python", PYTHON).await;
}

#[tokio::test]
async fn curl_gets_every_byte_of_a_large_file() {
    let lane = Lane::of("curl large");
    let file = lane.fleet.path("fetched");
    let metric = "tls_sessiond_proxy_traffic_bytes_total";
    for proxy in 0..PROXIES {
        let port = lane.port(proxy);
        let mut command = curl(&lane, port);
        command.args(["--output", &file]);
        command.arg(format!("https://localhost:{port}/large"));
        let (said, good) = run(&mut command, "").await;
        assert!(good, "{said}");
        assert!(fs::read(&file).unwrap() == large(), "the file differs");
        let received = lane.count(proxy, metric, "direction=\"received\"").await;
        assert!(received > large().len() as u64, "{received}");
    }
    lane.all_closed().await;
}

/// Some versions of curl end connections of HTTP/2 without a close_notify, so nothing is asserted about the ends.
#[tokio::test]
async fn curl_speaks_http2_to_nginx() {
    let lane = Lane::of("curl http2");
    let visit = async || {
        for proxy in 0..PROXIES {
            let port = lane.port(proxy);
            let mut command = curl(&lane, port);
            command.args(["--http2", "--write-out", "version %{http_version}"]);
            command.arg(format!("https://localhost:{port}/"));
            let (said, good) = run(&mut command, "").await;
            assert!(good, "{said}");
            assert_eq!(said, format!("{NGINX_H2}\nversion 2"));
        }
        vec![false; PROXIES]
    };
    lane.resumes("1.3", &[false; PROXIES], visit).await;
}
