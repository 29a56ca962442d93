//! The daemon's CPU time for a resumed connection whose TLS runs in the worker: lookup, new, set
//! session, shutdown, free.

use tls_sessiond_proto::{
    self as pb, answer::Result as Answered, call::Method,
    worker_service_client::WorkerServiceClient,
};
use tokio::{runtime::Runtime, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

use crate::{
    daemon::Daemon,
    engine,
    peer::{IN_FLIGHT, Kind, Setup},
    table::{Goal, Round, Table, Unit},
};

const ROUNDS: usize = 41;
/// Connections in one message, and messages in one round.
const BATCH: usize = 64;
const BATCHES: usize = 64;
/// About the size of an OpenSSL session.
const DATA: usize = 200;
const SESSION: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

struct Attached {
    requests: mpsc::Sender<pb::AttachRequest>,
    answers: Streaming<pb::AttachResponse>,
}

fn call(id: u64, method: Method) -> pb::Call {
    pb::Call {
        id,
        method: Some(method),
        alias: String::new(),
    }
}

fn make(alias: &str) -> pb::Call {
    let request = pb::NewRequest {
        role: pb::Role::Server.into(),
        engine: pb::Engine::Worker.into(),
        ..Default::default()
    };
    pb::Call {
        alias: alias.into(),
        ..call(0, Method::New(request.into()))
    }
}

fn close(alias: &str) -> [pb::Call; 2] {
    let connection_id = alias.to_owned();
    [
        call(
            0,
            Method::Shutdown(pb::ShutdownRequest {
                connection_id: connection_id.clone(),
            }),
        ),
        call(
            0,
            Method::Free(pb::FreeRequest {
                connection_id,
                allow_missing: false,
            }),
        ),
    ]
}

/// Returns the calls of one connection. Only the lookup wants an answer, because a handshake waits
/// for it.
fn life(number: usize) -> Vec<pb::Call> {
    let alias = format!("@{number}");
    let lookup = pb::LookupSessionRequest {
        role: pb::Role::Server.into(),
        session_id: SESSION.into(),
        format: "openssl".into(),
        ..Default::default()
    };
    let set = pb::SetSessionRequest {
        connection_id: alias.clone(),
        session_id: SESSION.into(),
    };
    let mut calls = vec![
        call(number as u64 + 1, Method::LookupSession(lookup.into())),
        make(&alias),
        call(0, Method::SetSession(set)),
    ];
    calls.extend(close(&alias));
    calls
}

impl Attached {
    async fn to(channel: Channel) -> Self {
        let (requests, receiver) = mpsc::channel(BATCHES);
        let mut client = WorkerServiceClient::new(channel);
        let answers = client
            .attach(ReceiverStream::new(receiver))
            .await
            .unwrap()
            .into_inner();
        let put = pb::PutSessionRequest {
            connection_id: "@first".into(),
            session_id: SESSION.into(),
            data: vec![7; DATA].into(),
            format: "openssl".into(),
            version: pb::ProtocolVersion::Tls12.into(),
            ..Default::default()
        };
        let mut calls = vec![make("@first"), call(0, Method::PutSession(put.into()))];
        calls.extend(close("@first"));
        requests.send(pb::AttachRequest { calls }).await.unwrap();
        Self { requests, answers }
    }

    /// Sends all batches, and then checks that every lookup found the session.
    async fn lives(&mut self) {
        for _ in 0..BATCHES {
            let calls = (0..BATCH).flat_map(life).collect();
            self.requests
                .send(pb::AttachRequest { calls })
                .await
                .unwrap();
        }
        let mut left = BATCH * BATCHES;
        while left > 0 {
            for answer in self.answers.message().await.unwrap().unwrap().answers {
                match answer.result {
                    Some(Answered::LookupSession(looked)) if looked.found => left -= 1,
                    other => panic!("unexpected: {other:?}"),
                }
            }
        }
    }
}

pub(crate) fn measure(setup: &Setup, daemon: &Daemon, runtime: &Runtime, table: &mut Table) {
    for (name, version) in [
        ("life / resumed TLS 1.2 handshake", &rustls::version::TLS12),
        ("life / resumed TLS 1.3 handshake", &rustls::version::TLS13),
    ] {
        if !table.wants(name) {
            continue;
        }
        let plain_config = setup.plain(1);
        let clients = setup.clients(version, Kind::Resumed);
        engine::prime(&clients, Kind::Resumed, &plain_config);
        let mut attached = runtime.block_on(async { Attached::to(daemon.channel().await).await });
        let rounds: Vec<_> = (0..ROUNDS)
            .map(|_| {
                let before = daemon.cpu();
                runtime.block_on(attached.lives());
                let ours = (daemon.cpu() - before) / (BATCH * BATCHES) as f64;
                Round {
                    ours,
                    plain: engine::plain(&clients, Kind::Resumed, &plain_config) / IN_FLIGHT as f64,
                }
            })
            .collect();
        table.row(name, Unit::Time(1), Goal::None, &rounds);
    }
}
