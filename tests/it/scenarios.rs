//! Life-cycle scripts that were recorded on real OpenSSL, replayed over gRPC.
//!
//! The scripts move bytes between two objects; here each object is a connection of a daemon, and the runner is the wire.
//! An answer is a line of JSON-like pairs, and `expect` looks for pairs in the last one.

use std::{collections::HashMap, fmt::Write as _, fs, path::Path};

use tls_sessiond::proto as pb;

use crate::{
    harness::{TestDaemon, new},
    pki,
};

#[derive(Default)]
struct Object {
    id: String,
    role: pb::Role,
    peer: Option<String>,
    inbox: Vec<u8>,
    ended: bool,
}

/// A session as both sides know it.
#[derive(Clone, Default)]
struct Named {
    client: String,
    server: String,
    /// Whether the script took it from the server's object.
    of_server: bool,
}

struct Replay {
    daemon: TestDaemon,
    context: String,
    objects: HashMap<String, Object>,
    sessions: HashMap<String, Named>,
    answer: String,
    _folder: tempfile::TempDir,
}

impl Replay {
    async fn begin(words: &[&str]) -> Self {
        let option = |name: &str| words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        let mut options = Vec::new();
        if option("quiet") == Some("1") {
            options.push("quiet-shutdown");
        }
        if option("ignore_eof") == Some("1") {
            options.push("ignore-unexpected-eof");
        }
        let folder = tempfile::tempdir().unwrap();
        pki::localhost(folder.path());
        let mut config = String::new();
        for (name, versions) in [("tls12", "\"1.2\""), ("tls13", "\"1.3\""), ("any", "\"1.2\", \"1.3\"")] {
            write!(
                config,
                "[[context]]\nname = \"{name}\"\nsession_id_context = \"scenario\"\nversions = [{versions}]\n\
                 certificate = \"{0}/tls.crt\"\nkey = \"{0}/tls.key\"\nca = \"{0}/ca.pem\"\noptions = {options:?}\n\
                 client_sessions = \"explicit\"\ncache_entries_max = {1}\ntickets = {2}\n",
                folder.path().display(),
                option("size").unwrap_or("20480"),
                option("numtickets").unwrap_or("2"),
            )
            .unwrap();
        }
        Self {
            daemon: TestDaemon::with(&config).await,
            context: words[0].into(),
            objects: HashMap::new(),
            sessions: HashMap::new(),
            answer: String::new(),
            _folder: folder,
        }
    }

    async fn command(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        self.answer = match words.as_slice() {
            ["expect", ..] => return self.expect(line.trim_start_matches("expect").trim(), true),
            ["expect!", ..] => return self.expect(line.trim_start_matches("expect!").trim(), false),
            ["new", role, name, context @ ..] => self.make(role, name, context.first().copied()).await,
            ["pair", a, b] => self.pair(a, b),
            ["handshake", a, b] => self.handshake(a, b).await,
            ["hs", x] => self.step(x).await,
            ["open", c, s, session @ ..] => self.open(c, s, session.first().copied()).await,
            ["bye", c, s] => self.bye(c, s).await,
            ["read", x] => self.read(x).await,
            ["write", x, text] => self.write(x, text).await,
            ["shutdown", x] => self.shutdown(x).await,
            ["set_shutdown", x, mask] => self.set_shutdown(x, mask.parse().unwrap()).await,
            ["get_shutdown", x] => self.state(x, "").await,
            ["clear", x] => self.clear(x).await,
            ["free", x] => self.free(x).await,
            ["get_session", x, name] => self.get_session(x, name).await,
            ["set_session", x, name] => self.set_session(x, name).await,
            ["cache_has", name] => self.cache_has(name).await,
            ["cache_count"] => format!("{{\"count\":{},", self.daemon.server_sessions().await),
            ["cache_count", "client"] => format!("{{\"count\":{},", self.offered_unasked().await),
            ["remove", name] => self.remove(name).await,
            ["probe", name] => self.probe(name).await,
            ["reset_transport", a, b] => self.pair(a, b),
            ["eof", x] => self.eof(x),
            ["cut", a, b] => self.eof(a) + &self.eof(b),
            ["inject", x, hex] => self.inject(x, hex),
            other => panic!("no such command: {other:?}"),
        };
        write!(self.answer, "\"cache\":{}}}", self.daemon.server_sessions().await).unwrap();
    }

    fn expect(&self, pairs: &str, wanted: bool) {
        for pair in pairs.split(",\"").map(|pair| format!("\"{}", pair.trim_start_matches('"'))) {
            let ends = self.answer.match_indices(&pair).any(|(at, _)| {
                let after = self.answer[at + pair.len()..].chars().next();
                !pair.contains(':') || matches!(after, Some(',' | '}'))
            });
            assert_eq!(ends, wanted, "expected{} {pair} in {}", if wanted { "" } else { " no" }, self.answer);
        }
    }

    async fn make(&mut self, role: &str, name: &str, context: Option<&str>) -> String {
        let role = if role == "server" { pb::Role::Server } else { pb::Role::Client };
        let request = new(context.unwrap_or(&self.context), role);
        let made =
            self.daemon.connections().new_connection(request).await.unwrap().into_inner().connection.unwrap();
        self.objects.insert(name.into(), Object { id: made.id, role, ..Object::default() });
        self.state(name, "").await
    }

    fn pair(&mut self, a: &str, b: &str) -> String {
        for (x, peer) in [(a, b), (b, a)] {
            let object = self.objects.get_mut(x).unwrap();
            object.peer = Some(peer.into());
            object.inbox.clear();
            object.ended = false;
        }
        "{".into()
    }

    fn eof(&mut self, x: &str) -> String {
        self.objects.get_mut(x).unwrap().ended = true;
        "{".into()
    }

    fn send(&mut self, from: &str, bytes: &[u8]) {
        if let Some(peer) = self.objects[from].peer.clone()
            && let Some(peer) = self.objects.get_mut(&peer)
        {
            peer.inbox.extend_from_slice(bytes);
        }
    }

    fn inject(&mut self, x: &str, hex: &str) -> String {
        let bytes: Vec<u8> =
            (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect();
        self.send(x, &bytes);
        "{".into()
    }

    /// One Exchange with what is queued. `None`: the call was refused.
    async fn exchange(&mut self, x: &str, plaintext: &str) -> Option<pb::ExchangeResponse> {
        let object = self.objects.get_mut(x).unwrap();
        let request = pb::ExchangeRequest {
            connection_id: object.id.clone(),
            ciphertext: object.inbox.clone().into(),
            plaintext: plaintext.to_owned().into_bytes().into(),
            end_of_stream: object.ended,
        };
        let response = self.daemon.connections().exchange(request).await.ok()?.into_inner();
        self.objects.get_mut(x).unwrap().inbox.clear();
        self.send(x, &response.ciphertext);
        Some(response)
    }

    /// What every answer about an object holds.
    async fn state(&self, x: &str, before: &str) -> String {
        let seen = self.daemon.get(&self.objects[x].id).await;
        let flags = seen.shutdown.unwrap();
        let version = match seen.version() {
            pb::ProtocolVersion::Tls12 => "TLSv1.2",
            pb::ProtocolVersion::Tls13 => "TLSv1.3",
            pb::ProtocolVersion::Unspecified => "",
        };
        let session =
            if seen.session_id.is_empty() { "null".into() } else { format!("\"{}\"", seen.session_id) };
        format!(
            "{{{before}\"flags\":{},\"in_init\":{},\"reused\":{},\"ver\":\"{version}\",\"sess\":{session},",
            u8::from(flags.sent) | u8::from(flags.received) << 1,
            u8::from(seen.state() != pb::ConnectionState::Established),
            u8::from(seen.session_reused),
        )
    }

    async fn handshake(&mut self, a: &str, b: &str) -> String {
        loop {
            let mut made = 0;
            for x in [a, b] {
                made += self.exchange(x, "").await.map_or(0, |response| response.ciphertext.len());
            }
            if made == 0 {
                break;
            }
        }
        let mut ok = 1;
        for x in [a, b] {
            let seen = self.daemon.get(&self.objects[x].id).await;
            ok &= u8::from(seen.state() == pb::ConnectionState::Established);
        }
        self.state(a, &format!("\"ok\":{ok},")).await
    }

    async fn step(&mut self, x: &str) -> String {
        let done = self.exchange(x, "").await.is_some_and(|response| {
            response.connection.is_some_and(|seen| seen.state() == pb::ConnectionState::Established)
        });
        self.state(x, &format!("\"ret\":{},", if done { 1 } else { -1 })).await
    }

    async fn open(&mut self, c: &str, s: &str, session: Option<&str>) -> String {
        self.make("client", c, None).await;
        self.make("server", s, None).await;
        self.pair(c, s);
        if let Some(session) = session {
            self.set_session(c, session).await;
        }
        self.handshake(c, s).await
    }

    async fn bye(&mut self, c: &str, s: &str) -> String {
        self.shutdown(c).await;
        self.read(s).await;
        self.shutdown(s).await;
        self.read(c).await;
        self.free(s).await;
        self.free(c).await
    }

    async fn read(&mut self, x: &str) -> String {
        let ended = self.objects[x].ended;
        let answer = match self.exchange(x, "").await {
            None => "\"ret\":-1,".to_owned(),
            Some(response) if !response.plaintext.is_empty() => {
                let text = String::from_utf8(response.plaintext.to_vec()).unwrap();
                format!("\"ret\":{},\"data\":\"{text}\",", text.len())
            }
            Some(response) => {
                let seen = response.connection.unwrap();
                let received = seen.shutdown.unwrap().received;
                let failed = seen.state() == pb::ConnectionState::Failed;
                match response.alert {
                    Some(alert) => format!("\"ret\":{},", if alert.received { 0 } else { -1 }),
                    None if failed => format!("\"ret\":{},", if ended { 0 } else { -1 }),
                    None if received => "\"ret\":0,\"err\":\"ZERO_RETURN\",".to_owned(),
                    None => "\"ret\":-1,\"err\":\"WANT_READ\",".to_owned(),
                }
            }
        };
        self.state(x, &answer).await
    }

    /// SSL_write runs the handshake first; afterwards it does not read.
    async fn write(&mut self, x: &str, text: &str) -> String {
        let established =
            self.daemon.get(&self.objects[x].id).await.state() == pb::ConnectionState::Established;
        let ret = if established {
            let inbox = std::mem::take(&mut self.objects.get_mut(x).unwrap().inbox);
            let written = self.exchange(x, text).await.is_some();
            self.objects.get_mut(x).unwrap().inbox = inbox;
            if written { text.len().to_string() } else { "-1".into() }
        } else {
            assert!(self.exchange(x, text).await.is_none(), "plaintext before the handshake was taken");
            self.exchange(x, "").await;
            "-1".into()
        };
        self.state(x, &format!("\"ret\":{ret},")).await
    }

    /// SSL_shutdown looks for the peer's close_notify once it has sent its own.
    async fn shutdown(&mut self, x: &str) -> String {
        let id = self.objects[x].id.clone();
        if self.daemon.get(&id).await.shutdown.unwrap().sent {
            self.exchange(x, "").await;
        }
        let request = pb::ShutdownRequest { connection_id: id };
        let ret = match self.daemon.connections().shutdown(request).await {
            Err(_) => -1,
            Ok(response) => {
                let response = response.into_inner();
                self.send(x, &response.ciphertext);
                match response.status() {
                    pb::ShutdownStatus::Sent => 0,
                    pb::ShutdownStatus::Complete => 1,
                    pb::ShutdownStatus::WantRead | pb::ShutdownStatus::Unspecified => -1,
                }
            }
        };
        self.state(x, &format!("\"ret\":{ret},")).await
    }

    async fn set_shutdown(&mut self, x: &str, mask: u8) -> String {
        let flags = pb::ShutdownFlags { sent: mask & 1 != 0, received: mask & 2 != 0 };
        let request =
            pb::SetShutdownRequest { connection_id: self.objects[x].id.clone(), shutdown: Some(flags) };
        self.daemon.connections().set_shutdown(request).await.unwrap();
        self.state(x, "").await
    }

    async fn clear(&mut self, x: &str) -> String {
        let request = pb::ClearRequest { connection_id: self.objects[x].id.clone() };
        let ret = u8::from(self.daemon.connections().clear(request).await.is_ok());
        self.state(x, &format!("\"ret\":{ret},")).await
    }

    async fn free(&mut self, x: &str) -> String {
        let object = self.objects.remove(x).unwrap();
        let request = pb::FreeRequest { connection_id: object.id, allow_missing: false };
        self.daemon.connections().free(request).await.unwrap();
        "{".into()
    }

    async fn session_of(&self, x: &str) -> String {
        let request = pb::GetSessionRequest { connection_id: self.objects[x].id.clone() };
        let session = self.daemon.connections().get_session(request).await.unwrap().into_inner().session;
        session.map(|session| session.id).unwrap_or_default()
    }

    async fn get_session(&mut self, x: &str, name: &str) -> String {
        let own = self.session_of(x).await;
        let peer = self.objects[x].peer.clone().filter(|peer| self.objects.contains_key(peer));
        let peers = match peer {
            Some(peer) => self.session_of(&peer).await,
            None => String::new(),
        };
        let of_server = self.objects[x].role == pb::Role::Server;
        let (client, server) = if of_server { (peers, own) } else { (own, peers) };
        self.sessions.insert(name.into(), Named { client, server, of_server });
        "{".into()
    }

    async fn set_session(&mut self, x: &str, name: &str) -> String {
        let object = &self.objects[x];
        let named = self.sessions.get(name).cloned().unwrap_or_default();
        let session_id = if object.role == pb::Role::Server { named.server } else { named.client };
        let request = pb::SetSessionRequest { connection_id: object.id.clone(), session_id };
        let ret = u8::from(self.daemon.connections().set_session(request).await.is_ok());
        self.state(x, &format!("\"ret\":{ret},")).await
    }

    async fn cache_has(&self, name: &str) -> String {
        let named = &self.sessions[name];
        let request = pb::ListSessionsRequest::default();
        let listed = self.daemon.sessions().list_sessions(request).await.unwrap().into_inner().sessions;
        let has = listed.iter().any(|entry| entry.role() == pb::Role::Server && entry.id == named.server);
        let same = has && named.of_server;
        format!("{{\"has\":{},\"same_object\":{},", u8::from(has), u8::from(same))
    }

    async fn remove(&self, name: &str) -> String {
        let request = pb::RemoveSessionRequest {
            context: self.context.clone(),
            session_id: self.sessions[name].server.clone(),
            role: pb::Role::Server.into(),
        };
        let removed = self.daemon.sessions().remove_session(request).await.unwrap().into_inner().removed;
        format!("{{\"ret\":{},", u8::from(removed))
    }

    async fn probe(&mut self, name: &str) -> String {
        let answer = self.open("probe-client", "probe-server", Some(name)).await;
        self.bye("probe-client", "probe-server").await;
        answer
    }

    /// How many client sessions a new connection would be offered that names none: what a context in SSL_SESS_CACHE_CLIENT
    /// mode would look up by itself.
    async fn offered_unasked(&mut self) -> u8 {
        let answer = self.open("unasked-client", "unasked-server", None).await;
        self.bye("unasked-client", "unasked-server").await;
        u8::from(answer.contains("\"reused\":1"))
    }
}

#[tokio::test]
async fn scenarios_recorded_on_openssl() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/scenarios");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 45, "{} scenarios", files.len());
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let mut lines =
            text.lines().enumerate().filter(|(_, line)| !line.starts_with('#') && !line.trim().is_empty());
        let (_, first) = lines.next().unwrap();
        let words: Vec<&str> = first.strip_prefix("ctx ").unwrap().split_whitespace().collect();
        let mut replay = Replay::begin(&words).await;
        for (number, line) in lines {
            // Names the place for whoever reads a failure.
            println!("{}:{}: {line}   after {}", file.display(), number + 1, replay.answer);
            replay.command(line).await;
        }
        replay.daemon.stop().await;
    }
}
