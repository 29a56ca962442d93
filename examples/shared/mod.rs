//! What both workers do: carry ciphertext between a socket and a Drive stream.

use std::error::Error;

use tls_sessiond::proto::{
    Connection, DriveRequest, DriveResponse, NewRequest, ProtocolVersion, ShutdownRequest,
    connection_service_client::ConnectionServiceClient, drive_request::Event as Request,
    drive_response::Event as Answer,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// A socket whose TLS runs in the daemon. Dropping it ends the stream, and the daemon frees the connection then: as
/// unclosed, unless `shutdown` was called.
pub(crate) struct Wire {
    socket: TcpStream,
    /// `None` once this side has nothing more to say.
    requests: Option<mpsc::Sender<DriveRequest>>,
    answers: Streaming<DriveResponse>,
    records: Vec<u8>,
    socket_ended: bool,
}

impl Wire {
    pub(crate) async fn open(
        mut daemon: ConnectionServiceClient<Channel>,
        socket: TcpStream,
        new: NewRequest,
    ) -> Result<Self> {
        socket.set_nodelay(true)?;
        let (requests, receiver) = mpsc::channel(4);
        requests.send(DriveRequest { event: Some(Request::New(new)) }).await?;
        let answers = daemon.drive(ReceiverStream::new(receiver)).await?.into_inner();
        let records = vec![0; 16 * 1024];
        Ok(Self { socket, requests: Some(requests), answers, records, socket_ended: false })
    }

    /// Carries ciphertext both ways until something happens that a worker wants to know: established, plaintext or
    /// closed. `None`: the connection is over.
    pub(crate) async fn next(&mut self) -> Result<Option<Answer>> {
        loop {
            let requests = self.requests.as_ref().filter(|_| !self.socket_ended);
            tokio::select! {
                answer = self.answers.message() => match answer?.map(|answer| answer.event) {
                    None => return Ok(None),
                    Some(Some(Answer::Ciphertext(records))) => self.socket.write_all(&records).await?,
                    Some(None | Some(Answer::Opened(_))) => {}
                    Some(event) => return Ok(event),
                },
                ended = carry(requests, &mut self.socket, &mut self.records) => self.socket_ended = ended,
            }
        }
    }

    pub(crate) async fn write(&mut self, plaintext: impl Into<Vec<u8>>) {
        self.request(Request::Plaintext(plaintext.into().into())).await;
    }

    /// SSL_shutdown(3): the peer gets a close_notify, and the session is kept.
    pub(crate) async fn shutdown(&mut self) {
        self.request(Request::Shutdown(ShutdownRequest::default())).await;
    }

    /// Nothing more to say: the stream ends once everything is carried out.
    pub(crate) fn finish(&mut self) {
        self.requests = None;
    }

    async fn request(&self, event: Request) {
        if let Some(requests) = &self.requests {
            // It fails where the stream has ended; `next` tells how.
            let _ = requests.send(DriveRequest { event: Some(event) }).await;
        }
    }
}

/// One read from the socket, when the daemon is ready to take what it brings. Tells whether the socket has ended.
async fn carry(
    requests: Option<&mpsc::Sender<DriveRequest>>,
    socket: &mut TcpStream,
    records: &mut [u8],
) -> bool {
    let Some(requests) = requests else { return std::future::pending().await };
    let Ok(permit) = requests.reserve().await else { return true };
    let read = socket.read(records).await;
    let event = match read {
        Ok(length @ 1..) => Request::Ciphertext(records[..length].to_vec().into()),
        // A reset is an end like any other: what counts is whether a close_notify came before it.
        Ok(0) | Err(_) => Request::EndOfStream(true),
    };
    let ended = matches!(event, Request::EndOfStream(_));
    permit.send(DriveRequest { event: Some(event) });
    ended
}

/// `TLS 1.3 TLS_AES_256_GCM_SHA384 resumed: true`
pub(crate) fn describe(connection: &Connection) -> String {
    let version = match connection.version() {
        ProtocolVersion::Tls12 => "TLS 1.2",
        ProtocolVersion::Tls13 => "TLS 1.3",
        ProtocolVersion::Unspecified => "unknown version",
    };
    format!("{version} {} resumed: {}", connection.cipher_suite, connection.session_reused)
}
