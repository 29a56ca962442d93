//! Every way in which a backend or a peer can end has the right fate for the session.

use rustls::{
    SupportedProtocolVersion,
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::world::{Backend, Client, Daemon, Ending, Home, Proxies, Tls, drained, fetch, until};

/// One way to end. The test plays both the client and the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    BackendCloses,
    PeerCloses,
    PeerClosesBeforeTheAnswer,
    PeerVanishes,
    PeerResets,
    PeerSendsGarbage,
    PeerSendsAlert,
    BackendResets,
    BackendResetsUnderUpload,
    Silence,
    BackendIsAwayForClose,
    BackendIsAwayForReset,
}

/// What becomes of the session, by the reports to the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Kept,
    Unclosed,
    FatalAlert,
}

/// What a way leads to.
struct Wanted {
    way: Way,
    /// The proxy of the configuration that it happens at.
    proxy: usize,
    fate: Fate,
    /// The label of the metric.
    end: &'static str,
    client: Option<Ending>,
    backend: Option<Ending>,
}

const WHOLE: Option<Ending> = Some(Ending::Whole);
const RESET: Option<Ending> = Some(Ending::Reset);

const fn at(
    proxy: usize,
    way: Way,
    fate: Fate,
    end: &'static str,
    client: Option<Ending>,
    backend: Option<Ending>,
) -> Wanted {
    Wanted {
        way,
        proxy,
        fate,
        end,
        client,
        backend,
    }
}

use Fate::{FatalAlert, Kept, Unclosed};

#[rustfmt::skip]
const TABLE: [Wanted; 12] = [
    at(0, Way::BackendCloses, Kept, "closed", WHOLE, WHOLE),
    at(0, Way::PeerCloses, Kept, "closed", WHOLE, WHOLE),
    at(0, Way::PeerClosesBeforeTheAnswer, Kept, "closed", WHOLE, WHOLE),
    at(0, Way::PeerVanishes, Unclosed, "truncated", RESET, RESET),
    at(0, Way::PeerResets, Unclosed, "peer_reset", None, RESET),
    at(0, Way::PeerSendsGarbage, FatalAlert, "alert", None, RESET),
    at(0, Way::PeerSendsAlert, FatalAlert, "alert", None, RESET),
    at(0, Way::BackendResets, Unclosed, "backend_reset", RESET, None),
    at(0, Way::BackendResetsUnderUpload, Unclosed, "backend_reset", RESET, None),
    at(1, Way::Silence, Unclosed, "idle", RESET, RESET),
    at(2, Way::BackendIsAwayForClose, Kept, "backend_away", WHOLE, None),
    at(3, Way::BackendIsAwayForReset, Unclosed, "backend_away", RESET, None),
];

/// A daemon, the proxies where connections end, and one where clients return.
struct Scene {
    daemon: Daemon,
    proxies: Proxies,
    next: Proxies,
    backend: Backend,
    home: Home,
}

impl Scene {
    async fn new() -> Self {
        let (daemon, home) = (Daemon::start(&[]).await, Home::new());
        let backend = Backend::listen().await;
        let (uri, away) = (backend.uri(), format!("unix://{}", home.path("away")));
        let proxy = |backend: &str, more: &str| home.proxy(backend, &daemon.uri(), more);
        let proxies = [
            proxy(&uri, ""),
            proxy(&uri, "idle_timeout = \"1s\""),
            proxy(&away, "backend_away = \"close\""),
            proxy(&away, "backend_away = \"reset\""),
        ];
        let answering = Backend::answering("back again").await;
        let next = Proxies::start(&proxy(&answering, "")).await;
        Self {
            proxies: Proxies::start(&proxies.concat()).await,
            next,
            backend,
            daemon,
            home,
        }
    }

    async fn plays(&self, wanted: &Wanted, version: &'static SupportedProtocolVersion) {
        // A machine that is busy may answer a lookup after its deadline, and the handshake is full then.
        for _ in 0..5 {
            if self.play(wanted, version).await {
                return;
            }
        }
        panic!(
            "{:?} {:?}: a lookup is late each time",
            wanted.way, version.version
        );
    }

    /// Returns whether the lookups were in time.
    async fn play(&self, wanted: &Wanted, version: &'static SupportedProtocolVersion) -> bool {
        let what = format!("{:?} {:?}", wanted.way, version.version);
        let client = self.home.client(version);
        let (handshakes, removals) = (
            self.daemon.stats().await.accept_good,
            self.daemon.removals().await,
        );
        let ends = self.proxies.ends(wanted.end).await;
        let endings = self.act(wanted, &client).await;
        assert_eq!(endings, (wanted.client, wanted.backend), "{what}");
        until(&format!("{what} ends as {}", wanted.end), async || {
            self.proxies.ends(wanted.end).await == ends + 1
        })
        .await;
        self.daemon.settled(handshakes, 1).await;
        let sessions = u64::from(version.version == TLS13.version) + 1;
        let more = match wanted.fate {
            Fate::Kept => (0, 0),
            Fate::Unclosed => (sessions, 0),
            Fate::FatalAlert => (0, sessions),
        };
        let after = self.daemon.removals().await;
        let removed = (after.0 - removals.0, after.1 - removals.1);
        assert_eq!(removed, more, "{what}: sessions were removed");

        let late = self.next.late_lookups().await;
        let (answer, is_resumed) = fetch(&client, &self.next.at[0]).await;
        self.daemon.settled(handshakes, 2).await;
        assert_eq!(answer, "back again");
        if self.next.late_lookups().await != late {
            return false;
        }
        assert_eq!(
            is_resumed,
            wanted.fate == Fate::Kept,
            "{what}: the next handshake"
        );
        true
    }

    /// Ends one connection. Returns how it ended for the client and for the backend.
    async fn act(&self, wanted: &Wanted, client: &Client) -> (Option<Ending>, Option<Ending>) {
        let at = &self.proxies.at[wanted.proxy];
        if matches!(
            wanted.way,
            Way::BackendIsAwayForClose | Way::BackendIsAwayForReset
        ) {
            let socket = TcpStream::connect(at).await.unwrap();
            let ending = match client.over(socket, "localhost").await {
                Ok(mut tls) => drained(&mut tls).await.1,
                // The end may come before the last flight of the handshake.
                Err(_) => Ending::Reset,
            };
            return (Some(ending), None);
        }
        let (tls, backend) = tokio::join!(client.connect(at), self.backend.accept());
        end(wanted.way, tls, backend).await
    }
}

/// Sends a request, and an answer to it.
async fn talk(tls: &mut Tls, backend: &mut TcpStream) {
    tls.write_all(b"request").await.unwrap();
    backend.read_exact(&mut [0; 7]).await.unwrap();
    backend.write_all(b"answer").await.unwrap();
}

/// Reads the answer to its end.
async fn answer(tls: &mut Tls) -> Ending {
    let (data, ending) = drained(tls).await;
    if ending == Ending::Whole {
        assert_eq!(data, "answer");
    }
    ending
}

async fn end(way: Way, mut tls: Tls, mut backend: TcpStream) -> (Option<Ending>, Option<Ending>) {
    if way != Way::PeerClosesBeforeTheAnswer && way != Way::BackendResetsUnderUpload {
        talk(&mut tls, &mut backend).await;
    }
    match way {
        Way::BackendCloses => {
            backend.shutdown().await.unwrap();
            let client = answer(&mut tls).await;
            tls.shutdown().await.unwrap();
            (Some(client), Some(drained(&mut backend).await.1))
        }
        Way::PeerCloses => {
            tls.shutdown().await.unwrap();
            let seen = drained(&mut backend).await.1;
            drop(backend);
            (Some(answer(&mut tls).await), Some(seen))
        }
        Way::PeerClosesBeforeTheAnswer => {
            tls.write_all(b"request").await.unwrap();
            tls.shutdown().await.unwrap();
            let (request, seen) = drained(&mut backend).await;
            assert_eq!(request, "request");
            backend.write_all(b"ans").await.unwrap();
            backend.write_all(b"wer").await.unwrap();
            drop(backend);
            (Some(answer(&mut tls).await), Some(seen))
        }
        Way::PeerVanishes => {
            tls.get_mut().0.shutdown().await.unwrap();
            let seen = drained(&mut backend).await.1;
            (Some(answer(&mut tls).await), Some(seen))
        }
        Way::PeerResets => {
            tls.get_ref().0.set_zero_linger().unwrap();
            drop(tls);
            (None, Some(drained(&mut backend).await.1))
        }
        Way::PeerSendsGarbage => {
            // A record that no key decrypts.
            let record = [&[23, 3, 3, 0, 32][..], &[7; 32]].concat();
            tls.get_mut().0.write_all(&record).await.unwrap();
            (None, Some(drained(&mut backend).await.1))
        }
        Way::PeerSendsAlert => {
            let record = [&[23, 3, 3, 0, 32][..], &[7; 32]].concat();
            let (socket, client) = tls.get_mut();
            client.read_tls(&mut &record[..]).unwrap();
            assert!(client.process_new_packets().is_err());
            let mut alert = Vec::new();
            client.write_tls(&mut alert).unwrap();
            socket.write_all(&alert).await.unwrap();
            (None, Some(drained(&mut backend).await.1))
        }
        Way::BackendResets => {
            backend.set_zero_linger().unwrap();
            drop(backend);
            (Some(answer(&mut tls).await), None)
        }
        Way::BackendResetsUnderUpload => {
            let ending = under_upload(tls, backend).await;
            (Some(ending), None)
        }
        Way::Silence => {
            let (client, seen) = tokio::join!(answer(&mut tls), drained(&mut backend));
            (Some(client), Some(seen.1))
        }
        Way::BackendIsAwayForClose | Way::BackendIsAwayForReset => (None, None),
    }
}

/// Resets the backend while the client sends so much that the proxy waits in a write.
async fn under_upload(tls: Tls, backend: TcpStream) -> Ending {
    let (mut from, mut to) = tokio::io::split(tls);
    let upload = tokio::spawn(async move {
        let piece = vec![b'x'; 64 << 10];
        while to.write_all(&piece).await.is_ok() {}
        to
    });
    until("the proxy waits in a write", {
        let mut before = 0;
        async move || {
            let waiting = usize::try_from(rustix::io::ioctl_fionread(&backend).unwrap()).unwrap();
            let is_full = waiting > 0 && waiting == before;
            before = waiting;
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            if is_full {
                backend.set_zero_linger().unwrap();
            }
            is_full
        }
    })
    .await;
    let ending = drained(&mut from).await.1;
    upload.abort();
    // The system tells the client of a reset once, and the upload may have taken it.
    match ending {
        Ending::Cut => Ending::Reset,
        other => other,
    }
}

async fn whole_table(version: &'static SupportedProtocolVersion) {
    let scene = Scene::new().await;
    for wanted in &TABLE {
        scene.plays(wanted, version).await;
    }
}

#[tokio::test]
async fn every_end_has_its_fate_in_tls12() {
    whole_table(&TLS12).await;
}

#[tokio::test]
async fn every_end_has_its_fate_in_tls13() {
    whole_table(&TLS13).await;
}
