//! Clients with certificates.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, SystemTime},
};

use tokio::{process::Command, time::sleep};

use super::{NGINX, VERSIONS, lane::Lane, openssl::Visitor};
use crate::process::run;

const FAILURES: &str = "tls_sessiond_proxy_handshake_failures_total";

#[tokio::test]
async fn sessions_of_certificates_resume_by_their_binding_until_revoked() {
    let required = Lane::of("certificates");
    let requested = Lane::of("certificates requested");
    let (fleet, number) = (required.fleet, AtomicU32::new(0));
    for (version, option) in VERSIONS {
        let visit = async || {
            // The name of an earlier attempt is revoked.
            let name = format!(
                "client-{}.example.org",
                number.fetch_add(1, Ordering::Relaxed)
            );
            let [certificate, key] = fleet.client("client", &fleet.authority.leaf(&[&name]));
            let shown = ["-cert", &certificate, "-key", &key];
            let visitor = Visitor::new(&required, "session of a certificate", option, &shown);
            let mut resumed = vec![
                visitor.comes(required.address(0)).await.brought(NGINX),
                visitor.returns(required.address(1)).await.brought(NGINX),
                // This proxy trusts one more authority, so it has another binding.
                visitor.tries(required.address(2)).await.brought(NGINX),
                // So has a proxy that requests a certificate, and does not require it.
                visitor.tries(requested.address(0)).await.brought(NGINX),
                // The session is still there.
                visitor.returns(required.address(0)).await.brought(NGINX),
            ];
            let mut revoke = Command::new(env!("CARGO_BIN_EXE_tls-sessiond"));
            revoke.args(["sessions", "revoke", "--dns-name", &name, "--yes"]);
            let (said, good) = run(revoke.args(["--address", &fleet.daemon()]), "").await;
            assert!(good, "{said}");
            for proxy in [1, 0] {
                let visit = visitor.tries(required.address(proxy)).await;
                resumed.push(visit.brought(NGINX));
            }
            resumed
        };
        required
            .check(version, visit, |resumed, counted| {
                let expected = [false, true, false, false, true, false, false];
                let counts = counted.map(|at| (at.full, at.resumed));
                match *resumed == expected && counts == [(2, 1), (1, 1), (1, 0)] {
                    true => Ok(()),
                    false => Err(format!("the client: {resumed:?}, the proxies: {counted:?}")),
                }
            })
            .await;
    }
    required.all_closed().await;
    requested.all_closed().await;

    // Without a certificate a client has no page.
    for (place, (_, option)) in VERSIONS.into_iter().enumerate() {
        let stranger = Visitor::new(&required, "no session", option, &[]);
        let visit = stranger.passes(required.address(0)).await;
        assert!(!visit.said.contains(NGINX), "{}", visit.said);
        let labels = "alert=\"certificate_required\",side=\"sent\"";
        let count = 1 + place as u64;
        required.until_count(0, FAILURES, labels, count).await;
    }
}

#[tokio::test]
async fn session_ends_with_the_certificate_of_its_client() {
    let lane = Lane::of("certificates that expire");
    // On a busy machine a certificate may expire before the session is resumed. The next one lives longer.
    for seconds in [2, 8, 30] {
        let ends = SystemTime::now() + Duration::from_secs(seconds);
        let leaf = lane.fleet.authority.sign(&["short.example.org"], |params| {
            params.not_after = ends.into();
        });
        let [certificate, key] = lane.fleet.client("short", &leaf);
        let visitors = VERSIONS.map(|(version, option)| {
            let shown = ["-cert", &certificate, "-key", &key];
            Visitor::new(&lane, &format!("short {version}"), option, &shown)
        });
        let mut resumed = Vec::new();
        for visitor in &visitors {
            resumed.push(visitor.comes(lane.address(0)).await.resumed);
            resumed.push(visitor.returns(lane.address(1)).await.resumed);
        }
        if resumed != [Some(false), Some(true)].repeat(2) {
            println!("with {seconds} s: {resumed:?}");
            continue;
        }
        // A certificate is still valid in its last second.
        while ends.elapsed().map_or(true, |since| since.as_secs() < 1) {
            sleep(Duration::from_millis(20)).await;
        }
        for (place, visitor) in visitors.iter().enumerate() {
            let visit = visitor.tries(lane.address(2)).await;
            assert!(!visit.said.contains(NGINX), "{}", visit.said);
            let labels = "alert=\"certificate_expired\",side=\"sent\"";
            lane.until_count(2, FAILURES, labels, 1 + place as u64)
                .await;
        }
        lane.all_closed().await;
        return;
    }
    panic!("no session was resumed before its certificate expired");
}
