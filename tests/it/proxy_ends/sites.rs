//! Routing by server name: a certificate, a backend and sessions of its own for each site.

use std::sync::Arc;

use rustls::{
    ClientConfig, NamedGroup,
    client::{
        ClientSessionMemoryCache, ClientSessionStore, Resumption, Tls12ClientSessionValue,
        Tls13ClientSessionValue,
    },
    pki_types::ServerName,
};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tokio_rustls::TlsConnector;

use super::world::{
    BOTH, Backend, Client, Daemon, Ending, Home, Proxies, drained, resumed, take_tickets,
};

/// Sessions of a client that offers them to every server, whatever its name.
#[derive(Debug)]
struct Careless(ClientSessionMemoryCache);

fn one_name() -> ServerName<'static> {
    "one.test".try_into().unwrap()
}

impl ClientSessionStore for Careless {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.0.set_kx_hint(one_name(), group);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.0.kx_hint(&one_name())
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.0.set_tls12_session(one_name(), value);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.0.tls12_session(&one_name())
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.0.remove_tls12_session(&one_name());
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.0.insert_tls13_ticket(one_name(), value);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.take_tls13_ticket(&one_name())
    }
}

/// Fetches from a site. Returns the answer, and whether the handshake resumed a session.
async fn visit(client: &Client, address: &str, name: &str) -> (String, bool) {
    let socket = TcpStream::connect(address).await.unwrap();
    let mut tls = client.over(socket, name).await.unwrap();
    take_tickets(&mut tls).await;
    let is_resumed = resumed(&tls);
    tls.write_all(b"request").await.unwrap();
    let (answer, ending) = drained(&mut tls).await;
    assert_eq!(ending, Ending::Whole);
    tls.shutdown().await.unwrap();
    (answer, is_resumed)
}

/// Returns a proxy with the sites `a.test`, which has its own certificate, and `*.b.test`.
async fn config(home: &Home, sessions: &str) -> String {
    let (certificate, key) = (home.path("b.crt"), home.path("b.key"));
    let (own, own_key) = (home.path("a.crt"), home.path("a.key"));
    let (one, other) = (
        Backend::answering("of a").await,
        Backend::answering("of b").await,
    );
    format!(
        "[[proxy]]\nlisten = \"tls://127.0.0.1:0\"\nsessions = \"{sessions}\"\n\
         certificate = \"{certificate}\"\nkey = \"{key}\"\n\
         [[proxy.route]]\nserver_names = [\"a.test\"]\nbackend = \"{one}\"\n\
         certificate = \"{own}\"\nkey = \"{own_key}\"\n\
         [[proxy.route]]\nserver_names = [\"*.b.test\"]\nbackend = \"{other}\"\n"
    )
}

#[tokio::test]
async fn sessions_stay_within_their_site_and_move_between_proxies() {
    let (daemon, home) = (Daemon::start(&[]).await, Home::new());
    home.issue("a", &["a.test"]);
    home.issue("b", &["*.b.test"]);
    let one = Proxies::start(&config(&home, &daemon.uri()).await).await;
    let other = Proxies::start(&config(&home, &daemon.uri()).await).await;
    let careless = |version| {
        let client = home.client(version);
        let mut config = ClientConfig::clone(client.config());
        let store = Careless(ClientSessionMemoryCache::new(32));
        config.resumption = Resumption::store(Arc::new(store));
        Client::of(config)
    };
    for version in BOTH {
        let mut was_late = true;
        // A busy machine may answer a lookup after its deadline, and the handshake is full then.
        for _ in 0..5 {
            if !was_late {
                break;
            }
            let late = one.late_lookups().await + other.late_lookups().await;
            let before = daemon.stats().await.accept_good;
            let client = careless(version);
            let mut seen = Vec::new();
            for (done, (proxy, name)) in [
                (&one, "a.test"),
                (&other, "a.test"),
                (&one, "x.b.test"),
                (&other, "x.b.test"),
                (&other, "y.b.test"),
                (&one, "a.test"),
            ]
            .into_iter()
            .enumerate()
            {
                seen.push((name, visit(&client, &proxy.at[0], name).await));
                daemon.settled(before, done as u64 + 1).await;
            }
            was_late = one.late_lookups().await + other.late_lookups().await != late;
            let (a, b) = ("of a".to_owned(), "of b".to_owned());
            let wanted = [
                ("a.test", (a.clone(), false)),
                ("a.test", (a.clone(), true)),
                ("x.b.test", (b.clone(), false)),
                ("x.b.test", (b.clone(), true)),
                ("y.b.test", (b.clone(), false)),
                ("a.test", (a, false)),
            ];
            assert!(was_late || seen == wanted, "{:?} {seen:?}", version.version);
        }
        assert!(!was_late, "a lookup is late each time");
    }
    // A label below the wildcard has no site.
    let connector =
        TlsConnector::from(Arc::new(ClientConfig::clone(home.client(BOTH[1]).config())));
    let socket = TcpStream::connect(&one.at[0]).await.unwrap();
    let refused = connector
        .connect("x.y.b.test".try_into().unwrap(), socket)
        .await;
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("UnrecognisedName")
    );
}
