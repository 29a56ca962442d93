//! systemd as the proxy sees it: messages to NOTIFY_SOCKET.

use std::{collections::HashMap, os::unix::net::UnixDatagram};

use super::world::{Backend, Home, Proxies};
use crate::process::PATIENCE;

/// Returns the next message that has this assignment. Others are passed over.
fn next_with(manager: &UnixDatagram, name: &str) -> HashMap<String, String> {
    loop {
        let mut bytes = [0; 4096];
        let length = manager
            .recv(&mut bytes)
            .unwrap_or_else(|err| panic!("no message with {name}: {err}"));
        let text = std::str::from_utf8(&bytes[..length]).unwrap();
        let assignments = text.lines().map(|line| line.split_once('=').unwrap());
        let message: HashMap<_, _> = assignments
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        if message.contains_key(name) {
            return message;
        }
    }
}

#[tokio::test]
async fn service_manager_is_told_every_change_of_the_proxy() {
    let home = Home::new();
    let backend = Backend::answering("answer").await;
    let path = home.path("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let good = home.proxy(&backend, "own", "");
    let proxies = Proxies::with(&good, |command| {
        command
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "200000");
    })
    .await;
    let status = |message: HashMap<String, String>| message["STATUS"].clone();
    assert_eq!(
        status(next_with(&manager, "STATUS")),
        "reading the configuration"
    );
    assert_eq!(status(next_with(&manager, "READY")), "serving; proxies: 1");
    for _ in 0..3 {
        assert_eq!(next_with(&manager, "WATCHDOG")["WATCHDOG"], "1");
    }
    for (config, told) in [
        (good.clone(), "serving; proxies: 1"),
        (good.replace("tls.crt", "nowhere.crt"), "reload refused: "),
    ] {
        proxies.reload(&config).await;
        next_with(&manager, "RELOADING");
        let ready = status(next_with(&manager, "READY"));
        assert!(ready.starts_with(told), "{ready}");
    }
    proxies.process.signal("TERM").await;
    assert!(next_with(&manager, "STOPPING").contains_key("EXTEND_TIMEOUT_USEC"));
    assert!(proxies.process.succeeds().await);
}
