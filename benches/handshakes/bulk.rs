//! Application data through Drive, against plain rustls in memory.

use std::io::{Read, Write};

use bytes::Bytes;
use rustls::version::TLS13;
use tls_sessiond_proto::{drive_request::Event as Request, drive_response::Event as Response};
use tokio::runtime::Runtime;

use crate::{
    cpu,
    daemon::{Daemon, Socket, Stream},
    peer::{Kind, Peer, Setup},
    table::{Goal, Round, Table, Unit},
};

const ROUNDS: usize = 11;
const MESSAGE: usize = 64 << 10;
/// Messages of one round: 16 MiB.
const MESSAGES: usize = 256;
/// The number of messages that may be in flight.
const WINDOW: usize = 16;

/// The direction of the data through the daemon.
#[derive(Clone, Copy, PartialEq)]
enum Direction {
    /// Plaintext in, ciphertext out.
    Encrypt,
    /// Ciphertext in, plaintext out.
    Decrypt,
}

fn encrypt(peer: &mut Peer, message: &[u8]) -> Vec<u8> {
    peer.0.writer().write_all(message).unwrap();
    peer.flush()
}

fn decrypt(peer: &mut Peer, mut records: &[u8]) -> Vec<u8> {
    let mut plaintext = Vec::new();
    while !records.is_empty() {
        peer.0.read_tls(&mut records as &mut dyn Read).unwrap();
        let state = peer.0.process_new_packets().unwrap();
        let (start, more) = (plaintext.len(), state.plaintext_bytes_to_read());
        plaintext.resize(start + more, 0);
        peer.0.reader().read_exact(&mut plaintext[start..]).unwrap();
    }
    plaintext
}

/// Makes a client and a server in memory that have finished the handshake.
fn pair(setup: &Setup) -> (Peer, Peer) {
    let mut client = Peer::client(&setup.client(&TLS13, Kind::Full));
    let mut server = Peer::server(&setup.plain(2));
    let mut flight = client.flush();
    while !flight.is_empty() {
        let answer = server.step(&flight);
        flight = client.step(&answer);
    }
    client.0.set_buffer_limit(None);
    server.0.set_buffer_limit(None);
    (client, server)
}

/// Returns the CPU seconds of the server's side.
fn plain((client, server): &mut (Peer, Peer), direction: Direction, message: &[u8]) -> f64 {
    let mut used = 0.0;
    match direction {
        Direction::Encrypt => {
            for _ in 0..MESSAGES {
                let records = cpu::add(&mut used, || encrypt(server, message));
                decrypt(client, &records);
            }
        }
        Direction::Decrypt => {
            for _ in 0..MESSAGES {
                let records = encrypt(client, message);
                let plaintext = cpu::add(&mut used, || decrypt(server, &records));
                assert_eq!(plaintext.len(), message.len());
            }
        }
    }
    used
}

async fn open(daemon: &Daemon, setup: &Setup, socket: Socket) -> (Peer, Stream) {
    let mut client = Peer::client(&setup.client(&TLS13, Kind::Full));
    let mut stream = daemon.worker(socket).await.open(&mut client).await;
    loop {
        match stream
            .answers
            .message()
            .await
            .unwrap()
            .unwrap()
            .event
            .unwrap()
        {
            Response::Ciphertext(records) => stream.send_records(client.step(&records)),
            Response::Established(_) => break,
            _ => {}
        }
    }
    client.0.set_buffer_limit(None);
    (client, stream)
}

/// Does one round through the daemon, decrypts the answers, and waits until all data has come back.
async fn drive((client, stream): &mut (Peer, Stream), direction: Direction, message: &Bytes) {
    let mut sent = 0;
    let mut left = MESSAGES * MESSAGE;
    while left > 0 {
        while sent < MESSAGES && sent * MESSAGE < (MESSAGES * MESSAGE - left) + WINDOW * MESSAGE {
            match direction {
                Direction::Encrypt => stream.send(Request::Plaintext(message.clone())),
                Direction::Decrypt => stream.send_records(encrypt(client, message)),
            }
            sent += 1;
        }
        left -= match stream
            .answers
            .message()
            .await
            .unwrap()
            .unwrap()
            .event
            .unwrap()
        {
            Response::Ciphertext(records) => decrypt(client, &records).len(),
            Response::Plaintext(plaintext) => plaintext.len(),
            other => panic!("unexpected: {other:?}"),
        };
    }
}

pub(crate) fn measure(setup: &Setup, daemon: &Daemon, runtime: &Runtime, table: &mut Table) {
    let message = Bytes::from(vec![7; MESSAGE]);
    for socket in [Socket::Unix, Socket::Tcp] {
        let mut through = runtime.block_on(open(daemon, setup, socket));
        let mut memory = pair(setup);
        for (name, direction) in [
            ("encrypt", Direction::Encrypt),
            ("decrypt", Direction::Decrypt),
        ] {
            let name = format!("Drive {socket:?} {name}");
            if !table.wants(&name) {
                continue;
            }
            let rounds: Vec<_> = (0..ROUNDS)
                .map(|_| {
                    let before = daemon.cpu();
                    runtime.block_on(drive(&mut through, direction, &message));
                    let ours = daemon.cpu() - before;
                    Round {
                        ours,
                        plain: plain(&mut memory, direction, &message),
                    }
                })
                .collect();
            let mib = (MESSAGES * MESSAGE) as f64 / f64::from(1 << 20);
            table.row(&name, Unit::Throughput(mib), Goal::None, &rounds);
        }
    }
}
