//! The demo of three proxies (`make demo-proxy`), as a test.

use std::time::Duration;

use tokio::time::timeout;

// The function that a person runs as a program is not called here.
#[expect(dead_code)]
#[path = "../../examples/proxy_demo.rs"]
mod proxy_demo;

/// Longest time of all attempts, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// A machine that runs all tests may miss the deadline of a lookup in more visits than an idle one.
const ATTEMPTS: usize = 5;

#[tokio::test]
async fn three_proxies_and_a_returning_client_are_as_told() {
    let attempts = async {
        let mut told = Vec::new();
        for _ in 0..ATTEMPTS {
            told.clear();
            let found = proxy_demo::demo(&mut told).await;
            let text = String::from_utf8_lossy(&told);
            let found = found.unwrap_or_else(|err| panic!("{err}:\n{text}"));
            assert_eq!(found.wrong, 0, "{text}");
            // Both protocols: six visits with a daemon, four at a backend that resets, four around a killed proxy, six
            // without.
            let visits = text.lines().filter(|line| line.contains(" ms  "));
            assert_eq!(visits.count(), 2 * (6 + 4 + 4 + 6), "{text}");
            if found.late <= proxy_demo::LATE_MAX {
                return;
            }
        }
        panic!(
            "too few handshakes are resumed:\n{}",
            String::from_utf8_lossy(&told)
        );
    };
    timeout(LIMIT, attempts)
        .await
        .expect("the demo does not end");
}
