//! One connection of a proxy that originates TLS: a local program speaks plaintext, and the server
//! TLS, which the daemon runs.
//!
//! The daemon runs it, because rustls cannot hand a client's sessions to another process. So they are
//! shared with every client of the context, and the bytes cross the API.

use std::{io, time::Duration};

use tls_sessiond_client::engine::{ClientConnection, EngineError, EngineStream};
use tls_sessiond_types::alert::Alert;
use tokio::time::timeout;

use super::{
    carry::{Carried, IdleTimes, Passed, carry},
    door::{NoHandshake, ProxyDoor},
    places::ConnectionPlace,
    plain::Plain,
    settings::Originating,
    tally::{End, InGauge, Unserved},
};
use crate::config::{Destination, ProxyConfig};

/// How much longer than the proxy the daemon waits for a byte, so that the proxy is first.
const IDLE_MORE: Duration = Duration::from_secs(10);

/// Serves a connection of a local program.
pub(super) async fn originate(
    proxy: &ProxyDoor,
    (config, settings): (&ProxyConfig, &Originating),
    mut local: Plain,
    place: ConnectionPlace,
) {
    let began = std::time::Instant::now();
    let to = &settings.dial.to;
    let established = {
        let _handshaking = InGauge::enter(&proxy.tally.handshaking);
        tokio::select! {
            done = connect(proxy, config, settings, to) => done,
            () = place.ends().cancelled() => Err(Some(NoHandshake::Unserved(Unserved::MadeRoom))),
            () = proxy.finish.cancelled() => Err(None),
        }
    };
    let mut tls = match established {
        Ok(tls) => tls,
        Err(failed) => {
            local.reset();
            if let Some(failed) = failed {
                proxy.failed(to, &failed);
            }
            return;
        }
    };
    place.establish();
    proxy.tally.finished(tls.version(), tls.resumed());
    let _open = InGauge::enter(&proxy.tally.open);
    let passed = Passed {
        to_plain: &proxy.tally.received,
        from_plain: &proxy.tally.sent,
    };
    // A program may end its half before the server answers, so the answer has all the time.
    let limits = IdleTimes {
        idle: config.idle_timeout,
        after_close: config.idle_timeout,
    };
    let carried = carry(&mut tls, &mut local, limits, &passed, &proxy.finish);
    let (end, is_whole) = tokio::select! {
        carried = carried => {
            let is_whole = matches!(carried, Carried::Closed { is_whole: true });
            (ended(carried), is_whole)
        }
        () = proxy.abort.cancelled() => (End::Stopped, false),
    };
    // No side may take what it has for the whole, if it is not.
    if !is_whole {
        local.reset();
    }
    if end != End::Closed {
        tls.get_ref().reset();
    }
    proxy.tally.ended(end);
    tracing::debug!(
        proxy = proxy.name,
        server = %to,
        version = ?tls.version(),
        resumed = tls.resumed(),
        end = end.word(),
        milliseconds = began.elapsed().as_millis(),
        "connection ended"
    );
}

/// Connects to the server, and does the handshake. `None`: the server is away, which is counted.
async fn connect(
    proxy: &ProxyDoor,
    config: &ProxyConfig,
    settings: &Originating,
    to: &Destination,
) -> Result<EngineStream<Plain>, Option<NoHandshake>> {
    let connected = timeout(config.connect_timeout, settings.dial.connect()).await;
    let socket = connected
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|err| {
            proxy.tally.ended(End::BackendAway);
            proxy.away(to, &err);
            None
        })?;
    let mut connection = ClientConnection::new(&settings.config.server_name);
    connection.idle_timeout = Some(config.idle_timeout + IDLE_MORE);
    connection.peer_address = socket
        .peer()
        .map(|peer| peer.to_string())
        .unwrap_or_default();
    match timeout(
        config.handshake_timeout,
        settings.engine.connect(socket, connection),
    )
    .await
    {
        Err(_) => Err(Some(NoHandshake::Unserved(Unserved::TimedOut))),
        Ok(Ok(tls)) => Ok(tls),
        Ok(Err(err)) => Err(Some(failed(proxy, &err))),
    }
}

/// Reads the error of a handshake.
fn failed(proxy: &ProxyDoor, err: &io::Error) -> NoHandshake {
    match err.get_ref().and_then(|err| err.downcast_ref()) {
        Some(EngineError::Alert { code, received, .. }) => NoHandshake::Alert(Alert {
            code: *code,
            received: *received,
        }),
        Some(EngineError::Socket { .. } | EngineError::Truncated) => {
            NoHandshake::Unserved(Unserved::Ended)
        }
        _ => {
            proxy.no_engine(err);
            NoHandshake::Unserved(Unserved::DaemonAway)
        }
    }
}

/// Returns how a connection ended that originates TLS.
fn ended(carried: Carried) -> End {
    let err = match carried {
        Carried::Closed { .. } => return End::Closed,
        Carried::Idle => return End::Idle,
        Carried::PlainFailed => return End::PeerReset,
        Carried::TlsFailed(err) => err,
    };
    match err.get_ref().and_then(|err| err.downcast_ref()) {
        Some(EngineError::Alert { .. } | EngineError::Failed) => End::Alert,
        Some(EngineError::Truncated) => End::Truncated,
        Some(EngineError::DaemonLost(_) | EngineError::Refused { .. }) => End::DaemonLost,
        _ => End::BackendReset,
    }
}
