//! The language of the life-cycle scripts that were recorded on real OpenSSL. An engine runs them.
//!
//! A script moves bytes between two objects. Here each object is a connection of a daemon, and the
//! engine carries the bytes. Each command returns a line of JSON-like pairs, and `expect` searches
//! the last line for pairs.

use std::{
    collections::HashMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use tls_sessiond_proto as pb;

use crate::{
    harness::{TestDaemon, new},
    pki,
};

/// A script file. Its first line names the context, and the other lines are commands.
pub(crate) struct Script {
    path: PathBuf,
    context: Vec<String>,
    lines: Vec<(usize, String)>,
}

/// Reads all scripts of the folder.
pub(crate) fn scripts() -> Vec<Script> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/scenarios");
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(paths.len() >= 45, "{} scenarios", paths.len());
    paths.into_iter().map(Script::read).collect()
}

impl Script {
    fn read(path: PathBuf) -> Self {
        let text = fs::read_to_string(&path).unwrap();
        let mut lines = text
            .lines()
            .enumerate()
            .map(|(place, line)| (place + 1, line.to_owned()))
            .filter(|(_, line)| !line.starts_with('#') && !line.trim().is_empty());
        let (_, first) = lines.next().unwrap();
        let context = first
            .strip_prefix("ctx ")
            .unwrap()
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        Self {
            context,
            lines: lines.collect(),
            path,
        }
    }

    /// Returns the value of a word `name=value` of the first line.
    pub(crate) fn option(&self, name: &str) -> Option<&str> {
        self.context
            .iter()
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }

    /// Runs the script on a daemon of its own. Returns the expectations that this engine cannot
    /// check.
    pub(crate) async fn play<E: Engine>(&self) -> Vec<&'static Unseen> {
        let mut engine = E::begin(self, Stage::new(self).await).await;
        let (mut held, mut unseen) = (0, Vec::new());
        let (mut answer, mut operation) = (String::new(), "");
        for (number, line) in &self.lines {
            // Printed so that a failure shows its place in the script.
            println!("{}:{number}: {line}   after {answer}", self.path.display());
            let words: Vec<&str> = line.split_whitespace().collect();
            let wanted = match words[0] {
                "expect" => true,
                "expect!" => false,
                other => {
                    answer = perform(&mut engine, &words).await;
                    let cached = engine.stage().daemon.server_sessions().await;
                    write!(answer, "\"cache\":{cached}}}").unwrap();
                    operation = other;
                    continue;
                }
            };
            for (key, pair) in pairs(line.trim_start_matches(words[0]).trim()) {
                if let Some(entry) = E::UNSEEN
                    .iter()
                    .find(|it| it.operation == operation && it.key == key)
                {
                    unseen.push(entry);
                    continue;
                }
                let no = if wanted { "" } else { " no" };
                assert_eq!(
                    holds(&answer, &pair),
                    wanted,
                    "expected{no} {pair} in {answer}"
                );
                held += 1;
            }
        }
        engine.end().daemon.stop().await;
        assert!(
            held > 0,
            "{} has no expectation that this engine can check",
            self.path.display()
        );
        unseen
    }
}

/// An expectation that an engine cannot check.
#[derive(Debug, PartialEq)]
pub(crate) struct Unseen {
    pub(crate) operation: &'static str,
    /// The key of the pair in the answer.
    pub(crate) key: &'static str,
    pub(crate) why: &'static str,
}

/// The ids of one session at the client and at the server.
#[derive(Clone, Default)]
pub(crate) struct Named {
    pub(crate) client: String,
    pub(crate) server: String,
    /// Whether the script got it from the server's object.
    of_server: bool,
}

/// An object of a script.
pub(crate) struct Actor {
    /// The id of its connection.
    pub(crate) id: String,
    pub(crate) role: pb::Role,
    pub(crate) peer: Option<String>,
}

/// A daemon, and everything that a script has made there.
pub(crate) struct Stage {
    pub(crate) daemon: TestDaemon,
    pub(crate) context: String,
    pub(crate) actors: HashMap<String, Actor>,
    sessions: HashMap<String, Named>,
    _folder: tempfile::TempDir,
}

impl Stage {
    async fn new(script: &Script) -> Self {
        let mut options = Vec::new();
        if script.option("quiet") == Some("1") {
            options.push("quiet-shutdown");
        }
        if script.option("ignore_eof") == Some("1") {
            options.push("ignore-unexpected-eof");
        }
        let folder = tempfile::tempdir().unwrap();
        pki::localhost(folder.path());
        let mut config = String::new();
        for (name, versions) in [
            ("tls12", "\"1.2\""),
            ("tls13", "\"1.3\""),
            ("any", "\"1.2\", \"1.3\""),
        ] {
            write!(
                config,
                "[[context]]\nname = \"{name}\"\nsession_id_context = \"scenario\"\nversions = [{versions}]\n\
                 certificate = \"{0}/tls.crt\"\nkey = \"{0}/tls.key\"\nca = \"{0}/ca.pem\"\noptions = {options:?}\n\
                 client_sessions = \"explicit\"\ncache_entries_max = {1}\ntickets = {2}\n",
                folder.path().display(),
                script.option("size").unwrap_or("20480"),
                script.option("numtickets").unwrap_or("2"),
            )
            .unwrap();
        }
        Self {
            daemon: TestDaemon::with(&config).await,
            context: script.context[0].clone(),
            actors: HashMap::new(),
            sessions: HashMap::new(),
            _folder: folder,
        }
    }

    /// Returns the daemon's view of an object.
    pub(crate) async fn look(&self, x: &str) -> pb::Connection {
        self.daemon.get(&self.actors[x].id).await
    }

    /// Returns the peer of an object, if the peer still exists.
    pub(crate) fn peer(&self, x: &str) -> Option<&str> {
        self.actors[x]
            .peer
            .as_deref()
            .filter(|peer| self.actors.contains_key(*peer))
    }

    /// Returns the pairs that every answer about an object contains.
    async fn state(&self, x: &str, before: &str) -> String {
        let seen = self.look(x).await;
        let flags = seen.shutdown.unwrap();
        let version = match seen.version() {
            pb::ProtocolVersion::Tls12 => "TLSv1.2",
            pb::ProtocolVersion::Tls13 => "TLSv1.3",
            pb::ProtocolVersion::Unspecified => "",
        };
        let session = if seen.session_id.is_empty() {
            "null".into()
        } else {
            format!("\"{}\"", seen.session_id)
        };
        format!(
            "{{{before}\"flags\":{},\"in_init\":{},\"reused\":{},\"ver\":\"{version}\",\"sess\":{session},",
            u8::from(flags.sent) | u8::from(flags.received) << 1,
            u8::from(seen.state() != pb::ConnectionState::Established),
            u8::from(seen.session_reused),
        )
    }

    async fn session_of(&self, x: &str) -> String {
        let request = pb::GetSessionRequest {
            connection_id: self.actors[x].id.clone(),
        };
        let session = self
            .daemon
            .connections()
            .get_session(request)
            .await
            .unwrap()
            .into_inner()
            .session;
        session.map(|session| session.id).unwrap_or_default()
    }

    async fn get_session(&mut self, x: &str, name: &str) {
        let own = self.session_of(x).await;
        let peers = match self.peer(x) {
            Some(peer) => self.session_of(peer).await,
            None => String::new(),
        };
        let of_server = self.actors[x].role == pb::Role::Server;
        let (client, server) = if of_server {
            (peers, own)
        } else {
            (own, peers)
        };
        self.sessions.insert(
            name.into(),
            Named {
                client,
                server,
                of_server,
            },
        );
    }

    async fn cache_has(&self, name: &str) -> String {
        let named = &self.sessions[name];
        let request = pb::ListSessionsRequest::default();
        let listed = self
            .daemon
            .sessions()
            .list_sessions(request)
            .await
            .unwrap()
            .into_inner()
            .sessions;
        let has = listed
            .iter()
            .any(|entry| entry.role() == pb::Role::Server && entry.id == named.server);
        let same = has && named.of_server;
        format!(
            "{{\"has\":{},\"same_object\":{},",
            u8::from(has),
            u8::from(same)
        )
    }
}

/// Runs the commands of a script.
pub(crate) trait Engine {
    /// Expectations that are skipped.
    const UNSEEN: &'static [Unseen];

    async fn begin(script: &Script, stage: Stage) -> Self;
    fn stage(&mut self) -> &mut Stage;
    fn end(self) -> Stage;

    /// Makes connections and returns their ids.
    async fn make(&mut self, wanted: &[(&str, pb::NewRequest)]) -> Vec<String>;
    async fn clear(&mut self, x: &str) -> bool;
    async fn free(&mut self, gone: &[&str]);
    /// Returns the result of SSL_shutdown(3).
    async fn shutdown(&mut self, x: &str) -> i8;
    async fn set_shutdown(&mut self, x: &str, flags: pb::ShutdownFlags);
    /// Sets the session that the next handshake of the object offers. `None` detaches.
    async fn set_session(&mut self, x: &str, named: Option<Named>) -> bool;
    async fn remove(&mut self, request: pb::RemoveSessionRequest) -> bool;
    /// Returns the number of client sessions that a new connection would be offered without naming
    /// one, as a context in SSL_SESS_CACHE_CLIENT mode looks them up by itself.
    async fn offered_unasked(&mut self) -> u8;

    /// Runs one step of the handshake. Returns the number of bytes sent.
    async fn advance(&mut self, x: &str) -> usize;
    /// `step`, `read` and `write` return the pairs of their answer.
    async fn step(&mut self, x: &str) -> String;
    async fn read(&mut self, x: &str) -> String;
    async fn write(&mut self, x: &str, text: &str) -> String;

    /// Gives the object a new transport.
    fn renew(&mut self, x: &str);
    /// Ends the transport, as this object sees it.
    fn cut(&mut self, x: &str);
    /// Puts bytes on the wire to the peer of this object.
    fn inject(&mut self, x: &str, bytes: Vec<u8>);
}

async fn perform(engine: &mut impl Engine, words: &[&str]) -> String {
    let about = match words {
        ["new", role, name, context @ ..] => {
            let role = if *role == "server" {
                pb::Role::Server
            } else {
                pb::Role::Client
            };
            make(engine, &[(name, role)], context.first().copied()).await;
            (*name, String::new())
        }
        ["handshake", a, b] => return handshake(engine, a, b).await,
        ["open", c, s, session @ ..] => return open(engine, c, s, session.first().copied()).await,
        ["probe", name] => return open_and_close(engine, Some(name)).await,
        ["hs", x] => (*x, engine.step(x).await),
        ["read", x] => (*x, engine.read(x).await),
        ["write", x, text] => (*x, engine.write(x, text).await),
        ["shutdown", x] => (*x, format!("\"ret\":{},", engine.shutdown(x).await)),
        ["set_shutdown", x, mask] => {
            let mask: u8 = mask.parse().unwrap();
            let flags = pb::ShutdownFlags {
                sent: mask & 1 != 0,
                received: mask & 2 != 0,
            };
            engine.set_shutdown(x, flags).await;
            (*x, String::new())
        }
        ["get_shutdown", x] => (*x, String::new()),
        ["clear", x] => (*x, format!("\"ret\":{},", u8::from(engine.clear(x).await))),
        ["set_session", x, name] => (
            *x,
            format!("\"ret\":{},", u8::from(set_session(engine, x, name).await)),
        ),
        other => return arrange(engine, other).await,
    };
    engine.stage().state(about.0, &about.1).await
}

/// Runs a command without an object.
async fn arrange(engine: &mut impl Engine, words: &[&str]) -> String {
    match words {
        ["pair" | "reset_transport", a, b] => pair(engine, a, b),
        ["bye", c, s] => bye(engine, c, s).await,
        ["free", x] => free(engine, &[x]).await,
        ["get_session", x, name] => engine.stage().get_session(x, name).await,
        ["cache_has", name] => return engine.stage().cache_has(name).await,
        ["cache_count"] => {
            return format!(
                "{{\"count\":{},",
                engine.stage().daemon.server_sessions().await
            );
        }
        ["cache_count", "client"] => {
            return format!("{{\"count\":{},", engine.offered_unasked().await);
        }
        ["remove", name] => {
            let stage = engine.stage();
            let request = pb::RemoveSessionRequest {
                context: stage.context.clone(),
                session_id: stage.sessions[*name].server.clone(),
                role: pb::Role::Server.into(),
            };
            return format!("{{\"ret\":{},", u8::from(engine.remove(request).await));
        }
        ["eof", x] => engine.cut(x),
        ["cut", a, b] => [a, b].into_iter().for_each(|x| engine.cut(x)),
        ["inject", x, hex] => {
            let byte = |at: usize| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap();
            engine.inject(x, (0..hex.len() / 2).map(byte).collect());
        }
        other => panic!("no such command: {other:?}"),
    }
    "{".into()
}

async fn make(engine: &mut impl Engine, wanted: &[(&str, pb::Role)], context: Option<&str>) {
    let context = context.unwrap_or(&engine.stage().context).to_owned();
    let requests: Vec<_> = wanted
        .iter()
        .map(|&(name, role)| (name, new(&context, role)))
        .collect();
    let ids = engine.make(&requests).await;
    for (&(name, role), id) in wanted.iter().zip(ids) {
        engine.stage().actors.insert(
            name.into(),
            Actor {
                id,
                role,
                peer: None,
            },
        );
        engine.renew(name);
    }
}

fn pair(engine: &mut impl Engine, a: &str, b: &str) {
    for (x, peer) in [(a, b), (b, a)] {
        engine.stage().actors.get_mut(x).unwrap().peer = Some(peer.into());
        engine.renew(x);
    }
}

async fn handshake(engine: &mut impl Engine, a: &str, b: &str) -> String {
    while engine.advance(a).await + engine.advance(b).await > 0 {}
    let (one, other) = (engine.stage().look(a).await, engine.stage().look(b).await);
    let ok = [&one, &other]
        .iter()
        .all(|seen| seen.state() == pb::ConnectionState::Established);
    // Scripts check one side only.
    assert!(
        !ok || one.session_reused == other.session_reused,
        "{a} and {b} do not agree"
    );
    let ok = u8::from(ok);
    engine.stage().state(a, &format!("\"ok\":{ok},")).await
}

async fn set_session(engine: &mut impl Engine, x: &str, name: &str) -> bool {
    let named = engine.stage().sessions.get(name).cloned();
    assert_eq!(
        named.is_none(),
        name == "NULL",
        "no session is called {name}"
    );
    engine.set_session(x, named).await
}

async fn open(engine: &mut impl Engine, c: &str, s: &str, session: Option<&str>) -> String {
    make(
        engine,
        &[(c, pb::Role::Client), (s, pb::Role::Server)],
        None,
    )
    .await;
    pair(engine, c, s);
    if let Some(session) = session {
        set_session(engine, c, session).await;
    }
    handshake(engine, c, s).await
}

/// Runs a handshake and a clean close on a pair of its own. Returns the answer of the handshake.
pub(crate) async fn open_and_close(engine: &mut impl Engine, session: Option<&str>) -> String {
    let answer = open(engine, "passing-client", "passing-server", session).await;
    bye(engine, "passing-client", "passing-server").await;
    answer
}

async fn bye(engine: &mut impl Engine, c: &str, s: &str) {
    engine.shutdown(c).await;
    engine.read(s).await;
    engine.shutdown(s).await;
    engine.read(c).await;
    free(engine, &[s, c]).await;
}

async fn free(engine: &mut impl Engine, gone: &[&str]) {
    engine.free(gone).await;
    gone.iter()
        .for_each(|x| drop(engine.stage().actors.remove(*x)));
}

/// Returns the pairs of an `expect` with their keys.
fn pairs(text: &str) -> impl Iterator<Item = (&str, String)> {
    text.split(",\"").map(|pair| {
        let pair = pair.trim_start_matches('"');
        (pair.split('"').next().unwrap(), format!("\"{pair}"))
    })
}

fn holds(answer: &str, pair: &str) -> bool {
    answer.match_indices(pair).any(|(at, _)| {
        let after = answer[at + pair.len()..].chars().next();
        !pair.contains(':') || matches!(after, Some(',' | '}'))
    })
}

/// Returns the result of SSL_shutdown(3).
pub(crate) fn returned(status: pb::ShutdownStatus) -> i8 {
    match status {
        pb::ShutdownStatus::Sent => 0,
        pb::ShutdownStatus::Complete => 1,
        pb::ShutdownStatus::WantRead | pb::ShutdownStatus::Unspecified => -1,
    }
}
