//! SIGHUP: certificates are renewed under open connections, and no reload loosens by omission.

use std::fs;

use rustls::{
    pki_types::CertificateDer,
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::world::{BOTH, Backend, Client, Daemon, Home, Proxies, Tls, fetch};
use crate::{
    pki::Authority,
    start::{fifo, open_for},
};

fn certificate(tls: &Tls) -> CertificateDer<'static> {
    tls.get_ref().1.peer_certificates().unwrap()[0].clone()
}

/// Writes a certificate that shows which authority signed it, as those of real authorities do.
fn issue(home: &Home, authority: &Authority, names: &[&str]) {
    let leaf = authority.sign(names, |params| {
        params.use_authority_key_identifier_extension = true;
    });
    leaf.write(home.folder.path(), "tls");
}

#[tokio::test]
async fn renewed_certificate_is_for_new_connections_and_a_bad_one_for_none() {
    let home = Home::new();
    let backend = Backend::listen().await;
    let config = home.proxy(&backend.uri(), "own", "");
    let proxies = Proxies::start(&config).await;
    let open = async || {
        let client = home.client(&TLS13);
        let (tls, socket) = tokio::join!(client.connect(&proxies.at[0]), backend.accept());
        (tls, socket)
    };
    let (mut tls, mut socket) = open().await;
    let first = certificate(&tls);
    home.issue("tls", &["localhost"]);
    proxies.reload(&config).await;
    let second = certificate(&open().await.0);
    assert_ne!(first, second);
    // The old connection goes on.
    tls.write_all(b"request").await.unwrap();
    socket.read_exact(&mut [0; 7]).await.unwrap();

    // A key of another certificate, and a file that is missing.
    Authority::new("other")
        .leaf(&["localhost"])
        .write(home.folder.path(), "other");
    for bad in [
        config.replace("tls.key", "other.key"),
        config.replace("tls.crt", "nowhere.crt"),
        config.replace("[[proxy]]", "[[proxy]]\nunknown = 1"),
        "not TOML".to_owned(),
    ] {
        proxies.reload(&bad).await;
        assert_eq!(certificate(&open().await.0), second);
    }
    let log = proxies.log();
    for said in [
        "proxy[0].key: ",
        "proxy[0].certificate: cannot read",
        "proxy[0].unknown",
    ] {
        assert!(log.contains(said), "{log}");
    }
    assert_eq!(log.matches("reload refused").count(), 4, "{log}");
    let count = async |result: &str| {
        proxies
            .metric("reloads_total", &format!("result=\"{result}\""))
            .await
    };
    assert_eq!((count("applied").await, count("refused").await), (1, 4));
}

/// Returns whether a client that was at the proxy before resumes after `change`.
async fn resumes_after(
    (daemon, proxies): (&Daemon, &Proxies),
    client: &Client,
    change: impl AsyncFn(),
) -> bool {
    for _ in 0..5 {
        let before = daemon.stats().await.accept_good;
        fetch(client, &proxies.at[0]).await;
        daemon.settled(before, 1).await;
        change().await;
        let late = proxies.late_lookups().await;
        let (_, is_resumed) = fetch(client, &proxies.at[0]).await;
        daemon.settled(before, 2).await;
        if proxies.late_lookups().await == late {
            return is_resumed;
        }
    }
    panic!("a lookup is late each time");
}

#[tokio::test]
async fn sessions_outlive_a_renewal_and_no_change_of_names_or_of_client_authorities() {
    let (daemon, home) = (Daemon::start(&[]).await, Home::new());
    let backend = Backend::answering("answer").await;
    let leaf = home.issue("client", &["client.test"]);
    issue(&home, &home.authority, &["localhost"]);
    let ca = home.path("ca.pem");
    let more = format!("client_auth = \"require\"\nclient_ca = \"{ca}\"");
    let config = home.proxy(&backend, &daemon.uri(), &more);
    let proxies = Proxies::start(&config).await;
    let both = (&daemon, &proxies);
    for version in BOTH {
        let client = home.client_with(version, &leaf, &[]);
        issue(&home, &home.authority, &["localhost"]);
        proxies.reload(&config).await;
        let what = format!("{:?}", version.version);
        assert!(resumes_after(both, &client, async || {}).await, "{what}");
        let renewal = async || {
            issue(&home, &home.authority, &["localhost"]);
            proxies.reload(&config).await;
        };
        assert!(resumes_after(both, &client, renewal).await, "{what}");
        let other_names = async || {
            let names = ["localhost", "more.test"];
            issue(&home, &home.authority, &names);
            proxies.reload(&config).await;
        };
        assert!(!resumes_after(both, &client, other_names).await, "{what}");
        let other_authorities = async || {
            let two = home.authority.pem.clone() + &Authority::new("more").pem;
            std::fs::write(home.path("two.pem"), two).unwrap();
            let (of_one, of_two) = (
                format!("= \"{ca}\""),
                format!("= \"{}\"", home.path("two.pem")),
            );
            proxies.reload(&config.replace(&of_one, &of_two)).await;
        };
        assert!(
            !resumes_after(both, &client, other_authorities).await,
            "{what}"
        );
        let weaker = async || {
            proxies
                .reload(&config.replace("\"require\"", "\"request\""))
                .await;
        };
        assert!(!resumes_after(both, &client, weaker).await, "{what}");
    }
    assert!(
        !proxies.log().contains("reload refused"),
        "{}",
        proxies.log()
    );
}

#[tokio::test]
async fn reload_that_needs_a_restart_or_leaves_a_key_out_is_refused() {
    let home = Home::new();
    let backend = Backend::answering("answer").await;
    let more = format!(
        "client_auth = \"require\"\nclient_ca = \"{}\"\nconnections = 500\nidle_timeout = \"1m\"",
        home.path("ca.pem")
    );
    let route = format!(
        "[[proxy.route]]\nserver_names = [\"a.test\"]\nbackend = \"{backend}\"\n\
         certificate = \"{}\"\nkey = \"{}\"\n",
        home.path("tls.crt"),
        home.path("tls.key")
    );
    let good = home.proxy(&backend, "own", &more) + &route;
    let without = |text: &str| {
        let kept = good.lines().filter(|line| !line.starts_with(text));
        kept.collect::<Vec<_>>().join("\n")
    };
    let proxies = Proxies::start(&good).await;
    let at = good.replace("127.0.0.1:0", "127.0.0.2:0");
    let plain = home.proxy(&backend, "own", "") + &route;
    let original = "[[proxy]]\nlisten = \"tcp://127.0.0.1:0\"\nconnect = \"a.test:443\"\n";
    let cut = good.rsplit_once("certificate = ").unwrap().0;
    for (config, said) in [
        (at, "proxy[0].listen cannot change at run time"),
        (
            good.replace("\"own\"", "\"tcp://127.0.0.1:1\""),
            "proxy[0].sessions cannot change at run time",
        ),
        (
            good.replace("connections", "context = \"other\"\nconnections"),
            "proxy[0].context cannot change at run time",
        ),
        (
            format!("{good}{original}"),
            "the number of [[proxy]] cannot change at run time",
        ),
        (original.to_owned(), "proxy[0]."),
        (without("client_auth"), "proxy[0]."),
        (without("connections"), "proxy[0].connections: not set"),
        (without("idle_timeout"), "proxy[0].idle_timeout: not set"),
        (
            plain,
            "proxy[0].client_auth: not set, and the running configuration has `",
        ),
        (cut.to_owned(), "proxy[0].route[0].certificate: not set"),
        (String::new(), "proxy"),
    ] {
        let before = proxies.log();
        proxies.reload(&config).await;
        let log = proxies.log();
        let new = log.strip_prefix(before.as_str()).unwrap();
        assert!(new.contains("reload refused"), "{config}\n{new}");
        assert!(new.contains(said), "{config}\n{new}\nwant: {said}");
    }
    // A client without a certificate is still refused.
    let socket = TcpStream::connect(&proxies.at[0]).await.unwrap();
    home.client(&TLS12)
        .over(socket, "localhost")
        .await
        .unwrap_err();
    proxies.reload(&good).await;
    assert!(proxies.log().contains("configuration reloaded"));
    let leaf = home.issue("client", &["client.test"]);
    fetch(&home.client_with(&TLS13, &leaf, &[]), &proxies.at[0]).await;
}

// Invariant 24.
#[tokio::test]
async fn file_that_hangs_delays_no_connection_and_no_stop() {
    let home = Home::new();
    let backend = Backend::answering("answer").await;
    let proxies = Proxies::start(&home.proxy(&backend, "own", "")).await;
    let file = proxies.file();
    fs::remove_file(&file).unwrap();
    fifo(&file);
    proxies.process.signal("HUP").await;
    let held = open_for(&file).await;
    let (answer, _) = fetch(&home.client(&TLS13), &proxies.at[0]).await;
    assert_eq!(answer, "answer");
    proxies.process.signal("TERM").await;
    assert!(proxies.process.succeeds().await);
    drop(held);
}
