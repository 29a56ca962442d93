//! Go's net/http.

use super::{NGINX, NGINX_H2, PYTHON, lane::Lane, resumed, switch::slow_switch};
use crate::process::{peer, run};

async fn moves(name: &str, protocol: &str, page: &str) {
    let lane = Lane::of(name);
    // Fetches the page over each proxy in turn, and once more over the first one.
    let visit = async |version: &str| {
        let address = format!("127.0.0.1:{}", slow_switch(&lane).await);
        let mut command = peer("go-pages");
        command.args([&lane.fleet.path("ca.pem"), version]);
        command.args([&*address; 4]);
        let (said, good) = run(&mut command, "").await;
        assert!(good, "{said}");
        resumed(&said, |resumed| {
            format!("{protocol} resumed: {resumed} page: {page}")
        })
    };
    let expected = [false, true, true, true];
    lane.resumes("1.3", &expected, async || visit("1.3").await)
        .await;
    // Clients in Go have no session ids, and the proxy gives no tickets of TLS 1.2.
    lane.resumes("1.2", &[false; 4], async || visit("1.2").await)
        .await;
    lane.all_closed().await;
}

#[tokio::test]
async fn go_resumes_at_each_proxy_of_nginx() {
    moves("go nginx", "HTTP/1.1", NGINX).await;
}

#[tokio::test]
async fn go_resumes_at_each_proxy_of_http_server() {
    moves("go python", "HTTP/1.0", PYTHON).await;
}

#[tokio::test]
async fn go_resumes_at_each_proxy_over_http2() {
    moves("go http2", "HTTP/2.0", NGINX_H2).await;
}
