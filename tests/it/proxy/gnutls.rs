//! `gnutls-cli --resume`, which connects twice to one port.

use tokio::process::Command;

use super::{NGINX, lane::Lane, openssl::GET, switch::slow_switch};
use crate::process::run;

#[tokio::test]
async fn gnutls_resumes_at_each_proxy_of_nginx() {
    let lane = Lane::of("gnutls nginx");
    for version in ["1.2", "1.3"] {
        // It moves from the first proxy to the second, from the third to the first, and from the second to the third.
        let visit = async || {
            let port = slow_switch(&lane).await.to_string();
            let priority = format!("NORMAL:-VERS-ALL:+VERS-TLS{version}");
            let mut resumed = Vec::new();
            for _ in 0..3 {
                let mut command = Command::new("gnutls-cli");
                command.args(["--resume", "--waitresumption"]);
                command.args(["--priority", &priority, "--port", &port]);
                command.args(["--x509cafile", &lane.fleet.path("ca.pem"), "localhost"]);
                let (said, good) = run(&mut command, GET).await;
                assert!(good && said.contains(NGINX), "{said}");
                assert!(said.contains("The certificate is trusted"), "{said}");
                resumed.extend([false, said.contains("This is a resumed session")]);
            }
            resumed
        };
        let expected = [false, true, false, true, false, true];
        lane.resumes(version, &expected, visit).await;
    }
    lane.all_closed().await;
}
