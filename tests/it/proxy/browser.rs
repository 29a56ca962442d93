//! Chromium.

use tokio::process::Command;

use super::{NGINX, NGINX_H2, fleet::PROXIES, lane::Lane, peers, script, switch::switch};
use crate::process::run;

/// How often it fetches the page of nginx.
const PAGES: usize = 6;

/// nginx ends each connection, because Chromium ends its connections without a close_notify.
#[tokio::test]
async fn chromium_resumes_at_each_proxy_and_opens_a_websocket() {
    let nginx = Lane::of("browser nginx");
    let (http2, websocket) = (Lane::of("browser http2"), Lane::of("browser websocket"));
    let visit = async || {
        let port = switch(&nginx).await;
        let mut command = Command::new("node");
        command.env("NODE_PATH", peers("node_modules"));
        command.args([&script("browser.js"), &nginx.fleet.path("tls.crt")]);
        command.arg(format!("wss://localhost:{}/", websocket.port(0)));
        command.args([&*format!("https://localhost:{port}/"); PAGES]);
        command.arg(format!("https://localhost:{}/", http2.port(1)));
        let (said, good) = run(&mut command, "").await;
        assert!(good, "{said}");
        let mut expected = vec![format!("TLS 1.3 http/1.1 page: {NGINX}"); PAGES];
        expected.push(format!("TLS 1.3 h2 page: {NGINX_H2}"));
        expected.push("websocket: text of a browser clean: true".into());
        let lines: Vec<_> = said.lines().collect();
        assert_eq!(lines, expected);
    };
    nginx
        .check("1.3", visit, |(), counted| {
            let full: u64 = counted.iter().map(|at| at.full).sum();
            let resumed = |proxy: usize| counted[proxy].resumed;
            let all = (0..PROXIES).map(resumed).sum::<u64>();
            // It opens one or two connections before it has a session, and one or two for each page later.
            match full < all && (0..PROXIES).all(|proxy| resumed(proxy) > 0) {
                true => Ok(()),
                false => Err(format!("{counted:?}")),
            }
        })
        .await;
    for (lane, proxy) in [(&http2, 1), (&websocket, 0)] {
        let counted = lane.handshakes("1.3").await;
        assert!(counted[proxy].full > 0, "{counted:?}");
    }
}
