//! Every call of every service, with any bytes as its message, on a live service.
//!
//! ```text
//! input: steps: a byte for the kind, and the message after its length; see `World::step`. In a
//!   message a field of two bytes stands for a value that the service made: `#n` the id of a
//!   connection, `$n` the id of a session, `%n` a page token, `!n` ciphertext from an answer.
//! ```
//!
//! The target checks:
//!
//! * Every refusal has an ErrorInfo.
//! * Limits are kept.
//! * Every answer can be read.
//! * Only a caller that names a session's format and binding gets its secret.

use std::{
    cell::OnceCell,
    convert::Infallible,
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes};
use http::Request as HttpRequest;
use http_body::{Body as _, Frame};
use prost::Message;
use tls_sessiond::{
    api::{access::Access, admin::operator::Operator, error::DOMAIN},
    config::Config,
    server::{Api, Ingress, in_process::InProcess},
    shutdown::Shutdown,
};
use tls_sessiond_core::{
    clock::{Clock, ManualClock, WallTime},
    connection::table::{Listed, Most},
    context::Registry,
    state::CoreState,
};
use tls_sessiond_proto::{self as pb, answer::Result as Answered, call::Method};
use tokio::{runtime::Runtime, sync::mpsc};
use tokio_stream::{Stream, wrappers::UnboundedReceiverStream};
use tonic::{
    Code, Request, Status, Streaming,
    body::Body,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::{Service, http::uri::PathAndQuery},
};
use tonic_types::StatusExt;

use super::choices::Choices;
use crate::pki;

const STEPS_MAX: usize = 64;
const STREAMS_MAX: usize = 3;
const CONNECTIONS_MAX: usize = 6;
const SESSIONS_MAX: usize = 12;
const SESSION_BYTES_MAX: usize = 64 << 10;
/// Most clients cannot read a longer answer.
const ANSWER_MAX: usize = 4 << 20;

/// A session that is in the cache from the beginning, and the format and binding that give access
/// to it.
const SECRET: &[u8] = b"a secret that nobody else may read";
const SECRET_FORMAT: &str = "marker";
const SECRET_BINDING: &[u8] = b"bound";
const SECRET_ID: &str = "5ec2e7";

const UNARY: [&str; 19] = [
    "/tls.sessiond.v1.ConnectionService/New",
    "/tls.sessiond.v1.ConnectionService/Clear",
    "/tls.sessiond.v1.ConnectionService/Shutdown",
    "/tls.sessiond.v1.ConnectionService/SetShutdown",
    "/tls.sessiond.v1.ConnectionService/Free",
    "/tls.sessiond.v1.ConnectionService/GetConnection",
    "/tls.sessiond.v1.ConnectionService/ListConnections",
    "/tls.sessiond.v1.ConnectionService/SetSession",
    "/tls.sessiond.v1.ConnectionService/GetSession",
    "/tls.sessiond.v1.ConnectionService/ReportAlert",
    "/tls.sessiond.v1.ConnectionService/Exchange",
    "/tls.sessiond.v1.SessionService/PutSession",
    "/tls.sessiond.v1.SessionService/LookupSession",
    "/tls.sessiond.v1.SessionService/RemoveSession",
    "/tls.sessiond.v1.SessionService/RevokeSessions",
    "/tls.sessiond.v1.SessionService/ListSessions",
    "/tls.sessiond.v1.SessionService/ExplainSession",
    "/tls.sessiond.v1.ContextService/ListContexts",
    "/tls.sessiond.v1.ContextService/GetContext",
];
const STREAMS: [&str; 3] = [
    "/tls.sessiond.v1.ConnectionService/Drive",
    "/tls.sessiond.v1.WorkerService/Attach",
    "/tls.sessiond.v1.SessionService/WatchSessions",
];
const HEALTH: &str = "/grpc.health.v1.Health/Check";

thread_local! {
    static FIXTURE: OnceCell<Fixture> = const { OnceCell::new() };
}

struct Fixture {
    config: Config,
    now: WallTime,
    runtime: Runtime,
    _folder: tempfile::TempDir,
}

pub(crate) fn run(data: &[u8]) {
    FIXTURE.with(|fixture| {
        let fixture = fixture.get_or_init(Fixture::new);
        fixture.runtime.block_on(async {
            let mut world = World::new(&fixture.config, fixture.now).await;
            let mut choices = Choices(data);
            for _ in 0..STEPS_MAX {
                if choices.is_empty() {
                    break;
                }
                world.step(&mut choices).await;
                world.check();
            }
            world.end().await;
        });
    });
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder for certificates");
        pki::localhost(folder.path());
        let mut text = format!(
            "[limits]\nconnections = {CONNECTIONS_MAX}\nsessions = {SESSIONS_MAX}\nsession_bytes = \"160KiB\"\n\
             message = \"64KiB\"\nplaintext_buffer = \"1KiB\"\n"
        );
        for (name, keys) in [
            ("default", ""),
            (
                "strict",
                "close_policy = \"written\"\nclient_sessions = \"explicit\"\ncache_entries_max = 2",
            ),
            (
                "off",
                "options = [\"no-session-cache\", \"ignore-unexpected-eof\"]\nversions = [\"1.2\"]",
            ),
        ] {
            text += &format!(
                "[[context]]\nname = \"{name}\"\ncertificate = \"tls.crt\"\nkey = \"tls.key\"\nca = \"ca.pem\"\n\
                 key_exchange = [\"X25519\"]\n{keys}\n"
            );
        }
        let file = folder.path().join("fuzz.toml");
        std::fs::write(&file, text).expect("the file can be written");
        let config =
            Config::load(Some(&file), std::iter::empty(), &[]).expect("the configuration is valid");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime starts");
        Self {
            config,
            now: Clock::System.now().wall(),
            runtime,
            _folder: folder,
        }
    }
}

struct World {
    clock: ManualClock,
    registry: Arc<Registry>,
    core: Arc<CoreState>,
    service: InProcess,
    streams: Vec<Open>,
    made: Made,
}

/// Values that the service made, in the order of the answers.
#[derive(Default)]
struct Made {
    connections: Vec<String>,
    sessions: Vec<String>,
    tokens: Vec<String>,
    ciphertext: Vec<Bytes>,
}

/// An open stream.
struct Open {
    kind: usize,
    requests: Option<mpsc::UnboundedSender<Bytes>>,
    answers: Streaming<Bytes>,
    /// Connections that end with the stream.
    made: Vec<String>,
    /// Whether one of its messages named the secret's format and binding.
    entitled: bool,
}

impl World {
    async fn new(config: &Config, now: WallTime) -> Self {
        let clock = ManualClock::starting(now);
        let registry = Arc::new(Registry::build(&config.settings()).expect("the files are there"));
        let limits = &config.limits;
        let core = Arc::new(CoreState::new(
            Arc::clone(&registry),
            Clock::Manual(clock.clone()),
            Most::all(limits.connections),
        ));
        let doors = Ingress {
            access: Arc::new(Access::new()),
            acceptor: None,
        };
        let api = Api::new(
            Arc::clone(&core),
            limits,
            doors,
            None,
            Arc::new(Operator::new(Arc::new(config.clone()))),
            tls_sessiond::server::Beside {
                tracer: tls_sessiond::trace::Tracer::default(),
                rings: Arc::new(
                    tls_sessiond::rings::Rings::read(config, Clock::System).expect("no ring"),
                ),
            },
            &Shutdown::default(),
        )
        .expect("there are random numbers");
        let service = api.local();
        let made = Made {
            sessions: vec![SECRET_ID.into()],
            ..Made::default()
        };
        let mut world = Self {
            clock,
            registry,
            core,
            service,
            streams: Vec::new(),
            made,
        };
        world.keep_the_secret().await;
        world
    }

    async fn keep_the_secret(&mut self) {
        let new = pb::NewRequest {
            role: pb::Role::Server.into(),
            engine: pb::Engine::Worker.into(),
            ..pb::NewRequest::default()
        };
        let answer = self
            .unary(0, new.encode_to_vec().into())
            .await
            .expect("there is room for a connection");
        let made = pb::NewResponse::decode(answer)
            .expect("a NewResponse")
            .connection
            .expect("a connection");
        let put = pb::PutSessionRequest {
            connection_id: made.id.clone(),
            session_id: SECRET_ID.into(),
            data: SECRET.into(),
            format: SECRET_FORMAT.into(),
            version: pb::ProtocolVersion::Tls12.into(),
            server_name: "localhost".into(),
            binding: SECRET_BINDING.into(),
            ..pb::PutSessionRequest::default()
        };
        self.unary(11, put.encode_to_vec().into())
            .await
            .expect("there is room for a session");
        self.made.connection(made.id);
    }

    async fn step(&mut self, choices: &mut Choices<'_>) {
        let what = usize::from(choices.byte());
        match what {
            0..190 => {
                let rpc = what % UNARY.len();
                let message = self.made.filled(choices.vector());
                let entitled = rpc == 12 && lookup_entitles(&message);
                let before = self.state();
                match self.unary(rpc, message).await {
                    Ok(answer) => self.read(rpc, &answer, entitled),
                    Err(_) => assert_eq!(self.state(), before, "a refused call changed state"),
                }
            }
            190..205 => self.open((what - 190) % STREAMS.len(), choices).await,
            205..230 => {
                let which = choices.below(STREAMS_MAX);
                let message = self.made.filled(choices.vector());
                if let Some(stream) = self.streams.get_mut(which) {
                    stream.entitled |= stream.kind == 1 && batch_entitles(&message);
                    if let Some(requests) = &stream.requests {
                        let _ = requests.send(message);
                    }
                    self.listen().await;
                }
            }
            230..236 => {
                let which = choices.below(STREAMS_MAX);
                if which < self.streams.len() {
                    // Cancels the stream, or ends its requests.
                    if choices.byte() & 1 == 0 {
                        let stream = self.streams.swap_remove(which);
                        self.ended(stream);
                    } else {
                        self.streams[which].requests = None;
                        self.listen().await;
                    }
                }
            }
            236..242 => {
                self.clock.advance(Duration::from_secs(
                    choices.below(20_000).try_into().unwrap_or(0),
                ));
                self.core.connections().sweep();
                self.registry.reap(self.core.now().at);
                self.listen().await;
            }
            _ => self.no_grpc(choices).await,
        }
    }

    fn client(&self) -> Grpc<InProcess> {
        Grpc::new(self.service.clone())
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX)
    }

    async fn unary(&self, rpc: usize, message: Bytes) -> Result<Bytes, Status> {
        let answer = self
            .client()
            .unary(
                Request::new(message),
                PathAndQuery::from_static(UNARY[rpc]),
                Raw,
            )
            .await;
        match answer {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => {
                refused(UNARY[rpc], &status);
                Err(status)
            }
        }
    }

    async fn open(&mut self, kind: usize, choices: &mut Choices<'_>) {
        let message = self.made.filled(choices.vector());
        if self.streams.len() >= STREAMS_MAX {
            let oldest = self.streams.remove(0);
            self.ended(oldest);
        }
        let path = PathAndQuery::from_static(STREAMS[kind]);
        let (sender, requests) = mpsc::unbounded_channel();
        let entitled = kind == 1 && batch_entitles(&message);
        let opened = if kind == 2 {
            self.client()
                .server_streaming(Request::new(message), path, Raw)
                .await
        } else {
            let _ = sender.send(message);
            self.client()
                .streaming(
                    Request::new(UnboundedReceiverStream::new(requests)),
                    path,
                    Raw,
                )
                .await
        };
        match opened {
            Ok(answers) => {
                let answers = answers.into_inner();
                self.streams.push(Open {
                    kind,
                    requests: Some(sender),
                    answers,
                    made: Vec::new(),
                    entitled,
                });
                self.listen().await;
            }
            Err(status) => refused(STREAMS[kind], &status),
        }
    }

    /// Reads all answers that the streams have now.
    async fn listen(&mut self) {
        let mut streams = std::mem::take(&mut self.streams);
        let mut at = 0;
        while at < streams.len() {
            let stream = &mut streams[at];
            // A stream that pauses between answers wakes itself.
            let mut pauses = 0;
            let ended = loop {
                let next =
                    poll_fn(|cx| Poll::Ready(Pin::new(&mut stream.answers).poll_next(cx))).await;
                match next {
                    Poll::Pending if pauses < 3 => {
                        pauses += 1;
                        tokio::task::yield_now().await;
                    }
                    Poll::Pending => break false,
                    Poll::Ready(None) => break true,
                    Poll::Ready(Some(Ok(answer))) => {
                        pauses = 0;
                        let known = self.made.connections.len();
                        self.heard(stream.kind, &answer, stream.entitled);
                        stream
                            .made
                            .extend_from_slice(&self.made.connections[known..]);
                    }
                    Poll::Ready(Some(Err(status))) => {
                        refused(STREAMS[stream.kind], &status);
                        break true;
                    }
                }
            };
            if ended {
                self.ended(streams.swap_remove(at));
            } else {
                at += 1;
            }
        }
        self.streams = streams;
    }

    /// Checks that the connections of a stream end with it.
    fn ended(&self, stream: Open) {
        let Open {
            made,
            answers,
            requests,
            ..
        } = stream;
        drop((answers, requests));
        let live = self.live();
        let left = live
            .iter()
            .find(|place| made.contains(&place.id.to_string()));
        assert!(left.is_none(), "a connection outlives its stream");
    }

    fn heard(&mut self, kind: usize, answer: &Bytes, entitled: bool) {
        secret_is_kept(answer, entitled);
        match kind {
            0 => match pb::DriveResponse::decode(answer.clone())
                .expect("a DriveResponse")
                .event
            {
                Some(pb::drive_response::Event::Opened(connection)) => {
                    self.made.connection(connection.id);
                }
                Some(pb::drive_response::Event::Ciphertext(bytes)) => {
                    self.made.ciphertext.push(bytes);
                }
                Some(_) => {}
                None => panic!("a DriveResponse without an event"),
            },
            1 => {
                let answers =
                    pb::AttachResponse::decode(answer.clone()).expect("an AttachResponse");
                assert!(!answers.draining && !answers.answers.is_empty());
                for answer in answers.answers {
                    self.answered(answer.result.expect("an answer has a result"));
                }
            }
            _ => {
                let event = pb::WatchSessionsResponse::decode(answer.clone())
                    .expect("a WatchSessionsResponse");
                assert!(
                    event.event.is_some(),
                    "a WatchSessionsResponse without an event"
                );
            }
        }
    }

    fn answered(&mut self, result: Answered) {
        match result {
            Answered::New(new) => {
                self.made
                    .connection(new.connection.expect("a connection").id);
            }
            Answered::PutSession(put) => self
                .made
                .sessions
                .extend(put.session.map(|session| session.id)),
            Answered::Error(error) => {
                let code = Code::from(error.code);
                assert!(
                    !error.reason.is_empty()
                        && !matches!(code, Code::Ok | Code::Internal | Code::Unknown),
                    "{error:?}"
                );
            }
            _ => {}
        }
    }

    /// Records values from the answer of a successful call.
    fn read(&mut self, rpc: usize, answer: &Bytes, entitled: bool) {
        assert!(answer.len() <= ANSWER_MAX);
        secret_is_kept(answer, entitled);
        match rpc {
            0 => {
                let new = pb::NewResponse::decode(answer.clone()).expect("a NewResponse");
                self.made
                    .connection(new.connection.expect("a connection").id);
            }
            6 => {
                let list = pb::ListConnectionsResponse::decode(answer.clone())
                    .expect("a ListConnectionsResponse");
                assert!(list.connections.len() <= CONNECTIONS_MAX);
                self.made.tokens.push(list.next_page_token);
            }
            10 => {
                let exchanged =
                    pb::ExchangeResponse::decode(answer.clone()).expect("an ExchangeResponse");
                if !exchanged.ciphertext.is_empty() {
                    self.made.ciphertext.push(exchanged.ciphertext);
                }
            }
            11 => {
                let put =
                    pb::PutSessionResponse::decode(answer.clone()).expect("a PutSessionResponse");
                assert_eq!(
                    put.session.is_none(),
                    !put.reason.is_empty(),
                    "a session or a reason"
                );
                self.made
                    .sessions
                    .extend(put.session.map(|session| session.id));
            }
            15 => {
                let list = pb::ListSessionsResponse::decode(answer.clone())
                    .expect("a ListSessionsResponse");
                assert!(list.sessions.len() <= SESSIONS_MAX);
                self.made.tokens.push(list.next_page_token);
                self.made
                    .sessions
                    .extend(list.sessions.into_iter().map(|session| session.id));
                self.made.sessions.truncate(200);
            }
            _ => {}
        }
    }

    /// Sends a request that need not be gRPC: any frames, and any deadline.
    async fn no_grpc(&mut self, choices: &mut Choices<'_>) {
        let which = choices.below(UNARY.len() + STREAMS.len() + 2);
        let all = UNARY
            .iter()
            .chain(&STREAMS)
            .chain([&HEALTH, &"/tls.sessiond.v1.SessionService/NoSuchMethod"]);
        let path = *all.clone().nth(which).expect("the index is in range");
        let length = usize::from(choices.byte()) % 10;
        let timeout = choices.bytes(length);
        let bytes = Bytes::copy_from_slice(choices.vector());
        let mut request = HttpRequest::post(path)
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Ok(timeout) = http::HeaderValue::from_bytes(timeout) {
            request = request.header("grpc-timeout", timeout);
        }
        let request = request
            .body(Body::new(Frames(Some(bytes))))
            .expect("the headers are valid");
        let response = self
            .service
            .call(request)
            .await
            .expect("admission always answers");
        let (head, body) = response.into_parts();
        let mut body = pin!(body);
        let mut status = Status::from_header_map(&head.headers);
        for _ in 0..100 {
            let frame = poll_fn(|cx| Poll::Ready(body.as_mut().poll_frame(cx))).await;
            match frame {
                // The call waits for input that does not come.
                Poll::Pending => break,
                Poll::Ready(None) => break,
                Poll::Ready(Some(Err(failed))) => {
                    status = Some(failed);
                    break;
                }
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => secret_is_kept(&data, true),
                    Err(frame) => {
                        status = frame
                            .trailers_ref()
                            .and_then(Status::from_header_map)
                            .or(status);
                    }
                },
            }
        }
        if let Some(status) = status.filter(|status| status.code() != Code::Ok) {
            refused(path, &status);
        }
    }

    /// Returns the connections as a list shows them. They fit into one page.
    fn live(&self) -> Vec<Listed> {
        let mut found = Vec::new();
        assert_eq!(
            self.core
                .connections()
                .page(|_, _| true, None, 100, &mut found),
            None
        );
        found
    }

    /// Returns all state that a call may change.
    fn state(&self) -> Vec<String> {
        let connections = self.live().into_iter().filter_map(|place| {
            let seen = self.core.connections().inspect(place.id, |connection, _| {
                let session = connection.session().map(|session| session.id().clone());
                (
                    connection.state(),
                    connection.shutdown_flags(),
                    connection.evidence(),
                    connection.is_open(),
                    session,
                )
            });
            seen.ok().map(|seen| format!("{} {seen:?}", place.id))
        });
        let sessions = self
            .registry
            .caches()
            .map(|cache| format!("{} {}", cache.len(), cache.bytes()));
        connections.chain(sessions).collect()
    }

    /// Checks invariants.
    fn check(&self) {
        assert!(
            self.core.connections().len() <= CONNECTIONS_MAX,
            "more connections than the limit"
        );
        assert_eq!(self.core.connections().len(), self.live().len());
        let (mut sessions, mut bytes) = (0, 0);
        for cache in self.registry.caches() {
            let limits = cache.limits();
            assert!(cache.len() <= limits.entries_max && cache.bytes() <= limits.bytes_max);
            (sessions, bytes) = (sessions + cache.len(), bytes + cache.bytes());
        }
        assert!(
            sessions <= SESSIONS_MAX && bytes <= SESSION_BYTES_MAX,
            "more sessions than the limit"
        );
    }

    /// Checks that streams free their connections, and that all connections can be freed.
    async fn end(mut self) {
        self.streams.clear();
        tokio::task::yield_now().await;
        self.core.connections().free_all();
        assert!(self.core.connections().is_empty());
    }
}

/// Checks that a refusal has a reason that a worker can compare. For a message that cannot be
/// parsed, tonic itself returns INTERNAL.
fn refused(path: &str, status: &Status) {
    let Some(info) = status.get_details_error_info() else {
        panic!("{path}: no ErrorInfo: {status:?}")
    };
    let ours = info.domain == DOMAIN && !info.reason.is_empty();
    let malformed = status.code() == Code::Internal && info.reason == "MESSAGE_MALFORMED";
    assert!(
        ours && (malformed || !matches!(status.code(), Code::Ok | Code::Internal | Code::Unknown)),
        "{path}: {status:?}"
    );
    secret_is_kept(status.message().as_bytes(), false);
    secret_is_kept(status.details(), false);
}

fn secret_is_kept(answer: &[u8], entitled: bool) {
    assert!(
        entitled || !answer.windows(SECRET.len()).any(|window| window == SECRET),
        "a secret was returned to a caller that did not name its format and binding"
    );
}

fn entitles(request: &pb::LookupSessionRequest) -> bool {
    request.format == SECRET_FORMAT && *request.binding == *SECRET_BINDING
}

fn lookup_entitles(message: &Bytes) -> bool {
    pb::LookupSessionRequest::decode(message.clone()).is_ok_and(|request| entitles(&request))
}

fn batch_entitles(message: &Bytes) -> bool {
    let Ok(batch) = pb::AttachRequest::decode(message.clone()) else {
        return false;
    };
    batch.calls.iter().any(|call| match &call.method {
        Some(Method::LookupSession(request)) => entitles(request),
        _ => false,
    })
}

impl Made {
    /// Records an id, unless it is known.
    fn connection(&mut self, id: String) {
        if !self.connections.contains(&id) {
            self.connections.push(id);
        }
    }

    /// Returns the message with placeholders replaced by values that the service made, at any
    /// depth. Bytes that are not a message stay as they are.
    fn filled(&self, message: &[u8]) -> Bytes {
        self.fields(message, 0)
            .unwrap_or_else(|| message.to_vec())
            .into()
    }

    fn fields(&self, mut rest: &[u8], depth: usize) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(rest.len());
        while !rest.is_empty() {
            let key = varint(&mut rest)?;
            put_varint(&mut out, key);
            match key & 7 {
                0 => {
                    let value = varint(&mut rest)?;
                    put_varint(&mut out, value);
                }
                wire @ (1 | 5) => {
                    let (value, after) = rest.split_at_checked(if wire == 1 { 8 } else { 4 })?;
                    out.extend_from_slice(value);
                    rest = after;
                }
                2 => {
                    let length = usize::try_from(varint(&mut rest)?).ok()?;
                    let (value, after) = rest.split_at_checked(length)?;
                    rest = after;
                    let value = match self.stands_for(value) {
                        Some(value) => value,
                        None if depth < 4 => self
                            .fields(value, depth + 1)
                            .unwrap_or_else(|| value.to_vec()),
                        None => value.to_vec(),
                    };
                    put_varint(&mut out, value.len().try_into().ok()?);
                    out.extend(value);
                }
                _ => return None,
            }
        }
        Some(out)
    }

    fn stands_for(&self, value: &[u8]) -> Option<Vec<u8>> {
        let &[kind, which] = value else { return None };
        let which = usize::from(which & 0x0f);
        match kind {
            b'#' => self
                .connections
                .get(which)
                .map(|id| id.clone().into_bytes()),
            b'$' => self.sessions.get(which).map(|id| id.clone().into_bytes()),
            b'%' => self
                .tokens
                .get(which)
                .map(|token| token.clone().into_bytes()),
            b'!' => self.ciphertext.get(which).map(|bytes| bytes.to_vec()),
            _ => None,
        }
    }
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// A codec that passes messages unchanged.
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buf.copy_to_bytes(buf.remaining())))
    }
}

/// The body of a request, in one frame.
struct Frames(Option<Bytes>);

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }
}
