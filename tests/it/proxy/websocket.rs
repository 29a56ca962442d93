//! WebSockets in Node, on both sides.

use tokio::process::Command;

use super::{lane::Lane, peers, resumed, script};
use crate::process::run;

/// The length of the text that a client sends, in bytes.
const LENGTH: usize = 200_000;

#[tokio::test]
async fn websockets_pass_and_resume_at_each_proxy() {
    let lane = Lane::of("websocket");
    for version in ["1.2", "1.3"] {
        let visit = async || {
            let mut command = Command::new("node");
            command.env("NODE_PATH", peers("node_modules"));
            command.args([&script("websocket.js"), "visit"]);
            command.args([&lane.fleet.path("ca.pem"), &format!("TLSv{version}")]);
            command.arg(LENGTH.to_string());
            command.args(lane.addresses()).arg(lane.address(0));
            let (said, good) = run(&mut command, "").await;
            assert!(good, "{said}");
            resumed(&said, |resumed| {
                format!("{LENGTH} of {LENGTH} bytes, resumed: {resumed} code: 1000")
            })
        };
        let expected = [false, true, true, true];
        lane.resumes(version, &expected, visit).await;
    }
    lane.all_closed().await;
}
