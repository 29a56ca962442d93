//! The life-cycle scripts on connections whose TLS runs in the worker, reported through one Attach.
//!
//! The runner is the worker and simulates its TLS library. It moves records from object to object
//! and reports the results to the daemon. It asks the daemon for everything that decides: the
//! attached session, the pinned version, the flags, and whether a session exists. Expectations are
//! compared only with answers of the daemon. Every script is run.

use std::collections::{HashMap, VecDeque};

use prost_types::Timestamp;
use tls_sessiond_proto::{
    self as pb, ProtocolVersion as Version, answer::Result as Answered, call::Method,
};

use crate::{
    script::{Engine, Named, Script, Stage, Unseen, returned, scripts},
    worker_engine::{Stream, call},
};

const FORMAT: &str = "scripted";
const UNEXPECTED_MESSAGE: u32 = 10;
const BAD_RECORD_MAC: u32 = 20;
const DECODE_ERROR: u32 = 50;
const PROTOCOL_VERSION: u32 = 70;

/// A record on the wire, with the parts that concern sessions.
#[derive(Debug)]
enum Record {
    /// `offered` is the server's id of the session.
    ClientHello {
        versions: Vec<Version>,
        offered: Option<String>,
    },
    /// The rest of the server's flight. The id is that of the session, new or resumed; TLS 1.3
    /// ignores it.
    ServerHello {
        version: Version,
        resumed: bool,
        id: String,
    },
    Finished,
    Ticket(String),
    Data,
    CloseNotify,
    Alert(u32),
    /// Bytes that cannot be decrypted.
    Noise,
}

/// A session that a handshake offers or resumes.
struct Offer {
    /// The daemon's id on this side.
    id: String,
    /// The server's id.
    server: String,
    authenticated: Option<Timestamp>,
}

/// The state of the library.
enum Progress {
    Before,
    /// A client has sent its ClientHello.
    Offering(Option<Offer>),
    /// The version is agreed on. Without `resumes` it is a full handshake, and its session gets
    /// this id.
    Agreed {
        version: Version,
        resumes: Option<Offer>,
        id: String,
    },
    Done(Version),
    Failed,
}

/// An object of the library.
struct Object {
    progress: Progress,
    /// The session named by SSL_set_session, until a handshake has used it. `None`: the attached
    /// session.
    named: Option<Named>,
    /// When the peers authenticated, if an earlier handshake did that.
    authenticated: Option<Timestamp>,
    inbox: VecDeque<Record>,
    ended: bool,
}

struct Worker {
    stage: Stage,
    stream: Stream,
    tickets: usize,
    /// The last number of a call or session.
    last: u64,
    objects: HashMap<String, Object>,
}

const fn unseen(operation: &'static str, key: &'static str, why: &'static str) -> Unseen {
    Unseen {
        operation,
        key,
        why,
    }
}

fn alias(x: &str) -> String {
    format!("@{x}")
}

impl Worker {
    fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn object(&mut self, x: &str) -> &mut Object {
        self.objects.get_mut(x).unwrap()
    }

    fn role(&self, x: &str) -> pb::Role {
        self.stage.actors[x].role
    }

    fn send(&mut self, x: &str, record: Record) {
        if let Some(peer) = self.stage.peer(x) {
            self.objects.get_mut(peer).unwrap().inbox.push_back(record);
        }
    }

    /// Sends one batch and returns its answers.
    async fn batch(&mut self, calls: Vec<(Method, String)>) -> Vec<Answered> {
        let calls: Vec<_> = calls
            .into_iter()
            .map(|(method, alias)| pb::Call {
                alias,
                ..call(self.number(), method)
            })
            .collect();
        let ids: Vec<u64> = calls.iter().map(|call| call.id).collect();
        self.stream.send(calls).await;
        let answers = self.stream.answers(ids.len()).await;
        assert_eq!(
            answers.iter().map(|answer| answer.id).collect::<Vec<_>>(),
            ids
        );
        answers
            .into_iter()
            .map(|answer| answer.result.unwrap())
            .collect()
    }

    /// Sends calls that cannot be refused.
    async fn tell(&mut self, methods: Vec<Method>) -> Vec<Answered> {
        let answers = self
            .batch(
                methods
                    .into_iter()
                    .map(|method| (method, String::new()))
                    .collect(),
            )
            .await;
        for answer in &answers {
            assert!(!matches!(answer, Answered::Error(_)), "refused: {answer:?}");
        }
        answers
    }

    async fn ask(&mut self, method: Method) -> Answered {
        self.batch(vec![(method, String::new())]).await.remove(0)
    }

    async fn lookup(&mut self, request: pb::LookupSessionRequest) -> pb::LookupSessionResponse {
        let request = pb::LookupSessionRequest {
            format: FORMAT.into(),
            ..request
        };
        match self
            .tell(vec![Method::LookupSession(request.into())])
            .await
            .remove(0)
        {
            Answered::LookupSession(found) => *found,
            other => panic!("unexpected answer: {other:?}"),
        }
    }

    /// Looks up the session of this id for a client to offer or a server to resume.
    async fn find(&mut self, x: &str, session_id: &str) -> Option<(Version, Offer)> {
        let request = pb::LookupSessionRequest {
            context: self.stage.look(x).await.context,
            role: self.role(x).into(),
            session_id: session_id.into(),
            server_name: "localhost".into(),
            ..Default::default()
        };
        let found = self.lookup(request).await;
        let session = found.session?;
        let offer = Offer {
            server: String::from_utf8(found.data.to_vec()).unwrap(),
            authenticated: session.authenticate_time,
            id: session.id.clone(),
        };
        Some((session.version(), offer))
    }

    /// Returns the versions of the object: the pinned one, or those of its context.
    async fn versions(&self, x: &str) -> Vec<Version> {
        let seen = self.stage.look(x).await;
        match (seen.pinned_version(), seen.context.as_str()) {
            (Version::Unspecified, "tls12") => vec![Version::Tls12],
            (Version::Unspecified, "tls13") => vec![Version::Tls13],
            (Version::Unspecified, _) => vec![Version::Tls12, Version::Tls13],
            (pinned, _) => vec![pinned],
        }
    }

    /// Begins the handshake if it has not begun, and reads the queued records.
    async fn run(&mut self, x: &str) {
        if self.role(x) == pb::Role::Client && matches!(self.object(x).progress, Progress::Before) {
            self.begin_handshake(x).await;
        }
        while !matches!(self.object(x).progress, Progress::Failed) {
            let Some(record) = self.object(x).inbox.pop_front() else {
                break;
            };
            self.take(x, record).await;
        }
        if self.object(x).ended
            && !matches!(self.object(x).progress, Progress::Failed)
            && !self.stage.look(x).await.shutdown.unwrap().received
        {
            self.fail(x, DECODE_ERROR).await;
        }
    }

    async fn begin_handshake(&mut self, x: &str) {
        let named = self.object(x).named.clone();
        let id = match &named {
            Some(named) => named.client.clone(),
            None => self.stage.look(x).await.session_id,
        };
        let versions = self.versions(x).await;
        let found = if id.is_empty() {
            None
        } else {
            self.find(x, &id).await
        };
        let offer = match (found, named) {
            (Some((version, offer)), _) => Some(offer).filter(|_| versions.contains(&version)),
            // The script holds a session that has left the cache. The client offers it, and the
            // server decides.
            (None, Some(held)) => Some(Offer {
                id,
                server: held.server,
                authenticated: None,
            }),
            (None, None) => None,
        };
        let offered = offer.as_ref().map(|offer| offer.server.clone());
        self.object(x).progress = Progress::Offering(offer);
        self.send(x, Record::ClientHello { versions, offered });
    }

    async fn take(&mut self, x: &str, record: Record) {
        let progress = std::mem::replace(&mut self.object(x).progress, Progress::Failed);
        match (record, progress) {
            (Record::ClientHello { versions, offered }, Progress::Before) => {
                self.answer_hello(x, versions, offered).await;
            }
            (
                Record::ServerHello {
                    version,
                    resumed,
                    id,
                },
                Progress::Offering(offer),
            ) => {
                let resumes = offer.filter(|_| resumed);
                // A client has the last word here and knows everything it needs.
                let done = resumed || version == Version::Tls13;
                self.object(x).progress = Progress::Agreed {
                    version,
                    resumes,
                    id,
                };
                if done {
                    self.finish(x).await;
                }
                self.send(x, Record::Finished);
            }
            (Record::Finished, agreed @ Progress::Agreed { .. }) => {
                let answers = matches!(
                    &agreed,
                    Progress::Agreed {
                        version: Version::Tls12,
                        resumes: None,
                        ..
                    }
                ) && self.role(x) == pb::Role::Server;
                self.object(x).progress = agreed;
                self.finish(x).await;
                if answers {
                    self.send(x, Record::Finished);
                }
            }
            (Record::Ticket(id), Progress::Done(version)) => {
                self.object(x).progress = Progress::Done(version);
                let put = self.put(x, version, &id);
                self.tell(vec![put]).await;
            }
            (Record::Data, done @ Progress::Done(_)) => self.object(x).progress = done,
            (Record::CloseNotify, done @ Progress::Done(_)) => {
                self.object(x).progress = done;
                let sent = self.stage.look(x).await.shutdown.unwrap().sent;
                self.set_shutdown(
                    x,
                    pb::ShutdownFlags {
                        sent,
                        received: true,
                    },
                )
                .await;
            }
            (Record::Alert(code), _) => self.report(x, code, true).await,
            (Record::Noise, Progress::Done(_)) => self.fail(x, BAD_RECORD_MAC).await,
            (Record::Noise, _) => self.fail(x, UNEXPECTED_MESSAGE).await,
            (record, _) => panic!("{x} did not expect {record:?}"),
        }
    }

    async fn answer_hello(&mut self, x: &str, versions: Vec<Version>, offered: Option<String>) {
        let spoken = self.versions(x).await;
        let Some(version) = versions
            .into_iter()
            .filter(|version| spoken.contains(version))
            .max()
        else {
            return self.fail(x, PROTOCOL_VERSION).await;
        };
        let found = match offered {
            Some(id) => self.find(x, &id).await,
            None => None,
        };
        let resumes = found
            .filter(|(made, _)| *made == version)
            .map(|(_, offer)| offer);
        let id = match &resumes {
            Some(offer) => offer.id.clone(),
            None => format!("{:064x}", self.number()),
        };
        let hello = Record::ServerHello {
            version,
            resumed: resumes.is_some(),
            id: id.clone(),
        };
        self.object(x).progress = Progress::Agreed {
            version,
            resumes,
            id,
        };
        self.send(x, hello);
    }

    /// Finishes the handshake. Reports the session that it resumed and the sessions that it made.
    async fn finish(&mut self, x: &str) {
        let object = self.object(x);
        let Progress::Agreed {
            version,
            resumes,
            id,
        } = std::mem::replace(&mut object.progress, Progress::Failed)
        else {
            panic!("{x} has not agreed on a version")
        };
        object.progress = Progress::Done(version);
        object.named = None;
        object.authenticated = resumes.as_ref().and_then(|offer| offer.authenticated);
        let server = self.role(x) == pb::Role::Server;
        let (mut told, mut tickets) = (Vec::new(), Vec::new());
        match (version, &resumes) {
            (Version::Tls12, None) => told.push(self.put(x, version, &id)),
            (Version::Tls13, _) if server => {
                let count = if resumes.is_some() { 1 } else { self.tickets };
                tickets.extend((0..count).map(|_| format!("{:064x}", self.number())));
            }
            // A TLS 1.2 resumption makes none, and a TLS 1.3 client waits for tickets.
            _ => {}
        }
        if let Some(offer) = resumes {
            let request = pb::SetSessionRequest {
                connection_id: alias(x),
                session_id: offer.id,
            };
            told.push(Method::SetSession(request));
        }
        told.extend(tickets.iter().map(|id| self.put(x, version, id)));
        if !told.is_empty() {
            self.tell(told).await;
        }
        tickets
            .into_iter()
            .for_each(|id| self.send(x, Record::Ticket(id)));
    }

    /// Returns the put of a new session. Its encoding is the server's id.
    fn put(&self, x: &str, version: Version, id: &str) -> Method {
        let server = self.role(x) == pb::Role::Server;
        let request = pb::PutSessionRequest {
            connection_id: alias(x),
            session_id: if server { id.into() } else { String::new() },
            data: id.to_owned().into(),
            format: FORMAT.into(),
            single_use: version == Version::Tls13,
            version: version.into(),
            server_name: "localhost".into(),
            authenticate_time: self.objects[x].authenticated,
            ..Default::default()
        };
        Method::PutSession(request.into())
    }

    /// Ends the connection with an alert, as the library does.
    async fn fail(&mut self, x: &str, code: u32) {
        self.send(x, Record::Alert(code));
        self.report(x, code, false).await;
    }

    async fn report(&mut self, x: &str, code: u32, received: bool) {
        self.object(x).progress = Progress::Failed;
        let alert = Some(pb::Alert {
            code,
            received,
            ..Default::default()
        });
        let request = pb::ReportAlertRequest {
            connection_id: alias(x),
            alert,
        };
        self.tell(vec![Method::ReportAlert(request)]).await;
    }
}

impl Engine for Worker {
    const UNSEEN: &'static [Unseen] = &[
        unseen(
            "hs",
            "ret",
            "known to the library only; the worker reports a finished handshake",
        ),
        unseen("hs", "reused", "reported when the handshake is finished"),
        unseen(
            "read",
            "ret",
            "known to the library only; the daemon carries no data",
        ),
        unseen("read", "data", "the daemon carries no data"),
        unseen(
            "read",
            "ZERO_RETURN",
            "known to the library only; the worker reports RECEIVED",
        ),
        unseen(
            "write",
            "ret",
            "known to the library only; the daemon carries no data",
        ),
    ];

    async fn begin(script: &Script, stage: Stage) -> Self {
        Self {
            stream: Stream::attach(&stage.daemon).await,
            stage,
            tickets: script
                .option("numtickets")
                .map_or(2, |count| count.parse().unwrap()),
            last: 0,
            objects: HashMap::new(),
        }
    }

    fn stage(&mut self) -> &mut Stage {
        &mut self.stage
    }

    fn end(self) -> Stage {
        self.stage
    }

    async fn make(&mut self, wanted: &[(&str, pb::NewRequest)]) -> Vec<String> {
        let calls = wanted.iter().map(|(name, request)| {
            let request = pb::NewRequest {
                engine: pb::Engine::Worker.into(),
                ..request.clone()
            };
            (Method::New(request.into()), alias(name))
        });
        let answers = self.batch(calls.collect()).await;
        let mut ids = Vec::new();
        for ((name, _), answer) in wanted.iter().zip(answers) {
            let Answered::New(made) = answer else {
                panic!("refused: {answer:?}")
            };
            ids.push(made.connection.unwrap().id);
            let object = Object {
                progress: Progress::Before,
                named: None,
                authenticated: None,
                inbox: VecDeque::new(),
                ended: false,
            };
            self.objects.insert((*name).into(), object);
        }
        ids
    }

    /// SSL_clear(3). A session named before the handshake by SSL_set_session stays.
    async fn clear(&mut self, x: &str) -> bool {
        self.object(x).progress = Progress::Before;
        self.object(x).authenticated = None;
        let request = pb::ClearRequest {
            connection_id: alias(x),
        };
        matches!(self.ask(Method::Clear(request)).await, Answered::Clear(_))
    }

    async fn free(&mut self, gone: &[&str]) {
        let free = |x: &&str| pb::FreeRequest {
            connection_id: alias(x),
            allow_missing: false,
        };
        self.tell(gone.iter().map(|x| Method::Free(free(x))).collect())
            .await;
        gone.iter().for_each(|x| drop(self.objects.remove(*x)));
    }

    /// SSL_shutdown reads the peer's close_notify once it has sent its own.
    async fn shutdown(&mut self, x: &str) -> i8 {
        // The library itself refuses it during a handshake, of which the daemon does not know.
        if !matches!(self.object(x).progress, Progress::Done(_)) {
            return -1;
        }
        let again = self.stage.look(x).await.shutdown.unwrap().sent;
        if again {
            self.run(x).await;
        }
        let request = pb::ShutdownRequest {
            connection_id: alias(x),
        };
        match self.ask(Method::Shutdown(request)).await {
            Answered::Shutdown(closed) => {
                if !again {
                    self.send(x, Record::CloseNotify);
                }
                returned(closed.status())
            }
            Answered::Error(_) => -1,
            other => panic!("unexpected answer: {other:?}"),
        }
    }

    async fn set_shutdown(&mut self, x: &str, flags: pb::ShutdownFlags) {
        let request = pb::SetShutdownRequest {
            connection_id: alias(x),
            shutdown: Some(flags),
        };
        self.tell(vec![Method::SetShutdown(request)]).await;
    }

    /// For a worker's connection SetSession reports what was resumed. Before that only the library
    /// knows the named session. `None` detaches.
    async fn set_session(&mut self, x: &str, named: Option<Named>) -> bool {
        self.object(x).named = named;
        if self.object(x).named.is_some() {
            return true;
        }
        let request = pb::SetSessionRequest {
            connection_id: alias(x),
            session_id: String::new(),
        };
        matches!(
            self.ask(Method::SetSession(request)).await,
            Answered::SetSession(_)
        )
    }

    async fn remove(&mut self, request: pb::RemoveSessionRequest) -> bool {
        match self
            .tell(vec![Method::RemoveSession(request)])
            .await
            .remove(0)
        {
            Answered::RemoveSession(removed) => removed.removed,
            other => panic!("unexpected answer: {other:?}"),
        }
    }

    async fn offered_unasked(&mut self) -> u8 {
        let request = pb::LookupSessionRequest {
            context: self.stage.context.clone(),
            role: pb::Role::Client.into(),
            server_name: "localhost".into(),
            ..Default::default()
        };
        u8::from(self.lookup(request).await.found)
    }

    async fn advance(&mut self, x: &str) -> usize {
        let waiting = |worker: &Self| {
            worker
                .stage
                .peer(x)
                .map_or(0, |peer| worker.objects[peer].inbox.len())
        };
        let before = waiting(self);
        self.run(x).await;
        waiting(self) - before
    }

    async fn step(&mut self, x: &str) -> String {
        self.run(x).await;
        String::new()
    }

    async fn read(&mut self, x: &str) -> String {
        self.run(x).await;
        String::new()
    }

    /// SSL_write runs the handshake first.
    async fn write(&mut self, x: &str, _: &str) -> String {
        match self.object(x).progress {
            Progress::Done(_) => self.send(x, Record::Data),
            _ => self.run(x).await,
        }
        String::new()
    }

    fn renew(&mut self, x: &str) {
        self.object(x).inbox.clear();
        self.object(x).ended = false;
    }

    fn cut(&mut self, x: &str) {
        self.object(x).ended = true;
    }

    fn inject(&mut self, x: &str, _: Vec<u8>) {
        self.send(x, Record::Noise);
    }
}

#[tokio::test]
async fn openssl_scenarios_hold_for_workers() {
    let mut met = Vec::new();
    for script in scripts() {
        met.extend(script.play::<Worker>().await);
    }
    for unseen in Worker::UNSEEN {
        assert!(
            met.contains(&unseen),
            "no script has this expectation: {unseen:?}"
        );
    }
}
