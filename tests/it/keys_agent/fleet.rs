//! A fleet: servers of several kinds, each with its agent, and clients that return to another server of the same kind.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use tempfile::TempDir;
use tls_parser::{
    TlsExtension, TlsMessage, TlsMessageHandshake, parse_tls_client_hello_extensions,
    parse_tls_plaintext,
};
use tls_sessiond_types::client_hello::{FirstFlight, Progress};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream, UnixStream},
    process::Command,
    time::{Instant, timeout},
};

use super::{
    Agent, GET, LIFETIME, free_port, memory,
    replica::{Kind, Replica},
    text,
};
use crate::process::{PATIENCE, peer, run};

const CLIENTS: [&str; 3] = ["openssl", "gnutls", "go"];
const VERSIONS: [&str; 2] = ["1.2", "1.3"];

/// A server and its agent.
pub(super) struct Member {
    pub(super) server: Replica,
    pub(super) agent: Agent,
}

impl Member {
    /// Starts an agent, and then its server.
    pub(super) async fn start(address: &str, name: &str, kind: Kind, folder: &Path) -> Self {
        let mut server = Replica::new(kind, name, folder);
        let agent = server.agent(address);
        server.start().await;
        Self { server, agent }
    }
}

/// The tickets that clients have brought to another server of a kind.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) resumed: usize,
    pub(super) lost: usize,
}

/// A server that made a ticket, the client, and the version of TLS.
type Way = (String, &'static str, &'static str);

pub(super) struct Fleet {
    pub(super) members: Vec<Member>,
    pub(super) tallies: BTreeMap<&'static str, Tally>,
    /// The ways of the tickets that were resumed.
    ways: BTreeSet<Way>,
    /// The lost tickets in words.
    lost: Vec<String>,
    /// All keys that were in the files of the servers.
    pub(super) keys: BTreeSet<Vec<u8>>,
    /// Where clients connect that visit one address only.
    listener: TcpListener,
    turn: usize,
    pub(super) folder: TempDir,
}

/// Returns two servers of each kind.
pub(super) fn two_of_each() -> [(&'static str, Kind); 8] {
    [
        ("nginx-1", Kind::Nginx),
        ("nginx-2", Kind::Nginx),
        ("haproxy-1", Kind::Haproxy),
        ("haproxy-2", Kind::Haproxy),
        ("envoy-1", Kind::Envoy(free_port())),
        ("envoy-2", Kind::Envoy(free_port())),
        ("go-1", Kind::Go),
        ("go-2", Kind::Go),
    ]
}

impl Fleet {
    /// Returns a fleet without members.
    pub(super) async fn new() -> Self {
        Self {
            members: Vec::new(),
            tallies: BTreeMap::new(),
            ways: BTreeSet::new(),
            lost: Vec::new(),
            keys: BTreeSet::new(),
            listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
            turn: 0,
            folder: memory(),
        }
    }

    /// Starts agents and servers, whose agents reach their daemon at `address`.
    pub(super) async fn start(&mut self, address: &str, servers: &[(&str, Kind)]) {
        for &(name, kind) in servers {
            let member = Member::start(address, name, kind, self.folder.path()).await;
            self.members.push(member);
        }
    }

    pub(super) fn place(&self, name: &str) -> usize {
        let named = |member: &Member| member.server.name == name;
        self.members.iter().position(named).expect(name)
    }

    pub(super) fn server(&self, name: &str) -> &Replica {
        &self.members[self.place(name)].server
    }

    /// Lets clients return to other servers, one client after the other, until an event has happened.
    pub(super) async fn carry<T>(&mut self, event: impl Future<Output = T>) -> T {
        let happened = Cell::new(false);
        let event = async {
            let got = event.await;
            happened.set(true);
            got
        };
        let visits = async {
            while !happened.get() {
                self.visit().await;
            }
        };
        let both = async { tokio::join!(event, visits) };
        let (got, ()) = timeout(4 * PATIENCE, both).await.expect("an event");
        got
    }

    /// Lets one client make a ticket at a server, and bring it to the next one of its kind. Each visit has another way.
    pub(super) async fn visit(&mut self) {
        let turn = self.turn;
        self.turn += 1;
        let version = VERSIONS[turn % VERSIONS.len()];
        let client = CLIENTS[turn / VERSIONS.len() % CLIENTS.len()];
        let from = turn / VERSIONS.len() / CLIENTS.len() % self.members.len();
        let from = &self.members[from].server;
        if !can_resume(client, version, from) {
            return;
        }
        let servers = || self.members.iter().map(|member| &member.server);
        servers().for_each(|server| server.collect(&mut self.keys));
        let to = servers()
            .chain(servers())
            .skip_while(|to| to.name != from.name);
        let to = to.skip(1).find(|to| to.kind_name() == from.kind_name());
        let to = to.unwrap();
        assert_ne!(from.name, to.name);
        let made = Instant::now();
        let resumed = returns(client, version, &self.listener, from, to).await;
        // A client that was delayed for longer has a ticket that has expired.
        let Some(resumed) = resumed.filter(|_| made.elapsed() < LIFETIME) else {
            return;
        };
        let tally = self.tallies.entry(from.kind_name()).or_default();
        if resumed {
            tally.resumed += 1;
            self.ways.insert((from.name.clone(), client, version));
        } else {
            tally.lost += 1;
            let (from, to) = (&from.name, &to.name);
            self.lost
                .push(format!("{client} with TLS {version} from {from} to {to}"));
        }
    }

    /// Visits until each client has brought a ticket of each version from each server that is there now.
    pub(super) async fn visit_all_ways(&mut self) {
        let mut ways = BTreeSet::new();
        for Member { server, .. } in &self.members {
            for client in CLIENTS {
                let versions = VERSIONS.into_iter();
                let versions = versions.filter(|version| can_resume(client, version, server));
                ways.extend(versions.map(|version| (server.name.clone(), client, version)));
            }
        }
        let visits = async {
            while !ways.is_subset(&self.ways) {
                self.visit().await;
            }
        };
        let done = timeout(4 * PATIENCE, visits).await.is_ok();
        let missing: Vec<_> = ways.difference(&self.ways).collect();
        assert!(done, "no tickets crossed: {missing:#?}");
    }

    /// Prints how many tickets each kind has resumed and lost.
    pub(super) fn report(&self, title: &str) {
        for (kind, Tally { resumed, lost }) in &self.tallies {
            println!("{title}: {kind}: {resumed} tickets resumed, {lost} lost");
        }
    }

    pub(super) fn has_lost_none(&self) {
        assert!(self.lost.is_empty(), "lost: {:#?}", self.lost);
    }
}

/// Envoy sends tickets of TLS 1.3 with its first answer. gnutls-cli asks nothing before it resumes.
fn can_resume(client: &str, version: &str, from: &Replica) -> bool {
    (client, version, from.kind_name()) != ("gnutls", "1.3", "envoy")
}

/// Connects a client to one server, and then to another. Returns whether the second connection was resumed. `None`: the client
/// offered no ticket there. gnutls-cli waits for a ticket of TLS 1.3 for 50 ms only, which is too short on a busy machine.
async fn returns(
    client: &str,
    version: &str,
    listener: &TcpListener,
    from: &Replica,
    to: &Replica,
) -> Option<bool> {
    let address = listener.local_addr().unwrap();
    let mut command = match client {
        "openssl" => {
            let version = if version == "1.2" {
                "-tls1_2"
            } else {
                "-tls1_3"
            };
            let file = text(&from.folder.join("session"));
            assert!(!from.resumes(version, ["-sess_out", &file]).await);
            return Some(to.resumes(version, ["-sess_in", &file]).await);
        }
        "gnutls" => {
            let mut command = Command::new("gnutls-cli");
            let priority = format!("NORMAL:-VERS-ALL:+VERS-TLS{version}");
            command.args(["--resume", "--insecure", "--priority", &priority]);
            command.args(["--port", &address.port().to_string(), "127.0.0.1"]);
            command
        }
        _ => {
            let mut command = peer("go-resuming");
            command.args([&address.to_string(), version]);
            command
        }
    };
    // Both connections of these clients go to one address.
    let carry = async {
        let mut offers = false;
        for server in [from, to] {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = UnixStream::connect(&server.socket).await.unwrap();
            offers = pass_client_hello(&mut near, &mut far).await;
            // A client may close its socket with a close_notify unread, which is a reset.
            drop(copy_bidirectional(&mut near, &mut far).await);
        }
        version != "1.3" || offers
    };
    let ((said, good), offers) = tokio::join!(run(&mut command, GET), carry);
    assert!(good, "{client} from {} to {}: {said}", from.name, to.name);
    let resumed = match client {
        "gnutls" => said.contains("This is a resumed session"),
        _ => said.contains("second resumed: true"),
    };
    offers.then_some(resumed)
}

/// Passes a ClientHello on. Returns whether it offers a ticket of TLS 1.3.
async fn pass_client_hello(near: &mut TcpStream, far: &mut UnixStream) -> bool {
    let mut flight = FirstFlight::default();
    let mut bytes = [0; 4096];
    loop {
        let length = near.read(&mut bytes).await.unwrap();
        assert!(length > 0, "the client ended before its ClientHello");
        far.write_all(&bytes[..length]).await.unwrap();
        if flight.push(&bytes[..length]) != Progress::Partial {
            break;
        }
    }
    let hello = flight.into_bytes();
    let (_, record) = parse_tls_plaintext(&hello).unwrap();
    let TlsMessage::Handshake(TlsMessageHandshake::ClientHello(hello)) = &record.msg[0] else {
        panic!("{record:?}")
    };
    let (_, extensions) = parse_tls_client_hello_extensions(hello.ext.unwrap()).unwrap();
    let is_ticket =
        |extension: &TlsExtension<'_>| matches!(extension, TlsExtension::PreSharedKey(_));
    extensions.iter().any(is_ticket)
}
