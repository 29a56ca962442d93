//! `sessions = "own"`: the sessions are in the process of the proxies, by the same rules.

use tokio::io::AsyncWriteExt;

use super::world::{BOTH, Backend, Ending, Home, Proxies, drained, fetch, until};

#[tokio::test]
async fn proxies_of_one_process_share_their_own_sessions() {
    let home = Home::new();
    let backend = Backend::answering("answer").await;
    let config = home.proxy(&backend, "own", "") + &home.proxy(&backend, "own", "");
    let proxies = Proxies::start(&config).await;
    for version in BOTH {
        until(
            "a client resumes at the other proxy, and again at the first",
            async || {
                let client = home.client(version);
                let mut kinds = Vec::new();
                for at in [0, 1, 0] {
                    let closed = proxies.ends("closed").await;
                    kinds.push(fetch(&client, &proxies.at[at]).await.1);
                    until("the end is counted", async || {
                        proxies.ends("closed").await > closed
                    })
                    .await;
                }
                assert!(!kinds[0]);
                kinds == [false, true, true]
            },
        )
        .await;

        // A connection without its close_notify leaves no session behind.
        let client = home.client(version);
        let truncated = proxies.ends("truncated").await;
        let mut tls = client.connect(&proxies.at[0]).await;
        tls.get_mut().0.shutdown().await.unwrap();
        assert_ne!(drained(&mut tls).await.1, Ending::Whole);
        until("the end is counted", async || {
            proxies.ends("truncated").await == truncated + 1
        })
        .await;
        assert!(
            !fetch(&client, &proxies.at[0]).await.1,
            "{:?}",
            version.version
        );
    }
    let resumed = proxies
        .metric("proxy_handshakes_total", "version=\"1.3\",kind=\"resumed\"")
        .await;
    assert!(resumed >= 2, "{resumed}");
    assert!(proxies.get("/readyz").await.body == "ready\n");
}
