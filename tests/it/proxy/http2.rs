//! h2load: many streams of HTTP/2 on each connection.

use tokio::process::Command;

use super::{
    fleet::PROXIES,
    lane::{Handshakes, Lane},
};
use crate::process::run;

/// Connections to each proxy, and requests on all of them.
const CONNECTIONS: u64 = 10;
const REQUESTS: u64 = 2_000;

#[tokio::test]
async fn h2load_has_an_answer_to_each_request() {
    let lane = Lane::of("h2load");
    let each = Handshakes {
        full: CONNECTIONS,
        resumed: 0,
    };
    let visit = async || {
        for address in lane.addresses() {
            let mut command = Command::new("h2load");
            command.args(["-n", &REQUESTS.to_string(), "-c", &CONNECTIONS.to_string()]);
            command.args(["-m", "20", "--connect-to", address, "https://localhost/"]);
            let (said, good) = run(&mut command, "").await;
            assert!(good, "{said}");
            let requests = format!(
                "requests: {REQUESTS} total, {REQUESTS} started, {REQUESTS} done, {REQUESTS} succeeded, 0 failed, 0 errored, 0 timeout"
            );
            assert!(said.contains(&requests), "{said}");
            let codes = format!("status codes: {REQUESTS} 2xx");
            assert!(said.contains(&codes), "{said}");
            assert!(said.contains("Application protocol: h2"), "{said}");
        }
    };
    lane.check("1.3", visit, |(), counted| {
        match *counted == [each; PROXIES] {
            true => Ok(()),
            false => Err(format!("{counted:?}")),
        }
    })
    .await;
    lane.all_closed().await;
}
