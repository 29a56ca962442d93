//! Code that both workers share: carries ciphertext between a socket and a Drive stream, and opens
//! enough channels for the streams.

pub(crate) mod ended;

use std::{error::Error, sync::Arc};

use tls_sessiond_proto::{
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

/// Channels to the daemon, with at most `streams` Drives on each. A call beyond the daemon's
/// `limits.streams` gets no error but waits on its channel until a stream ends. So a further
/// channel is opened before that.
pub(crate) struct Channels {
    daemon: Endpoint,
    streams: usize,
    open: Mutex<Vec<(Channel, Arc<Semaphore>)>>,
}

/// A slot for one Drive on one of the channels. Dropping it frees the slot.
pub(crate) struct Place {
    channel: Channel,
    _permit: OwnedSemaphorePermit,
}

impl Channels {
    /// Opens the first channel. `streams` must be at least 1 and less than the daemon's
    /// `limits.streams`, because the unary calls of a channel need streams as well.
    pub(crate) async fn open(daemon: &str, streams: usize) -> Result<Self> {
        let channels = Self {
            daemon: endpoint(daemon)?,
            streams: streams.max(1),
            open: Mutex::default(),
        };
        channels.place().await?;
        Ok(channels)
    }

    /// Takes a slot on the first channel that has a free one. Opens a channel if none has.
    pub(crate) async fn place(&self) -> Result<Place> {
        // Held while a channel is opened, so that only one of the callers that find no slot opens
        // one.
        let mut open = self.open.lock().await;
        for (channel, places) in open.iter() {
            if let Ok(permit) = Arc::clone(places).try_acquire_owned() {
                return Ok(Place {
                    channel: channel.clone(),
                    _permit: permit,
                });
            }
        }
        let channel = self.daemon.connect().await?;
        let places = Arc::new(Semaphore::new(self.streams));
        let permit = Arc::clone(&places).try_acquire_owned()?;
        open.push((channel.clone(), places));
        Ok(Place {
            channel,
            _permit: permit,
        })
    }
}

/// Parses an endpoint as the daemon prints it for plaintext: `tcp://HOST:PORT` (or `http://`) or
/// `unix:///PATH`.
fn endpoint(daemon: &str) -> Result<Endpoint> {
    let uri = match (daemon.strip_prefix("tcp://"), daemon.split_once("://")) {
        (Some(authority), _) => format!("http://{authority}"),
        (None, Some(("http" | "unix", _))) => daemon.to_owned(),
        _ => {
            return Err(format!(
                "invalid endpoint `{daemon}`: expected tcp://HOST:PORT or unix:///PATH"
            )
            .into());
        }
    };
    Ok(Endpoint::from_shared(uri)?)
}

/// A socket whose TLS runs in the daemon. Dropping it ends the stream, and the daemon then frees
/// the connection. The connection is unclosed unless `shutdown` was called, or the peer has closed
/// and its socket has ended.
pub(crate) struct Wire {
    socket: TcpStream,
    _place: Place,
    /// `None` once this side has nothing more to send.
    requests: Option<mpsc::Sender<DriveRequest>>,
    answers: Streaming<DriveResponse>,
    records: Vec<u8>,
    socket_ended: bool,
}

impl Wire {
    pub(crate) async fn open(place: Place, socket: TcpStream, new: NewRequest) -> Result<Self> {
        socket.set_nodelay(true)?;
        // The daemon logs the address of the peer.
        let new = NewRequest {
            peer_address: socket.peer_addr()?.to_string(),
            ..new
        };
        let (requests, receiver) = mpsc::channel(4);
        requests
            .send(DriveRequest {
                event: Some(Request::New(new)),
            })
            .await?;
        let mut daemon = ConnectionServiceClient::new(place.channel.clone());
        let answers = daemon
            .drive(ReceiverStream::new(receiver))
            .await?
            .into_inner();
        let records = vec![0; 16 * 1024];
        Ok(Self {
            socket,
            _place: place,
            requests: Some(requests),
            answers,
            records,
            socket_ended: false,
        })
    }

    /// Carries ciphertext both ways until an event for the worker: established, plaintext or
    /// closed. `None`: the stream has ended. It ends soon after the peer has closed and its socket
    /// has ended.
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
        self.request(Request::Plaintext(plaintext.into().into()))
            .await;
    }

    /// Closes this side: SSL_shutdown(3). The peer gets a close_notify, and the session stays in
    /// the cache.
    pub(crate) async fn shutdown(&mut self) {
        self.request(Request::Shutdown(ShutdownRequest::default()))
            .await;
    }

    /// Ends the requests. The stream ends once the daemon has done all of them.
    pub(crate) fn finish(&mut self) {
        self.requests = None;
    }

    async fn request(&self, event: Request) {
        if let Some(requests) = &self.requests {
            // Sending fails if the stream has ended. `next` returns the reason.
            let _ = requests.send(DriveRequest { event: Some(event) }).await;
        }
    }
}

/// Does one read from the socket, once the daemon is ready to take its result. Returns whether the
/// socket has ended.
async fn carry(
    requests: Option<&mpsc::Sender<DriveRequest>>,
    socket: &mut TcpStream,
    records: &mut [u8],
) -> bool {
    let Some(requests) = requests else {
        return std::future::pending().await;
    };
    let Ok(permit) = requests.reserve().await else {
        return true;
    };
    let read = socket.read(records).await;
    let event = match read {
        Ok(length @ 1..) => Request::Ciphertext(records[..length].to_vec().into()),
        // A reset is handled like any other end: the daemon checks whether a close_notify came
        // before it, and then closes this side itself. Data for a peer that has only closed its own
        // side is sent before this event.
        Ok(0) | Err(_) => Request::EndOfStream(true),
    };
    let ended = matches!(event, Request::EndOfStream(_));
    permit.send(DriveRequest { event: Some(event) });
    ended
}

/// Describes a connection, for example `TLS 1.3 TLS_AES_256_GCM_SHA384 resumed: true`.
pub(crate) fn describe(connection: &Connection) -> String {
    let version = match connection.version() {
        ProtocolVersion::Tls12 => "TLS 1.2",
        ProtocolVersion::Tls13 => "TLS 1.3",
        ProtocolVersion::Unspecified => "unknown version",
    };
    format!(
        "{version} {} resumed: {}",
        connection.cipher_suite, connection.session_reused
    )
}
