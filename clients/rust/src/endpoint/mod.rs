//! The daemon's endpoint and the transport to it.

#[cfg(feature = "rustls")]
pub(crate) mod tls;

use std::{
    fmt,
    io::{self, IoSlice},
    os::unix::net::UnixStream as StdUnixStream,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{
    Uri,
    uri::{Authority, PathAndQuery, Scheme},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};

#[cfg(feature = "rustls")]
use crate::endpoint::tls::{Tls, TlsTransport};
use tls_sessiond_proto::transport::Unix;

/// An endpoint of the daemon.
#[derive(Clone, Debug)]
pub(super) enum Address {
    Tcp(Authority),
    Unix(PathBuf),
    Inside(Inside),
    #[cfg(feature = "rustls")]
    Tls(Authority, Tls),
}

/// Makes connected sockets to a daemon of this process.
#[derive(Clone)]
pub(super) struct Inside(pub(super) Arc<dyn Fn() -> io::Result<StdUnixStream> + Send + Sync>);

impl fmt::Debug for Inside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Inside")
    }
}

impl Address {
    /// Parses `tcp://HOST:PORT` (or `http://`) or `unix:///PATH`, the forms that the daemon prints.
    pub(super) fn parse(endpoint: &str) -> Option<Self> {
        match endpoint.strip_prefix("unix://") {
            Some(path) => path.starts_with('/').then(|| Self::Unix(path.into())),
            None => authority(endpoint, &["tcp", "http"]).map(Self::Tcp),
        }
    }

    /// Parses `tls://HOST:PORT` (or `https://`). `tls` makes the TLS configuration for HOST.
    #[cfg(feature = "rustls")]
    pub(super) fn parse_tls(endpoint: &str, tls: impl FnOnce(&str) -> Option<Tls>) -> Option<Self> {
        let authority = authority(endpoint, &["tls", "https"])?;
        let tls = tls(host(&authority))?;
        Some(Self::Tls(authority, tls))
    }

    /// Returns the URI of a call to `path`.
    pub(super) fn uri(&self, path: &'static str) -> Uri {
        let (scheme, authority) = match self {
            Self::Tcp(authority) => (Scheme::HTTP, authority.clone()),
            // A Unix socket has no host name.
            Self::Unix(_) | Self::Inside(_) => (Scheme::HTTP, Authority::from_static("localhost")),
            #[cfg(feature = "rustls")]
            Self::Tls(authority, _) => (Scheme::HTTPS, authority.clone()),
        };
        let mut uri = Uri::default().into_parts();
        (uri.scheme, uri.authority) = (Some(scheme), Some(authority));
        uri.path_and_query = Some(PathAndQuery::from_static(path));
        // It cannot fail: scheme, authority and path are set.
        Uri::from_parts(uri).unwrap_or_default()
    }

    /// Connects to the daemon.
    ///
    /// # Errors
    /// Errors of the system and of TLS.
    pub(super) async fn connect(&self) -> io::Result<Transport> {
        match self {
            Self::Tcp(authority) => tcp(authority, 80).await.map(Transport::Tcp),
            Self::Unix(path) => {
                let stream = UnixStream::connect(path).await?.into_std()?;
                Unix::new(stream).map(Transport::Unix)
            }
            Self::Inside(Inside(connect)) => {
                let stream = connect()?;
                stream.set_nonblocking(true)?;
                Unix::new(stream).map(Transport::Unix)
            }
            #[cfg(feature = "rustls")]
            Self::Tls(authority, tls) => {
                let stream = tls.connect(tcp(authority, 443).await?).await?;
                Ok(Transport::Tls(Box::new(stream)))
            }
        }
    }
}

/// Returns the authority of `SCHEME://HOST:PORT`. `None` if a path, a query or a user name is
/// given, or if the host is empty.
fn authority(endpoint: &str, schemes: &[&str]) -> Option<Authority> {
    let uri: Uri = endpoint.parse().ok()?;
    let authority = uri.authority()?;
    let plain = uri.scheme_str().is_some_and(|scheme| schemes.contains(&scheme))
        && uri.path_and_query().is_none_or(|path| path == "/")
        && !authority.as_str().contains('@')
        // Refuses an authority with an invalid or empty port.
        && (authority.port_u16().is_some() || authority.host() == authority.as_str())
        && !host(authority).is_empty();
    plain.then(|| authority.clone())
}

/// Returns the host without the brackets around an IPv6 address.
fn host(authority: &Authority) -> &str {
    authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']')
}

async fn tcp(authority: &Authority, default_port: u16) -> io::Result<TcpStream> {
    let port = authority.port_u16().unwrap_or(default_port);
    let stream = TcpStream::connect((host(authority), port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A connected transport to the daemon.
pub(super) enum Transport {
    Tcp(TcpStream),
    Unix(Unix),
    #[cfg(feature = "rustls")]
    Tls(Box<TlsTransport>),
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            #[cfg(feature = "rustls")]
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            #[cfg(feature = "rustls")]
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
            #[cfg(feature = "rustls")]
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            #[cfg(feature = "rustls")]
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            #[cfg(feature = "rustls")]
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_addresses_and_what_is_more_is_none() {
        for (endpoint, uri) in [
            ("http://127.0.0.1:7443", "http://127.0.0.1:7443/s/m"),
            ("http://[::1]:7443/", "http://[::1]:7443/s/m"),
            ("tcp://127.0.0.1:7443", "http://127.0.0.1:7443/s/m"),
            ("http://daemon", "http://daemon/s/m"),
            ("unix:///run/api.sock", "http://localhost/s/m"),
        ] {
            let address = Address::parse(endpoint).unwrap();
            assert_eq!(address.uri("/s/m").to_string(), uri);
        }
        for endpoint in [
            "",
            "http://",
            "http:///path",
            "http://:80",
            "http://a:1/path",
            "http://a:1/?query",
            "http://me@a:1",
            "http://a:70000",
            "http://a:",
            "https://a:1",
            "a:1",
            "unix://api.sock",
            "unix://",
            "tls://a:1",
            "tcp://a:1/path",
            "gopher://a:1",
        ] {
            assert!(Address::parse(endpoint).is_none(), "{endpoint}");
        }
    }
}
