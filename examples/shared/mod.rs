//! The part that both workers share: ciphertext between a socket and a Drive stream, and enough channels for the streams.

pub(crate) mod ended;

use std::{error::Error, sync::Arc};

use tls_sessiond::proto::{
    Connection, DriveRequest, DriveResponse, NewRequest, ProtocolVersion, ShutdownRequest,
    connection_service_client::ConnectionServiceClient, drive_request::Event as Request,
    drive_response::Event as Answer,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Streaming,
    transport::{Channel, Endpoint},
};

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Channels to the daemon, with at most `streams` Drives on each. A call beyond the daemon's `limits.streams` waits on its
/// channel until a stream ends, without an error, so a further channel is opened before that.
pub(crate) struct Channels {
    daemon: Endpoint,
    streams: usize,
    open: Mutex<Vec<(Channel, Arc<Semaphore>)>>,
}

/// A place for one Drive on one of the channels. Dropping it gives the place back.
pub(crate) struct Place {
    channel: Channel,
    _permit: OwnedSemaphorePermit,
}

impl Channels {
    /// Opens the first channel. `streams` is at least 1, and less than the daemon's `limits.streams`: the unary calls of a
    /// channel need places as well.
    pub(crate) async fn open(daemon: &str, streams: usize) -> Result<Self> {
        let channels = Self { daemon: endpoint(daemon)?, streams: streams.max(1), open: Mutex::default() };
        channels.place().await?;
        Ok(channels)
    }

    /// Takes a place on the first channel that has one, and opens a channel where none has.
    pub(crate) async fn place(&self) -> Result<Place> {
        // Held while a channel is opened: of many callers that find no place, one opens it.
        let mut open = self.open.lock().await;
        for (channel, places) in open.iter() {
            if let Ok(permit) = Arc::clone(places).try_acquire_owned() {
                return Ok(Place { channel: channel.clone(), _permit: permit });
            }
        }
        let channel = self.daemon.connect().await?;
        let places = Arc::new(Semaphore::new(self.streams));
        let permit = Arc::clone(&places).try_acquire_owned()?;
        open.push((channel.clone(), places));
        Ok(Place { channel, _permit: permit })
    }
}

/// What the daemon prints where it listens in plaintext: `tcp://HOST:PORT`, also written `http://`, or `unix:///PATH`.
fn endpoint(daemon: &str) -> Result<Endpoint> {
    let uri = match (daemon.strip_prefix("tcp://"), daemon.split_once("://")) {
        (Some(authority), _) => format!("http://{authority}"),
        (None, Some(("http" | "unix", _))) => daemon.to_owned(),
        _ => {
            return Err(
                format!("invalid endpoint `{daemon}`: expected tcp://HOST:PORT or unix:///PATH").into()
            );
        }
    };
    Ok(Endpoint::from_shared(uri)?)
}

/// A socket whose TLS runs in the daemon. Dropping it ends the stream, and the daemon frees the connection then: as
/// unclosed, unless `shutdown` was called, or the peer has closed and its socket has ended.
pub(crate) struct Wire {
    socket: TcpStream,
    _place: Place,
    /// `None` once this side has nothing more to say.
    requests: Option<mpsc::Sender<DriveRequest>>,
    answers: Streaming<DriveResponse>,
    records: Vec<u8>,
    socket_ended: bool,
}

impl Wire {
    pub(crate) async fn open(place: Place, socket: TcpStream, new: NewRequest) -> Result<Self> {
        socket.set_nodelay(true)?;
        // For the daemon's log: which peer it was.
        let new = NewRequest { peer_address: socket.peer_addr()?.to_string(), ..new };
        let (requests, receiver) = mpsc::channel(4);
        requests.send(DriveRequest { event: Some(Request::New(new)) }).await?;
        let mut daemon = ConnectionServiceClient::new(place.channel.clone());
        let answers = daemon.drive(ReceiverStream::new(receiver)).await?.into_inner();
        let records = vec![0; 16 * 1024];
        Ok(Self { socket, _place: place, requests: Some(requests), answers, records, socket_ended: false })
    }

    /// Carries ciphertext both ways until something happens that a worker wants to know: established, plaintext or
    /// closed. `None`: the stream has ended. It ends by itself soon after the peer has closed and its socket has ended.
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
        // A reset is an end like any other: the daemon looks whether a close_notify came before it, and then closes this
        // side itself. Data for a peer that has only closed its half would be sent before this event.
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
