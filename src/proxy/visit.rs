//! One connection of a proxy, from its first byte to its end.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use rustls::AlertDescription;
use tls_sessiond_client::rustls::{Incoming, TlsStream};
use tls_sessiond_types::alert::{self, Alert};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep_until, timeout},
};

use super::{
    carry::{Carried, IdleTimes, Passed, carry},
    door::{NoHandshake, ProxyDoor},
    header::{self, Addresses},
    places::ConnectionPlace,
    plain::reset,
    settings::{LiveSite, Terminating},
    tally::{End, InGauge, Unserved},
};
use crate::config::{Away, ProxyConfig};

/// What a client gets that speaks HTTP where TLS is spoken.
const HTTP_ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 62\r\n\
                             Connection: close\r\n\r\nthis port speaks TLS: use https:// instead of http:// in URLs\n";
/// How long an answer to a client without TLS may take.
const ANSWER: Duration = Duration::from_secs(2);
/// How long a client may send nothing after its backend has ended.
const AFTER_CLOSE: Duration = Duration::from_secs(10);

impl NoHandshake {
    /// Reads the error of a handshake.
    fn of(err: &io::Error) -> Self {
        let tls = err
            .get_ref()
            .and_then(|err| err.downcast_ref::<rustls::Error>());
        match tls {
            Some(rustls::Error::AlertReceived(description)) => Self::Alert(Alert {
                code: (*description).into(),
                received: true,
            }),
            Some(err) => Self::Alert(alert::for_error(err)),
            None => Self::Unserved(Unserved::Ended),
        }
    }
}

/// A client whose handshake is done.
struct Established<'s> {
    tls: TlsStream<TcpStream>,
    site: &'s LiveSite,
    addresses: Addresses,
}

/// Serves a connection of a proxy that terminates TLS.
pub(super) async fn terminate(
    proxy: &ProxyDoor,
    (config, settings): (&ProxyConfig, &Terminating),
    socket: TcpStream,
    peer: SocketAddr,
    place: ConnectionPlace,
) {
    let began = Instant::now();
    let limit = sleep_until((began + config.handshake_timeout).into());
    let established = {
        let _handshaking = InGauge::enter(&proxy.tally.handshaking);
        tokio::select! {
            done = handshake(settings, socket, peer) => done,
            () = limit => Err(NoHandshake::Unserved(Unserved::TimedOut)),
            () = place.ends().cancelled() => Err(NoHandshake::Unserved(Unserved::MadeRoom)),
            () = proxy.finish.cancelled() => return,
        }
    };
    let Established {
        mut tls,
        site,
        addresses,
    } = match established {
        Ok(established) => established,
        Err(failure) => {
            proxy.failed(&peer, &failure);
            return;
        }
    };
    place.establish();
    proxy.tally.finished(tls.version(), tls.resumed());
    let _open = InGauge::enter(&proxy.tally.open);
    let end = forward(proxy, (config, settings), site, addresses, &mut tls).await;
    proxy.ended(peer, &tls, end, began.elapsed());
}

/// Reads what the client sends first, chooses its site, and does the handshake.
async fn handshake(
    settings: &Terminating,
    mut socket: TcpStream,
    peer: SocketAddr,
) -> Result<Established<'_>, NoHandshake> {
    let own = Addresses {
        source: peer,
        destination: socket.local_addr().unwrap_or(peer),
    };
    let unserved = |why| Err(NoHandshake::Unserved(why));
    let addresses = match &settings.header_from {
        None => own,
        Some(networks) if networks.iter().all(|network| !network.has(peer.ip())) => {
            reset(&socket);
            return unserved(Unserved::Stranger);
        }
        Some(_) => match header::read(&mut socket).await {
            Ok(told) => told.unwrap_or(own),
            Err(why) => return unserved(why),
        },
    };
    let incoming = Incoming::read(socket)
        .await
        .map_err(|_| NoHandshake::Unserved(Unserved::Ended))?;
    if !incoming.is_client_hello() {
        let first = incoming.first_bytes();
        let why = match first {
            [] => Some(Unserved::Ended),
            first if header::begins(first) => Some(Unserved::UnexpectedProxyHeader),
            first if is_http(first) => Some(Unserved::PlainHttp),
            // A handshake record: its alert is that of rustls.
            [22, ..] => None,
            _ => Some(Unserved::NotTls),
        };
        if why == Some(Unserved::PlainHttp) {
            let mut socket = incoming.into_stream();
            let answer = async {
                socket.write_all(HTTP_ANSWER).await?;
                socket.shutdown().await
            };
            // A client that does not take the answer gets none.
            let _ = timeout(ANSWER, answer).await;
            return unserved(Unserved::PlainHttp);
        }
        if let Some(why) = why {
            refuse(incoming, AlertDescription::UnexpectedMessage).await;
            return unserved(why);
        }
    }
    let Some(site) = settings.site(incoming.server_name()) else {
        // RFC 6066 section 3.
        refuse(incoming, AlertDescription::UnrecognisedName).await;
        return unserved(Unserved::NoSite);
    };
    match site.acceptor.accept_incoming(incoming).await {
        Ok(tls) => Ok(Established {
            tls,
            site,
            addresses,
        }),
        Err(err) => Err(NoHandshake::of(&err)),
    }
}

async fn refuse(incoming: Incoming<TcpStream>, alert: AlertDescription) {
    let alert = Alert {
        code: alert.into(),
        received: false,
    };
    // A client that does not take the alert is gone.
    let _ = timeout(ANSWER, incoming.refuse(alert)).await;
}

/// Returns whether bytes begin like an HTTP request.
fn is_http(first: &[u8]) -> bool {
    const METHODS: [&[u8]; 9] = [
        b"GET ",
        b"HEAD ",
        b"POST ",
        b"PUT ",
        b"DELETE ",
        b"OPTIONS ",
        b"PATCH ",
        b"CONNECT ",
        b"PRI * HTTP",
    ];
    METHODS.iter().any(|method| first.starts_with(method))
}

/// Connects to the backend, and carries bytes until the connection ends.
async fn forward(
    proxy: &ProxyDoor,
    (config, settings): (&ProxyConfig, &Terminating),
    site: &LiveSite,
    addresses: Addresses,
    tls: &mut TlsStream<TcpStream>,
) -> End {
    let connected = timeout(config.connect_timeout, async {
        let mut backend = site.dial.connect().await?;
        if settings.sends_header {
            backend.write_all(&header::write(addresses, tls)?).await?;
        }
        Ok::<_, io::Error>(backend)
    });
    let connected = connected
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let mut backend = match connected {
        Ok(backend) => backend,
        Err(err) => {
            proxy.away(&site.dial.to, &err);
            match settings.away {
                Away::Reset => reset(socket(tls)),
                Away::Close => close(tls).await,
            }
            return End::BackendAway;
        }
    };
    let passed = Passed {
        to_plain: &proxy.tally.sent,
        from_plain: &proxy.tally.received,
    };
    let limits = IdleTimes {
        idle: config.idle_timeout,
        after_close: config.idle_timeout.min(AFTER_CLOSE),
    };
    let carried = carry(tls, &mut backend, limits, &passed, &proxy.finish);
    let carried = tokio::select! {
        carried = carried => carried,
        () = proxy.abort.cancelled() => {
            backend.reset();
            reset(socket(tls));
            return End::Stopped;
        }
    };
    // No side may take what it has for the whole, if it is not.
    if !matches!(carried, Carried::Closed { is_whole: true }) {
        backend.reset();
    }
    let end = ended(carried);
    if end != End::Closed {
        reset(socket(tls));
    }
    end
}

/// Sends a close_notify, and reads until the client ends: closing a socket with unread bytes would reset
/// it, and the close_notify could be lost. A client that does not take it loses its session.
async fn close(tls: &mut TlsStream<TcpStream>) {
    let closing = async {
        tls.shutdown().await?;
        let mut unread = [0; 1024];
        while tls.read(&mut unread).await? > 0 {}
        Ok::<_, io::Error>(())
    };
    // The client may be gone, or may not end.
    let _ = timeout(ANSWER, closing).await;
}

fn socket(tls: &TlsStream<TcpStream>) -> &TcpStream {
    tls.get_ref().get_ref().0.get_ref()
}

/// Returns how a connection ended that terminates TLS.
fn ended(carried: Carried) -> End {
    match carried {
        Carried::Closed { .. } => End::Closed,
        Carried::Idle => End::Idle,
        Carried::PlainFailed => End::BackendReset,
        Carried::TlsFailed(err) => match err.kind() {
            io::ErrorKind::UnexpectedEof => End::Truncated,
            io::ErrorKind::InvalidData => End::Alert,
            _ => End::PeerReset,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_to_http_has_its_length() {
        let text = std::str::from_utf8(HTTP_ANSWER).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("Content-Length: {}\r\n", body.len())),
            "{}",
            body.len()
        );
    }
}
