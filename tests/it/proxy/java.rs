//! Java's HttpsURLConnection, which keeps sessions by host and port.

use tokio::process::Command;

use super::{NGINX, PYTHON, lane::Lane, peers, resumed, switch::slow_switch};
use crate::process::run;

async fn moves(name: &str, page: &str) {
    let lane = Lane::of(name);
    for version in ["1.2", "1.3"] {
        let protocol = format!("TLSv{version}");
        let visit = async || {
            let port = slow_switch(&lane).await;
            let mut command = Command::new("java");
            command.args(["-XX:TieredStopAtLevel=1", "-cp", &peers("java"), "Pages"]);
            command.args([&lane.fleet.path("ca.pem"), &protocol]);
            command.args([&format!("https://localhost:{port}/"), "4"]);
            let (said, good) = run(&mut command, "").await;
            assert!(good, "{said}");
            resumed(&said, |resumed| {
                format!("{protocol} resumed: {resumed} page: {page}")
            })
        };
        let expected = [false, true, true, true];
        lane.resumes(version, &expected, visit).await;
    }
    lane.all_closed().await;
}

#[tokio::test]
async fn java_resumes_at_each_proxy_of_nginx() {
    moves("java nginx", NGINX).await;
}

#[tokio::test]
async fn java_resumes_at_each_proxy_of_http_server() {
    moves("java python", PYTHON).await;
}
